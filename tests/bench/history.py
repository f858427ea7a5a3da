"""
A district's past: facts of hundreds of thousands of tasks, made by the real `decide` and `evolve` and put on the bus in turns.

Of every ten tasks five are withdrawn, one goes through its whole life, one is accepted and three are offered: 40 facts, and four
tasks that stay open. A million facts are 250,000 tasks with 100,000 open, over 30 days that end now.

Made in a process of its own (`python -m tests.bench.history`), while this one puts it on the bus.
"""

from __future__ import annotations

import asyncio
import pickle
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import import_module

from services.dispatch.commands import Accept, Arrive, Done, Enrol
from services.dispatch.decide import decide
from services.dispatch.desk import RULES
from services.dispatch.model import Desk, evolve, initial, take_in
from shared.auth import Caller
from shared.bus import Bus, Fence, Message, StreamState
from shared.envelope import Envelope
from shared.facts import (
    HUB,
    NOWHERE,
    Fact,
    MatchExplained,
    NoticeQueued,
    NoticeSent,
    Position,
    RequestRated,
    RequestSubmitted,
    RequestWithdrawn,
    TaskOffered,
    TaskOpened,
    TurnCommitted,
    instant,
)
from shared.ids import derived_id, new_id
from shared.turns import FACTS_MAX, Command, Fold, Input, snapshot_name
from tests.bench.ground import DISTRICT, apply_register, members, register_facts, request
from tests.bench.harness import ROOT

DAYS = 30
TASK_FACTS_MAX = 8
LARGE_FACTS = 750
DISPATCHER = Caller("bench", DISTRICT, frozenset({"dispatcher"}))
MARKER = RULES.marker_subject(DISTRICT)
LENGTH = struct.Struct("!I")
BLOCK = 250
STAGES: dict[type[Fact], int] = {
    model: stage
    for stage, models in enumerate(
        [(RequestSubmitted,), (TaskOpened, MatchExplained, TaskOffered), (NoticeQueued, NoticeSent)]
    )
    for model in models
}


@dataclass(frozen=True)
class Turn:
    """One turn as it was, and the snapshot that was taken after it, if one was."""

    messages: list[Message]
    snapshot: bytes | None


@dataclass(frozen=True)
class Past:
    """
    What was put on the bus.

    Attributes:
        facts: of dispatch, without markers.
        marker: the last marker's sequence.
        position: the last of the register, with which the stream begins.
        snapshot: how many messages lie before the snapshot; 0 where there is none.
        small, large: turns that follow from here, in this order, and have not been committed: of one task each, and of
            about 750 facts.
    """

    facts: int
    tasks: int
    marker: int
    position: int
    snapshot: int
    small: list[list[Message]]
    large: list[list[Message]]


async def fill(
    bus: Bus,
    facts: int,
    *,
    snapshot_at: int = 0,
    small: int = 0,
    large: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> Past:
    """
    Put so many facts on an empty bus (as its admin): the register, the enrolments, then tasks.

    Args:
        snapshot_at: store a snapshot once there are so many; 0: none.
        small, large: how many turns to make and not to commit.
        progress: told how many there are.
    """
    position = await apply_register(bus)
    created = (await bus.state()).created
    arguments = (created, *map(str, (position, facts, snapshot_at, small, large)))
    maker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.history", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 24,
    )
    stored, marker, snapshot_after = 0, 0, 0
    spare: list[list[Message]] = []
    try:
        while turn := await _next(maker):
            if stored >= facts:
                spare.append(turn.messages)
                continue
            marker = await bus.commit(turn.messages, fence=Fence(MARKER, marker), timeout_s=30)
            stored += len(turn.messages) - 1
            if turn.snapshot:
                snapshot_after = marker
                await bus.put_object("SNAPSHOTS", snapshot_name(RULES, DISTRICT, 0), turn.snapshot)
            progress(stored)
    finally:
        if maker.returncode is None and len(spare) < small + large:
            maker.kill()
        await maker.wait()
    if stored < facts or len(spare) != small + large:
        raise RuntimeError(f"the history ended after {stored} of {facts} facts")
    return Past(stored, stored // 4, marker, position, snapshot_after, spare[:small], spare[small:])


async def _next(maker: asyncio.subprocess.Process) -> Turn | None:
    assert maker.stdout
    try:
        (length,) = LENGTH.unpack(await maker.stdout.readexactly(LENGTH.size))
    except asyncio.IncompleteReadError:
        return None
    turn: Turn = pickle.loads(await maker.stdout.readexactly(length))
    return turn


def turns(created: str, position: int, until_facts: int, snapshot_at: int, small: int, large: int) -> Iterator[Turn]:
    """The past of a district, turn by turn, for a stream that holds the register only; then so many small and large turns."""
    now = instant(datetime.now(UTC) - timedelta(days=DAYS))
    ends = datetime.now(UTC)
    step = timedelta(days=DAYS) / max(1, until_facts // 4)
    state = initial(DISTRICT)
    for fact in register_facts():
        state = take_in(state, Envelope(new_id(), HUB, NOWHERE, now, fact, HUB))
    enrolled = decide(state, Command(new_id(), Enrol(members=tuple(members())), DISPATCHER), now)
    state, facts, stored, marker, tasks = enrolled.state, [*enrolled.facts], 0, position, 0
    while stored < until_facts or small or large:
        most = FACTS_MAX - TASK_FACTS_MAX
        if stored >= until_facts:
            most, small, large = (1, small - 1, large) if small else (LARGE_FACTS, 0, large - 1)
            until_facts = 0
        while len(facts) < most and (not until_facts or stored + len(facts) < until_facts):
            now = instant(min(ends, now + step))
            state, said = _life(state, tasks, now)
            tasks += 1
            facts += [envelope for envelope in said if envelope.fact.service == "dispatch"]
        envelope = _marker(created, position, now, marker, len(facts))
        messages = [Message(fact.subject, fact.encode()) for fact in facts]
        messages.append(Message(MARKER, envelope.encode()))
        state = evolve(state, envelope)
        marker += len(messages)
        position = marker  # as if the last request had come just before: a recovery reads on from there
        snapshot = None
        if stored < snapshot_at <= stored + len(facts):
            fold: Fold[Desk] = Fold(RULES, DISTRICT, StreamState(created, 1, marker))
            fold.state, fold.folded, fold.position, fold.last = state, marker, position, now
            snapshot = fold.dump()
        stored += len(facts)
        facts = []
        yield Turn(messages, snapshot)


def everything(requests: int) -> Iterator[Envelope]:
    """
    All that the four services say of so many requests, notices included, after a register and its members.

    As it comes when many come together: of each `BLOCK` first the requests, then what the desk makes of them, then the
    messages, then the rest of their lives.
    """
    now = instant(datetime.now(UTC) - timedelta(days=DAYS))
    step = timedelta(days=DAYS) / max(1, requests)
    state = initial(DISTRICT)
    for fact in register_facts():
        envelope = Envelope(new_id(), HUB, NOWHERE, now, fact, HUB)
        state = take_in(state, envelope)
        yield envelope
    enrolled = decide(state, Command(new_id(), Enrol(members=tuple(members())), DISPATCHER), now)
    state = enrolled.state
    yield from enrolled.facts
    for start in range(0, requests, BLOCK):
        block: list[Envelope] = []
        for n in range(start, min(start + BLOCK, requests)):
            now = instant(now + step)
            state, said = _life(state, n, now)
            block += said
            block += [notice for envelope in said for notice in _notices(envelope)]
        yield from sorted(block, key=lambda envelope: STAGES.get(type(envelope.fact), len(STAGES)))


def _notices(offered: Envelope) -> Iterator[Envelope]:
    """What notify says of an offer."""
    fact = offered.fact
    if not isinstance(fact, TaskOffered):
        return
    for member in fact.members:
        id = derived_id(offered.id, member)
        queued = NoticeQueued(
            notice_id=id,
            cause=offered.id,
            recipient=member,
            template="offered",
            task_id=fact.task_id,
            item=fact.item,
            area=offered.area,
            urgent=False,
            until=fact.until,
        )
        for notice in (queued, NoticeSent(notice_id=id, channel="app", attempt=1)):
            of = Envelope(new_id(), DISTRICT, offered.area, offered.time, notice, DISTRICT, offered.case, offered.id)
            yield of


def _marker(created: str, position: int, now: datetime, before: int, facts: int) -> Envelope:
    fact = TurnCommitted(position=Position(created=created, sequence=position), by="bench", epoch=1, facts=facts)
    return Envelope(derived_id(MARKER, before), DISTRICT, NOWHERE, now, fact, DISTRICT)


def _life(state: Desk, n: int, now: datetime) -> tuple[Desk, list[Envelope]]:
    """The next task, from its request to wherever its tenth of the work gets: what its resident and the desk said of it."""
    submitted = request(n, now)
    decision = decide(state, Input(0, submitted), now)
    state, said = decision.state, [submitted, *decision.facts]
    for work in _rest(state, n % 10, str(submitted.case), submitted.area, now):
        decision = decide(state, work, now)
        state = decision.state
        said += [*([work.envelope] if isinstance(work, Input) else []), *decision.facts]
    return state, said


def _rest(state: Desk, which: int, request_id: str, area: str, now: datetime) -> Iterator[Input | Command]:
    if which < 3:
        return
    if which >= 5:
        withdrawn = RequestWithdrawn(request_id=request_id, reason="solved")
        yield Input(0, Envelope(new_id(), DISTRICT, area, now, withdrawn, DISTRICT, request_id))
        return
    task = state.tasks[state.by_request[request_id]]
    (member,) = task.offered
    caller = Caller(member, DISTRICT, frozenset({"member"}))
    yield Command(new_id(), Accept(task=task.id, member=member), caller)
    if which == 4:
        yield Command(new_id(), Arrive(task=task.id, member=member), caller)
        yield Command(new_id(), Done(task=task.id, member=member), caller)
        rated = RequestRated(request_id=request_id, grade=5, solved=True)
        yield Input(0, Envelope(new_id(), DISTRICT, area, now, rated, DISTRICT, request_id))


def main() -> None:
    """Write the turns to standard output, each with its length before it."""
    for turn in turns(sys.argv[1], *map(int, sys.argv[2:7])):
        data = pickle.dumps(turn)
        sys.stdout.buffer.write(LENGTH.pack(len(data)) + data)


if __name__ == "__main__":
    import_module("tests.bench.history").main()  # under its own name, by which what it writes is read
