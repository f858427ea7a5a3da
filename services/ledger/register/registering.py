"""
The register (台账): from a document to facts.

A document names entries; those that differ from what the register says become facts, the others are left alone, and so are
entries that it does not name: nothing in a register is ever forgotten, it is given another date or other words. Applying a
document twice therefore changes nothing. Facts are committed in atomic batches that end with `register.applied`, which is also
the fence: of two who apply at the same time one is told that the register has moved. Where a document needs several batches, all
but the last say that there is `more`, so that who follows need not take half a document for the register.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import shapely
from pydantic import BaseModel, ConfigDict, ValidationError

from services.ledger.register.surveying import brought
from shared.bus import Bus, Fence, Message
from shared.envelope import Envelope, canonical, decode
from shared.errors import ConflictError, MalformedError, RefusedError, UnavailableError
from shared.facts import (
    HUB,
    NOWHERE,
    AgreementSet,
    AreaSet,
    CalendarSet,
    DistrictSet,
    FormulaSet,
    ItemSet,
    Limits,
    OfficeSet,
    PolicySet,
    PrecedentSet,
    RegisterApplied,
    RegisterFact,
    UrgencySet,
    instant,
    plain,
)
from shared.ids import derived_id
from shared.problems import said
from shared.register import SUBJECTS, Register, Sharing, covers, evolve, in_force
from shared.telemetry import logger

FACTS_MAX = 999
"""Of one batch, before its `register.applied`."""
APPLIED = f"evt.{HUB}.ledger.{NOWHERE}.register.applied"
CALENDAR_ALWAYS = "always"
"""Known without being set: day and night."""
WAIT_S = 5.0

Ring = tuple[tuple[int, int], ...]
"""Points [lon, lat] in 1e-7 degrees, closed or not."""

SECTIONS: Mapping[str, type[RegisterFact]] = {
    "districts": DistrictSet,
    "calendars": CalendarSet,
    "areas": AreaSet,
    "agreements": AgreementSet,
    "items": ItemSet,
    "urgency": UrgencySet,
    "policies": PolicySet,
    "offices": OfficeSet,
    "precedents": PrecedentSet,
    "formulas": FormulaSet,
}
"""In the order in which facts are published: what others refer to comes first."""


class Document(BaseModel):
    """What a register document may hold: under each key entries with the fields of the fact of that kind, all optional."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    districts: tuple[DistrictSet, ...] = ()
    calendars: tuple[CalendarSet, ...] = ()
    areas: tuple[AreaSet, ...] = ()
    agreements: tuple[AgreementSet, ...] = ()
    items: tuple[ItemSet, ...] = ()
    urgency: tuple[UrgencySet, ...] = ()
    policies: tuple[PolicySet, ...] = ()
    offices: tuple[OfficeSet, ...] = ()
    precedents: tuple[PrecedentSet, ...] = ()
    formulas: tuple[FormulaSet, ...] = ()

    def entries(self) -> Iterable[tuple[str, RegisterFact]]:
        """Every entry with its path (`areas.3`), in the order of `SECTIONS`."""
        for section in SECTIONS:
            for n, entry in enumerate(getattr(self, section)):
                yield f"{section}.{n}", entry


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of a document beside the register: `+` new, `~` other fields (what they were is `before`), `=` the same."""

    change: str
    what: str
    fact: RegisterFact
    before: RegisterFact | None = None

    def told(self) -> dict[str, Any]:
        """As the caller hears it."""
        fields = [{"field": name, "old": old, "new": new} for name, old, new in differences(self.before, self.fact)]
        return {"change": self.change, "what": self.what, **({"fields": fields} if fields else {})}


def differences(before: RegisterFact | None, after: RegisterFact) -> list[tuple[str, Any, Any]]:
    """Each field that is not as it was, with what it was and what it is; none of what is new."""
    if before is None:
        return []
    pairs = ((name, getattr(before, name), getattr(after, name)) for name in type(after).model_fields)
    return [(name, old, new) for name, old, new in pairs if old != new]


# --- pure -------------------------------------------------------------------------------------------------------------


def read(document: Any) -> Document:
    """
    The document in plain data.

    Raises:
        RefusedError: `invalid`; `field` names entry and field (`areas.3.served_by`), `why` the first thing wrong, `count` how many.
    """
    try:
        return Document.model_validate(document)
    except ValidationError as why:
        errors = why.errors(include_url=False, include_input=False)
        path = ".".join(map(str, errors[0]["loc"])) or "document"
        zh, en = said(errors[0])
        raise RefusedError(
            "invalid", field=path, why=f"{path}: {zh}", why_en=f"{path}: {en}", count=len(errors)
        ) from None


def diff(register: Register, document: Document) -> list[Change]:
    """
    What a document would change, entry by entry.

    Raises:
        RefusedError: `invalid`: an entry refers to what neither the register nor the document has, or contradicts itself.
    """
    after = register
    seen: dict[Any, str] = {}
    changes = []
    for path, entry in document.entries():
        key = _key(entry)
        if key in seen:
            raise _invalid(path, f"the same entry as {seen[key]}", f"与 {seen[key]} 是同一条")
        seen[key] = path
        before = current(register, entry)
        if before == entry:
            changes.append(Change("=", _what(entry), entry))
        elif before is None:
            changes.append(Change("+", _what(entry), entry))
        else:
            changes.append(Change("~", _what(entry), entry, before))
        after = evolve(after, entry)
    for path, entry in document.entries():
        _check(after, path, entry)
    return changes


def as_document(register: Register) -> dict[str, list[Any]]:
    """The register as the document that would make it from nothing, every version of every area."""
    entries: dict[str, Iterable[RegisterFact]] = {
        "districts": _sorted(register.districts),
        "calendars": _sorted(register.calendars),
        "areas": [version for versions in _sorted(register.areas) for version in versions],
        "agreements": _sorted(register.agreements),
        "items": _sorted(register.items),
        "urgency": _sorted(register.urgency),
        "policies": _sorted(register.policies),
        "offices": _sorted(register.offices),
        "precedents": _sorted(register.precedents),
        "formulas": [version for versions in _sorted(register.formulas) for version in versions],
    }
    return {section: list(facts) for section, facts in entries.items()}


def digest(register: Register) -> str:
    """What names this state of the register: the same however it was reached."""
    return sha256(canonical(as_document(register))).hexdigest()


def batches(changes: Sequence[Change], *, unfinished: bool = False) -> list[list[RegisterFact]]:
    """
    The facts to commit, in batches; none where nothing changes.

    Args:
        unfinished: the last document was broken off behind a batch that said `more`: somebody has to say that it has ended.
    """
    facts = [change.fact for change in changes if change.change != "="]
    return [facts[n : n + FACTS_MAX] for n in range(0, len(facts), FACTS_MAX)] or ([[]] if unfinished else [])


def _check(register: Register, path: str, entry: RegisterFact) -> None:
    match entry:
        case DistrictSet():
            _check_zone(f"{path}.zone", entry.zone)
        case CalendarSet():
            _check_calendar(path, entry)
        case AreaSet():
            for name in ("located_in", "administered_by", "served_by"):
                _refer(f"{path}.{name}", getattr(entry, name), register.districts, "district")
            if entry.parent is not None:
                _refer(f"{path}.parent", entry.parent, register.areas, "area")
                _check_ancestors(register, path, entry)
            _check_polygon(f"{path}.polygon", entry.polygon)
        case AgreementSet():
            _refer(f"{path}.area", entry.area, register.areas, "area")
            for n, party in enumerate(entry.parties):
                _refer(f"{path}.parties.{n}", party, register.districts, "district")
            _check_agreement(register, path, entry)
        case ItemSet():
            _check_limits(f"{path}.limits", entry.limits)
        case PolicySet():
            _refer(f"{path}.district", entry.district, {**register.districts, HUB: None}, "district")
            _refer(f"{path}.calendar", entry.calendar, {**register.calendars, CALENDAR_ALWAYS: None}, "calendar")
            if entry.offer.amount == 0 or entry.waves == 0:
                raise _invalid(f"{path}.offer", "an offer needs time, and at least one wave", "派单须有时限,且至少一轮")
            if entry.quiet is not None and max(entry.quiet) > 1440:
                raise _invalid(f"{path}.quiet", "minutes of the day, 1440 at most", "须为一日内的分钟数,至多 1440")
        case OfficeSet():
            _refer(f"{path}.district", entry.district, register.districts, "district")
            for name in ("app", "key"):
                if len({getattr(app, name) for app in entry.apps}) < len(entry.apps):
                    raise _invalid(f"{path}.apps", f"two apps with the same {name}", f"两个应用的 {name} 相同")
        case PrecedentSet():
            _refer(f"{path}.area", entry.area, register.areas, "area")
            _refer(f"{path}.item", entry.item, register.items, "item")
            if entry.owner is not None:
                _refer(f"{path}.owner", entry.owner, register.districts, "district")
        case FormulaSet():
            _refer(f"{path}.district", entry.district, {**register.districts, HUB: None}, "district")
            check_formulas(path, entry)
        case _:
            pass


def check_formulas(path: str, entry: FormulaSet) -> None:
    """Raises RefusedError `invalid`: a figure twice, or a weight of none."""
    figures = [formula.figure for formula in entry.formulas]
    if len({*figures}) < len(figures):
        raise _invalid(f"{path}.formulas", "each figure once", "每项指标只能有一个公式")
    for figure, weight in entry.weights.items():
        if figure not in figures or weight == 0:
            raise _invalid(f"{path}.weights.{figure}", "a figure of this set, 1 at least", "须为本组指标,且至少为 1")


def _check_agreement(register: Register, path: str, agreement: AgreementSet) -> None:
    if len(set(agreement.parties)) < max(2, len(agreement.parties)):
        raise _invalid(f"{path}.parties", "two offices at least, each once", "至少两个单位,且不得重复")
    if agreement.lead not in agreement.parties:
        lead = agreement.lead
        raise _invalid(f"{path}.lead", f"{lead} is not one of the parties", f"{lead} 不是协议的一方")
    for n, item in enumerate(agreement.items):
        alone = agreement.model_copy(update={"items": (item,)})
        if not any(covers(alone, line) for line in register.items):
            raise _invalid(f"{path}.items.{n}", f"no line of the catalogue is {item}", f"服务清单中没有 {item}")
    ends = agreement.valid_to
    if ends is not None and ends < agreement.valid_from:
        raise _invalid(f"{path}.valid_to", "it ends before it begins", "终止日期早于起始日期")
    for other in register.agreed(agreement.area):
        if other.agreement != agreement.agreement and _meet(agreement, other):
            raise _invalid(
                f"{path}.valid_from",
                f"{other.agreement} is in force then: end it the day before (valid_to)",
                f"届时协议 {other.agreement} 仍有效:请先将其终止日期(valid_to)设为前一日",
            )


def _meet(one: AgreementSet, other: AgreementSet) -> bool:
    return in_force(one, other.valid_from) or in_force(other, one.valid_from)


def _check_polygon(path: str, rings: Sequence[Ring]) -> None:
    for n, ring in enumerate(rings):
        if any(abs(lon) > 1_800_000_000 or abs(lat) > 900_000_000 for lon, lat in ring):
            raise _invalid(f"{path}.{n}", "points are [lon, lat] in 1e-7 degrees", "坐标须为 [经度, 纬度],单位 1e-7 度")
        if len(set(ring)) < 3:
            raise _invalid(f"{path}.{n}", "a ring has at least 3 different points", "一个环至少要有 3 个不同的点")
        if why := _broken(shapely.Polygon(ring)):
            raise _invalid(
                f"{path}.{n}",
                f"the ring crosses or touches itself ({why}): list its points once, in the order in which they lie",
                f"环自相交或自接触({why}):请沿边界依次列出各点,每点只列一次",
            )
    if rings and (why := _broken(shapely.Polygon(rings[0], rings[1:]))):
        raise _invalid(
            path,
            f"the rings do not fit ({why}): the first is the outline, the others are holes inside it, apart from each other",
            f"各环互相矛盾({why}):第一个环为外边界,其余为其内部互不相交的孔",
        )


def _broken(shape: shapely.Polygon) -> str | None:
    """What is wrong with a shape, and where; None where it is sound."""
    return None if shape.is_valid else str(shapely.is_valid_reason(shape))


def _check_calendar(path: str, calendar: CalendarSet) -> None:
    _check_zone(f"{path}.zone", calendar.zone)
    spans = sorted(calendar.hours)
    if not spans or any(since >= until or until > 1440 for since, until in spans):
        raise _invalid(
            f"{path}.hours",
            "spans [since, until] in minutes of the day, 1440 at most",
            "须为 [起, 止],单位为一日内的分钟,至多 1440",
        )
    if any(before[1] > behind[0] for before, behind in itertools.pairwise(spans)):
        raise _invalid(f"{path}.hours", "spans overlap", "时段重叠")
    if not calendar.workdays or any(not 1 <= day <= 7 for day in calendar.workdays):
        raise _invalid(f"{path}.workdays", "1 (Monday) to 7 (Sunday), at least one", "须为 1(周一)至 7(周日),至少一天")


def _check_limits(path: str, limits: Limits) -> None:
    steps = [(name, getattr(limits, name)) for name in ("sign", "contact", "handle", "life")]
    for name, limit in steps:
        if limit.amount == 0:
            raise _invalid(f"{path}.{name}.amount", "at least 1", "至少为 1")
    for (name, limit), (later, beside) in itertools.pairwise(steps):
        if limit.unit == beside.unit and limit.amount > beside.amount:
            raise _invalid(f"{path}.{later}", f"shorter than {name}", f"短于 {name}")


def _check_ancestors(register: Register, path: str, area: AreaSet) -> None:
    seen, above = {area.area}, area.parent
    while above is not None:
        if above in seen:
            raise _invalid(f"{path}.parent", f"{above} lies in itself", f"{above} 成了自己的上级")
        seen.add(above)
        versions = register.areas.get(above)
        above = versions[-1].parent if versions else None


def _check_zone(path: str, zone: str) -> None:
    try:
        ZoneInfo(zone)
    except (KeyError, ValueError, OSError):
        raise _invalid(path, f"no such time zone: {zone}", f"没有这个时区:{zone}") from None


def _refer(path: str, key: str, among: Mapping[str, Any], kind: str) -> None:
    if key not in among:
        raise _invalid(
            path, f"there is no {kind} {key}, neither in the document nor in the register", f"文件与台账中均无 {key}"
        )


def _invalid(path: str, why: str, zh: str) -> RefusedError:
    return RefusedError("invalid", field=path, why=f"{path}: {zh}", why_en=f"{path}: {why}")


def _key(entry: RegisterFact) -> tuple[Any, ...]:
    key: tuple[Any, ...] = (type(entry).name, getattr(entry, entry.key))
    match entry:
        case AreaSet() | FormulaSet():
            return (*key, entry.valid_from)
        case PrecedentSet():
            return (*key, entry.item)
        case _:
            return key


def _what(entry: RegisterFact) -> str:
    kind = type(entry).name.removeprefix("register.").removesuffix("_set")
    match entry:
        case AreaSet() | FormulaSet():
            more = f" from {entry.valid_from}"
        case PrecedentSet():
            more = f" {entry.item}"
        case _:
            more = ""
    return f"{kind} {getattr(entry, entry.key)}{more}"


def current(register: Register, entry: RegisterFact) -> RegisterFact | None:
    """What stands in the register where this entry goes."""
    found: RegisterFact | None = None
    match entry:
        case DistrictSet():
            found = register.districts.get(entry.district)
        case CalendarSet():
            found = register.calendars.get(entry.calendar)
        case AreaSet():
            versions = register.areas.get(entry.area, ())
            found = next((version for version in versions if version.valid_from == entry.valid_from), None)
        case AgreementSet():
            found = register.agreements.get(entry.agreement)
        case ItemSet():
            found = register.items.get(entry.item)
        case UrgencySet():
            found = register.urgency.get(entry.urgency)
        case PolicySet():
            found = register.policies.get(entry.district)
        case OfficeSet():
            found = register.offices.get(entry.district)
        case PrecedentSet():
            found = register.precedents.get((entry.area, entry.item))
        case FormulaSet():
            sets = register.formulas.get(entry.district, ())
            found = next((version for version in sets if version.valid_from == entry.valid_from), None)
    return found


def _sorted(entries: Mapping[Any, Any]) -> list[Any]:
    return [entries[key] for key in sorted(entries)]


# --- the shell ----------------------------------------------------------------------------------------------------------


@dataclass
class Registry:
    """
    The register as it stands on the bus, and the one way to change it.

    Attributes:
        sequence: of the last `register.applied` folded in; the fence of the next change.
        unfinished: that one said there is more.
        ruled: the conferrals that the register has taken a precedent from, ever.
    """

    bus: Bus
    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))
    register: Register = field(default_factory=Register)
    sequence: int = 0
    unfinished: bool = False
    ruled: set[str] = field(default_factory=set)
    sharing: Sharing = field(default_factory=Sharing)
    _moved: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def run(self, stop: asyncio.Event) -> None:
        """Follow the register until told to stop."""
        reader = self.bus.reader([SUBJECTS], after=0)
        end: int | None = None
        at = 0
        try:
            while not stop.is_set():
                end = await self.bus.end(SUBJECTS) if end is None else end
                deliveries = await reader.wait(0.5 if self.sharing.loaded else 0.05)
                register, sequence, unfinished = self.register, self.sequence, self.unfinished
                for delivery in deliveries:
                    try:
                        fact = decode(delivery.subject, delivery.data).fact
                        register = evolve(register, fact)
                        self.sharing.take(fact)
                        unfinished = fact.more if isinstance(fact, RegisterApplied) else unfinished
                        if isinstance(fact, PrecedentSet) and fact.conferral:
                            self.ruled.add(fact.conferral)
                    except MalformedError as why:
                        logger().error("register_fact_ignored", sequence=delivery.sequence, why=str(why))
                    if delivery.subject == APPLIED:
                        sequence = delivery.sequence
                    at = delivery.sequence
                if end is not None and at >= end:
                    self.sharing.loaded = True
                if deliveries:
                    async with self._moved:
                        self.register, self.sequence, self.unfinished = register, sequence, unfinished
                        self._moved.notify_all()
        finally:
            await reader.close()

    async def current(self) -> Register:
        """
        The register as it is now, not as it was when we last heard.

        Raises:
            UnavailableError: the bus does not say so in time.
        """
        last = await self.bus.last(APPLIED)
        await self._wait_for(last.sequence if last else 0)
        return self.register

    async def apply(
        self, document: Any, *, why: str, by: str, of: str | None = None, dry_run: bool = False
    ) -> dict[str, Any]:
        """
        Bring the register to a document, or say what that would change.

        Args:
            by: the actor.
            of: the digest of the register that the document was written for; None: whatever it is now.
        Returns: `changes facts digest applied sequence`, and `warnings` of what no longer fits (`surveying.brought`).
        Raises:
            RefusedError: `invalid`, or `stale_register` where somebody else was first.
            UnavailableError: the bus is away; what was applied stays, the rest can be sent again.
        """
        wanted = read(document)
        register = await self.current()
        fence = self.sequence
        if of not in (None, digest(register)):
            raise RefusedError("stale_register")
        changes = diff(register, wanted)
        todo = batches(changes, unfinished=self.unfinished)
        now = instant(self.now())
        applied = not dry_run and bool(todo)
        after = register
        encoded = []
        for batch in todo:
            for fact in batch:
                after = evolve(after, fact)
            encoded.append((batch, digest(after)))
        facts = [fact for batch in todo for fact in batch]
        warnings = await asyncio.to_thread(brought, register, after, facts)  # seconds, where it is a whole city
        if applied:
            messages = [
                _messages(batch, state, base=fence, n=n, now=now, by=by, why=why, more=n + 1 < len(encoded))
                for n, (batch, state) in enumerate(encoded)
            ]
            for batch_messages in messages:
                fence = await self._commit(batch_messages, fence)
            await self._wait_for(fence)
        return {
            "changes": [change.told() for change in changes],
            "warnings": [{"from": day, **finding.told()} for day, finding in warnings],
            "facts": len(facts),
            "digest": digest(after),
            "applied": applied,
            "sequence": fence,
        }

    async def _wait_for(self, sequence: int) -> None:
        try:
            async with asyncio.timeout(WAIT_S), self._moved:
                await self._moved.wait_for(lambda: self.sequence >= sequence)
        except TimeoutError:
            raise UnavailableError(f"the register has not come to sequence {sequence}") from None

    async def _commit(self, messages: Sequence[Message], fence: int) -> int:
        """One batch; looks for itself where the answer was lost, and tries again where it was not stored."""
        tries: set[str] = set()
        ends = time.monotonic() + 2 * WAIT_S
        while True:
            batch = uuid4().hex
            tries.add(batch)
            try:
                return await self.bus.commit(messages, fence=Fence(APPLIED, fence), batch=batch)
            except (ConflictError, UnavailableError) as why:
                stored = await self._look(ends)
                if stored is not None and stored[1] in tries:
                    return stored[0]
                if (stored[0] if stored else 0) != fence:
                    raise RefusedError("stale_register") from None
                if time.monotonic() > ends:
                    raise UnavailableError(f"the register could not be stored: {why}") from None
                await asyncio.sleep(0.2)

    async def _look(self, ends: float) -> tuple[int, str | None] | None:
        """Sequence and batch of the last `register.applied`."""
        while True:
            try:
                last = await self.bus.last(APPLIED)
                return (last.sequence, last.batch) if last else None
            except UnavailableError:
                if time.monotonic() > ends:
                    raise
                await asyncio.sleep(0.2)


def _messages(
    facts: Sequence[RegisterFact], state: str, *, base: int, n: int, now: datetime, by: str, why: str, more: bool
) -> list[Message]:
    """A batch as it is published. Ids follow from what it is based on and what it says."""
    marker = RegisterApplied(by=by, why=why, digest=state, facts=len(facts), more=more)
    messages = []
    for fact in (*facts, marker):
        area = fact.area if isinstance(fact, AreaSet | AgreementSet | PrecedentSet) else NOWHERE
        about = sha256(canonical(plain(fact))).hexdigest()
        whose = fact.district if isinstance(fact, OfficeSet) else HUB  # whose apps and keys: nobody else's business
        envelope = Envelope(derived_id("register", base, n, fact.name, about), HUB, area, now, fact, whose, actor=by)
        try:
            messages.append(Message(envelope.subject, envelope.encode()))
        except ValueError as too_large:
            raise RefusedError("invalid", field=_what(fact), why=f"{_what(fact)}: {too_large}") from None
    return messages
