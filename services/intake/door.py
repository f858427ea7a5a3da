"""The way in of a request: place, classify, seal, commit, in an order that a crash anywhere leaves safe."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from random import uniform
from time import monotonic
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import orjson

from services.intake.classifying import Classified
from services.intake.committing import GroupCommit
from services.intake.decide import submit
from services.intake.following import Following, Known, follow
from services.intake.keeping import KeyKeeper
from services.intake.metrics import ACCEPTED
from services.intake.model import Submission
from services.intake.naming import RESIDENT, Naming
from services.intake.places import Place
from services.intake.sealing import ResidentKey
from shared.auth import Caller
from shared.bus import STREAM, Message, Stored
from shared.envelope import Envelope, decode
from shared.errors import ConflictError, RefusedError, UnavailableError
from shared.facts import RequestSubmitted, Sealed, instant
from shared.limiting import Limits, Spacing
from shared.register import Register
from shared.telemetry import logger

SEALED = "SEALED"
PAUSE_S = 0.05
PAUSE_MAX_S = 0.5
RETRY_AFTER_S = 5
APART_S = 0.06
HELD_MOST_S = 4.0
"""What comes for one district is taken, or refused, so far apart and is held back so long at most: else many at once, each back as
soon as it is answered, keep intake and what follows it from the other districts."""
URGENT = 2
EMERGENCY = "110 / 119 / 120"
RENEWED_AFTER = timedelta(minutes=30)
"""What lies there longer without a fact is laid down anew by the next try: well before the sweeper comes for it."""
PARTS: tuple[Literal["contact", "text", "address"], ...] = ("contact", "text", "address")
Answer = TypeVar("Answer")


class Storage(Protocol):
    """What the door needs of the bus besides its group commits."""

    async def last(self, subject: str, *, stream: str = STREAM) -> Stored | None:
        """The last message on a subject."""


class Accepted(NamedTuple):
    """A request that is in the stream: the fact, its sequence there, and the version of the register that its answer is told by."""

    envelope: Envelope
    fact: RequestSubmitted
    sequence: int
    register: int


class Claim(NamedTuple):
    """
    What the first try of a request left before its fact: one literal subject per request, wherever it is said to be.

    So another body cannot pass under the same key, a place that now leads to another office cannot make a second request, and
    every answer names things as the register did at that time.
    """

    fingerprint: str
    subject: str
    register: int
    recorded: datetime


@dataclass(frozen=True, slots=True)
class _Submitting:
    """One submission on its way in; `ends` on the steady clock."""

    known: Known
    asked: Submission
    caller: Caller | None
    place: Place
    classified: Classified
    request_id: str
    fingerprint: str
    traceparent: str | None
    now: datetime
    ends: float

    register: int

    @property
    def claim(self) -> Message:
        """What says that this request is on its way in."""
        held = {"fingerprint": self.fingerprint, "subject": self.subject, "register": self.register}
        return Message(claim_subject(self.request_id), orjson.dumps(held), 0)

    @property
    def district(self) -> str:
        """The office that serves."""
        return self.place.area.served_by

    @property
    def subject(self) -> str:
        """Where the fact goes."""
        return f"evt.{self.district}.intake.{self.place.area.area}.request.submitted.{self.request_id}"

    def at(self, subject: str) -> _Submitting:
        """The same, at the office and area of this subject, to which an earlier try has committed itself."""
        _, district, _, code, *_ = subject.split(".")
        area = self.known.register.area(code, self.known.register.today(district, self.now)) or self.place.area
        area = area.model_copy(update={"area": code, "served_by": district})
        return replace(self, place=replace(self.place, area=area))


class Door:
    """
    Takes submissions in.

    Args:
        ciphertexts, facts: group commits of SEALED and EVENTS.
        clock: the time of facts, UTC.
        commit_within_s: how long the same submission is tried again while the bus does not answer.
    """

    def __init__(
        self,
        bus: Storage,
        *,
        naming: Naming,
        keeper: KeyKeeper,
        ciphertexts: GroupCommit,
        facts: GroupCommit,
        following: Following,
        limits: Limits,
        clock: Callable[[], datetime],
        commit_within_s: float = 10,
    ) -> None:
        self._bus = bus
        self._naming = naming
        self._keeper = keeper
        self._ciphertexts = ciphertexts
        self._facts = facts
        self._following = following
        self._limits = limits
        self._spacing = Spacing(APART_S, HELD_MOST_S)
        self._clock = clock
        self._within_s = commit_within_s
        self._under_way: dict[str, asyncio.Future[Accepted]] = {}
        following.under_way = self._under_way
        self.position = 0
        """The last sequence this instance knows of its own facts."""

    async def submit(
        self, body: Any, asked: Submission, *, caller: Caller | None, key: str, traceparent: str | None
    ) -> tuple[Accepted, dict[str, Any]]:
        """
        Take one request in, once: a repeat gets the answer of the first, from the stored fact.

        Args:
            body: what was sent, for the fingerprint; `asked` is what it means.
            key: the Idempotency-Key.
        Raises:
            RefusedError: with the code of what is wrong; `unavailable` (with the number to ring for an urgent item) where the
                bus did not answer in time. It may have been stored: the same key tells.
        """
        known = self._following.known
        request_id = self._naming.request_id(f"token:{caller.id}" if caller else RESIDENT, key)
        fingerprint = self._naming.fingerprint(body)
        while under_way := self._under_way.get(request_id):
            try:
                copy = await asyncio.shield(under_way)
            except RefusedError as why:
                if why.code == "unavailable":
                    raise
                continue  # with another body it may fare better: it tries for itself
            return await self._answer(copy, fingerprint)
        future: asyncio.Future[Accepted] = asyncio.get_running_loop().create_future()
        self._under_way[request_id] = future
        try:
            accepted = await self._take(known, asked, caller, request_id, fingerprint, traceparent)
        except BaseException as why:
            future.set_exception(why if isinstance(why, Exception) else UnavailableError("cancelled"))
            future.exception()  # nobody may be waiting
            raise
        else:
            future.set_result(accepted)
        finally:
            del self._under_way[request_id]
        return await self._answer(accepted, fingerprint)

    async def _take(
        self,
        known: Known,
        asked: Submission,
        caller: Caller | None,
        request_id: str,
        fingerprint: str,
        traceparent: str | None,
    ) -> Accepted:
        try:
            one = await self._understand(known, asked, caller, request_id, fingerprint, traceparent)
        except RefusedError:
            # Perhaps it was taken in when the register was another, or before there were too many: then it is a repeat.
            if earlier := await self._earlier(request_id, fingerprint):
                return earlier
            raise
        try:
            return await self._store(one)
        except UnavailableError as why:
            logger().warning("submission_not_stored", request=request_id, why=str(why))
            phone = one.classified.item.phone if one.classified.urgency >= URGENT else None
            raise RefusedError("unavailable", retry_after=RETRY_AFTER_S, phone=phone or EMERGENCY) from None

    async def _understand(
        self,
        known: Known,
        asked: Submission,
        caller: Caller | None,
        request_id: str,
        fingerprint: str,
        traceparent: str | None,
    ) -> _Submitting:
        now = instant(self._clock())
        place = known.places(now).locate(asked.location)
        classified = known.catalogue.classify(asked.service, asked.text)
        area, register = place.area, known.register
        district = register.served_by(area, classified.item.item, register.today(area.served_by, now))
        if district != area.served_by:  # another goes first for this item here
            place = replace(place, area=area.model_copy(update={"served_by": district}))
        if caller is not None and not caller.of(district):
            raise RefusedError("foreign_district", district=district, yours=caller.district)
        served = known.register.districts.get(district)
        if served is None or served.rate_limited:
            await asyncio.sleep(self._spacing.wait_s(district, monotonic()))
            self._limits.take(district, monotonic())
        return _Submitting(
            known=known,
            asked=asked,
            caller=caller,
            place=place,
            classified=classified,
            request_id=request_id,
            fingerprint=fingerprint,
            traceparent=traceparent,
            now=now,
            ends=monotonic() + self._within_s,
            register=known.sequence,
        )

    async def _store(self, one: _Submitting) -> Accepted:
        """
        Key, ciphertext with claim, the key once more, fact: a crash in between leaves what the next try finds and goes on from.

        Whoever destroys a key looks for ciphertexts afterwards; whoever stores one looks for the key: one of the two sees the other.
        """
        resident, sealed, ciphertext = await self._seal(one)
        try:
            await _until(one.ends, lambda: self._ciphertexts.store(*_together(one, ciphertext)))
        except ConflictError:
            claim = await self._claim(one.request_id, one.ends)
            if claim is not None:
                if earlier := await self._claimed(claim, one.fingerprint, one.ends):
                    return earlier
                if claim.subject != one.subject:
                    return await self._store(one.at(claim.subject))
                one = replace(one, register=claim.register)
            if not await self._held(one, claim, ciphertext):
                return await self._store(one)
        if resident and not await _until(one.ends, lambda: self._keeper.holds(resident)) and monotonic() < one.ends:
            return await self._store(one)
        envelope, fact = self._decide(one, sealed)
        message = Message(one.subject, envelope.encode(), 0)
        if monotonic() > one.ends:  # we were asleep: what was laid down may have been swept since
            raise UnavailableError(f"{one.request_id} took too long")
        try:
            sequence = await _until(one.ends, lambda: self._facts.store(message))
        except ConflictError:  # a copy of it, or we ourselves where the answer was lost
            if earlier := await self._stored(one.subject, one.register, one.ends):
                return earlier
            raise UnavailableError(f"{one.request_id} is in its own way") from None
        follow(self._following.matters, envelope)
        self.position = max(self.position, sequence)
        return Accepted(envelope, fact, sequence, one.register)

    async def _seal(self, one: _Submitting) -> tuple[ResidentKey | None, Sealed | None, Message | None]:
        asked, request_id = one.asked, one.request_id
        parts = asked.personal()
        if not parts:
            return None, None, None
        contact = asked.contact.normalised() if asked.contact else None
        resident = await _until(one.ends, lambda: self._keeper.key(one.district, contact, request_id))
        data = resident.seal(request_id, one.fingerprint, parts)
        sealed = Sealed(
            kid=resident.kid,
            commitment=resident.commitment(request_id, data),
            parts=tuple(name for name in PARTS if name in parts),
        )
        return resident, sealed, Message(resident.sealed_subject(request_id), data, 0)

    async def _earlier(self, request_id: str, fingerprint: str) -> Accepted | None:
        """The stored request of this key, if there is one; raises RefusedError `key_reused` where it is another one."""
        ends = monotonic()  # asked once: whoever is refused is told so at once
        try:
            claim = await self._claim(request_id, ends)
            return await self._claimed(claim, fingerprint, ends) if claim else None
        except UnavailableError:
            raise RefusedError("unavailable", retry_after=RETRY_AFTER_S, phone=EMERGENCY) from None

    async def _claim(self, request_id: str, ends: float) -> Claim | None:
        held = await _until(ends, lambda: self._bus.last(claim_subject(request_id), stream=SEALED))
        if held is None:
            return None
        claimed = orjson.loads(held.data)
        return Claim(claimed["fingerprint"], claimed["subject"], claimed["register"], held.recorded)

    async def _claimed(self, claim: Claim, fingerprint: str, ends: float) -> Accepted | None:
        """The request that a claim leads to, or None where its fact is still missing."""
        if claim.fingerprint != fingerprint:
            raise RefusedError("key_reused", field="Idempotency-Key")
        return await self._stored(claim.subject, claim.register, ends)

    async def _held(self, one: _Submitting, claim: Claim | None, ciphertext: Message | None) -> bool:
        """
        Claim and ciphertext of a fact that is still missing, made sure of; False where somebody else was at it meanwhile.

        Old ones are laid down anew, because the sweeper may be about to delete them: it knows them by their sequence. So is one
        that was sealed by a key that is gone: equal bytes, by the fingerprint, are of the same key.
        """
        if claim is not None and self._clock() - claim.recorded < RENEWED_AFTER:
            if ciphertext is None:
                return True
            try:
                await _until(one.ends, lambda: self._ciphertexts.store(ciphertext))
            except ConflictError:
                laid = await _until(one.ends, lambda: self._bus.last(ciphertext.subject, stream=SEALED))
                if laid and laid.data == ciphertext.data:
                    return True
            else:
                return True
        fenced = []
        for message in _together(one, ciphertext):
            held = await _until(one.ends, lambda: self._bus.last(message.subject, stream=SEALED))  # noqa: B023
            fenced.append(message._replace(expect=held.sequence if held else 0))
        try:
            await _until(one.ends, lambda: self._ciphertexts.store(*fenced))
        except ConflictError:
            return False
        return True

    def _decide(self, one: _Submitting, sealed: Sealed | None) -> tuple[Envelope, RequestSubmitted]:
        known, now, request_id = one.known, one.now, one.request_id
        area, item = one.place.area.area, one.classified.item
        fact = submit(
            one.asked,
            known.register,
            one.place,
            one.classified,
            request_id=request_id,
            fingerprint=one.fingerprint,
            tracking_hash=self._naming.tracking_hash(self._naming.tracking_code(request_id)) or "",
            same_as=self._following.matters.same(item, area, one.place.point, now.timestamp(), but=request_id),
            sealed=sealed,
            now=now,
        )
        parties = known.register.parties(area, known.register.today(one.district, now))
        envelope = Envelope(
            id=self._naming.fact_id(request_id, "submitted"),
            district=one.district,
            area=area,
            time=now,
            fact=fact,
            districts=",".join(dict.fromkeys((one.district, *parties))),
            case=request_id,
            actor=one.caller.actor if one.caller else None,
            traceparent=one.traceparent,
        )
        return envelope, fact

    async def _stored(self, subject: str, register: int, ends: float) -> Accepted | None:
        stored = await _until(ends, lambda: self._bus.last(subject))
        if stored is None:
            return None
        envelope = decode(subject, stored.data)
        assert isinstance(envelope.fact, RequestSubmitted)
        return Accepted(envelope, envelope.fact, stored.sequence, register)

    async def _answer(self, accepted: Accepted, fingerprint: str) -> tuple[Accepted, dict[str, Any]]:
        if accepted.fact.fingerprint != fingerprint:
            raise RefusedError("key_reused", field="Idempotency-Key")
        ACCEPTED.labels(accepted.envelope.district).inc()
        register = await self._following.version(accepted.register)
        return accepted, answer(register, accepted, self._naming.tracking_code(accepted.fact.request_id))


def claim_subject(request_id: str) -> str:
    """Where the claim of a request lies, in stream SEALED."""
    return f"sealed.claims.{request_id}"


def _together(one: _Submitting, ciphertext: Message | None) -> tuple[Message, ...]:
    return (ciphertext, one.claim) if ciphertext else (one.claim,)


def answer(register: Register, accepted: Accepted, tracking_code: str) -> dict[str, Any]:
    """What the caller hears: from the stored fact and the register of that time alone, so that a repeat hears the same."""
    envelope, fact, sequence, _ = accepted
    district = register.districts.get(envelope.district)
    area = register.area(fact.area, register.today(envelope.district, envelope.time))
    item = register.items.get(fact.item)
    return {
        "id": fact.request_id,
        "tracking_code": tracking_code,
        "district": envelope.district,
        "district_name": district.title if district else None,
        "area": fact.area,
        "area_name": area.title if area else None,
        "located_in": fact.located_in,
        "item": fact.item,
        "item_name": item.title if item else None,
        "item_rule": fact.item_rule,
        "urgency": fact.urgency,
        "urgency_rule": fact.urgency_rule,
        "same_as": fact.same_as,
        "due": fact.due,
        "position": sequence,
    }


async def _until(ends: float, ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """Ask again while the bus is away; the same bytes under the same fence cannot be stored twice."""
    pause = PAUSE_S
    while True:
        try:
            return await ask()
        except UnavailableError:
            if monotonic() + pause >= ends:
                raise
        await asyncio.sleep(uniform(pause / 2, pause))  # noqa: S311  # jitter is no secret
        pause = min(2 * pause, PAUSE_MAX_S)
