"""Who is shown which facts: what an office sees of its own and of its enclaves, and a member of their own tasks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import orjson

from shared.auth import EVERYWHERE, Caller
from shared.bus import Delivery
from shared.errors import RefusedError
from shared.facts import HUB

PRIVATE = ("match.", "turn.", "notice.", "member.", "ledger.")
"""What never reaches another office, even for a task that both see."""
LEEWAY_S = 5.0
"""As at the door: clocks differ, so a token holds a little longer than it says."""
OFFICE = frozenset({"clerk", "dispatcher", "supervisor", "auditor", "admin"})
"""Who works for the office as a whole; anybody else sees what concerns themselves."""
BETWEEN_DESK_AND_ONE = ("task.offered", "task.declined", "task.expired")
"""Whom else a desk asked, and why they said no, is not their colleagues' affair."""


ROLES = ("member", *sorted(OFFICE))
"""Who may watch at all."""


def prefixes(types: str) -> tuple[str, ...]:
    """What is wanted, from `task.offered, handover.`; nothing is everything."""
    return tuple(one.strip() for one in types.split(",") if one.strip())


Shares = Callable[[str, "Event"], bool]
"""Whether a district is still shown what another's fact names it in."""


def all_shared(_district: str, _event: Event) -> bool:
    """Where nothing is known of agreements."""
    return True


class Event(NamedTuple):
    """One fact as the stream sends it."""

    sequence: int
    district: str
    area: str
    name: str
    districts: tuple[str, ...]
    lines: bytes
    """As server-sent event, made once for everybody who watches; its id is the stream's sequence."""
    task: str = ""
    members: tuple[str, ...] = ()
    """Whom it names."""
    case: str = ""

    @classmethod
    def of(cls, delivery: Delivery) -> Event | None:
        """From what the bus delivered; None for what is no fact."""
        try:
            _, district, _, area, entity, fact, *_ = delivery.subject.split(".", 6)
            document = orjson.loads(delivery.data)
            districts = tuple(document["districts"].split(","))
            about, case = document["data"], str(document.get("correlationid", ""))
            task, members = str(about.get("task_id", "")), tuple(map(str, about.get("members", ())))
            if "member_id" in about:
                members = (*members, str(about["member_id"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        if b"\n" in delivery.data or b"\r" in delivery.data:
            return None  # not canonical, so no fact; and a line break would end the event's data
        name = f"{entity}.{fact}"
        lines = b"id: %d\nevent: %b\ndata: %b\n\n" % (delivery.sequence, name.encode(), delivery.data)
        return cls(delivery.sequence, district, area, name, districts, lines, task, members, case)

    @property
    def data(self) -> bytes:
        """The envelope's bytes."""
        return self.lines[self.lines.index(b"\ndata: ") + 7 : -2]


class Wanted(NamedTuple):
    """
    What one client wants to see, and may.

    Attributes:
        member: set for somebody who is no more than a member: they see what names them, and what becomes of tasks they were asked
            about.
        expires: when their token ends, seconds since 1970, and with it what they are shown.
    """

    district: str
    area: str | None = None
    types: tuple[str, ...] = ()
    member: str | None = None
    expires: float = float("inf")

    @classmethod
    def by(cls, caller: Caller, district: str | None, area: str | None, types: str | None) -> Wanted:
        """Raises RefusedError `foreign_district`."""
        of = district or caller.district
        if not caller.of(of) and of != caller.district:
            raise RefusedError("foreign_district", district=of, yours=caller.district)
        return cls(
            of,
            area,
            prefixes(types or ""),
            None if caller.roles & OFFICE else caller.id,
            caller.expires,
        )

    @property
    def ends(self) -> float:
        """When they are shown nothing more, seconds since 1970."""
        return self.expires + LEEWAY_S

    @property
    def over(self) -> bool:
        """Whether their token has ended."""
        return time.time() > self.ends

    def shows(self, event: Event, asked: Iterable[str] = (), shares: Shares = all_shared) -> bool:
        """
        Whether this client gets this event: its office serves, or the fact is shared with it.

        Args:
            asked: the tasks that the client, a member, was asked about.
        """
        if self.member is not None and not self._concerns(event, asked):
            return False
        if self.district != EVERYWHERE and event.district != self.district:
            if event.name.startswith(PRIVATE):
                return False
            if HUB not in event.districts and not (self.district in event.districts and shares(self.district, event)):
                return False
        if self.area is not None and event.area != self.area:
            return False
        if self.types:
            return event.name.startswith(self.types)
        return not event.name.startswith("turn.")

    def _concerns(self, event: Event, asked: Iterable[str]) -> bool:
        if event.name.startswith("help."):
            return self.member in event.members  # who was lent, and is free again
        if not event.name.startswith("task."):
            return False
        return self.member in event.members or (event.task in asked and event.name not in BETWEEN_DESK_AND_ONE)
