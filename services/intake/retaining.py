"""
What was sealed is kept as long as the office's policy says: frozen a while after the case is over, later erased.

Every instance looks, once a day, at what was sealed long enough ago, and at keys that seal nothing; what two of them decide is
committed once. Whatever erasure a crash has broken off is gone on with here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from random import uniform
from typing import Protocol
from zoneinfo import ZoneInfo

import orjson

from services.intake.cases import Cases
from services.intake.door import SEALED
from services.intake.erasing import Erasing
from services.intake.keeping import STREAM as KEYS
from services.intake.metrics import SWEPT
from services.intake.model import Case
from services.intake.naming import Naming
from services.intake.sealing import key_subject, lookup_subject
from services.intake.sweeping import AFTER
from shared.bus import STREAM, Delivery, Stored
from shared.errors import BusError, PaidanError, RefusedError
from shared.facts import PolicySet, RequestFrozen
from shared.register import DEFAULT_POLICY, Register
from shared.telemetry import logger

CIPHERTEXTS = "sealed.*.*.*"
MARK = "sealed.retained"
"""When the last round was completed, for whichever instance comes next."""
EVERY = timedelta(hours=20)
LOOK_S = 600.0


# --- pure -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Freeze:
    """Read it only for a review or an appeal from now on, and erase it on this day."""

    until: date


@dataclass(frozen=True, slots=True)
class Erase:
    """Erase it now."""


def due(case: Case, policy: PolicySet, zone: ZoneInfo, now: datetime) -> Freeze | Erase | None:
    """
    What is to be done with what a request's resident has sealed, by the policy of the office that keeps it.

    Days are local days, counted from the one on which the case was closed or withdrawn. Once frozen, the day that was said then
    holds, whatever the policy says since.
    """
    if case.sealed not in ("kept", "frozen") or case.closed is None:
        return None
    today, closed = now.astimezone(zone).date(), case.closed.astimezone(zone).date()
    until = closed + timedelta(days=policy.erase_after)
    if case.sealed == "frozen" and case.frozen_until is not None:
        until = case.frozen_until
    if today >= until:
        return Erase()
    if case.sealed == "kept" and today >= closed + timedelta(days=policy.freeze_after):
        return Freeze(until)
    return None


def youngest(register: Register, now: datetime) -> datetime:
    """What was sealed after this moment is not due in any district."""
    policies = (DEFAULT_POLICY, *register.policies.values())
    return now - timedelta(days=min(min(policy.freeze_after, policy.erase_after) for policy in policies) - 1)


# --- the shell ----------------------------------------------------------------------------------------------------------


class Keeping(Protocol):
    """What is needed of the bus."""

    async def last(self, subject: str, *, stream: str = STREAM) -> Stored | None:
        """The last message on a subject."""

    async def next(self, subjects: str, *, after: int, stream: str = STREAM) -> Delivery | None:
        """The first message behind a sequence."""

    async def replace(self, stream: str, subject: str, data: bytes) -> int:
        """Store a message in the place of those before it."""

    async def delete(self, stream: str, sequence: int) -> None:
        """Delete one message and its bytes."""


@dataclass
class Retention:
    """
    Looks after what is sealed; run it with `run`.

    Args:
        register: the one in force; raises RefusedError while there is none.
        per_s: so many requests or keys at most.
    """

    bus: Keeping
    cases: Cases
    erasing: Erasing
    naming: Naming
    register: Callable[[], Register]
    clock: Callable[[], datetime]
    per_s: float = 50

    async def run(self) -> None:
        """Look until cancelled: soon after the start, so that nothing waits long that a crash broke off, and then now and again."""
        while True:
            await asyncio.sleep(uniform(0, 20))  # noqa: S311  # jitter is no secret
            try:
                await self.look()
            except (BusError, RefusedError) as why:
                logger().warning("retention_broken_off", why=str(why))
            except Exception:  # whatever it stumbles over, requests are taken in
                logger().exception("retention_failed")
            await asyncio.sleep(LOOK_S)

    async def look(self) -> dict[str, int]:
        """What was broken off; and once a day everything that may be due. Returns how much of each was done."""
        done = {"resumed": await self.erasing.go_on(), "frozen": 0, "erased": 0, "key": 0}
        mark = await self.bus.last(MARK, stream=SEALED)
        if mark is None or self.clock() - datetime.fromisoformat(orjson.loads(mark.data)["at"]) >= EVERY:
            began = self.clock()
            await self._requests(done)
            await self._keys(done)
            await self.bus.replace(SEALED, MARK, orjson.dumps({"at": began.isoformat()}))
        if any(done.values()):
            logger().info("retained", **done)
        return done

    async def _requests(self, done: dict[str, int]) -> None:
        register = self.register()
        ends = youngest(register, self.clock())
        after = 0
        while (message := await self.bus.next(CIPHERTEXTS, after=after, stream=SEALED)) and message.recorded <= ends:
            after = message.sequence
            _, district, _, request_id = message.subject.split(".")
            try:
                what = await self.keep(district, request_id, register)
            except PaidanError as why:  # looked at again tomorrow
                logger().warning("retention_put_off", request=request_id, why=str(why))
                what = None
            if what is not None:
                done[what] += 1
            await asyncio.sleep(1 / self.per_s)

    async def keep(self, district: str, request_id: str, register: Register) -> str | None:
        """Freeze or erase one request, if it is due: what was done. Raises PaidanError."""
        found = await self.cases.find({"id": request_id})
        policy, zone = register.policy(district), register.zone(district)
        match due(found.case, policy, zone, self.clock()):
            case Freeze():
                await self.cases.once(
                    {"id": request_id},
                    RequestFrozen.name,
                    lambda case: self.naming.fact_id(case.id, RequestFrozen.name, "", str(case.round)),
                    lambda case, now: _frozen(case, due(case, policy, zone, now)),
                    {},
                )
                return "frozen"
            case Erase():
                await self.erasing.erase_request(found.case, "retention")
                return "erased"
        return None

    async def _keys(self, done: dict[str, int]) -> None:
        """Keys that were made for nothing, or have outlived what they sealed, and look-ups that lead nowhere."""
        after = 0
        while (message := await self.bus.next("keys.>", after=after, stream=KEYS)) and self._is_old(message):
            after = message.sequence
            match message.subject.split("."):
                case ["keys", district, "by", lookup]:
                    kid, by = message.data.decode(), lookup_subject(district, lookup)
                    if await self.bus.last(key_subject(district, kid), stream=KEYS) is None:
                        await self.bus.delete(KEYS, message.sequence)
                        dropped = True
                    else:
                        dropped = await self.erasing.drop_unused(district, kid, by)
                case ["keys", district, kid]:
                    dropped = await self.erasing.drop_unused(district, kid, None)
                case _:
                    continue
            if dropped:
                done["key"] += 1
                SWEPT.labels("key").inc()
            await asyncio.sleep(1 / self.per_s)

    def _is_old(self, message: Delivery) -> bool:
        return self.clock() - message.recorded > AFTER


def _frozen(case: Case, decided: Freeze | Erase | None) -> RequestFrozen:
    if not isinstance(decided, Freeze):
        raise RefusedError("wrong_state", state=case.state, state_en=case.state, verb="封存", verb_en="frozen")
    return RequestFrozen(request_id=case.id, until=decided.until)
