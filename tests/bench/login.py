"""
How long it takes to be let in on the bus, p50 and p99: an office's app with its credentials, and a person with a token, whom the
gate looks at. The limit is a connection of the same client to a nats-server that asks nobody anything.
"""

from __future__ import annotations

import subprocess
import time
from contextlib import ExitStack, suppress
from typing import Any

import httpx2
from nats.aio.client import Client, RawCredentials

from deploy import keeping, leash
from deploy.claims import Key
from deploy.identities import GATE, issue_token
from deploy.servers import free_port, nats_server_binary
from shared.bus import Bus
from shared.facts import App, DistrictSet, OfficeSet
from shared.register import Register, evolve
from tests.bench.ground import DISTRICT
from tests.bench.harness import Row, Workshop, end, percentile, start_python, until
from tests.examples import NOW, name

WARM_UP = 10


async def run(workshop: Workshop) -> list[Row]:
    """The three in turns."""
    many = workshop.size(300, 20)
    key = Key.new("user")
    app = App(app="bench", key=key.public)
    identities = workshop.identities
    who: dict[str, dict[str, Any]] = {
        "app": {"user_credentials": RawCredentials(identities.office_credentials(DISTRICT, app, key.seed))},
        "person": {"token": issue_token(identities, "staff-1", DISTRICT, ["dispatcher"])},
    }
    took: dict[str, list[float]] = {"app": [], "person": [], "bare": []}
    async with workshop.bus_server("login") as (server, _):
        with ExitStack() as stack:
            sys = await Bus.connect(server.url, name="sys", seed=identities.seed("sys"))
            await keeping.bring(sys, identities, _register(app), NOW)
            await sys.drain()
            bare = f"nats://127.0.0.1:{_bare(workshop, stack)}"
            await _gate(workshop, stack, server.url)
            for n in range(many + WARM_UP):
                for name_, url in (("app", server.url), ("person", server.url), ("bare", bare)):
                    ms = await _login(url, **who.get(name_, {}))
                    if n >= WARM_UP:
                        took[name_].append(ms)
    rows = []
    for name_ in ("app", "person"):
        for share in (50, 99):
            ours, limit = percentile(took[name_], share / 100), percentile(took["bare"], share / 100)
            row = Row(f"login {name_} p{share}", ours, limit, "ms", many, min(took[name_]), max(took[name_]))
            workshop.say(f"{row.name}: {row.value:.2f} ms, bare {row.limit:.2f} ms")
            rows.append(row)
    return rows


async def _login(url: str, **identity: Any) -> float:
    client = Client()
    began = time.perf_counter()
    await client.connect(url, allow_reconnect=False, **identity)
    ms = (time.perf_counter() - began) * 1000
    await client.close()
    return ms


def _register(app: App) -> Register:
    register = evolve(Register(), DistrictSet(district=DISTRICT, title=name("一区"), office=name("一区")))
    return evolve(register, OfficeSet(district=DISTRICT, apps=(app,)))


def _bare(workshop: Workshop, stack: ExitStack) -> int:
    port = free_port()
    process = subprocess.Popen(
        [nats_server_binary(), "-a", "127.0.0.1", "-p", str(port), "-l", str(workshop.folder / "bare.log")],
        start_new_session=True,
    )
    leash.hold(process.pid)
    stack.callback(end, process)
    return port


async def _gate(workshop: Workshop, stack: ExitStack, url: str) -> None:
    """A gate of its own process, once it is ready."""
    identities, port = workshop.identities, free_port()
    environment = {
        "NATS_URL": url,
        "PAIDAN_NATS_SEED_FILE": str(identities.seed_file(GATE)),
        "PAIDAN_SECRETS_DIR": str(identities.secrets_dir(GATE)),
        "PAIDAN_JWKS_FILE": str(identities.jwks_file),
        "PAIDAN_HTTP_PORT": str(port),
    }
    process = start_python("-m", "deploy.gate", log=workshop.folder / "gate.log", environment=environment)
    stack.callback(end, process)

    async with httpx2.AsyncClient(timeout=2, trust_env=False) as client:

        async def ready() -> bool:
            with suppress(httpx2.HTTPError):
                return (await client.get(f"http://127.0.0.1:{port}/readyz")).is_success
            return False

        await until("the gate is ready", ready, 30)
