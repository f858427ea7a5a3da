"""
Does the desk's commit get slower as the stream grows? The same commits on a young stream and on one with a million facts, in turns.

A commit is what the desk does: an atomic batch of real facts that ends with the marker, fenced on the marker's subject. Small
ones are of one task (about four facts), large ones of 750. The limit is the young stream: the ratio must stay below 1.5.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from services.dispatch.desk import RULES
from shared.bus import Bus, Fence, Message
from tests.bench.aged import aged, spare
from tests.bench.ground import DISTRICT
from tests.bench.harness import Row, Workshop
from tests.bench.history import fill

MARKER = RULES.marker_subject(DISTRICT)
YOUNG = 1_000


@dataclass
class Desk:
    """One stream and its fence."""

    bus: Bus
    fence: int

    async def commit(self, turn: list[Message]) -> float:
        """Commit one turn; how long it took, ms."""
        began = time.perf_counter()
        self.fence = await self.bus.commit(turn, fence=Fence(MARKER, self.fence), timeout_s=10)
        return (time.perf_counter() - began) * 1000


async def run(workshop: Workshop) -> list[Row]:
    """Small commits, then large ones."""
    old = await aged(workshop)
    small, large = spare(workshop)
    async with workshop.bus_server("young") as (_, bus):
        past = await fill(bus, YOUNG, small=small, large=large)
        young, ancient = Desk(bus, past.marker), Desk(old.bus, old.past.marker)
        rows = []
        for name, mine, theirs in (("small", past.small, old.past.small), ("large", past.large, old.past.large)):
            took: dict[str, list[float]] = {"young": [], "old": []}
            for one, other in zip(mine, theirs, strict=True):
                took["young"].append(await young.commit(one))
                took["old"].append(await ancient.commit(other))
            facts = [YOUNG, old.past.facts]
            row = Row.of(f"commit {name}", took["old"], took["young"], "ms", target="≤ 1.50", facts=facts)
            workshop.say(f"{row.name}: {row.value:.2f} ms at {facts[1]} facts, {row.limit:.2f} ms at {YOUNG}")
            rows.append(row)
    return rows
