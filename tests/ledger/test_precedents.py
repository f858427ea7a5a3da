"""Rulings become precedents in the register: once each, in the order of the rulings, and an administrator has the last word."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date
from pathlib import Path
from typing import Any

from deploy.identities import Identities
from deploy.servers import NatsServer
from services.ledger.register import precedents
from services.ledger.register.registering import Registry
from shared import streams
from shared.bus import Bus, Message
from shared.facts import ConferralEnded, ConferralRuled, PrecedentSet
from shared.ids import derived_id
from tests.ledger.examples import QINGSHAN, WUCHANG, event

DOCUMENT = json.loads((Path(__file__).parents[2] / "deploy" / "demo" / "register.json").read_text())
AREA, ITEM = DOCUMENT["areas"][0]["area"], DOCUMENT["items"][0]["item"]


def ended(n: int, reason: str = "ruled") -> Message:
    """What the giver says of its conferral's end."""
    data = {"conferral_id": derived_id("conferral", n), "task_id": derived_id("task", n), "reason": reason}
    envelope = event(ConferralEnded.model_validate(data), district=WUCHANG, area=AREA)
    return Message(envelope.subject, envelope.encode())


def ruled(n: int, owner: str = QINGSHAN, *, precedent: bool = True, item: str = ITEM) -> Message:
    """A lead's ruling."""
    fact = ConferralRuled(
        conferral_id=derived_id("conferral", n),
        task_id=derived_id("task", n),
        giver=WUCHANG,
        owner=owner,
        item=item,
        basis=f"minutes:{n}",
        precedent=precedent,
    )
    envelope = event(fact, area=AREA)
    return Message(envelope.subject, envelope.encode())


class Ledger:
    """The register's only writer, and the one that follows rulings."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Registry]:
        """One life of it."""
        registry, stop = Registry(self.bus), asyncio.Event()
        work = [
            asyncio.create_task(registry.run(stop)),
            asyncio.create_task(precedents.follow(self.bus, registry, stop)),
        ]
        yield registry
        stop.set()
        await asyncio.gather(*work)

    async def facts(self) -> list[dict[str, Any]]:
        """Every precedent that was ever written, oldest first."""
        held = [await self.bus.at(n) for n in range(1, (await self.bus.state()).last + 1)]
        events = [json.loads(stored.data) for stored in held if stored]
        return [one["data"] for one in events if one["type"] == PrecedentSet.type()]


async def written(ledger: Ledger, count: int) -> list[dict[str, Any]]:
    """That many, within a time."""
    async with asyncio.timeout(10):
        while len(facts := await ledger.facts()) < count:
            await asyncio.sleep(0.05)
    return facts


async def test_each_ruling_that_asks_for_it_is_written_once_over_all_lives(
    fresh_nats: NatsServer, identities: Identities
) -> None:
    bus = await Bus.connect(fresh_nats.url, name="admin", seed=identities.seed("admin"))
    await streams.apply(bus)
    ledger = Ledger(bus)
    async with ledger.running() as registry:
        await registry.apply(DOCUMENT, why="start", by="admin:a")
        await bus.commit(
            [ruled(1, precedent=False), ruled(2), ruled(3, item="no-such-item"), ruled(4, WUCHANG), ruled(9)]
        )
        await bus.commit([ended(6, "overdue"), ruled(6), ruled(7), ended(7, "ended")])  # too late: without effect
        await bus.commit([ended(1), ended(2), ended(3), ended(4)])
        facts = await written(ledger, 2)
        assert [(one["conferral"], one["owner"], one["basis"]) for one in facts] == [
            (derived_id("conferral", 2), QINGSHAN, "minutes:2"),
            (derived_id("conferral", 4), WUCHANG, "minutes:4"),
        ]
        kept = (await registry.current()).precedents[AREA, ITEM]
        assert (kept.owner, kept.valid_from) == (WUCHANG, date(2026, 11, 22))
        over = {"area": AREA, "item": ITEM, "basis": "law:7", "valid_from": "2026-11-23"}
        await registry.apply({"precedents": [over]}, why="no longer", by="admin:a")
    async with ledger.running() as registry, ledger.running():
        await bus.commit([ruled(5, item=DOCUMENT["items"][1]["item"]), ended(5)])
        facts = await written(ledger, 4)
        await asyncio.sleep(1)
        assert await ledger.facts() == facts, "two at once write what one of them has written"
        assert (await registry.current()).precedents[AREA, ITEM].owner is None, "the administrator has the last word"
    await bus.drain()
