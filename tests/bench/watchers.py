"""
Many clients of the live stream in one process, as cheap as clients can be: a raw socket each, and nothing parsed but what says how far
they are.

`python -m tests.bench.watchers HOST PORT MANY TOKEN last|times` prints `ready` once everybody watches. Then each line of standard
input is a sequence: once everybody has it, it prints when that was and, with `times`, when each event reached each of them.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from typing import cast

import uvloop

WITHIN_S = 120.0
ID = re.compile(rb"(?:\A|\n)id: ([0-9]+)\n")


class Watcher(asyncio.Protocol):
    """One client; `last` is the newest sequence it has, `times` when each came if that is asked for."""

    def __init__(self, ask: bytes, times: dict[int, list[float]] | None) -> None:
        self._ask = ask
        self._times = times
        self._rest = b""
        self.began = False
        self.last = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        cast(asyncio.Transport, transport).write(self._ask)

    def data_received(self, data: bytes) -> None:
        """Some events, whole or in part; only the last of them matters, unless times are kept."""
        self.began = True
        data = self._rest + data
        if self._times is None:
            at = data.rfind(b"\nid: ")
            end = data.find(b"\n", at + 5) if at >= 0 else -1
            if end > 0:
                self.last = int(data[at + 5 : end])
            self._rest = data[-40:]  # the line of the id may be torn; found twice it does no harm
            return
        now, whole = time.time(), data.rfind(b"\n\n")
        self._rest = data[whole + 1 :]
        for found in ID.finditer(data[: whole + 1]):
            self.last = int(found[1])
            self._times.setdefault(self.last, []).append(now)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody should."""
        sys.exit("a connection was closed")


async def watch(host: str, port: int, many: int, token: str, *, keep: bool) -> None:
    """Until standard input ends."""
    loop = asyncio.get_running_loop()
    times: dict[int, list[float]] | None = {} if keep else None
    ask = f"GET /v1/stream HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    watchers = [(await loop.create_connection(lambda: Watcher(ask, times), host, port))[1] for _ in range(many)]
    async with asyncio.timeout(WITHIN_S):
        while not all(watcher.began for watcher in watchers):
            await asyncio.sleep(0.01)
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        async with asyncio.timeout(WITHIN_S):
            while min(watcher.last for watcher in watchers) < int(line):
                await asyncio.sleep(0.002)
        print(json.dumps({"at": time.time(), "times": times or {}}), flush=True)


def main() -> None:
    """Watch."""
    host, port, many, token, keep = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
    uvloop.run(watch(host, port, many, token, keep=keep == "times"))


if __name__ == "__main__":
    main()
