"""The register at every date."""

from datetime import date
from functools import reduce
from zoneinfo import ZoneInfo

import orjson
import pytest

from shared import register
from shared.clocks import ALWAYS
from shared.envelope import canonical
from shared.facts import AreaSet, DistrictSet, PrecedentSet, RegisterApplied, RegisterFact, UrgencySet, plain
from shared.register import DEFAULT_POLICY, Register
from tests.examples import (
    AGREEMENT,
    HONGSHAN,
    LEAK,
    NOW,
    OUJING,
    POLICY,
    QINGSHAN,
    RATED,
    REGISTER,
    WUCHANG,
    XINXIANG,
    area,
    item,
    name,
)


def given(*facts: RegisterFact) -> Register:
    """The register that these facts lead to."""
    return reduce(register.evolve, facts, Register())


WHOLE = given(*REGISTER, UrgencySet(urgency=3, words=("着火",)))
OWNERS = (
    area(XINXIANG, since=date(2020, 1, 1), served_by=QINGSHAN),
    area(XINXIANG, since=date(2024, 7, 1), served_by=WUCHANG),
    area(XINXIANG, since=date(2026, 1, 1), served_by=HONGSHAN),
)


@pytest.mark.parametrize("order", [OWNERS, OWNERS[::-1]])
@pytest.mark.parametrize(
    ("day", "served_by"),
    [
        (date(2019, 12, 31), None),
        (date(2020, 1, 1), QINGSHAN),
        (date(2024, 6, 30), QINGSHAN),
        (date(2024, 7, 1), WUCHANG),
        (date(2025, 12, 31), WUCHANG),
        (date(2026, 1, 1), HONGSHAN),
        (date(2099, 1, 1), HONGSHAN),
    ],
)
def test_who_serves_a_place_depends_on_the_day(order: tuple[AreaSet, ...], day: date, served_by: str | None) -> None:
    found = given(*order).area(XINXIANG, day)
    assert (found.served_by if found else None) == served_by


def test_setting_an_area_again_from_the_same_day_corrects_it() -> None:
    corrected = given(*OWNERS, area(XINXIANG, since=date(2024, 7, 1), served_by=HONGSHAN))
    found = corrected.area(XINXIANG, date(2025, 1, 1))
    assert found
    assert found.served_by == HONGSHAN
    assert len(corrected.areas[XINXIANG]) == 3


def test_an_unknown_area_is_nobodys() -> None:
    assert WHOLE.area("nowhere", date(2026, 1, 1)) is None
    assert WHOLE.parties("nowhere", date(2026, 1, 1)) == ()


@pytest.mark.parametrize(
    ("day", "parties"),
    [
        (date(2026, 2, 28), (WUCHANG,)),
        (date(2026, 3, 1), (WUCHANG, QINGSHAN)),
        (date(2026, 12, 31), (WUCHANG, QINGSHAN)),
        (date(2027, 1, 1), (WUCHANG,)),
    ],
)
def test_an_agreement_shares_an_area_from_its_first_to_its_last_day(day: date, parties: tuple[str, ...]) -> None:
    assert WHOLE.parties(XINXIANG, day) == parties


def test_an_agreement_without_an_end_holds() -> None:
    endless = given(*REGISTER, AGREEMENT.model_copy(update={"valid_to": None}))
    assert endless.parties(XINXIANG, date(2099, 1, 1)) == (WUCHANG, QINGSHAN)


def test_an_area_without_an_agreement_is_its_servers_alone() -> None:
    assert WHOLE.parties(OUJING, date(2026, 6, 1)) == (WUCHANG,)


def test_of_two_agreements_at_once_it_is_always_the_same_one() -> None:
    others = [AGREEMENT.model_copy(update={"agreement": f"a-{n}", "parties": (WUCHANG, f"42011{n}")}) for n in range(9)]
    assert given(*REGISTER, *others).agreement(XINXIANG, date(2026, 6, 1)) == others[0]
    assert given(*others[::-1], *REGISTER).agreement(XINXIANG, date(2026, 6, 1)) == others[0]


LAMP = "lamp.street"
OWNED = area(XINXIANG, located_in=QINGSHAN).model_copy(update={"owned_by": HONGSHAN})
OFFICE = DistrictSet(district=HONGSHAN, title=name("洪山区"), office=name("洪山区网格中心"))
FACILITY = item(LAMP).model_copy(update={"facility": True})


@pytest.mark.parametrize(
    ("more", "what", "day", "office"),
    [
        ((OWNED, FACILITY, OFFICE), LAMP, date(2026, 6, 1), HONGSHAN),  # 部件: the owner first
        ((OWNED, FACILITY), LAMP, date(2026, 6, 1), WUCHANG),  # an owner without a desk: the place
        ((OWNED, OFFICE), LEAK, date(2026, 6, 1), WUCHANG),  # 事件: the place first
        ((AGREEMENT.model_copy(update={"items": ("repair",)}),), LEAK, date(2026, 6, 1), WUCHANG),
        ((AGREEMENT.model_copy(update={"items": ("rep",)}),), LEAK, date(2026, 6, 1), QINGSHAN),  # not covered
        ((AGREEMENT.model_copy(update={"items": ("rep",)}),), LEAK, date(2026, 2, 28), WUCHANG),  # not in force
    ],
)
def test_who_goes_first_depends_on_the_item_and_on_what_is_agreed(
    more: tuple[RegisterFact, ...], what: str, day: date, office: str
) -> None:
    held = given(*REGISTER, *more)
    version = held.area(XINXIANG, day)
    assert version
    assert held.served_by(version, what, day) == office


def test_the_register_of_a_day_holds_what_stood_then() -> None:
    ruled = PrecedentSet(area=XINXIANG, item=LEAK, owner=QINGSHAN, basis="minutes:1", valid_from=date(2026, 5, 1))
    held = given(*REGISTER, *OWNERS, ruled)
    june, february = held.at(date(2025, 6, 1)), held.at(date(2026, 2, 1))
    assert [version.served_by for (version,) in (june.areas[XINXIANG], february.areas[XINXIANG])] == [WUCHANG, HONGSHAN]
    assert (len(june.agreements), len(held.at(date(2026, 12, 31)).agreements)) == (0, 1)
    assert (len(february.precedents), len(held.at(date(2026, 5, 1)).precedents)) == (0, 1)
    assert XINXIANG not in held.at(date(2019, 12, 31)).areas
    assert held.at(date(2019, 12, 31)).items == held.items


def test_where_no_policy_is_set_a_careful_one_holds() -> None:
    assert WHOLE.policy(WUCHANG) == POLICY
    assert WHOLE.policy(QINGSHAN) == DEFAULT_POLICY
    assert WHOLE.calendar(QINGSHAN) == ALWAYS
    assert WHOLE.calendar(WUCHANG).zone == ZoneInfo("Asia/Shanghai")


def test_the_local_day_is_not_utcs() -> None:
    assert WHOLE.today(WUCHANG, NOW.replace(hour=15)) == date(2026, 11, 23)
    assert WHOLE.today(WUCHANG, NOW.replace(hour=16)) == date(2026, 11, 24)
    assert WHOLE.today("990001", NOW.replace(hour=16)) == date(2026, 11, 24)


def test_what_is_set_again_replaces_what_was() -> None:
    assert given(*REGISTER, item(LEAK, effort=99)).items[LEAK].effort == 99


def test_applied_documents_are_counted() -> None:
    applied = RegisterApplied(by="admin", why="first", digest="ab", facts=3)
    twice = given(*REGISTER, applied, applied.model_copy(update={"digest": "cd"}))
    assert (twice.applied, twice.digest) == (2, "cd")


def test_other_facts_change_nothing() -> None:
    assert register.evolve(WHOLE, RATED) is WHOLE


def test_what_is_dumped_is_loaded_equal_through_json() -> None:
    for one in (Register(), WHOLE, given(*REGISTER, *OWNERS, RegisterApplied(by="x", why="y", digest="ab", facts=1))):
        data = orjson.loads(orjson.dumps(register.dump(one), default=plain))
        assert register.load(data) == one


def test_equal_registers_are_dumped_equal_whatever_their_history() -> None:
    assert canonical(register.dump(given(*OWNERS[1:], *REGISTER))) == canonical(
        register.dump(given(*REGISTER, *OWNERS[:0:-1]))
    )
