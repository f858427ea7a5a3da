"""How members are reached: names, numbers and quiet hours are personal data and live in CONTACTS, never in a fact."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Protocol
from unicodedata import normalize
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from services.notify.model import RESIDENT
from shared.bus import Stored
from shared.facts import Language
from shared.telemetry import logger

BUCKET = "KV_CONTACTS"
CONSOLE = "console"
FRESH_S = 30.0
"""How long a contact, or that there is none, is believed before it is looked up again."""
LOOKUPS_MAX = 32
MINUTES = 1440


def dialled(phone: str) -> str:
    """A number as a gateway wants it: its digits, and the + before them."""
    return "".join(letter for letter in normalize("NFKC", phone) if letter.isdigit() or letter == "+")


Phone = Annotated[str, AfterValidator(dialled)]
Minute = Annotated[int, Field(ge=0, le=MINUTES)]


class Contact(BaseModel):
    """
    How to reach one member.

    Attributes:
        quiet: minutes of the local day between which they are not disturbed, over midnight where the second is smaller;
            None: as the district's policy says.
        channels: of the service's configuration, or whole Apprise URLs; the first is used, the next after a failure.
        phone: for a channel whose URL asks for an address (`{to}`).
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    language: Language = "zh-CN"
    quiet: tuple[Minute, Minute] | None = None
    channels: tuple[str, ...] = (CONSOLE,)
    phone: Phone = Field("", repr=False)

    def channel(self, attempt: int) -> str:
        """Where the attempt (from 1) goes."""
        return self.channels[(attempt - 1) % len(self.channels)] if self.channels else CONSOLE


NOBODY = Contact(quiet=(0, 0))
"""Who has no contact: the log hears of them, at any hour."""
SEALED = Contact()
"""A resident: the district's quiet hours count, and how they are reached is asked for when the message goes out."""


class Bus(Protocol):
    """What looking up needs of the bus."""

    async def last(self, subject: str, *, stream: str) -> Stored | None:
        """The last message on a subject, or None."""


class Contacts:
    """Looks contacts up, and remembers them for 30 s at most: whoever is erased is forgotten at once."""

    def __init__(self, bus: Bus, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._bus = bus
        self._clock = clock
        self._known: OrderedDict[tuple[str, str], tuple[float, Contact]] = OrderedDict()  # what ends first comes first

    async def look_up(self, district: str, members: Iterable[str]) -> None:
        """
        See that `known` can tell of these, as their office has entered them; there is nothing to look up of a resident.

        Raises:
            BusError: not all could be looked up.
        """
        self.forget_old()
        wanted = {member for member in members if not member.startswith(RESIDENT)}
        missing = [member for member in wanted if (district, member) not in self._known]
        for start in range(0, len(missing), LOOKUPS_MAX):
            some = missing[start : start + LOOKUPS_MAX]
            asked = (self._bus.last(f"$KV.CONTACTS.{district}.{m}", stream=BUCKET) for m in some)
            found = await asyncio.gather(*asked)
            until_s = self._clock() + FRESH_S
            for member, stored in zip(some, found, strict=True):
                self._known[district, member] = (until_s, _contact(member, stored))

    def known(self, district: str, member: str) -> Contact | None:
        """The contact of a member, `NOBODY` for one who has none; None where it has to be looked up (again)."""
        known = self._known.get((district, member))
        return known[1] if known else None

    def forget(self, district: str, member: str) -> None:
        """They have been erased."""
        self._known.pop((district, member), None)

    def forget_old(self) -> None:
        """What was looked up too long ago."""
        now_s = self._clock()
        while self._known and next(iter(self._known.values()))[0] <= now_s:
            self._known.popitem(last=False)


def _contact(member: str, stored: Stored | None) -> Contact:
    if stored is None or not stored.data:
        return NOBODY
    try:
        return Contact.model_validate_json(stored.data)
    except ValidationError as why:  # its text would hold what it found
        logger().warning("contact_unreadable", recipient=member, errors=why.error_count())
        return NOBODY


def quiet_until(quiet: tuple[int, int] | None, zone: ZoneInfo, now: datetime) -> datetime | None:
    """
    When the quiet hours that it is in now will end, UTC; None outside of them.

    Args:
        quiet: minutes of the local day, `[since, until)`; over midnight where `until` is smaller; the same twice: never.
    """
    if quiet is None or quiet[0] == quiet[1]:
        return None
    since, until = quiet
    local = now.astimezone(zone)
    minute = local.hour * 60 + local.minute
    within = since <= minute < until if since < until else minute >= since or minute < until
    if not within:
        return None
    day = local.date() if minute < until else local.date() + timedelta(days=1)
    midnight = datetime(day.year, day.month, day.day, tzinfo=zone)
    return (midnight + timedelta(minutes=until)).astimezone(UTC)
