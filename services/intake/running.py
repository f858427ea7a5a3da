"""One instance of intake put together: bus, folds, door and app."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime

from fastapi import FastAPI

from services.intake.api import create_app
from services.intake.cases import Cases
from services.intake.committing import GroupCommit
from services.intake.disclosing import REACH, Disclosures
from services.intake.door import SEALED, Door
from services.intake.erasing import Erasing
from services.intake.following import Following
from services.intake.keeping import STREAM as KEYS
from services.intake.keeping import KeyKeeper
from services.intake.naming import Naming
from services.intake.people import People
from services.intake.retaining import Retention
from services.intake.rewrapping import Rewrapping
from services.intake.sealing import Keys
from services.intake.settings import Settings
from services.intake.sweeping import Sweeper
from shared.auth import Doorkeeper
from shared.bus import STREAM, Bus
from shared.limiting import Limits


@dataclass(frozen=True)
class Intake:
    """An app, the folds it needs to be followed (`following.run()`), and who tidies up behind it (`sweeper.run()`, `retention.run()`)."""

    app: FastAPI
    following: Following
    disclosures: Disclosures
    sweeper: Sweeper
    retention: Retention

    async def listen(self, bus: Bus) -> None:
        """Take what is asked over the bus; the instances share it."""
        await bus.serve(REACH, self.disclosures.take, alone=True, apart=True)


def bring_up(bus: Bus, settings: Settings) -> Intake:
    """
    Put an instance together.

    Raises:
        OSError, ValueError: a secret or the file of public keys is missing or unfit; said in one line.
    """
    naming = Naming(settings.strong("intake_secret").get_secret_value())
    keys = Keys(
        pepper=settings.strong("contact_pepper").get_secret_value(),
        keks=settings.keks(),
    )
    doorkeeper = Doorkeeper.of(settings)
    following = Following(bus, _now)
    keeper = KeyKeeper(bus, keys, GroupCommit(bus, KEYS), random=secrets.token_bytes)
    door = Door(
        bus,
        naming=naming,
        keeper=keeper,
        ciphertexts=GroupCommit(bus, SEALED),
        facts=GroupCommit(bus, STREAM),
        following=following,
        limits=Limits(settings.rate_per_s, settings.rate_burst),
        clock=_now,
        commit_within_s=settings.commit_within_s,
    )

    def parties(district: str, area: str, now: datetime) -> tuple[str, ...]:
        register = following.known.register
        return register.parties(area, register.today(district, now))

    cases = Cases(bus, naming, _now, position=lambda: door.position, parties=parties, within_s=settings.commit_within_s)
    disclosures = Disclosures(cases, keeper, naming, bus.at)
    erasing = Erasing(bus, cases, disclosures, keeper, naming, _now)

    async def ready() -> dict[str, str]:
        missing = {}
        if not bus.connected:
            missing["nats"] = "not connected"
        if bus.refused:
            missing["permissions"] = bus.refused
        return missing or await following.missing()

    app = create_app(
        door=door,
        cases=cases,
        disclosures=disclosures,
        people=People(cases, disclosures, erasing, naming),
        rewrapping=Rewrapping(bus, keys, random=secrets.token_bytes),
        following=following,
        naming=naming,
        doorkeeper=doorkeeper,
        misses=Limits(settings.misses_per_s, settings.misses_burst),
        ready=ready,
    )
    return Intake(
        app,
        following,
        disclosures,
        Sweeper(bus, _now, erasing.finish),
        Retention(bus, cases, erasing, naming, lambda: following.known.register, _now),
    )


def _now() -> datetime:
    return datetime.now(UTC)
