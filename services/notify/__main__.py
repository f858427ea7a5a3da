"""`python -m services.notify` tells people; `python -m services.notify snapshot DISTRICT` writes one snapshot and ends."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Mapping

import uvloop

from services.notify.api import create_app
from services.notify.channels import Channels
from services.notify.contacts import Contacts
from services.notify.offices import Offices
from services.notify.rules import RULES
from services.notify.settings import Settings
from services.notify.wording import Wording
from shared import web
from shared.auth import Doorkeeper
from shared.bus import Bus
from shared.errors import PaidanError
from shared.telemetry import configure, logger
from shared.turns import recover, write_snapshot


async def run(settings: Settings) -> None:
    """
    Serve until SIGTERM: stop sending, report, commit, close.

    Raises:
        OSError, ValueError, UnavailableError: it cannot start, or the bus is gone for good.
    """
    until = web.stop_on_signals()
    wording = Wording.open(settings.public_url, settings.templates_dir)
    channels = Channels(settings.channel_urls(), caps=settings.channel_caps(), senders=settings.senders)
    doorkeeper = Doorkeeper.from_file(settings.jwks_file)
    bus = await Bus.connect(settings.nats_url, name="notify", seed=settings.seed())
    children: dict[str, subprocess.Popen[bytes]] = {}

    def snapshot(district: str) -> None:
        """In a child process: writing a large state down would hold up the turn."""
        if district not in children or children[district].poll() is not None:
            children[district] = subprocess.Popen([sys.executable, "-m", "services.notify", "snapshot", district])

    offices = Offices(bus, f"notify-{settings.instance}", Contacts(bus), channels, wording, snapshot=snapshot)
    districts = settings.fixed_districts()
    if districts is None:
        offices.follow_register()
    else:
        for district in districts:
            offices.open(district)

    async def ready() -> Mapping[str, str]:
        return {"stopping": "SIGTERM"} if until.is_set() else offices.missing()

    async def stop_when_closed() -> None:
        await bus.closed.wait()
        logger().error("bus_closed")
        until.set()

    watching = asyncio.create_task(stop_when_closed())
    try:
        app = create_app(offices, ready=ready, doorkeeper=doorkeeper)
        await web.serve(app, settings.http_host, settings.http_port, until=until)
    finally:
        lost = bus.closed.is_set()
        watching.cancel()
        await offices.close()
        for child in children.values():
            await asyncio.to_thread(child.wait, 20)
        await bus.drain()
    if lost:
        raise OSError("the connection to the bus is closed for good")


async def snapshot_once(settings: Settings, district: str) -> None:
    """Recover from what there is and write down what came of it."""
    bus = await Bus.connect(settings.nats_url, name="notify", seed=settings.seed())
    try:
        fold = await recover(bus, RULES, district)
        await write_snapshot(bus, fold)
        logger().info("snapshot_written", district=district, folded=fold.folded)
    finally:
        await bus.drain()


def main() -> int:
    """Exit 0 when told to stop, 1 with one line where it cannot start."""
    try:
        settings = Settings()
        configure("notify", settings.instance, format=settings.log_format, level=settings.log_level)
        if sys.argv[1:2] == ["snapshot"]:
            uvloop.run(snapshot_once(settings, sys.argv[2]))
        else:
            uvloop.run(run(settings))
    except (PaidanError, OSError, ValueError) as why:
        print(f"notify: {why}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
