"""
How long a fact waits for a signed checkpoint over it, while 2,000 come every second: from the moment the stream has it until
`/checkpoint` shows a size that covers it.
"""

from __future__ import annotations

import asyncio
import time
from itertools import islice
from typing import Any

import httpx2
import pymongo

from deploy.servers import DATABASE, HOST, MongoServer, free_port
from shared.bus import Bus, Message
from tests.bench.harness import Row, Workshop, end, percentile, until
from tests.bench.history import everything
from tests.bench.ledger_ground import require_alive, start_ledger

RATE = 2_000
BATCH = 40
LAG_MAX_S = 2.0
LOOK_EVERY_S = 0.02


async def run(workshop: Workshop) -> list[Row]:
    """One ledger, from its first fact on."""
    seconds, name, port = workshop.size(30, 3), "lag", free_port()
    said = (Message(one.subject, one.encode()) for one in everything(seconds * RATE // 7))
    messages = list(islice(said, seconds * RATE))
    stored: dict[int, float] = {}
    seen: list[tuple[int, float]] = []
    async with workshop.bus_server(name) as (server, bus), httpx2.AsyncClient(trust_env=False, timeout=5) as client:
        with (
            MongoServer(workshop.folder / f"{name}-mongo", workshop.identities) as mongod,
            pymongo.MongoClient[dict[str, Any]](mongod.admin_uri) as mongo,
        ):
            process = start_ledger(workshop, name, server.url, mongod.uri, port)

            async def look() -> int:
                require_alive(workshop, name, process)
                try:
                    answer = await client.get(f"http://{HOST}:{port}/checkpoint")
                except httpx2.HTTPError:
                    return 0
                size = int(answer.text.split("\n")[1]) if answer.status_code == 200 else 0
                if size > (seen[-1][0] if seen else 0):
                    seen.append((size, time.time()))
                return size

            try:
                last = await bus.commit(messages[:BATCH])

                async def first() -> bool:
                    return await look() > 0

                await until("the first checkpoint", first, 60)
                writing = asyncio.create_task(_write(bus, messages[BATCH:], stored))

                async def covered() -> bool:
                    size = await look()  # while facts come, too
                    return writing.done() and size >= writing.result()

                await until("the last fact is covered", covered, seconds * 3 + 60, LOOK_EVERY_S)
                sequences = (
                    mongo[DATABASE]["events"].find({"sseq": {"$gt": last}}, {"_id": 1, "sseq": 1}).sort("_id", 1)
                )
                lags = _lags([(leaf["_id"], stored[leaf["sseq"]]) for leaf in sequences], seen)
            finally:
                end(process)
    took = [percentile(lags, share) for share in (0.5, 0.99)]
    workshop.say(f"ledger checkpoint: p50 {took[0]:.2f} s, p99 {took[1]:.2f} s; {len(seen)} in {seconds} s")
    notes = {"facts": len(lags), "facts_per_s": round(len(lags) / (max(stored.values()) - min(stored.values())))}
    return [
        Row(f"ledger checkpoint p{share}", lag, LAG_MAX_S, "s", len(lags), min(lags), max(lags), target, notes)
        for share, lag, target in ((50, took[0], ""), (99, took[1], "≤ 1.00"))
    ]


async def _write(bus: Bus, messages: list[Message], stored: dict[int, float]) -> int:
    """`RATE` facts a second; when each was stored, by its sequence. Returns how many leaves there must be at least."""
    began, last = time.monotonic(), 0
    for n in range(0, len(messages), BATCH):
        await asyncio.sleep(max(0.0, began + n / RATE - time.monotonic()))
        batch = messages[n : n + BATCH]
        last = await bus.commit(batch)
        now = time.time()
        stored.update(dict.fromkeys(range(last - len(batch) + 1, last + 1), now))
    return last


def _lags(leaves: list[tuple[int, float]], seen: list[tuple[int, float]]) -> list[float]:
    """Seconds from when each leaf's fact was stored until a checkpoint larger than its index was seen."""
    lags, at = [], 0
    for index, since in leaves:
        while at < len(seen) and seen[at][0] <= index:
            at += 1
        if at < len(seen):
            lags.append(max(0.0, seen[at][1] - since))
    return lags
