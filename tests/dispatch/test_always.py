"""What holds after any sequence of requests, commands and deadlines."""

import json
from collections import Counter
from datetime import datetime, timedelta
from functools import reduce

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.dispatch import model
from services.dispatch.commands import Accept, Arrive, Decline, Done, Enrol, Leave, Offer, Verb
from services.dispatch.decide import decide
from services.dispatch.model import Desk
from shared.errors import RefusedError
from shared.facts import Duty, Fact, MatchExplained, TaskOffered, plain
from shared.ids import derived_id
from shared.turns import Command, Deadline, Input
from tests.dispatch import telling
from tests.examples import (
    DISPATCHER,
    ESTATE,
    LEAK,
    LI,
    LIFT,
    NOW,
    OUJING,
    POLICY,
    RATED,
    REGISTER,
    REOPENED,
    WANG,
    WITHDRAWN,
    XINXIANG,
    ZHAO,
    enrolled,
    envelope,
    id_of,
    item,
    submitted,
)

REQUESTS, MEMBERS = range(8), (LI, WANG, ZHAO, "m-hou")
TERMS = (
    enrolled(LI, OUJING, ESTATE, capacity=25),
    enrolled(WANG, ESTATE, capacity=30, duty=(Duty(days=(1, 2, 3, 4, 5), since=540, until=1080),)),
    enrolled(ZHAO, XINXIANG, OUJING, capacity=10),
    enrolled("m-hou", XINXIANG, kind="responder", skills=("rescue",), capacity=20),
)
AT_NIGHT = POLICY.model_copy(update={"quiet": (1320, 420)})
EMPTY = telling.given(*TERMS, register=(*REGISTER, item("nothing", effort=0), AT_NIGHT))

requests = st.sampled_from(REQUESTS)
rounds = st.integers(1, 3)
members = st.sampled_from(MEMBERS)
things = st.one_of(
    st.tuples(
        st.just("submitted"),
        requests,
        st.sampled_from([OUJING, ESTATE, XINXIANG]),
        st.sampled_from([LEAK, LIFT, "nothing"]),
    ),
    st.tuples(st.sampled_from(["withdrawn", "rated"]), requests),
    st.tuples(st.just("reopened"), requests, st.integers(2, 3)),
    st.tuples(st.sampled_from([Accept, Decline, Arrive, Done, Offer]), requests, rounds, members),
    st.tuples(st.just("answered as asked"), st.sampled_from([Accept, Decline]), requests, rounds),
    st.tuples(st.just("done as held"), requests, rounds),
    st.tuples(st.just("enrolled"), members, st.integers(0, 20)),
    st.tuples(st.just("left"), members),
    st.tuples(st.just("minutes passed"), st.sampled_from([1, 14, 15, 60, 600, 4320])),
    st.tuples(st.just("repeated")),
)


class Story:
    """A desk, what happens to it, and what must hold each time."""

    def __init__(self) -> None:
        self.desk = EMPTY
        self.now = NOW
        self.n = 0
        self.facts: list[Fact] = []
        self.last: Command | None = None

    def tell(self, thing: tuple[object, ...]) -> None:
        """One thing that happens."""
        self.n += 1
        match thing:
            case ("submitted", int(n), str(area), str(of)):
                self.decide(self.input(submitted(n, item=of, area=area, urgency=n % 4)))
            case ("withdrawn", int(n)):
                self.decide(self.input(about("withdrawn", n)))
            case ("rated", int(n)):
                self.decide(self.input(about("rated", n)))
            case ("reopened", int(n), int(round)):
                self.decide(self.input(REOPENED.model_copy(update={"request_id": id_of("request", n), "round": round})))
            case (type() as verb, int(n), int(round), str(who)):
                self.command(verb(task=task_id(n, round), member=who))
            case ("answered as asked", type() as verb, int(n), int(round)):
                task = self.desk.tasks.get(task_id(n, round))
                if task and task.offered:
                    self.command(verb(task=task.id, member=task.offered[0]))
            case ("done as held", int(n), int(round)):
                task = self.desk.tasks.get(task_id(n, round))
                if task and task.holder:
                    self.command(Done(task=task.id, member=task.holder))
            case ("enrolled", str(who), int(more)):
                terms = next(terms for terms in TERMS if terms.member_id == who)
                capacity = max(self.desk.members[who].capacity, terms.capacity + more)  # never below what is open
                self.command(Enrol(members=(terms.model_copy(update={"capacity": capacity}),)))
            case ("left", str(who)):
                self.command(Leave(member=who))
            case ("minutes passed", int(minutes)):
                self.now += timedelta(minutes=minutes)
                for deadline in sorted(d for d in model.deadlines(self.desk) if d.at <= self.now):
                    self.decide(deadline)
            case ("repeated",) if self.last:
                before = self.desk
                known = before.answered(self.last.id, self.last.caller.actor)
                self.decide(self.last)
                assert known is None or self.desk == before

    def input(self, fact: Fact) -> Input:
        return Input(self.n, envelope(fact, at=self.now, id=id_of("input", self.n)))

    def command(self, what: Verb) -> None:
        self.last = Command(id_of("command", self.n), what, DISPATCHER)
        self.decide(self.last)

    def decide(self, work: Input | Command | Deadline) -> None:
        try:
            made = decide(self.desk, work, self.now)
        except RefusedError:
            return
        again = decide(self.desk, work, self.now)
        assert [fact.encode() for fact in again.facts] == [fact.encode() for fact in made.facts], "decided otherwise"
        assert reduce(model.evolve, made.facts, self.desk) == made.state, "the fold is not the state decided on"
        self.desk = made.state
        self.facts += [fact.fact for fact in made.facts]

    def check(self) -> None:
        desk = self.desk
        open_effort: Counter[str] = Counter()
        for id, task in desk.tasks.items():
            holding = (task.holder,) if task.holder and task.status != "done" else ()
            for who in (*task.offered, *holding):
                open_effort[who] += task.effort
            assert {
                "offered": task.until is not None and task.holder is None,
                "unplaced": not task.offered and task.holder is None and id in desk.waiting[task.area],
                "accepted": task.holder is not None and not task.offered,
                "arrived": task.holder is not None and not task.offered,
                "done": task.until is not None and task.holder is not None,
            }[task.status], f"{task} has neither a deadline nor a person"
            assert task.until is None or task.until > self.now - timedelta(seconds=1), "a deadline was passed over"
        waiting = {id for held in desk.waiting.values() for id in held}
        assert waiting == {id for id, task in desk.tasks.items() if task.status == "unplaced"}, "who waits"
        assert {m.id: m.load for m in desk.members.values()} == {m: open_effort[m] for m in desk.members}, "loads"
        assert all(m.load <= m.capacity for m in desk.members.values()), "above capacity"
        assert {t.request: t.id for t in desk.tasks.values()} == dict(desk.by_request), "two rounds open at once"
        dumped = orjson.dumps(model.dump(desk), default=plain)
        assert model.load(orjson.loads(dumped)) == desk, "dump and load"
        assert json.loads(orjson.dumps(model.dump(model.load(orjson.loads(dumped))), default=plain)) == json.loads(
            dumped
        )

    def check_all(self) -> None:
        explained = [fact for fact in self.facts if isinstance(fact, MatchExplained)]
        assert len({fact.match_id for fact in explained}) == len(explained), "an explanation's id was used twice"
        chosen = {fact.match_id: fact.chosen for fact in explained}
        for fact in self.facts:
            if isinstance(fact, TaskOffered):
                assert chosen[fact.match_id] == fact.members


def task_id(n: int, round: int) -> str:
    """The task of a request's round."""
    return derived_id(id_of("request", n), "task", round)


def about(what: str, n: int) -> Fact:
    """Withdrawn or rated."""
    fact: Fact = RATED if what == "rated" else WITHDRAWN
    return fact.model_copy(update={"request_id": id_of("request", n)})


def follow(story: list[tuple[object, ...]]) -> Desk:
    """Tell it, and hold every promise after each thing."""
    told = Story()
    for thing in story:
        told.tell(thing)
        told.check()
    told.check_all()
    return told.desk


@given(st.lists(things, max_size=40))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_after_whatever_happens_everything_holds(story: list[tuple[object, ...]]) -> None:
    follow(story)


@pytest.mark.soak
@given(st.lists(things, min_size=30, max_size=200))
@settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))
def test_after_whatever_happens_for_long_everything_holds(story: list[tuple[object, ...]]) -> None:
    follow(story)


@given(st.lists(things, max_size=30), st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_batch_that_lost_its_end_leaves_no_task_without_a_deadline(
    story: list[tuple[object, ...]], data: st.DataObject
) -> None:
    told = Story()
    for thing in story:
        told.tell(thing)
    work = told.input(submitted(99))
    whole = list(decide(told.desk, work, told.now).facts)
    kept = data.draw(st.integers(0, len(whole)))
    told.desk = reduce(model.evolve, whole[:kept], told.desk)
    told.decide(work)
    told.check()


def test_time_is_the_turns_and_not_a_clock() -> None:
    at = datetime.fromisoformat("2001-01-01T00:00:00+00:00")
    made = decide(EMPTY, Input(1, envelope(submitted())), at)
    assert {fact.time for fact in made.facts} == {at}
