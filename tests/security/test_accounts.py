"""The bus is brought to the register while it runs: who is out is out at once, and nobody else notices."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from deploy import keeping
from deploy.offices import offices
from shared.bus import Bus
from shared.facts import OfficeSet
from shared.register import Register, evolve
from tests.examples import HONGSHAN, OUJING, QINGSHAN, RATED, WUCHANG, XINXIANG
from tests.security.bus_world import ELSEWHERE, ENCLAVE, NOT_LET_IN, Seat, World, register_of, say


@pytest.fixture
async def guests(world: World) -> AsyncIterator[dict[str, Seat]]:
    """Everybody is there; at the end the bus is as it was."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        seats = {
            "board": await enter(world.app(WUCHANG)),
            "wall": await enter(world.app(WUCHANG, "wall")),
            "neighbour": await enter(world.app(QINGSHAN)),
            "staff": await enter(world.person(world.token("dispatcher"))),
            "member": await enter(world.person(world.token("member", sub="m-li"), "m-li")),
            "staff there": await enter(world.person(world.token("clerk", sub="s-2", district=QINGSHAN), "s-2")),
            "service": await enter(world.named("intake")),
        }
        for name in ("board", "wall", "neighbour", "staff", "staff there"):
            await seats[name].listen("live.evt.>")
        yield seats
    await world.bring()


async def _are_out(guests: dict[str, Seat], *names: str) -> None:
    """These are closed at once (3 s on a busy machine), and nobody else is."""
    async with asyncio.timeout(3):
        for name in names:
            await guests[name].closed.wait()
    for name, seat in guests.items():
        if name not in names:
            await seat.settle()
            assert not seat.closed.is_set(), name


async def test_bringing_it_twice_changes_nothing(world: World, guests: dict[str, Seat]) -> None:
    assert await world.bring() == []
    await _are_out(guests)


async def test_an_office_is_added_and_nobody_is_disconnected(world: World, guests: dict[str, Seat]) -> None:
    added = evolve(world.register, OfficeSet(district="420199"))
    assert (await world.bring(added))[0] == "+ D420199"
    await _are_out(guests)
    async with world.person(world.token("clerk", district="420199")):
        pass
    assert await world.bring() == ["- D420199"]
    with pytest.raises(NOT_LET_IN):
        async with world.person(world.token("clerk", district="420199")):
            pass
    await _are_out(guests)


async def test_an_app_that_is_removed_is_out_at_once(world: World, guests: dict[str, Seat]) -> None:
    office = world.register.offices[WUCHANG]
    await world.bring(evolve(world.register, office.model_copy(update={"apps": office.apps[1:]})))
    await _are_out(guests, "board")
    with pytest.raises(NOT_LET_IN):
        async with world.app(WUCHANG):
            pass


async def test_people_who_are_not_let_in_any_more_are_out_at_once(world: World, guests: dict[str, Seat]) -> None:
    office = world.register.offices[WUCHANG]
    await world.bring(evolve(world.register, office.model_copy(update={"people": False})))
    await _are_out(guests, "staff", "member")
    with pytest.raises(NOT_LET_IN):
        async with world.person(world.token("dispatcher")):
            pass


async def test_an_office_that_is_removed_is_out_at_once(world: World, guests: dict[str, Seat]) -> None:
    gone = OfficeSet(district=WUCHANG, people=False)
    assert await world.bring(evolve(world.register, gone)) == [f"- D{WUCHANG}"]
    await _are_out(guests, "board", "wall", "staff", "member")


async def test_a_person_is_kicked_by_office_and_name(world: World, guests: dict[str, Seat]) -> None:
    async with world.person(world.token("dispatcher")) as second:
        sys = await Bus.connect(world.server.url, name="sys", seed=world.identities.seed("sys"))
        keys = world.identities.office_keys
        assert await keeping.kick(sys, keys.account(QINGSHAN).public, "staff-1") == 0  # another person
        assert await keeping.kick(sys, keys.account(WUCHANG).public, "nobody") == 0
        assert await keeping.kick(sys, keys.account(WUCHANG).public, "staff-1") == 2
        await sys.drain()
        await asyncio.wait_for(second.closed.wait(), 1)
    await _are_out(guests, "staff")


@pytest.mark.parametrize("how", ["ended", "not yet begun", "without this party", "gone"])
async def test_where_an_agreement_is_not_in_force_the_enclave_is_not_seen(
    world: World, guests: dict[str, Seat], how: str
) -> None:
    today = datetime.now(UTC).date()
    changed: dict[str, dict[str, Any]] = {
        "ended": {"valid_to": today - timedelta(days=2)},
        "not yet begun": {"valid_from": today + timedelta(days=2)},
        "without this party": {"parties": (WUCHANG, HONGSHAN)},
        "gone": {"parties": (WUCHANG,)},
    }
    await world.bring(evolve(world.register, ENCLAVE.model_copy(update=changed[how])))
    async with world.service("intake") as intake:
        await say(intake, RATED, WUCHANG, XINXIANG)
        await say(intake, RATED, QINGSHAN, XINXIANG)
        own = await say(intake, RATED, WUCHANG, OUJING)
        theirs = await say(intake, RATED, QINGSHAN, ELSEWHERE)
        await _heard(guests["board"], own)
        await _heard(guests["neighbour"], theirs)
    assert not any(f"{QINGSHAN}.intake.{XINXIANG}" in subject for subject in guests["board"].subjects)
    assert not any(f"{WUCHANG}.intake.{XINXIANG}" in subject for subject in guests["staff there"].subjects)
    await _are_out(guests)


async def test_an_import_ends_with_its_agreement_even_if_nobody_is_there_to_end_it(
    world: World, guests: dict[str, Seat], monkeypatch: pytest.MonkeyPatch
) -> None:
    soon = int(time.time()) + 3
    honest = offices

    def ends_soon(register: Register, now: datetime) -> object:
        return {
            district: replace(office, live=tuple((s, soon if XINXIANG in s else ends) for s, ends in office.live))
            for district, office in honest(register, now).items()
        }

    monkeypatch.setattr(keeping, "offices", ends_soon)
    await world.bring()
    seat, n = guests["neighbour"], 0
    heard: list[bool] = []
    async with world.service("intake") as intake, asyncio.timeout(10):
        while not heard or heard[-1]:
            before = len(seat.heard)
            shared = await say(intake, RATED, WUCHANG, XINXIANG)
            own = await say(intake, RATED, QINGSHAN, ELSEWHERE)
            n += 1
            while seat.subjects.count(own) < n:
                await asyncio.sleep(0.01)
            heard.append(shared in seat.subjects[before:])
    assert heard[0]
    assert time.time() >= soon
    await _are_out(guests)


async def test_nobody_ever_hears_what_is_not_theirs(world: World, guests: dict[str, Seat]) -> None:
    """I7: many facts of all districts in all areas, while agreements come and go; each hears what is theirs, once."""
    chance = random.Random(7)
    others = (register_of(*world.register.offices.values(), agreement=None), world.register)
    expected: dict[str, list[str]] = {name: [] for name in ("board", "neighbour", "staff", "staff there")}
    homes = {"board": WUCHANG, "staff": WUCHANG, "neighbour": QINGSHAN, "staff there": QINGSHAN}
    async with world.service("intake") as intake:
        for register in (*others, *others):
            await world.bring(register)
            for _ in range(40):
                district, where = (
                    chance.choice((WUCHANG, QINGSHAN, HONGSHAN)),
                    chance.choice((OUJING, XINXIANG, ELSEWHERE)),
                )
                subject = await say(intake, RATED, district, where)
                for name, home in homes.items():
                    if district == home or (where == XINXIANG and register.agreements and district != HONGSHAN):
                        expected[name].append(subject)
            for name, subjects in expected.items():
                await _heard(guests[name], count=len(subjects))
    await asyncio.sleep(0.2)
    assert {name: guests[name].subjects for name in expected} == expected
    assert guests["member"].heard == []
    await _are_out(guests)


async def test_accounts_outlive_the_server(world: World, guests: dict[str, Seat]) -> None:
    world.server.stop()
    world.server.start()
    assert await world.bring() == []
    async with world.app(WUCHANG):
        pass
    async with asyncio.timeout(10):
        while True:
            try:
                async with world.person(world.token("dispatcher")):
                    break
            except NOT_LET_IN:  # the gate comes back by itself
                await asyncio.sleep(0.1)


async def test_without_the_gate_people_wait_and_nobody_else_notices(world: World, guests: dict[str, Seat]) -> None:
    world.gate.stop_process()
    try:
        with pytest.raises(NOT_LET_IN):
            async with world.person(world.token("dispatcher")):
                pass
        async with world.app(WUCHANG), world.service("dispatch"):
            pass
        await world.bring(evolve(world.register, OfficeSet(district="420199")))
        await _are_out(guests)
    finally:
        world.gate.continue_process()
    async with world.person(world.token("dispatcher")):
        pass


async def _heard(seat: Seat, subject: str | None = None, *, count: int = 0) -> None:
    async with asyncio.timeout(5):
        while (subject is not None and subject not in seat.subjects) or len(seat.heard) < count:
            await asyncio.sleep(0.005)
