"""
借调 and 吹哨报到: somebody of another office helps with one task, which stays where it is.

The lending office seats one of its people, by its own matching or by name, and their load counts there until they are released.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from services.dispatch.between import Matter, standing
from services.dispatch.commands import AskHelp, Lend, RateHelp, RefuseHelp, TakeBackHelp
from services.dispatch.drafting import Draft
from services.dispatch.handing_over import another, sign_by
from services.dispatch.matching import best_of, by_hand
from services.dispatch.model import Task
from services.dispatch.offering import find, take_up
from services.dispatch.states import UNDONE
from services.dispatch.words import over, wrong_state
from shared.envelope import Envelope
from shared.errors import RefusedError
from shared.facts import (
    HelpAnswered,
    HelpAsked,
    HelpLapsed,
    HelpRated,
    HelpReceived,
    HelpRefused,
    HelpReleased,
    HelpSeated,
    HelpSettled,
    instant,
)
from shared.ids import derived_id

WHISTLE = timedelta(hours=1)
"""吹哨: within so long the other office reports in, day or night."""

# --- the office that asks ---------------------------------------------------------------------------------------------


def ask(draft: Draft, command: AskHelp) -> None:
    """Ask another office for somebody, once at a time for each office."""
    task = find(draft.desk, command.task)
    to = another(draft.desk, command.to)
    if task.status not in UNDONE:
        raise wrong_state(task.id, task.status, "ask_help")
    for id in task.helps:
        if draft.desk.matters[id].fact.to == to:  # type: ignore[union-attr]
            raise RefusedError("already_asking", task=task.id, id=id)
    now = draft.now
    asked = {
        "help_id": derived_id(draft.seed, "help"),
        "task_id": task.id,
        "request_id": task.request,
        "to": to,
        "whistle": command.whistle,
        "item": task.item,
        "urgency": task.urgency,
        "effort": task.effort,
        "kinds": task.kinds,
        "skills": task.skills,
        "due": task.due,
        "until": instant(now + WHISTLE) if command.whistle else sign_by(draft.desk, task.item, task.urgency, now),
    }
    draft.of(task, HelpAsked.model_validate(asked), to=to)


def answered(draft: Draft, envelope: Envelope, fact: HelpSeated | HelpRefused) -> None:
    """The other office's answer has arrived; one that comes too late changes nothing here, and is settled there."""
    matter = draft.desk.matters.get(fact.help_id)
    if matter is None or not matter.ours or matter.stage != "open" or not isinstance(matter.fact, HelpAsked):
        return
    if matter.fact.to == envelope.district:
        said = {"member_id": fact.member_id} if isinstance(fact, HelpSeated) else {"reason": fact.reason}
        answer = {"help_id": matter.id, "task_id": fact.task_id, "to": envelope.district, **said}
        draft.on(matter, HelpAnswered.model_validate(answer))


def unanswered(draft: Draft, matter: Matter) -> None:
    """Nobody reported in in time."""
    _lapse(draft, matter, "unanswered")


def take_back(draft: Draft, command: TakeBackHelp) -> None:
    """The office that asked thinks better of it; once it has heard of somebody, they are released when the task is done."""
    matter = standing(draft.desk, HelpAsked, command.help, ours=True)
    if matter.stage != "open":
        raise RefusedError("already_signed", id=matter.id)
    _lapse(draft, matter, "taken_back")


def _lapse(draft: Draft, matter: Matter, reason: Literal["taken_back", "unanswered"]) -> None:
    question = _question(matter)
    draft.on(matter, HelpLapsed(help_id=matter.id, task_id=question.task_id, to=question.to, reason=reason))


def rate(draft: Draft, command: RateHelp) -> None:
    """Say how the help was, once."""
    matter = standing(draft.desk, HelpAsked, command.help, ours=True)
    if matter.stage != "released":
        raise RefusedError("not_released", id=matter.id)
    draft.on(matter, HelpRated(help_id=matter.id, to=_question(matter).to, grade=command.grade))


# --- the office that lends --------------------------------------------------------------------------------------------


def receive(draft: Draft, envelope: Envelope, fact: HelpAsked) -> None:
    """A call for help has arrived."""
    if fact.to == draft.desk.district and draft.desk.is_new(fact.help_id):
        received = HelpReceived.model_validate({**dict(fact), "asker": envelope.district})
        draft.received(envelope, received)


def lend(draft: Draft, command: Lend) -> None:
    """报到: seat the member named, or whoever of this office has the lowest workload and may."""
    matter = standing(draft.desk, HelpAsked, command.help, ours=False)
    if matter.stage == "seated":
        return
    question, desk = _question(matter), draft.desk
    if draft.now >= question.until:
        raise over("help", matter.id)
    if command.member is not None:
        member = desk.members.get(command.member)
        if member is None or member.left:
            raise RefusedError("unknown_member", member=command.member)
        if member.load + question.effort > member.capacity:
            raise RefusedError("over_capacity", member=member.id)
        found = by_hand(member)
    else:
        found = best_of(desk, desk.members.values(), _as_task(matter), draft.now)
    if found.chosen is None:
        raise RefusedError("nobody_free", id=matter.id)
    draft.explain(found, matter.id, 1, task=question.task_id, case=question.request_id)
    draft.on(
        matter,
        HelpSeated(
            help_id=matter.id,
            task_id=question.task_id,
            asker=matter.asker,
            member_id=found.chosen,
            effort=question.effort,
        ),
    )


def refuse(draft: Draft, command: RefuseHelp) -> None:
    """Nobody is lent; who has been seated is not taken away again."""
    matter = standing(draft.desk, HelpAsked, command.help, ours=False)
    if matter.stage == "seated":
        raise RefusedError("already_signed", id=matter.id)
    draft.on(
        matter,
        HelpRefused(help_id=matter.id, task_id=matter.fact.task_id, asker=matter.asker, reason=command.reason),
    )


def ended(draft: Draft, envelope: Envelope, fact: HelpLapsed | HelpReleased) -> None:
    """The help is over: whoever was lent is free again."""
    matter = draft.desk.matters.get(fact.help_id)
    if matter is None or matter.ours or matter.asker != envelope.district:
        return
    reason = "released" if isinstance(fact, HelpReleased) else fact.reason
    settled = {"help_id": matter.id, "task_id": fact.task_id, "asker": matter.asker, "member_id": matter.member}
    draft.on(matter, HelpSettled.model_validate({**settled, "reason": reason}))
    take_up(draft, (matter.member,) if matter.member else ())


def _as_task(matter: Matter) -> Task:
    """What there is to do, as the matching reads it."""
    q = _question(matter)
    return Task(
        q.help_id,
        q.request_id,
        1,
        matter.area,
        matter.asker,
        q.item,
        q.urgency,
        q.effort,
        q.kinds,
        q.skills,
        q.due,
    )


def _question(matter: Matter) -> HelpAsked:
    assert isinstance(matter.fact, HelpAsked)
    return matter.fact
