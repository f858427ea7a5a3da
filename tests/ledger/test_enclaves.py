"""一档归索: one file for all offices of an enclave, the same bytes for each, made again by each from what it may read itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Any

import orjson
import pytest

from services.dispatch.commands import (
    Accept,
    Arrive,
    AskHelp,
    Done,
    Enrol,
    HandOver,
    Lend,
    RateHelp,
    Refuse,
    RefuseHelp,
    Rule,
    Sign,
)
from services.ledger import enclaves, sheets
from services.ledger.enclaves import Filing, Pin
from services.ledger.log import leaves
from services.ledger.log.leaves import Prefix
from services.ledger.log.tree import leaf_hash
from shared.bus import Delivery
from shared.envelope import Envelope, canonical
from shared.errors import RefusedError
from shared.facts import (
    AgreementSet,
    Fact,
    HelpAnswered,
    HelpAsked,
    HelpSeated,
    PrecedentSet,
    RequestRated,
    TaskClosed,
    TaskOpened,
)
from tests.dispatch.offices import CITY, City
from tests.examples import (
    AGREEMENT,
    DUE,
    HONGSHAN,
    LEAK,
    LI,
    NOW,
    OUJING,
    QINGSHAN,
    REGISTER,
    WUCHANG,
    XINXIANG,
    enrolled,
    envelope,
    id_of,
    submitted,
)

LOG = "paidan.test/main/1"
BOTH = f"{WUCHANG},{QINGSHAN}"
Leaves = list[tuple[int, bytes]]


def joint(fact: Fact, *, at: datetime = NOW, district: str = WUCHANG, districts: str = BOTH, n: int = 1) -> Envelope:
    """A fact of the enclave, about request n."""
    said = envelope(fact, at=at, district=district, area=XINXIANG, districts=districts)
    return replace(said, id=id_of(said.id, at, n), case=id_of("request", n))


def log(stream: Iterable[Envelope]) -> Leaves:
    """The ledger of a stream."""
    deliveries = [
        Delivery(sequence, int(one.time.timestamp()) * 10**9, one.subject, one.encode())
        for sequence, one in enumerate(stream, 1)
    ]
    made = leaves.extend(Prefix(LOG, created="2026-01-01T00:00:00.000000001Z"), map(leaves.read, deliveries), {})
    assert {leaf.kind for leaf in made} <= {"event", "heads"}
    return [(leaf.index, leaf.data) for leaf in made]


def filed(found: Leaves, *, at: datetime, size: int | None = None, until: datetime | None = None, **of: Any) -> Filing:
    """Everything there is about XINXIANG, filed."""
    entries = list(enclaves.entries(found, XINXIANG, len(found) if size is None else size))
    filing = Filing(enclaves.enclave(entries, XINXIANG, at, **of), until)
    for entry in entries:
        filing.take(entry)
    return filing


def file(found: Leaves, *, at: datetime, size: int | None = None, **of: Any) -> dict[str, Any]:
    """The file."""
    pin = Pin(LOG, max((index for index, _ in found), default=-1) + 1 if size is None else size, at)
    return filed(found, at=at, size=pin.size, **of).file(pin)


def sheet(found: Leaves, month: str, *, at: datetime) -> dict[str, Any]:
    """The sheet of a month."""
    until = sheets.months(filed(found, at=at).enclave.zone, month)[1]
    return sheets.sheet(filed(found, at=at, until=until), Pin(LOG, len(found), at), month)


def of_office(found: Leaves, district: str) -> Leaves:
    """What an office gets when it replays the ledger."""
    seen = ({district}, {"000000"})
    return [(i, leaf) for i, leaf in found if any({s["d"]} in seen for s in orjson.loads(leaf)["scopes"])]


def played(*more: AgreementSet) -> City:
    """A month in the enclave: a case done, one refused twice and ruled on, one with help, one handed over, and help refused."""
    city = City.at_work()
    city.stream += [envelope(fact) for fact in more]
    city.ask(WUCHANG, Enrol(members=(enrolled(LI, OUJING, XINXIANG),)))
    for n in range(1, 5):
        ask(city, n)
    for n in (1, 3):
        do(city, n, Accept(task=task(city, n), member=LI))
    city.wait(minutes=90)
    do(city, 1, Arrive(task=task(city, 1), member=LI))
    do(city, 1, Done(task=task(city, 1), member=LI))
    city.stream.append(joint(RequestRated(request_id=id_of("request", 1), grade=5, solved=True), at=city.now))
    city.settle()

    for _ in range(2):
        do(city, 2, HandOver(task=task(city, 2), to=QINGSHAN, reason="overlapping_duties"))
        refusal = Refuse(handover=city.id("handover.offered"), reason="wrong_place", basis="map:7")
        do(city, 2, refusal, by=QINGSHAN)
    do(city, 2, Rule(conferral=city.id("conferral.opened"), owner=QINGSHAN, basis="minutes:1", precedent=True))
    kept = PrecedentSet(
        area=XINXIANG,
        item=LEAK,
        owner=QINGSHAN,
        conferral=city.id("conferral.opened"),
        basis="minutes:1",
        valid_from=date(2026, 11, 23),
    )
    city.stream.append(replace(envelope(kept, at=city.now), area=XINXIANG))

    do(city, 3, AskHelp(task=task(city, 3), to=QINGSHAN, whistle=True))
    do(city, 3, Lend(help=city.id("help.asked")), by=QINGSHAN)
    do(city, 3, Done(task=task(city, 3), member=LI))
    do(city, 3, RateHelp(help=city.id("help.asked"), grade=4))

    do(city, 4, HandOver(task=task(city, 4), to=QINGSHAN, reason="beyond_ability"))
    do(city, 4, Sign(handover=city.id("handover.offered")), by=QINGSHAN)
    do(city, 4, AskHelp(task=task(city, 4, QINGSHAN), to=WUCHANG), by=QINGSHAN)
    do(city, 4, RefuseHelp(help=city.id("help.asked"), reason="nobody_free"))
    return city


def ask(city: City, n: int) -> None:
    """A resident of the enclave asks for something."""
    city.stream.append(joint(submitted(n, area=XINXIANG), at=city.now, n=n))
    city.settle()


def do(city: City, n: int, what: Any, *, by: str = WUCHANG) -> None:
    """A command that is not refused, and all that follows."""
    assert city.ask(by, what) is None, (n, what)
    city.settle()


def task(city: City, n: int, district: str = WUCHANG) -> str:
    """The open task of a request there."""
    found = city.task(district, n)
    assert found
    return found.id


@lru_cache(maxsize=1)
def story() -> tuple[Leaves, datetime]:
    """Its leaves, and when it ends."""
    city = played()
    return log(city.stream), city.now


# --- the same bytes ---------------------------------------------------------------------------------------------------


def test_each_party_makes_the_same_file_from_what_it_may_read_itself() -> None:
    found, now = story()
    whole = canonical(file(found, at=now, size=len(found)))
    for office in (WUCHANG, QINGSHAN):
        replay = of_office(found, office)
        assert len(replay) < len(found)
        assert canonical(file(replay, at=now, size=len(found), district=office)) == whole


def test_who_is_no_party_has_no_file_and_where_nothing_was_agreed_there_is_none() -> None:
    found, now = story()
    with pytest.raises(RefusedError, match="foreign_district"):
        file(found, at=now, district=HONGSHAN)
    with pytest.raises(RefusedError, match="not_found"):
        file([], at=now)
    with pytest.raises(RefusedError, match="not_found"):
        file(found, at=now, agreement="other-2026")


def test_every_leaf_it_rests_on_is_named_and_these_alone_make_it() -> None:
    found, now = story()
    made = file(found, at=now)
    named = {index for index, _ in made["leaves"]}
    assert all(hash == leaf_hash(dict(found)[index]).hex() for index, hash in made["leaves"])
    assert canonical(file([leaf for leaf in found if leaf[0] in named], at=now, size=len(found))) == canonical(made)


def test_a_file_that_was_changed_is_recognised() -> None:
    found, now = story()
    made = file(found, at=now)
    assert enclaves.read(canonical(made)) == made
    doctored = orjson.loads(canonical(made))
    doctored["cases"][0]["tasks"][0]["clocks"]["contact"]["state"] = "met"
    with pytest.raises(ValueError, match="digest"):
        enclaves.read(canonical(doctored))
    consistent = enclaves.sealed({name: value for name, value in doctored.items() if name != "digest"})
    assert enclaves.read(canonical(consistent)) == consistent, "who changes it can make another digest"
    assert enclaves.differences(made, consistent) == ["cases.0.tasks.0.clocks.contact.state", "digest"]
    with pytest.raises(ValueError, match="canonical"):
        enclaves.read(canonical(made) + b"\n")
    with pytest.raises(ValueError, match="no file"):
        enclaves.read(b"[]")


def test_nobody_is_named_in_it() -> None:
    found, now = story()
    text = canonical(file(found, at=now)) + canonical(sheet(found, "2026-11", at=now))
    assert b'"m-' not in text
    assert b"staff-" not in text
    assert b"fingerprint" not in text
    assert b"tracking" not in text


# --- what it says -----------------------------------------------------------------------------------------------------


def test_cases_with_the_clocks_of_both_offices() -> None:
    found, now = story()
    done, ruled, helped, given = file(found, at=now)["cases"]
    assert [(case["office"], case["state"]) for case in (done, ruled, helped, given)] == [
        *((WUCHANG, "closed"), (QINGSHAN, "unplaced"), (WUCHANG, "done"), (QINGSHAN, "unplaced")),
    ]
    assert clocks(done) == [{"sign": "met", "contact": "late", "handle": "met", "life": "met"}]
    missed = {"sign": "missed", "contact": "missed", "handle": "void", "life": "void"}
    overdue = {"sign": "overdue", "contact": "overdue", "handle": "running", "life": "running"}
    assert clocks(ruled) == [missed, overdue]
    assert [(task["office"], task["how"], task["to"]) for task in given["tasks"]] == [
        *((WUCHANG, "handed_over", QINGSHAN), (QINGSHAN, None, None)),
    ]
    assert done["rated"] == {"grade": 5, "solved": True}


def clocks(case: dict[str, Any]) -> list[dict[str, str]]:
    return [{name: clock["state"] for name, clock in task["clocks"].items()} for task in case["tasks"]]


def test_hand_overs_conferral_ruling_and_precedent() -> None:
    found, now = story()
    made = file(found, at=now)
    assert [(one["giver"], one["to"], one["answer"], one["how"]) for one in made["handovers"]] == [
        (WUCHANG, QINGSHAN, "refused", "returned"),
        (WUCHANG, QINGSHAN, "refused", "returned"),
        (WUCHANG, QINGSHAN, "signed", "handed_over"),
    ]
    assert made["handovers"][0]["refusal"] == {"reason": "wrong_place", "basis": "map:7"}
    (conferral,) = made["conferrals"]
    assert conferral["refusals"] == [one["id"] for one in made["handovers"][:2]]
    assert (conferral["ruling"]["owner"], conferral["how"]) == (QINGSHAN, "ruled")
    assert conferral["carried_out"] is not None
    assert [(one["item"], one["conferral"]) for one in made["precedents"]] == [(LEAK, conferral["id"])]


def test_who_helped_whom_and_the_balance() -> None:
    found, now = story()
    made = file(found, at=now)
    came, refused = made["help"]
    assert (came["asker"], came["to"], came["whistle"], came["effort"]) == (WUCHANG, QINGSHAN, True, 10)
    assert (came["answer"], came["how"], came["grade"]) == ("came", "released", 4)
    assert came["returned"] is not None
    assert (refused["answer"], refused["reason"], refused["how"]) == ("refused", "nobody_free", "refused")
    (month,) = made["balance"]
    assert month["flows"] == [
        {"by": QINGSHAN, "for": WUCHANG, "kind": "handover", "tasks": 2, "effort": 20},
        {"by": QINGSHAN, "for": WUCHANG, "kind": "help", "tasks": 1, "effort": 10},
    ]
    assert month["net"] == month["total"] == {QINGSHAN: 10, WUCHANG: -10}


def test_the_monthly_sheet() -> None:
    found, now = story()
    made = sheet(found, "2026-11", at=now)
    ours, theirs = made["numbers"][WUCHANG], made["numbers"][QINGSHAN]
    own = [ours[name] for name in ("opened", "taken", "closed", "closed_in_time", "effort")]
    assert own == [4, 0, 1, 1, 10]
    assert (ours["handed_over"], ours["open"], ours["was_helped"], ours["helped"]) == (2, 1, 1, 0)
    assert (theirs["opened"], theirs["taken"], theirs["refused"], theirs["helped"]) == (2, 2, 2, 1)
    assert (theirs["open"], theirs["overdue"]) == (2, 2)
    assert ours["clocks"]["sign"] == {"due": 4, "kept": 2}
    assert {one["clock"] for one in made["overdue"]} == {"sign", "contact"}
    assert len(made["disputed"]["refused"]) == 2
    assert len(made["disputed"]["conferrals"]) == 1
    assert [one["basis"] for one in made["precedents"]] == ["minutes:1"]
    assert made["balance"]["net"] == {QINGSHAN: 10, WUCHANG: -10}
    printed = sheets.page(made)
    for words in (
        "联席会月报 2026 年 11 月",
        "青山区",
        "| 受理 | 4 | 2 |",
        "属地不符",
        "minutes:1",
        "| 本月 | -10 | +10 |",
    ):
        assert words in printed, words
    assert made["digest"] in printed


# --- months, terms ----------------------------------------------------------------------------------------------------

NEW_YEAR = datetime(2026, 11, 30, 16, 0, tzinfo=UTC)
"""Midnight between November and December in Wuhan."""


def opened(n: int) -> TaskOpened:
    return TaskOpened(
        task_id=id_of("task", n), request_id=id_of("request", n), area=XINXIANG, item=LEAK, urgency=0, effort=7, due=DUE
    )


def help_given(n: int, at: datetime) -> list[Envelope]:
    """青山 helps 武昌, which hears of it at that moment."""
    before = at - timedelta(minutes=1)
    said = {"help_id": id_of("help", n), "task_id": id_of("task", n)}
    asked = {"request_id": id_of("request", n), "item": LEAK, "urgency": 0, "effort": 7, "due": DUE, "until": at}
    seated = {"asker": WUCHANG, "member_id": "m-chen", "effort": 7}
    return [
        joint(opened(n), at=before, n=n),
        joint(HelpAsked.model_validate({**said, **asked, "to": QINGSHAN}), at=before, n=n),
        joint(HelpSeated.model_validate({**said, **seated}), at=before, n=n, district=QINGSHAN),
        joint(HelpAnswered.model_validate({**said, "to": QINGSHAN, "member_id": "m-chen"}), at=at, n=n),
    ]


def test_a_month_ends_at_midnight_of_the_leads_time_zone() -> None:
    moment = timedelta(milliseconds=1)
    found = log(
        [
            *(envelope(fact, at=NOW) for fact in REGISTER),
            *help_given(1, NEW_YEAR - moment),
            *help_given(2, NEW_YEAR),
        ]
    )
    at = NEW_YEAR + timedelta(days=3)
    november, december = file(found, at=at)["balance"]
    assert [(month["month"], month["net"][QINGSHAN], month["total"][QINGSHAN]) for month in (november, december)] == [
        ("2026-11", 7, 7),
        ("2026-12", 7, 14),
    ]
    numbers = [sheet(found, month, at=at)["numbers"][QINGSHAN]["helped"] for month in ("2026-11", "2026-12")]
    assert numbers == [1, 1]
    assert sheet(found, "2026-12", at=at)["balance"]["total"][QINGSHAN] == 14
    assert sheet(found, "2026-10", at=at)["balance"]["flows"] == []
    with pytest.raises(RefusedError, match="invalid"):
        sheet(found, "2027-01", at=at)
    for no_month in ("2026-13", "0001-01", "9999-12"):
        with pytest.raises(RefusedError, match="invalid"):
            sheet(found, no_month, at=at)


def test_what_somebody_wrote_stays_in_its_cell_of_the_sheet() -> None:
    assert sheets._table(["依据"], [["协议 | 附件\n第二行"]])[2] == "| 协议 \\| 附件 第二行 |"


def test_what_a_sheet_says_of_a_month_stays_when_the_next_one_has_come() -> None:
    found, now = story()
    later = log(
        [
            *played().stream,
            joint(TaskClosed(task_id=id_of("task", 9), reason="quiet"), at=NEW_YEAR),
            *help_given(9, NEW_YEAR + timedelta(days=5)),
        ]
    )
    at = NEW_YEAR + timedelta(days=6)
    november, again = sheet(found, "2026-11", at=NEW_YEAR), sheet(later, "2026-11", at=at)
    assert now < NEW_YEAR
    assert enclaves.differences(november, again) == ["at", "digest", "size"]


def test_an_enclave_where_nothing_has_happened() -> None:
    found = log(envelope(fact, at=NOW) for fact in REGISTER)
    made = file(found, at=NOW)
    assert made["cases"] == made["handovers"] == made["conferrals"] == made["help"] == made["balance"] == []
    assert [one["agreement"] for one in made["agreements"]] == [AGREEMENT.agreement]
    assert made["parties"] == [WUCHANG, QINGSHAN]
    assert "在办" in sheets.page(sheet(found, "2026-11", at=NOW))


def test_what_began_under_an_agreement_stays_when_it_has_ended_and_what_begins_later_does_not_come_in() -> None:
    ended = AGREEMENT.model_copy(update={"valid_to": date(2026, 11, 30)})
    stream = [
        *(envelope(fact, at=NOW) for fact in REGISTER if fact != AGREEMENT),
        envelope(ended, at=NOW),
        joint(submitted(1, area=XINXIANG)),
        joint(opened(1)),
        joint(submitted(2, area=XINXIANG), at=NEW_YEAR, n=2),
        joint(TaskClosed(task_id=id_of("task", 1), reason="quiet"), at=NEW_YEAR, districts=WUCHANG),
    ]
    made = file(log(stream), at=NEW_YEAR + timedelta(days=90))
    (case,) = made["cases"]
    assert case["state"] == "opened", "how it went on is 武昌's own affair"
    assert clocks(case) == [{"sign": "overdue", "contact": "overdue", "handle": "overdue", "life": "overdue"}]
    early = file(log(stream), at=NEW_YEAR - timedelta(days=6, hours=22))
    assert clocks(early["cases"][0])[0]["life"] == "running"


def test_clocks_are_judged_as_of_the_agreements_last_day() -> None:
    long = DUE.model_copy(update={"life": NEW_YEAR + timedelta(days=20)})
    ended = AGREEMENT.model_copy(update={"valid_to": date(2026, 11, 30)})
    stream = [
        *(envelope(fact, at=NOW) for fact in (*REGISTER, ended)),
        joint(opened(1).model_copy(update={"due": long})),
    ]
    assert clocks(file(log(stream), at=NEW_YEAR + timedelta(days=90))["cases"][0])[0]["life"] == "running"


def test_only_what_lists_every_party_is_in_it() -> None:
    three = AGREEMENT.model_copy(update={"parties": (WUCHANG, QINGSHAN, HONGSHAN), "agreement": "three-2027"})
    next_year = three.model_copy(update={"valid_from": date(2027, 1, 1), "valid_to": None})
    all_three = f"{BOTH},{HONGSHAN}"
    stream = [
        *(envelope(fact, at=NOW) for fact in (*CITY, next_year)),
        joint(opened(1)),
        joint(opened(2), at=datetime(2027, 1, 4, tzinfo=UTC), districts=all_three, n=2),
        joint(opened(3), at=datetime(2027, 1, 4, tzinfo=UTC), districts=BOTH, n=3),
    ]
    at = datetime(2027, 1, 5, tzinfo=UTC)
    current = file(log(stream), at=at)
    assert (current["parties"], cases_of(current)) == ([WUCHANG, QINGSHAN, HONGSHAN], [id_of("request", 2)])
    before = file(log(stream), at=at, agreement=AGREEMENT.agreement)
    assert (before["parties"], cases_of(before)) == ([WUCHANG, QINGSHAN], [id_of("request", 1)])


def cases_of(made: dict[str, Any]) -> Sequence[str]:
    return [case["case"] for case in made["cases"]]
