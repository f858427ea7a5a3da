"""
OCEL 2.0 as JSON: each event with the request, the task, the places and the people (by pseudonym) that it is about.

Events come in the log's order; then objects, request by request, with what changed of them and when (each first value at the epoch, as
the specification has it); types and what the export is come last, so that nothing has to be kept but places and people. Values are
text, as the specification's schema wants them; their types are declared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from services.ledger import asof, cases
from services.ledger.cases import Case
from services.ledger.exporting.reading import Ground, Row, Scalar, scalars
from services.ledger.exporting.writing import Pass, Writer
from services.ledger.log.leaves import recorded_ns
from shared.envelope import canonical
from shared.facts import HUB

EPOCH = "1970-01-01T00:00:00Z"
EVENT_ATTRIBUTES = {
    "index": "integer",
    "leaf_hash": "string",
    "recorded": "time",
    "recorded_ns": "string",
    "sequence": "integer",
    "correlationid": "string",
    "causationid": "string",
    "traceparent": "string",
}
OBJECT_TYPES: Mapping[str, Mapping[str, str]] = {
    "request": {
        "status": "string",
        "district": "string",
        "area": "string",
        "item": "string",
        "urgency": "integer",
        "round": "integer",
        "holder": "string",
    },
    "task": {"status": "string", "holder": "string", "item": "string", "urgency": "integer", "effort": "integer"},
    "area": {"title": "string"},
    "enclave": {"title": "string"},
    **{name: {} for name in ("district", "officer", "member", "handover", "conferral", "help")},
}
TOLD = ("item", "urgency", "effort")
WORK = ("handover", "conferral", "help")

Relation = tuple[str, str]


class AsOcel(Writer):
    """Events and objects."""

    passes: Sequence[Pass] = ("leaves", "cases")

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        self._types: dict[str, dict[str, Scalar]] = {}
        self._standing: dict[str, str] = {}
        self._subject: _Subject | None = None
        self.counts["objects"] = 0

    def head(self, _: Mapping[str, Any]) -> bytes:
        """The events begin."""
        return b'{"events":['

    def leaves(self, rows: Sequence[Row]) -> bytes:
        """Events."""
        written = b",\n".join(canonical(self._event(row)) for row in rows)
        before = b",\n" if self.written else b""
        self.written += len(rows)
        return before + written

    def cases(self, rows: Sequence[Row]) -> bytes:
        """The objects of each request, once it is over."""
        made: list[dict[str, Any]] = []
        for row in rows:
            if self._subject is None or row.request != self._subject.id:
                made += self._subject.objects() if self._subject else ()
                self._subject = _Subject(row.request)
            self._subject.take(row)
        return self._listed(made)

    def foot(self, about: Mapping[str, Any]) -> bytes:
        """The last request, places and people, the types, and what it is."""
        rest = [*(self._subject.objects() if self._subject else ()), *self._standing_objects()]
        begun = b"" if self.counts["objects"] else b'],\n"objects":['
        written = begun + self._listed(rest) if rest else begun
        event_types = [
            {
                "name": name,
                "attributes": _declared({**EVENT_ATTRIBUTES, **{f"data.{key}": of for key, of in seen.items()}}),
            }
            for name, seen in sorted(self._types.items())
        ]
        object_types = [{"name": name, "attributes": _declared(of)} for name, of in OBJECT_TYPES.items()]
        told = {**about, "counts": {**about["counts"], **self.counts}}
        ends = canonical({"eventTypes": event_types, "objectTypes": object_types, "paidan": told})
        return written + b"],\n" + ends[1:] + b"\n"

    def _listed(self, made: Sequence[dict[str, Any]]) -> bytes:
        if not made:
            return b""
        before = b",\n" if self.counts["objects"] else b'],\n"objects":['
        self.counts["objects"] += len(made)
        return before + b",\n".join(canonical(each) for each in made)

    def _event(self, row: Row) -> dict[str, Any]:
        seen = self._types.setdefault(row.type, {})
        attributes = {
            "index": str(row.index),
            "leaf_hash": row.hash,
            "recorded": f"{row.recorded[:26]}Z",
            "recorded_ns": str(recorded_ns(row.recorded)),
            "sequence": str(row.sequence),
            "correlationid": row.request,
            "causationid": row.cause,
            "traceparent": row.trace,
        }
        for name, kind, value in scalars(row.data):
            attributes[f"data.{name}"] = value
            seen[name] = kind if seen.get(name, kind) == kind else "string"
        return {
            "id": row.id,
            "type": row.type,
            "time": row.time,
            "attributes": [{"name": name, "value": value} for name, value in attributes.items() if value],
            "relationships": [
                {"objectId": id, "qualifier": qualifier} for id, qualifier in dict.fromkeys(self._relations(row))
            ],
        }

    def _relations(self, row: Row) -> Iterator[Relation]:
        if row.request:
            yield f"request:{row.request}", "subject"
            for type, id in work(row):
                yield f"{type}:{id}", type
        if row.area:
            yield self._stands("enclave" if self.ground.enclave(row.area) else "area", row.area), "place"
        given = row.data.get("to")
        for district in (*(row.districts or ()), row.district):
            if district != HUB:
                role = (
                    "origin" if district == row.district else "assignee district" if district == given else "informed"
                )
                yield self._stands("district", district), role
        role, _, who = row.actor.partition(":")
        if role == "member":
            yield self._stands("member", who), "performer"
        elif row.actor:
            yield self._stands("officer", row.actor), "performer"
        if isinstance(member := row.data.get("member_id"), str):
            yield self._stands("member", member), "member"
        if row.name == "task.offered":
            for member in row.data["members"]:
                yield self._stands("member", member), "asked"

    def _stands(self, type: str, id: str) -> str:
        """An object that is not one request's: its id, noted."""
        name = f"{type}:{id}"
        if name not in self._standing:
            self._standing[name] = type
            if type in ("area", "enclave"):
                for _, district in self._owners(id):
                    self._stands("district", district)
        return name

    def _owners(self, area: str) -> Iterator[tuple[str, str]]:
        found = self.ground.areas.get(area)
        if found is None:
            return
        yield "surrounded by" if found.located_in != found.administered_by else "located in", found.located_in
        yield "administered by", found.administered_by
        yield "served by", found.served_by

    def _standing_objects(self) -> Iterator[dict[str, Any]]:
        for name, type in sorted(self._standing.items()):
            id = name.partition(":")[2]
            if type not in ("area", "enclave"):
                yield {"id": name, "type": type}
                continue
            found = self.ground.areas.get(id)
            titled = [{"name": "title", "time": EPOCH, "value": found.title.zh}] if found else []
            owners = [{"objectId": f"district:{code}", "qualifier": role} for role, code in self._owners(id)]
            yield {"id": name, "type": type, "attributes": titled, "relationships": owners}


class _Changing:
    """An object's values as they changed."""

    def __init__(self, type: str, id: str, of: Iterable[Relation] = ()) -> None:
        self.document: dict[str, Any] = {"id": f"{type}:{id}", "type": type, "attributes": []}
        self.document["relationships"] = [{"objectId": id, "qualifier": qualifier} for id, qualifier in of]
        self._held: dict[str, str] = {}

    def becomes(self, time: str, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            text = "" if value is None else str(value)
            if text == self._held.get(name, ""):
                continue
            at = time if name in self._held else EPOCH
            self._held[name] = text
            self.document["attributes"].append({"name": name, "time": at, "value": text})


class _Subject:
    """A request with its tasks, and what was asked between offices for it, folded from the leaves that are exported."""

    def __init__(self, id: str) -> None:
        self.id = id
        self._request = _Changing("request", id)
        self._case: Case | None = None
        self._work: dict[Relation, _Changing] = {}

    def take(self, row: Row) -> None:
        """One more leaf about it."""
        step = asof.read(row.leaf)
        if step.event is not None:
            self._case = cases.evolve(self._case, row.index, step.event)
        if self._case is not None:
            shown = {name: self._case.get("state" if name == "status" else name) for name in OBJECT_TYPES["request"]}
            self._request.becomes(row.time, shown)
        for type, id in work(row):
            held = self._work.get((type, id))
            if held is None:
                held = self._work[type, id] = _Changing(type, id, [(f"request:{self.id}", "of")])
            if type == "task" and row.name.startswith("task.") and id == row.data.get("task_id"):
                known: dict[str, Any] = {name: row.data[name] for name in TOLD if name in row.data}
                if row.name == "task.accepted":
                    known["holder"] = row.data["member_id"]
                held.becomes(row.time, {"status": row.status, **known})

    def objects(self) -> Iterator[dict[str, Any]]:
        """The request, and what belongs to it."""
        yield self._request.document
        yield from (each.document for each in self._work.values())


def work(row: Row) -> Iterator[Relation]:
    """Type and id of what a fact about a request names beside it."""
    if "task_id" in row.data:
        yield "task", row.data["task_id"]
    if "new_task_id" in row.data:
        yield "task", row.data["new_task_id"]
    for type in WORK:
        if isinstance(id := row.data.get(f"{type}_id"), str):
            yield type, id


def _declared(of: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "type": type} for name, type in of.items()]
