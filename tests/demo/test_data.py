"""The demo's data keeps its promises: it fits the facts, and every request lands where its `expect` says."""

from __future__ import annotations

import csv
import gzip
import json
import math
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from shapely import unary_union
from shapely.geometry import Point, Polygon

from shared import facts

DEMO = Path(__file__).parents[2] / "deploy" / "demo"
MODELS: dict[str, type[facts.Fact]] = {
    "districts": facts.DistrictSet,
    "calendars": facts.CalendarSet,
    "areas": facts.AreaSet,
    "agreements": facts.AgreementSet,
    "items": facts.ItemSet,
    "urgency": facts.UrgencySet,
    "policies": facts.PolicySet,
}
WUCHANG, QINGSHAN, HONGSHAN = "420106", "420107", "420111"
METRES_PER_DEGREE = (95_800, 110_900)
"""Of longitude and latitude at 30.6° N."""
PLANS = {"accept", "decline", "silent", "nobody", "withdraw", "reopen"}


# --- reading ----------------------------------------------------------------------------------------------------------


@cache
def document(name: str) -> dict[str, list[dict[str, Any]]]:
    loaded: dict[str, list[dict[str, Any]]] = json.loads((DEMO / name).read_text(encoding="utf-8"))
    return loaded


@cache
def members(name: str) -> list[dict[str, str]]:
    with (DEMO / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@cache
def day() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DEMO / "day.jsonl").read_text(encoding="utf-8").splitlines()]


@cache
def boston_rows() -> list[dict[str, str]]:
    with gzip.open(DEMO / "boston311.csv.gz", "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def fitting() -> list[dict[str, Any]]:
    """The requests of the day that make sense."""
    return [line for line in day() if "problem" not in line["expect"]]


def by(name: str, kind: str, key: str) -> dict[str, dict[str, Any]]:
    return {entry[key]: entry for entry in document(name)[kind]}


def polygons() -> dict[str, Polygon]:
    """The leaf areas, in degrees."""
    rings = {area["area"]: area["polygon"] for area in document("register.json")["areas"] if area["polygon"]}
    scaled = {code: [[(lon / 1e7, lat / 1e7) for lon, lat in ring] for ring in drawn] for code, drawn in rings.items()}
    return {code: Polygon(drawn[0], drawn[1:]) for code, drawn in scaled.items()}


# --- coordinates: the usual forward transforms, and their inverse by iteration ----------------------------------------


def gcj02(lon: float, lat: float) -> tuple[float, float]:
    x, y, pi = lon - 105, lat - 35, math.pi
    wave = (20 * math.sin(6 * x * pi) + 20 * math.sin(2 * x * pi)) * 2 / 3
    north = -100 + 2 * x + 3 * y + 0.2 * y * y + 0.1 * x * y + 0.2 * math.sqrt(abs(x)) + wave
    north += (20 * math.sin(y * pi) + 40 * math.sin(y / 3 * pi)) * 2 / 3
    north += (160 * math.sin(y / 12 * pi) + 320 * math.sin(y / 30 * pi)) * 2 / 3
    east = 300 + x + 2 * y + 0.1 * x * x + 0.1 * x * y + 0.1 * math.sqrt(abs(x)) + wave
    east += (20 * math.sin(x * pi) + 40 * math.sin(x / 3 * pi)) * 2 / 3
    east += (150 * math.sin(x / 12 * pi) + 300 * math.sin(x / 30 * pi)) * 2 / 3
    axis, eccentricity = 6_378_245.0, 0.006_693_421_622_965_943  # Krasovsky 1940
    magic = 1 - eccentricity * math.sin(math.radians(lat)) ** 2
    across = math.radians(axis / math.sqrt(magic) * math.cos(math.radians(lat)))
    along = math.radians(axis * (1 - eccentricity) / (magic * math.sqrt(magic)))
    return lon + east / across, lat + north / along


def bd09(lon: float, lat: float) -> tuple[float, float]:
    x, y = gcj02(lon, lat)
    far = math.hypot(x, y) + 2e-5 * math.sin(y * math.pi * 3000 / 180)
    turn = math.atan2(y, x) + 3e-6 * math.cos(x * math.pi * 3000 / 180)
    return far * math.cos(turn) + 0.0065, far * math.sin(turn) + 0.006


def wgs84(location: dict[str, Any]) -> tuple[float, float]:
    """Where a point of the day lies in WGS-84, to about 1 cm."""
    target: tuple[float, float] = location["lon"], location["lat"]
    if location["crs"] == "WGS84":
        return target
    forward = {"GCJ02": gcj02, "BD09": bd09}[location["crs"]]
    lon, lat = target
    for _ in range(10):
        there = forward(lon, lat)
        lon, lat = lon + target[0] - there[0], lat + target[1] - there[1]
    return lon, lat


def metres(one: dict[str, Any], other: dict[str, Any]) -> float:
    (a, b), (c, d) = wgs84(one), wgs84(other)
    return math.hypot((a - c) * METRES_PER_DEGREE[0], (b - d) * METRES_PER_DEGREE[1])


def minute(line: dict[str, Any]) -> int:
    hours, minutes = line["at"].split(":")
    return int(hours) * 60 + int(minutes)


# --- the register -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["register.json", "boston.json"])
def test_every_entry_of_the_register_is_a_fact(name: str) -> None:
    assert list(document(name)) == list(MODELS)
    for kind, entries in document(name).items():
        key = MODELS[kind].key
        assert len({entry[key] for entry in entries}) == len(entries), f"{kind}: two entries for one {key}"
        for entry in entries:
            TypeAdapter(MODELS[kind]).validate_json(json.dumps(entry))


@pytest.mark.parametrize("name", ["register.json", "boston.json"])
def test_what_the_register_names_exists(name: str) -> None:
    districts, areas = by(name, "districts", "district"), by(name, "areas", "area")
    calendars = by(name, "calendars", "calendar")
    assert set(by(name, "policies", "district")) == set(districts)
    assert all(policy["calendar"] in calendars for policy in document(name)["policies"])
    for area in areas.values():
        assert {area["located_in"], area["administered_by"], area["served_by"]} <= set(districts)
        assert area.get("parent") is None or area["parent"] in areas
    for agreement in document(name)["agreements"]:
        area = areas[agreement["area"]]
        assert agreement["lead"] == area["served_by"]
        assert set(agreement["parties"]) == {area["served_by"], area["located_in"]}


def test_land_served_by_another_district_always_has_an_agreement() -> None:
    agreed = {agreement["area"] for agreement in document("register.json")["agreements"]}
    leaves = [area for area in document("register.json")["areas"] if area["polygon"]]
    across = {area["area"] for area in leaves if area["served_by"] != area["located_in"]}
    assert across == agreed == {"xinxiang", "oujing-g6"}


def test_every_district_serves_at_least_three_areas() -> None:
    serving = Counter(area["served_by"] for area in document("register.json")["areas"] if area["polygon"])
    assert set(serving) == {WUCHANG, QINGSHAN, HONGSHAN}
    assert min(serving.values()) >= 3


def test_leaf_polygons_are_valid_and_cover_the_ground_once() -> None:
    drawn = polygons()
    assert all(polygon.is_valid and not polygon.is_empty for polygon in drawn.values())
    whole = unary_union(list(drawn.values()))
    assert whole.area == pytest.approx(sum(polygon.area for polygon in drawn.values()))
    assert whole.geom_type == "Polygon"
    assert not whole.interiors, "a gap between the areas"


def test_the_enclave_is_a_hole_in_a_neighbour_of_the_other_district() -> None:
    areas = by("register.json", "areas", "area")
    enclave = areas["xinxiang"]
    assert (enclave["located_in"], enclave["administered_by"], enclave["served_by"]) == (QINGSHAN, QINGSHAN, WUCHANG)
    around = polygons()["dongxing-4j"]
    assert Polygon(around.exterior).contains(polygons()["xinxiang"])
    assert areas["dongxing-4j"]["served_by"] == QINGSHAN


def test_an_address_word_leads_to_one_area() -> None:
    words = [(word, area["area"]) for area in document("register.json")["areas"] for word in area["words"]]
    for word, area in words:
        assert not [other for longer, other in words if word in longer and other != area], word


def test_a_word_recognises_one_item() -> None:
    words = Counter(word for item in document("register.json")["items"] for word in item["words"])
    assert [word for word, often in words.items() if often > 1] == []
    assert all(len(word) >= 2 for word in words)


def test_the_catalogue_is_complete() -> None:
    items = document("register.json")["items"]
    assert len(items) >= 34
    assert [item["item"] for item in items if not item["words"]] == ["other"]
    assert all(1 <= item["effort"] <= 13 and item["kinds"] for item in items)
    assert all(item.get("phone") for item in items if item["urgency"] == 3)


def test_the_calendar_knows_make_up_working_days() -> None:
    calendar = by("register.json", "calendars", "calendar")["wuhan"]
    assert {"2026-02-17", "2026-10-01", "2027-02-06"} <= set(calendar["holidays"])
    assert {"2026-02-14", "2026-10-10"} <= set(calendar["makeup"])
    assert not set(calendar["holidays"]) & set(calendar["makeup"])


# --- members ----------------------------------------------------------------------------------------------------------


def spans(duty: str) -> Iterator[facts.Duty]:
    """`1-5 08:00-12:00;6-7 09:00-17:00` as facts hold it."""
    for span in filter(None, duty.split(";")):
        days, hours = span.split(" ")
        first, last = map(int, days.split("-"))
        since, until = (int(clock[:2]) * 60 + int(clock[3:]) for clock in hours.split("-"))
        yield facts.Duty(days=tuple(range(first, last + 1)), since=since, until=until)


def always(member: dict[str, str]) -> bool:
    return all(span == facts.Duty(days=tuple(range(1, 8)), since=0, until=1440) for span in spans(member["duty"]))


@pytest.mark.parametrize(
    ("name", "register"), [("members.csv", "register.json"), ("boston_members.csv", "boston.json")]
)
def test_every_member_can_be_enrolled_and_serves_one_district(name: str, register: str) -> None:
    areas = by(register, "areas", "area")
    skills = {skill for item in document(register)["items"] for skill in item["skills"]}
    assert len({member["id"] for member in members(name)}) == len(members(name))
    for member in members(name):
        facts.MemberEnrolled(
            member_id=member["id"],
            kind="volunteer" if member["kind"] == "volunteer" else "grid_member",
            areas=tuple(member["areas"].split()),
            skills=tuple(member["skills"].split()),
            capacity=int(member["capacity"]),
            duty=tuple(spans(member["duty"])),
        )
        assert {areas[area]["served_by"] for area in member["areas"].split()} == {member["district"]}
        assert set(member["skills"].split()) <= skills
        assert member["language"] in {"zh-CN", "en"}
        assert set(member["channels"].split()) <= {"wecom", "dingtalk", "mail", "webhook", "console"} != set()
        assert member["phone"].startswith(("199 0000 ", "617-555-01")), "a number that could be somebody's"


def test_there_are_enough_members_and_some_are_never_to_be_disturbed() -> None:
    kinds = Counter(member["kind"] for member in members("members.csv"))
    assert kinds == {"grid_member": 24, "volunteer": 10}
    districts = Counter(member["district"] for member in members("members.csv"))
    assert districts.most_common(1)[0][0] == WUCHANG
    assert sum(member["quiet"] == "00:00-24:00" for member in members("members.csv")) >= 2
    assert sum(member["language"] == "en" for member in members("members.csv")) == 2


def test_two_members_can_take_any_item_in_any_area_at_any_hour() -> None:
    for area in document("register.json")["areas"]:
        if not area["polygon"]:
            continue
        here = [m for m in members("members.csv") if area["area"] in m["areas"].split() and always(m)]
        for item in document("register.json")["items"]:
            fit = [m for m in here if m["kind"] in item["kinds"] and set(item["skills"]) <= set(m["skills"].split())]
            assert len(fit) >= 2, (item["item"], area["area"])
            assert max(int(m["capacity"]) for m in fit) >= item["effort"]


# --- the day ----------------------------------------------------------------------------------------------------------


def test_the_day_is_in_order_and_rich_enough() -> None:
    lines = day()
    assert [line["n"] for line in lines] == list(range(1, len(lines) + 1))
    assert [line["at"] for line in lines] == sorted(line["at"] for line in lines)
    assert len(lines) >= 66
    assert {line["plan"] for line in fitting()} == PLANS
    assert {line["location"].get("crs") for line in lines} == {None, "WGS84", "GCJ02", "BD09"}
    assert {line["expect"]["item"] for line in fitting()} == set(by("register.json", "items", "item"))
    assert {line["expect"]["area"] for line in fitting()} == set(polygons())
    assert sum(line["expect"]["area"] == "xinxiang" for line in fitting()) >= 6
    assert [line["expect"]["area"] for line in lines if line.get("story")] == ["xinxiang"]
    assert all(line["rate"] is None or 1 <= line["rate"] <= 5 for line in lines)
    assert all(line["note"] for line in lines)


def test_only_invented_people_ask() -> None:
    assert all(line["contact"]["phone"].startswith("199 0000 1") for line in day() if "contact" in line)


@pytest.mark.parametrize("line", fitting(), ids=lambda line: f"{line['n']}")
def test_a_request_lands_where_it_is_expected(line: dict[str, Any]) -> None:
    areas, expected, location = by("register.json", "areas", "area"), line["expect"], line["location"]
    match location:
        case {"lon": _, "lat": _, "crs": _}:
            found = {code for code, drawn in polygons().items() if drawn.contains(Point(wgs84(location)))}
            edge = polygons()[expected["area"]].boundary.distance(Point(wgs84(location)))
            assert edge * METRES_PER_DEGREE[0] > 10, "too near to a border for any conversion"
        case {"address": address}:
            found = {code for code, area in areas.items() if any(word in address for word in area["words"])}
        case _:
            found = {location["area"]}
    assert found == {expected["area"]}
    assert areas[expected["area"]]["served_by"] == expected["district"]


@pytest.mark.parametrize("line", fitting(), ids=lambda line: f"{line['n']}")
def test_the_longest_word_gives_the_item_and_any_word_the_urgency(line: dict[str, Any]) -> None:
    items, text = by("register.json", "items", "item"), line["text"]
    words = [(len(word), code) for code, item in items.items() for word in item["words"] if word in text]
    longest = max((length for length, _ in words), default=0)
    assert {code for length, code in words if length == longest} <= {line["expect"]["item"]}
    assert words or line["expect"]["item"] == "other"
    raised = [u["urgency"] for u in document("register.json")["urgency"] if any(word in text for word in u["words"])]
    assert max([items[line["expect"]["item"]]["urgency"], *raised]) == line["expect"]["urgency"]


def test_what_is_one_matter_says_so_and_nothing_else_is() -> None:
    items, lines = by("register.json", "items", "item"), fitting()
    for index, line in enumerate(lines):
        item = items[line["expect"]["item"]]
        for earlier in lines[:index]:
            if earlier["expect"]["item"] != item["item"] or line.get("repeat_of") or not item["same_window_s"]:
                continue
            if "lon" in line["location"] and "lon" in earlier["location"]:
                near = metres(line["location"], earlier["location"]) <= item["same_radius_m"]
                soon = (minute(line) - minute(earlier)) * 60 <= item["same_window_s"]
                # The demo posts a day within seconds: what is near and not linked would be linked there.
                assert near == (near and soon) == (line.get("same_as") == earlier["n"]), (earlier["n"], line["n"])
            else:
                assert line["expect"]["area"] != earlier["expect"]["area"], (earlier["n"], line["n"])
    assert sum("same_as" in line for line in lines) >= 5


def test_a_repeated_submission_is_the_same_to_the_letter() -> None:
    lines = {line["n"]: line for line in day()}
    repeats = [line for line in lines.values() if "repeat_of" in line]
    assert repeats
    for line in repeats:
        first = lines[line["repeat_of"]]
        differing = {key for key in line.keys() | first.keys() if line.get(key) != first.get(key)}
        assert differing == {"n", "repeat_of", "note"}
        assert line["key"]


def test_nonsense_is_nonsense() -> None:
    areas = by("register.json", "areas", "area")
    codes = {line["expect"]["problem"] for line in day() if "problem" in line["expect"]}
    assert codes == {"invalid", "outside", "unknown_area", "unknown_item"}
    for line in day():
        match line["expect"].get("problem"), line["location"]:
            case "invalid", _:
                assert not line["text"].strip()
            case "outside", location:
                assert not any(drawn.contains(Point(wgs84(location))) for drawn in polygons().values())
            case "unknown_area", {"area": code}:
                assert code not in areas
            case "unknown_area", {"address": address}:
                assert not any(word in address for area in areas.values() for word in area["words"])
            case "unknown_item", _:
                assert line["service"] not in by("register.json", "items", "item")


# --- Boston -----------------------------------------------------------------------------------------------------------


def test_boston_gives_two_thousand_rows_that_its_register_knows() -> None:
    rows = boston_rows()
    assert len(rows) == len({row["case_id"] for row in rows}) == 2_000
    assert ",".join(rows[0]) == "case_id,opened_at,type,reason,subject,ward,neighborhood,lat,long,source"
    assert {row["opened_at"][:7] for row in rows} == {"2015-03", "2015-04"}
    areas = by("boston.json", "areas", "area")
    assert {f"ward-{row['ward']}" for row in rows} == set(areas)
    titles = {item["title"]["en"]: item for item in document("boston.json")["items"]}
    assert {row["type"] for row in rows} == set(titles)
    assert all(titles[row["type"]]["category"] == [row["subject"], row["reason"]] for row in rows)
    assert all(42.2 < float(row["lat"]) < 42.5 and -71.3 < float(row["long"]) < -70.9 for row in rows)


def test_boston_fits_into_half_of_its_members_capacity() -> None:
    effort = {item["title"]["en"]: item["effort"] for item in document("boston.json")["items"]}
    load: Counter[str] = Counter()
    for row in boston_rows():
        load[f"ward-{row['ward']}"] += effort[row["type"]]
    capacity: Counter[str] = Counter()
    for member in members("boston_members.csv"):
        capacity[member["areas"]] += int(member["capacity"])
    assert all(2 * load[ward] <= capacity[ward] for ward in load)


def test_boston_and_wuhan_live_in_one_register_without_touching() -> None:
    for kind, model in MODELS.items():
        wuhan = {entry[model.key] for entry in document("register.json")[kind]}
        boston = {entry[model.key] for entry in document("boston.json")[kind]}
        assert not wuhan & boston, kind
    assert not any(item["words"] for item in document("boston.json")["items"])
    assert not any(district["rate_limited"] for district in document("boston.json")["districts"])
