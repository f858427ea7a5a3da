"""
Replay: what the log holds, as lines that say themselves whether they are complete.

The first line names the log, the size it is pinned to with its signed checkpoint, the filter, how many leaves to expect, and where
each district stands at that size with the proof of it; then one line per leaf, the stored bytes as they are; the last line says how many
there were and where to go on. No last line: it was cut short. What an agreement closed to the reader is listed by index, ordinal and
hash, so that the ordinals stay dense and nothing can be left out unseen.
"""

from __future__ import annotations

import asyncio
import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Any, Literal, Protocol

import orjson

from services.ledger.audit.receiving import VERSION
from services.ledger.log import heads
from services.ledger.log.leaves import EVENT
from services.ledger.log.tree import leaf_hash
from services.ledger.proving import Proofs
from services.ledger.store import Selection
from shared.envelope import canonical
from shared.errors import RefusedError
from shared.facts import CATALOGUE, HUB

CHUNK = 2000
MAC_BYTES = 16

Format = Literal["ndjson", "sse"]
Chunk = list[tuple[int, bytes]]


class Log(Protocol):
    """What a replay needs of the store."""

    def chunks(
        self, selection: Selection, since: int, below: int, limit: int | None, size: int
    ) -> AsyncGenerator[Chunk]:
        """Leaves in a range, at most `limit`, in chunks of a size."""

    async def count(self, selection: Selection, since: int, below: int) -> int:
        """How many leaves of a range are selected."""

    async def ordinal(
        self, *, district: str | None = None, request: str | None = None, below: int | None = None
    ) -> int:
        """Events of a district or a request below an index."""

    async def rare(self, *, since: int = 0, below: int | None = None) -> list[tuple[str, int, bytes | None]]:
        """How many leaves are no events."""

    async def scopes(self, below: int | None = None) -> heads.Scopes:
        """Events per district below an index, and the index of the last one."""


class Cursors:
    """Where a reader was, in a form that only we can make: numbers, and the question they belong to."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def seal(self, question: Any, *numbers: int) -> str:
        """A cursor for this question."""
        body = canonical(list(numbers))
        return urlsafe_b64encode(self._mac(question, body) + body).rstrip(b"=").decode()

    def open(self, question: Any, cursor: str) -> list[int]:
        """The numbers in it. Raises RefusedError `bad_cursor`: not ours, or of another question."""
        try:
            raw = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
            mac, body = raw[:MAC_BYTES], raw[MAC_BYTES:]
            if not hmac.compare_digest(mac, self._mac(question, body)):
                raise ValueError
            numbers: list[int] = orjson.loads(body)
        except ValueError:
            raise RefusedError("bad_cursor", field="cursor") from None
        return numbers

    def _mac(self, question: Any, body: bytes) -> bytes:
        return hmac.digest(self._key, canonical(question) + b"\n" + body, sha256)[:MAC_BYTES]


@dataclass(frozen=True, slots=True)
class Replay:
    """
    One replay: which leaves with since ≤ index < `to` of a log pinned to `size`, at most `limit` of them.

    Attributes:
        to: as the caller asked; None for the pinned size.
        note: the checkpoint of this size; None where nothing is signed.
        register, at_s: the size of the log and the moment (seconds since 1970) that say what the caller had lost
            (`selection.lost`); 0 where that is nothing.
    """

    log: str
    selection: Selection
    size: int
    since: int = 0
    to: int | None = None
    limit: int | None = None
    note: str | None = None
    register: int = 0
    at_s: int = 0

    @property
    def until(self) -> int:
        """Where the range ends: never behind the pinned size."""
        return self.size if self.to is None else min(self.to, self.size)

    @property
    def question(self) -> dict[str, Any]:
        """What a cursor of this replay belongs to, and what the header says of the filter."""
        asked = asdict(replace(self.selection, lost=None))
        chosen = {name: value for name, value in asked.items() if value is not None}
        return chosen if self.to is None else {**chosen, "to": self.to}

    def cursor(self, cursors: Cursors, following: int) -> str:
        """Where to go on: the same log, size, filter and losses, from this index."""
        question = {"log": self.log, **self.question}
        return cursors.seal(question, following, self.size, self.register, self.at_s)

    def resumed(self, cursors: Cursors, cursor: str) -> Replay:
        """This replay as its cursor pins it, from there on or from `since` if that is later. Raises RefusedError `bad_cursor`."""
        following, size, register, at_s = cursors.open({"log": self.log, **self.question}, cursor)
        return replace(self, since=max(self.since, following), size=size, register=register, at_s=at_s)

    def without(self, lost: tuple[str, ...]) -> Replay:
        """This replay for somebody who has lost these areas; it need not remember when where there are none."""
        if not lost:
            return replace(self, register=0, at_s=0)
        return replace(self, selection=replace(self.selection, lost=lost))

    @property
    def whole(self) -> bool:
        """Whether it is everything of its districts: then what is withheld is listed; else it is left out, and nothing is said of it."""
        asked = self.selection
        narrowed = (asked.area, asked.request, asked.types, asked.time_from, asked.time_to, asked.event)
        return all(each is None for each in narrowed) and (asked.kinds is None or EVENT in asked.kinds)

    @property
    def read(self) -> Selection:
        """What is read of the log for it."""
        return replace(self.selection, lost=None) if self.whole else self.selection

    @property
    def districts(self) -> tuple[str, ...] | None:
        """The districts whose ordinals its lines carry; None for those of all."""
        return (self.selection.district,) if self.selection.district is not None else self.selection.scopes


def types_named(names: Sequence[str]) -> tuple[str, ...]:
    """
    Full types for names of facts (`task.offered`), of every version up to today's; full types as they are.

    Raises:
        RefusedError: `invalid`: there is no such fact.
    """
    versions = {fact.name: fact.schema_version for fact in CATALOGUE}
    for name in names:
        if name not in versions and not name.startswith("cn.paidan."):
            raise RefusedError("invalid", field="type", why=f"没有事实 {name}", why_en=f"there is no fact {name}")
    return tuple(
        full
        for name in names
        for full in (
            [f"cn.paidan.{name}.v{version}" for version in range(1, versions[name] + 1)] if name in versions else [name]
        )
    )


async def expected(log: Log, replay: Replay) -> int | dict[str, int]:
    """
    How many lines the whole range holds: one number, or one per district where ordinals say so.

    A leaf that lists several districts is counted in each.
    """
    asked = replay.selection
    since, until = replay.since, max(replay.since, replay.until)
    if replay.whole and replay.districts is not None:
        return {
            district: await log.ordinal(district=district, below=until)
            - await log.ordinal(district=district, below=since)
            for district in replay.districts
        }
    if replay.whole and asked.kinds is None:
        return until - since
    if replay.whole and asked.kinds == (EVENT,):
        return until - since - sum(many for _, many, _ in await log.rare(since=since, below=until))
    return await log.count(replay.read, since, until)


async def header(log: Log, replay: Replay, cursors: Cursors) -> dict[str, Any]:
    """The first line. `heads`: each district's last ordinal at the pinned size, with the path to the `heads` of the checkpoint."""
    stands: dict[str, Any] = {}
    if replay.districts is not None:
        scopes = await log.scopes(replay.size)
        paths = {district: heads.path(scopes, district) for district in replay.districts}
        stands = {district: heads.shown(path) if path else None for district, path in paths.items()}
    return {
        "replay": VERSION,
        "log": replay.log,
        "size": replay.size,
        "from": replay.since,
        "filter": replay.question,
        "checkpoint": replay.note,
        "expected": await expected(log, replay),
        "heads": stands,
        "withheld": list(replay.selection.lost or ()),
        "cursor": replay.cursor(cursors, replay.since),
    }


async def lines(
    log: Log, replay: Replay, cursors: Cursors, format: Format = "ndjson", proofs: Proofs | None = None
) -> AsyncGenerator[bytes]:
    """The replay in chunks of whole lines. What goes wrong midway ends it without its last line."""
    head = await header(log, replay, cursors) | ({"proof": proofs.kind} if proofs else {})
    yield _framed("replay", canonical(head), format)
    count, following = 0, None
    lost = frozenset(replay.selection.lost or ()) if replay.whole else frozenset()
    async with aclosing(_chunks(log, replay)) as chunks:
        async for chunk in chunks:
            count += len(chunk)
            following = chunk[-1][0] + 1
            if proofs is None and not lost and format == "ndjson":
                yield b"".join([b'{"s":%d,"leaf":%b}\n' % leaf for leaf in chunk])  # the many: no call for each
            elif proofs is None:
                yield b"".join([_line(index, leaf, lost, replay, format) for index, leaf in chunk])
            else:
                yield await _proved(chunk, lost, replay, format, proofs)
    more = replay.limit is not None and count == replay.limit
    cursor = replay.cursor(cursors, following) if more and following is not None and following < replay.until else None
    yield _framed("end", canonical({"end": True, "count": count, "next": cursor}), format)


async def _chunks(log: Log, replay: Replay) -> AsyncGenerator[Chunk]:
    """What is selected, oldest first; the next chunk is read while this one is on its way, and no further."""
    async with aclosing(log.chunks(replay.read, replay.since, replay.until, replay.limit, CHUNK)) as chunks:
        coming = asyncio.ensure_future(anext(chunks, None))
        try:
            while (chunk := await coming) is not None:
                coming = asyncio.ensure_future(anext(chunks, None))
                await asyncio.sleep(0)  # it is asked before this one is written
                yield chunk
        finally:
            coming.cancel()
            await asyncio.wait([coming])
            if not coming.cancelled():
                coming.exception()  # looked at: whoever reads has gone, or has been told already


async def _proved(chunk: Chunk, lost: frozenset[str], replay: Replay, format: Format, proofs: Proofs) -> bytes:
    """The lines of a chunk with the proof of each, or behind those tiles that prove them and have not been sent yet."""
    indices = [index for index, _ in chunk]
    if proofs.kind == "tiles":
        tiles = [_framed("tile", line, format) for line in await proofs.tiles(indices)]
        return b"".join([*tiles, *(_line(index, leaf, lost, replay, format) for index, leaf in chunk)])
    proved = zip(chunk, await proofs.inclusions(indices), strict=True)
    return b"".join(
        [_line(index, leaf, lost, replay, format, b',"proof":' + canonical(hashes)) for (index, leaf), hashes in proved]
    )


def _line(index: int, leaf: bytes, lost: frozenset[str], replay: Replay, format: Format, proof: bytes = b"") -> bytes:
    """One line, the stored bytes in it as they are."""
    line = (lost and _withheld(index, leaf, lost, replay)) or b'{"s":%d,"leaf":%b}' % (index, leaf)
    line = line[:-1] + proof + b"}" if proof else line
    return line + b"\n" if format == "ndjson" else b"id: %d\ndata: %b\n\n" % (index, line)


def _withheld(index: int, leaf: bytes, lost: frozenset[str], replay: Replay) -> bytes | None:
    """In place of what another office said of a lost area: which leaf it is, with its ordinal and hash; None for everything else."""
    document = orjson.loads(leaf)
    if "scopes" not in document or document["subject"].split(".")[3] not in lost:
        return None
    said_by, own = document["scopes"][0]["d"], (replay.selection.scopes or (HUB,))[0]
    if said_by in (own, HUB):
        return None
    asked = replay.districts or ()
    scope = next(scope for scope in document["scopes"] if scope["d"] in asked)
    return canonical({"s": index, "withheld": True, "d": scope["d"], "n": scope["n"], "hash": leaf_hash(leaf).hex()})


def _framed(event: str, line: bytes, format: Format) -> bytes:
    return line + b"\n" if format == "ndjson" else b"event: %b\ndata: %b\n\n" % (event.encode(), line)


def scopes_of(district: str) -> tuple[str, ...]:
    """What somebody of one district may read: leaves that list it, and what concerns everybody."""
    return (district, HUB)
