"""The lease: one holder, and a fast way on when it is gone."""

import asyncio

import pytest

from deploy.servers import NatsServer
from shared.bus import Bus
from shared.lease import TTL_S, Lease
from tests.conftest import Connect


async def hold(bus: Bus, name: str) -> Lease:
    """Somebody who wants it."""
    lease = Lease(bus, scope="desk", district="420106", holder=name)
    await lease.open()
    return lease


async def taken(lease: Lease, within_s: float) -> float:
    """How long it took to get it, trying all the time."""
    started = asyncio.get_running_loop().time()
    while not await lease.acquire():
        assert asyncio.get_running_loop().time() - started < within_s, "not in time"
        await asyncio.sleep(0.1)
    return asyncio.get_running_loop().time() - started


async def test_of_two_one_holds_it_and_keeps_it(connect: Connect) -> None:
    one, two = await hold(await connect("dispatch"), "a"), await hold(await connect("dispatch"), "b")
    assert await one.acquire()
    epoch = one.epoch
    for _ in range(int(TTL_S + 1) * 5):
        assert not await two.acquire()
        assert one.held
        await asyncio.sleep(0.2)
    assert one.epoch > epoch
    await one.close()
    await two.close()


async def test_of_many_at_once_one_gets_it(connect: Connect) -> None:
    leases = [await hold(await connect("dispatch"), f"d{n}") for n in range(6)]
    got = await asyncio.gather(*(lease.acquire() for lease in leases))
    assert sum(got) == 1
    assert [lease.held for lease in leases] == got
    for lease in leases:
        await lease.close()


async def test_given_back_it_is_there_for_the_next_at_once(connect: Connect) -> None:
    one, two = await hold(await connect("dispatch"), "a"), await hold(await connect("dispatch"), "b")
    assert await one.acquire()
    epoch = one.epoch
    await one.release()
    assert not one.held
    assert await taken(two, 1) < 0.5
    assert two.epoch > epoch
    await two.close()


async def test_a_dead_holder_is_followed_without_waiting_for_its_time(connect: Connect) -> None:
    bus = await connect("dispatch")
    one, two = await hold(bus, "a"), await hold(await connect("dispatch"), "b")
    assert await one.acquire()
    assert one._keeper
    one._keeper.cancel()
    await bus._nc.close()
    assert await taken(two, 1.5) < 1
    await two.close()


async def test_a_frozen_holder_is_followed_after_its_time_and_knows_it(connect: Connect) -> None:
    one, two = await hold(await connect("dispatch"), "a"), await hold(await connect("dispatch"), "b")
    assert await one.acquire()
    assert one._keeper
    one._keeper.cancel()  # it still has its connection and answers, but renews nothing
    waited = await taken(two, TTL_S + 2)
    assert waited > 1.5
    assert not one.held
    await two.close()


async def test_a_holder_that_lost_it_stops_when_it_finds_out(connect: Connect) -> None:
    bus = await connect("dispatch")
    one = await hold(bus, "a")
    assert await one.acquire()
    await bus.put("$KV.LEASES.desk.420106", b"b", ttl_s=3)  # somebody took it over
    await asyncio.sleep(1.2)
    assert not one.held
    await one.close()


async def test_an_instance_that_starts_again_has_its_own_lease_back_at_once(connect: Connect) -> None:
    bus = await connect("dispatch")
    one = await hold(bus, "a")
    assert await one.acquire()
    assert one._keeper
    one._keeper.cancel()
    again = await hold(await connect("dispatch"), "a")
    assert await taken(again, 1) < 0.5
    await again.close()


async def test_while_the_bus_is_away_nobody_gets_it_and_the_holder_loses_it_in_time(
    connect: Connect, fresh_nats: NatsServer
) -> None:
    one, two = await hold(await connect("dispatch"), "a"), await hold(await connect("dispatch"), "b")
    assert await one.acquire()
    fresh_nats.kill()
    assert not await two.acquire()
    await asyncio.sleep(2.2)
    assert not one.held
    fresh_nats.start()
    await asyncio.gather(one.close(), two.close())


@pytest.mark.parametrize("district", ["420107"])
async def test_districts_have_leases_of_their_own(connect: Connect, district: str) -> None:
    bus = await connect("dispatch")
    one = await hold(bus, "a")
    other = Lease(bus, scope="desk", district=district, holder="b")
    await other.open()
    assert await one.acquire()
    assert await other.acquire()
    await one.close()
    await other.close()
