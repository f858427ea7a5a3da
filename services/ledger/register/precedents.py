"""
Rulings become precedents: what a conferral has ruled for the next of its kind is written into the register, once.

Only what the giver has acted on counts: it says so with `conferral.ended`, reason `ruled`. A ruling that came too late, when the task
was over or the term had passed, has changed nothing and is no example for others.

Nothing is remembered beside the register itself: every `register.precedent_set` names its conferral, so a ruling that one of them
names has been written, whatever an administrator set afterwards.
"""

from __future__ import annotations

import asyncio
from zoneinfo import ZoneInfo

from services.ledger.register.registering import Registry
from shared.bus import Bus, Delivery
from shared.envelope import Envelope, decode
from shared.errors import MalformedError, RefusedError, UnavailableError
from shared.facts import ConferralEnded, ConferralRuled, PrecedentSet, plain
from shared.telemetry import logger

FOLLOWED = ("evt.*.dispatch.*.conferral.ruled", "evt.*.dispatch.*.conferral.ended")
BY = "service:ledger"
PAUSE_S = 0.5


async def follow(bus: Bus, registry: Registry, stop: asyncio.Event) -> None:
    """Write every ruling into the register that asks for it, has taken effect and is not there yet, until told to stop."""
    reader = bus.reader(FOLLOWED, after=0)
    rulings: dict[str, Envelope] = {}
    try:
        while not stop.is_set():
            for delivery in await reader.wait(0.5):
                if ruling := _effective(rulings, delivery):
                    await _write(registry, ruling, stop)
    finally:
        await reader.close()


def _effective(rulings: dict[str, Envelope], delivery: Delivery) -> Envelope | None:
    """The ruling that has just taken effect, if it asks to be a precedent; those whose conferral is still open are kept."""
    try:
        envelope = decode(delivery.subject, delivery.data)
    except MalformedError as why:
        logger().error("ruling_ignored", sequence=delivery.sequence, why=str(why))
        return None
    match envelope.fact:
        case ConferralRuled(conferral_id=id, precedent=True):
            rulings[id] = envelope
        case ConferralEnded(conferral_id=id, reason=reason):
            ruling = rulings.get(id)
            if ruling and isinstance(ruling.fact, ConferralRuled) and ruling.fact.giver == envelope.district:
                del rulings[id]
                return ruling if reason == "ruled" else None
    return None


async def _write(registry: Registry, envelope: Envelope, stop: asyncio.Event) -> None:
    fact = envelope.fact
    assert isinstance(fact, ConferralRuled)
    while not stop.is_set():
        try:
            register = await registry.current()
            if fact.conferral_id in registry.ruled:
                return
            document = {"precedents": [plain(precedent(envelope, fact, register.zone(envelope.district)))]}
            await registry.apply(document, why=f"conferral {fact.conferral_id}", by=BY)
            logger().info("precedent_written", conferral=fact.conferral_id)
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
