"""
A message and the ledger so far give the next leaf: pure, so that racing writers and a rebuilt ledger write the same bytes.

Every sequence of the stream becomes one leaf or lies in one gap leaf. A leaf is canonical JSON (RFC 8785): because what our
writers publish is canonical already, a leaf takes the event's bytes as they are; bytes that are not canonical are no event.
Indices are dense from 0; the ordinals `n` are dense from 1 per district (`scopes`) and per request (`case`) and count leaves
of kind `event` only, so that whoever gets a filtered replay can see that nothing was withheld: how many there are of each district
stands in a leaf of kind `heads` now and then, and in every checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from typing import Any, NamedTuple

import orjson

from services.ledger.log import heads, tree
from shared.bus import STREAM, Delivery
from shared.envelope import Envelope, canonical, decode
from shared.errors import MalformedError, PaidanError

VERSION = "paidan/leaf/1"
LEAF_BYTES_MAX = 65_535

HEADS_EVERY = 65_536
DAY_NS = 86_400_000_000_000

EVENT, DUP, CONFLICT, REJECT, GAP, RESET, HEADS = "event", "dup", "conflict", "reject", "gap", "reset", "heads"
KINDS = (EVENT, DUP, CONFLICT, REJECT, GAP, RESET, HEADS)


class ForeignLogError(PaidanError):
    """The store holds the log of another origin: this ledger must not write into it."""


@dataclass(slots=True)
class Leaf:
    """
    One entry of the ledger and what it is indexed by; every field but `envelope` and `raw` follows from `data`.

    Attributes:
        data: the canonical bytes.
        epoch: which source it comes from: how many `reset` leaves lie before.
        sequence: the stream's number; a gap's first; None for what stands for none (reset, heads).
        event_id: of an event, a dup or a conflict.
        envelope: the decoded event, for who folds it right away.
        raw: the message's bytes where the leaf holds their digest only.
    """

    index: int
    data: bytes
    kind: str
    epoch: int
    sequence: int | None
    event_id: str | None = None
    type: str | None = None
    case: str | None = None
    districts: tuple[str, ...] = ()
    area: str | None = None
    time: datetime | None = None
    envelope: Envelope | None = None
    raw: bytes | None = None
    _hash: bytes = field(default=b"", repr=False, compare=False)

    @property
    def hash(self) -> bytes:
        """The leaf hash of RFC 9162 §2.1, computed once: the store and the tree both want it."""
        if not self._hash:
            self._hash = tree.leaf_hash(self.data)
        return self._hash


class First(NamedTuple):
    """Where an event id was first seen, and with which subject and bytes."""

    at: int
    subject: str
    data: bytes


class Read(NamedTuple):
    """A message, and the event in it; or why there is none."""

    delivery: Delivery
    envelope: Envelope | None
    reason: str = ""
    districts: tuple[str, ...] = ()
    time: datetime | None = None

    @property
    def case(self) -> str | None:
        """The request it is about."""
        return self.envelope.case if self.envelope else None


@dataclass(slots=True)
class Prefix:
    """
    What the next leaf depends on: the ledger up to here, in a few numbers.

    Attributes:
        log: the origin.
        created: the stream, by its creation as the server writes it; "" before the first.
        epoch: how many resets there were.
        sequence: the last of the stream that is accounted for: the only cursor.
        size: how many leaves there are, and so the next index.
        newest_ns: the latest `recorded` so far.
        scopes: events per district, and the index of the last one.
        cases: events per request, of those requests that the next leaves need at least.
    """

    log: str
    created: str = ""
    epoch: int = 0
    sequence: int = 0
    size: int = 0
    newest_ns: int = 0
    scopes: dict[str, tuple[int, int]] = field(default_factory=dict)
    cases: dict[str, int] = field(default_factory=dict)


def read(delivery: Delivery) -> Read:
    """
    The event in a message, or the reason why it is none: what `shared.envelope.decode` says.

    Never raises: a poison message must not stop the ledger.
    """
    try:
        envelope = decode(delivery.subject, delivery.data)
        districts = tuple(dict.fromkeys(envelope.districts.split(","))) if envelope.districts else ()
        return Read(delivery, envelope, "", districts, envelope.time.astimezone(UTC))
    except MalformedError as why:
        return Read(delivery, None, why.code)
    except Exception:  # whatever else is wrong with it, it is no fact, and the log goes on
        return Read(delivery, None, "schema")


def extend(prefix: Prefix, messages: Iterable[Read], known: Mapping[str, First]) -> list[Leaf]:
    """
    The leaves of these messages, in order; the prefix moves on to the last of them.

    Args:
        prefix: `cases` must hold every request of these messages that has events already.
        messages: of one source, oldest first, all behind `prefix.sequence`.
        known: earlier events with ids that appear here. The caller may leave it empty and let the store's unique index
            find repeats; ids that repeat among `messages` themselves are found here.
    """
    leaves: list[Leaf] = []
    seen = dict(known)
    for message in messages:
        delivery = message.delivery
        leaves += _heads(prefix, delivery.recorded_ns)
        if delivery.sequence > prefix.sequence + 1:
            leaves.append(_gap(prefix, delivery))
            leaves += _heads(prefix, delivery.recorded_ns)
        leaf = _event(prefix, message, seen) if message.envelope else None
        leaf = leaf or _reject(prefix, delivery, message.reason or "size")
        leaves.append(leaf)
        _move(prefix, delivery.sequence, delivery.recorded_ns)
    return leaves


def reset(prefix: Prefix, *, created: str, after: int) -> list[Leaf]:
    """
    The leaf that says: from here on another source; before it heads, where they are due. The prefix moves on to it.

    Args:
        created: of the stream that is there now; the same as before where the stream lost its tail.
        after: the last sequence that both have in common: 0 for a new stream.
    """
    leaves = _heads(prefix, prefix.newest_ns)
    old = {"created": prefix.created, "seq": prefix.sequence} | ({"epoch": prefix.epoch} if prefix.epoch else {})
    prefix.created, prefix.epoch, prefix.sequence = created, prefix.epoch + 1, after
    data = _rare(prefix, RESET, after, prefix.newest_ns, reset=old)
    leaves.append(Leaf(prefix.size, data, RESET, prefix.epoch, None))
    prefix.size += 1
    return leaves


def resume(log: str, tail: bytes | None, newest_ns: int, scopes: heads.Scopes) -> Prefix:
    """
    The prefix that ends with this leaf.

    Args:
        tail: the last leaf's bytes, None for an empty ledger.
        newest_ns: `recorded` of the last leaf that is not late.
        scopes: events per district, and the index of the last one.
    Raises:
        ForeignLogError: the leaf belongs to another log.
    """
    if tail is None:
        return Prefix(log)
    leaf = orjson.loads(tail)
    if leaf["log"] != log or leaf["v"] != VERSION:
        raise ForeignLogError(
            f"the store holds the log {leaf['log']} ({leaf['v']}), this ledger writes {log} ({VERSION})"
        )
    source = leaf["src"]
    return Prefix(
        log=log,
        created=source["created"],
        epoch=source.get("epoch", 0),
        sequence=leaf["gap"]["to"] if leaf["kind"] == GAP else source["seq"],
        size=leaf["index"] + 1,
        newest_ns=newest_ns,
        scopes=dict(scopes),
    )


def first(leaf: bytes) -> First:
    """What a stored event leaf says about its event's bytes."""
    document = orjson.loads(leaf)
    return First(document["index"], document["subject"], canonical(document["event"]))


def recorded_text(recorded_ns: int) -> str:
    """RFC 3339 in UTC with all nine digits."""
    second, rest = divmod(recorded_ns, 1_000_000_000)
    return f"{_second(second)}.{rest:09d}Z"


def recorded_ns(text: str) -> int:
    """The way back."""
    whole = datetime.fromisoformat(text[:19] + "+00:00")
    return int(whole.timestamp()) * 1_000_000_000 + int(text[20:29])


def timely_ns(leaf: bytes) -> int | None:
    """`recorded` of a leaf; None for one that is late."""
    document = orjson.loads(leaf)
    return None if "late" in document else recorded_ns(document["recorded"])


@lru_cache(maxsize=1024)
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _event(prefix: Prefix, message: Read, seen: dict[str, First]) -> Leaf | None:
    """The leaf of an event, or of its repeat; None where the leaf would be too large."""
    envelope, delivery = message.envelope, message.delivery
    assert envelope is not None
    subject, index = delivery.subject, prefix.size
    if (earlier := seen.get(envelope.id)) is not None:
        return _again(prefix, delivery, envelope.id, earlier)
    scopes, cases, case = prefix.scopes, prefix.cases, ""
    if envelope.case is not None:
        case = f'"case":{{"id":{_text(envelope.case)},"n":{cases.get(envelope.case, 0) + 1}}},'
    ordinals = [scopes[district][0] + 1 if district in scopes else 1 for district in message.districts]
    counted = ",".join([f'{{"d":"{d}","n":{n}}}' for d, n in zip(message.districts, ordinals, strict=True)])
    late = '"late":true,' if delivery.recorded_ns < prefix.newest_ns else ""
    epoch = f'"epoch":{prefix.epoch},' if prefix.epoch else ""
    data = b"".join(
        (
            f'{{{case}"event":'.encode(),
            delivery.data,
            (
                f',"index":{index},"kind":"event",{late}"log":{_text(prefix.log)}'
                f',"recorded":"{recorded_text(delivery.recorded_ns)}","scopes":[{counted}]'
                f',"src":{{"created":"{prefix.created}",{epoch}"seq":{delivery.sequence},"stream":"{STREAM}"}}'
                f',"subject":"{subject}","v":"{VERSION}"}}'
            ).encode(),
        )
    )
    if len(data) > LEAF_BYTES_MAX:
        return None
    seen[envelope.id] = First(index, subject, delivery.data)
    for district, n in zip(message.districts, ordinals, strict=True):
        scopes[district] = n, index
    if envelope.case is not None:
        cases[envelope.case] = cases.pop(envelope.case, 0) + 1  # to the end: the least recent are forgotten first
    return Leaf(
        *(index, data, EVENT, prefix.epoch, delivery.sequence, envelope.id, envelope.fact.type(), envelope.case),
        *(message.districts, envelope.area, message.time, envelope),
    )


def _again(prefix: Prefix, delivery: Delivery, event_id: str, earlier: First) -> Leaf:
    same = (earlier.subject, earlier.data) == (delivery.subject, delivery.data)
    kind = DUP if same else CONFLICT
    more: dict[str, Any] = {"first": earlier.at, "id": event_id, "subject": delivery.subject}
    if not same:
        more["digest"] = sha256(delivery.data).hexdigest()
    data = _rare(prefix, kind, delivery.sequence, delivery.recorded_ns, **more)
    raw = None if same else delivery.data
    return Leaf(prefix.size, data, kind, prefix.epoch, delivery.sequence, event_id, raw=raw)


def _reject(prefix: Prefix, delivery: Delivery, reason: str) -> Leaf:
    digest = sha256(delivery.data).hexdigest()
    data = _rare(
        *(prefix, REJECT, delivery.sequence, delivery.recorded_ns),
        digest=digest,
        reason=reason,
        subject=delivery.subject,
    )
    return Leaf(prefix.size, data, REJECT, prefix.epoch, delivery.sequence, raw=delivery.data)


def _gap(prefix: Prefix, delivery: Delivery) -> Leaf:
    """Numbers that the stream no longer has, found at the message behind them, whose `recorded` it takes."""
    since, until = prefix.sequence + 1, delivery.sequence - 1
    data = _rare(prefix, GAP, since, delivery.recorded_ns, gap={"from": since, "to": until})
    leaf = Leaf(prefix.size, data, GAP, prefix.epoch, since)
    _move(prefix, until, delivery.recorded_ns)
    return leaf


def _heads(prefix: Prefix, at_ns: int) -> list[Leaf]:
    """
    The heads that are due before the next leaf, if they are: at every multiple of 65,536, and when a new day (UTC) begins.

    Args:
        at_ns: when the stream took the message that comes next. Days follow the latest so far, so that none begins twice.
    """
    leaves: list[Leaf] = []
    while prefix.size and (prefix.size % HEADS_EVERY == 0 or at_ns // DAY_NS > prefix.newest_ns // DAY_NS):
        recorded_ns = max(prefix.newest_ns, at_ns)
        of = {"root": heads.root(prefix.scopes).hex(), "scopes": len(prefix.scopes)}
        data = _rare(prefix, HEADS, prefix.sequence, recorded_ns, heads=of)
        leaves.append(Leaf(prefix.size, data, HEADS, prefix.epoch, None))
        _move(prefix, prefix.sequence, recorded_ns)
    return leaves


def _rare(prefix: Prefix, kind: str, sequence: int, at_ns: int, **more: Any) -> bytes:
    source: dict[str, Any] = {"stream": STREAM, "created": prefix.created, "seq": sequence}
    if prefix.epoch:
        source["epoch"] = prefix.epoch
    if at_ns < prefix.newest_ns:
        more["late"] = True
    return canonical(
        {
            **more,
            "v": VERSION,
            "log": prefix.log,
            "index": prefix.size,
            "kind": kind,
            "src": source,
            "recorded": recorded_text(at_ns),
        }
    )


def _move(prefix: Prefix, sequence: int, at_ns: int) -> None:
    prefix.size += 1
    prefix.sequence = sequence
    prefix.newest_ns = max(prefix.newest_ns, at_ns)


@lru_cache(maxsize=4096)
def _text(value: str) -> str:
    return orjson.dumps(value).decode()
