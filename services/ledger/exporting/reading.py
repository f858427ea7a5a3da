"""A leaf as every export reads it, once: who, what, when, where; and what the register said of its place."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import orjson

from services.ledger.log.leaves import EVENT
from services.ledger.log.tree import leaf_hash
from services.ledger.replay import types_named
from services.ledger.store import Selection
from shared.envelope import opened
from shared.facts import CATALOGUE, HUB, NOWHERE, AreaSet

BATCH = 1000
Scalar = Literal["boolean", "integer", "string"]
_NAMES = {kind: fact.name for fact in CATALOGUE for kind in types_named((fact.name,))}


@dataclass(frozen=True, slots=True)
class Row:
    """
    One leaf. What its kind has not is empty.

    Attributes:
        hash: the leaf hash of RFC 9162, in hex, computed from `leaf`.
        sequence: the stream's number; a gap's first.
        type: the full type; `name` is what the fact is called without prefix and version.
        district: the office that acts; `districts` are all that may see it.
        request: what it is about, if that is a request.
        status: what a request or its task became by it.
    """

    index: int
    leaf: bytes
    hash: str
    kind: str
    sequence: int
    recorded: str
    subject: str = ""
    id: str = ""
    type: str = ""
    name: str = ""
    time: str = ""
    request: str = ""
    district: str = ""
    districts: tuple[str, ...] = ()
    area: str = ""
    actor: str = ""
    cause: str = ""
    trace: str = ""
    status: str = ""
    data: dict[str, Any] = field(default_factory=dict)


def row(index: int, leaf: bytes) -> Row:
    """The row of a leaf."""
    document = orjson.loads(leaf)
    source, kind = document["src"], document["kind"]
    at = document["gap"]["from"] if "gap" in document else source["seq"]
    digest = leaf_hash(leaf).hex()
    if kind != EVENT:
        subject, id = document.get("subject", ""), document.get("id", "")
        return Row(index, leaf, digest, kind, at, document["recorded"], subject, id)
    event, subject = document["event"], document["subject"]
    tokens = subject.split(".")
    entity, past = tokens[4:6]
    return Row(
        index,
        leaf,
        digest,
        kind,
        at,
        document["recorded"],
        subject,
        event["id"],
        event["type"],
        _NAMES.get(event["type"], f"{entity}.{past}"),
        event["time"],
        document["case"]["id"] if "case" in document else "",
        tokens[1],
        tuple(scope["d"] for scope in document["scopes"]),
        "" if tokens[3] == NOWHERE else tokens[3],
        event.get("actor", ""),
        event.get("causationid", ""),
        event.get("traceparent", ""),
        past if entity in ("request", "task") else "",
        event["data"],
    )


class Log(Protocol):
    """What is read of the store."""

    async def read(self, selection: Selection, since: int, below: int, limit: int) -> list[tuple[int, bytes]]:
        """Leaves in a range."""


class Ground:
    """The areas of the register by their last version, below a size of the log."""

    def __init__(self) -> None:
        self.areas: dict[str, AreaSet] = {}

    @classmethod
    async def of(cls, log: Log, size: int) -> Ground:
        """As the log of this size has it."""
        made = cls()
        async for fact in _areas(log, size):
            if fact.area not in made.areas or fact.valid_from >= made.areas[fact.area].valid_from:
                made.areas[fact.area] = fact
        return made

    def enclave(self, area: str) -> bool:
        """Whether an area (插花地) lies in another district than the one that runs it or serves it."""
        found = self.areas.get(area)
        return found is not None and {found.administered_by, found.served_by} != {found.located_in}


async def _areas(log: Log, size: int) -> AsyncIterator[AreaSet]:
    selection, since = Selection(district=HUB, types=types_named((AreaSet.name,)), kinds=(EVENT,)), 0
    while chunk := await log.read(selection, since, size, BATCH):
        for index, leaf in chunk:
            document = orjson.loads(leaf)
            fact = opened(document["subject"], document["event"]).fact
            assert isinstance(fact, AreaSet)
            yield fact
            since = index + 1


def scalars(data: dict[str, Any]) -> Iterator[tuple[str, Scalar, str]]:
    """The values of a fact that are one word each: name, type, and the value as text."""
    for name, value in data.items():
        if isinstance(value, bool):
            yield name, "boolean", "true" if value else "false"
        elif isinstance(value, int):
            yield name, "integer", str(value)
        elif isinstance(value, str):
            yield name, "string", value
