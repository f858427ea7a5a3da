"""What the benchmarks work on: one district, four areas with 24 members each, the demo's real catalogue, real-sounding requests."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from shared.bus import Bus, Message
from shared.clocks import Calendar, dues
from shared.envelope import Envelope
from shared.facts import (
    HUB,
    NOWHERE,
    AreaSet,
    CalendarSet,
    DistrictSet,
    Due,
    Fact,
    ItemSet,
    MemberEnrolled,
    Point,
    PolicySet,
    RegisterApplied,
    RequestSubmitted,
    Sealed,
    UrgencySet,
    instant,
)
from shared.ids import new_id

DISTRICT = "990001"
AREAS = ("bench-1a", "bench-2b", "bench-3c", "bench-4d")
MEMBERS_PER_AREA = 24
CAPACITY = 100_000
"""So large that nobody is ever full: the benchmarks measure matching among everybody, not refusals."""
WEST, SOUTH, SIDE = 1_143_000_000, 305_000_000, 100_000
"""The areas are squares in a row, 1e-7 degrees."""
DEMO = Path(__file__).parents[2] / "deploy" / "demo" / "register.json"


@cache
def document() -> dict[str, Any]:
    """A register document: the demo's catalogue, urgency words and calendars; a district and areas of our own."""
    demo = json.loads(DEMO.read_text())
    areas = []
    for n, code in enumerate(AREAS):
        west, south, east, north = WEST + n * SIDE, SOUTH, WEST + (n + 1) * SIDE, SOUTH + SIDE
        ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
        areas.append(
            {
                "area": code,
                "title": {"zh": f"测试片区{n + 1}", "en": f"Bench area {n + 1}"},
                "level": "community",
                "valid_from": "2020-01-01",
                "located_in": DISTRICT,
                "administered_by": DISTRICT,
                "owned_by": "公共区域",
                "served_by": DISTRICT,
                "words": [f"测试片区{n + 1}"],
                "polygon": [ring],
            }
        )
    name = {"zh": "测试区", "en": "Bench district"}
    policy = {
        "district": DISTRICT,
        "version": 1,
        "calendar": "wuhan",
        # So long that no offer runs out, nor an open task of a month-old history.
        "offer": {"amount": 80_000, "unit": "hours"},
        "close_after": {"amount": 80_000, "unit": "hours"},
        "waves": 4,
        "weights": {"workload": 1},
    }
    return {
        "districts": [
            {"district": DISTRICT, "title": name, "office": name, "zone": "Asia/Shanghai", "rate_limited": False}
        ],
        "calendars": demo["calendars"],
        "areas": areas,
        "agreements": [],
        "items": demo["items"],
        "urgency": demo["urgency"],
        "policies": [policy],
    }


@cache
def register_facts() -> tuple[Fact, ...]:
    """The same as facts, `register.applied` last."""
    models: Mapping[str, type[Fact]] = {
        "districts": DistrictSet,
        "calendars": CalendarSet,
        "areas": AreaSet,
        "items": ItemSet,
        "urgency": UrgencySet,
        "policies": PolicySet,
    }
    facts = [model.model_validate(row) for part, model in models.items() for row in document()[part]]
    return (*facts, RegisterApplied(by="bench", why="bench", digest="be" * 32, facts=len(facts)))


async def apply_register(bus: Bus) -> int:
    """Put the register on the bus, as the ledger would; `bus` is the admin's. Returns its last sequence."""
    now = instant(datetime.now(UTC))
    envelopes = [Envelope(new_id(), HUB, NOWHERE, now, fact, HUB) for fact in register_facts()]
    return await bus.commit([Message(envelope.subject, envelope.encode()) for envelope in envelopes])


def members() -> list[MemberEnrolled]:
    """Grid members who have every skill that the catalogue asks for."""
    skills = tuple(sorted({skill for item in document()["items"] for skill in item.get("skills", ())}))
    return [
        MemberEnrolled(
            member_id=f"m-{area}-{n:02d}", kind="grid_member", areas=(area,), skills=skills, capacity=CAPACITY
        )
        for area in AREAS
        for n in range(MEMBERS_PER_AREA)
    ]


@cache
def _items() -> tuple[ItemSet, ...]:
    return tuple(
        fact
        for fact in register_facts()
        if isinstance(fact, ItemSet) and (not fact.kinds or "grid_member" in fact.kinds)
    )


@cache
def _calendar() -> Calendar:
    return next(Calendar.of(f) for f in register_facts() if isinstance(f, CalendarSet) and f.calendar == "wuhan")


@lru_cache(maxsize=4096)
def _due(item: ItemSet, hour: datetime) -> Due:
    return dues(hour, item.limits, _calendar())


def request(n: int, now: datetime) -> Envelope:
    """The n-th request as intake commits it: all ids random, area and item going round."""
    item, id = _items()[n % len(_items())], new_id()
    fact = RequestSubmitted(
        request_id=id,
        fingerprint=secrets.token_hex(32),
        tracking_hash=secrets.token_hex(32),
        channel="app",
        item=item.item,
        item_rule=f"word:{item.words[0]}" if item.words else "none",
        urgency=item.urgency,
        urgency_rule="item",
        area=AREAS[n % len(AREAS)],
        area_rule="polygon",
        located_in=DISTRICT,
        point=Point(lon=WEST + (n % len(AREAS)) * SIDE + n * 7919 % SIDE, lat=SOUTH + n * 104_729 % SIDE),
        due=_due(item, now.replace(minute=0, second=0, microsecond=0)),
        # Nobody to tell but members: the bare pipeline writes what follows for one recipient of each request.
        sealed=Sealed(kid=secrets.token_hex(16), commitment=secrets.token_hex(32), parts=("text",)),
    )
    return Envelope(new_id(), DISTRICT, fact.area, now, fact, DISTRICT, id)


def requests(many: int) -> Iterator[Message]:
    """So many requests as messages, each fenced on its own subject as intake's are."""
    now = instant(datetime.now(UTC))
    for n in range(many):
        envelope = request(n, now)
        yield Message(envelope.subject, envelope.encode(), 0)
