"""The other side of the bare round: pull a request, commit four messages in one fenced batch, publish that it is done."""

from __future__ import annotations

import os

import uvloop

from tests.bench.bare import Pull, commit
from tests.bench.ground import DISTRICT
from tests.bench.harness import bare_connection
from tests.bench.latency import ANSWERS

SUBJECTS = [f"evt.{DISTRICT}.dispatch.bench-1a.task.{name}" for name in ("opened", "explained", "offered")]
MARKER = f"evt.{DISTRICT}.dispatch.-.turn.committed"
BYTES = 700
"""About what a fact of the desk has."""


async def play() -> None:
    """Until SIGTERM."""
    nc = await bare_connection(os.environ["NATS_URL"], os.environ["SEED"], "admin")
    pull = Pull(nc, f"evt.{DISTRICT}.intake.>")
    await pull.open()
    fence = 0
    while True:
        for message in await pull.take(1):
            data = message.data[:BYTES].ljust(BYTES, b".")
            fence = await commit(nc, [(subject, data) for subject in (*SUBJECTS, MARKER)], MARKER, fence)
            await nc.publish(ANSWERS, data)


if __name__ == "__main__":
    uvloop.run(play())
