"""The least that many clients of one stream cost: pull the facts, and write the same bytes to every socket."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import cast

import uvloop

from tests.bench.bare import Pull
from tests.bench.harness import bare_connection

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n: bare\n\n"


class Listener(asyncio.Protocol):
    """One client; whatever it asks, it gets everything."""

    def __init__(self, everybody: list[asyncio.Transport]) -> None:
        self._everybody = everybody

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Listened to from now on."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(HEAD)
        self._everybody.append(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Gone."""
        self._everybody.remove(self._transport)


async def play(port: int, after: int) -> None:
    """Until SIGTERM."""
    nc = await bare_connection(os.environ["NATS_URL"], os.environ["SEED"], "admin")
    pull = Pull(nc, "evt.>", after=after)
    await pull.open()
    everybody: list[asyncio.Transport] = []
    await asyncio.get_running_loop().create_server(lambda: Listener(everybody), "127.0.0.1", port)
    while True:
        lines = []
        for message in await pull.take(100):
            tokens, sequence = message.subject.split("."), message.reply.split(".")[5]
            name = f"id: {sequence}\nevent: {tokens[4]}.{tokens[5]}\ndata: ".encode()
            lines.append(name + message.data + b"\n\n")
        chunk = b"".join(lines)
        for transport in everybody:
            transport.write(chunk)
        await asyncio.sleep(0)


if __name__ == "__main__":
    uvloop.run(play(*map(int, sys.argv[1:3])))
