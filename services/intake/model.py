"""What intake is asked, and what it knows of a case that it is asked about."""

from __future__ import annotations

import re
from datetime import date, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from services.intake.coordinates import Crs
from shared.codes import OneOf
from shared.facts import AreaCode, Channel, Due, Grade, ItemCode, Language, Name

TEXT_MAX = 2000


class Asked(BaseModel):
    """A body that somebody sends; what it does not know it refuses, so that a misspelt field is not lost in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _dialable(phone: str) -> str:
    if sum(letter.isdigit() for letter in phone) < 3:
        raise ValueError("a phone number has at least three digits")
    return phone


Phone = Annotated[str, StringConstraints(strip_whitespace=True, min_length=3, max_length=40), AfterValidator(_dialable)]
Email = Annotated[str, StringConstraints(strip_whitespace=True, max_length=254, pattern=r"^[^@\s]+@[^@\s]+$")]


class Contact(Asked):
    """How to reach the resident: sealed, and nowhere else."""

    name: Annotated[str, StringConstraints(max_length=100)] | None = None
    phone: Phone | None = None
    email: Email | None = None

    def normalised(self) -> str | None:
        """
        What makes two contacts the same person: the phone's digits without 86, else the address in small letters.

        None where only a name is known: names are shared, so they identify nobody.
        """
        if self.phone is not None:
            digits = "".join(str(int(letter)) for letter in self.phone if letter.isdecimal())
            for prefix in ("0086", "86"):
                if digits.startswith(prefix) and len(digits) == len(prefix) + 11:
                    digits = digits.removeprefix(prefix)
                    break
            return f"phone:{digits}"
        return f"email:{self.email.casefold()}" if self.email is not None else None


class Location(Asked):
    """Coordinates with their reference system, the words of an address, or an area's code; the code wins."""

    lon: Annotated[float, Field(ge=-180, le=180, allow_inf_nan=False)] | None = None
    lat: Annotated[float, Field(ge=-90, le=90, allow_inf_nan=False)] | None = None
    crs: Crs = "WGS84"
    address: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=300)] | None = None
    area: AreaCode | None = None

    @model_validator(mode="after")
    def _both_coordinates(self) -> Self:
        if (self.lon is None) != (self.lat is None):
            raise ValueError("lon and lat belong together")
        return self


class Submission(Asked):
    """What a resident, or somebody for them, asks for (下单)."""

    text: Annotated[str, StringConstraints(max_length=TEXT_MAX)] = ""
    service: ItemCode | None = None
    location: Location | None = None
    contact: Contact | None = None
    channel: Channel = "app"
    on_behalf: bool = False
    language: Language = "zh-CN"
    reported_at: AwareDatetime | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.service is None and not self.text.strip():
            raise ValueError("either text or service must say what it is about")
        return self

    def personal(self) -> dict[str, Any]:
        """What must be sealed, by part: contact, address and text, where given."""
        parts: dict[str, Any] = {}
        if self.contact is not None and (contact := self.contact.model_dump(exclude_none=True)):
            parts["contact"] = contact
        if self.location is not None and self.location.address is not None:
            parts["address"] = self.location.address
        if self.text:
            parts["text"] = self.text
        return parts


WITHDRAWING: dict[str, Name] = {
    "not_needed": Name(zh="不再需要", en="no longer needed"),
    "solved_itself": Name(zh="已自行解决", en="it has solved itself"),
    "solved_otherwise": Name(zh="已由他人解决", en="somebody else has solved it"),
    "by_mistake": Name(zh="误提交或重复提交", en="sent by mistake, or twice"),
    "too_slow": Name(zh="等待时间过长", en="it takes too long"),
    "other": Name(zh="其他", en="other"),
}
"""Why a request may be withdrawn, by code."""
REOPENING: dict[str, Name] = {
    "not_solved": Name(zh="问题未解决", en="it is not solved"),
    "came_back": Name(zh="问题再次出现", en="it has come back"),
    "badly_done": Name(zh="处理质量不合格", en="it was done badly"),
    "nobody_came": Name(zh="无人到场处理", en="nobody came"),
    "other": Name(zh="其他", en="other"),
}
"""Why a request may be reopened, by code."""


class Withdrawing(Asked):
    """Why a request is withdrawn. Raises RefusedError `not_listed`, with those there are."""

    reason: Annotated[str, OneOf(WITHDRAWING, "reason")] = "other"


class Reopening(Asked):
    """Why a request is reopened. Raises RefusedError `not_listed`, with those there are."""

    reason: Annotated[str, OneOf(REOPENING, "reason")] = "other"


class Rating(Asked):
    """The resident's judgement (评单)."""

    grade: Grade
    solved: bool


class Step(BaseModel):
    """One fact of a case, as the ledger lists it."""

    model_config = ConfigDict(extra="ignore")

    type: str
    time: datetime
    sequence: int
    id: str = ""
    district: str = ""
    area: str = ""
    actor: str | None = None
    to: str | None = None
    office: str | None = None
    why: str | None = None
    parts: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """`request.withdrawn`, whether the type came with prefix and version or without."""
        return re.sub(r"\.v\d+$", "", self.type.removeprefix("cn.paidan."))


class Case(BaseModel):
    """What the ledger knows of one request."""

    model_config = ConfigDict(extra="ignore")

    id: str
    district: str
    districts: tuple[str, ...] = ()
    area: str
    item: str
    urgency: int = 0
    state: str
    round: int = 1
    language: Language = "zh-CN"
    due: Due | None = None
    holder: str | None = None
    closed: datetime | None = None
    home: str = ""
    """The office it was submitted to, under whose key it is sealed."""
    granted: bool = False
    """Whether the office responsible now may read what is sealed, where it is another."""
    sealed: Literal["kept", "frozen", "erased"] | None = None
    frozen_until: date | None = None
    timeline: tuple[Step, ...] = ()

    def steps(self, name: str) -> list[Step]:
        """Its facts of one kind, oldest first."""
        return [step for step in self.timeline if step.name == name]

    @model_validator(mode="before")
    @classmethod
    def _split(cls, document: Any) -> Any:
        if isinstance(document, dict) and isinstance(document.get("districts"), str):
            return {**document, "districts": tuple(filter(None, document["districts"].split(",")))}
        return document
