"""
Snapshots, written by a child process: writing a large state down would hold up the turn.

The child is the service's own program with the arguments `snapshot DISTRICT`.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from typing import TypeVar

from shared.bus import Bus
from shared.settings import ServiceSettings
from shared.telemetry import logger
from shared.turns import Rules, recover, write_snapshot

ENDS_WITHIN_S = 20.0
S = TypeVar("S")


class Snapshots:
    """The children of one process, one at a time for each district."""

    def __init__(self, service: str) -> None:
        self._program = (sys.executable, "-m", f"services.{service}", "snapshot")
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def begin(self, district: str) -> None:
        """Have one written, unless one is being written."""
        child = self._children.get(district)
        if child is None or child.poll() is not None:
            self._children[district] = subprocess.Popen([*self._program, district])

    async def end(self) -> None:
        """Let those under way end, 20 s at most: one that is cut short costs the next start some time and nothing else."""
        ends = asyncio.get_running_loop().time() + ENDS_WITHIN_S
        for child in self._children.values():
            try:
                await asyncio.to_thread(child.wait, max(0.0, ends - asyncio.get_running_loop().time()))
            except subprocess.TimeoutExpired:
                child.kill()
                await asyncio.to_thread(child.wait)


def asked(arguments: Sequence[str]) -> str | None:
    """The district that the command line `snapshot DISTRICT` names; None where it asks for the service. Raises SystemExit."""
    match arguments:
        case []:
            return None
        case ["snapshot", district]:
            return district
        case _:
            raise SystemExit("arguments: none, or snapshot DISTRICT")


async def write(settings: ServiceSettings, rules: Rules[S], district: str) -> None:
    """
    Recover from what there is and write down what came of it.

    Raises:
        StreamReplacedError, BusError, OSError.
    """
    bus = await Bus.connect(settings.nats_url, name=rules.service, seed=settings.seed(), ca_file=settings.nats_ca_file)
    try:
        fold = await recover(bus, rules, district)
        await write_snapshot(bus, fold)
        logger().info("snapshot_written", district=district, folded=fold.folded)
    finally:
        await bus.drain()
