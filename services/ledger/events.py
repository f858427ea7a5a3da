"""HTTP routes that replay the log, and that tell what an office had at hand as of any moment."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

from fastapi import FastAPI, Header, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import AfterValidator, AwareDatetime

from services.ledger.asking import AreaGiven, District, Ndjson, Office, Reader, Scans, district_of
from services.ledger.asof import state_at
from services.ledger.log.leaves import EVENT, KINDS
from services.ledger.losses import Losses
from services.ledger.pinning import pin, size_at, vouched
from services.ledger.proving import Kind, Proofs
from services.ledger.replay import Format, Replay, lines, scopes_of, types_named
from services.ledger.store import Selection
from shared.auth import EVERYWHERE
from shared.envelope import canonical
from shared.errors import RefusedError
from shared.facts import HUB
from shared.web import problems

if TYPE_CHECKING:
    from services.ledger.api import Ledger

AsOf = Annotated[
    str | None,
    Query(max_length=40, description="账本大小或时间,缺省为最新 / a size of the log or a time; else the latest"),
]


def _utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("a time within the years 1 to 9999") from None


Moment = Annotated[AwareDatetime, AfterValidator(_utc)]
At = Annotated[
    Moment | None, Query(description="业务时间:只计至此时已发生的 / business time: what had happened by then")
]
STATES_AT_ONCE = 2
"""Folds of a whole office that run at a time: each takes a second of the process per 20,000 leaves."""


def add_routes(app: FastAPI, ledger: Ledger) -> None:
    """`GET /v1/events` and `GET /v1/state`."""
    barred = problems("unauthenticated", "forbidden", "foreign_district")
    losses = Losses(ledger.store)
    folding = Scans(STATES_AT_ONCE)

    @app.get(
        "/v1/events",
        tags=["replay"],
        summary="账本重放,有首行与末行 / replay with header and trailer",
        response_class=Ndjson,
        responses={
            200: {"content": {"text/event-stream": {}}},
            **barred,
            **problems("bad_cursor", "no_checkpoint", "unavailable"),
        },
    )
    async def replay(
        caller: Reader,
        since: Annotated[int, Query(alias="from", ge=0, lt=2**53)] = 0,
        to: Annotated[int | None, Query(ge=0, lt=2**53)] = None,
        as_of: AsOf = None,
        district: District = None,
        area: AreaGiven = None,
        request: Annotated[str | None, Query(max_length=200)] = None,
        type: Annotated[str | None, Query(max_length=500, description="task.offered,task.accepted")] = None,
        time_from: Annotated[Moment | None, Query(description="业务时间起 / the event's own time, from")] = None,
        time_to: Annotated[Moment | None, Query(description="业务时间止,不含 / and before")] = None,
        kinds: Annotated[str, Query(description="event (default), some of them, or all")] = EVENT,
        format: Format = "ndjson",
        proof: Kind = "none",
        limit: Annotated[int | None, Query(ge=1, lt=2**53)] = None,
        cursor: Annotated[str | None, Query(max_length=200)] = None,
        last_event_id: Annotated[str | None, Header(pattern=r"^[0-9]{1,15}$")] = None,
        accept_encoding: Annotated[str, Header(include_in_schema=False)] = "",
    ) -> StreamingResponse:
        district_of(caller, district if district != HUB else None)
        if kinds != "all" and not set(kinds.split(",")) <= {*KINDS}:
            some = ", ".join(KINDS)
            raise RefusedError("invalid", field="kinds", why=f"可选 {some},或 all", why_en=f"some of {some}, or all")
        own = None if caller.district == EVERYWHERE else caller.district
        asked = Replay(
            log=ledger.origin,
            selection=Selection(
                scopes=scopes_of(own) if own else None,
                district=district,
                area=area,
                request=request,
                types=types_named(type.split(",")) if type else None,
                kinds=None if kinds == "all" else tuple(sorted(set(kinds.split(",")))),
                time_from=time_from,
                time_to=time_to,
            ),
            size=0,
            since=since if last_event_id is None else max(since, int(last_event_id) + 1),
            to=to,
            limit=limit,
        )
        pinned = await (
            resumed(ledger, losses, asked, cursor, own)
            if cursor is not None
            else begun(ledger, losses, asked, as_of, own)
        )
        proofs = None if proof == "none" else Proofs(ledger.signer.tree.tile, pinned.size, proof)
        if proofs and ledger.signer.tree.size < pinned.size:
            raise RefusedError("unavailable", retry_after=2)  # this instance has not read so far yet
        body = lines(ledger.store, pinned, ledger.cursors, format, proofs)
        first = await anext(body)  # what cannot even begin is a problem, not a replay cut short
        body = _with(first, body)
        media_type = "text/event-stream" if format == "sse" else Ndjson.media_type
        if "gzip" not in accept_encoding:
            return StreamingResponse(body, media_type=media_type)
        return StreamingResponse(zipped(body), media_type=media_type, headers={"Content-Encoding": "gzip"})

    @app.get(
        "/v1/state",
        tags=["replay"],
        summary="某时的在办情况:状态、人员负荷 / what an office had at hand as of a moment",
        responses={**barred, **problems("no_checkpoint", "unavailable")},
    )
    async def state(caller: Office, district: District = None, as_of: AsOf = None, at: At = None) -> Response:
        whose = district_of(caller, district)
        size = await size_at(ledger.store, as_of)
        async with folding.one():
            found = await state_at(ledger.store, whose, size, at)
        answer = {"log": ledger.origin, "size": size, "at": at, "district": whose or EVERYWHERE, **found.shown()}
        return Response(canonical(answer), media_type="application/json")


async def begun(ledger: Ledger, losses: Losses, asked: Replay, as_of: str | None, own: str | None) -> Replay:
    """A replay pinned to what is there now, and to what the register of today closes to whoever asks."""
    pinned = await pin(ledger.store, as_of)
    asked = replace(asked, size=pinned.size, note=pinned.note)
    if own is None:
        return asked
    now = datetime.now(UTC)
    asked = replace(asked, register=await ledger.store.size(), at_s=int(now.timestamp()))
    lost = await losses.lost(own, size=asked.register, at_s=asked.at_s)
    if {*ledger.sharing.all_lost(own, now)} - {*lost}:
        raise RefusedError("unavailable", retry_after=2)  # the log has not come to what the register closed
    return asked.without(lost)


async def resumed(ledger: Ledger, losses: Losses, asked: Replay, cursor: str, own: str | None) -> Replay:
    """A replay as it was pinned when it began."""
    asked = asked.resumed(ledger.cursors, cursor)
    asked = replace(asked, note=(await vouched(ledger.store, asked.size)).note)
    lost = await losses.lost(own, size=asked.register, at_s=asked.at_s) if own and asked.register else ()
    return asked.without(lost)


async def _with(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(rest):
        yield first
        async for chunk in rest:
            yield chunk


async def zipped(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same in gzip; each chunk can be read as soon as it is there."""
    packing = zlib.compressobj(1, wbits=31)
    async for chunk in body:
        yield await asyncio.to_thread(lambda part: packing.compress(part) + packing.flush(zlib.Z_SYNC_FLUSH), chunk)
    yield packing.flush()
