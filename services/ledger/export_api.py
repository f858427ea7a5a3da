"""HTTP side of exports: one stream per format, on record before its first byte."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from fastapi import FastAPI, Query
from fastapi.responses import StreamingResponse

from services.ledger.acting import Acts
from services.ledger.asking import District, Reader, district_of
from services.ledger.events import AsOf, Moment, begun, resumed
from services.ledger.exporting.reading import Ground
from services.ledger.exporting.streaming import VERSION, Export, Format, behind, document, exporter, writer
from services.ledger.exporting.writing import Writer
from services.ledger.log.notes import Note
from services.ledger.losses import Losses
from services.ledger.register.register_api import Sentence
from services.ledger.replay import Replay, scopes_of, types_named
from services.ledger.store import Selection
from shared.auth import EVERYWHERE, Caller
from shared.errors import RefusedError
from shared.facts import HUB, AreaCode, ExportFilter, Id, LedgerExported
from shared.ids import new_id
from shared.telemetry import logger
from shared.web import problems

if TYPE_CHECKING:  # the routes' home knows us
    from services.ledger.api import Ledger

MEDIA: dict[Format, tuple[str, str]] = {
    "ocel": ("application/json", "ocel.json"),
    "csv": ("text/csv; charset=utf-8", "csv"),
    "xes": ("application/xml", "xes"),
    "parquet": ("application/vnd.apache.parquet", "parquet"),
}
"""Media type and the end of the file's name."""
TYPES = r"^[a-z][a-z0-9_.]{0,99}(,[a-z][a-z0-9_.]{0,99})*$"
"""Filters go into the ledger with the fact, for ever: they are codes and ids, nothing that could be somebody's name or number."""


def add_routes(app: FastAPI, ledger: Ledger) -> None:
    """`GET /v1/exports`."""
    losses = Losses(ledger.store)
    acts, turn = Acts(ledger.bus, ledger.store), asyncio.Lock()

    async def recorded(export: Export, caller: Caller, why: str) -> None:
        asked = export.asked.selection
        chosen = ExportFilter(
            district=asked.district,
            parties=asked.parties,
            area=asked.area,
            request=asked.request,
            types=asked.types,
            time_from=asked.time_from,
            time_to=asked.time_to,
        )
        fact = LedgerExported(format=export.format, filter=chosen, size=export.asked.size, by=caller.actor, why=why)
        whose = HUB if caller.district == EVERYWHERE else caller.district
        await acts.record(fact, district=whose, by=caller, key=new_id())
        logger().info("exported", by=caller.actor, format=export.format, size=export.asked.size, leaves=export.leaves)

    @app.get(
        "/v1/exports",
        tags=["replay"],
        summary="导出:OCEL、CSV、XES、Parquet / an export, pinned to a checkpoint and on record",
        response_class=StreamingResponse,
        responses={
            **problems("unauthenticated", "forbidden", "foreign_district", "invalid"),
            **problems("bad_cursor", "no_checkpoint", "no_parquet", "unavailable"),
            200: {"content": {media.partition(";")[0]: {} for media, _ in MEDIA.values()}},
        },
    )
    async def export(
        caller: Reader,
        format: Format,
        as_of: AsOf = None,
        district: District = None,
        parties: Annotated[
            str | None,
            Query(
                pattern=r"^[0-9]{6}(,[0-9]{6}){0,19}$",
                description="各方共有者:420106,420107 / what names all of these offices",
            ),
        ] = None,
        area: Annotated[AreaCode | None, Query()] = None,
        request: Annotated[Id | None, Query()] = None,
        type: Annotated[
            str | None, Query(max_length=500, pattern=TYPES, description="task.offered,task.accepted")
        ] = None,
        time_from: Annotated[Moment | None, Query(description="业务时间起 / the event's own time, from")] = None,
        time_to: Annotated[Moment | None, Query(description="业务时间止,不含 / and before")] = None,
        why: Annotated[Sentence, Query(description="缘由,永久记入账本 / why, kept for ever")] = "",
        cursor: Annotated[
            str | None, Query(max_length=200, description="续传:先前应答的 Paidan-Cursor / of an answer that broke off")
        ] = None,
        offset: Annotated[int, Query(ge=0, description="续传:已有字节数 / bytes of it that are there")] = 0,
    ) -> StreamingResponse:
        if offset and cursor is None:
            raise RefusedError("invalid", field="offset", why="须与 cursor 同用", why_en="goes with a cursor")
        selection = selected(caller, district, parties.split(",") if parties else None)
        selection = replace(
            selection,
            area=area,
            request=request,
            types=types_named(type.split(",")) if type else None,
            time_from=time_from,
            time_to=time_to,
        )
        own = None if caller.district == EVERYWHERE else caller.district
        asked, log = Replay(ledger.origin, selection, size=0), ledger.origin
        if cursor is not None:
            asked = replace(asked, log=_log(log, format, writer(format, Ground())))
            asked = await resumed(ledger, losses, asked, cursor, own)
        else:
            asked = await begun(ledger, losses, asked, as_of, own)
        made = writer(format, await Ground.of(ledger.store, asked.size))
        going_on = replace(asked, log=_log(log, format, made))
        export = await Export.of(ledger.store, replace(asked, log=log, note=_own(asked.note)), format)
        await recorded(export, caller, why)
        media_type, ending = MEDIA[format]
        headers = {
            "Content-Disposition": f'attachment; filename="paidan-{asked.size}.{ending}"',
            "Paidan-Size": str(asked.size),
            "Paidan-Leaves": str(export.leaves),
            "Paidan-Cursor": going_on.cursor(ledger.cursors, 0),
        }
        body = behind(offset, document(ledger.store, export, made, turn))
        return StreamingResponse(body, media_type=media_type, headers=headers)


def selected(caller: Caller, district: str | None, parties: list[str] | None) -> Selection:
    """
    What somebody may have: as in a replay; and what names several offices, if they are of one of them.

    Raises:
        RefusedError: `foreign_district`.
    """
    district_of(caller, district if district != HUB else None)
    if parties and not any(caller.of(party) for party in parties):
        raise RefusedError("foreign_district", district=parties[0], yours=caller.district)
    scopes = None if caller.district == EVERYWHERE else scopes_of(caller.district)
    return Selection(scopes=scopes, district=district, parties=tuple(sorted({*parties})) if parties else None)


def _log(log: str, format: Format, by: Writer) -> str:
    """What a cursor belongs to beside the filter: it is good for the same bytes only."""
    return f"{log} {VERSION} {format} {exporter(by)}"


def _own(note: str | None) -> str | None:
    """A checkpoint as the log signed it: cosignatures come later, and would be other bytes."""
    if note is None:
        return None
    read = Note.parse(note)
    name = read.body.partition("\n")[0]
    return Note(read.body, tuple(each for each in read.signatures if each.name == name)).text
