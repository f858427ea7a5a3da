"""The live stream of staff apps: one shared tail per process, and a reader of one's own only to catch up."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import NamedTuple

import orjson

from shared.auth import EVERYWHERE, Caller
from shared.bus import Bus, Delivery
from shared.errors import BusError, RefusedError
from shared.facts import HUB

SUBJECTS = "evt.>"
PRIVATE = ("match.", "turn.", "notice.", "member.", "ledger.")
"""What never reaches another office, even for a task that both see."""
KEEPALIVE_S = 15.0
LINGER_S = 30.0
"""How long the tail is followed after the last client has gone: most come back."""
LEEWAY_S = 5.0
"""As at the door: clocks differ, so a token holds a little longer than it says."""
OFFICE = frozenset({"clerk", "dispatcher", "supervisor", "auditor", "admin"})
"""Who works for the office as a whole; anybody else sees what concerns themselves."""
BETWEEN_DESK_AND_ONE = ("task.offered", "task.declined", "task.expired")
"""Whom else a desk asked, and why they said no, is not their colleagues' affair."""


class Event(NamedTuple):
    """One fact as the stream sends it."""

    sequence: int
    district: str
    area: str
    name: str
    districts: tuple[str, ...]
    data: bytes
    task: str = ""
    members: tuple[str, ...] = ()
    """Whom it names."""

    @classmethod
    def of(cls, delivery: Delivery) -> Event | None:
        """From what the bus delivered; None for what is no fact."""
        try:
            _, district, _, area, entity, fact, *_ = delivery.subject.split(".", 6)
            document = orjson.loads(delivery.data)
            districts = tuple(document["districts"].split(","))
            about = document["data"]
            task, members = str(about.get("task_id", "")), tuple(map(str, about.get("members", ())))
            if "member_id" in about:
                members = (*members, str(about["member_id"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        if b"\n" in delivery.data or b"\r" in delivery.data:
            return None  # not canonical, so no fact; and a line break would end the event's data
        return cls(delivery.sequence, district, area, f"{entity}.{fact}", districts, delivery.data, task, members)

    def lines(self) -> bytes:
        """As server-sent event; its id is the stream's sequence."""
        return b"id: %d\nevent: %b\ndata: %b\n\n" % (self.sequence, self.name.encode(), self.data)


class Wanted(NamedTuple):
    """
    What one client wants to see, and may.

    Attributes:
        member: set for somebody who is no more than a member: they see what names them, and what becomes of tasks they were asked
            about.
        expires: when their token ends, seconds since 1970, and with it what they are shown.
    """

    district: str
    area: str | None = None
    types: tuple[str, ...] = ()
    member: str | None = None
    expires: float = float("inf")

    @classmethod
    def by(cls, caller: Caller, district: str | None, area: str | None, types: str | None) -> Wanted:
        """Raises RefusedError `foreign_district`."""
        of = district or caller.district
        if not caller.of(of) and of != caller.district:
            raise RefusedError("foreign_district", district=of, yours=caller.district)
        return cls(
            of,
            area,
            tuple(t.strip() for t in types.split(",") if t.strip()) if types else (),
            None if caller.roles & OFFICE else caller.id,
            caller.expires,
        )

    @property
    def over(self) -> bool:
        """Whether their token has ended."""
        return time.time() > self.expires + LEEWAY_S

    def shows(self, event: Event, asked: Iterable[str] = ()) -> bool:
        """
        Whether this client gets this event: its office serves, or the fact is shared with it.

        Args:
            asked: the tasks that the client, a member, was asked about.
        """
        if self.member is not None and not self._concerns(event, asked):
            return False
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

    def _concerns(self, event: Event, asked: Iterable[str]) -> bool:
        if not event.name.startswith("task."):
            return False
        return self.member in event.members or (event.task in asked and event.name not in BETWEEN_DESK_AND_ONE)


class LiveTail:
    """
    The newest facts, kept for everybody who watches; each client walks along them at its own pace.

    Followed only while somebody watches, and a little longer: an office without a staff app pays nothing for it.
    """

    def __init__(self, bus: Bus, *, events: int) -> None:
        self._bus = bus
        self._kept = events
        self._events: list[Event] = []
        self._sequences: list[int] = []  # of the events, to find a client's place
        self._changed = asyncio.Event()
        self._began = asyncio.Event()
        self._asked = asyncio.Event()
        self._watching = 0
        self._floor = 0
        self.last = 0

    async def run(self, until: asyncio.Event) -> None:
        """Follow the stream whenever somebody watches."""
        while not until.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await self._asked.wait()
            if self._asked.is_set() and not until.is_set():
                await self._follow(until)
        self._ring()

    async def _follow(self, until: asyncio.Event) -> None:
        """From now on, until nobody has watched for a while."""
        try:
            self._floor = self.last = (await self._bus.state()).last
        except BusError:
            await asyncio.sleep(0.5)
            return
        self._began.set()
        reader = self._bus.reader((SUBJECTS,), after=self.last)
        watched = time.monotonic()
        try:
            while not until.is_set() and time.monotonic() - watched < LINGER_S:
                deliveries = await reader.wait(0.5)
                for delivery in deliveries:
                    if event := Event.of(delivery):
                        self._events.append(event)
                        self._sequences.append(event.sequence)
                    self.last = delivery.sequence
                if len(self._events) > 2 * self._kept:
                    self._floor = self._sequences[-self._kept - 1]
                    del self._events[: -self._kept], self._sequences[: -self._kept]
                if deliveries:
                    self._ring()
                if self._watching:
                    watched = time.monotonic()
        finally:
            self._began.clear()
            self._asked.clear()
            self._events.clear()
            self._sequences.clear()
            await reader.close()

    def _ring(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def watch(
        self, wanted: Wanted, after: int | None, until: asyncio.Event, *, asked: Iterable[str] = ()
    ) -> AsyncIterator[bytes]:
        """
        Server-sent events from a sequence on (None: from now), without loss or repeat; comments keep the connection alive.

        It ends with the token of whoever watches.

        Args:
            asked: the open tasks that a member was asked about before; those that they are asked about later are noticed.
        """
        theirs = set(asked)

        def shown(event: Event) -> bool:
            if event.name == "task.offered" and wanted.member in event.members:
                theirs.add(event.task)
            return wanted.shows(event, theirs)

        self._watching += 1
        try:
            self._asked.set()
            await self._began.wait()
            position = self.last if after is None else after
            if wanted.member is not None:
                theirs |= {e.task for e in self._events if e.name == "task.offered" and wanted.member in e.members}
            yield b": paidan %d\n\n" % position
            while not until.is_set() and not wanted.over:
                if position < self._floor:
                    async for sequence, event in self._catch_up(position, until):
                        position = sequence
                        if wanted.over:
                            break
                        if event and shown(event):
                            yield event.lines()
                    continue  # the tail has moved on meanwhile: look again before trusting it
                changed, last = self._changed, self.last
                for event in self._events[bisect_right(self._sequences, position) :]:
                    if shown(event):
                        yield event.lines()
                position = max(position, last)
                if position >= self.last:
                    try:
                        wait_s = max(0.0, min(KEEPALIVE_S, wanted.expires + LEEWAY_S + 0.01 - time.time()))
                        async with asyncio.timeout(wait_s):
                            await changed.wait()
                    except TimeoutError:
                        if not wanted.over:
                            yield b": %d\n\n" % position
        finally:
            self._watching -= 1

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
