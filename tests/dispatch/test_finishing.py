"""办结: the holder says it is done."""

from services.dispatch.commands import Accept, Arrive, Done
from shared.facts import TaskDone
from tests.dispatch.telling import after, asked, decision, given, refusal, seen, when
from tests.examples import LI, NOW, QUIET, TASK, TEAM, WANG, WITHDRAWN, id_of, member, submitted

OFFERED_TO_LI = after(given(*TEAM), seen(submitted()))
HELD_BY_LI = after(OFFERED_TO_LI, asked(Accept(task=TASK, member=LI)))
LI_IS_DONE = asked(Done(task=TASK, member=LI, outcome="repaired"), by=member(LI))
DONE_BY_LI = after(HELD_BY_LI, LI_IS_DONE)


def test_the_holder_is_done_with_or_without_having_arrived() -> None:
    arrived = after(HELD_BY_LI, asked(Arrive(task=TASK, member=LI)))
    for desk in (HELD_BY_LI, arrived):
        assert when(desk, LI_IS_DONE) == [TaskDone(task_id=TASK, member_id=LI, outcome="repaired")]


def test_being_done_frees_the_load_and_waits_for_a_rating_for_the_policys_time() -> None:
    task = DONE_BY_LI.tasks[TASK]
    assert (task.status, task.holder, task.until) == ("done", LI, NOW + QUIET)
    assert DONE_BY_LI.members[LI].load == 0


def test_the_same_command_again_has_the_same_answer_and_no_second_fact() -> None:
    assert when(DONE_BY_LI, LI_IS_DONE) == []
    assert decision(DONE_BY_LI, LI_IS_DONE).answer == decision(HELD_BY_LI, LI_IS_DONE).answer


def test_being_done_twice_changes_nothing() -> None:
    assert when(DONE_BY_LI, asked(Done(task=TASK, member=LI), id=id_of("again"))) == []


def test_who_does_not_hold_it_cannot_finish_it() -> None:
    assert refusal(OFFERED_TO_LI, LI_IS_DONE) == "not_holder"
    assert refusal(HELD_BY_LI, asked(Done(task=TASK, member=WANG))) == "not_holder"


def test_what_was_withdrawn_cannot_be_finished() -> None:
    assert refusal(after(HELD_BY_LI, seen(WITHDRAWN)), LI_IS_DONE) == "wrong_state"
