"""
Forgets people: the key, then the ciphertexts, each overwritten by its sequence, then the fact that says so.

What is about to be erased is written down first, without a word about anybody (`sealed.erasing.…`): whoever finds that later goes
on where a crash has stopped it, and every step may be done twice. A resident's key seals all of their requests in a district, so
erasing the person erases all of these; a single request goes alone, and the key with the last of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal, NamedTuple, Protocol

import orjson
from pydantic import model_validator

from services.intake.cases import Cases, Done
from services.intake.disclosing import Disclosures
from services.intake.door import SEALED
from services.intake.keeping import STREAM as KEYS
from services.intake.keeping import KeyKeeper
from services.intake.metrics import ERASED
from services.intake.model import Asked, Case, Contact
from services.intake.naming import Naming
from services.intake.sealing import UnreadableError, key_subject, lookup_subject
from services.intake.sweeping import AFTER
from shared.bus import STREAM, Delivery, Stored, StreamState
from shared.errors import ConflictError, RefusedError, UnavailableError
from shared.facts import Id, RequestErased
from shared.telemetry import logger

ERASING = "sealed.erasing"
"""What is being erased, for whoever has to go on with it."""
Reason = Literal["asked", "retention", "lost"]


# --- pure -------------------------------------------------------------------------------------------------------------


class Person(Asked):
    """Somebody as they are looked for: by one of their requests, or by how they are reached."""

    request: Id | None = None
    contact: Contact | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Person:
        if (self.request is None) == (self.contact is None):
            raise ValueError("either request or contact")
        if self.contact is not None and self.contact.normalised() is None:
            raise ValueError("a contact needs a phone or an email")
        return self


@dataclass(frozen=True, slots=True)
class Plan:
    """
    What is to be erased under one key.

    Attributes:
        whole: the key as well, first; else it goes only where nothing else is sealed with it.
        at: when it was written down: what it names was sealed before.
        lookup: the subject by which the key is found from a contact, where it is known.
    """

    district: str
    kid: str
    requests: tuple[str, ...]
    whole: bool
    reason: Reason
    at: datetime
    lookup: str | None = None
    actor: str | None = None

    @property
    def subject(self) -> str:
        """Where it is written down."""
        return f"{ERASING}.{self.district}.{self.kid}.{'all' if self.whole else self.requests[0]}"

    def encode(self) -> bytes:
        """As it is written down."""
        held = {"requests": self.requests, "whole": self.whole, "reason": self.reason, "at": self.at.isoformat()}
        return orjson.dumps({**held, "lookup": self.lookup, "actor": self.actor})


def plan(subject: str, data: bytes) -> Plan:
    """What was written down; one without a time is from long ago. Raises ValueError, KeyError."""
    _, _, district, kid, _ = subject.split(".")
    held = orjson.loads(data)
    at = datetime.fromisoformat(held["at"]) if "at" in held else datetime.fromtimestamp(0, UTC)
    return Plan(
        *(district, kid, tuple(held["requests"]), held["whole"], held["reason"], at),
        *(held["lookup"], held["actor"]),
    )


# --- the shell ----------------------------------------------------------------------------------------------------------


class Erasable(Protocol):
    """What is needed of the bus."""

    async def last(self, subject: str, *, stream: str = STREAM) -> Stored | None:
        """The last message on a subject."""

    async def next(self, subjects: str, *, after: int, stream: str = STREAM) -> Delivery | None:
        """The first message behind a sequence."""

    async def state(self, stream: str = STREAM) -> StreamState:
        """Which stream there is."""

    async def erase(self, stream: str, subjects: str, *, below: int | None = None) -> int:
        """Delete messages and their bytes."""

    async def replace(self, stream: str, subject: str, data: bytes, *, expect: int | None = None) -> int:
        """Store a message in the place of those before it."""

    async def put(self, subject: str, data: bytes, *, expect: int | None = None) -> int:
        """Store one message."""

    async def delete(self, stream: str, sequence: int) -> None:
        """Delete one message and its bytes."""


class Held(NamedTuple):
    """What is sealed for somebody in a district, under one key, and when each was (ISO 8601, UTC)."""

    district: str
    kid: str
    requests: dict[str, str]
    lookup: str | None


class Erasing:
    """Finds what is sealed for a person, and erases it."""

    def __init__(
        self,
        bus: Erasable,
        cases: Cases,
        disclosures: Disclosures,
        keeper: KeyKeeper,
        naming: Naming,
        clock: Callable[[], datetime],
    ) -> None:
        self._bus = bus
        self._cases = cases
        self._disclosures = disclosures
        self._keeper = keeper
        self._naming = naming
        self._clock = clock

    async def find(self, person: Person, districts: Iterable[str]) -> list[Held]:
        """
        What is sealed for somebody in these districts; nothing is opened but the contact of a request, to find its others.

        Raises:
            RefusedError: `not_found` for a request that there is not.
            UnavailableError: the bus or the ledger does not answer.
        """
        if person.request is not None:
            found = await self._cases.fresh({"id": person.request})
            if (found.case.home or found.case.district) not in (districts := tuple(districts)):
                raise RefusedError("foreign_district", district=found.case.home, yours=" ".join(districts))
            held = await self.held(found.case)
            return [held] if held else []
        assert person.contact is not None
        contact = person.contact.normalised()
        there = []
        for district in districts:
            lookup = lookup_subject(district, self._keeper.whose(district, contact, "").lookup)
            if stored := await self._bus.last(lookup, stream=KEYS):
                kid = stored.data.decode()
                there.append(Held(district, kid, await self._sealed(district, kid), lookup))
        return there

    async def held(self, case: Case) -> Held | None:
        """Everything that is sealed under the key of this request; None where nothing was."""
        home, sealed = await self._disclosures.sealed(case)
        if sealed is None:
            return None
        requests = await self._sealed(home, sealed.kid)
        lookup = None
        try:
            opened = await self._keeper.open(home, sealed.kid, case.id) or {}
        except UnreadableError:
            opened = {}
        if (contact := opened.get("contact")) and (normalised := Contact.model_construct(**contact).normalised()):
            lookup = lookup_subject(home, self._keeper.whose(home, normalised, "").lookup)
        return Held(home, sealed.kid, requests, lookup)

    async def erase_person(self, held: Held, *, actor: str | None, asked_for: str | None = None) -> list[Done]:
        """
        Erase a key and all that is sealed with it.

        Args:
            actor: who asked, as facts name them.
            asked_for: a request that belongs to it, even where its ciphertext is gone already.
        Returns: the `request.erased` of each request.
        Raises:
            UnavailableError: some of it is still to be done; it is gone on with, now by whoever asks again, later by itself.
        """
        requests = tuple(dict.fromkeys((*held.requests, *((asked_for,) if asked_for else ()))))
        return await self.carry_out(
            Plan(held.district, held.kid, requests, True, "asked", self._clock(), held.lookup, actor)
        )

    async def erase_request(self, case: Case, reason: Reason) -> Done:
        """
        Erase what is sealed for one request; a key that it shares with others goes with the last of them.

        Raises:
            RefusedError: `nothing_sealed`.
            UnavailableError: as `erase_person`.
        """
        held = await self.held(case)
        if held is None:
            raise RefusedError("nothing_sealed")
        own = self._keeper.whose(held.district, None, case.id).lookup.startswith(held.kid)
        planned = Plan(held.district, held.kid, (case.id,), own, reason, self._clock(), held.lookup)
        return next(told for told in await self.carry_out(planned) if told.case.id == case.id)

    async def carry_out(self, planned: Plan) -> list[Done]:
        """
        Erase as planned, from the beginning or from where somebody was stopped.

        What is not known to be a request may be one on its way in: the plan stays until that can no longer be.

        Raises:
            UnavailableError: some of it is still to be done.
        """
        planned, written = await self._write_down(planned)
        if planned.whole:
            await self._bus.erase(KEYS, key_subject(planned.district, planned.kid))
            await self._forget(planned.lookup, planned.kid)
            late = (await self._sealed(planned.district, planned.kid)).keys() - set(planned.requests)
            if late:  # taken in while we were at it
                more = replace(planned, requests=(*planned.requests, *sorted(late)), at=self._clock())
                planned, written = await self._write_down(more)
        for request_id in planned.requests:
            await self._bus.erase(SEALED, f"sealed.{planned.district}.{planned.kid}.{request_id}")
        said = [await self._say_so(planned, request_id) for request_id in planned.requests]
        if not planned.whole:
            await self.drop_unused(planned.district, planned.kid, planned.lookup)
        if None not in said or self._clock() - planned.at > AFTER:
            await self._bus.erase(SEALED, planned.subject, below=written + 1)
        return [told for told in said if told]

    async def _write_down(self, planned: Plan) -> tuple[Plan, int]:
        """With what somebody has planned under the same key and not finished, of which a fact may be all that is left to do."""
        while True:
            earlier = await self._bus.last(planned.subject, stream=SEALED)
            if earlier:
                before = plan(planned.subject, earlier.data)
                requests = tuple(dict.fromkeys((*before.requests, *planned.requests)))
                planned = replace(planned, requests=requests, lookup=planned.lookup or before.lookup)
                if before.reason != "lost":  # who asked first stays on record, whoever goes on with it
                    planned = replace(planned, reason=before.reason, actor=before.actor)
            try:
                expect = earlier.sequence if earlier else 0
                return planned, await self._bus.replace(SEALED, planned.subject, planned.encode(), expect=expect)
            except ConflictError:
                continue

    async def go_on(self) -> int:
        """Carry out what was planned and not finished, whoever began it; how many there were. Raises UnavailableError."""
        plans = 0
        for message in [
            message async for message in self._walk(SEALED, f"{ERASING}.>")
        ]:  # each is written anew behind these
            try:
                planned = plan(message.subject, message.data)
            except (ValueError, KeyError, TypeError):
                logger().error("erasing_malformed", sequence=message.sequence)
                continue
            await self.carry_out(planned)
            plans += 1
        return plans

    async def finish(self, district: str, kid: str) -> None:
        """Erase what lies under a key that no longer exists: it was sealed in the very moment in which its key was destroyed."""
        sealed = tuple(await self._sealed(district, kid))
        await self.carry_out(Plan(district, kid, sealed, True, "lost", self._clock()))

    async def drop_unused(self, district: str, kid: str, lookup: str | None) -> bool:
        """Destroy a key that seals nothing, unless the ciphertexts are younger as a whole: they may have been lost. Whether it was so."""
        subject, under = key_subject(district, kid), f"sealed.{district}.{kid}.>"
        held = await self._bus.last(subject, stream=KEYS)
        if held is None or (await self._bus.state(SEALED)).is_younger_than(held.recorded):
            return False
        if await self._bus.next(under, after=0, stream=SEALED):
            return False
        await self._bus.erase(KEYS, subject)
        if await self._bus.next(under, after=0, stream=SEALED):  # sealed in this moment: its key comes back
            await self._bus.put(subject, held.data, expect=0)
            return False
        await self._forget(lookup, kid)
        return True

    async def _forget(self, lookup: str | None, kid: str) -> None:
        if lookup is not None:
            async for message in self._walk(KEYS, lookup):
                if message.data == kid.encode():  # who came back has another
                    await self._bus.delete(KEYS, message.sequence)

    def _fact_id(self, case: Case) -> str:
        return self._naming.fact_id(case.id, RequestErased.name)

    async def _say_so(self, planned: Plan, request_id: str) -> Done | None:
        """The fact, also where it was there; None where there is no such request, or it has been sealed anew since."""
        try:
            found = await self._cases.find({"id": request_id})
            _, sealed = await self._disclosures.sealed(found.case)
            if sealed is None or sealed.kid != planned.kid:
                return None
            done = await self._cases.once(
                {"id": request_id},
                RequestErased.name,
                self._fact_id,
                lambda case, _: RequestErased(request_id=case.id, kid=planned.kid, reason=planned.reason),
                {},
                actor=planned.actor,
            )
        except RefusedError as why:
            if why.code != "not_found":
                raise UnavailableError(f"{request_id} cannot be said to be erased: {why.code}") from None
            return None
        ERASED.labels(planned.reason).inc()
        logger().info("request_erased", request=request_id, reason=planned.reason, sequence=done.sequence)
        return done

    async def _sealed(self, district: str, kid: str) -> dict[str, str]:
        found: dict[str, str] = {}
        async for message in self._walk(SEALED, f"sealed.{district}.{kid}.>"):
            sealed = message.recorded.isoformat(timespec="seconds").replace("+00:00", "Z")
            found.setdefault(message.subject.rpartition(".")[2], sealed)
        return found

    async def _walk(self, stream: str, subjects: str) -> AsyncIterator[Delivery]:
        after = 0
        while message := await self._bus.next(subjects, after=after, stream=stream):
            yield message
            after = message.sequence
