"""What became of a request: a fold of the facts about it, pure."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any, Literal

from shared.envelope import Envelope
from shared.facts import (
    Due,
    RequestRated,
    RequestReopened,
    RequestSubmitted,
    RequestWithdrawn,
    TaskAccepted,
    TaskArrived,
    TaskClosed,
    TaskDone,
    TaskOffered,
    TaskOpened,
    TaskUnplaced,
)

State = Literal[
    "submitted", "opened", "offered", "accepted", "arrived", "done", "closed", "unplaced", "withdrawn"
]  # fmt: skip

_TASK_STATES: dict[type, State] = {
    TaskOffered: "offered",
    TaskAccepted: "accepted",
    TaskArrived: "arrived",
    TaskDone: "done",
    TaskUnplaced: "unplaced",
}
MOVING = (RequestSubmitted, RequestWithdrawn, RequestRated, RequestReopened, TaskOpened, TaskClosed, *_TASK_STATES)
"""The facts that change a case; others appear in its timeline only."""

DETAILS = (
    *("task_id", "member_id", "members", "wave", "until", "reason", "outcome", "grade", "solved", "round", "same_as"),
    *("notice_id", "recipient", "template", "channel", "attempt", "retry_at", "match_id", "item", "urgency", "due"),
    *("item_rule", "urgency_rule", "area_rule", "located_in"),
)
"""What a timeline shows of a fact's data, where the fact has it."""


@dataclass(frozen=True, slots=True)
class Case:
    """
    One request as it stands.

    Attributes:
        district: which office is responsible now; `districts`: all that may see it, in the order they came in.
        first: the index of the first leaf about it; `pos`: of the last that changed it.
        submitted, updated: UTC.
        round: 1, and one more after each reopening.
        offers: how often somebody was asked, over all rounds.
        rated: the last judgement.
    """

    id: str
    first: int
    pos: int
    district: str
    districts: tuple[str, ...]
    area: str
    updated: str
    state: State = "submitted"
    located_in: str | None = None
    item: str | None = None
    urgency: int | None = None
    round: int = 1
    due: dict[str, str] | None = None
    submitted: str | None = None
    task: str | None = None
    holder: str | None = None
    offers: int = 0
    rated: dict[str, Any] | None = None
    same_as: str | None = None
    tracking_hash: str | None = None


def evolve(case: Case | None, index: int, event: Envelope) -> Case | None:
    """
    The case after one more fact about it; a fact that does not move it, or that it has already seen, leaves it as it was.

    Facts about a task that a later round has replaced change nothing: the new task has the word.
    """
    fact = event.fact
    if event.case is None or not isinstance(fact, MOVING) or (case is not None and index <= case.pos):
        return case
    seen = tuple(filter(None, event.districts.split(",")))
    if case is None:
        case = Case(event.case, index, index, event.district, seen, event.area, moment(event.time))
    else:
        more = tuple(district for district in seen if district not in case.districts)
        case = replace(case, pos=index, updated=moment(event.time), districts=case.districts + more)
    match fact:
        case RequestSubmitted():
            return replace(
                case,
                located_in=fact.located_in,
                item=fact.item,
                urgency=fact.urgency,
                due=dues(fact.due),
                submitted=moment(event.time),
                same_as=fact.same_as,
                tracking_hash=fact.tracking_hash,
            )
        case RequestWithdrawn():
            return replace(case, state="withdrawn")
        case RequestRated():
            return replace(case, rated={"grade": fact.grade, "solved": fact.solved})
        case RequestReopened():
            return replace(case, state="submitted", round=case.round + 1, due=dues(fact.due), task=None, holder=None)
        case TaskOpened():
            return replace(
                case,
                state=case.state if case.state == "withdrawn" else "opened",
                district=event.district,
                area=fact.area,
                item=fact.item,
                urgency=fact.urgency,
                round=fact.round,
                due=dues(fact.due),
                same_as=case.same_as or fact.same_as,
                task=fact.task_id,
                holder=None,
            )
        case TaskClosed():
            if fact.task_id != case.task or fact.reason == "reopened":
                return case
            return replace(case, state="withdrawn" if fact.reason == "withdrawn" else "closed")
        case TaskOffered() | TaskAccepted() | TaskArrived() | TaskDone() | TaskUnplaced():
            if fact.task_id != case.task:
                return case
            case = replace(case, state=case.state if case.state == "withdrawn" else _TASK_STATES[type(fact)])
            if isinstance(fact, TaskOffered):
                return replace(case, offers=case.offers + 1, holder=None)
            return replace(case, holder=fact.member_id) if isinstance(fact, TaskAccepted) else case
        case _:
            return case


def document(case: Case) -> dict[str, Any]:
    """The case as it is stored: without absent fields, its id under `_id`."""
    held = {name: getattr(case, name) for name in _NAMES}
    return {"_id": held.pop("id"), **{name: value for name, value in held.items() if value is not None}}


def restore(document: dict[str, Any]) -> Case:
    """The case in a stored document."""
    held = {name: value for name, value in document.items() if name != "_id"}
    return Case(id=document["_id"], **{**held, "districts": tuple(document["districts"])})


def shown(document: dict[str, Any]) -> dict[str, Any]:
    """A stored case as callers see it; absent values are null, so that every case has the same keys."""
    case = restore(document)
    return {name: getattr(case, name) for name in _NAMES if name not in ("first", "tracking_hash")}


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
    """UTC in RFC 3339 with milliseconds."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def dues(due: Due) -> dict[str, str]:
    """The four clocks, as text."""
    return {name: moment(getattr(due, name)) for name in ("sign", "contact", "handle", "life")}


_NAMES = tuple(field.name for field in fields(Case))
