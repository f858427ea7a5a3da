"""Hours on duty and quiet hours, by the clock of the district: pure, on minutes of the local day."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from shared.facts import Duty

DAYS_AHEAD = 8
"""A weekday comes again after seven days, and tomorrow's quiet hours may have begun today."""
MINUTES = 1440

Quiet = tuple[int, int] | None
"""Minutes of the local day, `[since, until)`; over midnight where `until` is smaller; None, or the same twice: never."""


def on_duty(duty: Sequence[Duty], weekday: int, minute: int) -> bool:
    """Whether one of these spans holds on this weekday (1 Monday … 7 Sunday) and minute of the local day; no spans: always."""
    return not duty or any(weekday in span.days and span.since <= minute < span.until for span in duty)


def is_quiet(quiet: Quiet, minute: int) -> bool:
    """Whether nobody is to be disturbed at this minute of the local day."""
    if quiet is None or quiet[0] == quiet[1]:
        return False
    since, until = quiet
    return since <= minute < until if since < until else minute >= since or minute < until


def back_at(duty: Sequence[Duty], quiet: Quiet, zone: ZoneInfo, now: datetime) -> datetime | None:
    """When somebody can next be asked, UTC, later than `now`: a span of theirs begins, or quiet hours end; None: never."""
    today = now.astimezone(zone).date()
    ends = {quiet[1] % MINUTES} if quiet and quiet[0] != quiet[1] else set()
    for ahead in range(DAYS_AHEAD + 1):
        day = today + timedelta(days=ahead)
        weekday = day.isoweekday()
        begins = {span.since for span in duty if weekday in span.days}
        for minute in sorted(begins | ends):
            if minute < MINUTES and on_duty(duty, weekday, minute) and not is_quiet(quiet, minute):
                at = datetime(day.year, day.month, day.day, minute // 60, minute % 60, tzinfo=zone).astimezone(UTC)
                if at > now:
                    return at
    return None
