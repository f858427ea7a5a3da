"""How much a district takes in: a token bucket each, so that a flood in one does not slow the others. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from shared.errors import RefusedError


@dataclass(slots=True)
class Bucket:
    """What is left, and when it was last counted (s, any steady clock)."""

    tokens: float
    counted_s: float


class Limits:
    """One bucket per district, filled at `rate_per_s` up to `burst`."""

    def __init__(self, rate_per_s: float, burst: int) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._buckets: dict[str, Bucket] = {}

    def take(self, district: str, now_s: float) -> None:
        """Let one in. Raises RefusedError `too_many` with the seconds after which there is room again."""
        bucket = self._buckets.setdefault(district, Bucket(self._burst, now_s))
        bucket.tokens = min(self._burst, bucket.tokens + (now_s - bucket.counted_s) * self._rate_per_s)
        bucket.counted_s = now_s
        if bucket.tokens < 1:
            raise RefusedError("too_many", retry_after=max(1, ceil((1 - bucket.tokens) / self._rate_per_s)))
        bucket.tokens -= 1
