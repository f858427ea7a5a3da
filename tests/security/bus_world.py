"""
Three offices on one real bus, with a gate: 武昌 and 青山 share an enclave, 洪山 lets in an app and nobody of its people.

What is forbidden is tried by whoever would gain by it, through a plain NATS client that knows nothing of our own.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from nats.aio.client import Client, RawCredentials
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from deploy import keeping, leash
from deploy.claims import Key
from deploy.identities import GATE, Identities, issue_token
from deploy.servers import NatsServer, free_port
from shared import streams
from shared.bus import Bus, Message
from shared.facts import AgreementSet, App, DistrictSet, Fact, OfficeSet
from shared.register import Register, evolve
from tests.examples import DISTRICT, HONGSHAN, NEIGHBOUR, OUJING, QINGSHAN, WUCHANG, XINXIANG, area, envelope, name

ORIGIN = "https://desk.example.org"
ENCLAVE = AgreementSet(
    agreement="xinxiang",
    area=XINXIANG,
    parties=(WUCHANG, QINGSHAN),
    lead=WUCHANG,
    services=("repair",),
    valid_from=date(2020, 1, 1),
)
NOT_LET_IN = (NatsError, OSError, TimeoutError)
ELSEWHERE = "qingshan-1"
"""An area of 青山 that nobody else has a part in."""


@dataclass
class Seat:
    """A plain connection, what it has heard and what the server has said against it."""

    nc: Client
    heard: list[Msg] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def listen(self, subject: str) -> None:
        """Subscribe, and wait until the server has taken or refused it."""

        async def keep(message: Msg) -> None:
            self.heard.append(message)

        await self.nc.subscribe(subject, cb=keep)
        await self.settle()

    async def settle(self) -> None:
        """Until the server has dealt with everything sent so far, and its answer is here."""
        await settle(self.nc)

    @property
    def subjects(self) -> list[str]:
        """What it has heard."""
        return [message.subject for message in self.heard]

    def refused(self, what: str) -> bool:
        """Whether the server has refused something, in these words."""
        return any(what.lower() in complaint for complaint in self.complaints)


async def settle(nc: Client) -> None:
    """As `Seat.settle`. Twice: the client's first ping may overtake what waits to be written."""
    with suppress(NatsError):
        await nc.flush(5)
        await nc.flush(5)


@dataclass
class World:
    """The bus, its register and the people on it."""

    server: NatsServer
    identities: Identities
    register: Register
    apps: dict[tuple[str, str], str]
    """Credentials by district and app."""
    jwks_file: Path
    revoked_file: Path
    gate: "Gate" = field(init=False)

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[Bus]:
        """Whoever looks after the bus."""
        bus = await Bus.connect(self.server.url, name="admin", seed=self.identities.seed("admin"))
        try:
            yield bus
        finally:
            await bus.drain()

    @asynccontextmanager
    async def service(self, name: str) -> AsyncIterator[Bus]:
        """One of the services, through the bus's own wrapper."""
        bus = await Bus.connect(self.server.url, name=name, seed=self.identities.seed(name))
        try:
            yield bus
        finally:
            await bus.drain()

    @asynccontextmanager
    async def seat(self, *, inbox: str = "_INBOX_x", url: str | None = None, **identity: Any) -> AsyncIterator[Seat]:
        """A plain connection. Raises what the client raises where it is not let in."""
        seat = Seat(Client())

        async def complain(why: Exception) -> None:
            seat.complaints.append(str(why).lower())

        async def end() -> None:
            seat.closed.set()

        await asyncio.wait_for(
            seat.nc.connect(
                url or self.server.url,
                inbox_prefix=inbox,
                allow_reconnect=False,
                connect_timeout=3,
                error_cb=complain,
                closed_cb=end,
                **identity,
            ),
            10,
        )
        try:
            yield seat
        finally:
            with suppress(Exception):
                await seat.nc.close()

    def app(self, district: str = WUCHANG, app: str = "board", **more: Any) -> Any:
        """A seat for an app of an office."""
        return self.seat(inbox=f"_INBOX_{app}", user_credentials=RawCredentials(self.apps[district, app]), **more)

    def person(self, token: str, sub: str = "staff-1", **more: Any) -> Any:
        """A seat for somebody with a token."""
        return self.seat(inbox=f"_INBOX_{sub}", token=token, **more)

    def named(self, name: str, **more: Any) -> Any:
        """A seat for a service, or another one of ours."""
        creds = RawCredentials(self.identities.seed(name))
        return self.seat(inbox=f"_INBOX_{name}", user_credentials=creds, **more)

    def token(
        self, *roles: str, sub: str = "staff-1", district: str = WUCHANG, ttl: timedelta = timedelta(hours=1)
    ) -> str:
        """A token of the stack's own issuer."""
        return issue_token(self.identities, sub, district, roles, ttl)

    async def bring(self, register: Register | None = None) -> list[str]:
        """Bring the bus to the register."""
        sys = await Bus.connect(self.server.url, name="sys", seed=self.identities.seed("sys"))
        try:
            return await keeping.bring(sys, self.identities, register or self.register, datetime.now(UTC))
        finally:
            await sys.drain()


async def say(bus: Bus, fact: Fact, district: str, area: str) -> str:
    """Commit a fact as its writer would; the subject on which offices hear it."""
    said = envelope(fact, district=district, area=area)
    await bus.commit([Message(said.subject, said.encode())])
    return f"live.{said.subject}"


def let_in(identities: Identities, district: str, *apps: str, people: bool = True) -> tuple[OfficeSet, dict[Any, str]]:
    """An office with these apps, and their credentials."""
    keys = {app: Key.new("user") for app in apps}
    fact = OfficeSet(
        district=district, apps=tuple(App(app=app, key=key.public) for app, key in keys.items()), people=people
    )
    creds = {(district, app.app): identities.office_credentials(district, app, keys[app.app].seed) for app in fact.apps}
    return fact, creds


def register_of(*offices: OfficeSet, agreement: AgreementSet | None = ENCLAVE) -> Register:
    """Three districts, an enclave, and the offices that are let in."""
    facts: Sequence[Fact | None] = (
        DISTRICT,
        NEIGHBOUR,
        DistrictSet(district=HONGSHAN, title=name("洪山区"), office=name("洪山区网格中心")),
        area(OUJING),
        area(XINXIANG, located_in=QINGSHAN),
        area(ELSEWHERE, located_in=QINGSHAN, served_by=QINGSHAN),
        agreement,
        *offices,
    )
    register = Register()
    for fact in facts:
        register = evolve(register, fact) if fact else register
    return register


@contextmanager
def three_offices(folder: Path, identities: Identities) -> Iterator[World]:
    """The bus, brought to its register, with a gate that is ready."""
    wuchang, apps_wuchang = let_in(identities, WUCHANG, "board", "wall")
    qingshan, apps_qingshan = let_in(identities, QINGSHAN, "board")
    hongshan, apps_hongshan = let_in(identities, HONGSHAN, "board", people=False)
    apps = apps_wuchang | apps_qingshan | apps_hongshan
    register = register_of(wuchang, qingshan, hongshan)
    with NatsServer(folder / "nats", identities, websocket_port=free_port(), origins=[ORIGIN]) as server:
        world = World(server, identities, register, apps, identities.jwks_file, folder / "revoked.json")

        async def prepare() -> None:
            async with world.admin() as bus:
                await streams.apply(bus)
            await world.bring()

        asyncio.run(prepare())
        with Gate(world, folder) as world.gate:
            yield world


class Gate:
    """A gate in a process of its own, as the stack runs it."""

    def __init__(self, world: World, folder: Path) -> None:
        self.port = free_port()
        with (folder / "gate.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "deploy.gate"],
                env={
                    **os.environ,
                    "NATS_URL": world.server.url,
                    "PAIDAN_NATS_SEED_FILE": str(world.identities.seed_file(GATE)),
                    "PAIDAN_SECRETS_DIR": str(world.identities.secrets_dir(GATE)),
                    "PAIDAN_JWKS_FILE": str(world.jwks_file),
                    "PAIDAN_REVOKED_FILE": str(world.revoked_file),
                    "PAIDAN_HTTP_PORT": str(self.port),
                },
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        leash.hold(self.process.pid)

    def stop_process(self) -> None:
        """Freeze it."""
        self.process.send_signal(signal.SIGSTOP)

    def continue_process(self) -> None:
        """Wake it."""
        self.process.send_signal(signal.SIGCONT)

    def __enter__(self) -> "Gate":
        until = time.monotonic() + 20
        while True:
            try:
                with urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=2) as answer:
                    if answer.status == 200:
                        return self
            except OSError:
                pass
            assert time.monotonic() < until, "the gate is not ready"
            time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(10)
        leash.free(self.process.pid)
