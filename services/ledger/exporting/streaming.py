"""
One export as a stream of bytes, in memory that does not grow with the log.

It is pinned as a replay is: the same size, filter and exporter give the same bytes to whoever asks, so that an export can be compared
byte by byte, and one that broke off goes on behind the bytes that are there. Every export says what it is: log, size, signed
checkpoint, filter, counts. What goes wrong midway ends it without its end, in every format.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from typing import Any, Literal, Protocol

from services.ledger.exporting.reading import Ground, Row, row
from services.ledger.exporting.writing import Writer
from services.ledger.log.leaves import EVENT
from services.ledger.replay import CHUNK, Replay
from services.ledger.store import Selection
from shared.errors import PaidanError

VERSION = "paidan/export/1"

Format = Literal["ocel", "csv", "xes", "parquet"]


class ShortExportError(PaidanError):
    """The log gave another number of leaves than it had counted."""


class Log(Protocol):
    """What an export needs of the store."""

    def chunks(
        self, selection: Selection, since: int, below: int, limit: int | None, size: int
    ) -> AsyncGenerator[list[tuple[int, bytes]]]:
        """Leaves in a range, in chunks of a size."""

    async def by_cases(
        self, selection: Selection, after: tuple[str, int], below: int, limit: int
    ) -> list[tuple[str, int, bytes]]:
        """Leaves that are about a request, by request."""

    async def count(self, selection: Selection, since: int, below: int) -> int:
        """How many leaves of a range are selected."""


@dataclass(frozen=True, slots=True)
class Export:
    """
    What is exported, pinned to a size.

    Attributes:
        asked: log, selection, size, checkpoint; of a replay's rest nothing.
        leaves, events: how many are selected.
    """

    asked: Replay
    format: Format
    leaves: int
    events: int

    @classmethod
    async def of(cls, log: Log, asked: Replay, format: Format) -> Export:
        """Counted. What process mining reads are events; a table has a row for every leaf."""
        selection, size = asked.selection, asked.size
        if format in ("ocel", "xes"):
            selection = replace(selection, kinds=(EVENT,))
        events = await log.count(replace(selection, kinds=(EVENT,)), 0, size)
        leaves = events if selection.kinds == (EVENT,) else await log.count(selection, 0, size)
        return cls(replace(asked, selection=selection), format, leaves, events)

    def about(self, writer: Writer) -> dict[str, Any]:
        """What it says of itself."""
        return {
            "export": VERSION,
            "exporter": exporter(writer),
            "format": self.format,
            "log": self.asked.log,
            "size": self.asked.size,
            "checkpoint": self.asked.note,
            "filter": filtered(self.asked),
            "withheld": list(self.asked.selection.lost or ()),
            "counts": {"leaves": self.leaves, "events": self.events, **writer.counts},
        }


def filtered(asked: Replay) -> dict[str, Any]:
    """The filter as an export says it: for whom it was made is left out where that changes nothing."""
    chosen = asked.question
    chosen.pop("kinds", None)
    if "district" in chosen or "parties" in chosen:
        chosen.pop("scopes", None)
    return chosen


@cache
def _version() -> str:
    return f"paidan {version('paidan')}"


def exporter(writer: Writer) -> str:
    """What makes these bytes, with its version."""
    return f"{_version()} {writer.by}".strip()


async def document(log: Log, export: Export, writer: Writer, turn: asyncio.Lock) -> AsyncGenerator[bytes]:
    """
    The export.

    Args:
        turn: held while a page is written, not while its reader takes it: several exports at a time cost what one does.
    Raises:
        ShortExportError: it would be incomplete; it ends without its end.
    """
    yield writer.head(export.about(writer))
    for each in writer.passes:
        asked = export.asked
        pages = log.chunks(asked.selection, 0, asked.size, None, CHUNK) if each == "leaves" else _cases(log, asked)
        write = writer.leaves if each == "leaves" else writer.cases
        async with aclosing(pages):
            async for page in pages:
                async with turn:
                    chunk = await asyncio.to_thread(_written, write, page)
                if chunk:
                    yield chunk
    foot = await asyncio.to_thread(writer.foot, export.about(writer))
    if writer.written != export.leaves:
        raise ShortExportError(f"{writer.written} leaves of {export.leaves}")
    yield foot


def _written(write: Callable[[list[Row]], bytes], page: list[tuple[int, bytes]]) -> bytes:
    return write([row(*leaf) for leaf in page])


async def behind(offset: int, body: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """What follows the first bytes of an export."""
    async with aclosing(body):
        async for chunk in body:
            if offset < len(chunk):
                yield chunk[offset:]
            offset = max(0, offset - len(chunk))


async def _cases(log: Log, asked: Replay) -> AsyncGenerator[list[tuple[int, bytes]]]:
    after = ("", -1)
    while page := await log.by_cases(asked.selection, after, asked.size, CHUNK):
        after = page[-1][:2]
        yield [(index, leaf) for _, index, leaf in page]


def writer(format: Format, ground: Ground) -> Writer:
    """
    What writes a format.

    Raises:
        RefusedError: `no_parquet`.
    """
    match format:
        case "csv":
            from services.ledger.exporting.as_csv import AsCsv

            return AsCsv(ground)
        case "xes":
            from services.ledger.exporting.as_xes import AsXes

            return AsXes(ground)
        case "ocel":
            from services.ledger.exporting.as_ocel import AsOcel

            return AsOcel(ground)
        case "parquet":
            from services.ledger.exporting.as_parquet import AsParquet

            return AsParquet(ground)
