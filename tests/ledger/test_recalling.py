"""What the register said at a size of the log or a moment: a fold of leaves, whatever was corrected since."""

import itertools
from datetime import UTC, date, datetime, timedelta

import orjson

from services.ledger.leaves import recorded_ns
from services.ledger.recalling import Recall
from services.ledger.store import Selection
from shared.facts import RegisterApplied, RegisterFact
from tests.examples import HONGSHAN, QINGSHAN, WUCHANG, XINXIANG, area, envelope

DAY = date(2026, 6, 1)
FIRST = datetime(2026, 1, 1, tzinfo=UTC)


class Leaves:
    """A log of register facts, one an hour; `size` of them are there so far."""

    def __init__(self, *facts: RegisterFact, back: int = 0) -> None:
        self.size_now = len(facts)
        self.leaves: list[tuple[int, bytes]] = []
        self.reads = itertools.count()
        for index, fact in enumerate(facts):
            event = envelope(fact, id=f"{index}-{fact.name}")
            hours = index if index != back else 0
            at = f"{FIRST + timedelta(hours=hours):%Y-%m-%dT%H:%M:%S}.000000000Z"
            leaf = {"subject": event.subject, "event": orjson.loads(event.encode()), "recorded": at}
            self.leaves.append((index, orjson.dumps(leaf)))

    async def size(self) -> int:
        return self.size_now

    async def read(self, selection: Selection, since: int, below: int, limit: int) -> list[tuple[int, bytes]]:
        next(self.reads)
        return self.leaves[since : min(below, since + limit)]


def served(by: str) -> RegisterFact:
    return area(XINXIANG, served_by=by)


def ended(why: str, *, more: bool = False) -> RegisterApplied:
    return RegisterApplied(by="admin:a", why=why, digest="ab", facts=1, more=more)


LOG = (served(WUCHANG), ended("first"), served(QINGSHAN), ended("half", more=True), served(HONGSHAN), ended("whole"))


async def known(recall: Recall, as_of: int | datetime | None) -> str | None:
    register, _ = await recall.register(as_of)
    found = register.area(XINXIANG, DAY)
    return found.served_by if found else None


async def test_what_was_applied_in_parts_counts_from_the_last_part_on() -> None:
    recall = Recall(Leaves(*LOG))
    assert [await known(recall, size) for size in range(7)] == [
        None,
        None,
        WUCHANG,
        WUCHANG,
        WUCHANG,
        WUCHANG,
        HONGSHAN,
    ]
    assert await known(recall, None) == HONGSHAN


async def test_a_moment_knows_what_was_recorded_by_then() -> None:
    recall = Recall(Leaves(*LOG))
    moments = [FIRST + timedelta(hours=hours, seconds=-1) for hours in (1, 2, 5, 6)]
    assert [await known(recall, moment) for moment in moments] == [None, WUCHANG, WUCHANG, HONGSHAN]
    assert await known(recall, FIRST + timedelta(hours=5)) == HONGSHAN
    assert (await recall.register(FIRST + timedelta(hours=1)))[1] == 2


async def test_a_clock_that_stepped_back_does_not_reorder_what_was_known() -> None:
    recall = Recall(Leaves(*LOG, back=5))
    assert await known(recall, FIRST + timedelta(hours=1)) == HONGSHAN, (
        "said to be recorded before: the log's order holds"
    )
    assert await known(recall, 5) == WUCHANG
    assert recorded_ns("2026-01-01T00:00:00.000000000Z") == int(FIRST.timestamp()) * 10**9


async def test_every_change_has_who_and_why_and_what_was_there_before() -> None:
    recall = Recall(Leaves(*LOG))
    first, second, third = await recall.history(XINXIANG, 6)
    assert [(e.index, e.by, e.why) for e in (first, second, third)] == [
        (0, "admin:a", "first"),
        (2, "admin:a", "half"),
        (4, "admin:a", "whole"),
    ]
    assert third.told()["fields"] == [{"field": "served_by", "old": QINGSHAN, "new": HONGSHAN}]
    assert len(await recall.history(XINXIANG, 4)) == 2


async def test_it_reads_on_where_it_was() -> None:
    log = Leaves(*LOG)
    log.size_now = 2
    recall = Recall(log)
    assert await known(recall, None) == WUCHANG
    log.size_now = 6
    assert await known(recall, None) == HONGSHAN
    assert (await known(recall, 2), next(log.reads)) == (WUCHANG, 2)
