"""Leaves: a pure function of the message and the ledger before it, in canonical bytes."""

import itertools
from hashlib import sha256

import orjson
import pytest
import rfc8785
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.ledger.log import heads, leaves, tree
from services.ledger.log.leaves import First, Leaf, Prefix
from shared.bus import Delivery
from shared.facts import InputRefused, TaskAccepted
from tests.ledger.examples import LI, QINGSHAN, WUCHANG, about, event, life, message, request_id, submitted, task_id

CREATED = "2026-11-22T01:00:00.000000001Z"
RECORDED_NS = 1_795_309_323_456_789_012
DAY_NS = 86_400_000_000_000


def prefix() -> Prefix:
    return Prefix("paidan.test/main/1", created=CREATED)


def delivery(sequence: int, subject: str, data: bytes, ns: int | None = None) -> Delivery:
    return Delivery(sequence, RECORDED_NS + sequence if ns is None else ns, subject, data)


def made(*deliveries: Delivery, to: Prefix | None = None, known: dict[str, First] | None = None) -> list[Leaf]:
    return leaves.extend(to or prefix(), map(leaves.read, deliveries), known or {})


def told(leaf: Leaf) -> dict[str, object]:
    document: dict[str, object] = orjson.loads(leaf.data)
    return document


def test_a_leaf_has_these_bytes_for_ever() -> None:
    accepted = event(
        TaskAccepted(task_id=task_id(1), member_id=LI),
        id="0199aaaa-0000-7000-8000-000000000001",
        case="0199bbbb-0000-7000-8000-000000000002",
        districts=f"{WUCHANG},{QINGSHAN}",
    )
    [leaf] = made(delivery(1, *message(accepted)))
    assert leaf.data == (
        b'{"case":{"id":"0199bbbb-0000-7000-8000-000000000002","n":1},"event":{"correlationid":"0199bbbb-0000-7000-8000-000'
        b'000000002","data":{"member_id":"m-li","task_id":"' + task_id(1).encode() + b'"},"districts":"420106,420107",'
        b'"id":"0199aaaa-0000-7000-8000-000000000001","source":"/paidan/420106/dispatch","specversion":"1.0","subject":"'
        + task_id(1).encode()
        + b'","time":"2026-11-22T01:02:03.456000Z","type":"cn.paidan.task.accepted.v1"},"index":0,"kind":"event","log":'
        b'"paidan.test/main/1","recorded":"2026-11-22T01:02:03.456789013Z","scopes":[{"d":"420106","n":1},{"d":"420107",'
        b'"n":1}],"src":{"created":"2026-11-22T01:00:00.000000001Z","seq":1,"stream":"EVENTS"},"subject":'
        b'"evt.420106.dispatch.xinxiang-7k.task.accepted","v":"paidan/leaf/1"}'
    )
    assert leaf.hash == sha256(b"\x00" + leaf.data).digest()
    assert (leaf.index, leaf.sequence, leaf.type, leaf.districts) == (
        *(0, 1, "cn.paidan.task.accepted.v1"),
        (WUCHANG, QINGSHAN),
    )


def test_ordinals_count_events_per_district_and_per_request() -> None:
    found = made(
        delivery(1, *message(submitted(1, districts=f"{WUCHANG},{QINGSHAN}"))),
        delivery(2, *message(submitted(2))),
        delivery(3, *message(about(1, TaskAccepted(task_id=task_id(1), member_id=LI)))),
    )
    assert [told(leaf)["scopes"] for leaf in found] == [
        [{"d": WUCHANG, "n": 1}, {"d": QINGSHAN, "n": 1}],
        [{"d": WUCHANG, "n": 2}],
        [{"d": WUCHANG, "n": 3}],
    ]
    assert [told(leaf)["case"] for leaf in found] == [
        {"id": request_id(1), "n": 1},
        {"id": request_id(2), "n": 1},
        {"id": request_id(1), "n": 2},
    ]


def test_a_hole_in_the_sequence_becomes_one_gap_leaf() -> None:
    gap, after = made(delivery(5, *message(submitted(1))))
    assert (gap.kind, gap.sequence, told(gap)["gap"]) == ("gap", 1, {"from": 1, "to": 4})
    assert (after.kind, after.index, after.sequence) == ("event", 1, 5)


def test_the_same_bytes_again_are_a_dup_that_points_to_the_first() -> None:
    subject, data = message(submitted(1))
    _, dup = made(delivery(1, subject, data), delivery(2, subject, data))
    assert (dup.kind, told(dup)["first"], told(dup)["id"], dup.raw) == ("dup", 0, submitted(1).id, None)
    assert "scopes" not in told(dup)


def test_other_bytes_under_the_same_id_are_a_conflict_with_their_digest() -> None:
    subject, data = message(submitted(1))
    other = submitted(1, at_s=9).encode()
    _, conflict = made(delivery(1, subject, data), delivery(2, subject, other))
    assert (conflict.kind, told(conflict)["first"]) == ("conflict", 0)
    assert (told(conflict)["digest"], conflict.raw) == (sha256(other).hexdigest(), other)


def test_a_repeat_of_something_long_past_is_recognised_by_what_the_store_knows() -> None:
    subject, data = message(submitted(1))
    [dup] = made(
        delivery(9, subject, data),
        to=Prefix("x", CREATED, sequence=8, size=8, newest_ns=RECORDED_NS),
        known={submitted(1).id: First(3, subject, data)},
    )
    assert (dup.kind, told(dup)["first"]) == ("dup", 3)


GOOD = submitted(1)
PARSED = orjson.loads(GOOD.encode())


def dumped(**changes: object) -> bytes:
    return orjson.dumps({**PARSED, **changes}, option=orjson.OPT_SORT_KEYS)


@pytest.mark.parametrize(
    ("reason", "subject", "data"),
    [
        ("json", GOOD.subject, b"{"),
        ("json", GOOD.subject, b"\xff\xfe"),
        ("json", GOOD.subject, b""),
        ("json", GOOD.subject, b'{"a":' * 5000),
        ("type", "evt.420106.intake.a.request.vanished", GOOD.encode()),
        ("type", GOOD.subject, dumped(type="cn.paidan.request.submitted.v9")),
        ("subject", "evt.420106.intake", GOOD.encode()),
        ("subject", GOOD.subject.replace("420106", "420107"), GOOD.encode()),
        ("subject", GOOD.subject.replace("xinxiang-7k", 'a"b'), GOOD.encode()),
        ("subject", GOOD.subject, dumped(source="/paidan/420106/dispatch")),
        ("subject", GOOD.subject, orjson.dumps({k: v for k, v in PARSED.items() if k != "source"})),
        ("schema", GOOD.subject, b"[]"),
        ("schema", GOOD.subject, b"null"),
        ("schema", GOOD.subject, dumped(data={})),
        ("schema", GOOD.subject, dumped(data={**PARSED["data"], "more": 1})),
        ("schema", GOOD.subject, dumped(districts="wuchang")),
        ("schema", GOOD.subject, dumped(correlationid=["a"])),
        ("schema", GOOD.subject, dumped(id=7)),
        ("canonical", GOOD.subject, orjson.dumps(PARSED, option=orjson.OPT_INDENT_2)),
        ("canonical", GOOD.subject, GOOD.encode().replace(b'"specversion"', b'"specversion":"1.0","specversion"')),
        ("canonical", GOOD.subject, dumped(data={**PARSED["data"], "reported_at": 1.5})),
        ("size", GOOD.subject, b" " * 100_000),
    ],
)
def test_what_is_no_fact_is_rejected_by_name_and_counted(reason: str, subject: str, data: bytes) -> None:
    [leaf] = made(delivery(1, subject, data))
    assert (leaf.kind, told(leaf).get("reason")) == ("reject", reason)
    assert (told(leaf)["digest"], leaf.raw) == (sha256(data).hexdigest(), data)
    assert rfc8785.dumps(orjson.loads(leaf.data)) == leaf.data


def test_a_reset_names_both_sources_and_starts_another_epoch() -> None:
    state = prefix()
    made(delivery(1, *message(submitted(1))), to=state)
    [leaf] = leaves.reset(state, created="2027-01-01T00:00:00Z", after=0)
    assert told(leaf)["reset"] == {"created": CREATED, "seq": 1}
    assert told(leaf)["src"] == {"created": "2027-01-01T00:00:00Z", "epoch": 1, "seq": 0, "stream": "EVENTS"}
    [following] = made(delivery(1, *message(submitted(2))), to=state)
    assert (following.index, following.epoch, following.sequence) == (2, 1, 1)


def test_time_that_runs_backwards_is_marked() -> None:
    found = made(
        delivery(1, *message(submitted(1)), ns=RECORDED_NS + 5),
        delivery(2, *message(submitted(2)), ns=RECORDED_NS),
        delivery(3, *message(submitted(3)), ns=RECORDED_NS + 6),
    )
    assert [told(leaf).get("late") for leaf in found] == [None, True, None]
    assert all(rfc8785.dumps(orjson.loads(leaf.data)) == leaf.data for leaf in found)


def test_heads_come_before_the_first_message_of_a_new_day_and_say_where_every_district_stands() -> None:
    first, second, of_heads, gap, third = made(
        delivery(1, *message(submitted(1, districts=f"{WUCHANG},{QINGSHAN}"))),
        delivery(2, *message(submitted(2)), ns=RECORDED_NS + 5),
        delivery(4, *message(submitted(3)), ns=RECORDED_NS + DAY_NS),
        delivery(5, *message(submitted(4)), ns=RECORDED_NS),
        delivery(6, *message(submitted(5)), ns=RECORDED_NS + DAY_NS + 1),
    )[:5]
    assert (of_heads.kind, of_heads.index, of_heads.sequence, gap.kind, third.index) == ("heads", 2, None, "gap", 4)
    under = tree.root_of(
        [
            tree.leaf_hash(b'{"d":"420106","last":1,"n":2}'),
            tree.leaf_hash(b'{"d":"420107","last":0,"n":1}'),
        ]
    )
    assert told(of_heads) == {
        "v": "paidan/leaf/1",
        "log": "paidan.test/main/1",
        "index": 2,
        "kind": "heads",
        "heads": {"root": under.hex(), "scopes": 2},
        "recorded": told(third)["recorded"],
        "src": {"stream": "EVENTS", "created": CREATED, "seq": 2},
    }
    assert rfc8785.dumps(orjson.loads(of_heads.data)) == of_heads.data
    assert [told(leaf)["kind"] for leaf in (first, second, third)] == ["event"] * 3


def test_a_day_begins_once_however_the_clock_runs() -> None:
    later = [RECORDED_NS, RECORDED_NS + DAY_NS, RECORDED_NS, RECORDED_NS + DAY_NS, RECORDED_NS + 2 * DAY_NS]
    found = made(*(delivery(n, *message(submitted(n)), ns=ns) for n, ns in enumerate(later, 1)))
    assert [leaf.kind for leaf in found] == ["event", "heads", "event", "event", "event", "heads", "event"]


def test_heads_lie_at_every_multiple_whatever_else_is_due_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaves, "HEADS_EVERY", 4)
    state = prefix()
    found = made(
        delivery(1, *message(submitted(1))),
        delivery(2, *message(submitted(2))),
        delivery(3, *message(submitted(3))),
        delivery(5, *message(submitted(4))),  # heads, gap, event
        delivery(6, *message(submitted(5)), ns=RECORDED_NS + DAY_NS),  # heads of the day, and what is due at 8 as well
        to=state,
    )
    assert [leaf.kind for leaf in found] == [*["event"] * 3, "gap", "heads", "event", "heads", "event"]
    assert made(delivery(7, *message(submitted(6))), to=state)[0].kind == "heads"
    made(*(delivery(n, *message(submitted(n))) for n in (8, 9)), to=state)
    assert [leaf.kind for leaf in leaves.reset(state, created=CREATED, after=0)] == ["heads", "reset"]
    assert state.size == 14


@given(st.dictionaries(st.from_regex(r"[0-9]{6}", fullmatch=True), st.tuples(st.integers(1, 99), st.integers(0, 999))))
def test_the_head_of_each_district_is_proved_under_the_root(scopes: dict[str, tuple[int, int]]) -> None:
    under = heads.root(scopes)
    assert heads.path(scopes, "none") is None
    for district, (n, last) in scopes.items():
        found = heads.path(scopes, district)
        assert found is not None
        assert (found.n, found.last, found.size) == (n, last, len(scopes))
        assert heads.read(heads.shown(found)) == found
        heads.verify(found, under)
        for wrong in (found._replace(n=n + 1), found._replace(last=last + 1), found._replace(district="x")):
            with pytest.raises(tree.ProofError):
                heads.verify(wrong, under)


def test_the_ledger_goes_on_behind_its_tail_as_if_it_had_never_stopped() -> None:
    whole, first_part = prefix(), prefix()
    stream = [delivery(n, *message(each)) for n, each in enumerate(life(1), 1)]
    expected = made(*stream, to=whole)
    before = made(*stream[:4], to=first_part)
    again = leaves.resume(whole.log, before[-1].data, first_part.newest_ns, first_part.scopes)
    again.cases = dict(first_part.cases)
    assert made(*stream[4:], to=again) == expected[4:]


def test_the_log_of_another_origin_is_left_alone() -> None:
    [leaf] = made(delivery(1, *message(submitted(1))))
    with pytest.raises(leaves.ForeignLogError):
        leaves.resume("paidan.other/main/1", leaf.data, 0, {})


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(word=text, subject=text)
def test_leaves_are_rfc_8785_whatever_the_words_in_them(word: str, subject: str) -> None:
    named = submitted(1)
    fact = named.fact.model_copy(update={"item_rule": word})
    changed = event(fact, case=word or None, area="a")
    for found in made(delivery(1, *message(changed)), delivery(2, f"evt.{subject}", word.encode())):
        assert rfc8785.dumps(orjson.loads(found.data)) == found.data
        assert orjson.dumps(orjson.loads(found.data), option=orjson.OPT_SORT_KEYS) == found.data


@st.composite
def streams(draw: st.DrawFn) -> list[Delivery]:
    """Messages of all sorts, with holes, repeats and nonsense."""
    pool = [message(each) for n in range(3) for each in life(n, draw(st.sampled_from([None, f"{WUCHANG},{QINGSHAN}"])))]
    pool += [
        message(event(InputRefused(sequence=1, code="bug"), area="-")),
        ("evt.420106.x", b"nonsense"),
        (GOOD.subject, b"{}"),
    ]
    pool += [(GOOD.subject, submitted(1, at_s=5).encode())]
    sequence, found = 0, []
    for choice in draw(st.lists(st.sampled_from(pool), max_size=60)):
        sequence += draw(st.sampled_from([1, 1, 1, 1, 3]))
        days = draw(st.sampled_from([0, 0, 0, 1, 2]))
        found.append(delivery(sequence, *choice, ns=RECORDED_NS + days * DAY_NS + draw(st.integers(0, 50))))
    return found


@given(stream=streams(), cuts=st.sets(st.integers(1, 60), max_size=8))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_how_messages_are_batched_does_not_change_the_leaves(
    stream: list[Delivery], cuts: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaves, "HEADS_EVERY", 7)
    whole = made(*stream)
    state = prefix()
    parts: list[Leaf] = []
    known: dict[str, First] = {}
    edges = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    for since, until in itertools.pairwise(edges):
        if parts:  # as a ledger that starts anew at every cut
            newest, scopes, cases = state.newest_ns, state.scopes, state.cases
            state = leaves.resume(state.log, parts[-1].data, newest, scopes)
            state.cases = cases
        part = made(*stream[since:until], to=state, known=known)
        known.update(
            {leaf.event_id: leaves.first(leaf.data) for leaf in part if leaf.kind == "event" and leaf.event_id}
        )
        parts += part
    assert [leaf.data for leaf in parts] == [leaf.data for leaf in whole]
    assert [leaf.index for leaf in whole] == list(range(len(whole)))
    accounted = sum(leaf.kind not in ("gap", "heads") for leaf in whole)
    covered = sum(told(leaf)["gap"]["to"] - told(leaf)["gap"]["from"] + 1 for leaf in whole if leaf.kind == "gap")  # type: ignore[index]
    assert accounted + covered == (stream[-1].sequence if stream else 0)
