"""The checker finds what may not happen between offices: each law that is broken once is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from services.dispatch.commands import HandOver, Lend, Sign
from shared.envelope import Envelope
from shared.facts import (
    HandoverLapsed,
    HandoverSigned,
    HelpSettled,
    MatchExplained,
    TaskAccepted,
    TaskHandedOver,
    TaskOpened,
)
from tests.dispatch.offices import City
from tests.dispatch.test_helping import WHISTLE
from tests.examples import LI, QINGSHAN, TASK, WUCHANG, envelope, submitted
from tests.system.history import Record, check_offices, check_tasks, facts_of

Stream = list[Envelope]


def told() -> Stream:
    """武昌 whistles for 青山, who lend somebody, and then hands the task over to them."""
    city = City.at_work()
    city.publish(submitted())
    city.settle()
    city.ask(WUCHANG, WHISTLE)
    city.settle()
    city.ask(QINGSHAN, Lend(help=city.id("help.asked")))
    city.ask(WUCHANG, HandOver(task=TASK, to=QINGSHAN, reason="wrong_place"))
    city.settle()
    city.ask(QINGSHAN, Sign(handover=city.id("handover.offered")))
    city.settle()
    return city.stream


def laws(stream: Stream) -> set[str]:
    """Those that this stream breaks."""
    facts = list(facts_of(Record(n, n, one.subject, one.encode(), {}) for n, one in enumerate(stream, 1)))
    broken: set[str] = set()
    check_tasks(facts, lambda law, _: broken.add(law), ended=True)
    check_offices(facts, lambda law, _: broken.add(law), ended=True)
    return broken - {"task without an end"}


def without(kind: type) -> Callable[[Stream], Stream]:
    """It was never said."""
    return lambda stream: [one for one in stream if type(one.fact) is not kind]


def changed(kind: type, **fields: object) -> Callable[[Stream], Stream]:
    """It said something else, the last time."""

    def change(stream: Stream) -> Stream:
        n = max(n for n, one in enumerate(stream) if type(one.fact) is kind)
        data = {name: held for name, held in fields.items() if name in kind.model_fields}  # type: ignore[attr-defined]
        more = {name: held for name, held in fields.items() if name not in data}
        one = replace(stream[n], fact=stream[n].fact.model_copy(update=data), **more)  # type: ignore[arg-type]
        return [*stream[:n], one, *stream[n + 1 :]]

    return change


def followed_by(fact: Callable[[Stream], Envelope]) -> Callable[[Stream], Stream]:
    """And something more was said."""
    return lambda stream: [*stream, fact(stream)]


def last(stream: Stream, kind: type) -> Envelope:
    """The newest of a kind."""
    return next(one for one in reversed(stream) if type(one.fact) is kind)


def of_the_giver(stream: Stream) -> Envelope:
    """武昌's member takes what is no longer theirs."""
    return envelope(TaskAccepted(task_id=TASK, member_id=LI), districts=f"{WUCHANG},{QINGSHAN}")


def by_the_giver_again(stream: Stream) -> Envelope:
    """武昌 opens it once more."""
    fact = last(stream, TaskOpened).fact.model_copy(update={"task_id": TASK[:-1] + "0", "by": None})
    return envelope(fact)


def lapsed_as_well(stream: Stream) -> Envelope:
    """Handed over, and kept."""
    moved = last(stream, TaskHandedOver).fact
    assert isinstance(moved, TaskHandedOver)
    fact = HandoverLapsed(handover_id=moved.by, task_id=TASK, to=QINGSHAN, reason="ended")
    return envelope(fact, districts=f"{WUCHANG},{QINGSHAN}")


def test_what_was_told_breaks_nothing() -> None:
    assert laws(told()) == set()


@pytest.mark.parametrize(
    ("law", "spoil"),
    [
        ("one key only", without(HandoverSigned)),
        ("one key only", changed(HandoverSigned, district=WUCHANG)),
        ("no owner", lambda stream: stream[: stream.index(last(stream, TaskOpened))]),
        ("illegal step", without(TaskHandedOver)),
        ("illegal step", changed(TaskOpened, due=submitted().due.model_copy(update={"sign": told()[-1].time}))),
        ("illegal step", changed(TaskHandedOver, to=WUCHANG)),
        ("illegal step", followed_by(of_the_giver)),
        ("two owners", followed_by(by_the_giver_again)),
        ("ended twice", followed_by(lapsed_as_well)),
        ("not shared", changed(TaskHandedOver, districts=WUCHANG)),
        ("explanation shared", changed(MatchExplained, districts=f"{WUCHANG},{QINGSHAN}")),
        ("help without an end", without(HelpSettled)),
        ("question without an end", without(HelpSettled)),
    ],
)
def test_a_law_that_is_broken_once_is_named(law: str, spoil: Callable[[Stream], Stream]) -> None:
    assert law in laws(spoil(told()))
