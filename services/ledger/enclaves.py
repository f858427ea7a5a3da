"""
The shared file of an enclave (一档归索): one file for all offices of its agreement, the same bytes for each of them, pure.

It rests on nothing but leaves that every party may read: facts of the area that list all of them, and the register. So each of them
can make it again from a replay of its own, and prove each leaf that it names by inclusion. Whose member it was, and whatever an
office keeps to itself, is not in it: offices are named, not people.

A case is in the file if its first such leaf lies within an agreement between these parties, and stays when that has ended; what the
office that serves does from then on concerns it alone, so clocks are judged as of the agreement's last day.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from hashlib import sha256
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import orjson

from services.ledger import cases
from services.ledger.cases import Case, moment
from services.ledger.log.tree import leaf_hash
from shared.envelope import Envelope, canonical, opened
from shared.errors import RefusedError
from shared.facts import (
    HUB,
    AgreementSet,
    AreaSet,
    ConferralEnded,
    ConferralOpened,
    ConferralReceived,
    ConferralRuled,
    DistrictSet,
    Due,
    Fact,
    HandoverLapsed,
    HandoverOffered,
    HandoverReceived,
    HandoverRefused,
    HandoverReturned,
    HandoverSigned,
    HelpAnswered,
    HelpAsked,
    HelpLapsed,
    HelpRated,
    HelpReceived,
    HelpReleased,
    HelpSeated,
    HelpSettled,
    ItemSet,
    PrecedentSet,
    TaskAccepted,
    TaskArrived,
    TaskClosed,
    TaskDone,
    TaskHandedOver,
    TaskOpened,
)
from shared.register import Register, evolve, in_force

VERSION = "paidan/enclave/1"
CLOCKS = ("sign", "contact", "handle", "life")
REGISTER: tuple[type[Fact], ...] = (DistrictSet, AreaSet, AgreementSet, ItemSet, PrecedentSet)
_REGISTER_NAMES = frozenset(fact.name for fact in REGISTER)
FOLLOWED = cases.MOVING | {
    HandoverSigned,
    HandoverRefused,
    ConferralRuled,
    HelpSeated,
    HelpReleased,
    HelpSettled,
    HelpRated,
}
OVER = ("rated", "quiet", "withdrawn")
"""How a task ends for good: not by another round, nor at another office."""


class Pin(NamedTuple):
    """
    The moment of the log that a file is of.

    Attributes:
        at: the newest `recorded` below `size`: what is not yet done is judged as of then.
        checkpoint: its text, without the signatures that it has and still gets: those are another matter. None where there is none yet.
    """

    log: str
    size: int
    at: datetime
    checkpoint: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One leaf that a file may rest on."""

    index: int
    hash: str
    event: Envelope


@dataclass
class Enclave:
    """
    An area, and the parties of agreements about it, as the register says in the leaves of `register`.

    Attributes:
        agreements: those between exactly these parties, by code.
        zone: of the lead: days and months are its own.
    """

    area: str
    parties: tuple[str, ...]
    agreements: tuple[AgreementSet, ...]
    lead: str
    zone: ZoneInfo
    register: Register
    precedents: list[Entry] = field(default_factory=list)
    sources: dict[tuple[str, str], Entry] = field(default_factory=dict)

    def covers(self, moment: datetime) -> bool:
        """Whether an agreement between them is in force."""
        return any(in_force(agreed, self.day(moment)) for agreed in self.agreements)

    def day(self, moment: datetime) -> date:
        """The local day."""
        return moment.astimezone(self.zone).date()

    def month(self, moment: datetime) -> str:
        """The local month, `2026-11`."""
        return moment.astimezone(self.zone).strftime("%Y-%m")

    def followed(self, until: datetime) -> datetime:
        """Up to when all of them could see what happened, at most until then."""
        if self.covers(until):
            return until
        ends = [
            midnight(agreed.valid_to + timedelta(days=1), self.zone) for agreed in self.agreements if agreed.valid_to
        ]
        return max((end for end in ends if end <= until), default=until)


def entries(leaves: Iterable[tuple[int, bytes]], area: str, size: int) -> Iterator[Entry]:
    """Those of these leaves below a size that a file of the area may rest on: its events, and the register's."""
    for index, data in leaves:
        leaf = orjson.loads(data)
        if index >= size or leaf["kind"] != "event":
            continue
        _, district, _, place, *name = leaf["subject"].split(".")
        if (district == HUB and ".".join(name) in _REGISTER_NAMES) or (place == area and "case" in leaf):
            yield Entry(index, leaf_hash(data).hex(), opened(leaf["subject"], leaf["event"]))


def enclave(
    register: Iterable[Entry], area: str, at: datetime, *, district: str | None = None, agreement: str | None = None
) -> Enclave:
    """
    The enclave as of a moment: between the parties of the agreement in force, else of the last one, else of the next.

    Args:
        register: entries in the log's order; others are passed over.
        district: an office that has to be a party; None: whoever.
        agreement: the one with this code, whenever it is.
    Raises:
        RefusedError: `not_found`: no agreement about this area; `foreign_district`: none of that office's.
    """
    known, sources, precedents = Register(), {}, []
    for entry in register:
        fact = entry.event.fact
        if not isinstance(fact, REGISTER):
            continue
        known = evolve(known, fact)
        match fact:
            case AreaSet(area=code) if code == area:
                sources["area", str(fact.valid_from)] = entry
            case AgreementSet(area=code) if code == area:
                sources["agreement", fact.agreement] = entry
            case PrecedentSet(area=code) if code == area:
                precedents.append(entry)
            case DistrictSet():
                sources["district", fact.district] = entry
            case ItemSet():
                sources["item", fact.item] = entry
    agreed = [one for one in known.agreed(area) if agreement in (None, one.agreement)]
    if not agreed:
        raise RefusedError("not_found", what=agreement or f"{area} 的协议 / an agreement about {area}")
    ours = [one for one in agreed if district is None or district in one.parties]
    if not ours:
        raise RefusedError("foreign_district", district="、".join(agreed[-1].parties), yours=str(district))

    def standing(one: AgreementSet) -> tuple[bool, bool, date]:
        day = known.today(one.lead, at)
        return in_force(one, day), one.valid_from <= day, one.valid_to or date.max

    chosen = max(ours, key=standing)
    parties = tuple(sorted(chosen.parties))
    between = tuple(one for one in known.agreed(area) if tuple(sorted(one.parties)) == parties)
    zone = known.zone(chosen.lead)
    return Enclave(area, parties, between, chosen.lead, zone, known, precedents, sources)


class Filing:
    """
    The fold: entries of the enclave's area go in, each case's in the log's order, and the file comes out.

    Args:
        until: what happened from then on is left out; None: nothing is.
    """

    def __init__(self, enclave: Enclave, until: datetime | None = None) -> None:
        self.enclave = enclave
        self.until = until
        self.cases: dict[str, Case] = {}
        self.tasks: dict[str, dict[str, Any]] = {}
        self.handovers: dict[str, dict[str, Any]] = {}
        self.conferrals: dict[str, dict[str, Any]] = {}
        self.help: dict[str, dict[str, Any]] = {}
        self.moves: list[dict[str, Any]] = []
        self.leaves: dict[int, str] = {}
        self._outside: set[str] = set()

    def take(self, entry: Entry) -> None:
        """One more entry; what does not belong into the file changes nothing."""
        event = entry.event
        case = event.case
        if case is None or case in self._outside or event.area != self.enclave.area or type(event.fact) not in FOLLOWED:
            return
        if not {*self.enclave.parties} <= {*event.districts.split(",")}:
            return
        if self.until is not None and event.time >= self.until:
            return
        known = self.cases.get(case)
        if known is None and not self.enclave.covers(event.time):
            self._outside.add(case)
            return
        if after := cases.evolve(known, entry.index, event):
            self.cases[case] = after
        self.leaves[entry.index] = entry.hash
        self._follow_task(event)
        self._follow_matter(event)

    def _follow_task(self, event: Envelope) -> None:
        fact, at = event.fact, event.time
        task = self.tasks.get(getattr(fact, "task_id", ""))
        match fact:
            case TaskOpened():
                self.tasks[fact.task_id] = {
                    "task": fact.task_id,
                    "case": event.case,
                    "office": event.district,
                    "round": fact.round,
                    "effort": fact.effort,
                    "by": fact.by,
                    "opened": at,
                    "ended": None,
                    "how": None,
                    "to": None,
                    "due": fact.due,
                    "met": {},
                }
            case TaskAccepted() if task:
                task["met"].setdefault("sign", at)
            case TaskArrived() if task:
                task["met"].setdefault("contact", at)
            case TaskDone() if task:
                task["met"].setdefault("contact", at)
                task["met"].setdefault("handle", at)
            case TaskClosed() if task:
                if fact.reason in OVER:
                    task["met"].setdefault("life", at)
                task |= {"ended": at, "how": fact.reason}
            case TaskHandedOver():
                effort = task["effort"] if task else 0
                if task:
                    task |= {"ended": at, "how": "handed_over", "to": fact.to}
                self.moves.append({"at": at, "giver": event.district, "to": fact.to, "effort": effort})

    def _follow_matter(self, event: Envelope) -> None:
        fact, at = event.fact, event.time
        match fact:
            case HandoverReceived() | ConferralReceived() | HelpReceived():
                pass
            case HandoverOffered():
                told = _matter(event, "giver", "to attempt item reason basis until", "answer answered refusal")
                self.handovers[fact.handover_id] = told
            case HandoverSigned(handover_id=id) if held := self.handovers.get(id):
                held |= {"answer": "signed", "answered": at}
            case HandoverRefused(handover_id=id) if held := self.handovers.get(id):
                refusal = {"reason": fact.reason, "basis": fact.basis}
                held |= {"answer": "refused", "answered": at, "refusal": refusal}
            case HandoverReturned(handover_id=id) if held := self.handovers.get(id):
                held |= {"ended": at, "how": "returned"}
            case HandoverLapsed(handover_id=id) if held := self.handovers.get(id):
                held |= {"ended": at, "how": fact.reason}
            case TaskHandedOver(by=id) if held := self.handovers.get(id):
                held |= {"ended": at, "how": "handed_over"}
            case TaskHandedOver(by=id) if held := self.conferrals.get(id):
                held |= {"carried_out": at}
            case ConferralOpened():
                told = _matter(event, "giver", "parties lead item refusals until", "ruling carried_out")
                self.conferrals[fact.conferral_id] = told
            case ConferralRuled(conferral_id=id) if held := self.conferrals.get(id):
                ruling = {"at": at, "by": event.district, "owner": fact.owner, "basis": fact.basis}
                held |= {"ruling": {**ruling, "precedent": fact.precedent}}
            case ConferralEnded(conferral_id=id) if held := self.conferrals.get(id):
                held |= {"ended": at, "how": fact.reason}
            case HelpAsked():
                later = "seated answer answered reason returned grade"
                self.help[fact.help_id] = _matter(event, "asker", "to whistle item effort until", later)
            case HelpSeated(help_id=id) if held := self.help.get(id):
                held |= {"seated": at, "effort": fact.effort}
            case HelpAnswered(help_id=id) if held := self.help.get(id):
                came = fact.member_id is not None
                held |= {"answer": "came" if came else "refused", "answered": at, "reason": fact.reason}
                held |= {} if came else {"ended": at, "how": "refused"}
            case HelpLapsed(help_id=id) if held := self.help.get(id):
                held |= {"ended": at, "how": fact.reason}
            case HelpReleased(help_id=id) if held := self.help.get(id):
                held |= {"ended": at, "how": "released"}
            case HelpSettled(help_id=id) if held := self.help.get(id):
                held |= {"returned": at}
            case HelpRated(help_id=id) if held := self.help.get(id):
                held |= {"grade": fact.grade}

    # --- what comes out -----------------------------------------------------------------------------------------------

    def file(self, pin: Pin) -> dict[str, Any]:
        """The file in plain data, digest and all; `canonical` of it is what every party gets."""
        document = {"v": VERSION, **self.head(pin), "owners": self._owners(), "cases": self._cases(pin.at)}
        document |= {name: list(getattr(self, name).values()) for name in ("handovers", "conferrals", "help")}
        document |= {"precedents": self.precedents(), "balance": self.balance(), "leaves": self.rests_on()}
        return sealed(document)

    def head(self, pin: Pin) -> dict[str, Any]:
        """What a file and a sheet both begin with: which log, how far, whose enclave, what was agreed, what things are called."""
        known, of = self.enclave.register, self.enclave
        area = known.area(of.area, of.day(pin.at))
        items = {case["item"] for case in self.cases.values() if "item" in case}
        return {
            **pin._asdict(),
            "area": of.area,
            "title": area.title if area else None,
            "parties": of.parties,
            "lead": of.lead,
            "zone": str(of.zone),
            "agreements": [one.model_dump(exclude={"area"}) for one in of.agreements],
            "offices": {code: known.districts[code].title for code in self.offices() if code in known.districts},
            "items": {code: known.items[code].title for code in items if code in known.items},
        }

    def rests_on(self) -> list[tuple[int, str]]:
        """Index and hash of every leaf behind the file: these alone make it."""
        of = self.enclave
        wanted = {("district", code) for code in self.offices()}
        wanted |= {("item", case["item"]) for case in self.cases.values() if "item" in case}
        named = [entry for key, entry in of.sources.items() if key in wanted or key[0] in ("area", "agreement")]
        return sorted({**self.leaves, **{entry.index: entry.hash for entry in (*named, *of.precedents)}}.items())

    def clocks(self, task: Mapping[str, Any], now: datetime) -> dict[str, dict[str, Any]]:
        """
        The four clocks of a task: when due, when met, and how it stands.

        Signed for by the first yes (接单), contacted by arrival or else by the end of the work, handled when done, over when closed.
        `met`, `late`; without it `missed` (the task ended after the time was over) or `void` (before that), `overdue` or `running`.
        """
        due: Due = task["due"]
        shown = {}
        for name in CLOCKS:
            until, met = getattr(due, name), task["met"].get(name)
            shown[name] = {"due": until, "met": met, "state": _stands(until, met, task["ended"], now)}
        return shown

    def balance(self) -> list[dict[str, Any]]:
        """
        Who helped whom, by local month, oldest first: `flows` as they were, `net` effort lent less effort borrowed, and its `total`.

        Help counts when it came: once the office that asked has answered for it. A task that was handed over is no loan: whose it is
        has changed. It is a flow, and not in `net`.
        """
        flows: dict[str, dict[tuple[str, str, str], list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
        came = [one for one in self.help.values() if one["answer"] == "came"]
        for at, *which, effort in (
            *((one["answered"], one["to"], one["asker"], "help", one["effort"]) for one in came),
            *((one["at"], one["to"], one["giver"], "handover", one["effort"]) for one in self.moves),
        ):
            sums = flows[self.enclave.month(at)][which[0], which[1], which[2]]
            sums[0] += 1
            sums[1] += effort
        total: dict[str, int] = dict.fromkeys(self.enclave.parties, 0)
        months = []
        for month, found in sorted(flows.items()):
            net: dict[str, int] = dict.fromkeys(self.enclave.parties, 0)
            for (by, to, kind), (_, effort) in found.items():
                if kind == "help":
                    net[by], net[to] = net.get(by, 0) + effort, net.get(to, 0) - effort
            total = {office: total.get(office, 0) + net.get(office, 0) for office in {**total, **net}}
            told = [
                {"by": by, "for": to, "kind": kind, "tasks": tasks, "effort": effort}
                for (by, to, kind), (tasks, effort) in sorted(found.items())
            ]
            months.append({"month": month, "flows": told, "net": net, "total": total})
        return months

    def precedents(self) -> list[dict[str, Any]]:
        """What was ruled for the next of its kind here, in the order in which the register took it."""
        made = [entry for entry in self.enclave.precedents if self.until is None or entry.event.time < self.until]
        return [
            {"at": entry.event.time, **entry.event.fact.model_dump(exclude={"area"}), "leaf": entry.index}
            for entry in made
        ]

    def _cases(self, until: datetime) -> list[dict[str, Any]]:
        now = self.enclave.followed(until)
        tasks: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for task in self.tasks.values():
            own = {name: value for name, value in task.items() if name not in ("case", "due", "met")}
            tasks[task["case"]].append({**own, "clocks": self.clocks(task, now)})
        shown = ("item", "urgency", "submitted", "state", "round", "closed", "rated", "same_as", "located_in")
        return [
            {
                "case": case["_id"],
                "office": case["district"],
                **{name: case.get(name) for name in shown},
                "tasks": tasks[case["_id"]],
            }
            for case in sorted(self.cases.values(), key=lambda case: case["first"])
        ]

    def _owners(self) -> list[dict[str, Any]]:
        dated = ("valid_from", "located_in", "administered_by", "owned_by", "served_by")
        return [
            version.model_dump(include={*dated}) for version in self.enclave.register.areas.get(self.enclave.area, ())
        ]

    def offices(self) -> set[str]:
        """The parties, and whoever else had to do with it."""
        asked = {office for one in self.handovers.values() for office in (one["giver"], one["to"])}
        helping = {office for one in self.help.values() for office in (one["asker"], one["to"])}
        conferring = {office for one in self.conferrals.values() for office in (*one["parties"], one["lead"])}
        holding = {task["office"] for task in self.tasks.values()}
        return {*self.enclave.parties, self.enclave.lead, *holding, *asked, *helping, *conferring}


def sealed(document: dict[str, Any]) -> dict[str, Any]:
    """The same in plain data, with its digest."""
    plain: dict[str, Any] = orjson.loads(canonical(_texts(document)))
    return {**plain, "digest": digest(plain)}


def digest(document: Mapping[str, Any]) -> str:
    """SHA-256 of a file's canonical form without its digest."""
    return sha256(canonical({name: value for name, value in document.items() if name != "digest"})).hexdigest()


def read(data: bytes) -> dict[str, Any]:
    """
    A file as somebody keeps it.

    Raises:
        ValueError: no JSON, other bytes than its canonical form, or not what its digest says: somebody has changed it.
    """
    document: dict[str, Any] = orjson.loads(data)
    if not isinstance(document, dict) or "digest" not in document:
        raise ValueError("no file of an enclave")
    if canonical(document) != data:
        raise ValueError("other bytes than its canonical form")
    if digest(document) != document["digest"]:
        raise ValueError("its content is not what its digest says")
    return document


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two documents differ, as paths (`cases.0.tasks.1.clocks.sign.met`)."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = sorted({*one, *other})
        return [found for name in names for found in differences(one.get(name), other.get(name), f"{path}.{name}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for n, (a, b) in pairs for found in differences(a, b, f"{path}.{n}")]
    return [] if one == other else [path.removeprefix(".")]


def midnight(day: date, zone: ZoneInfo) -> datetime:
    """The first moment of a local day, UTC."""
    return datetime.combine(day, time_of_day(), zone).astimezone(UTC)


def _matter(event: Envelope, asker: str, said: str, later: str) -> dict[str, Any]:
    """A question between offices: who asked, what the fact says of it, and what is still to come."""
    fact: Any = event.fact
    return {
        "id": getattr(fact, fact.key),
        "case": event.case,
        "task": fact.task_id,
        asker: event.district,
        "asked": event.time,
        **{name: getattr(fact, name) for name in said.split()},
        **dict.fromkeys((*later.split(), "ended", "how")),
    }


def _stands(due: datetime, met: datetime | None, ended: datetime | None, now: datetime) -> str:
    if met is not None:
        return "met" if met <= due else "late"
    if ended is not None:
        return "missed" if due < ended else "void"
    return "overdue" if due < now else "running"


def _texts(value: Any) -> Any:
    """Moments in the form that facts have; else as it is."""
    if isinstance(value, datetime):
        return moment(value)
    if isinstance(value, dict):
        return {name: _texts(held) for name, held in value.items()}
    if isinstance(value, list | tuple):
        return [_texts(held) for held in value]
    return value
