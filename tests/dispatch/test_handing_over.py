"""转办: two keys and one moment; whoever received it first stays responsible until then."""

from __future__ import annotations

from datetime import timedelta

import pytest

from services.dispatch.commands import Accept, Done, HandOver, Refuse, Sign, TakeBack
from shared.facts import (
    HandoverOffered,
    HandoverReceived,
    RequestReopened,
    TaskClosed,
    TaskHandedOver,
    TaskOpened,
    TaskUnplaced,
)
from shared.ids import derived_id
from tests.dispatch.offices import GARDEN, OFFICES, City
from tests.examples import (
    AGREEMENT,
    DISPATCHER,
    DUE,
    HONGSHAN,
    LEAK,
    LI,
    NOW,
    OUJING,
    QINGSHAN,
    RATED,
    REOPENED,
    REQUEST,
    TASK,
    WITHDRAWN,
    WUCHANG,
    XINXIANG,
    envelope,
    id_of,
    submitted,
)

TO_QINGSHAN = HandOver(task=TASK, to=QINGSHAN, reason="wrong_place", basis="agreement:xinxiang-2026")


def offered(*, grant: bool = True) -> City:
    """武昌 has offered a task to 青山, and 青山 has heard."""
    city = City.at_work()
    city.publish(submitted())
    city.settle()
    assert city.ask(WUCHANG, TO_QINGSHAN.model_copy(update={"grant": grant})) is None
    city.settle()
    return city


def signing(city: City) -> Sign:
    """青山's signature."""
    return Sign(handover=city.id("handover.offered"))


def refusing(city: City) -> Refuse:
    """A no to the newest offer."""
    return Refuse(handover=city.id("handover.offered"), reason="beyond_ability", basis="law:city/7")


def handed_over() -> City:
    """And 青山 has it."""
    city = offered()
    assert city.ask(QINGSHAN, signing(city)) is None
    city.settle()
    assert city.owners() == [QINGSHAN]
    return city


def over(city: City) -> None:
    """Nothing more comes, and everything held."""
    city.settle()
    city.check()
    city.check_all()


def test_offered_signed_handed_over_opened() -> None:
    city = handed_over()
    assert city.names() == [
        "6:task.opened",
        "6:handover.offered",
        "7:handover.received",
        "7:handover.signed",
        "6:task.handed_over",
        "7:task.opened",
    ]
    over(city)


def test_the_offer_holds_all_that_the_other_office_needs() -> None:
    city = offered()
    fact = city.last("handover.offered").fact
    assert fact == HandoverOffered(
        handover_id=derived_id(TASK, "handover", 1),
        task_id=TASK,
        request_id=REQUEST,
        round=1,
        attempt=1,
        to=QINGSHAN,
        reason="wrong_place",
        basis="agreement:xinxiang-2026",
        item=LEAK,
        urgency=0,
        due=DUE,
        located_in=WUCHANG,
        grant=True,
        until=NOW + timedelta(minutes=30),
    )
    received = city.last("handover.received")
    assert received.fact == HandoverReceived.model_validate({**dict(fact), "giver": WUCHANG})
    assert (received.district, received.case, received.area) == (QINGSHAN, REQUEST, OUJING)


def test_until_it_is_handed_over_the_task_is_the_givers_and_afterwards_the_others_with_the_same_clocks() -> None:
    city = offered()
    assert city.owners() == [WUCHANG]
    city.ask(QINGSHAN, signing(city))
    assert city.owners() == [WUCHANG]
    city.turn(WUCHANG)
    assert city.task(WUCHANG) is None
    assert city.owners() == [QINGSHAN]
    city.turn(QINGSHAN)
    task = city.task(QINGSHAN)
    assert task
    assert task.due == DUE
    opened = city.last("task.opened").fact
    moved = city.last("task.handed_over").fact
    assert isinstance(opened, TaskOpened)
    assert isinstance(moved, TaskHandedOver)
    assert (opened.task_id, opened.by, opened.located_in) == (moved.new_task_id, moved.by, WUCHANG)
    assert city.desks[QINGSHAN].tasks[opened.task_id].offered == ("m-chen",)
    over(city)


def test_whoever_held_it_or_was_asked_is_free() -> None:
    city = offered()
    assert city.desks[WUCHANG].members[LI].load == 10
    city.ask(WUCHANG, Accept(task=TASK, member=LI))
    city.ask(QINGSHAN, signing(city))
    city.settle()
    assert city.desks[WUCHANG].members[LI].load == 0
    assert city.ask(WUCHANG, Done(task=TASK, member=LI)) == "wrong_state"
    over(city)


def test_from_the_offer_on_both_offices_see_the_case_but_for_explanations() -> None:
    city = handed_over()
    for one in city.stream[city.stream.index(city.last("handover.offered")) :]:
        if one.case == REQUEST and one.fact.name != "match.explained":
            assert set(one.districts.split(",")) == {WUCHANG, QINGSHAN}, one.fact.name
        elif one.fact.name == "match.explained":
            assert (one.districts, one.area) == (one.district, "-")


@pytest.mark.parametrize("how", ["refused", "taken_back", "unanswered"])
def test_an_office_that_was_asked_in_vain_hears_how_that_ended_and_nothing_of_what_follows(how: str) -> None:
    city = offered()
    if how == "refused":
        city.ask(QINGSHAN, refusing(city))
    elif how == "taken_back":
        city.ask(WUCHANG, TakeBack(handover=city.id("handover.offered")))
    else:
        city.wait(hours=1)
    city.settle()
    end = city.last("handover.returned" if how == "refused" else "handover.lapsed")
    assert QINGSHAN in end.districts.split(",")
    city.publish(WITHDRAWN)
    city.settle()
    assert city.last("task.closed").districts == WUCHANG
    over(city)


def in_the_enclave() -> City:
    """武昌 has a task in an enclave that 青山 sees by agreement."""
    city = City.at_work()
    city.publish(submitted(area=XINXIANG), area=XINXIANG)
    city.settle()
    assert city.last("task.opened").districts == f"{WUCHANG},{QINGSHAN}"
    return city


def ended(city: City) -> None:
    """The agreement ends, and a day passes."""
    city.stream.append(envelope(AGREEMENT.model_copy(update={"valid_to": NOW.date()})))
    city.settle()
    city.wait(hours=24)


def test_with_its_agreement_a_party_stops_hearing_of_what_began_under_it() -> None:
    city = in_the_enclave()
    ended(city)
    city.publish(WITHDRAWN, area=XINXIANG)
    city.settle()
    assert city.last("task.closed").districts == WUCHANG
    over(city)


def test_an_agreement_names_its_party_in_what_follows_also_of_tasks_that_were_there() -> None:
    city = City.at_work()
    city.stream.append(envelope(AGREEMENT.model_copy(update={"valid_from": NOW.date() + timedelta(days=1)})))
    city.publish(submitted(area=XINXIANG), area=XINXIANG)
    city.settle()
    assert city.last("task.opened").districts == WUCHANG
    city.wait(hours=24)
    city.publish(WITHDRAWN, area=XINXIANG)
    city.settle()
    assert city.last("task.closed").districts == f"{WUCHANG},{QINGSHAN}"
    over(city)


def test_who_gave_a_task_in_the_enclave_hears_of_it_also_when_nothing_is_agreed_any_more() -> None:
    city = in_the_enclave()
    city.ask(WUCHANG, TO_QINGSHAN)
    city.settle()
    city.ask(QINGSHAN, signing(city))
    city.settle()
    ended(city)
    city.publish(WITHDRAWN, area=XINXIANG)
    city.settle()
    assert set(city.last("task.closed").districts.split(",")) == {WUCHANG, QINGSHAN}
    over(city)


def test_the_grant_is_the_offers() -> None:
    city = offered(grant=False)
    city.ask(QINGSHAN, signing(city))
    city.settle()
    assert city.said("task.handed_over").grant is False


# --- it does not come to it -------------------------------------------------------------------------------------------


def test_a_refusal_returns_it_and_another_office_can_be_asked() -> None:
    city = offered()
    assert city.ask(QINGSHAN, refusing(city)) is None
    city.settle()
    assert city.names("handover.")[-2:] == ["7:handover.refused", "6:handover.returned"]
    task = city.task(WUCHANG)
    assert task
    assert (task.asking, task.refusers) == (None, (QINGSHAN,))
    assert city.ask(WUCHANG, TO_QINGSHAN.model_copy(update={"to": HONGSHAN})) is None
    assert city.said("handover.offered").attempt == 2
    city.settle()
    city.ask(HONGSHAN, signing(city))
    city.settle()
    assert city.owners() == [HONGSHAN]
    over(city)


def test_an_offer_that_nobody_answers_lapses_and_the_giver_keeps_it() -> None:
    city = offered()
    city.wait(minutes=29)
    city.settle()
    assert "6:handover.lapsed" not in city.names()
    city.wait(minutes=1)
    city.settle()
    assert city.names("handover.")[-2:] == ["6:handover.lapsed", "7:handover.settled"]
    assert city.ask(QINGSHAN, signing(city)) == "over"
    assert city.owners() == [WUCHANG]
    over(city)


def test_an_offer_is_taken_back() -> None:
    city = offered()
    back = TakeBack(handover=city.id("handover.offered"))
    assert city.ask(WUCHANG, back) is None
    assert city.ask(QINGSHAN, signing(city)) is None, "it has not heard yet"
    city.settle()
    assert city.owners() == [WUCHANG]
    assert city.ask(WUCHANG, back) == "over"
    assert city.said("handover.settled").reason == "taken_back"
    over(city)


def test_it_is_done_before_the_signature_arrives() -> None:
    city = offered()
    city.ask(WUCHANG, Accept(task=TASK, member=LI))
    city.ask(QINGSHAN, signing(city))
    assert city.ask(WUCHANG, Done(task=TASK, member=LI)) is None
    city.settle()
    assert "6:task.handed_over" not in city.names()
    assert city.said("handover.lapsed").reason == "ended"
    assert city.owners() == [WUCHANG]
    over(city)


def test_done_is_what_a_repeat_of_done_hears_though_an_offer_lapsed_with_it() -> None:
    city = offered()
    city.ask(WUCHANG, Accept(task=TASK, member=LI))
    for _ in range(2):
        assert city.ask(WUCHANG, Done(task=TASK, member=LI), id=id_of("once")) is None
    assert city.names("task.done") == ["6:task.done"]
    assert city.ask(WUCHANG, TO_QINGSHAN) == "wrong_state"


@pytest.mark.parametrize("after_signature", [False, True])
def test_withdrawn_while_it_is_offered(after_signature: bool) -> None:
    city = offered()
    if after_signature:
        city.ask(QINGSHAN, signing(city))
        city.publish(WITHDRAWN)
        city.turn(QINGSHAN)
    else:
        city.publish(WITHDRAWN)
    city.settle()
    if after_signature:  # the signature came first: it was handed over, and is closed there
        assert city.names()[-2:] == ["7:task.opened", "7:task.closed"]
    assert city.owners() == []
    over(city)


def test_withdrawn_before_the_giver_knew_when_it_handed_over() -> None:
    """The withdrawal lies before `task.handed_over` in the stream, and 青山 reads it when the task is not its own yet."""
    city = offered()
    city.ask(QINGSHAN, signing(city))
    signature = len(city.stream) - 1
    city.publish(WITHDRAWN)
    city.turn(WUCHANG, inputs=1)
    while city.position[WUCHANG] < signature:
        city.turn(WUCHANG, inputs=1)
    assert "6:task.handed_over" in city.names()
    city.settle()
    assert city.names()[-4:] == ["6:task.handed_over", "7:handover.settled", "7:task.opened", "7:task.closed"]
    assert city.last("task.closed").fact == TaskClosed(
        task_id=derived_id(derived_id(TASK, "handover", 1), "task"), reason="withdrawn"
    )
    assert city.owners() == []
    over(city)


# --- said twice, said wrongly, said too late --------------------------------------------------------------------------


def test_repeats_change_nothing() -> None:
    city = City.at_work()
    city.publish(submitted())
    city.settle()
    for _ in range(2):
        assert city.ask(WUCHANG, TO_QINGSHAN, id=id_of("offer")) is None
    city.settle()
    for id in ("sign", "sign", "sign again"):
        assert city.ask(QINGSHAN, signing(city), id=id_of(id)) is None
    city.settle()
    assert len(city.names("handover.", "task.handed_over")) == 4
    over(city)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (TO_QINGSHAN.model_copy(update={"to": WUCHANG}), "own_office"),
        (TO_QINGSHAN.model_copy(update={"to": "420199"}), "unknown_district"),
        (TO_QINGSHAN.model_copy(update={"task": id_of("?")}), "unknown_task"),
        (TO_QINGSHAN, "already_asking"),
        (TakeBack(handover=id_of("?")), "not_found"),
        (Sign(handover=derived_id(TASK, "handover", 1)), "not_found"),
        (Refuse(handover=derived_id(TASK, "handover", 1), reason="wrong_place", basis="x"), "not_found"),
    ],
)
def test_what_the_giver_cannot_say(command: HandOver | TakeBack | Sign | Refuse, code: str) -> None:
    assert offered().ask(WUCHANG, command) == code


def test_what_the_other_office_cannot_say() -> None:
    city = offered()
    assert city.ask(QINGSHAN, TakeBack(handover=city.id("handover.offered"))) == "not_found"
    assert city.ask(HONGSHAN, signing(city)) == "not_found"
    city.ask(QINGSHAN, signing(city))
    assert city.ask(QINGSHAN, refusing(city)) == "already_signed"
    city.settle()
    assert city.ask(QINGSHAN, signing(city), by=DISPATCHER) == "over"
    assert city.ask(WUCHANG, TakeBack(handover=city.id("handover.offered"))) == "over"


def test_a_signature_of_an_office_that_was_not_asked_moves_nothing() -> None:
    city = offered()
    city.ask(QINGSHAN, signing(city))
    forged = city.stream.pop(-2)
    city.publish(forged.fact, HONGSHAN)
    city.turn(WUCHANG)
    assert city.owners() == [WUCHANG]


# --- rounds -----------------------------------------------------------------------------------------------------------


def finished() -> City:
    """青山 has done what 武昌 handed over."""
    city = handed_over()
    task = city.task(QINGSHAN)
    assert task
    city.ask(QINGSHAN, Accept(task=task.id, member="m-chen"))
    city.ask(QINGSHAN, Done(task=task.id, member="m-chen"))
    city.settle()
    return city


def test_a_rating_closes_it_where_it_is() -> None:
    city = finished()
    city.publish(RATED, QINGSHAN)
    over(city)
    assert city.names()[-1] == "7:task.closed"


@pytest.mark.parametrize("closed", [False, True])
def test_reopened_it_begins_anew_at_the_office_whose_it_was_last_and_only_there(closed: bool) -> None:
    city = finished()
    if closed:
        city.publish(RATED, QINGSHAN)
        city.settle()
    city.publish(REOPENED, QINGSHAN)  # intake writes it under the office that the ledger's case names
    over(city)
    assert city.owners() == [QINGSHAN]
    task = city.task(QINGSHAN)
    assert task
    assert (task.round, task.id) == (2, derived_id(REQUEST, "task", 2))


def test_it_comes_back_and_goes_again_and_the_new_task_is_always_another() -> None:
    city = handed_over()
    holders = [QINGSHAN]
    for giver, taker in ((QINGSHAN, WUCHANG), (WUCHANG, HONGSHAN), (HONGSHAN, WUCHANG)):
        task = city.task(giver)
        assert task
        assert city.ask(giver, HandOver(task=task.id, to=taker, reason="ownership_unclear")) is None
        city.settle()
        assert city.ask(taker, signing(city)) is None
        city.settle()
        holders += city.owners()
    assert holders == [QINGSHAN, WUCHANG, HONGSHAN, WUCHANG]
    assert len({one.fact.task_id for one in city.stream if isinstance(one.fact, TaskOpened)}) == 5
    over(city)


# --- an area that another office serves now ---------------------------------------------------------------------------


def test_a_request_for_an_area_that_another_serves_is_opened_and_offered_on_by_itself() -> None:
    city = City.at_work()
    city.publish(submitted(area=GARDEN), WUCHANG, area=GARDEN)
    city.settle()
    assert city.names() == ["6:task.opened", "6:handover.offered", "7:handover.received"]
    assert any(isinstance(one.fact, TaskUnplaced) for one in city.stream), "and 武昌's supervisor knows of it"
    assert city.owners() == [WUCHANG]
    city.ask(QINGSHAN, signing(city))
    city.settle()
    assert city.owners() == [QINGSHAN]
    over(city)


def test_what_was_handed_over_is_not_offered_back_by_itself_nor_what_was_reopened() -> None:
    city = handed_over()
    assert len(city.names("handover.offered")) == 1
    city.publish(REOPENED.model_copy(update={"round": 2}), QINGSHAN)
    city.settle()
    assert len(city.names("handover.offered")) == 1
    assert city.owners() == [QINGSHAN]


# --- an office that is away -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("away", [WUCHANG, QINGSHAN])
@pytest.mark.parametrize("when", ["before the offer is heard", "after the signature"])
def test_an_office_is_away_for_an_hour_and_nothing_is_lost(away: str, when: str) -> None:
    city = City.at_work()
    city.publish(submitted())
    city.settle()
    city.ask(WUCHANG, TO_QINGSHAN)
    others = [code for code in OFFICES if code != away]
    if when == "after the signature":
        city.settle()
        city.ask(QINGSHAN, signing(city))
    for _ in range(7):
        city.wait(minutes=10)
        for code in others:
            city.turn(code)
        assert len(city.owners()) == 1
    city.settle()
    assert len(city.owners()) == 1
    signed_in_time = when == "after the signature"
    assert city.owners() == [QINGSHAN if signed_in_time else WUCHANG]
    over(city)


def test_a_reopening_heard_elsewhere_ends_an_earlier_round_that_is_still_open() -> None:
    city = City.at_work()
    city.publish(submitted())
    city.settle()
    city.publish(RequestReopened(**dict(REOPENED)), QINGSHAN)
    over(city)
    assert city.owners() == [QINGSHAN]
