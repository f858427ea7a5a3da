"""What a desk knows, from facts alone: its members and their load, its open tasks, and what it has answered."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import reduce
from sys import intern
from typing import Any, NamedTuple

from immutables import Map

from services.dispatch import between
from services.dispatch.between import Matter
from services.dispatch.matching import again_at, around
from services.dispatch.states import End, Status
from shared import register as registers
from shared.envelope import Envelope
from shared.facts import (
    Due,
    Duty,
    Fact,
    Language,
    MatchExplained,
    MemberEnrolled,
    MemberLeft,
    Point,
    TaskAccepted,
    TaskArrived,
    TaskClosed,
    TaskDeclined,
    TaskDone,
    TaskExpired,
    TaskHandedOver,
    TaskOffered,
    TaskOpened,
    TaskUnplaced,
    TurnCommitted,
    plain,
)
from shared.register import Register
from shared.turns import Deadline

REMEMBERED = timedelta(hours=24)
"""How long a command's answer and a closed task's id are remembered, at least; twice that at most."""


@dataclass(frozen=True, slots=True)
class Task:
    """
    An open task.

    Attributes:
        districts: this office, and those whom its carried-out hand-overs and help name; they see its facts whatever is agreed.
        offered: who has been asked and may still answer.
        tried: everybody who was ever asked.
        until: when the present state ends by itself: an offer, being done without a rating, or being unplaced only for the hour.
        spent: how many waves there had been when it was last unplaced: the policy's limit counts from there.
        since: when it was first unplaced.
        waits_in: where it waits while it is unplaced: its area and those around it.
        asking: the hand-over that is offered for it, or the conferral about it, while one stands open.
        attempt: how often it was offered to another office.
        refused: the hand-overs that were refused since it was last conferred about; `refusers`: by whom.
        helps: the calls for help with it that stand open, or were answered with somebody.
    """

    id: str
    request: str
    round: int
    area: str
    districts: str
    item: str
    urgency: int
    effort: int
    kinds: tuple[str, ...]
    skills: tuple[str, ...]
    due: Due
    located_in: str | None = None
    point: Point | None = None
    language: Language = "zh-CN"
    status: Status = "opened"
    wave: int = 0
    offered: tuple[str, ...] = ()
    tried: tuple[str, ...] = ()
    holder: str | None = None
    until: datetime | None = None
    spent: int = 0
    since: datetime | None = None
    waits_in: tuple[str, ...] = ()
    asking: str | None = None
    attempt: int = 0
    refused: tuple[str, ...] = ()
    refusers: tuple[str, ...] = ()
    helps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Member:
    """
    Somebody who may be given work.

    `load` is their open effort: what they hold, what they have been asked, and what they were lent to another office for.
    """

    id: str
    kind: str
    areas: tuple[str, ...]
    skills: frozenset[str]
    capacity: int
    duty: tuple[Duty, ...]
    load: int = 0
    left: bool = False


class Answer(NamedTuple):
    """
    What a command led to: its first fact's name and id, the entity it is about, and how many facts there were.

    Attributes:
        enrolled: who was new to the desk; `changed`: who was known on other terms, or had left.
    """

    fact: str
    id: str
    of: str
    facts: int
    enrolled: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """As the caller gets it, now and at every repeat."""
        said: dict[str, Any] = {"ok": True, "fact": self.fact, "id": self.id, "of": self.of, "facts": self.facts}
        if self.enrolled or self.changed:
            said |= {"enrolled": list(self.enrolled), "changed": list(self.changed)}
        return said


@dataclass(frozen=True)
class Desk:
    """The state of one district's desk."""

    district: str
    register: Register = field(default_factory=Register)
    members: Map[str, Member] = field(default_factory=Map)
    by_area: Map[str, tuple[str, ...]] = field(default_factory=Map)
    tasks: Map[str, Task] = field(default_factory=Map)
    by_request: Map[str, str] = field(default_factory=Map)
    """The open task of a request."""
    waiting: Map[str, Map[str, None]] = field(default_factory=Map)
    """The unplaced tasks of an area and of those in it."""
    answers: Map[tuple[str, str], Answer] = field(default_factory=Map)
    """By command id and actor: nobody gets the answer of somebody else who chose the same id."""
    answers_before: Map[tuple[str, str], Answer] = field(default_factory=Map)
    matters: Map[str, Matter] = field(default_factory=Map)
    """What stands open between this office and others, by id."""
    closed: Map[str, str] = field(default_factory=Map)
    """The tasks and matters that are over, by id, and how they ended."""
    closed_before: Map[str, str] = field(default_factory=Map)
    answers_since: datetime | None = None
    """When the newer halves of what is remembered began; None for a desk that has not folded a single turn."""

    def answered(self, id: str, actor: str) -> Answer | None:
        """What this actor's command led to; None where it is new or long ago."""
        return self.answers.get((id, actor)) or self.answers_before.get((id, actor))

    def ended(self, id: str) -> str | None:
        """How a task or matter ended a short while ago; None where there was none."""
        return self.closed.get(id) or self.closed_before.get(id)

    def is_new(self, matter: str) -> bool:
        """Whether a question that arrives has not been heard before: by a batch that lost its end it may have been."""
        return matter not in self.matters and self.ended(matter) is None

    def task_of(self, request: str) -> Task | None:
        """The open task of a request."""
        id = self.by_request.get(request)
        return self.tasks[id] if id else None

    def loaded(self, members: tuple[str, ...], effort: int) -> Map[str, Member]:
        """The members, with so much more open effort for these."""
        after = self.members
        for id in members:
            if member := after.get(id):
                after = after.set(id, replace(member, load=member.load + effort))
        return after


def initial(district: str) -> Desk:
    """A desk that knows nothing yet."""
    return Desk(district)


def take_in(desk: Desk, envelope: Envelope) -> Desk:
    """An input that changes what the desk knows before it decides anything: the register."""
    changed = registers.evolve(desk.register, envelope.fact)
    return desk if changed is desk.register else replace(desk, register=changed)


def evolve(desk: Desk, envelope: Envelope) -> Desk:
    """The desk after one more of its own facts; facts it does not follow leave it as it was."""
    if envelope.actor is not None and envelope.cause is not None:
        desk = _remember(desk, (envelope.cause, envelope.actor), envelope)
    match envelope.fact:
        case TaskOffered(task_id=id) as fact:
            task = desk.tasks[id]
            offered = replace(
                task,
                status="offered",
                wave=fact.wave,
                offered=task.offered + fact.members,
                tried=task.tried + fact.members,
                until=fact.until,
            )
            return _with(desk, offered, desk.loaded(fact.members, task.effort))
        case TaskOpened(task_id=id) as fact:
            task = Task(
                id,
                fact.request_id,
                fact.round,
                intern(envelope.area),
                intern(between.bound(desk, envelope, fact)),
                intern(fact.item),
                fact.urgency,
                fact.effort,
                fact.kinds,
                fact.skills,
                fact.due,
                fact.located_in,
                fact.point,
                fact.language,
            )
            desk = between.carried_out(desk, fact.by)
            tasks, by_request = desk.tasks.set(id, task), desk.by_request.set(fact.request_id, id)
            return replace(desk, tasks=tasks, by_request=by_request)
        case TaskAccepted(task_id=id, member_id=member):
            task = desk.tasks[id]
            others = tuple(m for m in task.offered if m != member)
            held = replace(task, status="accepted", holder=member, offered=(), until=None)
            return _with(desk, held, desk.loaded(others, -task.effort))
        case TaskDeclined(task_id=id, member_id=member):
            task = desk.tasks[id]
            left = replace(task, offered=tuple(m for m in task.offered if m != member))
            return _with(desk, left, desk.loaded((member,), -task.effort))
        case TaskExpired(task_id=id, members=members):
            task = desk.tasks[id]
            left = replace(task, offered=tuple(m for m in task.offered if m not in members))
            return _with(desk, left, desk.loaded(members, -task.effort))
        case TaskUnplaced(task_id=id):
            task = desk.tasks[id]
            waits = replace(
                task,
                status="unplaced",
                until=again_at(desk, task, envelope.time),
                spent=task.wave,
                since=task.since or envelope.time,
                waits_in=around(desk.register, task.area, desk.district, envelope.time),
            )
            return _with(desk, waits)
        case MatchExplained(task_id=id, chosen=()):
            found = desk.tasks.get(id)
            if found is None or found.status != "unplaced":
                return desk
            return _with(desk, replace(found, until=again_at(desk, found, envelope.time)))
        case TaskArrived(task_id=id):
            return _with(desk, replace(desk.tasks[id], status="arrived"))
        case TaskDone(task_id=id, member_id=member):
            task = desk.tasks[id]
            until = envelope.time + span(desk.register.policy(desk.district).close_after)
            return _with(desk, replace(task, status="done", until=until), desk.loaded((member,), -task.effort))
        case TaskClosed(task_id=id):
            return _ended(desk, desk.tasks[id], "closed")
        case TaskHandedOver(task_id=id, by=by):
            return between.carried_out(_ended(desk, desk.tasks[id], "handed_over"), by)
        case MemberEnrolled() as fact:
            return enrolled(desk, fact)
        case MemberLeft(member_id=id):
            return replace(desk, members=desk.members.set(id, replace(desk.members[id], left=True)))
        case TurnCommitted():
            since = desk.answers_since
            if since is None:
                return replace(desk, answers_since=envelope.time)
            if envelope.time - since < REMEMBERED:
                return desk
            return replace(
                desk,
                answers=Map(),
                answers_before=desk.answers,
                closed=Map(),
                closed_before=desk.closed,
                matters=between.forgotten(desk.matters, envelope.time),
                answers_since=envelope.time,
            )
        case _:
            return between.evolve(desk, envelope)


def deadline(desk: Desk, envelope: Envelope) -> Deadline | None:
    """When the task or the matter of a fact needs a decision next."""
    fact = envelope.fact
    found = desk.matters.get(getattr(fact, fact.key)) or desk.tasks.get(getattr(fact, "task_id", ""))
    return Deadline(found.until, found.id) if found and found.until else None


def deadlines(desk: Desk) -> Iterable[Deadline]:
    """The next deadline of every open task and matter that has one."""
    held: Iterable[Task | Matter] = (*desk.tasks.values(), *desk.matters.values())
    return (Deadline(one.until, one.id) for one in held if one.until)


def dump(desk: Desk) -> Any:
    """The desk as plain data, the same for equal desks."""
    return {
        "district": desk.district,
        "register": registers.dump(desk.register),
        "members": [[*_fields(m)] for _, m in sorted(desk.members.items())],
        "tasks": [[*_fields(t)] for _, t in sorted(desk.tasks.items())],
        "answers": [[*key, *answer] for key, answer in sorted(desk.answers.items())],
        "answers_before": [[*key, *answer] for key, answer in sorted(desk.answers_before.items())],
        "matters": between.dump(desk.matters),
        "closed": sorted(desk.closed.items()),
        "closed_before": sorted(desk.closed_before.items()),
        "answers_since": desk.answers_since,
    }


def load(data: Any) -> Desk:
    """The desk that was dumped."""
    since = data["answers_since"]
    desk = Desk(
        data["district"],
        register=registers.load(data["register"]),
        answers=_answers(data["answers"]),
        answers_before=_answers(data["answers_before"]),
        matters=between.load(data["matters"]),
        closed=Map((id, how) for id, how in data["closed"]),
        closed_before=Map((id, how) for id, how in data["closed_before"]),
        answers_since=datetime.fromisoformat(since) if since else None,
    )
    members: dict[str, Member] = {}
    by_area: dict[str, tuple[str, ...]] = {}
    for id, kind, areas, skills, capacity, duty, load_, left in data["members"]:
        members[id] = Member(
            id,
            kind,
            tuple(areas),
            frozenset(skills),
            capacity,
            tuple(Duty.model_validate(d) for d in duty),
            load_,
            left,
        )
        for area in areas:
            by_area[area] = (*by_area.get(area, ()), id)
    tasks = {row[0]: _task(row) for row in data["tasks"]}
    return replace(
        desk,
        members=Map(members),
        by_area=Map(by_area),
        tasks=Map(tasks),
        waiting=reduce(lambda waiting, task: _moved(waiting, None, task), tasks.values(), desk.waiting),
        by_request=Map((task.request, id) for id, task in tasks.items()),
    )


def span(limit: Any) -> timedelta:
    """A policy's limit as elapsed time: what members and residents wait for runs by the wall clock, day and night."""
    unit = {"seconds": 1, "minutes": 60, "hours": 3600, "working_hours": 3600, "working_days": 86400}[limit.unit]
    return timedelta(seconds=limit.amount * unit)


def _answers(rows: Iterable[list[Any]]) -> Map[tuple[str, str], Answer]:
    return Map(
        ((id, actor), Answer(fact, first, of, facts, tuple(enrolled), tuple(changed)))
        for id, actor, fact, first, of, facts, enrolled, changed in rows
    )


def _task(row: list[Any]) -> Task:
    held: dict[str, Any] = dict(zip(Task.__slots__, row, strict=True))
    for name in ("area", "districts", "item"):
        held[name] = intern(held[name])
    for name in ("until", "since"):
        held[name] = datetime.fromisoformat(held[name]) if held[name] else None
    held["due"] = Due.model_validate(held["due"])
    held["point"] = Point.model_validate(held["point"]) if held["point"] else None
    fields: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in held.items()}
    return Task(**fields)


def _fields(value: Task | Member) -> Iterable[Any]:
    for name in value.__slots__:
        held = getattr(value, name)
        if isinstance(held, frozenset):
            yield sorted(held)
        elif name == "duty":
            yield [plain(duty) for duty in held]
        else:
            yield held


def _with(desk: Desk, task: Task, members: Map[str, Member] | None = None) -> Desk:
    waiting = _moved(desk.waiting, desk.tasks.get(task.id), task)
    tasks = desk.tasks.set(task.id, task)
    return replace(desk, tasks=tasks, waiting=waiting, members=desk.members if members is None else members)


def _moved(waiting: Map[str, Map[str, None]], before: Task | None, after: Task | None) -> Map[str, Map[str, None]]:
    """The index of what waits, after a task was changed."""
    was = before.waits_in if before and before.status == "unplaced" else ()
    now = after.waits_in if after and after.status == "unplaced" else ()
    if was == now:
        return waiting
    for code in was if before else ():
        others = waiting[code].delete(before.id)  # type: ignore[union-attr]
        waiting = waiting.set(code, others) if others else waiting.delete(code)
    for code in now if after else ():
        waiting = waiting.set(code, waiting.get(code, Map()).set(after.id, None))  # type: ignore[union-attr]
    return waiting


def _ended(desk: Desk, task: Task, how: End) -> Desk:
    """The task is no longer this office's; whoever held it or was asked is free."""
    holding = (task.holder,) if task.holder and task.status != "done" else ()
    current = desk.by_request.get(task.request) == task.id
    return replace(
        desk,
        members=desk.loaded(task.offered + holding, -task.effort),
        tasks=desk.tasks.delete(task.id),
        waiting=_moved(desk.waiting, task, None),
        by_request=desk.by_request.delete(task.request) if current else desk.by_request,
        closed=desk.closed.set(task.id, how),
    )


def _remember(desk: Desk, key: tuple[str, str], envelope: Envelope) -> Desk:
    known = desk.answers.get(key)
    fact = envelope.fact
    answer = known._replace(facts=known.facts + 1) if known else Answer(fact.name, envelope.id, _entity(fact), 1)
    if isinstance(fact, MemberEnrolled):
        who = (fact.member_id,)
        if fact.member_id in desk.members:
            answer = answer._replace(changed=answer.changed + who)
        else:
            answer = answer._replace(enrolled=answer.enrolled + who)
    return replace(desk, answers=desk.answers.set(key, answer))


def _entity(fact: Fact) -> str:
    return str(getattr(fact, fact.key))


def enrolled(desk: Desk, fact: MemberEnrolled) -> Desk:
    """The desk with somebody enrolled on these terms; their load stays what it is."""
    known = desk.members.get(fact.member_id)
    by_area = desk.by_area
    for area in set(known.areas if known else ()) - set(fact.areas):
        others = tuple(m for m in by_area[area] if m != fact.member_id)
        by_area = by_area.set(area, others) if others else by_area.delete(area)
    for area in sorted(set(fact.areas) - set(known.areas if known else ())):
        by_area = by_area.set(area, tuple(sorted({*by_area.get(area, ()), fact.member_id})))
    member = Member(
        fact.member_id,
        fact.kind,
        tuple(sorted(set(fact.areas))),
        frozenset(fact.skills),
        fact.capacity,
        fact.duty,
        known.load if known else 0,
    )
    return replace(desk, members=desk.members.set(member.id, member), by_area=by_area)
