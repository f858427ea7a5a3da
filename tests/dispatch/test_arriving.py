"""到场: the holder is on the spot."""

from services.dispatch.commands import Accept, Arrive, Done
from shared.facts import TaskArrived
from tests.dispatch.telling import after, asked, decision, given, refusal, seen, when
from tests.examples import LI, TASK, TEAM, WANG, id_of, member, submitted

OFFERED_TO_LI = after(given(*TEAM), seen(submitted()))
HELD_BY_LI = after(OFFERED_TO_LI, asked(Accept(task=TASK, member=LI)))
LI_ARRIVES = asked(Arrive(task=TASK, member=LI), by=member(LI))
LI_IS_THERE = after(HELD_BY_LI, LI_ARRIVES)


def test_the_holder_arrives() -> None:
    assert when(HELD_BY_LI, LI_ARRIVES) == [TaskArrived(task_id=TASK, member_id=LI)]
    assert LI_IS_THERE.tasks[TASK].status == "arrived"


def test_the_same_command_again_has_the_same_answer_and_no_second_fact() -> None:
    assert when(LI_IS_THERE, LI_ARRIVES) == []
    assert decision(LI_IS_THERE, LI_ARRIVES).answer == decision(HELD_BY_LI, LI_ARRIVES).answer


def test_arriving_twice_changes_nothing() -> None:
    assert when(LI_IS_THERE, asked(Arrive(task=TASK, member=LI), id=id_of("again"))) == []


def test_who_does_not_hold_it_cannot_arrive() -> None:
    assert refusal(OFFERED_TO_LI, LI_ARRIVES) == "not_holder"
    assert refusal(HELD_BY_LI, asked(Arrive(task=TASK, member=WANG))) == "not_holder"


def test_nobody_arrives_at_what_is_done() -> None:
    done = after(HELD_BY_LI, asked(Done(task=TASK, member=LI)))
    assert refusal(done, LI_ARRIVES) == "wrong_state"


def test_nobody_arrives_at_what_never_was() -> None:
    assert refusal(given(), LI_ARRIVES) == "unknown_task"
