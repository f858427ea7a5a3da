"""受理: a request that reaches the desk becomes a task, once."""

from functools import reduce

import pytest

from shared.facts import TaskClosed, TaskOffered, TaskOpened, TaskUnplaced
from shared.ids import derived_id
from tests.dispatch.telling import after, decision, fold, given, opened, seen, when
from tests.examples import (
    DUE,
    LEAK,
    LI,
    LIFT,
    NOW,
    OFFER,
    OUJING,
    QINGSHAN,
    REOPENED,
    REQUEST,
    SECOND_ROUND,
    TASK,
    TEAM,
    WANG,
    WITHDRAWN,
    WUCHANG,
    XINXIANG,
    envelope,
    submitted,
)

SUBMITTED = seen(submitted())
OPENED = TaskOpened(
    task_id=TASK, request_id=REQUEST, area=OUJING, item=LEAK, urgency=0, effort=10, due=DUE, located_in=WUCHANG
)


def test_a_request_becomes_a_task_and_is_offered_in_the_same_turn() -> None:
    first, offered = when(given(*TEAM), SUBMITTED)
    assert first == OPENED
    assert isinstance(offered, TaskOffered)
    assert (offered.members, offered.wave, offered.until) == ((LI,), 1, NOW + OFFER)


def test_the_same_request_again_leads_to_nothing() -> None:
    assert when(after(given(*TEAM), SUBMITTED), SUBMITTED) == []


def test_the_same_request_after_its_task_was_closed_leads_to_nothing() -> None:
    assert when(after(given(*TEAM), SUBMITTED, seen(WITHDRAWN)), SUBMITTED) == []


def test_a_request_of_another_district_leads_to_nothing() -> None:
    assert when(given(*TEAM), seen(submitted(), district=QINGSHAN)) == []


def test_a_task_takes_effort_skills_and_kinds_from_the_catalogue() -> None:
    task = opened(given(), seen(submitted(item=LIFT)))
    assert (task.effort, task.skills, task.kinds) == (10, ("rescue",), ("responder",))


def test_an_item_that_the_catalogue_does_not_know_is_opened_all_the_same() -> None:
    assert opened(given(*TEAM), seen(submitted(item="never.heard.of"))).effort == 1


def test_a_desk_without_members_and_register_opens_and_says_that_nobody_is_there() -> None:
    facts = when(given(register=()), SUBMITTED)
    assert [type(fact) for fact in facts] == [TaskOpened, TaskUnplaced]


def test_what_happens_in_an_enclave_is_seen_by_both_districts() -> None:
    facts = decision(given(*TEAM), seen(submitted(area=XINXIANG))).facts
    by_name = {fact.fact.name: fact.districts for fact in facts}
    assert by_name == {
        "task.opened": f"{WUCHANG},{QINGSHAN}",
        "match.explained": WUCHANG,
        "task.unplaced": f"{WUCHANG},{QINGSHAN}",
    }


def test_every_fact_names_the_request_and_what_led_to_it() -> None:
    facts = decision(given(*TEAM), SUBMITTED).facts
    assert {fact.case for fact in facts} == {REQUEST}
    assert {fact.cause for fact in facts} == {SUBMITTED.envelope.id}


def test_reopened_begins_a_new_round_and_ends_the_old_one() -> None:
    desk = after(given(*TEAM), SUBMITTED)
    closed, task, offered = when(desk, seen(REOPENED))
    assert closed == TaskClosed(task_id=TASK, reason="reopened")
    assert isinstance(task, TaskOpened)
    assert (task.task_id, task.round, task.urgency) == (SECOND_ROUND, 2, 1)
    assert isinstance(offered, TaskOffered)


def test_reopened_long_after_the_end_is_taken_in_without_the_first_request() -> None:
    task, offered = when(given(*TEAM), seen(REOPENED))
    assert isinstance(task, TaskOpened)
    assert task.task_id == SECOND_ROUND
    assert isinstance(offered, TaskOffered)


def test_reopened_twice_leads_to_one_round() -> None:
    assert when(after(given(*TEAM), SUBMITTED, seen(REOPENED)), seen(REOPENED)) == []


def test_a_task_whose_batch_lost_its_end_is_offered_when_the_request_is_decided_again() -> None:
    whole = list(decision(given(*TEAM), SUBMITTED).facts)
    for kept in (1, 2):
        desk = given(*TEAM, *whole[:kept])
        facts = when(desk, SUBMITTED)
        assert [type(fact) for fact in facts] == [TaskOffered]
        assert after(desk, SUBMITTED).tasks[TASK].until == NOW + OFFER


def test_a_new_round_whose_batch_lost_its_end_is_offered_when_it_is_decided_again() -> None:
    before = after(given(*TEAM), SUBMITTED)
    whole = list(decision(before, seen(REOPENED)).facts)
    for kept in range(1, len(whole)):
        desk = reduce(fold, whole[:kept], before)
        assert after(desk, seen(REOPENED)).tasks[SECOND_ROUND].status == "offered"


def test_two_requests_lead_to_two_tasks_of_two_members() -> None:
    second = seen(submitted(2), sequence=2)
    desk = after(given(*TEAM), SUBMITTED, second)
    holders = {task.id: task.offered for task in desk.tasks.values()}
    assert holders == {TASK: (LI,), derived_id(submitted(2).request_id, "task", 1): (WANG,)}


def test_the_area_is_the_subjects_and_must_be_one() -> None:
    odd = envelope(submitted(), area="Not.An.Area")
    with pytest.raises(ValueError, match="area"):
        decision(given(*TEAM), seen(submitted())._replace(envelope=odd))
