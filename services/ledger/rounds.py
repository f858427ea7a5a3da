"""
Rounds (轮次): what leaves say of each round of each case, and of all else that figures follow from; a fold, pure.

What is kept of a case are sets, firsts and lasts by the facts' own time: in which order the leaves of different writers lie does not
matter, and what comes late counts when it happened. What an office's leaves say of a case is kept apart from what another's say, so
that an office finds the same from its own replay.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

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
    offered: frozenset[str] = frozenset()
    accepted: frozenset[tuple[int, str]] = frozenset()
    declined: frozenset[str] = frozenset()
    arrived: int | None = None
    done: int | None = None
    closed: int | None = None
    passed_on: int | None = None
    parked: int = -1
    resumed: int = -1
    flags: frozenset[Condition] = frozenset()
    clocks: _Clocks | None = None
    """Those that were moved while it was open."""

    def moved(self, at: int, data: dict[str, Any]) -> None:
        clocks = _Clocks.of(at, 2, data["due"])
        self.clocks = max(clocks, self.clocks or clocks)


@dataclass(slots=True)
class _Case:
    """What one office's leaves say of one request."""

    filed: bool = False
    flags: frozenset[Condition] = frozenset()
    where: tuple[int, int, str, str] = (-1, 0, "", "")
    """When that was said, how weighty it is, area, item."""
    rounds: dict[int, tuple[int, _Clocks]] = field(default_factory=dict)
    """When each began, and its clocks."""
    tasks: dict[str, _Task] = field(default_factory=dict)
    owners: frozenset[tuple[int, int, str]] = frozenset()
    """From when on, in which order at that moment, which office is responsible."""
    moves: frozenset[str] = frozenset()
    ratings: frozenset[tuple[int, int, bool]] = frozenset()
    called: frozenset[int] = frozenset()
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
        self.where = max(self.where, (at, rank, area, data["item"]))


class Round(NamedTuple):
    """
    One round as it can be counted.

    Attributes:
        moments: in ms, of those that there are.
        owners: how many offices were responsible for the case one after the other, as far as this office was told.
        members: whom this office asked, with what holds for each of them alone (`PERSONAL`).
        holder: which of them held it last: what else holds for the round holds for them.
    """

    request: str
    area: str
    item: str
    conditions: frozenset[Condition]
    moments: Mapping[Counted, int]
    grade: int | None
    owners: int
    spans: Sequence[tuple[int, int, str]]
    members: Mapping[str, frozenset[Condition]]
    holder: str | None

    def office(self, at: int) -> str:
        """The office that was responsible at a moment."""
        found = self.spans[0][2]
        for since, _, office in self.spans:
            if since > at:
                break
            found = office
        return found


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
        self._ruled: dict[str, tuple[int, bool]] = {}
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
        at, data, office, area = _ms(event["time"]), event["data"], tokens[1], tokens[3]
        if name == FigureAppealed.name:
            self._appeals[data["appeal_id"]] = office, data["request_id"], data["figure"]
        elif name == FigureRuled.name:
            ruling = at, data["granted"]
            self._ruled[data["appeal_id"]] = min(ruling, self._ruled.get(data["appeal_id"], ruling))
        elif name == BuildingScored.name:
            key = office, data["month"], data["building"], data["by"]
            score = at, event["id"], data["points"]
            self._scores[key] = max(score, self._scores.get(key, score))
        elif name in _CASE_FACTS and (request := event.get("correlationid")) is not None:
            for scope in document["scopes"]:
                whose = scope["d"]
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
            Appeal(id, request, figure, self._ruled[id][1] if id in self._ruled else None)
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
            case.owners |= {(at, 0, office)}
            case.says(1, at, 0, area, data)
            if data["channel"] in FOUND_BY:
                case.flags |= {"found"}
            if "contact" in data.get("sealed", {}).get("parts", ()):
                case.flags |= {"contactable"}
            if "same_as" in data:
                case.flags |= {"duplicate"}
            return
        case "request.reopened":
            case.says(data["round"], at, 0, area, data)
            return
        case "request.rated":
            case.ratings |= {(at, data["grade"], data["solved"])}
            return
        case "request.withdrawn":
            case.withdrawn = _first(case.withdrawn, at)
            return
        case "request.disclosed":
            if "contact" in data["parts"] and not data["to"].startswith("service:"):
                case.called |= {at}
            return
    task = case.task(data["task_id"])
    match name:
        case "task.opened":
            task.office, task.round = office, data["round"]
            case.owners |= {(at, 2, office)}
            case.says(data["round"], at, 1, area, data)
        case "task.handed_over":
            task.round = data["round"]
            case.moves |= {data["new_task_id"]}
            case.owners |= {(at, 0, office), (at, 1, data["to"])}  # the giver's until then
            case.says(data["round"], at, 0, area, data)
        case "task.offered":
            task.offered |= {*data["members"]}
        case "task.accepted":
            task.accepted |= {(at, data["member_id"])}
        case "task.declined":
            task.declined |= {data["member_id"]}
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
            task.flags |= {"extended"}
            task.moved(at, data)
        case "task.unplaced":
            task.flags |= {"unplaced"}
        case "handover.offered":
            task.passed_on = _first(task.passed_on, at)
        case "handover.returned":
            task.flags |= {"returned"}


# --- from a case to its rounds -------------------------------------------------------------------------------------------


def _rounds(district: str, request: str, case: _Case, at: int) -> Iterator[Round]:
    """As of a moment, for one office; none where we were told of the case and never whose it is."""
    order = sorted(case.rounds) if case.owners else []
    begun = [case.rounds[round_][0] for round_ in order]
    spans = sorted(case.owners)
    for round_, since, until in zip(order, [-1, *begun[1:]], [*begun[1:], LATER], strict=True):

        def within(moment: int, since: int = since, until: int = until) -> bool:
            return since <= moment < until

        tasks = [task for task in case.tasks.values() if task.round == round_]
        ours = [task for task in tasks if task.office == district]
        clocks = max([case.rounds[round_][1], *(task.clocks for task in tasks if task.clocks)])
        holds = case.flags.union(*(task.flags for task in tasks))
        holds |= _so(
            filed=case.filed and round_ == 1,
            reworked=until != LATER,
            withdrawn=case.withdrawn is not None and within(case.withdrawn),
            parked=any(task.parked > task.resumed for task in tasks),
            offered=any(task.offered for task in tasks),
            declined=any(task.declined for task in tasks),
            due=clocks.life <= at,
        )
        moments: dict[Counted, int] = {
            "begun": case.rounds[round_][0],
            "sign": clocks.sign,
            "contact": clocks.contact,
            "handle": clocks.handle,
            "life": clocks.life,
        }
        signed = _first(*(when for task in tasks for when, _ in task.accepted))
        contacted = _first(
            *(task.arrived for task in tasks), *(task.done for task in tasks), *filter(within, case.called)
        )
        if signed is not None:
            holds |= _so(signed=True, signed_in_time=signed <= clocks.sign)
        if contacted is not None:
            holds |= _so(contacted=True, contacted_in_time=contacted <= clocks.contact)
        if (done := _first(*(task.done for task in tasks))) is not None:
            moments["done"] = done
            holds |= _so(done=True, done_in_time=done <= clocks.handle)
        if (closed := _first(*(task.closed for task in tasks))) is not None:
            moments["closed"] = closed
            holds |= _so(closed=True, closed_in_time=closed <= clocks.life)
        if (passed_on := _first(*(task.passed_on for task in ours))) is not None:
            moments["passed_on"] = passed_on
            holds |= _so(passed_on=True)
        grade = None
        if judged := sorted(rating for rating in case.ratings if within(rating[0])):
            moments["rated"], grade, solved = judged[-1]
            holds |= _so(rated=True, solved=solved)
        yield Round(
            *(request, case.where[2], case.where[3], holds, moments, grade, 1 + len(case.moves), spans),
            *_people(ours, clocks),
        )


PERSONAL: frozenset[Condition] = frozenset({"offered", "declined", "signed", "signed_in_time"})
"""What holds for each member who was asked; all else holds for whoever held the task last."""
LATER = 2**53
"""Behind every moment."""


def _people(ours: Sequence[_Task], clocks: _Clocks) -> tuple[dict[str, frozenset[Condition]], str | None]:
    """An office's members who were asked, with what holds for each; and which of them held the round last."""
    members: dict[str, frozenset[Condition]] = {}
    for task in ours:
        for member in {*task.offered, *task.declined, *(member for _, member in task.accepted)}:
            signed = _first(*(at for at, whose in task.accepted if whose == member))
            members[member] = members.get(member, frozenset()) | _so(
                offered=member in task.offered,
                declined=member in task.declined,
                signed=signed is not None,
                signed_in_time=signed is not None and signed <= clocks.sign,
            )
    held = max((held for task in ours for held in task.accepted), default=None)
    return members, held[1] if held else None


def _so(**conditions: bool) -> frozenset[Any]:
    """Those that hold."""
    return frozenset(name for name, holds in conditions.items() if holds)


def _first(*moments: int | None) -> int | None:
    return min((moment for moment in moments if moment is not None), default=None)


def ms(moment: datetime) -> int:
    """Whole milliseconds since 1970."""
    return int(moment.timestamp()) * 1000 + moment.microsecond // 1000


def _ms(text: str) -> int:
    return ms(datetime.fromisoformat(text))
