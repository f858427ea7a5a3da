"""
What must hold of a whole history (design §12), checked from the outside: pure, and knowing nothing of how a service decides.

A history is everything the stream and the ledger hold, together with what clients were promised and what they saw. `check`
names every law that it breaks. It has rules of its own for what a task may go through, so that a fault in a service's rules is
found and not repeated.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import orjson

from services.ledger.log import leaves
from shared.bus import Delivery
from shared.envelope import decode
from shared.errors import MalformedError
from shared.facts import HUB
from shared.ids import derived_id

EXPECT = "Nats-Expected-Last-Subject-Sequence"
PRIVATE = ("match.", "turn.", "notice.", "member.")
FINAL_STATES = frozenset({"unplaced", "closed", "handed_over"})
OVER = frozenset({"closed", "handed_over"})
"""States in which a task is no longer its office's."""


class Record(NamedTuple):
    """One stored message with its headers."""

    sequence: int
    recorded_ns: int
    subject: str
    data: bytes
    headers: Mapping[str, str]


class Violation(NamedTuple):
    """A law that does not hold, and where."""

    law: str
    what: str


class Commanded(NamedTuple):
    """A command that was answered: with what was done, or with a problem's code."""

    id: str
    verb: str
    answer: Mapping[str, Any] | None
    problem: str | None = None


@dataclass
class Watched:
    """What one client saw on the staff stream of a district, over all its reconnections; `until` is how far it should have come."""

    name: str
    district: str
    after: int
    until: int = 0
    events: list[tuple[int, bytes]] = field(default_factory=list)


@dataclass
class History:
    """
    Everything there is to know about a run.

    Attributes:
        records: the whole stream, oldest first.
        leaves: the whole ledger as replayed, index and bytes.
        submitted: by Idempotency-Key, every answer (201) that was given for it.
        live: what a plain subscriber heard under `live.evt.>`: sequence and bytes.
        receipts: messages that arrived, by recipient, last digits of the task, and template.
        crashes: how often notify or what it stands on died: so many times one message may come again.
        states: two views of one state that have to be equal, by name.
        ended: whether everything was let run out, so that every offer must have ended.
    """

    created: str
    origin: str
    records: Sequence[Record]
    leaves: Sequence[tuple[int, bytes]]
    submitted: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    commanded: Sequence[Commanded] = ()
    watched: Sequence[Watched] = ()
    live: Sequence[tuple[int, bytes]] = ()
    receipts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    crashes: int = 0
    states: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    ended: bool = True


class Fact(NamedTuple):
    """A record that is a fact."""

    sequence: int
    district: str
    service: str
    area: str
    name: str
    event: dict[str, Any]
    data: dict[str, Any]
    time: datetime


def facts_of(records: Iterable[Record]) -> Iterator[Fact]:
    """The records that are facts."""
    for record in records:
        try:
            decode(record.subject, record.data)
        except MalformedError:
            continue
        _, district, service, area, entity, past = record.subject.split(".", 6)[:6]
        event = orjson.loads(record.data)
        yield Fact(
            *(record.sequence, district, service, area, f"{entity}.{past}"),
            *(event, event["data"], datetime.fromisoformat(event["time"])),
        )


def check(history: History) -> list[Violation]:
    """Every law that this history breaks; empty where it holds."""
    facts = list(facts_of(history.records))
    broken: list[Violation] = []

    def say(law: str, what: str) -> None:
        if sum(one.law == law for one in broken) < 20:
            broken.append(Violation(law, what))

    check_submissions(history, facts, say)
    check_batches(history, facts, say)
    check_tasks(facts, say, ended=history.ended)
    check_offices(facts, say, ended=history.ended)
    check_commands(history, facts, say)
    check_ledger(history, say)
    check_notices(history, facts, say)
    check_watchers(history, facts, say)
    for name, (one, other) in history.states.items():
        if one != other:
            say("state differs", f"{name}: {_first_difference(one, other)}")
    return broken


Say = Callable[[str, str], None]


# --- what residents were promised -------------------------------------------------------------------------------------


def check_submissions(history: History, facts: Sequence[Fact], say: Say) -> None:
    """I1: every acknowledged submission is in the ledger exactly once, and every answer to one key was the same."""
    in_ledger = Counter(
        leaf["case"]["id"]
        for leaf in (orjson.loads(data) for _, data in history.leaves)
        if leaf["kind"] == "event" and leaf["event"]["type"] == "cn.paidan.request.submitted.v1"
    )
    in_stream = Counter(fact.data["request_id"] for fact in facts if fact.name == "request.submitted")
    for key, answers in history.submitted.items():
        if any(answer != answers[0] for answer in answers):
            say("answers differ", f"{key}: {answers}")
        id = str(answers[0]["id"])
        if not in_ledger[id] or not in_stream[id]:
            say("submission lost", f"{key}: {id} (stream {in_stream[id]}, ledger {in_ledger[id]})")
    for id, times in (in_ledger | in_stream).items():
        if times > 1:
            say("submission doubled", f"{id}: {times} times")
    ids = Counter(answers[0]["id"] for answers in history.submitted.values())
    for id, keys in ids.items():
        if keys > 1:
            say("submission shared", f"{id} was given to {keys} keys")
    opened = Counter(
        fact.data["request_id"]
        for fact in facts
        if fact.name == "task.opened" and fact.data["round"] == 1 and "by" not in fact.data
    )
    refused = {
        fact.data["sequence"] for fact in facts if fact.name == "turn.input_refused" and fact.service == "dispatch"
    }
    for fact in facts:
        if fact.name == "request.submitted" and fact.sequence not in refused:
            times = opened[fact.data["request_id"]]
            if times > 1 or (not times and history.ended):
                say("request opened once", f"{fact.data['request_id']}: {times} times")


# --- turns ------------------------------------------------------------------------------------------------------------


def check_batches(history: History, facts: Sequence[Fact], say: Say) -> None:
    """Batches are whole, their fences make one chain, positions and epochs never go back, and inputs are decided on in order."""
    by_sequence = {fact.sequence: fact for fact in facts}
    written = {fact.event["id"]: (fact.district, fact.service, fact.sequence) for fact in facts}
    writers: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in history.records:
        _, district, service, *_ = record.subject.split(".")
        if service in ("dispatch", "notify"):
            writers[district, service].append(record)
    for (district, service), records in writers.items():
        name = f"{service} {district}"
        of_id = {id: sequence for id, (*by, sequence) in written.items() if by != [district, service]}
        marker = f"evt.{district}.{service}.-.turn.committed"
        fence, position, epoch, batch = 0, 0, 0, list[Record]()
        for record in records:
            batch.append(record)
            if record.subject != marker:
                continue
            fact = by_sequence.get(record.sequence)
            if fact is None:
                say("marker unreadable", f"{name} at {record.sequence}")
                batch = []
                continue
            first, data = batch[0], fact.data
            whole = all(
                one.headers.get("Nats-Batch-Id") == first.headers.get("Nats-Batch-Id")
                and one.headers.get("Nats-Batch-Sequence") == str(n)
                and one.sequence == first.sequence + n - 1
                and ("Nats-Batch-Commit" in one.headers) == (one is record)
                for n, one in enumerate(batch, 1)
            )
            if not whole or data["facts"] != len(batch) - 1:
                say("batch torn", f"{name} at {first.sequence}–{record.sequence}, which says {data['facts']} facts")
            if first.headers.get(EXPECT) != str(fence) or first.headers.get(EXPECT + "-Subject") != marker:
                say("fence broken", f"{name} at {first.sequence}: expected {first.headers.get(EXPECT)}, not {fence}")
            at = data["position"]["sequence"]
            if at < position or at >= record.sequence:
                say("position went back", f"{name} at {record.sequence}: {at} after {position}")
            if data["position"]["created"] != history.created:
                say("position of another stream", f"{name} at {record.sequence}")
            if data["epoch"] < epoch:
                say("epoch went back", f"{name} at {record.sequence}: {data['epoch']} after {epoch}")
            for one in batch[:-1]:
                inner = by_sequence.get(one.sequence)
                cause = (
                    of_id.get(inner.event.get("causationid", "")) if inner else None
                )  # None: a command's, or its own
                if inner is None or cause is None or inner.name not in ("task.opened", "notice.queued"):
                    continue
                if not position < cause <= at:
                    say("input out of turn", f"{name}: {cause} led to {one.sequence}, outside ({position}, {at}]")
            fence, position, epoch, batch = record.sequence, at, data["epoch"], []
        if batch:
            say("batch torn", f"{name}: {len(batch)} facts from {batch[0].sequence} on without a marker")


# --- tasks and members ------------------------------------------------------------------------------------------------


@dataclass
class _Task:
    request: str
    effort: int
    district: str
    state: str = "opened"
    offered: set[str] = field(default_factory=set)
    tried: set[str] = field(default_factory=set)
    holder: str | None = None
    wave: int = 0
    until: datetime | None = None
    done: datetime | None = None


def check_tasks(facts: Sequence[Fact], say: Say, *, ended: bool) -> None:
    """Every task has one legal history, every offer an end, no member ever more than they can carry; ids are never used twice."""
    tasks: dict[str, _Task] = {}
    load: Counter[str] = Counter()
    capacity: dict[str, int] = {}
    requests = {fact.data["request_id"] for fact in facts if fact.name == "request.submitted"}
    explained: dict[str, tuple[str, ...]] = {}
    given: dict[str, Fact] = {}
    lent: dict[str, tuple[str, int]] = {}
    ids: dict[str, int] = {}

    def carry(member: str, effort: int, at: int) -> None:
        load[member] += effort
        if load[member] > capacity.get(member, 0):
            say("over capacity", f"{member} carries {load[member]} of {capacity.get(member)} at {at}")

    for fact in facts:
        data, id = fact.data, str(fact.event["id"])
        if id in ids:
            say("id used twice", f"{id} at {ids[id]} and {fact.sequence}")
        ids[id] = fact.sequence
        if fact.service != "dispatch":
            continue
        if fact.name == "member.enrolled":
            capacity[data["member_id"]] = data["capacity"]
        if fact.name == "match.explained":
            explained[data["match_id"]] = tuple(data["chosen"])
        if fact.name == "help.seated":
            lent[data["help_id"]] = data["member_id"], data["effort"]
            carry(*lent[data["help_id"]], fact.sequence)
        if fact.name == "help.settled" and data["help_id"] in lent:
            member, effort = lent.pop(data["help_id"])
            load[member] -= effort
        if not fact.name.startswith("task."):
            continue
        task = tasks.get(data["task_id"])
        if why := _illegal(fact, task, requests, explained, given):
            say("illegal step", f"{fact.name} at {fact.sequence} of {data['task_id']}: {why}")
        if fact.name == "task.opened":
            others = [id for id, t in tasks.items() if t.request == data["request_id"] and t.state not in OVER]
            if others:
                say("two owners", f"{data['request_id']} at {fact.sequence}: {others} and {data['task_id']}")
            tasks[data["task_id"]] = _Task(data["request_id"], data["effort"], fact.district)
            given.pop(data["task_id"], None)
            continue
        if fact.name == "task.handed_over":
            given[data["new_task_id"]] = fact
        if task is None:
            continue
        before = _carriers(task)
        _step(fact, task)
        after = _carriers(task)
        for member in before - after:
            load[member] -= task.effort
        for member in after - before:
            carry(member, task.effort, fact.sequence)
    if ended:
        for id, fact in given.items():
            say("no owner", f"{id} was handed over to {fact.data['to']} at {fact.sequence} and never opened there")
        for id, (member, _) in lent.items():
            say("help without an end", f"{id} of {member}")
        for id, task in tasks.items():
            if task.state not in FINAL_STATES:
                say("task without an end", f"{id} is {task.state}")


def _carriers(task: _Task) -> set[str]:
    """Whose load this task is: who has been asked, and who holds it until it is done."""
    holding = {task.holder} if task.holder and task.state not in ("done", *OVER) else set()
    return (task.offered if task.state not in OVER else set()) | holding


def _illegal(
    fact: Fact,
    task: _Task | None,
    requests: set[str],
    explained: Mapping[str, tuple[str, ...]],
    given: Mapping[str, Fact],
) -> str | None:
    """Why this must not happen to this task now; None where it may."""
    data, member = fact.data, fact.data.get("member_id")
    if fact.name == "task.opened":
        if task is not None:
            return "opened already"
        if data["request_id"] not in requests:
            return "nobody asked for it"
        if "by" in data:
            over = given.get(data["task_id"])
            if over is None or over.data["to"] != fact.district or over.data["by"] != data["by"]:
                return "nobody handed it over"
            return None if over.data["due"] == data["due"] else "its clocks were reset"
        if data["task_id"] != derived_id(data["request_id"], "task", data["round"]):
            return "its id does not follow from its request"
        return None
    if task is None:
        return "never opened"
    if task.state in OVER:
        return f"{task.state} already"
    if task.district != fact.district:
        return f"it is {task.district}'s"
    match fact.name:
        case "task.offered":
            laws = {
                "held by somebody": task.holder is None,
                "others are still asked": not task.offered,
                "waves are counted": data["wave"] == task.wave + 1,
                "its explanation chose somebody else": explained.get(data["match_id"]) == tuple(data["members"]),
                "already over when it began": datetime.fromisoformat(data["until"]) > fact.time,
            }
        case "task.accepted":
            laws = {"not offered to them": member in task.offered, "held by somebody": task.holder is None}
        case "task.declined":
            laws = {"not offered to them": member in task.offered}
        case "task.expired":
            by_hand = "actor" in fact.event
            laws = {
                "not what was offered": bool(data["members"]) and set(data["members"]) == task.offered,
                "another wave": data["wave"] == task.wave,
                "too early": by_hand or (task.until is not None and fact.time >= task.until),
            }
        case "task.unplaced":
            laws = {
                "somebody is asked": not task.offered,
                "held by somebody": task.holder is None,
                "its explanation chose somebody": explained.get(data["match_id"]) == (),
            }
        case "task.arrived":
            laws = {"not theirs": task.holder == member, f"it is {task.state}": task.state == "accepted"}
        case "task.done":
            laws = {"not theirs": task.holder == member, f"it is {task.state}": task.state in ("accepted", "arrived")}
        case "task.closed":
            laws = {f"it is {task.state}": task.state == "done" or data["reason"] in ("withdrawn", "reopened")}
        case "task.handed_over":
            laws = {f"it is {task.state}": task.state != "done", "to itself": data["to"] != fact.district}
        case _:
            laws = {"no such step": False}
    return next((law for law, holds in laws.items() if not holds), None)


def _step(fact: Fact, task: _Task) -> None:
    data = fact.data
    match fact.name:
        case "task.offered":
            task.state, task.wave = "offered", data["wave"]
            task.offered, task.tried = set(data["members"]), task.tried | set(data["members"])
            task.until = datetime.fromisoformat(data["until"])
        case "task.accepted":
            task.state, task.holder, task.offered, task.until = "accepted", data["member_id"], set(), None
        case "task.declined":
            task.offered = task.offered - {data["member_id"]}
        case "task.expired":
            task.offered = task.offered - set(data["members"])
        case "task.unplaced":
            task.state, task.until = "unplaced", None
        case "task.arrived":
            task.state = "arrived"
        case "task.done":
            task.state, task.done = "done", fact.time
        case "task.closed":
            task.state = "closed"
        case "task.handed_over":
            task.state = "handed_over"


# --- between offices --------------------------------------------------------------------------------------------------

QUESTIONS = {
    "handover.offered": "handover.received",
    "conferral.opened": "conferral.received",
    "help.asked": "help.received",
}
ENDS_ASKED = {
    "handover": ("handover.lapsed", "handover.returned", "task.handed_over"),
    "conferral": ("conferral.ended",),
    "help": ("help.lapsed", "help.released", "help.answered"),
}
ENDS_RECEIVED = {
    "handover": ("handover.refused", "handover.settled", "task.opened"),
    "conferral": ("conferral.settled",),
    "help": ("help.refused", "help.settled"),
}


def seers(fact: Fact) -> set[str]:
    """Whom a fact names."""
    return set(fact.event["districts"].split(","))


def check_offices(facts: Sequence[Fact], say: Say, *, ended: bool) -> None:
    """
    Two keys, one moment: a task changes hands where the other office had signed, or the lead had ruled so. Every question
    has one end at either side, and both offices see what happens to the task while it stands open, and of help that was given.
    """
    asked: dict[str, Fact] = {}
    ends: dict[tuple[str, str], list[str]] = defaultdict(list)
    received: dict[tuple[str, str], str] = {}
    keys: dict[str, str] = {}
    shared: dict[str, dict[str, set[str]]] = defaultdict(dict)
    for fact in facts:
        if fact.service != "dispatch":
            continue
        entity, data = fact.name.partition(".")[0], fact.data
        moves = fact.name in ("task.handed_over", "task.opened")
        id = data.get("by") if moves else data.get(f"{entity}_id") if entity in ENDS_ASKED else None
        if fact.name == "match.explained" and (fact.area != "-" or fact.event["districts"] != fact.district):
            say("explanation shared", f"at {fact.sequence}")
        if entity == "task" and (unseen := set().union(*shared[data["task_id"]].values()) - seers(fact)):
            say("not shared", f"{fact.name} at {fact.sequence} is not seen by {unseen}")
        if id is None:
            continue
        if fact.name in QUESTIONS:
            if id in asked:
                say("asked twice", f"{id} at {fact.sequence}")
            asked[id] = fact
            shared[data["task_id"]][id] = {fact.district, *([data["to"]] if "to" in data else data["parties"])}
            continue
        question = asked.get(id)
        if question is None:
            say("never asked", f"{fact.name} at {fact.sequence}")
            continue
        kind = question.name.partition(".")[0]
        if fact.name == QUESTIONS[question.name]:
            received[id, fact.district] = kind
        elif fact.name == "handover.signed" and fact.district == question.data["to"]:
            keys[id] = fact.district
        elif fact.name == "conferral.ruled" and fact.district == question.data["lead"]:
            keys[id] = data["owner"]
        elif fact.name == "task.handed_over" and keys.get(id) != data["to"]:
            say("one key only", f"{id} was handed over to {data['to']} at {fact.sequence}, who had not signed")
        if fact.district == question.district and fact.name in ENDS_ASKED[kind]:
            ends[id, fact.district].append(fact.name)
            if fact.name != "help.released" and "member_id" not in data:
                shared[question.data["task_id"]].pop(id, None)
        elif fact.district != question.district and fact.name in ENDS_RECEIVED[kind]:
            if kind == "help" and fact.name == "help.settled" and (id, fact.district) not in received:
                say("settled unheard", f"{id} at {fact.sequence}")
            ends[id, fact.district].append(fact.name)
    for (id, district), how in ends.items():
        seated = how in (["help.answered", "help.released"], ["handover.settled", "task.opened"])
        if len(how) > 1 and not seated:
            say("ended twice", f"{id} at {district}: {how}")
    if ended:
        for id, question in asked.items():
            if not ends[id, question.district]:
                say("question without an end", f"{question.name} {id} of {question.district}")
        for (id, district), kind in received.items():
            if not ends[id, district]:
                say("question without an end", f"{kind} {id} at {district}")


def check_commands(history: History, facts: Sequence[Fact], say: Say) -> None:
    """Every command that was answered with a yes took effect exactly once, and one that was refused never did."""
    by_cause: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        if fact.service == "dispatch" and "actor" in fact.event and "causationid" in fact.event:
            by_cause[fact.event["causationid"]].append(fact)
    for command in history.commanded:
        effects = by_cause[command.id]
        if command.answer is None:
            if effects:
                say("refused and done", f"{command.verb} {command.id}: {command.problem}, yet {effects[0].name}")
            continue
        wanted = command.answer["facts"]
        if len(effects) < wanted or (wanted and not effects):
            say("command lost", f"{command.verb} {command.id}: {len(effects)} of {wanted} facts")
        elif len(effects) > wanted:
            say("command doubled", f"{command.verb} {command.id}: {len(effects)} facts, promised {wanted}")
        elif wanted and effects[0].event["id"] != command.answer["id"]:
            say("answer of another fact", f"{command.verb} {command.id}: {command.answer['id']}")


# --- the ledger -------------------------------------------------------------------------------------------------------


def check_ledger(history: History, say: Say) -> None:
    """Leaves are dense, account for every sequence, and are the bytes that follow from the stream."""
    indices = [index for index, _ in history.leaves]
    if indices != list(range(len(indices))):
        hole = next((n for n, index in enumerate(indices) if n != index), len(indices))
        say("leaves not dense", f"at {hole}: {indices[hole : hole + 3]}")
    accounted: Counter[int] = Counter()
    for index, data in history.leaves:
        leaf = orjson.loads(data)
        if leaf["index"] != index:
            say("leaves not dense", f"{index} says that it is {leaf['index']}")
        if leaf["kind"] == "gap":
            accounted.update(range(leaf["gap"]["from"], leaf["gap"]["to"] + 1))
        elif leaf["kind"] not in ("reset", "heads"):
            accounted[leaf["src"]["seq"]] += 1
    last = history.records[-1].sequence if history.records else 0
    for sequence in range(1, last + 1):
        if accounted[sequence] != 1:
            say("sequence not accounted for", f"{sequence}: {accounted[sequence]} leaves")
    made = leaves.extend(
        leaves.Prefix(history.origin, created=history.created),
        [leaves.read(Delivery(*record[:4])) for record in history.records],
        {},
    )
    for leaf, (index, data) in zip(made, history.leaves, strict=False):
        if leaf.data != data:
            say("leaf does not follow from the stream", f"{index}: {data[:200]!r}, not {leaf.data[:200]!r}")
    by_sequence = {record.sequence: record for record in history.records}
    for index, data in history.leaves:  # and once more without the ledger's own code
        leaf = orjson.loads(data)
        if leaf["kind"] == "event":
            record = by_sequence.get(leaf["src"]["seq"])
            if record is None or orjson.dumps(leaf["event"], option=orjson.OPT_SORT_KEYS) != record.data:
                say("leaf does not follow from the stream", f"{index}: its event is not the message's")


# --- messages ---------------------------------------------------------------------------------------------------------


def check_notices(history: History, facts: Sequence[Fact], say: Say) -> None:
    """Queued once per cause and recipient, one end each, and at most one more message per crash."""
    queued: dict[str, Fact] = {}
    causes: set[tuple[str, str, str]] = set()
    over: dict[str, str] = {}
    expected: Counter[tuple[str, str, str]] = Counter()
    possible: Counter[tuple[str, str, str]] = Counter()
    for fact in facts:
        if not fact.name.startswith("notice."):
            continue
        data, id = fact.data, fact.data["notice_id"]
        if fact.name == "notice.queued":
            cause = (data["cause"], data["recipient"], data["template"])
            if cause in causes or id in queued:
                say("notice doubled", f"{id}: {cause}")
            causes.add(cause)
            queued[id] = fact
            possible[_receipt(data)] += 1
            continue
        if id not in queued:
            say("notice never queued", f"{fact.name} {id}")
            continue
        if id in over:
            say("notice ended twice", f"{id}: {over[id]}, then {fact.name} at {fact.sequence}")
        if fact.name == "notice.sent":
            over[id] = fact.name
            if data["channel"] == "webhook":
                expected[_receipt(queued[id].data)] += 1
        elif fact.name == "notice.failed" and "retry_at" not in data:
            over[id] = fact.name
    if history.ended:
        for id in queued.keys() - over.keys():
            say("notice without an end", f"{id} {queued[id].data['template']}")
    for receipt, times in expected.items():
        if history.receipts[receipt] < times:
            say("message lost", f"{receipt}: {times} sent, {history.receipts[receipt]} arrived")
    for receipt, times in history.receipts.items():
        if not possible[receipt]:
            say("message nobody queued", f"{receipt}")
        elif times > possible[receipt] * (1 + history.crashes):
            say(
                "message repeated", f"{receipt}: {times} arrived, {possible[receipt]} queued, {history.crashes} crashes"
            )


def _receipt(data: Mapping[str, Any]) -> tuple[str, str, str]:
    return data["recipient"], data["task_id"][-12:], data["template"]


# --- who watches ------------------------------------------------------------------------------------------------------


def check_watchers(history: History, facts: Sequence[Fact], say: Say) -> None:
    """Who watches a district sees each of its facts once, in order, and nothing that is not in the stream."""
    stored = {record.sequence: record.data for record in history.records}
    end = history.records[-1].sequence if history.records else 0
    for sequence, data in history.live:
        if sequence <= end and stored.get(sequence) != data:  # what came behind the end was seen, but not read
            say("live event not in the stream", f"{sequence}")
    for watched in history.watched:
        last = watched.after
        for sequence, data in watched.events:
            if sequence == last:
                say("event repeated", f"{watched.name}: {sequence}")
            elif sequence < last:
                say("event out of order", f"{watched.name}: {sequence} after {last}")
            last = sequence
            if sequence <= end and stored.get(sequence) != data:
                say("event not in the stream", f"{watched.name}: {sequence}")
        seen = {sequence for sequence, _ in watched.events}
        for fact in facts:
            if watched.after < fact.sequence <= watched.until and fact.sequence not in seen and _shown(fact, watched):
                say("event lost", f"{watched.name}: {fact.sequence} {fact.name}")


def _shown(fact: Fact, watched: Watched) -> bool:
    if fact.name.startswith("turn."):
        return False
    if fact.district == watched.district:
        return True
    shared = {watched.district, HUB} & set(fact.event["districts"].split(","))
    return bool(shared) and not fact.name.startswith(PRIVATE)


def _first_difference(one: Any, other: Any, path: str = "") -> str:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}, key=str):
            if one.get(key) != other.get(key):
                return _first_difference(one.get(key), other.get(key), f"{path}.{key}")
    return f"{path}: {str(one)[:300]} beside {str(other)[:300]}"
