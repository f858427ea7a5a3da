"""
Opens what a resident has sealed: who may, for what, and on record before anybody sees it.

The rule is decided on the case as of everything that the stream holds, or not at all; then `request.disclosed` is committed; only
then the ciphertext is read. Whoever asks again with the same key is asked the same questions again, and leaves one fact.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal

import orjson
from pydantic import Field

from services.intake.cases import Cases, Done
from services.intake.keeping import KeyKeeper
from services.intake.metrics import DISCLOSED
from services.intake.model import Asked, Case
from services.intake.naming import Naming
from services.intake.sealing import UnreadableError
from shared.auth import Caller
from shared.bus import Request, Stored
from shared.codes import OneOf
from shared.envelope import decode
from shared.errors import MalformedError, RefusedError, UnavailableError
from shared.facts import Name, RequestDisclosed, RequestSubmitted, Sealed
from shared.problems import problem
from shared.telemetry import logger

Part = Literal["contact", "text", "address"]
PARTS: tuple[Part, ...] = ("contact", "text", "address")
REACH = "qry.*.intake.reach"
"""Asked by notify alone: how to write to the resident of a request."""
REACH_WITHIN_S = 2.0
"""As long as notify waits: nobody hears what is found later, so it is given up."""
REACHING_MAX = 256
"""So many questions at once: one that the ledger keeps waiting holds up no other."""
NOTIFY = "service:notify"
STAFF = ("clerk", "dispatcher", "supervisor")

WHYS: dict[str, Name] = {
    "contact": Name(zh="联系居民", en="to get in touch with the resident"),
    "visit": Name(zh="上门处置", en="to go there"),
    "understand": Name(zh="了解诉求内容", en="to understand what is asked for"),
    "verify": Name(zh="核实情况", en="to check the facts"),
    "call_back": Name(zh="回访", en="to call back afterwards"),
    "review": Name(zh="复核", en="a review"),
    "appeal": Name(zh="申诉", en="an appeal"),
}
"""Why somebody may look, by code."""
AFTERWARDS = frozenset({"review", "appeal"})
"""The reasons that still count when the case is over: a supervisor's."""


# --- pure -------------------------------------------------------------------------------------------------------------


class Disclosing(Asked):
    """What somebody wants to see, and why."""

    why: Annotated[str, OneOf(WHYS, "why")]
    parts: Annotated[tuple[Part, ...], Field(min_length=1, max_length=len(PARTS))]


def allow(case: Case, caller: Caller, why: str) -> None:
    """
    Whether somebody may see what is personal in a request now.

    While it is open: the responsible office's clerks, dispatchers and supervisors, and the member who holds the task; where it was
    handed over, of the receiver only if the giver granted it. When it is over: the supervisor of the office it was submitted to,
    for a review or an appeal. An auditor or an admin, as such, never; nor a token for every district.

    Raises:
        RefusedError: `forbidden`, `foreign_district`, `not_handling`, `only_review`, `erased`, `nothing_sealed`.
    """
    if not caller.roles & {*STAFF, "member"}:
        raise RefusedError("forbidden", need=" / ".join(("member", *STAFF)))
    over = case.state in ("closed", "withdrawn") or case.sealed == "frozen"
    office = (case.home or case.district) if over else case.district
    if caller.district != office:
        raise RefusedError("foreign_district", district=office, yours=caller.district)
    if case.sealed == "erased":
        raise RefusedError("erased")
    if case.sealed is None:
        raise RefusedError("nothing_sealed")
    if over or why in AFTERWARDS:
        if "supervisor" not in caller.roles or why not in AFTERWARDS:
            raise RefusedError("only_review")
        return
    if not case.granted and case.district != case.home:
        raise RefusedError("not_handling")
    holds = case.holder == caller.id and case.state in ("accepted", "arrived")
    if not caller.roles & {*STAFF} and not holds:
        raise RefusedError("not_handling")


def acting(caller: Caller) -> str:
    """How the fact names who looked: by the role they did it in."""
    role = next((role for role in ("supervisor", "dispatcher", "clerk") if role in caller.roles), "member")
    return f"{role}:{caller.id}"


def chosen(sealed: Sealed | None, parts: Iterable[Part]) -> tuple[Part, ...]:
    """Those of the parts that were sealed, in the order of `PARTS`. Raises RefusedError `nothing_sealed` where none was."""
    wanted = frozenset(parts)
    there = tuple(part for part in PARTS if part in wanted and sealed is not None and part in sealed.parts)
    if not there:
        raise RefusedError("nothing_sealed", field="parts")
    return there


def reachable(case: Case) -> None:
    """Whether the resident may still be written to. Raises RefusedError `erased`, `only_review`, `nothing_sealed`."""
    if case.sealed == "erased":
        raise RefusedError("erased")
    if case.sealed == "frozen":
        raise RefusedError("only_review")
    if case.sealed is None:
        raise RefusedError("nothing_sealed")


# --- the shell ----------------------------------------------------------------------------------------------------------


class Disclosures:
    """
    Discloses, to people and to notify.

    Args:
        at: reads the message with a sequence.
    """

    def __init__(self, cases: Cases, keeper: KeyKeeper, naming: Naming, at: Callable[[int], Any]) -> None:
        self._cases = cases
        self._keeper = keeper
        self._naming = naming
        self._at = at
        self._reaching = 0

    async def disclose(
        self, request_id: str, asked: Disclosing, *, caller: Caller, key: str, traceparent: str | None
    ) -> dict[str, Any]:
        """
        The parts asked for, as far as they were given; on record by then.

        Raises:
            RefusedError: as `allow`; `not_found`, `key_reused`; `nothing_sealed` where none of these parts was given.
            UnavailableError: the bus or the ledger did not answer, or what it knows is not the newest.
        """
        found = await self._cases.fresh({"id": request_id})
        allow(found.case, caller, asked.why)
        home, sealed = await self.sealed(found.case)
        parts = chosen(sealed, asked.parts)

        def fact(case: Case, _: object) -> RequestDisclosed:
            return RequestDisclosed(
                request_id=case.id, to=acting(caller), office=caller.district, why=asked.why, parts=parts
            )

        done = await self._cases.once(
            {"id": request_id},
            RequestDisclosed.name,
            lambda case: self._naming.fact_id(case.id, RequestDisclosed.name, f"token:{caller.id}", key),
            fact,
            {"why": asked.why, "parts": list(parts)},
            allow=lambda case: allow(case, caller, asked.why),
            fresh=True,
            private=True,
            actor=caller.actor,
            traceparent=traceparent,
        )
        opened = await self._open(home, sealed, request_id, parts)
        DISCLOSED.labels(asked.why).inc()
        return _told(done, asked.why, opened)

    async def reach(self, request_id: str, notice: str) -> dict[str, Any]:
        """
        How to write to the resident of a request: `{"contact", "language"}`; on record once in each round.

        Raises:
            RefusedError: `not_found`, `erased`, `only_review`, `nothing_sealed`.
            UnavailableError: the bus or the ledger did not answer in time.
        """
        found = await self._cases.find({"id": request_id})
        reachable(found.case)
        home, sealed = await self.sealed(found.case)
        parts = chosen(sealed, ("contact",))
        done = await self._cases.once(
            {"id": request_id},
            RequestDisclosed.name,
            lambda case: self._naming.fact_id(case.id, RequestDisclosed.name, NOTIFY, str(case.round)),
            lambda case, _: RequestDisclosed(
                request_id=case.id, to=NOTIFY, office=case.district, why="notice", parts=parts
            ),
            {},
            allow=reachable,
            private=True,
            cause=notice,
        )
        opened = await self._open(home, sealed, request_id, parts)
        DISCLOSED.labels("notice").inc()
        return {"contact": opened["contact"], "language": done.case.language}

    async def take(self, request: Request) -> None:
        """`{"request", "notice"}` answered as `reach` does, or `{"problem"}`; not at all once nobody waits for it."""
        if self._reaching >= REACHING_MAX:
            await request.answer(orjson.dumps({"problem": problem(RefusedError("unavailable", retry_after=2))}))
            return
        self._reaching += 1
        try:
            async with asyncio.timeout(REACH_WITHIN_S):
                answer = await self._reached(request)
        except TimeoutError:
            logger().warning("reach_given_up", after_s=REACH_WITHIN_S)
            return
        except Exception as why:  # whatever one question stumbles over; its text might hold what was sealed
            logger().error("reach_failed", why=type(why).__name__)
            return
        finally:
            self._reaching -= 1
        await request.answer(orjson.dumps(answer))

    async def _reached(self, request: Request) -> dict[str, Any]:
        try:
            try:
                asked = orjson.loads(request.data)
                request_id, notice = asked["request"], asked["notice"]
                if not isinstance(request_id, str) or not isinstance(notice, str):
                    raise RefusedError("invalid", field="request", why="须为文字", why_en="must be text")
            except (orjson.JSONDecodeError, TypeError, KeyError):
                raise RefusedError("invalid_json") from None
            return await self.reach(request_id, notice)
        except RefusedError as why:
            return {"problem": problem(why)}
        except UnavailableError as why:
            logger().warning("reach_failed", why=str(why))
            return {"problem": problem(RefusedError("unavailable", retry_after=2))}

    async def sealed(self, case: Case) -> tuple[str, Sealed | None]:
        """The office that sealed it and what its fact says of that. Raises UnavailableError."""
        for step in case.steps(RequestSubmitted.name):
            stored: Stored | None = await self._at(step.sequence)
            subject = f"evt.{step.district}.intake.{step.area}.request.submitted.{case.id}"
            try:
                fact = decode(subject, stored.data).fact if stored else None
            except MalformedError:
                continue
            if isinstance(fact, RequestSubmitted):
                return step.district, fact.sealed
        raise UnavailableError(f"the submission of {case.id} is not to be found")

    async def _open(
        self, home: str, sealed: Sealed | None, request_id: str, parts: Iterable[Part]
    ) -> Mapping[str, Any]:
        assert sealed is not None
        try:
            opened = await self._keeper.open(home, sealed.kid, request_id)
        except UnreadableError as why:
            logger().error("sealed_unreadable", request=request_id, why=str(why))
            raise UnavailableError(str(why)) from None
        if opened is None:  # an erasure that is under way, or was broken off
            raise RefusedError("erased")
        return {part: opened[part] for part in parts if part in opened}


def _told(done: Done, why: str, opened: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": done.case.id,
        "fact": done.fact,
        "why": why,
        "time": done.time,
        "position": done.sequence,
        "parts": opened,
    }
