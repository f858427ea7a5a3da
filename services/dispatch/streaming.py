"""The live stream of staff apps: one shared tail per process, and a reader of one's own only to catch up."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncIterator
from typing import NamedTuple

import orjson

from shared.auth import EVERYWHERE, Caller
from shared.bus import Bus, Delivery
from shared.errors import BusError, RefusedError
from shared.facts import HUB

SUBJECTS = "evt.>"
PRIVATE = ("match.", "turn.", "notice.", "member.")
"""What never reaches another office, even for a task that both see."""
KEEPALIVE_S = 15.0


class Event(NamedTuple):
    """One fact as the stream sends it."""

    sequence: int
    district: str
    area: str
    name: str
    districts: tuple[str, ...]
    data: bytes

    @classmethod
    def of(cls, delivery: Delivery) -> Event | None:
        """From what the bus delivered; None for what is no fact."""
        try:
            _, district, _, area, entity, fact, *_ = delivery.subject.split(".", 6)
            districts = tuple(orjson.loads(delivery.data)["districts"].split(","))
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        if b"\n" in delivery.data or b"\r" in delivery.data:
            return None  # not canonical, so no fact; and a line break would end the event's data
        return cls(delivery.sequence, district, area, f"{entity}.{fact}", districts, delivery.data)

    def lines(self) -> bytes:
        """As server-sent event; its id is the stream's sequence."""
        return b"id: %d\nevent: %b\ndata: %b\n\n" % (self.sequence, self.name.encode(), self.data)


class Wanted(NamedTuple):
    """What one client wants to see, and may."""

    district: str
    area: str | None = None
    types: tuple[str, ...] = ()

    @classmethod
    def by(cls, caller: Caller, district: str | None, area: str | None, types: str | None) -> Wanted:
        """Raises RefusedError `foreign_district`."""
        of = district or caller.district
        if not caller.of(of) and of != caller.district:
            raise RefusedError("foreign_district", district=of, yours=caller.district)
        return cls(of, area, tuple(t.strip() for t in types.split(",") if t.strip()) if types else ())

    def shows(self, event: Event) -> bool:
        """Whether this client gets this event: its office serves, or the fact is shared with it."""
        if self.district != EVERYWHERE and event.district != self.district:
            if self.district not in event.districts and HUB not in event.districts:
                return False
            if event.name.startswith(PRIVATE):
                return False
        if self.area is not None and event.area != self.area:
            return False
        if self.types:
            return event.name.startswith(self.types)
        return not event.name.startswith("turn.")


class LiveTail:
    """The newest facts, kept for everybody who watches; each client walks along it at its own pace."""

    def __init__(self, bus: Bus, *, events: int) -> None:
        self._bus = bus
        self._events: deque[Event] = deque(maxlen=events)
        self._changed = asyncio.Event()
        self._began = asyncio.Event()
        self._floor = 0
        self.last = 0

    async def run(self, until: asyncio.Event) -> None:
        """Follow the stream."""
        while not until.is_set():
            try:
                self._floor = self.last = (await self._bus.state()).last
                break
            except BusError:
                await asyncio.sleep(0.5)
        self._began.set()
        reader = self._bus.reader((SUBJECTS,), after=self.last)
        try:
            while not until.is_set():
                deliveries = await reader.wait(0.5)
                for delivery in deliveries:
                    if len(self._events) == self._events.maxlen:
                        self._floor = self._events[0].sequence
                    if event := Event.of(delivery):
                        self._events.append(event)
                    self.last = delivery.sequence
                if deliveries:
                    self._ring()
        finally:
            self._ring()
            await reader.close()

    def _ring(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def watch(self, wanted: Wanted, after: int | None, until: asyncio.Event) -> AsyncIterator[bytes]:
        """
        Server-sent events from a sequence on, without loss or repeat; comments keep the connection alive.

        Raises:
            RefusedError: `bad_cursor` where `after` lies beyond the end of the stream.
        """
        await self._began.wait()
        position = self.last if after is None else after
        yield b": paidan %d\n\n" % position
        while not until.is_set():
            if position < self._floor:
                async for sequence, event in self._catch_up(position, until):
                    position = sequence
                    if event and wanted.shows(event):
                        yield event.lines()
                continue  # the tail has moved on meanwhile: look again before trusting it
            changed = self._changed
            events = list(self._events)
            news = events[bisect_right(events, position, key=lambda event: event.sequence) :]
            for event in news:
                if wanted.shows(event):
                    yield event.lines()
            position = max(position, self.last if not news else news[-1].sequence)
            if position >= self.last:
                try:
                    async with asyncio.timeout(KEEPALIVE_S):
                        await changed.wait()
                except TimeoutError:
                    yield b": %d\n\n" % position

    async def _catch_up(self, after: int, until: asyncio.Event) -> AsyncIterator[tuple[int, Event | None]]:
        """What came after a sequence that the tail no longer holds, until the tail does."""
        reader = self._bus.reader((SUBJECTS,), after=after)
        try:
            while after < self._floor and not until.is_set():
                for delivery in await reader.wait(0.5):
                    after = delivery.sequence
                    yield after, Event.of(delivery)
        finally:
            await reader.close()
