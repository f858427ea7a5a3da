"""
转办: two keys and one moment (design §6).

The giver offers, the other office signs or refuses, and the task changes hands at `task.handed_over`, which the giver alone
writes, once, when it has seen the signature. Until then the task is the giver's (首接负责): its clocks run, its members may finish it.
"""

from __future__ import annotations

from datetime import datetime

from services.dispatch.between import Matter, standing
from services.dispatch.commands import HandOver, Refuse, Sign, TakeBack
from services.dispatch.conferring import confer
from services.dispatch.drafting import Draft
from services.dispatch.ending import freed, move
from services.dispatch.model import Desk, Task
from services.dispatch.offering import find, take_up
from services.dispatch.states import UNDONE
from services.dispatch.words import over, wrong_state
from shared.clocks import due
from shared.envelope import Envelope
from shared.errors import RefusedError
from shared.facts import (
    HandoverLapsed,
    HandoverOffered,
    HandoverReason,
    HandoverReceived,
    HandoverRefused,
    HandoverReturned,
    HandoverSettled,
    HandoverSigned,
    Limit,
    instant,
)
from shared.ids import derived_id

SIGN = Limit(amount=4, unit="working_hours")
"""For an item that the register does not know (any more)."""


def sign_by(desk: Desk, item: str, urgency: int, now: datetime) -> datetime:
    """By when another office has to answer: the item's limit for signing, on the asking office's calendar."""
    line = desk.register.items.get(item)
    return instant(due(now, line.limits.sign if line else SIGN, desk.register.calendar(desk.district, urgency)))


def another(desk: Desk, to: str) -> str:
    """That office. Raises RefusedError `unknown_district`, `own_office`."""
    if to not in desk.register.districts:
        raise RefusedError("unknown_district", field="to", district=to)
    if to == desk.district:
        raise RefusedError("own_office", field="to", district=to)
    return to


# --- the office that gives --------------------------------------------------------------------------------------------


def hand_over(draft: Draft, command: HandOver) -> None:
    """Offer a task to another office. Raises RefusedError also where one is offered already, or conferred about."""
    task = find(draft.desk, command.task)
    to = another(draft.desk, command.to)
    if task.status not in UNDONE:
        raise wrong_state(task.id, task.status, "hand_over")
    if task.asking is not None:
        raise RefusedError("already_asking", task=task.id, id=task.asking)
    offer_to(draft, task, to, command.reason, basis=command.basis, grant=command.grant)


def offer_to(
    draft: Draft, task: Task, to: str, reason: HandoverReason, *, basis: str | None = None, grant: bool = True
) -> None:
    """The first key: everything that the other office needs, because it cannot read what came before."""
    fact = HandoverOffered(
        handover_id=derived_id(task.id, "handover", task.attempt + 1),
        task_id=task.id,
        request_id=task.request,
        round=task.round,
        attempt=task.attempt + 1,
        to=to,
        reason=reason,
        basis=basis,
        item=task.item,
        urgency=task.urgency,
        due=task.due,
        located_in=task.located_in,
        point=task.point,
        language=task.language,
        grant=grant,
        until=sign_by(draft.desk, task.item, task.urgency, draft.now),
    )
    draft.of(task, fact, to=to)


def take_back(draft: Draft, command: TakeBack) -> None:
    """The giver thinks better of it, as long as it has seen no signature."""
    matter = standing(draft.desk, HandoverOffered, command.handover, ours=True)
    _lapse(draft, matter, "taken_back")


def signed(draft: Draft, envelope: Envelope, fact: HandoverSigned) -> None:
    """The second key: the task changes hands, unless it is done meanwhile; for a question that no longer stands nothing follows."""
    matter = _answered(draft.desk, envelope, fact.handover_id)
    if matter is None:
        return
    task, question = draft.desk.tasks.get(fact.task_id), matter.fact
    assert isinstance(question, HandoverOffered)
    if task is None or task.status not in UNDONE:
        _lapse(draft, matter, "ended")
        return
    move(draft, task, question.to, by=matter.id, grant=question.grant)
    take_up(draft, freed(task))


def returned(draft: Draft, envelope: Envelope, fact: HandoverRefused) -> None:
    """The other office refused: the task stays. After the second time the offices confer."""
    if matter := _answered(draft.desk, envelope, fact.handover_id):
        draft.on(
            matter,
            HandoverReturned(
                handover_id=matter.id, task_id=fact.task_id, to=envelope.district, reason=fact.reason, basis=fact.basis
            ),
        )
    task = draft.desk.tasks.get(fact.task_id)
    if task and fact.handover_id in task.refused:  # also where a batch lost its end after it had said so
        confer(draft, task)


def unanswered(draft: Draft, matter: Matter) -> None:
    """Nobody answered in time."""
    _lapse(draft, matter, "unanswered")


def _lapse(draft: Draft, matter: Matter, reason: str) -> None:
    question = matter.fact
    assert isinstance(question, HandoverOffered)
    draft.on(
        matter,
        HandoverLapsed.model_validate(
            {"handover_id": matter.id, "task_id": question.task_id, "to": question.to, "reason": reason}
        ),
    )


def _answered(desk: Desk, envelope: Envelope, id: str) -> Matter | None:
    """The open hand-over of ours that this answers; only the office that was asked can."""
    matter = desk.matters.get(id)
    if matter is None or not matter.ours or not isinstance(matter.fact, HandoverOffered):
        return None
    return matter if matter.fact.to == envelope.district else None


# --- the office that is asked -----------------------------------------------------------------------------------------


def receive(draft: Draft, envelope: Envelope, fact: HandoverOffered) -> None:
    """A question for this office has arrived."""
    if fact.to == draft.desk.district and draft.desk.is_new(fact.handover_id):
        received = HandoverReceived.model_validate({**dict(fact), "giver": envelope.district})
        draft.received(envelope, received)


def sign(draft: Draft, command: Sign) -> None:
    """签收. A second signature changes nothing; the giver decides whether it came in time."""
    matter = standing(draft.desk, HandoverOffered, command.handover, ours=False)
    if matter.stage == "signed":
        return
    if draft.now >= matter.fact.until:
        raise over("handover", matter.id)
    draft.on(matter, HandoverSigned(handover_id=matter.id, task_id=matter.fact.task_id, giver=matter.asker))


def refuse(draft: Draft, command: Refuse) -> None:
    """退单, with reason and basis; what was signed for is no longer refused."""
    matter = standing(draft.desk, HandoverOffered, command.handover, ours=False)
    if matter.stage == "signed":
        raise RefusedError("already_signed", id=matter.id)
    draft.on(
        matter,
        HandoverRefused(
            handover_id=matter.id,
            task_id=matter.fact.task_id,
            giver=matter.asker,
            reason=command.reason,
            basis=command.basis,
        ),
    )


def lapsed(draft: Draft, envelope: Envelope, fact: HandoverLapsed) -> None:
    """The giver keeps it."""
    matter = draft.desk.matters.get(fact.handover_id)
    if matter and not matter.ours and matter.asker == envelope.district:
        settle(draft, matter, fact.reason)


def settle(draft: Draft, matter: Matter, reason: str) -> None:
    """The question no longer stands here."""
    draft.on(
        matter,
        HandoverSettled.model_validate(
            {"handover_id": matter.id, "task_id": matter.fact.task_id, "giver": matter.asker, "reason": reason}
        ),
    )
