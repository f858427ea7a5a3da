"""One stack for all tests that do not have to break everything: two desks, two doors, and points at which they can be ended."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.system.world import System, running


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    """A running stack with register and members, and two clients that follow the staff stream from the beginning."""
    async with running(tmp_path_factory.mktemp("system"), seed=1, points=True) as system:
        await system.watch("staff, one after the other")
        await system.watch("staff of the second", instance=2)
        yield system
