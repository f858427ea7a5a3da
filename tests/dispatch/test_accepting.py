"""接单: the first yes of somebody who was asked."""

from services.dispatch.commands import Accept, Decline, Done, Leave, Offer
from shared.auth import Caller
from shared.facts import TaskAccepted
from tests.dispatch.telling import after, asked, decision, due, given, refusal, seen, when
from tests.examples import (
    DISPATCHER,
    LI,
    NOW,
    OFFER,
    TASK,
    TEAM,
    WANG,
    WITHDRAWN,
    WUCHANG,
    ZHAO,
    id_of,
    member,
    submitted,
)

SUPERVISOR = Caller("staff-2", WUCHANG, frozenset({"supervisor"}))
OFFERED_TO_LI = after(given(*TEAM), seen(submitted()))
LI_ACCEPTS = asked(Accept(task=TASK, member=LI), by=member(LI))
HELD_BY_LI = after(OFFERED_TO_LI, LI_ACCEPTS)


def test_who_was_asked_may_accept() -> None:
    assert when(OFFERED_TO_LI, LI_ACCEPTS) == [TaskAccepted(task_id=TASK, member_id=LI)]
    task = HELD_BY_LI.tasks[TASK]
    assert (task.status, task.holder, task.offered, task.until) == ("accepted", LI, (), None)
    assert HELD_BY_LI.members[LI].load == 10


def test_the_fact_names_who_acted_and_by_which_command() -> None:
    (fact,) = decision(OFFERED_TO_LI, LI_ACCEPTS).facts
    assert (fact.actor, fact.cause, fact.time) == ("member:m-li", LI_ACCEPTS.id, NOW)


def test_the_same_command_again_has_the_same_answer_and_no_second_fact() -> None:
    assert when(HELD_BY_LI, LI_ACCEPTS) == []
    assert decision(HELD_BY_LI, LI_ACCEPTS).answer == decision(OFFERED_TO_LI, LI_ACCEPTS).answer


def test_another_callers_command_with_the_same_id_gets_no_answer_of_somebody_else() -> None:
    by_staff = asked(Accept(task=TASK, member=LI), id=LI_ACCEPTS.id)
    assert decision(HELD_BY_LI, by_staff).answer == {"ok": True, "facts": 0}
    offered = seen(submitted(2), sequence=2)
    by_wang = asked(Decline(task=TASK, member=WANG), by=member(WANG), id=LI_ACCEPTS.id)
    assert refusal(after(HELD_BY_LI, offered), by_wang) == "not_offered"


def test_two_callers_who_chose_one_id_lead_to_facts_of_their_own() -> None:
    staff, other = (asked(Offer(task=TASK, member=WANG), by=by, id=id_of("x")) for by in (DISPATCHER, SUPERVISOR))
    ids = [{fact.id for fact in decision(OFFERED_TO_LI, command).facts} for command in (staff, other)]
    assert not ids[0] & ids[1]


def test_an_id_is_for_one_command() -> None:
    """A client that gives another command the id of an earlier one is told so, and not what the earlier one led to."""
    again = asked(Done(task=TASK, member=LI), by=member(LI), id=LI_ACCEPTS.id)
    assert refusal(HELD_BY_LI, again) == "key_reused"


def test_the_id_of_a_closed_task_is_no_command() -> None:
    closed = after(OFFERED_TO_LI, seen(WITHDRAWN))
    assert refusal(closed, asked(Accept(task=TASK, member=LI), id=TASK)) == "wrong_state"
    assert closed.answered(TASK, DISPATCHER.actor) is None


def test_a_second_yes_from_the_holder_changes_nothing() -> None:
    again = asked(Accept(task=TASK, member=LI), by=member(LI), id=id_of("another command"))
    assert when(HELD_BY_LI, again) == []
    assert decision(HELD_BY_LI, again).answer == {"ok": True, "facts": 0}


def test_a_yes_that_comes_after_another_is_refused() -> None:
    assert refusal(HELD_BY_LI, asked(Accept(task=TASK, member=WANG))) == "already_taken"


def test_a_yes_of_somebody_who_was_not_asked_is_refused() -> None:
    assert refusal(OFFERED_TO_LI, asked(Accept(task=TASK, member=WANG))) == "not_offered"


def test_a_yes_that_comes_after_the_offer_ran_out_is_refused() -> None:
    late = after(OFFERED_TO_LI, due(NOW + OFFER), now=NOW + OFFER)
    assert refusal(late, LI_ACCEPTS) == "not_offered"


def test_a_yes_that_comes_as_the_offer_runs_out_holds_when_it_is_first() -> None:
    assert when(HELD_BY_LI, due(NOW + OFFER), NOW + OFFER) == []


def test_a_yes_to_what_was_withdrawn_is_refused() -> None:
    assert refusal(after(OFFERED_TO_LI, seen(WITHDRAWN)), LI_ACCEPTS) == "wrong_state"


def test_a_yes_to_what_never_was_is_refused() -> None:
    assert refusal(given(*TEAM), LI_ACCEPTS) == "unknown_task"


def test_a_repeat_after_the_end_still_has_its_answer() -> None:
    ended = after(HELD_BY_LI, asked(Done(task=TASK, member=LI)), seen(WITHDRAWN))
    assert decision(ended, LI_ACCEPTS).answer == decision(OFFERED_TO_LI, LI_ACCEPTS).answer


def test_who_has_left_may_still_take_what_they_were_asked() -> None:
    left = after(OFFERED_TO_LI, asked(Leave(member=LI)))
    assert when(left, LI_ACCEPTS) == [TaskAccepted(task_id=TASK, member_id=LI)]


def test_of_two_who_were_asked_one_after_the_other_only_the_second_may_accept() -> None:
    by_hand = after(OFFERED_TO_LI, asked(Offer(task=TASK, member=ZHAO)))
    assert refusal(by_hand, LI_ACCEPTS) == "not_offered"
    assert when(by_hand, asked(Accept(task=TASK, member=ZHAO))) == [TaskAccepted(task_id=TASK, member_id=ZHAO)]
