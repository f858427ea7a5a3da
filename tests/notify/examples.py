"""Facts with fixed ids and times, and how a history of them is folded."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from services.notify import model
from services.notify.decide import Outcome, Report, decide
from services.notify.model import Post
from services.notify.sending import SENDER
from shared.envelope import Envelope
from shared.facts import (
    AreaSet,
    DistrictSet,
    Fact,
    ItemSet,
    Limit,
    Limits,
    Name,
    NoticeQueued,
    PolicySet,
    TaskAccepted,
    TaskClosed,
    TaskDeclined,
    TaskExpired,
    TaskOffered,
    TaskUnplaced,
)
from shared.ids import derived_id
from shared.turns import Command, Input

WUCHANG = "420106"
AREA = "xinxiang-7k"
NOON = datetime(2026, 11, 22, 4, 0, tzinfo=UTC)
"""12:00 in Wuhan."""
NIGHT = datetime(2026, 11, 22, 15, 0, tzinfo=UTC)
"""23:00 in Wuhan."""
REQUEST = derived_id("request", 1)
TASK = derived_id("task", 1)
LI, WANG, ZHOU = "m-li", "m-wang", "m-zhou"

_hours = Limit(amount=1, unit="hours")
LIGHT_OUT = ItemSet(
    item="light.out",
    title=Name(zh="路灯不亮", en="Street light out"),
    category=("市政", "照明"),
    effort=2,
    limits=Limits(sign=_hours, contact=_hours, handle=_hours, life=_hours),
)
XINXIANG = AreaSet(
    area=AREA,
    title=Name(zh="新湘小区", en="Xinxiang estate"),
    level="estate",
    valid_from=date(2020, 1, 1),
    located_in="420107",
    administered_by=WUCHANG,
    owned_by="青山区",
    served_by=WUCHANG,
    words=("新湘",),
    polygon=(((1, 1), (2, 1), (2, 2)),),
)
OFFICE = DistrictSet(
    district=WUCHANG, title=Name(zh="武昌区", en="Wuchang"), office=Name(zh="武昌区网格办", en="Wuchang office")
)
POLICY = PolicySet(
    district=WUCHANG,
    version=1,
    calendar="always",
    offer=_hours,
    close_after=_hours,
    weights={"workload": 1},
    quiet=(1320, 420),
)
REGISTER = (OFFICE, LIGHT_OUT, XINXIANG)


def fact_of_the_desk(fact: Fact, *, at: datetime = NOON, n: int = 0, districts: str = "420106,420107") -> Envelope:
    """The fact as the desk (or the register) publishes it."""
    id = derived_id("example", fact.name, n, at)
    district = WUCHANG if fact.service == "dispatch" else "000000"
    return Envelope(id, district, AREA, at, fact, districts, case=REQUEST)


def offered(
    *members: str, urgency: int = 0, at: datetime = NOON, until: datetime | None = None, task: str = TASK, n: int = 0
) -> Envelope:
    """An offer that waits half an hour."""
    fact = TaskOffered(
        task_id=task,
        wave=1,
        members=members,
        item="light.out",
        urgency=urgency,
        until=until or at + timedelta(minutes=30),
        match_id=derived_id("match", 1),
    )
    return fact_of_the_desk(fact, at=at, n=n)


def accepted(member: str, *, at: datetime = NOON, task: str = TASK) -> Envelope:
    """A yes."""
    return fact_of_the_desk(TaskAccepted(task_id=task, member_id=member), at=at)


def declined(member: str) -> Envelope:
    """A no."""
    return fact_of_the_desk(TaskDeclined(task_id=TASK, member_id=member, reason="busy"))


def expired(*members: str) -> Envelope:
    """Silence."""
    return fact_of_the_desk(TaskExpired(task_id=TASK, wave=1, members=members))


def unplaced(item: str | None = None, urgency: int | None = None) -> Envelope:
    """Nobody left."""
    return fact_of_the_desk(TaskUnplaced(task_id=TASK, match_id=derived_id("match", 2), item=item, urgency=urgency))


def closed(reason: str, *, task: str = TASK) -> Envelope:
    """The end."""
    return fact_of_the_desk(TaskClosed.model_validate({"task_id": task, "reason": reason}))


def when(post: Post, *inputs: Envelope, now: datetime = NOON) -> tuple[Post, list[Envelope]]:
    """One turn on these inputs, as the loop takes it: all are taken in, then each is decided on."""
    for one in inputs:
        post = model.take_in(post, one)
    facts: list[Envelope] = []
    for n, one in enumerate(inputs):
        decision = decide(post, Input(n, one), now)
        post = decision.state
        facts += decision.facts
    return post, facts


def given(*inputs: Envelope, register: tuple[Fact, ...] = REGISTER) -> Post:
    """A district in which this happened, each in a turn of its own, and every message went out at once."""
    post = model.initial(WUCHANG)
    for fact in register:
        post = model.take_in(post, fact_of_the_desk(fact))
    for one in inputs:
        post, _ = when(post, one)
        post, _ = report(post, *(sent(post.numbers[number]) for number in sorted(post.numbers)))
    return post


def report(post: Post, *outcomes: Outcome, now: datetime = NOON) -> tuple[Post, list[Envelope]]:
    """One turn on a sender's report."""
    decision = decide(post, Command("report-1", Report(outcomes), SENDER), now)
    return decision.state, list(decision.facts)


def sent(notice: str, attempt: int = 1) -> Outcome:
    """The channel took it."""
    return Outcome(notice, attempt, "sent", "wecom")


def failed(notice: str, attempt: int = 1) -> Outcome:
    """The channel did not."""
    return Outcome(notice, attempt, "failed", "wecom", "refused")


def told(facts: list[Envelope]) -> list[tuple[str, str]]:
    """Who is told what: recipient and template of what was queued."""
    return [(e.fact.recipient, e.fact.template) for e in facts if isinstance(e.fact, NoticeQueued)]


def refold(facts: list[Envelope], post: Post) -> Post:
    """The state after facts, by evolving alone."""
    for one in facts:
        post = model.evolve(post, one)
    return post


def only(post: Post) -> model.Notice:
    """The one notice that waits."""
    (notice,) = post.notices.values()
    return notice


def with_register(*facts: Fact) -> Post:
    """A district that knows this register and nothing else."""
    return given(register=facts)
