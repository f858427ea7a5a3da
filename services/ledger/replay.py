"""
Replay: what the log holds, as NDJSON that says itself whether it is complete.

The first line names the log, the size it is pinned to, the filter and how many leaves to expect; then one line per leaf, the
stored bytes as they are; the last line says how many there were and where to go on. No last line: it was cut short.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any, Protocol

import orjson

from services.ledger.store import Selection
from shared.envelope import canonical
from shared.errors import RefusedError
from shared.facts import CATALOGUE, HUB

VERSION = "paidan/replay/1"
CHUNK = 2000
MAC_BYTES = 16


class Log(Protocol):
    """What a replay needs of the store."""

    async def read(self, selection: Selection, since: int, below: int, limit: int) -> list[tuple[int, bytes]]:
        """Leaves in a range."""

    async def ordinal(
        self, *, district: str | None = None, request: str | None = None, below: int | None = None
    ) -> int:
        """Events of a district or a request below an index."""

    async def rare(self, *, since: int = 0, below: int | None = None) -> list[tuple[str, int, bytes | None]]:
        """How many leaves are no events."""


class Cursors:
    """Where a reader was, in a form that only we can make: `next`, the pinned size and the question it belongs to."""

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
    """

    log: str
    selection: Selection
    size: int
    since: int = 0
    to: int | None = None
    limit: int | None = None

    @property
    def until(self) -> int:
        """Where the range ends: never behind the pinned size."""
        return self.size if self.to is None else min(self.to, self.size)

    @property
    def question(self) -> dict[str, Any]:
        """What a cursor of this replay belongs to, and what the header says of the filter."""
        chosen = {name: value for name, value in asdict(self.selection).items() if value is not None}
        return chosen if self.to is None else {**chosen, "to": self.to}


def types_named(names: Sequence[str]) -> tuple[str, ...]:
    """Full types for names of facts (`task.offered`), of every version up to today's; full types as they are."""
    versions = {fact.name: fact.schema_version for fact in CATALOGUE}
    return tuple(
        full
        for name in names
        for full in (
            [f"cn.paidan.{name}.v{version}" for version in range(1, versions[name] + 1)] if name in versions else [name]
        )
    )


async def expected(log: Log, replay: Replay) -> int | dict[str, int] | None:
    """
    How many leaves the whole range holds: one number, or one per scope; None where the filter cannot be counted by ordinals.

    A leaf that lists several scopes is counted in each.
    """
    asked = replay.selection
    since, until = replay.since, max(replay.since, replay.until)
    if (
        asked.area is not None
        or asked.types is not None
        or asked.lost is not None
        or (asked.request is not None and asked.district is not None)
    ):
        return None
    if asked.request is not None:
        if asked.scopes is not None:
            return None
        return await log.ordinal(request=asked.request, below=until) - await log.ordinal(
            request=asked.request, below=since
        )
    scopes = (asked.district,) if asked.district is not None else asked.scopes
    if scopes is not None:
        return {
            scope: await log.ordinal(district=scope, below=until) - await log.ordinal(district=scope, below=since)
            for scope in scopes
        }
    if asked.kinds is None:
        return until - since
    if asked.kinds == ("event",):
        return until - since - sum(many for _, many, _ in await log.rare(since=since, below=until))
    return None


async def lines(log: Log, replay: Replay, cursors: Cursors) -> AsyncIterator[bytes]:
    """The replay in chunks of whole lines. What goes wrong midway ends it without its last line."""
    yield (
        canonical(
            {
                "replay": VERSION,
                "log": replay.log,
                "size": replay.size,
                "from": replay.since,
                "filter": replay.question,
                "expected": await expected(log, replay),
            }
        )
        + b"\n"
    )
    at, count, left = replay.since, 0, replay.limit
    following: int | None = None
    while at < replay.until:
        want = CHUNK if left is None else min(CHUNK, left)
        if want == 0:
            following = at
            break
        chunk = await log.read(replay.selection, at, replay.until, want)
        if chunk:
            yield b"".join([b'{"s":%d,"leaf":%b}\n' % (index, leaf) for index, leaf in chunk])
        count += len(chunk)
        left = None if left is None else left - len(chunk)
        if len(chunk) < want:
            break
        at = chunk[-1][0] + 1
    cursor = cursors.seal(replay.question, following, replay.size) if following is not None else None
    yield canonical({"end": True, "count": count, "next": cursor}) + b"\n"


def scopes_of(district: str) -> tuple[str, ...]:
    """What somebody of one district may read: leaves that list it, and what concerns everybody."""
    return (district, HUB)
