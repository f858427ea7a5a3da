"""
A fact under way: its CloudEvents 1.0 envelope in canonical JSON, and its subject.

Canonical is RFC 8785: sorted keys, no white space. orjson with sorted keys writes exactly that on our profile (no floats,
integers below 2^53, keys in the basic plane), which `tests/shared/test_envelope.py` holds against an oracle.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

import orjson
from pydantic import ValidationError

from shared.errors import MalformedError
from shared.facts import BY_SUBJECT, Fact, plain

CONTENT_TYPE = "application/cloudevents+json"
DATA_BYTES_MAX = 24 * 1024
EVENT_BYTES_MAX = DATA_BYTES_MAX + 1024
ID_CHARS_MAX = 200
ATTRIBUTE_CHARS_MAX = 500
"""Attributes are copied into what follows from a fact: a few large ones would make the consequences larger than facts may be."""
OPTIONS = orjson.OPT_SORT_KEYS | orjson.OPT_UTC_Z
EXACT = orjson.OPT_SORT_KEYS | orjson.OPT_STRICT_INTEGER
"""Integers up to 2^53 only, those that JSON readers of every language hold exactly."""

_PLACE = re.compile(r"[0-9]{6}\.[a-z]+\.(?:-|[a-z0-9][a-z0-9-]{0,31})")
_DISTRICTS = re.compile(r"(?:[0-9]{6}(?:,[0-9]{6})*)?")


@dataclass(frozen=True, slots=True)
class Envelope:
    """
    One fact with its who, when and why.

    Attributes:
        id: unique for ever; the same for a decision taken again.
        district, area: the office that serves and the place, as in the subject.
        time: UTC; the turn's `now`.
        case: the request that it is all about (`correlationid`).
        cause: the fact or command that led to it (`causationid`).
        actor: `<role>:<id>` where a person's command led to it; absent otherwise.
        districts: who may see it, comma-separated.
    """

    id: str
    district: str
    area: str
    time: datetime
    fact: Fact
    districts: str
    case: str | None = None
    cause: str | None = None
    actor: str | None = None
    traceparent: str | None = None

    @property
    def subject(self) -> str:
        """Where it is published."""
        return self.fact.subject(self.district, self.area)

    def encode(self) -> bytes:
        """Canonical bytes. Raises ValueError for what `decode` would refuse: more than 24 KiB of data, or a long attribute."""
        fact = self.fact
        names = (self.id, self.case or "")
        others = (self.districts, self.cause or "", self.actor or "", self.traceparent or "")
        if max(map(len, names)) > ID_CHARS_MAX or max(map(len, others)) > ATTRIBUTE_CHARS_MAX or self.case == "":
            raise ValueError(f"an attribute of {fact.name} is longer than a fact may have, or its request is empty")
        event: dict[str, Any] = {
            "data": plain(fact),
            "districts": self.districts,
            "id": self.id,
            "source": f"/paidan/{self.district}/{fact.service}",
            "specversion": "1.0",
            "subject": str(getattr(fact, fact.key)),
            "time": self.time,
            "type": fact.type(),
        }
        if self.case is not None:
            event["correlationid"] = self.case
        if self.cause is not None:
            event["causationid"] = self.cause
        if self.actor is not None:
            event["actor"] = self.actor
        if self.traceparent is not None:
            event["traceparent"] = self.traceparent
        data = orjson.dumps(event, default=plain, option=OPTIONS)
        if len(data) > EVENT_BYTES_MAX:
            raise ValueError(f"{fact.name} is {len(data)} bytes, more than a fact may have")
        return data


def canonical(value: Any) -> bytes:
    """RFC 8785 bytes of plain data, facts and parts."""
    return orjson.dumps(value, default=plain, option=OPTIONS)


def decode(subject: str, data: bytes) -> Envelope:
    """
    The fact in a message. What is refused here is no fact for anybody, be it a desk or the ledger.

    Raises:
        MalformedError: no JSON, no such type, not its schema, published where it does not belong, too large, or in other bytes
            than its canonical ones.
    """
    if len(data) > EVENT_BYTES_MAX:
        raise MalformedError("size", f"{len(data)} bytes")
    try:
        event = orjson.loads(data)
    except orjson.JSONDecodeError as why:
        raise MalformedError("json", str(why)) from None
    envelope = opened(subject, event)
    try:
        exact = orjson.dumps(event, option=EXACT) == data and not _fractional(event["data"])
    except orjson.JSONEncodeError:  # an integer beyond 2^53
        exact = False
    if not exact:
        raise MalformedError("canonical", "other bytes than its canonical form")
    return envelope


def opened(subject: str, event: Any) -> Envelope:
    """
    The fact in an event that has been parsed already, from bytes that the caller holds to size and canonical form.

    Raises:
        MalformedError: as `decode`.
    """
    place = _place(subject)
    model = place.model
    if model is None:
        raise MalformedError(place.wrong, subject[:200])
    try:
        if event["type"] != place.type:
            raise MalformedError("type", str(event["type"])[:200])
        envelope = Envelope(
            event["id"],
            place.district,
            place.area,
            datetime.fromisoformat(event["time"]),
            model.__pydantic_validator__.validate_python(event["data"]),
            event["districts"],
            event.get("correlationid"),
            event.get("causationid"),
            event.get("actor"),
            event.get("traceparent"),
        )
        for name, value in event.items():  # loops, not all(): this is asked of every fact
            if name != "data" and (type(value) is not str or len(value) > ATTRIBUTE_CHARS_MAX):
                raise MalformedError("schema", "envelope: an attribute is not as it should be")
    except (KeyError, TypeError, AttributeError) as why:
        raise MalformedError("schema", f"envelope: {why!r}"[:300]) from None
    except ValidationError as why:
        first = why.errors(include_url=False, include_input=False)[0]
        raise MalformedError("schema", f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except ValueError as why:
        raise MalformedError("schema", f"envelope: {why}"[:300]) from None
    if (
        envelope.time.tzinfo is None
        or not 0 < len(envelope.id) <= ID_CHARS_MAX
        or (envelope.case is not None and not 0 < len(envelope.case) <= ID_CHARS_MAX)
        or not _are_districts(envelope.districts)
    ):
        raise MalformedError("schema", "envelope: an attribute is not as it should be")
    if event.get("source") != place.source or envelope.subject != subject or not place.known:
        raise MalformedError("subject", f"{event.get('source')} under {subject[:200]}"[:300])
    return envelope


class _Place(NamedTuple):
    """What a subject alone says of the facts under it; where there can be none (`model` is None), `wrong` is why."""

    wrong: str = ""
    model: type[Fact] | None = None
    type: str = ""
    district: str = ""
    area: str = ""
    source: str = ""
    known: bool = False


@lru_cache(maxsize=4096)
def _place(subject: str) -> _Place:
    tokens = subject.split(".", 6)
    if len(tokens) < 6 or tokens[0] != "evt":
        return _Place("subject")
    model = BY_SUBJECT.get(f"{tokens[2]}.{tokens[4]}.{tokens[5]}")
    if model is None:
        return _Place("type")
    known = _PLACE.fullmatch(".".join(tokens[1:4])) is not None
    return _Place("", model, model.type(), tokens[1], tokens[3], f"/paidan/{tokens[1]}/{tokens[2]}", known)


@lru_cache(maxsize=1024)
def _are_districts(text: str) -> bool:
    return _DISTRICTS.fullmatch(text) is not None


def _fractional(value: Any) -> bool:
    """Whether there is a number with a fraction in it (a model takes 1.5 for a time)."""
    for part in value.values() if type(value) is dict else value:
        kind = type(part)
        if kind is float or ((kind is dict or kind is list) and _fractional(part)):
            return True
    return False
