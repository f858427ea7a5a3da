"""From the register and a day to what each office may: pure, and the same for everybody who works it out."""

from datetime import UTC, date, datetime, timedelta

import pytest

from deploy import claims
from deploy.claims import Key
from deploy.offices import GateKeys, Office, OfficeKeys, account, diff, offices
from shared.facts import AgreementSet, App, Fact, OfficeSet
from shared.register import Register, evolve
from tests.examples import DISTRICT, HONGSHAN, NEIGHBOUR, OUJING, QINGSHAN, WUCHANG, XINXIANG, area

NOON = datetime(2026, 11, 23, 4, tzinfo=UTC)
BOARD = App(app="board", key=Key.derive("x", "user", "board").public)
OPERATOR, HUB, KEYS = Key.derive("o", "operator"), Key.derive("o", "account", "HUB"), OfficeKeys("k")
GATE = GateKeys("g")


def agreed(
    name: str, where: str, *parties: str, since: date = date(2026, 1, 1), until: date | None = None
) -> AgreementSet:
    """What two offices agreed."""
    return AgreementSet(
        agreement=name,
        area=where,
        parties=parties,
        lead=parties[0],
        services=("repair",),
        valid_from=since,
        valid_to=until,
    )


def let_in(*districts: str, apps: tuple[App, ...] = (BOARD,), people: bool = True) -> list[OfficeSet]:
    """Offices on these terms."""
    return [OfficeSet(district=district, apps=apps, people=people) for district in districts]


def given(*facts: Fact) -> Register:
    """A register of two districts and an enclave."""
    register = Register()
    for fact in (DISTRICT, NEIGHBOUR, area(OUJING), area(XINXIANG, located_in=QINGSHAN), *facts):
        register = evolve(register, fact)
    return register


def sees(register: Register, district: str = WUCHANG, now: datetime = NOON) -> list[str]:
    """Which subjects an office sees at a moment."""
    return [subject for subject, _ in offices(register, now)[district].live]


def theirs(district: str) -> list[str]:
    """What is seen of another office in the enclave."""
    return [f"live.evt.{district}.{service}.{XINXIANG}.>" for service in ("dispatch", "intake")]


def test_an_office_sees_its_own_prefix() -> None:
    assert sees(given(*let_in(WUCHANG))) == [f"live.evt.{WUCHANG}.>"]


def test_of_an_enclave_it_sees_what_every_other_party_does_there() -> None:
    register = given(agreed("a", XINXIANG, QINGSHAN, HONGSHAN), *let_in(WUCHANG, QINGSHAN, HONGSHAN))
    others = [*theirs(QINGSHAN), *theirs(HONGSHAN)]
    assert sees(register) == [f"live.evt.{WUCHANG}.>", *others]  # it serves the area, though it is no party
    assert sees(register, QINGSHAN) == [f"live.evt.{QINGSHAN}.>", *theirs(WUCHANG), *theirs(HONGSHAN)]


def test_whom_another_office_told_is_not_seen_even_in_an_enclave() -> None:
    register = given(agreed("a", XINXIANG, WUCHANG, QINGSHAN), *let_in(WUCHANG))
    assert {subject.split(".")[3] for subject in sees(register)[1:]} == {"dispatch", "intake"}


def test_no_two_of_its_subjects_overlap() -> None:
    register = given(
        agreed("a", XINXIANG, WUCHANG, QINGSHAN),
        agreed("b", XINXIANG, WUCHANG, QINGSHAN, since=date(2026, 6, 1)),
        agreed("c", OUJING, WUCHANG, QINGSHAN),
        *let_in(WUCHANG),
    )
    own, *others = sees(register)
    assert len(set(others)) == len(others) == 4
    assert not any(subject.startswith(own[:-1]) for subject in others)


def test_somebody_who_has_no_part_in_an_enclave_sees_nothing_of_it() -> None:
    register = given(agreed("a", XINXIANG, WUCHANG, QINGSHAN), *let_in(HONGSHAN))
    assert sees(register, HONGSHAN) == [f"live.evt.{HONGSHAN}.>"]


@pytest.mark.parametrize(
    ("moment", "shared"),
    [
        (datetime(2026, 3, 9, 15, 59, tzinfo=UTC), False),
        (datetime(2026, 3, 9, 16, 0, tzinfo=UTC), True),  # midnight in Wuhan
        (datetime(2026, 12, 31, 15, 59, tzinfo=UTC), True),
        (datetime(2026, 12, 31, 16, 0, tzinfo=UTC), False),
    ],
)
def test_an_agreement_begins_and_ends_with_the_local_day(moment: datetime, shared: bool) -> None:
    agreement = agreed("a", XINXIANG, WUCHANG, QINGSHAN, since=date(2026, 3, 10), until=date(2026, 12, 31))
    assert (len(sees(given(agreement, *let_in(WUCHANG)), now=moment)) == 3) is shared


def test_the_hubs_consent_ends_with_the_agreement() -> None:
    agreement = agreed("a", XINXIANG, WUCHANG, QINGSHAN, until=date(2026, 12, 31))
    office = offices(given(agreement, *let_in(WUCHANG)), NOON)[WUCHANG]
    ends = int(datetime(2026, 12, 31, 16, tzinfo=UTC).timestamp())
    assert [dict(office.live)[subject] for subject in theirs(QINGSHAN)] == [ends, ends]
    consents = [claims.read(entry["token"]) for entry in _account(office)["nats"]["imports"]]
    assert {consent["nats"]["subject"]: consent.get("exp") for consent in consents} == {
        f"live.evt.{WUCHANG}.>": None,
        **dict.fromkeys(theirs(QINGSHAN), ends),
        f"cmd.{WUCHANG}.desk.>": None,
        f"qry.{WUCHANG}.desk.>": None,
        f"qry.{WUCHANG}.witness.>": None,
    }
    assert {(consent["iss"], consent["sub"]) for consent in consents} == {(HUB.public, KEYS.account(WUCHANG).public)}


def test_an_office_without_apps_and_people_has_no_account() -> None:
    assert offices(given(*let_in(WUCHANG, apps=(), people=False)), NOON) == {}
    assert [*offices(given(*let_in(WUCHANG, apps=())), NOON)] == [WUCHANG]


def test_people_who_are_not_let_in_have_no_key_among_the_offices() -> None:
    with_people, without = (
        {scope["role"] for scope in _account(Office(WUCHANG, (BOARD,), people, ()))["nats"]["signing_keys"]}
        for people in (True, False)
    )
    assert (with_people, without) == ({"app board", "staff", "member"}, {"app board"})


def test_another_key_of_an_app_is_signed_for_by_another() -> None:
    other = App(app="board", key=Key.derive("x", "user", "other").public)
    assert KEYS.app(WUCHANG, BOARD) != KEYS.app(WUCHANG, other) != KEYS.app(QINGSHAN, other)


def test_an_account_has_no_store_and_its_bounds() -> None:
    limits = _account(Office(WUCHANG, (BOARD,), True, ()))["nats"]["limits"]
    assert not {"mem_storage", "disk_storage", "streams"} & limits.keys()
    assert (limits["conn"], limits["subs"], limits["payload"], limits["leaf"]) == (200, 1000, 65536, 0)


def test_the_same_register_gives_the_same_account_whenever_it_is_asked() -> None:
    office = Office(WUCHANG, (BOARD,), True, ((f"live.evt.{WUCHANG}.>", None),))
    want = {"D420106": _account(office, NOON + timedelta(days=1))}
    assert diff({"D420106": _account(office)}, want) == []


def test_a_difference_says_what_comes_and_goes() -> None:
    here = Office(WUCHANG, (BOARD,), False, ((f"live.evt.{WUCHANG}.>", None),))
    more = Office(WUCHANG, (), True, (*here.live, ("live.evt.420107.*.x.>", None)))
    asks = [f"cmd.{WUCHANG}.desk.>", f"qry.{WUCHANG}.desk.>", f"qry.{WUCHANG}.witness.>"]
    assert diff({}, {"D420106": _account(here)}) == [
        "+ D420106",
        *(f"+ D420106 + {line}" for line in (f"app board {BOARD.key}", f"live.evt.{WUCHANG}.>", *asks)),
    ]
    assert diff({"D420106": _account(here)}, {}) == ["- D420106"]
    assert diff({"D420106": _account(here)}, {"D420106": _account(more)}) == [
        f"~ D420106 - app board {BOARD.key}",
        *(f"~ D420106 + {line}" for line in ("staff", "member", "live.evt.420107.*.x.>")),
    ]


def _account(office: Office, now: datetime = NOON) -> claims.Claims:
    return claims.read(account(office, operator=OPERATOR, hub=HUB, keys=KEYS, gate=GATE, now=now))
