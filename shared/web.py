"""
The HTTP side that all four services share: problems, health, metrics, callers, and documentation that works without internet.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from hashlib import sha256
from time import monotonic
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.datastructures import State
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.access import Admission, Allowed, public, routes
from shared.auth import ROLES, Doorkeeper
from shared.errors import RefusedError, UnavailableError
from shared.ids import new_id
from shared.limiting import network
from shared.problems import PROBLEMS, invalid, problem
from shared.telemetry import logger

BODY_BYTES_MAX = 64 * 1024
BODY_WITHIN_S = 30.0
HEALTH = ("/healthz", "/readyz", "/metrics")
SECURITY: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
"""On every answer that says nothing else itself: it is no page, belongs in no frame, and in nobody's cache."""
HSTS = "max-age=31536000"
PROBLEM = "application/problem+json"
PROBLEM_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "title_en": {"type": "string"},
        "detail_en": {"type": "string"},
        "field": {"type": "string"},
    },
    "required": ["type", "title", "status", "detail", "code", "title_en", "detail_en"],
}

Readiness = Callable[[], Awaitable[Mapping[str, str]]]
"""What is not ready, by name, with why; empty when all is."""


class ProblemResponse(JSONResponse):
    """An RFC 9457 problem."""

    media_type = PROBLEM


def answer(why: RefusedError) -> ProblemResponse:
    """The response to a refusal, with `Retry-After` and `WWW-Authenticate` where they belong."""
    document = problem(why)
    headers = dict(SECURITY)
    if document["status"] in (429, 503):
        headers["Retry-After"] = str(why.facts.get("retry_after", 2))
    if document["status"] == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return ProblemResponse(document, status_code=document["status"], headers=headers)


def create_app(
    title: str, *, ready: Readiness, doorkeeper: Doorkeeper, body_bytes_max: int = BODY_BYTES_MAX
) -> FastAPI:
    """
    An app with `/healthz /readyz /metrics /docs /openapi.json`, problems for everything that goes wrong, and bounds on what comes in.

    Args:
        ready: asked by `/readyz`; 503 names what is not.
        doorkeeper: for routes that say who is `allowed`.
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
    app.state.admission = Admission.unlimited()
    app.openapi = partial(described, app)  # type: ignore[method-assign]
    app.add_middleware(BodyLimit, limit=body_bytes_max)
    app.add_middleware(Paced, app_state=app.state)
    app.add_middleware(Headed)
    app.mount("/docs/assets", StaticFiles(packages=[("fastapi_swagger", "resources")]), name="docs-assets")

    page = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title=title,
        swagger_js_url="/docs/assets/swagger-ui-bundle.js",
        swagger_css_url="/docs/assets/swagger-ui.css",
        swagger_favicon_url="/docs/assets/favicon-32x32.png",
    )
    page.headers["Content-Security-Policy"] = _policy(bytes(page.body).decode())

    @app.get("/docs", include_in_schema=False, dependencies=[public])
    async def docs() -> HTMLResponse:
        return page

    @app.get(
        "/healthz", tags=["health"], summary="存活 / alive", response_class=PlainTextResponse, dependencies=[public]
    )
    async def healthz() -> PlainTextResponse:
        return PlainTextResponse("ok\n")

    @app.get(
        "/readyz",
        tags=["health"],
        summary="就绪 / ready",
        responses={503: {"description": "not ready"}},
        dependencies=[public],
    )
    async def readyz() -> JSONResponse:
        missing = dict(await ready())
        return JSONResponse({"ready": not missing, "missing": missing}, status_code=503 if missing else 200)

    @app.get(
        "/metrics",
        tags=["health"],
        summary="指标 / Prometheus metrics",
        response_class=PlainTextResponse,
        dependencies=[public],
    )
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
    async def wrong(_: Request, why: RequestValidationError) -> Response:
        first = why.errors()[0]
        if first["type"] == "json_invalid":
            return answer(RefusedError("invalid_json"))
        where = first["loc"][1:]  # the first says whether in the body, the query, the path or the head
        return answer(invalid([{**first, "loc": where}]))

    @app.exception_handler(HTTPException)
    async def http(request: Request, why: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 400: "invalid_json"}.get(why.status_code)
        if code is None:
            return ProblemResponse({"title": str(why.detail), "status": why.status_code}, status_code=why.status_code)
        response = answer(RefusedError(code, what="URL"))
        if code == "method_not_allowed":
            fits = (name.split(" ")[0] for name, route, _ in routes(app) if route.path_regex.match(request.url.path))
            response.headers["Allow"] = ", ".join(sorted(set(fits))) or "GET"
        return response

    @app.exception_handler(Exception)
    async def bug(request: Request, why: Exception) -> Response:
        incident = new_id()
        logger().error(
            "request_failed", incident=incident, route=getattr(request.scope.get("route"), "path", ""), exc_info=why
        )
        return answer(RefusedError("internal", id=incident))

    return app


def problems(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of a route that may answer with these problems."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        text = PROBLEMS[code]
        entry = by_status.setdefault(text.status, {"description": "", "content": {PROBLEM: {"schema": PROBLEM_SCHEMA}}})
        entry["description"] = (entry["description"] + f" · `{code}` {text.zh} / {text.en}").strip(" ·")
    return by_status


def described(app: FastAPI) -> dict[str, Any]:
    """The app's OpenAPI document: with `security` and `x-roles` as they are declared, and with what any route may answer."""
    if app.openapi_schema:
        return app.openapi_schema
    document = FastAPI.openapi(app)
    components = document.setdefault("components", {})
    components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}
    for name, _, found in routes(app):
        method, path = name.split(" ", 1)
        operation = document["paths"].get(path, {}).get(method.lower())
        if operation is not None and found is not None:
            _declare(operation, found, health=path in HEALTH)
    schemas = components.get("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):  # our problems stand in their place
        schemas.pop(unused, None)
    return document


def _declare(operation: dict[str, Any], found: Allowed, *, health: bool) -> None:
    operation["x-roles"] = [role for role in ROLES if found.may(role)]
    codes = ["internal", "busy", "head_too_large"]
    if not health:
        codes.append("too_many")
    if found.roles:
        codes.append("unauthenticated")
        operation["security"] = [{"token": []}, *([{}] if "resident" in found.roles else [])]
        if "resident" not in found.roles:
            codes.append("forbidden")
    if "requestBody" in operation:
        codes += ["invalid_json", "too_large", "too_slow"]
    answers = operation["responses"]
    if "application/json" in answers.get("422", {}).get("content", {}):  # FastAPI's own
        del answers["422"]
    if "requestBody" in operation or operation.get("parameters"):
        codes.append("invalid")
    for code in codes:
        ((status, more),) = problems(code).items()
        entry = answers.setdefault(str(status), more)
        if f"`{code}`" not in entry["description"]:
            entry["description"] += f" · {more['description']}"
            entry.setdefault("content", {}).update(more["content"])


def _policy(page: str) -> str:
    """What a page of ours may load: its own files, and the scripts that are written in it."""
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    known = " ".join(f"'sha256-{base64.b64encode(sha256(script.encode()).digest()).decode()}'" for script in scripts)
    return (
        f"default-src 'none'; script-src 'self' {known}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class Headed:
    """Adds the headers of `SECURITY` to every answer that has none of its own of that name."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._headers = [(name.lower().encode(), value.encode()) for name, value in SECURITY.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on; complete the answer's head."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        kept = scope["path"].startswith("/docs/assets/")

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                held = message.setdefault("headers", [])
                names = {name.lower() for name, _ in held}
                more = [(name, value) for name, value in self._headers if name not in names]
                if kept:
                    more = [(name, value) for name, value in more if name != b"cache-control"]
                if scope["scheme"] == "https":
                    more.append((b"strict-transport-security", HSTS.encode()))
                message["headers"] = [*held, *more]
            await send(message)

        await self.app(scope, receive, sent)


class Paced:
    """Refuses an address that asks too often; health is always answered."""

    def __init__(self, app: ASGIApp, app_state: State) -> None:
        self.app = app
        self.state = app_state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer 429 in the app's place."""
        if scope["type"] == "http" and scope["path"] not in HEALTH:
            admission: Admission = self.state.admission
            try:
                admission.addresses.take(network(scope.get("client")), monotonic())
            except RefusedError as why:
                await answer(why)(scope, receive, send)
                return
        await self.app(scope, receive, send)


class BodyLimit:
    """Refuses a body that is larger than the limit before anything reads it, announced or not, and one that takes too long."""

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
        taken, begun, ended, late = 0, False, False, False
        ends = asyncio.get_running_loop().time() + BODY_WITHIN_S

        async def counted() -> Message:
            nonlocal taken, ended, late, refusal
            if ended:  # whoever streams an answer waits here for the client to go
                return await receive()
            try:
                async with asyncio.timeout_at(ends):
                    message = await receive()
            except TimeoutError:
                late, refusal = True, RefusedError("too_slow", within=round(BODY_WITHIN_S))
                raise refusal from None
            ended = not message.get("more_body", False)
            taken += len(message.get("body", b""))
            if taken > self.limit:
                raise refusal
            return message

        async def sent(message: Message) -> None:
            nonlocal begun
            if begun or not (
                late or taken > self.limit
            ):  # else what the app makes of our refusal: a route's own answer to a broken body
                begun = True
                await send(message)

        with suppress(RefusedError):
            await self.app(scope, counted, sent)
        if (late or taken > self.limit) and not begun:
            await answer(refusal)(scope, receive, send)
