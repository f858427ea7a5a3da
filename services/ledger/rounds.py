"""
Rounds (轮次): what leaves say of each round of each case, and of all else that figures follow from; a fold, pure.

What is kept of a case are sets, firsts and lasts by the facts' own time: in which order the leaves of different writers lie does not
matter, and what comes late counts when it happened. What an office's leaves say of a case is kept apart from what another's say, so
that an office finds the same from its own replay.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from sys import intern
from typing import Any, NamedTuple, TypeVar

import orjson

from shared.facts import (
    HUB,
    BuildingScored,
    Condition,
    Counted,
    DistrictSet,
    Fact,
    FigureAppealed,
    FigureRuled,
    FormulaSet,
    HandoverOffered,
    HandoverReturned,
    RequestDisclosed,
    RequestRated,
    RequestReopened,
    RequestSubmitted,
    RequestWithdrawn,
    TaskAccepted,
    TaskArrived,
    TaskClosed,
    TaskDeclined,
    TaskDone,
    TaskExtended,
    TaskHandedOver,
    TaskOffered,
    TaskOpened,
    TaskParked,
    TaskResumed,
    TaskUnplaced,
)
from shared.register import Register, evolve

FOUND_BY = frozenset({"patrol", "sensor"})
"""Channels of what nobody had to ask for (未诉先办)."""
FOLLOWED: tuple[type[Fact], ...] = (
    *(RequestSubmitted, RequestReopened, RequestRated, RequestWithdrawn, RequestDisclosed),
    *(TaskOpened, TaskOffered, TaskAccepted, TaskDeclined, TaskUnplaced, TaskArrived, TaskDone, TaskClosed),
    *(TaskParked, TaskResumed, TaskExtended, TaskHandedOver, HandoverOffered, HandoverReturned),
    *(FigureAppealed, FigureRuled, BuildingScored, DistrictSet, FormulaSet),
)
"""The facts that figures follow from; others need not be read."""


# --- what is known of a case ---------------------------------------------------------------------------------------------


class _Clocks(NamedTuple):
    """The four due times in ms; the later that they were set, the larger."""

    set_at: int
    rank: int
    sign: int
    contact: int
    handle: int
    life: int

    @classmethod
    def of(cls, at: int, rank: int, due: Mapping[str, str]) -> _Clocks:
        return cls(at, rank, _ms(due["sign"]), _ms(due["contact"]), _ms(due["handle"]), _ms(due["life"]))


@dataclass(slots=True)
class _Task:
    """What one office's task has come to; times in ms."""

    office: str | None = None
    round: int | None = None
    offered: tuple[str, ...] = ()
    accepted: tuple[tuple[int, str], ...] = ()
    declined: tuple[str, ...] = ()
    arrived: int | None = None
    done: int | None = None
    closed: int | None = None
    passed_on: int | None = None
    parked: int = -1
    resumed: int = -1
    flags: tuple[Condition, ...] = ()
    clocks: _Clocks | None = None
    """Those that were moved while it was open."""

    def moved(self, at: int, data: dict[str, Any]) -> None:
        clocks = _Clocks.of(at, 2, data["due"])
        self.clocks = max(clocks, self.clocks or clocks)


@dataclass(slots=True)
class _Case:
    """What one office's leaves say of one request."""

    filed: bool = False
    flags: tuple[Condition, ...] = ()
    where: tuple[int, int, str, str] = (-1, 0, "", "")
    """When that was said, how weighty it is, area, item."""
    rounds: dict[int, tuple[int, _Clocks]] = field(default_factory=dict)
    """When each began, and its clocks."""
    tasks: dict[str, _Task] = field(default_factory=dict)
    owners: tuple[tuple[int, int, str], ...] = ()
    """From when on, in which order at that moment, which office is responsible."""
    moves: tuple[str, ...] = ()
    ratings: tuple[tuple[int, int, bool], ...] = ()
    called: tuple[int, ...] = ()
    withdrawn: int | None = None

    def task(self, id: str) -> _Task:
        found = self.tasks.get(id)
        if found is None:
            found = self.tasks[id] = _Task()
        return found

    def says(self, round_: int, at: int, rank: int, area: str, data: dict[str, Any]) -> None:
        """A fact that tells when a round began at the latest, where it is, what it is about and its clocks."""
        clocks = _Clocks.of(at, rank, data["due"])
        begun, known = self.rounds.get(round_, (at, clocks))
        self.rounds[round_] = min(at, begun), max(clocks, known)
        self.where = max(self.where, (at, rank, intern(area), intern(data["item"])))


class Round(NamedTuple):
    """
    One round as it can be counted.

    Attributes:
        moments: in ms, of those that there are.
        owners: how many offices were responsible for the case one after the other, as far as this office was told.
        spans: from when on, in which order at that moment, which office was responsible.
    """

    request: str
    area: str
    item: str
    conditions: frozenset[Condition]
    moments: Mapping[Counted, int]
    grade: int | None
    owners: int
    spans: tuple[tuple[int, int, str], ...]
    ours: tuple[_Task, ...]
    clocks: _Clocks

    def office(self, at: int) -> str:
        """The office that was responsible up to a moment: what is handed over in the same millisecond was the giver's."""
        found = self.spans[0][2]
        for since, _, office in self.spans:
            if since >= at:
                break
            found = office
        return found

    def people(self) -> Iterator[tuple[str, frozenset[Condition]]]:
        """This office's members who were asked, each with what holds for them; for whoever held it last, what holds for the round too."""
        own: dict[str, set[Condition]] = {}
        for task in self.ours:
            for member in task.offered:
                own.setdefault(member, set()).add("offered")
            for member in task.declined:
                own.setdefault(member, set()).add("declined")
            for when, member in task.accepted:
                in_time = when <= self.clocks.sign
                own.setdefault(member, set()).update(("signed", "signed_in_time") if in_time else ("signed",))
        _, holder = max((held for task in self.ours for held in task.accepted), default=(0, None))
        for member, holds in own.items():
            yield member, (self.conditions - PERSONAL | holds) if member == holder else frozenset(holds)


class Appeal(NamedTuple):
    """An appeal, and whether it was granted; None: nobody has ruled yet."""

    id: str
    request: str
    figure: str
    granted: bool | None


class Fold:
    """
    Leaves in, in any order of writers; rounds, appeals, formulas and scores out.

    Args:
        district: whose leaves to follow; None: every office's, each from those that list it.
    """

    def __init__(self, district: str | None = None) -> None:
        self.register = Register()
        self.recorded = 0
        """ms; the newest of the leaves that were taken."""
        self._district = district
        self._cases: dict[tuple[str, str], _Case] = {}
        self._appeals: dict[str, tuple[str, str, str]] = {}
        self._ruled: dict[str, bool] = {}
        self._scores: dict[tuple[str, str, str, str], tuple[int, str, int]] = {}

    @property
    def districts(self) -> list[str]:
        """The offices that there are leaves of cases of."""
        return sorted({district for district, _ in self._cases})

    def take_all(self, leaves: Iterable[bytes]) -> None:
        """More leaves."""
        for leaf in leaves:
            self.take(leaf)

    def take(self, leaf: bytes) -> None:
        """One more leaf; of those that figures do not follow from nothing is kept."""
        document = orjson.loads(leaf)
        self.recorded = max(self.recorded, _ms(document["recorded"][:23] + "Z"))
        if document["kind"] != "event":
            return
        tokens = document["subject"].split(".", 6)
        name = f"{tokens[4]}.{tokens[5]}"
        event = document["event"]
        if (setter := _REGISTER.get(name)) is not None:
            self.register = evolve(self.register, setter.model_validate(event["data"]))
            return
        at, data, office, area = _ms(event["time"]), event["data"], intern(tokens[1]), tokens[3]
        if name == FigureAppealed.name:
            self._appeals[data["appeal_id"]] = office, data["request_id"], data["figure"]
        elif name == FigureRuled.name:
            self._ruled[data["appeal_id"]] = data["granted"]  # there is one ruling: its id follows from the appeal's
        elif name == BuildingScored.name:
            key = office, data["month"], data["building"], data["by"]
            score = at, event["id"], data["points"]
            self._scores[key] = max(score, self._scores.get(key, score))
        elif name in _CASE_FACTS and (request := event.get("correlationid")) is not None:
            for scope in document["scopes"]:
                whose = intern(scope["d"])
                if whose == HUB or self._district not in (None, whose):
                    continue
                case = self._cases.get((whose, request))
                if case is None:
                    case = self._cases[whose, request] = _Case()
                _step(case, name, at, office, area, data)

    def rounds(self, district: str, at: int) -> Iterator[Round]:
        """Every round of every case that an office's leaves tell of, as of a moment (ms)."""
        for (whose, request), case in self._cases.items():
            if whose == district:
                yield from _rounds(district, request, case, at)

    def appeals(self, district: str) -> list[Appeal]:
        """Every appeal of an office, by id."""
        return [
            Appeal(id, request, figure, self._ruled.get(id))
            for id, (office, request, figure) in sorted(self._appeals.items())
            if office == district
        ]

    def scores(self, district: str) -> Iterator[tuple[str, str, str, int]]:
        """Month, building, by whom and points, of one office's buildings."""
        for (office, month, building, by), (_, _, points) in sorted(self._scores.items()):
            if office == district:
                yield month, building, by, points


_REGISTER: Mapping[str, type[Fact]] = {fact.name: fact for fact in (DistrictSet, FormulaSet)}
_CASE_FACTS = frozenset(fact.name for fact in FOLLOWED) - {
    *_REGISTER,
    FigureAppealed.name,
    FigureRuled.name,
    BuildingScored.name,
}


def _step(case: _Case, name: str, at: int, office: str, area: str, data: dict[str, Any]) -> None:
    """One more fact about a case. Whatever it changes is a set, a first or a last: facts may come in any order."""
    match name:
        case "request.submitted":
            case.filed = True
            case.owners = _with(case.owners, (at, 0, office))
            case.says(1, at, 0, area, data)
            if data["channel"] in FOUND_BY:
                case.flags = _with(case.flags, "found")
            if "contact" in data.get("sealed", {}).get("parts", ()):
                case.flags = _with(case.flags, "contactable")
            if "same_as" in data:
                case.flags = _with(case.flags, "duplicate")
            return
        case "request.reopened":
            case.says(data["round"], at, 0, area, data)
            return
        case "request.rated":
            case.ratings = _with(case.ratings, (at, data["grade"], data["solved"]))
            return
        case "request.withdrawn":
            case.withdrawn = _first(case.withdrawn, at)
            return
        case "request.disclosed":
            if "contact" in data["parts"] and not data["to"].startswith("service:"):
                case.called = _with(case.called, at)
            return
    task = case.task(data["task_id"])
    match name:
        case "task.opened":
            task.office, task.round = office, data["round"]
            case.owners = _with(case.owners, (at, 2, office))
            case.says(data["round"], at, 1, area, data)
        case "task.handed_over":
            task.round = data["round"]
            case.moves = _with(case.moves, data["new_task_id"])
            case.owners = _with(case.owners, (at, 0, office), (at, 1, intern(data["to"])))  # the giver's until then
            case.says(data["round"], at, 0, area, data)
        case "task.offered":
            task.offered = _with(task.offered, *map(intern, data["members"]))
        case "task.accepted":
            task.accepted = _with(task.accepted, (at, intern(data["member_id"])))
        case "task.declined":
            task.declined = _with(task.declined, intern(data["member_id"]))
        case "task.arrived":
            task.arrived = _first(task.arrived, at)
        case "task.done":
            task.done = _first(task.done, at)
        case "task.closed":
            if data["reason"] in ("rated", "quiet"):
                task.closed = _first(task.closed, at)
        case "task.parked":
            task.parked = max(task.parked, at)
        case "task.resumed":
            task.resumed = max(task.resumed, at)
            task.moved(at, data)
        case "task.extended":
            task.flags = _with(task.flags, "extended")
            task.moved(at, data)
        case "task.unplaced":
            task.flags = _with(task.flags, "unplaced")
        case "handover.offered":
            task.passed_on = _first(task.passed_on, at)
        case "handover.returned":
            task.flags = _with(task.flags, "returned")


# --- from a case to its rounds -------------------------------------------------------------------------------------------


def _rounds(district: str, request: str, case: _Case, at: int) -> Iterator[Round]:
    """As of a moment, for one office; none where we were told of the case and never whose it is."""
    order = sorted(case.rounds) if case.owners else []
    begun = [case.rounds[round_][0] for round_ in order]
    for round_, since, until in zip(order, [-1, *begun[1:]], [*begun[1:], LATER], strict=True):
        began, clocks = case.rounds[round_]
        holds: set[Condition] = {*case.flags}
        signed = arrived = done = closed = passed_on = None
        ours = []
        for task in case.tasks.values():
            if task.round != round_:
                continue
            if task.clocks is not None:
                clocks = max(clocks, task.clocks)
            holds.update(task.flags)
            if task.offered:
                holds.add("offered")
            if task.declined:
                holds.add("declined")
            if task.parked > task.resumed:
                holds.add("parked")
            if task.accepted:
                signed = _first(signed, task.accepted[0][0])
            arrived, done, closed = _first(arrived, task.arrived), _first(done, task.done), _first(closed, task.closed)
            if task.office == district:
                passed_on = _first(passed_on, task.passed_on)
                ours.append(task)
        contacted = _first(arrived, done, *(call for call in case.called if since <= call < until))
        if round_ == 1 and case.filed:
            holds.add("filed")
        if until != LATER:
            holds.add("reworked")
        if case.withdrawn is not None and since <= case.withdrawn < until:
            holds.add("withdrawn")
        if clocks.life <= at:
            holds.add("due")
        if signed is not None:
            holds.update(("signed", "signed_in_time") if signed <= clocks.sign else ("signed",))
        if contacted is not None:
            holds.update(("contacted", "contacted_in_time") if contacted <= clocks.contact else ("contacted",))
        moments: dict[Counted, int] = {
            "begun": began,
            "sign": clocks.sign,
            "contact": clocks.contact,
            "handle": clocks.handle,
            "life": clocks.life,
        }
        if done is not None:
            moments["done"] = done
            holds.update(("done", "done_in_time") if done <= clocks.handle else ("done",))
        if closed is not None:
            moments["closed"] = closed
            holds.update(("closed", "closed_in_time") if closed <= clocks.life else ("closed",))
        if passed_on is not None:
            moments["passed_on"] = passed_on
            holds.add("passed_on")
        grade = None
        for when, given, solved in case.ratings:
            if since <= when < until:
                moments["rated"], grade = when, given
                holds.add("rated")
                (holds.add if solved else holds.discard)("solved")
        yield Round(
            *(request, case.where[2], case.where[3], frozenset(holds), moments, grade),
            *(1 + len(case.moves), case.owners, tuple(ours), clocks),
        )


PERSONAL: frozenset[Condition] = frozenset({"offered", "declined", "signed", "signed_in_time"})
"""What holds for each member who was asked; all else holds for whoever held the task last."""
LATER = 2**53
"""Behind every moment."""
T = TypeVar("T", bound=Any)


def _with(held: tuple[T, ...], *more: T) -> tuple[T, ...]:
    """A small set, as a sorted tuple: a third of the memory."""
    return tuple(sorted({*held, *more}))


def _first(*moments: int | None) -> int | None:
    return min((moment for moment in moments if moment is not None), default=None)


def ms(moment: datetime) -> int:
    """Whole milliseconds since 1970."""
    return int(moment.timestamp()) * 1000 + moment.microsecond // 1000


def _ms(text: str) -> int:
    return ms(datetime.fromisoformat(text))
