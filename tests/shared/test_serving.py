"""What comes in is bounded: by address, caller, connection, head and body; and what goes out carries its headers. On a real server."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import FastAPI, Request
from starlette.responses import HTMLResponse, StreamingResponse

from deploy.identities import Identities, issue_token
from deploy.servers import free_port
from shared import serving, web
from shared.access import allowed, public
from shared.auth import Caller, Doorkeeper
from shared.serving import HEAD_BYTES_MAX, RESERVED, serve
from shared.settings import ServiceSettings

Served = Callable[..., Any]


def create(identities: Identities) -> FastAPI:
    """An app with a route of every kind."""

    async def ready() -> dict[str, str]:
        return {}

    app = web.create_app(
        "T", ready=ready, doorkeeper=Doorkeeper.from_file(identities.jwks_file), body_bytes_max=100_000
    )

    @app.get("/mine")
    async def mine(caller: Annotated[Caller, allowed("member", of="own")]) -> str:
        return caller.id

    @app.post("/length", dependencies=[public])
    async def length(request: Request) -> int:
        return len(await request.body())

    @app.get("/page", dependencies=[public])
    async def page() -> HTMLResponse:
        return HTMLResponse(
            "<p>", headers={"Content-Security-Policy": "default-src 'self'", "Cache-Control": "private"}
        )

    @app.get("/bug", dependencies=[public])
    async def bug() -> None:
        raise ZeroDivisionError

    @app.get("/who", dependencies=[public])
    async def who(request: Request) -> str:
        return f"{request.url.scheme} {request.client.host if request.client else ''}"

    @app.get("/endless", dependencies=[public])
    async def endless() -> StreamingResponse:
        async def lines() -> AsyncIterator[bytes]:
            while True:
                yield b"x\n"
                await asyncio.sleep(0.05)

        return StreamingResponse(lines())

    return app


@pytest.fixture
def served(identities: Identities) -> Served:
    """Serve it with these settings; the client and its port."""

    @asynccontextmanager
    async def served(**settings: Any) -> AsyncIterator[tuple[httpx2.AsyncClient, int]]:
        until, port = asyncio.Event(), free_port()
        given = ServiceSettings(http_port=port, **settings)
        running = asyncio.create_task(serve(create(identities), given, until=until))
        base = f"http://127.0.0.1:{port}"
        async with httpx2.AsyncClient(base_url=base, timeout=10, trust_env=False) as http, asyncio.timeout(30):
            while True:
                with suppress(httpx2.HTTPError):
                    await http.get("/healthz")
                    break
                await asyncio.sleep(0.02)
            try:
                yield http, port
            finally:
                until.set()
                await running

    return served


def bearer(identities: Identities, sub: str = "m-17") -> dict[str, str]:
    """A member's."""
    return {"Authorization": f"Bearer {issue_token(identities, sub, '420106', ['member'])}"}


async def raw(port: int, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """Send bytes as they are; all that comes back until the other side closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(10):
        for part in parts:
            writer.write(part)
            await asyncio.sleep(pause_s)
        try:
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()


# --- headers ----------------------------------------------------------------------------------------------------------


async def test_every_answer_says_what_it_is_not(served: Served, identities: Identities) -> None:
    async with served() as (http, _):
        for path in ("/mine", "/nowhere", "/bug", "/healthz", "/docs", "/openapi.json", "/metrics"):
            headers = (await http.get(path)).headers
            assert headers["x-content-type-options"] == "nosniff", path
            assert headers["referrer-policy"] == "no-referrer"
            assert headers["x-frame-options"] == "DENY"
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
            assert headers["cache-control"] == "no-store"
            assert "server" not in headers
            assert "strict-transport-security" not in headers
        mine = await http.get("/mine", headers=bearer(identities))
        assert (mine.status_code, mine.headers["cache-control"]) == (200, "no-store")
        assert (await http.get("/page")).headers["content-security-policy"] == "default-src 'self'"
        assert (await http.get("/page")).headers["cache-control"] == "private"
        assert "cache-control" not in (await http.get("/docs/assets/swagger-ui.css")).headers
        assert (await http.post("/length", content=b"x" * 100_001)).headers["x-frame-options"] == "DENY"


async def test_the_documentation_may_run_its_own_script_and_no_other(served: Served) -> None:
    async with served() as (http, _):
        answer = await http.get("/docs")
        policy = answer.headers["content-security-policy"]
        assert len(re.findall(r"<script>", answer.text)) == len(re.findall(r"'sha256-[\w+/]+=*'", policy)) == 1
        scripts = next(part for part in policy.split("; ") if part.startswith("script-src"))
        assert "unsafe" not in scripts


async def test_strict_transport_is_for_who_came_by_it(served: Served) -> None:
    forwarded = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}
    async with served(trusted_proxies="127.0.0.1") as (http, _):
        answer = await http.get("/who", headers=forwarded)
        assert answer.json() == "https 203.0.113.9"
        assert answer.headers["strict-transport-security"].startswith("max-age=")
    async with served() as (http, _):
        answer = await http.get("/who", headers=forwarded)
        assert answer.json() == "http 127.0.0.1"
        assert "strict-transport-security" not in answer.headers
    async with served(trusted_proxies="192.0.2.0/24") as (http, _):
        assert (await http.get("/who", headers=forwarded)).json() == "http 127.0.0.1"


# --- pace -------------------------------------------------------------------------------------------------------------


async def test_an_address_that_asks_too_often_waits_and_health_is_answered(served: Served) -> None:
    async with served(http_rate_per_s=0.5, http_burst=3) as (http, _):
        codes = [(await http.get("/nowhere")).status_code for _ in range(5)]
        assert codes == [404, 404, 404, 429, 429]
        answer = await http.get("/nowhere")
        assert answer.json()["code"] == "too_many"
        assert 1 <= int(answer.headers["retry-after"]) <= 2
        assert answer.headers["x-frame-options"] == "DENY"
        assert (await http.get("/healthz")).status_code == 200


async def test_addresses_are_told_apart_by_what_a_trusted_proxy_says_and_by_nothing_else(served: Served) -> None:
    async with served(http_rate_per_s=0.1, http_burst=1, trusted_proxies="127.0.0.1") as (http, _):
        for address in ("203.0.113.1", "203.0.113.2", "2001:db8:1::1", "2001:db8:2::1"):
            headers = {"X-Forwarded-For": f"198.51.100.7, {address}"}  # the first is what the client said itself
            assert (await http.get("/who", headers=headers)).status_code == 200
            assert (await http.get("/who", headers=headers)).status_code == 429
        same_network = {"X-Forwarded-For": "2001:db8:1::2"}
        assert (await http.get("/who", headers=same_network)).status_code == 429
    async with served(http_rate_per_s=0.1, http_burst=1) as (http, _):
        codes = [(await http.get("/who", headers={"X-Forwarded-For": f"203.0.113.{n}"})).status_code for n in range(3)]
        assert codes == [200, 429, 429]


async def test_somebody_who_asks_too_often_waits_with_whatever_token_and_nobody_else_does(
    served: Served, identities: Identities
) -> None:
    async with served(caller_rate_per_s=0.1, caller_burst=2) as (http, _):
        codes = [(await http.get("/mine", headers=bearer(identities))).status_code for _ in range(3)]
        assert codes == [200, 200, 429]
        assert (await http.get("/mine", headers=bearer(identities, "m-18"))).status_code == 200


async def test_guessing_tokens_is_slow_and_does_not_lock_out_who_is_known(
    served: Served, identities: Identities
) -> None:
    known = bearer(identities)
    async with served(login_misses_per_s=0.1, login_misses_burst=3) as (http, _):
        assert (await http.get("/mine", headers=known)).status_code == 200
        codes = [(await http.get("/mine", headers={"Authorization": f"Bearer {n}"})).status_code for n in range(5)]
        assert codes == [401, 401, 401, 429, 429]
        assert (await http.get("/mine", headers=bearer(identities, "m-18"))).status_code == 429  # it may be a guess
        assert (await http.get("/mine", headers=known)).status_code == 200
        assert (await http.get("/mine")).status_code == 401  # whoever shows none guesses nothing


# --- heads and bodies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [
        (b"GET /who HTTP/1.1\r\nHost: x\r\nX: " + b"x" * HEAD_BYTES_MAX + b"\r\n\r\n",),
        (b"GET /who HTTP/1.1\r\nHost: x\r\n", *(b"X: " + b"x" * 1000 + b"\r\n" for _ in range(40))),
        (b"GET /who HTTP/1.1\r\nHost: x\r\nX: ", *(b"x" * 8000 for _ in range(10))),
        (b"GET /" + b"x" * HEAD_BYTES_MAX + b" HTTP/1.1\r\nHost: x\r\n\r\n", b""),
        (b"\r\n" * HEAD_BYTES_MAX,),
    ],
    ids=["one long header", "many headers", "a header without end", "a long path", "nothing, for long"],
)
async def test_a_head_that_is_too_large_is_refused(served: Served, parts: tuple[bytes, ...]) -> None:
    async with served() as (http, port):
        said = await raw(port, *parts, pause_s=0.001)
        assert said.startswith(b"HTTP/1.1 431 "), said[:200]
        assert b'"code":"head_too_large"' in said
        assert (await http.get("/who")).status_code == 200


async def test_what_is_no_http_is_told_so_as_a_problem(served: Served) -> None:
    async with served() as (_, port):
        said = await raw(port, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        assert said.startswith(b"HTTP/1.1 400 ")
        assert b"application/problem+json" in said


async def test_nobody_gets_another_protocol_by_asking_for_it(served: Served) -> None:
    async with served() as (http, _):
        for upgrade in ({"Upgrade": "websocket", "Sec-WebSocket-Key": "x" * 24}, {"Upgrade": "h2c"}):
            answer = await http.get("/who", headers={"Connection": "Upgrade", **upgrade})
            assert (answer.status_code, answer.json()) == (200, "http 127.0.0.1")


async def test_a_head_that_does_not_come_is_not_waited_for(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "HEAD_WITHIN_S", 0.3)
    async with served() as (http, port):
        for parts in (
            (b"",),
            (b"GET /who HTT",),
            (b"\r\n", b"\r\n"),
            (b"GET /who HTTP/1.1\r\nHost: x\r\n", b"X: y\r\n"),
        ):
            assert await raw(port, *parts, pause_s=0.1) == b""
        trickle = (b"GET /who HTTP/1.1\r\n", *(b"X: y\r\n" for _ in range(20)))
        assert await raw(port, *trickle, pause_s=0.05) == b""
        whole = b"GET /who HTTP/1.1\r\nHost: x\r\n\r\n"
        assert (await raw(port, whole, b"GET /who HT", pause_s=0.1)).count(b"HTTP/1.1 200") == 1
        async with http.stream("GET", "/endless") as answer:  # what was asked in time may take its time
            got = b""
            async for chunk in answer.aiter_bytes():
                got += chunk
                if len(got) > 20:
                    break


async def test_a_body_that_does_not_come_is_not_waited_for(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "BODY_WITHIN_S", 0.3)
    async with served() as (_, port):
        head = b"POST /length HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 10\r\n\r\n"
        said = await raw(port, head + b"12345")
        assert said.startswith(b"HTTP/1.1 408 ")
        assert b'"code":"too_slow"' in said
        assert b"HTTP/1.1 200" in await raw(port, head, b"12345", b"67890", pause_s=0.05)


async def test_a_body_that_was_refused_while_it_came_is_no_head(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "HEAD_WITHIN_S", 1)
    async with served() as (_, port):
        chunk = b"2000\r\n" + b"x" * 0x2000 + b"\r\n"
        head = b"POST /length HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        said = await raw(port, head, *(chunk for _ in range(40)), pause_s=0.005)
        assert said.startswith(b"HTTP/1.1 413 ")
        assert said.count(b"HTTP/1.1") == 1  # and what never ends is closed
        whole = b"POST /length HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n" + b"x" * 60_000
        last = whole.replace(b"Host", b"Connection: close\r\nHost")
        assert (await raw(port, whole, whole + whole, last, pause_s=0.1)).count(b"HTTP/1.1 200") == 4


# --- connections ------------------------------------------------------------------------------------------------------


async def opened(port: int, count: int) -> list[asyncio.StreamWriter]:
    """So many live streams."""
    writers = []
    for _ in range(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1")
        writers.append(writer)
    return writers


async def eventually(done: Callable[[], Awaitable[bool]]) -> None:
    """Within a deadline."""
    async with asyncio.timeout(10):
        while not await done():
            await asyncio.sleep(0.02)


async def test_too_many_connections_are_refused_by_name_and_health_is_answered(served: Served) -> None:
    get = b"GET /who HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    health = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    async with served(http_connections_max=5, http_connections_of_one=500) as (http, port):
        await http.aclose()
        writers = await opened(port, 5)
        said = await raw(port, get)
        assert said.startswith(b"HTTP/1.1 503 ")
        assert b'"code":"busy"' in said
        assert (await raw(port, health)).startswith(b"HTTP/1.1 200 ")
        writers += [(await asyncio.open_connection("127.0.0.1", port))[1] for _ in range(RESERVED)]
        assert (await raw(port)).startswith(b"HTTP/1.1 503 ")
        for writer in writers:
            writer.close()

        async def free() -> bool:
            return (await raw(port, get)).startswith(b"HTTP/1.1 200 ")

        await eventually(free)


async def test_one_address_cannot_take_all_connections(served: Served) -> None:
    async with served(http_connections_max=500, http_connections_of_one=4) as (http, port):
        await http.aclose()
        writers = await opened(port, 4)
        assert b'"code":"busy"' in await raw(port, b"")
        writers.pop().close()

        async def free() -> bool:
            return (await raw(port, b"GET /who HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).startswith(
                b"HTTP/1.1 200 "
            )

        await eventually(free)
        for writer in writers:
            writer.close()
