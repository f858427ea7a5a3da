"""What may be asked of a desk: each command's verb, shape, and who may give it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.dispatch.words import OUTCOMES, REASONS, UNWILLING
from shared.auth import Caller
from shared.codes import OneOf
from shared.errors import RefusedError
from shared.facts import Basis, Code, District, Grade, HandoverReason, Id, MemberEnrolled, MemberId
from shared.problems import invalid

Reason = Annotated[Code, OneOf(REASONS, "reason")]
"""One of `REASONS`. Raises RefusedError `not_listed`."""
Outcome = Annotated[Code, OneOf(OUTCOMES, "outcome")]
"""One of `OUTCOMES`. Raises RefusedError `not_listed`."""
Unwilling = Annotated[Code, OneOf(UNWILLING, "reason")]
"""One of `UNWILLING`. Raises RefusedError `not_listed`."""


class Verb(BaseModel):
    """A command's content. `leads_to`: the names that the first fact of its answer may have."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    leads_to: ClassVar[tuple[str, ...]] = ()

    def allow(self, caller: Caller, district: str) -> None:
        """Raises RefusedError where the caller may not: dispatchers may all, in their own district."""
        caller.need("dispatcher", "supervisor", district=district)


class OfMember(Verb):
    """A command that a member gives about a task, or a dispatcher for them."""

    task: Id
    member: MemberId

    def allow(self, caller: Caller, district: str) -> None:
        """Members act for themselves only."""
        caller.need("member", "dispatcher", "supervisor", district=district)
        if not caller.roles & {"dispatcher", "supervisor", "admin"} and caller.id != self.member:
            raise RefusedError("not_yourself")


class Accept(OfMember):
    """接单: I take it."""

    leads_to = ("task.accepted",)


class Decline(OfMember):
    """拒单: no, and why."""

    leads_to = ("task.declined",)

    reason: Reason = "other"


class Arrive(OfMember):
    """到场: I am here."""

    leads_to = ("task.arrived",)


class Done(OfMember):
    """办结: it is done."""

    leads_to = ("task.done",)

    outcome: Outcome = "solved"


class Offer(Verb):
    """派单 by hand: a dispatcher asks somebody in particular."""

    leads_to = ("task.expired", "match.explained")

    task: Id
    member: MemberId


class Enrol(Verb):
    """登记: these may be given work, on these terms."""

    leads_to = ("member.enrolled",)

    members: tuple[MemberEnrolled, ...] = Field(min_length=1, max_length=500)


class Leave(Verb):
    """No longer given work."""

    leads_to = ("member.left",)

    member: MemberId


class Erase(Verb):
    """Forgotten: how they were reached is deleted by the desk before it says so. What they hold stays theirs to finish."""

    leads_to = ("member.erased",)

    member: MemberId

    def allow(self, caller: Caller, district: str) -> None:
        """A supervisor, for good."""
        caller.need("supervisor", district=district)


class HandOver(Verb):
    """转办: another office is asked to take a task over; with `grant` its people may then read what the resident sealed."""

    leads_to = ("handover.offered",)

    task: Id
    to: District
    reason: HandoverReason
    basis: Basis | None = None
    grant: bool = True


class TakeBack(Verb):
    """撤回转办: the task is no longer offered."""

    leads_to = ("handover.lapsed",)

    handover: Id


class Sign(Verb):
    """签收: this office takes the task that another offers."""

    leads_to = ("handover.signed",)

    handover: Id


class Refuse(Verb):
    """退单: it does not, and on what that rests."""

    leads_to = ("handover.refused",)

    handover: Id
    reason: HandoverReason
    basis: Basis


class Rule(Verb):
    """裁定: the lead of a conferral says whose the task is; with `precedent` also the next of its kind in this area."""

    leads_to = ("conferral.ruled",)

    conferral: Id
    owner: District
    basis: Basis
    precedent: bool = False

    def allow(self, caller: Caller, district: str) -> None:
        """Supervisors only."""
        caller.need("supervisor", district=district)


class AskHelp(Verb):
    """借调: another office is asked for somebody; with `whistle` 吹哨: within the hour."""

    leads_to = ("help.asked",)

    task: Id
    to: District
    whistle: bool = False


class TakeBackHelp(Verb):
    """撤回借调: nobody is needed any more, as long as nobody has been lent."""

    leads_to = ("help.lapsed",)

    help: Id


class Lend(Verb):
    """报到: this office seats somebody; left out, whoever its own matching finds."""

    leads_to = ("match.explained",)

    help: Id
    member: MemberId | None = None


class RefuseHelp(Verb):
    """Nobody can be lent, and why."""

    leads_to = ("help.refused",)

    help: Id
    reason: Unwilling = "nobody_free"


class RateHelp(Verb):
    """评价: how the help was."""

    leads_to = ("help.rated",)

    help: Id
    grade: Grade


VERBS: dict[str, type[Verb]] = {
    "accept": Accept,
    "decline": Decline,
    "arrive": Arrive,
    "done": Done,
    "offer": Offer,
    "enrol": Enrol,
    "leave": Leave,
    "erase": Erase,
    "hand_over": HandOver,
    "take_back": TakeBack,
    "sign": Sign,
    "refuse": Refuse,
    "rule": Rule,
    "ask_help": AskHelp,
    "take_back_help": TakeBackHelp,
    "lend": Lend,
    "refuse_help": RefuseHelp,
    "rate_help": RateHelp,
}

REPLIES = frozenset({"accept", "decline", "arrive", "done"})
"""What a short reply may say: its token opens nothing else."""


def parse(verb: str, content: Any) -> Verb:
    """The command. Raises RefusedError `unknown_command`, `not_listed`, or `invalid` with the field."""
    model = VERBS.get(verb)
    if model is None:
        raise RefusedError("unknown_command", verb=verb)
    try:
        return model.model_validate(content)
    except ValidationError as why:
        raise invalid(why.errors(), whole="") from None
