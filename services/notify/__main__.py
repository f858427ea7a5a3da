"""`python -m services.notify` tells people; `python -m services.notify snapshot DISTRICT` writes one snapshot and ends."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import uvloop

from services.notify.api import Answering, create_app
from services.notify.channels import Channels
from services.notify.contacts import Contacts
from services.notify.inbound import webhooks
from services.notify.offices import Offices
from services.notify.replying import Replies
from services.notify.rules import RULES
from services.notify.settings import Settings
from services.notify.wording import Wording
from shared import serving
from shared.auth import Doorkeeper
from shared.bus import Bus
from shared.errors import PaidanError
from shared.snapshots import Snapshots, asked, write
from shared.telemetry import configure


async def run(settings: Settings) -> None:
    """
    Serve until SIGTERM: stop sending, report, commit, close.

    Raises:
        OSError, ValueError, UnavailableError: it cannot start, or the bus is gone for good.
    """
    until = serving.stop_on_signals()
    replying, hooks = settings.replies(), webhooks(settings.inbound_file)
    wording = Wording.open(
        settings.public_url,
        settings.templates_dir,
        resident_url=settings.resident_url,
        reply_url=settings.reply_url,
        codes=replying[0] if replying else None,
    )
    channels = Channels(settings.channel_urls(), caps=settings.channel_caps(), senders=settings.senders)
    doorkeeper = Doorkeeper.of(settings)
    bus = await Bus.connect(settings.nats_url, name="notify", seed=settings.seed(), ca_file=settings.nats_ca_file)
    snapshots = Snapshots("notify")
    offices = Offices(bus, f"notify-{settings.instance}", Contacts(bus), channels, wording, snapshot=snapshots.begin)
    offices.follow(settings.fixed_districts())

    async def ready() -> Mapping[str, str]:
        return {"stopping": "SIGTERM"} if until.is_set() else offices.missing()

    async with serving.connected(bus, until):
        try:
            replies = Replies(bus, *replying, offices.posts) if replying else None
            app = create_app(offices, Answering(replies, wording, hooks), ready=ready, doorkeeper=doorkeeper)
            await serving.serve(app, settings, until=until)
        finally:
            await offices.close()
            await snapshots.end()


def main() -> int:
    """Exit 0 when told to stop, 1 with one line where it cannot start."""
    try:
        settings = Settings()
        serving.collect_seldom()
        configure("notify", settings.instance, format=settings.log_format, level=settings.log_level)
        if district := asked(sys.argv[1:]):
            uvloop.run(write(settings, RULES, district))
        else:
            uvloop.run(run(settings))
    except (PaidanError, OSError, ValueError) as why:
        print(f"notify: {why}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
