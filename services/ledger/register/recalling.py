"""
Recalling (追溯): what the register said at any moment, who changed it and why: a fold of the log's own leaves.

`on` is the day that is asked about, `as_of` what was known when it is answered: a correction made since changes the first and
never the second. The facts are read from the log and not from the stream: their indices are what an auditor has, and what proofs are
about. What was applied in several batches counts from the last one on, as it does for everybody. Whom an office lets in is its own
business and no part of this.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from services.ledger.log.leaves import EVENT
from services.ledger.register.registering import SECTIONS, current, differences
from services.ledger.replay import types_named
from services.ledger.store import Selection
from shared.envelope import opened
from shared.errors import MalformedError
from shared.facts import HUB, AgreementSet, AreaSet, OfficeSet, PrecedentSet, RegisterApplied, RegisterFact
from shared.register import Register, evolve
from shared.telemetry import logger

CHUNK = 500
Dated = AreaSet | AgreementSet | PrecedentSet
"""What is about one area."""
TYPES = types_named([*(fact.name for fact in SECTIONS.values() if fact is not OfficeSet), RegisterApplied.name])


class Log(Protocol):
    """What recalling needs of the store."""

    async def read(self, selection: Selection, since: int, below: int, limit: int) -> list[tuple[int, bytes]]:
        """Leaves in a range."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One fact about an area in the log, what stood in its place before, and who brought it in and why."""

    index: int
    recorded: str
    fact: RegisterFact
    before: RegisterFact | None
    by: str
    why: str

    def told(self) -> dict[str, Any]:
        """As the caller hears it: every field of what is new, the fields that differ of what was there."""
        changed = differences(self.before, self.fact)
        new = [(name, None, value) for name, value in self.fact if value not in (None, ())]
        return {
            "index": self.index,
            "recorded": self.recorded,
            "type": self.fact.type(),
            "by": self.by,
            "why": self.why,
            "fields": [{"field": name, "old": old, "new": value} for name, old, value in (changed or new)],
        }


class Recall:
    """Everything that the register ever said, in the log's order; it reads on in the log where it is asked for more than it has."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._lock = asyncio.Lock()
        self._upto = 0
        self._register = Register()
        self._ended: list[tuple[int, Register]] = [(-1, Register())]
        """Of each document: its last leaf, and the register from then on."""
        self._open: list[tuple[int, str, Dated, RegisterFact | None]] = []
        self._entries: dict[str, list[Entry]] = {}

    async def register(self, size: int) -> Register:
        """The register as the log's first leaves say it, of a size that it has come to."""
        await self._read_on(size)
        return self._ended[bisect_left(self._ended, size, key=lambda ended: ended[0]) - 1][1]

    async def history(self, area: str, size: int) -> list[Entry]:
        """What was said about an area, its agreements and its precedents below a size, oldest first."""
        await self._read_on(size)
        return [entry for entry in self._entries.get(area, ()) if entry.index < size]

    async def _read_on(self, size: int) -> None:
        async with self._lock:
            wanted = Selection(scopes=(HUB,), types=TYPES, kinds=(EVENT,))
            while self._upto < size:
                found = await self._log.read(wanted, self._upto, size, CHUNK)
                for index, leaf in found:
                    self._take(index, orjson.loads(leaf))
                self._upto = found[-1][0] + 1 if len(found) == CHUNK else size
                await asyncio.sleep(0)

    def _take(self, index: int, leaf: dict[str, Any]) -> None:
        try:
            fact = opened(leaf["subject"], leaf["event"]).fact
        except MalformedError as why:
            logger().error("register_leaf_ignored", index=index, why=str(why))
            return
        if isinstance(fact, Dated):
            self._open.append((index, leaf["recorded"], fact, current(self._register, fact)))
        self._register = evolve(self._register, fact)
        if isinstance(fact, RegisterApplied):
            for at, recorded, said, before in self._open:
                entry = Entry(at, recorded, said, before, fact.by, fact.why)
                self._entries.setdefault(said.area, []).append(entry)
            self._open.clear()
            if not fact.more:
                self._ended.append((index, self._register))
