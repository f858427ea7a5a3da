"""A stream with a million facts of a desk behind it, filled once and shared by the benchmarks that need one."""

from __future__ import annotations

import time
from dataclasses import dataclass

from deploy.servers import NatsServer
from shared.bus import Bus
from tests.bench.harness import Workshop
from tests.bench.history import Past, fill

TAIL = 50_000
"""Facts behind the newest snapshot: as many as the desk lets come together before it has another one written."""


@dataclass(frozen=True)
class Aged:
    """An old stream, the admin's connection to it, and what was put on it."""

    server: NatsServer
    bus: Bus
    past: Past


def spare(workshop: Workshop) -> tuple[int, int]:
    """How many small and large turns are kept back, to be committed by the benchmark of commits."""
    return workshop.size(300, 30), workshop.size(40, 6)


async def aged(workshop: Workshop) -> Aged:
    """The old stream of this run."""

    async def make() -> Aged:
        facts = workshop.size(1_000_000, 10_000)
        small, large = spare(workshop)
        server, bus = await workshop.closing.enter_async_context(workshop.bus_server("aged"))
        began, told = time.monotonic(), 0.0

        def progress(stored: int) -> None:
            nonlocal told
            if time.monotonic() - told > 10:
                told = time.monotonic()
                workshop.say(f"filling a stream: {stored} of {facts} facts")

        past = await fill(
            bus, facts, snapshot_at=facts - min(TAIL, facts // 10), small=small, large=large, progress=progress
        )
        rate = facts / (time.monotonic() - began)
        workshop.say(f"filled a stream: {past.facts} facts of {past.tasks} tasks, {rate:.0f} facts/s")
        return Aged(server, bus, past)

    found = await workshop.once("aged", make)
    assert isinstance(found, Aged)
    return found
