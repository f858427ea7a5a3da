"""Example facts with fixed ids and times."""

from datetime import UTC, datetime, timedelta

from shared.envelope import Envelope
from shared.facts import (
    Due,
    Fact,
    HandoverOffered,
    HandoverReturned,
    NoticeSent,
    RequestRated,
    RequestReopened,
    RequestSubmitted,
    RequestWithdrawn,
    TaskAccepted,
    TaskArrived,
    TaskClosed,
    TaskDone,
    TaskOffered,
    TaskOpened,
)
from shared.ids import derived_id

NOW = datetime(2026, 11, 22, 1, 2, 3, 456000, tzinfo=UTC)
DUE = Due(sign=NOW, contact=NOW, handle=NOW + timedelta(days=1), life=NOW + timedelta(days=3))
WUCHANG, QINGSHAN, HONGSHAN = "420106", "420107", "420111"
LI = "m-li"


def request_id(n: int) -> str:
    """A request's id."""
    return derived_id("request", n)


def task_id(n: int, round_: int = 1) -> str:
    """Its task's id."""
    return derived_id("task", n, round_)


def tracking_hash(n: int) -> str:
    """The hash of its tracking code."""
    return f"{n:064x}"


def event(
    fact: Fact,
    *,
    id: str | None = None,
    case: str | None = None,
    district: str = WUCHANG,
    districts: str | None = None,
    area: str = "xinxiang-7k",
    at_s: float = 0,
    actor: str | None = None,
) -> Envelope:
    """An envelope around a fact; its id follows from what it says."""
    key = derived_id("event", fact.name, getattr(fact, fact.key), repr(fact))
    seen = district if districts is None else districts
    return Envelope(id or key, district, area, NOW + timedelta(seconds=at_s), fact, seen, case=case, actor=actor)


def message(envelope: Envelope) -> tuple[str, bytes]:
    """As it is published."""
    return envelope.subject, envelope.encode()


def submitted(n: int, *, district: str = WUCHANG, districts: str | None = None, at_s: float = 0) -> Envelope:
    fact = RequestSubmitted(
        request_id=request_id(n),
        fingerprint="ab",
        tracking_hash=tracking_hash(n),
        channel="web",
        item="repair.leak",
        item_rule="word:漏水",
        urgency=1,
        urgency_rule="item",
        area="xinxiang-7k",
        area_rule="code",
        located_in=QINGSHAN,
        due=DUE,
    )
    return event(fact, case=request_id(n), district=district, districts=districts, at_s=at_s)


def about(n: int, fact: Fact, *, district: str = WUCHANG, districts: str | None = None, at_s: float = 1) -> Envelope:
    """A fact about request n."""
    return event(
        fact, case=request_id(n), district=district, districts=districts, at_s=at_s, actor="dispatcher:staff-4"
    )


def opened(n: int, round_: int = 1) -> TaskOpened:
    return TaskOpened(
        task_id=task_id(n, round_),
        request_id=request_id(n),
        round=round_,
        area="xinxiang-7k",
        item="repair.leak",
        urgency=1,
        effort=3,
        due=DUE,
    )


def offered(n: int, round_: int = 1, wave: int = 1) -> TaskOffered:
    return TaskOffered(
        task_id=task_id(n, round_),
        wave=wave,
        members=(LI,),
        item="repair.leak",
        urgency=1,
        until=NOW + timedelta(minutes=15),
        match_id=derived_id("match", n, round_, wave),
    )


def life(n: int, districts: str | None = None) -> list[Envelope]:
    """A request from beginning to end: 8 facts, one of which (the notice) does not move the case."""
    facts: list[Fact] = [
        opened(n),
        offered(n),
        NoticeSent(notice_id=derived_id("notice", n), channel="console", attempt=1),
        TaskAccepted(task_id=task_id(n), member_id=LI),
        TaskArrived(task_id=task_id(n), member_id=LI),
        TaskDone(task_id=task_id(n), member_id=LI, outcome="solved"),
        RequestRated(request_id=request_id(n), grade=5, solved=True),
        TaskClosed(task_id=task_id(n), reason="rated"),
    ]
    return [submitted(n, districts=districts), *(about(n, fact, districts=districts) for fact in facts)]


def withdrawn(n: int) -> Envelope:
    return about(n, RequestWithdrawn(request_id=request_id(n), reason="changed_mind"))


def reopened(n: int) -> Envelope:
    fact = RequestReopened(
        request_id=request_id(n), reason="not_solved", due=DUE, round=2, item="repair.leak", urgency=1
    )
    return about(n, fact)


def handover_asked(n: int, to: str = QINGSHAN) -> Envelope:
    """Another office is asked to take its task."""
    fact = HandoverOffered(
        handover_id=derived_id("handover"),
        task_id=task_id(n),
        request_id=request_id(n),
        round=1,
        attempt=1,
        to=to,
        reason="wrong_place",
        item="repair.leak",
        urgency=1,
        due=DUE,
        grant=True,
        until=NOW,
    )
    return about(n, fact, districts=f"{WUCHANG},{to}")


def handover_returned(n: int, to: str = QINGSHAN) -> Envelope:
    """It was asked in vain."""
    fact = HandoverReturned(
        handover_id=derived_id("handover"),
        task_id=task_id(n),
        to=to,
        reason="wrong_place",
        basis="minutes:1",
    )
    return about(n, fact, districts=f"{WUCHANG},{to}")
