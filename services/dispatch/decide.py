"""Inputs, commands and deadlines to facts: pure and synchronous. Ids follow from what led to them, so a repeat gives the same."""

from __future__ import annotations

from datetime import datetime

from services.dispatch import conferring, handing_over, helping, opening
from services.dispatch.between import Matter
from services.dispatch.commands import (
    Accept,
    Arrive,
    AskHelp,
    Decline,
    Done,
    Enrol,
    Erase,
    HandOver,
    Leave,
    Lend,
    Offer,
    RateHelp,
    Refuse,
    RefuseHelp,
    Rule,
    Sign,
    TakeBack,
    TakeBackHelp,
)
from services.dispatch.drafting import Draft
from services.dispatch.ending import close, freed, let_go
from services.dispatch.model import Desk, Task, enrolled
from services.dispatch.offering import find, offer, offer_by_hand, take_up
from services.dispatch.words import wrong_state
from shared.errors import RefusedError
from shared.facts import (
    ConferralEnded,
    ConferralOpened,
    ConferralReceived,
    ConferralRuled,
    HandoverLapsed,
    HandoverOffered,
    HandoverReceived,
    HandoverRefused,
    HandoverSigned,
    HelpAsked,
    HelpLapsed,
    HelpReceived,
    HelpRefused,
    HelpReleased,
    HelpSeated,
    MemberEnrolled,
    MemberErased,
    MemberLeft,
    RequestRated,
    RequestReopened,
    RequestSubmitted,
    RequestWithdrawn,
    TaskAccepted,
    TaskArrived,
    TaskDeclined,
    TaskDone,
    TaskExpired,
    TaskHandedOver,
)
from shared.ids import derived_id
from shared.turns import Command, Deadline, Decision, Input, Work

TAKEN_UP_MAX = 100
"""How many waiting tasks one enrolment looks at: with 500 members it still fits one turn."""


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
    own = envelope.district == desk.district
    if own and envelope.fact.service == "dispatch":
        return Decision(desk)  # among what offices tell each other is what this one has said
    draft = Draft(desk, envelope.id, now, trace=envelope.traceparent)
    match envelope.fact:
        case RequestSubmitted() as fact if own:
            opening.submitted(draft, envelope, fact)
        case RequestReopened() as fact if own:
            opening.reopened(draft, envelope, fact)
        case RequestReopened(request_id=request, round=round):
            if (task := desk.task_of(request)) and task.round < round:
                close(draft, task, "reopened")
        case RequestWithdrawn(request_id=request):
            withdraw(draft, request)
        case RequestRated(request_id=request):
            if (task := desk.task_of(request)) and task.status == "done":
                close(draft, task, "rated")
        case TaskHandedOver(to=to) as fact if to == desk.district:
            opening.taken_over(draft, envelope, fact)
        case HandoverOffered() as fact if not isinstance(fact, HandoverReceived):
            handing_over.receive(draft, envelope, fact)
        case HandoverSigned() as fact:
            handing_over.signed(draft, envelope, fact)
        case HandoverRefused() as fact:
            handing_over.returned(draft, envelope, fact)
        case HandoverLapsed() as fact:
            handing_over.lapsed(draft, envelope, fact)
        case ConferralOpened() as fact if not isinstance(fact, ConferralReceived):
            conferring.receive(draft, envelope, fact)
        case ConferralRuled() as fact:
            conferring.ruled(draft, envelope, fact)
        case ConferralEnded() as fact:
            conferring.ended(draft, envelope, fact)
        case HelpAsked() as fact if not isinstance(fact, HelpReceived):
            helping.receive(draft, envelope, fact)
        case HelpSeated() | HelpRefused() as fact:
            helping.answered(draft, envelope, fact)
        case HelpLapsed() | HelpReleased() as fact:
            helping.ended(draft, envelope, fact)
        case _:
            return Decision(desk)
    return Decision(draft.desk, draft.facts)


def withdraw(draft: Draft, request: str) -> None:
    """The resident no longer wants it: the task is closed; where it is on its way from another office, that is remembered."""
    if task := draft.desk.task_of(request):
        close(draft, task, "withdrawn")
        take_up(draft, freed(task))
    coming = [matter for matter in draft.desk.matters.values() if matter.fact.request_id == request]
    for matter in sorted(coming, key=lambda matter: matter.id):
        match matter.fact:
            case HandoverReceived():
                handing_over.settle(draft, matter, "withdrawn")
            case ConferralReceived():
                conferring.settle(draft, matter, "withdrawn")


def _on_deadline(desk: Desk, work: Deadline, now: datetime) -> Decision[Desk]:
    found = desk.tasks.get(work.key) or desk.matters.get(work.key)
    until = found.until if found else None
    if found is None or until is None or until > now:
        return Decision(desk)  # overtaken
    if isinstance(found, Matter):
        draft = Draft(desk, derived_id(found.id, "due"), now)
        match found.fact:
            case HandoverOffered():
                handing_over.unanswered(draft, found)
            case ConferralOpened():
                conferring.end(draft, found, "overdue")
            case HelpAsked():
                helping.unanswered(draft, found)
        return Decision(draft.desk, draft.facts)
    task = found
    draft = Draft(desk, derived_id(task.id, "due", task.status, task.wave, until.isoformat()), now)
    if task.status == "offered":
        if task.offered:
            draft.of(task, TaskExpired(task_id=task.id, wave=task.wave, members=task.offered))
        offer(draft, draft.desk.tasks[task.id])
        take_up(draft, task.offered)
    elif task.status == "unplaced":
        offer(draft, task)
    elif task.status == "done":
        close(draft, task, "quiet")
    return Decision(draft.desk, draft.facts)


def _on_command(desk: Desk, work: Command, now: datetime) -> Decision[Desk]:
    actor, verb = work.caller.actor, type(work.what)
    if known := desk.answered(work.id, actor):
        forgetting = isinstance(work.what, Erase) and work.what.member != known.of
        if known.fact not in verb.leads_to or forgetting:
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
        case Erase() as command:
            erase(draft, command)
        case Leave() as command:
            leave(draft, command)
        case HandOver() as command:
            handing_over.hand_over(draft, command)
        case TakeBack() as command:
            handing_over.take_back(draft, command)
        case Sign() as command:
            handing_over.sign(draft, command)
        case Refuse() as command:
            handing_over.refuse(draft, command)
        case Rule() as command:
            conferring.rule(draft, command)
        case AskHelp() as command:
            helping.ask(draft, command)
        case TakeBackHelp() as command:
            helping.take_back(draft, command)
        case Lend() as command:
            helping.lend(draft, command)
        case RefuseHelp() as command:
            helping.refuse(draft, command)
        case RateHelp() as command:
            helping.rate(draft, command)
        case other:
            raise RefusedError("unknown_command", verb=type(other).__name__)
    known = draft.desk.answered(work.id, actor)
    return Decision(draft.desk, draft.facts, known.document() if known else {"ok": True, "facts": 0})


def accept(draft: Draft, command: Accept) -> None:
    """接单. A second yes of the holder changes nothing."""
    task = find(draft.desk, command.task)
    if task.holder == command.member:
        return
    if task.holder is not None:
        raise RefusedError("already_taken", task=task.id)
    if command.member not in task.offered:
        raise RefusedError("not_offered", task=task.id, member=command.member)
    draft.of(task, TaskAccepted(task_id=task.id, member_id=command.member))


def decline(draft: Draft, command: Decline) -> None:
    """拒单. When nobody is left who could still say yes, the next is asked."""
    task = find(draft.desk, command.task)
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
        let_go(draft, task)
        take_up(draft, (command.member,))


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


def erase(draft: Draft, command: Erase) -> None:
    """Nobody leads from this id to a person any more; also for an id that is no member but had a contact, such as the supervisor's."""
    draft.add(MemberErased(member_id=command.member))
    if (member := draft.desk.members.get(command.member)) and not member.left:
        draft.add(MemberLeft(member_id=command.member))


def unchanged(desk: Desk, fact: MemberEnrolled) -> bool:
    """Whether enrolling them again would change nothing."""
    return enrolled(desk, fact).members[fact.member_id] == desk.members.get(fact.member_id)


def _held(desk: Desk, id: str, member: str) -> Task:
    task = find(desk, id)
    if task.holder != member:
        raise RefusedError("not_holder", task=id, member=member)
    return task
