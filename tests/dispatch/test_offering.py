"""派单: who is asked, for how long, and what happens when nobody answers."""

from services.dispatch.commands import Accept, Decline, Enrol, Leave, Offer
from shared.facts import TaskExpired, TaskOffered, TaskOpened, TaskUnplaced
from tests.dispatch.telling import after, asked, decision, due, explanation, given, refusal, seen, when
from tests.examples import (
    LEAK,
    LI,
    MINUTE,
    NOW,
    OFFER,
    REQUEST,
    TASK,
    TEAM,
    WANG,
    WITHDRAWN,
    ZHAO,
    enrolled,
    id_of,
    member,
    submitted,
)

SUBMITTED = seen(submitted())
OFFERED_TO_LI = after(given(*TEAM), SUBMITTED)
UNPLACED = after(given(), SUBMITTED)
LATE = NOW + OFFER


def offers(facts: list[object]) -> list[tuple[str, ...]]:
    """Who was asked."""
    return [fact.members for fact in facts if isinstance(fact, TaskOffered)]


def test_an_offer_that_ran_out_goes_to_the_next_who_was_not_asked() -> None:
    expired, offered = when(OFFERED_TO_LI, due(LATE), LATE)
    assert expired == TaskExpired(task_id=TASK, wave=1, members=(LI,))
    assert isinstance(offered, TaskOffered)
    assert (offered.members, offered.wave, offered.until) == ((WANG,), 2, LATE + OFFER)


def test_an_offer_does_not_run_out_before_its_time() -> None:
    assert when(OFFERED_TO_LI, due(LATE), LATE - MINUTE) == []


def test_a_deadline_that_was_overtaken_leads_to_nothing() -> None:
    moved_on = after(OFFERED_TO_LI, due(LATE), now=LATE)
    assert when(moved_on, due(LATE), LATE) == []
    assert when(after(OFFERED_TO_LI, seen(WITHDRAWN)), due(LATE), LATE) == []


def test_after_the_last_wave_of_the_policy_the_task_is_unplaced() -> None:
    desk, now = after(given(*TEAM, enrolled("m-zz")), SUBMITTED), NOW
    for _ in range(2):
        now += OFFER
        desk = after(desk, due(now), now=now)
    assert desk.tasks[TASK].wave == 3
    expired, unplaced = when(desk, due(now + OFFER), now + OFFER)
    assert isinstance(expired, TaskExpired)
    assert isinstance(unplaced, TaskUnplaced)
    assert (unplaced.item, unplaced.urgency) == (LEAK, 0)


def test_nobody_left_is_unplaced_at_once_with_no_deadline() -> None:
    assert [type(fact) for fact in when(given(), SUBMITTED)] == [TaskOpened, TaskUnplaced]
    assert (UNPLACED.tasks[TASK].status, UNPLACED.tasks[TASK].until) == ("unplaced", None)


def test_an_offer_names_its_explanation() -> None:
    explained = explanation(given(*TEAM), SUBMITTED)
    (offered,) = (fact for fact in when(given(*TEAM), SUBMITTED) if isinstance(fact, TaskOffered))
    assert offered.match_id == explained.match_id
    assert explained.chosen == offered.members


def test_no_two_explanations_have_one_id() -> None:
    desk, now, ids = given(), NOW, []
    for work in (SUBMITTED, asked(Enrol(members=TEAM)), asked(Offer(task=TASK, member=LI)), due(LATE)):
        now = LATE if work == due(LATE) else now
        made = decision(desk, work, now)
        ids += [fact.fact.match_id for fact in made.facts if fact.fact.name == "match.explained"]  # type: ignore[attr-defined]
        desk = made.state
    assert len(ids) == len(set(ids)) == 3


def test_an_open_offer_counts_as_load() -> None:
    assert {id: m.load for id, m in OFFERED_TO_LI.members.items()} == {LI: 10, WANG: 0, ZHAO: 0}
    expired = after(OFFERED_TO_LI, due(LATE), now=LATE)
    assert {id: m.load for id, m in expired.members.items()} == {LI: 0, WANG: 10, ZHAO: 0}


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_a_dispatcher_asks_somebody_in_particular() -> None:
    expired, offered = when(OFFERED_TO_LI, asked(Offer(task=TASK, member=ZHAO)))
    assert expired == TaskExpired(task_id=TASK, wave=1, members=(LI,))
    assert isinstance(offered, TaskOffered)
    assert (offered.members, offered.wave) == ((ZHAO,), 2)


def test_a_task_that_was_unplaced_can_be_offered_by_hand() -> None:
    desk = after(UNPLACED, asked(Enrol(members=TEAM)))
    assert offers(list(when(desk, asked(Offer(task=TASK, member=WANG))))) == [(WANG,)]


def test_asking_who_has_been_asked_changes_nothing() -> None:
    assert when(OFFERED_TO_LI, asked(Offer(task=TASK, member=LI))) == []


def test_the_same_command_again_changes_nothing() -> None:
    command = asked(Offer(task=TASK, member=ZHAO))
    desk = after(OFFERED_TO_LI, command)
    assert when(desk, command) == []
    assert decision(desk, command).answer == decision(OFFERED_TO_LI, command).answer


def test_who_said_no_may_be_asked_again_by_hand() -> None:
    desk = after(OFFERED_TO_LI, asked(Decline(task=TASK, member=LI), by=member(LI)))
    assert offers(list(when(desk, asked(Offer(task=TASK, member=LI))))) == [(LI,)]


def test_capacity_holds_for_a_dispatcher_too() -> None:
    desk = given(*TEAM, enrolled("m-small", capacity=9))
    assert refusal(after(desk, SUBMITTED), asked(Offer(task=TASK, member="m-small"))) == "over_capacity"


def test_who_is_not_there_cannot_be_asked() -> None:
    gone = after(OFFERED_TO_LI, asked(Leave(member=ZHAO)))
    assert refusal(gone, asked(Offer(task=TASK, member=ZHAO))) == "unknown_member"
    assert refusal(gone, asked(Offer(task=TASK, member="m-nobody"))) == "unknown_member"


def test_what_is_held_is_not_offered() -> None:
    held = after(OFFERED_TO_LI, asked(Accept(task=TASK, member=LI)))
    assert refusal(held, asked(Offer(task=TASK, member=ZHAO))) == "already_taken"


def test_there_is_no_offering_what_does_not_exist() -> None:
    assert refusal(OFFERED_TO_LI, asked(Offer(task=id_of("?"), member=LI))) == "unknown_task"
    closed = after(OFFERED_TO_LI, seen(WITHDRAWN))
    assert refusal(closed, asked(Offer(task=TASK, member=LI))) == "wrong_state"
    assert REQUEST not in closed.by_request
