"""Who may do a task, and who is best: pure, and the heart of the product. Every figure is an integer, every tie ends by id."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from services.dispatch.model import Desk, Member, Task
from shared.facts import Candidate, Duty

BEST = 5
"""How many candidates an explanation names."""
PARENTS_MAX = 8


@dataclass(frozen=True, slots=True)
class Match:
    """
    Attributes:
        chosen: who is to be asked; None where nobody may.
        considered: how many members cover the area.
        fell_out: how many of them may not, by the first reason that holds.
        best: the best five who may, cheapest first, with each term of their cost.
    """

    chosen: str | None
    considered: int
    fell_out: dict[str, int]
    best: tuple[Candidate, ...]


def match(desk: Desk, task: Task, now: datetime) -> Match:
    """The member with the lowest workload who may take the task: open effort, with this task's, over capacity."""
    weight = desk.register.policy(desk.district).weights.get("workload", 1)
    local = now.astimezone(desk.register.zone(desk.district))
    weekday, minute = local.isoweekday(), local.hour * 60 + local.minute
    fell_out: dict[str, int] = {}
    fit: list[tuple[int, str]] = []
    considered = 0
    for member in covering(desk, task.area, now):
        considered += 1
        if reason := unfit(member, task, weekday, minute):
            fell_out[reason] = fell_out.get(reason, 0) + 1
        else:
            fit.append((weight * workload(member, task.effort), member.id))
    best = heapq.nsmallest(BEST, fit)
    return Match(
        best[0][1] if best else None,
        considered,
        fell_out,
        tuple(Candidate(member_id=id, cost=cost, terms={"workload": cost}) for cost, id in best),
    )


def workload(member: Member, effort: int) -> int:
    """Open effort with this task's over capacity, in thousandths: 1000 is a full load."""
    return (member.load + effort) * 1000 // member.capacity


def unfit(member: Member, task: Task, weekday: int, minute: int) -> str | None:
    """Why a member may not be asked, in the order in which an office would say it; None where they may."""
    if member.left:
        return "left"
    if task.kinds and member.kind not in task.kinds:
        return "kind"
    if not member.skills.issuperset(task.skills):
        return "skill"
    if member.id in task.tried:
        return "asked"
    if member.duty and not on_duty(member.duty, weekday, minute):
        return "off_duty"
    if member.load + task.effort > member.capacity:
        return "capacity"
    return None


def on_duty(duty: tuple[Duty, ...], weekday: int, minute: int) -> bool:
    """Whether one of these spans holds on this weekday (1 Monday … 7 Sunday) and minute of the local day."""
    return any(weekday in span.days and span.since <= minute < span.until for span in duty)


def covering(desk: Desk, area: str, now: datetime) -> Iterator[Member]:
    """Everybody enrolled for the area or for one that contains it, each once."""
    seen: set[str] = set()
    today = desk.register.today(desk.district, now)
    code: str | None = area
    for _ in range(PARENTS_MAX):
        if code is None:
            return
        for id in desk.by_area.get(code, ()):
            if id not in seen:
                seen.add(id)
                yield desk.members[id]
        version = desk.register.area(code, today)
        code = version.parent if version else None
