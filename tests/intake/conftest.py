"""Instances of intake on a real nats-server: in this process where tests ask it directly, as a process where they kill it."""

from __future__ import annotations

import asyncio
from base64 import b64decode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import datetime
from typing import Any

import httpx2
import orjson
import pytest

from deploy.identities import Identities, issue_token
from deploy.servers import NatsServer
from services.intake.running import Intake, bring_up
from services.intake.settings import Settings
from shared import streams
from shared.bus import Bus, Message
from shared.envelope import Envelope
from shared.errors import BusError
from shared.facts import Fact
from shared.ids import derived_id
from tests.intake.examples import FACTS, LEAK, NOW, WUCHANG, applied, envelope
from tests.intake.ledger import Ledger


class World:
    """One bus with streams, a register, and as many instances of intake as a test wants."""

    def __init__(self, server: NatsServer, identities: Identities, stack: AsyncExitStack, admin: Bus) -> None:
        self.server = server
        self.identities = identities
        self.stack = stack
        self.admin = admin
        self.instances: list[Intake] = []
        self._documents = 0
        self._told = 0

    def settings(self, **more: Any) -> Settings:
        """An instance's settings."""
        return Settings.model_validate(
            {
                "NATS_URL": self.server.url,
                "secrets_dir": self.identities.secrets_dir("intake"),
                "jwks_file": self.identities.jwks_file,
                "rate_burst": 500,
                **more,
            }
        )

    async def apply(self, *facts: Fact) -> None:
        """Put a document into the register, as the ledger would."""
        self._documents += 1
        every = [*facts, applied(len(facts))]
        sent = [envelope(fact, self._documents) for fact in every]
        await self.admin.commit([Message(one.subject, one.encode()) for one in sent])

    async def instance(self, **more: Any) -> httpx2.AsyncClient:
        """One more instance that is ready, as a client that speaks to it."""
        client = await self.unready(**more)
        await until(lambda: _is_ready(client))
        return client

    async def unready(self, **more: Any) -> httpx2.AsyncClient:
        """One more instance, perhaps without a register."""
        bus = await Bus.connect(self.server.url, name="intake", seed=self.identities.seed("intake"))
        self.stack.push_async_callback(bus.drain)
        intake = bring_up(bus, self.settings(**more))
        await intake.listen(bus)
        self.instances.append(intake)
        following = asyncio.create_task(intake.following.run())

        async def end() -> None:
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following

        self.stack.push_async_callback(end)
        transport = httpx2.ASGITransport(app=intake.app, raise_app_exceptions=False)
        return await self.stack.enter_async_context(
            httpx2.AsyncClient(transport=transport, base_url="http://intake", timeout=30)
        )

    async def tell(
        self, fact: Fact, request_id: str, district: str = WUCHANG, area: str = "oujing", at: datetime = NOW
    ) -> int:
        """A fact about a request, as another service says it; its sequence."""
        self._told += 1
        one = Envelope(derived_id("told", self._told), district, area, at, fact, district, case=request_id)
        return await self.admin.commit([Message(one.subject, one.encode())])

    def on_disk(self) -> bytes:
        """Every byte that the server has written."""
        return b"".join(file.read_bytes() for file in self.server.data.rglob("*") if file.is_file())

    def token(self, sub: str, district: str, *roles: str) -> str:
        """Somebody's bearer token."""
        return issue_token(self.identities, sub, district, roles)

    async def facts(self, name: str) -> list[dict[str, Any]]:
        """The events of one kind, oldest first."""
        return [orjson.loads(data) for subject, data in await self.messages("EVENTS") if f".{name}" in subject]

    async def messages(self, stream: str) -> list[tuple[str, bytes]]:
        """Subject and bytes of everything a stream holds, oldest first."""
        state = await self.admin.state(stream)
        held = []
        for sequence in range(max(state.first, 1), state.last + 1):
            with suppress(BusError):  # deleted
                answer = await self.admin._api(f"STREAM.MSG.GET.{stream}", {"seq": sequence})
                held.append((answer["message"]["subject"], b64decode(answer["message"].get("data", ""))))
        return held

    async def submitted(self) -> list[tuple[str, bytes]]:
        """Every submission in the stream."""
        return [one for one in await self.messages("EVENTS") if ".request.submitted." in one[0]]


async def _is_ready(client: httpx2.AsyncClient) -> bool:
    return (await client.get("/readyz")).status_code == 200


async def until(there: Callable[[], Awaitable[bool]], within_s: float = 10) -> None:
    """Wait for something to become true. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        while not await there():
            await asyncio.sleep(0.02)


def keyed(key: str, token: str | None = None, **more: str) -> dict[str, str]:
    """Headers of a submission."""
    return {"Idempotency-Key": key, **({"Authorization": f"Bearer {token}"} if token else {}), **more}


@asynccontextmanager
async def opened(server: NatsServer, identities: Identities) -> AsyncIterator[World]:
    """A world whose register is still empty."""
    async with AsyncExitStack() as stack:
        admin = await Bus.connect(server.url, name="admin", seed=identities.seed("admin"))
        stack.push_async_callback(admin.drain)
        await streams.apply(admin)
        yield World(server, identities, stack, admin)


@pytest.fixture
async def empty_world(fresh_nats: NatsServer, identities: Identities) -> AsyncIterator[World]:
    """A bus with streams and no register."""
    async with opened(fresh_nats, identities) as world:
        yield world


@pytest.fixture
async def world(empty_world: World) -> World:
    """A bus with streams and the register of the examples."""
    await empty_world.apply(*FACTS)
    return empty_world


@pytest.fixture
async def intake(world: World) -> httpx2.AsyncClient:
    """One ready instance."""
    return await world.instance()


@pytest.fixture
async def ledger(world: World) -> AsyncIterator[Ledger]:
    """Somebody who answers for the ledger."""
    bus = await Bus.connect(world.server.url, name="ledger", seed=world.identities.seed("ledger"))
    ledger = Ledger(world)
    await bus.serve("qry.*.ledger.case", ledger.answer)
    await bus.state()  # what is asked from now on is heard
    yield ledger
    await bus.drain()


@pytest.fixture
async def submitted(intake: httpx2.AsyncClient) -> dict[str, Any]:
    """A request that was taken in."""
    answer: dict[str, Any] = (await intake.post("/v1/requests", json=LEAK, headers=keyed("k-1"))).json()
    return answer
