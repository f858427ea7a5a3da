"""
What it costs to know who is calling: per token, and per whole HTTP request.

`auth token` checks a token that was not seen before; its limit is PyJWT alone. `auth cached` checks one that was. `auth request` is a
request to a route that asks for a role, on a real server over one connection; its limit is the same route asking nobody. `auth bounds`
is that limit beside a bare FastAPI route under plain uvicorn: headers, paces, bounds of head and body.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from typing import Annotated

import jwt
import uvicorn
from fastapi import FastAPI

from deploy.identities import Identities, issue_token
from deploy.servers import free_port
from shared import web
from shared.access import allowed, public
from shared.auth import AUDIENCE, ISSUER, Caller, Doorkeeper
from shared.serving import serve
from shared.settings import ServiceSettings
from tests.bench.harness import Row, Workshop

RUNS = 15
HOST = "127.0.0.1"


async def run(workshop: Workshop) -> list[Row]:
    """Tokens, then requests."""
    rows = [*_tokens(workshop), *await _requests(workshop)]
    for row in rows:
        workshop.say(f"{row.name}: {row.value:.1f} µs, limit {row.limit:.1f} µs")
    return rows


def _tokens(workshop: Workshop) -> list[Row]:
    count = workshop.size(400, 20)
    identities = workshop.identities
    key = jwt.PyJWK.from_dict(json.loads(identities.jwks_file.read_text())["keys"][0])
    fresh: list[float] = []
    cached: list[float] = []
    bare: list[float] = []
    for n in range(RUNS):
        tokens = [issue_token(identities, f"m-{n}-{i}", "420106", ["member"]) for i in range(count)]
        door = Doorkeeper.from_file(identities.jwks_file)
        for samples, check in ((fresh, door.check), (cached, door.check)):
            began = time.perf_counter()
            for token in tokens:
                check(token)
            samples.append((time.perf_counter() - began) / count * 1e6)
        began = time.perf_counter()
        for token in tokens:
            jwt.decode(token, key, algorithms=["EdDSA"], audience=AUDIENCE, issuer=ISSUER)
        bare.append((time.perf_counter() - began) / count * 1e6)
    return [Row.of("auth token", fresh, bare, "µs"), Row.of("auth cached", cached, bare, "µs", target="≤ 0.10")]


async def _requests(workshop: Workshop) -> list[Row]:
    count = workshop.size(500, 30)
    token = issue_token(workshop.identities, "m-17", "420106", ["member"])
    until, ports = asyncio.Event(), (free_port(), free_port())
    settings = ServiceSettings(http_host=HOST, http_port=ports[0], http_rate_per_s=1e9, caller_rate_per_s=1e9)
    ours = asyncio.create_task(serve(_ours(workshop.identities), settings, until=until))
    bare = uvicorn.Server(uvicorn.Config(_bare(), host=HOST, port=ports[1], log_config=None, access_log=False))
    theirs = asyncio.create_task(bare._serve())
    head = f"Authorization: Bearer {token}\r\n"
    samples: dict[str, list[float]] = {"mine": [], "anybody": [], "bare": []}
    try:
        for _ in range(RUNS):
            for name, port, path in (
                ("mine", ports[0], "/mine"),
                ("anybody", ports[0], "/anybody"),
                ("bare", ports[1], "/anybody"),
            ):
                samples[name].append(await _asked(port, path, head, count))
    finally:
        until.set()
        bare.should_exit = True
        await asyncio.gather(ours, theirs)
    return [
        Row.of("auth request", samples["mine"], samples["anybody"], "µs", target="≤ 1.50"),
        Row.of("auth bounds", samples["anybody"], samples["bare"], "µs"),
    ]


def _ours(identities: Identities) -> FastAPI:
    async def ready() -> dict[str, str]:
        return {}

    app = web.create_app("bench", ready=ready, doorkeeper=Doorkeeper.from_file(identities.jwks_file))

    @app.get("/mine")
    async def mine(caller: Annotated[Caller, allowed("member", of="own")]) -> str:
        return caller.district

    @app.get("/anybody", dependencies=[public])
    async def anybody() -> str:
        return "420106"

    return app


def _bare() -> FastAPI:
    app = FastAPI()

    @app.get("/anybody")
    async def anybody() -> str:
        return "420106"

    return app


async def _asked(port: int, path: str, head: str, count: int) -> float:
    """One connection, one request after the other: microseconds of each."""
    async with asyncio.timeout(10):
        while True:
            with suppress(ConnectionRefusedError):
                reader, writer = await asyncio.open_connection(HOST, port)
                break
            await asyncio.sleep(0.02)
    request = f"GET {path} HTTP/1.1\r\nHost: bench\r\n{head}\r\n".encode()
    began = time.perf_counter()
    for _ in range(count):
        writer.write(request)
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(len(b'"420106"'))
    took_s = time.perf_counter() - began
    writer.close()
    return took_s / count * 1e6
