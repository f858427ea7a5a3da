"""Inputs, commands and deadlines to facts: pure and synchronous. Ids follow from what led to them, so a repeat gives the same."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from services.dispatch.commands import Accept, Arrive, Decline, Done, Enrol, Leave, Offer
from services.dispatch.matching import able, again_at, judge, match, waiting
from services.dispatch.model import Desk, Task, enrolled, evolve, span
from services.dispatch.words import wrong_state
from shared.envelope import Envelope
from shared.errors import RefusedError
from shared.facts import (
    NOWHERE,
    Due,
    Fact,
    MatchExplained,
    MemberEnrolled,
    MemberLeft,
    RequestRated,
    RequestReopened,
    RequestSubmitted,
    RequestWithdrawn,
    TaskAccepted,
    TaskArrived,
    TaskClosed,
    TaskDeclined,
    TaskDone,
    TaskExpired,
    TaskOffered,
    TaskOpened,
    TaskUnplaced,
    instant,
)
from shared.ids import derived_id
from shared.turns import Command, Deadline, Decision, Input, Work

TAKEN_UP_MAX = 100
"""How many waiting tasks one enrolment looks at: with 500 members it still fits one turn."""


class Draft:
    """
    The facts of one decision as they come, and the desk after each of them.

    Args:
        cause: the id of the input, command or fact that they follow from.
        seed: what their ids are derived from, where the cause alone is not unique: people choose their commands' ids.
    """

    def __init__(
        self,
        desk: Desk,
        cause: str,
        now: datetime,
        *,
        actor: str | None = None,
        trace: str | None = None,
        seed: str | None = None,
    ) -> None:
        self.desk = desk
        self.facts: list[Envelope] = []
        self._cause = cause
        self._seed = seed or cause
        self._now = now
        self._actor = actor
        self._trace = trace

    @property
    def now(self) -> datetime:
        """The turn's time."""
        return self._now

    def add(self, fact: Fact, *, area: str = NOWHERE, case: str | None = None, districts: str | None = None) -> None:
        """One more fact."""
        entity = getattr(fact, fact.key)
        envelope = Envelope(
            derived_id(self.desk.district, self._seed, fact.name, entity, len(self.facts)),
            self.desk.district,
            area,
            self._now,
            fact,
            districts or self.desk.district,
            case,
            self._cause,
            self._actor,
            self._trace,
        )
        self.facts.append(envelope)
        self.desk = evolve(self.desk, envelope)

    def join(self, other: Draft) -> None:
        """What was drafted on top of this one, for another cause."""
        self.facts += other.facts
        self.desk = other.desk

    def match_id(self, task: Task) -> str:
        """The id of this decision's explanation: another decision about the same wave has another one."""
        return derived_id(self._seed, "match", task.id, task.wave + 1)

    def of(self, task: Task, fact: Fact) -> None:
        """One more fact about a task, for all who may see the task."""
        self.add(fact, area=task.area, case=task.request, districts=task.districts)


def decide(desk: Desk, work: Work, now: datetime) -> Decision[Desk]:
    """
    What follows.

    Raises:
        RefusedError: a command that cannot be done; nothing changes.
    """
    match work:
        case Input():
            return _on_input(desk, work, now)
        case Command():
            return _on_command(desk, work, now)
        case Deadline():
            return _on_deadline(desk, work, now)


def _on_input(desk: Desk, work: Input, now: datetime) -> Decision[Desk]:
    envelope = work.envelope
    draft = Draft(desk, envelope.id, now, trace=envelope.traceparent)
    match envelope.fact:
        case RequestSubmitted() as fact if envelope.district == desk.district:
            open_task(draft, envelope, fact.request_id, 1, fact.item, fact.urgency, fact.due, same_as=fact.same_as)
        case RequestReopened() as fact if envelope.district == desk.district:
            open_task(draft, envelope, fact.request_id, fact.round, fact.item, fact.urgency, fact.due)
        case RequestWithdrawn(request_id=request):
            if task := _task_of(desk, request):
                draft.of(task, TaskClosed(task_id=task.id, reason="withdrawn"))
                take_up(draft, (*task.offered, *((task.holder,) if task.holder else ())))
        case RequestRated(request_id=request):
            if (task := _task_of(desk, request)) and task.status == "done":
                draft.of(task, TaskClosed(task_id=task.id, reason="rated"))
        case _:
            return Decision(desk)
    return Decision(draft.desk, draft.facts)


def open_task(
    draft: Draft,
    envelope: Envelope,
    request: str,
    round: int,
    item: str,
    urgency: int,
    due: Due,
    *,
    same_as: str | None = None,
) -> None:
    """
    Take a request in and offer it; a round that is already open, or was closed a short while ago, leads to nothing.

    A later round ends the one before it: a request has one open task.
    """
    id = derived_id(request, "task", round)
    known = _task_of(draft.desk, request)
    if known and known.id == id and known.status == "opened":
        offer(draft, known)  # of the batch that opened it only the beginning survived a power loss
        return
    if draft.desk.was_closed(id) or (known and known.round >= round):
        return
    if known:
        draft.of(known, TaskClosed(task_id=known.id, reason="reopened"))
    line = draft.desk.register.items.get(item)
    fact = TaskOpened(
        task_id=id,
        request_id=request,
        round=round,
        area=envelope.area,
        item=item,
        urgency=urgency,
        effort=line.effort if line else 1,
        kinds=line.kinds if line else (),
        skills=line.skills if line else (),
        due=due,
        same_as=same_as,
    )
    draft.add(fact, area=envelope.area, case=request, districts=envelope.districts)
    offer(draft, draft.desk.tasks[id])


def offer(draft: Draft, task: Task) -> None:
    """Ask the best who may; where nobody is left, say so, once: for a task that is unplaced already, only the explanation is new."""
    policy = draft.desk.register.policy(draft.desk.district)
    found = match(draft.desk, task, draft.now)
    asked = found.chosen if task.wave - task.spent < policy.waves else None
    explained = MatchExplained(
        match_id=draft.match_id(task),
        task_id=task.id,
        policy=policy.version,
        considered=found.considered,
        fell_out=found.fell_out,
        best=found.best,
        chosen=(asked,) if asked else (),
    )
    draft.add(explained, case=task.request)
    if asked is None and task.status != "unplaced":
        draft.of(task, TaskUnplaced(task_id=task.id, match_id=explained.match_id, item=task.item, urgency=task.urgency))
    elif asked is not None:
        ask(draft, task, asked, explained.match_id)


def take_up(draft: Draft, members: Iterable[str], *, most: int = 1) -> None:
    """
    Offer what waits for somebody, now that these members have room or are new: nobody asked for it, so no actor is named.

    One task for each offer or task that ended: so the work of a turn stays bounded, and each end leads to the next beginning.
    """
    desk = draft.desk
    there = [desk.members[id] for id in members if id in desk.members]
    if not draft.facts or not there or not desk.waiting:
        return
    unfit = judge(desk, draft.now)
    terms = {(member.kind, member.skills) for member in there}
    cause = draft.facts[0].id

    def may(task: Task) -> bool:
        if most > 1:  # many are new: whether each of them may just now is seen when the task is matched
            return any(able(kind, skills, task) for kind, skills in terms)
        return any(unfit(member, task) is None for member in there)

    for task in waiting(desk, there, may, most):
        inner = Draft(draft.desk, cause, draft.now, seed=derived_id(cause, "waiting", task.id))
        if match(inner.desk, task, inner.now).chosen or again_at(inner.desk, task, inner.now) != task.until:
            offer(inner, task)
            draft.join(inner)


def ask(draft: Draft, task: Task, member: str, match_id: str) -> None:
    """Offer a task to one member."""
    limit = draft.desk.register.policy(draft.desk.district).offer
    draft.of(
        task,
        TaskOffered(
            task_id=task.id,
            wave=task.wave + 1,
            members=(member,),
            item=task.item,
            urgency=task.urgency,
            until=instant(draft.now + span(limit)),
            match_id=match_id,
        ),
    )


def _on_deadline(desk: Desk, work: Deadline, now: datetime) -> Decision[Desk]:
    task = desk.tasks.get(work.key)
    if task is None or task.until is None or task.until > now:
        return Decision(desk)  # overtaken
    draft = Draft(desk, derived_id(task.id, "due", task.status, task.wave, task.until.isoformat()), now)
    if task.status == "offered":
        if task.offered:
            draft.of(task, TaskExpired(task_id=task.id, wave=task.wave, members=task.offered))
        offer(draft, draft.desk.tasks[task.id])
        take_up(draft, task.offered)
    elif task.status == "unplaced":
        offer(draft, task)
    elif task.status == "done":
        draft.of(task, TaskClosed(task_id=task.id, reason="quiet"))
    return Decision(draft.desk, draft.facts)


def _on_command(desk: Desk, work: Command, now: datetime) -> Decision[Desk]:
    actor, verb = work.caller.actor, type(work.what)
    if known := desk.answered(work.id, actor):
        if known.fact not in verb.leads_to:
            raise RefusedError("key_reused", field="id")
        return Decision(desk, answer=known.document())
    seed = derived_id("command", work.id, actor, verb.__name__)
    draft = Draft(desk, work.id, now, actor=actor, seed=seed)
    match work.what:
        case Accept() as command:
            accept(draft, command)
        case Decline() as command:
            decline(draft, command)
        case Arrive() as command:
            arrive(draft, command)
        case Done() as command:
            done(draft, command)
        case Offer() as command:
            offer_by_hand(draft, command)
        case Enrol() as command:
            enrol(draft, command)
        case Leave() as command:
            leave(draft, command)
        case other:
            raise RefusedError("unknown_command", verb=type(other).__name__)
    known = draft.desk.answered(work.id, actor)
    return Decision(draft.desk, draft.facts, known.document() if known else {"ok": True, "facts": 0})


def accept(draft: Draft, command: Accept) -> None:
    """接单. A second yes of the holder changes nothing."""
    task = _task(draft.desk, command.task)
    if task.holder == command.member:
        return
    if task.holder is not None:
        raise RefusedError("already_taken", task=task.id)
    if command.member not in task.offered:
        raise RefusedError("not_offered", task=task.id, member=command.member)
    draft.of(task, TaskAccepted(task_id=task.id, member_id=command.member))


def decline(draft: Draft, command: Decline) -> None:
    """拒单. When nobody is left who could still say yes, the next is asked."""
    task = _task(draft.desk, command.task)
    if command.member not in task.offered:
        if command.member in task.tried and task.holder != command.member:
            return  # said no before, or too late for it to matter
        raise RefusedError("not_offered", task=task.id, member=command.member)
    draft.of(task, TaskDeclined(task_id=task.id, member_id=command.member, reason=command.reason))
    after = draft.desk.tasks[task.id]
    if not after.offered:
        offer(draft, after)
    take_up(draft, (command.member,))


def arrive(draft: Draft, command: Arrive) -> None:
    """到场."""
    task = _held(draft.desk, command.task, command.member)
    if task.status == "accepted":
        draft.of(task, TaskArrived(task_id=task.id, member_id=command.member))
    elif task.status != "arrived":
        raise wrong_state(task.id, task.status, "arrive")


def done(draft: Draft, command: Done) -> None:
    """办结."""
    task = _held(draft.desk, command.task, command.member)
    if task.status in ("accepted", "arrived"):
        draft.of(task, TaskDone(task_id=task.id, member_id=command.member, outcome=command.outcome))
        take_up(draft, (command.member,))


def offer_by_hand(draft: Draft, command: Offer) -> None:
    """A dispatcher asks somebody in particular, also for a task that was unplaced; capacity holds for them too."""
    task, member = _task(draft.desk, command.task), draft.desk.members.get(command.member)
    if member is None or member.left:
        raise RefusedError("unknown_member", member=command.member)
    if task.holder is not None:
        raise RefusedError("already_taken", task=task.id)
    if command.member in task.offered:
        return
    if member.load + task.effort > member.capacity:
        raise RefusedError("over_capacity", member=command.member)
    if task.offered:
        draft.of(task, TaskExpired(task_id=task.id, wave=task.wave, members=task.offered))
    explained = MatchExplained(
        match_id=draft.match_id(task),
        task_id=task.id,
        policy=draft.desk.register.policy(draft.desk.district).version,
        considered=1,
        fell_out={},
        best=(),
        chosen=(command.member,),
    )
    draft.add(explained, case=task.request)
    ask(draft, draft.desk.tasks[task.id], command.member, explained.match_id)


def enrol(draft: Draft, command: Enrol) -> None:
    """登记; who is enrolled on the same terms already is left alone."""
    new: list[str] = []
    for fact in command.members:
        if not unchanged(draft.desk, fact):
            draft.add(fact)
            new.append(fact.member_id)
    take_up(draft, new, most=TAKEN_UP_MAX)


def leave(draft: Draft, command: Leave) -> None:
    """No longer given work; open offers run out by themselves, held tasks stay."""
    member = draft.desk.members.get(command.member)
    if member is None:
        raise RefusedError("unknown_member", member=command.member)
    if not member.left:
        draft.add(MemberLeft(member_id=command.member))


def unchanged(desk: Desk, fact: MemberEnrolled) -> bool:
    """Whether enrolling them again would change nothing."""
    return enrolled(desk, fact).members[fact.member_id] == desk.members.get(fact.member_id)


def _task(desk: Desk, id: str) -> Task:
    task = desk.tasks.get(id)
    if task is None:
        if desk.was_closed(id):
            raise wrong_state(id, "closed", "change")
        raise RefusedError("unknown_task", task=id)
    return task


def _held(desk: Desk, id: str, member: str) -> Task:
    task = _task(desk, id)
    if task.holder != member:
        raise RefusedError("not_holder", task=id, member=member)
    return task


def _task_of(desk: Desk, request: str) -> Task | None:
    id = desk.by_request.get(request)
    return desk.tasks[id] if id else None
