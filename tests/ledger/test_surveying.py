"""What areas say beside each other: overlaps, gaps, borders in and out, service without an agreement; outlines as GeoJSON."""

import json
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from services.ledger.register.outlining import geojson, outlines
from services.ledger.register.registering import diff, read
from services.ledger.register.surveying import brought, survey
from shared.errors import RefusedError
from shared.facts import AgreementSet, AreaSet, RegisterFact
from shared.register import Register
from tests.examples import AGREEMENT, QINGSHAN, WUCHANG, XINXIANG, area
from tests.shared.test_register import given

DAY = date(2026, 6, 1)
SIDE = 10_000
"""About 110 m by 96 m in Wuhan."""
M2 = 10_614


def square(code: str, x: float, y: float = 0, side: float = 1, **terms: Any) -> AreaSet:
    """A square, in sides from a corner in Wuhan."""
    west, south, length = 1_143_000_000 + round(x * SIDE), 305_000_000 + round(y * SIDE), round(side * SIDE)
    ring = ((west, south), (west + length, south), (west + length, south + length), (west, south + length))
    return area(code, **terms).model_copy(update={"polygon": (ring,), "level": terms.get("level", "grid")})


def found(*facts: RegisterFact, day: date = DAY) -> dict[tuple[str, ...], int]:
    """By kind and areas: square metres."""
    return {(each.what, *each.areas): each.m2 for each in survey(given(*facts), day)}


WHOLE = square("whole", 0, side=2)
QUARTERS = [square(f"q{x}{y}", x, y, parent="whole") for x in (0, 1) for y in (0, 1)]


def test_parts_that_fill_their_whole_and_share_only_lines_are_in_order() -> None:
    assert found(WHOLE.model_copy(update={"level": "community"}), *QUARTERS) == {}


def test_what_overlaps_is_named_with_its_square_metres_and_a_point_in_it() -> None:
    [finding] = survey(given(square("a", 0), square("b", 0.5)), DAY)
    assert (finding.what, finding.areas) == ("overlap", ("a", "b"))
    assert finding.m2 == pytest.approx(M2 / 2, rel=0.01)
    assert finding.at
    assert 0.5 < (finding.at[0] - 1_143_000_000) / SIDE < 1
    assert finding.told()["said"] == f"a 与 b 重叠 {finding.m2} 平方米"


def test_a_whole_and_its_parts_of_another_level_do_not_overlap_but_an_enclave_in_its_surroundings_does() -> None:
    community = square("c", 0, side=4).model_copy(update={"level": "community"})
    assert ("overlap", "c", "g") not in found(community, square("g", 1, 1, parent="c"))
    assert ("overlap", "g", "h") in found(square("g", 0, side=3), square("h", 1, 1))


def test_ground_that_no_part_covers_is_a_gap_also_where_the_whole_is_not_drawn() -> None:
    three = QUARTERS[:3]
    community = WHOLE.model_copy(update={"level": "community"})
    assert found(community, *three) == {("gap", "whole"): pytest.approx(M2, rel=0.01)}
    assert found(community, *three, square("enclave", 1, 1)) == {}, "another's enclave fills it"
    around = [square(f"r{x}{y}", x, y, parent="ring") for x in range(3) for y in range(3) if (x, y) != (1, 1)]
    assert found(area("ring"), *around) == {("gap", "ring"): pytest.approx(M2, rel=0.01)}


def test_what_stands_out_of_what_it_is_part_of_is_named_unless_it_lies_elsewhere_by_its_nature() -> None:
    community = square("c", 0, side=2).model_copy(update={"level": "community"})
    out = square("g", 1.5, parent="c")
    assert found(community, out)[("outside", "g", "c")] == pytest.approx(M2 / 2, rel=0.01)
    assert ("outside", "g", "c") not in found(community, out.model_copy(update={"located_in": QINGSHAN}))


def test_less_than_a_square_metre_is_rounding() -> None:
    assert found(square("a", 0), square("b", 1 - 0.000_05)) == {}


def test_who_is_found_by_no_point_is_named() -> None:
    crossed = area("x").model_copy(update={"polygon": (((0, 0), (9, 9), (9, 0), (0, 9)),)})
    assert found(area("up"), area("bare", parent="up"), square("drawn", 0, parent="up"), crossed) == {
        ("undrawn", "bare"): 0,
        ("unsound", "x"): 0,
    }


@pytest.mark.parametrize(
    ("facts", "day", "what"),
    [
        ((), DAY, "unagreed"),
        ((AGREEMENT,), DAY, None),
        ((AGREEMENT,), date(2027, 1, 1), "outlived"),
        ((AGREEMENT,), date(2026, 2, 1), "unagreed"),
    ],
)
def test_who_serves_for_another_without_an_agreement_in_force_is_named(
    facts: tuple[AgreementSet, ...], day: date, what: str | None
) -> None:
    names = {each.what for each in survey(given(area(XINXIANG, located_in=QINGSHAN), *facts), day)}
    assert names - {"undrawn"} == ({what} if what else set())


def test_a_change_is_told_what_it_brings_and_from_when_and_not_what_was_there() -> None:
    before = given(square("a", 0), square("b", 0.5), square("c", 5), area(XINXIANG, located_in=QINGSHAN))
    moved = square("c", 4.5, since=date(2026, 9, 1))
    beside = square("d", 3.6, since=date(2026, 9, 1))
    after = given(*[v for held in before.areas.values() for v in held], moved, beside, AGREEMENT)
    ends = AGREEMENT.valid_to
    assert ends
    assert [(day, each.what, each.areas) for day, each in brought(before, after, [moved, beside, AGREEMENT])] == [
        (date(2026, 9, 1), "overlap", ("c", "d")),
        (ends + timedelta(days=1), "outlived", (XINXIANG, WUCHANG)),
    ]


def test_a_version_that_forgets_the_outline_is_told() -> None:
    since = date(2026, 9, 1)
    before = given(square("a", 0))
    bare = square("a", 0, since=since).model_copy(update={"polygon": ()})
    new = area("b", since=since)
    after = given(*[v for held in before.areas.values() for v in held], bare, new)
    assert [(day, each.what, each.areas) for day, each in brought(before, after, [bare, new])] == [
        (since, "undrawn", ("a",))
    ]


def test_the_demos_borders_are_in_order() -> None:
    document = json.loads((Path(__file__).parents[2] / "deploy" / "demo" / "register.json").read_text())
    register = given(*(change.fact for change in diff(Register(), read(document))))
    assert [each for each in survey(register, DAY) if each.what in ("overlap", "gap", "outside", "outlived")] == []


# --- GeoJSON ----------------------------------------------------------------------------------------------------------

HOLED = square("h", 0, side=3).model_copy(
    update={"polygon": (square("h", 0, side=3).polygon[0], square("h", 1, 1).polygon[0])}
)


def test_outlines_that_were_exported_are_read_back_as_the_same_ground() -> None:
    held = given(HOLED, square("a", 5))
    exported = json.loads(json.dumps(geojson(held, DAY)))
    features = {feature["properties"]["area"]: feature for feature in exported["features"]}
    outer, hole = features["h"]["geometry"]["coordinates"]
    assert (outer[0], outer[0]) == (outer[-1], [114.3, 30.5])
    assert len(hole) == 5
    document = outlines(held, exported, DAY)
    again = given(*(AreaSet.model_validate(each) for each in document["areas"]))
    for code in ("h", "a"):
        rings = [{*ring} for ring in again.areas[code][0].polygon]
        assert rings == [{*ring} for ring in held.areas[code][0].polygon]


def test_an_outline_from_a_day_on_is_a_new_version_and_leaves_the_owners() -> None:
    held = given(square("a", 0, served_by=QINGSHAN))
    [made] = outlines(held, geojson(given(square("a", 7)), DAY), DAY, date(2026, 9, 1))["areas"]
    assert (made["valid_from"], made["served_by"]) == (date(2026, 9, 1), QINGSHAN)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("type", {"type": "Feature"}),
        ("features", {"features": []}),
        ("crs", {"crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::4490"}}}),
        ("features.0.properties.area", {"features": [{"properties": {"area": "nowhere"}}]}),
        ("features.0.geometry", {"features": [{"properties": {"area": "a"}, "geometry": {"type": "Point"}}]}),
    ],
)
def test_what_is_no_outline_is_refused_by_feature_and_field(field: str, change: dict[str, Any]) -> None:
    collection = {"type": "FeatureCollection", "features": [], **change}
    with pytest.raises(RefusedError) as refused:
        outlines(given(square("a", 0)), collection, DAY)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("field", "geometry"),
    [
        ("features.0.geometry", {"type": "MultiPolygon", "coordinates": [[], []]}),
        ("features.0.geometry.coordinates", {"type": "Polygon", "coordinates": []}),
        ("features.0.geometry.coordinates.0", {"type": "Polygon", "coordinates": [[["x", 1]]]}),
        ("features.0.geometry.coordinates.0", {"type": "Polygon", "coordinates": [[[114, float("nan")]]]}),
        ("features.0.geometry.coordinates.0", {"type": "Polygon", "coordinates": [[[1_143_000_000, 305_000_000]]]}),
    ],
)
def test_what_is_no_ring_is_refused(field: str, geometry: dict[str, Any]) -> None:
    feature = {"type": "Feature", "properties": {"area": "a"}, "geometry": geometry}
    with pytest.raises(RefusedError) as refused:
        outlines(given(square("a", 0)), {"type": "FeatureCollection", "features": [feature]}, DAY)
    assert refused.value.field == field
