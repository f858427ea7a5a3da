"""
Real servers for every test that asks: a nats-server and a mongod on free ports, in folders that go when the tests end.

    def test_something(nats_server: NatsServer, identities: Identities) -> None:
        connect(nats_server.url, seed=identities.seed("dispatch"))

`nats_server` and `mongo_server` are shared by all tests of a run and start once (0.1 s and 1 s). A test that wants
streams or collections to itself takes `fresh_nats` (a server of its own, 0.1 s; it may be killed and started again) or
`mongo_database` (an empty database on the shared mongod).
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pymongo
import pytest

from deploy.identities import Identities
from deploy.servers import MongoServer, NatsServer
from shared import streams
from shared.bus import Bus

Connect = Callable[[str], Awaitable[Bus]]


@pytest.fixture(scope="session")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    """Keys and secrets of everybody: `seed("admin")`, `secret("intake", "contact_pepper")`, `jwks_file`."""
    return Identities.open(tmp_path_factory.mktemp("identities") / "secrets")


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory, identities: Identities) -> Iterator[NatsServer]:
    """One nats-server for the whole run, with every identity and no stream yet; `.url`. Do not stop it."""
    with NatsServer(tmp_path_factory.mktemp("nats"), identities) as server:
        yield server


@pytest.fixture
def fresh_nats(tmp_path: Path, identities: Identities) -> Iterator[NatsServer]:
    """An empty nats-server of this test's own: `.url`, `.kill()`, `.stop()`, `.start()` (same port, same data)."""
    with NatsServer(tmp_path / "nats", identities) as server:
        yield server


@pytest.fixture(scope="session")
def mongo_server(tmp_path_factory: pytest.TempPathFactory, identities: Identities) -> Iterator[MongoServer]:
    """One mongod for the whole run, a replica set of one with users; `.uri` (ledger), `.admin_uri`. Do not stop it."""
    with MongoServer(tmp_path_factory.mktemp("mongo"), identities) as server:
        yield server


@pytest.fixture
def fresh_mongo(tmp_path: Path, identities: Identities) -> Iterator[MongoServer]:
    """A mongod of this test's own (1.5 s), to be killed and started again."""
    with MongoServer(tmp_path / "mongo", identities) as server:
        yield server


@pytest.fixture
def mongo_database(mongo_server: MongoServer) -> Iterator[str]:
    """
    The name of an empty database on the shared mongod, dropped afterwards with all whose names begin with it. User
    `ledger` (`mongo_server.uri`) may in it what it may in the stack's.
    """
    name = f"test_{uuid4().hex[:12]}"
    mongo_server.permit(name)
    yield name
    with pymongo.MongoClient[dict[str, object]](mongo_server.admin_uri) as client:
        for each in client.list_database_names():
            if each.startswith(name):
                client[each].command("dropAllRolesFromDatabase")
                client.drop_database(each)


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
