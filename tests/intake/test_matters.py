"""Which open request is probably the same matter."""

from __future__ import annotations

from services.intake.following import follow
from services.intake.matters import Matter, Matters
from shared.envelope import Envelope
from shared.facts import Point, RequestWithdrawn
from tests.intake.examples import NOW, item

LEAK = item("repair.leak", same_radius_m=30, same_window_s=600)
HERE = Point(lon=1_143_450_000, lat=305_950_000)
NOW_S = NOW.timestamp()


def metres_north(metres: float) -> Point:
    return Point(lon=HERE.lon, lat=HERE.lat + round(metres / 0.0111195))


def given(*matters: tuple[str, Point | None, float]) -> Matters:
    held = Matters()
    for request_id, point, ago_s in matters:
        held.add(Matter(request_id, "repair.leak", "oujing", point, NOW_S - ago_s))
    return held


def same(held: Matters, point: Point | None = HERE, area: str = "oujing") -> str | None:
    return held.same(LEAK, area, point, NOW_S)


def test_the_nearest_within_the_radius_is_it() -> None:
    assert (
        same(given(("far", metres_north(29), 10), ("near", metres_north(-5), 500), ("out", metres_north(31), 1)))
        == "near"
    )
    assert same(given(("out", metres_north(31), 1))) is None


def test_of_equally_near_ones_the_most_recent() -> None:
    assert same(given(("old", HERE, 500), ("new", HERE, 5))) == "new"


def test_only_within_the_window_and_only_this_item() -> None:
    assert same(given(("old", HERE, 601))) is None
    assert (
        given(("one", HERE, 1)).same(item("tree", same_radius_m=30, same_window_s=600), "oujing", HERE, NOW_S) is None
    )


def test_without_a_point_the_area_decides() -> None:
    assert same(given(("there", None, 5))) == "there"
    assert same(given(("there", HERE, 5)), point=None) == "there"
    assert same(given(("there", None, 5)), area="yuanlin") is None


def test_an_item_without_radius_or_window_has_no_same_matter() -> None:
    held = given(("there", HERE, 5))
    assert held.same(item("repair.leak", same_window_s=600), "oujing", HERE, NOW_S) is None
    assert held.same(item("repair.leak", same_radius_m=30), "oujing", HERE, NOW_S) is None


def test_what_is_over_is_no_longer_proposed() -> None:
    request_id = "0199aaaa-0000-8000-8000-000000000001"
    held = given((request_id, HERE, 5))
    assert same(held) == request_id
    fact = RequestWithdrawn(request_id=request_id, reason="other")
    follow(held, Envelope("id", "420106", "oujing", NOW, fact, ""))
    assert same(held) is None
    assert len(held) == 0


def test_it_forgets_the_oldest_and_never_grows_beyond_its_bound() -> None:
    held = Matters(at_most=3)
    for n in range(10):
        held.add(Matter(f"r-{n}", "repair.leak", "oujing", HERE if n % 2 else None, NOW_S + n))
    assert len(held) == 3
    held.forget_before(NOW_S + 9)
    assert len(held) == 1
