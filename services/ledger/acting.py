"""
Administrative acts that are no facts by themselves (an issued token, a changed contact): recorded, once per key, as facts of the ledger.

Acts of one district are fenced on the last of them, and whether one was recorded before is looked up in the log; so the log must have
come to that last one first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import Any

import orjson

from services.ledger.store import Selection, Store
from shared.auth import EVERYWHERE, Caller
from shared.bus import Bus, Message
from shared.envelope import Envelope
from shared.errors import ConflictError, RefusedError, UnavailableError
from shared.facts import HUB, NOWHERE, Fact, LedgerActed, instant
from shared.ids import derived_id

WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Acts:
    """Where acts are recorded, and read again."""

    bus: Bus
    store: Store
    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))

    async def record(
        self,
        act: Fact,
        *,
        district: str,
        by: Caller,
        key: str,
        id: str | None = None,
        case: str | None = None,
        taken: RefusedError | None = None,
    ) -> dict[str, Any]:
        """
        Commit an act once per caller and key, or once per id; a repeat is answered as the first was.

        Args:
            district: whom it concerns; `000000` for all.
            case: the request that it is about.
            taken: what is said where something else was recorded under this id.
        Raises:
            RefusedError: `key_reused`, or `taken`.
            UnavailableError: bus or store do not answer, or the log lags: nothing is known of the outcome, the same key tells.
        """
        id = id or derived_id("act", by.actor, district, key)
        subject = act.subject(district, NOWHERE)
        ends = monotonic() + WITHIN_S
        data = Envelope(id, district, NOWHERE, instant(self.now()), act, district, case, actor=by.actor).encode()
        while True:
            last = await self.bus.last(subject)
            last_id = orjson.loads(last.data)["id"] if last else id
            found = await self.store.known([id, last_id])
            if id in found or (last and last_id == id):
                event = orjson.loads(found[id].data if id in found or last is None else last.data)
                if event["data"] != orjson.loads(data)["data"] or event["actor"] != by.actor:
                    raise taken or RefusedError("key_reused", field="Idempotency-Key")
                return shown(event)
            if last is None or last_id in found:
                try:
                    await self.bus.commit([Message(subject, data, last.sequence if last else 0)])
                    return shown(orjson.loads(data))
                except (ConflictError, UnavailableError):
                    pass  # somebody else's, or ours: look
            if monotonic() > ends:
                raise UnavailableError("the act could not be recorded in time")
            await asyncio.sleep(0.1)

    async def page(self, *, district: str | None, since: int, limit: int) -> list[tuple[int, dict[str, Any]]]:
        """Acts from an index of the log on, oldest first; of one district with those that concern all, or everybody's (None)."""
        scopes = None if district is None else (district, HUB)
        asked = Selection(scopes=scopes, types=(LedgerActed.type(),), kinds=("event",))
        found = await self.store.read(asked, since, 2**53, limit)
        return [(index, shown(orjson.loads(leaf)["event"])) for index, leaf in found]


def shown(event: dict[str, Any]) -> dict[str, Any]:
    """An act as callers see it."""
    district = event["source"].split("/")[2]
    return {
        "id": event["id"],
        "district": EVERYWHERE if district == HUB else district,
        "by": event["actor"],
        "time": event["time"],
        **event["data"],
    }
