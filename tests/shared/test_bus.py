"""The bus on a real server: batches that are whole or nothing, and a reader that loses and repeats nothing."""

import asyncio
import secrets
from pathlib import Path

import nkeys
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from deploy.identities import Identities
from deploy.servers import NatsServer
from shared.bus import BATCH_MAX, Bus, Delivery, Fence, Message, Reader, Request, plain_headers
from shared.errors import ConflictError, TooManyFactsError, UnavailableError
from shared.lease import BUCKET
from tests.conftest import Connect

MARK = "evt.420106.dispatch.-.turn.committed"
FACT = "evt.420106.dispatch.a.task.opened"


def batch(n: int, *, of: str = "x") -> list[Message]:
    """So many facts and their marker."""
    return [*(Message(FACT, f"{of}{i}".encode()) for i in range(n)), Message(MARK, of.encode())]


async def all_of(reader: Reader, last: int, *, within_s: float = 15) -> list[Delivery]:
    """Everything up to a sequence."""
    got: list[Delivery] = []
    ends = asyncio.get_running_loop().time() + within_s
    while not got or got[-1].sequence < last:
        got += await reader.wait(0.5)
        assert asyncio.get_running_loop().time() < ends, f"only {len(got)}, up to {reader.after}"
    return got


@pytest.mark.parametrize(
    "block",
    [
        b"Content-Type: application/cloudevents+json\r\nNats-Batch-Id: 01a2\r\nNats-Batch-Sequence: 3\r\n\r\n",
        *(
            b"",
            b"\r\n",
            b"a:b\r\n",
            b"A:\tx \r\n",
            b" B : y\r\n",
            b"a b: c\r\n",
            b"a\tb: c\r\n",
            b"none\r\n",
            b":v\r\n",
        ),
        *(b"\xff\xfe: z\r\nK: \xe4\xb8\r\nL: m\r\n", "标: y\r\nK: 值\r\n".encode(), b"K: 1\r\nK: 2\r\n", b"K: a:b\r\n"),
    ],
)
def test_headers_are_read_as_the_library_reads_them(block: bytes) -> None:
    assert (plain_headers(block) or {}) == Client._parse_header_lines(block)


async def test_of_those_who_are_asked_all_are_heard(connect: Connect, bus: Bus) -> None:
    for answer in (b"one", b"two"):
        other = await connect("dispatch")

        async def take(request: Request, answer: bytes = answer) -> None:
            await request.answer(answer)

        await other.serve("cmd.420106.desk.who", take)
        await other.request("$JS.API.STREAM.INFO.EVENTS", b"")  # by then the server knows
    assert sorted(await bus.answers("cmd.420106.desk.who", b"")) == [b"one", b"two"]
    with pytest.raises(UnavailableError, match="nobody answers"):
        await bus.answers("cmd.420107.desk.who", b"")


# --- committing -------------------------------------------------------------------------------------------------------


async def test_a_batch_is_stored_next_to_each_other_and_named(bus: Bus) -> None:
    assert await bus.commit(batch(9), fence=Fence(MARK, 0), batch="mine") == 10
    last = await bus.last(MARK)
    assert last
    assert (last.sequence, last.data, last.batch) == (10, b"x", "mine")
    assert [d.sequence for d in await all_of(bus.reader(["evt.>"], after=0), 10)] == list(range(1, 11))


async def test_a_batch_behind_a_moved_fence_stores_nothing(bus: Bus) -> None:
    await bus.commit(batch(1), fence=Fence(MARK, 0))
    for stale in (0, 1, 3):
        with pytest.raises(ConflictError):
            await bus.commit(batch(5), fence=Fence(MARK, stale))
    assert (await bus.state()).last == 2
    assert await bus.commit(batch(1), fence=Fence(MARK, 2)) == 4


async def test_of_many_who_commit_at_once_one_wins(connect: Connect, bus: Bus) -> None:
    buses = [await connect("dispatch") for _ in range(5)]

    async def tries(n: int) -> int:
        try:
            return await buses[n % 5].commit(batch(3, of=f"{n}-"), fence=Fence(MARK, 0))
        except ConflictError:
            return 0

    won = [n for n in await asyncio.gather(*(tries(n) for n in range(25))) if n]
    assert won == [4]
    assert (await bus.state()).last == 4


async def test_more_than_a_batch_holds_is_refused_before_it_is_sent(bus: Bus) -> None:
    assert await bus.commit(batch(BATCH_MAX - 1), fence=Fence(MARK, 0)) == BATCH_MAX
    with pytest.raises(TooManyFactsError):
        await bus.commit(batch(BATCH_MAX), fence=Fence(MARK, BATCH_MAX))
    assert (await bus.state()).last == BATCH_MAX


async def test_one_fact_alone_may_be_fenced_on_its_own_subject(bus: Bus) -> None:
    assert await bus.put(FACT, b"1", expect=0) == 1
    with pytest.raises(ConflictError):
        await bus.put(FACT, b"2", expect=0)
    assert await bus.commit([Message(FACT, b"2", expect=1)]) == 2


async def test_nothing_is_sent_later_that_could_not_be_sent_now(bus: Bus, fresh_nats: NatsServer) -> None:
    fresh_nats.kill()
    with pytest.raises(UnavailableError):
        await bus.commit(batch(3), fence=Fence(MARK, 0), timeout_s=0.5)
    with pytest.raises(UnavailableError):
        await bus.put(FACT, b"1", timeout_s=0.5)
    fresh_nats.start()
    await settled(bus)
    await asyncio.sleep(0.2)
    assert (await bus.state()).last == 0


async def settled(bus: Bus) -> None:
    """Wait until it answers again."""
    for _ in range(200):
        try:
            await bus.state()
        except UnavailableError:
            await asyncio.sleep(0.05)
        else:
            return
    raise AssertionError("the bus did not come back")


async def test_what_was_acknowledged_survives_a_kill(bus: Bus, fresh_nats: NatsServer) -> None:
    last = await bus.commit(batch(500), fence=Fence(MARK, 0))
    fresh_nats.kill()
    fresh_nats.start()
    await settled(bus)
    assert (await bus.state()).last == last
    found = await bus.last(MARK)
    assert found
    assert found.sequence == last


# --- reading ----------------------------------------------------------------------------------------------------------


async def test_a_reader_begins_behind_a_sequence_and_sees_its_subjects_only(bus: Bus) -> None:
    await bus.commit(batch(4), fence=Fence(MARK, 0))
    assert [d.data for d in await all_of(bus.reader([FACT], after=2), 4)] == [b"x2", b"x3"]
    both = await all_of(bus.reader([FACT, MARK], after=3), 5)
    assert [(d.sequence, d.subject) for d in both] == [(4, FACT), (5, MARK)]
    assert all(d.recorded_ns > 1_700_000_000 * 10**9 for d in both)


async def test_what_no_name_may_hold_ends_nobodys_connection(connect: Connect, bus: Bus) -> None:
    """A subject that is not UTF-8, or with what else the server lets through, and headers that are none."""
    listener, heard = await connect("admin"), list[str]()

    async def hear(request: Request) -> None:
        heard.append(request.subject)

    await listener.serve("live.evt.>", hear)
    await listener.request("$JS.API.STREAM.INFO.EVENTS", b"")  # by then the server knows
    reader = listener.reader(["evt.>"], after=0)
    assert await reader.wait(0.2) == []
    bad = (b"\xff\xfe", b"\xed\xa0\x80", b"a\x0bb", b"a\x0c7", b"a\x00b", b"a\x1fb", b'"\\')
    for each in bad:
        await bus._nc._send_command(b"PUB evt.420106.dispatch.-.task.%b 2\r\nno\r\n" % each)
    headers = (b"NATS/1.0", b"NATS/1.0 \xff\xff\xff\r\n\r\n", b"NATS/1.0\r\n\xff: \xff\r\n\r\n", b"nonsense")
    for block in headers:
        size = len(block)
        await bus._nc._send_command(b"HPUB %b %d %d\r\n%b%b\r\n" % (FACT.encode(), size, size + 2, block, b"no"))
    await bus._nc._flush_pending()
    last = await bus.commit([Message(FACT, b"good")])
    got = await all_of(reader, last)
    assert [delivery.sequence for delivery in got] == list(range(1, last + 1))
    assert (last, listener.generation, got[-1].data) == (len(bad) + len(headers) + 1, 0, b"good")
    assert got[0].subject == "evt.420106.dispatch.-.task.\\xff\\xfe"
    live = [
        f"live.{delivery.subject}" for delivery in got if "\x0c" not in delivery.subject
    ]  # the server: not that one
    async with asyncio.timeout(5):
        while len(heard) < len(live):
            await asyncio.sleep(0.01)
    assert heard == live


async def test_a_reader_waits_for_what_comes(bus: Bus) -> None:
    reader = bus.reader(["evt.>"], after=0)
    assert await reader.wait(0.2) == []
    waiting = asyncio.create_task(reader.wait(5))
    await asyncio.sleep(0.1)
    started = asyncio.get_running_loop().time()
    await bus.put(FACT, b"1")
    assert [d.data for d in await waiting] == [b"1"]
    assert asyncio.get_running_loop().time() - started < 0.3


async def test_two_readers_see_the_same(bus: Bus) -> None:
    await bus.commit(batch(50), fence=Fence(MARK, 0))
    one, two = bus.reader(["evt.>"], after=0), bus.reader(["evt.>"], after=0, credit=3)
    assert await all_of(one, 51) == await all_of(two, 51)


async def test_a_reader_that_is_slower_than_its_writer_loses_nothing(bus: Bus) -> None:
    reader, got = bus.reader(["evt.>"], after=0, credit=10), []
    fence = 0
    for n in range(20):
        fence = await bus.commit(batch(30, of=f"{n}-"), fence=Fence(MARK, fence))
        got += await reader.take(7)
    got += await all_of(reader, fence)
    assert [d.sequence for d in got] == list(range(1, fence + 1))


async def test_a_reader_loses_and_repeats_nothing_while_the_server_is_killed(
    connect: Connect, bus: Bus, fresh_nats: NatsServer
) -> None:
    reader, writer, got, last = bus.reader(["evt.>"], after=0, credit=100), await connect("dispatch"), [], 0
    done = asyncio.Event()

    async def write() -> None:
        nonlocal last
        n = 0
        while not done.is_set():
            n += 1
            try:
                last = await writer.commit(batch(20, of=f"{n}-"), timeout_s=1)
            except UnavailableError:
                await asyncio.sleep(0.05)

    writing = asyncio.create_task(write())
    for _ in range(3):
        ends = asyncio.get_running_loop().time() + 0.4
        while asyncio.get_running_loop().time() < ends:
            got += await reader.wait(0.1)
        fresh_nats.kill()
        await asyncio.sleep(0.05)
        fresh_nats.start()
    await settled(bus)
    done.set()
    await writing
    last = (await bus.state()).last
    if got[-1].sequence < last:
        got += await all_of(reader, last)
    assert [d.sequence for d in got] == list(range(1, last + 1))
    assert reader.opened > 1


@pytest.mark.parametrize("killed", [False, True])
async def test_far_behind_with_several_subjects_everything_comes_once_and_in_order(
    bus: Bus, fresh_nats: NatsServer, killed: bool
) -> None:
    """Each subject is read by itself then; the subjects overlap, and some are rare."""
    fence, wanted = 0, []
    for n in range(40):
        unique = [Message(f"evt.420106.dispatch.a.task.opened.{n}-{i}", b"{}") for i in range(60)]
        others = [Message(f"evt.420107.dispatch.a.task.{'rare' if n % 7 else 'other'}", b"{}")]
        last = await bus.commit([*unique, *others, Message(MARK, b"{}")], fence=Fence(MARK, fence))
        wanted += list(range(last - 61, last - 1)) + ([last - 1] if n % 7 else [])
        fence = last
    subjects = ["evt.420106.dispatch.a.>", "evt.*.dispatch.*.task.opened.*", "evt.*.dispatch.*.task.rare", "evt.x"]
    reader, got = bus.reader(subjects, after=0, credit=200), []
    got += await reader.wait(5, 500)
    assert reader._parts
    if killed:
        fresh_nats.kill()
        fresh_nats.start()
        await settled(bus)
    for _ in range(200):
        if len(got) >= len(wanted):
            break
        got += await reader.wait(1, 300)
    assert [d.sequence for d in got] == wanted
    late = await bus.commit([Message("evt.420107.dispatch.a.task.rare", b"{}")])
    assert [d.sequence for d in await all_of(reader, 1)] == [late]
    assert not reader._parts


async def test_a_hole_in_what_is_delivered_is_noticed_and_read_again(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    await bus.commit(batch(99), fence=Fence(MARK, 0))
    reader, lost = bus.reader(["evt.>"], after=0), [b"x10", b"x50", b"x98"]
    received = reader._on_message

    async def loses(message: Msg) -> None:
        if reader._fine and lost and message.data == lost[0]:
            lost.pop(0)
        else:
            await received(message)

    monkeypatch.setattr(reader, "_on_message", loses)
    assert [d.sequence for d in await all_of(reader, 100)] == list(range(1, 101))
    assert (lost, reader.opened) == ([], 4)


async def test_a_consumer_that_the_server_forgot_is_made_again(connect: Connect, bus: Bus) -> None:
    admin, reader = await connect("admin"), bus.reader(["evt.>"], after=0)
    await bus.put(FACT, b"1")
    assert [d.sequence for d in await all_of(reader, 1)] == [1]
    await admin._api(f"CONSUMER.DELETE.EVENTS.{reader._next.rsplit('.', 1)[1]}")
    await bus.put(FACT, b"2")
    assert [d.sequence for d in await all_of(reader, 2)] == [2]


# --- values and objects -----------------------------------------------------------------------------------------------


async def test_a_value_with_a_time_to_live_is_gone_after_it(bus: Bus) -> None:
    key = "$KV.LEASES.desk.420106"
    first = await bus.put(key, b"a", expect=0, ttl_s=1)
    with pytest.raises(ConflictError):
        await bus.put(key, b"b", expect=0, ttl_s=1)
    assert await bus.put(key, b"a", expect=first, ttl_s=1) > first
    for _ in range(60):
        if await bus.last(key, stream=BUCKET) is None:
            break
        await asyncio.sleep(0.05)
    assert await bus.put(key, b"b", expect=0, ttl_s=1)


async def test_deleting_overwrites_the_bytes_on_disk(connect: Connect, fresh_nats: NatsServer) -> None:
    intake = await connect("intake")
    secret = b"plaintext-of-a-person-13800000000"
    kept = await intake.put("sealed.420106.kid1.f1", b"kept-" + secret[::-1])
    gone = await intake.put("sealed.420106.kid2.f2", secret)
    assert secret in stored(fresh_nats.data)
    await intake.delete("SEALED", gone)
    await intake.delete("SEALED", gone)  # already gone is fine
    assert await intake.at(gone, stream="SEALED") is None
    assert await intake.at(kept, stream="SEALED")
    assert secret not in stored(fresh_nats.data)
    fresh_nats.stop()
    assert secret not in stored(fresh_nats.data)
    fresh_nats.start()


def stored(folder: Path) -> bytes:
    """Every byte below a folder."""
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


async def test_a_large_value_is_read_whole_or_not_at_all(bus: Bus) -> None:
    assert await bus.get_object("SNAPSHOTS", "desk-420106-0") is None
    large = bytes(range(256)) * 4096
    await bus.put_object("SNAPSHOTS", "desk-420106-0", large)
    assert await bus.get_object("SNAPSHOTS", "desk-420106-0") == large
    await bus.put_object("SNAPSHOTS", "desk-420106-0", b"")
    assert await bus.get_object("SNAPSHOTS", "desk-420106-0") == b""


# --- asking -----------------------------------------------------------------------------------------------------------


async def test_a_question_reaches_every_instance_and_the_first_answer_counts(connect: Connect, bus: Bus) -> None:
    asked: list[str] = []

    async def take(request: Request) -> None:
        asked.append(request.subject)
        await request.answer(request.data.upper())

    others = [await connect("dispatch") for _ in range(2)]
    serving = [await other.serve("cmd.*.desk.*", take) for other in others]
    for other in others:
        await other._nc.flush()  # the server knows of them now
    assert await bus.request("cmd.420106.desk.accept", b"yes") == b"YES"
    await asyncio.sleep(0.1)
    assert asked == ["cmd.420106.desk.accept"] * 2
    for one in serving:
        await one.end()
    for other in others:
        await other._nc.flush()
    with pytest.raises(UnavailableError) as nobody:
        await bus.request("cmd.420106.desk.accept", b"yes")
    assert nobody.value.code == 503


async def test_one_that_waits_holds_up_no_other_where_they_are_taken_apart(connect: Connect, bus: Bus) -> None:
    go_on = asyncio.Event()

    async def take(request: Request) -> None:
        if request.data == b"slow":
            await go_on.wait()
        await request.answer(request.data)

    other = await connect("dispatch")
    serving = await other.serve("cmd.*.desk.*", take, apart=True)
    await other._nc.flush()
    slow = asyncio.create_task(bus.request("cmd.420106.desk.x", b"slow"))
    await asyncio.sleep(0.05)
    assert await bus.request("cmd.420106.desk.x", b"quick") == b"quick"
    ending = asyncio.create_task(serving.end())
    await asyncio.sleep(0.05)
    assert not ending.done()
    go_on.set()
    await ending
    assert await slow == b"slow"


async def test_a_question_that_nobody_answers_ends_at_its_deadline(connect: Connect, bus: Bus) -> None:
    async def silent(request: Request) -> None:
        pass

    other = await connect("dispatch")
    await other.serve("cmd.420106.desk.x", silent)
    await other._nc.flush()
    for _ in range(20):  # the server may hear of the listener a moment later
        started = asyncio.get_running_loop().time()
        with pytest.raises(UnavailableError) as late:
            await bus.request("cmd.420106.desk.x", b"", timeout_s=0.3)
        if late.value.code == 0:
            break
        await asyncio.sleep(0.1)
    assert late.value.code == 0
    assert asyncio.get_running_loop().time() - started < 1


@pytest.fixture
def nobody() -> str:
    """A key that the server does not know."""
    seed: bytes = nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER)
    return seed.decode()


async def test_who_the_server_does_not_know_does_not_come_in(fresh_nats: NatsServer, nobody: str) -> None:
    for seed in (nobody, None):
        with pytest.raises(UnavailableError):
            await Bus.connect(fresh_nats.url, name="x", seed=seed, deadline_s=1)


async def test_where_nobody_listens_it_says_so(identities: Identities) -> None:
    with pytest.raises(UnavailableError, match="cannot connect"):
        await Bus.connect("nats://127.0.0.1:1", name="x", seed=identities.seed("admin"), deadline_s=0.5)


async def test_what_is_not_permitted_is_remembered(bus: Bus) -> None:
    assert bus.refused is None
    with pytest.raises(UnavailableError):
        await bus.put("evt.420106.intake.a.request.rated", b"{}", timeout_s=0.3)
    assert bus.refused
    assert "evt.420106.intake" in bus.refused
