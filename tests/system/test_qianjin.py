"""
前进村: it lies in 北辰, 河北 runs it, the railway owns it, and 南开 serves it by an agreement that ends; then its border moves.

Where requests go on each day, as intake finds the place and the desks take it in, and who keeps what was open meanwhile.
The three desks of the city go by the names of the case.
"""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest

from services.dispatch.commands import Enrol, HandOver, Sign
from services.intake.model import Location
from services.intake.places import Places, standing
from services.ledger.register.surveying import survey
from shared.facts import AgreementSet, AreaSet, DistrictSet, PrecedentSet, RegisterFact
from shared.register import Register
from tests.dispatch.offices import CITY, City
from tests.examples import HONGSHAN, LEAK, NOW, QINGSHAN, WUCHANG, enrolled, envelope, item, name, submitted
from tests.shared.test_register import given

BEICHEN, HEBEI, NANKAI = QINGSHAN, HONGSHAN, WUCHANG
RAILWAY = "铁路局"
VILLAGE, EAST = "qianjin", "qianjin-east"
BEGINS = date(2026, 11, 23)
"""The day that `NOW` lies in."""
ENDS = BEGINS + timedelta(days=9)
MOVES = BEGINS + timedelta(days=20)
FOUNDED = date(2020, 1, 1)
DAYS = {"before": BEGINS - timedelta(days=1), "agreed": ENDS, "between": ENDS + timedelta(days=1), "after": MOVES}


def square(west: int, east: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """A strip of the village, in thousands of 1e-7 degrees from its west."""
    w, e, s, n = (1_171_500_000 + west * 1000, 1_171_500_000 + east * 1000, 392_300_000, 392_310_000)
    return (((w, s), (e, s), (e, n), (w, n)),)


def village(since: date, served_by: str, *, to: int = 20) -> AreaSet:
    """On other terms from a day on."""
    return AreaSet(
        area=VILLAGE,
        title=name("前进村"),
        level="grid",
        valid_from=since,
        located_in=BEICHEN,
        administered_by=HEBEI,
        owned_by=RAILWAY,
        served_by=served_by,
        polygon=square(0, to),
    )


AGREED = AgreementSet(
    agreement="qianjin-2026",
    area=VILLAGE,
    parties=(BEICHEN, HEBEI, NANKAI),
    lead=BEICHEN,
    services=("诉求受理", "派单处置"),
    valid_from=BEGINS,
    valid_to=ENDS,
)
LAMP = "lamp.street"
FACTS: tuple[RegisterFact, ...] = (
    *CITY,
    item(LAMP).model_copy(update={"facility": True}),
    village(FOUNDED, HEBEI),
    village(BEGINS, NANKAI),
    AGREED,
    village(ENDS + timedelta(days=1), HEBEI),
    village(MOVES, HEBEI, to=10),
    village(MOVES, BEICHEN).model_copy(
        update={"area": EAST, "administered_by": BEICHEN, "owned_by": "-", "polygon": square(10, 20)}
    ),
)


def routed(register: Register, day: date, *, lon: float, what: str = LEAK) -> tuple[str, str]:
    """The area around a point on a day, and the office that a request there goes to."""
    noon = datetime.combine(day, time(12), ZoneInfo("Asia/Shanghai"))
    place = Places(standing(register, noon)).locate(Location(lon=lon, lat=39.2305)).area
    return place.area, register.served_by(place, what, day)


WESTERLY, EASTERLY = 117.1505, 117.1515


@pytest.mark.parametrize(
    ("when", "west", "east"),
    [
        ("before", (VILLAGE, HEBEI), (VILLAGE, HEBEI)),
        ("agreed", (VILLAGE, NANKAI), (VILLAGE, NANKAI)),
        ("between", (VILLAGE, HEBEI), (VILLAGE, HEBEI)),
        ("after", (VILLAGE, HEBEI), (EAST, BEICHEN)),
    ],
)
def test_a_request_goes_to_whoever_serves_the_place_on_its_day(
    when: str, west: tuple[str, str], east: tuple[str, str]
) -> None:
    register = given(*FACTS)
    assert routed(register, DAYS[when], lon=WESTERLY) == west
    assert routed(register, DAYS[when], lon=EASTERLY) == east


@pytest.mark.parametrize(
    ("when", "served_by", "parties"),
    [
        ("before", HEBEI, (HEBEI,)),
        ("agreed", NANKAI, (NANKAI, BEICHEN, HEBEI)),
        ("between", HEBEI, (HEBEI,)),
        ("after", HEBEI, (HEBEI,)),
    ],
)
def test_the_register_of_each_day_names_all_four_owners(when: str, served_by: str, parties: tuple[str, ...]) -> None:
    day = DAYS[when]
    (version,) = given(*FACTS).at(day).areas[VILLAGE]
    owners = (version.located_in, version.administered_by, version.owned_by, version.served_by)
    assert owners == (BEICHEN, HEBEI, RAILWAY, served_by)
    register = given(*FACTS)
    assert register.parties(VILLAGE, day) == parties
    assert (AGREED.agreement in register.at(day).agreements) is (when == "agreed")
    assert not [each for each in survey(register, day) if each.what in ("overlap", "gap", "outlived")]


def test_facilities_go_to_the_railway_first_as_soon_as_it_has_a_desk() -> None:
    assert routed(given(*FACTS), ENDS, lon=WESTERLY, what=LAMP) == (VILLAGE, NANKAI)
    desk = DistrictSet(district="990012", title=name(RAILWAY), office=name(RAILWAY))
    owned = [fact.model_copy(update={"owned_by": "990012"}) for fact in FACTS if isinstance(fact, AreaSet)]
    register = given(*FACTS, desk, *owned)
    assert routed(register, ENDS, lon=WESTERLY, what=LAMP) == (VILLAGE, "990012")
    assert routed(register, ENDS, lon=WESTERLY, what=LEAK) == (VILLAGE, NANKAI), "an occurrence: the place first"
    ruled = PrecedentSet(area=VILLAGE, item=LAMP, owner=HEBEI, basis="minutes:7", valid_from=BEGINS)
    assert routed(given(*FACTS, desk, *owned, ruled), ENDS, lon=WESTERLY, what=LAMP) == (VILLAGE, HEBEI)


def at_work() -> City:
    """The three desks on the first day of the agreement, with people."""
    city = City(stream=[envelope(fact) for fact in FACTS])
    for district, who in ((NANKAI, "m-li"), (HEBEI, "m-hu"), (BEICHEN, "m-chen")):
        city.turn(district)
        assert city.ask(district, Enrol(members=(enrolled(who, VILLAGE, EAST),))) is None
    return city


def submit(city: City, n: int, district: str) -> None:
    """Intake has sent a request there."""
    city.publish(submitted(n, area=VILLAGE).model_copy(update={"located_in": BEICHEN}), district, area=VILLAGE)
    city.settle()


def test_what_is_open_when_the_agreement_ends_and_when_the_border_moves_stays_with_whoever_signed() -> None:
    city = at_work()
    submit(city, 1, NANKAI)
    submit(city, 2, NANKAI)
    assert set(city.last("task.opened").districts.split(",")) == {NANKAI, HEBEI, BEICHEN}
    city.wait(hours=24 * 10)  # the agreement has ended
    city.settle()
    assert (city.owners(1), city.owners(2)) == ([NANKAI], [NANKAI]), "nothing moves by itself"

    task = city.task(NANKAI, 2)
    assert task
    assert city.ask(NANKAI, HandOver(task=task.id, to=HEBEI, reason="wrong_place", basis="register:served-by")) is None
    city.settle()
    assert city.owners(2) == [NANKAI], "not before the other has signed (首接负责)"
    assert city.ask(HEBEI, Sign(handover=city.id("handover.offered"))) is None
    city.settle()
    assert (city.owners(1), city.owners(2)) == ([NANKAI], [HEBEI])

    city.wait(hours=24 * 10)  # the border has moved: the east is 北辰's
    city.settle()
    assert (city.owners(1), city.owners(2)) == ([NANKAI], [HEBEI])
    city.check_all(ended=False)


def test_what_reaches_a_desk_when_it_no_longer_serves_is_taken_in_there_and_offered_on() -> None:
    city = at_work()
    city.wait(hours=24 * 10)
    submit(city, 1, NANKAI)  # submitted on the last evening, read on the next morning
    assert city.owners(1) == [NANKAI]
    offer = city.said("handover.offered")
    assert (offer.to, offer.basis) == (HEBEI, "register:served-by")
    assert city.ask(HEBEI, Sign(handover=offer.handover_id)) is None
    city.settle()
    assert city.owners(1) == [HEBEI]
    assert city.last("task.handed_over").district == NANKAI
    city.check_all(ended=False)


def test_the_day_of_the_case_is_the_day_of_the_clock() -> None:
    assert given(*FACTS).today(NANKAI, NOW) == BEGINS
