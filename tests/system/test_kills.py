"""Everything is killed and frozen at random moments while 2,000 requests go through, and nothing is lost, doubled or torn."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.system.world import System, running

pytestmark = pytest.mark.asyncio(loop_scope="session")  # the other tests' stack must be looked after meanwhile

REQUESTS = 2000
BUSY_MAX = 120
"""So many people do something at the same time, at most."""
KINDS = ("intake", "leader", "notify", "ledger", "nats-server", "mongod", "freeze")
FREEZE_S = 4.5
"""Longer than a lease lives: who wakes up leads no more and does not know it yet."""


async def fault(system: System, kind: str) -> None:
    """One of them; the stack's supervisor brings back what died."""
    stack = system.stack
    match kind:
        case "leader":
            await stack.kill("dispatch", await system.leader())
        case "freeze":
            frozen = await system.leader()
            stack.stop_process("dispatch", frozen)
            await asyncio.sleep(FREEZE_S)
            stack.continue_process("dispatch", frozen)
        case "intake":
            await stack.kill("intake", system.random.randint(1, 2))
        case _:
            await stack.kill(kind)
    if kind in ("notify", "nats-server"):
        system.crashes += 1


async def chaos(system: System, requests: int, rounds: int) -> list[str]:
    """Requests one after the other, and at random moments among them every fault, once a round; then what the checker found."""
    kinds = [kind for _ in range(rounds) for kind in system.random.sample(KINDS, len(KINDS))]
    moments = sorted(system.random.randrange(requests // 20, requests) for _ in kinds)
    await system.watch("members", heard=system.play)
    await system.watch("staff", instance=2)
    began = time.monotonic()

    async def residents() -> None:
        for n in range(requests):
            while system.busy >= BUSY_MAX:  # as fast as this machine can
                await asyncio.sleep(0.02)
            system.go(system.resident(f"request-{n}"))
            await asyncio.sleep(0.01)

    asking = asyncio.create_task(residents())
    for kind, moment in zip(kinds, moments, strict=True):
        while len(system.submitted) < moment and not asking.done():
            await asyncio.sleep(0.02)
        await fault(system, kind)
        system.counts[f"fault {kind}"] += 1
    await asking
    with suppress(TimeoutError):
        await system.stack.wait_until_ready(30)
    broken = await system.verify(120)
    print(
        f"{requests} requests, {len(kinds)} faults in {time.monotonic() - began:.0f} s: {dict(sorted(system.counts.items()))}"
    )
    return [f"{law}: {what}" for law, what in broken]


@pytest.mark.timeout(400)
async def test_two_thousand_requests_survive_the_death_of_everything(tmp_path: Path) -> None:
    """Seed 1: each of the seven faults once."""
    async with running(tmp_path, seed=1) as system:
        assert await chaos(system, REQUESTS, rounds=1) == []
        assert len(system.submitted) == REQUESTS


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [2, 3, 4, 5, 6])
async def test_the_same_for_longer(tmp_path: Path, seed: int) -> None:
    """Each fault four times among twice as many: some hit while the last one is not yet mended."""
    async with running(tmp_path, seed=seed) as system:
        assert await chaos(system, 2 * REQUESTS, rounds=4) == []
