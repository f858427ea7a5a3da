"""
Rulings become precedents: what a conferral has ruled for the next of its kind is written into the register, once.

Nothing is remembered beside the register itself: every `register.precedent_set` names its conferral, so a ruling that one of them
names has been written, whatever an administrator set afterwards.
"""

from __future__ import annotations

import asyncio
from zoneinfo import ZoneInfo

from services.ledger.registering import Registry
from shared.bus import Bus, Delivery
from shared.envelope import Envelope, decode
from shared.errors import MalformedError, RefusedError, UnavailableError
from shared.facts import ConferralRuled, PrecedentSet, plain
from shared.telemetry import logger

RULED = "evt.*.dispatch.*.conferral.ruled"
BY = "service:ledger"
PAUSE_S = 0.5


async def follow(bus: Bus, registry: Registry, stop: asyncio.Event) -> None:
    """Write every ruling into the register that asks for it and is not there yet, until told to stop."""
    reader = bus.reader([RULED], after=0)
    try:
        while not stop.is_set():
            for delivery in await reader.wait(0.5):
                await _take(registry, delivery, stop)
    finally:
        await reader.close()


async def _take(registry: Registry, delivery: Delivery, stop: asyncio.Event) -> None:
    try:
        envelope = decode(delivery.subject, delivery.data)
    except MalformedError as why:
        logger().error("ruling_ignored", sequence=delivery.sequence, why=str(why))
        return
    fact = envelope.fact
    if not isinstance(fact, ConferralRuled) or not fact.precedent:
        return
    while not stop.is_set():
        try:
            register = await registry.current()
            if fact.conferral_id in registry.ruled:
                return
            document = {"precedents": [plain(precedent(envelope, fact, register.zone(envelope.district)))]}
            await registry.apply(document, why=f"conferral {fact.conferral_id}", by=BY)
            logger().info("precedent_written", conferral=fact.conferral_id, sequence=delivery.sequence)
            return
        except RefusedError as why:
            if why.code != "stale_register":
                logger().error("precedent_refused", conferral=fact.conferral_id, why=why.facts.get("why_en", why.code))
                return
        except UnavailableError as why:
            logger().warning("precedent_waits", conferral=fact.conferral_id, why=str(why))
            await asyncio.sleep(PAUSE_S)


def precedent(envelope: Envelope, fact: ConferralRuled, zone: ZoneInfo) -> PrecedentSet:
    """What holds for this item in this area from the day of the ruling on."""
    return PrecedentSet(
        area=envelope.area,
        item=fact.item,
        owner=fact.owner,
        conferral=fact.conferral_id,
        basis=fact.basis,
        valid_from=envelope.time.astimezone(zone).date(),
    )
