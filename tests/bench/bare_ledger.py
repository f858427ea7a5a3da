"""
The least that a ledger costs: pull every fact, and insert a document of the same size with the same index entries, as durably.

While one batch is on its way the next is made, as ours does. No check, no hash, no order but the stream's.
"""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime
from typing import Any

import uvloop
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import WriteConcern

from services.ledger.store import EVENT_INDEXES
from tests.bench.bare import BATCH_MAX, ID_CHARS, Pull
from tests.bench.harness import bare_connection

HASH = bytes(32)
OF = b'"correlationid":"'
ID = b'"id":"'


async def play(overhead: bytes, district: str) -> None:
    """Until SIGTERM."""
    nc = await bare_connection(os.environ["NATS_URL"], os.environ["SEED"], "ledger")
    database = AsyncIOMotorClient[dict[str, Any]](os.environ["MONGODB_URI"], tz_aware=True).get_database("paidan")
    events = database.get_collection("events", write_concern=WriteConcern(w="majority", j=True))
    await events.create_indexes(list(EVENT_INDEXES))
    pull = Pull(nc, "evt.>")
    await pull.open()
    index, time = 0, datetime.now(UTC)
    writing: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    writing.set_result(None)
    while True:
        documents = []
        for message in await pull.take(BATCH_MAX):
            data = message.data
            at = data.rfind(ID) + len(ID)
            document = {
                "_id": index,
                "b": data + overhead,
                "h": HASH,
                "k": "event",
                "src": 0,
                "sseq": index + 1,
                "eid": data[at : at + ID_CHARS].decode(),
                "ty": message.subject,
                "ar": district,
                "et": time,
                "ds": [district],
            }
            of = data.find(OF) + len(OF)
            if of >= len(OF):
                document["case"] = data[of : of + ID_CHARS].decode()
            documents.append(document)
            index += 1
        await writing
        writing = asyncio.ensure_future(events.insert_many(documents, ordered=True))


if __name__ == "__main__":
    uvloop.run(play(bytes.fromhex(os.environ["OVERHEAD"]), os.environ["DISTRICT"]))
