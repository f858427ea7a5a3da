"""`python -m services.dispatch` runs the desks; `python -m services.dispatch snapshot DISTRICT` writes one snapshot and ends."""

from __future__ import annotations

import asyncio
import sys

import uvloop

from services.dispatch.api import create_app
from services.dispatch.catching_up import CatchingUp
from services.dispatch.desk import RULES, Desks
from services.dispatch.settings import Settings
from services.dispatch.streaming import LiveTail
from shared import serving, telemetry
from shared.auth import Doorkeeper
from shared.bus import Bus
from shared.errors import PaidanError
from shared.snapshots import Snapshots, asked, write


async def run(settings: Settings) -> None:
    """
    Serve until SIGTERM: stop taking, finish the turn, answer, close.

    Raises:
        OSError: the port is taken, or the connection to the bus is closed for good: whoever supervises us starts us anew.
    """
    until = serving.stop_on_signals()
    bus = await Bus.connect(settings.nats_url, name="dispatch", seed=settings.seed(), ca_file=settings.nats_ca_file)
    doorkeeper = Doorkeeper.of(settings)
    snapshots = Snapshots("dispatch")
    desks = Desks(
        bus,
        doorkeeper,
        districts=settings.districts,
        instance=f"dispatch-{settings.instance}",
        until=until,
        snapshot=snapshots.begin,
        snapshot_facts=settings.snapshot_facts,
    )
    tail = LiveTail(bus, events=settings.tail_events, clients=settings.stream_clients, shares=desks.shares)
    app = create_app(bus, desks, tail, doorkeeper, until)
    async with serving.connected(bus, until):
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(desks.run())
                group.create_task(tail.run(until))
                group.create_task(CatchingUp(bus, desks, tail, doorkeeper).run(until))
                group.create_task(serving.serve(app, settings, until=until))
        finally:
            await snapshots.end()


def main() -> int:
    """Exit 0 when told to stop, 1 with one line where it cannot start."""
    settings = Settings()
    serving.collect_seldom()
    telemetry.configure("dispatch", settings.instance, format=settings.log_format, level=settings.log_level)
    try:
        if district := asked(sys.argv[1:]):
            uvloop.run(write(settings, RULES, district))
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
