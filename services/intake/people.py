"""What a resident, and the office for them, may ask about what is stored: what there is, who looked, and that it be forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any, Literal

from services.intake.cases import Cases, Found
from services.intake.disclosing import WHYS, Disclosures, Part
from services.intake.erasing import Erasing, Held, Person
from services.intake.model import Asked, Case
from services.intake.naming import Naming
from shared.auth import EVERYWHERE, Caller
from shared.errors import RefusedError
from shared.facts import HUB, Name, RequestDisclosed, RequestErased, RequestSubmitted, Sealed
from shared.ids import new_id
from shared.register import Register

PART_NAMES: dict[Part, Name] = {
    "contact": Name(zh="联系方式", en="how to reach you"),
    "text": Name(zh="诉求内容", en="what you wrote"),
    "address": Name(zh="详细地址", en="the address in your words"),
}
ROLE_NAMES: dict[str, Name] = {
    "member": Name(zh="接单人员", en="who took the task"),
    "clerk": Name(zh="窗口人员", en="a clerk"),
    "dispatcher": Name(zh="值班长", en="a dispatcher"),
    "supervisor": Name(zh="督办", en="a supervisor"),
    "admin": Name(zh="系统管理员", en="an administrator"),
    "service": Name(zh="消息系统", en="the system that writes to you"),
}
STATE_NAMES: dict[str, Name] = {
    "kept": Name(zh="加密保存", en="kept, encrypted"),
    "frozen": Name(zh="已封存,仅供复核或申诉", en="frozen: read for a review or an appeal only"),
    "erased": Name(zh="已删除", en="erased"),
    "none": Name(zh="未保存", en="nothing is stored"),
}
NOTICE = Name(zh="通知您办理进展", en="to tell you how it stands")
SOUGHT = "sought"
"""Why the fact says somebody looked who was shown that there is something, and nothing of it."""
NOT_CHOSEN = {
    "notice": NOTICE,
    SOUGHT: Name(zh="查找您保存了哪些信息,未查看内容", en="to find what is stored about you, without reading it"),
}
"""The reasons that nobody gives: what was done says them."""
GOES_ON = Name(
    zh="个人信息已删除。诉求继续办理,但办理人员无法再联系您,也看不到您填写的内容。",
    en="What was personal is erased. The request goes on, but nobody can reach you or read what you wrote any more.",
)
GONE = Name(zh="个人信息已删除。", en="What was personal is erased.")


class Forgetting(Asked):
    """That what is personal in a request be erased: cannot be undone, so it is said in a word."""

    confirm: Literal["erase", "删除"]


class People:
    """The answers, from cases, keys and ciphertexts."""

    def __init__(self, cases: Cases, disclosures: Disclosures, erasing: Erasing, naming: Naming) -> None:
        self._cases = cases
        self._disclosures = disclosures
        self._erasing = erasing
        self._naming = naming

    async def data(self, tracking_code: str, register: Register, position: int | None) -> dict[str, Any]:
        """
        What is stored of a resident for one request, since when and until when, and who has looked at it.

        Raises:
            RefusedError: `not_found`.
            UnavailableError: the ledger does not answer.
        """
        found = await self._cases.find(self._cases.by_code(tracking_code), position)
        _, sealed = await self._disclosures.sealed(found.case)
        return stored(found, sealed, register)

    async def forget(self, tracking_code: str) -> dict[str, Any]:
        """
        Erase what is sealed for one request, whose tracking code somebody holds; a repeat hears the same.

        Only this one, though others may be sealed under the same contact: nobody has checked whose it is.

        Raises:
            RefusedError: `not_found`, `nothing_sealed`.
            UnavailableError: it may be half done; it is gone on with by itself.
        """
        found = await self._cases.fresh(self._cases.by_code(tracking_code))
        done = await self._erasing.erase_request(found.case, "asked")
        over = done.case.state in ("done", "closed", "withdrawn")
        return {**self._cases.told(RequestErased.name, done), "note": GONE if over else GOES_ON}

    async def find(
        self, person: Person, caller: Caller, district: str | None, register: Register
    ) -> list[dict[str, Any]]:
        """
        Where something is sealed for somebody: district, key and requests, nothing of what it is; on record by then, for each request.

        Raises:
            RefusedError: `forbidden`, `foreign_district`, `unknown_district`, `not_found`.
            UnavailableError: the bus or the ledger does not answer.
        """
        held = await self._erasing.find(person, districts_of(caller, district, register))
        return [await self._shown(one, caller, new_id()) for one in held]

    async def erase(
        self, person: Person, caller: Caller, district: str | None, register: Register
    ) -> list[dict[str, Any]]:
        """
        Erase everything that is sealed for somebody in these districts: what `find` shows, and what was begun before.

        Raises:
            RefusedError: as `find`.
            UnavailableError: it may be half done; whoever asks again goes on, and so does intake by itself.
        """
        erased = []
        for held in await self._erasing.find(person, districts_of(caller, district, register)):
            done = await self._erasing.erase_person(held, actor=caller.actor, asked_for=person.request)
            requests = [
                {
                    "id": one.case.id,
                    "state": one.case.state,
                    "fact": one.fact,
                    "time": one.time,
                    "position": one.sequence,
                }
                for one in done
            ]
            erased.append({"district": held.district, "kid": held.kid, "requests": requests})
        return erased

    async def _shown(self, held: Held, caller: Caller, search: str) -> dict[str, Any]:
        role = "supervisor" if "supervisor" in caller.roles else "admin"
        office = HUB if caller.district == EVERYWHERE else caller.district
        requests = []
        for id, since in held.requests.items():
            try:
                done = await self._cases.once(
                    {"id": id},
                    RequestDisclosed.name,
                    lambda case: self._naming.fact_id(case.id, RequestDisclosed.name, f"token:{caller.id}", search),
                    lambda case, _: RequestDisclosed(
                        request_id=case.id, to=f"{role}:{caller.id}", office=office, why=SOUGHT, parts=()
                    ),
                    {},
                    private=True,
                    actor=caller.actor,
                )
                state: str | None = done.case.state
            except RefusedError:
                state = None  # sealed for a request that never became one
            requests.append({"id": id, "since": since, "state": state})
        return {"district": held.district, "kid": held.kid, "requests": requests}


def districts_of(caller: Caller, district: str | None, register: Register) -> Sequence[str]:
    """
    Where somebody may look for people: supervisors in their own district, an admin where their token reaches.

    Raises:
        RefusedError: `forbidden`, `foreign_district`, `unknown_district`.
    """
    caller.need("supervisor", district=district)
    if district is None:
        return sorted(register.districts) if caller.district == EVERYWHERE else [caller.district]
    if district not in register.districts:
        raise RefusedError("unknown_district", district=district, field="district")
    return [district]


def stored(found: Found, sealed: Sealed | None, register: Register) -> dict[str, Any]:
    """What is stored for a request, and who looked at it: by role and office, never by name or pseudonym. Pure."""
    case = found.case
    state = case.sealed or "none"
    since = next((step.time for step in case.steps(RequestSubmitted.name)), None)
    erased = next((step.time for step in case.steps(RequestErased.name)), None)
    parts = sealed.parts if sealed and state in ("kept", "frozen") else ()
    until = _until(case, register)
    return {
        "id": case.id,
        "state": state,
        "state_name": STATE_NAMES[state],
        "stored": [{"part": part, "name": PART_NAMES[part], "since": since, "until": until} for part in parts],
        "erased": erased,
        "looks": [
            {
                "role": role,
                "role_name": ROLE_NAMES.get(role),
                "office": step.office,
                "office_name": known.office if (known := register.districts.get(step.office or "")) else None,
                "why": step.why,
                "why_name": WHYS.get(step.why or "") or NOT_CHOSEN.get(step.why or ""),
                "parts": step.parts,
                "time": step.time,
            }
            for step in case.steps(RequestDisclosed.name)
            for role in [(step.to or "").partition(":")[0]]
        ],
        "position": found.as_of,
        "stale": found.stale,
    }


def _until(case: Case, register: Register) -> date | None:
    """The day on which it will be erased; None while the case is open."""
    if case.frozen_until is not None and case.sealed == "frozen":
        return case.frozen_until
    if case.closed is None:
        return None
    home = case.home or case.district
    closed = case.closed.astimezone(register.zone(home)).date()
    return closed + timedelta(days=register.policy(home).erase_after)
