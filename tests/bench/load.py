"""
A load generator for POST /v1/requests that costs next to nothing: raw sockets, requests made beforehand, connections kept alive.

`python -m tests.bench.load HOST PORT MANY CONCURRENCY SEED` prints how long it took and what came back, as JSON. Every
request is from another resident, with contact and text, somewhere in one of the bench's areas.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from typing import cast

import uvloop

from tests.bench.ground import AREAS, SIDE, SOUTH, WEST

WITHIN_S = 120
TEXTS = (
    "三楼厨房水管漏水,已经漏到楼下了,麻烦派人来看看",
    "小区西门的路灯坏了三天,晚上老人出门看不见路",
    "楼道里堆了装修垃圾,请安排清运",
    "电动车乱停堵住了消防通道,请处理",
    "广场舞音响太大,孩子没法写作业",
    "独居老人想请人陪诊,后天上午去医院",
)


def request(host: str, n: int, seed: int) -> bytes:
    """The n-th request of this seed, as it goes over the wire."""
    chance = random.Random(f"{seed}/{n}")
    body = {
        "text": TEXTS[n % len(TEXTS)],
        "location": {
            "lon": (WEST + chance.randrange(len(AREAS) * SIDE)) / 1e7,
            "lat": (SOUTH + chance.randrange(1, SIDE)) / 1e7,
            "crs": "WGS84",
        },
        "contact": {"name": "居民", "phone": f"13{chance.randrange(10**9):09d}"},
        "channel": "app",
    }
    data = json.dumps(body, ensure_ascii=False).encode()
    head = (
        f"POST /v1/requests HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Idempotency-Key: bench-{seed}-{n}\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


class Caller(asyncio.Protocol):
    """One connection: sends the next request when the answer to the last has come."""

    def __init__(self, todo: list[bytes], statuses: Counter[str], took_s: list[float], done: asyncio.Event) -> None:
        self._todo = todo
        self._statuses = statuses
        self._took_s = took_s
        self._done = done
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._send()

    def data_received(self, data: bytes) -> None:
        """An answer, or a part of one; uvicorn sends Content-Length for all of ours."""
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        lower = head.lower()
        at = lower.index(b"content-length: ") + 16
        end = lower.find(b"\r\n", at)
        if len(body) < int(lower[at : end if end > 0 else None]):
            return
        self._statuses[head[9:12].decode()] += 1
        self._took_s.append(time.perf_counter() - self._sent)
        self._buffer = b""
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        """The server closed it: what is left is lost and shows in the counts."""
        self._done.set()

    def _send(self) -> None:
        if self._todo:
            self._sent = time.perf_counter()
            self._transport.write(self._todo.pop())
        else:
            self._done.set()


async def drive(host: str, port: int, many: int, concurrency: int, seed: int) -> dict[str, object]:
    """All requests, so many at a time; seconds, statuses, and percentiles of how long each took (ms)."""
    todo = [request(host, n, seed) for n in range(many)]
    statuses: Counter[str] = Counter()
    took_s: list[float] = []
    loop = asyncio.get_running_loop()
    ends = [asyncio.Event() for _ in range(concurrency)]
    began = time.perf_counter()
    for end in ends:
        await loop.create_connection(lambda end=end: Caller(todo, statuses, took_s, end), host, port)  # type: ignore[misc]
    await asyncio.wait_for(asyncio.gather(*(end.wait() for end in ends)), WITHIN_S)
    seconds = time.perf_counter() - began
    took_s.sort()
    ms = {f"p{share}": round(took_s[min(len(took_s) - 1, len(took_s) * share // 100)] * 1000, 1) for share in (50, 99)}
    return {"seconds": seconds, "statuses": statuses, "ms": ms}


def main() -> None:
    """Print what came of it."""
    host, port, many, concurrency, seed = sys.argv[1], *map(int, sys.argv[2:6])
    print(json.dumps(uvloop.run(drive(host, port, many, concurrency, seed))))


if __name__ == "__main__":
    main()
