"""Who asks for much of the log waits for a turn; where too many wait already, the answer comes at once: later."""

from __future__ import annotations

import asyncio

import pytest

from services.ledger import asking
from services.ledger.asking import WAIT_S, WAITING_MAX, Scans
from shared.errors import RefusedError


async def test_some_run_a_few_wait_and_the_rest_is_told_to_come_again() -> None:
    scans, go, running, most = Scans(2), asyncio.Event(), 0, 0

    async def scan() -> None:
        nonlocal running, most
        async with scans.one():
            running += 1
            most = max(most, running)
            await go.wait()
            running -= 1

    tasks = [asyncio.create_task(scan()) for _ in range(2 + WAITING_MAX)]
    await asyncio.sleep(0)
    with pytest.raises(RefusedError, match="busy") as refused:
        await scan()
    assert refused.value.facts["retry_after"] == WAIT_S
    go.set()
    await asyncio.gather(*tasks)
    assert most == 2
    await scan()  # nothing is left taken


async def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "WAIT_S", 0.02)
    scans = Scans(1)
    async with scans.one():
        with pytest.raises(RefusedError, match="busy"):
            async with scans.one():
                pass
    async with scans.one():
        pass
