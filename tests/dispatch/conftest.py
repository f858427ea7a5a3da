"""A dispatch service on a server of its own, with its HTTP side, as `__main__` wires it."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import httpx2
import pytest

from deploy.identities import Identities, issue_token
from services.dispatch.api import create_app
from services.dispatch.desk import Desks
from services.dispatch.streaming import LiveTail
from shared.auth import Doorkeeper
from shared.bus import Bus, Message
from shared.envelope import Envelope
from tests.conftest import Connect
from tests.examples import AGREEMENT, REGISTER, WUCHANG, envelope

IN_FORCE = AGREEMENT.model_copy(update={"valid_to": None})
"""Whenever the tests run."""


class Service:
    """One instance of dispatch, and those around it."""

    def __init__(self, identities: Identities, buses: dict[str, Bus]) -> None:
        self.identities = identities
        self.bus, self.intake, self.ledger = buses["dispatch"], buses["intake"], buses["ledger"]
        self.until = asyncio.Event()
        doorkeeper = Doorkeeper.from_file(identities.jwks_file)
        self.desks = Desks(self.bus, doorkeeper, districts="*", instance="d-1", until=self.until)
        self.tail = LiveTail(self.bus, events=50, shares=self.desks.shares)
        self.app = create_app(self.bus, self.desks, self.tail, doorkeeper, self.until)
        self.tasks: list[asyncio.Task[None]] = []
        transport = httpx2.ASGITransport(app=self.app, raise_app_exceptions=False)
        self.http = httpx2.AsyncClient(transport=transport, base_url="http://dispatch", timeout=20)

    async def start(self, *, desks: bool = True) -> None:
        """Run the desks and the live tail."""
        self.tasks = [asyncio.create_task(self.tail.run(self.until))]
        if desks:
            self.tasks.append(asyncio.create_task(self.desks.run()))
            await self.until_holds(lambda: WUCHANG in self.desks.desks and self.desks[WUCHANG].leading)
            await self.until_holds(lambda: self.desks.sharing.loaded)
        else:
            self.desks.sharing.loaded = True

    async def stop(self) -> None:
        """Told to stop."""
        self.until.set()
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*self.tasks), 15)
        await self.http.aclose()

    async def until_holds(self, what: Callable[[], Any], within_s: float = 10) -> None:
        """Wait until it does."""
        ends = asyncio.get_running_loop().time() + within_s
        while not what():
            assert asyncio.get_running_loop().time() < ends, "it did not come to be in time"
            await asyncio.sleep(0.01)

    async def store(self, bus: Bus, *facts: Envelope) -> int:
        """Facts of others; returns the last one's sequence."""
        return await bus.commit([Message(fact.subject, fact.encode()) for fact in facts])

    def token(self, sub: str = "staff-1", *roles: str, district: str = WUCHANG, **more: Any) -> str:
        """A dispatcher's token, or whose you say."""
        return issue_token(self.identities, sub, district, roles or ("dispatcher",), **more)

    async def post(self, path: str, body: Any, *, token: str | None = None, key: str = "once", **more: Any) -> Any:
        """POST, as a dispatcher unless said otherwise."""
        headers = {
            "authorization": f"Bearer {token or self.token()}",
            "idempotency-key": key,
            **more.pop("headers", {}),
        }
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers.setdefault("content-type", "application/json")
        return await self.http.post(path, content=content, headers=headers, **more)

    async def get(self, path: str, *, token: str | None = None) -> Any:
        """GET, as a dispatcher unless said otherwise."""
        return await self.http.get(path, headers={"authorization": f"Bearer {token or self.token()}"})

    async def stored(self, subjects: str = "evt.>") -> list[bytes]:
        """Every byte of every fact."""
        last, reader, got = (await self.bus.state()).last, self.bus.reader([subjects], after=0), []
        while reader.after < last and (some := await reader.wait(0.3)):
            got += [delivery.data for delivery in some]
        await reader.close()
        return got


@pytest.fixture
async def service(connect: Connect, identities: Identities) -> AsyncIterator[Service]:
    """Dispatch with the register of 武昌, not yet started."""
    made = Service(identities, {name: await connect(name) for name in ("dispatch", "intake", "ledger")})
    await made.store(made.ledger, *(envelope(fact) for fact in (*REGISTER, IN_FORCE)))
    yield made
    await made.stop()
