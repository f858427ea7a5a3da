"""What the ingest has just stored, kept for those who follow it, so that it need not be read back."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from services.ledger.log.ingesting import BATCH_MAX
from services.ledger.log.leaves import Leaf

HANDED_MAX = 10_000
"""Leaves kept in memory; whoever is further behind reads them back from the store."""


class Handed:
    """
    Leaves in order, without a hole.

    Attributes:
        wake: set when there are more.
    """

    def __init__(self) -> None:
        self._leaves: deque[Leaf] = deque()
        self._coming = False
        self.wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._leaves)

    def put(self, stored: Sequence[Leaf]) -> None:
        """Leaves that have just been stored."""
        if self._leaves and (
            stored[0].index != self._leaves[-1].index + 1 or len(self._leaves) + len(stored) > HANDED_MAX
        ):
            self._leaves.clear()
        self._leaves.extend(stored)
        self._coming = len(stored) >= BATCH_MAX
        self.wake.set()

    async def gather(self, many: int, within_s: float) -> None:
        """While full batches come, and so more is sure to follow, let so many come together."""
        try:
            async with asyncio.timeout(within_s):
                while self._coming and len(self._leaves) < many:
                    self.wake.clear()
                    await self.wake.wait()
        except TimeoutError:
            self._coming = False

    def take(self, since: int, many: int) -> list[Leaf]:
        """The leaves from this index on, so many at most; none where others come first."""
        while self._leaves and self._leaves[0].index < since:
            self._leaves.popleft()
        if not self._leaves or self._leaves[0].index != since:
            return []
        return [self._leaves.popleft() for _ in range(min(many, len(self._leaves)))]

    def clear(self) -> None:
        """Forget them."""
        self._leaves.clear()
