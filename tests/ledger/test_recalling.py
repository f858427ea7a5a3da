"""What the register said at a size of the log: a fold of leaves, whatever was corrected since."""

import itertools
from datetime import date

import orjson

from services.ledger.register.recalling import Recall
from services.ledger.store import Selection
from shared.facts import RegisterApplied, RegisterFact
from tests.examples import HONGSHAN, QINGSHAN, WUCHANG, XINXIANG, area, envelope

DAY = date(2026, 6, 1)


class Leaves:
    """A log of register facts."""

    def __init__(self, *facts: RegisterFact) -> None:
        self.leaves: list[tuple[int, bytes]] = []
        self.reads = itertools.count()
        for index, fact in enumerate(facts):
            event = envelope(fact, id=f"{index}-{fact.name}")
            leaf = {
                "subject": event.subject,
                "event": orjson.loads(event.encode()),
                "recorded": "2026-01-01T00:00:00.000000000Z",
            }
            self.leaves.append((index, orjson.dumps(leaf)))

    async def read(self, selection: Selection, since: int, below: int, limit: int) -> list[tuple[int, bytes]]:
        next(self.reads)
        return self.leaves[since : min(below, since + limit)]


def served(by: str) -> RegisterFact:
    return area(XINXIANG, served_by=by)


def ended(why: str, *, more: bool = False) -> RegisterApplied:
    return RegisterApplied(by="admin:a", why=why, digest="ab", facts=1, more=more)


LOG = (served(WUCHANG), ended("first"), served(QINGSHAN), ended("half", more=True), served(HONGSHAN), ended("whole"))


async def known(recall: Recall, size: int) -> str | None:
    found = (await recall.register(size)).area(XINXIANG, DAY)
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
    recall = Recall(log)
    assert [await known(recall, size) for size in (2, 6, 2)] == [WUCHANG, HONGSHAN, WUCHANG]
    assert next(log.reads) == 2
