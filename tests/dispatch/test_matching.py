"""Who may do a task, and who is best."""

from datetime import UTC, datetime, timedelta

import pytest

from services.dispatch.commands import Accept, Decline, Leave
from services.dispatch.hours import on_duty
from services.dispatch.matching import match, workload
from services.dispatch.model import Desk, Task
from shared.facts import Duty, Fact, RegisterFact, TaskOffered
from tests.dispatch.telling import after, asked, explanation, given, seen, when
from tests.examples import (
    DISTRICT,
    ESTATE,
    LI,
    LIFT,
    NOW,
    OUJING,
    REGISTER,
    TASK,
    TEAM,
    WANG,
    XINXIANG,
    ZHAO,
    area,
    enrolled,
    submitted,
)

SUBMITTED = seen(submitted())


def asks(*members: Fact, at: datetime = NOW, request: object = SUBMITTED, register: object = REGISTER) -> str | None:
    """Whom the desk asks first, or None."""
    facts = when(given(*members, register=register), request, at)  # type: ignore[arg-type]
    return next((fact.members[0] for fact in facts if isinstance(fact, TaskOffered)), None)


def local(weekday: int, hour: int, minute: int = 0) -> datetime:
    """A time of the week in Wuhan; 1 is Monday 23 November."""
    return datetime(2026, 11, 22 + weekday, hour, minute, tzinfo=UTC) - timedelta(hours=8)


def duty(days: tuple[int, ...], since: int, until: int) -> Duty:
    """Hours on duty."""
    return Duty(days=days, since=since * 60, until=until * 60)


# --- order ------------------------------------------------------------------------------------------------------------


def test_the_lowest_workload_is_asked() -> None:
    desk = after(given(*TEAM), SUBMITTED, asked(Accept(task=TASK, member=LI)))
    (_, offered) = when(desk, seen(submitted(2), sequence=2))
    assert isinstance(offered, TaskOffered)
    assert offered.members == (WANG,)


def test_workload_is_open_effort_over_capacity_with_this_task() -> None:
    assert asks(enrolled(LI, capacity=30), enrolled(WANG, capacity=100)) == WANG
    desk = given(enrolled(LI, capacity=30))
    assert workload(desk.members[LI], 10) == 333


def test_ties_end_by_id_whatever_the_order_of_enrolment() -> None:
    assert asks(enrolled(ZHAO), enrolled(WANG), enrolled(LI)) == LI


def test_the_best_five_are_named_with_their_cost_in_order() -> None:
    members = [enrolled(f"m-{n}", capacity=100 - n) for n in range(7)]
    explained = explanation(given(*members), SUBMITTED)
    assert [best.member_id for best in explained.best] == ["m-0", "m-1", "m-2", "m-3", "m-4"]
    assert [best.cost for best in explained.best] == sorted(best.terms["workload"] for best in explained.best)
    assert (explained.considered, explained.chosen, explained.policy) == (7, ("m-0",), 7)


def test_a_thousand_requests_are_spread_evenly() -> None:
    desk = given(*(enrolled(f"m-{n:02}", capacity=1000) for n in range(40)))
    for n in range(1000):
        desk = after(desk, seen(submitted(n), sequence=n + 1))
    assert {member.load for member in desk.members.values()} == {250}


# --- who may ----------------------------------------------------------------------------------------------------------


def test_only_who_covers_the_area_is_considered() -> None:
    explained = explanation(given(enrolled(LI, XINXIANG), enrolled(WANG, OUJING)), SUBMITTED)
    assert (explained.considered, explained.chosen) == (1, (WANG,))


def test_who_covers_an_area_above_it_covers_it_too() -> None:
    assert asks(enrolled(LI, ESTATE)) == LI
    assert asks(enrolled(LI, OUJING), request=seen(submitted(area=ESTATE))) is None


def test_who_covers_both_is_considered_once() -> None:
    assert explanation(given(enrolled(LI, OUJING, ESTATE)), SUBMITTED).considered == 1


def test_a_circle_of_parents_ends() -> None:
    circle: tuple[RegisterFact, ...] = (DISTRICT, area(OUJING, parent=ESTATE), area(ESTATE, parent=OUJING))
    assert asks(enrolled(LI, "elsewhere"), register=circle) is None


@pytest.mark.parametrize(
    ("terms", "why"),
    [
        ({"kind": "volunteer", "skills": ("rescue",)}, "kind"),
        ({"kind": "responder"}, "skill"),
        ({"kind": "responder", "skills": ("rescue",), "duty": (duty((2,), 0, 24),)}, "off_duty"),
        ({"kind": "responder", "skills": ("rescue",), "capacity": 9}, "capacity"),
        ({"kind": "volunteer", "capacity": 9}, "kind"),
    ],
)
def test_who_may_not_falls_out_by_the_first_reason(terms: dict[str, object], why: str) -> None:
    explained = explanation(given(enrolled(LI, OUJING, **terms)), seen(submitted(item=LIFT)))  # type: ignore[arg-type]
    assert (explained.fell_out, explained.chosen, explained.best) == ({why: 1}, (), ())


def test_who_fits_exactly_may() -> None:
    assert asks(enrolled(LI, capacity=10)) == LI


def test_who_left_and_who_was_asked_fall_out_and_all_are_counted() -> None:
    desk = after(given(*TEAM, enrolled("m-x", kind="volunteer", capacity=5)), SUBMITTED, asked(Leave(member=WANG)))
    explained = explanation(desk, asked(Decline(task=TASK, member=LI)))
    assert explained.fell_out == {"asked": 1, "left": 1, "capacity": 1}
    assert (explained.considered, explained.chosen) == (4, (ZHAO,))


# --- hours ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "there"),
    [
        (local(1, 7, 59), False),
        (local(1, 8), True),
        (local(1, 11, 59), True),
        (local(1, 12), False),
        (local(6, 9), False),
    ],
)
def test_duty_holds_by_the_districts_clock(at: datetime, there: bool) -> None:
    weekdays = enrolled(LI, duty=(duty((1, 2, 3, 4, 5), 8, 12),))
    assert asks(weekdays, at=at) == (LI if there else None)


def test_the_weekday_is_the_districts_not_utc() -> None:
    monday = enrolled(LI, duty=(duty((1,), 0, 24),))
    assert asks(monday, at=datetime(2026, 11, 22, 16, 0, tzinfo=UTC)) == LI  # Sunday in UTC, Monday 00:00 in Wuhan
    assert asks(monday, at=datetime(2026, 11, 23, 16, 0, tzinfo=UTC)) is None  # Tuesday 00:00 there


def test_another_time_zone_moves_the_hours() -> None:
    west = DISTRICT.model_copy(update={"zone": "Asia/Urumqi"})
    morning = enrolled(LI, duty=(duty((1,), 8, 12),))
    at = local(1, 8)
    assert asks(morning, at=at) == LI
    assert asks(morning, at=at, register=(*REGISTER, west)) is None  # 06:00 there


def test_a_night_is_two_spans_and_midnight_belongs_to_the_new_day() -> None:
    night = (duty((1,), 22, 24), duty((2,), 0, 6))
    assert on_duty(night, 1, 1439)
    assert on_duty(night, 2, 0)
    assert not on_duty(night, 2, 360)
    assert not on_duty(night, 1, 0)


def test_no_hours_mean_always() -> None:
    assert asks(enrolled(LI, duty=()), at=local(7, 3)) == LI


def test_matching_alone_changes_nothing() -> None:
    desk = after(given(*TEAM), SUBMITTED)
    task: Task = desk.tasks[TASK]
    before: Desk = desk
    assert match(desk, task, NOW) == match(desk, task, NOW)
    assert desk == before
