"""
As of when: a size of the log, by itself or by what the ledger had recorded at a moment, and the checkpoint that vouches for it.

What is pinned to a size never changes: whoever goes on next week gets the same bytes.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import Protocol

import orjson

from services.ledger.log import leaves
from services.ledger.store import Selection, Signed
from shared.errors import RefusedError

SIGNED_WITHIN_S = 2.0
"""How long somebody who asks for now waits until a checkpoint covers what there is."""
LOOK_BACK = 64


@dataclass(frozen=True, slots=True)
class Pin:
    """A size, and the signed note of its checkpoint with what witnesses added; None where there is none of this size."""

    size: int
    note: str | None = None


class Log(Protocol):
    """What is read of the store."""

    async def size(self) -> int:
        """How many leaves there are."""

    async def read(self, selection: Selection, since: int, below: int, limit: int) -> list[tuple[int, bytes]]:
        """Leaves in a range."""

    async def checkpoint(self, size: int | None = None) -> Signed | None:
        """The last checkpoint that is not larger than a size; without one the newest."""

    async def cosignatures(self, size: int) -> list[str]:
        """The signature lines of those who have cosigned the checkpoint of this size."""


def parsed(as_of: str) -> int | datetime:
    """A size or a moment. Raises RefusedError `invalid`."""
    if as_of.isascii() and as_of.isdigit() and len(as_of) < 16:
        return int(as_of)
    try:
        moment = datetime.fromisoformat(as_of)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise RefusedError(
            "invalid",
            field="as_of",
            why="须为账本大小(整数)或带时区的时间,如 2026-11-22T08:00:00+08:00",
            why_en="a size of the log, or a time with its zone such as 2026-11-22T08:00:00+08:00",
        )
    return moment


async def pin(log: Log, as_of: str | None) -> Pin:
    """
    What a replay is pinned to: a size that was signed, the largest checkpoint recorded by a moment, or the latest.

    Where nothing was ever signed it is the size alone. Whoever asks for now waits until what there is is signed, for 2 s.

    Raises:
        RefusedError: `invalid`, `no_checkpoint`.
    """
    size = await log.size()
    latest = await log.checkpoint()
    if as_of is None:
        ends = monotonic() + SIGNED_WITHIN_S
        while latest is not None and latest.size < size and monotonic() < ends:
            await asyncio.sleep(0.05)
            latest = await log.checkpoint()
        return await vouched(log, latest.size if latest else size)
    wanted = await size_at(log, as_of)
    if latest is None:
        return Pin(wanted)
    found = await log.checkpoint(wanted)
    if found is None or (found.size != wanted and isinstance(parsed(as_of), int)):
        raise RefusedError("no_checkpoint", field="as_of", of=as_of)
    return await vouched(log, found.size)


async def vouched(log: Log, size: int) -> Pin:
    """A size with its checkpoint, if it has one."""
    found = await log.checkpoint(size)
    if found is None or found.size != size:
        return Pin(size)
    return Pin(size, found.note + "".join(await log.cosignatures(size)))


async def size_at(log: Log, as_of: str | None) -> int:
    """
    How large the log was, whether that was signed or not; None: as it is now.

    At a moment: the longest beginning of the log in which nothing is recorded later.

    Raises:
        RefusedError: `invalid`; `no_checkpoint` for a size that the log has not come to.
    """
    size = await log.size()
    if as_of is None:
        return size
    wanted = parsed(as_of)
    if isinstance(wanted, int):
        if wanted > size:
            raise RefusedError("no_checkpoint", field="as_of", of=as_of)
        return wanted
    until_ns, low, high = _ns(wanted), 0, size
    while low < high:
        middle = (low + high + 1) // 2
        if await recorded_ns(log, middle) <= until_ns:
            low = middle
        else:
            high = middle - 1
    return low


async def recorded_ns(log: Log, size: int) -> int:
    """The latest `recorded` of a log of this size: that of the last leaf that is not late."""
    while size > 0:
        since = max(0, size - LOOK_BACK)
        for _, data in reversed(await log.read(Selection(), since, size, LOOK_BACK)):
            leaf = orjson.loads(data)
            if not leaf.get("late"):
                return leaves.recorded_ns(leaf["recorded"])
        size = since
    return 0


def _ns(moment: datetime) -> int:
    return int(moment.timestamp()) * 1_000_000_000 + moment.microsecond * 1000
