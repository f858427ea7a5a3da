"""The live stream of staff apps: one shared tail per process, and for those who were away blocks of the stream that are shared as well."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice

from services.dispatch.history import SUBJECTS, History
from services.dispatch.showing import Event, Shares, Wanted, all_shared
from shared.auth import Caller
from shared.bus import Bus
from shared.errors import BusError, RefusedError

EACH_MAX = 20
"""How many places one caller takes."""
KEEPALIVE_S = 15.0
LINGER_S = 30.0
"""How long the tail is followed after the last client has gone: most come back."""
WRITE_EVENTS, WRITE_BYTES = 1_000, 64 * 1024
"""About the most that one write holds: what a client that does not read costs."""
PAGE_BYTES = 512 * 1024
"""The bus carries 1 MiB."""
PAGE_S, PAGE_WITHIN_S = 0.5, 1.5
"""How long one page is looked for, and how long the tail may take to begin: whoever asks on the bus waits 2 s."""
WRITES_MAX = 32
"""How many writes a group keeps for those who come after."""


class Group:
    """
    Clients that want the same: for them the facts are looked through once, and put together once for those who are equally far.

    Attributes:
        floor: up to this sequence it no longer knows what was shown.
        changed: set, and made anew, when there is something more to show.
        theirs: the tasks that a member was asked about.
    """

    def __init__(self, wanted: Wanted, floor: int, shares: Shares = all_shared) -> None:
        self._wanted = wanted
        self._shares = shares
        self._events: list[Event] = []
        self._sequences: list[int] = []  # of the events, to find a client's place
        self._writes: dict[int, tuple[bytes, int]] = {}
        self.floor = floor
        self.changed = asyncio.Event()
        self.theirs: set[str] = set()
        self.clients = 0

    def shows(self, event: Event) -> bool:
        """Whether they get it; an offer to a member is remembered, for what becomes of it is theirs to see."""
        if event.name == "task.offered" and self._wanted.member in event.members:
            self.theirs.add(event.task)
        return self._wanted.shows(event, self.theirs, self._shares)

    def take(self, events: Iterable[Event], kept: int) -> None:
        """Of what is new, what is shown; somebody may be waiting for it."""
        if shown := [event for event in events if self.shows(event)]:
            self._events += shown
            self._sequences += [event.sequence for event in shown]
            if len(self._events) > 2 * kept:
                self.floor = self._sequences[-kept - 1]
                del self._events[:-kept], self._sequences[:-kept]
            self.ring()

    def ring(self) -> None:
        """Wake everybody."""
        self._writes.clear()
        self.changed.set()
        self.changed = asyncio.Event()

    def write(self, position: int) -> tuple[bytes, int]:
        """What is shown behind a position, as far as one write goes, and how far that is; nothing where nothing is new."""
        if not self._sequences or position >= self._sequences[-1]:
            return b"", position
        if found := self._writes.get(position):
            return found
        if len(self._writes) > WRITES_MAX:
            self._writes.clear()
        size, some, reached, begin = 0, [], position, bisect_right(self._sequences, position)
        for event in islice(self._events, begin, None):
            reached = event.sequence
            if not self._wanted.shows(event, self.theirs, self._shares):
                continue  # no longer: an agreement has ended
            size += len(event.lines)
            some.append(event.lines)
            if size > WRITE_BYTES or len(some) == WRITE_EVENTS:
                break
        self._writes[position] = b"".join(some), reached
        return self._writes[position]


class LiveTail:
    """
    The newest facts, kept for everybody who watches; each client walks along what its group is shown, at its own pace.

    Followed only while somebody watches, and a little longer: an office without a staff app pays nothing for it.

    Args:
        events: how many of the newest are kept, at least.
        clients: how many may watch at a time.
    """

    def __init__(self, bus: Bus, *, events: int, clients: int = 800, shares: Shares = all_shared) -> None:
        self._bus = bus
        self._kept = events
        self._clients = clients
        self._shares = shares
        self._history = History(bus)
        self._events: list[Event] = []
        self._groups: dict[Wanted, Group] = {}
        self._began = asyncio.Event()
        self._asked = asyncio.Event()
        self._moved = asyncio.Event()
        self._watching = 0
        self._taken: Counter[tuple[str, str]] = Counter()  # places, by district, and by caller in it
        self._floor = 0
        self.last = 0

    async def run(self, until: asyncio.Event) -> None:
        """Follow the stream whenever somebody watches; who comes when that is over waits for nothing."""
        try:
            while not until.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.5):
                        await self._asked.wait()
                if self._asked.is_set() and not until.is_set():
                    await self._follow(until)
        finally:
            self._began.set()

    async def _follow(self, until: asyncio.Event) -> None:
        """From now on, until nobody has watched for a while."""
        try:
            self._floor = self.last = (await self._bus.state()).last
        except BusError:
            await asyncio.sleep(0.5)
            return
        self._began.set()
        reader = self._bus.reader((SUBJECTS,), after=self.last)
        watched = rang = time.monotonic()
        try:
            while not until.is_set() and time.monotonic() - watched < LINGER_S:
                deliveries = await reader.wait(0.5)
                if deliveries:
                    self._take([event for delivery in deliveries if (event := Event.of(delivery))])
                    self.last = deliveries[-1].sequence
                    self._moved.set()
                    self._moved = asyncio.Event()
                if self._watching:
                    watched = time.monotonic()
                if time.monotonic() - rang > KEEPALIVE_S:
                    rang = time.monotonic()
                    self._ring()
        finally:
            self._began.clear()
            self._asked.clear()
            self._events.clear()
            self._ring()
            await reader.close()
            await self._history.close()

    def _take(self, events: list[Event]) -> None:
        self._events += events
        if len(self._events) > 2 * self._kept:
            self._floor = self._events[-self._kept - 1].sequence
            del self._events[: -self._kept]
        for group in self._groups.values():
            group.take(events, self._kept)

    def _ring(self) -> None:
        for group in self._groups.values():
            group.ring()

    async def page(
        self, wanted: Wanted, after: int, last: int, *, limit: int, asked: Iterable[str] = ()
    ) -> tuple[list[Event], int]:
        """
        What is shown behind a sequence, oldest first, and how far that is: to the `last` sequence, or as many as `limit` says, as one
        answer holds, or as were found in time.

        Raises:
            UnavailableError, TimeoutError: the stream cannot be read.
        """
        self._watching += 1
        try:
            self._asked.set()
            async with asyncio.timeout(PAGE_WITHIN_S):
                await self._began.wait()
                while self.last < last:
                    await self._moved.wait()
            looking = Group(wanted, 0, self._shares)
            looking.theirs.update(asked)
            found: list[Event] = []
            size, position, ends = 0, after, time.monotonic() + PAGE_S
            while position < last and time.monotonic() < ends:
                if position < self._floor:
                    events, reached = await self._history.after(position, self._floor)
                else:
                    begin = bisect_right(self._events, position, key=lambda event: event.sequence)
                    events = self._events[begin : begin + WRITE_EVENTS]
                    reached = events[-1].sequence if len(events) == WRITE_EVENTS else self.last
                for event in events:
                    if looking.shows(event):
                        size += len(event.lines)
                        if len(found) == limit or (found and size > PAGE_BYTES):
                            return found, position
                        found.append(event)
                    position = event.sequence
                position = reached
            return found, position
        finally:
            self._watching -= 1

    @contextmanager
    def place(self, caller: Caller, *, limited: bool = True) -> Iterator[None]:
        """
        Room for one client.

        Args:
            limited: one caller takes so many places, and their district half of them; trusted districts take what there is.
        Raises:
            RefusedError: `too_many_streams`, `too_many_watch`.
        """
        district = self._clients // 2 if limited else self._clients
        if limited and self._taken[caller.district, caller.id] >= EACH_MAX:
            raise RefusedError("too_many_streams", limit=EACH_MAX)
        if self._taken[caller.district, ""] >= district:
            raise RefusedError("too_many_watch", limit=district, retry_after=10)
        if self._taken.total() >= 2 * self._clients:
            raise RefusedError("too_many_watch", limit=self._clients, retry_after=10)
        places = Counter({(caller.district, caller.id): 1, (caller.district, ""): 1})
        self._taken += places
        try:
            yield
        finally:
            self._taken -= places  # and what is nothing any more goes

    @contextmanager
    def _in(self, wanted: Wanted, asked: Iterable[str]) -> Iterator[Group]:
        """The group of who wants this; a member is one of their own, since they were asked other things than their colleagues."""
        key = wanted._replace(expires=0.0)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(wanted, self._floor, self._shares)
            group.take(self._events, self._kept)
        group.theirs.update(asked)
        group.clients += 1
        left_s = min(wanted.ends - time.time(), 1e6)
        ending = asyncio.get_running_loop().call_later(max(0.0, left_s) + 0.01, group.ring)
        try:
            yield group
        finally:
            ending.cancel()
            group.clients -= 1
            if not group.clients:
                del self._groups[key]

    async def watch(
        self,
        wanted: Wanted,
        after: int | None,
        until: asyncio.Event,
        *,
        asked: Iterable[str] = (),
        holds: Callable[[], bool] = lambda: True,
    ) -> AsyncIterator[bytes]:
        """
        Server-sent events from a sequence on (None: from now), without loss or repeat, as many at a time as one write holds; comments
        keep the connection alive. It ends with the token of whoever watches.

        Whoever reads slowly, or not at all, costs one write and a position, and nobody waits for them.

        Args:
            asked: the open tasks that a member was asked about before; those that they are asked about later are noticed.
            holds: whether their token has not been revoked.
        """

        def over() -> bool:
            return wanted.over or not holds()

        self._watching += 1
        try:
            self._asked.set()
            await self._began.wait()
            position = self.last if after is None else after
            with self._in(wanted, asked) as group:
                yield b": paidan %d\n\n" % position
                while not until.is_set() and not over():
                    older = position < group.floor
                    if older:
                        try:
                            events, position = await self._history.after(position, group.floor)
                        except BusError:
                            await asyncio.sleep(0.5)
                            continue
                        lines = b"".join([event.lines for event in events if group.shows(event)])
                    else:
                        lines, position = group.write(position)
                    if lines and not over():
                        yield lines
                    elif not older:
                        began = time.monotonic()
                        await group.changed.wait()
                        if time.monotonic() - began > KEEPALIVE_S / 2 and not over():
                            yield b": %d\n\n" % position
        finally:
            self._watching -= 1
