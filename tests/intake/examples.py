"""A small register with an enclave, and requests that somebody might send."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

from shared.clocks import ALWAYS, dues
from shared.envelope import Envelope
from shared.facts import (
    HUB,
    NOWHERE,
    AgreementSet,
    AreaSet,
    CalendarSet,
    DistrictSet,
    Fact,
    ItemSet,
    Limit,
    Limits,
    Name,
    PolicySet,
    RegisterApplied,
    TaskOpened,
    UrgencySet,
)
from shared.ids import derived_id
from shared.register import Register, evolve

NOW = datetime(2026, 11, 23, 2, 0, tzinfo=UTC)
"""Monday, ten in the morning in Wuhan."""
SINCE = date(2024, 1, 1)
WUCHANG, QINGSHAN, LOAD = "420106", "420107", "990001"

LIMITS = Limits(
    sign=Limit(amount=30, unit="minutes"),
    contact=Limit(amount=4, unit="working_hours"),
    handle=Limit(amount=1, unit="working_days"),
    life=Limit(amount=3, unit="working_days"),
)


def square(lon: int, lat: int, side: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """A square with this south-west corner, in 1e-7 degrees."""
    return (((lon, lat), (lon + side, lat), (lon + side, lat + side), (lon, lat + side)),)


def name(zh: str, en: str) -> Name:
    """Both names."""
    return Name(zh=zh, en=en)


def area(code: str, served_by: str, located_in: str | None = None, **more: Any) -> AreaSet:
    """An area served by one district, perhaps lying in another."""
    where = located_in or served_by
    fields: dict[str, Any] = {
        "title": name(code, code.title()),
        "level": "grid",
        "valid_from": SINCE,
        "owned_by": "公共区域",
        **more,
    }
    return AreaSet(area=code, located_in=where, administered_by=where, served_by=served_by, **fields)


def item(code: str, *words: str, **more: Any) -> ItemSet:
    """A line of the catalogue."""
    fields: dict[str, Any] = {"category": ("房屋", "维修"), "effort": 2, "limits": LIMITS, **more}
    return ItemSet(item=code, title=name(code, code.title()), words=words, **fields)


OUJING = area("oujing", WUCHANG, words=("欧景苑", "欧景苑社区"), polygon=square(1_143_400_000, 305_900_000, 100_000))
YUANLIN = area("yuanlin", QINGSHAN, words=("园林路",), polygon=square(1_143_600_000, 305_900_000, 100_000))
XINXIANG = area(
    "xinxiang", WUCHANG, QINGSHAN, words=("新湘小区",), polygon=square(1_143_640_000, 305_940_000, 20_000)
)  # fmt: skip
WARD = area("ward-1", LOAD)

FACTS: tuple[Fact, ...] = (
    DistrictSet(district=WUCHANG, title=name("武昌区", "Wuchang"), office=name("武昌", "Wuchang office")),
    DistrictSet(district=QINGSHAN, title=name("青山区", "Qingshan"), office=name("青山", "Qingshan office")),
    DistrictSet(district=LOAD, title=name("演示", "Load"), office=name("演示", "Load"), rate_limited=False),
    CalendarSet(
        calendar="wuhan",
        zone="Asia/Shanghai",
        hours=((540, 720), (840, 1050)),
        workdays=(1, 2, 3, 4, 5),
    ),
    OUJING,
    YUANLIN,
    XINXIANG,
    WARD,
    AgreementSet(
        agreement="agr-1",
        area="xinxiang",
        parties=(WUCHANG, QINGSHAN),
        lead=WUCHANG,
        services=("诉求受理",),
        valid_from=SINCE,
    ),
    item("repair.leak", "漏水", "水管", "水管漏水", urgency=1, same_radius_m=30, same_window_s=21_600),
    item("sewer.public", "下水道", "leak", same_radius_m=80, same_window_s=3_600),
    item("tree", "tree", "树枝"),
    item("fire", "着火", urgency=3, phone="119"),
    item("other"),
    UrgencySet(urgency=2, words=("漏水到电表",)),
    UrgencySet(urgency=3, words=("晕倒", "起火")),
    PolicySet(
        district=WUCHANG,
        version=1,
        calendar="wuhan",
        offer=Limit(amount=15, unit="minutes"),
        close_after=Limit(amount=3, unit="working_days"),
        weights={"workload": 1},
    ),
)


def register(*more: Fact) -> Register:
    """The register of these facts and more, as one applied document."""
    held = Register()
    for fact in (*FACTS, *more, applied()):
        held = evolve(held, fact)
    return held


def applied(count: int = len(FACTS)) -> RegisterApplied:
    """The end of a document."""
    return RegisterApplied(by="admin", why="test", digest="ab" * 32, facts=count)


def envelope(fact: Fact, nonce: object = "") -> Envelope:
    """A register fact under way."""
    return Envelope(
        id=derived_id(fact.name, getattr(fact, fact.key), nonce),
        district=HUB,
        area=NOWHERE,
        time=NOW,
        fact=fact,
        districts="",
    )


def task_of(request_id: str, round_: int = 1, district: str = WUCHANG) -> str:
    """The task that a desk opens for it."""
    return derived_id("task", request_id, round_, district)


def opened(request_id: str, round_: int = 1, district: str = WUCHANG) -> TaskOpened:
    """As a desk says it."""
    due = dues(NOW, LIMITS, ALWAYS)
    return TaskOpened(
        task_id=task_of(request_id, round_, district),
        request_id=request_id,
        round=round_,
        area="oujing",
        item="repair.leak",
        urgency=1,
        effort=2,
        due=due,
    )


LEAK: dict[str, Any] = {
    "text": "厨房水管漏水,麻烦来看看",
    "location": {"lon": 114.3450000, "lat": 30.5950000},
    "contact": {"name": "张三", "phone": "138 0013 8000"},
}
