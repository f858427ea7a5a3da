"""`python -m services.dispatch` runs the desks; `python -m services.dispatch snapshot DISTRICT` writes one snapshot and ends."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import uvloop

from services.dispatch.api import create_app
from services.dispatch.desk import RULES, Desks
from services.dispatch.settings import Settings
from services.dispatch.streaming import LiveTail
from shared import telemetry, web
from shared.auth import Doorkeeper
from shared.bus import Bus
from shared.errors import PaidanError
from shared.turns import recover, write_snapshot


async def run(settings: Settings) -> None:
    """
    Serve until SIGTERM: stop taking, finish the turn, answer, close.

    Raises:
        OSError: the port is taken, or the connection to the bus is closed for good: whoever supervises us starts us anew.
    """
    until = web.stop_on_signals()
    bus = await Bus.connect(settings.nats_url, name="dispatch", seed=settings.seed())
    doorkeeper = Doorkeeper.from_file(settings.jwks_file)
    children: dict[str, subprocess.Popen[bytes]] = {}

    def snapshot(district: str) -> None:
        """In a child process: writing a large state down would hold up the turn."""
        if district not in children or children[district].poll() is not None:
            children[district] = subprocess.Popen([sys.executable, "-m", "services.dispatch", "snapshot", district])

    desks = Desks(
        bus,
        doorkeeper,
        districts=settings.districts,
        instance=f"dispatch-{settings.instance}",
        until=until,
        snapshot=snapshot,
        snapshot_facts=settings.snapshot_facts,
    )
    tail = LiveTail(bus, events=settings.tail_events)
    app = create_app(bus, desks, tail, doorkeeper, until)

    async def stop_when_closed() -> None:
        await bus.closed.wait()
        telemetry.logger().error("bus_closed")
        until.set()

    watching = asyncio.create_task(stop_when_closed())
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(desks.run())
            group.create_task(tail.run(until))
            group.create_task(web.serve(app, settings.http_host, settings.http_port, until=until))
    finally:
        lost = bus.closed.is_set()
        watching.cancel()
        for child in children.values():
            await asyncio.to_thread(child.wait, 20)
        await bus.drain()
    if lost:
        raise OSError("the connection to the bus is closed for good")


async def snapshot_once(settings: Settings, district: str) -> None:
    """Recover from what there is and write down what came of it."""
    bus = await Bus.connect(settings.nats_url, name="dispatch", seed=settings.seed())
    try:
        fold = await recover(bus, RULES, district)
        await write_snapshot(bus, fold)
        telemetry.logger().info("snapshot_written", district=district, folded=fold.folded)
    finally:
        await bus.drain()


def main() -> int:
    """Exit 0 when told to stop, 1 with one line where it cannot start."""
    settings = Settings()
    telemetry.configure("dispatch", settings.instance, format=settings.log_format, level=settings.log_level)
    try:
        if sys.argv[1:2] == ["snapshot"]:
            uvloop.run(snapshot_once(settings, sys.argv[2]))
        else:
            uvloop.run(run(settings))
    except (PaidanError, OSError) as why:
        return _no(why)
    except ExceptionGroup as group:
        known, unknown = group.split((PaidanError, OSError))
        if unknown is not None or known is None:
            raise
        return _no(known.exceptions[0])
    return 0


def _no(why: Exception) -> int:
    print(f"dispatch: {why}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
