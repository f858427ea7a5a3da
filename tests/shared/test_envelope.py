"""A fact under way: canonical bytes, and everything that is no fact."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from shared.envelope import canonical, decode
from shared.errors import MalformedError
from shared.facts import CATALOGUE, NOWHERE, AreaSet, Fact, RegisterApplied, TaskAccepted, TaskClosed, instant
from tests.examples import LI, MINUTE, NOW, RATED, REGISTER, REOPENED, TASK, TEAM, WITHDRAWN, envelope, submitted

texts = st.text(st.characters(codec="utf-8"), max_size=20)
keys = st.text(st.characters(max_codepoint=0xFFFF, codec="utf-8"), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=20,
)
FACTS: tuple[Fact, ...] = (
    submitted(),
    RATED,
    WITHDRAWN,
    REOPENED,
    *TEAM,
    *REGISTER,
    TaskAccepted(task_id=TASK, member_id=LI),
    TaskClosed(task_id=TASK, reason="rated"),
)


@given(values)
def test_canonical_is_what_rfc_8785_says(value: Any) -> None:
    assert canonical(value) == rfc8785.dumps(value)


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.name)
def test_a_fact_is_the_same_after_its_way(fact: Fact) -> None:
    sent = envelope(fact)
    assert decode(sent.subject, sent.encode()) == sent
    assert sent.encode() == rfc8785.dumps(json.loads(sent.encode()))


@given(
    st.integers(0, 2**42),
    texts,
    st.none() | st.sampled_from(["member:m-li", "dispatcher:staff-1"]),
)
def test_times_and_names_survive(ms: int, why: str, actor: str | None) -> None:
    at = instant(datetime.fromtimestamp(ms / 1000, UTC))
    sent = replace(envelope(RegisterApplied(by="x", why=why, digest="ab", facts=1), at=at), actor=actor, cause="c" * 36)
    assert decode(sent.subject, sent.encode()) == sent


def test_absent_fields_are_left_out() -> None:
    event = json.loads(envelope(submitted()).encode())
    assert not {"actor", "causationid", "traceparent"} & event.keys()
    assert "point" not in event["data"]
    assert None not in event["data"].values()


def test_cloudevents_attributes() -> None:
    event = json.loads(envelope(submitted()).encode())
    assert event["specversion"] == "1.0"
    assert event["type"] == "cn.paidan.request.submitted.v1"
    assert event["source"] == "/paidan/420106/intake"
    assert event["subject"] == submitted().request_id
    assert event["time"] == "2026-11-23T02:00:00Z"
    assert all(name == name.lower() and name.isalnum() for name in event)


def test_every_kind_of_fact_has_a_subject_and_a_type_of_its_own() -> None:
    assert len({fact.type() + fact.service for fact in CATALOGUE}) == len(CATALOGUE)
    assert len({f"{fact.service}.{fact.name}" for fact in CATALOGUE}) == len(CATALOGUE)


def test_a_fact_that_is_too_large_is_not_sent() -> None:
    area = next(fact for fact in REGISTER if isinstance(fact, AreaSet))
    ring = tuple((n, n) for n in range(3000))
    with pytest.raises(ValueError, match="more than a fact may have"):
        envelope(area.model_copy(update={"polygon": (ring,)})).encode()


# --- what is no fact --------------------------------------------------------------------------------------------------

GOOD = envelope(RATED)
EVENT: dict[str, Any] = json.loads(GOOD.encode())


def code_of(data: bytes, subject: str = GOOD.subject) -> str:
    """Why these bytes are no fact."""
    with pytest.raises(MalformedError) as malformed:
        decode(subject, data)
    return malformed.value.code


def with_(**changes: Any) -> bytes:
    """The good event with other attributes."""
    return canonical({**EVENT, **changes})


def test_the_good_one_is_good() -> None:
    assert decode(GOOD.subject, with_()) == GOOD


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'{"a":NaN}', b"\x00", GOOD.encode()[:-1], b'{"a":"\\ud800"}'])
def test_broken_json(data: bytes) -> None:
    assert code_of(data) == "json"


@pytest.mark.parametrize("data", [b"null", b"[]", b"1", b'"fact"', b"{}", b"[[]]"])
def test_json_that_is_no_event(data: bytes) -> None:
    assert code_of(data) in ("schema", "type")


@pytest.mark.parametrize(
    "changes",
    [
        {"id": 7},
        {"id": ""},
        {"id": None},
        {"time": "yesterday"},
        {"time": "2026-11-23T02:00:00"},
        {"time": 1},
        {"districts": None},
        {"districts": 420106},
        {"districts": "everybody"},
        {"correlationid": {}},
        {"correlationid": ""},
        {"causationid": 5},
        {"actor": []},
        {"traceparent": {"a": 1}},
        {"data": None},
        {"data": []},
        {"data": {}},
        {"data": {**EVENT["data"], "grade": 6}},
        {"data": {**EVENT["data"], "grade": "5"}},
        {"data": {**EVENT["data"], "grade": 5.0}},
        {"data": {**EVENT["data"], "grade": True}},
        {"data": {**EVENT["data"], "phone": "13800000000"}},
        {"data": {**EVENT["data"], "request_id": "42"}},
    ],
    ids=str,
)
def test_another_shape(changes: dict[str, Any]) -> None:
    assert code_of(with_(**changes)) == "schema"


@pytest.mark.parametrize(
    "type", ["cn.paidan.request.rated.v2", "cn.paidan.request.dreamt.v1", "com.example.request.rated.v1", "", None, 7]
)
def test_another_type_than_the_subjects(type: Any) -> None:
    assert code_of(with_(type=type)) == "type"


@pytest.mark.parametrize(
    "source", ["/paidan/420107/intake", "/paidan/420106/dispatch", "", None, "/paidan/420106/intake/", {}]
)
def test_another_source_than_the_subjects(source: Any) -> None:
    assert code_of(with_(source=source)) in ("subject", "schema")


@pytest.mark.parametrize(
    ("subject", "code"),
    [
        ("evt.420106.intake.oujing-1.request.dreamt", "type"),
        ("evt.420106.dispatch.oujing-1.request.rated", "type"),
        ("evt.420107.intake.oujing-1.request.rated", "subject"),
        ("evt.420106.intake.oujing-1.request.rated.more", "subject"),
        ("evt.420106.intake.oujing-1.request", "subject"),
        ("live.420106.intake.oujing-1.request.rated", "subject"),
        ("", "subject"),
        ("evt", "subject"),
        ("evt......", "type"),
    ],
)
def test_the_right_bytes_in_the_wrong_place(subject: str, code: str) -> None:
    assert code_of(GOOD.encode(), subject) == code


def test_a_request_under_another_requests_subject() -> None:
    sent = envelope(submitted(1))
    assert code_of(sent.encode(), envelope(submitted(2)).subject) == "subject"


@pytest.mark.parametrize(
    "data",
    [
        json.dumps(EVENT).encode(),
        json.dumps(EVENT, indent=1, sort_keys=True).encode(),
        with_() + b"\n",
        with_().replace(b'"solved":true', b'"solved":true,"solved":true'),
    ],
    ids=["spaces", "lines", "end of line", "a key twice"],
)
def test_other_bytes_than_the_canonical_ones(data: bytes) -> None:
    assert code_of(data) == "canonical"


def test_more_bytes_than_a_fact_may_have() -> None:
    assert code_of(with_(actor="x" * 30_000)) == "size"


@given(st.binary(max_size=200))
def test_any_bytes_are_a_fact_or_malformed(data: bytes) -> None:
    with pytest.raises(MalformedError):
        decode(GOOD.subject, data)


@given(keys, values)
def test_any_change_is_a_fact_or_malformed(name: str, value: Any) -> None:
    for attribute in (name, *EVENT):
        try:
            decode(GOOD.subject, with_(**{attribute: value}))
        except MalformedError:
            continue


@given(
    st.lists(
        st.sampled_from(["evt", "420106", "intake", "-", "request", "rated", "*", ">", "", "x y", "é"]), max_size=9
    )
)
def test_any_subject_is_right_or_malformed(tokens: list[str]) -> None:
    try:
        decode(".".join(tokens), GOOD.encode())
    except MalformedError:
        return
    assert tokens[:3] == ["evt", "420106", "intake"]


def exact(value: Any) -> bool:
    """Whether all numbers in it are integers that readers of every language hold."""
    if isinstance(value, dict):
        return all(map(exact, value.values()))
    if isinstance(value, list):
        return all(map(exact, value))
    return not isinstance(value, float) and (not isinstance(value, int) or -(2**53) < value < 2**53)


ODD = values | st.floats(allow_nan=False) | st.sampled_from([2**53 - 1, 2**53, -(2**53), 2**63, 2**64, -0.0, 1e300])


@given(st.sampled_from(FACTS), st.lists(st.tuples(st.integers(0, 40), ODD), max_size=3))
def test_what_is_accepted_is_exact_and_canonical(fact: Fact, changes: list[tuple[int, Any]]) -> None:
    sent = envelope(fact)
    event = json.loads(sent.encode())
    for n, value in changes:
        held = event["data"] if isinstance(event["data"], dict) and n % 2 else event
        held[sorted(held)[n % len(held)]] = value
    data = json.dumps(event, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    plain = exact(event) and orjson.dumps(event, option=orjson.OPT_SORT_KEYS) == data
    try:
        found = decode(sent.subject, data)
    except MalformedError as why:
        code = why.code
    else:
        code = ""
        assert rfc8785.dumps(event) == data
        assert (found.fact, found.id) == (type(fact).model_validate(event["data"]), event["id"])
    assert code != ("canonical" if plain else "")


def test_what_belongs_to_no_area_says_so() -> None:
    assert envelope(TEAM[0]).subject == f"evt.420106.dispatch.{NOWHERE}.member.enrolled"
    assert (
        decode(envelope(TEAM[0], at=NOW + MINUTE).subject, envelope(TEAM[0], at=NOW + MINUTE).encode()).area == NOWHERE
    )


@pytest.mark.parametrize("attribute", ["districts", "cause", "actor", "traceparent", "case", "id"])
def test_what_could_not_be_read_again_is_not_written(attribute: str) -> None:
    """An own fact that cannot be read stops a desk for good."""
    with pytest.raises(ValueError, match="attribute"):
        replace(envelope(RATED), **dict[str, Any]({attribute: "4" * 501})).encode()
