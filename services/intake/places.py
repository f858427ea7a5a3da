"""Where a request belongs: by coordinates, by the words of an address, or by an area's code. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import shapely

from services.intake.coordinates import to_wgs84
from services.intake.model import Location
from services.intake.words import Found, Words
from shared.errors import RefusedError
from shared.facts import AreaSet, Point
from shared.register import Register


@dataclass(frozen=True, slots=True)
class Place:
    """An area as it stands today, which rule found it, and the exact point where one was given."""

    area: AreaSet
    rule: Literal["polygon", "gazetteer", "code"]
    point: Point | None


def standing(register: Register, now: datetime) -> tuple[AreaSet, ...]:
    """Every area as it stands on the local day of the district it lies in; those not yet valid are left out."""
    areas = []
    for code, versions in register.areas.items():
        if versions and (area := register.area(code, register.today(versions[-1].located_in, now))):
            areas.append(area)
    return tuple(sorted(areas, key=lambda area: area.area))


def _shape(area: AreaSet) -> shapely.Polygon | None:
    """The area on the ground; none where its rings are not sound, so that one area cannot spoil the search for all."""
    with suppress(shapely.errors.ShapelyError, ValueError):
        if area.polygon and (shape := shapely.Polygon(area.polygon[0], area.polygon[1:])).is_valid:
            return shape
    return None


class Places:
    """The areas of one day, ready to be searched."""

    def __init__(self, areas: Sequence[AreaSet]) -> None:
        self.areas = tuple(areas)
        self._by_code = {area.area: area for area in areas}
        self._words = Words(Found(area.area, word) for area in areas for word in area.words)
        drawn = [(area, shape) for area in areas if (shape := _shape(area))]
        self._drawn = [area for area, _ in drawn]
        sound = {area.area for area in self._drawn}
        self.unsound = [area.area for area in areas if area.polygon and area.area not in sound]
        """Areas whose rings cross, or are too short: found by code and words only."""
        shapes = [shape for _, shape in drawn]
        shapely.prepare(shapes)
        self._sizes = [shape.area for shape in shapes]
        self._tree = shapely.STRtree(shapes)

    def locate(self, location: Location | None) -> Place:
        """
        The area of a location. A code is explicit and wins; then coordinates; then the address.

        Raises:
            RefusedError: `no_location`, `unknown_area`, or `outside`: coordinates that lie in no area are not overruled by
                an address, because one of the two is wrong.
        """
        if location is None:
            raise RefusedError("no_location", field="location")
        point = None
        if location.lon is not None and location.lat is not None:
            lon, lat = to_wgs84(location.lon, location.lat, location.crs)
            point = Point(lon=round(lon * 1e7), lat=round(lat * 1e7))
        if location.area is not None:
            area = self._by_code.get(location.area)
            if area is None:
                raise RefusedError("unknown_area", field="location.area", what=location.area)
            return Place(area, "code", point)
        if point is not None:
            area = self.at(point)
            if area is None:
                raise RefusedError("outside", field="location")
            return Place(area, "polygon", point)
        if location.address is None:
            raise RefusedError("no_location", field="location")
        area = self.named(location.address)
        if area is None:
            # The address itself is not repeated: problems end up in other people's logs.
            raise RefusedError("unknown_area", field="location.address", what="该地址", what_en="this address")
        return Place(area, "gazetteer", None)

    def at(self, point: Point) -> AreaSet | None:
        """The smallest area around a point: an enclave wins over what surrounds it, a grid over its community."""
        found = self._tree.query(shapely.points(point.lon, point.lat), predicate="intersects")
        if len(found) == 0:
            return None
        return self._drawn[min(found, key=lambda n: (self._sizes[n], self._drawn[n].area))]

    def named(self, address: str) -> AreaSet | None:
        """The area with the longest word of all that occur in an address."""
        found = self._words.longest(address)
        return self._by_code[found.code] if found else None
