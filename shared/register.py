"""
The register (台账) as every service sees it: a fold of `register.*` facts.

Areas have dated owners, so "who serves this place" always asks for a day; `Register.at` is the whole register of one day. What was
known when, corrections left aside, is a fold of fewer facts. Building facts from a document and applying them is the ledger's
business (`services/ledger/register/registering.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from functools import cached_property
from typing import Any
from zoneinfo import ZoneInfo

from immutables import Map

from shared.clocks import ALWAYS, DANGER, Calendar
from shared.facts import (
    BY_SUBJECT,
    HUB,
    AgreementSet,
    AreaSet,
    CalendarSet,
    DistrictSet,
    Fact,
    FormulaSet,
    ItemSet,
    Limit,
    OfficeSet,
    PolicySet,
    PrecedentSet,
    RegisterApplied,
    UrgencySet,
    plain,
)

SUBJECTS = "evt.*.ledger.*.register.*"
"""Where all changes of the register are published."""

DEFAULT_POLICY = PolicySet(
    district="000000",
    version=0,
    calendar="always",
    offer=Limit(amount=15, unit="minutes"),
    close_after=Limit(amount=3, unit="working_days"),
    weights={"workload": 1},
)


@dataclass(frozen=True)
class Register:
    """Everything the register says, at every date. `applied` counts the documents that led here; 0 is an empty register."""

    districts: Map[str, DistrictSet] = field(default_factory=Map)
    areas: Map[str, tuple[AreaSet, ...]] = field(default_factory=Map)
    """By code; the versions of an area, oldest `valid_from` first."""
    agreements: Map[str, AgreementSet] = field(default_factory=Map)
    items: Map[str, ItemSet] = field(default_factory=Map)
    urgency: Map[int, UrgencySet] = field(default_factory=Map)
    calendars: Map[str, CalendarSet] = field(default_factory=Map)
    policies: Map[str, PolicySet] = field(default_factory=Map)
    offices: Map[str, OfficeSet] = field(default_factory=Map)
    precedents: Map[tuple[str, str], PrecedentSet] = field(default_factory=Map)
    """By area and item."""
    formulas: Map[str, tuple[FormulaSet, ...]] = field(default_factory=Map)
    """By district; the versions, oldest `valid_from` first."""
    applied: int = 0
    digest: str = ""

    def area(self, code: str, day: date) -> AreaSet | None:
        """The area as it stands on a day, or None where it is unknown or not yet valid."""
        versions = [version for version in self.areas.get(code, ()) if version.valid_from <= day]
        return versions[-1] if versions else None

    def agreement(self, area: str, day: date) -> AgreementSet | None:
        """The agreement in force for an enclave on a day, or None."""
        return next((agreed for agreed in self.agreed(area) if in_force(agreed, day)), None)

    def agreed(self, area: str) -> tuple[AgreementSet, ...]:
        """Every agreement there ever was about an area, by code."""
        return self._agreed.get(area, ())

    def served_by(self, area: AreaSet, item: str, day: date) -> str:
        """
        The office that a request for this item in this area goes to.

        As a conferral ruled; a facility (部件) first to its owner, where that is an office; what the agreement in force does not
        cover to whoever runs the place; all else to whoever serves it.
        """
        precedent = self.precedents.get((area.area, item))
        if precedent and precedent.owner and precedent.valid_from <= day and precedent.owner in self.districts:
            return precedent.owner
        line = self.items.get(item)
        if line and line.facility and area.owned_by in self.districts:
            return area.owned_by
        agreement = self.agreement(area.area, day)
        return area.served_by if agreement is None or covers(agreement, item) else area.administered_by

    def at(self, day: date) -> Register:
        """
        The register as it stands on a day: of each area its version then, of agreements and precedents those in force.

        Catalogue, calendars, policies and offices have no dates of their own: they are as known.
        """
        standing = ((code, self.area(code, day)) for code in self.areas)
        return replace(
            self,
            areas=Map({code: (version,) for code, version in standing if version}),
            agreements=Map({code: agreed for code, agreed in self.agreements.items() if in_force(agreed, day)}),
            precedents=Map({key: ruled for key, ruled in self.precedents.items() if ruled.valid_from <= day}),
        )

    def parties(self, area: str, day: date) -> tuple[str, ...]:
        """The districts that may see what happens in an area: who serves it first, then the parties of its agreement."""
        version = self.area(area, day)
        if version is None:
            return ()
        agreement = self.agreement(area, day)
        others = agreement.parties if agreement else ()
        return (version.served_by, *sorted(set(others) - {version.served_by}))

    def policy(self, district: str) -> PolicySet:
        """The policy of a district; a careful default where none is set."""
        return self.policies.get(district, DEFAULT_POLICY)

    def formula_set(self, district: str, day: date) -> FormulaSet | None:
        """By which formulas an office's figures are computed on a day: its own, or everybody's; None where neither is set."""
        for whose in (district, HUB):
            if standing := [version for version in self.formulas.get(whose, ()) if version.valid_from <= day]:
                return standing[-1]
        return None

    def calendar(self, district: str, urgency: int = 0) -> Calendar:
        """The calendar that clocks follow: the one a district's policy names, or day and night where there is danger."""
        return ALWAYS if urgency >= DANGER else self._calendars.get(self.policy(district).calendar, ALWAYS)

    def zone(self, district: str) -> ZoneInfo:
        """The local time of a district."""
        known = self.districts.get(district)
        return ZoneInfo(known.zone if known else "Asia/Shanghai")

    def today(self, district: str, now: datetime) -> date:
        """The local day of a district."""
        return now.astimezone(self.zone(district)).date()

    @cached_property
    def _agreed(self) -> dict[str, tuple[AgreementSet, ...]]:
        found: dict[str, tuple[AgreementSet, ...]] = {}
        for _, agreement in sorted(self.agreements.items()):  # a map has no order of its own
            found[agreement.area] = (*found.get(agreement.area, ()), agreement)
        return found

    @cached_property
    def _calendars(self) -> dict[str, Calendar]:
        return {code: Calendar.of(fact) for code, fact in self.calendars.items()}


def in_force(agreement: AgreementSet, day: date) -> bool:
    """From its first to its last day."""
    return agreement.valid_from <= day and (agreement.valid_to is None or day <= agreement.valid_to)


def covers(agreement: AgreementSet, item: str) -> bool:
    """Whether an agreement is about this line of the catalogue."""
    return not agreement.items or any(item == line or item.startswith(f"{line}.") for line in agreement.items)


def evolve(register: Register, fact: Fact) -> Register:
    """The register after one more fact; facts of other kinds leave it as it was."""
    match fact:
        case DistrictSet():
            return replace(register, districts=register.districts.set(fact.district, fact))
        case AreaSet():
            others = [v for v in register.areas.get(fact.area, ()) if v.valid_from != fact.valid_from]
            versions = tuple(sorted([*others, fact], key=lambda version: version.valid_from))
            return replace(register, areas=register.areas.set(fact.area, versions))
        case AgreementSet():
            return replace(register, agreements=register.agreements.set(fact.agreement, fact))
        case ItemSet():
            return replace(register, items=register.items.set(fact.item, fact))
        case UrgencySet():
            return replace(register, urgency=register.urgency.set(fact.urgency, fact))
        case CalendarSet():
            return replace(register, calendars=register.calendars.set(fact.calendar, fact))
        case PolicySet():
            return replace(register, policies=register.policies.set(fact.district, fact))
        case OfficeSet():
            return replace(register, offices=register.offices.set(fact.district, fact))
        case PrecedentSet():
            return replace(register, precedents=register.precedents.set((fact.area, fact.item), fact))
        case FormulaSet():
            others_of = [
                each for each in register.formulas.get(fact.district, ()) if each.valid_from != fact.valid_from
            ]
            sets = tuple(sorted([*others_of, fact], key=lambda version: version.valid_from))
            return replace(register, formulas=register.formulas.set(fact.district, sets))
        case RegisterApplied():
            return replace(register, applied=register.applied + 1, digest=fact.digest)
        case _:
            return register


class Sharing:
    """
    Which areas offices share: today, and ever.

    What another office's fact named by an agreement is shown while that is in force; nobody can tell it from what it named for
    another reason, so of an area that an office once shared, and shares no more, only what it still has to do with is shown.

    Attributes:
        loaded: it has taken everything that the register said when its process began; before that what is closed looks open.
    """

    def __init__(self) -> None:
        self.loaded = False
        self.register = Register()
        self._ever: dict[str, set[str]] = {}
        self._closed: dict[str, tuple[date, frozenset[str]]] = {}

    def take(self, fact: Fact) -> None:
        """One more fact of the register."""
        self.register = evolve(self.register, fact)
        self._closed.clear()
        if isinstance(fact, AgreementSet):
            self._ever.setdefault(fact.area, set()).update(fact.parties)
        elif isinstance(fact, AreaSet):
            self._ever.setdefault(fact.area, set()).add(fact.served_by)

    def lost(self, district: str, area: str, now: datetime) -> bool:
        """Whether an office shared this area once and no longer does."""
        return district in self._ever.get(area, ()) and not self.shares(district, area, now)

    def shares(self, district: str, area: str, now: datetime) -> bool:
        """Whether an office serves this area today, or is party to an agreement about it."""
        return district in self.register.parties(area, self.register.today(district, now))

    def closed(self, district: str, now: datetime) -> frozenset[str]:
        """Every area of the register that an office does not share today; made once a day."""
        day = self.register.today(district, now)
        made = self._closed.get(district)
        if made is None or made[0] != day:
            areas = (area for area in self.register.areas if district not in self.register.parties(area, day))
            made = self._closed[district] = (day, frozenset(areas))
        return made[1]

    def all_lost(self, district: str, now: datetime) -> tuple[str, ...]:
        """Every area that an office shared once and no longer does."""
        return tuple(sorted(area for area in self._ever if self.lost(district, area, now)))


def facts(register: Register) -> Iterable[Fact]:
    """Everything the register says, as the facts that lead to it, in a stable order."""
    for held in (register.districts, register.calendars):
        yield from (fact for _, fact in sorted(held.items()))
    for dated in (register.areas, register.formulas):
        for _, versions in sorted(dated.items()):
            yield from versions
    for others in (
        *(register.agreements, register.items, register.urgency, register.policies),
        *(register.offices, register.precedents),
    ):
        yield from (fact for _, fact in sorted(others.items()))


def dump(register: Register) -> Any:
    """The register as plain data."""
    return {
        "applied": register.applied,
        "digest": register.digest,
        "facts": [[fact.name, plain(fact)] for fact in facts(register)],
    }


def load(data: Any) -> Register:
    """The register that was dumped."""
    register = Register()
    for name, fields in data["facts"]:
        register = evolve(register, BY_SUBJECT[f"ledger.{name}"].model_validate(fields))
    return replace(register, applied=data["applied"], digest=data["digest"])
