"""
A city of desks that share one stream: each takes turns of its own, as far behind the others as a test likes.

What `shared/turns.py` does is done here without a bus: inputs by subject and in order, commands, deadlines, one batch per turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import reduce
from typing import Any

import orjson

from services.dispatch import model
from services.dispatch.commands import Enrol, Verb
from services.dispatch.decide import decide
from services.dispatch.desk import RULES
from services.dispatch.model import Desk, Task
from services.dispatch.states import STEPS
from shared.auth import Caller
from shared.envelope import Envelope
from shared.errors import RefusedError
from shared.facts import (
    DistrictSet,
    Fact,
    HelpReceived,
    PolicySet,
    Position,
    RegisterFact,
    TaskHandedOver,
    TaskOpened,
    TurnCommitted,
    plain,
)
from shared.turns import Command, Deadline, Decision, Input
from tests.examples import (
    HONGSHAN,
    NOW,
    OUJING,
    POLICY,
    QINGSHAN,
    REGISTER,
    WUCHANG,
    area,
    enrolled,
    envelope,
    id_of,
    name,
)
from tests.system import history

OFFICES = (WUCHANG, QINGSHAN, HONGSHAN)
GARDEN = "yuanlin-1"
"""A grid that 青山 serves."""
CITY: tuple[RegisterFact, ...] = (
    *REGISTER,
    DistrictSet(district=HONGSHAN, title=name("洪山区"), office=name("洪山区网格中心")),
    area(GARDEN, located_in=QINGSHAN, served_by=QINGSHAN),
    *(PolicySet.model_validate({**dict(POLICY), "district": code}) for code in (QINGSHAN, HONGSHAN)),
)


def supervisor(district: str) -> Caller:
    """Who may give every command there."""
    return Caller(f"staff-{district[-1]}", district, frozenset({"supervisor"}))


@dataclass
class Turn:
    """One turn as it was taken, so that it can be decided again."""

    district: str
    inputs: list[Input]
    work: list[Input | Command | Deadline]
    now: datetime
    facts: list[Envelope]
    marker: Envelope
    torn: bool = False


@dataclass
class City:
    """The stream and the desks; `position` is how far each has read."""

    now: datetime = NOW
    stream: list[Envelope] = field(default_factory=list)
    desks: dict[str, Desk] = field(default_factory=lambda: {code: model.initial(code) for code in OFFICES})
    position: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OFFICES, 0))
    turns: list[Turn] = field(default_factory=list)
    n: int = 0

    @classmethod
    def at_work(cls) -> City:
        """With a register that all have read, and people."""
        city = cls(stream=[envelope(fact) for fact in CITY])
        teams = {
            WUCHANG: (enrolled("m-li", OUJING),),
            QINGSHAN: (enrolled("m-chen", GARDEN, OUJING), enrolled("m-guo", GARDEN, capacity=20)),
            HONGSHAN: (enrolled("m-hu", GARDEN),),
        }
        for district, team in teams.items():
            city.turn(district)
            assert city.ask(district, Enrol(members=team)) is None
        return city

    # --- what happens -------------------------------------------------------------------------------------------------

    def publish(self, fact: Fact, district: str = WUCHANG, *, area: str = OUJING) -> None:
        """Intake's fact."""
        self.n += 1
        self.stream.append(
            envelope(fact, at=self.now, district=district, area=area, id=id_of("fact", self.n, fact.name))
        )

    def ask(self, district: str, what: Verb, *, by: Caller | None = None, id: str | None = None) -> str | None:
        """A command, decided in a turn of its own before anything else is read; the problem's code where it is refused."""
        self.n += 1
        command = Command(id or id_of("command", self.n), what, by or supervisor(district))
        return self.turn(district, inputs=0, commands=(command,), deadlines=False)

    def turn(
        self,
        district: str,
        inputs: int | None = None,
        commands: Sequence[Command] = (),
        *,
        deadlines: bool = True,
        kept: int | None = None,
    ) -> str | None:
        """
        One turn: so many inputs (all there are by default), these commands, and what is due.

        Args:
            kept: a power loss leaves so many facts of the batch, without its marker: the next leader folds them, and reads the
                same inputs again.
        """
        desk, read = self.desks[district], self.position[district]
        taken: list[Input] = []
        for sequence, one in enumerate(self.stream[read:], read + 1):
            if inputs is not None and len(taken) >= inputs:
                break
            read = sequence
            if any(matches(wanted, one.subject) for wanted in RULES.inputs(district)):
                taken.append(Input(sequence, one))
        for piece in taken:
            desk = model.take_in(desk, piece.envelope)
        due = sorted(d for d in model.deadlines(desk) if d.at <= self.now) if deadlines else []
        work: list[Input | Command | Deadline] = [*commands, *taken, *due]
        facts: list[Envelope] = []
        code = None
        for item in work:
            try:
                made = decide(desk, item, self.now)
            except RefusedError as why:
                code = why.code
                continue
            self.legal(desk, made)
            assert reduce(model.evolve, made.facts, desk) == made.state, "the fold is not the state decided on"
            desk = made.state
            facts += made.facts
        for fact in facts:
            fact.encode()
        if kept is not None:
            facts, taken, work, read = facts[:kept], [], [], self.position[district]
            desk = reduce(model.evolve, facts, self.desks[district])
        marker = TurnCommitted(
            position=Position(created="x", sequence=read),
            by=f"d-{district}",
            epoch=1,
            facts=0 if kept is not None else len(facts),
        )
        end = envelope(marker, at=self.now, district=district, area="-", id=id_of("marker", len(self.turns)))
        self.turns.append(Turn(district, taken, work, self.now, facts, end, torn=kept is not None))
        self.desks[district] = model.evolve(desk, end)
        self.position[district] = read
        self.stream += [*facts, end]
        return code

    def settle(self) -> None:
        """Everybody reads everything, until nothing more follows."""
        while True:
            before = sum(turn.facts != [] for turn in self.turns)
            for district in OFFICES:
                self.turn(district)
            if sum(turn.facts != [] for turn in self.turns) == before:
                return

    def wait(self, *, hours: float = 0, minutes: float = 0) -> None:
        """Time passes, and nobody does anything."""
        self.now += timedelta(hours=hours, minutes=minutes)

    # --- what there is ------------------------------------------------------------------------------------------------

    def task(self, district: str, n: int = 1) -> Task | None:
        """The open task of a request at a desk."""
        return self.desks[district].task_of(id_of("request", n))

    def owners(self, n: int = 1) -> list[str]:
        """The offices with an open task for a request, and those to which it is under way."""
        request = id_of("request", n)
        there = [code for code in OFFICES if self.desks[code].task_of(request)]
        opened = {one.fact.task_id for one in self.stream if isinstance(one.fact, TaskOpened)}
        moved = [one.fact for one in self.stream if isinstance(one.fact, TaskHandedOver) and one.case == request]
        return there + [fact.to for fact in moved if fact.new_task_id not in opened]

    def names(self, *of: str) -> list[str]:
        """`<last digit of the district>:<fact>` of everything between offices, and of tasks opened, handed over and closed."""
        wanted = of or ("handover.", "conferral.", "help.", "task.opened", "task.handed_over", "task.closed")
        return [f"{one.district[-1]}:{one.fact.name}" for one in self.stream if one.fact.name.startswith(wanted)]

    def last(self, name: str) -> Envelope:
        """The newest fact of a name."""
        return next(one for one in reversed(self.stream) if one.fact.name == name)

    def said(self, name: str) -> Any:
        """What it says."""
        return self.last(name).fact

    def id(self, name: str) -> str:
        """The entity of the newest fact of a name."""
        fact = self.last(name).fact
        return str(getattr(fact, fact.key))

    # --- what must hold ------------------------------------------------------------------------------------------------

    def legal(self, desk: Desk, made: Decision[Desk]) -> None:
        """Every step is a row of the table of states, and leads where the table says."""
        for one in made.facts:
            task = desk.tasks.get(getattr(one.fact, "task_id", ""))
            if task and one.fact.name in STEPS:
                before, after = STEPS[one.fact.name]
                assert task.status in before, f"{one.fact.name} of a task that is {task.status}"
                desk = model.evolve(desk, one)
                now = desk.tasks.get(task.id)
                assert (now.status if now else desk.ended(task.id)) == (after or task.status), one.fact.name
            else:
                desk = model.evolve(desk, one)

    def check(self) -> None:
        """I2, I3, I4, and that a desk is what it dumps."""
        for n in range(1, 5):
            assert len(self.owners(n)) <= 1, f"request {n} is at {self.owners(n)}"
        for desk in self.desks.values():
            effort: dict[str, int] = dict.fromkeys(desk.members, 0)
            for task in desk.tasks.values():
                holding = (task.holder,) if task.holder and task.status != "done" else ()
                for member in (*task.offered, *holding):
                    effort[member] += task.effort
                responsible = task.until or task.holder or task.status == "unplaced"
                assert responsible, f"{task} has neither a deadline nor a person"
                for id in (*((task.asking,) if task.asking else ()), *task.helps):
                    assert desk.matters[id].ours
            for matter in desk.matters.values():
                if isinstance(matter.fact, HelpReceived) and matter.member:
                    effort[matter.member] += matter.fact.effort
                if matter.ours and matter.stage == "open":
                    assert matter.until, f"{matter} stands open for ever"
            assert {m.id: m.load for m in desk.members.values()} == effort, "loads"
            assert all(m.load <= m.capacity for m in desk.members.values()), "above capacity"

    def check_all(self, *, ended: bool = True) -> None:
        """Every law of the history, and that each turn decided again gives the same facts, on a state folded from facts alone."""
        records = [history.Record(n, n, one.subject, one.encode(), {}) for n, one in enumerate(self.stream, 1)]
        facts = list(history.facts_of(records))
        assert len(facts) == len(records)
        broken: list[tuple[str, str]] = []
        history.check_tasks(facts, lambda law, what: broken.append((law, what)), ended=False)
        history.check_offices(facts, lambda law, what: broken.append((law, what)), ended=ended)
        assert not broken, broken
        folded = {code: model.initial(code) for code in OFFICES}
        for turn in self.turns:
            desk = folded[turn.district]
            desk = reduce(model.take_in, (piece.envelope for piece in turn.inputs), desk)
            again = decide_all(desk, turn.work, turn.now)
            told = [fact.encode() for fact in turn.facts]
            assert turn.torn or [fact.encode() for fact in again] == told, "decided otherwise"
            folded[turn.district] = reduce(model.evolve, (*turn.facts, turn.marker), desk)
        assert folded == self.desks, "the fold is not the state"
        for desk in self.desks.values():
            dumped = orjson.dumps(model.dump(desk), default=plain)
            assert model.load(orjson.loads(dumped)) == desk, "dump and load"


def decide_all(desk: Desk, work: Iterable[Input | Command | Deadline], now: datetime) -> list[Envelope]:
    """The facts that a turn's work leads to."""
    facts: list[Envelope] = []
    for piece in work:
        try:
            made = decide(desk, piece, now)
        except RefusedError:
            continue
        desk = made.state
        facts += made.facts
    return facts


def matches(wanted: str, subject: str) -> bool:
    """Whether a subject is one of those that a filter means."""
    parts, tokens = wanted.split("."), subject.split(".")
    if parts[-1] == ">":
        return len(tokens) >= len(parts) and all(p in ("*", t) for p, t in zip(parts[:-1], tokens, strict=False))
    return len(parts) == len(tokens) and all(p in ("*", t) for p, t in zip(parts, tokens, strict=True))
