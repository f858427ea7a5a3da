"""The bus is kept to the register, and costs it no more connections than two."""

import pytest

from deploy import keeping
from shared.bus import Bus
from shared.errors import UnavailableError
from tests.conftest import Connect


async def test_half_a_pair_of_connections_is_given_back(connect: Connect) -> None:
    opened: list[Bus] = []

    async def without_sys(name: str) -> Bus:
        if name == "sys":
            raise UnavailableError("not yet")
        opened.append(await connect(name))
        return opened[-1]

    with pytest.raises(UnavailableError):
        await keeping.both(without_sys)
    assert [bus.connected for bus in opened] == [False]
    admin, sys = await keeping.both(connect)
    assert admin.connected
    assert sys.connected
