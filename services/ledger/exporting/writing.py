"""What every format has to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from services.ledger.exporting.reading import Ground, Row

Pass = Literal["leaves", "cases"]


class Writer:
    """
    A format, and one export in it: `head`, then all that it is shown, then `foot`.

    Attributes:
        passes: what it has to be shown, one after the other: leaves in order, or those about requests by request.
        by: the library whose version shows in the bytes.
        written: leaves that are in it so far.
        counts: what else it has counted.
    """

    passes: Sequence[Pass] = ("leaves",)
    by = ""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.written = 0
        self.counts: dict[str, int] = {}

    def head(self, about: Mapping[str, Any], /) -> bytes:
        """How it begins."""
        raise NotImplementedError

    def leaves(self, rows: Sequence[Row], /) -> bytes:
        """More leaves in order."""
        raise NotImplementedError

    def cases(self, rows: Sequence[Row], /) -> bytes:
        """More leaves by request."""
        raise NotImplementedError

    def foot(self, about: Mapping[str, Any], /) -> bytes:
        """How it ends."""
        raise NotImplementedError
