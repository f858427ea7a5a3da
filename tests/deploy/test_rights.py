"""What a service does through `shared.bus` it may do: each with its own key, on a server with the declared streams."""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from deploy.identities import SERVICES, Identities
from deploy.servers import NatsServer
from shared import streams
from shared.bus import Bus, Fence, Message, Request
from shared.lease import Lease

Connect = Callable[[str], Awaitable[Bus]]


@pytest.fixture
async def connect(fresh_nats: NatsServer, identities: Identities) -> AsyncIterator[Connect]:
    """Connections by name, each checked at the end: the server refused none of what was done on them."""
    opened: list[Bus] = []

    async def connect(name: str) -> Bus:
        opened.append(await Bus.connect(fresh_nats.url, name=name, seed=identities.seed(name)))
        return opened[-1]

    await streams.apply(await connect("admin"))
    yield connect
    for bus in opened:
        await bus.drain()
    assert [bus.refused for bus in opened if bus.refused] == []


@pytest.mark.parametrize("service", SERVICES)
async def test_a_service_commits_under_its_own_subjects_and_reads_everybodys(connect: Connect, service: str) -> None:
    bus = await connect(service)
    subject = f"evt.420106.{service}.-.turn.committed"
    await bus.commit([Message(f"evt.420106.{service}.-.a.b", b"{}"), Message(subject, b"{}")], fence=Fence(subject, 0))
    last = await bus.last(subject)
    assert last
    assert last.sequence == 2
    reader = bus.reader(["evt.>"], after=0)
    assert [delivery.sequence for delivery in await reader.wait(5)] == [1, 2]
    await reader.close()
    assert (await bus.state()).last == 2


@pytest.mark.parametrize(("service", "scope"), [("dispatch", "desk"), ("notify", "notify")])
async def test_who_folds_may_lead_and_leave_snapshots(connect: Connect, service: str, scope: str) -> None:
    first, second = await connect(service), await connect(service)
    leader = Lease(first, scope=scope, district="420106", holder="1")
    standby = Lease(second, scope=scope, district="420106", holder="2")
    await leader.open()
    await standby.open()
    assert await leader.acquire()
    assert not await standby.acquire()
    await leader.close()
    assert await standby.acquire()
    await standby.close()
    for content in (b"old" * 100_000, b"new" * 100_000):  # the second purges the chunks of the first
        await first.put_object("SNAPSHOTS", f"{scope}.420106.a", content)
    assert await second.get_object("SNAPSHOTS", f"{scope}.420106.a") == b"new" * 100_000
    assert await second.get_object("SNAPSHOTS", "another") is None


async def test_intake_keeps_keys_and_ciphertexts_and_really_deletes_them(connect: Connect) -> None:
    bus = await connect("intake")
    for stream, subject in (("KEYS", "keys.420106.k"), ("SEALED", "sealed.420106.k.1")):
        sequence = await bus.put(subject, b"secret", expect=0)
        assert await bus.last(subject, stream=stream)
        await bus.delete(stream, sequence)
        assert await bus.last(subject, stream=stream) is None


async def test_dispatch_keeps_contacts_and_notify_reads_them(connect: Connect) -> None:
    dispatch, notify = await connect("dispatch"), await connect("notify")
    await dispatch.put("$KV.CONTACTS.m-1", b"{}")
    stored = await notify.last("$KV.CONTACTS.m-1", stream="KV_CONTACTS")
    assert stored
    assert stored.data == b"{}"


async def test_commands_and_queries_are_answered(connect: Connect) -> None:
    dispatch, ledger, intake = await connect("dispatch"), await connect("ledger"), await connect("intake")

    async def echo(request: Request) -> None:
        await request.answer(request.subject.encode())

    await dispatch.serve("cmd.420106.desk.*", echo)
    await ledger.serve("qry.*.ledger.case", echo)
    http = await connect("dispatch")
    assert await http.request("cmd.420106.desk.accept", b"{}") == b"cmd.420106.desk.accept"
    assert await intake.request("qry.420106.ledger.case", b"{}") == b"qry.420106.ledger.case"
