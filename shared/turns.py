"""
The turn: the one loop of every service that remembers (design §4).

    wait for the first of: command, input, deadline, lease
    take commands, inputs and due deadlines
    decide            pure; one turn = one batch
    commit            one atomic batch that ends with the marker `turn.committed`, fenced on the marker's own last sequence
    evolve, answer    only now

The marker's position is the only cursor: nothing is acknowledged, so nothing is redelivered, skipped or dead-lettered. The
state is a value that is never changed in place: a turn that could not be committed is undone by forgetting it.

What is folded is always the same: the inputs up to a turn's position, then its facts. A leader that lives, a standby that
follows, a recovery from a snapshot and an audit all come to the same state.
"""

from __future__ import annotations

import asyncio
import heapq
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import uuid4

import orjson
from prometheus_client import Counter, Gauge, Histogram

from shared.auth import Caller
from shared.bus import BATCH_MAX, Bus, Delivery, Fence, Message, Reader, StreamState
from shared.envelope import DATA_BYTES_MAX, OPTIONS, Envelope, decode
from shared.errors import BusError, FencedError, MalformedError, RefusedError, StreamReplacedError
from shared.facts import NOWHERE, InputRefused, Position, TurnCommitted, instant, plain
from shared.ids import derived_id
from shared.lease import Lease
from shared.problems import problem
from shared.telemetry import logger

S = TypeVar("S")

FACTS_MAX = BATCH_MAX - 1
WORK_MAX = 500
"""How many commands, inputs and deadlines each one turn takes at most."""
QUIET_INPUTS = 1000
QUIET_S = 5.0
"""Inputs that lead to no fact move the position in memory; after so many, or so long, a marker alone is committed."""
SNAPSHOT_FACTS = 50_000
RETRY = timedelta(minutes=1)
"""When a deadline whose decision raised is tried again."""

TURNS = Counter("paidan_turns_total", "Turns committed", ["service", "district"])
FACTS = Counter("paidan_turn_facts_total", "Facts committed by turns", ["service", "district"])
REFUSED = Counter("paidan_turn_inputs_refused_total", "Inputs set aside", ["service", "district"])
FENCED = Counter(
    "paidan_turn_fenced_total", "Commits refused because another leader had written", ["service", "district"]
)
COMMIT_S = Histogram("paidan_turn_commit_seconds", "Time to commit a turn", ["service"])
LEADING = Gauge("paidan_leading", "1 while this instance leads the district", ["service", "district"])


class Input(NamedTuple):
    """A fact of somebody else that has to be decided on."""

    sequence: int
    envelope: Envelope


class Command(NamedTuple):
    """What somebody wants: `id` is the client's own, the same for every repeat; `what` is of the service's own kind."""

    id: str
    what: Any
    caller: Caller


class Deadline(NamedTuple):
    """A time that has come. `key` says for what; it may have been overtaken."""

    at: datetime
    key: str


Work = Input | Command | Deadline


@dataclass(frozen=True, slots=True)
class Decision(Generic[S]):
    """What follows from one piece of work: the facts, in order, the state after them, and the answer to a command."""

    state: S
    facts: Sequence[Envelope] = ()
    answer: Any = None


@dataclass(frozen=True)
class Rules(Generic[S]):
    """
    What a service remembers and how it decides; every function is pure.

    Attributes:
        service: the writer in its subjects; `scope` names its leases and snapshots.
        version: of the state's form: a snapshot of another version is not used.
        decides: moves when the same state and work lead to other facts than before; every marker says it, so that an audit does
            not judge a decision by rules of another day.
        inputs: the subjects it decides on, for a district. They never change with configuration.
        remembered: those of them that change the state by themselves (`take_in`).
        deadline: the next time at which a fact's entity needs a decision, after that fact.
        deadlines: all of them, for a whole state.
    """

    service: str
    scope: str
    version: int
    marker: type[TurnCommitted]
    refused: type[InputRefused]
    inputs: Callable[[str], tuple[str, ...]]
    remembered: Callable[[str], tuple[str, ...]]
    initial: Callable[[str], S]
    take_in: Callable[[S, Envelope], S]
    evolve: Callable[[S, Envelope], S]
    decide: Callable[[S, Work, datetime], Decision[S]]
    deadline: Callable[[S, Envelope], Deadline | None]
    deadlines: Callable[[S], Iterable[Deadline]]
    dump: Callable[[S], Any]
    load: Callable[[Any], S]
    decides: int = 1

    def marker_subject(self, district: str) -> str:
        """The one literal subject on which this service is fenced."""
        return f"evt.{district}.{self.service}.{NOWHERE}.{self.marker.name}"

    def own_subjects(self, district: str) -> str:
        """Everything it writes."""
        return f"evt.{district}.{self.service}.>"


class Fold(Generic[S]):
    """
    The state as of a sequence, from facts alone: inputs up to a turn's position, then the turn's facts.

    Args:
        stream: the one that is there; positions are of it, or of those that it was filled again from, number for number.

    Attributes:
        folded: the sequence of the last marker folded.
        position: the sequence of the last input that was decided on.
        last: the time of the last fact.
    """

    def __init__(self, rules: Rules[S], district: str, stream: StreamState) -> None:
        self.rules = rules
        self.district = district
        self.stream = stream
        self.created = stream.created
        self.state = rules.initial(district)
        self.folded = 0
        self.position = 0
        self.last = datetime.fromtimestamp(0, UTC)
        self._inputs: deque[tuple[int, str, bytes]] = deque()
        self._facts: list[Envelope] = []
        self._own = f"evt.{district}.{rules.service}."
        self._marker = rules.marker_subject(district)

    def reader(self, bus: Bus) -> Reader:
        """What has to be folded from here on."""
        subjects = (self.rules.own_subjects(self.district), *self.rules.remembered(self.district))
        self._inputs.clear()
        self._facts.clear()
        return bus.reader(subjects, after=min(self.folded, self.position), credit=2000)

    def take(self, deliveries: Iterable[Delivery]) -> None:
        """
        Fold these.

        Raises:
            StreamReplacedError: a position is of another stream.
            MalformedError: an own fact that cannot be read: nobody else may write here, so a person must look.
        """
        for sequence, _, subject, data in deliveries:
            if not subject.startswith(self._own):
                if sequence > self.position:
                    self._inputs.append((sequence, subject, data))
            elif sequence > self.folded:
                envelope = decode(subject, data)
                if subject == self._marker:
                    self._turn(sequence, envelope)
                else:
                    self._facts.append(envelope)

    def _turn(self, sequence: int, marker: Envelope) -> None:
        fact = marker.fact
        assert isinstance(fact, TurnCommitted)
        if fact.position.created != self.created and fact.position.created not in self.stream.formerly:
            raise StreamReplacedError(fact.position.created, self.created)
        rules, state = self.rules, self.state
        while self._inputs and self._inputs[0][0] <= fact.position.sequence:
            _, subject, data = self._inputs.popleft()
            with suppress(Exception):  # set aside when it was decided on, for the same reason
                state = rules.take_in(state, decode(subject, data))
        for envelope in self._facts:
            state = rules.evolve(state, envelope)
        self._facts.clear()
        self.state = rules.evolve(state, marker)
        self.folded, self.position, self.last = sequence, fact.position.sequence, marker.time

    def dump(self) -> bytes:
        """A snapshot."""
        return zlib.compress(
            orjson.dumps(
                {
                    "version": self.rules.version,
                    "created": self.created,
                    "folded": self.folded,
                    "position": self.position,
                    "last": self.last,
                    "state": self.rules.dump(self.state),
                },
                default=plain,
                option=OPTIONS | orjson.OPT_NON_STR_KEYS,
            ),
            1,
        )

    def load(self, data: bytes) -> bool:
        """Begin from a snapshot; False, and nothing changed, where it is of another version or stream, or cannot be read."""
        try:
            snapshot = orjson.loads(zlib.decompress(data))
            if snapshot["version"] != self.rules.version or snapshot["created"] != self.created:
                return False
            state = self.rules.load(snapshot["state"])
            folded, position, last = snapshot["folded"], snapshot["position"], datetime.fromisoformat(snapshot["last"])
        except (zlib.error, ValueError, KeyError, TypeError):
            return False
        self.state, self.folded, self.position, self.last = state, folded, position, last
        return True


async def recover(bus: Bus, rules: Rules[S], district: str, *, snapshot: bool = True) -> Fold[S]:
    """
    The newest state: from the better of the two snapshots and the tail, or from zero.

    Raises:
        StreamReplacedError, BusError.
    """
    fold = Fold(rules, district, await bus.state())
    if snapshot:
        for name in (snapshot_name(rules, district, n) for n in (0, 1)):
            candidate = Fold(rules, district, fold.stream)
            with suppress(BusError):  # without it we only take longer
                data = await bus.get_object("SNAPSHOTS", name)
                if data and candidate.load(data) and candidate.folded > fold.folded:
                    fold = candidate
    last = await bus.last(rules.marker_subject(district))
    if last is None:
        return fold
    started, began = time.monotonic(), fold.folded
    reader = fold.reader(bus)
    try:
        while fold.folded < last.sequence:
            fold.take(await reader.wait(1.0, 2000))
    finally:
        await reader.close()
    logger().info(
        "recovered",
        service=rules.service,
        district=district,
        snapshot=began,
        folded=fold.folded,
        seconds=round(time.monotonic() - started, 2),
    )
    return fold


def snapshot_name(rules: Rules[S], district: str, n: int) -> str:
    """Two names in turn: a write that dies half-way must not cost the good one."""
    return f"{rules.scope}-{district}-{n % 2}"


async def write_snapshot(bus: Bus, fold: Fold[S]) -> None:
    """Store a snapshot. Raises BusError."""
    await bus.put_object("SNAPSHOTS", snapshot_name(fold.rules, fold.district, fold.folded), fold.dump())


@dataclass(slots=True)
class _Asked:
    """A command that waits for its turn."""

    command: Command
    answer: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Turns(Generic[S]):
    """
    One district's loop in one instance: stands by, leads, steps down, for ever.

    Args:
        clock: the instance's own time, UTC.
        snapshot: called when the leader thinks it is time for a new snapshot; writes it elsewhere (a child process).

    Attributes:
        state: as of the last committed turn.
        failed: why it stopped for good, if it did.
    """

    def __init__(
        self,
        rules: Rules[S],
        bus: Bus,
        district: str,
        instance: str,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        snapshot: Callable[[str], None] | None = None,
        snapshot_facts: int = SNAPSHOT_FACTS,
        blind: bool = False,
    ) -> None:
        self._rules = rules
        self._bus = bus
        self._district = district
        self._instance = instance
        self._clock = clock
        self._snapshot = snapshot
        self._snapshot_facts = snapshot_facts
        self._since_snapshot = 0
        self._blind = blind  # ignores its lease, so that a test shows that the fence alone is the safety
        self._lease = Lease(bus, scope=rules.scope, district=district, holder=instance)
        self._wake = asyncio.Event()
        self._commands: deque[_Asked] = deque()
        self._inputs: deque[Delivery] = deque()
        self._heap: list[tuple[datetime, str]] = []
        self._limit = WORK_MAX
        self._fence = 0
        self._position = 0
        self._moved = 0
        self._moved_at = 0.0
        self._hear_to = 0
        self._heard = False
        self._fold: Fold[S] | None = None
        self._live: S = rules.initial(
            district
        )  # the fold and, on top, inputs that led to nothing: forgotten on stepping down
        self._labels = (rules.service, district)
        self.leading = False
        self.failed: Exception | None = None
        self.turned: list[Callable[[S], None]] = []
        """Called with the new state after every committed turn."""

    @property
    def state(self) -> S:
        """The newest state that this instance knows of."""
        return self._live if self.leading or self._fold is None else self._fold.state

    async def ask(self, command: Command) -> Any:
        """
        What the command leads to, once it is committed: the answer with the `position` at which it can be read, or a problem
        document under `problem`.

        Raises:
            FencedError: this instance does not lead, or did not long enough: ask again with the same id.
        """
        if not self.leading:
            raise FencedError("not the leader")
        asked = _Asked(command)
        self._commands.append(asked)
        self._wake.set()
        return await asked.answer

    async def run(self, until: asyncio.Event) -> None:
        """
        Work until told to stop.

        An outage, a fence, even a bug ends only this leadership: the next begins from the facts. What a person must look at (a
        replaced stream, an own fact that cannot be read) ends it for good, with `failed` set.
        """
        log = logger(service=self._rules.service, district=self._district, instance=self._instance)
        try:
            while not until.is_set():
                try:
                    if self._fold is None:
                        self._fold = await recover(self._bus, self._rules, self._district)
                        await self._lease.open()
                    await self._serve_once(self._fold, until)
                except FencedError as why:
                    FENCED.labels(*self._labels).inc()
                    log.warning("stepped_down", why=str(why))
                except (BusError, OSError) as why:
                    log.warning("bus_unavailable", why=str(why))
                    await asyncio.sleep(0.2)
                except (StreamReplacedError, MalformedError) as why:
                    self.failed = why
                    log.error("stopped", why=str(why))
                    return
                except Exception:
                    log.exception("turn_failed")
                    self._fold = None
                    await asyncio.sleep(1)
        finally:
            await self._lease.close()

    async def _serve_once(self, fold: Fold[S], until: asyncio.Event) -> None:
        follower = fold.reader(self._bus)
        inputs: Reader | None = None
        try:
            if not await self._stand_by(fold, follower, until):
                return
            await self._take_over(fold, follower)
            await follower.close()
            inputs = self._bus.reader(
                self._rules.inputs(self._district), after=self._position, credit=WORK_MAX * 2, wake=self._wake
            )
            self.leading = True
            LEADING.labels(*self._labels).set(1)
            logger().info(
                "leads",
                service=self._rules.service,
                district=self._district,
                epoch=self._lease.epoch,
                fence=self._fence,
            )
            self._hear_to, self._heard = (await self._bus.state()).last, False
            opened = inputs.opened
            while self._may_lead() and not until.is_set():
                if inputs.opened != opened:
                    opened = inputs.opened
                    await self._same_stream(fold)
                await self._turn(fold, inputs)
            if until.is_set() and self._may_lead():
                while (self._commands or self._inputs) and self._may_lead():
                    await self._turn(fold, None)
                await self._quiet_marker(fold, force=True)
            elif not until.is_set():
                raise FencedError("the lease ran out")
        finally:
            self.leading = False
            LEADING.labels(*self._labels).set(0)
            for asked in self._commands:
                if not asked.answer.done():
                    asked.answer.set_exception(FencedError("stepped down"))
            self._commands.clear()
            self._inputs.clear()
            await follower.close()
            if inputs:
                await inputs.close()

    def _may_lead(self) -> bool:
        return self._blind or self._lease.held

    async def _stand_by(self, fold: Fold[S], follower: Reader, until: asyncio.Event) -> bool:
        """Keep a warm fold until the lease is ours; False when told to stop."""
        if self._may_lead():
            return True  # fenced with the lease still ours (a late commit of our own): fold and go on
        await self._lease.release()
        snapshot_at = fold.folded + self._snapshot_facts
        while not until.is_set():
            if await self._lease.acquire():
                return True
            for _ in range(20):
                fold.take(await follower.wait(0.15, 2000))
                if not follower.pending:
                    break
            if fold.folded >= snapshot_at:
                with suppress(BusError):
                    await write_snapshot(self._bus, fold)
                snapshot_at = fold.folded + self._snapshot_facts
        return False

    async def _take_over(self, fold: Fold[S], follower: Reader) -> None:
        """
        Fold to the last marker and commit a marker alone: from then on the predecessor is fenced off.

        Our own marker comes back through the fold, so everything that was stored before it has been folded.
        """
        await self._same_stream(fold)
        last = await self._bus.last(self._rules.marker_subject(self._district))
        # Asked after the marker was read: whoever wrote it held the lease before us, so epochs never go back.
        if not self._blind and not await self._lease.confirm():
            raise FencedError("somebody else has taken the lease")
        target = last.sequence if last else 0
        while fold.folded < target:
            if not self._may_lead():
                raise FencedError("the lease ran out while catching up")
            fold.take(await follower.wait(0.5, 2000))
        self._fence, self._position, self._moved = target, fold.position, 0
        await self._commit((), self._now(fold))
        while fold.folded < self._fence:
            if not self._may_lead():
                raise FencedError("the lease ran out while catching up")
            fold.take(await follower.wait(0.5, 2000))
        self._live = fold.state
        self._heap = [(deadline.at, deadline.key) for deadline in self._rules.deadlines(fold.state)]
        heapq.heapify(self._heap)

    async def _same_stream(self, fold: Fold[S]) -> None:
        """
        A stream that was made anew is silent behind our position, and takes our marker for its first.

        Raises:
            StreamReplacedError, BusError.
        """
        created = (await self._bus.state()).created
        if created != fold.created:
            raise StreamReplacedError(fold.created, created)

    def _now(self, fold: Fold[S]) -> datetime:
        return max(instant(self._clock()), fold.last)

    async def _turn(self, fold: Fold[S], reader: Reader | None) -> None:
        """Take what there is, decide, commit, and only then move and answer; wait where there is nothing."""
        self._wake.clear()
        if reader is not None and len(self._inputs) < self._limit:
            self._inputs.extend(await reader.take(WORK_MAX))
        now = self._now(fold)
        due: list[tuple[datetime, str]] = []
        heard = self._has_heard(reader)
        while heard and self._heap and self._heap[0][0] <= now and len(due) < self._limit:
            due.append(heapq.heappop(self._heap))
        if not (due or self._inputs or self._commands):
            await self._quiet_marker(fold)
            soon = self._heap and heard
            wait_s = min(0.5, max(0.001, (self._heap[0][0] - self._clock()).total_seconds())) if soon else 0.5
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):  # not wait_for: before 3.12 it may swallow a cancellation
                    await self._wake.wait()
            return
        for commands, inputs, deadlines in self._portions(due):
            state, facts, messages, answers = self._decide(commands, inputs, deadlines, now)
            if len(facts) <= FACTS_MAX:
                break
            self._limit = max(1, (len(commands) + len(inputs) + len(deadlines)) // 2)
        else:
            raise AssertionError("one piece of work alone is always bounded")
        for late in due[len(deadlines) :]:
            heapq.heappush(self._heap, late)
        if inputs:
            self._position = inputs[-1].sequence
            self._moved += len(inputs)
        if facts:
            marker = await self._commit(messages, now)
            self._limit = self._fitting(len(commands) + len(inputs) + len(deadlines), len(facts))
            self._committed(fold, state, facts, marker)
        else:
            if commands:
                await self._read_barrier()
            self._live = state
        for _ in commands:
            self._commands.popleft()
        for _ in inputs:
            self._inputs.popleft()
        for asked, answer in zip(commands, answers, strict=True):
            if not asked.answer.done():
                known = isinstance(answer, dict) and "problem" not in answer
                asked.answer.set_result(answer | {"position": self._fence} if known else answer)
        if not facts:
            await self._quiet_marker(fold)

    def _has_heard(self, reader: Reader | None) -> bool:
        """
        Whether a new leader knows what was said while nobody led: until then no deadline is due.

        An answer that came in time is heard before the question runs out, however long nobody was there to hear it.
        """
        if self._inputs:
            self._heard = self._heard or self._inputs[0].sequence > self._hear_to
        else:
            self._heard = self._heard or (reader is not None and reader.complete)
        return self._heard

    def _fitting(self, work: int, facts: int) -> int:
        """How much work fits the next batch, judged by this one, so that few turns have to be decided twice."""
        if facts < FACTS_MAX // 4:
            return min(WORK_MAX, 2 * self._limit)
        return max(1, min(WORK_MAX, work * FACTS_MAX * 19 // (20 * facts)))

    def _portions(
        self, due: list[tuple[datetime, str]]
    ) -> Iterable[tuple[list[_Asked], list[Delivery], list[tuple[datetime, str]]]]:
        """What one turn takes, and half of it again and again where that was too much for one batch."""
        n = self._limit
        while n:
            # Nobody starves: half for commands where something else waits, and a quarter for deadlines where inputs wait too.
            asked = min(len(self._commands), (n + 1) // 2 if self._inputs or due else n)
            taken = min(len(self._inputs), n - asked - (n // 4 if due else 0))
            commands = [self._commands[i] for i in range(asked)]
            inputs = [self._inputs[i] for i in range(taken)]
            deadlines = due[: n - asked - taken]
            yield commands, inputs, deadlines
            n = (len(commands) + len(inputs) + len(deadlines)) // 2

    def _decide(
        self,
        commands: list[_Asked],
        inputs: list[Delivery],
        deadlines: list[tuple[datetime, str]],
        now: datetime,
    ) -> tuple[S, list[Envelope], list[Message], list[Any]]:
        """
        Everything that follows from this work: one decision after the other, each on the state that the last one left.

        A fact is encoded with the decision that led to it: one that cannot be is set aside with its cause, not with the turn.
        """
        rules, state = self._rules, self._live
        facts: list[Envelope] = []
        messages: list[Message] = []
        answers: list[Any] = []
        work: list[Input] = []
        for delivery in inputs:
            try:
                envelope = decode(delivery.subject, delivery.data)
                state = rules.take_in(state, envelope)
                work.append(Input(delivery.sequence, envelope))
            except Exception as why:
                refused = (self._set_aside(delivery.sequence, why, now),)
                facts += refused
                messages += _encoded(refused)
        for asked in commands:
            try:
                decision = rules.decide(state, asked.command, now)
                if len(decision.facts) > FACTS_MAX:
                    raise RefusedError("too_large", limit=FACTS_MAX)
                messages += _encoded(decision.facts)
                state = decision.state
                facts += decision.facts
                answers.append(decision.answer)
            except RefusedError as why:
                answers.append({"problem": problem(why)})
            except Exception:
                logger().exception("command_failed", district=self._district, command=asked.command.id)
                answers.append({"problem": problem(RefusedError("internal", id=asked.command.id))})
        for piece in work:
            try:
                decision = rules.decide(state, piece, now)
                if len(decision.facts) > FACTS_MAX:
                    raise ValueError(f"{len(decision.facts)} facts from one input")
                messages += _encoded(decision.facts)
                state = decision.state
                facts += decision.facts
            except Exception as why:
                refused = (self._set_aside(piece.sequence, why, now),)
                facts += refused
                messages += _encoded(refused)
        for at, key in deadlines:
            try:
                decision = rules.decide(state, Deadline(at, key), now)
                messages += _encoded(decision.facts)
                state = decision.state
                facts += decision.facts
            except Exception:
                logger().exception("deadline_failed", district=self._district, key=key)
                heapq.heappush(self._heap, (now + RETRY, key))
        return state, facts, messages, answers

    def _set_aside(self, sequence: int, why: Exception, now: datetime) -> Envelope:
        """The fact that an input was refused, so that it does not hold up the others."""
        REFUSED.labels(*self._labels).inc()
        code = why.code if isinstance(why, MalformedError) else "decide_raised"
        logger().error("input_refused", district=self._district, sequence=sequence, code=code, why=repr(why)[:300])
        fact = self._rules.refused(sequence=sequence, code=code)
        return self._envelope(fact, derived_id(self._rules.service, self._district, "refused", sequence), now)

    def _envelope(self, fact: TurnCommitted | InputRefused, id: str, now: datetime) -> Envelope:
        return Envelope(id, self._district, NOWHERE, now, fact, self._district)

    def _committed(self, fold: Fold[S], state: S, facts: Sequence[Envelope], marker: Envelope) -> None:
        """The commit is certain: now the state moves, by its marker too, and with it what is due when."""
        self._live = fold.state = self._rules.evolve(state, marker)
        fold.position, fold.folded, fold.last = self._position, self._fence, marker.time
        due = {deadline for envelope in facts if (deadline := self._rules.deadline(fold.state, envelope))}
        for deadline in due:  # once, however many of the facts are about one thing
            heapq.heappush(self._heap, (deadline.at, deadline.key))
        for turned in self.turned:
            turned(fold.state)
        self._since_snapshot += len(facts)
        if self._snapshot and self._since_snapshot >= self._snapshot_facts:
            self._since_snapshot = 0
            self._snapshot(self._district)

    async def _quiet_marker(self, fold: Fold[S], *, force: bool = False) -> None:
        """Remember the position where inputs led to nothing for a while."""
        if not self._moved:
            self._moved_at = time.monotonic()
        elif force or self._moved >= QUIET_INPUTS or time.monotonic() - self._moved_at > QUIET_S:
            marker = await self._commit((), self._now(fold))
            self._committed(fold, self._live, (), marker)

    async def _commit(self, facts: Sequence[Message], now: datetime) -> Envelope:
        """
        Returns the marker when the batch is stored. While the lease lasts it never leaves without knowing.

        Raises:
            FencedError: another leader has written, or the lease ran out before the outcome was known.
        """
        marker = self._rules.marker(
            position=Position(created=self._fold.created if self._fold else "", sequence=self._position),
            by=self._instance,
            epoch=self._lease.epoch,
            facts=len(facts),
            rules=self._rules.decides if self._rules.decides > 1 else None,
        )
        subject = self._rules.marker_subject(self._district)
        envelope = self._envelope(marker, derived_id(subject, self._fence, self._instance, self._lease.epoch), now)
        messages = [*facts, Message(subject, envelope.encode())]
        fence = Fence(subject, self._fence)
        mine: set[str] = set()
        started = time.monotonic()
        while self._may_lead():
            batch = uuid4().hex  # a new id for each try: the old one may still be staged
            mine.add(batch)
            try:
                self._fence = await self._bus.commit(messages, fence=fence, batch=batch, timeout_s=1)
                break
            except BusError as why:  # refused, timed out, disconnected: read before judging
                reason = why
            try:
                last = await self._bus.last(subject, timeout_s=1)
            except BusError:
                await asyncio.sleep(0.05)
                continue
            if last is not None and last.batch in mine:
                self._fence = last.sequence
                break
            if (last.sequence if last else 0) != fence.sequence:
                raise FencedError(f"somebody wrote {last and last.sequence} after {fence.sequence}") from reason
            await asyncio.sleep(0.02)  # a refusal that stays, such as a full disk, must not become a flood
        else:
            raise FencedError("the lease ran out in a commit")
        COMMIT_S.labels(self._rules.service).observe(time.monotonic() - started)
        TURNS.labels(*self._labels).inc()
        FACTS.labels(*self._labels).inc(len(facts))
        self._moved, self._moved_at = 0, time.monotonic()
        return envelope

    async def _read_barrier(self) -> None:
        """A stale leader must not say no: whoever answers without a fact makes sure that nobody has written since."""
        last = await self._bus.last(self._rules.marker_subject(self._district), timeout_s=1)
        if (last.sequence if last else 0) != self._fence:
            raise FencedError("another leader has written")


def _encoded(facts: Iterable[Envelope]) -> list[Message]:
    """These facts as they go on the bus. Raises RefusedError `too_large`."""
    try:
        return [Message(fact.subject, fact.encode()) for fact in facts]
    except ValueError:
        raise RefusedError("too_large", limit=DATA_BYTES_MAX) from None
