"""
Outlines (边界) as GeoJSON (RFC 7946), out and in: degrees outside, whole 1e-7 degrees in facts.

A feature says by `area` whose outline it is. Outlines are read into a register document, so that they are checked, previewed and
applied as everything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any

from shapely.geometry.polygon import orient

from services.ledger.register.surveying import shape_of
from shared.errors import RefusedError
from shared.facts import AreaSet, plain
from shared.register import Register

SCALE = 10_000_000
WGS84 = frozenset({"urn:ogc:def:crs:OGC:1.3:CRS84", "urn:ogc:def:crs:EPSG::4326", "EPSG:4326"})


def geojson(register: Register, day: date) -> dict[str, Any]:
    """Every area that stands on a day as a feature, by code, with its four owners; no geometry where it is not drawn."""
    standing = (area for code in sorted(register.areas) if (area := register.area(code, day)))
    return {"type": "FeatureCollection", "features": [_feature(register, area, day) for area in standing]}


def _feature(register: Register, area: AreaSet, day: date) -> dict[str, Any]:
    agreement = register.agreement(area.area, day)
    shape = shape_of(area)
    properties = {
        "area": area.area,
        "title": area.title.zh,
        "title_en": area.title.en,
        "level": area.level,
        "parent": area.parent,
        "valid_from": area.valid_from.isoformat(),
        "located_in": area.located_in,
        "administered_by": area.administered_by,
        "owned_by": area.owned_by,
        "served_by": area.served_by,
        "agreement": agreement.agreement if agreement else None,
        "lead": agreement.lead if agreement else None,
    }
    geometry = None
    if shape is not None:
        turned = orient(shape)  # outer rings against the clock, holes with it
        rings = [turned.exterior, *turned.interiors]
        degrees = [[[lon / SCALE, lat / SCALE] for lon, lat in ring.coords] for ring in rings]
        geometry = {"type": "Polygon", "coordinates": degrees}
    return {"type": "Feature", "properties": properties, "geometry": geometry}


def outlines(register: Register, collection: Any, day: date, since: date | None = None) -> dict[str, Any]:
    """
    The register document that draws these areas: each as it stands, with another outline.

    Args:
        day: which version is taken.
        since: from when the outline holds: a new version; None corrects the version that stands.
    Raises:
        RefusedError: `invalid`; `field` names the feature (`features.3.geometry`).
    """
    if not isinstance(collection, Mapping) or collection.get("type") != "FeatureCollection":
        raise _wrong("type", "须为 GeoJSON 的 FeatureCollection", "must be a GeoJSON FeatureCollection")
    crs = collection.get("crs")
    if crs is not None and not (isinstance(crs, Mapping) and _crs_name(crs) in WGS84):
        raise _wrong("crs", "坐标须为 WGS-84:请先转换", "coordinates must be WGS-84: convert them first")
    features = collection.get("features")
    if not isinstance(features, list) or not features:
        raise _wrong("features", "没有任何要素", "there are no features")
    areas = []
    for n, feature in enumerate(features):
        path = f"features.{n}"
        properties = feature.get("properties") if isinstance(feature, Mapping) else None
        code = properties.get("area") if isinstance(properties, Mapping) else None
        area = register.area(code, since or day) if isinstance(code, str) else None
        if area is None:
            raise _wrong(
                f"{path}.properties.area",
                f"台账在 {since or day} 没有区域 {code}:请先登记该区域",
                f"the register has no area {code} on {since or day}: register it first",
            )
        drawn = {"polygon": _rings(f"{path}.geometry", feature.get("geometry"))}
        areas.append({**plain(area), **({"valid_from": since} if since else {}), **drawn})
    return {"areas": areas}


def _crs_name(crs: Mapping[str, Any]) -> Any:
    properties = crs.get("properties")
    return properties.get("name") if isinstance(properties, Mapping) else None


def _rings(path: str, geometry: Any) -> list[list[tuple[int, int]]]:
    if not isinstance(geometry, Mapping) or geometry.get("type") not in ("Polygon", "MultiPolygon"):
        raise _wrong(path, "须为 Polygon", "must be a Polygon")
    rings = geometry.get("coordinates")
    if geometry["type"] == "MultiPolygon":
        if not isinstance(rings, list) or len(rings) != 1:
            raise _wrong(
                path,
                "一个区域只能是一块:请把各块登记为同一上级的不同区域",
                "an area is of one piece: register each piece as an area of its own, under one parent",
            )
        rings = rings[0]
    if not isinstance(rings, list) or not rings:
        raise _wrong(f"{path}.coordinates", "没有任何环", "there are no rings")
    return [_ring(f"{path}.coordinates.{n}", ring) for n, ring in enumerate(rings)]


def _ring(path: str, ring: Any) -> list[tuple[int, int]]:
    try:
        points = [(round(lon * SCALE), round(lat * SCALE)) for lon, lat, *_ in ring]
    except (TypeError, ValueError, OverflowError):
        raise _wrong(path, "各点须为 [经度, 纬度]", "points are [lon, lat]") from None
    if any(abs(lon) > 180 * SCALE or abs(lat) > 90 * SCALE for lon, lat in points):
        raise _wrong(path, "坐标须为 [经度, 纬度],单位度", "points are [lon, lat] in degrees")
    apart = [one for one, following in zip(points, [*points[1:], None], strict=True) if one != following]
    return apart[:-1] if len(apart) > 1 and apart[0] == apart[-1] else apart  # rounding may have joined two


def _wrong(field: str, zh: str, en: str) -> RefusedError:
    return RefusedError("invalid", field=field, why=f"{field}: {zh}", why_en=f"{field}: {en}")
