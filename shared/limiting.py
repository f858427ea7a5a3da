"""How much is let in of one kind: a token bucket each, so that a flood of one does not slow the others. Pure."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Network, ip_address
from math import ceil
from typing import Generic, TypeVar

from shared.errors import RefusedError

T = TypeVar("T")


@dataclass(slots=True)
class Bucket:
    """What is left, and when it was last counted (s, any steady clock)."""

    tokens: float
    counted_s: float


class Spacing:
    """
    How long each of a kind has to wait so that they come `apart_s` apart, and none longer than `most_s`.

    Whoever asks again as soon as it is answered is slowed by it; whoever is alone does not wait.
    """

    def __init__(self, apart_s: float, most_s: float) -> None:
        self._apart_s = apart_s
        self._most_s = most_s
        self._free_s: dict[str, float] = {}

    def wait_s(self, whose: str, now_s: float) -> float:
        """How long this one waits, from now."""
        wait_s = min(max(0.0, self._free_s.get(whose, now_s) - now_s), self._most_s)
        self._free_s[whose] = now_s + wait_s + self._apart_s
        return wait_s


class Line(Generic[T]):
    """
    What waits, `apart_s` apart: callers in turn, and of each the oldest first. However much one brings, the others are next.

    What has waited `most_s` is let go, and of one caller no more waits than could be taken by then; what is let go takes nobody's
    turn.
    """

    def __init__(self, apart_s: float, most_s: float) -> None:
        self._apart_s = apart_s
        self._most_s = most_s
        self._waiting: OrderedDict[str, deque[tuple[float, T]]] = OrderedDict()
        self._free_s = 0.0

    def add(self, whose: str, what: T, now_s: float) -> bool:
        """Have it wait. False: too much of this caller does already."""
        theirs = self._waiting.setdefault(whose, deque())
        if len(theirs) * self._apart_s >= self._most_s:
            return False
        theirs.append((now_s, what))
        return True

    def next(self, now_s: float) -> tuple[list[T], T | None]:
        """What is let go, and what is taken: nothing before it is time (`wait_s`)."""
        let_go: list[T] = []
        while self._waiting and now_s >= self._free_s:
            whose, theirs = next(iter(self._waiting.items()))
            since_s, what = theirs.popleft()
            late = now_s - since_s > self._most_s
            if not theirs:
                del self._waiting[whose]
            elif not late:
                self._waiting.move_to_end(whose)
            if not late:
                self._free_s = now_s + self._apart_s
                return let_go, what
            let_go.append(what)
        return let_go, None

    def wait_s(self, now_s: float) -> float | None:
        """After how long the next may be taken; None where nothing waits."""
        return max(0.0, self._free_s - now_s) if self._waiting else None


class Limits:
    """
    One bucket per district, caller or address, filled at `rate_per_s` up to `burst`; full ones are forgotten where there are too many.

    A rate of 0 is no limit.
    """

    def __init__(self, rate_per_s: float, burst: int, *, buckets_max: int = 10_000) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._buckets_max = buckets_max
        self._buckets: dict[str, Bucket] = {}

    def take(self, whose: str, now_s: float) -> None:
        """Let one in. Raises RefusedError `too_many` with the seconds after which there is room again."""
        if self._rate_per_s:
            self._counted(whose, now_s).tokens -= 1

    def look(self, whose: str, now_s: float) -> None:
        """Let one in that may turn out not to count. Raises as `take`."""
        if whose in self._buckets:
            self._counted(whose, now_s)

    def _counted(self, whose: str, now_s: float) -> Bucket:
        bucket = self._buckets.get(whose)
        if bucket is None:
            if len(self._buckets) >= self._buckets_max:
                self._forget(now_s)
            bucket = self._buckets[whose] = Bucket(self._burst, now_s)
        bucket.tokens = self._filled(bucket, now_s)
        bucket.counted_s = now_s
        if bucket.tokens < 1:
            raise RefusedError("too_many", retry_after=max(1, ceil((1 - bucket.tokens) / self._rate_per_s)))
        return bucket

    def _filled(self, bucket: Bucket, now_s: float) -> float:
        return min(self._burst, bucket.tokens + (now_s - bucket.counted_s) * self._rate_per_s)

    def _forget(self, now_s: float) -> None:
        """The full ones, which are as good as new; where none is, the oldest tenth."""
        held = self._buckets
        full = [whose for whose, bucket in held.items() if self._filled(bucket, now_s) >= self._burst]
        for whose in full or list(held)[: self._buckets_max // 10 + 1]:
            del held[whose]


def network(client: tuple[str, int] | None) -> str:
    """Whose requests are counted together: an IPv4 address, or an IPv6 network of which one subscriber has all."""
    return _network(client[0]) if client else ""


@lru_cache(4096)
def _network(host: str) -> str:
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if isinstance(address, IPv4Address):
        return host
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(IPv6Network((int(address) >> 64 << 64, 64)))
