"""
复核派单: every decision that the ledger holds is taken again from what its desk had seen, and must come out the same.

A desk's history is folded turn by turn: the inputs up to a turn's position are taken in, then each piece of work that led to facts
is decided anew and compared with them, then the facts themselves are folded. Nothing but the leaves is asked: what inputs and
deadlines led to is decided from scratch; a person's command is read back from what it led to, and what it led to is decided.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import lru_cache, reduce
from typing import Any

import orjson
from pydantic import ValidationError

from services.dispatch import model
from services.dispatch.commands import (
    Accept,
    Arrive,
    AskHelp,
    Decline,
    Done,
    Enrol,
    Erase,
    HandOver,
    Leave,
    Lend,
    Offer,
    RateHelp,
    Refuse,
    RefuseHelp,
    Rule,
    Sign,
    TakeBack,
    TakeBackHelp,
    Verb,
)
from services.dispatch.desk import RULES
from services.dispatch.model import Desk
from shared.auth import Caller
from shared.envelope import Envelope, opened
from shared.errors import MalformedError, PaidanError, RefusedError
from shared.facts import (
    ConferralRuled,
    HandoverLapsed,
    HandoverOffered,
    HandoverRefused,
    HandoverSigned,
    HelpAsked,
    HelpLapsed,
    HelpRated,
    HelpRefused,
    HelpSeated,
    InputRefused,
    MatchExplained,
    MemberEnrolled,
    MemberErased,
    MemberLeft,
    TaskAccepted,
    TaskArrived,
    TaskDeclined,
    TaskDone,
    TaskExpired,
    TaskOffered,
    TurnCommitted,
    plain,
)
from shared.turns import Command, Deadline, Input, Work

Moment = int | datetime
"""A place in the log: a leaf's index, or a time."""
MISSING = "—"
REPLAYED = frozenset({"district", "scopes", "lost"})
"""Filters of a replay that keep what the desks of one district had seen."""


class UnreadableError(PaidanError):
    """
    What was given is no whole log.

    Attributes:
        zh: the same in Chinese.
    """

    def __init__(self, zh: str, en: str) -> None:
        super().__init__(en)
        self.zh = zh


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that was said (`stored`) beside what comes out today (`redone`); None: it was not said at all."""

    what: str
    stored: Any
    redone: Any

    @property
    def differs(self) -> bool:
        """Whether the two are not the same."""
        return bool(self.stored != self.redone)


@dataclass(frozen=True, slots=True)
class Difference:
    """
    A decision that does not come out as it was stored.

    Attributes:
        index: of the first leaf of what was decided, or of the turn's marker where a decision is missing.
        led_by: `input`, `command`, `deadline`, or `nothing` where nothing in the ledger led to it.
        cause: the id of what led to it.
        terms: of every matching decision in it, all terms of all candidates; of other facts, what differs.
    """

    index: int
    district: str
    led_by: str
    cause: str | None
    case: str | None
    terms: tuple[Row, ...]

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(slots=True)
class Report:
    """
    What came of it.

    Attributes:
        turns: decided again; `matches`: the matching decisions among what they decided.
        not_run: decisions that could not be taken again, by why: nothing is said about them.
    """

    leaves: int = 0
    turns: int = 0
    decisions: int = 0
    matches: int = 0
    differ: list[Difference] = field(default_factory=list)
    not_run: dict[str, int] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "differ": [one.document() for one in self.differ]}


class _Desk:
    """One desk's history as far as it has been read."""

    def __init__(self, district: str) -> None:
        self.state = model.initial(district)
        self.inputs: deque[Input] = deque()
        self.facts: list[tuple[int, Envelope]] = []
        self.lost: str | None = None


class Redeciding:
    """
    Takes a log's leaves in order, from the first, and says what differs.

    Args:
        district: only this one's desk; None for all.
        since, below: only turns whose marker lies there, by leaf or by time, are decided again; all others are folded.
    """

    def __init__(self, district: str | None = None, since: Moment | None = None, below: Moment | None = None) -> None:
        self._only = district
        self._since = since
        self._below = below
        self._desks: dict[str, _Desk] = {}
        self._register: list[Input] = []
        self._restored: range | None = None
        self.report = Report()

    def take(self, index: int, document: dict[str, Any]) -> None:
        """One more leaf, parsed."""
        self.report.leaves += 1
        kind = document["kind"]
        if kind == "reset":
            self._restored = range(document["src"]["seq"], document["reset"]["seq"])
        elif kind == "event":
            if self._restored is not None:
                self._begin_again(index, self._restored)
            self._take_event(index, document)
        elif self._restored is not None and kind != "heads":
            at = document["gap"]["to"] if kind == "gap" else document["src"]["seq"]
            self._restored = range(at, self._restored.stop)

    def _begin_again(self, index: int, behind: range) -> None:
        """
        The first fact of another stream: where that was filled from the ledger, number for number, everything goes on as before.

        An empty one is a new beginning. A stream that lost its tail has desks that went back to a state nobody kept.
        """
        self._restored = None
        if not behind:
            return
        if behind.start == 0:
            self._desks.clear()
            self._register.clear()
        for desk in self._desks.values():
            desk.lost = desk.lost or f"the stream lost facts before leaf {index}"

    def _take_event(self, index: int, document: dict[str, Any]) -> None:
        subject: str = document["subject"]
        _, district, service, _, entity, fact, *_ = subject.split(".")
        own = service == RULES.service
        readers = _readers(service, entity, fact)
        if not (own or readers):
            return
        try:
            envelope = opened(subject, document["event"])
        except MalformedError as why:  # it was none when it was written: the fold is not what it was
            self._lose(district if own else None, f"leaf {index} cannot be read: {why.code}")
            return
        read = Input(document["src"]["seq"], envelope)
        if district not in self._desks and district != "000000" and self._wanted(district):
            self._desks[district] = _Desk(district)
            self._desks[district].inputs.extend(self._register)
        if readers == "all":
            if entity == "register":
                self._register.append(read)
            for desk in self._desks.values():
                desk.inputs.append(read)
        elif readers == "own" and district in self._desks:
            self._desks[district].inputs.append(read)
        if own and district in self._desks:
            desk = self._desks[district]
            if isinstance(envelope.fact, TurnCommitted):
                self._turn(desk, index, envelope, envelope.fact)
            else:
                desk.facts.append((index, envelope))

    def _asked(self, index: int, at: datetime) -> bool:
        since, below = self._since, self._below
        if since is not None and (at < since if isinstance(since, datetime) else index < since):
            return False
        return below is None or (at < below if isinstance(below, datetime) else index < below)

    def _wanted(self, district: str) -> bool:
        return self._only is None or district == self._only

    def _lose(self, district: str | None, why: str) -> None:
        for code, desk in self._desks.items():
            if district in (None, code):
                desk.lost = desk.lost or why

    # --- one turn -----------------------------------------------------------------------------------------------------

    def _turn(self, desk: _Desk, index: int, marker: Envelope, fact: TurnCommitted) -> None:
        taken: list[Input] = []
        while desk.inputs and desk.inputs[0].sequence <= fact.position.sequence:
            taken.append(desk.inputs.popleft())
        torn = desk.facts[: max(0, len(desk.facts) - fact.facts)]
        facts, desk.facts = desk.facts[len(torn) :], []
        asked = self._asked(index, marker.time)
        rules = fact.rules or 1
        if desk.lost is None and rules != RULES.decides:
            self._not_run(f"rules {rules}, today {RULES.decides}", facts, asked)
            asked = False
        if desk.lost is not None:
            self._not_run(desk.lost, facts, asked)
            return
        self._not_run("a batch that lost its end", torn, asked)
        before = desk.state
        try:
            state = reduce(_take_in, taken, before)
            state = reduce(model.evolve, (envelope for _, envelope in torn), state)
            if asked:
                self.report.turns += 1
                state = self._decide(state, before, index, marker, fact, facts, taken)
            else:
                state = reduce(model.evolve, (envelope for _, envelope in facts), state)
            desk.state = model.evolve(state, marker)
        except Exception as why:  # whatever it is, a fact came to a desk that cannot hold it
            desk.lost = f"the turn at leaf {index} cannot be folded: {why!r}"[:200]
            row = Row("fold", "folded", repr(why)[:200])
            self.report.differ.append(Difference(index, marker.district, "nothing", None, None, (row,)))

    def _not_run(self, why: str, facts: Iterable[tuple[int, Envelope]], asked: bool) -> None:
        many = len({envelope.cause for _, envelope in facts})
        if many and asked:
            self.report.not_run[why] = self.report.not_run.get(why, 0) + many

    def _decide(
        self,
        state: Desk,
        before: Desk,
        index: int,
        marker: Envelope,
        fact: TurnCommitted,
        facts: list[tuple[int, Envelope]],
        taken: list[Input],
    ) -> Desk:
        """Decide a turn again, one piece of work after the other; the state after what is stored."""
        if len(facts) < fact.facts:
            row = Row("facts", fact.facts, len(facts))
            self.report.differ.append(Difference(index, marker.district, "nothing", None, None, (row,)))
        by_id = {piece.envelope.id: piece for piece in taken}
        by_sequence = {piece.sequence: piece for piece in taken}
        told: set[int] = set()
        for group in _groups(facts):
            first, stored = group[0][0], [envelope for _, envelope in group]
            root = stored[0]
            led_by, work = _work(state, root, stored, by_id)
            if isinstance(root.fact, InputRefused):
                refused = by_sequence.get(root.fact.sequence)
                if refused is None:
                    continue  # what the ledger holds as no event is none for a desk either
                led_by, work = "input", refused
            if isinstance(work, Input):
                told.add(work.sequence)
            self.report.decisions += 1
            self.report.matches += sum(isinstance(one.fact, MatchExplained) for one in stored)
            after, again = _again(state, work, marker)
            if isinstance(root.fact, InputRefused):
                again = stored if again is None else again
            if again == stored and after is not None:
                state = after
                continue
            if again != stored:
                self.report.differ.append(
                    Difference(
                        *(first, marker.district, led_by, root.cause, next((e.case for e in stored if e.case), None)),
                        tuple(_rows(stored, again or [])),
                    )
                )
            state = reduce(model.evolve, stored, state)
        for piece in taken:
            if piece.sequence not in told:
                self._left_out(state, before, index, marker, piece, taken)
        return state

    def _left_out(
        self, state: Desk, before: Desk, index: int, marker: Envelope, piece: Input, taken: list[Input]
    ) -> None:
        """
        An input that led to nothing may have been decided on in any turn since the last marker: in one of them, to nothing.

        Only the register had changed the desk meanwhile, and then this turn.
        """
        _, again = _again(state, piece, marker)
        if not again:
            return
        for other in taken:
            before = _take_in(before, other)
            if other.sequence >= piece.sequence and not _again(before, piece, marker)[1]:
                return
        rows = tuple(_rows([], again))
        self.report.differ.append(
            Difference(index, marker.district, "input", piece.envelope.id, piece.envelope.case, rows)
        )


def redecide(lines: Iterable[bytes], again: Redeciding, progress: Callable[[int, int], None] | None = None) -> Report:
    """
    Decide again what a replay tells (NDJSON as `GET /v1/events` gives it), from its first line to its last.

    Args:
        progress: called with leaves read and leaves in all, every thousand.
    Raises:
        UnreadableError: it does not begin with the first leaf, leaves something out that desks had seen, or was cut short.
    """
    given = iter(lines)
    try:
        header = orjson.loads(next(given, b"{}"))
        size, narrowed = header["size"], set(header["filter"]) - REPLAYED
        if header["from"] or narrowed:
            why = ", ".join(sorted(narrowed)) or f"from {header['from']}"
            raise UnreadableError(
                f"重放须从第一叶开始且不按内容筛选（{why}）", f"every leaf is needed, from the first ({why})"
            )
        for line in given:
            document = orjson.loads(line)
            if "end" in document:
                return again.report
            again.take(document["s"], document["leaf"])
            if progress and again.report.leaves % 1000 == 0:
                progress(document["s"] + 1, size)
    except (orjson.JSONDecodeError, KeyError, TypeError) as why:
        raise UnreadableError("不是账本重放的 NDJSON", f"this is no replay of a ledger ({why!r})") from None
    raise UnreadableError("重放不完整，缺结尾行", "the replay was cut short: its last line is missing")


def told(report: Report) -> Iterator[str]:
    """The report for people, line by line."""
    for one in report.differ:
        yield f"不同 / differs：叶 leaf {one.index}  {one.district}  {one.led_by} {one.cause or ''}  {one.case or ''}"
        wide = max(len(row.what) for row in one.terms) if one.terms else 0
        yield f"    {'':<{wide}}  账本 stored | 复核 redone"
        for row in one.terms:
            stored, redone = (MISSING if value is None else value for value in (row.stored, row.redone))
            yield f"  {'!' if row.differs else ' '} {row.what:<{wide}}  {stored} | {redone}"
    for why, many in report.not_run.items():
        yield f"未能复核 / not re-runnable：{many}  ({why})"
    yield (
        f"{report.leaves} 叶，{report.turns} 轮，复核 {report.decisions} 个决定（派单 {report.matches}）：不同 {len(report.differ)}"
        f" / {report.leaves} leaves, {report.turns} turns, {report.decisions} decisions taken again"
        f" ({report.matches} matches): {len(report.differ)} differ"
    )
    if not report.turns and not report.not_run:
        yield "此范围内没有决定，未作复核：请核对辖区与起止 / no decision lies there, nothing was checked: see the district and the range"


# --- what led to facts, and what comes of it ---------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _readers(service: str, entity: str, fact: str) -> str | None:
    """Which desks decide on such a fact: `all`, the `own` district's, or none, by what desks say that they read."""
    whose: set[str] = set()
    for wanted in RULES.inputs("own"):
        _, district, *tokens = wanted.split(".")
        subject = [service, "-", entity, fact]
        if tokens[-1] == ">":
            tokens, subject = tokens[:-1], subject[: len(tokens) - 1]
        if len(tokens) == len(subject) and all(a in ("*", b) for a, b in zip(tokens, subject, strict=True)):
            whose.add(district)
    return "all" if "*" in whose else "own" if whose else None


def _take_in(desk: Desk, piece: Input) -> Desk:
    try:
        return model.take_in(desk, piece.envelope)
    except Exception:  # set aside when it was decided on, for the same reason
        return desk


def _groups(facts: Iterable[tuple[int, Envelope]]) -> Iterator[list[tuple[int, Envelope]]]:
    """A turn's facts, by the piece of work that led to them: one cause, and what followed from its own facts."""
    group: list[tuple[int, Envelope]] = []
    ids: set[str] = set()
    for index, envelope in facts:
        root = group[0][1] if group else None
        same = root is not None and envelope.cause is not None
        if same and root is not None and (envelope.cause, envelope.actor) != (root.cause, root.actor):
            same = envelope.cause in ids
        if group and not same:
            yield group
            group, ids = [], set()
        group.append((index, envelope))
        ids.add(envelope.id)
    if group:
        yield group


def _work(state: Desk, root: Envelope, stored: list[Envelope], inputs: dict[str, Input]) -> tuple[str, Work | None]:
    """What led to these facts; None where nothing that the ledger holds did."""
    if root.actor is not None:
        role, _, id = root.actor.partition(":")
        caller = Caller(id, root.district, frozenset({role} - {"caller"}))
        verb = _verb(stored)
        return "command", Command(root.cause or "", verb, caller) if verb else None
    if root.cause in inputs:
        return "input", inputs[root.cause]
    for key in (getattr(root.fact, root.fact.key), getattr(root.fact, "task_id", "")):
        found = state.matters.get(key) or state.tasks.get(key)
        if found and found.until:
            return "deadline", Deadline(found.until, found.id)
    return "nothing", None


def _again(state: Desk, work: Work | None, marker: Envelope) -> tuple[Desk | None, list[Envelope] | None]:
    """The state and the facts that this work leads to today; None where it leads to an error."""
    if work is None:
        return None, []
    try:
        made = RULES.decide(state, work, marker.time)
        return made.state, list(made.facts)
    except RefusedError:
        return None, []
    except Exception:
        return None, None


def _verb(stored: list[Envelope]) -> Verb | None:
    """The command that these facts follow from: what a person chose is in them."""
    root = stored[0]
    try:
        match root.fact:
            case TaskAccepted() as fact:
                return Accept(task=fact.task_id, member=fact.member_id)
            case TaskDeclined() as fact:
                return Decline(task=fact.task_id, member=fact.member_id, reason=fact.reason)
            case TaskArrived() as fact:
                return Arrive(task=fact.task_id, member=fact.member_id)
            case TaskDone() as fact:
                return Done(task=fact.task_id, member=fact.member_id, outcome=fact.outcome)
            case TaskExpired() | MatchExplained():
                return _chosen(stored)
            case MemberEnrolled():
                own = [one.fact for one in stored if one.cause == root.cause]
                return Enrol(members=tuple(fact for fact in own if isinstance(fact, MemberEnrolled)))
            case MemberErased(member_id=member):
                return Erase(member=member)
            case MemberLeft(member_id=member):
                return Leave(member=member)
            case HandoverOffered() as fact:
                return HandOver(task=fact.task_id, to=fact.to, reason=fact.reason, basis=fact.basis, grant=fact.grant)
            case HandoverLapsed(handover_id=id):
                return TakeBack(handover=id)
            case HandoverSigned(handover_id=id):
                return Sign(handover=id)
            case HandoverRefused() as fact:
                return Refuse(handover=fact.handover_id, reason=fact.reason, basis=fact.basis)
            case ConferralRuled() as fact:
                return Rule(conferral=fact.conferral_id, owner=fact.owner, basis=fact.basis, precedent=fact.precedent)
            case HelpAsked() as fact:
                return AskHelp(task=fact.task_id, to=fact.to, whistle=fact.whistle)
            case HelpLapsed(help_id=id):
                return TakeBackHelp(help=id)
            case HelpRefused() as fact:
                return RefuseHelp(help=fact.help_id, reason=fact.reason)
            case HelpRated() as fact:
                return RateHelp(help=fact.help_id, grade=fact.grade)
    except (ValidationError, RefusedError):
        pass  # a word that is no longer on its list
    return None


def _chosen(stored: list[Envelope]) -> Verb | None:
    """派单 by hand, or 报到: whom a person chose has no candidates beside them."""
    by_hand = any(isinstance(one.fact, MatchExplained) and not one.fact.best for one in stored)
    for one in stored:
        match one.fact:
            case TaskOffered() as fact:
                return Offer(task=fact.task_id, member=fact.members[0])
            case HelpSeated() as fact:
                return Lend(help=fact.help_id, member=fact.member_id if by_hand else None)
    return None


# --- side by side -----------------------------------------------------------------------------------------------------


def _rows(stored: list[Envelope], redone: list[Envelope]) -> Iterator[Row]:
    """The two side by side: facts of one name belong together in their order."""
    left = deque(redone)
    for one in stored:
        twin = next((other for other in left if other.fact.name == one.fact.name), None)
        if twin is not None:
            left.remove(twin)
        yield from _facts(one, twin)
    for other in left:
        yield from _facts(None, other)


def _facts(stored: Envelope | None, redone: Envelope | None) -> Iterator[Row]:
    named = stored or redone
    assert named is not None
    name = named.fact.name
    if stored is None or redone is None:
        yield Row(name, stored and _said(stored), redone and _said(redone))
        if isinstance(named.fact, MatchExplained):
            yield from _terms(stored, redone)
    elif isinstance(stored.fact, MatchExplained):
        yield from _terms(stored, redone)
    elif stored != redone:
        a, b = (orjson.loads(one.encode()) for one in (stored, redone))
        a, b = {**a, **a.pop("data")}, {**b, **b.pop("data")}
        for key in sorted({*a, *b}):
            if a.get(key) != b.get(key):
                yield Row(f"{name} {key}", a.get(key), b.get(key))


def _terms(stored: Envelope | None, redone: Envelope | None) -> Iterator[Row]:
    """All that a matching decision rests on, term by term, the cheapest candidate first."""
    a, b = ({} if one is None else _flat(one) for one in (stored, redone))
    for what in dict.fromkeys((*b, *a)):
        yield Row(what, a.get(what), b.get(what))


def _flat(envelope: Envelope) -> dict[str, Any]:
    fact = envelope.fact
    assert isinstance(fact, MatchExplained)
    flat: dict[str, Any] = {"task": fact.task_id, "policy": fact.policy, "chosen": " ".join(fact.chosen) or None}
    flat["considered"] = fact.considered
    flat |= {f"fell out: {reason}": many for reason, many in sorted(fact.fell_out.items())}
    for place, candidate in enumerate(fact.best, 1):
        flat[f"{candidate.member_id} place"] = place
        flat[f"{candidate.member_id} cost"] = candidate.cost
        flat |= {f"{candidate.member_id} {term}": value for term, value in sorted(candidate.terms.items())}
    return flat


def _said(envelope: Envelope) -> str:
    return orjson.dumps(envelope.fact, default=plain, option=orjson.OPT_SORT_KEYS).decode()
