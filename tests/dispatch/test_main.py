"""The process: it serves until it is told to stop, or cannot go on."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from deploy.identities import Identities
from deploy.servers import NatsServer
from services.dispatch import __main__ as main
from services.dispatch.settings import Settings
from shared.bus import Bus
from tests.conftest import Connect


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


async def test_it_ends_when_the_connection_is_closed_for_good(
    fresh_nats: NatsServer, identities: Identities, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it would look alive for ever; its supervisor can start it anew only when it ends."""
    bus = await connect("dispatch")

    async def connected(*_: Any, **__: Any) -> Bus:
        return bus

    monkeypatch.setattr(Bus, "connect", connected)
    seed = tmp_path / "seed"
    seed.write_text(identities.seed("dispatch"))
    settings = Settings.model_validate(
        {
            "NATS_URL": fresh_nats.url,
            "nats_seed_file": seed,
            "jwks_file": identities.jwks_file,
            "http_port": free_port(),
        }
    )
    running = asyncio.create_task(main.run(settings))
    await asyncio.sleep(0.5)
    assert not running.done()
    bus.closed.set()
    with pytest.raises(OSError, match="closed for good"):
        await asyncio.wait_for(running, 20)
