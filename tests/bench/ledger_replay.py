"""
How fast the log is read out again: as NDJSON, and as NDJSON that its reader checks to be whole, ordinals and root.

The bare limit is the driver's cursor over the same documents in the same order, decoded and dropped. All in one process, in turns.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from motor.motor_asyncio import AsyncIOMotorClient
from pymongo.read_concern import ReadConcern

from deploy.servers import DATABASE
from services.ledger.audit.receiving import Received
from services.ledger.replay import CHUNK, Cursors, Replay, lines
from services.ledger.store import Selection, Store
from tests.bench.harness import Row, Workshop
from tests.bench.ledger_ground import Kept, kept


async def run(workshop: Workshop) -> list[Row]:
    """Cursor, replay and verified replay in turns."""
    log, rounds = await kept(workshop), workshop.size(5, 1)
    rates: dict[str, list[float]] = {"cursor": [], "replay": [], "verified": []}
    async with log.store() as store:
        newest = await store.checkpoint()
        assert newest
        replay = Replay(log.origin, Selection(), newest.size, note=newest.note)
        ways: dict[str, Callable[[], Awaitable[int]]] = {
            "cursor": lambda: count(documents(log, CHUNK, {"b": 1})),
            "replay": lambda: _replayed(store, replay),
            "verified": lambda: _verified(store, replay),
        }
        for n in range(rounds):
            for name, way in ways.items():
                began = time.perf_counter()
                many = await way()
                if many < newest.size:
                    raise RuntimeError(f"{name}: {many} of {newest.size} leaves")
                rates[name].append(many / (time.perf_counter() - began))
            said = ", ".join(f"{name} {found[-1]:.0f}" for name, found in rates.items())
            workshop.say(f"ledger replay {n + 1}/{rounds}: {said} leaves/s")
    return [
        Row.of("ledger replay", rates["replay"], rates["cursor"], "leaves/s", target="≥ 0.85", leaves=newest.size),
        Row.of("ledger replay verified", rates["verified"], rates["cursor"], "leaves/s", target="≥ 0.75"),
    ]


async def documents(log: Kept, chunk: int, fields: dict[str, int] | None = None) -> AsyncIterator[list[dict[str, Any]]]:
    """The documents of the log by the driver's cursor, so many at a time."""
    client = AsyncIOMotorClient[dict[str, Any]](log.mongod.auditor_uri)
    events = client.get_database(DATABASE).get_collection("events", read_concern=ReadConcern("majority"))
    try:
        cursor = events.find({}, fields).sort("_id", 1).batch_size(chunk)
        while found := await cursor.to_list(chunk):
            yield found
    finally:
        client.close()


async def count(chunks: AsyncIterator[list[Any]]) -> int:
    """How many there were."""
    return sum([len(chunk) async for chunk in chunks])


async def _replayed(store: Store, replay: Replay) -> int:
    many = 0
    async for chunk in lines(store, replay, Cursors(bytes(32))):
        many += chunk.count(b"\n")
    return many - 2


async def _verified(store: Store, replay: Replay) -> int:
    received: Received | None = None
    async for chunk in lines(store, replay, Cursors(bytes(32))):
        if received is None:
            received = Received(chunk)
        else:
            received.take(chunk.splitlines())
    assert received
    received.end()
    if not received.rooted:
        raise RuntimeError("the replay was not held against the root")
    return received.lines
