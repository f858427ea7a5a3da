"""
Deletes what was sealed for a request that never became one: claims and ciphertexts that after an hour have no fact.

A crash between ciphertext and fact leaves them, and personal data must not lie about that nobody asked for. What a fact names
is never touched, nor its claim: a repeat may come at any later time. Nor is what is older than the streams of facts or of keys: one
that was lost and made anew, or is still to be filled from a backup, would make everything look as if nobody needed it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import uniform
from typing import NamedTuple, Protocol

import orjson

from services.intake.door import SEALED, claim_subject
from services.intake.keeping import STREAM as KEYS
from services.intake.metrics import SWEPT
from services.intake.sealing import key_subject
from shared.bus import STREAM, Delivery, Stored, StreamState
from shared.errors import BusError, MalformedError
from shared.telemetry import logger

AFTER = timedelta(hours=1)
"""The door lays down anew what it finds older than half of this, so nothing is swept from under a late try."""
MARK = "sealed.swept"
"""How far the sweep has come, for whichever instance goes on."""
MARK_EVERY = 1000
ROUND_S = 600.0


# --- pure -------------------------------------------------------------------------------------------------------------


class Sealing(NamedTuple):
    """A claim, or a ciphertext under its district and `kid`, of a request."""

    kind: str
    request_id: str
    district: str = ""
    kid: str = ""


def sealing(subject: str) -> Sealing | None:
    """What lies under a subject of SEALED; None for what is neither claim nor ciphertext."""
    match subject.split("."):
        case ["sealed", "claims", request_id]:
            return Sealing("claim", request_id)
        case ["sealed", district, kid, request_id]:
            return Sealing("ciphertext", request_id, district, kid)
    return None


def fact_subject(held: Sealing, claim: bytes | None) -> str:
    """
    Where the fact lies, if there is one: as the claim says, else in whichever area of the ciphertext's district.

    Raises:
        MalformedError: the claim cannot be read; what it belongs to stays where it is.
    """
    if claim is None:
        return f"evt.{held.district}.intake.*.request.submitted.{held.request_id}"
    try:
        return str(orjson.loads(claim)["subject"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise MalformedError("json", f"the claim of {held.request_id}") from None


def is_left(held: Sealing, fact: bytes | None) -> bool:
    """
    Whether nothing needs it: there is no fact, or one that names another ciphertext.

    Raises:
        MalformedError: the fact cannot be read.
    """
    if fact is None:
        return True
    if held.kind == "claim":
        return False
    try:
        event = orjson.loads(fact)
        sealed = event["data"].get("sealed")
        return sealed is None or (sealed["kid"], event["source"]) != (held.kid, f"/paidan/{held.district}/intake")
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise MalformedError("json", f"the fact of {held.request_id}") from None


# --- the shell ----------------------------------------------------------------------------------------------------------


class Sweeping(Protocol):
    """What is needed of the bus."""

    async def last(self, subject: str, *, stream: str = STREAM) -> Stored | None:
        """The last message on a subject."""

    async def next(self, subjects: str, *, after: int, stream: str = STREAM) -> Delivery | None:
        """The first message behind a sequence."""

    async def state(self, stream: str = STREAM) -> StreamState:
        """Which stream there is."""

    async def replace(self, stream: str, subject: str, data: bytes) -> int:
        """Store a message in the place of those before it."""

    async def delete(self, stream: str, sequence: int) -> None:
        """Delete one message and its bytes."""


@dataclass
class Sweeper:
    """
    Walks SEALED once from end to end, and then on as messages grow old enough; run it with `run`.

    Every instance sweeps, and each goes on where any of them has come to: what two of them delete is deleted once.

    Args:
        finish: told the district and the key of what was sealed in the moment in which this key was destroyed.
        per_s: so many messages at most; each costs the bus up to five questions.
    """

    bus: Sweeping
    clock: Callable[[], datetime]
    finish: Callable[[str, str], Awaitable[None]]
    per_s: float = 50
    round_s: float = ROUND_S
    _created: str = field(default="", init=False)
    _after: int = field(default=0, init=False)

    async def run(self) -> None:
        """Sweep until cancelled; begins at a random moment, so that instances seldom walk side by side."""
        while True:
            await asyncio.sleep(uniform(0, 2 * self.round_s))  # noqa: S311  # jitter is no secret
            try:
                await self.sweep()
            except BusError as why:
                logger().warning("sweep_broken_off", why=str(why))
            except Exception:  # whatever it stumbles over, requests are taken in
                logger().exception("sweep_failed")

    async def sweep(self) -> dict[str, int]:
        """
        Everything that is old enough, from where any instance has come to. Returns how many of each kind were deleted.

        Raises:
            BusError: also where one of the three streams is not there.
        """
        created = (await self.bus.state(SEALED)).created
        facts, keys = await self.bus.state(), await self.bus.state(KEYS)
        if created != self._created:
            self._created, self._after = created, 0
        self._after = await self._marked()
        swept = {"claim": 0, "ciphertext": 0}
        walked = untold = 0
        try:
            while (message := await self.bus.next("sealed.>", after=self._after, stream=SEALED)) and self._is_old(
                message
            ):
                recorded = message.recorded
                if facts.is_younger_than(recorded) or keys.is_younger_than(recorded):
                    untold += 1
                elif held := sealing(message.subject):
                    if await self._is_left(held, message):
                        await self.bus.delete(SEALED, message.sequence)
                        SWEPT.labels(held.kind).inc()
                        swept[held.kind] += 1
                    elif held.kid and await self.bus.last(key_subject(held.district, held.kid), stream=KEYS) is None:
                        await self.finish(held.district, held.kid)
                    walked += 1
                    await asyncio.sleep(1 / self.per_s)
                self._after = message.sequence
                if walked and walked % MARK_EVERY == 0:
                    await self._mark()
                    self._after = max(self._after, await self._marked())
            if walked:
                await self._mark()
        finally:
            if any(swept.values()):
                logger().info("sealed_swept", claims=swept["claim"], ciphertexts=swept["ciphertext"])
            if untold:
                logger().warning("sealed_not_swept", older_than_facts_or_keys=untold)
        return swept

    def _is_old(self, message: Delivery) -> bool:
        return self.clock() - message.recorded > AFTER

    async def _is_left(self, held: Sealing, message: Delivery) -> bool:
        claim: bytes | None = message.data
        if held.kind == "ciphertext":
            stored = await self.bus.last(claim_subject(held.request_id), stream=SEALED)
            claim = stored.data if stored else None
        try:
            fact = await self.bus.last(fact_subject(held, claim))
            return is_left(held, fact.data if fact else None)
        except MalformedError as why:
            logger().warning("sealing_malformed", sequence=message.sequence, why=str(why))
            return False

    async def _marked(self) -> int:
        """How far any instance has come in this very stream."""
        stored = await self.bus.last(MARK, stream=SEALED)
        mark = orjson.loads(stored.data) if stored else {}
        return max(self._after, mark["sequence"]) if mark.get("created") == self._created else self._after

    async def _mark(self) -> None:
        await self.bus.replace(SEALED, MARK, orjson.dumps({"created": self._created, "sequence": self._after}))
