"""Due times from limits and calendars: pure. A clock starts at submission; silence, comments and transfers never move it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from shared.facts import CalendarSet, Due, Limit, Limits, instant

DAYS_MAX = 3660
"""A limit that is not used up within ten years of working time is a mistake in the calendar."""


@dataclass(frozen=True, slots=True)
class Calendar:
    """Working time of an office: weekly hours with public holidays and make-up working days (调休)."""

    zone: ZoneInfo
    hours: tuple[tuple[int, int], ...]
    workdays: frozenset[int]
    holidays: frozenset[date]
    makeup: frozenset[date]

    @classmethod
    def of(cls, fact: CalendarSet) -> Calendar:
        """The calendar that a register fact describes."""
        return cls(
            ZoneInfo(fact.zone),
            tuple(sorted(fact.hours)),
            frozenset(fact.workdays),
            frozenset(fact.holidays),
            frozenset(fact.makeup),
        )

    def works(self, day: date) -> bool:
        """Whether the office works on this day. A make-up day beats a weekend, a holiday beats a weekday."""
        return day in self.makeup or (day.isoweekday() in self.workdays and day not in self.holidays)


ALWAYS = Calendar(ZoneInfo("UTC"), ((0, 1440),), frozenset(range(1, 8)), frozenset(), frozenset())
"""Day and night: for emergencies, and where no calendar is known."""
DANGER = 3
"""From this urgency on clocks run day and night, whatever the office's hours."""


def due(start: datetime, limit: Limit, calendar: Calendar) -> datetime:
    """
    When a limit that starts now is used up, in UTC.

    Working hours count only inside the calendar's spans; working days end at the same local time, `amount` working days on
    (a start outside working time counts as the next minute that the office works).
    """
    match limit.unit:
        case "seconds":
            return start + timedelta(seconds=limit.amount)
        case "minutes":
            return start + timedelta(minutes=limit.amount)
        case "hours":
            return start + timedelta(hours=limit.amount)
        case "working_hours":
            return _working_minutes(start, limit.amount * 60, calendar)
        case "working_days":
            return _working_days(start, limit.amount, calendar)


def dues(start: datetime, limits: Limits, calendar: Calendar) -> Due:
    """The four due times of a request submitted at `start`."""
    minute = start.replace(second=0, microsecond=0)
    sign, contact, handle, life = _dues(minute, limits, calendar)
    rest = start - minute
    return Due(
        sign=instant(sign + rest),
        contact=instant(contact + rest),
        handle=instant(handle + rest),
        life=instant(life + rest),
    )


@lru_cache(maxsize=4096)
def _dues(minute: datetime, limits: Limits, calendar: Calendar) -> tuple[datetime, datetime, datetime, datetime]:
    return (
        due(minute, limits.sign, calendar),
        due(minute, limits.contact, calendar),
        due(minute, limits.handle, calendar),
        due(minute, limits.life, calendar),
    )


def _spans(start: datetime, calendar: Calendar) -> list[tuple[datetime, datetime]]:
    """The working spans of the day of `start` that are not yet over, cut at `start`."""
    day = start.date()
    midnight = datetime.combine(day, time(), calendar.zone)
    spans = [(midnight + timedelta(minutes=a), midnight + timedelta(minutes=b)) for a, b in calendar.hours]
    return [(max(a, start), b) for a, b in spans if b > start] if calendar.works(day) else []


def _tomorrow(moment: datetime, calendar: Calendar) -> datetime:
    return datetime.combine(moment.date() + timedelta(days=1), time(), calendar.zone)


def _working_minutes(start: datetime, minutes: int, calendar: Calendar) -> datetime:
    left, now = timedelta(minutes=minutes), start.astimezone(calendar.zone)
    for _ in range(DAYS_MAX):
        for since, until in _spans(now, calendar):
            if left <= until - since:
                return (since + left).astimezone(UTC)
            left -= until - since
        now = _tomorrow(now, calendar)
    raise ValueError("the calendar has no working time")


def _working_days(start: datetime, days: int, calendar: Calendar) -> datetime:
    now = start.astimezone(calendar.zone)
    for _ in range(DAYS_MAX):
        if spans := _spans(now, calendar):
            now = spans[0][0]
            break
        now = _tomorrow(now, calendar)
    else:
        raise ValueError("the calendar has no working time")
    for _ in range(DAYS_MAX):
        if days <= 0:
            return now.astimezone(UTC)
        now += timedelta(days=1)
        days -= calendar.works(now.date())
    raise ValueError("the calendar has no working time")
