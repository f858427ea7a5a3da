"""The rates that offices live by, from the log alone: by which formula, of what, and what was left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.ledger import figures
from services.ledger.figures import DEFAULT, Pin, Question, answer, buildings
from services.ledger.log import leaves
from services.ledger.log.leaves import Prefix
from services.ledger.rounds import FOLLOWED, Fold
from shared.bus import Delivery
from shared.envelope import Envelope
from shared.facts import (
    HUB,
    NOWHERE,
    BuildingScored,
    DistrictSet,
    Due,
    Fact,
    FigureAppealed,
    FigureRuled,
    FormulaSet,
    HandoverOffered,
    HandoverReturned,
    Name,
    RequestDisclosed,
    RequestRated,
    RequestReopened,
    RequestSubmitted,
    RequestWithdrawn,
    Sealed,
    TaskAccepted,
    TaskClosed,
    TaskDeclined,
    TaskDone,
    TaskExtended,
    TaskHandedOver,
    TaskOffered,
    TaskOpened,
    TaskParked,
    TaskResumed,
)
from shared.ids import derived_id
from tests.examples import LI, QINGSHAN, WANG, WUCHANG, name

LOG = "paidan.test/main/1"
BOTH = f"{WUCHANG},{QINGSHAN}"
FIRST = datetime(2026, 11, 2, 1, 0, tzinfo=UTC)
"""A Monday morning in Wuhan."""
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def request(n: int) -> str:
    """A request's id."""
    return derived_id("figures", "request", n)


def task(n: int, round_: int = 1) -> str:
    """The id of its task in a round."""
    return derived_id("figures", "task", n, round_)


def due(at: datetime, days: float = 3) -> Due:
    """Clocks of an hour, four hours, and so many days."""
    return Due(sign=at + HOUR, contact=at + 4 * HOUR, handle=at + days * DAY, life=at + days * DAY)


def said(
    fact: Fact,
    at: datetime,
    n: int | None = None,
    *,
    of: str = WUCHANG,
    seen: str | None = None,
    area: str = "oujing-1",
) -> Envelope:
    """A fact of an office, about request n."""
    where = NOWHERE if n is None else area
    case = None if n is None else request(n)
    id = derived_id("figures", fact.name, repr(fact), at, n)
    return Envelope(id, of, where, at, fact, seen or of, case=case, actor="dispatcher:staff-4")


def submitted(n: int, at: datetime, *, days: float = 3, channel: str = "app", **more: Any) -> Envelope:
    """A resident asks, and leaves a number."""
    fact = RequestSubmitted.model_validate(
        {
            "request_id": request(n),
            "fingerprint": "ab",
            "tracking_hash": "cd",
            "channel": channel,
            "item": "repair.leak",
            "item_rule": "given",
            "urgency": 0,
            "urgency_rule": "item",
            "area": more.get("area", "oujing-1"),
            "area_rule": "code",
            "located_in": WUCHANG,
            "due": due(at, days),
            "sealed": Sealed(kid="ab", commitment="cd", parts=("contact",)),
        }
    )
    return said(fact, at, n, **more)


def opened(n: int, at: datetime, *, round_: int = 1, clocks: Due | None = None, **more: Any) -> Envelope:
    """The office takes it in."""
    fact = TaskOpened(
        task_id=task(n, round_),
        request_id=request(n),
        round=round_,
        area="oujing-1",
        item="repair.leak",
        urgency=0,
        effort=3,
        due=clocks or due(at),
    )
    return said(fact, at, n, **more)


def offered(n: int, at: datetime, *members: str, round_: int = 1, **more: Any) -> Envelope:
    """These are asked."""
    fact = TaskOffered(
        task_id=task(n, round_),
        wave=1,
        members=members or (LI,),
        item="repair.leak",
        urgency=0,
        until=at + HOUR,
        match_id=derived_id("match", n, round_),
    )
    return said(fact, at, n, **more)


def accepted(n: int, at: datetime, member: str = LI, *, round_: int = 1, **more: Any) -> Envelope:
    """One of them takes it."""
    return said(TaskAccepted(task_id=task(n, round_), member_id=member), at, n, **more)


def done(n: int, at: datetime, *, round_: int = 1, **more: Any) -> Envelope:
    """It is done."""
    return said(TaskDone(task_id=task(n, round_), member_id=LI, outcome="solved"), at, n, **more)


def closed(n: int, at: datetime, *, round_: int = 1, reason: Any = "quiet", **more: Any) -> Envelope:
    """The case is over."""
    return said(TaskClosed(task_id=task(n, round_), reason=reason), at, n, **more)


def parked(n: int, at: datetime, **more: Any) -> Envelope:
    """It is set aside."""
    return said(TaskParked(task_id=task(n), reason="no_access"), at, n, **more)


def log(stream: Iterable[Envelope], *, as_it_is: bool = False) -> list[bytes]:
    """The ledger of a stream, in the order of its times or as it is."""
    held = [*stream] if as_it_is else sorted(stream, key=lambda one: one.time)
    deliveries = [
        Delivery(sequence, int(one.time.timestamp()) * 10**9, one.subject, one.encode())
        for sequence, one in enumerate(held, 1)
    ]
    made = leaves.extend(Prefix(LOG, created="2026-01-01T00:00:00.000000001Z"), map(leaves.read, deliveries), {})
    assert {leaf.kind for leaf in made} <= {"event", "heads"}
    return [leaf.data for leaf in made]


LATE = datetime(2027, 1, 10, tzinfo=UTC)


def computed(found: Sequence[bytes], *, at: datetime = LATE, formulas: FormulaSet | None = None, **of: Any) -> Any:
    """The answer to a question."""
    fold = Fold(of.get("district"))
    for leaf in found:
        fold.take(leaf)
    return answer(fold, Question(**of), Pin(LOG, len(found), at), formulas)


def figure(answered: Any, which: str, row: int = 0) -> dict[str, Any]:
    """One figure of a row."""
    return next(each for each in answered["rows"][row]["figures"] if each["figure"] == which)


def counts(answered: Any, which: str, row: int = 0) -> tuple[int, int]:
    """Numerator and denominator of one figure of a row."""
    found = figure(answered, which, row)
    return found["numerator"], found["denominator"]


def changed(figure_: str, of: FormulaSet = DEFAULT, **how: Any) -> FormulaSet:
    """The set with one formula changed."""
    formulas = tuple(each.model_copy(update=how) if each.figure == figure_ else each for each in of.formulas)
    return of.model_copy(update={"formulas": formulas})


# --- the check ------------------------------------------------------------------------------------------------------------


def a_month() -> list[Envelope]:
    """996 filed in November, 972 of them due in it, 911 of those closed, 737 in time; 20 of those that are not are set aside."""
    stream: list[Envelope] = []
    for n in range(996):
        at = FIRST + timedelta(minutes=20 * n) if n < 972 else datetime(2026, 11, 28, 2, n % 60, tzinfo=UTC)
        days = 3 if n < 972 else 5
        stream += [submitted(n, at, days=days), opened(n, at, clocks=due(at, days))]
        if n < 911:
            end = at + (2 * DAY if n < 737 else 4 * DAY)
            stream += [done(n, end - HOUR), closed(n, end)]
        elif n < 931:
            stream.append(parked(n, at + DAY))
    return stream


def test_the_check_of_the_field_comes_out() -> None:
    answered = computed(log(a_month()), month="2026-11")
    assert figure(answered, "found")["denominator"] == 996
    assert figure(answered, "closing") == {
        "figure": "closing",
        "title": {"zh": "结案率", "en": "closed"},
        "numerator": 911,
        "denominator": 972,
        "rate": 9372,
        "text": "93.72 %",
        "excluded": {},
        "appeals": [],
        "formulas": [{"district": HUB, "version": 0, "valid_from": "1970-01-01"}],
    }
    assert counts(answered, "closing_in_time") == (737, 972)
    assert figure(answered, "closing_in_time")["text"] == "75.82 %"


def test_a_variant_takes_what_is_set_aside_out_of_the_denominator() -> None:
    without = changed("closing", without=("withdrawn", "parked"))
    answered = computed(log(a_month()), month="2026-11", formulas=without)
    row = answered["rows"][0]
    closing = next(each for each in row["what_if"]["figures"] if each["figure"] == "closing")
    assert (closing["numerator"], closing["denominator"], closing["text"]) == (911, 952, "95.69 %")
    assert closing["excluded"] == {"parked": 20}
    assert [each["figure"] for each in row["what_if"]["figures"] if each["differs"]] == ["closing"]
    assert figure(answered, "closing")["text"] == "93.72 %"


# --- what makes each figure --------------------------------------------------------------------------------------------------


def a_life(n: int, at: datetime = FIRST, **more: Any) -> list[Envelope]:
    """Signed for, visited and finished in time, and judged."""
    rated = RequestRated(request_id=request(n), grade=4, solved=True)
    return [
        *(submitted(n, at, **more), opened(n, at, **more), offered(n, at, LI, WANG, **more)),
        *(accepted(n, at + HOUR / 2, **more), done(n, at + 2 * HOUR, **more)),
        *(said(rated, at + 3 * HOUR, n, **more), closed(n, at + 4 * HOUR, reason="rated", **more)),
    ]


def test_one_good_case_fills_each_figure_and_the_score() -> None:
    answered = computed(log(a_life(1)))
    shown = {each["figure"]: each["text"] for each in answered["rows"][0]["figures"]}
    assert shown == {
        "response": "100.00 %",
        "signing": "100.00 %",
        "solved": "100.00 %",
        "satisfied": "100.00 %",
        "closing": "100.00 %",
        "closing_in_time": "100.00 %",
        "rework": "0.00 %",
        "moves": "1.0000",
        "found": "0.00 %",
    }
    assert answered["rows"][0]["score"]["rate"] == 10_000
    assert [each["version"] for each in answered["formulas"]] == [0]


def test_late_is_late_by_the_clock_that_the_facts_tell() -> None:
    stream = [submitted(1, FIRST), opened(1, FIRST), offered(1, FIRST), accepted(1, FIRST + 2 * HOUR)]
    answered = computed(log([*stream, done(1, FIRST + 5 * HOUR), closed(1, FIRST + 4 * DAY)]))
    assert counts(answered, "signing") == (0, 1)
    assert counts(answered, "response") == (0, 1)
    assert counts(answered, "closing") == (1, 1)
    assert counts(answered, "closing_in_time") == (0, 1)


def test_who_reads_the_number_to_call_has_made_contact_and_the_service_that_writes_has_not() -> None:
    stream = [submitted(1, FIRST), opened(1, FIRST), submitted(2, FIRST), opened(2, FIRST)]
    for n, to in ((1, "member:m-li"), (2, "service:notify")):
        fact = RequestDisclosed(request_id=request(n), to=to, office=WUCHANG, why="call", parts=("contact",))
        stream.append(said(fact, FIRST + HOUR, n))
    assert counts(computed(log(stream)), "response") == (1, 2)


def test_what_was_found_on_patrol_and_what_was_withdrawn() -> None:
    stream = [*a_life(1), submitted(2, FIRST, channel="patrol"), submitted(3, FIRST), opened(3, FIRST)]
    withdrawal = RequestWithdrawn(request_id=request(3), reason="changed_mind")
    answered = computed(log([*stream, said(withdrawal, FIRST + HOUR, 3)]))
    assert counts(answered, "found") == (1, 3)
    assert counts(answered, "closing") == (1, 2)
    assert figure(answered, "closing")["excluded"] == {"withdrawn": 1}


def test_five_grades_and_the_one_from_which_on_somebody_is_satisfied() -> None:
    stream: list[Envelope] = []
    for n in range(1, 6):
        rated = RequestRated(request_id=request(n), grade=n, solved=n > 1)
        stream += [submitted(n, FIRST), opened(n, FIRST), said(rated, FIRST + DAY, n)]
    assert counts(computed(log(stream)), "satisfied") == (3, 5)
    assert counts(computed(log(stream)), "solved") == (4, 5)
    stricter = computed(log(stream), formulas=changed("satisfied", grade=4))
    shown = next(each for each in stricter["rows"][0]["what_if"]["figures"] if each["figure"] == "satisfied")
    assert (shown["numerator"], shown["denominator"], shown["differs"]) == (2, 5, True)


def test_a_reopened_case_counts_again_with_clocks_and_an_end_of_its_own() -> None:
    again = FIRST + 35 * DAY
    clocks = due(again)
    reopened = RequestReopened(
        request_id=request(1), reason="not_done", round=2, item="repair.leak", urgency=0, due=clocks
    )
    stream = [*a_life(1), said(reopened, again, 1), opened(1, again, round_=2, clocks=clocks)]
    worse = RequestRated(request_id=request(1), grade=1, solved=False)
    stream += [done(1, again + HOUR, round_=2), closed(1, again + 9 * DAY, round_=2), said(worse, again + DAY, 1)]
    november, december = (computed(log(stream), month=month) for month in ("2026-11", "2026-12"))
    assert counts(november, "rework") == (1, 1)
    assert counts(november, "closing_in_time") == (1, 1)
    assert counts(december, "rework") == (0, 1)
    assert (counts(november, "solved"), counts(december, "solved")) == ((1, 1), (0, 1))
    assert counts(december, "closing_in_time") == (0, 1)
    assert counts(november, "moves") == (1, 1)
    assert [each["figure"] for each in december["rows"][0]["figures"]].count("moves") == 0, "filed once"


def test_more_time_moves_the_clock_and_a_case_taken_up_again_gets_new_ones() -> None:
    more = TaskExtended(task_id=task(1), reason="material", due=due(FIRST, 40))
    resumed = TaskResumed(task_id=task(2), due=due(FIRST, 50))
    stream = [submitted(1, FIRST), opened(1, FIRST), said(more, FIRST + DAY, 1), closed(1, FIRST + 39 * DAY)]
    stream += [submitted(2, FIRST), opened(2, FIRST), parked(2, FIRST + DAY), said(resumed, FIRST + 2 * DAY, 2)]
    by_month = computed(log(stream), by="month")
    assert [row["month"] for row in by_month["rows"]] == ["2026-11", "2026-12"]
    assert counts(by_month, "closing", 1) == (1, 2)
    assert counts(by_month, "closing_in_time", 1) == (1, 2)
    out = computed(log(stream), formulas=changed("closing", without=("extended", "parked")))
    shown = next(each for each in out["rows"][0]["what_if"]["figures"] if each["figure"] == "closing")
    assert shown["excluded"] == {"extended": 1}, "what was taken up again is set aside no longer"


def handed_over(n: int, at: datetime, to: str = QINGSHAN, seen: str | None = None) -> list[Envelope]:
    """Wuchang's task becomes another office's."""
    moved = TaskHandedOver(
        task_id=task(n),
        request_id=request(n),
        round=1,
        to=to,
        by=derived_id("handover", n),
        new_task_id=task(n, 9),
        item="repair.leak",
        urgency=0,
        due=due(FIRST),
        grant=False,
    )
    theirs = TaskOpened(
        task_id=task(n, 9),
        request_id=request(n),
        round=1,
        area="oujing-1",
        item="repair.leak",
        urgency=0,
        effort=3,
        due=due(FIRST),
        by=derived_id("handover", n),
    )
    return [said(moved, at, n, seen=f"{WUCHANG},{to}"), said(theirs, at + HOUR, n, of=to, seen=seen)]


def test_a_case_counts_for_whoever_was_responsible_when_its_clock_ran_out() -> None:
    stream = [submitted(1, FIRST), opened(1, FIRST), offered(1, FIRST), *handed_over(1, FIRST + DAY)]
    theirs = FIRST + 2 * DAY
    stream += [offered(1, theirs, "m-chen", round_=9, of=QINGSHAN), closed(1, theirs, round_=9, of=QINGSHAN)]
    found = log(stream)
    answered = computed(found)
    assert [row["district"] for row in answered["rows"]] == [WUCHANG, QINGSHAN]
    ours = {each["figure"] for each in answered["rows"][0]["figures"]}
    assert "closing" not in ours
    assert counts(answered, "signing", 0) == (0, 1)
    assert figure(answered, "moves", 0)["text"] == "2.0000"
    assert counts(answered, "closing_in_time", 1) == (1, 1)
    theirs_too = {each["figure"] for each in answered["rows"][1]["figures"]}
    assert "signing" not in theirs_too, "that clock ran out before it was theirs"


def test_of_an_office_only_its_own_people_are_measured() -> None:
    stream = [submitted(1, FIRST, seen=BOTH), opened(1, FIRST, seen=BOTH), offered(1, FIRST, LI, seen=BOTH)]
    stream += handed_over(1, FIRST + 2 * HOUR, seen=BOTH)
    found = log([*stream, offered(1, FIRST + DAY, "m-chen", round_=9, of=QINGSHAN, seen=BOTH)])
    people = {d: [row["person"] for row in computed(found, district=d, by="person")["rows"]] for d in BOTH.split(",")}
    assert people == {WUCHANG: [LI], QINGSHAN: []}


def test_an_office_gets_the_same_from_its_own_replay() -> None:
    stream = [*a_life(2), *a_life(3, seen=BOTH), submitted(1, FIRST), opened(1, FIRST), *handed_over(1, FIRST + DAY)]
    found = log([*stream, closed(1, FIRST + 2 * DAY, round_=9, of=QINGSHAN)])
    for district in (WUCHANG, QINGSHAN):
        own = [leaf for leaf in found if any(s["d"] == district for s in orjson.loads(leaf).get("scopes", ()))]
        assert len(own) < len(found)
        for by in figures.BYS:
            mine = computed(own, district=district, by=by)["rows"]
            assert mine == computed(found, district=district, by=by)["rows"]
            assert mine == [row for row in computed(found, by=by)["rows"] if row["district"] == district]


def test_what_another_office_sends_back_is_counted_when_it_was_offered() -> None:
    asked = HandoverOffered(
        handover_id=derived_id("h"),
        task_id=task(1),
        request_id=request(1),
        round=1,
        attempt=1,
        to=QINGSHAN,
        reason="wrong_place",
        item="repair.leak",
        urgency=0,
        due=due(FIRST),
        grant=False,
        until=FIRST + DAY,
    )
    back = HandoverReturned(
        handover_id=derived_id("h"), task_id=task(1), to=QINGSHAN, reason="wrong_place", basis="map:7"
    )
    stream = [*a_life(2), submitted(1, FIRST), opened(1, FIRST), said(asked, FIRST + HOUR, 1)]
    answered = computed(log([*stream, said(back, FIRST + 2 * HOUR, 1)]))
    assert counts(answered, "return") == (1, 1)
    at_once = computed(log([*stream, *handed_over(1, FIRST + HOUR)]))
    assert counts(at_once, "return") == (0, 1), "handed over in the same millisecond, and asked by us"


def test_people_are_measured_by_what_they_were_asked_and_what_they_held() -> None:
    stream = [*a_life(1), submitted(2, FIRST), opened(2, FIRST), offered(2, FIRST, WANG)]
    stream.append(said(TaskDeclined(task_id=task(2), member_id=WANG, reason="away"), FIRST + HOUR / 2, 2))
    answered = computed(log(stream), district=WUCHANG, by="person")
    rows = {row["person"]: n for n, row in enumerate(answered["rows"])}
    assert {*rows} == {LI, WANG}
    assert counts(answered, "signing", rows[LI]) == (1, 1)
    assert counts(answered, "signing", rows[WANG]) == (0, 2)
    assert counts(answered, "closing", rows[LI]) == (1, 1)
    assert "closing" not in {each["figure"] for each in answered["rows"][rows[WANG]]["figures"]}


def test_rows_by_area_item_and_month_and_what_is_asked_for_alone() -> None:
    found = log([*a_life(1), *a_life(2, FIRST + 30 * DAY, area="estate-2")])
    assert [row["area"] for row in computed(found, by="area")["rows"]] == ["estate-2", "oujing-1"]
    assert [row["item"] for row in computed(found, by="item")["rows"]] == ["repair.leak"]
    assert [row["month"] for row in computed(found, by="month")["rows"]] == ["2026-11", "2026-12"]
    assert [row["month"] for row in computed(found, by="month", area="estate-2")["rows"]] == ["2026-12"]
    assert computed(found, item="repair.none")["rows"][0]["figures"] == []


def test_the_month_is_that_of_the_office() -> None:
    at = datetime(2026, 11, 30, 17, 0, tzinfo=UTC)  # 1 December in Wuhan, 30 November in Boston
    found = log([submitted(1, at), opened(1, at)])
    assert [row["month"] for row in computed(found, by="month")["rows"]] == ["2026-12"]
    zone = DistrictSet(district=WUCHANG, title=name("x"), office=name("x"), zone="America/New_York")
    moved = [said(zone, FIRST, of=HUB), submitted(1, at), opened(1, at)]
    assert [row["month"] for row in computed(log(moved), by="month")["rows"]] == ["2026-11", "2026-12"]


# --- formulas are facts -----------------------------------------------------------------------------------------------------


def formula_set(formulas: FormulaSet, version: int, since: date, district: str = WUCHANG) -> Envelope:
    """An office's formulas from a day on."""
    fact = formulas.model_copy(update={"version": version, "valid_from": since, "district": district})
    return said(fact, FIRST - 60 * DAY, of=HUB)


def test_a_month_counts_by_the_formulas_of_its_first_day() -> None:
    stream = [formula_set(changed("closing", without=("parked",)), 2, date(2026, 12, 2))]
    stream += [formula_set(DEFAULT, 1, date(2026, 1, 1), HUB)]
    for n, at in enumerate((FIRST, FIRST + 30 * DAY, FIRST + 61 * DAY), 1):
        stream += [submitted(n, at), opened(n, at), parked(n, at + HOUR)]
    answered = computed(log(stream), by="month")
    assert [row["month"] for row in answered["rows"]] == ["2026-11", "2026-12", "2027-01"]
    assert counts(answered, "closing", 0) == counts(answered, "closing", 1) == (0, 1)
    assert figure(answered, "closing", 2)["excluded"] == {"parked": 1}
    used = [figure(answered, "closing", row)["formulas"][0] for row in range(3)]
    assert [(one["district"], one["version"]) for one in used] == [(HUB, 1), (HUB, 1), (WUCHANG, 2)]
    together = computed(log(stream))
    assert len(figure(together, "closing")["formulas"]) == 2
    assert together["rows"][0]["score"] is None, "two sets of weights make no score"


def test_weights_make_one_score_and_a_figure_of_nothing_makes_none() -> None:
    rated = RequestRated(request_id=request(2), grade=1, solved=False)
    stream = [*a_life(1), submitted(2, FIRST), opened(2, FIRST), said(rated, FIRST + DAY, 2)]
    score = computed(log(stream))["rows"][0]["score"]
    assert score == {
        "rate": 5000,
        "text": "50.00 %",
        "weights": {"response": 30, "solved": 35, "satisfied": 35},
    }
    lone = computed(log([submitted(1, FIRST), opened(1, FIRST)]))["rows"][0]["score"]
    assert lone["rate"] is None
    assert lone["text"] == "–"


@pytest.mark.parametrize(
    ("numerator", "denominator", "rate", "text"),
    [(911, 972, 9372, "93.72 %"), (1, 8, 1250, "12.50 %"), (1, 20_000, 1, "0.01 %"), (1, 20_001, 0, "0.00 %")],
)
def test_rates_are_whole_numbers_rounded_half_up(numerator: int, denominator: int, rate: int, text: str) -> None:
    assert figures.per_10000(numerator, denominator) == rate
    assert figures.said(rate) == text


def test_a_table_has_its_mark_and_no_cell_that_a_spreadsheet_runs() -> None:
    named = changed("closing", title=Name(zh="=HYPERLINK(1)", en="x"))
    stream = [said(named.model_copy(update={"version": 1}), FIRST, of=HUB), *a_life(1)]
    table = figures.as_csv(computed(log(stream), formulas=DEFAULT))
    lines = table.decode().splitlines()
    assert lines[0].startswith("\ufeffdistrict,figure,指标,numerator,denominator,rate")
    [closing] = [line for line in lines if ",closing," in line]
    assert closing.startswith("420106,closing,'=HYPERLINK(1),1,1,10000,100.00 %,")
    assert closing.endswith(",1,1,10000,100.00 %,false")


# --- appeals ----------------------------------------------------------------------------------------------------------------


def test_only_a_granted_appeal_leaves_a_case_out_and_the_figure_names_it() -> None:
    ids = [derived_id("appeal", n) for n in range(3)]
    appeals = [
        FigureAppealed(appeal_id=ids[n], request_id=request(1), figure=of, reason="flood", why="道路封闭")
        for n, of in enumerate(("closing", "closing_in_time", "closing"))
    ]
    stream = [submitted(1, FIRST), opened(1, FIRST), *a_life(2)]
    stream += [said(fact, FIRST + 5 * DAY, of=WUCHANG) for fact in appeals]
    assert counts(computed(log(stream)), "closing") == (1, 2)
    stream += [
        said(FigureRuled(appeal_id=ids[n], granted=n == 0, why=""), FIRST + 6 * DAY, of=WUCHANG) for n in range(2)
    ]
    answered = computed(log(stream))
    assert counts(answered, "closing") == (1, 1)
    assert figure(answered, "closing")["excluded"] == {"appeal": 1}
    assert figure(answered, "closing")["appeals"] == [ids[0]]
    assert counts(answered, "closing_in_time") == (1, 2)


# --- the order of leaves, and earlier sizes ---------------------------------------------------------------------------------


def a_busy_month() -> list[Envelope]:
    """A bit of everything, of two offices."""
    reopened = RequestReopened(
        request_id=request(1), reason="not_done", round=2, item="repair.leak", urgency=0, due=due(FIRST + DAY)
    )
    return [
        *(*a_life(1), said(reopened, FIRST + DAY, 1), opened(1, FIRST + DAY, round_=2, clocks=due(FIRST + DAY))),
        *(submitted(2, FIRST), opened(2, FIRST), offered(2, FIRST, WANG), *handed_over(2, FIRST + DAY)),
        closed(2, FIRST + 2 * DAY, round_=9, of=QINGSHAN),
        *(*a_life(3, seen=BOTH), *a_life(4, of=QINGSHAN), submitted(5, FIRST), opened(5, FIRST)),
        *(parked(5, FIRST + HOUR), said(TaskResumed(task_id=task(5), due=due(FIRST, 5)), FIRST + DAY, 5)),
        said(TaskExtended(task_id=task(5), reason="x", due=due(FIRST, 9)), FIRST + 2 * DAY, 5),
        said(RequestWithdrawn(request_id=request(5), reason="x"), FIRST + 3 * DAY, 5),
    ]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(order=st.permutations(range(len(a_busy_month()))), by=st.sampled_from(figures.BYS))
def test_in_which_order_leaves_lie_does_not_matter(order: list[int], by: Any) -> None:
    stream = a_busy_month()
    expected = computed(log(stream), by=by)
    assert computed(log([stream[n] for n in order], as_it_is=True), by=by)["rows"] == expected["rows"]


def test_an_earlier_size_gives_what_was_published_then_and_what_came_late_counts_when_it_happened() -> None:
    before = [submitted(1, FIRST), opened(1, FIRST), submitted(2, FIRST), opened(2, FIRST)]
    late = [done(1, FIRST + DAY), closed(1, FIRST + DAY), closed(2, FIRST + 4 * DAY)]
    found = log([*before, *late], as_it_is=True)
    published = computed(found[:4], month="2026-11")
    assert counts(published, "closing") == (0, 2)
    today = computed(found, month="2026-11")
    assert counts(today, "closing") == (2, 2)
    assert counts(today, "closing_in_time") == (1, 2)
    assert computed(found[: published["size"]], month="2026-11") == published


def test_nothing_counts_before_its_moment_has_come() -> None:
    found = log([submitted(1, FIRST), opened(1, FIRST), offered(1, FIRST)])
    shown = computed(found, at=FIRST + HOUR / 2)["rows"][0]["figures"]
    assert {each["figure"] for each in shown} == {"moves", "found"}
    assert counts(computed(found, at=FIRST + 2 * HOUR), "signing") == (0, 1)


def test_nothing_is_kept_of_leaves_that_figures_do_not_follow_from() -> None:
    fold = Fold()
    followed = {fact.name for fact in FOLLOWED}
    assert {"notice.sent", "turn.committed", "match.explained", "member.enrolled"}.isdisjoint(followed)
    for leaf in log(a_busy_month()):
        fold.take(leaf)
    assert fold.districts == [WUCHANG, QINGSHAN]


# --- 楼栋积分 -----------------------------------------------------------------------------------------------------------------


def test_the_first_three_buildings_hold_the_flag_and_a_tie_is_said() -> None:
    given_points = {"b1": (90, 80), "b2": (85, 85), "b3": (70,), "b4": (70, 70), "b5": (1,)}
    stream = [
        said(BuildingScored(building=building, by=f"from-{n}", month="2026-11", points=points), FIRST + n * HOUR)
        for building, some in given_points.items()
        for n, points in enumerate(some)
    ]
    stream.append(said(BuildingScored(building="b5", by="from-0", month="2026-11", points=100), FIRST + DAY))
    stream.append(said(BuildingScored(building="b1", by="from-0", month="2026-12", points=1), FIRST + DAY))
    fold = Fold()
    for leaf in log(stream):
        fold.take(leaf)
    told = buildings(fold, Pin(LOG, len(stream), LATE), district=WUCHANG, month="2026-11")
    assert [(one["building"], one["text"], one["flag"], one["tied"]) for one in told["buildings"]] == [
        ("b5", "100.00", True, False),
        ("b1", "85.00", True, True),
        ("b2", "85.00", True, True),
        ("b3", "70.00", False, True),
        ("b4", "70.00", False, True),
    ]
