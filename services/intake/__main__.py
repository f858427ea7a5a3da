"""`python -m services.intake`: settings, connection, folds, HTTP; then run until told to stop."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

import uvloop
from pydantic import ValidationError

from services.intake.running import bring_up
from services.intake.settings import Settings
from shared import telemetry
from shared.bus import Bus
from shared.errors import UnavailableError
from shared.serving import collect_seldom, serve, stop_on_signals


async def run(settings: Settings) -> None:
    """One instance, until SIGTERM or SIGINT: then what is under way is finished and answered."""
    stop = stop_on_signals()
    log = telemetry.logger()
    bus = await Bus.connect(settings.nats_url, name="intake", seed=settings.seed(), ca_file=settings.nats_ca_file)
    try:
        intake = bring_up(bus, settings)
        await intake.listen(bus)
        following = asyncio.create_task(intake.following.run())
        tidying = [asyncio.create_task(intake.sweeper.run()), asyncio.create_task(intake.retention.run())]
        lost = asyncio.create_task(bus.closed.wait())
        for end in (following, lost):
            end.add_done_callback(lambda _: stop.set())
        log.info("intake_started", port=settings.http_port)
        try:
            await serve(intake.app, settings, until=stop)
        finally:
            failed = following.done()
            for task in (following, lost, *tidying):
                task.cancel()
            with suppress(asyncio.CancelledError):
                await following
        if failed or bus.closed.is_set():
            raise UnavailableError("the connection to the bus has ended")
        log.info("intake_stopped")
    finally:
        await bus.drain()


def main() -> None:
    """Start; what keeps it from starting is one line on standard error."""
    try:
        settings = Settings()
    except ValidationError as why:
        first = why.errors(include_url=False, include_input=False)[0]
        sys.exit(f"intake: PAIDAN_{'.'.join(map(str, first['loc'])).upper()}: {first['msg']}")
    collect_seldom()
    telemetry.configure("intake", settings.instance, format=settings.log_format, level=settings.log_level)
    try:
        uvloop.run(run(settings))
    except (OSError, ValueError, UnavailableError) as why:
        sys.exit(f"intake: {why}")


if __name__ == "__main__":
    main()
