"""
The HTTP side that all four services share: problems, health, metrics, callers, and documentation that works without internet.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.auth import Caller, Doorkeeper, bearer
from shared.errors import RefusedError, UnavailableError
from shared.ids import new_id
from shared.problems import PROBLEMS, problem, said
from shared.telemetry import logger

BODY_BYTES_MAX = 64 * 1024
PROBLEM = "application/problem+json"

Readiness = Callable[[], Awaitable[Mapping[str, str]]]
"""What is not ready, by name, with why; empty when all is."""


class ProblemResponse(JSONResponse):
    """An RFC 9457 problem."""

    media_type = PROBLEM


def answer(why: RefusedError) -> ProblemResponse:
    """The response to a refusal, with `Retry-After` and `WWW-Authenticate` where they belong."""
    document = problem(why)
    headers = {}
    if document["status"] in (429, 503):
        headers["Retry-After"] = str(why.facts.get("retry_after", 2))
    if document["status"] == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return ProblemResponse(document, status_code=document["status"], headers=headers)


def create_app(
    title: str, *, ready: Readiness, doorkeeper: Doorkeeper, body_bytes_max: int = BODY_BYTES_MAX
) -> FastAPI:
    """
    An app with `/healthz /readyz /metrics /docs /openapi.json`, problems for everything that goes wrong, and a bound on bodies.

    Args:
        ready: asked by `/readyz`; 503 names what is not.
        doorkeeper: for routes that take a `CallerNeeded`.
    """

    @asynccontextmanager
    async def keys_followed(_: FastAPI) -> AsyncIterator[None]:
        following = asyncio.create_task(doorkeeper.follow())
        yield
        following.cancel()

    app = FastAPI(
        title=title, docs_url=None, redoc_url=None, swagger_ui_oauth2_redirect_url=None, lifespan=keys_followed
    )
    app.state.doorkeeper = doorkeeper
    app.add_middleware(BodyLimit, limit=body_bytes_max)
    app.mount("/docs/assets", StaticFiles(packages=[("fastapi_swagger", "resources")]), name="docs-assets")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=title,
            swagger_js_url="/docs/assets/swagger-ui-bundle.js",
            swagger_css_url="/docs/assets/swagger-ui.css",
            swagger_favicon_url="/docs/assets/favicon-32x32.png",
        )

    @app.get("/healthz", tags=["health"], summary="存活 / alive")
    async def healthz() -> PlainTextResponse:
        return PlainTextResponse("ok\n")

    @app.get("/readyz", tags=["health"], summary="就绪 / ready", responses={503: {"description": "not ready"}})
    async def readyz() -> JSONResponse:
        missing = dict(await ready())
        return JSONResponse({"ready": not missing, "missing": missing}, status_code=503 if missing else 200)

    @app.get("/metrics", tags=["health"], summary="指标 / Prometheus metrics")
    async def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(RefusedError)
    async def refused(_: Request, why: RefusedError) -> Response:
        return answer(why)

    @app.exception_handler(UnavailableError)
    async def unavailable(_: Request, why: UnavailableError) -> Response:
        logger().warning("bus_unavailable", why=str(why))
        return answer(RefusedError("unavailable", retry_after=2))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, why: RequestValidationError) -> Response:
        first = why.errors()[0]
        if first["type"] == "json_invalid":
            return answer(RefusedError("invalid_json"))
        path = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
        zh, en = said(first)
        return answer(RefusedError("invalid", field=".".join(path) or "body", why=zh, why_en=en))

    @app.exception_handler(HTTPException)
    async def http(_: Request, why: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 400: "invalid_json"}.get(why.status_code)
        if code is None:
            return ProblemResponse({"title": str(why.detail), "status": why.status_code}, status_code=why.status_code)
        response = answer(RefusedError(code, what="URL"))
        response.headers.update(why.headers or {})
        return response

    @app.exception_handler(Exception)
    async def bug(request: Request, why: Exception) -> Response:
        incident = new_id()
        logger().error(
            "request_failed", incident=incident, route=getattr(request.scope.get("route"), "path", ""), exc_info=why
        )
        return answer(RefusedError("internal", id=incident))

    return app


async def caller(request: Request) -> Caller:
    """The caller of this request. Raises RefusedError `unauthenticated`."""
    doorkeeper: Doorkeeper = request.app.state.doorkeeper
    return await doorkeeper.admit(bearer(request.headers.get("authorization")))


CallerNeeded = Annotated[Caller, Depends(caller)]
"""A parameter of this type makes a route ask for a token."""


def problems(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of a route that may answer with these problems."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        text = PROBLEMS[code]
        entry = by_status.setdefault(
            text.status, {"description": "", "content": {PROBLEM: {"schema": {"type": "object"}}}}
        )
        entry["description"] = (entry["description"] + f" · `{code}` {text.zh} / {text.en}").strip(" ·")
    return by_status


class BodyLimit:
    """Refuses a body that is larger than the limit before anything reads it, announced or not."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count what comes in; answer 413 in the app's place."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        refusal = RefusedError("too_large", limit=self.limit)
        if announced.isdigit() and int(announced) > self.limit:
            await answer(refusal)(scope, receive, send)
            return
        taken, begun = 0, False

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.limit:
                raise refusal
            return message

        async def sent(message: Message) -> None:
            nonlocal begun
            if (
                begun or taken <= self.limit
            ):  # else what the app makes of our refusal: a route's own answer to a broken body
                begun = True
                await send(message)

        with suppress(RefusedError):
            await self.app(scope, counted, sent)
        if taken > self.limit and not begun:
            await answer(refusal)(scope, receive, send)


async def serve(app: FastAPI, host: str, port: int, *, until: asyncio.Event, tls_file: Path | None = None) -> None:
    """
    Serve until the event is set, then finish what is under way (5 s at most).

    Args:
        tls_file: certificate and key; HTTPS then, and nothing else.
    Raises:
        OSError: the port is taken, or the certificate cannot be read.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        ssl_certfile=tls_file,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]  # `until` decides
    task = asyncio.create_task(server._serve())
    ended = asyncio.create_task(until.wait())
    await asyncio.wait({task, ended}, return_when=asyncio.FIRST_COMPLETED)
    ended.cancel()
    server.should_exit = True
    with suppress(SystemExit):
        await task
    if not until.is_set():
        raise OSError(f"cannot listen on {host}:{port}: is the port taken?")


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop
