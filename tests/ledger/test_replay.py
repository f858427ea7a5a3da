"""A replay says what it is, and whoever reads it can tell whether it is all of it."""

import zlib
from base64 import b64decode
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.ledger import replay
from services.ledger.audit.receiving import IncompleteError, Received, whole_lines
from services.ledger.events import zipped
from services.ledger.log import heads, notes, tree
from services.ledger.losses import Losses
from services.ledger.pinning import Pin, pin, size_at
from services.ledger.proving import Proofs
from services.ledger.replay import Cursors, Replay, lines, scopes_of
from services.ledger.store import Selection
from shared.errors import RefusedError
from shared.facts import HUB, AgreementSet, AreaSet
from shared.ids import new_id
from tests.examples import AGREEMENT, REGISTER
from tests.ledger.conftest import Bench
from tests.ledger.examples import HONGSHAN, NOW, QINGSHAN, WUCHANG, event, life, request_id
from tests.ledger.memory import ORIGIN, RECORDED_NS, Memory

CURSORS = Cursors(b"a key")
SHARED = f"{WUCHANG},{QINGSHAN}"
AREA = "xinxiang-7k"


def filled(cases: int = 4) -> Memory:
    """Cases of Wuchang, every other one shared with Qingshan, and a message that is no fact."""
    log = Memory()
    for n in range(cases):
        log.add(*life(n, SHARED if n % 2 else None))
    log.add(("evt.420106.x", b"nonsense"))
    return log


async def pinned(log: Memory, selection: Selection | None = None, **more: Any) -> Replay:
    found = await pin(log, None)
    return replace(Replay(ORIGIN, selection or Selection(), found.size, note=found.note), **more)


async def whole(
    log: Memory, asked: Replay, format: replay.Format = "ndjson", proofs: Proofs | None = None
) -> list[bytes]:
    """Its lines."""
    return b"".join([chunk async for chunk in lines(log, asked, CURSORS, format, proofs)]).splitlines()


def received(of: list[bytes]) -> Received:
    """Read as a careful reader does."""
    found = Received(of[0])
    found.take(of[1:])
    found.end()
    return found


def signed(log: Memory, key: notes.Key | None = None) -> None:
    """A checkpoint as the signer writes it."""
    edge = tree.Edge()
    edge.extend(leaf.hash for leaf in log.leaves)
    scopes: dict[str, tuple[int, int]] = {}
    for leaf in log.leaves:
        for district in leaf.districts:
            scopes[district] = scopes.get(district, (0, 0))[0] + 1, leaf.index
    body = notes.checkpoint(ORIGIN, edge.size, edge.root(), heads.root(scopes)).body
    key = key or notes.Key.make(ORIGIN)
    log.sign(notes.Note(body, (key.sign(body),)).text)


# --- pinned -----------------------------------------------------------------------------------------------------------


async def test_who_goes_on_next_week_gets_the_same_bytes_while_the_log_has_grown() -> None:
    log = filled()
    signed(log)
    asked = await pinned(log, Selection(scopes=scopes_of(QINGSHAN), kinds=("event",)))
    at_once = await whole(log, asked)
    first = await whole(log, replace(asked, limit=7))
    log.add(*life(9, SHARED))
    signed(log)
    cursor = orjson.loads(first[-1])["next"]
    question = Replay(ORIGIN, asked.selection, size=0)
    rest = await whole(log, replace(question.resumed(CURSORS, cursor), note=asked.note))
    assert first[1:-1] + rest[1:-1] == at_once[1:-1]
    assert orjson.loads(rest[0])["size"] == len(log.leaves) - 9
    interrupted = question.resumed(CURSORS, orjson.loads(at_once[0])["cursor"])  # no last line came: by the first one
    assert (await whole(log, replace(interrupted, since=orjson.loads(first[-2])["s"] + 1)))[1:-1] == rest[1:-1]


async def test_a_cursor_is_good_for_its_own_question_only() -> None:
    log = filled()
    asked = await pinned(log, Selection(kinds=("event",)))
    cursor = asked.cursor(CURSORS, 3)
    for other in (
        replace(asked, selection=Selection(kinds=("event",), district=WUCHANG)),
        replace(asked, log="another/log/1"),
        replace(asked, to=5),
    ):
        with pytest.raises(RefusedError, match="bad_cursor"):
            other.resumed(CURSORS, cursor)
    with pytest.raises(RefusedError, match="bad_cursor"):
        asked.resumed(Cursors(b"another key"), cursor)


@settings(max_examples=60, deadline=None)
@given(
    of=st.sampled_from([None, QINGSHAN, WUCHANG, HONGSHAN]),
    area=st.sampled_from([None, AREA, "elsewhere"]),
    types=st.sampled_from([None, ("cn.paidan.task.offered.v1",)]),
    kinds=st.sampled_from([None, ("event",), ("reject",)]),
    limits=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    chunk=st.integers(1, 12),
    since=st.integers(0, 40),
    to=st.none() | st.integers(0, 60),
)
async def test_a_replay_in_pages_is_the_whole_one(
    of: str | None,
    area: str | None,
    types: tuple[str, ...] | None,
    kinds: tuple[str, ...] | None,
    limits: list[int],
    chunk: int,
    since: int,
    to: int | None,
) -> None:
    log = filled()
    selection = Selection(scopes=scopes_of(of) if of else None, area=area, types=types, kinds=kinds)
    question = Replay(ORIGIN, selection, 0, since=since, to=to)
    asked = replace(question, size=len(log.leaves))
    at_once = await whole(log, asked)
    received(at_once)
    assert orjson.loads(at_once[-1])["count"] == len(at_once) - 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "CHUNK", chunk)
        pages, n = await whole(log, replace(asked, limit=limits[0])), 1
        seen = pages[1:-1]
        while cursor := orjson.loads(pages[-1])["next"]:
            log.add(*life(100 + n))
            pages = await whole(log, replace(question.resumed(CURSORS, cursor), limit=limits[n % len(limits)]))
            received(pages)
            seen, n = seen + pages[1:-1], n + 1
    assert seen == at_once[1:-1]


async def test_as_of_is_a_signed_size_or_a_moment_or_now() -> None:
    log = filled(1)
    assert await pin(log, None) == Pin(10)  # nothing is signed: the size alone
    assert (await pin(log, "4")).size == 4
    log.sign()
    log.add(*life(7))
    log.sign()
    assert (await pin(log, None), await pin(log, "10")) == (Pin(19, "note of 19"), Pin(10, "note of 10"))
    between = datetime.fromtimestamp(RECORDED_NS // 1000 / 1e6 + 0.012_5, UTC)
    assert await pin(log, between.isoformat()) == Pin(10, "note of 10")
    assert await size_at(log, between.isoformat()) == 12
    assert await size_at(log, (between - timedelta(days=1)).isoformat()) == 0
    for wrong, code in (("12", "no_checkpoint"), ("2020-01-01T00:00:00Z", "no_checkpoint"), ("yesterday", "invalid")):
        with pytest.raises(RefusedError, match=code):
            await pin(log, wrong)
    with pytest.raises(RefusedError, match="invalid"):
        await pin(log, "2026-11-22T08:00:00")


# --- complete ---------------------------------------------------------------------------------------------------------


async def test_a_replay_of_the_whole_log_gives_the_root_that_was_signed() -> None:
    log = filled()
    signed(log)
    found = await whole(log, await pinned(log))
    assert received(found).rooted
    for broken, says in (
        (found[:-1], "no last line"),
        ([*found[:5], *found[6:]], "leaf 4 is missing"),
        ([*found[:5], found[5].replace(b"420106", b"420107", 1), *found[6:]], "root"),
        ([*found[:-2], found[-1]], "last line does not agree"),
        ([*found, found[-1]], "behind the last line"),
        ([found[0].replace(b'"size":37', b'"size":36'), *found[1:]], "checkpoint"),
    ):
        with pytest.raises(IncompleteError, match=says):
            received(broken)


def headless(line: bytes, heads: dict[str, Any] | None = None) -> bytes:
    """A header that does not say where anything ends, nor how much of what is to come."""
    return orjson.dumps(orjson.loads(line) | {"heads": heads or {}, "expected": 17}, option=orjson.OPT_SORT_KEYS)


async def test_all_events_of_all_districts_give_the_root_of_their_counts() -> None:
    log = filled()
    signed(log)
    asked = await pinned(log, Selection(kinds=("event",)))
    proved = await whole(log, asked, proofs=Proofs(partial(tile_of, log), asked.size, "tiles"))
    assert received(proved).unproved is None
    found = await whole(log, asked)
    assert (why := received(found).unproved) is not None
    assert "without their proofs" in why.en
    for broken in ([*found[:5], *found[6:-1]], found[:-2]):
        last = orjson.dumps({"count": len(broken) - 1, "end": True, "next": None})
        with pytest.raises(IncompleteError, match="is due|counts should be"):
            received([found[0].replace(b'"expected":36', b'"expected":35'), *broken[1:], last])


@pytest.mark.parametrize(
    "line", [b"5", b"[]", b"null", b'{"s":true,"leaf":{}}', b'{"s":1,"leaf":5}', b'{"tile":3,"h":""}', b"[" * 9000]
)
async def test_a_line_that_makes_no_sense_is_said_to_be_one(line: bytes) -> None:
    found = await whole(filled(), await pinned(filled(), Selection(kinds=("event",))))
    with pytest.raises(IncompleteError):
        received([found[0], line, *found[1:]])


@pytest.mark.parametrize(
    "change", [{"heads": [1]}, {"filter": [1]}, {"size": "9"}, {"filter": {"scopes": []}}, {"checkpoint": 5}]
)
async def test_a_header_that_makes_no_sense_is_none(change: dict[str, Any]) -> None:
    found = await whole(filled(), await pinned(filled()))
    with pytest.raises(IncompleteError, match="not that of a replay"):
        Received(orjson.dumps(orjson.loads(found[0]) | change))


def test_lines_are_whole_and_none_is_without_end() -> None:
    assert [*whole_lines([b"a\nb", b"c\n", b"d"])] == [b"a\n", b"bc\n", b"d"]
    with pytest.raises(IncompleteError):
        list(whole_lines([b"x" * 65536] * 9))


async def test_what_is_withheld_from_a_district_is_missed_even_at_its_end() -> None:
    log = filled()
    signed(log)
    found = await whole(log, await pinned(log, Selection(scopes=scopes_of(QINGSHAN), kinds=("event",))))
    assert received(found).lines == 18
    one_less = orjson.dumps({"count": 17, "end": True, "next": None})
    claims = found[0].replace(b'"420107":18', b'"420107":17')
    for broken, says in (
        ([*found[:5], *found[6:-1], one_less], "420107 was withheld: number 5 is due"),
        ([*found[:-2], one_less], "number 18 is due, and .*the last line follows"),
        ([claims, *found[1:-2], one_less], "number 18 is due"),
        ([claims.replace(b'"n":18', b'"n":17'), *found[1:-2], one_less], "checkpoint"),
        ([headless(found[0]), *found[1:-2], one_less], "heads.420107|heads.000000"),
        ([headless(found[0], {QINGSHAN: None, HUB: None}), *found[1:-2], one_less], "heads.420107"),
    ):
        with pytest.raises(IncompleteError, match=says):
            received(broken)


async def test_what_an_ended_agreement_closed_is_listed_and_not_shown() -> None:
    log = filled()
    log.add(event(next(fact for fact in REGISTER if isinstance(fact, AreaSet)), id=new_id(), district=HUB))
    signed(log)
    selection = Selection(scopes=scopes_of(QINGSHAN), kinds=("event",), lost=(AREA,))
    found = await whole(log, await pinned(log, selection))
    got = received(found)
    assert (got.lines, got.withheld, got.header["expected"]) == (19, 18, {QINGSHAN: 18, HUB: 1})
    line = orjson.loads(found[1])
    leaf = log.leaves[line["s"]]
    assert line == {"s": leaf.index, "withheld": True, "d": QINGSHAN, "n": 1, "hash": leaf.hash.hex()}
    assert b"".join(found[1:]).count(b"task.") == 0
    narrower = await whole(log, await pinned(log, replace(selection, area=AREA)))
    assert (
        received(narrower).lines == orjson.loads(narrower[0])["expected"] == 1
    )  # the public fact; of the rest not a word


async def test_neither_midnight_nor_a_new_agreement_changes_what_a_replay_has_withheld() -> None:
    log = filled()
    facts = (*(fact for fact in REGISTER if isinstance(fact, AreaSet)), AGREEMENT)
    ends = {"valid_to": date(2026, 11, 22)}
    told = [fact.model_copy(update=ends) if isinstance(fact, AgreementSet) else fact for fact in facts]
    log.add(*(event(fact, id=new_id(), district=HUB, area="-") for fact in told))
    losses, size = Losses(log), len(log.leaves)
    before, after = int(NOW.timestamp()), int((NOW + timedelta(days=1)).timestamp())
    assert await losses.lost(QINGSHAN, size=size, at_s=before) == ()
    assert await losses.lost(QINGSHAN, size=size, at_s=after) == (AREA,)
    log.add(event(AGREEMENT.model_copy(update={"valid_to": None}), id=new_id(), district=HUB, area="-"))
    assert await losses.lost(QINGSHAN, size=len(log.leaves), at_s=after) == ()
    assert await losses.lost(QINGSHAN, size=size, at_s=after) == (AREA,)
    assert await losses.lost(QINGSHAN, size=size, at_s=before) == ()


async def tile_of(log: Memory, wanted: tree.Tile) -> bytes:
    """A tile as the tree of the log has it."""
    growing = tree.Tiles()
    full = dict(growing.append([leaf.hash for leaf in log.leaves]))
    return (growing.tile(wanted) or full[wanted._replace(width=256)])[: wanted.width * 32]


@pytest.mark.parametrize("of", [None, QINGSHAN])
async def test_each_leaf_comes_with_its_proof_where_it_is_asked_for(of: str | None) -> None:
    log = filled()
    signed(log)
    selection = Selection(scopes=scopes_of(of), kinds=("event",), lost=(AREA,)) if of else Selection()
    asked = await pinned(log, selection)
    found = await whole(log, asked, proofs=Proofs(partial(tile_of, log), asked.size, "each"))
    assert received(found).lines == len(found) - 2
    line = orjson.loads(found[4])
    other = found[4].replace(line["proof"][0].encode(), line["proof"][1].encode())
    with pytest.raises(IncompleteError, match="not under this root"):
        received([*found[:4], other, *found[5:]])


async def test_tiles_that_come_along_prove_every_leaf() -> None:
    log = filled(70)
    signed(log)
    asked = await pinned(log, Selection(scopes=scopes_of(QINGSHAN), kinds=("event",)))
    found = await whole(log, asked, proofs=Proofs(partial(tile_of, log), asked.size, "tiles"))
    got = received(found)
    documents = [orjson.loads(line) for line in found]
    tiles = {tree.Tile.parse(each["tile"]): b64decode(each["h"]) for each in documents if "tile" in each}
    assert len(tiles) == 4  # each once: three of the leaves and the one above

    async def read(wanted: tree.Tile) -> bytes:
        return tiles[wanted]

    root = notes.Checkpoint.parse(notes.Note.parse(got.header["checkpoint"]).body).root
    for each in documents:
        if "leaf" in each:
            hashes = await tree.inclusion(read, each["s"], asked.size)
            tree.verify_inclusion(log.leaves[each["s"]].hash, each["s"], asked.size, hashes, root)


# --- as it is sent ----------------------------------------------------------------------------------------------------


async def test_server_sent_events_carry_the_index_and_the_same_lines() -> None:
    log = filled()
    asked = await pinned(log, Selection(district=QINGSHAN, kinds=("event",)))
    plain, sent = await whole(log, asked), await whole(log, asked, "sse")
    data = [line.removeprefix(b"data: ") for line in sent if line.startswith(b"data: ")]
    ids = [int(line.removeprefix(b"id: ")) for line in sent if line.startswith(b"id: ")]
    assert data == plain
    assert ids == [orjson.loads(line)["s"] for line in plain[1:-1]]
    assert [line for line in sent if line.startswith(b"event: ")] == [b"event: replay", b"event: end"]


async def test_zipped_chunks_can_be_read_one_by_one() -> None:
    log = filled()
    asked = await pinned(log)
    reading = zlib.decompressobj(wbits=31)
    parts = [reading.decompress(chunk) async for chunk in zipped(lines(log, asked, CURSORS))]
    assert parts[0].endswith(b"}\n")
    assert b"".join(parts).splitlines() == await whole(log, asked)


# --- the store answers as the log in memory does ----------------------------------------------------------------------


async def test_the_store_chooses_and_counts_as_the_tests_of_this_file_suppose(
    bench: Bench,
) -> None:
    log, store = filled(), bench.store
    await store.prepare()
    await store.append(log.leaves)
    minute = timedelta(seconds=1)
    for asked in (
        Selection(),
        Selection(scopes=scopes_of(QINGSHAN), kinds=("event",), lost=(AREA,)),
        Selection(scopes=scopes_of(WUCHANG), kinds=("event",), lost=(AREA,)),
        Selection(time_from=NOW, time_to=NOW + minute, kinds=("event",)),
        Selection(time_from=NOW + minute),
        Selection(request=request_id(1), scopes=scopes_of(QINGSHAN)),
        Selection(kinds=("reject",)),
    ):
        found = await store.read(asked, 3, 30, 100)
        assert found == await log.read(asked, 3, 30, 100)
        for limit in (None, 5):
            chunks = [chunk async for chunk in store.chunks(asked, 3, 30, limit, 4)]
            assert [leaf for chunk in chunks for leaf in chunk] == found[:limit]
            assert all(0 < len(chunk) <= 4 for chunk in chunks)
        assert await store.count(asked, 3, 30) == len(found)
