"""What an answer leads to: the desk's facts tell, whatever ended in between."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from services.notify.decide import answerable, reply_id
from services.notify.model import ACCEPTED, ARRIVED, OFFERED, Post, Reply, Verb
from shared.envelope import Envelope
from shared.errors import RefusedError
from shared.facts import Fact, NoticeAnswered, NoticeQueued, TaskAccepted, TaskArrived, TaskDeclined, TaskDone
from tests.notify.examples import (
    LI,
    NOON,
    TASK,
    WANG,
    accepted,
    closed,
    fact_of_the_desk,
    given,
    offered,
    refold,
    told,
    when,
)


def notice_of(post: Post, template: str = OFFERED, member: str = LI) -> str:
    """The id of what they may answer."""
    return next(id for id, reply in post.replies.items() if (reply.template, reply.member) == (template, member))


def by_code(
    post: Post, fact: Fact, verb: Verb, *, template: str = OFFERED, via: str = "sms", actor: str = LI
) -> Envelope:
    """A fact of the desk that came of a code."""
    cause = reply_id(notice_of(post, template), verb, via)
    return replace(fact_of_the_desk(fact), cause=cause, actor=f"member:{actor}")


ACCEPTS, DECLINES = TaskAccepted(task_id=TASK, member_id=LI), TaskDeclined(task_id=TASK, member_id=LI, reason="too_far")
ARRIVES, FINISHES = TaskArrived(task_id=TASK, member_id=LI), TaskDone(task_id=TASK, member_id=LI, outcome="solved")


def test_a_yes_by_code_uses_it_up_and_the_next_message_holds_the_next_code() -> None:
    post = given(offered(LI))
    after, facts = when(post, by_code(post, ACCEPTS, "accept"))
    answered, queued = (one.fact for one in facts)
    assert answered == NoticeAnswered(notice_id=notice_of(post), verb="accept", via="sms")
    assert isinstance(queued, NoticeQueued)
    assert (queued.recipient, queued.template, queued.urgent) == (LI, ACCEPTED, True)
    assert after.replies[notice_of(post)].used == "accept"
    assert refold(facts, replace(post, tasks=after.tasks)).replies == after.replies


def test_the_whole_way_by_codes() -> None:
    post = given(offered(LI))
    post, _ = when(post, by_code(post, ACCEPTS, "accept"))
    post, facts = when(post, by_code(post, ARRIVES, "arrive", template=ACCEPTED))
    assert told(facts) == [(LI, ARRIVED)]
    post, facts = when(post, by_code(post, FINISHES, "done", template=ARRIVED))
    assert [type(one.fact) for one in facts] == [NoticeAnswered]
    assert {reply.used for reply in post.replies.values()} == {"accept", "arrive", "done"}


def test_a_no_by_code_says_why_and_nothing_follows() -> None:
    post = given(offered(LI))
    _, (answered,) = when(post, by_code(post, DECLINES, "decline"))
    assert isinstance(answered.fact, NoticeAnswered)
    assert (answered.fact.verb, answered.fact.reason) == ("decline", "too_far")


def test_it_is_recorded_once_however_often_the_desk_says_so() -> None:
    post = given(offered(LI))
    fact = by_code(post, ACCEPTS, "accept")
    after, _ = when(post, fact)
    assert when(after, fact)[1] == []


def test_who_answers_in_their_app_gets_no_codes() -> None:
    _, facts = when(given(offered(LI, WANG)), accepted(LI))
    assert told(facts) == [(WANG, "taken")]


def test_somebody_else_who_names_a_reply_as_their_command_uses_nothing_up() -> None:
    post = given(offered(LI, WANG))
    for_them = replace(by_code(post, ACCEPTS, "accept"), actor="dispatcher:staff-1")
    assert not any(isinstance(one.fact, NoticeAnswered) for one in when(post, for_them)[1])
    as_wang = by_code(post, TaskAccepted(task_id=TASK, member_id=WANG), "accept", actor=WANG)
    assert not any(isinstance(one.fact, NoticeAnswered) for one in when(post, as_wang)[1])


def test_the_ids_of_commands_are_short_enough_for_a_desk() -> None:
    assert len(reply_id(notice_of(given(offered(LI))), "decline", "x" * 24)) <= 100


def reply(post: Post, template: str = OFFERED) -> Reply:
    """What a code of this kind stands for."""
    return post.replies[notice_of(post, template)]


def refusal(post: Post, verb: Verb, of: Reply, minutes: int = 0) -> str:
    """Why the desk is not asked."""
    with pytest.raises(RefusedError) as why:
        answerable(post, of, verb, NOON + timedelta(minutes=minutes))
    return why.value.code


def test_the_same_answer_again_is_the_same_answer_and_another_is_refused() -> None:
    post = given(offered(LI))
    assert answerable(post, reply(post), "accept", NOON)
    post, _ = when(post, by_code(post, ACCEPTS, "accept"))
    assert not answerable(post, reply(post), "accept", NOON + timedelta(days=1))  # also when the offer has long ended
    assert refusal(post, "decline", reply(post)) == "code_used"


def test_a_code_ends_with_its_offer_or_its_task() -> None:
    post = given(offered(LI))
    assert answerable(post, reply(post), "accept", NOON + timedelta(minutes=29))
    assert refusal(post, "accept", reply(post), minutes=30) == "code_expired"
    post, _ = when(post, by_code(post, ACCEPTS, "accept"))
    post, _ = when(post, closed("withdrawn"))
    assert refusal(post, "done", reply(post, ACCEPTED)) == "code_expired"


@pytest.mark.parametrize("verb", ["arrive", "done"])
def test_a_code_is_for_its_own_question(verb: Verb) -> None:
    post = given(offered(LI))
    assert refusal(post, verb, reply(post)) == "code_verb"
