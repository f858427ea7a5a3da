"""What became of a request: a fold of the facts about it, pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, TypedDict

import orjson

from shared.envelope import Envelope, canonical
from shared.facts import (
    ConferralEnded,
    ConferralOpened,
    Due,
    HandoverLapsed,
    HandoverOffered,
    HandoverReturned,
    HelpAnswered,
    HelpAsked,
    HelpLapsed,
    RequestErased,
    RequestFrozen,
    RequestRated,
    RequestReopened,
    RequestSubmitted,
    RequestWithdrawn,
    TaskAccepted,
    TaskArrived,
    TaskClosed,
    TaskDone,
    TaskHandedOver,
    TaskOffered,
    TaskOpened,
    TaskUnplaced,
)

State = Literal[
    "submitted", "opened", "offered", "accepted", "arrived", "done", "closed", "unplaced", "withdrawn", "handed_over"
]  # fmt: skip

_TASK_STATES: dict[type, State] = {
    TaskOffered: "offered",
    TaskAccepted: "accepted",
    TaskArrived: "arrived",
    TaskDone: "done",
    TaskUnplaced: "unplaced",
}
MOVING = frozenset(
    {
        *(RequestSubmitted, RequestWithdrawn, RequestRated, RequestReopened, RequestFrozen, RequestErased),
        *(TaskOpened, TaskClosed, TaskHandedOver, *_TASK_STATES),
        *(HandoverOffered, HandoverReturned, HandoverLapsed, ConferralOpened, ConferralEnded),
        *(HelpAsked, HelpAnswered, HelpLapsed),
    }
)
"""The facts that change a case; others appear in its timeline only."""

DETAILS = (
    *("task_id", "member_id", "members", "wave", "until", "reason", "outcome", "grade", "solved", "round", "same_as"),
    *("notice_id", "recipient", "template", "channel", "attempt", "retry_at", "match_id", "item", "urgency", "due"),
    *("item_rule", "urgency_rule", "area_rule", "located_in", "to", "office", "why", "parts"),
    *("handover_id", "conferral_id", "help_id", "giver", "asker", "basis", "grant", "by", "new_task_id"),
    *("parties", "lead", "owner", "precedent", "whistle", "appeal_id", "figure", "granted"),
)
"""What a timeline shows of a fact's data, where the fact has it."""


class Involved(TypedDict):
    """Whom a case concerns beyond any agreement: while a question stands (`by`, its id), or for good (None)."""

    district: str
    by: str | None


class Case(TypedDict, total=False):
    """
    One request as it stands, and as it is stored; what is not known is absent. Times are text, UTC.

    `first` and `pos` are the indices of the first leaf about it and of the last that changed it; `district` is the office
    responsible now, `districts` are all that may see it, in the order they came in; `round` is 1, and one more after each
    reopening; `offers` says how often somebody was asked, over all rounds; `rated` is the last judgement; `closed` is when it
    was last closed or withdrawn, if it is.

    `home` is the office it was submitted to, under whose key it is sealed; `sealed` says whether what its resident sealed is there
    (`kept`, `frozen` until a day, `erased`, or absent where nothing was); `granted` whether the responsible office may read it: `home`
    always, another for the one task that it was handed with a grant. A new round is another task: it may be read there again once it
    was handed back to `home` and over again with a grant.

    `involved`: who gave or got it, who helps or helped, who is being asked, or confers.
    """

    _id: str
    first: int
    pos: int
    district: str
    districts: list[str]
    area: str
    located_in: str
    item: str
    urgency: int
    state: State
    round: int
    due: dict[str, str]
    submitted: str
    updated: str
    task: str | None
    holder: str | None
    offers: int
    rated: dict[str, Any]
    closed: str | None
    home: str
    granted: bool
    sealed: Literal["kept", "frozen", "erased"] | None
    frozen_until: str
    same_as: str | None
    tracking_hash: str
    involved: list[Involved]


SHOWN = tuple(name for name in Case.__annotations__ if name not in ("_id", "first", "pos", "tracking_hash", "involved"))


def evolve(case: Case | None, index: int, event: Envelope) -> Case | None:
    """
    The case after one more fact about it; a fact that does not move it, or that it has already seen, leaves it as it was.

    Facts about a task that a later round has replaced change nothing: the new task has the word.
    """
    fact = event.fact
    if event.case is None or type(fact) not in MOVING or (case is not None and index <= case["pos"]):
        return case
    before, case = case, case or _begun(event, index)
    moved: Case | None = None
    match fact:
        case RequestSubmitted():
            moved = {
                "located_in": fact.located_in,
                "item": fact.item,
                "urgency": fact.urgency,
                "due": dues(fact.due),
                "submitted": moment(event.time),
                "home": event.district,
                "granted": True,
                "sealed": "kept" if fact.sealed else None,
                "same_as": fact.same_as,
                "tracking_hash": fact.tracking_hash,
            }
        case RequestWithdrawn():
            moved = {"state": "withdrawn", "closed": moment(event.time)}
        case RequestFrozen():
            moved = {"sealed": "frozen", "frozen_until": fact.until.isoformat()}
        case RequestErased():
            moved = {"sealed": "erased"}
        case RequestRated():
            moved = {"rated": {"grade": fact.grade, "solved": fact.solved}}
        case RequestReopened():
            moved = {
                "state": "submitted",
                "round": fact.round,
                "item": fact.item,
                "urgency": fact.urgency,
                "due": dues(fact.due),
                "task": None,
                "holder": None,
                "closed": None,
                "granted": case["district"] == case.get("home"),
                "sealed": "kept" if case.get("sealed") == "frozen" else case.get("sealed"),
            }
        case TaskOpened():
            moved = {
                "state": case["state"] if case["state"] == "withdrawn" else "opened",
                "district": event.district,
                "area": fact.area,
                "item": fact.item,
                "urgency": fact.urgency,
                "round": fact.round,
                "due": dues(fact.due),
                "same_as": case.get("same_as") or fact.same_as,
                "task": fact.task_id,
                "holder": None,
            }
        case HandoverOffered() | ConferralOpened() | HelpAsked():
            moved = {}  # another office comes to see it
        case TaskClosed() if fact.task_id == case.get("task") and fact.reason != "reopened":
            moved = {
                "state": "withdrawn" if fact.reason == "withdrawn" else "closed",
                "closed": case.get("closed") or moment(event.time),
            }
        case TaskHandedOver() if fact.task_id == case.get("task"):
            moved = {
                "state": case["state"] if case["state"] == "withdrawn" else "handed_over",
                "district": fact.to,
                "task": fact.new_task_id,
                "granted": fact.to == case.get("home") or (case.get("granted", False) and fact.grant),
                "holder": None,
            }
        case TaskOffered() | TaskAccepted() | TaskArrived() | TaskDone() | TaskUnplaced():
            if fact.task_id == case.get("task"):
                moved = {"state": case["state"] if case["state"] == "withdrawn" else _TASK_STATES[type(fact)]}
                if isinstance(fact, TaskOffered):
                    moved["offers"], moved["holder"] = case["offers"] + 1, None
                elif isinstance(fact, TaskAccepted):
                    moved["holder"] = fact.member_id
    held = case.get("involved", [])
    concerned = involving(held, event)
    if moved is None and concerned == held:
        return before
    more = [district for district in event.districts.split(",") if district not in case["districts"]]
    seen = case["districts"] + more if more and more != [""] else case["districts"]
    seen_by: Case = {"districts": seen, "involved": concerned}
    return {**case, **(moved or {}), **seen_by, "pos": index, "updated": moment(event.time)}


def _begun(event: Envelope, index: int) -> Case:
    return {
        "_id": event.case or "",
        "first": index,
        "pos": -1,
        "district": event.district,
        "districts": [],
        "involved": [],
        "area": event.area,
        "state": "submitted",
        "round": 1,
        "offers": 0,
    }


def involving(held: Sequence[Involved], event: Envelope) -> list[Involved]:
    """Whom a case concerns after one more fact about it, each once."""
    match event.fact:
        case HandoverOffered(handover_id=id, to=to) | HelpAsked(help_id=id, to=to):
            return _with(held, id, (to,))
        case ConferralOpened(conferral_id=id, parties=parties, lead=lead):
            return _with(held, id, (*parties, lead))
        case TaskHandedOver(by=by, to=to):
            return _with(_without(held, by), None, (event.district, to))
        case HelpAnswered(help_id=id, to=to, member_id=member):
            return _with(_without(held, id), None, (to,) if member else ())
        case HandoverReturned(handover_id=id) | HandoverLapsed(handover_id=id):
            return _without(held, id)
        case ConferralEnded(conferral_id=id) | HelpLapsed(help_id=id):
            return _without(held, id)
    return list(held)


def _with(held: Sequence[Involved], by: str | None, districts: Iterable[str]) -> list[Involved]:
    more: list[Involved] = [{"district": district, "by": by} for district in dict.fromkeys(districts)]
    return [*held, *(one for one in more if one not in held)]


def _without(held: Sequence[Involved], by: str) -> list[Involved]:
    return [one for one in held if one["by"] != by]


def concerns(case: Case, district: str) -> bool:
    """Whether an office has to do with a case, whatever is agreed about its area: it is or was theirs, or they are involved."""
    return district in (case["district"], case.get("home"), *(one["district"] for one in case.get("involved", ())))


def shown(case: Mapping[str, Any]) -> dict[str, Any]:
    """A stored case as callers see it; absent values are null, so that every case has the same keys."""
    return {"id": case["_id"], **{name: case.get(name) for name in SHOWN}}


def entry(index: int, leaf: dict[str, Any]) -> dict[str, Any]:
    """One line of a timeline: where it is in the ledger and the stream, what happened, when, where, by whom."""
    event = leaf["event"]
    tokens = leaf["subject"].split(".")
    line = {
        "index": index,
        "sequence": leaf["src"]["seq"],
        "id": event["id"],
        "type": event["type"],
        "name": f"{tokens[4]}.{tokens[5]}",
        "time": event["time"],
        "recorded": leaf["recorded"],
        "district": tokens[1],
        "area": tokens[3],
        "actor": event.get("actor"),
        "cause": event.get("causationid"),
    }
    data = event["data"]
    return line | {name: data[name] for name in DETAILS if name in data}


def moment(time: datetime) -> str:
    """UTC, in the form that facts have."""
    return orjson.dumps(time.astimezone(UTC), option=orjson.OPT_UTC_Z)[1:-1].decode()


def dues(due: Due) -> dict[str, str]:
    """The four clocks, in the form that facts have."""
    clocks: dict[str, str] = orjson.loads(canonical(due))
    return clocks
