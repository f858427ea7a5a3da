"""HTTP side of the shared files: which enclaves, their file, their monthly sheet; and how both are read from the log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import FastAPI, Query, Response

from services.ledger import enclaves, pinning, sheets
from services.ledger.asking import Ndjson, Scans
from services.ledger.enclaves import Enclave, Entry, Filing, Pin, entries
from services.ledger.events import AsOf
from services.ledger.log.notes import Note
from services.ledger.replay import types_named
from services.ledger.store import Selection, Store
from shared.access import allowed
from shared.auth import EVERYWHERE, Caller
from shared.envelope import canonical
from shared.errors import RefusedError
from shared.facts import HUB, AreaCode
from shared.web import problems

if TYPE_CHECKING:  # the routes' home knows us
    from services.ledger.api import Ledger

WAIT_S = 2.0
"""How long a file waits for the cases to come to its size."""
CHUNK = 2000
FILES_AT_ONCE = 2
"""Files that are put together at a time: each reads every case of its area."""
Party = Annotated[Caller, allowed("dispatcher", "supervisor", "auditor", of="cases")]
Agreed = Annotated[AreaCode | None, Query(description="协议代码,默认为现行者 / which agreement; else the one in force")]


async def pin(store: Store, log: str, as_of: str | None) -> Pin:
    """As of when a file is, pinned as a replay is. Raises RefusedError `invalid`, `no_checkpoint`."""
    pinned = await pinning.pin(store, as_of)
    recorded = await pinning.recorded_ns(store, pinned.size)
    at = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=recorded // 1000)
    return Pin(log, pinned.size, at, Note.parse(pinned.note).body if pinned.note else None)


async def agreed(store: Store, area: str, at: Pin, *, district: str | None, agreement: str | None) -> Enclave:
    """The enclave of an area, of the parties that a district belongs to. Raises RefusedError as `enclaves.enclave`."""
    selection = Selection(district=HUB, types=types_named([fact.name for fact in enclaves.REGISTER]), kinds=("event",))
    found: list[Entry] = []
    since = 0
    while chunk := await store.read(selection, since, at.size, CHUNK):
        found += await asyncio.to_thread(lambda part: [*entries(part, area, at.size)], chunk)
        since = chunk[-1][0] + 1
    return enclaves.enclave(found, area, at.at, district=district, agreement=agreement)


async def lines(store: Store, filing: Filing, at: Pin) -> AsyncIterator[bytes]:
    """The leaves behind a file as a replay has them: a header, a line per leaf, and a last line, without which it was cut short."""
    indices = [index for index, _ in filing.rests_on()]
    of = {"area": filing.enclave.area, "agreement": filing.enclave.agreements[0].agreement}
    yield canonical({"enclave": enclaves.VERSION, **at._asdict(), **of}) + b"\n"
    for since in range(0, len(indices), CHUNK):
        found = await store.at(indices[since : since + CHUNK])
        yield b"".join(b'{"s":%d,"leaf":%b}\n' % (index, leaf) for index, leaf in found)
    yield canonical({"end": True, "count": len(indices), "next": None}) + b"\n"


def add_routes(app: FastAPI, ledger: Ledger) -> None:
    """The routes."""
    barred = problems("unauthenticated", "forbidden", "foreign_district", "not_found", "no_checkpoint", "unavailable")
    scans = Scans(FILES_AT_ONCE)

    async def reached(size: int) -> None:
        """The cases tell whose leaves to read: they must have come this far."""
        ends = monotonic() + WAIT_S
        while ledger.projector.at.position < size:
            if monotonic() > ends:
                raise RefusedError("unavailable", retry_after=2)
            await asyncio.sleep(0.02)

    async def filed(
        caller: Caller, area: str, as_of: str | None, agreement: str | None, *, month: str | None = None
    ) -> tuple[Filing, Pin]:
        """What there is of an enclave that the caller is party to, up to a month's end."""
        at = await pin(ledger.store, ledger.origin, as_of)
        await reached(at.size)
        async with scans.one():
            whose = None if caller.district == EVERYWHERE else caller.district
            enclave = await agreed(ledger.store, area, at, district=whose, agreement=agreement)
            filing = Filing(enclave, until=sheets.months(enclave.zone, month)[1] if month else None)
            async for chunk in ledger.store.of_area(area, at.size):
                await asyncio.to_thread(_take, filing, chunk, at.size)
        return filing, at

    @app.get(
        "/v1/enclaves",
        tags=["enclaves"],
        summary="插花地及其协议 / enclaves and what was agreed",
        responses=problems("unauthenticated", "forbidden", "unavailable"),
    )
    async def list_enclaves(caller: Party) -> Response:
        register = await ledger.registry.current()
        shown = []
        for code, agreement in sorted(register.agreements.items()):
            if caller.district != EVERYWHERE and caller.district not in agreement.parties:
                continue
            area = register.area(agreement.area, register.today(agreement.lead, datetime.now(UTC)))
            shown.append(
                {
                    "area": agreement.area,
                    "title": area.title if area else None,
                    "agreement": code,
                    "parties": sorted(agreement.parties),
                    "lead": agreement.lead,
                    "valid_from": agreement.valid_from,
                    "valid_to": agreement.valid_to,
                    "open_cases": await ledger.store.open_cases(agreement.area, agreement.parties),
                }
            )
        return _canonical({"enclaves": shown})

    @app.get(
        "/v1/enclaves/{area}/file",
        tags=["enclaves"],
        summary="一档归索:各方所得逐字节相同 / the shared file, the same bytes for each party",
        responses=barred,
    )
    async def file(caller: Party, area: AreaCode, as_of: AsOf = None, agreement: Agreed = None) -> Response:
        filing, at = await filed(caller, area, as_of, agreement)
        return await asyncio.to_thread(lambda: _canonical(filing.file(at)))

    @app.get(
        "/v1/enclaves/{area}/leaves",
        tags=["enclaves"],
        summary="档案所依据的叶子,供复算 / the leaves that the file rests on, to make it again",
        response_class=Ndjson,
        responses=barred,
    )
    async def leaves(caller: Party, area: AreaCode, as_of: AsOf = None, agreement: Agreed = None) -> Ndjson:
        filing, at = await filed(caller, area, as_of, agreement)
        sharing = ledger.registry.sharing
        if not sharing.loaded:
            raise RefusedError("unavailable", retry_after=2)
        # The file holds no more than the offices agreed to keep together; the facts themselves are closed with the agreement.
        if caller.district != EVERYWHERE and not sharing.shares(caller.district, area, datetime.now(UTC)):
            raise RefusedError("foreign_district", district=filing.enclave.lead, yours=caller.district)
        return Ndjson(lines(ledger.store, filing, at))

    @app.get(
        "/v1/enclaves/{area}/sheet",
        tags=["enclaves"],
        summary="联席会月报 / the monthly sheet for the joint meeting",
        responses={**barred, **problems("invalid")},
    )
    async def sheet(
        caller: Party,
        area: AreaCode,
        month: Annotated[str, Query(pattern=r"^\d{4}-\d{2}$", description="2026-11")],
        as_of: AsOf = None,
        agreement: Agreed = None,
        format: Annotated[Literal["json", "md"], Query(description="md:中文,可打印 / in Chinese, for paper")] = "json",
    ) -> Response:
        filing, at = await filed(caller, area, as_of, agreement, month=month)
        made = await asyncio.to_thread(sheets.sheet, filing, at, month)
        if format == "md":
            return Response(sheets.page(made).encode(), media_type="text/markdown; charset=utf-8")
        return _canonical(made)


def _take(filing: Filing, chunk: Sequence[tuple[int, bytes]], size: int) -> None:
    for entry in entries(chunk, filing.enclave.area, size):
        filing.take(entry)


def _canonical(document: Any) -> Response:
    return Response(canonical(document), media_type="application/json")
