"""
Queries on the bus: what an office's app, or one person, has missed, a page at a time.

The bus itself shows an app only what happens now. A page is what it did not see, by the same rules as the live stream over HTTP:
`qry.<district>.desk.events` for whoever is let into the district's account, `qry.<district>.desk.mine` for the holder of a token.
"""

from __future__ import annotations

import asyncio
from collections import Counter

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.dispatch.desk import Desks
from services.dispatch.pacing import NOBODY, LetGoError, Pace
from services.dispatch.showing import ROLES, Event, Wanted, prefixes
from services.dispatch.streaming import LiveTail
from shared.auth import Doorkeeper
from shared.bus import Bus, Request
from shared.errors import BusError, RefusedError
from shared.problems import invalid, problem

EVENTS_MAX = 200
APART_S = 0.05
HELD_MOST_S = 3.0
"""Questions of one district begin so far apart, its callers in turn; those that would wait longer are not answered."""
EVENTS = "events"
"""Whoever asks for an office's events does so for the office: there they are one."""
AT_ONCE_MAX = 16
"""Of one district; an office that asks more does not keep the others waiting."""


class Ask(BaseModel):
    """
    What is asked.

    Attributes:
        after: a sequence; left out, nothing is shown and the answer says where now is.
        types: prefixes, comma-separated.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    after: int | None = Field(None, ge=0)
    limit: int = Field(EVENTS_MAX, ge=1, le=EVENTS_MAX)
    types: str = Field("", max_length=500)
    token: str | None = None


class CatchingUp:
    """Answers both queries for the districts of this instance; instances share the questions out."""

    def __init__(self, bus: Bus, desks: Desks, tail: LiveTail, doorkeeper: Doorkeeper) -> None:
        self._bus = bus
        self._desks = desks
        self._tail = tail
        self._busy: Counter[str] = Counter()
        self._pace = Pace(doorkeeper, APART_S, HELD_MOST_S, desks.limited)

    async def run(self, until: asyncio.Event) -> None:
        """Answer until told to stop, and finish what is under way."""
        subscriptions = [
            await self._bus.serve(f"qry.{district}.desk.*", self._take, alone=True, apart=True)
            for district in sorted(self._desks.named or ("*",))
        ]
        try:
            await until.wait()
        finally:
            await asyncio.gather(*(subscription.end() for subscription in subscriptions))

    async def _take(self, request: Request) -> None:
        _, district, _, what = request.subject.split(".")
        try:
            answer = await self._page(district, what, request.data)
        except LetGoError:
            return
        except RefusedError as why:
            answer = _refused(why)
        except (BusError, TimeoutError):
            answer = _refused(RefusedError("unavailable", retry_after=2))
        await request.answer(answer)

    async def _page(self, district: str, what: str, content: bytes) -> bytes:
        """Raises RefusedError, BusError, TimeoutError, LetGoError."""
        ask, wanted = await self._asked(district, what, content)
        self._desks.need_register()
        if self._busy[district] >= AT_ONCE_MAX:
            raise RefusedError("too_many", retry_after=1)
        self._busy[district] += 1
        try:
            last = (await self._bus.state()).last
            if ask.after is None:
                return _answered([], last, last)
            if ask.after > last:
                raise RefusedError("bad_cursor", field="after", last=last)
            asked = set() if wanted.member is None else self._desks.asked(wanted.member, district)
            events, reached = await self._tail.page(wanted, ask.after, last, limit=ask.limit, asked=asked)
            return _answered(events, reached, max(last, reached))
        finally:
            self._busy[district] -= 1

    async def _asked(self, district: str, what: str, content: bytes) -> tuple[Ask, Wanted]:
        """What is asked and what of it may be seen, when it is the caller's turn. Raises RefusedError, LetGoError."""
        try:
            if what not in ("events", "mine"):
                raise RefusedError("unknown_command", verb=what)
            ask = _ask(content)
        except RefusedError:
            await self._pace.turn(district, NOBODY)
            raise
        if what == "mine":
            caller = (await self._pace.admit(district, ask.token)).need(*ROLES)
            return ask, Wanted.by(caller, district, None, ask.types)
        await self._pace.turn(district, EVENTS)
        return ask, Wanted(district, types=prefixes(ask.types))


def _ask(content: bytes) -> Ask:
    """Raises RefusedError `invalid_json`, or `invalid` with the field."""
    try:
        return Ask.model_validate(orjson.loads(content or b"{}"))
    except orjson.JSONDecodeError:
        raise RefusedError("invalid_json") from None
    except ValidationError as why:
        raise invalid(why.errors()) from None


def _answered(events: list[Event], after: int, last: int) -> bytes:
    page = b",".join(b'{"event":%b,"sequence":%d}' % (event.data, event.sequence) for event in events)
    return b'{"after":%d,"events":[%b],"last":%d}' % (after, page, last)


def _refused(why: RefusedError) -> bytes:
    return orjson.dumps({"problem": problem(why)})
