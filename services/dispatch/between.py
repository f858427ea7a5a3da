"""
What stands open between this office and others: hand-overs (转办), conferrals (会商) and help (吹哨报到).

Both sides hold a matter from facts of their own. The office that asks writes the question and its end, the one that is asked
writes that it was received, its answer, and that it is settled: so either log is complete without the other's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from sys import intern
from typing import TYPE_CHECKING, Any, Literal

from immutables import Map

from services.dispatch.words import not_found, over
from shared.envelope import Envelope
from shared.facts import (
    BY_SUBJECT,
    ConferralEnded,
    ConferralOpened,
    ConferralReceived,
    ConferralRuled,
    ConferralSettled,
    Fact,
    HandoverLapsed,
    HandoverOffered,
    HandoverReceived,
    HandoverRefused,
    HandoverReturned,
    HandoverSettled,
    HandoverSigned,
    HelpAnswered,
    HelpAsked,
    HelpLapsed,
    HelpRated,
    HelpReceived,
    HelpRefused,
    HelpReleased,
    HelpSeated,
    HelpSettled,
    TaskOpened,
)

if TYPE_CHECKING:  # the model holds matters, and asks us what follows for them
    from services.dispatch.model import Desk, Task

Question = HandoverOffered | ConferralOpened | HelpAsked
Stage = Literal["open", "signed", "ruled", "seated", "released"]

RATEABLE = timedelta(days=7)
"""How long after their release those who helped may be rated, at least."""


@dataclass(frozen=True, slots=True)
class Matter:
    """
    A question between offices, as one of them holds it.

    Attributes:
        fact: the question as we asked it, or as it was received here.
        asker: the office whose task it is about.
        area: as in the question's envelope.
        member: who was lent, of a call for help.
        moved: when it came to its stage.
    """

    fact: Question
    asker: str
    area: str
    moved: datetime
    stage: Stage = "open"
    member: str | None = None

    @property
    def id(self) -> str:
        """Of the hand-over, the conferral, or the call for help."""
        return str(getattr(self.fact, self.fact.key))

    @property
    def ours(self) -> bool:
        """Whether it is this office that asked."""
        return not isinstance(self.fact, HandoverReceived | ConferralReceived | HelpReceived)

    @property
    def offices(self) -> tuple[str, ...]:
        """Whom it names: who asks, and who is asked."""
        if isinstance(self.fact, ConferralOpened):
            return (self.asker, *self.fact.parties, self.fact.lead)
        return (self.asker, self.fact.to)

    @property
    def until(self) -> datetime | None:
        """When it ends by itself: that is for whoever asked to say."""
        return self.fact.until if self.ours and self.stage in ("open", "ruled") else None


def standing(desk: Desk, kind: type[Question], id: str, *, ours: bool | None = None) -> Matter:
    """
    The question of a kind that stands open; `ours`: as the office that asked, or that was asked.

    Raises:
        RefusedError: `over` where it ended a short while ago, `not_found`.
    """
    matter = desk.matters.get(id)
    if matter and isinstance(matter.fact, kind) and ours in (None, matter.ours):
        return matter
    entity = kind.name.partition(".")[0]
    raise over(entity, id) if desk.ended(id) else not_found(entity, id)


def dump(matters: Map[str, Matter]) -> list[list[Any]]:
    """As plain data, the same for equal matters."""
    return [
        [m.fact.name, dict(m.fact), m.asker, m.area, m.moved, m.stage, m.member] for _, m in sorted(matters.items())
    ]


def load(rows: Iterable[list[Any]]) -> Map[str, Matter]:
    """Those that were dumped."""
    matters = []
    for name, fact, asker, area, moved, stage, member in rows:
        question: Any = BY_SUBJECT[f"dispatch.{name}"].model_validate(fact)
        at = datetime.fromisoformat(moved)
        matters.append(Matter(question, asker, intern(area), at, stage, member))
    return Map((matter.id, matter) for matter in matters)


def evolve(desk: Desk, envelope: Envelope) -> Desk:
    """The desk after one of its own facts about a matter; other facts leave it as it was."""
    match envelope.fact:
        case HandoverOffered() | ConferralOpened() | HelpAsked() as fact:
            return _asked(desk, envelope, fact)
        case HandoverSigned(handover_id=id):
            return _moved(desk, id, "signed", envelope.time)
        case ConferralRuled(conferral_id=id):
            return _moved(desk, id, "ruled", envelope.time)
        case HelpSeated(help_id=id, member_id=member, effort=effort):
            desk = _moved(desk, id, "seated", envelope.time, member)
            return replace(desk, members=desk.loaded((member,), effort))
        case HelpAnswered(help_id=id, member_id=str(member), to=to):
            if task := desk.tasks.get(envelope.fact.task_id):
                helped = replace(task, districts=intern(_listed(*task.districts.split(","), to)))
                desk = replace(desk, tasks=desk.tasks.set(task.id, helped))
            return _moved(desk, id, "seated", envelope.time, member)
        case HelpReleased(help_id=id):
            return _moved(desk, id, "released", envelope.time)
        case HandoverReturned(handover_id=id, to=to) as fact:
            task = desk.tasks[fact.task_id]
            returned = replace(task, refused=(*task.refused, id), refusers=(*task.refusers, to))
            return _gone(replace(desk, tasks=desk.tasks.set(task.id, returned)), fact)
        case HandoverSettled() | ConferralSettled() as fact:
            return _gone(desk, fact, fact.reason)
        case HelpSettled(help_id=id, member_id=lent) as fact:
            known = desk.matters.get(id)
            if lent and known and isinstance(known.fact, HelpAsked):
                desk = replace(desk, members=desk.loaded((lent,), -known.fact.effort))
            return _gone(desk, fact)
        case HandoverRefused() | HandoverLapsed() | ConferralEnded() as fact:
            return _gone(desk, fact)
        case HelpRefused() | HelpAnswered() | HelpLapsed() | HelpRated() as fact:
            return _gone(desk, fact)
        case _:
            return desk


def forgotten(matters: Map[str, Matter], now: datetime) -> Map[str, Matter]:
    """Without the help that was given too long ago to be rated."""
    old = [id for id, m in matters.items() if m.stage == "released" and now - m.moved > RATEABLE]
    for id in old:
        matters = matters.delete(id)
    return matters


def carried_out(desk: Desk, id: str | None) -> Desk:
    """Without the hand-over of this id, now that the task has changed hands; a conferral is ended by a fact of its own."""
    matter = desk.matters.get(id) if id else None
    if matter is None or not isinstance(matter.fact, HandoverOffered):
        return desk
    return replace(desk, matters=desk.matters.delete(matter.id), closed=desk.closed.set(matter.id, "carried_out"))


def _asked(desk: Desk, envelope: Envelope, fact: Question) -> Desk:
    asker = desk.district
    match fact:
        case HandoverReceived() | ConferralReceived():
            asker = fact.giver
        case HelpReceived():
            asker = fact.asker
    matter = Matter(fact, asker, intern(envelope.area), envelope.time)
    desk = replace(desk, matters=desk.matters.set(matter.id, matter))
    if not matter.ours:
        return desk
    task = desk.tasks[fact.task_id]
    match fact:
        case HandoverOffered():
            task = replace(task, asking=matter.id, attempt=fact.attempt)
        case ConferralOpened():
            task = replace(task, asking=matter.id, refused=(), refusers=())
        case HelpAsked():
            task = replace(task, helps=(*task.helps, matter.id))
    return replace(desk, tasks=desk.tasks.set(task.id, task))


def _moved(desk: Desk, id: str, stage: Stage, at: datetime, member: str | None = None) -> Desk:
    matter = desk.matters[id]
    moved = replace(matter, stage=stage, moved=at, member=member or matter.member)
    desk = replace(desk, matters=desk.matters.set(id, moved))
    return _let_go(desk, matter) if stage == "released" else desk


def _gone(desk: Desk, fact: Fact, how: str = "settled") -> Desk:
    """The matter of a fact is over; its id is remembered for a while, with how it ended."""
    id = str(getattr(fact, fact.key))
    matter = desk.matters.get(id)
    if matter is None:
        return desk
    desk = replace(desk, matters=desk.matters.delete(id), closed=desk.closed.set(id, how))
    return _let_go(desk, matter)


def _let_go(desk: Desk, matter: Matter) -> Desk:
    """Its task, if it is still ours, no longer waits for it."""
    task = desk.tasks.get(matter.fact.task_id) if matter.ours else None
    if task is None:
        return desk
    asking = None if task.asking == matter.id else task.asking
    helps = tuple(help for help in task.helps if help != matter.id)
    return replace(desk, tasks=desk.tasks.set(task.id, replace(task, asking=asking, helps=helps)))


def of_task(desk: Desk, task: Task) -> list[Matter]:
    """What stands open about a task of ours: the question it is in, then those who help."""
    ids = (*((task.asking,) if task.asking else ()), *task.helps)
    return [desk.matters[id] for id in ids]


def seen_by(desk: Desk, area: str, now: datetime, *, task: Task | None = None, matter: Matter | None = None) -> str:
    """
    Who may see what happens now, this office first: the parties of the area's agreement today, whom the task's carried-out
    hand-overs and help name, and whom what stands open about it names. An agreement that has ended names nobody any more.
    """
    register = desk.register
    open = (*(of_task(desk, task) if task else ()), *((matter,) if matter else ()))
    return _listed(
        desk.district,
        *(task.districts.split(",") if task else ()),
        *register.parties(area, register.today(desk.district, now)),
        *(office for one in open for office in one.offices),
    )


def bound(desk: Desk, envelope: Envelope, fact: TaskOpened) -> str:
    """Who sees a task that begins whatever is agreed: this office, who gave it, and those before whom no agreement names."""
    given = desk.matters.get(fact.by) if fact.by else None
    parties = desk.register.parties(envelope.area, desk.register.today(desk.district, envelope.time))
    others = (office for office in envelope.districts.split(",") if office not in parties)
    return _listed(desk.district, *((given.asker,) if given else ()), *others)


def _listed(*offices: str) -> str:
    return ",".join(dict.fromkeys(offices))
