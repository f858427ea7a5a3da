"""Whether an open request is probably about the same matter: near, recent, and the same item. Pure, in memory."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import islice
from math import cos, hypot, radians
from typing import TypeVar

from shared.facts import ItemSet, Point

Key = TypeVar("Key", bound=Hashable)

CELL = 5_000
"""The side of a cell, in 1e-7 degrees: 55 m to the north."""
METRES_PER_UNIT = 0.011_119_5
"""One 1e-7 degree of latitude, on a sphere of 6,371 km."""
MATTERS_MAX = 100_000
LOOKED_AT_MAX = 8
"""So many of a cell or an area, the most recent ones, are compared: a burst at one place must not make each one slower."""


@dataclass(frozen=True, slots=True)
class Matter:
    """An open request, as far as it takes to recognise another one about the same thing; `at_s` since 1970."""

    request_id: str
    item: str
    area: str
    point: Point | None
    at_s: float


class Matters:
    """
    The open requests of the largest window that any item looks back, found by item and cell, or by item and area.

    It only proposes: what it has forgotten, or not yet heard of, is a link that is missing, never a request.
    """

    def __init__(self, at_most: int = MATTERS_MAX) -> None:
        self._at_most = at_most
        self._open: dict[str, Matter] = {}
        self._by_cell: dict[tuple[str, int, int], dict[str, Matter]] = {}
        self._by_area: dict[tuple[str, str], dict[str, Matter]] = {}
        self._pointless: dict[tuple[str, str], dict[str, Matter]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._open

    def add(self, matter: Matter) -> None:
        """Remember an open request; the oldest goes where there are too many. Once is enough."""
        if matter.request_id in self._open:
            return
        self._open[matter.request_id] = matter
        self._by_area.setdefault((matter.item, matter.area), {})[matter.request_id] = matter
        if matter.point is not None:
            self._by_cell.setdefault(_cell(matter.item, matter.point), {})[matter.request_id] = matter
        else:
            self._pointless.setdefault((matter.item, matter.area), {})[matter.request_id] = matter
        if len(self._open) > self._at_most:
            self.close(next(iter(self._open)))

    def close(self, request_id: str) -> None:
        """Forget a request that is over."""
        matter = self._open.pop(request_id, None)
        if matter is None:
            return
        _drop(self._by_area, (matter.item, matter.area), request_id)
        if matter.point is not None:
            _drop(self._by_cell, _cell(matter.item, matter.point), request_id)
        else:
            _drop(self._pointless, (matter.item, matter.area), request_id)

    def forget_before(self, at_s: float) -> None:
        """Forget what is older than every window."""
        while self._open and (oldest := next(iter(self._open.values()))).at_s < at_s:
            self.close(oldest.request_id)

    def same(self, item: ItemSet, area: str, point: Point | None, now_s: float, *, but: str = "") -> str | None:
        """
        The nearest open request for this item within its radius and window, the most recent of equally near ones.

        Where one of the two has no point, the same area counts as just within the radius.

        Args:
            but: the request that asks: nothing is the same matter as itself.
        """
        if item.same_radius_m == 0 or item.same_window_s == 0:
            return None
        since = now_s - item.same_window_s
        radius = item.same_radius_m / METRES_PER_UNIT
        best: tuple[float, float, str] | None = None
        for matter in self._beside(item.item, area, point):
            if matter.at_s >= since and matter.request_id != but and (best is None or -matter.at_s < best[1]):
                best = (radius, -matter.at_s, matter.request_id)
        if point is not None:
            narrow = max(cos(radians(point.lat / 1e7)), 0.01)
            for matter in self._around(item.item, point, radius, narrow):
                assert matter.point is not None
                north = matter.point.lat - point.lat
                if abs(north) > radius or matter.at_s < since or matter.request_id == but:
                    continue
                far = hypot((matter.point.lon - point.lon) * narrow, north)
                if far <= radius:
                    one = (far, -matter.at_s, matter.request_id)
                    best = one if best is None else min(best, one)
        return best[2] if best else None

    def _beside(self, item: str, area: str, point: Point | None) -> Iterator[Matter]:
        """Those of an area that cannot be measured, because one of the two has no point."""
        return _recent((self._by_area if point is None else self._pointless).get((item, area)))

    def _around(self, item: str, point: Point, radius: float, narrow: float) -> Iterator[Matter]:
        up, aside = int(radius) // CELL + 1, int(radius / narrow) // CELL + 1
        _, x, y = _cell(item, point)
        by_cell = self._by_cell
        for column in range(x - aside, x + aside + 1):
            for row in range(y - up, y + up + 1):
                if held := by_cell.get((item, column, row)):
                    yield from _recent(held)


def _recent(held: dict[str, Matter] | None) -> Iterator[Matter]:
    return islice(reversed(held.values()), LOOKED_AT_MAX) if held else iter(())


def _cell(item: str, point: Point) -> tuple[str, int, int]:
    return item, point.lon // CELL, point.lat // CELL


def _drop(index: dict[Key, dict[str, Matter]], key: Key, request_id: str) -> None:
    held = index[key]
    del held[request_id]
    if not held:
        del index[key]
