"""What these tests share: one running stack; and a bus with three offices, which each leaves as it was."""

from collections.abc import Iterator

import pytest

from deploy.identities import Identities
from tests.security.bus_world import World, three_offices
from tests.security.office import Office, running


@pytest.fixture(scope="session")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    """A whole stack with the demo's register and members."""
    with running(tmp_path_factory.mktemp("security") / "data") as office:
        yield office


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, identities: Identities) -> Iterator[World]:
    """One bus, three offices and a gate (0.8 s)."""
    with three_offices(tmp_path_factory.mktemp("world"), identities) as world:
        yield world
