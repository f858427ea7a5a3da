"""会商: refused twice, a named lead rules by a named day; until then the first receiver is responsible."""

from __future__ import annotations

from datetime import date, datetime, timedelta

import pytest

from services.dispatch.commands import Accept, Done, HandOver, Refuse, Rule
from shared.auth import Caller
from shared.facts import AgreementSet, ConferralOpened, TaskHandedOver
from shared.ids import derived_id
from tests.dispatch.offices import City, supervisor
from tests.examples import (
    HONGSHAN,
    LI,
    NOW,
    OUJING,
    QINGSHAN,
    REQUEST,
    TASK,
    WITHDRAWN,
    WUCHANG,
    envelope,
    id_of,
    submitted,
)

AGREED = AgreementSet(
    agreement="oujing-2026",
    area=OUJING,
    parties=(WUCHANG, QINGSHAN, HONGSHAN),
    lead=HONGSHAN,
    services=("repair",),
    valid_from=date(2026, 1, 1),
)


def refused_twice(first: str = QINGSHAN, second: str = QINGSHAN, *facts: AgreementSet) -> City:
    """武昌 has offered a task twice, and got two refusals."""
    city = City.at_work()
    city.stream += [envelope(fact) for fact in facts]
    city.publish(submitted())
    city.settle()
    for to in (first, second):
        assert city.ask(WUCHANG, HandOver(task=TASK, to=to, reason="overlapping_duties")) is None
        city.settle()
        assert city.ask(to, Refuse(handover=city.id("handover.offered"), reason="wrong_place", basis="map:7")) is None
        city.settle()
    return city


def ruling(city: City, owner: str, *, precedent: bool = False) -> Rule:
    """The lead's word."""
    return Rule(conferral=city.id("conferral.opened"), owner=owner, basis="minutes:2026-11", precedent=precedent)


def over(city: City) -> None:
    """Nothing more comes, and everything held."""
    city.settle()
    city.check()
    city.check_all()


def test_after_the_second_refusal_the_offices_confer() -> None:
    city = refused_twice(QINGSHAN, HONGSHAN)
    assert city.last("conferral.opened").fact == ConferralOpened(
        conferral_id=derived_id(TASK, "conferral", 2),
        task_id=TASK,
        request_id=REQUEST,
        parties=(WUCHANG, QINGSHAN, HONGSHAN),
        lead=WUCHANG,
        item="repair.leak",
        refusals=(derived_id(TASK, "handover", 1), derived_id(TASK, "handover", 2)),
        until=datetime.fromisoformat("2026-11-25T10:00+08:00"),
    )
    assert city.names("conferral.") == ["6:conferral.opened", "7:conferral.received", "1:conferral.received"]
    assert city.owners() == [WUCHANG]
    assert city.ask(WUCHANG, HandOver(task=TASK, to=QINGSHAN, reason="wrong_place")) == "already_asking"


def test_one_refusal_is_not_enough_and_a_lapse_is_none() -> None:
    city = City.at_work()
    city.publish(submitted())
    city.settle()
    for _ in range(3):
        city.ask(WUCHANG, HandOver(task=TASK, to=QINGSHAN, reason="wrong_place"))
        city.wait(hours=1)
        city.settle()
    assert city.names("handover.lapsed", "conferral.") == ["6:handover.lapsed"] * 3


def test_the_agreements_lead_leads_and_hears_of_it_though_nobody_asked_it() -> None:
    city = refused_twice(QINGSHAN, QINGSHAN, AGREED)
    assert city.said("conferral.opened").lead == HONGSHAN
    assert "1:conferral.received" in city.names()
    assert HONGSHAN in city.last("conferral.opened").districts.split(",")


def test_without_an_agreement_the_office_on_whose_ground_it_lies_leads() -> None:
    city = City.at_work()
    city.publish(submitted().model_copy(update={"located_in": QINGSHAN}))
    city.settle()
    for to in (HONGSHAN, QINGSHAN):
        city.ask(WUCHANG, HandOver(task=TASK, to=to, reason="wrong_place"))
        city.settle()
        city.ask(to, Refuse(handover=city.id("handover.offered"), reason="wrong_place", basis="map:7"))
        city.settle()
    assert city.said("conferral.opened").lead == QINGSHAN


def test_the_ruling_is_the_second_key() -> None:
    city = refused_twice(QINGSHAN, QINGSHAN, AGREED)
    assert city.ask(HONGSHAN, ruling(city, QINGSHAN, precedent=True)) is None
    assert city.owners() == [WUCHANG]
    city.settle()
    moved = city.last("task.handed_over").fact
    assert isinstance(moved, TaskHandedOver)
    assert (moved.to, moved.by, moved.grant) == (QINGSHAN, city.id("conferral.opened"), True)
    assert city.owners() == [QINGSHAN]
    assert city.names()[-6:] == [
        *("1:conferral.ruled", "6:task.handed_over", "6:conferral.ended"),
        *("7:task.opened", "7:conferral.settled", "1:conferral.settled"),
    ]
    assert city.desks[WUCHANG].members[LI].load == 0
    over(city)


def test_ruled_for_the_giver_it_goes_on_there() -> None:
    city = refused_twice(QINGSHAN, QINGSHAN, AGREED)
    city.ask(HONGSHAN, ruling(city, WUCHANG))
    city.settle()
    assert "6:task.handed_over" not in city.names()
    assert city.said("conferral.ended").reason == "ruled"
    assert city.ask(WUCHANG, Accept(task=TASK, member=LI)) is None
    over(city)


def test_a_lead_that_is_the_giver_acts_at_once() -> None:
    city = refused_twice()
    assert city.ask(WUCHANG, ruling(city, QINGSHAN)) is None
    assert city.names("conferral.ruled", "task.handed_over", "conferral.ended") == [
        "6:conferral.ruled",
        "6:task.handed_over",
        "6:conferral.ended",
    ]
    assert city.owners() == [QINGSHAN]
    over(city)


@pytest.mark.parametrize("late", ["the ruling", "nobody"])
def test_overdue_it_is_the_first_receivers_and_a_ruling_that_comes_too_late_moves_nothing(late: str) -> None:
    city = refused_twice(QINGSHAN, QINGSHAN, AGREED)
    city.wait(hours=49)
    if late == "the ruling":
        city.turn(WUCHANG)
        assert city.ask(HONGSHAN, ruling(city, QINGSHAN)) is None, "it has not heard yet"
    city.settle()
    assert city.said("conferral.ended").reason == "overdue"
    assert city.owners() == [WUCHANG]
    assert city.ask(HONGSHAN, ruling(city, QINGSHAN)) == "over"
    assert city.ask(WUCHANG, HandOver(task=TASK, to=QINGSHAN, reason="wrong_place")) is None
    city.wait(hours=1)
    over(city)


def test_two_more_refusals_open_another_one() -> None:
    city = refused_twice()
    city.wait(hours=49)
    city.settle()
    for _ in range(2):
        assert city.ask(WUCHANG, HandOver(task=TASK, to=QINGSHAN, reason="wrong_place")) is None
        city.settle()
        city.ask(QINGSHAN, Refuse(handover=city.id("handover.offered"), reason="wrong_place", basis="map:7"))
        city.settle()
    assert len({one.fact.conferral_id for one in city.stream if isinstance(one.fact, ConferralOpened)}) == 2


def test_done_meanwhile_there_is_nothing_left_to_rule_on() -> None:
    city = refused_twice(QINGSHAN, QINGSHAN, AGREED)
    city.ask(WUCHANG, Accept(task=TASK, member=LI))
    city.ask(HONGSHAN, ruling(city, QINGSHAN))
    assert city.ask(WUCHANG, Done(task=TASK, member=LI)) is None
    city.settle()
    assert city.said("conferral.ended").reason == "ended"
    assert city.owners() == [WUCHANG]
    over(city)


def test_withdrawn_before_the_giver_acted_on_the_ruling() -> None:
    city = refused_twice(QINGSHAN, QINGSHAN, AGREED)
    city.ask(HONGSHAN, ruling(city, QINGSHAN))
    ruled_at = len(city.stream) - 1
    city.publish(WITHDRAWN)
    while city.position[WUCHANG] < ruled_at:
        city.turn(WUCHANG, inputs=1)
    assert "6:task.handed_over" in city.names()
    city.settle()
    assert city.owners() == []
    assert "7:task.closed" in city.names()
    over(city)


@pytest.mark.parametrize(
    ("district", "owner", "code"),
    [(QINGSHAN, QINGSHAN, "not_lead"), (HONGSHAN, "420199", "not_listed")],
)
def test_who_may_rule_and_for_whom(district: str, owner: str, code: str) -> None:
    city = refused_twice(QINGSHAN, QINGSHAN, AGREED)
    assert city.ask(district, ruling(city, owner)) == code


def test_a_ruling_is_said_once() -> None:
    city = refused_twice(QINGSHAN, QINGSHAN, AGREED)
    for code in (None, None):
        assert city.ask(HONGSHAN, ruling(city, QINGSHAN), id=id_of("ruling")) == code
    assert city.ask(HONGSHAN, ruling(city, WUCHANG)) == "over"
    assert city.ask(HONGSHAN, Rule(conferral=id_of("?"), owner=WUCHANG, basis="x")) == "not_found"
    over(city)


def test_a_dispatcher_does_not_rule() -> None:
    ruling = Rule(conferral=id_of("?"), owner=WUCHANG, basis="x")
    ruling.allow(supervisor(WUCHANG), WUCHANG)
    with pytest.raises(Exception, match="forbidden"):
        ruling.allow(Caller("staff-2", WUCHANG, frozenset({"dispatcher"})), WUCHANG)


def test_the_deadline_is_two_working_days_on_the_givers_calendar() -> None:
    city = refused_twice()
    until = city.said("conferral.opened").until
    assert until - NOW == timedelta(days=2)
