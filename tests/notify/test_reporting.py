"""What a sender's report leads to."""

from __future__ import annotations

from datetime import timedelta

import orjson
import pytest

from services.notify import model
from services.notify.decide import ATTEMPTS_MAX, Outcome, backoff
from services.notify.model import OFFERED
from shared.envelope import OPTIONS
from shared.facts import NoticeFailed, NoticeHeld, NoticeSent, plain
from tests.notify.examples import (
    LI,
    NOON,
    POLICY,
    REGISTER,
    TASK,
    WANG,
    accepted,
    failed,
    given,
    offered,
    only,
    refold,
    report,
    sent,
    when,
)


def test_a_message_that_was_sent_is_forgotten_at_once_and_counted() -> None:
    post, _ = when(given(), offered(LI))
    after, (fact,) = report(post, sent(only(post).id))
    assert fact.fact == NoticeSent(notice_id=only(post).id, channel="wecom", attempt=1)
    assert (len(after.notices), len(after.numbers), dict(after.sent)) == (0, 0, {"wecom": 1})
    assert after.tasks[TASK].told == (LI,)


def test_a_report_that_comes_twice_changes_nothing() -> None:
    post, _ = when(given(), offered(LI))
    after, _ = report(post, sent(only(post).id))
    assert report(after, sent(only(post).id)) == (after, [])
    assert len(report(post, sent(only(post).id), sent(only(post).id))[1]) == 1


def test_a_report_of_an_earlier_attempt_changes_nothing() -> None:
    post, _ = when(given(), offered(LI))
    after, _ = report(post, failed(only(post).id))
    assert report(after, failed(only(post).id, attempt=1)) == (after, [])


def test_an_offer_that_was_overtaken_before_it_went_out_is_given_up() -> None:
    post, _ = when(given(), offered(LI))
    after, _ = when(post, accepted(WANG))
    _, (fact,) = report(after, Outcome(only(post).id, 1, "dropped", code="overtaken"))
    assert fact.fact == NoticeFailed(notice_id=only(post).id, channel="none", attempt=0, code="overtaken")


def test_a_receiver_may_be_away_for_eight_minutes() -> None:
    assert timedelta(minutes=8) < sum(map(backoff, range(1, ATTEMPTS_MAX)), timedelta()) < timedelta(minutes=10)


def test_a_failure_is_tried_again_with_growing_delay_and_given_up_in_the_end() -> None:
    post, _ = when(given(), offered(LI))
    id = only(post).id
    delays = []
    for attempt in range(1, ATTEMPTS_MAX + 1):
        post, (fact,) = report(post, failed(id, attempt))
        assert isinstance(fact.fact, NoticeFailed)
        delays.append(fact.fact.retry_at and (fact.fact.retry_at - NOON) / timedelta(seconds=1))
    assert delays == [1, 2, 4, 8, 16, 32, 64, 128, 256, None]
    assert (len(post.notices), dict(post.failed)) == (0, {"refused": 1})
    assert post.tasks[TASK].told == ()


def test_the_delay_doubles_from_a_second_and_stays_at_five_minutes() -> None:
    assert [backoff(n).total_seconds() for n in (1, 2, 3, 9, 10, 99)] == [1, 2, 4, 256, 300, 300]
    with pytest.raises(ValueError, match="0 failures"):
        backoff(0)


def test_a_late_offer_is_given_up_without_an_attempt() -> None:
    post, _ = when(given(), offered(LI))
    after, (fact,) = report(post, Outcome(only(post).id, 1, "dropped", code="late"))
    assert fact.fact == NoticeFailed(notice_id=only(post).id, channel="none", attempt=0, code="late")
    assert not after.notices


def test_a_held_message_waits_and_costs_no_attempt() -> None:
    post, _ = when(given(), offered(LI))
    morning = NOON + timedelta(hours=19)
    after, (fact,) = report(post, Outcome(only(post).id, 1, "held", until=morning))
    assert fact.fact == NoticeHeld(notice_id=only(post).id, until=morning)
    assert (only(after).due, only(after).held, only(after).attempts) == (morning, True, 0)


def test_the_facts_of_a_report_alone_lead_to_the_same_state() -> None:
    before, _ = when(given(), offered(LI, WANG))
    one, other = sorted(before.notices)
    after, facts = report(before, sent(one), failed(other))
    assert refold(facts, before) == after


def test_a_snapshot_gives_the_same_state() -> None:
    post, _ = when(given(offered(LI, WANG), register=(*REGISTER, POLICY)), offered(LI, n=1), accepted(WANG))
    post, _ = when(post, offered(WANG, n=2))
    post, _ = report(post, failed(next(iter(post.notices))))
    assert {notice.template for notice in post.notices.values()} >= {OFFERED}
    data = orjson.dumps(model.dump(post), default=plain, option=OPTIONS | orjson.OPT_NON_STR_KEYS)
    assert model.load(orjson.loads(data)) == post
