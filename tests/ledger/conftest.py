"""A bus with streams, a database, and ledgers on them: `bench` holds them together for a test."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from deploy.identities import Identities
from deploy.servers import MongoServer, NatsServer
from services.ledger.log.checkpoints import Keys, Signer
from services.ledger.log.growing import Tree
from services.ledger.log.ingesting import Ingest
from services.ledger.log.leaves import Leaf
from services.ledger.log.recounting import Recount
from services.ledger.projecting import Projector
from services.ledger.store import Selection, Store
from shared import streams
from shared.bus import Bus, Message

ORIGIN = "paidan.test/main/1"
WITHIN_S = 20.0


@dataclass
class Bench:
    """Real servers of one test."""

    nats: NatsServer
    identities: Identities
    mongo: MongoServer
    database: str
    bus: Bus
    admin: Bus
    store: Store
    _running: list[tuple[asyncio.Event, asyncio.Task[None]]] = field(default_factory=list)

    async def publish(self, *messages: tuple[str, bytes]) -> int:
        """Store messages as they are, in one batch; the last one's sequence."""
        return await self.admin.commit([Message(subject, data) for subject, data in messages])

    def ingest(
        self, projector: Projector | None = None, store: Store | None = None, tree: Tree | None = None
    ) -> Ingest:
        """A writer, running until the test ends or `stop`."""

        def stored(batch: Sequence[Leaf]) -> None:
            for follower in (projector, tree):
                if follower:
                    follower.hand(batch)

        ingest = Ingest(self.bus, store or self.store, ORIGIN, stored=stored, scopes=self.recount(store).scopes)
        stop = asyncio.Event()
        self._running.append((stop, asyncio.create_task(ingest.run(stop))))
        return ingest

    def project(self) -> Projector:
        """A projector, running."""
        projector = Projector(self.store)
        stop = asyncio.Event()
        self._running.append((stop, asyncio.create_task(projector.run(stop))))
        return projector

    def tree(self, store: Store | None = None) -> Tree:
        """A tree, growing."""
        tree = Tree(store or self.store, scopes=self.recount(store).scopes)
        stop = asyncio.Event()
        self._running.append((stop, asyncio.create_task(tree.run(stop))))
        return tree

    def recount(self, store: Store | None = None) -> Recount:
        """What both go on from."""
        return Recount(self.bus, store or self.store, Keys(ORIGIN, self.secret))

    @property
    def secret(self) -> Path:
        """The log's key."""
        return self.identities.secrets_dir("ledger") / "ledger_signing_key"

    def signer(self, tree: Tree, bus: Bus | None = None) -> Signer:
        """What signs it, not running."""
        return Signer(bus or self.bus, self.store, tree, Keys(ORIGIN, self.secret))

    async def stop(self) -> None:
        """Stop what runs, in order."""
        while self._running:
            stop, task = self._running.pop(0)
            stop.set()
            await task

    async def leaves(self, many: int) -> list[bytes]:
        """All leaves, once there are so many."""
        async with asyncio.timeout(WITHIN_S):
            while await self.store.size() < many:
                await asyncio.sleep(0.01)
        return [leaf for _, leaf in await self.store.read(Selection(), 0, 2**53, 100_000)]

    async def another_store(self) -> Store:
        """A second connection to the same database."""
        return Store.connect(self.mongo.uri, self.database)


@pytest.fixture
async def bench(
    fresh_nats: NatsServer, identities: Identities, mongo_server: MongoServer, mongo_database: str
) -> AsyncIterator[Bench]:
    admin = await Bus.connect(fresh_nats.url, name="admin", seed=identities.seed("admin"))
    await streams.apply(admin)
    bus = await Bus.connect(fresh_nats.url, name="ledger", seed=identities.seed("ledger"))
    store = Store.connect(mongo_server.uri, mongo_database)
    made = Bench(fresh_nats, identities, mongo_server, mongo_database, bus, admin, store)
    yield made
    await made.stop()
    await bus.drain()
    await admin.drain()
    store.close()
