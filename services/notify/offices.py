"""The districts this instance serves: for each a loop of turns and a sender."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from services.notify.channels import Channels
from services.notify.contacts import Contacts
from services.notify.model import Post
from services.notify.residents import Residents
from services.notify.rules import RULES
from services.notify.sending import Sender
from services.notify.wording import Wording
from shared import register as registers
from shared.bus import Bus
from shared.envelope import Envelope, decode
from shared.errors import MalformedError
from shared.facts import DistrictSet, MemberErased
from shared.telemetry import logger
from shared.turns import Turns

ERASED = "evt.*.dispatch.*.member.erased"


@dataclass(frozen=True)
class Office:
    """One district's loop, and its sender."""

    turns: Turns[Post]
    turning: asyncio.Task[None]
    sending: asyncio.Task[None]


class Offices:
    """All of them. `follow` or `open` starts them, `close` drains them all."""

    def __init__(
        self,
        bus: Bus,
        instance: str,
        contacts: Contacts,
        channels: Channels,
        wording: Wording,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        snapshot: Callable[[str], None] | None = None,
    ) -> None:
        self._snapshot = snapshot
        self._bus = bus
        self._instance = instance
        self._contacts = contacts
        self._channels = channels
        self._wording = wording
        self._clock = clock
        self._residents = Residents(bus)
        self._stop_sending = asyncio.Event()
        self._stop_turning = asyncio.Event()
        self._following: asyncio.Task[None] | None = None
        self.open_now: dict[str, Office] = {}

    def open(self, district: str) -> None:
        """Serve a district from now on; nothing happens where it is served already."""
        if district in self.open_now or self._stop_sending.is_set():
            return
        turns = Turns(RULES, self._bus, district, self._instance, clock=self._clock, snapshot=self._snapshot)
        sender = Sender(
            district, turns, self._contacts, self._residents, self._channels, self._wording, clock=self._clock
        )
        self.open_now[district] = Office(
            turns,
            asyncio.create_task(turns.run(self._stop_turning), name=f"turns {district}"),
            asyncio.create_task(sender.run(self._stop_sending), name=f"sender {district}"),
        )

    def follow(self, districts: Iterable[str] | None) -> None:
        """Serve these districts, or, for None, every one as soon as the register names it; forget whoever is erased."""
        for district in districts or ():
            self.open(district)
        self._following = asyncio.create_task(self._follow(register=districts is None), name="follow register")

    async def _follow(self, *, register: bool) -> None:
        reader = self._bus.reader((ERASED, registers.SUBJECTS) if register else (ERASED,), after=0)
        try:
            while True:
                for delivery in await reader.wait(5.0):
                    with suppress(MalformedError):  # the ledger and the desks say so
                        match decode(delivery.subject, delivery.data):
                            case Envelope(fact=DistrictSet(district=district)):
                                self.open(district)
                            case Envelope(fact=MemberErased(member_id=member), district=district):
                                self._contacts.forget(district, member)
        finally:
            await reader.close()

    def state(self, district: str) -> Post | None:
        """The newest state of a district, or None where it is not served."""
        office = self.open_now.get(district)
        return office.turns.state if office else None

    def posts(self) -> list[Post]:
        """The newest state of every district that is served."""
        return [office.turns.state for office in self.open_now.values()]

    def missing(self) -> Mapping[str, str]:
        """What does not work, by name, with why."""
        missing = {}
        if not self._bus.connected:
            missing["nats"] = "not connected"
        if self._bus.refused:
            missing["permissions"] = self._bus.refused
        if self._following and self._following.done():
            missing["register"] = "not followed any more"
        for district, office in self.open_now.items():
            if office.turns.failed or office.turning.done():
                missing[f"turns.{district}"] = str(office.turns.failed or "ended")
            if office.sending.done():
                missing[f"sender.{district}"] = "ended"
        return missing

    async def close(self) -> None:
        """Stop sending, report, commit, then let go."""
        if self._following:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        self._stop_sending.set()
        offices = self.open_now.values()
        await _ended(*(office.sending for office in offices))
        self._stop_turning.set()
        await _ended(*(office.turning for office in offices))
        self._channels.close()


async def _ended(*tasks: asyncio.Task[None]) -> None:
    for why in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(why, Exception):
            logger().error("ended_with_error", why=repr(why)[:300])
