"""
The turn, with the desk's rules on a real server: whatever breaks, everything is decided once and in order.

Instances are in one process, on connections of their own. Their clock can be moved, so that deadlines come when a test wants.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import reduce
from itertools import count
from typing import Any

import pytest

from deploy.servers import NatsServer
from services.dispatch.commands import Accept, Decline, Done, Enrol, Verb
from services.dispatch.desk import RULES
from services.dispatch.model import Desk
from shared import streams, turns
from shared.bus import Bus, Delivery, Fence, Message, StreamState
from shared.envelope import Envelope, canonical, decode
from shared.errors import FencedError, StreamReplacedError, UnavailableError
from shared.facts import Fact, InputRefused, MatchExplained, TaskExpired, TaskOpened, TurnCommitted, instant
from shared.ids import derived_id
from shared.lease import Lease
from shared.turns import Command, Decision, Fold, Rules, Turns, Work, recover, snapshot_name, write_snapshot
from tests.conftest import Connect
from tests.examples import (
    DISPATCHER,
    LI,
    RATED,
    REGISTER,
    TEAM,
    WITHDRAWN,
    WUCHANG,
    enrolled,
    envelope,
    id_of,
    submitted,
)

MARKER = RULES.marker_subject(WUCHANG)


class Office:
    """A district's desk in several instances, and what happens to it."""

    def __init__(self, connect: Connect) -> None:
        self.connect = connect
        self.bus: Bus
        self.intake: Bus
        self.ledger: Bus
        self.ahead = timedelta()
        self.running: dict[str, tuple[Turns[Desk], Bus, asyncio.Task[None]]] = {}
        self.until: dict[str, asyncio.Event] = {}
        self._n = count(1)

    async def open(self) -> "Office":
        self.bus, self.intake, self.ledger = [await self.connect(n) for n in ("dispatch", "intake", "ledger")]
        await self.store(self.ledger, *(envelope(fact) for fact in REGISTER))
        return self

    def clock(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    async def start(self, name: str, *, rules: Rules[Desk] = RULES, **options: Any) -> Turns[Desk]:
        """One more instance, on a connection of its own."""
        bus = await self.connect("dispatch")
        instance = Turns(rules, bus, WUCHANG, name, clock=self.clock, **options)
        self.until[name] = asyncio.Event()
        self.running[name] = instance, bus, asyncio.create_task(instance.run(self.until[name]))
        return instance

    async def lead(self, name: str, **options: Any) -> Turns[Desk]:
        """One more instance, that leads."""
        instance = await self.start(name, **options)
        await holds(lambda: instance.leading)
        return instance

    async def stop(self, name: str) -> None:
        """SIGTERM: it finishes what is under way."""
        _, _, task = self.running[name]
        self.until[name].set()
        await asyncio.wait_for(task, 10)
        self.running.pop(name)

    async def kill(self, name: str) -> None:
        """Its process is gone: nothing is finished, the connection is closed, the lease is not given back."""
        instance, bus, task = self.running.pop(name)
        lease: Lease = instance._lease
        if lease._keeper:
            lease._keeper.cancel()
        await bus._nc.close()
        while not task.done():  # the client library's own wait_for may swallow a cancellation
            task.cancel()
            await asyncio.wait({task}, timeout=0.5)

    async def store(self, bus: Bus, *facts: Envelope) -> int:
        """Facts of others, as they write them."""
        return await bus.commit([Message(fact.subject, fact.encode()) for fact in facts])

    async def submit(self, *numbers: int, **fields: Any) -> int:
        """Residents' requests; returns the last one's sequence."""
        return await self.store(
            self.intake, *(envelope(submitted(n, **fields), at=instant(self.clock())) for n in numbers)
        )

    async def ask(self, what: Verb, *, of: Turns[Desk] | None = None, id: str | None = None) -> Any:
        """A command to whichever instance leads, repeated under one id as clients do."""
        command = Command(id or id_of("command", next(self._n)), what, DISPATCHER)
        for _ in range(400):
            for instance in [of] if of else [instance for instance, _, _ in self.running.values()]:
                with suppress(FencedError):
                    return await asyncio.wait_for(instance.ask(command), 10)
            await asyncio.sleep(0.02)
        raise AssertionError("nobody answers")

    async def decided(self, sequence: int, within_s: float = 10) -> None:
        """Wait until a committed position has reached this sequence, and the leader knows of it too."""

        async def there() -> bool:
            with suppress(UnavailableError):
                # The position first: a marker read before it may be the one before, which the leader knows long since.
                if await self.position() >= sequence and (last := await self.bus.last(MARKER)):
                    sighted = [one for one, _, _ in self.running.values() if not one._blind]
                    # None for a while where a lease ran out under load.
                    leaders = [one for one in sighted if one.leading]
                    known = all(one._fold is not None and one._fold.folded >= last.sequence for one in leaders)
                    return known and bool(leaders or not sighted)
            return False

        await holds(there, within_s)

    async def position(self) -> int:
        """The committed position."""
        last = await self.bus.last(MARKER)
        fact = decode(MARKER, last.data).fact if last else None
        return fact.position.sequence if isinstance(fact, TurnCommitted) else 0

    async def everything(self) -> list[Delivery]:
        """The whole stream."""
        return await read(self.bus, "evt.>")

    async def facts(self) -> list[Fact]:
        """What the desk has committed, without markers and explanations."""
        stored = await read(self.bus, RULES.own_subjects(WUCHANG))
        decoded = [decode(delivery.subject, delivery.data).fact for delivery in stored]
        return [fact for fact in decoded if not isinstance(fact, TurnCommitted | MatchExplained)]

    async def checked(self, *, requests: int | None = None) -> Desk:
        """The state folded from zero, after holding the whole stream to what must always be true."""
        markers: list[TurnCommitted] = []
        ids: Counter[str] = Counter()
        opened: Counter[str] = Counter()
        legal: dict[str, set[str | None]] = {
            "task.opened": {None},
            "task.accepted": {"offered"},
            "task.done": {"accepted", "arrived"},
        }
        state: dict[str, str | None] = {}
        for delivery in await self.everything():
            if not delivery.subject.startswith(f"evt.{WUCHANG}.dispatch."):
                continue
            fact = decode(delivery.subject, delivery.data)
            ids[fact.id] += 1
            if isinstance(fact.fact, TurnCommitted):
                markers.append(fact.fact)
            if isinstance(fact.fact, TaskOpened):
                opened[fact.fact.request_id] += 1
            if fact.fact.name.startswith("task."):
                task, name = getattr(fact.fact, "task_id"), fact.fact.name  # noqa: B009
                assert state.get(task) in legal.get(name, {state.get(task)}), (name, state.get(task))
                state[task] = name.removeprefix("task.")
        positions = [marker.position.sequence for marker in markers]
        assert positions == sorted(positions), "the position went back"
        assert [id for id, n in ids.items() if n > 1] == [], "a fact was stored twice"
        assert [id for id, n in opened.items() if n > 1] == [], "a request was opened twice"
        if requests is not None:
            assert len(opened) == requests, f"{requests - len(opened)} requests were lost"
        fold = await recover(self.bus, RULES, WUCHANG, snapshot=False)
        assert all(member.load <= member.capacity for member in fold.state.members.values())
        return fold.state


async def holds(what: Callable[[], Any], within_s: float = 10) -> None:
    """Wait until it does; fails after the deadline."""
    ends = asyncio.get_running_loop().time() + within_s
    while True:
        found = what()
        if await found if asyncio.iscoroutine(found) else found:
            return
        assert asyncio.get_running_loop().time() < ends, "it did not come to be in time"
        await asyncio.sleep(0.01)


async def read(bus: Bus, *subjects: str) -> list[Delivery]:
    """All that is stored under these subjects."""
    reader, got, last = bus.reader(subjects, after=0), [], (await bus.state()).last
    try:
        while True:
            some = await reader.wait(0.3)
            got += some
            if (got and got[-1].sequence >= last) or (not some and reader.opened and not reader.pending):
                return got
    finally:
        await reader.close()


@pytest.fixture
async def office(connect: Connect) -> AsyncIterator[Office]:
    """The office of 武昌, with its register and nobody at the desk."""
    opened = await Office(connect).open()
    yield opened
    for name in list(opened.running):
        await opened.kill(name)


# --- one instance -----------------------------------------------------------------------------------------------------


async def test_a_desk_starts_from_nothing_and_decides_on_what_was_there(office: Office) -> None:
    last = await office.submit(1, 2, 3)
    desk = await office.lead("a")
    await office.decided(last)
    assert len(desk.state.tasks) == 3
    assert await office.checked(requests=3) == desk.state


async def test_a_command_is_answered_with_the_position_at_which_it_can_be_read(office: Office) -> None:
    await office.lead("a")
    answer = await office.ask(Enrol(members=TEAM))
    stored = await office.bus.at(answer["position"])
    assert stored
    assert decode(MARKER, stored.data).fact.name == "turn.committed"
    assert (answer["ok"], answer["fact"], answer["facts"]) == (True, "member.enrolled", 3)


async def test_a_repeat_has_the_same_answer_and_leads_to_no_second_fact(office: Office) -> None:
    desk = await office.lead("a")
    enrol, id = Enrol(members=TEAM), id_of("once")
    first = await office.ask(enrol, id=id)
    again = await asyncio.gather(*(desk.ask(Command(id, enrol, DISPATCHER)) for _ in range(20)))
    assert [{**answer, "position": 0} for answer in again] == [{**first, "position": 0}] * 20
    assert await office.facts() == list(TEAM)


async def test_copies_of_one_command_in_one_turn_lead_to_one_fact(office: Office) -> None:
    desk = await office.lead("a")
    enrol, id = Enrol(members=TEAM), id_of("once")
    answers = await asyncio.gather(*(desk.ask(Command(id, enrol, DISPATCHER)) for _ in range(50)))
    assert answers == [answers[0]] * 50
    assert await office.facts() == list(TEAM)


async def test_a_refusal_is_a_problem_and_commits_nothing(office: Office) -> None:
    await office.lead("a")
    before = (await office.bus.state()).last
    answer = await office.ask(Accept(task=id_of("?"), member=LI))
    assert (answer["problem"]["code"], answer["problem"]["status"]) == ("unknown_task", 404)
    assert (await office.bus.state()).last == before


async def test_deadlines_come_by_the_clock(office: Office) -> None:
    desk = await office.lead("a")
    await office.ask(Enrol(members=TEAM))
    await office.decided(await office.submit(1))
    task = derived_id(submitted(1).request_id, "task", 1)
    assert desk.state.tasks[task].offered == (LI,)
    office.ahead = timedelta(minutes=15)
    await holds(lambda: desk.state.tasks[task].offered == ("m-wang",))
    assert await office.checked(requests=1) == desk.state


async def test_a_new_leader_hears_what_was_said_before_it_lets_a_deadline_run_out(office: Office) -> None:
    """Nobody led while the offers ran out, and meanwhile most of the requests were withdrawn."""
    numbers = range(900)
    await office.lead("a")
    await office.ask(Enrol(members=tuple(enrolled(f"m-{n}", capacity=100_000) for n in range(4))))
    await office.decided(await office.submit(*numbers))
    await office.stop("a")
    gone = [WITHDRAWN.model_copy(update={"request_id": id_of("request", n)}) for n in numbers]
    for first in range(0, len(gone), 500):
        last = await office.store(office.intake, *(envelope(fact) for fact in gone[first : first + 500]))
    office.ahead = timedelta(minutes=20)
    desk = await office.lead("b")
    await office.decided(last)
    await holds(lambda: not desk.state.tasks)
    assert not any(isinstance(fact, TaskExpired) for fact in await office.facts())


async def test_told_to_stop_it_answers_what_it_was_asked_and_gives_up_the_lease(office: Office) -> None:
    desk = await office.lead("a")
    asked = [asyncio.create_task(desk.ask(Command(id_of(n), Enrol(members=TEAM), DISPATCHER))) for n in range(30)]
    await asyncio.sleep(0)
    await office.stop("a")
    assert all(answer["ok"] for answer in await asyncio.gather(*asked))
    started = asyncio.get_running_loop().time()
    await office.lead("b")
    assert asyncio.get_running_loop().time() - started < 1


# --- what cannot be decided -------------------------------------------------------------------------------------------


async def test_what_is_no_fact_is_set_aside_by_name_and_the_rest_goes_on(office: Office) -> None:
    desk = await office.lead("a")
    place = f"evt.{WUCHANG}.intake.oujing-1"
    good = envelope(submitted(1))
    broken = [
        Message(f"{place}.request.submitted.{id_of('x')}", b"{not json"),
        Message(f"{place}.request.dreamt", b"{}"),
        Message(f"{place}.request.submitted.{id_of('y')}", good.encode()),  # under another request's subject
        Message(f"{place}.request.rated", canonical({"type": "cn.paidan.request.rated.v1"})),
        Message(f"{place}.request.submitted.{id_of('z')}", b"\xff\xfe\x00"),
    ]
    first = (await office.bus.state()).last + 1
    await office.intake.commit(broken)
    await office.decided(await office.submit(1))
    refused = {fact.sequence: fact.code for fact in await office.facts() if isinstance(fact, InputRefused)}
    assert [refused.get(first + n) for n in range(5)] == ["json", "type", "subject", "schema", "json"]
    assert await office.checked(requests=1) == desk.state


async def test_an_input_that_makes_the_decision_raise_is_set_aside_alone(office: Office) -> None:
    def decide(desk: Desk, work: Work, now: datetime) -> Decision[Desk]:
        if isinstance(work, turns.Input) and getattr(work.envelope.fact, "request_id", "") == id_of("request", 2):
            raise ZeroDivisionError
        return RULES.decide(desk, work, now)

    last = await office.submit(1, 2, 3)
    desk = await office.lead("a", rules=replace(RULES, decide=decide))
    await office.decided(last)
    refused = [fact for fact in await office.facts() if isinstance(fact, InputRefused)]
    assert [(fact.sequence, fact.code) for fact in refused] == [(last - 1, "decide_raised")]
    assert len(desk.state.tasks) == 2
    assert await office.checked(requests=2) == desk.state


async def test_a_command_that_makes_the_decision_raise_is_answered_and_the_rest_goes_on(office: Office) -> None:
    def decide(desk: Desk, work: Work, now: datetime) -> Decision[Desk]:
        if isinstance(work, Command) and isinstance(work.what, Accept):
            raise ZeroDivisionError
        return RULES.decide(desk, work, now)

    await office.lead("a", rules=replace(RULES, decide=decide))
    assert (await office.ask(Accept(task=id_of("?"), member=LI)))["problem"]["code"] == "internal"
    assert (await office.ask(Enrol(members=TEAM)))["ok"]


async def test_a_fact_that_is_too_large_is_refused_with_its_command_and_the_rest_goes_on(office: Office) -> None:
    desk = await office.lead("a")
    vast = enrolled(LI, *(f"area-{n:06}" for n in range(3000)))
    answers = await asyncio.gather(
        desk.ask(Command(id_of("vast"), Enrol(members=(vast,)), DISPATCHER)),
        desk.ask(Command(id_of("fine"), Enrol(members=TEAM), DISPATCHER)),
    )
    assert (answers[0]["problem"]["code"], answers[1]["ok"]) == ("too_large", True)
    assert desk.leading


async def test_a_deadline_that_makes_the_decision_raise_does_not_hold_up_the_others(office: Office) -> None:
    poisoned = derived_id(id_of("request", 1), "task", 1)

    def decide(desk: Desk, work: Work, now: datetime) -> Decision[Desk]:
        if isinstance(work, turns.Deadline) and work.key == poisoned:
            raise ZeroDivisionError
        return RULES.decide(desk, work, now)

    desk = await office.lead("a", rules=replace(RULES, decide=decide))
    await office.ask(Enrol(members=TEAM))
    await office.decided(await office.submit(1, 2))
    office.ahead = timedelta(minutes=16)
    other = derived_id(id_of("request", 2), "task", 1)
    await holds(lambda: desk.state.tasks[other].wave == 2)
    assert desk.state.tasks[poisoned].wave == 1


# --- how much ---------------------------------------------------------------------------------------------------------


async def test_more_facts_than_a_batch_holds_are_split_into_several_turns(office: Office) -> None:
    await office.store(office.intake, *(envelope(submitted(n)) for n in range(500)))
    last = await office.submit(*range(500, 900))
    desk = await office.lead("a")  # 500 inputs of one turn lead to 1,500 facts
    await office.decided(last)
    sizes = [
        fact.facts
        for stored in await read(office.bus, MARKER)
        if isinstance(fact := decode(stored.subject, stored.data).fact, TurnCommitted)
    ]
    assert sum(sizes) == 3 * 900
    assert max(sizes) <= 999
    assert await office.checked(requests=900) == desk.state


async def test_overdue_deadlines_are_spread_over_turns(office: Office) -> None:
    desk = await office.lead("a")
    await office.ask(Enrol(members=tuple(enrolled(f"m-{n}", capacity=100_000) for n in range(4))))
    await office.decided(await office.submit(*range(600)))
    office.ahead = timedelta(minutes=20)
    await holds(lambda: all(task.wave == 2 for task in desk.state.tasks.values()))
    assert await office.checked(requests=600) == desk.state


async def test_inputs_that_lead_to_nothing_move_the_position_by_a_marker_alone(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "QUIET_S", 0.3)
    desk = await office.lead("a")
    begun = await office.position()
    elsewhere = [envelope(submitted(n).model_copy(), district="420111") for n in range(3)]
    last = await office.store(office.intake, *elsewhere, envelope(RATED))  # the desk does not know this request
    await asyncio.sleep(0.1)
    assert await office.position() == begun
    await office.decided(last, within_s=2)
    assert await office.facts() == []
    assert await office.checked() == desk.state


async def test_many_inputs_that_lead_to_nothing_move_the_position_without_a_pause(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "QUIET_INPUTS", 100)
    last = await office.store(
        office.intake, *(envelope(RATED.model_copy(update={"request_id": id_of(n)})) for n in range(900))
    )
    await office.lead("a")
    await office.decided(last - 100, within_s=4)


# --- who leads --------------------------------------------------------------------------------------------------------


async def test_of_two_one_leads_and_the_other_knows_the_same(office: Office) -> None:
    one, two = await office.start("a"), await office.start("b")
    await holds(lambda: one.leading or two.leading)
    await office.ask(Enrol(members=TEAM))
    await office.decided(await office.submit(*range(5)))
    await asyncio.sleep(0.2)
    assert one.leading != two.leading
    leader, standby = (one, two) if one.leading else (two, one)
    await holds(lambda: standby.state == leader.state)
    with pytest.raises(FencedError):
        await standby.ask(Command(id_of("x"), Enrol(members=TEAM), DISPATCHER))


async def test_a_killed_leader_is_followed_within_its_time(office: Office) -> None:
    await office.lead("a")
    await office.ask(Enrol(members=TEAM))
    standby = await office.start("b")
    await office.decided(await office.submit(*range(5)))
    started = asyncio.get_running_loop().time()
    await office.kill("a")
    await office.decided(await office.submit(*range(5, 10)), within_s=5)
    assert asyncio.get_running_loop().time() - started < 2.5
    assert await office.checked(requests=10) == standby.state


async def test_a_frozen_leader_is_fenced_off_when_it_wakes_and_nothing_is_doubled(office: Office) -> None:
    frozen = await office.lead("a", blind=True)  # it will not look at its lease: only the fence is left
    await office.ask(Enrol(members=TEAM), of=frozen)
    await office.decided(await office.submit(1))
    thaw = asyncio.Event()
    commit = frozen._bus.commit

    async def sleeps(*args: Any, **named: Any) -> int:
        await thaw.wait()
        return await commit(*args, **named)

    frozen._bus.commit = sleeps  # type: ignore[method-assign]
    await office.submit(2)
    asked = asyncio.create_task(frozen.ask(Command(id_of("late"), Enrol(members=(enrolled("m-late"),)), DISPATCHER)))
    await asyncio.sleep(0.1)
    new = await office.lead("b")
    await office.decided(await office.submit(3))
    thaw.set()
    with pytest.raises(FencedError):
        await asyncio.wait_for(asked, 5)
    await office.kill("a")
    await holds(lambda: new.leading)
    await office.decided(await office.submit(4))
    assert await office.checked(requests=4) == new.state
    assert "m-late" not in new.state.members


async def test_two_who_both_believe_to_lead_double_nothing(office: Office) -> None:
    one, two = await office.start("a", blind=True), await office.start("b", blind=True)
    await holds(lambda: one.leading or two.leading)
    last = 0
    for n in range(40):
        last = await office.submit(*range(n * 5, n * 5 + 5))
        await asyncio.sleep(0.01)
    await office.decided(last, within_s=20)
    assert len((await office.checked(requests=200)).tasks) == 200


async def test_a_stale_leader_does_not_answer_a_refusal(office: Office) -> None:
    stale = await office.lead("a", blind=True)
    await office.bus.commit(
        [Message(MARKER, marker(await office.bus.state(), position=await office.position()).encode())],
        fence=Fence(MARKER, stale._fence),
    )
    with pytest.raises(FencedError):
        await stale.ask(Command(id_of("x"), Accept(task=id_of("?"), member=LI), DISPATCHER))


def marker(state: Any, *, position: int, facts: int = 0) -> Envelope:
    """The marker of somebody else's turn."""
    fact = TurnCommitted.model_validate(
        {
            "position": {"created": state.created, "sequence": position},
            "by": "somebody",
            "epoch": 9,
            "facts": facts,
        }
    )
    return envelope(fact, at=instant(datetime.now(UTC)), area="-", id=id_of("marker", position, facts, state.last))


# --- commits whose outcome is unknown ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [True, False], ids=["stored before", "never stored"])
async def test_a_commit_whose_answer_is_lost_leads_to_one_turn(office: Office, stored: bool) -> None:
    desk = await office.lead("a")
    commit, lost = desk._bus.commit, 0

    async def loses(messages: Sequence[Message], **named: Any) -> int:
        nonlocal lost
        if len(messages) > 1 and lost < 2:
            lost += 1
            if stored:
                await commit(messages, **named)
            raise UnavailableError("the answer is lost")
        return await commit(messages, **named)

    desk._bus.commit = loses  # type: ignore[method-assign]
    answer = await office.ask(Enrol(members=TEAM))
    assert answer["facts"] == 3
    await office.decided(await office.submit(1))
    assert lost == 2
    assert await office.facts() == [*TEAM, *[f for f in await office.facts() if f.name.startswith("task.")]]
    assert await office.checked(requests=1) == desk.state
    assert desk.leading


async def test_a_commit_that_comes_true_late_is_found_again(office: Office) -> None:
    """The first try is stored only while the second is under way: the second conflicts, and the marker is our own."""
    desk = await office.lead("a")
    commit, tries = desk._bus.commit, []

    async def late(messages: Sequence[Message], **named: Any) -> int:
        tries.append((messages, named))
        if len(tries) == 1:
            raise UnavailableError("no answer")
        if len(tries) == 2:
            await commit(tries[0][0], **tries[0][1])
        return await commit(messages, **named)

    desk._bus.commit = late  # type: ignore[method-assign]
    assert (await office.ask(Enrol(members=TEAM)))["ok"]
    assert len(tries) == 2
    assert await office.facts() == list(TEAM)
    assert desk.leading


# --- what is folded ---------------------------------------------------------------------------------------------------


async def test_the_beginning_of_a_batch_is_folded_and_not_repeated(office: Office) -> None:
    """After a power loss: facts without the marker that should have ended them."""
    last = await office.submit(1, 2)
    fold = Fold(RULES, WUCHANG, await office.bus.state())
    known = reduce(RULES.take_in, (envelope(fact) for fact in REGISTER), fold.state)
    now = instant(office.clock())
    whole = RULES.decide(known, turns.Input(last - 1, envelope(submitted(1))), now).facts
    await office.store(office.bus, *whole[:2])  # opened and explained, not yet offered
    desk = await office.lead("a")
    await office.decided(last)
    assert {task.status for task in desk.state.tasks.values()} == {"unplaced"}
    assert await office.checked(requests=2) == desk.state


async def test_a_snapshot_and_the_tail_give_what_a_fold_from_zero_and_the_live_desk_give(office: Office) -> None:
    desk = await office.lead("a")
    await office.ask(Enrol(members=TEAM))
    await office.decided(await office.submit(*range(6)))
    half = await recover(office.bus, RULES, WUCHANG, snapshot=False)
    await write_snapshot(office.bus, half)
    for task in list(desk.state.tasks.values()):
        if task.offered:
            await office.ask(Accept(task=task.id, member=task.offered[0]))
            await office.ask(Done(task=task.id, member=task.offered[0]))
    await office.decided(await office.submit(*range(6, 9)))
    with_snapshot = await recover(office.bus, RULES, WUCHANG)
    from_zero = await recover(office.bus, RULES, WUCHANG, snapshot=False)
    assert with_snapshot.state == from_zero.state == desk.state
    assert with_snapshot.position == from_zero.position
    assert half.folded < from_zero.folded


async def test_a_desk_that_leads_for_days_forgets_what_a_fold_from_zero_forgets(office: Office) -> None:
    desk = await office.lead("a")
    for day in range(4):
        office.ahead = timedelta(days=day)
        await office.ask(Enrol(members=(enrolled(LI, capacity=40 + day),)))
    assert len(desk.state.answers) + len(desk.state.answers_before) < 4
    assert await office.checked() == desk.state


async def test_a_snapshot_of_another_version_or_stream_or_of_no_sense_is_not_used(office: Office) -> None:
    await office.lead("a")
    await office.ask(Enrol(members=TEAM))
    fold = await recover(office.bus, RULES, WUCHANG)
    other = Fold(replace(RULES, version=RULES.version + 1), WUCHANG, fold.stream)
    assert not other.load(fold.dump())
    assert not Fold(RULES, WUCHANG, StreamState("2001-01-01T00:00:00Z", 1, 1)).load(fold.dump())
    for garbage in (b"", b"\x00" * 99, fold.dump()[:-9]):
        assert not Fold(RULES, WUCHANG, fold.stream).load(garbage)
    await office.bus.put_object("SNAPSHOTS", snapshot_name(RULES, WUCHANG, 0), b"garbage")
    await office.bus.put_object("SNAPSHOTS", snapshot_name(RULES, WUCHANG, 1), fold.dump()[:-9])
    assert (await recover(office.bus, RULES, WUCHANG)).state == fold.state


async def test_the_standby_writes_snapshots_that_are_used(office: Office) -> None:
    leader = await office.lead("a")
    standby = await office.start("b", snapshot_facts=20)
    await holds(lambda: standby._fold is not None)
    await office.ask(Enrol(members=TEAM))
    await office.decided(await office.submit(*range(50)))

    async def written() -> bool:
        return any([await office.bus.get_object("SNAPSHOTS", snapshot_name(RULES, WUCHANG, n)) for n in (0, 1)])

    await holds(written)
    assert (await recover(office.bus, RULES, WUCHANG)).state == leader.state


async def test_a_replaced_stream_stops_the_leader_with_its_name(office: Office) -> None:
    desk = await office.lead("a")
    await office.ask(Enrol(members=TEAM))
    await replace_stream(office)
    await holds(lambda: desk.failed is not None)
    assert isinstance(desk.failed, StreamReplacedError)
    assert (await office.bus.state()).last == 0


async def test_a_replaced_stream_stops_a_desk_that_is_asked_before_it_has_noticed(office: Office) -> None:
    desk = await office.lead("a")
    asked = [asyncio.create_task(office.ask(Enrol(members=TEAM), of=desk)) for _ in range(3)]
    await replace_stream(office)
    await holds(lambda: desk.failed is not None)
    assert isinstance(desk.failed, StreamReplacedError)
    for task in asked:
        task.cancel()
    assert (await office.bus.state()).last == 0


async def replace_stream(office: Office) -> None:
    """The stream is lost and made anew."""
    admin = await office.connect("admin")
    await admin._api("STREAM.DELETE.EVENTS")
    await streams.apply(admin)


async def test_a_restored_stream_with_the_old_positions_stops_the_desk(office: Office) -> None:
    state = await office.bus.state()
    other = replace(state, created="2001-01-01T00:00:00Z")
    await office.store(office.bus, marker(other, position=0))
    desk = await office.start("a")
    await holds(lambda: desk.failed is not None)
    assert isinstance(desk.failed, StreamReplacedError)


# --- everything breaks ------------------------------------------------------------------------------------------------


async def chaos(office: Office, server: NatsServer, *, requests: int, faults: int, seed: int) -> None:
    rnd = random.Random(seed)
    names = (f"d{n}" for n in count(1))
    await office.start(next(names))
    await office.start(next(names), blind=True)
    await office.ask(Enrol(members=tuple(enrolled(f"m-{n:02}", capacity=100_000) for n in range(20))))
    answers: dict[str, bool] = {}
    stored = 0

    async def residents() -> None:
        nonlocal stored
        for first in range(0, requests, 20):
            batch = [
                envelope(submitted(n), at=instant(office.clock())) for n in range(first, min(first + 20, requests))
            ]
            messages = [Message(fact.subject, fact.encode(), expect=0) for fact in batch]
            while True:
                try:
                    stored = await office.intake.commit(messages)
                    break
                except UnavailableError:
                    last = None
                    with suppress(UnavailableError):
                        last = await office.intake.last(messages[-1].subject)
                    if last:
                        stored = last.sequence
                        break
                    await asyncio.sleep(0.05)
            await asyncio.sleep(rnd.uniform(0, 0.03))

    async def members() -> None:
        for n in range(requests // 10):
            task = derived_id(id_of("request", rnd.randrange(requests)), "task", 1)
            desk = next((d for d, _, _ in office.running.values() if d.leading), None)
            held = desk.state.tasks.get(task) if desk else None
            if held and held.offered:
                verb = Accept if rnd.random() < 0.7 else Decline
                id = id_of("chaos", n)
                answers[id] = bool((await office.ask(verb(task=task, member=held.offered[0]), id=id)).get("ok"))
            await asyncio.sleep(0.01)

    async def breaks() -> None:
        for _ in range(faults):
            await asyncio.sleep(rnd.uniform(0.2, 0.8))
            if rnd.random() < 0.5:
                server.kill()
                await asyncio.sleep(rnd.uniform(0, 0.3))
                server.start()
            elif len(office.running) > 1:
                await office.kill(rnd.choice(list(office.running)))
                await office.start(next(names), blind=rnd.random() < 0.3)

    await asyncio.gather(residents(), members(), breaks())
    for name in list(office.running):
        await office.kill(name)
    final = await office.lead("last")
    await office.decided(stored, within_s=30)
    assert await office.checked(requests=requests) == final.state
    causes = Counter(
        fact.cause
        for delivery in await read(office.bus, RULES.own_subjects(WUCHANG))
        if (fact := decode(delivery.subject, delivery.data)).fact.name in ("task.accepted", "task.declined")
    )
    assert all(causes[id] == 1 for id, ok in answers.items() if ok), "a command was lost or took effect twice"
    assert all(causes[id] == 0 for id, ok in answers.items() if not ok), "a refused command took effect"


@pytest.mark.timeout(100)
async def test_kills_of_leaders_and_server_lose_and_double_nothing(office: Office, fresh_nats: NatsServer) -> None:
    await chaos(office, fresh_nats, requests=2000, faults=5, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(2, 10))
async def test_kills_for_long_lose_and_double_nothing(office: Office, fresh_nats: NatsServer, seed: int) -> None:
    await chaos(office, fresh_nats, requests=6000, faults=30, seed=seed)
