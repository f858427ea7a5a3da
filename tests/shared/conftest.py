"""A bus with the declared streams for every test that asks, on a server of its own."""

import pytest

from shared.bus import Bus
from tests.conftest import Connect


@pytest.fixture
async def bus(connect: Connect) -> Bus:
    """A connection as dispatch."""
    return await connect("dispatch")
