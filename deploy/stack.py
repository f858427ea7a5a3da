"""
The whole of Paidan on one machine: two servers, the streams, four services, and somebody who starts again what dies.

    async with Stack(Path(".paidan")) as stack:
        stack.urls["intake"]            # http://127.0.0.1:…
        stack.token("dispatcher")       # a bearer token
        await stack.kill("dispatch")    # kill -9; it comes back by itself
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2
import structlog
from structlog.typing import FilteringBoundLogger

from deploy import keeping, leash, restoring
from deploy.certificates import Certificates, trusting
from deploy.errors import Said, SetupError
from deploy.identities import GATE, SERVICES, TOKEN_TTL, Identities, issue_token
from deploy.running import given_ca_file, refused
from deploy.servers import (
    DATABASE,
    HOST,
    MongoServer,
    NatsServer,
    address,
    free_port,
    last_line,
    reached_at,
    require_free_port,
    require_loopback,
    require_room,
)
from services.ledger.store import Store
from shared import streams
from shared.bus import Bus
from shared.ids import new_id

READY_WITHIN_S = 60.0
DRAIN_WITHIN_S = 25.0
RESTART_FIRST_S = 0.2
RESTART_LAST_S = 5.0
DEATHS_BEFORE_READY_MAX = 3
SILENCE_MAX_S = 10.0
BROUGHT_LATER = frozenset({"register"})
"""What a service may still be waiting for when the stack is up: somebody has to reach the ledger to bring it."""
LOG_BYTES_MAX = 64 * 1024 * 1024


def service_command(service: str) -> Sequence[str]:
    """How a service is started, or the gate."""
    return (sys.executable, "-m", "deploy.gate" if service == GATE else f"services.{service}")


def restart_delay(deaths: int) -> float:
    """Seconds before a child that died `deaths` times in a row (from 1) is started again: 0.2, doubling, 5 at most."""
    return min(RESTART_LAST_S, RESTART_FIRST_S * 2.0 ** min(deaths - 1, 16))


@dataclass
class Child:
    """One instance of a service: its process, its HTTP side, where it logs."""

    service: str
    instance: int
    port: int
    url: str
    log: Path
    environment: Mapping[str, str]
    process: asyncio.subprocess.Process | None = None
    keeper: "asyncio.Task[None] | None" = None
    deaths: int = 0
    ready: bool = False
    answered: int | None = None
    """The process that was last heard, of one that is ended when it is silent."""

    @property
    def name(self) -> str:
        """`dispatch`, and `dispatch-2` for the second of them."""
        return self.service if self.instance == 1 else f"{self.service}-{self.instance}"

    @property
    def pid(self) -> int | None:
        """Its process, or None between two lives."""
        return self.process.pid if self.process and self.process.returncode is None else None


@dataclass
class Stack:
    """
    Servers and services of one folder, started together and stopped together.

    Args:
        data: everything lives in this folder; one that was used before is used again.
        nats_url: a nats-server of your own (default: `NATS_URL`); seeds come from `PAIDAN_<SERVICE>_SEED_FILE` and
            `PAIDAN_ADMIN_SEED_FILE`, where it asks for them. None starts one.
        mongodb_uri: a replica set of your own (default: `MONGODB_URI`). None starts one.
        instances: how many of a service, one where it is not named; `{"dispatch": 2}`.
        environment: more variables for a service, `{"notify": {"PAIDAN_…": "…"}}`; for all of them under `"*"`.
        http_port: the first of consecutive ports for the services, in the order of `services`, and then for WebSocket
            to the bus; None for free ones.
        nats_port, mongo_port: None for free ones.
        host: where the services and the bus listen; beyond loopback with `tls` only. mongod stays on loopback.
        tls: bus, mongod and HTTP with certificates of the stack's own.
        names: host names and addresses that others reach this machine by, for the certificates.
        services: which to run, `gate` among them: without it the bus knows no offices.
        origins: pages of staff apps that may speak to our bus by WebSocket, such as `https://desk.example.org` (default:
            `PAIDAN_WEBSOCKET_ORIGINS`, with commas); the services' own pages may.
        on_event: told, in a line for people, when something died or came back; `<data>/logs/stack.log` has it anyway.
        command: how a service is started; for tests of the supervision itself.
    """

    data: Path
    nats_url: str | None = field(default_factory=lambda: os.environ.get("NATS_URL") or None)
    mongodb_uri: str | None = field(default_factory=lambda: os.environ.get("MONGODB_URI") or None)
    instances: Mapping[str, int] = field(default_factory=dict)
    environment: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    http_port: int | None = None
    nats_port: int | None = None
    mongo_port: int | None = None
    host: str = HOST
    tls: bool = False
    names: Sequence[str] = ()
    services: Sequence[str] = (*SERVICES, GATE)
    origins: Sequence[str] = field(
        default_factory=lambda: os.environ.get("PAIDAN_WEBSOCKET_ORIGINS", "").replace(",", " ").split()
    )
    on_event: Callable[[str], None] = lambda _: None
    command: Callable[[str], Sequence[str]] = service_command

    identities: Identities = field(init=False)
    certificates: Certificates | None = field(init=False, default=None)
    nats: NatsServer | None = field(init=False, default=None)
    mongo: MongoServer | None = field(init=False, default=None)
    children: list[Child] = field(init=False, default_factory=list)
    stream_changes: list[str] = field(init=False, default_factory=list)
    _watches: "list[asyncio.Task[None]]" = field(init=False, default_factory=list)
    _stopping: bool = field(init=False, default=False)
    _log: FilteringBoundLogger = field(init=False)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """
        Start everything and wait until each service says it is ready; where that fails, stop what was started.

        Raises:
            SetupError: what stands in the way, with its remedy.
        """
        self._stopping = False
        if not self.tls:
            require_loopback(self.host)
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        self.data = self.data.resolve()
        require_room(self.data)
        self._refuse_second_stack()
        self._open_log()
        self.identities = Identities.open(self.data / "secrets")
        if self.tls:
            self.certificates = Certificates.open(self.data / "secrets" / "tls", [reached_at(self.host), *self.names])
        self.children = [*self._plan()]
        await asyncio.gather(self._start_nats(), self._start_mongo())
        await self._apply_streams()
        if GATE in self.services and (self.nats or self._seed_file("sys")):
            keeper = keeping.keep(self.connect, self.identities, self._log)
            self._watches.append(asyncio.create_task(keeper, name="keep the bus to the register"))
        for child in self.children:
            await self._spawn(child)
            child.keeper = asyncio.create_task(self._keep(child), name=f"keep {child.name}")
        await self._wait_until_ready(READY_WITHIN_S, but_for=BROUGHT_LATER)
        self._watches += [
            asyncio.create_task(self._wake(child), name=f"wake {child.name}")
            for child in self.children
            if child.service == GATE
        ]
        self._write_addresses()

    @asynccontextmanager
    async def servers_alone(self) -> AsyncIterator[Self]:
        """The servers without streams and services, for what must be done before anybody else is there. Raises SetupError."""
        self.data = self.data.resolve()
        self._refuse_second_stack()
        self._open_log()
        self.identities = Identities.open(self.data / "secrets")
        try:
            await asyncio.gather(self._start_nats(), self._start_mongo())
            yield self
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Drain the services (25 s at most, then kill), then stop the servers. Nothing happens when all is stopped."""
        self._stopping = True
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        self._watches.clear()
        for child in self.children:
            if child.pid:
                self._signal(child, signal.SIGCONT)  # one that was paused has to hear what follows
                self._signal(child, signal.SIGTERM)
        keepers = [child.keeper for child in self.children if child.keeper]
        if keepers:
            _, late = await asyncio.wait(keepers, timeout=DRAIN_WITHIN_S)
            for child in self.children:
                if child.keeper in late:
                    self._log.warning("drain_too_slow", service=child.name, limit_s=DRAIN_WITHIN_S)
                    self._signal(child, signal.SIGKILL)
            await asyncio.gather(*keepers, return_exceptions=True)
        servers = [server for server in (self.nats, self.mongo) if server]
        await asyncio.gather(*(asyncio.to_thread(server.stop) for server in servers))
        if self._addresses_are_ours():
            self.addresses_file.unlink(missing_ok=True)

    # --- where things are ---------------------------------------------------------------------------------------

    @property
    def bus_url(self) -> str:
        """The bus, ours or yours."""
        if self.nats_url:
            return self.nats_url
        assert self.nats, "not started"
        return self.nats.url

    @property
    def ca_file(self) -> Path | None:
        """The authority of the services' certificates; None where they serve in the clear."""
        return self.certificates.ca_file if self.certificates else None

    @property
    def bus_ca_file(self) -> Path | None:
        """The authority of the bus's certificate, ours or yours (`NATS_CA_FILE`); None for a bus in the clear."""
        return given_ca_file() if self.nats_url else self.ca_file

    @property
    def websocket_url(self) -> str | None:
        """The bus for browsers; None where it is yours."""
        return self.nats.websocket_url if self.nats else None

    @property
    def ledger_uri(self) -> str:
        """MongoDB as the ledger reaches it, ours or yours."""
        if self.mongodb_uri:
            return self.mongodb_uri
        assert self.mongo, "not started"
        return self.mongo.uri

    @property
    def urls(self) -> dict[str, str]:
        """The HTTP side of the first instance of each service."""
        return {child.service: child.url for child in self.children if child.instance == 1}

    @property
    def all_urls(self) -> dict[str, list[str]]:
        """The HTTP sides of all instances."""
        return {service: [child.url for child in self.children if child.service == service] for service in self.urls}

    @property
    def pids(self) -> dict[str, int | None]:
        """Processes by name: `nats-server`, `mongod`, `intake`, `dispatch`, `dispatch-2`…"""
        servers = {server.name: server.pid for server in (self.nats, self.mongo) if server}
        return servers | {child.name: child.pid for child in self.children}

    @property
    def addresses_file(self) -> Path:
        """Where other commands look for a running stack."""
        return self.data / "stack.json"

    def token(self, *roles: str, district: str = "*", sub: str = "operator", ttl: timedelta = TOKEN_TTL) -> str:
        """A bearer token of this stack."""
        return issue_token(self.identities, sub, district, roles, ttl)

    def seed(self, name: str) -> str | None:
        """The NKey seed of `admin` or a service on this stack's bus; None where your own bus was given without one."""
        file = self._seed_file(name)
        return file.read_text().strip() if file else None

    async def connect(self, name: str = "admin") -> Bus:
        """A connection to the bus as `admin` or one of the services; the caller drains it."""
        return await Bus.connect(self.bus_url, name=name, seed=self.seed(name), ca_file=self.bus_ca_file)

    def connect_store(self) -> Store:
        """The ledger's store; the caller closes it."""
        return Store.connect(self.ledger_uri, os.environ.get("PAIDAN_DATABASE", DATABASE))

    async def connect_office(self, district: str, app: str) -> Bus:
        """A connection to the bus as an app that an office was given (`paidan office add`); the caller drains it."""
        file = self.identities.office_file(district, app)
        return await Bus.connect(self.bus_url, name=app, seed=file.read_text(), ca_file=self.bus_ca_file)

    # --- what tests and demos do to it ---------------------------------------------------------------------------

    async def kill(self, name: str, instance: int = 1) -> None:
        """`kill -9` a service's instance, `nats-server` or `mongod`; the supervisor starts it again."""
        server = self._server(name)
        if server:
            if server.pid:
                os.kill(server.pid, signal.SIGKILL)
            return
        self._signal(self._child(name, instance), signal.SIGKILL)

    def stop_process(self, name: str, instance: int = 1) -> None:
        """Freeze it (SIGSTOP): it neither runs nor dies until `continue_process`."""
        self._signal_any(name, instance, signal.SIGSTOP)

    def continue_process(self, name: str, instance: int = 1) -> None:
        """Wake what `stop_process` froze."""
        self._signal_any(name, instance, signal.SIGCONT)

    async def wait_until_ready(self, within_s: float = READY_WITHIN_S) -> None:
        """Until every service answers 200 to `/readyz`, after a kill say. Raises SetupError naming one that is not."""
        await self._wait_until_ready(within_s)

    async def apply_register(
        self, document: Mapping[str, Any], *, why: str = "", dry_run: bool = False
    ) -> dict[str, Any]:
        """
        Hand a register document to the ledger, as an admin, and say why; what it answers.

        Raises:
            SetupError: the ledger refused it, with its words.
        """
        return await post_register(
            self.urls["ledger"], self.token("admin"), document, why=why, dry_run=dry_run, ca_file=self.ca_file
        )

    async def enrol(self, members: bytes, district: str) -> dict[str, Any]:
        """
        Enrol those members of a CSV file who belong to a district; its desk may have to hear of the register first.

        Raises:
            SetupError: dispatch refused, with its words.
        """
        deadline = time.monotonic() + READY_WITHIN_S
        headers = {
            "Authorization": f"Bearer {self.token('dispatcher', district=district)}",
            "Content-Type": "text/csv",
            "Idempotency-Key": new_id(),
        }
        url = f"{self.urls['dispatch']}/v1/members/import"
        async with httpx2.AsyncClient(timeout=30, trust_env=False, verify=trusting(self.ca_file)) as client:
            while True:
                response = await client.post(url, content=members, params={"district": district}, headers=headers)
                if response.is_success:
                    answer: dict[str, Any] = response.json()
                    return answer
                if response.status_code not in (404, 503) or time.monotonic() > deadline:
                    raise refused("dispatch", response)
                await asyncio.sleep(0.2)

    # --- servers -------------------------------------------------------------------------------------------------

    async def _start_nats(self) -> None:
        if self.nats_url:
            return
        if self.nats is None:
            scheme = "https" if self.tls else "http"
            pages = {
                f"{scheme}://{address(h, c.port)}"
                for c in self.children
                for h in (self.host, HOST, "localhost", *self.names)
            }
            websocket_port = self.http_port + len(self.children) if self.http_port else free_port()
            require_free_port(websocket_port, "WebSocket")
            self.nats = NatsServer(
                self.data / "nats",
                self.identities,
                self.nats_port,
                monitor=True,
                host=self.host,
                certificates=self.certificates,
                websocket_port=websocket_port,
                origins=sorted({*pages, *self.origins}),
            )
        await asyncio.to_thread(self.nats.start)
        self._watches.append(asyncio.create_task(self._watch(self.nats), name="watch nats-server"))

    async def _start_mongo(self) -> None:
        if self.mongodb_uri or "ledger" not in self.services:
            return
        if self.mongo is None:
            self.mongo = MongoServer(
                self.data / "mongo", self.identities, self.mongo_port, certificates=self.certificates
            )
        await asyncio.to_thread(self.mongo.start)
        self._watches.append(asyncio.create_task(self._watch(self.mongo), name="watch mongod"))

    async def _watch(self, server: NatsServer | MongoServer) -> None:
        """Start the server again when it has died."""
        deaths = 0
        lived_since = time.monotonic()
        while True:
            await asyncio.sleep(0.1)
            if server.running:
                continue
            deaths = 1 if time.monotonic() - lived_since > 60 else deaths + 1
            delay = restart_delay(deaths)
            self._log.warning("server_died", server=server.name, again_in_s=delay)
            self.on_event(f"{server.name} 意外退出，{delay:.1f} 秒后重启 / ended, starts again in {delay:.1f} s")
            await asyncio.sleep(delay)
            try:
                await asyncio.shield(asyncio.to_thread(server.start))
            except SetupError as error:
                self._log.error("server_did_not_start", server=server.name, why=str(error))
                self.on_event(str(error))
            else:
                self._log.info("server_restarted", server=server.name, pid=server.pid)
            lived_since = time.monotonic()

    async def _apply_streams(self) -> None:
        bus = await self.connect("admin")
        try:
            if "ledger" in self.services:
                store = self.connect_store()
                try:
                    await restoring.require_history(bus, store)
                finally:
                    store.close()
            self.stream_changes = await streams.apply(bus)
        finally:
            await bus.drain()

    # --- services ------------------------------------------------------------------------------------------------

    def _plan(self) -> list[Child]:
        children: list[Child] = []
        for service in self.services:
            if service == GATE and self.nats_url and not self._seed_file(GATE):
                continue  # a bus of your own that was not made for it
            for instance in range(1, self.instances.get(service, 1) + 1):
                port = self.http_port + len(children) if self.http_port else free_port()
                if self.http_port:
                    require_free_port(port, service)
                name = service if instance == 1 else f"{service}-{instance}"
                log_file = self.data / "logs" / f"{name}.log"
                url = f"{'https' if self.tls else 'http'}://{address(self.host, port)}"
                children.append(Child(service, instance, port, url, log_file, {}))
        return children

    def _environment(self, child: Child) -> dict[str, str]:
        not_for_all = ("MONGODB_URI", "NATS_CA_FILE")  # the ledger's alone; your bus's alone
        given = {name: value for name, value in os.environ.items() if name not in not_for_all}
        seed_file = self._seed_file(child.service)
        return {
            **given,
            "NATS_URL": self.bus_url,
            **({"NATS_CA_FILE": str(self.bus_ca_file)} if self.bus_ca_file else {}),
            **({"MONGODB_URI": self.ledger_uri} if child.service == "ledger" else {}),
            **({"PAIDAN_NATS_SEED_FILE": str(seed_file)} if seed_file else {}),
            "PAIDAN_INSTANCE": str(child.instance),
            "PAIDAN_HTTP_HOST": self.host,
            "PAIDAN_HTTP_PORT": str(child.port),
            **({"PAIDAN_TLS_FILE": str(self.certificates.file("http"))} if self.certificates else {}),
            "PAIDAN_JWKS_FILE": str(self.identities.jwks_file),
            "PAIDAN_REVOKED_FILE": str(self.identities.revoked_file),
            "PAIDAN_SECRETS_DIR": str(self.identities.secrets_dir(child.service)),
            "PAIDAN_LOG_FORMAT": "json",
            **self._links(child),
            **self.environment.get("*", {}),
            **self.environment.get(child.service, {}),
        }

    def _links(self, child: Child) -> dict[str, str]:
        """Where links in messages lead, unless somebody has said."""
        if child.service != "notify":
            return {}
        lead = {"PAIDAN_PUBLIC_URL": self.urls.get("dispatch"), "PAIDAN_REPLY_URL": self.urls["notify"]}
        return {name: url for name, url in lead.items() if url and not os.environ.get(name)}

    async def _spawn(self, child: Child) -> None:
        if child.log.exists() and child.log.stat().st_size > LOG_BYTES_MAX:
            child.log.replace(child.log.with_suffix(".log.1"))
        with child.log.open("ab") as out:
            child.process = await asyncio.create_subprocess_exec(
                *self.command(child.service),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=asyncio.subprocess.STDOUT,
                env=self._environment(child),
                start_new_session=True,  # Ctrl-C in a terminal is ours to hear; we drain in order
            )
        leash.hold(child.process.pid)

    async def _keep(self, child: Child) -> None:
        """Start the service again whenever it ends, until the stack stops."""
        started = time.monotonic()
        while child.process:
            code = await child.process.wait()
            leash.free(child.process.pid)
            if self._stopping:
                return
            child.deaths = 1 if time.monotonic() - started > 60 else child.deaths + 1
            delay = restart_delay(child.deaths)
            said = last_line(child.log)
            self._log.warning("service_died", service=child.name, code=code, again_in_s=delay, said=said)
            self.on_event(
                f"{child.name} 意外退出（{code}），{delay:.1f} 秒后重启 / ended, starts again in {delay:.1f} s"
            )
            await asyncio.sleep(delay)
            if self._stopping:
                return
            await self._spawn(child)
            started = time.monotonic()

    async def _wake(self, child: Child) -> None:
        """
        End a gate that says nothing for 10 s (60 s from its start), so that it is started again: while it hangs nobody can log in.
        A service that hangs is left alone: its work waits for it, or another instance takes it.
        """
        pid, heard, limit_s = None, 0.0, READY_WITHIN_S
        async with httpx2.AsyncClient(timeout=2, trust_env=False, verify=trusting(self.ca_file)) as client:
            while True:
                await asyncio.sleep(SILENCE_MAX_S / 10)
                if child.pid != pid:
                    pid, heard, limit_s = child.pid, time.monotonic(), READY_WITHIN_S
                try:
                    await client.get(f"{child.url}/healthz")
                except httpx2.HTTPError:
                    if pid and child.pid == pid and time.monotonic() - heard > limit_s:
                        self._log.warning("gate_hangs", service=child.name, silent_s=limit_s)
                        self._signal(child, signal.SIGKILL)
                else:
                    child.answered, heard, limit_s = pid, time.monotonic(), SILENCE_MAX_S

    async def _wait_until_ready(self, within_s: float, *, but_for: frozenset[str] = frozenset()) -> None:
        deadline = time.monotonic() + within_s
        async with httpx2.AsyncClient(timeout=5, trust_env=False, verify=trusting(self.ca_file)) as client:
            await asyncio.gather(*(self._wait_for(client, child, deadline, but_for) for child in self.children))

    async def _wait_for(
        self, client: httpx2.AsyncClient, child: Child, deadline: float, but_for: frozenset[str]
    ) -> None:
        why = ""
        while True:
            try:
                response = await client.get(f"{child.url}/readyz")
                if response.status_code == 200 or _missing(response) <= but_for:
                    child.ready = True
                    return
                why = response.text.strip()[:300]
            except httpx2.HTTPError as error:
                why = type(error).__name__
            gave_up = not child.ready and child.deaths >= DEATHS_BEFORE_READY_MAX
            if gave_up or time.monotonic() > deadline:
                said = last_line(child.log)
                raise SetupError(
                    Said(
                        f"服务 {child.name} 没有就绪（{why}）：{said}",
                        f"service {child.name} is not ready ({why[:60]})",
                    ),
                    Said(f"详见 {child.log}", f"more in {child.log}"),
                )
            await asyncio.sleep(0.05)

    # --- small things --------------------------------------------------------------------------------------------

    def _seed_file(self, name: str) -> Path | None:
        if not self.nats_url:
            return self.identities.seed_file(name)
        given = os.environ.get(f"PAIDAN_{name.upper()}_SEED_FILE")
        return Path(given) if given else None

    def _child(self, service: str, instance: int) -> Child:
        return next(child for child in self.children if (child.service, child.instance) == (service, instance))

    def _server(self, name: str) -> NatsServer | MongoServer | None:
        return next((server for server in (self.nats, self.mongo) if server and server.name == name), None)

    def _signal_any(self, name: str, instance: int, number: signal.Signals) -> None:
        server = self._server(name)
        if server is None:
            self._signal(self._child(name, instance), number)
        elif server.pid:
            os.kill(server.pid, number)

    @staticmethod
    def _signal(child: Child, number: signal.Signals) -> None:
        if child.process and child.process.returncode is None:
            child.process.send_signal(number)

    def _open_log(self) -> None:
        (self.data / "logs").mkdir(exist_ok=True)
        file = (self.data / "logs" / "stack.log").open("a", encoding="utf-8")
        self._log = structlog.wrap_logger(
            structlog.WriteLogger(file),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.JSONRenderer(ensure_ascii=False),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(0),
        )

    def _write_addresses(self) -> None:
        document = {
            "pid": os.getpid(),
            "urls": self.urls,
            "all_urls": self.all_urls,
            "nats_url": self.bus_url,
            "websocket_url": self.websocket_url,
            "own_nats": self.nats is not None,
            "ca_file": str(self.ca_file) if self.ca_file else None,
            "ports": {child.name: child.port for child in self.children}
            | {server.name: server.port for server in (self.nats, self.mongo) if server},
            "pids": self.pids,
        }
        fresh = self.addresses_file.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_text(json.dumps(document, indent=2) + "\n")
        fresh.replace(self.addresses_file)

    def _refuse_second_stack(self) -> None:
        pid = _owner(self.addresses_file)
        if pid and pid != os.getpid():
            raise SetupError(
                Said(
                    f"目录 {self.data} 正被另一个 paidan up 使用（进程 {pid}）",
                    f"{self.data} is in use by process {pid}",
                ),
                Said("请先停掉它，或用 --data 指定另一目录", "stop it first or name another folder with --data"),
            )

    def _addresses_are_ours(self) -> bool:
        return _owner(self.addresses_file) == os.getpid()


def _missing(response: httpx2.Response) -> set[str]:
    """What a service says it is waiting for; something unknown where it does not say."""
    try:
        return set(response.json()["missing"])
    except (ValueError, KeyError, TypeError):
        return {"?"}


def _owner(addresses_file: Path) -> int | None:
    """The living process that wrote the file, or None."""
    try:
        pid = int(json.loads(addresses_file.read_text())["pid"])
        os.kill(pid, 0)
    except (OSError, ValueError, KeyError):
        return None
    return pid


async def post_register(
    ledger_url: str,
    token: str,
    document: Mapping[str, Any],
    *,
    why: str = "",
    dry_run: bool = False,
    ca_file: Path | None = None,
) -> dict[str, Any]:
    """
    Hand a register document to the ledger; what it answers.

    Raises:
        SetupError: the ledger refused it or cannot be reached, with its words.
    """
    try:
        async with httpx2.AsyncClient(timeout=60, trust_env=False, verify=trusting(ca_file)) as client:
            response = await client.post(
                f"{ledger_url}/v1/register",
                params={"dry_run": "true"} if dry_run else {},
                json={"document": document, "why": why},
                headers={"Authorization": f"Bearer {token}"},
            )
    except httpx2.HTTPError as error:
        raise SetupError(
            Said(f"无法连接账本服务 {ledger_url}", f"the ledger at {ledger_url} cannot be reached ({error})"),
            Said("请确认 paidan up 正在运行", "see that `paidan up` is running"),
        ) from error
    if response.is_error:
        raise refused("ledger", response)
    answer: dict[str, Any] = response.json()
    return answer
