"""
How fast a desk comes back with a million facts behind it, from zero and from a snapshot, beside the raw read of the same facts.

The raw read pulls the same messages with plain nats-py and decodes nothing. Both ways must come to the same state.
"""

from __future__ import annotations

import asyncio
import time

from services.dispatch.desk import RULES
from shared.bus import Bus
from shared.turns import recover
from tests.bench.aged import aged
from tests.bench.bare import Pull
from tests.bench.ground import DISTRICT
from tests.bench.harness import Row, Workshop, bare_connection

RAW_WITHIN_S = 120


async def run(workshop: Workshop) -> list[Row]:
    """From zero, then from the snapshot."""
    old = await aged(workshop)
    identities, past = workshop.identities, old.past
    bus = await Bus.connect(old.server.url, name="dispatch", seed=identities.seed("dispatch"))
    last = await bus.last(RULES.marker_subject(DISTRICT))
    assert last
    rows, states = [], []
    try:
        # The register, with which the stream begins, is read by a filter of its own.
        for name, snapshot, since in (("from zero", False, past.position), ("from a snapshot", True, past.snapshot)):
            behind = last.sequence - since
            began, used = time.perf_counter(), time.process_time()
            fold = await recover(bus, RULES, DISTRICT, snapshot=snapshot)
            ours_s, cpu_s = time.perf_counter() - began, time.process_time() - used
            states.append(fold.dump())
            bare_s = await _raw(old.server.url, identities.seed("dispatch"), since, behind)
            workshop.say(
                f"recovery {name}: {ours_s:.2f} s ({behind} facts behind it, {cpu_s:.2f} s of processor), raw read {bare_s:.2f} s"
            )
            # A duration: the ratio says how many times as long as reading alone.
            rows.append(
                Row.of(
                    f"recovery {name}",
                    [ours_s],
                    [bare_s],
                    "s",
                    facts=behind,
                    cpu_s=round(cpu_s, 2),
                    facts_per_s=round(behind / ours_s),
                    open_tasks=len(fold.state.tasks),
                )
            )
            del fold
    finally:
        await bus.drain()
    if states[0] != states[1]:
        raise RuntimeError("the snapshot and the facts lead to different states")
    return rows


async def _raw(url: str, seed: str, since: int, many: int) -> float:
    nc = await bare_connection(url, seed, "dispatch")
    pull = Pull(nc, f"evt.{DISTRICT}.dispatch.>", keep=False, after=since)
    began = time.perf_counter()
    await pull.open()
    await asyncio.wait_for(pull.until(many), RAW_WITHIN_S)
    took = time.perf_counter() - began
    await nc.close()
    return took
