"""A table that somebody was given, held against the checkpoint in it: whether it is all there, and whether it is the log."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from services.ledger.exporting.as_csv import BOM, COLUMNS, END
from services.ledger.log.notes import Checkpoint, Note
from services.ledger.log.tree import Edge, leaf_hash
from shared.errors import PaidanError


class CutShortError(PaidanError):
    """A table without its end, or with another number of leaves than it says."""


@dataclass(frozen=True, slots=True)
class Checked:
    """
    What a table says of itself, and what its leaves come to.

    Attributes:
        root: over the leaves of the whole log; None where the table is a part of it.
        signed: the root of the checkpoint in it (whose signature is `paidan ledger verify`'s to check); None where it has none.
    """

    about: dict[str, Any]
    root: bytes | None
    signed: bytes | None

    @property
    def proved(self) -> bool | None:
        """Whether these are the leaves that were signed; None where that cannot be told from this table."""
        return None if self.root is None or self.signed is None else self.root == self.signed


def checked(file: Path, format: str) -> Checked:
    """
    Read a CSV or Parquet export to its end.

    Raises:
        CutShortError: it is not whole.
    """
    try:
        about, edge = _parquet(file) if format == "parquet" else _csv(file)
    except (ValueError, OSError, csv.Error) as why:
        raise CutShortError(f"{file.name} cannot be read to its end: {why}") from why
    if about["counts"]["leaves"] != edge.size:
        raise CutShortError(f"{file.name} has {edge.size} leaves of {about['counts']['leaves']}")
    note = about["checkpoint"]
    root = edge.root() if edge.size == about["size"] and not about["filter"] and not about["withheld"] else None
    return Checked(about, root, Checkpoint.parse(Note.parse(note).body).root if note else None)


def _csv(file: Path) -> tuple[dict[str, Any], Edge]:
    with file.open(newline="", encoding="utf-8") as text:
        rows = csv.reader(text)
        if next(rows, [""])[0] != f"{BOM}{COLUMNS[0]}":
            raise CutShortError(f"{file.name} does not begin as an export does")
        edge, at = Edge(), COLUMNS.index("leaf_hash")
        for cells in rows:
            if cells[0] == END:
                return orjson.loads(cells[1]), edge
            edge.append(bytes.fromhex(cells[at]))
    raise CutShortError(f"{file.name} has no last row")


def _parquet(file: Path) -> tuple[dict[str, Any], Edge]:
    import pyarrow.parquet as pq

    def leaves() -> Iterator[bytes]:
        for batch in table.iter_batches(columns=["leaf"]):
            yield from map(leaf_hash, batch.column(0).to_pylist())

    edge = Edge()
    with pq.ParquetFile(file) as table:
        about: dict[str, Any] = orjson.loads(table.metadata.metadata[b"paidan"])
        edge.extend(leaves())
    return about, edge
