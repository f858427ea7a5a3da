"""Two desks for one district: one leads. When it dies or freezes the other decides, and what the first still wanted is refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import orjson
import pytest

from services.dispatch.desk import RULES
from shared.bus import Bus
from shared.errors import BusError
from tests.system.test_points import finish, task_of, until
from tests.system.world import DISTRICT, System, fresh_key

pytestmark = pytest.mark.asyncio(loop_scope="session")

MARKER = RULES.marker_subject(DISTRICT)
TAKEOVER_S = 5.0


async def marker(bus: Bus) -> Mapping[str, Any]:
    """The last turn's marker: `sequence`, `by`, `epoch`."""
    while True:
        with suppress(BusError):
            if stored := await bus.last(MARKER):
                return {**orjson.loads(stored.data)["data"], "sequence": stored.sequence}
        await asyncio.sleep(0.01)


async def takeover_s(bus: Bus, since: float, before: str) -> float:
    """Seconds until somebody else has committed a turn."""
    while (await marker(bus))["by"] == before:
        await asyncio.sleep(0.01)
        assert time.monotonic() - since < 4 * TAKEOVER_S, "nobody took over"
    return time.monotonic() - since


async def number(system: System, instance: int, name: str) -> float:
    """One of a desk's figures; 0 where it has none yet."""
    answer = await system.call("GET", "dispatch", "/metrics", instance=instance)
    line = f'{name}{{district="{DISTRICT}",service="dispatch"}} '
    return next((float(one.removeprefix(line)) for one in answer.document.splitlines() if one.startswith(line)), 0.0)


async def leading(system: System) -> list[float]:
    """What each desk says about whether it leads the district."""
    return [await number(system, instance, "paidan_leading") for instance in (1, 2)]


async def test_one_of_two_leads(system: System) -> None:
    async with asyncio.timeout(20):
        while sorted(await leading(system)) != [0.0, 1.0]:  # both are up and have heard of the district
            await asyncio.sleep(0.05)
    asked = await system.submit(fresh_key())
    assert asked
    await finish(system, asked["id"])
    assert sorted(await leading(system)) == [0.0, 1.0]


async def test_when_the_leader_is_killed_the_other_decides_within_five_seconds(
    system: System, record_property: Callable[[str, object], None]
) -> None:
    bus = await system.stack.connect("admin")
    await system.stack.wait_until_ready()
    leads = await system.leader(bus)
    killed = time.monotonic()
    await system.stack.kill("dispatch", leads)
    took_s = await takeover_s(bus, killed, f"dispatch-{leads}")
    await bus.drain()
    print(f"killed: the other decided after {took_s:.2f} s")
    record_property("takeover_after_kill_s", round(took_s, 2))
    assert took_s < TAKEOVER_S
    asked = await system.submit(fresh_key())
    assert asked
    await finish(system, asked["id"])


async def test_a_leader_that_freezes_past_its_lease_steps_down_when_it_wakes(
    system: System, record_property: Callable[[str, object], None]
) -> None:
    bus = await system.stack.connect("admin")
    await system.stack.wait_until_ready()
    leads = await system.leader(bus)
    frozen = time.monotonic()
    system.stack.stop_process("dispatch", leads)
    took_s = await takeover_s(bus, frozen, f"dispatch-{leads}")
    print(f"frozen: the other decided after {took_s:.2f} s")
    record_property("takeover_after_freeze_s", round(took_s, 2))
    asked = await system.submit(fresh_key())
    assert asked
    task = await task_of(system, asked["id"])
    system.stack.continue_process("dispatch", leads)
    assert took_s < TAKEOVER_S
    yes = await system.command("accept", task["id"], fresh_key(), member=task["offered"][0])
    assert yes
    async with asyncio.timeout(20):
        while (await leading(system))[leads - 1] != 0.0:
            await asyncio.sleep(0.05)
    assert (await marker(bus))["by"] != f"dispatch-{leads}"
    await bus.drain()
    if yes.answer:
        await system.command("done", task["id"], fresh_key(), member=task["offered"][0], outcome="solved")


async def test_what_a_leader_that_lost_its_lease_still_wants_to_store_is_refused_and_never_seen(system: System) -> None:
    """
    It freezes between its decision and its commit, and wakes when another has long been leading. Its batch reaches the server:
    whoever listens to the bus itself hears it. It is not stored, and neither the staff stream nor `live.evt.>` shows it.
    """
    await system.stack.wait_until_ready()
    await system.overhear()
    bus = await system.stack.connect("admin")
    asked = await system.submit(fresh_key())
    assert asked
    task = await task_of(system, asked["id"])
    leads = await system.leader(bus)
    point = system.point("dispatch", leads, "before commit", ".task.accepted", "freeze")
    accepting = asyncio.create_task(
        system.command("accept", task["id"], fresh_key(), member=task["offered"][0])  # repeated until the other answers
    )
    async with asyncio.timeout(20):
        while point.exists():
            await asyncio.sleep(0.01)
    await takeover_s(bus, time.monotonic(), f"dispatch-{leads}")
    given = await accepting
    before = await marker(bus)
    heard = len(system.overheard)
    system.stack.continue_process("dispatch", leads)

    def refused() -> list[tuple[str, bytes]]:
        """Turns of the woken one that were heard."""
        by = f'"by":"dispatch-{leads}"'.encode()
        return [(subject, data) for subject, data in system.overheard[heard:] if subject == MARKER and by in data]

    async with asyncio.timeout(20):
        while not refused():
            await asyncio.sleep(0.02)
    async with asyncio.timeout(20):
        while not await number(system, leads, "paidan_turn_fenced_total"):
            await asyncio.sleep(0.05)
    assert (await marker(bus))["by"] == before["by"]
    stale = refused()[0][1]
    assert stale not in {data for _, data in system.live}
    assert all(stale != data for watched in system.watched for _, data in watched.events)
    await bus.drain()
    assert given
    if given.answer:
        assert given.answer["facts"] == 1
        await system.command("done", task["id"], fresh_key(), member=task["offered"][0], outcome="solved")
    await until(
        system, "/v1/tasks", lambda said: not said["tasks"] or said["tasks"][0]["id"] != task["id"], status="done"
    )


async def test_and_the_whole_history_holds(system: System) -> None:
    assert await system.verify() == []
