"""
From what maps in China show to where a place is: GCJ-02 and BD-09 to WGS-84. Pure.

Only the forward transforms are published; the way back is the fixed point of `x = shown - (forward(x) - x)`, which four
rounds bring below a centimetre. Outside the rectangle around China GCJ-02 is WGS-84.
"""

from __future__ import annotations

from collections.abc import Callable
from math import atan2, cos, pi, sin, sqrt
from typing import Literal

Crs = Literal["WGS84", "GCJ02", "BD09"]
Degrees = tuple[float, float]
"""Longitude and latitude."""

AXIS = 6378245.0
ECCENTRICITY_2 = 0.00669342162296594323
BD_PI = pi * 3000.0 / 180.0
ROUNDS_MAX = 12
CLOSE_ENOUGH = 1e-10


def to_wgs84(lon: float, lat: float, crs: Crs) -> Degrees:
    """Where these coordinates are, to within a centimetre of what the forward transform turns back into them."""
    match crs:
        case "WGS84":
            return lon, lat
        case "GCJ02":
            return _undo(gcj02, (lon, lat))
        case "BD09":
            return _undo(gcj02, _undo(bd09, (lon, lat)))


def gcj02(place: Degrees) -> Degrees:
    """WGS-84 as maps in China show it."""
    lon, lat = place
    if not (72.004 <= lon <= 137.8347 and 0.8293 <= lat <= 55.8271):
        return place
    x, y = lon - 105.0, lat - 35.0
    wave = (20.0 * sin(6.0 * x * pi) + 20.0 * sin(2.0 * x * pi)) * 2.0 / 3.0
    north = -100.0 + 2.0 * x + 3.0 * y + 0.2 * y * y + 0.1 * x * y + 0.2 * sqrt(abs(x)) + wave
    north += (20.0 * sin(y * pi) + 40.0 * sin(y / 3.0 * pi)) * 2.0 / 3.0
    north += (160.0 * sin(y / 12.0 * pi) + 320.0 * sin(y * pi / 30.0)) * 2.0 / 3.0
    east = 300.0 + x + 2.0 * y + 0.1 * x * x + 0.1 * x * y + 0.1 * sqrt(abs(x)) + wave
    east += (20.0 * sin(x * pi) + 40.0 * sin(x / 3.0 * pi)) * 2.0 / 3.0
    east += (150.0 * sin(x / 12.0 * pi) + 300.0 * sin(x / 30.0 * pi)) * 2.0 / 3.0
    radians = lat / 180.0 * pi
    flat = 1.0 - ECCENTRICITY_2 * sin(radians) ** 2
    north = north * 180.0 / (AXIS * (1.0 - ECCENTRICITY_2) / (flat * sqrt(flat)) * pi)
    east = east * 180.0 / (AXIS / sqrt(flat) * cos(radians) * pi)
    return lon + east, lat + north


def bd09(place: Degrees) -> Degrees:
    """GCJ-02 as Baidu's maps show it."""
    lon, lat = place
    far = sqrt(lon * lon + lat * lat) + 0.00002 * sin(lat * BD_PI)
    angle = atan2(lat, lon) + 0.000003 * cos(lon * BD_PI)
    return far * cos(angle) + 0.0065, far * sin(angle) + 0.006


def _undo(forward: Callable[[Degrees], Degrees], shown: Degrees) -> Degrees:
    lon, lat = shown
    for _ in range(ROUNDS_MAX):
        again = forward((lon, lat))
        off_lon, off_lat = again[0] - shown[0], again[1] - shown[1]
        lon, lat = lon - off_lon, lat - off_lat
        if abs(off_lon) < CLOSE_ENOUGH and abs(off_lat) < CLOSE_ENOUGH:
            break
    return lon, lat
