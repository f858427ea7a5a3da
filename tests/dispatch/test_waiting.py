"""无人可派, and what comes after it: what nobody could take is offered when somebody can."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from services.dispatch import model
from services.dispatch.commands import Accept, Decline, Done, Enrol, Leave, Offer
from services.dispatch.hours import back_at, is_quiet
from shared.facts import Duty, Fact, MatchExplained, TaskDone, TaskOffered, TaskUnplaced
from shared.ids import derived_id
from tests.dispatch.telling import after, asked, decision, due, explanation, given, seen, when
from tests.examples import (
    ESTATE,
    LI,
    LIFT,
    NOW,
    OFFER,
    OUJING,
    POLICY,
    REGISTER,
    TASK,
    TEAM,
    WANG,
    WITHDRAWN,
    XINXIANG,
    ZHAO,
    enrolled,
    id_of,
    member,
    submitted,
)

SUBMITTED = seen(submitted())
SECOND = derived_id(id_of("request", 2), "task", 1)
AT_NIGHT = (*REGISTER, POLICY.model_copy(update={"quiet": (1320, 420)}))
"""22:00 to 07:00."""
ZONE = ZoneInfo("Asia/Shanghai")
ALL_WEEK = (1, 2, 3, 4, 5, 6, 7)


def local(weekday: int, hour: int, minute: int = 0) -> datetime:
    """A time of the week in Wuhan; 1 is Monday 23 November."""
    return datetime(2026, 11, 22 + weekday, hour, minute, tzinfo=UTC) - timedelta(hours=8)


def hours(days: tuple[int, ...], since: int, until: int) -> Duty:
    """Hours on duty."""
    return Duty(days=days, since=since * 60, until=until * 60)


def offers(facts: list[Fact]) -> list[tuple[str, tuple[str, ...]]]:
    """Which task was offered to whom."""
    return [(fact.task_id, fact.members) for fact in facts if isinstance(fact, TaskOffered)]


MORNINGS = enrolled(LI, duty=(hours((1, 2, 3, 4, 5), 8, 12),))
EVENING = local(1, 20)
WAITS_FOR_LI = after(given(MORNINGS), SUBMITTED, now=EVENING)

# --- hours ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("duty", "quiet", "now", "then"),
    [
        ((hours((1,), 8, 12),), None, local(1, 7), local(1, 8)),
        ((hours((1,), 8, 12),), None, local(1, 8), local(8, 8)),
        ((hours((5,), 8, 12), hours((3,), 22, 24)), None, local(1, 8), local(3, 22)),
        ((), (1320, 420), local(1, 23), local(2, 7)),
        ((), (1320, 420), local(2, 3), local(2, 7)),
        ((hours((2,), 0, 6), hours((2,), 6, 9)), (1320, 420), local(1, 23), local(2, 7)),
        ((hours((2,), 0, 6),), (1320, 420), local(1, 23), None),
        ((hours(ALL_WEEK, 9, 12),), (1320, 1440), local(1, 23), local(2, 9)),
        ((), (1320, 1440), local(1, 23), local(2, 0)),
        ((), (600, 600), local(1, 10), None),
        ((), None, local(1, 10), None),
        ((Duty(days=(1,), since=1440, until=1440),), None, local(1, 10), None),
    ],
)
def test_when_somebody_can_be_asked_again(
    duty: tuple[Duty, ...], quiet: tuple[int, int] | None, now: datetime, then: datetime | None
) -> None:
    assert back_at(duty, quiet, ZONE, now) == then


def test_an_hour_that_a_clock_skips_is_not_waited_for_twice() -> None:
    """In Berlin 02:30 of 29 March 2026 does not exist: it is an hour later by the new clock."""
    berlin, now = ZoneInfo("Europe/Berlin"), datetime(2026, 3, 28, 12, tzinfo=UTC)
    at = back_at((Duty(days=(7,), since=150, until=200),), None, berlin, now)
    assert at == datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
    assert back_at((Duty(days=(7,), since=150, until=200),), None, berlin, at) == datetime(
        2026, 4, 5, 0, 30, tzinfo=UTC
    )


def test_quiet_hours_may_span_midnight_and_end_when_they_say() -> None:
    assert [is_quiet((1320, 420), minute) for minute in (1319, 1320, 0, 419, 420)] == [False, True, True, True, False]
    assert not is_quiet(None, 0)


# --- quiet hours ------------------------------------------------------------------------------------------------------


def test_in_quiet_hours_nobody_is_asked_about_what_can_wait() -> None:
    desk = given(*TEAM, register=AT_NIGHT)
    found = explanation(desk, SUBMITTED, local(1, 23))
    assert (found.fell_out, found.chosen) == ({"quiet": 3}, ())
    task = after(desk, SUBMITTED, now=local(1, 23)).tasks[TASK]
    assert (task.status, task.until) == ("unplaced", local(2, 7))


@pytest.mark.parametrize("urgency", [2, 3])
def test_what_is_urgent_breaks_through(urgency: int) -> None:
    desk = given(*TEAM, register=AT_NIGHT)
    assert offers(when(desk, seen(submitted(urgency=urgency)), local(1, 23))) == [(TASK, (LI,))]


def test_what_came_in_the_night_is_offered_in_the_morning() -> None:
    desk = after(given(*TEAM, register=AT_NIGHT), SUBMITTED, now=local(1, 23))
    assert when(desk, due(local(2, 7)), local(2, 6, 59)) == []
    assert offers(when(desk, due(local(2, 7)), local(2, 7))) == [(TASK, (LI,))]


# --- duty -------------------------------------------------------------------------------------------------------------


def test_a_task_waits_for_the_first_who_comes_on_duty() -> None:
    assert (WAITS_FOR_LI.tasks[TASK].status, WAITS_FOR_LI.tasks[TASK].until) == ("unplaced", local(2, 8))
    assert offers(when(WAITS_FOR_LI, due(local(2, 8)), local(2, 8))) == [(TASK, (LI,))]


def test_whose_hours_do_not_matter_is_not_waited_for() -> None:
    """A lift needs a responder: Li's mornings change nothing."""
    desk = after(given(MORNINGS), seen(submitted(item=LIFT)), now=EVENING)
    assert desk.tasks[TASK].until is None


def test_when_nobody_can_take_it_then_either_it_waits_on_and_the_supervisor_is_not_told_again() -> None:
    desk = after(WAITS_FOR_LI, asked(Enrol(members=(MORNINGS.model_copy(update={"capacity": 5}),))), now=EVENING)
    made = decision(desk, due(local(2, 8)), local(2, 8))
    (explained,) = (fact.fact for fact in made.facts)
    assert isinstance(explained, MatchExplained)
    assert explained.fell_out == {"capacity": 1}
    assert made.state.tasks[TASK].until is None
    assert made.state.tasks[TASK].status == "unplaced"


def test_the_waves_are_counted_anew_when_it_is_offered_again() -> None:
    """Three of the afternoon let it pass; in the morning those of the morning are asked, again up to three."""
    late = tuple(enrolled(f"m-{n}", duty=(hours(ALL_WEEK, 10, 18),)) for n in range(3))
    early = tuple(enrolled(f"m-early-{n}", duty=(hours(ALL_WEEK, 6, 9),)) for n in range(4))
    desk, now = after(given(*late, *early), SUBMITTED), NOW
    for _ in range(3):
        now += OFFER
        desk = after(desk, due(now), now=now)
    assert (desk.tasks[TASK].status, desk.tasks[TASK].wave, desk.tasks[TASK].until) == ("unplaced", 3, local(2, 6))
    now, names = local(2, 6), []
    for _ in range(4):
        made = when(desk, due(now), now)
        names += [who for _, who in offers(made)]
        desk = after(desk, due(now), now=now)
        now += OFFER
    assert names == [("m-early-0",), ("m-early-1",), ("m-early-2",)]
    assert desk.tasks[TASK].status == "unplaced"


def test_what_is_withdrawn_or_offered_by_hand_waits_no_more() -> None:
    gone = after(WAITS_FOR_LI, seen(WITHDRAWN), now=EVENING)
    assert (len(gone.waiting), when(gone, due(local(2, 8)), local(2, 8))) == (0, [])
    taken = after(WAITS_FOR_LI, asked(Offer(task=TASK, member=LI)), now=EVENING)
    assert (len(taken.waiting), when(taken, due(local(2, 8)), EVENING)) == (0, [])


# --- new members ------------------------------------------------------------------------------------------------------


def test_who_is_enrolled_is_asked_about_what_waits() -> None:
    desk = after(given(), SUBMITTED)
    made = decision(desk, asked(Enrol(members=(enrolled(LI),))))
    assert offers([fact.fact for fact in made.facts]) == [(TASK, (LI,))]
    assert made.answer["facts"] == 1  # what waited is offered because of the enrolment, not by who enrolled
    enrolment, *others = made.facts
    assert {(fact.actor, fact.cause) for fact in others} == {(None, enrolment.id)}


def test_who_is_enrolled_off_duty_is_waited_for() -> None:
    desk = after(given(), SUBMITTED, now=EVENING)
    assert desk.tasks[TASK].until is None
    desk = after(desk, asked(Enrol(members=(MORNINGS,))), now=EVENING)
    assert (desk.tasks[TASK].status, desk.tasks[TASK].until) == ("unplaced", local(2, 8))


def test_an_enrolment_that_helps_nobody_who_waits_says_nothing_about_them() -> None:
    desk = after(given(), SUBMITTED)
    for terms in (enrolled(LI, XINXIANG), enrolled(LI, capacity=9)):
        assert [fact.fact for fact in decision(desk, asked(Enrol(members=(terms,)))).facts] == [terms]


def test_a_large_enrolment_takes_up_a_hundred_and_fits_one_turn() -> None:
    desk = given()
    for n in range(150):
        desk = after(desk, seen(submitted(n), sequence=n + 1))
    made = decision(desk, asked(Enrol(members=tuple(enrolled(f"m-{n}") for n in range(500)))))
    assert (len(made.facts), len(offers([fact.fact for fact in made.facts]))) == (700, 100)


# --- room -------------------------------------------------------------------------------------------------------------

ONE_AT_A_TIME = enrolled(LI, capacity=10)
FULL = after(given(ONE_AT_A_TIME), SUBMITTED, asked(Accept(task=TASK, member=LI)), seen(submitted(2), sequence=2))


def test_who_is_done_is_asked_about_what_waits() -> None:
    assert (FULL.tasks[SECOND].status, FULL.tasks[SECOND].until) == ("unplaced", None)
    made = decision(FULL, asked(Done(task=TASK, member=LI), by=member(LI)))
    done, *others = made.facts
    assert isinstance(done.fact, TaskDone)
    assert offers([fact.fact for fact in others]) == [(SECOND, (LI,))]
    assert {(fact.actor, fact.cause) for fact in others} == {(None, done.id)}
    assert made.answer["facts"] == 1


def test_what_is_urgent_comes_first_and_then_who_waits_longest() -> None:
    desk = FULL
    for n, urgency in ((3, 0), (4, 1), (5, 1)):
        desk = after(desk, seen(submitted(n, urgency=urgency), sequence=n), now=NOW + timedelta(minutes=n))
    order = []
    now = NOW + timedelta(minutes=10)
    for _ in range(4):
        held = next(task.id for task in desk.tasks.values() if task.holder == LI and task.status != "done")
        ((id, _),) = offers(when(desk, asked(Done(task=held, member=LI)), now))
        desk = after(desk, asked(Done(task=held, member=LI)), asked(Accept(task=id, member=LI)), now=now)
        order.append(id)
    assert order == [derived_id(id_of("request", n), "task", 1) for n in (4, 5, 2, 3)]


def test_one_end_leads_to_one_beginning() -> None:
    desk = after(FULL, seen(submitted(3), sequence=3))
    desk = after(desk, asked(Enrol(members=(enrolled(LI, capacity=10, skills=("repair",)),))))
    assert len(offers(when(desk, asked(Done(task=TASK, member=LI))))) == 1


def test_a_held_task_that_is_withdrawn_makes_room_too() -> None:
    assert offers(when(FULL, seen(WITHDRAWN))) == [(SECOND, (LI,))]


def test_an_offer_that_ends_makes_room_too() -> None:
    asked_only = after(given(ONE_AT_A_TIME), SUBMITTED, seen(submitted(2), sequence=2))
    assert asked_only.tasks[SECOND].status == "unplaced"
    said_no = when(asked_only, asked(Decline(task=TASK, member=LI), by=member(LI)))
    ran_out = when(asked_only, due(NOW + OFFER), NOW + OFFER)
    for facts in (said_no, ran_out):
        assert offers(facts) == [(SECOND, (LI,))]
        assert [fact.task_id for fact in facts if isinstance(fact, TaskUnplaced)] == [TASK]


def test_who_has_left_or_gone_home_is_not_asked_when_they_are_done() -> None:
    assert offers(when(after(FULL, asked(Leave(member=LI))), asked(Done(task=TASK, member=LI)))) == []
    terms = ONE_AT_A_TIME.model_copy(update={"duty": MORNINGS.duty})
    desk = after(given(terms), SUBMITTED, asked(Accept(task=TASK, member=LI)), seen(submitted(2), sequence=2))
    assert offers(when(desk, asked(Done(task=TASK, member=LI)), EVENING)) == []


def test_what_waits_in_a_grid_is_taken_up_by_who_covers_the_estate() -> None:
    desk = after(given(enrolled(ZHAO, ESTATE, capacity=10)), seen(submitted(area=ESTATE)))
    desk = after(desk, asked(Accept(task=TASK, member=ZHAO)), seen(submitted(2, area=OUJING), sequence=2))
    assert offers(when(desk, asked(Done(task=TASK, member=ZHAO)))) == [(SECOND, (ZHAO,))]


def test_what_waits_survives_being_written_down() -> None:
    for desk in (WAITS_FOR_LI, FULL, after(FULL, asked(Enrol(members=(enrolled(WANG, XINXIANG),))))):
        dumped = model.dump(desk)
        assert set(desk.waiting) == {OUJING, ESTATE}
        tasks = [[*row] for row in dumped["tasks"]]
        for row in tasks:
            row[:] = [held.isoformat() if isinstance(held, datetime) else held for held in row]
        since = dumped["answers_since"]
        assert model.load(dumped | {"tasks": tasks, "answers_since": since and since.isoformat()}) == desk
