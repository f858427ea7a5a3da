"""
What notify knows of a district, from facts alone: who waits for which message, who was told of which task, and which messages
may be answered.

A message that was sent, or will not be tried again, is forgotten at once: an input is decided on once, so nothing has to be
remembered to keep it from being told twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal, get_args

from immutables import Map

from shared import register as registers
from shared.envelope import Envelope
from shared.facts import (
    AreaSet,
    HandoverReceived,
    HandoverRefused,
    HandoverSettled,
    HelpReceived,
    HelpSettled,
    MemberEnrolled,
    NoticeAnswered,
    NoticeFailed,
    NoticeHeld,
    NoticeQueued,
    NoticeSent,
    RequestSubmitted,
    TaskAccepted,
    TaskClosed,
    TaskDeclined,
    TaskHandedOver,
    TaskOpened,
)
from shared.register import Register

OFFERED = "offered"
TAKEN = "taken"
OVER = "over"
WITHDRAWN = "withdrawn"
GIVEN_AWAY = "given_away"
ACCEPTED = "accepted"
ARRIVED = "arrived"
UNPLACED = "unplaced"
LENT = "lent"
HANDOVER_ASKED = "handover_asked"
HANDOVER_REFUSED = "handover_refused"
HANDOVER_OVER = "handover_over"
CONFERRAL_OPENED = "conferral_opened"
CONFERRAL_ASKED = "conferral_asked"
CONFERRAL_OVERDUE = "conferral_overdue"
HELP_ASKED = "help_asked"
HELP_LAPSED = "help_lapsed"
HELP_OVER = "help_over"
TO_MEMBERS = (OFFERED, TAKEN, OVER, WITHDRAWN, GIVEN_AWAY, ACCEPTED, ARRIVED, LENT, HELP_OVER)
TO_SUPERVISORS = (
    *(UNPLACED, HANDOVER_ASKED, HANDOVER_REFUSED, HANDOVER_OVER, HELP_ASKED, HELP_LAPSED),
    *(CONFERRAL_OPENED, CONFERRAL_ASKED, CONFERRAL_OVERDUE),
)

RECEIVED = "received"
UNDERWAY = "underway"
FINISHED = "finished"
MOVED = "moved"
CANCELLED = "cancelled"
ENDED = "ended"
TO_RESIDENTS = (RECEIVED, UNDERWAY, FINISHED, MOVED, CANCELLED, ENDED)
TEMPLATES = (*TO_MEMBERS, *TO_SUPERVISORS, *TO_RESIDENTS)

Verb = Literal["accept", "decline", "arrive", "done"]
VERBS: tuple[Verb, ...] = get_args(Verb)
ANSWERS: Mapping[str, tuple[Verb, ...]] = {
    OFFERED: ("accept", "decline"),
    ACCEPTED: ("arrive", "done"),
    ARRIVED: ("done",),
}
"""What a member may answer to a message, by its template."""
UNREACHABLE = "unreachable"
"""Why a message to a resident was given up: they gave no contact that leads anywhere, or it is erased. They are told nothing more."""

URGENT = 2
"""From this urgency on a message breaks through quiet hours."""
CLOSED_MAX = 2000
"""
How many closed tasks are kept before the older half goes.

Inputs are taken in a whole turn at a time, before any is decided on, and a turn takes 500 at most: a task that closes must
still be there when what came before its end is decided on.
"""


RESIDENT = "r-"
"""How a resident's id as a recipient begins."""


def resident(request: str) -> str:
    """The recipient who made this request."""
    return RESIDENT + request


@dataclass(frozen=True, slots=True)
class Notice:
    """
    A message that waits.

    Attributes:
        number: 1, 2, 3… in the order they were queued: by it a sender finds what is new.
        cause: the id of the fact that led to it.
        until: an offer's end; afterwards nobody needs to hear of it.
        due: when it may go out: at once, after a failure's delay, or at the end of quiet hours.
        attempts: so far.
        held: it leaves in the recipient's digest.
    """

    id: str
    number: int
    cause: str
    case: str | None
    recipient: str
    template: str
    task: str
    item: str
    area: str
    urgent: bool
    until: datetime | None
    queued: datetime
    due: datetime
    attempts: int = 0
    held: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """
    Who knows of a task.

    Attributes:
        waiting: members whose offer has not gone out, each with their notice.
        told: members whose offer has gone out and who have not been told that it ended.
        declined: members who said no; they need not hear the rest.
        resident: the request, where its resident may have left a contact: they are told how it goes.
        moved: another office has handed it over to this one.
    """

    item: str | None = None
    urgent: bool = False
    waiting: tuple[tuple[str, str], ...] = ()
    told: tuple[str, ...] = ()
    declined: tuple[str, ...] = ()
    holder: str | None = None
    closed: bool = False
    resident: str | None = None
    moved: bool = False

    @property
    def concerned(self) -> tuple[str, ...]:
        """Who is to hear that it is over: who was told of it, and who holds it."""
        return self.told if self.holder is None or self.holder in self.told else (*self.told, self.holder)


@dataclass(frozen=True, slots=True)
class Reply:
    """
    What a member may still answer to a message: what its one-time code stands for.

    Attributes:
        until: an offer's end.
        used: what they answered; the code is good for nothing else then.
    """

    member: str
    template: str
    task: str
    item: str
    area: str
    until: datetime | None = None
    used: Verb | None = None


NO_TASK = Task()


@dataclass(frozen=True)
class Post:
    """
    The state of one district: what is to be sent, and what the texts are made of.

    Attributes:
        last: the number of the newest notice.
        numbers: the ids of waiting notices by number.
        closed: tasks that ended, oldest first.
        asking: requests with a sealed contact whose task has not been opened yet.
        kinds: what kind of member somebody is: residents hear of them by it.
        replies: by notice; they go with their task.
        sent: messages by channel; `failed`: given up, by code.
    """

    district: str
    register: Register = field(default_factory=Register)
    notices: Map[str, Notice] = field(default_factory=Map)
    numbers: Map[int, str] = field(default_factory=Map)
    last: int = 0
    tasks: Map[str, Task] = field(default_factory=Map)
    closed: tuple[str, ...] = ()
    asking: Map[str, None] = field(default_factory=Map)
    kinds: Map[str, str] = field(default_factory=Map)
    replies: Map[str, Reply] = field(default_factory=Map)
    sent: Map[str, int] = field(default_factory=Map)
    failed: Map[str, int] = field(default_factory=Map)

    def task(self, id: str) -> Task:
        """What is known of a task, perhaps nothing."""
        return self.tasks.get(id, NO_TASK)


def initial(district: str) -> Post:
    """Nobody waits for anything."""
    return Post(district)


def take_in(post: Post, envelope: Envelope) -> Post:
    """An input that changes what is known before anything is decided: the register, who asked, and what members did with a task."""
    match envelope.fact:
        case RequestSubmitted(request_id=request, sealed=sealed):
            if sealed is None or "contact" not in sealed.parts:
                return post
            return replace(post, asking=post.asking.set(request, None))
        case TaskOpened(task_id=id, request_id=request) as fact:
            return _opened(post, id, request, fact)
        case TaskHandedOver() as fact if fact.to == post.district:
            task = post.task(fact.new_task_id)
            moved = replace(task, item=fact.item, urgent=fact.urgency >= URGENT, resident=fact.request_id, moved=True)
            return _with(_closed(post, fact.task_id), fact.new_task_id, moved)
        case TaskHandedOver(task_id=id):
            return _closed(post, id) if envelope.district == post.district else post
        case (
            HandoverReceived(task_id=id, item=item, urgency=urgency)
            | HelpReceived(task_id=id, item=item, urgency=urgency)
        ):
            return _with(post, id, replace(post.task(id), item=item, urgent=urgency >= URGENT))
        case HandoverRefused(task_id=id) | HandoverSettled(task_id=id) | HelpSettled(task_id=id):
            return _closed(post, id)
        case MemberEnrolled(member_id=member, kind=kind):
            return replace(post, kinds=post.kinds.set(member, kind))
        case TaskAccepted(task_id=id, member_id=member):
            return _with(post, id, replace(post.task(id), holder=member))
        case TaskDeclined(task_id=id, member_id=member):
            task = post.task(id)
            return _with(post, id, replace(task, declined=(*task.declined, member)))
        case TaskClosed(task_id=id):
            return _closed(post, id)
        case AreaSet() as fact:  # polygons and address words are of no use here
            return replace(
                post, register=registers.evolve(post.register, fact.model_copy(update={"polygon": (), "words": ()}))
            )
        case fact:
            changed = registers.evolve(post.register, fact)
            return post if changed is post.register else replace(post, register=changed)


def evolve(post: Post, envelope: Envelope) -> Post:
    """The state after one more of its own facts."""
    match envelope.fact:
        case NoticeQueued() as fact:
            return _queued(post, envelope, fact)
        case NoticeSent(notice_id=id, channel=channel) if id in post.notices:
            return _over(post, post.notices[id], sent=post.sent.set(channel, post.sent.get(channel, 0) + 1))
        case NoticeFailed(notice_id=id, retry_at=None, code=code) if id in post.notices:
            if code == UNREACHABLE and (task := post.tasks.get(post.notices[id].task)):
                post = _with(post, post.notices[id].task, replace(task, resident=None))
            return _over(post, post.notices[id], failed=post.failed.set(code, post.failed.get(code, 0) + 1))
        case NoticeFailed(notice_id=id, retry_at=datetime() as at, attempt=attempt) if id in post.notices:
            return _waits(post, replace(post.notices[id], due=at, attempts=attempt))
        case NoticeHeld(notice_id=id, until=until) if id in post.notices:
            return _waits(post, replace(post.notices[id], due=until, held=True))
        case NoticeAnswered(notice_id=id, verb=verb) if id in post.replies:
            return replace(post, replies=post.replies.set(id, replace(post.replies[id], used=verb)))
        case _:
            return post


def _queued(post: Post, envelope: Envelope, fact: NoticeQueued) -> Post:
    number = post.last + 1
    notice = Notice(
        id=fact.notice_id,
        number=number,
        cause=fact.cause,
        case=envelope.case,
        recipient=fact.recipient,
        template=fact.template,
        task=fact.task_id,
        item=fact.item,
        area=fact.area,
        urgent=fact.urgent,
        until=fact.until,
        queued=envelope.time,
        due=envelope.time,
    )
    task = post.task(fact.task_id)
    if fact.template == OFFERED:
        waiting = (*task.waiting, (fact.recipient, fact.notice_id))
        task = replace(task, item=fact.item, urgent=fact.urgent, waiting=waiting)
    elif fact.recipient in task.told:
        task = replace(task, told=tuple(member for member in task.told if member != fact.recipient))
    replies = post.replies
    if fact.template in ANSWERS:
        reply = Reply(fact.recipient, fact.template, fact.task_id, fact.item, fact.area, fact.until)
        replies = replies.set(notice.id, reply)
    return replace(
        post,
        notices=post.notices.set(notice.id, notice),
        numbers=post.numbers.set(number, notice.id),
        last=number,
        tasks=post.tasks if task is NO_TASK else post.tasks.set(fact.task_id, task),
        replies=replies,
    )


def _waits(post: Post, notice: Notice) -> Post:
    return replace(post, notices=post.notices.set(notice.id, notice))


def _over(
    post: Post, notice: Notice, *, sent: Map[str, int] | None = None, failed: Map[str, int] | None = None
) -> Post:
    """The notice is done with: sent, or given up."""
    tasks = post.tasks
    if notice.template == OFFERED and (task := tasks.get(notice.task)):
        waiting = tuple(one for one in task.waiting if one[1] != notice.id)
        told = task.told if sent is None else (*task.told, notice.recipient)
        tasks = tasks.set(notice.task, replace(task, waiting=waiting, told=told))
    return replace(
        post,
        notices=post.notices.delete(notice.id),
        numbers=post.numbers.delete(notice.number),
        tasks=tasks,
        sent=post.sent if sent is None else sent,
        failed=post.failed if failed is None else failed,
    )


def _with(post: Post, id: str, task: Task) -> Post:
    return replace(post, tasks=post.tasks.set(id, task))


def _opened(post: Post, id: str, request: str, fact: TaskOpened) -> Post:
    """A later round was asked for by somebody of whom nothing may be known any more: whoever sends will see."""
    if request not in post.asking and fact.round == 1:
        return post
    task = replace(post.task(id), item=fact.item, urgent=fact.urgency >= URGENT, resident=request)
    return replace(_with(post, id, task), asking=post.asking.delete(request) if request in post.asking else post.asking)


def _closed(post: Post, id: str) -> Post:
    tasks, replies = post.tasks.set(id, replace(post.task(id), closed=True)), post.replies
    closed = (*post.closed, id)
    if len(closed) > CLOSED_MAX:
        half = CLOSED_MAX // 2
        with tasks.mutate() as changing:
            for old in closed[:half]:
                changing.pop(old, None)
            tasks = changing.finish()
        closed = closed[half:]
        replies = Map({notice: reply for notice, reply in replies.items() if reply.task in tasks})
    return replace(post, tasks=tasks, closed=closed, replies=replies)


# --- snapshots --------------------------------------------------------------------------------------------------------

VERSION = 4
"""Of the state's form: a snapshot of another one is not used."""


def dump(post: Post) -> Any:
    """The state as plain data."""
    return {
        "district": post.district,
        "register": registers.dump(post.register),
        "notices": list(post.notices.values()),
        "last": post.last,
        "tasks": dict(post.tasks),
        "closed": post.closed,
        "asking": list(post.asking),
        "kinds": dict(post.kinds),
        "replies": dict(post.replies),
        "sent": dict(post.sent),
        "failed": dict(post.failed),
    }


def load(data: Any) -> Post:
    """The state from plain data. Raises KeyError, TypeError or ValueError where it is something else."""
    notices = [_load_notice(notice) for notice in data["notices"]]
    return Post(
        district=data["district"],
        register=registers.load(data["register"]),
        notices=Map({notice.id: notice for notice in notices}),
        numbers=Map({notice.number: notice.id for notice in notices}),
        last=data["last"],
        tasks=Map({id: _load_task(task) for id, task in data["tasks"].items()}),
        closed=tuple(data["closed"]),
        asking=Map(dict.fromkeys(data["asking"])),
        kinds=Map(data["kinds"]),
        replies=Map({notice: _load_reply(reply) for notice, reply in data["replies"].items()}),
        sent=Map(data["sent"]),
        failed=Map(data["failed"]),
    )


def _load_notice(data: dict[str, Any]) -> Notice:
    times = {name: datetime.fromisoformat(data[name]) for name in ("queued", "due", "until") if data[name] is not None}
    return Notice(**{**data, **times})


def _load_reply(data: dict[str, Any]) -> Reply:
    return Reply(**{**data, "until": datetime.fromisoformat(data["until"]) if data["until"] else None})


def _load_task(data: dict[str, Any]) -> Task:
    waiting = tuple((member, notice) for member, notice in data["waiting"])
    return Task(**{**data, "waiting": waiting, "told": tuple(data["told"]), "declined": tuple(data["declined"])})
