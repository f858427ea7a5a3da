"""Who is told what."""

from __future__ import annotations

import pytest

from services.notify import model
from services.notify.decide import overtaken, supervisor
from shared.facts import NoticeQueued
from shared.ids import derived_id
from shared.turns import WORK_MAX
from tests.notify.examples import (
    AREA,
    LI,
    NOON,
    REQUEST,
    TASK,
    WANG,
    WUCHANG,
    ZHOU,
    accepted,
    closed,
    declined,
    expired,
    given,
    offered,
    refold,
    report,
    sent,
    told,
    unplaced,
    when,
)


def test_everybody_who_is_offered_a_task_is_told() -> None:
    _, facts = when(given(), offered(LI, WANG))
    assert told(facts) == [(LI, "offered"), (WANG, "offered")]


def test_a_notice_says_what_led_to_it_and_is_its_own_offices_affair() -> None:
    cause = offered(LI, urgency=2)
    assert cause.districts == "420106,420107"  # another office sees the case
    _, (queued,) = when(given(), cause)
    assert isinstance(queued.fact, NoticeQueued)
    assert queued.fact.cause == queued.cause == cause.id
    assert (queued.case, queued.area, queued.districts, queued.actor) == (REQUEST, AREA, WUCHANG, None)
    assert (queued.fact.task_id, queued.fact.item, queued.fact.urgent) == (TASK, "light.out", True)
    assert queued.subject == f"evt.{WUCHANG}.notify.{AREA}.notice.queued"


def test_deciding_again_gives_the_same_facts() -> None:
    assert when(given(), offered(LI, WANG))[1] == when(given(), offered(LI, WANG))[1]


def test_the_facts_alone_lead_to_the_same_state() -> None:
    before = given()
    after, facts = when(before, offered(LI, WANG), offered(ZHOU, n=1))
    assert refold(facts, before) == after


def test_when_one_accepts_the_others_hear_that_it_is_taken() -> None:
    _, facts = when(given(offered(LI, WANG, ZHOU)), accepted(LI))
    assert told(facts) == [(WANG, "taken"), (ZHOU, "taken")]


def test_who_said_no_need_not_hear_that_it_is_taken() -> None:
    _, facts = when(given(offered(LI, WANG), declined(WANG)), accepted(LI))
    assert told(facts) == []


def test_who_was_never_told_of_an_offer_does_not_hear_that_it_is_taken() -> None:
    waiting, _ = when(given(), offered(LI, WANG))
    after, facts = when(waiting, accepted(LI))
    assert facts == []
    assert {overtaken(after, notice, NOON) for notice in after.notices.values()} == {"taken"}  # for the sender to drop


def test_what_was_on_its_way_when_the_offer_ended_counts_as_sent_and_its_recipient_hears_the_end() -> None:
    waiting, _ = when(given(), offered(LI, WANG))
    after, _ = when(waiting, accepted(LI))
    ids = {notice.recipient: notice.id for notice in after.notices.values()}
    _, facts = report(after, sent(ids[LI]), sent(ids[WANG]))
    assert [fact.fact.name for fact in facts] == ["notice.sent", "notice.sent", "notice.queued"]
    assert told(facts) == [(WANG, "taken")]


def test_nobody_hears_twice_that_it_is_over() -> None:
    _, facts = when(given(offered(LI, WANG), expired(LI)), accepted(WANG))
    assert told(facts) == []


def test_an_expired_offer_is_over_for_those_who_kept_silent() -> None:
    _, facts = when(given(offered(LI, WANG)), expired(LI))
    assert told(facts) == [(LI, "over")]


def test_an_offer_that_expires_before_it_went_out_is_dropped() -> None:
    waiting, _ = when(given(), offered(LI))
    after, facts = when(waiting, expired(LI))
    assert told(facts) == []
    assert not after.notices


def test_an_unplaced_task_is_told_to_the_supervisor() -> None:
    _, facts = when(given(offered(LI, urgency=3), expired(LI)), unplaced())
    assert told(facts) == [(supervisor(WUCHANG), "unplaced")]
    assert [(f.fact.item, f.fact.urgent) for f in facts if isinstance(f.fact, NoticeQueued)] == [("light.out", True)]


@pytest.mark.parametrize(("item", "says"), [("light.out", "light.out"), (None, "unknown")])
def test_an_unplaced_task_that_was_never_offered_is_told_with_what_the_fact_says(item: str | None, says: str) -> None:
    _, (queued,) = when(given(), unplaced(item, 2))
    assert isinstance(queued.fact, NoticeQueued)
    assert (queued.fact.item, queued.fact.urgent) == (says, True)


def test_a_withdrawn_request_is_told_to_whoever_holds_the_task() -> None:
    _, facts = when(given(offered(LI, WANG), accepted(LI)), closed("withdrawn"))
    assert told(facts) == [(LI, "withdrawn")]


def test_a_withdrawn_request_is_told_to_whoever_was_asked() -> None:
    _, facts = when(given(offered(LI, WANG), declined(WANG)), closed("withdrawn"))
    assert told(facts) == [(LI, "withdrawn")]


@pytest.mark.parametrize("reason", ["rated", "quiet", "reopened"])
def test_other_ends_are_told_to_nobody(reason: str) -> None:
    _, facts = when(given(offered(LI), accepted(LI)), closed(reason))
    assert facts == []


def test_catching_up_nobody_is_told_of_a_task_that_has_ended() -> None:
    _, facts = when(given(), offered(LI), accepted(LI), closed("rated"))
    assert told(facts) == []


def test_a_task_without_a_history_is_no_obstacle() -> None:
    for one in (accepted(LI), declined(LI), expired(LI), closed("withdrawn")):
        when(given(), one)


def test_closed_tasks_are_forgotten_but_not_in_the_turn_in_which_they_close() -> None:
    post = given(offered(LI), closed("quiet"))
    for n in range(WORK_MAX):
        post = model.take_in(post, closed("quiet", task=derived_id("other", n)))
    assert TASK in post.tasks
    for n in range(WORK_MAX, model.CLOSED_MAX):
        post = model.take_in(post, closed("quiet", task=derived_id("other", n)))
    assert TASK not in post.tasks
    assert len(post.tasks) == len(post.closed) <= model.CLOSED_MAX
