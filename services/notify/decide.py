"""Who is told what, and what a sender's report leads to: pure and synchronous."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from services.notify.model import (
    ACCEPTED,
    ANSWERS,
    ARRIVED,
    CANCELLED,
    CONFERRAL_ASKED,
    CONFERRAL_OPENED,
    CONFERRAL_OVERDUE,
    ENDED,
    FINISHED,
    GIVEN_AWAY,
    HANDOVER_ASKED,
    HANDOVER_OVER,
    HANDOVER_REFUSED,
    HELP_ASKED,
    HELP_LAPSED,
    HELP_OVER,
    LENT,
    MOVED,
    OFFERED,
    OVER,
    RECEIVED,
    TAKEN,
    UNDERWAY,
    UNPLACED,
    URGENT,
    VERBS,
    WITHDRAWN,
    Notice,
    Post,
    Reply,
    Verb,
    evolve,
    resident,
)
from shared.envelope import Envelope
from shared.errors import RefusedError
from shared.facts import (
    ConferralEnded,
    ConferralOpened,
    ConferralReceived,
    ConferralSettled,
    Fact,
    HandoverReceived,
    HandoverReturned,
    HandoverSettled,
    HelpAnswered,
    HelpLapsed,
    HelpReceived,
    HelpSeated,
    HelpSettled,
    NoticeAnswered,
    NoticeFailed,
    NoticeHeld,
    NoticeQueued,
    NoticeSent,
    TaskAccepted,
    TaskArrived,
    TaskClosed,
    TaskDeclined,
    TaskDone,
    TaskExpired,
    TaskHandedOver,
    TaskOffered,
    TaskOpened,
    TaskUnplaced,
)
from shared.ids import derived_id
from shared.turns import Command, Decision, Input, Work

ATTEMPTS_MAX = 10
"""Eight and a half minutes from the first to the last: a receiver may be restarted meanwhile."""
OVERTAKEN = "overtaken"
LATE = "late"
NO_CHANNEL = "none"
"""The channel of a notice that was given up before it reached one."""
ANY_ITEM = "unknown"
"""The item of a task of which notify was never told what it is about; the texts say "a request"."""


VIA = re.compile(r"[a-z][a-z0-9_]{0,23}")
"""By what an answer comes: `link`, or the webhook's name."""
REPLY = re.compile(rf"reply\.(?P<notice>[0-9a-f-]{{36}})\.(?P<verb>{'|'.join(VERBS)})\.(?P<via>{VIA.pattern})")


def supervisor(district: str) -> str:
    """The recipient of what nobody took: an office reaches whoever is on duty under this id."""
    return f"m-supervisor-{district}"


def reply_id(notice: str, verb: Verb, via: str) -> str:
    """
    The id of the command that an answer to a notice becomes. The same answer has the same id, so the desk does it once; its
    facts name it as their cause, and by that notify knows that the code is used up (`answered`).
    """
    return f"reply.{notice}.{verb}.{via}"


class Outcome(NamedTuple):
    """
    What became of one attempt to send.

    Attributes:
        attempt: which one, counted from 1: a report that comes late or twice changes nothing.
        result: `dropped` and `held` cost no attempt.
        code: why it failed or was dropped.
        until: the end of the quiet hours that hold it.
    """

    notice_id: str
    attempt: int
    result: Literal["sent", "failed", "dropped", "held"]
    channel: str = NO_CHANNEL
    code: str = ""
    until: datetime | None = None


class Report(NamedTuple):
    """A sender's command: these are the outcomes."""

    outcomes: tuple[Outcome, ...]


def decide(post: Post, work: Work, now: datetime) -> Decision[Post]:
    """The facts that follow from an input or a report, and the state after them."""
    match work:
        case Input(envelope=cause):
            facts = list(announce(post, cause, now))
        case Command(what=Report(outcomes=outcomes)):
            return record(post, outcomes, now)
        case _:
            facts = []
    for fact in facts:
        post = evolve(post, fact)
    return Decision(post, facts)


def backoff(failures: int) -> timedelta:
    """
    How long to wait before a message that could not be sent is tried again.

    Doubles from 1 s and stays at 300 s: a dead receiver is tried 288 times a day at most.

    Args:
        failures: so far, counted from 1.
    Raises:
        ValueError: failures < 1.
    """
    if failures < 1:
        raise ValueError(f"{failures} failures")
    return timedelta(seconds=min(300, 2 ** min(failures - 1, 9)))


# --- who is told what -------------------------------------------------------------------------------------------------


def announce(post: Post, cause: Envelope, now: datetime) -> Iterator[Envelope]:
    """Whom a desk's fact concerns: those who are to be told, and those who need not be told any more."""
    match cause.fact:
        case TaskOffered() as fact:
            task = post.task(fact.task_id)
            if not task.closed:
                for member in fact.members:
                    if member not in task.declined:
                        urgent = fact.urgency >= URGENT
                        yield _queue(cause, now, member, OFFERED, fact.task_id, fact.item, urgent, fact.until)
        case TaskOpened(task_id=id):
            yield from _tell_resident(post, cause, now, id, MOVED if post.task(id).moved else RECEIVED)
        case TaskAccepted(task_id=id, member_id=taker):
            yield from _tell(post, cause, now, id, (m for m in post.task(id).told if m != taker), TAKEN)
            yield from _tell_resident(post, cause, now, id, UNDERWAY)
            yield from _answered(post, cause, now, taker, ACCEPTED)
        case TaskDeclined(member_id=member):
            yield from _answered(post, cause, now, member)
        case TaskArrived(member_id=member):
            yield from _answered(post, cause, now, member, ARRIVED)
        case TaskDone(task_id=id, member_id=member):
            yield from _tell_resident(post, cause, now, id, FINISHED)
            yield from _answered(post, cause, now, member)
        case TaskExpired(task_id=id, members=members):
            task = post.task(id)
            yield from _called_back(post, (one for one in task.waiting if one[0] in members), now)
            yield from _tell(post, cause, now, id, (m for m in task.told if m in members), OVER)
        case TaskUnplaced(task_id=id) as fact:
            task = post.task(id)
            if not task.closed:
                urgent = task.urgent if fact.urgency is None else fact.urgency >= URGENT
                about = fact.item or task.item or ANY_ITEM
                yield _queue(cause, now, supervisor(post.district), UNPLACED, id, about, urgent, None)
        case TaskClosed(task_id=id, reason=reason):
            if reason == "withdrawn":
                yield from _tell(post, cause, now, id, post.task(id).concerned, WITHDRAWN)
                yield from _tell_resident(post, cause, now, id, CANCELLED)
            elif reason == "quiet":
                yield from _tell_resident(post, cause, now, id, ENDED)
        case TaskHandedOver(task_id=id) if cause.district == post.district:
            yield from _tell(post, cause, now, id, post.task(id).concerned, GIVEN_AWAY)
        case HandoverReceived(task_id=id) | HandoverReturned(task_id=id):
            received = isinstance(cause.fact, HandoverReceived)
            yield _tell_supervisor(post, cause, now, id, HANDOVER_ASKED if received else HANDOVER_REFUSED)
        case HandoverSettled(task_id=id):
            yield _tell_supervisor(post, cause, now, id, HANDOVER_OVER)
        case ConferralOpened(task_id=id):
            received = isinstance(cause.fact, ConferralReceived)
            yield _tell_supervisor(post, cause, now, id, CONFERRAL_ASKED if received else CONFERRAL_OPENED)
        case ConferralEnded(task_id=id, reason="overdue") | ConferralSettled(task_id=id, reason="overdue"):
            yield _tell_supervisor(post, cause, now, id, CONFERRAL_OVERDUE)
        case HelpReceived(task_id=id):
            yield _tell_supervisor(post, cause, now, id, HELP_ASKED)
        case HelpLapsed(task_id=id, reason="unanswered") | HelpAnswered(task_id=id, member_id=None):
            yield _tell_supervisor(post, cause, now, id, HELP_LAPSED)
        case HelpSeated(task_id=id, member_id=member):
            yield from _tell(post, cause, now, id, (member,), LENT)
        case HelpSettled(task_id=id, member_id=member):
            yield from _tell(post, cause, now, id, (member or supervisor(post.district),), HELP_OVER)
        case _:
            return


def _tell_resident(post: Post, cause: Envelope, now: datetime, task_id: str, template: str) -> Iterator[Envelope]:
    task = post.task(task_id)
    if task.resident:
        about = task.item or ANY_ITEM
        yield _queue(cause, now, resident(task.resident), template, task_id, about, task.urgent, None)


def _tell_supervisor(post: Post, cause: Envelope, now: datetime, task_id: str, template: str) -> Envelope:
    """What a question between offices is about is in its own fact; of an answer to one, it is known from the task."""
    task, said = post.task(task_id), cause.fact
    about = getattr(said, "item", None) or task.item or ANY_ITEM
    urgent = task.urgent or getattr(said, "urgency", 0) >= URGENT
    return _queue(cause, now, supervisor(post.district), template, task_id, about, urgent, None)


def _answered(post: Post, cause: Envelope, now: datetime, member: str, then: str | None = None) -> Iterator[Envelope]:
    """
    That a message was answered, where this fact of the desk came of its code and is the first, and the message with the next code.

    Who has just answered is awake: the next message does not wait for the end of quiet hours.
    """
    said = REPLY.fullmatch(cause.cause or "")
    reply = post.replies.get(said["notice"]) if said else None
    if said is None or reply is None or reply.used or reply.member != member or cause.actor != f"member:{member}":
        return
    reason = cause.fact.reason if isinstance(cause.fact, TaskDeclined) else None
    fact = NoticeAnswered.model_validate(
        {"notice_id": said["notice"], "verb": said["verb"], "reason": reason, "via": said["via"]}
    )
    id = derived_id(fact.name, fact.notice_id)
    yield Envelope(id, post.district, cause.area, now, fact, post.district, cause.case, cause.id)
    if then:
        yield _queue(cause, now, member, then, reply.task, reply.item, True, None)


def _tell(
    post: Post, cause: Envelope, now: datetime, task_id: str, members: Iterable[str], template: str
) -> Iterator[Envelope]:
    task = post.task(task_id)
    for member in members:
        if member not in task.declined:
            yield _queue(cause, now, member, template, task_id, task.item or ANY_ITEM, task.urgent, None)


def _called_back(post: Post, waiting: Iterable[tuple[str, str]], now: datetime) -> Iterator[Envelope]:
    """Offers that a dispatcher ended before their time and before they went out."""
    for _, id in waiting:
        if (notice := post.notices.get(id)) and notice.until and notice.until > now:
            yield _given_up(post, notice, OVERTAKEN, now)


def overtaken(post: Post, notice: Notice, now: datetime) -> str | None:
    """
    The template that says how an offer ended which this notice is about; None while it holds.

    Only the sender knows whether a message is on its way, so it drops what was overtaken, and what had left by then is reported
    as sent: then its recipient hears how it ended.
    """
    if notice.template != OFFERED:
        return None
    task = post.task(notice.task)
    if task.holder is not None:
        return TAKEN
    if task.closed:
        return WITHDRAWN
    return OVER if notice.until is not None and notice.until <= now else None


def _queue(
    cause: Envelope,
    now: datetime,
    recipient: str,
    template: str,
    task_id: str,
    item: str,
    urgent: bool,
    until: datetime | None,
) -> Envelope:
    own = cause.district  # whom an office tells is its own affair, also where another sees the case
    id = derived_id("notice", cause.id, recipient, template)
    fact = NoticeQueued(
        notice_id=id,
        cause=cause.id,
        recipient=recipient,
        template=template,
        task_id=task_id,
        item=item,
        area=cause.area,
        urgent=urgent,
        until=until,
    )
    return Envelope(id, own, cause.area, now, fact, own, cause.case, cause.id, traceparent=cause.traceparent)


# --- what members answer ----------------------------------------------------------------------------------------------


def answerable(post: Post, reply: Reply, verb: Verb, now: datetime) -> bool:
    """
    Whether the desk should be asked. False: this was the answer before, and it holds.

    Raises:
        RefusedError: `code_used`, `code_expired`, `code_verb`.
    """
    task = post.task(reply.task)
    if reply.used:
        if reply.used == verb:
            return False
        raise RefusedError("code_used")
    if task.closed or (reply.until is not None and reply.until <= now):
        raise RefusedError("code_expired")
    if verb not in ANSWERS[reply.template]:
        raise RefusedError("code_verb")
    return True


# --- what senders report ----------------------------------------------------------------------------------------------


def record(post: Post, outcomes: Iterable[Outcome], now: datetime) -> Decision[Post]:
    """The facts of a report. What it says of a notice that is over, or of another attempt than the next, is old."""
    facts: list[Envelope] = []
    for outcome in outcomes:
        notice = post.notices.get(outcome.notice_id)
        if notice is not None and outcome.attempt == notice.attempts + 1:
            for fact in _outcome(post, notice, outcome, now):
                post = evolve(post, fact)
                facts.append(fact)
    return Decision(post, facts, answer=len(facts))


def _outcome(post: Post, notice: Notice, outcome: Outcome, now: datetime) -> Iterator[Envelope]:
    match outcome.result:
        case "sent":
            sent = NoticeSent(notice_id=notice.id, channel=outcome.channel, attempt=outcome.attempt)
            yield _of(post, notice, sent, now, outcome.attempt)
            ended, task = overtaken(post, notice, now), post.task(notice.task)
            if ended and notice.recipient != task.holder and notice.recipient not in task.declined:
                yield _follow_up(post, notice, ended, now)
        case "held":
            assert outcome.until is not None
            held = NoticeHeld(notice_id=notice.id, until=outcome.until)
            yield _of(post, notice, held, now, notice.attempts, outcome.until)
        case "dropped":
            yield _given_up(post, notice, outcome.code, now)
        case "failed":
            again = outcome.attempt < ATTEMPTS_MAX
            failed = NoticeFailed(
                notice_id=notice.id,
                channel=outcome.channel,
                attempt=outcome.attempt,
                code=outcome.code,
                retry_at=now + backoff(outcome.attempt) if again else None,
            )
            yield _of(post, notice, failed, now, outcome.attempt)


def _follow_up(post: Post, notice: Notice, template: str, now: datetime) -> Envelope:
    """The end of an offer, for somebody who was told of it while it ended."""
    id = derived_id("notice", notice.cause, notice.recipient, template)
    fact = NoticeQueued(
        notice_id=id,
        cause=notice.cause,
        recipient=notice.recipient,
        template=template,
        task_id=notice.task,
        item=notice.item,
        area=notice.area,
        urgent=notice.urgent,
    )
    return Envelope(id, post.district, notice.area, now, fact, post.district, notice.case, notice.id)


def _given_up(post: Post, notice: Notice, code: str, now: datetime) -> Envelope:
    fact = NoticeFailed(notice_id=notice.id, channel=NO_CHANNEL, attempt=notice.attempts, code=code)
    return _of(post, notice, fact, now, notice.attempts, code)


def _of(post: Post, notice: Notice, fact: Fact, now: datetime, *which: object) -> Envelope:
    """A fact about a notice: named by what makes it that one."""
    id = derived_id(fact.name, notice.id, *which)
    return Envelope(id, post.district, notice.area, now, fact, post.district, notice.case, notice.id)
