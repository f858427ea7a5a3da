"""The ways in which a task stops being this office's: it is closed, or handed over; and what stood open about it ends with it."""

from __future__ import annotations

from typing import Literal

from services.dispatch import between
from services.dispatch.drafting import Draft
from services.dispatch.model import Task
from shared.facts import (
    ConferralEnded,
    ConferralOpened,
    HandoverLapsed,
    HandoverOffered,
    HelpAsked,
    HelpLapsed,
    HelpReleased,
    TaskClosed,
    TaskHandedOver,
)
from shared.ids import derived_id


def close(draft: Draft, task: Task, reason: Literal["rated", "quiet", "withdrawn", "reopened"]) -> None:
    """结案. Questions to others end first: of a batch that lost its end the task must not be gone before them."""
    let_go(draft, task)
    draft.of(task, TaskClosed(task_id=task.id, reason=reason))


def move(draft: Draft, task: Task, to: str, *, by: str, grant: bool) -> None:
    """转办: the one moment at which the task becomes another office's; its due times go with it as they are."""
    let_go(draft, task, but=by)
    fact = TaskHandedOver(
        task_id=task.id,
        request_id=task.request,
        round=task.round,
        to=to,
        by=by,
        new_task_id=derived_id(by, "task"),
        item=task.item,
        urgency=task.urgency,
        due=task.due,
        located_in=task.located_in,
        point=task.point,
        language=task.language,
        grant=grant,
    )
    draft.of(task, fact, to=to)


def freed(task: Task) -> tuple[str, ...]:
    """Who has room again once the task is no longer here."""
    return (*task.offered, *((task.holder,) if task.holder else ()))


def let_go(draft: Draft, task: Task, *, but: str | None = None) -> None:
    """End what stands open between offices about a task that is done, over, or about to be another's."""
    for matter in between.of_task(draft.desk, draft.desk.tasks.get(task.id, task)):
        if matter.id == but:
            continue
        match matter.fact:
            case HandoverOffered(handover_id=id, to=to):
                draft.of(task, HandoverLapsed(handover_id=id, task_id=task.id, to=to, reason="ended"))
            case ConferralOpened(conferral_id=id):
                draft.of(task, ConferralEnded(conferral_id=id, task_id=task.id, reason="ended"))
            case HelpAsked(help_id=id, to=to) if matter.member:
                draft.of(task, HelpReleased(help_id=id, task_id=task.id, to=to, member_id=matter.member))
            case HelpAsked(help_id=id, to=to):
                draft.of(task, HelpLapsed(help_id=id, task_id=task.id, to=to, reason="ended"))
