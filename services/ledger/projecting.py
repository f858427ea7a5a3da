"""
The projections: `proj_cases` follows the log, one document per request, and can always be made again from it.

Every document carries `pos`, the last leaf folded into it, and is only ever replaced by a later one: folding the same
leaves twice, or by two instances at once, changes nothing.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import orjson

from services.ledger import cases
from services.ledger.cases import Case
from services.ledger.log.handing import Handed
from services.ledger.log.leaves import EVENT, GAP, Leaf
from services.ledger.store import Projected, Selection, Store, StoreUnavailableError
from shared.envelope import Envelope, opened
from shared.telemetry import logger

NAME = "cases"
BATCH_MAX = 2000
TOGETHER, TOGETHER_WITHIN_S = 4_000, 0.3
"""So many are folded at once while the ingest is behind: a case that moves five times is written once."""
CASES_KEPT_MAX = 10_000
REBUILD_SILENT_S = 15.0
"""A rebuild that has not moved for so long is dead, and projecting goes on."""


class Projector:
    """
    Folds leaves into cases behind the ingest.

    Attributes:
        at: how far the projection goes, as far as this instance knows.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._handed = Handed()
        self._kept: OrderedDict[str, Case] = OrderedDict()
        self._moved = asyncio.Condition()
        self.at = Projected()

    def hand(self, stored: Sequence[Leaf]) -> None:
        """Leaves that have just been stored, so that they need not be read back."""
        self._handed.put(stored)

    async def run(self, stop: asyncio.Event) -> None:
        """Follow the log until told to stop, then once more to its end."""
        known = False
        quiet = True
        while True:
            try:
                if not known:
                    await self._look()
                    known = True
                while await self._step(look_back=quiet):
                    pass
                if stop.is_set():
                    return
                self._handed.wake.clear()
                if not (quiet := not self._handed):
                    continue
                try:
                    async with asyncio.timeout(0.5):
                        await self._handed.wake.wait()
                    quiet = False
                except TimeoutError:
                    pass  # nothing was handed over: perhaps another instance writes
            except StoreUnavailableError as why:
                logger().warning("projection_waits", why=str(why))
                known = False
                if stop.is_set():
                    return
                await asyncio.sleep(0.5)

    async def wait_for(self, sequence: int, timeout_s: float) -> bool:
        """Whether the projection has reached this source sequence, waiting so long for it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._moved:
                await self._moved.wait_for(lambda: self.at.sequence >= sequence)
        return self.at.sequence >= sequence

    async def _look(self) -> None:
        """Start where the projection says it is: another instance or a rebuild may have moved it."""
        self._kept.clear()
        self._handed.clear()
        await self._move(await self._store.projected(NAME))

    async def _step(self, *, look_back: bool) -> bool:
        """Fold what is next; whether there was anything. What was not handed over in turn is read from the store."""
        if self.at.paused is not None:
            await self._wait_for_rebuild()
        await self._handed.gather(TOGETHER, TOGETHER_WITHIN_S)
        batch = self._handed.take(self.at.position, TOGETHER)
        if not batch and (look_back or self._handed):
            batch = await read_back(self._store, self.at.position, await self._store.size())
        if not batch:
            return False
        await load(self._kept, batch, self._store.cases)
        changed = fold(self._kept, batch)
        await self._store.put_cases([self._kept[id_] for id_ in changed], since=batch[0].index)
        forget(self._kept)
        to = replace(self.at, position=batch[-1].index + 1, sequence=reached(batch[-1]))
        if await self._store.move_projected(NAME, to, was=self.at):
            await self._move(to)
        else:
            await self._look()
        return True

    async def _wait_for_rebuild(self) -> None:
        """Nothing is folded while somebody rebuilds, unless they have died: then on from where we were."""
        while True:
            was = self.at
            for _ in range(int(REBUILD_SILENT_S / 0.5)):
                await asyncio.sleep(0.5)
                await self._look()
                if self.at.paused is None:
                    return
                if self.at != was:
                    break
            else:
                await self._store.move_projected(
                    NAME, replace(was, generation=was.generation + 1, paused=None), was=was
                )

    async def _move(self, to: Projected) -> None:
        async with self._moved:
            self.at = to
            self._moved.notify_all()


async def load(
    kept: OrderedDict[str, Case],
    batch: Iterable[Leaf],
    find: Callable[[Iterable[str]], Awaitable[list[Case]]],
) -> None:
    """Have in memory what the batch goes on with. A case whose first leaf is in the batch has nothing to load."""
    needed: dict[str, None] = {}
    for leaf in batch:
        event = leaf.envelope
        if event is None or event.case is None or type(event.fact) not in cases.MOVING:
            continue
        if event.case in kept:
            kept.move_to_end(event.case)
        elif not leaf.data.startswith(b'{"case":{"id":"%s","n":1}' % event.case.encode()):
            needed[event.case] = None
    if needed:
        for case in await find(needed):
            kept[case["_id"]] = case


def forget(kept: OrderedDict[str, Case]) -> None:
    """Keep the cases used last; the others are in the store."""
    while len(kept) > CASES_KEPT_MAX:
        kept.popitem(last=False)


def fold(kept: OrderedDict[str, Case], batch: Iterable[Leaf]) -> list[str]:
    """Fold leaves into the cases at hand; the ids of those that moved."""
    changed: dict[str, None] = {}
    for leaf in batch:
        event = leaf.envelope
        if event is None or event.case is None:
            continue
        before = kept.get(event.case)
        after = cases.evolve(before, leaf.index, event)
        if after is not before and after is not None:
            kept[event.case] = after
            changed[event.case] = None
    return list(changed)


def reached(leaf: Leaf) -> int:
    """The last sequence of the source that this leaf accounts for."""
    if leaf.kind == EVENT and leaf.sequence is not None:
        return leaf.sequence
    document = orjson.loads(leaf.data)
    return int(document["gap"]["to"] if leaf.kind == GAP else document["src"]["seq"])


def stored_leaf(index: int, data: bytes) -> Leaf:
    """A leaf read back, with what a fold needs of it."""
    document = orjson.loads(data)
    source = document["src"]
    envelope: Envelope | None = None
    if document["kind"] == EVENT:
        envelope = opened(document["subject"], document["event"])
    return Leaf(index, data, document["kind"], source.get("epoch", 0), source["seq"], envelope=envelope)


async def read_back(store: Store, since: int, below: int) -> list[Leaf]:
    """The next leaves of the log."""
    return [stored_leaf(index, data) for index, data in await store.read(Selection(), since, below, BATCH_MAX)]


async def rebuild(store: Store, progress: Callable[[int, int], Any]) -> int:
    """
    Make `proj_cases` again from the log, beside the old one, and put it in its place; a running ledger waits and goes on.

    Args:
        progress: called with leaves folded and leaves in all.
    Returns: how many cases there are.
    Raises:
        StoreUnavailableError: the old projection stays.
        RebuildLostError: somebody else rebuilds as well.
    """
    was = await store.projected(NAME)
    held = replace(was, generation=was.generation + 1, paused=0)
    if not await store.move_projected(NAME, held, was=was):
        raise RebuildLostError
    # Pinned after the hold: whatever a running ledger still folds behind it, it folds again from here.
    size = await store.size()
    await store.open_aside()
    kept: OrderedDict[str, Case] = OrderedDict()
    at, sequence = 0, 0
    while batch := await read_back(store, at, size):
        at, sequence = batch[-1].index + 1, reached(batch[-1])
        await load(kept, batch, store.cases_aside)
        changed = fold(kept, batch)
        await store.put_cases([kept[id_] for id_ in changed], since=batch[0].index, aside=True)
        forget(kept)
        beat = replace(held, paused=at)
        if not await store.move_projected(NAME, beat, was=held):
            raise RebuildLostError
        held = beat
        progress(at, size)
    await store.swap_aside()
    done = Projected(at, sequence, held.generation + 1)
    if not await store.move_projected(NAME, done, was=held):
        raise RebuildLostError
    return await store.count_cases()


class RebuildLostError(Exception):
    """Somebody else took the projection over while it was being rebuilt."""

    def __str__(self) -> str:
        """For the operator."""
        return "another rebuild or a running ledger took the projection over: start it again"
