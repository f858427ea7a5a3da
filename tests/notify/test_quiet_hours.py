"""When somebody must not be disturbed, and until when."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from services.notify.contacts import quiet_until

WUHAN = ZoneInfo("Asia/Shanghai")


def at(day: int, hour: int, minute: int = 0) -> datetime:
    """A moment in Wuhan, November 2026."""
    return datetime(2026, 11, day, hour, minute, tzinfo=WUHAN)


@pytest.mark.parametrize(
    ("quiet", "now", "ends"),
    [
        ((22 * 60, 7 * 60), at(22, 23), at(23, 7)),
        ((22 * 60, 7 * 60), at(23, 6, 59), at(23, 7)),
        ((22 * 60, 7 * 60), at(23, 7), None),
        ((22 * 60, 7 * 60), at(22, 21, 59), None),
        ((12 * 60, 14 * 60), at(22, 13), at(22, 14)),
        ((12 * 60, 14 * 60), at(22, 14), None),
        ((22 * 60, 1440), at(22, 23), at(23, 0)),
        ((0, 1440), at(22, 9), at(23, 0)),
        ((600, 600), at(22, 10), None),
        (None, at(22, 23), None),
    ],
)
def test_quiet_hours_end(quiet: tuple[int, int] | None, now: datetime, ends: datetime | None) -> None:
    assert quiet_until(quiet, WUHAN, now.astimezone(UTC)) == ends


def test_quiet_hours_end_by_the_clock_on_the_wall_when_that_is_changed() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    now = datetime(2026, 3, 28, 23, 0, tzinfo=berlin)
    assert quiet_until((22 * 60, 7 * 60), berlin, now) == datetime(2026, 3, 29, 7, 0, tzinfo=berlin)
