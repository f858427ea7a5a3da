"""What the tail no longer holds: the stream in blocks, each read once for everybody who is equally far behind."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import NamedTuple

from services.dispatch.showing import Event
from shared.bus import Bus, Reader
from shared.errors import UnavailableError

SUBJECTS = "evt.>"
BLOCK = 256
"""How many sequences a block has: what is sent to a client at once while it catches up."""
BLOCKS_MAX = 32
READERS_MAX = 4
"""Whoever reads on where a reader stands costs no new consumer."""
READER_IDLE_S = 5
READ_S, GAP_S = 5.0, 2.0
"""How long a block may take, and how long nothing must come before what is missing is taken for a gap of the stream."""


class Block(NamedTuple):
    """The facts of a block up to a sequence: its end, or as far as somebody needed it."""

    events: list[Event]
    end: int


class History:
    """
    Blocks of the stream, the last ones used kept. A reader reads one at a time, whoever asks: those who were away for long
    are served in turn, and the desk beside them keeps most of the process.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._blocks: OrderedDict[int, Block] = OrderedDict()
        self._readers: OrderedDict[int, Reader] = OrderedDict()
        """By the sequence that each has been read to."""
        self._reading = asyncio.Lock()

    async def after(self, position: int, known: int) -> tuple[list[Event], int]:
        """
        Some of the facts behind a position, oldest first, and the sequence up to which there are no others.

        Args:
            known: a sequence that the stream has, beyond the position; the answer may end before it.
        Raises:
            UnavailableError: not within 5 s.
        """
        await asyncio.sleep(0)  # whoever goes through many blocks that are kept lets others have their turn
        number = position // BLOCK
        end = min((number + 1) * BLOCK, known)
        async with self._reading:
            block = self._blocks.get(number)
            if block is None or block.end < end:
                block = self._blocks[number] = await self._read(number * BLOCK, end)
            self._blocks.move_to_end(number)
            if len(self._blocks) > BLOCKS_MAX:
                self._blocks.popitem(last=False)
        return [event for event in block.events if event.sequence > position], block.end

    async def _read(self, at: int, end: int) -> Block:
        reader = self._readers.pop(at, None)
        kept = reader is not None
        reader = reader or self._reader(at)
        events: list[Event] = []
        came = began = time.monotonic()
        try:
            while at < end:
                taken = await reader.wait(0.2, end - at)
                for delivery in taken:
                    at = delivery.sequence
                    if event := Event.of(delivery):
                        events.append(event)
                now = time.monotonic()
                if taken:
                    came = now
                elif reader.complete and kept:  # it says so of a time when the stream was shorter
                    await reader.close()
                    reader, kept, came = self._reader(at), False, now
                elif reader.complete and now - came > GAP_S:
                    at = end  # the stream has a gap there
                if now - began > READ_S:
                    raise UnavailableError(f"the stream could not be read behind {at}")
        except BaseException:  # whoever asked may have gone
            await reader.close()
            raise
        if other := self._readers.pop(at, None):
            await other.close()
        self._readers[at] = reader
        if len(self._readers) > READERS_MAX:
            _, oldest = self._readers.popitem(last=False)
            await oldest.close()
        return Block(events, at)

    def _reader(self, at: int) -> Reader:
        return self._bus.reader((SUBJECTS,), after=at, credit=BLOCK, idle_s=READER_IDLE_S)

    async def close(self) -> None:
        """Keep nothing."""
        async with self._reading:
            self._blocks.clear()
            while self._readers:
                await self._readers.popitem()[1].close()
