"""The checker finds what it is there to find: a good history has no violation, and each law that is broken once is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest

from services.ledger.log import leaves
from shared.bus import Delivery
from shared.envelope import Envelope
from shared.facts import (
    Due,
    Fact,
    MatchExplained,
    MemberEnrolled,
    NoticeQueued,
    NoticeSent,
    NotifyTurnCommitted,
    Position,
    RequestSubmitted,
    TaskAccepted,
    TaskClosed,
    TaskDone,
    TaskOffered,
    TaskOpened,
    TurnCommitted,
)
from shared.ids import derived_id
from tests.system.history import Commanded, History, Record, Watched, check

D, AREA, CREATED, ORIGIN = "990011", "north", "2026-11-22T00:00:00Z", "paidan.test/1"
START = datetime(2026, 11, 22, 2, 0, tzinfo=UTC)
REQUEST, MEMBER, CALLER = derived_id("request"), "m-01", "dispatcher:operator"
TASK = derived_id(REQUEST, "task", 1)
MATCH, YES, DONE, ENROL = derived_id("match"), derived_id("yes"), derived_id("done"), derived_id("enrol")
NOTICE = derived_id("notice")


class Stream:
    """A stream in the making; `doctor` may change a message or leave it out before it is stored."""

    def __init__(self, doctor: Callable[[Fact], Fact | None] = lambda fact: fact) -> None:
        self.records: list[Record] = []
        self._doctor = doctor
        self._fences: dict[str, int] = {}
        self._batches = 0

    @property
    def last(self) -> int:
        """The last sequence."""
        return len(self.records)

    def put(self, fact: Fact, headers: dict[str, str] | None = None, **envelope: Any) -> None:
        """One message."""
        n = self.last + 1
        about = {"id": derived_id(n), "districts": D, "case": REQUEST, **envelope}
        area = "-" if fact.name.startswith(("turn.", "match.", "member.")) else AREA
        one = Envelope(district=D, area=area, time=START + timedelta(seconds=n), fact=fact, **about)
        nanoseconds = int(one.time.timestamp()) * 10**9 + n
        self.records.append(Record(n, nanoseconds, one.subject, one.encode(), headers or {}))

    def turn(
        self, position: int, *facts: tuple[Fact, dict[str, Any]], marker: type[TurnCommitted] = TurnCommitted
    ) -> None:
        """One batch as a desk commits it."""
        kept = [(fact, more) for given, more in facts if (fact := self._doctor(given)) is not None]
        subject = f"evt.{D}.{marker.service}.-.turn.committed"
        self._batches += 1
        end = marker(
            position=Position(created=CREATED, sequence=position), by="dispatch-1", epoch=self._batches, facts=len(kept)
        )
        for n, (fact, more) in enumerate([*kept, (end, {"case": None})], 1):
            headers = {"Nats-Batch-Id": f"b{self._batches}", "Nats-Batch-Sequence": str(n)}
            if n == 1:
                headers["Nats-Expected-Last-Subject-Sequence"] = str(self._fences.get(subject, 0))
                headers["Nats-Expected-Last-Subject-Sequence-Subject"] = subject
            if fact is end:
                headers["Nats-Batch-Commit"] = "1"
            self.put(fact, headers, **more)
        self._fences[subject] = self.last


def history(doctor: Callable[[Fact], Fact | None] = lambda fact: fact) -> History:
    """One request from its submission to its end, with a message to the member."""
    hours = [START + timedelta(hours=n) for n in range(1, 5)]
    due = Due(sign=hours[0], contact=hours[1], handle=hours[2], life=hours[3])
    stream = Stream(doctor)
    stream.turn(0, (MemberEnrolled(member_id=MEMBER, kind="grid_member", areas=(AREA,), capacity=3), _by(ENROL)))
    submitted = RequestSubmitted(
        request_id=REQUEST,
        fingerprint="ab",
        tracking_hash="cd",
        channel="app",
        item="lamp",
        item_rule="given",
        urgency=0,
        urgency_rule="item",
        area=AREA,
        area_rule="code",
        located_in=D,
        due=due,
    )
    stream.put(submitted, id=derived_id("submitted"))
    asked = stream.last
    cause = {"cause": derived_id("submitted")}
    stream.turn(
        asked,
        (TaskOpened(task_id=TASK, request_id=REQUEST, area=AREA, item="lamp", urgency=0, effort=3, due=due), cause),
        (_explained(MATCH, MEMBER), cause),
        (_offered(1, MATCH), {**cause, "id": derived_id("offered")}),
    )
    offered = stream.last - 1
    queued = NoticeQueued(
        notice_id=NOTICE,
        cause=derived_id("offered"),
        recipient=MEMBER,
        template="offered",
        task_id=TASK,
        item="lamp",
        area=AREA,
        urgent=False,
    )
    stream.turn(offered, (queued, {"cause": derived_id("offered")}), marker=NotifyTurnCommitted)
    sent = NoticeSent(notice_id=NOTICE, channel="webhook", attempt=1)
    stream.turn(offered, (sent, {"cause": NOTICE}), marker=NotifyTurnCommitted)
    stream.turn(asked, (TaskAccepted(task_id=TASK, member_id=MEMBER), _by(YES)))
    stream.turn(asked, (TaskDone(task_id=TASK, member_id=MEMBER, outcome="solved"), _by(DONE)))
    stream.turn(asked, (TaskClosed(task_id=TASK, reason="quiet"), {}))
    return promised(ledgered(History(CREATED, ORIGIN, stream.records, [])))


def promised(of: History) -> History:
    """The same with what clients were told, saw and received."""
    own = [r for r in of.records if ".turn." not in r.subject]
    told = {"ok": True, "facts": 1, "of": TASK}
    return replace(
        of,
        submitted={"key": [{"id": REQUEST, "tracking_code": "X"}, {"id": REQUEST, "tracking_code": "X"}]},
        commanded=[
            Commanded(YES, "accept", told | {"id": derived_id("fact", YES)}),
            Commanded(DONE, "done", told | {"id": derived_id("fact", DONE)}),
            Commanded(derived_id("no"), "accept", None, "409 already_taken"),
        ],
        watched=[Watched("one", D, 0, of.records[-1].sequence, [(r.sequence, r.data) for r in own])],
        live=[(r.sequence, r.data) for r in of.records],
        receipts=Counter({(MEMBER, TASK[-12:], "offered"): 1}),
        states={"dispatch-1": ({"tasks": {}}, {"tasks": {}})},
    )


def ledgered(of: History) -> History:
    """The same with the ledger that follows from its stream."""
    read = [leaves.read(Delivery(*record[:4])) for record in of.records]
    made = leaves.extend(leaves.Prefix(ORIGIN, created=CREATED), read, {})
    return replace(of, leaves=[(leaf.index, leaf.data) for leaf in made])


def _by(command: str) -> dict[str, Any]:
    return {"cause": command, "actor": CALLER, "id": derived_id("fact", command)}


def _explained(match: str, *chosen: str) -> MatchExplained:
    return MatchExplained(match_id=match, task_id=TASK, policy=1, considered=1, fell_out={}, best=(), chosen=chosen)


def _offered(wave: int, match: str, member: str = MEMBER) -> TaskOffered:
    until = START + timedelta(hours=1)
    return TaskOffered(task_id=TASK, wave=wave, members=(member,), item="lamp", urgency=0, until=until, match_id=match)


def laws(of: History) -> set[str]:
    """Which laws are broken."""
    return {broken.law for broken in check(of)}


def without(name: str) -> Callable[[Fact], Fact | None]:
    """A doctor who leaves a fact out."""
    return lambda fact: None if fact.name == name else fact


def doctored(of: History, name: str, change: Callable[[Record], Record | None]) -> History:
    """The history with its first message of this name changed or gone; the ledger follows."""
    records = list(of.records)
    n = next(n for n, record in enumerate(records) if name in record.subject)
    changed = change(records[n])
    records[n : n + 1] = [changed] if changed else []
    return ledgered(replace(of, records=records))


def edited(record: Record, **data: Any) -> Record:
    """A record whose fact says something else."""
    event = orjson.loads(record.data)
    event["data"] |= data
    return record._replace(data=orjson.dumps(event, option=orjson.OPT_SORT_KEYS))


def headed(record: Record, **headers: str) -> Record:
    """A record with other headers."""
    return record._replace(headers={**record.headers, **{name.replace("_", "-"): to for name, to in headers.items()}})


def last_marker(of: History, change: Callable[[Record], Record]) -> History:
    """The history with another last marker."""
    return ledgered(replace(of, records=[*of.records[:-1], change(of.records[-1])]))


def _caused(record: Record, command: str) -> Record:
    event = orjson.loads(record.data) | {"causationid": command}
    return record._replace(data=orjson.dumps(event, option=orjson.OPT_SORT_KEYS))


def _named(record: Record, id: str) -> Record:
    event = orjson.loads(record.data) | {"id": id}
    return record._replace(data=orjson.dumps(event, option=orjson.OPT_SORT_KEYS))


def _seen(change: Callable[[list[tuple[int, bytes]]], list[tuple[int, bytes]]]) -> History:
    of = history()
    return replace(of, watched=[replace(of.watched[0], events=change(of.watched[0].events))])


def test_a_good_history_has_no_violation() -> None:
    assert check(history()) == []


GOOD = history()
OTHER = derived_id("other")
COMMAND = GOOD.commanded[0]

BROKEN: list[tuple[str, History]] = [
    ("submission lost", replace(GOOD, submitted={"key": [{"id": OTHER}]})),
    ("submission doubled", replace(GOOD, leaves=[*GOOD.leaves, GOOD.leaves[2]])),
    ("answers differ", replace(GOOD, submitted={"key": [{"id": REQUEST}, {"id": REQUEST, "position": 2}]})),
    ("submission shared", replace(GOOD, submitted={"a": [{"id": REQUEST}], "b": [{"id": REQUEST}]})),
    ("request opened once", history(lambda f: None if f.name.startswith(("task.", "match.", "notice.")) else f)),
    ("batch torn", doctored(GOOD, "task.opened", lambda r: headed(r, Nats_Batch_Sequence="2"))),
    ("batch torn", doctored(GOOD, "match.explained", lambda _: None)),
    ("batch torn", ledgered(replace(GOOD, records=GOOD.records[:-1]))),
    ("fence broken", doctored(GOOD, "task.accepted", lambda r: headed(r, Nats_Expected_Last_Subject_Sequence="1"))),
    ("position went back", last_marker(GOOD, lambda r: edited(r, position={"created": CREATED, "sequence": 0}))),
    ("position of another stream", last_marker(GOOD, lambda r: edited(r, position={"created": "", "sequence": 3}))),
    ("epoch went back", last_marker(GOOD, lambda r: edited(r, epoch=1))),
    (
        "input out of turn",
        doctored(GOOD, "turn.committed", lambda r: edited(r, position={"created": CREATED, "sequence": 3})),
    ),
    ("id used twice", doctored(GOOD, "task.closed", lambda r: _named(r, derived_id("fact", YES)))),
    ("illegal step", history(without("task.opened"))),
    ("illegal step", history(without("task.offered"))),
    ("illegal step", history(without("task.accepted"))),
    ("illegal step", history(without("task.done"))),
    ("illegal step", history(without("match.explained"))),
    ("task without an end", history(without("task.closed"))),
    ("over capacity", doctored(GOOD, "member.enrolled", lambda r: edited(r, capacity=2))),
    ("command lost", replace(GOOD, commanded=[COMMAND._replace(id=OTHER)])),
    ("command doubled", doctored(GOOD, "task.done", lambda r: _caused(r, YES))),
    ("answer of another fact", replace(GOOD, commanded=[COMMAND._replace(answer={"facts": 1, "id": OTHER})])),
    ("refused and done", replace(GOOD, commanded=[Commanded(YES, "accept", None, "409 already_taken")])),
    ("leaves not dense", replace(GOOD, leaves=[*GOOD.leaves[:3], *GOOD.leaves[4:]])),
    ("sequence not accounted for", replace(GOOD, leaves=GOOD.leaves[:-1])),
    (
        "leaf does not follow from the stream",
        replace(GOOD, leaves=[(0, GOOD.leaves[0][1].replace(b'"capacity":3', b'"capacity":4')), *GOOD.leaves[1:]]),
    ),
    (
        "notice doubled",
        doctored(
            GOOD,
            "notice.sent",
            lambda r: r._replace(
                subject=GOOD.records[7].subject, data=GOOD.records[7].data.replace(NOTICE.encode(), OTHER.encode())
            ),
        ),
    ),
    ("notice never queued", doctored(GOOD, "notice.sent", lambda r: edited(r, notice_id=OTHER))),
    ("notice without an end", history(without("notice.sent"))),
    (
        "notice ended twice",
        doctored(
            GOOD,
            "task.closed",
            lambda r: r._replace(
                subject=GOOD.records[9].subject, data=GOOD.records[9].data.replace(b'"id":"', b'"id":"f')
            ),
        ),
    ),
    ("message lost", replace(GOOD, receipts=Counter())),
    ("message repeated", replace(GOOD, receipts=Counter({(MEMBER, TASK[-12:], "offered"): 2}))),
    ("message nobody queued", replace(GOOD, receipts=GOOD.receipts + Counter({("m-02", TASK[-12:], "offered"): 1}))),
    ("live event not in the stream", replace(GOOD, live=[(4, b"{}")])),
    ("event lost", _seen(lambda events: events[:2] + events[3:])),
    ("event repeated", _seen(lambda events: [*events[:2], *events[1:]])),
    ("event out of order", _seen(lambda events: [events[1], events[0], *events[2:]])),
    ("event not in the stream", _seen(lambda events: [(events[0][0], b"{}"), *events[1:]])),
    ("state differs", replace(GOOD, states={"dispatch-2": ({"tasks": {TASK: 1}}, {"tasks": {}})})),
]


@pytest.mark.parametrize(("law", "broken"), BROKEN, ids=[f"{n}-{law}" for n, (law, _) in enumerate(BROKEN)])
def test_a_law_that_is_broken_once_is_named(law: str, broken: History) -> None:
    assert law in laws(broken)


def test_a_message_may_come_once_more_after_a_crash_and_no_oftener() -> None:
    twice = Counter({(MEMBER, TASK[-12:], "offered"): 2})
    assert laws(replace(GOOD, receipts=twice, crashes=1)) == set()
    assert laws(replace(GOOD, receipts=twice + twice, crashes=1)) == {"message repeated"}
