"""会商: what was refused twice is ruled on by a named lead, by a named day; until then it stays with its first receiver."""

from __future__ import annotations

from services.dispatch.between import Matter, standing
from services.dispatch.commands import Rule
from services.dispatch.drafting import Draft
from services.dispatch.ending import freed, move
from services.dispatch.model import Task
from services.dispatch.offering import take_up
from services.dispatch.states import UNDONE
from services.dispatch.words import over
from shared.clocks import due
from shared.envelope import Envelope
from shared.errors import RefusedError
from shared.facts import (
    ConferralEnded,
    ConferralOpened,
    ConferralReceived,
    ConferralRuled,
    ConferralSettled,
    Limit,
    instant,
)
from shared.ids import derived_id

REFUSALS = 2
"""So many, by whichever offices, and they confer."""
RULE_WITHIN = Limit(amount=2, unit="working_days")


def confer(draft: Draft, task: Task) -> None:
    """Open a conferral where the task has been refused often enough: the giver, who refused, and a lead."""
    desk = draft.desk
    if task.asking is not None or len(task.refused) < REFUSALS:
        return
    fact = ConferralOpened(
        conferral_id=derived_id(task.id, "conferral", task.attempt),
        task_id=task.id,
        request_id=task.request,
        parties=tuple(dict.fromkeys((desk.district, *task.refusers))),
        lead=lead(draft, task),
        item=task.item,
        refusals=task.refused,
        until=instant(due(draft.now, RULE_WITHIN, desk.register.calendar(desk.district))),
    )
    draft.of(task, fact, to=fact.lead)


def lead(draft: Draft, task: Task) -> str:
    """Who rules: the lead of the area's agreement, else the office on whose ground it lies, else the giver."""
    desk = draft.desk
    today = desk.register.today(desk.district, draft.now)
    agreement, area = desk.register.agreement(task.area, today), desk.register.area(task.area, today)
    named = (agreement.lead if agreement else None, task.located_in or (area.located_in if area else None))
    return next((office for office in named if office and office in desk.register.districts), desk.district)


def rule(draft: Draft, command: Rule) -> None:
    """The lead's ruling; where the lead is the giver, it acts on it at once."""
    desk = draft.desk
    matter = standing(desk, ConferralOpened, command.conferral)
    question = matter.fact
    assert isinstance(question, ConferralOpened)
    if question.lead != desk.district:
        raise RefusedError("not_lead", lead=question.lead)
    if matter.stage == "ruled":
        raise over("conferral", matter.id)
    able = dict.fromkeys((*question.parties, question.lead))
    if command.owner not in able:
        raise RefusedError("not_listed", field="owner", accepted="、".join(able), accepted_en=", ".join(able))
    ruling = ConferralRuled(
        conferral_id=matter.id,
        task_id=question.task_id,
        giver=matter.asker,
        owner=command.owner,
        item=question.item,
        basis=command.basis,
        precedent=command.precedent,
    )
    draft.on(matter, ruling)
    if matter.ours:
        _act(draft, matter, command.owner)


def ruled(draft: Draft, envelope: Envelope, fact: ConferralRuled) -> None:
    """The ruling has arrived where the task is: it is the second key. One that comes too late changes nothing."""
    matter = draft.desk.matters.get(fact.conferral_id)
    if matter and matter.ours and isinstance(matter.fact, ConferralOpened) and matter.fact.lead == envelope.district:
        _act(draft, matter, fact.owner)


def _act(draft: Draft, matter: Matter, owner: str) -> None:
    task = draft.desk.tasks.get(matter.fact.task_id)
    if task and task.status in UNDONE and owner != draft.desk.district:
        move(draft, task, owner, by=matter.id, grant=True)
    end(draft, matter, "ruled")
    if task:
        take_up(draft, freed(task) if task.id not in draft.desk.tasks else ())


def end(draft: Draft, matter: Matter, reason: str) -> None:
    """The conferral is over for the office whose task it is about."""
    draft.on(
        matter,
        ConferralEnded.model_validate({"conferral_id": matter.id, "task_id": matter.fact.task_id, "reason": reason}),
    )


# --- the others that take part ----------------------------------------------------------------------------------------


def receive(draft: Draft, envelope: Envelope, fact: ConferralOpened) -> None:
    """A conferral has arrived at an office that takes part in it, or leads it."""
    if draft.desk.district in (fact.lead, *fact.parties) and draft.desk.is_new(fact.conferral_id):
        received = ConferralReceived.model_validate({**dict(fact), "giver": envelope.district})
        draft.received(envelope, received)


def ended(draft: Draft, envelope: Envelope, fact: ConferralEnded) -> None:
    """It is over there, and so it is here."""
    matter = draft.desk.matters.get(fact.conferral_id)
    if matter and not matter.ours and matter.asker == envelope.district:
        settle(draft, matter, fact.reason)


def settle(draft: Draft, matter: Matter, reason: str) -> None:
    """Nothing is left to rule on here."""
    draft.on(
        matter,
        ConferralSettled.model_validate(
            {"conferral_id": matter.id, "task_id": matter.fact.task_id, "giver": matter.asker, "reason": reason}
        ),
    )
