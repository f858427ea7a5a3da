"""A bus with the declared streams for every test that asks, on a server of its own."""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from deploy.identities import Identities
from deploy.servers import NatsServer
from shared import streams
from shared.bus import Bus

Connect = Callable[[str], Awaitable[Bus]]


@pytest.fixture
async def connect(fresh_nats: NatsServer, identities: Identities) -> AsyncIterator[Connect]:
    """Connections by name to a server with the declared streams."""
    opened: list[Bus] = []

    async def connect(name: str) -> Bus:
        opened.append(await Bus.connect(fresh_nats.url, name=name, seed=identities.seed(name)))
        return opened[-1]

    await streams.apply(await connect("admin"))
    yield connect
    for bus in opened:
        await bus.drain()


@pytest.fixture
async def bus(connect: Connect) -> Bus:
    """A connection as dispatch."""
    return await connect("dispatch")
