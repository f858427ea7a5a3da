"""Due times from limits and calendars."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.clocks import ALWAYS, Calendar, due, dues
from shared.facts import Limit
from tests.examples import CALENDAR, LIMITS, limit

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
OFFICE = Calendar.of(CALENDAR)
WUHAN = ZoneInfo("Asia/Shanghai")


def at(month: int, day: int, hour: int = 0, minute: int = 0) -> datetime:
    """A local time of 2026. 9 October is a Friday, 10 October a Saturday on which the office works, 1 and 2 are holidays."""
    return datetime(2026, month, day, hour, minute, tzinfo=WUHAN)


def ends(start: datetime, amount: int, unit: str, calendar: Calendar = OFFICE) -> datetime:
    """When that much is used up, in local time."""
    return due(start.astimezone(UTC), limit(amount, unit), calendar).astimezone(WUHAN)


@pytest.mark.parametrize(("unit", "seconds"), [("seconds", 1), ("minutes", 60), ("hours", 3600)])
def test_elapsed_time_runs_day_and_night(unit: str, seconds: int) -> None:
    assert ends(at(10, 1, 23), 30, unit) == at(10, 1, 23) + timedelta(seconds=30 * seconds)


@pytest.mark.parametrize(
    ("start", "hours", "end"),
    [
        (at(11, 23, 9), 2, at(11, 23, 11)),
        (at(11, 23, 11), 1, at(11, 23, 12)),  # the last minute before lunch still counts
        (at(11, 23, 11), 2, at(11, 23, 15)),  # over lunch
        (at(11, 23, 12, 30), 1, at(11, 23, 15)),  # begun at lunch
        (at(11, 23, 7), 1, at(11, 23, 10)),  # begun before the office opens
        (at(11, 23, 17), 2, at(11, 24, 10)),  # over night
        (at(11, 23, 18), 1, at(11, 24, 10)),  # begun as it closes
        (at(11, 27, 17), 2, at(11, 30, 10)),  # over a weekend
        (at(9, 30, 17), 2, at(10, 5, 10)),  # over holidays and a weekend
        (at(10, 9, 17), 2, at(10, 10, 10)),  # into a make-up Saturday
        (at(10, 3, 12), 8, at(10, 6, 10)),  # a whole day of seven hours and one more
    ],
)
def test_working_hours(start: datetime, hours: int, end: datetime) -> None:
    assert ends(start, hours, "working_hours") == end


@pytest.mark.parametrize(
    ("start", "days", "end"),
    [
        (at(11, 23, 10), 1, at(11, 24, 10)),
        (at(11, 27, 10), 1, at(11, 30, 10)),  # Friday to Monday
        (at(9, 30, 10), 1, at(10, 5, 10)),  # over holidays and a weekend
        (at(10, 9, 10), 1, at(10, 10, 10)),  # to the make-up Saturday
        (at(10, 9, 10), 2, at(10, 12, 10)),  # and over the Sunday
        (at(11, 28, 10), 1, at(12, 1, 9)),  # begun on a Saturday: as if on Monday at nine
        (at(11, 27, 20), 1, at(12, 1, 9)),  # begun in the evening: as if on the next working day
        (at(11, 23, 7), 1, at(11, 24, 9)),  # begun before the office opens: as if when it does
        (at(11, 23, 12, 30), 1, at(11, 24, 14)),  # begun at lunch
        (at(11, 23, 10), 0, at(11, 23, 10)),
    ],
)
def test_working_days(start: datetime, days: int, end: datetime) -> None:
    assert ends(start, days, "working_days") == end


def test_a_holiday_beats_a_weekday_and_a_make_up_day_beats_a_weekend() -> None:
    assert [OFFICE.works(date(2026, 10, day)) for day in (1, 2, 3, 4, 5, 9, 10, 11)] == [
        False, False, False, False, True, True, True, False,
    ]  # fmt: skip


def test_where_it_never_closes_working_time_is_elapsed_time() -> None:
    start = at(10, 1, 3, 17)
    assert ends(start, 50, "working_hours", ALWAYS) == start + timedelta(hours=50)
    assert ends(start, 3, "working_days", ALWAYS) == start + timedelta(days=3)


def test_a_calendar_without_working_time_is_an_error_and_no_endless_loop() -> None:
    for closed in (
        Calendar(WUHAN, (), frozenset(range(1, 8)), frozenset(), frozenset()),
        Calendar(WUHAN, ((540, 720),), frozenset(), frozenset(), frozenset()),
    ):
        for unit in ("working_hours", "working_days"):
            with pytest.raises(ValueError, match="no working time"):
                ends(at(10, 1), 1, unit, closed)


def test_the_zone_is_the_calendars() -> None:
    west = Calendar.of(CALENDAR.model_copy(update={"zone": "Asia/Urumqi"}))
    assert ends(at(11, 23, 9), 1, "working_hours", west) == at(11, 23, 12)  # nine o'clock there is eleven here


def test_the_four_times_are_whole_milliseconds_and_keep_their_seconds() -> None:
    start = datetime(2026, 11, 23, 2, 0, 41, 123_987, tzinfo=UTC)
    times = dues(start, LIMITS, OFFICE)
    assert times.sign == datetime(2026, 11, 23, 2, 30, 41, 123_000, tzinfo=UTC)
    assert times.contact == datetime(2026, 11, 23, 3, 0, 41, 123_000, tzinfo=UTC)
    assert times.handle == datetime(2026, 11, 24, 3, 0, 41, 123_000, tzinfo=UTC)
    assert times.life == datetime(2026, 11, 30, 2, 0, 41, 123_000, tzinfo=UTC)


moments = st.integers(0, 2 * 365 * 86_400_000).map(lambda ms: NEW_YEAR + timedelta(milliseconds=ms))
limits = st.builds(
    lambda amount, unit: Limit.model_validate({"amount": amount, "unit": unit}),
    st.integers(0, 60),
    st.sampled_from(["seconds", "minutes", "hours", "working_hours", "working_days"]),
)


@given(moments, limits)
def test_nothing_is_due_before_it_began(start: datetime, limit: Limit) -> None:
    assert due(start, limit, OFFICE) >= start


@given(moments, moments, limits)
def test_what_began_later_is_not_due_earlier(one: datetime, two: datetime, limit: Limit) -> None:
    first, second = sorted((one, two))
    assert due(first, limit, OFFICE) <= due(second, limit, OFFICE)


@given(moments, st.integers(1, 60))
def test_a_limit_in_working_hours_ends_in_working_time(start: datetime, hours: int) -> None:
    end = ends(start, hours, "working_hours")
    minute = end.hour * 60 + end.minute + end.second / 60 + end.microsecond / 60e6
    assert OFFICE.works(end.date())
    assert any(since <= minute <= until for since, until in OFFICE.hours)
