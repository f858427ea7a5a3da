"""派单: who is asked, what waits for somebody, and what a dispatcher asks by hand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import get_args

from services.dispatch.commands import Offer
from services.dispatch.drafting import Draft
from services.dispatch.matching import able, again_at, by_hand, judge, match, waiting
from services.dispatch.model import Desk, Task, span
from services.dispatch.states import End
from services.dispatch.words import wrong_state
from shared.errors import RefusedError
from shared.facts import TaskExpired, TaskOffered, TaskUnplaced, instant
from shared.ids import derived_id


def find(desk: Desk, id: str) -> Task:
    """The open task. Raises RefusedError `wrong_state` for one that is over, `unknown_task`."""
    task = desk.tasks.get(id)
    if task is None:
        if (how := desk.ended(id)) in get_args(End):
            raise wrong_state(id, str(how), "change")
        raise RefusedError("unknown_task", task=id)
    return task


def offer(draft: Draft, task: Task) -> None:
    """Ask the best who may; where nobody is left, say so, once: for a task that is unplaced already, only the explanation is new."""
    policy = draft.desk.register.policy(draft.desk.district)
    found = match(draft.desk, task, draft.now)
    if task.wave - task.spent >= policy.waves:
        found = replace(found, chosen=None)
    match_id = draft.explain(found, task.id, task.wave + 1, task=task.id, case=task.request)
    if found.chosen is None and task.status != "unplaced":
        draft.of(task, TaskUnplaced(task_id=task.id, match_id=match_id, item=task.item, urgency=task.urgency))
    elif found.chosen is not None:
        ask(draft, task, found.chosen, match_id)


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


def offer_by_hand(draft: Draft, command: Offer) -> None:
    """A dispatcher asks somebody in particular, also for a task that was unplaced; capacity holds for them too."""
    task, member = find(draft.desk, command.task), draft.desk.members.get(command.member)
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
    match_id = draft.explain(by_hand(member), task.id, task.wave + 1, task=task.id, case=task.request)
    ask(draft, draft.desk.tasks[task.id], command.member, match_id)
