"""
Every fault of the table, injected for real into a real database, stream or copy: each is found, and named by code and place.

One small log with every kind of leaf is written by the real ingest and signed; each test spoils it, and what it spoiled is put back.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from dataclasses import replace as replace_of
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
import pymongo
import pytest
from typer.testing import CliRunner

from deploy.cli import app
from deploy.errors import SetupError
from deploy.identities import Identities
from deploy.servers import MongoServer, NatsServer
from services.ledger.audit import auditing
from services.ledger.audit.auditing import Anchor, Report
from services.ledger.log import notes
from services.ledger.log.checkpoints import Keys
from services.ledger.log.notes import COSIGNATURE, LOG, Checkpoint, Key, Note, Policy
from services.ledger.log.tree import leaf_hash
from services.ledger.store import Store
from shared import streams
from shared.bus import Bus
from shared.envelope import Envelope
from shared.facts import HUB, NOWHERE, LedgerKeyRotated
from tests.ledger.conftest import ORIGIN, Bench
from tests.ledger.examples import QINGSHAN, WUCHANG, life, message, request_id, submitted

Data = pymongo.database.Database[dict[str, Any]]
COLLECTIONS = ("events", "rejects", "tiles", "checkpoints", "cosigs", "proj_cases", "proj_state")
EVENTS, DUP, CONFLICT, REJECT = 9 * 66, 594, 595, 596
SIZE = 597 + 60
SIGNED = (200, SIZE - 57, SIZE)


@dataclass
class Log:
    """
    A log as it was before anybody touched it.

    Attributes:
        policy: the log's key, and two of three witnesses.
        held: the last checkpoint on the bus.
    """

    mongo: MongoServer
    database: str
    key: Key
    witnesses: dict[str, Key]
    policy: Policy
    held: Anchor
    documents: dict[str, list[dict[str, Any]]]

    def audit(self, *anchors: Anchor, policy: Policy | None = None) -> Report:
        """As the auditor does it, with the rights of one."""

        async def run() -> Report:
            store = Store.connect(self.mongo.admin_uri, self.database)
            try:
                report, audit = await auditing.audit_store(store, policy or self.policy, anchors=anchors or [self.held])
                await auditing.audit_projection(store, audit, report)
                return report
            finally:
                store.close()

        return asyncio.run(run())


async def written(bench: Bench) -> tuple[Anchor, Key]:
    """Publish, ingest, project, sign."""
    grown = bench.tree()
    projector = bench.project()
    bench.ingest(projector, tree=grown)
    signer = bench.signer(grown)

    async def publish(messages: Sequence[tuple[str, bytes]], until: int) -> None:
        await bench.publish(*messages)
        await bench.leaves(until)
        async with asyncio.timeout(20):
            while grown.size < until:
                await asyncio.sleep(0.01)

    first = [message(each) for n in range(66) for each in life(n, f"{WUCHANG},{QINGSHAN}" if n % 3 == 0 else None)]
    await publish(first[:200], SIGNED[0])
    await signer.step()
    conflicting = (first[0][0], submitted(0, at_s=5, districts=f"{WUCHANG},{QINGSHAN}").encode())
    await publish([*first[200:], first[0], conflicting, ("evt.420106.x", b"nonsense")], 597)
    await publish([message(submitted(100 + n)) for n in range(3)], SIGNED[1])
    await signer.step()
    await publish([message(submitted(200 + n)) for n in range(57)], SIZE)
    await signer.step()
    assert await projector.wait_for(SIZE, 20)
    held = await auditing.held(bench.bus, signer.keys.origin)
    key = signer.keys.current
    await bench.stop()
    assert held is not None
    assert key is not None
    return held, key


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory, identities: Identities, mongo_server: MongoServer) -> Iterator[Log]:
    database = "test_tampering"
    mongo_server.permit(database)
    witnesses = {name: Key.make(f"witness.{name}.test", COSIGNATURE) for name in ("a", "b", "c")}

    async def build(nats: NatsServer) -> tuple[Anchor, Key]:
        admin = await Bus.connect(nats.url, name="admin", seed=identities.seed("admin"))
        await streams.apply(admin)
        bus = await Bus.connect(nats.url, name="ledger", seed=identities.seed("ledger"))
        store = Store.connect(mongo_server.uri, database)
        try:
            found = await written(Bench(nats, identities, mongo_server, database, bus, admin, store))
            for size in SIGNED:
                kept = await store.checkpoint(size)
                assert kept is not None
                assert kept.size == size
                for name in ("a", "b"):
                    line = witnesses[name].sign(Note.parse(kept.note).body, 1_800_000_000).line
                    await store.put_cosignature(size, witnesses[name].name, line)
            return found
        finally:
            await bus.drain()
            await admin.drain()
            store.close()

    with NatsServer(tmp_path_factory.mktemp("nats"), identities) as nats:
        held, key = asyncio.run(build(nats))
    words = [f"log {key.verifier.text}", *(f"witness {name} {each.verifier.text}" for name, each in witnesses.items())]
    policy = Policy.parse("\n".join([*words, "group most 2 a b c", "quorum most"]))
    with pymongo.MongoClient[dict[str, Any]](mongo_server.admin_uri) as client:
        documents = {name: list(client[database][name].find()) for name in COLLECTIONS}
        yield Log(mongo_server, database, key, witnesses, policy, held, documents)
        client[database].command("dropAllRolesFromDatabase")
        client.drop_database(database)


@pytest.fixture
def data(log: Log) -> Iterator[Data]:
    """The database, to be spoilt."""
    with pymongo.MongoClient[dict[str, Any]](log.mongo.admin_uri) as client:
        database = client[log.database]
        yield database
        for name, documents in log.documents.items():
            database[name].delete_many({})
            if documents:
                database[name].insert_many(documents)


def found(report: Report) -> list[tuple[str, int | None, str]]:
    return [(each.code, each.index, each.field) for each in report.findings.listed]


def test_nothing_is_found_in_a_log_that_nobody_touched(log: Log) -> None:
    report = log.audit()
    assert found(report) == []
    assert report.kinds == {"conflict": 1, "dup": 1, "event": SIZE - 3, "reject": 1}
    assert (report.leaves, report.checkpoint and report.checkpoint.size) == (SIZE, SIZE)
    assert report.witnessed == (SIZE, ["a", "b"], 1_800_000_000)
    assert report.unchecked == {}
    assert {*report.checked} >= {"leaves", "indexes", "signatures", "witnesses", "rejects", "projections", "tiles"}


def set_fields(index: int, **fields: Any) -> Callable[[Data, Log], object]:
    return lambda data, log: data["events"].update_one({"_id": index}, {"$set": fields})


def unset(index: int, field: str) -> Callable[[Data, Log], object]:
    return lambda data, log: data["events"].update_one({"_id": index}, {"$unset": {field: 1}})


def rewrite(index: int, *, rehash: bool) -> Callable[[Data, Log], object]:
    """Say that somebody else did it."""

    def doing(data: Data, log: Log) -> None:
        held = data["events"].find_one({"_id": index})
        assert held is not None
        bytes_ = held["b"].replace(b"m-li", b"m-wu")
        assert bytes_ != held["b"]
        fields = {"b": bytes_} | ({"h": leaf_hash(bytes_)} if rehash else {})
        data["events"].update_one({"_id": index}, {"$set": fields})

    return doing


def rewrite_leaf(index: int, change: Callable[[dict[str, Any]], object]) -> Callable[[Data, Log], object]:
    """Other bytes, with the hash that belongs to them."""

    def doing(data: Data, log: Log) -> None:
        held = data["events"].find_one({"_id": index})
        assert held is not None
        leaf = orjson.loads(held["b"])
        change(leaf)
        bytes_ = orjson.dumps(leaf, option=orjson.OPT_SORT_KEYS)
        data["events"].update_one({"_id": index}, {"$set": {"b": bytes_, "h": leaf_hash(bytes_)}})

    return doing


def edit_note(size: int, change: Callable[[Checkpoint], Checkpoint], by: str | None) -> Callable[[Data, Log], object]:
    """Another text in the place of a checkpoint: signed by whom it is said, or with the old signature."""

    def doing(data: Data, log: Log) -> None:
        stored = data["checkpoints"].find_one({"_id": size})
        assert stored is not None
        note = Note.parse(stored["note"])
        changed = change(Checkpoint.parse(note.body))
        key = {"log": log.key, "stranger": Key.make(log.key.name)}.get(by or "")
        signed = Note(changed.body).signed([key.sign(changed.body)] if key else note.signatures)
        data["checkpoints"].update_one({"_id": size}, {"$set": {"note": signed.text}})

    return doing


def replace(data: Data, collection: str, id: Any, **fields: Any) -> None:
    assert data[collection].update_one({"_id": id}, {"$set": fields}).matched_count == 1


def tile_changed(data: Data) -> None:
    hashes = data["tiles"].find_one({"_id": "0/1"})
    assert hashes is not None
    replace(data, "tiles", "0/1", h=hashes["h"][:320] + bytes(32) + hashes["h"][352:])


def kept(data: Data, reason: bytes) -> str:
    found = data["rejects"].find_one({"b": reason})
    assert found is not None
    return str(found["_id"])


ROOT = sha256(b"another").digest()
FAULTS: dict[str, tuple[Callable[[Data, Log], object], list[tuple[str, int | None, str]]]] = {
    # a leaf
    "its bytes": (rewrite(302, rehash=False), [("leaf_hash", 302, "h"), ("leaf_changed", 302, "tile/0/001[46]")]),
    "its bytes and hash": (rewrite(302, rehash=True), [("leaf_changed", 302, "tile/0/001[46]")]),
    "its hash": (set_fields(302, h=bytes(32)), [("leaf_hash", 302, "h")]),
    "bytes behind the last full tile": (
        set_fields(600, h=bytes(32)), [("leaf_hash", 600, "h")],
    ),
    # what it is indexed by
    "its kind": (set_fields(302, k="dup"), [("indexed_field", 302, "k")]),
    "its source": (set_fields(302, src=1), [("indexed_field", 302, "src")]),
    "its sequence": (set_fields(302, sseq=90_000), [("indexed_field", 302, "sseq")]),
    "its event's id": (set_fields(302, eid="another"), [("indexed_field", 302, "eid")]),
    "its type": (set_fields(302, ty="cn.paidan.task.closed.v1"), [("indexed_field", 302, "ty")]),
    "its area": (set_fields(302, ar="another"), [("indexed_field", 302, "ar")]),
    "its time": (
        lambda data, log: data["events"].update_one(
            {"_id": 302}, [{"$set": {"et": {"$add": ["$et", timedelta(days=1) // timedelta(milliseconds=1)]}}}]
        ),
        [("indexed_field", 302, "et")],
    ),
    "its districts": (set_fields(302, ds=["420199"]), [("indexed_field", 302, "ds")]),
    "no districts": (unset(302, "ds"), [("indexed_field", 302, "ds")]),
    "the kind of a repeat": (set_fields(DUP, k="conflict"), [("indexed_field", DUP, "k")]),
    "a field more": (set_fields(302, x=1), [("indexed_field", 302, "x")]),
    # leaves taken away
    "the last ones": (
        lambda data, log: data["events"].delete_many({"_id": {"$gte": SIZE - 4}}),
        [("truncated", SIZE, "checkpoint"), ("truncated", SIZE, "KV CHECKPOINTS")],
    ),
    "one in the middle": (lambda data, log: data["events"].delete_one({"_id": 302}), [("index", 302, "_id")]),
    # what follows from leaves
    "a case's state": (
        lambda data, log: replace(data, "proj_cases", request_id(7), state="withdrawn"),
        [("projection", 71, f"{request_id(7)}.state")],
    ),
    "a case": (
        lambda data, log: data["proj_cases"].delete_one({"_id": request_id(7)}),
        [("projection_missing", 71, request_id(7))],
    ),
    "a case that never was": (
        lambda data, log: data["proj_cases"].insert_one({"_id": "ghost", "first": 3, "pos": 3}),
        [("projection_unknown", 3, "ghost")],
    ),
    "a tile": (lambda data, log: tile_changed(data), [("tile", 266, "tile/0/001[10]")]),
    "a tile gone": (lambda data, log: data["tiles"].delete_one({"_id": "0/1"}), [("tile_missing", None, "tile/0/001")]),
    # what was rejected
    "rejected bytes": (
        lambda data, log: replace(data, "rejects", kept(data, b"nonsense"), b=b"innocent"),
        [("reject_changed", REJECT, "rejects")],
    ),
    "rejected bytes gone": (
        lambda data, log: data["rejects"].delete_one({"_id": kept(data, b"nonsense")}),
        [("reject_missing", REJECT, "rejects")],
    ),
    # checkpoints
    "a checkpoint's root": (
        edit_note(200, lambda of: notes.checkpoint(of.origin, of.size, ROOT, of.heads or b""), None),
        [("signature", 200, "note"), ("cosignature", 200, "witness.a.test"), ("cosignature", 200, "witness.b.test")],
    ),
    "a checkpoint signed by a stranger": (
        edit_note(200, lambda of: of, "stranger"), [("signature", 200, "note")],
    ),
    "a checkpoint signed again with a stolen key": (
        edit_note(200, lambda of: notes.checkpoint(of.origin, of.size, ROOT, of.heads or b""), "log"),
        [
            ("checkpoint_root", 200, "root"),
            ("cosignature", 200, "witness.a.test"),
            ("cosignature", 200, "witness.b.test"),
        ],
    ),
    "the districts' counts in a checkpoint": (
        edit_note(200, lambda of: notes.checkpoint(of.origin, of.size, of.root, ROOT), "log"),
        [
            ("checkpoint_heads", 200, "heads"),
            ("cosignature", 200, "witness.a.test"),
            ("cosignature", 200, "witness.b.test"),
        ],
    ),
    "a checkpoint of another size": (
        edit_note(200, lambda of: notes.checkpoint(of.origin, 199, of.root, of.heads or b""), "log"),
        [
            ("checkpoint_form", 200, "size"),
            ("cosignature", 200, "witness.a.test"),
            ("cosignature", 200, "witness.b.test"),
        ],
    ),
    "a checkpoint that is no note": (
        lambda data, log: replace(data, "checkpoints", 200, note="trust me"), [("checkpoint_form", 200, "note")],
    ),
    "every checkpoint": (
        lambda data, log: (data["checkpoints"].delete_many({}), data["cosigs"].delete_many({})),
        [("unsigned", None, ""), ("unwitnessed", None, "most")],
    ),
    "more in a source, signed by nobody": (
        rewrite_leaf(SIZE - 1, lambda leaf: leaf["src"].update(x=1)),
        [("leaf_form", SIZE - 1, "src"), ("root", SIZE, f"[{SIZE - 57}, {SIZE})")],
    ),
    "a time that is none": (
        rewrite_leaf(302, lambda leaf: leaf.update(recorded=f"{leaf['recorded'][:-2]}xZ")),
        [("leaf_form", 302, "recorded"), ("leaf_changed", 302, "tile/0/001[46]")],
    ),
    "another reason for a reject": (
        rewrite_leaf(REJECT, lambda leaf: leaf.update(reason="schema")),
        [("reject_untrue", REJECT, "reason"), ("root", SIGNED[1], "[200, 600)")],
    ),
    "every cosignature of one witness": (
        lambda data, log: data["cosigs"].delete_many({"witness": "witness.b.test"}), [("unwitnessed", SIZE, "most")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_was_changed_in_the_database_is_named(log: Log, data: Data, fault: str) -> None:
    doing, expected = FAULTS[fault]
    doing(data, log)
    report = log.audit()
    assert sorted(found(report), key=str) == sorted(expected, key=str)
    assert all(each.zh and each.en and each.document() for each in report.findings.listed)


def test_bytes_that_are_no_leaf_do_not_end_the_audit(log: Log, data: Data) -> None:
    for index in (302, DUP, REJECT):
        set_fields(index, b=b"{")(data, log)
    said = [(each.code, each.index) for each in log.audit().findings.listed]
    assert {(code, at) for code in ("leaf_unreadable", "leaf_hash") for at in (302, DUP, REJECT)} < {*said}


def test_leaf_and_tile_changed_together_are_found_by_the_checkpoint(log: Log, data: Data) -> None:
    rewrite(302, rehash=True)(data, log)
    changed = data["events"].find_one({"_id": 302})
    tile = data["tiles"].find_one({"_id": "0/1"})
    assert changed
    assert tile
    replace(data, "tiles", "0/1", h=tile["h"][: 46 * 32] + changed["h"] + tile["h"][47 * 32 :])
    assert found(log.audit()) == [("root", SIGNED[1], "[200, 600)")]


def test_an_old_copy_of_the_database_is_behind_what_the_bus_holds(log: Log, data: Data) -> None:
    data["events"].delete_many({"_id": {"$gte": SIGNED[1]}})
    data["checkpoints"].delete_many({"_id": {"$gt": SIGNED[1]}})
    data["cosigs"].delete_many({"size": {"$gt": SIGNED[1]}})
    data["proj_cases"].delete_many({"first": {"$gte": SIGNED[1]}})
    assert found(log.audit()) == [("truncated", SIZE, "KV CHECKPOINTS")]


def test_leaves_that_no_checkpoint_covers_yet_are_said_to_be_so(log: Log, data: Data) -> None:
    data["checkpoints"].delete_one({"_id": SIZE})
    data["cosigs"].delete_many({"size": SIZE})
    report = log.audit()
    assert found(report) == []
    assert report.unchecked == {"tail": "最后的检查点之后的 57 片叶子 / 57 leaves behind the last checkpoint"}


def test_another_history_than_the_witness_saw_is_found_by_both_notes(log: Log) -> None:
    """The log's own key signs for the witness what it does not serve to the auditor."""
    elsewhere = notes.checkpoint(log.key.name, 600, ROOT, ROOT)
    shown = Note(elsewhere.body).signed([log.key.sign(elsewhere.body)])
    report = log.audit(Anchor("https://witness.a.test", shown.text))
    assert found(report) == [("fork", 600, "https://witness.a.test")]
    [fork] = report.findings.listed
    assert (fork.expected, len(fork.found)) == (ROOT, 32)


def test_a_stolen_key_alone_satisfies_nobody(log: Log, data: Data) -> None:
    """With the log's key a whole history can be signed again; the offices' signatures are missing under it."""
    data["cosigs"].delete_many({})
    thief = Key.make("witness.a.test", COSIGNATURE)
    body = Note.parse(data["checkpoints"].find_one({"_id": SIZE})["note"]).body  # type: ignore[index]
    line = thief.sign(body, 1_800_000_000).line
    data["cosigs"].insert_one({"_id": f"{SIZE}/x", "size": SIZE, "witness": "witness.a.test", "line": line})
    assert found(log.audit()) == [("unwitnessed", SIZE, "most")]


def rotation(n: int, old: Key, new: Key) -> tuple[str, bytes]:
    moment = submitted(n).time
    fact = LedgerKeyRotated(old=old.verifier.text, new=new.verifier.text, from_size=n, until=moment, why="a test")
    return message(Envelope(f"rotation-{n}", HUB, NOWHERE, moment, fact, HUB, actor="admin:x"))


async def test_keys_that_follow_each_other_on_record_are_one_log(bench: Bench, tmp_path: Path) -> None:
    """Two rotations: whoever holds any of the three keys can audit all of it; what the record does not cover is no key."""
    keys = [Key(ORIGIN, LOG, bytes([n]) * 32) for n in (1, 2, 3)]
    file, grown = tmp_path / "ledger_signing_key", bench.tree()
    bench.ingest(tree=grown)
    signer = replace_of(bench.signer(grown), keys=Keys(ORIGIN, file))

    async def sign(size: int, now: int, old: int | None = None, until: str = "2000-01-01T00:00:00Z") -> None:
        file.write_text(keys[now].seed.hex())
        if old is not None:
            file.with_name(f"{file.name}_old").write_text(f"{keys[old].seed.hex()} {until}")
        await bench.publish(rotation(size, keys[now], keys[now + 1]) if size in (3, 6) else message(submitted(size)))
        await bench.leaves(size)
        async with asyncio.timeout(20):
            while grown.size < size:
                await asyncio.sleep(0.01)
        await signer.step()
        assert signer.size == size, signer.refusal

    await sign(1, 0)
    await sign(2, 0)
    await sign(3, 0)
    await sign(4, 1, 0, "2100-01-01T00:00:00Z")  # both
    await sign(5, 1, 0)
    await sign(6, 1, 0)
    await sign(7, 2, 1)
    await bench.stop()

    async def audited(*trusted: Key) -> Report:
        policy = Policy(tuple(key.verifier for key in trusted))
        return (await auditing.audit_store(bench.store, policy))[0]

    vkeys = [key.verifier.text for key in keys]
    for n, key in enumerate(keys):
        report = await audited(key)
        assert found(report) == [], n
        assert sorted(report.chained) == sorted({*vkeys} - {vkeys[n]})
        assert report.checkpoint is not None
        assert report.checkpoint.size == 7
    assert (await audited(*keys)).chained == []
    assert {code for code, _, _ in found(await audited(Key.make(ORIGIN)))} == {"signature"}
    with pymongo.MongoClient[dict[str, Any]](bench.mongo.admin_uri) as client:
        checkpoints = client[bench.database]["checkpoints"]
        last = checkpoints.find_one({"_id": 7})
        assert last
        body = Note.parse(last["note"]).body
        # Whoever has a key that was replaced signs what is newer than all that its successors signed.
        checkpoints.update_one({"_id": 7}, {"$set": {"note": Note(body).signed([keys[1].sign(body)]).text}})
        assert found(await audited(keys[0])) == found(await audited(keys[1])) == []
        checkpoints.update_one({"_id": 7}, {"$set": {"note": Note(body).signed([keys[0].sign(body)]).text}})
        assert found(await audited(keys[1])) == [("signature", 7, "note")]
        checkpoints.update_one({"_id": 7}, {"$set": {"note": last["note"]}})
        # The rotation is under no checkpoint of the key that was given: anybody could have written it.
        checkpoints.delete_many({"_id": {"$in": [3, 4]}})
        assert found(await audited(keys[0])) == [("key", None, vkeys[1]), ("key", None, vkeys[2])]


async def test_the_stream_is_asked_whether_gaps_are_gaps_and_samples_the_same(bench: Bench) -> None:
    config = await bench.admin.stream_config("EVENTS")
    assert config is not None
    await bench.admin._api("STREAM.DELETE.EVENTS")
    await bench.admin.apply_stream({**config, "deny_delete": False, "deny_purge": False}, new=True)
    await bench.publish(*[message(submitted(n)) for n in range(8)])
    for lost in (3, 4):
        await bench.admin.delete("EVENTS", lost)
    bench.ingest()
    leaves = [orjson.loads(leaf) for leaf in await bench.leaves(7)]
    assert [leaf["gap"] for leaf in leaves if leaf["kind"] == "gap"] == [{"from": 3, "to": 4}]
    await bench.stop()

    async def compared() -> Report:
        report, audit = await auditing.audit_store(bench.store, Policy())
        await auditing.audit_stream(bench.admin, bench.store, audit, report)
        return report

    honest = await compared()
    assert (found(honest), honest.kinds) == ([], {"event": 6, "gap": 1})
    # Another stream under the same name, in which nothing was lost: the gap is none, and what follows is not what was read.
    await bench.admin._api("STREAM.DELETE.EVENTS")
    await streams.apply(bench.admin)
    await bench.publish(*[message(submitted(n + (n > 5))) for n in range(8)])
    assert [each.code for each in (await compared()).findings.listed] == ["stream"]
    created = (await bench.admin.state()).created
    with pymongo.MongoClient[dict[str, Any]](bench.mongo.admin_uri) as client:
        events = client[bench.database]["events"]
        for document in list(events.find()):
            leaf = orjson.loads(document["b"])
            leaf["src"]["created"] = created
            data = orjson.dumps(leaf, option=orjson.OPT_SORT_KEYS)
            events.update_one({"_id": document["_id"]}, {"$set": {"b": data, "h": leaf_hash(data)}})
    others = [each for each in found(await compared()) if not each[2].endswith(".recorded")]
    assert others == [
        *(
            ("gap_untrue", 2, "gap"),
            ("stream", 6, "8"),
            ("stream", 6, "8.subject"),
            ("stream", 5, "7"),
            ("stream", 5, "7.subject"),
        )
    ]


async def test_facts_that_are_hidden_as_rejects_and_repeats_are_found(bench: Bench) -> None:
    """Whoever writes the log can call a valid fact refused or repeated: bytes and stream say otherwise."""
    first, hidden, repeat = (message(submitted(n)) for n in (1, 2, 3))
    await bench.publish(first, hidden, repeat, first, ("evt.420106.x", b"nonsense"))
    bench.ingest()
    honest = [orjson.loads(leaf) for leaf in await bench.leaves(5)]
    await bench.stop()
    report, audit = await auditing.audit_store(bench.store, Policy())
    await auditing.audit_stream(bench.bus, bench.store, audit, report)
    assert (found(report), report.kinds) == ([], {"dup": 1, "event": 3, "reject": 1})
    common = [{name: leaf[name] for name in ("index", "log", "recorded", "src", "subject", "v")} for leaf in honest]
    digest = sha256(hidden[1]).hexdigest()
    forged = [
        {**common[1], "kind": "reject", "reason": "schema", "digest": digest},
        {**common[2], "kind": "dup", "first": 0, "id": honest[0]["event"]["id"]},
    ]
    with pymongo.MongoClient[dict[str, Any]](bench.mongo.admin_uri) as client:
        data = client[bench.database]
        data["rejects"].insert_one({"_id": digest, "b": hidden[1]})
        for leaf in forged:
            bytes_ = orjson.dumps(leaf, option=orjson.OPT_SORT_KEYS)
            of = {"b": bytes_, "h": leaf_hash(bytes_), "k": leaf["kind"], "src": 0, "sseq": leaf["src"]["seq"]}
            id = {"eid": leaf["id"]} if "id" in leaf else {}
            data["events"].replace_one({"_id": leaf["index"]}, of | id)
    report, audit = await auditing.audit_store(bench.store, Policy())
    assert found(report) == [("reject_untrue", 1, "reason")]
    [untrue] = report.findings.listed
    assert (untrue.expected, untrue.found) == ("event", "schema")
    await auditing.audit_stream(bench.bus, bench.store, audit, report)
    assert found(report)[1:] == [("first", 2, "subject"), ("stream", 2, "3")]


async def test_a_stream_made_anew_is_another_source_and_no_fault_of_the_log(bench: Bench) -> None:
    ingest = bench.ingest()
    await bench.publish(*[message(submitted(n)) for n in range(4)])
    await bench.leaves(4)
    await bench.admin._api("STREAM.DELETE.EVENTS")
    await streams.apply(bench.admin)
    await bench.publish(*[message(submitted(n)) for n in range(6)])
    await bench.leaves(4 + 1 + 6)
    assert ingest.prefix is not None
    report, audit = await auditing.audit_store(bench.store, Policy())
    await auditing.audit_stream(bench.bus, bench.store, audit, report)
    assert (found(report), report.kinds) == ([], {"dup": 4, "event": 6, "reset": 1})


def run(*arguments: str) -> tuple[int, str]:
    """The command, without a process of its own."""
    done = CliRunner().invoke(app, ["ledger", "verify", *arguments])
    return (2, str(done.exception)) if isinstance(done.exception, SetupError) else (done.exit_code, done.stdout)


def test_the_command_says_what_it_found_and_what_it_could_not_look_at(log: Log, data: Data, tmp_path: Path) -> None:
    where = ["--mongodb", log.mongo.admin_uri, "--database", log.database]
    code, said = run(*where, "--vkey", log.key.verifier.text)
    assert (code, said.splitlines()[-1]) == (0, "无误 / nothing is wrong"), said
    assert "他方检查点 / others' checkpoints：未核对" in said
    assert "未核对 / not looked at（没有给出 --policy / no --policy was given）" in said
    set_fields(302, ar="another")(data, log)
    code, said = run(*where, "--json", "--no-projections", "--vkey", log.key.verifier.text)
    document = orjson.loads(said)
    assert (code, document["ok"], document["counts"]) == (1, False, {"indexed_field": 1})
    [finding] = document["findings"]
    assert (finding["code"], finding["index"], finding["field"]) == ("indexed_field", 302, "ar")
    (tmp_path / "other").write_text(Note.parse(log.held.note).text.replace(f"\n{SIZE}\n", f"\n{SIZE + 9}\n"))
    for wrong in (
        ["--mongodb", "mongodb://127.0.0.1:9/?serverSelectionTimeoutMS=300"],
        [*where, "--vkey", "nonsense"],
        [*where, "--policy", str(tmp_path / "none")],
        [*where, "--file", "x"],
        ["--file", str(tmp_path / "none")],
        ["--file", str(tmp_path / "other")],
        ["--dir", str(tmp_path)],
        ["--data", str(tmp_path)],
    ):
        code, said = run(*wrong)
        assert (code, len(said.splitlines())) == (2, 1), (wrong, said)
