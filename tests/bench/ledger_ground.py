"""What the ledger's benchmarks share: a bus with everything that the four services say of many requests, and the log made of it."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pymongo

from deploy.servers import DATABASE, MongoServer, NatsServer, free_port
from services.ledger.log.checkpoints import Keys
from services.ledger.log.notes import Verifier
from services.ledger.store import Store
from shared.bus import BATCH_MAX, Bus, Message
from tests.bench.harness import Workshop, end, start_python, until
from tests.bench.history import everything

FACTS_PER_REQUEST = 7.6
WITHIN_S = 900.0


@dataclass(frozen=True)
class Told:
    """A stream that holds so many facts, the admin's connection to it, and how many bytes they are."""

    server: NatsServer
    bus: Bus
    facts: int
    bytes: int


async def told(workshop: Workshop) -> Told:
    """The stream of this run: `Workshop.facts` of them, more or less."""

    async def make() -> Told:
        server, bus = await workshop.closing.enter_async_context(workshop.bus_server("told"))
        many, size = 0, 0
        requests = round(workshop.size(workshop.facts, 3_000) / FACTS_PER_REQUEST)
        said = (Message(one.subject, one.encode()) for one in everything(requests))
        while batch := list(islice(said, BATCH_MAX)):
            await bus.commit(batch, timeout_s=30)
            many += len(batch)
            size += sum(len(message.data) for message in batch)
        workshop.say(f"filled a stream: {many} facts, {size / many:.0f} bytes each")
        return Told(server, bus, many, size)

    found = await workshop.once("told", make)
    assert isinstance(found, Told)
    return found


@dataclass(frozen=True)
class Kept:
    """
    A log of that stream in MongoDB, signed to its end; nobody writes any more.

    Attributes:
        verifier: the log's public key.
    """

    mongod: MongoServer
    origin: str
    leaves: int
    verifier: Verifier

    @asynccontextmanager
    async def store(self) -> AsyncIterator[Store]:
        """The ledger's store, as the auditor."""
        store = Store.connect(self.mongod.auditor_uri, DATABASE)
        try:
            yield store
        finally:
            store.close()


async def kept(workshop: Workshop) -> Kept:
    """The log of this run."""

    async def make() -> Kept:
        stream, name = await told(workshop), "kept"
        mongod = workshop.closing.enter_context(MongoServer(workshop.folder / name, workshop.identities, cache_gb=1))
        process = start_ledger(workshop, name, stream.server.url, mongod.uri)
        with pymongo.MongoClient[dict[str, Any]](mongod.admin_uri) as mongo:
            database = mongo[DATABASE]

            async def signed() -> bool:
                require_alive(workshop, name, process)
                checkpoint = database["checkpoints"].find_one({}, {"_id": 1}, sort=[("_id", -1)])
                state = database["proj_state"].find_one({"_id": "cases"})
                return bool(checkpoint and state and min(checkpoint["_id"], state["position"]) >= stream.facts)

            try:
                await until("the log is signed", signed, WITHIN_S, 0.2)
            finally:
                end(process)
            leaves = database["events"].estimated_document_count()
        origin = origin_of(name)
        key = Keys(origin, workshop.identities.secrets_dir("ledger") / "ledger_signing_key").current
        assert key
        workshop.say(f"a log of {leaves} leaves is in MongoDB, and signed")
        return Kept(mongod, origin, leaves, key.verifier)

    found = await workshop.once("kept", make)
    assert isinstance(found, Kept)
    return found


def origin_of(name: str) -> str:
    """The log that the ledger of this name writes."""
    return f"bench.local/{name}/1"


def start_ledger(
    workshop: Workshop, name: str, nats_url: str, mongo_uri: str, port: int | None = None
) -> subprocess.Popen[bytes]:
    """The ledger as the stack runs it, writing a log of its own; what it says goes to `<name>.log`."""
    identities = workshop.identities
    environment = {
        "NATS_URL": nats_url,
        "MONGODB_URI": mongo_uri,
        "PAIDAN_ORIGIN": origin_of(name),
        "PAIDAN_NATS_SEED_FILE": str(identities.seed_file("ledger")),
        "PAIDAN_SECRETS_DIR": str(identities.secrets_dir("ledger")),
        "PAIDAN_HTTP_PORT": str(port or free_port()),
        "PAIDAN_JWKS_FILE": str(identities.jwks_file),
        "PAIDAN_LOG_FORMAT": "json",
    }
    return start_python("-m", "services.ledger", log=workshop.folder / f"{name}.log", environment=environment)


def require_alive(workshop: Workshop, name: str, process: subprocess.Popen[bytes]) -> None:
    """Raises RuntimeError with its last words where it has ended."""
    if process.poll() is not None:
        raise RuntimeError((workshop.folder / f"{name}.log").read_text()[-2000:])
