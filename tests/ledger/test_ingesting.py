"""The log against real servers: dense, ordered, complete, whatever happens."""

import asyncio
import shutil
from hashlib import sha256
from typing import Any

import orjson
import pymongo
import pytest
import rfc8785

from deploy.identities import Identities
from deploy.servers import MongoServer, NatsServer
from services.ledger.log import leaves
from services.ledger.log.ingesting import Ingest
from services.ledger.log.leaves import ForeignLogError
from services.ledger.store import Selection, Store
from shared import streams
from shared.bus import Bus, Delivery, Message
from shared.errors import UnavailableError
from tests.ledger.conftest import ORIGIN, Bench
from tests.ledger.examples import QINGSHAN, WUCHANG, life, message, request_id, submitted


def many(requests: int, since: int = 0) -> list[tuple[str, bytes]]:
    return [message(envelope) for n in range(since, since + requests) for envelope in life(n, f"{WUCHANG},{QINGSHAN}")]


def kinds(leaves: list[bytes]) -> list[str]:
    return [orjson.loads(leaf)["kind"] for leaf in leaves]


async def test_every_message_becomes_one_leaf_in_the_streams_order(bench: Bench) -> None:
    messages = many(300)
    for n in range(0, len(messages), 900):
        await bench.publish(*messages[n : n + 900])
    bench.ingest()
    leaves = [orjson.loads(leaf) for leaf in await bench.leaves(len(messages))]
    assert [leaf["index"] for leaf in leaves] == list(range(len(messages)))
    assert [leaf["src"]["seq"] for leaf in leaves] == list(range(1, len(messages) + 1))
    assert [leaf["scopes"] for leaf in leaves] == [
        [{"d": WUCHANG, "n": n}, {"d": QINGSHAN, "n": n}] for n in range(1, len(messages) + 1)
    ]
    assert [leaf["case"]["n"] for leaf in leaves] == [*range(1, 10)] * 300


async def test_repeats_and_nonsense_are_named_and_block_nothing(bench: Bench) -> None:
    first, other = message(submitted(1)), message(submitted(1, at_s=5))
    bench.ingest()
    await bench.publish(first)
    await bench.leaves(1)  # stored, so that what follows is found by the store's index and not within a batch
    await bench.publish(first)
    await bench.publish(other, ("evt.420106.intake.a.request.nothing", b"nonsense"))
    await bench.publish(message(submitted(2)))
    leaves = await bench.leaves(5)
    assert kinds(leaves) == ["event", "dup", "conflict", "reject", "event"]
    assert [orjson.loads(leaf).get("first") for leaf in leaves] == [None, 0, 0, None, None]
    kept = bench.store._database["rejects"]
    digests = {document["_id"]: document["b"] async for document in kept.find({})}
    assert digests == {sha256(data).hexdigest(): data for data in (other[1], b"nonsense")}


async def test_a_subject_that_is_no_text_is_a_reject_like_any_other(bench: Bench) -> None:
    good = message(submitted(1))
    bench.ingest()
    for bad in (b"\xff\xfe", b"\xed\xa0\x80", b"a\x0bb", b"a\x00b", b'a"b\\'):
        line = b"PUB evt.420106.intake.-.request.submitted.%b %d\r\n%b\r\n"
        await bench.admin._nc._send_command(line % (bad, len(good[1]), good[1]))
    await bench.publish(good)
    leaves = await bench.leaves(6)
    assert kinds(leaves) == [*["reject"] * 5, "event"]
    assert [rfc8785.dumps(orjson.loads(leaf)) for leaf in leaves] == leaves
    subjects = [orjson.loads(leaf)["subject"].split(".")[-1] for leaf in leaves[:5]]
    assert subjects == ["\\xff\\xfe", "\\xed\\xa0\\x80", "a\x0bb", "a\x00b", 'a"b\\']
    assert await bench.store.raw(sha256(good[1]).hexdigest()) == good[1]


async def test_numbers_that_the_stream_no_longer_has_become_a_gap(bench: Bench) -> None:
    await make_deletable(bench)
    await bench.publish(*many(1))
    await bench.admin.delete("EVENTS", 3)
    await bench.admin.delete("EVENTS", 4)
    bench.ingest()
    leaves = await bench.leaves(8)
    assert kinds(leaves) == ["event", "event", "gap", "event", "event", "event", "event", "event"]
    assert orjson.loads(leaves[2])["gap"] == {"from": 3, "to": 4}


async def test_a_stream_that_was_made_anew_is_another_source(bench: Bench) -> None:
    bench.ingest()
    await bench.publish(*many(2))
    before = await bench.leaves(18)
    await bench.admin._api("STREAM.DELETE.EVENTS")
    await streams.apply(bench.admin)
    await bench.publish(*many(1), *many(1, since=7))
    leaves = await bench.leaves(18 + 1 + 18)
    assert leaves[:18] == before
    assert kinds(leaves[18:]) == ["reset", *["dup"] * 9, *["event"] * 9]
    assert orjson.loads(leaves[18])["reset"]["seq"] == 18
    assert [orjson.loads(leaf)["src"].get("epoch") for leaf in leaves[19:]] == [1] * 18
    assert orjson.loads(leaves[-1])["scopes"][0]["n"] == 27


@pytest.mark.parametrize("regrown", [1, 3])
async def test_a_stream_that_lost_its_tail_goes_on_where_both_agree(bench: Bench, regrown: int) -> None:
    """An older store comes back under the same name and creation, and is shorter, or has grown again past the tail."""
    await bench.publish(*many(2))
    older = bench.nats.data.parent / "older"
    bench.nats.stop()
    shutil.copytree(bench.nats.data / "jetstream", older)
    bench.nats.start()
    await connected(bench)
    await bench.publish(*many(2, since=10))
    bench.ingest()
    await bench.leaves(36)
    await bench.stop()
    bench.nats.stop()
    shutil.rmtree(bench.nats.data / "jetstream")
    older.rename(bench.nats.data / "jetstream")
    bench.nats.start()
    await connected(bench)
    for n in range(regrown):
        await bench.publish(*many(1, since=20 + n))
    bench.ingest()
    leaves = await bench.leaves(36 + 1 + 9 * regrown)
    assert kinds(leaves[36:]) == ["reset", *["event"] * 9 * regrown]
    reset = orjson.loads(leaves[36])
    assert (reset["reset"]["seq"], reset["src"]["seq"], reset["src"]["epoch"]) == (36, 18, 1)
    assert [orjson.loads(leaf)["src"]["seq"] for leaf in leaves[37:]] == list(range(19, 19 + 9 * regrown))


async def test_a_tail_that_is_lost_and_grown_again_while_it_runs_is_noticed(bench: Bench) -> None:
    """The same stream is away for a moment and comes back with other messages under the last numbers, and more of them."""
    ours, older = bench.nats.data / "jetstream", bench.nats.data.parent / "older"

    def swap() -> None:
        ours.rename(older.with_name("aside"))
        older.rename(ours)
        older.with_name("aside").rename(older)

    await bench.publish(*many(2))
    bench.nats.stop()
    shutil.copytree(ours, older)
    swap()
    bench.nats.start()
    await connected(bench)
    await bench.publish(*many(3, since=20))
    bench.nats.stop()
    swap()
    bench.nats.start()
    await connected(bench)
    await bench.publish(*many(2, since=10))
    bench.ingest()
    await bench.leaves(36)
    bench.nats.stop()
    swap()
    bench.nats.start()
    leaves = await bench.leaves(36 + 1 + 27)
    assert kinds(leaves[36:]) == ["reset", *["event"] * 27]
    assert [orjson.loads(leaf)["src"]["seq"] for leaf in leaves[37:]] == list(range(19, 46))


async def test_a_clock_that_was_ahead_for_long_does_not_keep_the_ledger_from_starting(bench: Bench) -> None:
    state = await bench.bus.state()
    prefix = leaves.Prefix(ORIGIN, state.created)
    deliveries = [
        Delivery(n, 2_000_000_000_000_000_000 - (n > 1) * 10**15, *each) for n, each in enumerate(many(600), 1)
    ]
    await bench.store.prepare()
    await bench.store.append(leaves.extend(prefix, map(leaves.read, deliveries), {}))
    last, newest_ns = await bench.store.tail()
    assert last is not None
    assert (orjson.loads(last)["index"], newest_ns) == (5399, 2_000_000_000_000_000_000)
    assert await bench.store.tail(1) == ((await bench.leaves(1))[0], 2_000_000_000_000_000_000)


async def test_two_writers_at_once_write_one_dense_log(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaves, "HEADS_EVERY", 100)
    second = await bench.another_store()
    bench.ingest()
    bench.ingest(store=second)
    messages = many(200)
    for n in range(0, len(messages), 50):
        await bench.publish(*messages[n : n + 50])
    total = len(messages) + 18
    together = await bench.leaves(total)
    assert [index for index, kind in enumerate(kinds(together)) if kind == "heads"] == [*range(100, total, 100)]
    await bench.stop()
    second.close()
    database = f"{bench.database}_alone"
    bench.mongo.permit(database)
    alone = Store.connect(bench.mongo.uri, database)
    try:
        bench.ingest(store=alone)
        async with asyncio.timeout(20):
            while await alone.size() < total:
                await asyncio.sleep(0.01)
        assert [leaf for _, leaf in await alone.read(Selection(), 0, 2**53, 10_000)] == together
    finally:
        await bench.stop()
        alone.close()


async def test_a_store_with_another_log_is_left_alone(bench: Bench) -> None:
    bench.ingest()
    await bench.publish(*many(1))
    await bench.leaves(9)
    other = Ingest(bench.bus, bench.store, "paidan.other/main/1", stored=lambda batch: None)
    with pytest.raises(ForeignLogError):
        await other.run(asyncio.Event())


async def test_killing_mongod_again_and_again_leaves_the_log_that_the_stream_gives(
    fresh_nats: NatsServer, fresh_mongo: MongoServer, identities: Identities, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaves, "HEADS_EVERY", 500)
    admin = await Bus.connect(fresh_nats.url, name="admin", seed=identities.seed("admin"))
    bus = await Bus.connect(fresh_nats.url, name="ledger", seed=identities.seed("ledger"))
    await streams.apply(admin)
    store = Store.connect(fresh_mongo.uri, "paidan")
    stop = asyncio.Event()
    writer = Ingest(bus, store, ORIGIN, stored=lambda batch: None)
    running = asyncio.create_task(writer.run(stop))
    messages = many(600)

    async def publish() -> None:
        for n in range(0, len(messages), 90):
            await admin.commit([Message(*each) for each in messages[n : n + 90]], timeout_s=10)
            await asyncio.sleep(0.05)

    publishing = asyncio.create_task(publish())
    for _ in range(3):
        await asyncio.sleep(0.7)
        await asyncio.to_thread(fresh_mongo.kill)
        await asyncio.to_thread(fresh_mongo.start)
    await publishing
    total = len(messages) + 10
    async with asyncio.timeout(60):
        while await store.size() < total:
            await asyncio.sleep(0.05)
    stop.set()
    await running
    found = await store.read(Selection(), 0, 2**53, 10_000)
    assert [index for index, _ in found] == list(range(total))
    written = [orjson.loads(leaf) for _, leaf in found]
    assert {leaf["index"] for leaf in written if leaf["kind"] != "event"} == {*range(500, total, 500)}
    assert [leaf["src"]["seq"] for leaf in written if leaf["kind"] == "event"] == list(range(1, len(messages) + 1))
    made = leaves.extend(
        leaves.Prefix(ORIGIN, (await bus.state()).created),
        [leaves.read(delivery) for delivery in await everything(bus)],
        {},
    )
    assert [leaf.data for leaf in made] == [leaf for _, leaf in found]
    assert await store.ordinal(request=request_id(599)) == 9
    store.close()
    await bus.drain()
    await admin.drain()


async def everything(bus: Bus) -> list[Delivery]:
    """What the stream holds."""
    reader, last = bus.reader(["evt.>"], after=0), (await bus.state()).last
    found: list[Delivery] = []
    async with asyncio.timeout(20):
        while len(found) < last:
            found += await reader.wait(1)
    await reader.close()
    return found


async def make_deletable(bench: Bench) -> None:
    """What nobody can do to the real stream: the damage has to come from somewhere."""
    config = await bench.admin.stream_config("EVENTS")
    assert config is not None
    await bench.admin._api("STREAM.DELETE.EVENTS")
    await bench.admin.apply_stream({**config, "deny_delete": False, "deny_purge": False}, new=True)


async def connected(bench: Bench) -> None:
    """Both connections are back."""
    async with asyncio.timeout(20):
        while True:
            try:
                await bench.bus.state()
                await bench.admin.state()
            except UnavailableError:
                await asyncio.sleep(0.05)
            else:
                return


async def test_an_audit_reads_on_where_a_reply_is_full(bench: Bench) -> None:
    """MongoDB ends a reply at 16 MiB, however many documents were asked for."""
    with pymongo.MongoClient[dict[str, Any]](bench.mongo.admin_uri) as mongo:
        leaves = [{"_id": n, "b": bytes([n % 256]) * 65_000, "k": "event"} for n in range(300)]
        mongo[bench.database]["events"].insert_many(leaves)
    found = await bench.store.audited(0, 300)
    assert [(index, data[0], len(data)) for index, data, _ in found] == [(n, n % 256, 65_000) for n in range(300)]
    assert {packed for _, _, packed in found} == {bench.store.pack({"k": "event"})}
