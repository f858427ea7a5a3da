"""
MongoDB, and the one module of the project that knows its driver.

The log is only ever appended to: ordered, acknowledged by a majority and journaled, so that a crash leaves a dense prefix.
Every call has a deadline (`DEADLINE_S`, or what it is given), which the driver also hands to the server as `maxTimeMS`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from struct import Struct
from typing import Any, NamedTuple, Self

import bson
import orjson
import pymongo
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import ASCENDING, DESCENDING, IndexModel, ReplaceOne, WriteConcern
from pymongo.errors import (
    BulkWriteError,
    ConnectionFailure,
    CursorNotFound,
    DuplicateKeyError,
    OperationFailure,
    PyMongoError,
)
from pymongo.read_concern import ReadConcern

from services.ledger.cases import Case
from services.ledger.log import leaves
from services.ledger.log.heads import UncountedError
from services.ledger.log.leaves import First, Leaf
from services.ledger.log.tree import Tile
from shared.errors import PaidanError, UnavailableError
from shared.facts import HUB

DEADLINE_S = 10.0
LATE_DEADLINE_S, LATE_BATCH = 300.0, 2000
DUPLICATE_KEY = 11000
CURSOR_MAX = 100_000
REPLY_FULL = 15 * 2**20
"""A reply of more bytes may be one that MongoDB ended at 16 MiB."""
RARE = [kind for kind in leaves.KINDS if kind != leaves.EVENT]

EVENT_INDEXES = (
    IndexModel({"src": 1, "sseq": 1}, name="source", unique=True, partialFilterExpression={"sseq": {"$exists": True}}),
    IndexModel({"eid": 1}, name="event_id", unique=True, partialFilterExpression={"k": "event"}),
    IndexModel({"case": 1, "_id": 1}, name="case", partialFilterExpression={"case": {"$exists": True}}),
    IndexModel({"ds": 1, "_id": 1}, name="district", partialFilterExpression={"ds": {"$exists": True}}),
    # Holds next to nothing, and makes the ledger's summary a look-up.
    IndexModel({"k": 1, "_id": 1}, name="no_event", partialFilterExpression={"k": {"$in": RARE}}),
)
CASE_INDEXES = (
    IndexModel({"districts": 1, "first": -1}, name="district"),
    IndexModel({"first": -1}, name="first"),
    IndexModel({"area": 1, "first": -1}, name="area"),
    IndexModel({"tracking_hash": 1}, name="tracking", partialFilterExpression={"tracking_hash": {"$exists": True}}),
)


_HEAD = Struct("<iB4siB2si")
"""How a leaf's document begins: its length, `_id` (an int32), and the length of `b`."""
_BATCH, _FRONT = b"\x04firstBatch\x00", 1000
"""What stands before the documents in a reply, and within how many bytes."""
_RAW: CodecOptions[Any] = CodecOptions(document_class=RawBSONDocument)
EMBEDDED = 0x03


class StoreUnavailableError(UnavailableError):
    """MongoDB did not answer in time, or has no primary: what was sent may still have been stored."""


class CollisionError(PaidanError):
    """
    A leaf could not be appended, and those behind it were not tried.

    Attributes:
        event_id: whether the event's id is already in the log (a repeat); otherwise another writer was first.
        at: the position in the batch.
    """

    def __init__(self, *, event_id: bool, at: int) -> None:
        super().__init__(
            f"leaf {at} of the batch: {'its event id is known' if event_id else 'another writer was first'}"
        )
        self.event_id = event_id
        self.at = at


@dataclass(frozen=True, slots=True)
class Selection:
    """
    Which leaves somebody wants; None: all.

    Attributes:
        scopes: leaves that list one of these districts.
        parties: leaves that list all of these districts.
        lost: areas that an office shared once: of those it gets what it said itself (`scopes[0]`), and what everybody may know.
        types: full types, or names of facts (`task.offered`) of any version.
        event: the one event with this id.
        time_from, time_to: events whose own time lies in [from, to).
    """

    scopes: tuple[str, ...] | None = None
    district: str | None = None
    parties: tuple[str, ...] | None = None
    area: str | None = None
    request: str | None = None
    types: tuple[str, ...] | None = None
    kinds: tuple[str, ...] | None = None
    event: str | None = None
    lost: tuple[str, ...] | None = None
    time_from: datetime | None = None
    time_to: datetime | None = None


class Signed(NamedTuple):
    """
    A signed checkpoint as it is kept.

    Attributes:
        recorded_ns: the latest `recorded` of the log at that size: checkpoints map time to size.
        at: when it was signed.
    """

    size: int
    note: str
    recorded_ns: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Projected:
    """
    How far a projection goes.

    Attributes:
        position: the index of the next leaf to fold.
        sequence: the source's sequence up to there.
        generation: moves whenever somebody rebuilds it.
        paused: a rebuild is under way; the value moves while it lives.
    """

    position: int = 0
    sequence: int = 0
    generation: int = 0
    paused: int | None = None


class Store:
    """One database. Make it with `Store.connect`; `prepare` makes its indexes."""

    def __init__(self, client: AsyncIOMotorClient[dict[str, Any]], database: str) -> None:
        self._client = client
        self._database = client.get_database(database)
        durable = WriteConcern(w="majority", j=True)
        self._events = self._database.get_collection(
            "events", write_concern=durable, read_concern=ReadConcern("majority")
        )
        self._rejects = self._database.get_collection("rejects", write_concern=durable)
        self._tiles, self._checkpoints, self._cosigs = (
            self._database.get_collection(name, write_concern=durable, read_concern=ReadConcern("majority"))
            for name in ("tiles", "checkpoints", "cosigs")
        )
        # Projections can be made again from the log: they do not wait for the disk.
        self._cases: Any = self._database.get_collection("proj_cases", write_concern=WriteConcern(w=1))
        self._projections = self._database.get_collection("proj_state", write_concern=WriteConcern(w=1))

    @classmethod
    def connect(cls, uri: str, database: str) -> Self:
        """The store behind this address; nothing is asked yet."""
        client: AsyncIOMotorClient[dict[str, Any]] = AsyncIOMotorClient(
            uri,
            timeoutMS=round(DEADLINE_S * 1000),
            serverSelectionTimeoutMS=2000,
            connectTimeoutMS=2000,
            appname="paidan-ledger",
            tz_aware=True,
        )
        return cls(client, database)

    async def prepare(self) -> None:
        """Make the collections and indexes that are missing. Raises StoreUnavailableError."""
        with _asking(60):
            await self._events.create_indexes(list(EVENT_INDEXES))
            await self._cases.create_indexes(list(CASE_INDEXES))

    async def mend_indexes(self) -> list[str]:
        """
        Make again every index that is missing, is not as declared, or that mongod finds wrong; `collection.name` of each.

        Until a unique one is there again it holds nothing back, and afterwards it cannot be made where something was doubled.
        """
        made: list[str] = []
        for collection, declared in ((self._events, EVENT_INDEXES), (self._cases, CASE_INDEXES)):
            with _asking(600):
                there = await collection.index_information()
                found = await self._database.command("validate", collection.name) if there else {"indexDetails": {}}
                for index in declared:
                    wanted = dict(index.document)
                    name = wanted["name"]
                    valid = found["indexDetails"].get(name, {}).get("valid", False)
                    if name in there:
                        if valid and _same_index(there[name], wanted):
                            continue
                        await collection.drop_index(name)
                    await collection.create_indexes([index])
                    made.append(f"{collection.name}.{name}")
        return made

    async def ping(self) -> None:
        """Raises StoreUnavailableError where no primary answers within 2 s."""
        with _asking(2):
            await self._client.admin.command("ping")

    def close(self) -> None:
        """End it."""
        self._client.close()

    # --- the log ----------------------------------------------------------------------------------------------------

    async def append(self, batch: Sequence[Leaf]) -> None:
        """
        Store these leaves, in order, for good.

        Raises:
            CollisionError: the leaves before it are stored.
            StoreUnavailableError: outcome unknown: read the tail.
        """
        raws = [{"_id": raw_id(leaf), "b": leaf.raw} for leaf in batch if leaf.raw is not None]
        with _asking():
            if raws:
                await _insert_new(self._rejects, raws)
            try:
                await self._events.insert_many(map(document_of, batch), ordered=True)
            except BulkWriteError as why:
                errors = why.details["writeErrors"] if why.details else []
                if not errors or errors[0]["code"] != DUPLICATE_KEY:
                    raise
                raise CollisionError(event_id="eid" in errors[0].get("keyPattern", {}), at=errors[0]["index"]) from None

    async def tail(self, below: int | None = None) -> tuple[bytes | None, int]:
        """The last leaf (below an index), and `recorded` (ns) of the last that is not late."""
        last = await self._last({}, below)
        if last is None:
            return None, 0
        leaf: bytes = last["b"]
        if (newest_ns := leaves.timely_ns(leaf)) is not None:
            return leaf, newest_ns
        # A clock that was ahead leaves many late ones behind, and only their bytes say so.
        with _asking(LATE_DEADLINE_S):
            late = self._events.find({"_id": {"$lt": last["_id"]}}, {"b": 1}).sort("_id", DESCENDING)
            async for found in late.batch_size(LATE_BATCH):
                if (newest_ns := leaves.timely_ns(found["b"])) is not None:
                    return leaf, newest_ns
            return leaf, 0

    async def size(self) -> int:
        """How many leaves there are."""
        with _asking():
            found = await self._events.find_one({}, {"_id": 1}, sort=[("_id", DESCENDING)])
        return found["_id"] + 1 if found else 0

    async def scopes(self, below: int | None = None) -> dict[str, tuple[int, int]]:
        """Events per district below an index, and the index of the last one, of those districts that have any there."""
        found_of: dict[str, tuple[int, int]] = {}
        last = ""
        with _asking():
            # One look-up per district: the index's first entry behind the last one.
            while (
                found := await self._events.find({"ds": {"$gt": last}}, {"ds": 1}, hint="district").limit(1).to_list(1)
            ):
                last = min(district for district in found[0]["ds"] if district > last)
                if (head := await self.head(last, below=below)) is not None:
                    found_of[last] = head
        return found_of

    async def head(self, district: str, *, below: int | None = None) -> tuple[int, int] | None:
        """The ordinal and the index of a district's last event below an index. Raises UncountedError."""
        found = await self._last({"ds": district}, below)
        if found is None:
            return None
        for scope in orjson.loads(found["b"]).get("scopes", ()):
            if scope["d"] == district:
                return scope["n"], found["_id"]
        raise UncountedError(f"leaf {found['_id']} is indexed under {district}, and does not list it")

    async def _last(self, by: Mapping[str, Any], below: int | None) -> Any:
        within = {} if below is None else {"_id": {"$lt": below}}
        with _asking():
            return await self._events.find_one({**by, **within}, {"b": 1}, sort=[("_id", DESCENDING)])

    async def case_counts(self, cases: Sequence[str]) -> dict[str, int]:
        """Events per request, of those that have any: by the last one's own ordinal, which no other's index can change.

        Raises:
            UncountedError: a leaf is indexed under a request that it is not about.
        """
        last: list[Mapping[str, Any]] = [
            {"$match": {"case": {"$in": list(cases)}}},
            {"$sort": {"case": -1, "_id": -1}},
            {"$group": {"_id": "$case", "b": {"$first": "$b"}}},
        ]
        with _asking():
            groups = self._events.aggregate(last, hint="case")
            found = {group["_id"]: orjson.loads(group["b"]).get("case", {}) async for group in groups}
        for id, case in found.items():
            if case.get("id") != id:
                raise UncountedError(f"a leaf is indexed under the request {id}, and is not about it")
        return {id: case["n"] for id, case in found.items()}

    async def ordinal(
        self, *, district: str | None = None, request: str | None = None, below: int | None = None
    ) -> int:
        """How many events of a district or a request lie below an index: read from the last one's own ordinal."""
        if district is not None:
            head = await self.head(district, below=below)
            return head[0] if head else 0
        found = await self._last({"case": request}, below)
        return int(orjson.loads(found["b"])["case"]["n"]) if found else 0

    async def known(self, event_ids: Sequence[str]) -> dict[str, First]:
        """The first events with these ids, of those that are in the log."""
        with _asking():
            found = self._events.find({"eid": {"$in": list(event_ids)}, "k": "event"}, {"b": 1, "eid": 1})
            return {document["eid"]: leaves.first(document["b"]) async for document in found}

    async def at_or_before(self, epoch: int, sequence: int) -> bytes | None:
        """The leaf of this source with the largest sequence that is not larger; None where there is none."""
        with _asking():
            found = await self._events.find_one(
                {"src": epoch, "sseq": {"$lte": sequence}}, {"b": 1}, sort=[("sseq", DESCENDING)]
            )
        return bytes(found["b"]) if found else None

    async def sequenced(self, epoch: int, after: int, until: int) -> int:
        """How many leaves of a source have a sequence in (after, until]; a gap counts as one."""
        with _asking(60):
            by = {"src": epoch, "sseq": {"$gt": after, "$lte": until}}
            return int(await self._events.count_documents(by, hint="source"))

    async def of_source(self, epoch: int, after: int, until: int, limit: int) -> list[bytes]:
        """Leaves of a source with a sequence in (after, until], in the order of their sequences; of a gap its first counts."""
        by = {"src": epoch, "sseq": {"$gt": after, "$lte": until}}
        with _asking(60):
            found = self._events.find(by, {"b": 1}).sort([("src", ASCENDING), ("sseq", ASCENDING)]).limit(limit)
            return [document["b"] for document in await found.batch_size(limit).to_list(limit)]

    async def events_of_source(self, epoch: int, until: int) -> int:
        """How many events a source brought first, under numbers up to this one."""
        by = {"src": epoch, "sseq": {"$gt": 0, "$lte": until}, "k": "event"}
        with _asking(60):
            return int(await self._events.count_documents(by, hint="source"))

    async def set_aside(self, digests: Iterable[str]) -> dict[str, bytes]:
        """The bytes of messages that are no events, by digest, of those that are kept."""
        with _asking(60):
            found = self._rejects.find({"_id": {"$in": list(digests)}})
            return {document["_id"]: bytes(document["b"]) async for document in found}

    async def rare(self, *, since: int = 0, below: int | None = None) -> list[tuple[str, int, bytes | None]]:
        """Kind and number of all leaves that are no events in a range of indices; of gaps and resets each one, with its bytes."""
        span: dict[str, int] = {"$gte": since} | ({"$lt": below} if below is not None else {})
        with _asking(60):
            counted = [
                (kind, await self._events.count_documents({"k": kind, "_id": span}, hint="no_event"), None)
                for kind in ("conflict", "dup", "heads", "reject")
            ]
            found = self._events.find({"k": {"$in": ["gap", "reset"]}, "_id": span}, {"b": 1, "k": 1}).sort(
                "_id", ASCENDING
            )
            return [*counted, *[(document["k"], 1, bytes(document["b"])) async for document in found]]

    async def read(self, selection: Selection, since: int, below: int, limit: int) -> list[tuple[int, bytes]]:
        """Leaves with since ≤ index < below, oldest first: index and bytes as they were stored."""
        with _asking(30):
            found = self._events.find(_query(selection, since, below), {"b": 1}).sort("_id", ASCENDING).limit(limit)
            return [(document["_id"], document["b"]) for document in await found.batch_size(limit).to_list(limit)]

    async def chunks(
        self, selection: Selection, since: int, below: int, limit: int | None, size: int
    ) -> AsyncGenerator[list[tuple[int, bytes]]]:
        """The same leaves in chunks of a size: a cursor serves 100,000 of them, and one that the server gave up is opened again."""
        left = below - since if limit is None else limit
        while left > 0:
            many = min(left, CURSOR_MAX)
            cursor = self._events.find(_query(selection, since, below), {"b": 1}).sort("_id", ASCENDING).limit(many)
            cursor.batch_size(size)
            at = left
            try:
                while True:
                    with _asking(30):
                        try:
                            chunk = [(found["_id"], found["b"]) for found in await cursor.to_list(size)]
                        except CursorNotFound:  # nobody asked for ten minutes
                            break
                    if not chunk:
                        break
                    since, left = chunk[-1][0] + 1, left - len(chunk)
                    yield chunk
            finally:
                await cursor.close()
            if left == at:
                return

    async def by_cases(
        self, selection: Selection, after: tuple[str, int], below: int, limit: int
    ) -> list[tuple[str, int, bytes]]:
        """Leaves below an index that are about a request, behind this request and index: by request, each one's oldest first."""
        case, index = after
        query = {**_query(selection, 0, below), "case": selection.request or {"$exists": True}}
        with _asking(60):
            found = self._events.find(query, {"b": 1, "case": 1}).sort([("case", ASCENDING), ("_id", ASCENDING)])
            found = found.hint([("case", ASCENDING), ("_id", ASCENDING)]).min([("case", case), ("_id", index + 1)])
            leaves = await found.limit(limit).batch_size(limit).to_list(limit)
        return [(document["case"], document["_id"], document["b"]) for document in leaves]

    async def of_area(self, area: str, below: int) -> AsyncIterator[list[tuple[int, bytes]]]:
        """Leaves below an index of every case of an area: in chunks, each case's in order, found by the cases."""
        for since in range(0, len(cases := await self._cases_of(area, below)), 100):
            wanted = {"case": {"$in": cases[since : since + 100]}, "_id": {"$lt": below}}
            with _asking(60):
                found = self._events.find(wanted, {"b": 1}, hint="case").sort("_id", ASCENDING)
                chunk = [(document["_id"], bytes(document["b"])) async for document in found]
            yield chunk

    async def _cases_of(self, area: str, below: int) -> list[str]:
        with _asking(30):
            found = self._cases.find({"area": area, "first": {"$lt": below}}, {"_id": 1}).sort("first", ASCENDING)
            return [document["_id"] async for document in found]

    async def at(self, indices: Sequence[int]) -> list[tuple[int, bytes]]:
        """The leaves of these indices, oldest first."""
        with _asking(30):
            found = self._events.find({"_id": {"$in": list(indices)}}, {"b": 1}).sort("_id", ASCENDING)
            return [(document["_id"], bytes(document["b"])) async for document in found]

    async def count(self, selection: Selection, since: int, below: int) -> int:
        """How many leaves with since ≤ index < below are selected."""
        with _asking(60):
            return int(await self._events.count_documents(_query(selection, since, below)))

    async def whole(self, since: int, below: int) -> bool:
        """Whether a majority holds every leaf of a range."""
        with _asking(60):
            by = {"_id": {"$gte": since, "$lt": below}}
            return int(await self._events.count_documents(by, hint="_id_")) == max(0, below - since)

    async def raw(self, digest: str) -> bytes | None:
        """The bytes of a message that is no event, by the digest in its leaf."""
        with _asking():
            found = await self._rejects.find_one({"_id": digest})
        return bytes(found["b"]) if found else None

    async def raw_sizes(self, digests: Iterable[str]) -> dict[str, int]:
        """How many bytes such messages have, by digest."""
        with _asking():
            found = self._rejects.aggregate(
                [{"$match": {"_id": {"$in": list(digests)}}}, {"$project": {"size": {"$binarySize": "$b"}}}]
            )
            return {document["_id"]: document["size"] async for document in found}

    # --- tree and checkpoints ---------------------------------------------------------------------------------------

    async def tiles(self, level: int, numbers: Iterable[int]) -> dict[int, bytes]:
        """The hashes of full tiles of one level, of those that are there."""
        ids = {_tile_id(level, number): number for number in numbers}
        with _asking():
            found = self._tiles.find({"_id": {"$in": list(ids)}})
            return {ids[document["_id"]]: bytes(document["h"]) async for document in found}

    async def put_tiles(self, tiles: Mapping[Tile, bytes]) -> list[Tile]:
        """
        Store full tiles, lower numbers first, so that a crash leaves no hole.

        Returns: those that are there already with other hashes; they stay as they are.
        """
        documents = [{"_id": _tile_id(tile.level, tile.number), "h": hashes} for tile, hashes in tiles.items()]
        with _asking():
            try:
                await self._tiles.insert_many(documents, ordered=True)
            except BulkWriteError as why:
                _only_duplicates(why)
            else:
                return []
            # Some were there: another instance stored them, or this one before it was killed.
            await _insert_new(self._tiles, documents)
            found = self._tiles.find({"_id": {"$in": [document["_id"] for document in documents]}})
            there = {document["_id"]: bytes(document["h"]) async for document in found}
        return [tile for tile, hashes in tiles.items() if there[_tile_id(tile.level, tile.number)] != hashes]

    async def replace_tiles(self, tiles: Mapping[Tile, bytes]) -> None:
        """Full tiles in the place of what is there; for an identity that may."""
        writes = [
            ReplaceOne({"_id": id}, {"_id": id, "h": hashes}, upsert=True)
            for id, hashes in ((_tile_id(tile.level, tile.number), hashes) for tile, hashes in tiles.items())
        ]
        with _asking(60):
            await self._tiles.bulk_write(writes, ordered=True)

    async def checkpoint(self, size: int | None = None) -> Signed | None:
        """The last checkpoint that is not larger than a size; without one the newest."""
        by = {} if size is None else {"_id": {"$lte": size}}
        with _asking():
            found = await self._checkpoints.find_one(by, sort=[("_id", DESCENDING)])
        return Signed(found["_id"], found["note"], int(found["recorded"]), found["at"]) if found else None

    async def put_checkpoint(self, signed: Signed) -> None:
        """Store a checkpoint, unless there is one of this size."""
        document = {"_id": signed.size, "note": signed.note, "recorded": signed.recorded_ns, "at": signed.at}
        with _asking():
            await _insert_new(self._checkpoints, [document])

    async def cosignatures(self, size: int) -> list[str]:
        """The signature lines of those who have cosigned the checkpoint of this size, by their names."""
        with _asking():
            found = self._cosigs.find({"_id": {"$gte": f"{size}/", "$lt": f"{size}0"}}).sort("_id", ASCENDING)
            return [document["line"] async for document in found]

    async def put_cosignature(self, size: int, witness: str, line: str) -> None:
        """Store a witness's signature line, unless there is one of theirs for this size."""
        document = {"_id": f"{size}/{witness}", "size": size, "witness": witness, "line": line}
        with _asking():
            await _insert_new(self._cosigs, [document])

    # --- projections ------------------------------------------------------------------------------------------------

    async def projected(self, name: str) -> Projected:
        """How far a projection goes; the zero of all things where it was never made."""
        with _asking():
            found = await self._projections.find_one({"_id": name})
        if found is None:
            return Projected()
        return Projected(found["position"], found["sequence"], found["generation"], found.get("paused"))

    async def move_projected(self, name: str, to: Projected, *, was: Projected) -> bool:
        """Note how far it goes now; False where somebody else has rebuilt it or holds it meanwhile."""
        document = {"position": to.position, "sequence": to.sequence, "generation": to.generation, "paused": to.paused}
        by = {"_id": name, "generation": was.generation, "paused": was.paused}
        with _asking():
            try:
                done = await self._projections.replace_one(by, {"_id": name, **document}, upsert=was.generation == 0)
            except DuplicateKeyError:
                return False
        return bool(done.matched_count or done.upserted_id)

    async def cases(self, ids: Iterable[str]) -> list[Case]:
        """The case documents with these ids."""
        with _asking():
            found: list[Case] = await self._cases.find({"_id": {"$in": list(ids)}}).to_list(None)
        return found

    async def cases_aside(self, ids: Iterable[str]) -> list[Case]:
        """The same, of the collection being rebuilt."""
        with _asking():
            found: list[Case] = await self._aside.find({"_id": {"$in": list(ids)}}).to_list(None)
        return found

    async def count_cases(self) -> int:
        """How many cases there are, by the collection's own count."""
        with _asking():
            return int(await self._cases.estimated_document_count())

    async def put_cases(self, documents: Sequence[Case], *, since: int, aside: bool = False) -> None:
        """
        Write case documents where what is there is older (`pos`).

        Args:
            since: those that began with this leaf or later (`first`) are most likely new: inserting costs a third of replacing.
            aside: into the rebuilt collection.
        """
        collection = self._aside if aside else self._cases
        with _asking(60):
            begun = [document for document in documents if document["first"] >= since]
            there = await _insert_new(collection, begun) if begun else set()
            writes = [
                ReplaceOne({"_id": document["_id"], "pos": {"$lt": document["pos"]}}, document, upsert=True)
                for document in documents
                if document["first"] < since or document["_id"] in there
            ]
            if not writes:
                return
            try:
                await collection.bulk_write(writes, ordered=False)
            except BulkWriteError as why:  # a duplicate key: what is there is as new
                _only_duplicates(why)

    async def case(self, *, id: str | None = None, tracking_hash: str | None = None) -> Case | None:
        """One case document."""
        with _asking():
            by = {"_id": id} if id is not None else {"tracking_hash": tracking_hash}
            found: Case | None = await self._cases.find_one(by)
        return found

    async def list_cases(
        self,
        by: Mapping[str, str],
        *,
        district: str | None,
        below: int | None,
        limit: int,
        closed: Collection[str] = (),
    ) -> list[Case]:
        """
        Cases that have these values, newest first, `first` below the given one.

        Args:
            closed: areas of which the district gets only those cases that it has to do with (`cases.concerns`).
        """
        query: dict[str, Any] = dict(by)
        if district is not None:
            query["districts"] = district
        if closed:
            theirs = ("district", "home", "involved.district")
            query["$or"] = [{"area": {"$nin": list(closed)}}, *({name: district} for name in theirs)]
        if below is not None:
            query["first"] = {"$lt": below}
        with _asking():
            found: list[Case] = await self._cases.find(query).sort("first", DESCENDING).limit(limit).to_list(limit)
        return found

    async def open_cases(self, area: str, parties: Sequence[str]) -> int:
        """How many cases of an area that all of these may see are not over."""
        over = ["closed", "withdrawn"]
        with _asking():
            by = {"area": area, "districts": {"$all": list(parties)}, "state": {"$nin": over}}
            return int(await self._cases.count_documents(by, hint="area"))

    @property
    def _aside(self) -> Any:
        return self._database.get_collection("proj_cases_rebuilt", write_concern=WriteConcern(w=1))

    async def open_aside(self) -> None:
        """An empty collection to rebuild into."""
        with _asking(60):
            await self._aside.drop()
            await self._aside.create_indexes(list(CASE_INDEXES))

    async def swap_aside(self) -> None:
        """What was rebuilt takes the place of what there was, at once."""
        with _asking(60):
            await self._aside.rename("proj_cases", dropTarget=True)

    async def all_cases(self) -> AsyncIterator[Case]:
        """Every case document, by id."""
        with _asking(600):
            async for document in self._cases.find({}).sort("_id", ASCENDING):
                yield document

    # --- what only an audit reads -----------------------------------------------------------------------------------

    @staticmethod
    def pack(fields: Mapping[str, Any]) -> bytes:
        """What a document holds behind `_id` and `b`, as it is stored: BSON without its length. A time is in UTC."""
        return bson.encode(fields)[4:]

    @staticmethod
    def unpack(packed: bytes) -> dict[str, Any]:
        """The way back; times without their zone."""
        return bson.decode((len(packed) + 4).to_bytes(4, "little") + packed)

    async def audited(self, since: int, below: int) -> list[tuple[int, bytes, bytes]]:
        """
        Every document of a range, oldest first: index, leaf, and what else is stored with it, packed (`pack`).

        Documents are not decoded: an audit packs what should be there, and two pieces of bytes are compared.
        """
        documents: list[tuple[int, bytes, bytes]] = []
        with _asking(60):
            while since < below:
                batch = await self._undecoded(since, below)
                documents += _unpacked(batch)
                if len(batch) <= REPLY_FULL:
                    break
                since = documents[-1][0] + 1
        return documents

    async def _undecoded(self, since: int, below: int) -> bytes:
        """
        The documents of a range as they came: a BSON array, which ends where MongoDB says (`REPLY_FULL`).

        The driver's cursors make an object of every document, its raw batches too (4 µs); of a command's reply it makes one.
        """
        command: dict[str, Any] = {
            "find": self._events.name,
            "filter": {"_id": {"$gte": since, "$lt": below}},
            "sort": {"_id": ASCENDING},
            "batchSize": below - since,
            "singleBatch": True,
            "readConcern": {"level": "majority"},
        }
        try:
            reply: Any = await self._database.command(command, codec_options=_RAW)
        except ConnectionFailure:  # once more, as the driver does with a cursor's
            reply = await self._database.command(command, codec_options=_RAW)
        cursor = reply["cursor"].raw
        return bytes(cursor[bytes(cursor[:_FRONT]).index(_BATCH) + len(_BATCH) :])

    async def signed(self, since: int, below: int) -> list[tuple[int, str]]:
        """Size and note of the checkpoints with since < size ≤ below."""
        with _asking(60):
            found = self._checkpoints.find({"_id": {"$gt": since, "$lte": below}}).sort("_id", ASCENDING)
            return [(document["_id"], document["note"]) async for document in found]

    async def cosigned(self) -> AsyncIterator[tuple[int, str, list[tuple[str, str]]]]:
        """Every checkpoint that has been cosigned: its size, its note ("" where there is none), witness and line of each."""
        join = {"from": "checkpoints", "localField": "_id", "foreignField": "_id", "as": "of"}
        lines = {"$push": {"witness": "$witness", "line": "$line"}}
        with _asking(600):
            async for found in self._cosigs.aggregate(
                [{"$group": {"_id": "$size", "lines": lines}}, {"$lookup": join}], allowDiskUse=True
            ):
                note = found["of"][0]["note"] if found["of"] else ""
                yield found["_id"], note, [(each["witness"], each["line"]) for each in found["lines"]]

    async def raws(self) -> AsyncIterator[tuple[str, bytes]]:
        """Every message that is no event: the digest it is kept under, and its bytes."""
        with _asking(600):
            async for document in self._rejects.find({}):
                yield document["_id"], bytes(document["b"])

    async def case_ids(self) -> AsyncIterator[tuple[str, int]]:
        """Every case that there is: its id, and the index of the first leaf about it."""
        with _asking(600):
            async for document in self._cases.find({}, {"first": 1}):
                yield document["_id"], document.get("first", 0)

    async def of_cases(self, ids: Sequence[str]) -> dict[str, list[tuple[int, bytes]]]:
        """The leaves of these requests, oldest first."""
        found: dict[str, list[tuple[int, bytes]]] = {id: [] for id in ids}
        with _asking(60):
            by = self._events.find({"case": {"$in": list(ids)}}, {"b": 1, "case": 1}, hint="case")
            async for document in by.batch_size(5000):
                found[document["case"]].append((document["_id"], document["b"]))
        return {id: sorted(leaves) for id, leaves in found.items()}


def _unpacked(batch: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """
    The documents of a BSON array: index, leaf, and the rest packed.

    The driver writes `_id` and `b` first; where somebody has moved them, they are looked for.
    """
    read, head = _HEAD.unpack_from, _HEAD.size
    at, n, key, longer = 4, 0, 3, 10
    while batch[at] == EMBEDDED:  # its type, its number in digits and a zero byte, the document
        if n == longer:
            key, longer = key + 1, longer * 10
        n, at = n + 1, at + key
        length, kind, name, index, bin_, field, size = read(batch, at)
        start, end = at + head + 1, at + length
        if kind == 0x10 and bin_ == 0x05 and name == b"_id\x00" and field == b"b\x00":
            yield index, batch[start : start + size], batch[start + size : end]
        else:
            document = bson.decode(batch[at:end])
            yield document.pop("_id"), document.pop("b", b""), Store.pack(document)
        at = end


def raw_id(leaf: Leaf) -> str:
    """Raw bytes are kept under their digest, as the leaf names it."""
    digest: str = orjson.loads(leaf.data)["digest"]
    return digest


def document_of(leaf: Leaf) -> dict[str, Any]:
    """A leaf as it is stored, with everything it is indexed by."""
    document: dict[str, Any] = {"_id": leaf.index, "b": leaf.data, "h": leaf.hash, "k": leaf.kind, "src": leaf.epoch}
    if leaf.sequence is not None:
        document["sseq"] = leaf.sequence
    if leaf.event_id is not None:
        document["eid"] = leaf.event_id
    if leaf.type is not None:
        document["ty"] = leaf.type
        document["ar"] = leaf.area
        document["et"] = leaf.time
    if leaf.case is not None:
        document["case"] = leaf.case
    if leaf.districts:
        document["ds"] = leaf.districts
    return document


def _query(selection: Selection, since: int, below: int) -> dict[str, Any]:
    query: dict[str, Any] = {"_id": {"$gte": since, "$lt": below}}
    wanted = selection.scopes
    if selection.district is not None:
        inside = wanted is None or selection.district in wanted
        query["ds"] = selection.district if inside else {"$in": []}
    elif wanted is not None:
        query["ds"] = {"$in": list(wanted)}
    if selection.parties is not None:
        query["$and"] = [{"ds": {"$all": list(selection.parties)}}]
    if selection.lost and wanted:
        query["$or"] = [{"ar": {"$nin": list(selection.lost)}}, {"ds.0": {"$in": [wanted[0], HUB]}}]
    if selection.request is not None:
        query["case"] = selection.request
    if selection.area is not None:
        query["ar"] = selection.area
    if selection.event is not None:
        query["eid"] = selection.event
    if selection.types is not None:
        query["ty"] = {"$in": list(selection.types)}
    if selection.time_from is not None or selection.time_to is not None:
        bounds = {"$gte": selection.time_from, "$lt": selection.time_to}
        query["et"] = {operator: bound for operator, bound in bounds.items() if bound is not None}
    if selection.kinds is not None and "ds" not in query and "case" not in query:
        query["k"] = {"$in": list(selection.kinds)}
    elif selection.kinds is not None and "event" not in selection.kinds:
        query["k"] = {"$in": list(selection.kinds)}  # a district or a request is of events only: nothing
    return query


def _same_index(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    same = all(there.get(what) == wanted.get(what) for what in ("unique", "partialFilterExpression"))
    return same and list(there["key"]) == list(wanted["key"].items())


async def _insert_new(collection: Any, documents: Sequence[Mapping[str, Any]]) -> set[str]:
    """Insert what is not there; the ids of what is."""
    try:
        await collection.insert_many(documents, ordered=False)
    except BulkWriteError as why:
        return {documents[at]["_id"] for at in _only_duplicates(why)}
    return set()


def _only_duplicates(why: BulkWriteError) -> list[int]:
    """Which documents were there already. Raises what it is given where anything else went wrong."""
    errors = why.details["writeErrors"] if why.details else []
    if not errors or any(error["code"] != DUPLICATE_KEY for error in errors):
        raise why
    return [error["index"] for error in errors]


def _tile_id(level: int, number: int) -> str:
    return f"{level}/{number}"


@contextmanager
def _asking(deadline_s: float = DEADLINE_S) -> Iterator[None]:
    """A deadline for what is asked inside, and one error for all that an outage may look like."""
    try:
        with pymongo.timeout(deadline_s):
            yield
    except DuplicateKeyError:
        raise
    except OperationFailure as why:
        raise StoreUnavailableError(f"MongoDB: {why.details.get('errmsg', why) if why.details else why}") from why
    except PyMongoError as why:
        raise StoreUnavailableError(f"MongoDB: {type(why).__name__}: {str(why)[:200]}") from why
