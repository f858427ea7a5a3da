"""
Parquet for data tools: the columns of the table, typed, and the leaf itself, from which the log's root can be made again.

What it is lies in the file's metadata under `paidan`, as JSON. Needs `pyarrow` (the extra `parquet`), whose version is part of the bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from services.ledger.exporting.reading import Ground, Row
from services.ledger.exporting.writing import Writer
from services.ledger.log.leaves import recorded_ns
from shared.envelope import canonical
from shared.errors import RefusedError

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError:
    pa = pq = None

GROUP_ROWS = 10_000
KEY = b"paidan"


class AsParquet(Writer):
    """A typed table. Raises RefusedError `no_parquet` where pyarrow is not installed."""

    def __init__(self, ground: Ground) -> None:
        if pa is None:
            raise RefusedError("no_parquet", field="format")
        super().__init__(ground)
        self._sink = _Sink()
        self._writer = pq.ParquetWriter(pa.PythonFile(self._sink, "w"), _schema(), compression="zstd")
        self._pages: list[Any] = []
        self.by = f"pyarrow {pa.__version__}"

    def head(self, _: Mapping[str, Any]) -> bytes:
        """What a Parquet file begins with."""
        return self._sink.taken()

    def leaves(self, rows: Sequence[Row]) -> bytes:
        """Rows in groups, each once it is full."""
        self.written += len(rows)
        self._pages.append(self._page(rows))
        if sum(page.num_rows for page in self._pages) >= GROUP_ROWS:
            self._group()
        return self._sink.taken()

    def foot(self, about: Mapping[str, Any]) -> bytes:
        """The last group, and what it is."""
        self._group()
        self._writer.add_key_value_metadata({KEY: canonical(about)})
        self._writer.close()
        return self._sink.taken()

    def _group(self) -> None:
        pages, self._pages = self._pages, []
        if pages:
            self._writer.write_table(pa.concat_tables(pages))

    def _page(self, rows: Sequence[Row]) -> Any:
        columns: dict[str, list[Any]] = {
            "seq": [row.index for row in rows],
            "kind": [row.kind for row in rows],
            "id": [row.id or None for row in rows],
            "type": [row.type or None for row in rows],
            "time": [_moment(row.time) for row in rows],
            "recorded": [recorded_ns(row.recorded) for row in rows],
            "request": [row.request or None for row in rows],
            "district": [row.district or None for row in rows],
            "districts": [row.districts for row in rows],
            "area": [row.area or None for row in rows],
            "enclave": [row.area if self.ground.enclave(row.area) else None for row in rows],
            "actor": [row.actor or None for row in rows],
            "status": [row.status or None for row in rows],
            "cause": [row.cause or None for row in rows],
            "trace": [row.trace or None for row in rows],
            "subject": [row.subject or None for row in rows],
            "stream_seq": [row.sequence for row in rows],
            "leaf_hash": [bytes.fromhex(row.hash) for row in rows],
            "data": [canonical(row.data).decode() if row.data else None for row in rows],
            "leaf": [row.leaf for row in rows],
        }
        return pa.table(columns, schema=_schema())


class _Sink:
    """A file for pyarrow whose bytes are taken away as they come."""

    closed = False

    def __init__(self) -> None:
        self._held = bytearray()

    def write(self, data: Any) -> int:
        self._held += data
        return len(data)

    def taken(self) -> bytes:
        taken, self._held = bytes(self._held), bytearray()
        return taken

    def flush(self) -> None: ...

    def close(self) -> None: ...


def _schema() -> Any:
    text, words = pa.string(), pa.dictionary(pa.int32(), pa.string())
    return pa.schema(
        [
            *(pa.field("seq", pa.int64(), nullable=False), ("kind", words), ("id", text), ("type", words)),
            *(("time", pa.timestamp("us", "UTC")), ("recorded", pa.timestamp("ns", "UTC")), ("request", text)),
            *(("district", words), ("districts", pa.list_(text)), ("area", words), ("enclave", words)),
            *(("actor", text), ("status", words), ("cause", text), ("trace", text), ("subject", text)),
            *(("stream_seq", pa.int64()), ("leaf_hash", pa.binary(32)), ("data", text), ("leaf", pa.binary())),
        ]
    )


def _moment(time: str) -> Any:
    return datetime.fromisoformat(time) if time else None
