"""
The loop that writes the log: read what the stream holds behind the tail, make leaves, append them; for ever.

The tail is the only cursor, so there is nothing to acknowledge and nothing to lose: after any trouble (MongoDB away, another
writer, a repeat) the loop reads the tail again and goes on behind it. While one batch is on its way to MongoDB, the next one
is read and made; never more than one is under way, because the log must stay dense after a crash.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Protocol

import orjson
from prometheus_client import Counter, Gauge, Histogram

from services.ledger.log import leaves
from services.ledger.log.heads import Scopes, UncountedError
from services.ledger.log.leaves import First, Leaf, Prefix, Read
from services.ledger.store import CollisionError
from shared.bus import Delivery, Stored, StreamState
from shared.errors import BusError, UnavailableError
from shared.telemetry import logger

EVERYTHING = "evt.>"
BATCH_MAX = 1000
CASES_KEPT_MAX = 100_000
"""Requests whose ordinals are remembered; others are looked up, all of a batch at once."""
UNCOUNTED_S = 5.0
"""How long until it looks again whether what is indexed is what was signed."""
CAREFUL_FOR = 20_000
"""After a repeated event id, so many sequences on every id is looked up first: repeats come in crowds (a restored stream)."""

LEAVES = Counter("paidan_ledger_leaves", "Leaves written, by kind", ["kind"])
ALARMS = Counter("paidan_ledger_alarms", "What a person has to look at, by kind", ["kind"])
LAG = Gauge("paidan_ledger_lag", "Messages of the stream that are not in the ledger yet")
BATCH = Histogram("paidan_ledger_batch_leaves", "Leaves per write", buckets=(1, 3, 10, 30, 100, 300, 1000, 3000))
WRITE = Histogram("paidan_ledger_write_seconds", "How long MongoDB takes for a batch")


class Log(Protocol):
    """What the loop needs of the store."""

    async def prepare(self) -> None:
        """Make what is missing."""

    async def append(self, batch: Sequence[Leaf]) -> None:
        """Store leaves in order. Raises CollisionError."""

    async def tail(self) -> tuple[bytes | None, int]:
        """The last leaf, and the newest `recorded`."""

    async def scopes(self, below: int | None = None) -> dict[str, tuple[int, int]]:
        """Events per district, and the index of the last one."""

    async def case_counts(self, cases: Sequence[str]) -> dict[str, int]:
        """Events per request."""

    async def known(self, event_ids: Sequence[str]) -> dict[str, First]:
        """First events by id."""

    async def at_or_before(self, epoch: int, sequence: int) -> bytes | None:
        """The leaf of a sequence, or of the last before it."""


class Messages(Protocol):
    """What the loop needs of a reader."""

    opened: int
    pending: int

    async def wait(self, timeout_s: float, at_most: int = 1000) -> list[Delivery]:
        """What is next."""

    async def close(self) -> None:
        """End it."""


class Source(Protocol):
    """What the loop needs of the bus."""

    async def state(self) -> StreamState:
        """Which stream there is."""

    async def at(self, sequence: int) -> Stored | None:
        """One message."""

    def reader(self, subjects: Sequence[str], *, after: int, credit: int = 1000) -> Messages:
        """Everything behind a sequence."""


class Ingest:
    """
    The writer of one log.

    Attributes:
        prefix: where the log ends, as far as this writer knows; None until it has read the tail.
        alive: whether the loop runs.
        refusal: why nothing is written; None where all is well.
    """

    def __init__(
        self,
        bus: Source,
        store: Log,
        origin: str,
        *,
        stored: Callable[[Sequence[Leaf]], None],
        scopes: Callable[[int], Awaitable[Scopes]] | None = None,
    ) -> None:
        """
        Args:
            stored: is told what was appended, right after.
            scopes: events per district below an index; None: as the store has it.
        """
        self._bus = bus
        self._store = store
        self._origin = origin
        self._stored = stored
        self._scopes = scopes or store.scopes
        self._careful_until = 0
        self._prepared = False
        self.prefix: Prefix | None = None
        self.alive = False
        self.refusal: UncountedError | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """
        Write until told to stop, then finish the batch.

        Raises:
            ForeignLogError: the store holds another log. Everything else is tried again.
        """
        self.alive = True
        failures = 0
        try:
            while not stop.is_set():
                try:
                    await self._follow(stop)
                    failures = 0
                except CollisionError as why:
                    failures = 0
                    if not why.event_id:
                        # Both would write the same, so let the other one write, and look again a little later.
                        logger().info("lost_a_race", why=str(why))
                        await _pause(random.uniform(0.1, 0.4), stop)  # noqa: S311 - spreads two writers, no secret
                except UncountedError as why:
                    if self.refusal is None:
                        ALARMS.labels("index").inc()
                        logger().error("ledger_index_differs", why=str(why))
                    self.refusal = why
                    await _pause(UNCOUNTED_S, stop)
                except (UnavailableError, BusError) as why:
                    failures += 1
                    delay = min(5.0, 0.1 * 2 ** min(failures, 6))
                    logger().warning("ingest_waits", why=str(why), again_in_s=delay)
                    await _pause(delay, stop)
        finally:
            self.alive = False

    async def _follow(self, stop: asyncio.Event) -> None:
        """From the tail on, until stopped or in trouble."""
        prefix = await self._recover()
        await self._ensure_source(prefix)
        reader = self._bus.reader([EVERYTHING], after=prefix.sequence, credit=2 * BATCH_MAX)
        opened = 0
        writing: asyncio.Task[None] | None = None
        try:
            while not stop.is_set():
                deliveries = await reader.wait(0.5, BATCH_MAX)
                if reader.opened > opened:
                    # A new consumer may be one of another stream: nothing it brought is written before we know.
                    opened = reader.opened
                    if opened > 1 or await self._another(prefix):
                        return
                if deliveries:
                    batch = await self._make(prefix, deliveries)
                if writing is not None:
                    done, writing = writing, None
                    await done
                if deliveries:
                    LAG.set(len(deliveries) + reader.pending)
                    writing = asyncio.create_task(self._write(batch, deliveries[-1].sequence))
                else:
                    LAG.set(0)
        finally:
            with suppress(Exception):
                await reader.close()
            if writing is not None:
                await writing

    async def _recover(self) -> Prefix:
        """The prefix as the store has it."""
        if not self._prepared:
            await self._store.prepare()
            self._prepared = True
        tail, newest_ns = await self._store.tail()
        prefix = leaves.resume(self._origin, tail, newest_ns, {})
        prefix.scopes.update(await self._scopes(prefix.size))
        self.prefix, self.refusal = prefix, None
        return prefix

    async def _make(self, prefix: Prefix, deliveries: Sequence[Delivery]) -> list[Leaf]:
        """The next leaves; asks the store for what the prefix does not hold of these messages' requests and ids."""
        messages: list[Read] = []
        for n in range(0, len(deliveries), 200):
            messages += map(leaves.read, deliveries[n : n + 200])
            await asyncio.sleep(0)  # let those who wait for an answer have their turn
        new = [*({message.case for message in messages if message.case is not None} - prefix.cases.keys())]
        if new:
            counts = await self._store.case_counts(new)
            prefix.cases.update({case: counts.get(case, 0) for case in new})
        known: dict[str, First] = {}
        if deliveries[0].sequence <= self._careful_until:
            known = await self._store.known([message.envelope.id for message in messages if message.envelope])
            if known:
                self._careful_until = max(self._careful_until, deliveries[-1].sequence + CAREFUL_FOR)
        made = leaves.extend(prefix, messages, known)
        while len(prefix.cases) > CASES_KEPT_MAX:
            del prefix.cases[next(iter(prefix.cases))]
        return made

    async def _write(self, batch: Sequence[Leaf], until: int) -> None:
        try:
            with WRITE.time():
                await self._store.append(batch)
        except CollisionError as why:
            _count(batch[: why.at])
            if why.event_id:
                self._careful_until = until + CAREFUL_FOR
            raise
        _count(batch)
        self._stored(batch)

    # --- is it still the same stream? -------------------------------------------------------------------------------

    async def _ensure_source(self, prefix: Prefix) -> None:
        """Write a `reset` where the stream is not the one that the tail came from, or has lost its tail."""
        state = await self._bus.state()
        if not prefix.size:
            prefix.created = state.created
            return
        after = await self._common(prefix, state)
        if after is None:
            return
        batch = leaves.reset(prefix, created=state.created, after=after)
        logger().error("stream_replaced", leaf=batch[-1].index, created=state.created, after=after)
        await self._write(batch, 0)

    async def _another(self, prefix: Prefix) -> bool:
        state = await self._bus.state()
        return state.created != prefix.created or state.last < prefix.sequence

    async def _common(self, prefix: Prefix, state: StreamState) -> int | None:
        """Where stream and ledger part: the last sequence they have in common; None where they do not part."""
        if state.created != prefix.created:
            return 0
        if state.last >= prefix.sequence and await self._agree(prefix, prefix.sequence) is not False:
            return None
        low, high = 0, min(state.last, prefix.sequence)
        while low < high:  # what is lost is a tail: before it all agree, behind it none
            middle = (low + high + 1) // 2
            if await self._agree(prefix, middle) is False:
                high = middle - 1
            else:
                low = middle
        return low

    async def _agree(self, prefix: Prefix, sequence: int) -> bool | None:
        """Whether the stream's message is the one in the ledger, by when the stream took it; None where one of them is missing."""
        leaf = await self._store.at_or_before(prefix.epoch, sequence)
        stored = await self._bus.at(sequence) if sequence else None
        if leaf is None or stored is None:
            return None
        document = orjson.loads(leaf)
        if document["src"]["seq"] != sequence or document["kind"] == leaves.GAP:
            return None
        recorded = datetime.fromisoformat(document["recorded"][:26] + "+00:00").astimezone(UTC)
        return recorded == stored.recorded


def _count(batch: Sequence[Leaf]) -> None:
    BATCH.observe(len(batch))
    kinds: dict[str, int] = {}
    for leaf in batch:
        kinds[leaf.kind] = kinds.get(leaf.kind, 0) + 1
    for kind, many in kinds.items():
        LEAVES.labels(kind).inc(many)
        if kind in (leaves.CONFLICT, leaves.GAP, leaves.REJECT, leaves.RESET):
            ALARMS.labels(kind).inc(many)
            first = next(leaf for leaf in batch if leaf.kind == kind)
            logger().error(f"ledger_{kind}", leaves=many, first=first.index, sequence=first.sequence)


async def _pause(delay_s: float, stop: asyncio.Event) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), delay_s)
