"""The audit finds what was changed and names it, and raises no false alarm: documents as the store has them, made without it."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from typing import Any

import orjson
import pytest

from services.ledger.audit.findings import Finding
from services.ledger.audit.verifying import Audit
from services.ledger.log import heads, leaves, notes
from services.ledger.log.leaves import Leaf, Prefix, Read
from services.ledger.log.notes import Checkpoint
from services.ledger.log.tree import Edge, Tile, Tiles, leaf_hash
from services.ledger.store import Store, document_of
from shared.bus import Delivery
from tests.ledger.examples import QINGSHAN, WUCHANG, life, message, request_id, submitted

LOG = "paidan.test/main/1"
CREATED = "2026-11-22T01:00:00.000000001Z"
RECORDED_NS = 1_795_309_323_456_789_012
DAY_NS = 86_400_000_000_000
Document = dict[str, Any]


def stream(requests: int, step_ns: int = 1_000_000) -> Iterator[Delivery]:
    """Lives of requests, one after the other; every third is shared by two districts."""
    sequence = 0
    for n in range(requests):
        for envelope in life(n, f"{WUCHANG},{QINGSHAN}" if n % 3 == 0 else None):
            sequence += 1
            yield Delivery(sequence, RECORDED_NS + sequence * step_ns, *message(envelope))


def made(deliveries: Iterator[Delivery] | list[Delivery], prefix: Prefix | None = None) -> Iterator[Leaf]:
    prefix = prefix or Prefix(LOG, created=CREATED)
    source = iter(deliveries)
    for batch in iter(lambda: list(itertools.islice(source, 1000)), []):
        yield from leaves.extend(prefix, map(leaves.read, batch), {})


def copies(requests: int, step_ns: int) -> Iterator[Read]:
    """The life of one request again and again under other ids, as `leaves.read` gives it, ten times as fast."""
    life_ = list(stream(1))
    read = [leaves.read(delivery) for delivery in life_]
    sequence = 0
    for n in range(requests):
        case = f"{n:08x}" + request_id(0)[8:]
        for delivery, message_ in zip(life_, read, strict=True):
            assert message_.envelope is not None
            sequence += 1
            id = f"{n:08x}" + message_.envelope.id[8:]
            data = delivery.data.replace(message_.envelope.id.encode(), id.encode())
            data = data.replace(request_id(0).encode(), case.encode())
            subject = delivery.subject.replace(request_id(0), case)
            envelope = replace(message_.envelope, id=id, case=case)
            yield message_._replace(
                delivery=Delivery(sequence, RECORDED_NS + sequence * step_ns, subject, data), envelope=envelope
            )


def documents(of: Iterator[Leaf] | list[Leaf]) -> Iterator[Document]:
    """As they are read from the store: whole milliseconds, no zone, lists."""
    for leaf in of:
        document = dict(document_of(leaf))
        if "et" in document:
            document["et"] = document["et"].replace(tzinfo=None)
        if "ds" in document:
            document["ds"] = list(document["ds"])
        yield document


def trouble() -> list[Leaf]:
    """A log with every kind of leaf in it."""
    some = list(stream(3, DAY_NS // 10))
    subject, data = some[0].subject, some[0].data
    end = some[-1].sequence
    more = [
        Delivery(end + 1, some[-1].recorded_ns + 5, subject, data),
        Delivery(end + 2, some[-1].recorded_ns + 3, subject, submitted(0, at_s=5).encode()),
        Delivery(end + 3, some[-1].recorded_ns + 9, "evt.420106.x", b"nonsense"),
        Delivery(end + 9, some[-1].recorded_ns + 9, *message(submitted(77))),
    ]
    prefix = Prefix(LOG, created=CREATED)
    found = leaves.extend(prefix, map(leaves.read, some), {})
    known = {leaf.event_id: leaves.first(leaf.data) for leaf in found if leaf.kind == "event" and leaf.event_id}
    found += leaves.extend(prefix, map(leaves.read, more), known)
    found += leaves.reset(prefix, created="2027-01-01T00:00:00Z", after=0)
    later = [Delivery(n, found[-1].index + RECORDED_NS + n, *message(submitted(100 + n))) for n in (1, 2, 4)]
    return found + leaves.extend(prefix, map(leaves.read, later), {})


def entry(document: Document) -> tuple[int, bytes, bytes | None]:
    """As an audit reads it."""
    fields = {name: value for name, value in document.items() if name not in ("_id", "b")}
    return document["_id"], document["b"], Store.pack(fields) if fields else None


def audit(
    of: list[Document],
    *checkpoints: Checkpoint,
    tiles: dict[tuple[int, int], bytes] | None = None,
    canonical: bool = True,
) -> list[Finding]:
    found = Audit(LOG, canonical=canonical, fields=Store)
    due = max((checkpoint.size for checkpoint in checkpoints), default=0)
    found.expect(checkpoints, tiles, due if tiles else 0)
    for n in range(0, len(of), 700):
        found.take(map(entry, of[n : n + 700]))
    found.end()
    return found.findings.listed


def signed(of: list[Leaf], size: int) -> Checkpoint:
    """The checkpoint that an honest log signs."""
    edge = Edge()
    edge.extend(leaf.hash for leaf in of[:size])
    scopes: dict[str, tuple[int, int]] = {}
    for leaf in of[:size]:
        for district in leaf.districts:
            scopes[district] = scopes.get(district, (0, 0))[0] + 1, leaf.index
    return notes.checkpoint(LOG, size, edge.root(), heads.root(scopes))


def tiles_of(of: list[Leaf]) -> dict[tuple[int, int], bytes]:
    return {(tile.level, tile.number): data for tile, data in Tiles().append(leaf.hash for leaf in of)}


LOG_OF_700 = list(made(stream(78)))
TROUBLE = trouble()


def test_a_log_with_every_kind_of_leaf_raises_no_alarm() -> None:
    assert {leaf.kind for leaf in TROUBLE} == {*leaves.KINDS}
    assert audit(list(documents(TROUBLE)), *(signed(TROUBLE, size) for size in range(1, len(TROUBLE) + 1))) == []


def test_bare_leaves_and_stored_documents_give_the_same() -> None:
    for documents_ in ([{"_id": leaf.index, "b": leaf.data} for leaf in TROUBLE], list(documents(TROUBLE))):
        assert audit(documents_, signed(TROUBLE, len(TROUBLE))) == []


@pytest.mark.parametrize("many", [100_000, pytest.param(1_000_000, marks=[pytest.mark.soak, pytest.mark.timeout(900)])])
def test_clean_facts_raise_no_alarm(many: int) -> None:
    found, tree = Audit(LOG, canonical=True, fields=Store), Tiles()
    scopes: dict[str, tuple[int, int]] = {}
    # 40 days and several multiples of 65,536: heads of both sorts.
    facts, prefix = copies(many // 9 + 1, 40 * DAY_NS // many), Prefix(LOG, created=CREATED)
    for read in iter(lambda: list(itertools.islice(facts, 5000)), []):
        batch = leaves.extend(prefix, read, {})
        full = tree.append(leaf.hash for leaf in batch)
        for leaf in batch:
            for district in leaf.districts:
                scopes[district] = scopes.get(district, (0, 0))[0] + 1, leaf.index
        checkpoint = notes.checkpoint(LOG, tree.size, tree.root(), heads.root(scopes))
        found.expect([checkpoint], {(tile.level, tile.number): data for tile, data in full}, tree.size)
        found.take(map(entry, documents(batch)))
    found.end()
    assert found.findings.listed == []
    assert found.kinds["event"] >= many
    assert found.kinds["heads"] >= 40 + many // 65_536


def changed(index: int, **fields: Any) -> Callable[[list[Document]], None]:
    def change(of: list[Document]) -> None:
        of[index].update(fields)

    return change


def rewritten(index: int, change: Callable[[Any], Any], *, rehash: bool = True) -> Callable[[list[Document]], None]:
    """Another leaf in the place of one, with a hash and index fields that fit."""

    def rewrite(of: list[Document]) -> None:
        leaf = orjson.loads(of[index]["b"])
        change(leaf)
        of[index]["b"] = orjson.dumps(leaf, option=orjson.OPT_SORT_KEYS)
        if rehash:
            of[index]["h"] = leaf_hash(of[index]["b"])

    return rewrite


def without(field: str, index: int) -> Callable[[list[Document]], None]:
    return lambda of: of[index].pop(field)


LATER = datetime(2026, 11, 22, 1, 2, 4, 457000)  # noqa: DTZ001 - as the store gives it
TAMPERING: dict[str, tuple[Callable[[list[Document]], Any], str, int, str]] = {
    "leaf_bytes": (rewritten(300, lambda leaf: leaf["event"].update(actor="member:x"), rehash=False), "leaf_hash", 300, "h"),
    "hash": (changed(300, h=bytes(32)), "leaf_hash", 300, "h"),
    "kind": (changed(300, k="dup"), "indexed_field", 300, "k"),
    "epoch": (changed(300, src=1), "indexed_field", 300, "src"),
    "sequence": (changed(300, sseq=9), "indexed_field", 300, "sseq"),
    "sequence_gone": (without("sseq", 300), "indexed_field", 300, "sseq"),
    "event_id": (changed(300, eid="x"), "indexed_field", 300, "eid"),
    "type": (changed(300, ty="cn.paidan.task.done.v1"), "indexed_field", 300, "ty"),
    "area": (changed(300, ar="y"), "indexed_field", 300, "ar"),
    "time": (changed(300, et=LATER), "indexed_field", 300, "et"),
    "case": (changed(300, case="x"), "indexed_field", 300, "case"),
    "case_gone": (without("case", 300), "indexed_field", 300, "case"),
    "districts": (changed(300, ds=[QINGSHAN]), "indexed_field", 300, "ds"),
    "districts_gone": (without("ds", 300), "indexed_field", 300, "ds"),
    "a_field_more": (changed(300, zz=1), "indexed_field", 300, "zz"),
    "ordinal_of_a_district": (
        rewritten(300, lambda leaf: leaf["scopes"][0].update(n=7)), "scope_ordinal", 300, WUCHANG,
    ),
    "ordinal_of_a_case": (rewritten(300, lambda leaf: leaf["case"].update(n=7)), "case_ordinal", 300, request_id(33)),
    "district_added": (
        rewritten(301, lambda leaf: leaf["scopes"].append({"d": "420111", "n": 1})), "scopes", 301, "scopes",
    ),
    "late": (rewritten(300, lambda leaf: leaf.update(late=True)), "late", 300, "late"),
    "recorded_earlier": (
        rewritten(300, lambda leaf: leaf.update(recorded="2026-11-22T00:00:00.000000000Z")), "late", 300, "late",
    ),
    "recorded_no_time": (
        rewritten(300, lambda leaf: leaf.update(recorded=f"{leaf['recorded'][:20]}12345678xZ")), "leaf_form", 300, "recorded",
    ),
    "recorded_in_no_year": (
        rewritten(300, lambda leaf: leaf.update(recorded=f"x{leaf['recorded'][1:]}")), "leaf_form", 300, "recorded",
    ),
    "more_in_the_source": (rewritten(300, lambda leaf: leaf["src"].update(x=1)), "leaf_form", 300, "src"),
    "more_in_a_scope": (rewritten(300, lambda leaf: leaf["scopes"][0].update(x=1)), "leaf_form", 300, "scopes"),
    "more_in_the_case": (rewritten(300, lambda leaf: leaf["case"].update(x=1)), "leaf_form", 300, "case"),
    "an_ordinal_that_is_true": (rewritten(0, lambda leaf: leaf["case"].update(n=True)), "leaf_form", 0, "case"),
    "a_part_more": (rewritten(300, lambda leaf: leaf.update(zz=1)), "leaf_form", 300, "zz"),
    "log": (rewritten(300, lambda leaf: leaf.update(log="paidan.test/main/2")), "leaf_form", 300, "log"),
    "version": (rewritten(300, lambda leaf: leaf.update(v="paidan/leaf/2")), "leaf_form", 300, "v"),
    "index": (rewritten(300, lambda leaf: leaf.update(index=9)), "leaf_form", 300, "index"),
    "source": (rewritten(300, lambda leaf: leaf["src"].update(created="x")), "source", 300, "created"),
    "source_sequence": (rewritten(300, lambda leaf: leaf["src"].update(seq=9)), "sequence", 300, "src.seq"),
    "not_json": (changed(300, b=b"{"), "leaf_unreadable", 300, "JSONDecodeError"),
    "one_withheld": (lambda of: of.pop(300), "index", 300, "_id"),
}  # fmt: skip


@pytest.mark.parametrize("what", TAMPERING)
def test_what_was_changed_is_named(what: str) -> None:
    change, code, index, field = TAMPERING[what]
    of = list(documents(LOG_OF_700))
    change(of)
    found = audit(of, signed(LOG_OF_700, 700), tiles=tiles_of(LOG_OF_700))
    assert any((each.code, each.index) == (code, index) and field in each.field for each in found), found
    others = [each for each in found if each.index not in (index, 700)]
    assert others == [] or what in ("source_sequence", "recorded_earlier"), others
    assert all(each.zh and each.en for each in found)


def test_a_leaf_rewritten_with_all_that_belongs_to_it_is_named_by_tile_and_checkpoint() -> None:
    of = list(documents(LOG_OF_700))
    rewritten(300, lambda leaf: leaf["event"].update(actor="member:x"))(of)
    found = audit(of, signed(LOG_OF_700, 650), signed(LOG_OF_700, 700), tiles=tiles_of(LOG_OF_700))
    assert [(each.code, each.index) for each in found] == [("leaf_changed", 300)]
    assert found[0].field == "tile/0/001[44]"


def test_a_corrupt_tile_is_told_from_a_changed_leaf() -> None:
    tiles = tiles_of(LOG_OF_700)
    tiles[0, 1] = tiles[0, 1][:64] + bytes(32) + tiles[0, 1][96:]
    found = audit(list(documents(LOG_OF_700)), signed(LOG_OF_700, 700), tiles=tiles)
    assert [(each.code, each.index, each.field) for each in found] == [("tile", 258, "tile/0/001[2]")]


def test_a_missing_tile_is_named() -> None:
    tiles = tiles_of(LOG_OF_700)
    del tiles[0, 1]
    found = audit(list(documents(LOG_OF_700)), signed(LOG_OF_700, 700), tiles=tiles)
    assert [(each.code, each.field) for each in found] == [("tile_missing", Tile(0, 1).path)]


def test_without_tiles_the_checkpoints_say_between_which_leaves() -> None:
    of = list(documents(LOG_OF_700))
    rewritten(300, lambda leaf: leaf["event"].update(actor="member:x"))(of)
    found = audit(of, *(signed(LOG_OF_700, size) for size in (200, 290, 400, 700)))
    assert [(each.code, each.index, each.field) for each in found if each.code == "root"] == [
        ("root", 400, "[290, 400)")
    ]


def test_the_last_leaves_taken_away_are_missed() -> None:
    found = audit(list(documents(LOG_OF_700))[:-5], signed(LOG_OF_700, 700))
    assert [(each.code, each.expected, each.found) for each in found] == [("truncated", 700, len(LOG_OF_700) - 5)]


def test_a_checkpoint_that_was_edited_is_told_from_leaves_that_were() -> None:
    wrong = notes.checkpoint(LOG, 300, sha256(b"x").digest(), heads.root({}))
    found = audit(list(documents(LOG_OF_700)), wrong, signed(LOG_OF_700, 700))
    assert [(each.code, each.index) for each in found] == [("checkpoint_heads", 300), ("checkpoint_root", 300)]


def test_heads_that_lie_are_found() -> None:
    index = next(leaf.index for leaf in TROUBLE if leaf.kind == "heads")
    of = list(documents(TROUBLE))
    rewritten(index, lambda leaf: leaf["heads"].update(root=bytes(32).hex()))(of)
    assert [(each.code, each.index) for each in audit(of)] == [("heads_root", index)]


def test_a_log_without_its_heads_is_found() -> None:
    prefix = Prefix(LOG, created=CREATED)
    due = [Delivery(n, RECORDED_NS + n * DAY_NS, *message(submitted(n))) for n in (1, 2)]
    [first] = leaves.extend(prefix, [leaves.read(due[0])], {})
    prefix.newest_ns += DAY_NS
    [second] = leaves.extend(prefix, [leaves.read(due[1])], {})
    assert [(each.code, each.index) for each in audit(list(documents([first, second])))] == [("heads_missing", 1)]


def test_a_repeat_that_points_elsewhere_is_found() -> None:
    index = next(leaf.index for leaf in TROUBLE if leaf.kind == "dup")
    of = list(documents(TROUBLE))
    rewritten(index, lambda leaf: leaf.update(first=3))(of)
    assert [(each.code, each.index) for each in audit(of)] == [("first", index)]


def test_a_fact_that_counts_twice_is_found() -> None:
    twice = [Delivery(n, RECORDED_NS + n, *message(submitted(1))) for n in (1, 2)]
    prefix = Prefix(LOG, created=CREATED)
    of = [leaf for each in twice for leaf in leaves.extend(prefix, [leaves.read(each)], {})]
    assert [(each.code, each.index, each.expected) for each in audit(list(documents(of)))] == [("event_twice", 1, 0)]


@pytest.mark.parametrize(
    "event",
    [
        {"extra": 1.5},
        {"extra": {"a": 1.0}},
        {"data": {"a": 1.5}},
        {"data": {"a": 2**53}},
        {"data": {"a": {"b": [1.0]}}},
        {"data": {"\U0001f600": "a"}},
    ],
)
def test_what_other_readers_would_read_otherwise_is_not_canonical(event: Any) -> None:
    of = list(documents(LOG_OF_700[:3]))
    rewritten(1, lambda leaf: leaf["event"].update(event))(of)
    assert ("not_canonical", 1) in [(each.code, each.index) for each in audit(of)]
