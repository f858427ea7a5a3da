"""
Surveying (核边界): what the areas of one day say beside each other, on the ground and on paper. Pure.

Areas of one level, or of one parent, should not overlap; together they should fill what they are parts of, and not stand out of it.
Whoever serves what another runs does so by an agreement. None of this is refused: borders are drawn by many hands, and while they
are mended requests go to the smallest area around a point. It is found and shown instead.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from math import cos, radians
from typing import Any, Literal

import shapely

from shared.facts import AgreementSet, AreaSet, Fact
from shared.register import Register

SLIVER_M2 = 1.0
"""Less is what rounding to 1e-7 degrees (1 cm) leaves along a border."""
DAYS_MAX = 12
"""Of one document: on so many days at most, the latest, is looked at what it brings."""

What = Literal["overlap", "gap", "outside", "undrawn", "unsound", "outlived", "unagreed"]
SAID: Mapping[What, tuple[str, str]] = {
    "overlap": ("{0} 与 {1} 重叠 {m2} 平方米", "{0} and {1} overlap by {m2} m²"),
    "gap": ("{0} 内有 {m2} 平方米不属任何区域", "{m2} m² of {0} are in no area"),
    "outside": ("{0} 有 {m2} 平方米超出其上级 {1}", "{m2} m² of {0} lie outside {1}, which it is part of"),
    "undrawn": ("{0} 及其下级均无边界:只能按代码或地址找到", "{0} has no outline, nor has any part of it: found by code and words only"),
    "unsound": ("{0} 的边界不成形:只能按代码或地址找到", "the outline of {0} is not sound: found by code and words only"),
    "outlived": ("{0} 由 {1} 服务,但协议已不在有效期:请续签,或登记新的服务方", "{0} is served by {1} though no agreement is in force any more: agree anew, or say who serves it from now on"),
    "unagreed": ("{0} 由 {1} 服务,但没有协议", "{0} is served by {1}, and no agreement says so"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """
    One thing that does not fit.

    Attributes:
        areas: whom it is about; of `outlived` and `unagreed` the area and who serves it.
        m2: square metres, rounded.
        at: a point inside its largest part, [lon, lat] in 1e-7 degrees.
    """

    what: What
    areas: tuple[str, ...]
    m2: int = 0
    at: tuple[int, int] | None = None

    def told(self) -> dict[str, Any]:
        """As people and programs hear it."""
        zh, en = (text.format(*self.areas, m2=self.m2) for text in SAID[self.what])
        where = {"square_metres": self.m2, "at": list(self.at)} if self.at else {}
        return {"finding": self.what, "areas": list(self.areas), **where, "said": zh, "said_en": en}


def survey(register: Register, day: date, about: Collection[str] | None = None) -> list[Finding]:
    """
    What does not fit on a day, by kind and area.

    Args:
        about: only what has to do with these areas; None: everything.
    """
    standing = [area for code in sorted(register.areas) if (area := register.area(code, day))]
    ground = _Ground(standing, None if about is None else {*about})
    return [
        *ground.overlaps(),
        *ground.gaps(),
        *ground.outside(),
        *ground.undrawn(),
        *_on_paper(register, ground.asked(standing), day),
    ]


def brought(before: Register, after: Register, facts: Sequence[Fact]) -> list[tuple[date, Finding]]:
    """What would no longer fit once these facts are in the register, and from which day on; the days that they name are looked at."""
    areas = {fact.area for fact in facts if isinstance(fact, AreaSet | AgreementSet)}
    areas |= {each.parent for code in areas for each in before.areas.get(code, ()) if each.parent}  # what it has left
    days = {fact.valid_from for fact in facts if isinstance(fact, AreaSet | AgreementSet)}
    days |= {fact.valid_to + timedelta(days=1) for fact in facts if isinstance(fact, AgreementSet) and fact.valid_to}
    found: dict[Finding, date] = {}
    for day in sorted(days)[-DAYS_MAX:]:
        known = set(survey(before, day, areas))
        for finding in survey(after, day, areas):
            was = before.area(finding.areas[0], day)
            if finding in known or finding.what == "unagreed" or (finding.what == "undrawn" and was is None):
                continue  # what is new may be drawn later; what had been drawn would be found no more
            found.setdefault(finding, day)
    return [(day, finding) for finding, day in found.items()]


def shape_of(area: AreaSet) -> shapely.Polygon | None:
    """The area on the ground, in 1e-7 degrees; None where it is not drawn, or its rings are not sound."""
    if not area.polygon or any(len(set(ring)) < 3 for ring in area.polygon):
        return None
    shape = shapely.Polygon(area.polygon[0], area.polygon[1:])
    return shape if shape.is_valid else None


class _Ground:
    """The areas of one day, drawn."""

    def __init__(self, standing: Sequence[AreaSet], about: set[str] | None) -> None:
        self._areas = {area.area: area for area in standing}
        self._about = about
        shapes = {area.area: shape for area in standing if (shape := shape_of(area))}
        self._shapes = shapes
        self._drawn = [*shapes]
        self._tree = shapely.STRtree([*shapes.values()])
        self._parts: dict[str, list[str]] = {}
        for area in standing:
            if area.parent is not None:
                self._parts.setdefault(area.parent, []).append(area.area)

    def asked(self, areas: Iterable[AreaSet]) -> Iterator[AreaSet]:
        """Those among them that somebody asks about."""
        return (area for area in areas if self._about is None or area.area in self._about)

    def overlaps(self) -> Iterator[Finding]:
        """Pairs of one level, or of one parent, that share ground."""
        asked = [n for n, code in enumerate(self._drawn) if self._about is None or code in self._about]
        if not asked:
            return
        ones, others = self._tree.query([self._shapes[self._drawn[n]] for n in asked], predicate="intersects")
        pairs = {
            (min(asked[one], other), max(asked[one], other))
            for one, other in zip(ones.tolist(), others.tolist(), strict=True)
            if asked[one] != other and self._beside(self._drawn[asked[one]], self._drawn[other])
        }
        ordered = sorted(pairs)
        first = [self._shapes[self._drawn[one]] for one, _ in ordered]
        second = [self._shapes[self._drawn[other]] for _, other in ordered]
        shared = shapely.intersection(first, second)
        for n in shapely.area(shared).nonzero()[0]:  # neighbours share a line
            one, other = ordered[n]
            yield from _found("overlap", (self._drawn[one], self._drawn[other]), shared[n])

    def gaps(self) -> Iterator[Finding]:
        """Parents of which something is drawn, where the parts leave ground that is nobody's."""
        for code in sorted(self._parts):
            if not self._concerns(code, *self._parts[code]) or code not in self._areas:
                continue
            parts = [self._shapes[part] for part in self._parts[code] if part in self._shapes]
            if not parts:
                continue
            whole = self._shapes.get(code) or _filled(shapely.union_all(parts))
            around = {code, *self._above(code)}
            inside = [n for n in self._tree.query(whole, predicate="intersects") if self._drawn[n] not in around]
            left = shapely.difference(whole, shapely.union_all([self._shapes[self._drawn[n]] for n in inside]))
            yield from _found("gap", (code,), left)

    def outside(self) -> Iterator[Finding]:
        """Areas that stand out of the nearest one above them that is drawn; an enclave lies elsewhere by its nature."""
        for code, shape in self._shapes.items():
            above = next((above for above in self._above(code) if above in self._shapes), None)
            if above is None or not self._concerns(code, above):
                continue
            if self._areas[code].located_in == self._areas[above].located_in:
                around = self._shapes[above]
                if not shapely.covers(around, shape):
                    yield from _found("outside", (code, above), shapely.difference(shape, around))

    def undrawn(self) -> Iterator[Finding]:
        """Areas that no point leads to."""
        leading = {above for code in self._shapes for above in (code, *self._above(code))}
        for area in self.asked(self._areas.values()):
            if area.polygon and area.area not in self._shapes:
                yield Finding("unsound", (area.area,))
            elif area.area not in leading:
                yield Finding("undrawn", (area.area,))

    def _beside(self, one: str, other: str) -> bool:
        a, b = self._areas[one], self._areas[other]
        return a.level == b.level or (a.parent is not None and a.parent == b.parent)

    def _concerns(self, *codes: str) -> bool:
        return self._about is None or not self._about.isdisjoint(codes)

    def _above(self, code: str) -> Iterator[str]:
        """What an area is part of, the nearest first; ends where something lies in itself."""
        seen = {code}
        above = self._areas[code].parent
        while above is not None and above in self._areas and above not in seen:
            yield above
            seen.add(above)
            above = self._areas[above].parent


def _on_paper(register: Register, areas: Iterable[AreaSet], day: date) -> Iterator[Finding]:
    for area in areas:
        if area.served_by in (area.administered_by, area.located_in) or register.agreement(area.area, day):
            continue
        agreed = any(agreement.valid_from <= day for agreement in register.agreed(area.area))
        yield Finding("outlived" if agreed else "unagreed", (area.area, area.served_by))


def _found(what: What, areas: tuple[str, ...], shape: Any) -> Iterator[Finding]:
    """What there is of a shape, in all and where its largest part is; nothing where all of it is rounding."""
    parts = [part for part in shapely.get_parts(shape) if part.area > 0]
    if not parts:
        return
    largest = max(parts, key=lambda part: part.area)
    inside = largest.point_on_surface()
    metres = sum(part.area for part in parts) * _m2(inside.y)
    if metres >= SLIVER_M2:
        yield Finding(what, areas, round(metres), (round(inside.x), round(inside.y)))


def _m2(lat: float) -> float:
    """Square metres of one (1e-7 degree)² on the WGS-84 ellipsoid."""
    phi = radians(lat * 1e-7)
    north = 111_132.92 - 559.82 * cos(2 * phi) + 1.175 * cos(4 * phi)
    east = 111_412.84 * cos(phi) - 93.5 * cos(3 * phi)
    return north * east * 1e-14


def _filled(shape: Any) -> Any:
    """The same without its holes."""
    return shapely.union_all([shapely.Polygon(part.exterior) for part in shapely.get_parts(shape)])
