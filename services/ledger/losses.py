"""
Which areas an office had shared and lost, as the register stood at a size of the log: the same answer whenever it is asked again.

What today's register closes is asked for the first time with today's size and moment; a replay that is resumed asks with those that it
began with, so that neither midnight nor a new agreement changes what is in it.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Protocol

import orjson

from services.ledger.store import Selection
from shared.envelope import opened
from shared.facts import CATALOGUE, HUB, AgreementSet, AreaSet, DistrictSet
from shared.register import Sharing

_TYPES = tuple(
    f"cn.paidan.{fact.name}.v{version}"
    for fact in CATALOGUE
    if fact in (AgreementSet, AreaSet, DistrictSet)
    for version in range(1, fact.schema_version + 1)
)
_REGISTER = Selection(district=HUB, types=_TYPES, kinds=("event",))
BATCH = 1000


class Log(Protocol):
    """What is read of the store."""

    async def read(self, selection: Selection, since: int, below: int, limit: int) -> list[tuple[int, bytes]]:
        """Leaves in a range."""


class Losses:
    """The register's areas and agreements, folded from the log as far as anybody has asked."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._sharing = Sharing()
        self._size = 0
        self._last = -1
        self._folding = asyncio.Lock()

    async def lost(self, district: str, *, size: int, at_s: int) -> tuple[str, ...]:
        """
        The areas that an office had shared by the first `size` leaves, and shared no more at a moment, sorted.

        Args:
            at_s: seconds since 1970.
        """
        async with self._folding:
            if size > self._size:
                self._last = max(self._last, await self._fold(self._sharing, self._size, size))
                self._size = size
        sharing = self._sharing
        if size <= self._last:  # the register has changed since: as it was then
            sharing = Sharing()
            await self._fold(sharing, 0, size)
        return sharing.all_lost(district, datetime.fromtimestamp(at_s, UTC))

    async def _fold(self, sharing: Sharing, since: int, below: int) -> int:
        """Take the register's leaves of a range; the index of the last of them, -1 where there is none."""
        last = -1
        while chunk := await self._log.read(_REGISTER, since, below, BATCH):
            for index, data in chunk:
                leaf = orjson.loads(data)
                sharing.take(opened(leaf["subject"], leaf["event"]).fact)
                last = index
            since = last + 1
        return last
