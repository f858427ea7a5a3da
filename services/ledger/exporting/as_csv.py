"""
CSV for spreadsheets: UTF-8 with a byte order mark, a row per leaf, and a last row that says what it is.

A cell that a spreadsheet could take for a formula begins with an apostrophe instead (OWASP, CSV injection), the wide signs of
Chinese input included. The last row's first cell is `#paidan`, its second is JSON; a file without it was cut short.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from services.ledger.exporting.reading import Row
from services.ledger.exporting.writing import Writer
from shared.envelope import canonical

COLUMNS = (
    *("seq", "kind", "id", "type", "time", "recorded", "request", "district", "districts", "area", "enclave", "actor"),
    *("status", "cause", "trace", "subject", "stream_seq", "leaf_hash", "data"),
)
END = "#paidan"
BOM = "\ufeff"
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


class AsCsv(Writer):
    """A table."""

    def head(self, _: Mapping[str, Any]) -> bytes:
        """The names of the columns."""
        return (BOM + _lines([COLUMNS])).encode()

    def leaves(self, rows: Sequence[Row]) -> bytes:
        """A line each."""
        self.written += len(rows)
        return _lines([guarded(cell) for cell in self._cells(row)] for row in rows).encode()

    def foot(self, about: Mapping[str, Any]) -> bytes:
        """What it is."""
        return _lines([(END, canonical(about).decode())]).encode()

    def _cells(self, row: Row) -> Iterable[str | int]:
        enclave = row.area if self.ground.enclave(row.area) else ""
        yield from (row.index, row.kind, row.id, row.type, row.time, row.recorded, row.request, row.district)
        yield from (" ".join(row.districts), row.area, enclave, row.actor, row.status, row.cause, row.trace)
        yield from (row.subject, row.sequence, row.hash, canonical(row.data).decode() if row.data else "")


def guarded(cell: str | int) -> str | int:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell


def _lines(rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()
