"""A bus with a register, and receivers that take messages as WeCom's bot, a webhook or a mail server would."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from aiosmtpd.controller import Controller

from deploy.identities import Identities
from deploy.servers import NatsServer, free_port
from services.notify.channels import Cap, Channels
from services.notify.contacts import Contacts
from services.notify.offices import Offices
from services.notify.wording import Wording
from shared import streams
from shared.bus import Bus, Delivery, Message
from shared.envelope import Envelope, decode
from shared.facts import Fact
from tests.notify.examples import REGISTER, WUCHANG, fact_of_the_desk

DEADLINE_S = 30.0
FREELY = dict.fromkeys(("wecom", "webhook", "mail", "phone", "email"), Cap(10_000, 1))

Publish = Callable[..., Awaitable[int]]


class _Server(ThreadingHTTPServer):
    request_queue_size = 64  # with the library's 5 a caller may have to knock again, a second later
    daemon_threads = True


class WebReceiver:
    """Takes POSTs. `statuses` are answered first, in order, then 200; while `gate` is closed nobody gets an answer."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, dict[str, Any], datetime]] = []
        self.statuses: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status = receiver.statuses.pop(0) if receiver.statuses else 200
                receiver.taken.append((self.path, body, datetime.now(UTC)))
                receiver.gate.wait(20)
                try:
                    self.send_response(status)
                    self.end_headers()
                except OSError:
                    pass  # the sender was killed

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        """As Apprise wants it; the recipient's id is the path."""
        return f"json://127.0.0.1:{self.port}/{{id}}"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """What was posted, oldest first."""
        return [body for _, body, _ in self.taken]

    def close(self) -> None:
        """Take nothing more."""
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()


class MailReceiver:
    """A mail server that keeps what it gets."""

    def __init__(self) -> None:
        self.taken: list[tuple[list[str], EmailMessage]] = []
        self._controller = Controller(self, hostname="127.0.0.1", port=free_port())
        self._controller.start()

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        """As aiosmtpd calls it."""
        message = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(message, EmailMessage)
        self.taken.append((envelope.rcpt_tos, message))
        return "250 OK"

    @property
    def url(self) -> str:
        """As Apprise wants it."""
        return f"mailto://127.0.0.1:{self._controller.port}?from=paidan@office.example&to={{id}}@office.example&format=text"

    def close(self) -> None:
        """Take nothing more."""
        self._controller.stop()


@pytest.fixture
def web() -> Iterator[WebReceiver]:
    """A web server of this test's own."""
    receiver = WebReceiver()
    yield receiver
    receiver.close()


@pytest.fixture
def mail() -> Iterator[MailReceiver]:
    """A mail server of this test's own."""
    receiver = MailReceiver()
    yield receiver
    receiver.close()


@dataclass
class Ground:
    """A bus of this test's own: what happened on it, and instances of notify."""

    server: NatsServer
    identities: Identities
    admin: Bus
    _rest: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def publish(self, *facts: Envelope) -> None:
        """As the desk and the register do."""
        for start in range(0, len(facts), 500):
            await self.admin.commit([Message(fact.subject, fact.encode()) for fact in facts[start : start + 500]])

    async def register(self, *facts: Fact) -> None:
        """The register says so."""
        await self.publish(*(fact_of_the_desk(fact) for fact in facts))

    async def contact(self, member: str, **how: Any) -> None:
        """How a member is reached."""
        value = {"name": "李小明", "phone": "13900000000", "language": "zh-CN", "quiet": None, "channels": ["console"]}
        await self.admin.put(f"$KV.CONTACTS.{WUCHANG}.{member}", json.dumps({**value, **how}).encode())

    async def notify(
        self,
        urls: dict[str, str] | None = None,
        *,
        instance: str = "notify-1",
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        caps: dict[str, Cap] = FREELY,
        districts: Iterable[str] | None = (WUCHANG,),
    ) -> Offices:
        """An instance in this process, drained at the test's end."""
        bus = await Bus.connect(self.server.url, name="notify", seed=self.identities.seed("notify"))
        channels = Channels(urls or {}, caps=caps)
        wording = Wording.open("https://paidan.example.org")
        offices = Offices(bus, instance, Contacts(bus), channels, wording, clock=clock)
        self._rest.push_async_callback(bus.drain)
        self._rest.push_async_callback(offices.close)
        offices.follow(districts)
        return offices

    async def facts(
        self, name: str, n: int, *, district: str = WUCHANG, within_s: float = DEADLINE_S
    ) -> list[Envelope]:
        """The first `n` facts of notify of this name, oldest first. Raises TimeoutError."""
        reader = self.admin.reader((f"evt.{district}.notify.*.{name}",), after=0)
        found: list[Envelope] = []
        try:
            async with asyncio.timeout(within_s):
                while len(found) < n:
                    found += [decode(one.subject, one.data) for one in await reader.wait(1.0)]
        finally:
            await reader.close()
        return found

    async def count(self, name: str) -> int:
        """How many there are by now."""
        reader = self.admin.reader((f"evt.{WUCHANG}.notify.*.{name}",), after=0)
        taken = await reader.wait(0.3)
        while reader.pending:
            taken += await reader.wait(0.3)
        await reader.close()
        return len(taken)

    async def everything(self) -> list[Delivery]:
        """Every message of the stream, as it lies there."""
        reader = self.admin.reader((">",), after=0)
        last, taken = (await self.admin.state()).last, list[Delivery]()
        while not taken or taken[-1].sequence < last:
            taken += await reader.wait(1.0)
        await reader.close()
        return taken

    async def close(self) -> None:
        """Drain what was started."""
        await self._rest.aclose()
        await self.admin.drain()


@pytest.fixture
async def ground(fresh_nats: NatsServer, identities: Identities) -> AsyncIterator[Ground]:
    """An empty bus with streams and a register."""
    admin = await Bus.connect(fresh_nats.url, name="admin", seed=identities.seed("admin"))
    await streams.apply(admin)
    made = Ground(fresh_nats, identities, admin)
    await made.register(*REGISTER)
    yield made
    await made.close()


async def until(true: Callable[[], bool], *, within_s: float = DEADLINE_S) -> None:
    """Wait for something to come true. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        while not true():
            await asyncio.sleep(0.02)
