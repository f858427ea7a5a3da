"""What these tests share: one running stack."""

from collections.abc import Iterator

import pytest

from tests.security.office import Office, running


@pytest.fixture(scope="session")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    """A whole stack with the demo's register and members."""
    with running(tmp_path_factory.mktemp("security") / "data") as office:
        yield office
