"""A request after it was submitted: what the ledger knows of it, in people's words, and what its resident still may do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from time import monotonic
from typing import Any, NamedTuple, Protocol

import orjson
from pydantic import BaseModel, ValidationError

from services.intake.decide import STATES
from services.intake.model import Case
from services.intake.naming import RESIDENT, Naming
from shared.auth import Caller
from shared.bus import Message, Stored, StreamState
from shared.envelope import Envelope
from shared.errors import ConflictError, RefusedError, UnavailableError
from shared.facts import HUB, Fact, instant
from shared.problems import PROBLEMS
from shared.register import Register

QUERY = f"qry.{HUB}.ledger.case"
ANSWER_WITHIN_S = 4
"""The ledger itself waits 2 s for a position."""

STEPS: Mapping[str, tuple[str, str]] = {
    "request.submitted": ("已提交", "received"),
    "task.opened": ("已受理", "taken in by the office"),
    "task.offered": ("已派单", "offered to the people who can help"),
    "task.accepted": ("已接单", "accepted"),
    "task.unplaced": ("暂无人接单,由值班人员安排", "nobody was free: the office arranges it"),
    "task.arrived": ("人员已到场", "somebody is on the spot"),
    "task.done": ("已办结", "done"),
    "request.rated": ("已评价", "rated"),
    "request.reopened": ("已重办", "reopened"),
    "request.withdrawn": ("已撤回", "withdrawn"),
    "task.closed": ("已结案", "closed"),
}
"""The steps a resident is told of; how often somebody said no is the office's business."""

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

    async def state(self) -> StreamState:
        """How far the stream goes."""

    async def commit(self, messages: list[Message]) -> int:
        """Store all or none."""


class Found(NamedTuple):
    """A case as of a sequence of the stream; `stale` where the ledger had not reached the one asked for."""

    case: Case
    as_of: int
    stale: bool


class Cases:
    """
    Finds and changes cases by tracking code.

    Args:
        position: the last sequence that this instance wrote, so that its callers read their own writes.
    """

    def __init__(
        self,
        bus: Asking,
        naming: Naming,
        clock: Callable[[], datetime],
        *,
        position: Callable[[], int] = lambda: 0,
        within_s: float = 10,
    ) -> None:
        self._bus = bus
        self._naming = naming
        self._clock = clock
        self._position = position
        self._within_s = within_s
        self._last = 0
        """How far the stream goes, as far as we know."""

    async def find(self, tracking_code: str, position: int | None = None) -> Found:
        """
        The case that a tracking code opens, as of a position at least, or as stale.

        Raises:
            RefusedError: `not_found`, the same for a code that is wrong and for what cannot be a code.
            UnavailableError: the ledger does not answer.
        """
        tracking_hash = self._naming.tracking_hash(tracking_code)
        if tracking_hash is None:
            raise _not_found()
        wanted = await self._clamped(max(position or 0, self._position())) or None
        try:
            return await self._ask(tracking_hash, wanted)
        except RefusedError as why:
            if why.code != "not_found":
                raise
        # Perhaps it is too young for the ledger, and another instance took it in: ask again for all there is.
        return await self._ask(tracking_hash, await self._look())

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

        The commit is fenced on the last fact of this kind in the area, up to which the case was read: of two at once the
        second reads again and finds the first.

        Args:
            what: the fact, `request.withdrawn`.
            sent: what the fact takes over as it is; a repeat must send the same.
        Raises:
            RefusedError: as `decide`; `foreign_district` for a caller of another office; `key_reused` for a repeat that says
                something else.
            UnavailableError: the bus or the ledger did not answer in time.
        """
        ends = monotonic() + self._within_s
        found = await self.find(tracking_code, position)
        fact_id = self._naming.fact_id(found.case.id, what, f"token:{caller.id}" if caller else RESIDENT, key)
        envelope = None
        while True:
            case = found.case
            if caller is not None and not caller.of(case.district):
                raise RefusedError("foreign_district", district=case.district, yours=caller.district)
            if earlier := await self._committed(case, what, fact_id, sent):
                return self._told(case, what, *earlier)
            subject = f"evt.{case.district}.intake.{case.area}.{what}"
            last = await self._bus.last(subject)
            fence = last.sequence if last else 0
            if fence > found.as_of:
                if monotonic() > ends or found.stale:
                    raise UnavailableError(f"the ledger is at {found.as_of}, and {fence} must be known first")
                found = await self.find(tracking_code, fence)
                continue
            now = instant(self._clock())
            envelope = Envelope(
                id=fact_id,
                district=case.district,
                area=case.area,
                time=now,
                fact=decide(case, now),
                districts=",".join(case.districts or (case.district,)),
                case=case.id,
                actor=caller.actor if caller else None,
                traceparent=traceparent,
            )
            try:
                sequence = await self._bus.commit([Message(subject, envelope.encode(), fence)])
            except ConflictError:
                found = await self.find(tracking_code)
                continue
            except UnavailableError:
                # Perhaps it was stored: then the last of this kind is ours, and the ledger will say so.
                if monotonic() > ends:
                    raise
                continue
            return self._told(case, what, fact_id, now, sequence)

    async def _committed(
        self, case: Case, what: str, fact_id: str, sent: BaseModel
    ) -> tuple[str, datetime, int] | None:
        for step in reversed(case.timeline):
            if step.name == what and (stored := await self._bus.at(step.sequence)):
                event = orjson.loads(stored.data)
                if event["id"] == fact_id:
                    if any(event["data"].get(name) != value for name, value in sent):
                        raise RefusedError("key_reused", field="Idempotency-Key")
                    return fact_id, datetime.fromisoformat(event["time"]), step.sequence
        return None

    def _told(self, case: Case, what: str, fact_id: str, at: datetime, sequence: int) -> dict[str, Any]:
        zh, en = STEPS[what]
        return {
            "id": case.id,
            "tracking_code": self._naming.tracking_code(case.id),
            "fact": fact_id,
            "type": what,
            "name": {"zh": zh, "en": en},
            "time": at,
            "position": sequence,
        }

    async def _ask(self, tracking_hash: str, position: int | None) -> Found:
        question = orjson.dumps({"tracking_hash": tracking_hash, "position": position})
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


def _not_found() -> RefusedError:
    return RefusedError("not_found", what="使用该追踪码的诉求", what_en="a request with this tracking code")


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
