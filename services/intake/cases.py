"""A request after it was submitted: what the ledger knows of it, in people's words, and what its resident still may do."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from time import monotonic
from typing import Any, NamedTuple, Protocol

import orjson
from pydantic import BaseModel, ValidationError

from services.intake.decide import STATES
from services.intake.model import Case
from services.intake.naming import RESIDENT, Naming
from shared.auth import Caller
from shared.bus import Delivery, Message, Stored, StreamState
from shared.envelope import Envelope
from shared.errors import ConflictError, RefusedError, UnavailableError
from shared.facts import HUB, NOWHERE, Fact, instant
from shared.problems import PROBLEMS
from shared.register import Register

QUERY = f"qry.{HUB}.ledger.case"
ANSWER_WITHIN_S = 4
"""The ledger itself waits 2 s for a position."""
TIMELINE_MAX = 1000
"""So much of a timeline the ledger tells; a later fact is asked for by its id."""

STEPS: Mapping[str, tuple[str, str]] = {
    "request.submitted": ("已提交", "received"),
    "task.opened": ("已受理", "taken in by the office"),
    "task.offered": ("已派单", "offered to the people who can help"),
    "task.accepted": ("已接单", "accepted"),
    "task.unplaced": ("暂无人接单,由值班人员安排", "nobody was free: the office arranges it"),
    "task.handed_over": ("已转由其他单位办理", "passed on to the office whose matter it is"),
    "task.arrived": ("人员已到场", "somebody is on the spot"),
    "task.done": ("已办结", "done"),
    "request.rated": ("已评价", "rated"),
    "request.reopened": ("已重办", "reopened"),
    "request.withdrawn": ("已撤回", "withdrawn"),
    "request.erased": ("个人信息已删除", "what was personal in it is erased"),
    "task.closed": ("已结案", "closed"),
}
"""The steps a resident is told of; how often somebody said no is the office's business."""

Which = Mapping[str, str]
"""A case by `id` or by `tracking_hash`."""
Decide = Callable[[Case, datetime], Fact]
"""What follows for a case at a moment; raises RefusedError."""


class Asking(Protocol):
    """What is needed of the bus."""

    async def request(self, subject: str, data: bytes, *, timeout_s: float = 2) -> bytes:
        """One answer to one question."""

    async def last(self, subject: str) -> Stored | None:
        """The last message on a subject."""

    async def at(self, sequence: int) -> Stored | None:
        """The message with a sequence."""

    async def next(self, subjects: str, *, after: int) -> Delivery | None:
        """The first message behind a sequence."""

    async def state(self) -> StreamState:
        """How far the stream goes."""

    async def commit(self, messages: list[Message]) -> int:
        """Store all or none."""


class Found(NamedTuple):
    """A case as of a sequence of the stream; `stale` where the ledger had not reached the one asked for."""

    case: Case
    as_of: int
    stale: bool


class Done(NamedTuple):
    """What was committed, now or by an earlier try, and the case before it."""

    case: Case
    fact: str
    time: datetime
    sequence: int


class Cases:
    """
    Finds and changes cases.

    Args:
        position: the last sequence that this instance wrote, so that its callers read their own writes.
        parties: who shares a district's area at a moment.
    """

    def __init__(
        self,
        bus: Asking,
        naming: Naming,
        clock: Callable[[], datetime],
        *,
        position: Callable[[], int] = lambda: 0,
        parties: Callable[[str, str, datetime], Iterable[str]] = lambda _district, _area, _now: (),
        within_s: float = 10,
    ) -> None:
        self._bus = bus
        self._parties = parties
        self._naming = naming
        self._clock = clock
        self._position = position
        self._within_s = within_s
        self._one_at_a_time: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """By subject: whoever shares a fence waits here instead of being fenced off."""
        self._last = 0
        """How far the stream goes, as far as we know."""

    def by_code(self, tracking_code: str) -> Which:
        """What a tracking code asks the ledger for. Raises RefusedError `not_found` for what cannot be a code."""
        tracking_hash = self._naming.tracking_hash(tracking_code)
        if tracking_hash is None:
            raise _not_found()
        return {"tracking_hash": tracking_hash}

    async def find(self, which: Which, position: int | None = None) -> Found:
        """
        The case asked for, as of a position at least, or as stale.

        Raises:
            RefusedError: `not_found`, the same for a code that is wrong and for what cannot be a code.
            UnavailableError: the ledger does not answer.
        """
        wanted = await self._clamped(max(position or 0, self._position())) or None
        try:
            return await self._ask(which, wanted)
        except RefusedError as why:
            if why.code != "not_found":
                raise
        # Perhaps it is too young for the ledger, and another instance took it in: ask again for all there is.
        return await self._ask(which, await self._look())

    async def fresh(self, which: Which) -> Found:
        """The case as of everything that the stream holds now. Raises as `find`; UnavailableError also where it is stale."""
        found = await self._ask(which, await self._look())
        if found.stale:
            raise UnavailableError(f"the ledger is at {found.as_of}")
        return found

    async def _clamped(self, position: int) -> int:
        """A position that the stream has come to: the ledger would wait for any other, and whoever asks may name what they like."""
        return position if position <= self._last else min(position, await self._look())

    async def _look(self) -> int:
        self._last = max(self._last, (await self._bus.state()).last)
        return self._last

    async def change(
        self,
        tracking_code: str,
        what: str,
        decide: Decide,
        sent: BaseModel,
        *,
        caller: Caller | None,
        key: str,
        traceparent: str | None,
        position: int | None = None,
    ) -> dict[str, Any]:
        """
        Commit what a resident does with a request, once per key, and tell them; a repeat hears the same.

        Args:
            what: the fact, `request.withdrawn`.
            sent: what the fact takes over as it is; a repeat must send the same.
        Raises:
            RefusedError: as `decide`; `foreign_district` for a caller of another office; `key_reused` for a repeat that says
                something else.
            UnavailableError: the bus or the ledger did not answer in time.
        """
        who = f"token:{caller.id}" if caller else RESIDENT

        def allow(case: Case) -> None:
            if caller is not None and not caller.of(case.district):
                raise RefusedError("foreign_district", district=case.district, yours=caller.district)

        done = await self.once(
            self.by_code(tracking_code),
            what,
            lambda case: self._naming.fact_id(case.id, what, who, key),
            decide,
            dict(sent),
            allow=allow,
            actor=caller.actor if caller else None,
            traceparent=traceparent,
            position=position,
        )
        return self.told(what, done)

    async def once(
        self,
        which: Which,
        what: str,
        fact_id: Callable[[Case], str],
        decide: Decide,
        sent: Mapping[str, Any],
        *,
        allow: Callable[[Case], None] = lambda _: None,
        fresh: bool = False,
        private: bool = False,
        actor: str | None = None,
        cause: str | None = None,
        traceparent: str | None = None,
        position: int | None = None,
    ) -> Done:
        """
        Commit what follows for a case, once per id; a repeat finds what was committed.

        The commit is fenced on the last fact of this kind in the area, and none about this case lies between that and what was
        read: of two at once the second finds the first.

        Args:
            fact_id: the same for a repeat.
            sent: what the fact must say; a repeat that says something else is refused.
            allow: asked before anything else, of a repeat as well; raises RefusedError.
            fresh: decide on the case as of everything there is, or not at all.
            private: for the offices that have to do with it, not for whoever shares the area.
        Raises:
            RefusedError: as `allow` and `decide`; `key_reused`.
            UnavailableError: the bus or the ledger did not answer in time.
        """
        ends = monotonic() + self._within_s
        found = await (self.fresh(which) if fresh else self.find(which, position))
        while True:
            case = found.case
            allow(case)
            id = fact_id(case)
            if earlier := await self._committed(case, what, id, sent, found.as_of):
                return earlier
            area = NOWHERE if private else case.area
            subject = f"evt.{case.district}.intake.{area}.{what}"
            async with self._one_at_a_time[subject]:
                fence, ours = await self._fence(subject, found.as_of, case.id)
                if ours is not None:
                    if monotonic() > ends or found.stale:
                        raise UnavailableError(f"the ledger is at {found.as_of}, and {ours} must be known first")
                    found = await self.find(which, ours)
                    continue
                now = instant(self._clock())
                shared = (
                    () if private else self._parties(case.district, case.area, now)
                )  # today: who was asked in vain is not told
                envelope = Envelope(
                    id=id,
                    district=case.district,
                    area=area,
                    time=now,
                    fact=decide(case, now),
                    districts=",".join(dict.fromkeys((*concerned(case), *shared))),
                    case=case.id,
                    cause=cause,
                    actor=actor,
                    traceparent=traceparent,
                )
                try:
                    sequence = await self._bus.commit([Message(subject, envelope.encode(), fence)])
                except ConflictError:
                    if monotonic() > ends:
                        raise UnavailableError(f"others keep writing {subject}") from None
                    continue  # somebody else's, or ours where the answer was lost: the next look tells
                except UnavailableError:
                    # Perhaps it was stored: then the last of this kind is ours, and the ledger will say so.
                    if monotonic() > ends:
                        raise
                    continue
            return Done(case, id, now, sequence)

    async def _fence(self, subject: str, as_of: int, case: str) -> tuple[int, int | None]:
        """The last sequence on a subject, and the first one about this case that it has not been read up to."""
        last = await self._bus.last(subject)
        fence = last.sequence if last else 0
        while as_of < fence and (stored := await self._bus.next(subject, after=as_of)):
            if orjson.loads(stored.data).get("correlationid") == case:
                return fence, stored.sequence
            as_of = stored.sequence
        return fence, None

    async def _committed(self, case: Case, what: str, fact_id: str, sent: Mapping[str, Any], as_of: int) -> Done | None:
        if len(case.timeline) >= TIMELINE_MAX and not any(step.id == fact_id for step in case.timeline):
            case = (await self._ask({"id": case.id, "fact": fact_id}, as_of)).case
        for step in reversed(case.steps(what)):
            if step.id in (fact_id, "") and (stored := await self._bus.at(step.sequence)):
                event = orjson.loads(stored.data)
                if event["id"] == fact_id:
                    if any(event["data"].get(name) != value for name, value in sent.items()):
                        raise RefusedError("key_reused", field="Idempotency-Key")
                    return Done(case, fact_id, datetime.fromisoformat(event["time"]), step.sequence)
        return None

    def told(self, what: str, done: Done) -> dict[str, Any]:
        """What was done, in people's words."""
        zh, en = STEPS[what]
        return {
            "id": done.case.id,
            "tracking_code": self._naming.tracking_code(done.case.id),
            "fact": done.fact,
            "type": what,
            "name": {"zh": zh, "en": en},
            "time": done.time,
            "position": done.sequence,
        }

    async def _ask(self, which: Which, position: int | None) -> Found:
        question = orjson.dumps({**which, "position": position})
        answer = orjson.loads(await self._bus.request(QUERY, question, timeout_s=ANSWER_WITHIN_S))
        if why := answer.get("problem"):
            code = str(why.get("code"))
            if code == "not_found":
                raise _not_found()
            if code in PROBLEMS and PROBLEMS[code].status < 500:
                raise RefusedError(code)
            raise UnavailableError(f"the ledger answers {code}")
        try:
            return Found(Case.model_validate(answer["case"]), int(answer["as_of"]), bool(answer.get("stale")))
        except (KeyError, TypeError, ValidationError) as why:
            raise UnavailableError(f"the ledger's answer cannot be read: {type(why).__name__}") from None


def concerned(case: Case) -> tuple[str, ...]:
    """The office it was submitted to, and the one that is responsible now."""
    return tuple(dict.fromkeys((case.home or case.district, case.district)))


def _not_found() -> RefusedError:
    return RefusedError("not_found", what="该诉求", what_en="this request")


def told(found: Found, tracking_code: str, register: Register) -> dict[str, Any]:
    """A case in people's words: where it stands and what happened, without anybody's name."""
    case = found.case
    zh, en = STATES.get(case.state, (case.state, case.state))
    district, item = register.districts.get(case.district), register.items.get(case.item)
    versions = register.areas.get(case.area)
    return {
        "id": case.id,
        "tracking_code": tracking_code,
        "state": case.state,
        "state_name": {"zh": zh, "en": en},
        "district": case.district,
        "district_name": district.title if district else None,
        "area": case.area,
        "area_name": versions[-1].title if versions else None,
        "item": case.item,
        "item_name": item.title if item else None,
        "urgency": case.urgency,
        "round": case.round,
        "due": case.due,
        "steps": [
            {"code": step.name, "name": {"zh": words[0], "en": words[1]}, "time": step.time}
            for step in case.timeline
            if (words := STEPS.get(step.name))
        ],
        "position": found.as_of,
        "stale": found.stale,
    }
