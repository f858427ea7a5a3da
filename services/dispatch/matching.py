"""Who may do a task, and who is best: pure, and the heart of the product. Every figure is an integer, every tie ends by id."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from services.dispatch.hours import back_at, is_quiet, on_duty
from shared.facts import Candidate
from shared.register import Register

if TYPE_CHECKING:  # the model asks us when a task that is unplaced is to be matched again
    from services.dispatch.model import Desk, Member, Task

BEST = 5
"""How many candidates an explanation names."""
PARENTS_MAX = 8
URGENT = 2
"""From this urgency on quiet hours do not hold."""
PASSING = ("off_duty", "quiet")
"""Reasons that end at a time that is known."""


@dataclass(frozen=True, slots=True)
class Match:
    """
    Attributes:
        chosen: who is to be asked; None where nobody may.
        considered: how many members cover the area, or were there to lend.
        fell_out: how many of them may not, by the first reason that holds.
        best: the best five who may, cheapest first, with each term of their cost.
    """

    chosen: str | None
    considered: int
    fell_out: dict[str, int]
    best: tuple[Candidate, ...]


def match(desk: Desk, task: Task, now: datetime) -> Match:
    """Among those who cover the area, the member with the lowest workload who may take the task."""
    return best_of(desk, covering(desk, task.area, now), task, now)


def best_of(desk: Desk, members: Iterable[Member], task: Task, now: datetime) -> Match:
    """The member with the lowest workload of these who may: open effort, with this task's, over capacity."""
    weight = desk.register.policy(desk.district).weights.get("workload", 1)
    unfit = judge(desk, now)
    fell_out: dict[str, int] = {}
    fit: list[tuple[int, str]] = []
    considered = 0
    for member in members:
        considered += 1
        if reason := unfit(member, task):
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


def by_hand(member: Member) -> Match:
    """Somebody named: nobody else was considered."""
    return Match(member.id, 1, {}, ())


def again_at(desk: Desk, task: Task, now: datetime) -> datetime | None:
    """When somebody who may not be asked only because of the hour may be asked; None where the hour keeps nobody back."""
    unfit = judge(desk, now)
    zone = desk.register.zone(desk.district)
    quiet = desk.register.policy(desk.district).quiet if task.urgency < URGENT else None
    kept_back = {member.duty for member in covering(desk, task.area, now) if unfit(member, task) in PASSING}
    return min((at for duty in kept_back if (at := back_at(duty, quiet, zone, now))), default=None)


def waiting(desk: Desk, members: Iterable[Member], may: Callable[[Task], bool], most: int) -> list[Task]:
    """The unplaced tasks of these members' areas that they may take, at most so many: urgent ones first, then who waits longest."""
    codes = {area for member in members for area in member.areas}
    tasks = (desk.tasks[id] for id in {id for code in codes for id in desk.waiting.get(code, ())})
    return heapq.nsmallest(most, filter(may, tasks), key=lambda task: (-task.urgency, task.since, task.id))


def workload(member: Member, effort: int) -> int:
    """Open effort with this task's over capacity, in thousandths: 1000 is a full load."""
    return (member.load + effort) * 1000 // member.capacity


def judge(desk: Desk, now: datetime) -> Callable[[Member, Task], str | None]:
    """A function that says why a member may not be asked now, in the order in which an office would say it; None where they may."""
    local = now.astimezone(desk.register.zone(desk.district))
    weekday, minute = local.isoweekday(), local.hour * 60 + local.minute
    quiet = is_quiet(desk.register.policy(desk.district).quiet, minute)

    def unfit(member: Member, task: Task) -> str | None:
        if member.left:
            return "left"
        if not able(member.kind, member.skills, task):
            return "kind" if task.kinds and member.kind not in task.kinds else "skill"
        if member.id in task.tried:
            return "asked"
        if not on_duty(member.duty, weekday, minute):
            return "off_duty"
        if quiet and task.urgency < URGENT:
            return "quiet"
        if member.load + task.effort > member.capacity:
            return "capacity"
        return None

    return unfit


def able(kind: str, skills: frozenset[str], task: Task) -> bool:
    """Whether somebody of this kind with these skills can do it at all."""
    return (not task.kinds or kind in task.kinds) and skills.issuperset(task.skills)


def covering(desk: Desk, area: str, now: datetime) -> Iterator[Member]:
    """Everybody enrolled for the area or for one that contains it, each once."""
    seen: set[str] = set()
    for code in around(desk.register, area, desk.district, now):
        for id in desk.by_area.get(code, ()):
            if id not in seen:
                seen.add(id)
                yield desk.members[id]


def around(register: Register, area: str, district: str, now: datetime) -> tuple[str, ...]:
    """The area and those that contain it on that day, the smallest first."""
    today = register.today(district, now)
    codes: list[str] = []
    code: str | None = area
    while code is not None and code not in codes and len(codes) < PARENTS_MAX:
        codes.append(code)
        version = register.area(code, today)
        code = version.parent if version else None
    return tuple(codes)
