"""
How things stood: a case, or all that an office had at hand, as of a size of the log and a moment of business time.

Folds of leaves and of nothing else, so that whoever holds the leaves gets the same answer. An office's state keeps the open cases
only: of a case that is over or somebody else's, its own leaves are read again when a fact may open it here.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import orjson

from services.ledger import cases
from services.ledger.cases import Case
from services.ledger.log.leaves import EVENT
from services.ledger.store import Selection
from shared.envelope import Envelope, opened
from shared.facts import CATALOGUE, RequestReopened, TaskHandedOver, TaskOpened

OVER = ("closed", "withdrawn")
_MOVING = frozenset(f"{fact.service}.{fact.name}" for fact in CATALOGUE if fact in cases.MOVING)
_OPENING = (RequestReopened, TaskOpened, TaskHandedOver)
"""
What may bring a case to an office that has it not at hand; whatever else is said of it changes no count. (As of a moment of business
time any fact may: what comes before it in the log may be later.)
"""
BATCH = 500
LOOK_AT = 100
LOOKED_AT_MAX = 1000


@dataclass(frozen=True, slots=True)
class Step:
    """A leaf of kind `event` as a fold takes it; `event` is there where it moves a case."""

    index: int
    case: str | None
    n: int
    event: Envelope | None


def read(data: bytes) -> Step:
    """The step that a stored leaf is."""
    return stepped(orjson.loads(data))


def stepped(leaf: Mapping[str, Any]) -> Step:
    """The step that a leaf is."""
    if leaf["kind"] != EVENT or "case" not in leaf:
        return Step(leaf["index"], None, 0, None)
    tokens = leaf["subject"].split(".")
    moves = f"{tokens[2]}.{tokens[4]}.{tokens[5]}" in _MOVING
    event = opened(leaf["subject"], leaf["event"]) if moves else None
    return Step(leaf["index"], leaf["case"]["id"], leaf["case"]["n"], event)


@dataclass(slots=True)
class Held:
    """A case at hand, how many of its events are folded, and what its task weighs."""

    case: Case | None = None
    n: int = 0
    effort: int = 0

    def take(self, step: Step, at: datetime | None) -> None:
        """One more leaf about it; what had not happened by `at` changes nothing."""
        self.n = step.n
        event = step.event
        if event is None or (at is not None and event.time > at):
            return
        self.case = cases.evolve(self.case, step.index, event)
        if isinstance(event.fact, TaskOpened):
            self.effort = event.fact.effort


def of_case(leaves: Iterable[tuple[int, bytes]], at: datetime | None = None) -> Held:
    """One case after these leaves about it, oldest first; its `case` is None where nothing had happened by `at`."""
    held = Held()
    for _, data in leaves:
        held.take(read(data), at)
    return held


@dataclass(slots=True)
class State:
    """
    What an office has at hand.

    Attributes:
        district: whose; None for all offices together.
        at: only what had happened by then, by the facts' own time.
        open: its open cases.
        over: how many of its cases are closed or withdrawn.
    """

    district: str | None = None
    at: datetime | None = None
    open: dict[str, Held] = field(default_factory=dict)
    over: Counter[str] = field(default_factory=Counter)

    def wants(self, step: Step) -> bool:
        """Whether the earlier leaves of this step's case have to be read for it."""
        held = self.open.get(step.case or "")
        if held is not None:
            return step.n != held.n + 1
        if step.n == 1 or step.event is None or self._later(step.event):
            return False
        return self.at is not None or isinstance(step.event.fact, _OPENING)

    def take(self, step: Step, earlier: Sequence[tuple[int, bytes]] = ()) -> None:
        """One more leaf; with the earlier ones of its case where it `wants` them."""
        if step.case is None:
            return
        held = self.open.pop(step.case, None)
        if held is None:
            if step.event is None or self._later(step.event) or (step.n > 1 and not earlier):
                return
            held = of_case(earlier, self.at)
            if held.case is not None and self._ours(held.case) and held.case["state"] in OVER:
                self.over[held.case["state"]] -= 1
        elif earlier:
            held = of_case(earlier, self.at)
        held.take(step, self.at)
        if held.case is None or not self._ours(held.case):
            return
        if held.case["state"] in OVER:
            self.over[held.case["state"]] += 1
        else:
            self.open[step.case] = held

    def _later(self, event: Envelope) -> bool:
        return self.at is not None and event.time > self.at

    def _ours(self, case: Case) -> bool:
        return self.district is None or case["district"] == self.district

    def shown(self) -> dict[str, Any]:
        """`cases`: how many are open, in which state, and over; `members`: what each holds, and its effort."""
        states: Counter[str] = Counter()
        members: dict[str, list[int]] = {}
        for held in self.open.values():
            assert held.case is not None
            states[held.case["state"]] += 1
            holder = held.case.get("holder")
            if holder is not None and held.case["state"] in ("accepted", "arrived"):
                load = members.setdefault(holder, [0, 0])
                load[0] += 1
                load[1] += held.effort
        return {
            "cases": {
                "open": len(self.open),
                "states": dict(sorted(states.items())),
                **{state: self.over[state] for state in OVER},
            },
            "members": [{"member": id, "held": load[0], "effort": load[1]} for id, load in sorted(members.items())],
        }


class Log(Protocol):
    """What is read of the store."""

    async def read(self, selection: Selection, since: int, below: int, limit: int) -> list[tuple[int, bytes]]:
        """Leaves in a range."""


class Cases(Log, Protocol):
    """And which cases there are."""

    async def list_cases(
        self,
        by: Mapping[str, str],
        *,
        district: str | None,
        below: int | None,
        limit: int,
        closed: Collection[str] = (),
    ) -> list[Case]:
        """Cases as the projection has them, newest first."""


async def case_at(
    log: Log, id: str, size: int, at: datetime | None = None
) -> tuple[Case | None, list[tuple[int, bytes]]]:
    """A case as of a size and a moment, and the leaves about it that had been written and had happened by then."""
    found = await _about(log, id, size)
    if at is not None:
        found = [leaf for leaf in found if datetime.fromisoformat(orjson.loads(leaf[1])["event"]["time"]) <= at]
    return of_case(found).case, found


async def cases_at(
    log: Cases,
    by: Mapping[str, str],
    size: int,
    at: datetime | None,
    *,
    district: str | None,
    closed: Collection[str],
    below: int | None,
    limit: int,
) -> tuple[list[dict[str, Any]], int | None]:
    """
    Cases that had these values as of a size and a moment, newest first; the projection says which to look at, their leaves the rest.

    Args:
        below: `first` of those that are looked at; as the answer before said.
    Returns: at most `limit`, as callers see them, and where to go on; a page may be short, because 1,000 cases are looked at for it.
    """
    page: list[dict[str, Any]] = []
    below = size if below is None else min(below, size)
    looked = 0
    while looked < LOOKED_AT_MAX:
        candidates = await log.list_cases({}, district=district, below=below, limit=LOOK_AT, closed=closed)
        for candidate in candidates:
            below = candidate["first"]
            case, _ = await case_at(log, candidate["_id"], size, at)
            if case is None or (district is not None and district not in case["districts"]):
                continue
            if all(case.get(name) == value for name, value in by.items()):
                page.append(cases.shown(case))
                if len(page) == limit:
                    return page, below
        looked += len(candidates)
        if len(candidates) < LOOK_AT:
            return page, None
    return page, below


async def state_at(log: Log, district: str | None, size: int, at: datetime | None = None) -> State:
    """What an office (None: all) had at hand as of a size and a moment: one pass over its leaves, however long the log is."""
    state = State(district, at)
    asked = Selection(district=district, kinds=(EVENT,))
    since = 0
    while chunk := await log.read(asked, since, size, BATCH):
        for index, data in chunk:
            step = read(data)
            state.take(step, await _about(log, step.case or "", index) if state.wants(step) else ())
        since = chunk[-1][0] + 1
        await asyncio.sleep(0)  # others are served meanwhile
    return state


async def _about(log: Log, case: str, below: int) -> list[tuple[int, bytes]]:
    """Every leaf about a case below an index."""
    found = await log.read(Selection(request=case), 0, below, BATCH)
    while (
        found
        and len(found) % BATCH == 0
        and (more := await log.read(Selection(request=case), found[-1][0] + 1, below, BATCH))
    ):
        found += more
    return found
