"""Where a request belongs: by code, polygon or words, today."""

from __future__ import annotations

from datetime import date, timedelta
from math import cos, hypot, radians

import pytest

from services.intake.coordinates import Crs, bd09, gcj02, to_wgs84
from services.intake.model import Location
from services.intake.places import Place, Places, standing
from shared.errors import RefusedError
from tests.intake.examples import NOW, OUJING, WUCHANG, area, register


def places() -> Places:
    return Places(standing(register(), NOW))


def locate(**location: object) -> Place:
    return places().locate(Location.model_validate(location))


def refused(**location: object) -> str:
    with pytest.raises(RefusedError) as why:
        locate(**location)
    return why.value.code


def test_an_enclave_wins_over_the_area_around_it() -> None:
    assert locate(lon=114.3650, lat=30.5950).area.area == "xinxiang"
    assert locate(lon=114.3610, lat=30.5950).area.area == "yuanlin"


@pytest.mark.parametrize(
    "rings",
    [
        (((0, 0), (9, 9), (9, 0), (0, 9)),),
        (((0, 0), (9, 9)),),
        (((0, 0), (9, 0), (0, 0)),),
        (((0, 0), (9, 0), (9, 9)), ((1, 1),)),
    ],
)
def test_an_area_whose_rings_are_not_sound_does_not_spoil_the_search(
    rings: tuple[tuple[tuple[int, int], ...], ...],
) -> None:
    broken = area("broken", WUCHANG, polygon=rings, words=("破圈",))
    held = Places(standing(register(broken), NOW))
    assert held.locate(Location(lon=114.3650, lat=30.5950)).area.area == "xinxiang"
    assert held.locate(Location(address="破圈")).area.area == "broken"
    assert held.unsound == ["broken"]


def test_the_longest_word_of_an_address_leads() -> None:
    found = locate(address="园林路 18 号新湘小区 3 栋")
    assert (found.area.area, found.rule, found.point) == ("xinxiang", "gazetteer", None)


def test_a_code_wins_and_keeps_the_point() -> None:
    found = locate(area="ward-1", lon=-71.06, lat=42.36)
    assert (found.area.area, found.rule) == ("ward-1", "code")
    assert found.point is not None
    assert found.point.lon == -710_600_000


def test_coordinates_outside_are_not_overruled_by_an_address() -> None:
    assert refused(lon=125.0, lat=28.0, address="欧景苑 3 栋") == "outside"


def test_what_leads_nowhere_is_refused() -> None:
    assert refused(area="atlantis") == "unknown_area"
    assert refused(address="火星路") == "unknown_area"
    assert refused() == "no_location"


def test_an_area_counts_from_its_day_on() -> None:
    tomorrow = area("oujing", "420107", valid_from=date(2026, 11, 24), polygon=OUJING.polygon)
    held = register(tomorrow)
    today, later = (Places(standing(held, moment)) for moment in (NOW, NOW + timedelta(hours=15)))
    where = Location(lon=114.345, lat=30.595)

    assert today.locate(where).area.served_by == "420106"
    assert later.locate(where).area.served_by == "420107"  # past midnight in Wuhan, not yet in London


@pytest.mark.parametrize("crs", ["GCJ02", "BD09"])
@pytest.mark.parametrize("place", [(114.345, 30.595), (73.6, 39.5), (135.0, 48.3), (109.5, 18.2), (121.47, 31.23)])
def test_shown_coordinates_come_back_to_within_a_centimetre(crs: Crs, place: tuple[float, float]) -> None:
    shown = gcj02(place) if crs == "GCJ02" else bd09(gcj02(place))
    lon, lat = to_wgs84(*shown, crs)

    metres = hypot((lon - place[0]) * cos(radians(lat)), lat - place[1]) * 111_195
    assert metres < 0.01
    assert hypot(shown[0] - place[0], shown[1] - place[1]) * 111_195 > 100  # unconverted it would be the next street


def test_known_pairs_of_the_published_transforms() -> None:
    assert gcj02((116.404, 39.915)) == pytest.approx((116.41024449916938, 39.91640428150164), abs=1e-9)
    assert bd09((116.404, 39.915)) == pytest.approx((116.41036949371029, 39.92133699351021), abs=1e-9)
    assert gcj02((-71.06, 42.36)) == (-71.06, 42.36)
