"""What the ledger's benchmarks share: a bus with everything that the four services say of many requests, and the ledger's process."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from itertools import islice

from deploy.servers import NatsServer, free_port
from shared.bus import BATCH_MAX, Bus, Message
from tests.bench.harness import Workshop, start_python
from tests.bench.history import everything


@dataclass(frozen=True)
class Told:
    """A stream that holds so many facts, the admin's connection to it, and how many bytes they are."""

    server: NatsServer
    bus: Bus
    facts: int
    bytes: int


async def told(workshop: Workshop) -> Told:
    """The stream of this run."""

    async def make() -> Told:
        server, bus = await workshop.closing.enter_async_context(workshop.bus_server("told"))
        many, size = 0, 0
        said = (Message(one.subject, one.encode()) for one in everything(workshop.size(20_000, 400)))
        while batch := list(islice(said, BATCH_MAX)):
            await bus.commit(batch, timeout_s=30)
            many += len(batch)
            size += sum(len(message.data) for message in batch)
        workshop.say(f"filled a stream: {many} facts, {size / many:.0f} bytes each")
        return Told(server, bus, many, size)

    found = await workshop.once("told", make)
    assert isinstance(found, Told)
    return found


def start_ledger(workshop: Workshop, name: str, nats_url: str, mongo_uri: str) -> subprocess.Popen[bytes]:
    """The ledger as the stack runs it, writing a log of its own; what it says goes to `<name>.log`."""
    identities = workshop.identities
    environment = {
        "NATS_URL": nats_url,
        "MONGODB_URI": mongo_uri,
        "PAIDAN_ORIGIN": f"bench.local/{name}/1",
        "PAIDAN_NATS_SEED_FILE": str(identities.seed_file("ledger")),
        "PAIDAN_SECRETS_DIR": str(identities.secrets_dir("ledger")),
        "PAIDAN_HTTP_PORT": str(free_port()),
        "PAIDAN_JWKS_FILE": str(identities.jwks_file),
        "PAIDAN_LOG_FORMAT": "json",
    }
    return start_python("-m", "services.ledger", log=workshop.folder / f"{name}.log", environment=environment)
