"""拒单: a no carries a reason, and the next is asked."""

from services.dispatch.commands import Accept, Decline
from shared.facts import TaskDeclined, TaskOffered, TaskUnplaced
from tests.dispatch.telling import after, asked, decision, due, given, refusal, seen, when
from tests.examples import LI, NOW, OFFER, TASK, TEAM, WANG, ZHAO, enrolled, id_of, member, submitted

OFFERED_TO_LI = after(given(*TEAM), seen(submitted()))
LI_DECLINES = asked(Decline(task=TASK, member=LI, reason="too_far"), by=member(LI))


def test_a_no_is_kept_with_its_reason_and_the_next_is_asked_in_the_same_turn() -> None:
    declined, offered = when(OFFERED_TO_LI, LI_DECLINES)
    assert declined == TaskDeclined(task_id=TASK, member_id=LI, reason="too_far")
    assert isinstance(offered, TaskOffered)
    assert (offered.members, offered.wave) == ((WANG,), 2)


def test_the_last_no_makes_the_task_unplaced() -> None:
    desk = after(given(enrolled(LI)), seen(submitted()))
    declined, unplaced = when(desk, LI_DECLINES)
    assert isinstance(declined, TaskDeclined)
    assert isinstance(unplaced, TaskUnplaced)


def test_a_no_frees_the_load() -> None:
    desk = after(OFFERED_TO_LI, LI_DECLINES)
    assert {id: m.load for id, m in desk.members.items()} == {LI: 0, WANG: 10, ZHAO: 0}


def test_the_same_command_again_has_the_same_answer_and_no_second_fact() -> None:
    desk = after(OFFERED_TO_LI, LI_DECLINES)
    assert when(desk, LI_DECLINES) == []
    assert decision(desk, LI_DECLINES).answer == decision(OFFERED_TO_LI, LI_DECLINES).answer


def test_a_second_no_changes_nothing() -> None:
    desk = after(OFFERED_TO_LI, LI_DECLINES)
    assert when(desk, asked(Decline(task=TASK, member=LI), by=member(LI), id=id_of("again"))) == []


def test_a_no_that_comes_too_late_to_matter_changes_nothing() -> None:
    desk = after(OFFERED_TO_LI, due(NOW + OFFER), now=NOW + OFFER)
    assert when(desk, LI_DECLINES) == []


def test_a_no_of_somebody_who_was_not_asked_is_refused() -> None:
    assert refusal(OFFERED_TO_LI, asked(Decline(task=TASK, member=ZHAO))) == "not_offered"


def test_a_no_of_the_holder_is_refused() -> None:
    held = after(OFFERED_TO_LI, asked(Accept(task=TASK, member=LI)))
    assert refusal(held, LI_DECLINES) == "not_offered"


def test_a_no_to_what_never_was_is_refused() -> None:
    assert refusal(given(*TEAM), LI_DECLINES) == "unknown_task"


def test_who_said_no_is_not_asked_again_by_the_desk() -> None:
    desk = after(given(enrolled(LI), enrolled(WANG)), seen(submitted()), LI_DECLINES)
    assert [type(fact) for fact in when(desk, asked(Decline(task=TASK, member=WANG)))] == [TaskDeclined, TaskUnplaced]
