"""结案: rated, quiet for the policy's time, withdrawn, or reopened; loads come to nothing."""

from datetime import timedelta

import pytest

from services.dispatch.commands import Accept, Done
from services.dispatch.model import Desk
from shared.envelope import Envelope
from shared.facts import Position, RequestRated, RequestWithdrawn, TaskClosed, TaskOpened, TurnCommitted
from tests.dispatch.telling import after, asked, decision, due, fold, given, seen, when
from tests.examples import (
    LI,
    MINUTE,
    NOW,
    QINGSHAN,
    QUIET,
    RATED,
    REOPENED,
    SECOND_ROUND,
    TASK,
    TEAM,
    WITHDRAWN,
    envelope,
    id_of,
    submitted,
)

OFFERED_TO_LI = after(given(*TEAM), seen(submitted()))
HELD_BY_LI = after(OFFERED_TO_LI, asked(Accept(task=TASK, member=LI)))
DONE_BY_LI = after(HELD_BY_LI, asked(Done(task=TASK, member=LI)))
UNPLACED = after(given(), seen(submitted()))


def test_a_rating_closes_what_is_done() -> None:
    assert when(DONE_BY_LI, seen(RATED)) == [TaskClosed(task_id=TASK, reason="rated")]


def test_a_rating_is_heard_from_whichever_district_it_comes() -> None:
    assert when(DONE_BY_LI, seen(RATED, district=QINGSHAN)) == [TaskClosed(task_id=TASK, reason="rated")]


def test_a_rating_of_what_is_not_done_closes_nothing() -> None:
    assert when(HELD_BY_LI, seen(RATED)) == []


def test_a_rating_of_what_the_desk_does_not_know_leads_to_nothing() -> None:
    other = RequestRated(request_id=id_of("elsewhere"), grade=1, solved=False)
    assert when(DONE_BY_LI, seen(other)) == []


def test_what_is_done_and_not_rated_closes_after_the_policys_time() -> None:
    assert when(DONE_BY_LI, due(NOW + QUIET), NOW + QUIET) == [TaskClosed(task_id=TASK, reason="quiet")]
    assert when(DONE_BY_LI, due(NOW + QUIET), NOW + QUIET - MINUTE) == []


@pytest.mark.parametrize("desk", [OFFERED_TO_LI, HELD_BY_LI, DONE_BY_LI, UNPLACED], ids=lambda d: d.tasks[TASK].status)
def test_withdrawn_closes_whatever_its_state_and_frees_everybody(desk: Desk) -> None:
    assert when(desk, seen(WITHDRAWN)) == [TaskClosed(task_id=TASK, reason="withdrawn")]
    ended = after(desk, seen(WITHDRAWN))
    assert not ended.tasks
    assert not ended.by_request
    assert all(member.load == 0 for member in ended.members.values())


def test_withdrawn_again_or_never_known_leads_to_nothing() -> None:
    assert when(after(HELD_BY_LI, seen(WITHDRAWN)), seen(WITHDRAWN)) == []
    assert when(HELD_BY_LI, seen(RequestWithdrawn(request_id=id_of("elsewhere"), reason="x"))) == []


@pytest.mark.parametrize("desk", [OFFERED_TO_LI, HELD_BY_LI, DONE_BY_LI, UNPLACED], ids=lambda d: d.tasks[TASK].status)
def test_reopened_closes_the_old_round_whatever_its_state(desk: Desk) -> None:
    closed, opened, *_ = when(desk, seen(REOPENED))
    assert closed == TaskClosed(task_id=TASK, reason="reopened")
    assert isinstance(opened, TaskOpened)
    again = after(desk, seen(REOPENED))
    assert set(again.tasks) == {SECOND_ROUND}
    assert sum(member.load for member in again.members.values()) == (10 if again.members else 0)


def test_a_closed_round_is_remembered_for_a_day_and_then_forgotten() -> None:
    def turn(at: timedelta) -> Envelope:
        fact = TurnCommitted(position=Position(created="x", sequence=1), by="d-1", epoch=1, facts=0)
        return envelope(fact, at=NOW + at, area="-")

    desk = after(OFFERED_TO_LI, seen(WITHDRAWN))
    for hours in (0, 23, 24, 47):
        desk = fold(desk, turn(timedelta(hours=hours)))
        assert desk.ended(TASK) == "closed"
    assert fold(desk, turn(timedelta(hours=48))).ended(TASK) is None


def test_a_reopened_request_can_be_rated_in_its_new_round() -> None:
    desk = after(DONE_BY_LI, seen(REOPENED), asked(Accept(task=SECOND_ROUND, member=LI)))
    desk = after(desk, asked(Done(task=SECOND_ROUND, member=LI)))
    assert when(desk, seen(RATED)) == [TaskClosed(task_id=SECOND_ROUND, reason="rated")]
    assert decision(desk, seen(RATED)).facts[0].case == RATED.request_id
