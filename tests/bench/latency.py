"""
How long a request takes from being submitted to the offer being visible to a staff app, one at a time: p50 and p99.

Ours goes through the desk's turn and its SSE stream, while the other three services do their part with every fact. The bare
round is publish, pull, commit, publish: one process pulls the request, commits the same number of messages in an atomic
batch, and publishes a plain message that we listen for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

from nats.aio.client import Client

from shared.bus import Bus, Message
from tests.bench.ground import DISTRICT, requests
from tests.bench.harness import Row, Workshop, bare_connection, end, percentile, start_python, until
from tests.bench.pipe import running

PAUSE_S = 0.03
"""Between two requests: what follows from the last (notices, documents) should be over when the next is put."""
ANSWERS = "live.evt.bench.answers"
WARM_UP = 20


async def run(workshop: Workshop) -> list[Row]:
    """Ours and bare in turns, ninety at a time."""
    rounds, many = workshop.size(4, 1), workshop.size(90, 20)
    ours: list[float] = []
    bare: list[float] = []
    async with (
        running(workshop, "latency") as (stack, bus),
        workshop.bus_server("bare") as (
            server,
            bare_bus,
        ),
    ):
        seed = workshop.identities.seed("admin")
        log = workshop.folder / "bare_round.log"
        process = start_python(
            "-m", "tests.bench.bare_round", log=log, environment={"NATS_URL": server.url, "SEED": seed}
        )
        listener = await bare_connection(server.url, seed, "admin")
        try:

            async def listens() -> bool:
                if process.poll() is not None:
                    raise RuntimeError(log.read_text()[-2000:])
                return bool((await bare_bus._api("STREAM.INFO.EVENTS"))["state"]["consumer_count"])

            await until("the bare round's process listens", listens, 30)
            async with stream(stack.urls["dispatch"], stack.token("dispatcher", district=DISTRICT)) as offers:
                await _ours(bus, offers, WARM_UP)
                await _bare(bare_bus, listener, WARM_UP)
                for n in range(rounds):
                    ours += await _ours(bus, offers, many)
                    bare += await _bare(bare_bus, listener, many)
                    workshop.say(
                        f"latency {n + 1}/{rounds}: ours p50 {percentile(ours, 0.5):.1f} p99 {percentile(ours, 0.99):.1f}, "
                        f"bare p50 {percentile(bare, 0.5):.1f} p99 {percentile(bare, 0.99):.1f} ms"
                    )
        finally:
            await listener.close()
            end(process)
    return [
        Row(
            f"latency p{share}",
            percentile(ours, share / 100),
            percentile(bare, share / 100),
            "ms",
            len(ours),
            min(ours),
            max(ours),
        )
        for share in (50, 99)
    ]


@asynccontextmanager
async def stream(url: str, token: str) -> AsyncIterator[asyncio.Queue[str]]:
    """The requests of the offers on the SSE stream, as they come: a raw socket, so that the client adds nothing."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(
        f"GET /v1/stream?types=task.offered HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    )
    head = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n")[0]:
        raise RuntimeError(head.decode())
    seen: asyncio.Queue[str] = asyncio.Queue()

    async def listen() -> None:
        while line := await reader.readline():
            if line.startswith(b"data: "):
                at = line.index(b'"correlationid":"') + 17
                seen.put_nowait(line[at : at + 36].decode())

    listening = asyncio.create_task(listen())
    try:
        yield seen
    finally:
        listening.cancel()
        with suppress(asyncio.CancelledError):
            await listening
        writer.close()


async def _ours(bus: Bus, offers: asyncio.Queue[str], many: int) -> list[float]:
    took_ms = []
    for message in requests(many):
        began = time.perf_counter()
        await bus.commit([message])
        while await asyncio.wait_for(offers.get(), 10) != message.subject[-36:]:
            pass
        took_ms.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(PAUSE_S)
    return took_ms


async def _bare(bus: Bus, listener: Client, many: int) -> list[float]:
    answers = await listener.subscribe(ANSWERS)
    await listener.flush()
    took_ms = []
    for message in requests(many):
        began = time.perf_counter()
        await bus.commit([Message(message.subject, message.data, 0)])
        await answers.next_msg(timeout=10)
        took_ms.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(PAUSE_S)
    await answers.unsubscribe()
    return took_ms
