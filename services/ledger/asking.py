"""Who asks the ledger, and for whom: what its routes declare alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Header, Query
from fastapi.responses import StreamingResponse

from shared.access import allowed
from shared.auth import EVERYWHERE, Caller
from shared.errors import RefusedError

Reader = Annotated[Caller, allowed("dispatcher", "supervisor", "auditor", of="cases")]
Office = Annotated[Caller, allowed("clerk", "dispatcher", "supervisor", "auditor", of="cases")]
Staff = Annotated[Caller, allowed("clerk", "member", "dispatcher", "supervisor", "auditor", of="register")]
Anyone = Annotated[Caller, allowed("clerk", "member", "dispatcher", "supervisor", "auditor", of="nothing")]
Registrar = Annotated[Caller, allowed("admin", of="everywhere")]
Admin = Annotated[Caller, allowed("admin", of="district")]
Auditor = Annotated[Caller, allowed("auditor", of="district")]
Everything = Annotated[Caller, allowed("auditor", of="everywhere")]

District = Annotated[str | None, Query(pattern=r"^[0-9]{6}$", description="六位区划代码 / six-digit code")]
Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200)]
AreaGiven = Annotated[str | None, Query(max_length=40)]

WAITING_MAX = 8
"""Callers who wait for a scan of the log; more of them are told to come again."""
WAIT_S = 10
"""How long they wait: who asks by hand is still there."""


class Scans:
    """Answers that read much of the log for one caller: so many at a time, a few that wait, and the others come again."""

    def __init__(self, at_once: int) -> None:
        self._running = asyncio.Semaphore(at_once)
        self._waiting = 0

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """
        While this one runs.

        Raises:
            RefusedError: `busy`: too many wait, or it was not its turn in time.
        """
        if self._waiting >= WAITING_MAX:
            raise RefusedError("busy", retry_after=WAIT_S)
        self._waiting += 1
        try:
            async with asyncio.timeout(WAIT_S):
                await self._running.acquire()
        except TimeoutError:
            raise RefusedError("busy", retry_after=WAIT_S) from None
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._running.release()


class Ndjson(StreamingResponse):
    """A JSON document per line."""

    media_type = "application/x-ndjson"


def district_of(caller: Caller, asked: str | None) -> str | None:
    """
    Whose cases a caller gets: those of the district asked for, or all of their own; None for everybody's.

    Raises:
        RefusedError: `foreign_district`.
    """
    if asked is None:
        return None if caller.district == EVERYWHERE else caller.district
    if not caller.of(asked):
        raise RefusedError("foreign_district", district=asked, yours=caller.district)
    return asked
