"""
The bare limit: the same consumers, messages, documents and acknowledged writes as Paidan's, and no logic.

`python -m tests.bench.bare ROLE FILE` plays one process; FILE holds where the servers are and real messages of a run of ours,
which are sent again with another request's id in front, so that sizes, and what compression makes of them, are as real.

    desk     reads requests, commits three messages for each in batches of up to 999 and a marker, fenced on the marker
    post     reads offers, commits two messages for each in the same way
    ledger   reads everything, inserts one document for each message (majority, journaled) with the ledger's indexes,
             and writes each request's document again per batch that moves it
    intake   reads requests (as intake does to find those of the same matter)

It reads by callback with 1,000 outstanding, which brings 90,000 messages a second where nats-py's `fetch` brings 35,000.
"""

from __future__ import annotations

import asyncio
import pickle
import random
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import uvloop
from motor.motor_asyncio import AsyncIOMotorClient
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from pymongo import ReplaceOne, WriteConcern

from services.ledger.store import CASE_INDEXES, EVENT_INDEXES
from tests.bench.harness import bare_connection

STREAM = "EVENTS"
CREDIT = 1000
BATCH_MAX = 1000
ID_CHARS = 36


@dataclass(frozen=True)
class Sample:
    """Real messages of one type: their subject, and bytes of some of them."""

    subject: str
    data: list[bytes]


@dataclass(frozen=True)
class Play:
    """
    What the bare processes play.

    Attributes:
        seeds: NKey seeds by service.
        desk, post: what follows from each input, in order; `markers` by role.
        moves: subjects that move a request's document.
        leaf_overhead: what a leaf has besides the event, bytes.
        case: a real document of the projection.
    """

    nats_url: str
    mongo_uri: str
    seeds: dict[str, str]
    request_subject: str
    offer_subject: str
    desk: list[Sample]
    post: list[Sample]
    markers: dict[str, Sample]
    moves: frozenset[str]
    leaf_overhead: bytes
    district: str
    case: dict[str, Any]


class Pull:
    """Everything under a subject behind a sequence, appended to `queue` as it comes, or only counted."""

    def __init__(self, nc: Client, subject: str, *, keep: bool = True, after: int = 0) -> None:
        self._nc = nc
        self._subject = subject
        self._keep = keep
        self._after = after
        self._asked = 0
        self.came = asyncio.Event()
        self.queue: deque[Msg] = deque()
        self.count = 0

    async def open(self) -> None:
        """Make the consumer and ask for the first."""
        consumer = ConsumerConfig(
            filter_subject=self._subject,
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=self._after + 1,
            ack_policy=AckPolicy.NONE,
            mem_storage=True,
            num_replicas=1,
            inactive_threshold=600,
        )
        info = await self._nc.jetstream().add_consumer(STREAM, consumer)
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{info.name}"
        self._inbox = self._nc.new_inbox()
        await self._nc.subscribe(self._inbox, cb=self._on_message, pending_msgs_limit=-1, pending_bytes_limit=-1)
        await self._ask()

    async def _ask(self) -> None:
        self._asked += CREDIT
        await self._nc.publish(self._next, b'{"batch":%d,"expires":600000000000}' % CREDIT, reply=self._inbox)

    async def _on_message(self, message: Msg) -> None:
        self._asked -= 1
        self.count += 1
        if self._keep:
            self.queue.append(message)
        if self._asked <= CREDIT // 2 and len(self.queue) < 2 * CREDIT:
            await self._ask()
        self.came.set()

    async def take(self, at_most: int) -> list[Msg]:
        """What has come, at least one."""
        while not self.queue:
            self.came.clear()
            await self.came.wait()
        taken = [self.queue.popleft() for _ in range(min(at_most, len(self.queue)))]
        if self._asked <= CREDIT // 2:
            await self._ask()
        return taken

    async def until(self, many: int) -> None:
        """Until so many have come."""
        while self.count < many:
            self.came.clear()
            await self.came.wait()


async def commit(nc: Client, messages: Sequence[tuple[str, bytes]], subject: str, fence: int) -> int:
    """One atomic batch, fenced on a subject. Returns the sequence of its last message."""
    batch, last = uuid4().hex, len(messages)
    for n, (to, data) in enumerate(messages, 1):
        headers = {
            "Content-Type": "application/cloudevents+json",
            "Nats-Batch-Id": batch,
            "Nats-Batch-Sequence": str(n),
        }
        if n == 1:
            headers["Nats-Expected-Last-Subject-Sequence"] = str(fence)
            headers["Nats-Expected-Last-Subject-Sequence-Subject"] = subject
        if n < last:
            await nc.publish(to, data, headers=headers)
        else:
            headers["Nats-Batch-Commit"] = "1"
            answer = orjson.loads((await nc.request(to, data, timeout=10, headers=headers)).data)
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return int(answer["seq"])


async def relay(nc: Client, pull: Pull, outputs: Sequence[Sample], marker: Sample, *, id_in_subject: bool) -> None:
    """Commit all outputs of up to 999 // len(outputs) inputs at a time, with a marker behind them."""
    makers = [(sample.subject, cycle([data[ID_CHARS:] for data in sample.data])) for sample in outputs]
    fence, at_most = 0, (BATCH_MAX - 1) // len(outputs)
    while True:
        messages = []
        for message in await pull.take(at_most):
            id = message.subject[-ID_CHARS:].encode() if id_in_subject else message.data[:ID_CHARS]
            messages += [(subject, id + next(rests)) for subject, rests in makers]
        messages.append((marker.subject, marker.data[0]))
        fence = await commit(nc, messages, marker.subject, fence)


async def play_desk(play: Play) -> None:
    """dispatch, without a thought."""
    nc = await bare_connection(play.nats_url, play.seeds["dispatch"], "dispatch")
    pull = Pull(nc, play.request_subject)
    await pull.open()
    await relay(nc, pull, play.desk, play.markers["desk"], id_in_subject=True)


async def play_post(play: Play) -> None:
    """notify, without a thought."""
    nc = await bare_connection(play.nats_url, play.seeds["notify"], "notify")
    pull = Pull(nc, play.offer_subject)
    await pull.open()
    await relay(nc, pull, play.post, play.markers["post"], id_in_subject=False)


async def play_intake(play: Play) -> None:
    """intake, which only listens here."""
    nc = await bare_connection(play.nats_url, play.seeds["intake"], "intake")
    await Pull(nc, play.request_subject, keep=False).open()
    await asyncio.Event().wait()


async def play_ledger(play: Play) -> None:
    """The ledger, without a thought: while one batch is on its way the next is made, as ours does."""
    nc = await bare_connection(play.nats_url, play.seeds["ledger"], "ledger")
    database = AsyncIOMotorClient[dict[str, Any]](play.mongo_uri, appname="bare", tz_aware=True).get_database("paidan")
    events = database.get_collection("events", write_concern=WriteConcern(w="majority", j=True))
    await events.create_indexes(list(EVENT_INDEXES))
    cases = database.get_collection("proj_cases", write_concern=WriteConcern(w=1))
    await cases.create_indexes(list(CASE_INDEXES))
    state = database.get_collection("proj_state", write_concern=WriteConcern(w=1))
    moved: deque[list[tuple[int, str]]] = deque()
    more = asyncio.Event()

    async def project() -> None:
        while True:
            await more.wait()
            more.clear()
            while moved:
                last: dict[str, int] = {}
                position = 0
                for _ in range(min(2, len(moved))):
                    for index, case in moved.popleft():
                        position = index
                        if case:
                            last[case] = index
                writes = [
                    ReplaceOne({"_id": id, "pos": {"$lt": n}}, _case(play, id, n), upsert=True)
                    for id, n in last.items()
                ]
                if writes:
                    await cases.bulk_write(writes, ordered=False)
                await state.replace_one({"_id": "cases"}, {"position": position + 1, "generation": 0}, upsert=True)

    async def write(documents: list[dict[str, Any]], moves: list[tuple[int, str]]) -> None:
        await events.insert_many(documents, ordered=True)
        moved.append(moves)
        more.set()

    projecting = asyncio.create_task(project())
    pull = Pull(nc, "evt.>")
    await pull.open()
    index = 0
    writing: asyncio.Task[None] | None = None
    while True:
        documents, moves = [], []
        for message in await pull.take(BATCH_MAX):
            case, moving = _id_in(play, message)
            documents.append(_event(play, index, message, case))
            moves.append((index, case if moving else ""))
            index += 1
        if writing:
            await writing
        if projecting.done():
            projecting.result()
        writing = asyncio.create_task(write(documents, moves))


def _id_in(play: Play, message: Msg) -> tuple[str, bool]:
    subject = message.subject
    if ".request.submitted." in subject:
        return subject[-ID_CHARS:], True
    return message.data[:ID_CHARS].decode(), subject in play.moves


def _event(play: Play, index: int, message: Msg, case: str) -> dict[str, Any]:
    document: dict[str, Any] = {
        "_id": index,
        "b": message.data + play.leaf_overhead,
        "h": play.leaf_overhead[:32],
        "k": "event",
        "src": 0,
        "sseq": index,
        "eid": f"{random.getrandbits(128):036x}",
        "ty": message.subject,
        "ar": play.district,
        "et": datetime.now(UTC),
        "ds": [play.district],
    }
    if case[0] != "{":  # a marker is about no request
        document["case"] = case
    return document


def _case(play: Play, id: str, position: int) -> dict[str, Any]:
    return play.case | {
        "_id": id,
        "pos": position,
        "first": position,
        "tracking_hash": f"{random.getrandbits(256):064x}",
    }


ROLES = {"desk": play_desk, "post": play_post, "ledger": play_ledger, "intake": play_intake}
CONSUMERS = {"desk": 1, "post": 1, "ledger": 1, "intake": 1}


def main() -> None:
    """Play until SIGTERM."""
    role, file = sys.argv[1:3]
    play: Play = pickle.loads(Path(file).read_bytes())
    with suppress(KeyboardInterrupt):
        uvloop.run(ROLES[role](play))


if __name__ == "__main__":
    main()
