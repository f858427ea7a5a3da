"""
Example facts with fixed ids and times: a Monday morning in one small district.

OUJING (`oujing-1`) is a grid of the estate `oujingyuan` and is served by 武昌; XINXIANG (`xinxiang-7k`) is an enclave that
武昌 serves on 青山's ground. Li, Wang and Zhao are grid members of the grid or of the estate around it.
"""

from datetime import UTC, date, datetime, timedelta

from shared.auth import Caller
from shared.envelope import Envelope
from shared.facts import (
    NOWHERE,
    AgreementSet,
    AreaSet,
    CalendarSet,
    DistrictSet,
    Due,
    Fact,
    ItemSet,
    Limit,
    Limits,
    MemberEnrolled,
    Name,
    PolicySet,
    RegisterFact,
    RequestRated,
    RequestReopened,
    RequestSubmitted,
    RequestWithdrawn,
)
from shared.ids import derived_id

NOW = datetime(2026, 11, 23, 2, 0, tzinfo=UTC)
"""Monday, 10:00 in Wuhan."""
MINUTE = timedelta(minutes=1)
WUCHANG, QINGSHAN, HONGSHAN = "420106", "420107", "420111"
OUJING, ESTATE, XINXIANG = "oujing-1", "oujingyuan", "xinxiang-7k"
LEAK, LIFT = "repair.leak", "rescue.lift"
OFFER = timedelta(minutes=15)
QUIET = timedelta(hours=72)


def id_of(*parts: object) -> str:
    """A fixed id."""
    return derived_id("example", *parts)


REQUEST = id_of("request", 1)
TASK = derived_id(REQUEST, "task", 1)
SECOND_ROUND = derived_id(REQUEST, "task", 2)
DUE = Due(sign=NOW + 30 * MINUTE, contact=NOW + 60 * MINUTE, handle=NOW + 600 * MINUTE, life=NOW + 6000 * MINUTE)

# --- the register -----------------------------------------------------------------------------------------------------


def name(zh: str) -> Name:
    """What people call it."""
    return Name(zh=zh, en=zh)


def limit(amount: int, unit: str = "minutes") -> Limit:
    """A limit."""
    return Limit.model_validate({"amount": amount, "unit": unit})


LIMITS = Limits(
    sign=limit(30), contact=limit(1, "hours"), handle=limit(8, "working_hours"), life=limit(5, "working_days")
)
DISTRICT = DistrictSet(district=WUCHANG, title=name("武昌区"), office=name("武昌区网格中心"))
NEIGHBOUR = DistrictSet(district=QINGSHAN, title=name("青山区"), office=name("青山区网格中心"))
CALENDAR = CalendarSet(
    calendar="office",
    zone="Asia/Shanghai",
    hours=((540, 720), (840, 1080)),  # 09:00-12:00, 14:00-18:00
    workdays=(1, 2, 3, 4, 5),
    holidays=(date(2026, 10, 1), date(2026, 10, 2)),
    makeup=(date(2026, 10, 10),),
)
POLICY = PolicySet(
    district=WUCHANG,
    version=7,
    calendar="office",
    offer=limit(15),
    waves=3,
    close_after=limit(72, "hours"),
    weights={"workload": 1},
)
AGREEMENT = AgreementSet(
    agreement="xinxiang-2026",
    area=XINXIANG,
    parties=(WUCHANG, QINGSHAN),
    lead=WUCHANG,
    services=("repair",),
    valid_from=date(2026, 3, 1),
    valid_to=date(2026, 12, 31),
)


def area(
    code: str,
    *,
    parent: str | None = None,
    since: date = date(2020, 1, 1),
    served_by: str = WUCHANG,
    located_in: str = WUCHANG,
) -> AreaSet:
    """An area on these terms."""
    return AreaSet(
        area=code,
        title=name(code),
        level="grid" if parent else "estate",
        parent=parent,
        valid_from=since,
        located_in=located_in,
        administered_by=located_in,
        owned_by="市",
        served_by=served_by,
    )


def item(code: str, *, effort: int = 10, skills: tuple[str, ...] = (), kinds: tuple[str, ...] = ()) -> ItemSet:
    """A line of the catalogue."""
    return ItemSet.model_validate(
        {
            "item": code,
            "title": name(code),
            "category": ("维修", "repair"),
            "effort": effort,
            "skills": skills,
            "kinds": kinds,
            "limits": LIMITS,
        }
    )


REGISTER: tuple[RegisterFact, ...] = (
    DISTRICT,
    NEIGHBOUR,
    CALENDAR,
    area(ESTATE),
    area(OUJING, parent=ESTATE),
    area(XINXIANG, located_in=QINGSHAN),
    AGREEMENT,
    item(LEAK),
    item(LIFT, skills=("rescue",), kinds=("responder",)),
    POLICY,
)

# --- people -----------------------------------------------------------------------------------------------------------

LI, WANG, ZHAO = "m-li", "m-wang", "m-zhao"


def enrolled(member: str, *areas: str, capacity: int = 40, **terms: object) -> MemberEnrolled:
    """Somebody on these terms: a grid member of OUJING with room for four leaks, unless said otherwise."""
    fields = {
        "member_id": member,
        "kind": "grid_member",
        "areas": areas or (OUJING,),
        "capacity": capacity,
        **terms,
    }
    return MemberEnrolled.model_validate(fields)


TEAM = (enrolled(LI), enrolled(WANG), enrolled(ZHAO))
DISPATCHER = Caller("staff-1", WUCHANG, frozenset({"dispatcher"}))


def member(id: str, district: str = WUCHANG) -> Caller:
    """A member with a token of their own."""
    return Caller(id, district, frozenset({"member"}))


# --- requests ---------------------------------------------------------------------------------------------------------


def submitted(n: int = 1, *, item: str = LEAK, area: str = OUJING, urgency: int = 0) -> RequestSubmitted:
    """A resident's request; number 1 is REQUEST."""
    return RequestSubmitted(
        request_id=id_of("request", n),
        fingerprint="ab",
        tracking_hash="cd",
        channel="app",
        item=item,
        item_rule="given",
        urgency=urgency,
        urgency_rule="item",
        area=area,
        area_rule="code",
        located_in=WUCHANG,
        due=DUE,
    )


RATED = RequestRated(request_id=REQUEST, grade=5, solved=True)
WITHDRAWN = RequestWithdrawn(request_id=REQUEST, reason="solved_itself")
REOPENED = RequestReopened(request_id=REQUEST, reason="not_done", round=2, item=LEAK, urgency=1, due=DUE)


def envelope(
    fact: Fact,
    *,
    at: datetime = NOW,
    district: str = WUCHANG,
    area: str | None = None,
    districts: str | None = None,
    id: str | None = None,
) -> Envelope:
    """The fact under way, with an id that follows from its content."""
    where = area or getattr(fact, "area", None) or (NOWHERE if isinstance(fact, MemberEnrolled) else OUJING)
    return Envelope(
        id or id_of(fact.name, fact.model_dump_json()),
        "000000" if isinstance(fact, RegisterFact) and district == WUCHANG else district,
        NOWHERE if isinstance(fact, RegisterFact) else where,
        at,
        fact,
        districts or ("000000" if isinstance(fact, RegisterFact) else district),
        case=getattr(fact, "request_id", None),
    )
