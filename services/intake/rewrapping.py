"""
Changes what wraps the keys (轮换主密钥): each key is opened by the old secret and wrapped by the new one; nothing else is touched.

A key says which secret wraps it, so that whoever begins again, after a crash or for the sake of certainty, does only what is left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from services.intake.keeping import STREAM as KEYS
from services.intake.sealing import NONCE_BYTES, Keys, UnreadableError
from shared.bus import STREAM, Delivery, Stored
from shared.errors import ConflictError
from shared.telemetry import logger

PAGE_KEYS = 500


class Page(NamedTuple):
    """
    What came of one page.

    Attributes:
        kek: the id of what wraps now.
        seen, rewrapped: keys; in a dry run those that would be.
        unreadable: wrapped by a secret that this instance does not have: as they were.
        after: where to go on; None at the end.
    """

    kek: str
    seen: int
    rewrapped: int
    unreadable: int
    after: int | None


class Rewritable(Protocol):
    """What is needed of the bus."""

    async def last(self, subject: str, *, stream: str = STREAM) -> Stored | None:
        """The last message on a subject."""

    async def next(self, subjects: str, *, after: int, stream: str = STREAM) -> Delivery | None:
        """The first message behind a sequence."""

    async def replace(self, stream: str, subject: str, data: bytes, *, expect: int | None = None) -> int:
        """Store a message in the place of those before it."""

    async def erase(self, stream: str, subjects: str, *, below: int | None = None) -> int:
        """Delete messages and their bytes."""


class Rewrapping:
    """Wraps keys anew, a page at a time."""

    def __init__(self, bus: Rewritable, keys: Keys, *, random: Callable[[int], bytes]) -> None:
        self._bus = bus
        self._keys = keys
        self._random = random

    async def page(
        self, district: str | None, after: int = 0, *, at_most: int = PAGE_KEYS, dry_run: bool = False
    ) -> Page:
        """
        The next keys behind a sequence, of one district or all.

        What was rewrapped lies behind the end, so that the walk meets it again and leaves it alone.

        Raises:
            BusError: what was done is done; go on from the same place.
        """
        seen = rewrapped = unreadable = 0
        while message := await self._bus.next(f"keys.{district or '*'}.*", after=after, stream=KEYS):
            if seen == at_most:
                return Page(self._keys.current.hex(), seen, rewrapped, unreadable, after)
            after, seen = message.sequence, seen + 1
            if self._keys.is_current(message.data):
                continue
            try:
                rewrapped += dry_run or await self._rewrap(message)
            except UnreadableError as why:
                logger().error("key_unreadable", sequence=message.sequence, why=str(why))
                unreadable += 1
        return Page(self._keys.current.hex(), seen, rewrapped, unreadable, None)

    async def _rewrap(self, message: Delivery) -> bool:
        """Whether it was there to be rewrapped: an erasure may have come first, or a crash after the new one was stored."""
        _, district, kid = message.subject.split(".")
        wrapped = self._keys.rewrap(district, kid, message.data, self._random(NONCE_BYTES))
        try:
            await self._bus.replace(KEYS, message.subject, wrapped, expect=message.sequence)
        except ConflictError:
            if last := await self._bus.last(message.subject, stream=KEYS):
                await self._bus.erase(KEYS, message.subject, below=last.sequence)
            return False
        return True
