"""HTTP routes for what goes on between offices: hand-over (转办), conferral (会商), help (吹哨报到)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel, ConfigDict

from services.dispatch.between import Matter, Question
from services.dispatch.commands import Unwilling
from services.dispatch.desk import Desks
from shared import web
from shared.access import allowed
from shared.auth import Caller
from shared.facts import Basis, ConferralOpened, District, Grade, HandoverOffered, HandoverReason, HelpAsked, MemberId

Key = Annotated[
    str | None,
    Header(alias="Idempotency-Key", min_length=1, max_length=200, description="沿用同一键重试 / the same for repeats"),
]
Of = Annotated[District | None, Query(description="辖区代码,默认取自令牌 / default: the token's")]
Dispatcher = Annotated[Caller, allowed("dispatcher", "supervisor", of="district")]
Supervisor = Annotated[Caller, allowed("supervisor", of="district")]
Office = Annotated[Caller, allowed("clerk", "dispatcher", "supervisor", "auditor", of="district")]

Forward = Callable[[Request, Caller, str, str | None, str | None, Any], Awaitable[dict[str, Any]]]
"""Sends a command to whichever instance leads: request, caller, verb, district, key, content."""


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HandingOver(_Body):
    """To whom, why, and on what that rests; `grant`: its people may then read what the resident sealed."""

    to: District
    reason: HandoverReason
    basis: Basis | None = None
    grant: bool = True


class Refusing(_Body):
    """Why not, and on what that rests."""

    reason: HandoverReason
    basis: Basis


class Ruling(_Body):
    """Whose it is, on what that rests, and whether the next of its kind here goes there too."""

    owner: District
    basis: Basis
    precedent: bool = False


class AskingHelp(_Body):
    """Which office, and whether it has an hour to report in."""

    to: District
    whistle: bool = False


class Lending(_Body):
    """Who is lent; left out, whoever the matching finds."""

    member: MemberId | None = None


class RefusingHelp(_Body):
    """Why nobody is lent."""

    reason: Unwilling = "nobody_free"


class RatingHelp(_Body):
    """How the help was."""

    grade: Grade


def add_routes(router: APIRouter, desks: Desks, forward: Forward) -> None:
    """The routes, on a router that reads bodies as JSON."""
    refusals = web.problems(
        *(
            "unauthenticated",
            "forbidden",
            "foreign_district",
            "district_missing",
            "key_missing",
            "invalid",
            "no_leader",
        ),
        *("not_found", "over"),
    )
    of_task = {
        **refusals,
        **web.problems("unknown_task", "wrong_state", "unknown_district", "own_office", "already_asking"),
    }
    looking = web.problems(
        "unauthenticated", "forbidden", "foreign_district", "district_missing", "unknown_district", "not_recovered"
    )

    @router.post(
        "/v1/tasks/{task}/hand-over", tags=["offices"], summary="转办 / offer to another office", responses=of_task
    )
    async def hand_over(
        task: str, body: HandingOver, request: Request, caller: Dispatcher, district: Of = None, key: Key = None
    ) -> dict[str, Any]:
        return await forward(request, caller, "hand_over", district, key, {"task": task, **_said(body)})

    @router.post(
        "/v1/handovers/{handover}/take-back", tags=["offices"], summary="撤回转办 / take back", responses=refusals
    )
    async def take_back(
        handover: str, request: Request, caller: Dispatcher, district: Of = None, key: Key = None
    ) -> dict[str, Any]:
        return await forward(request, caller, "take_back", district, key, {"handover": handover})

    @router.post("/v1/handovers/{handover}/sign", tags=["offices"], summary="签收 / sign for", responses=refusals)
    async def sign(
        handover: str, request: Request, caller: Dispatcher, district: Of = None, key: Key = None
    ) -> dict[str, Any]:
        return await forward(request, caller, "sign", district, key, {"handover": handover})

    @router.post(
        "/v1/handovers/{handover}/refuse",
        tags=["offices"],
        summary="退单 / refuse",
        responses={**refusals, **web.problems("already_signed")},
    )
    async def refuse(
        handover: str, body: Refusing, request: Request, caller: Dispatcher, district: Of = None, key: Key = None
    ) -> dict[str, Any]:
        return await forward(request, caller, "refuse", district, key, {"handover": handover, **_said(body)})

    @router.post(
        "/v1/conferrals/{conferral}/rule",
        tags=["offices"],
        summary="会商裁定 / rule",
        responses={**refusals, **web.problems("not_lead", "not_listed")},
    )
    async def rule(
        conferral: str, body: Ruling, request: Request, caller: Supervisor, district: Of = None, key: Key = None
    ) -> dict[str, Any]:
        return await forward(request, caller, "rule", district, key, {"conferral": conferral, **_said(body)})

    @router.post(
        "/v1/tasks/{task}/ask-help", tags=["offices"], summary="借调、吹哨 / ask for help, whistle", responses=of_task
    )
    async def ask_help(
        task: str, body: AskingHelp, request: Request, caller: Dispatcher, district: Of = None, key: Key = None
    ) -> dict[str, Any]:
        return await forward(request, caller, "ask_help", district, key, {"task": task, **_said(body)})

    @router.post(
        "/v1/help/{help}/take-back",
        tags=["offices"],
        summary="撤回借调 / take back a call for help",
        responses={**refusals, **web.problems("already_signed")},
    )
    async def take_back_help(
        help: str, request: Request, caller: Dispatcher, district: Of = None, key: Key = None
    ) -> dict[str, Any]:
        return await forward(request, caller, "take_back_help", district, key, {"help": help})

    @router.post(
        "/v1/help/{help}/lend",
        tags=["offices"],
        summary="报到 / report in: lend somebody",
        responses={**refusals, **web.problems("unknown_member", "over_capacity", "nobody_free")},
    )
    async def lend(
        help: str,
        request: Request,
        caller: Dispatcher,
        body: Lending = Lending(),  # noqa: B008  # frozen
        district: Of = None,
        key: Key = None,
    ) -> dict[str, Any]:
        return await forward(request, caller, "lend", district, key, {"help": help, **_said(body)})

    @router.post(
        "/v1/help/{help}/refuse",
        tags=["offices"],
        summary="无人可借 / lend nobody",
        responses={**refusals, **web.problems("already_signed", "not_listed")},
    )
    async def refuse_help(
        help: str,
        request: Request,
        caller: Dispatcher,
        body: RefusingHelp = RefusingHelp(),  # noqa: B008  # frozen
        district: Of = None,
        key: Key = None,
    ) -> dict[str, Any]:
        return await forward(request, caller, "refuse_help", district, key, {"help": help, **_said(body)})

    @router.post(
        "/v1/help/{help}/rate",
        tags=["offices"],
        summary="评价支援 / rate the help",
        responses={**refusals, **web.problems("not_released")},
    )
    async def rate_help(
        help: str, body: RatingHelp, request: Request, caller: Dispatcher, district: Of = None, key: Key = None
    ) -> dict[str, Any]:
        return await forward(request, caller, "rate_help", district, key, {"help": help, **_said(body)})

    @router.get("/v1/handovers", tags=["offices"], summary="未了转办 / open hand-overs, in and out", responses=looking)
    async def handovers(caller: Office, district: Of = None) -> dict[str, Any]:
        return {"handovers": _open(desks, caller, district, HandoverOffered)}

    @router.get("/v1/conferrals", tags=["offices"], summary="未了会商 / open conferrals", responses=looking)
    async def conferrals(caller: Office, district: Of = None) -> dict[str, Any]:
        return {"conferrals": _open(desks, caller, district, ConferralOpened)}

    @router.get(
        "/v1/help",
        tags=["offices"],
        summary="未了支援 / open calls for help, in and out, and what may be rated",
        responses=looking,
    )
    async def calls_for_help(caller: Office, district: Of = None) -> dict[str, Any]:
        return {"help": _open(desks, caller, district, HelpAsked)}


def _said(body: BaseModel) -> dict[str, Any]:
    return body.model_dump(exclude_none=True)


def _open(desks: Desks, caller: Caller, district: str | None, kind: type[Question]) -> list[dict[str, Any]]:
    """What stands open of a kind, those that end first before the others."""
    matters = desks.known(caller.one(district)).matters.values()
    found = (matter for matter in matters if isinstance(matter.fact, kind))
    return [_shown(matter) for matter in sorted(found, key=lambda matter: (matter.fact.until, matter.id))]


def _shown(matter: Matter) -> dict[str, Any]:
    """The question as it was asked, and how it stands here; `asker`: whose task it is about."""
    return {
        **matter.fact.model_dump(mode="json", exclude_none=True, exclude={"giver"}),
        "id": matter.id,
        "asker": matter.asker,
        "direction": "out" if matter.ours else "in",
        "stage": matter.stage,
        "member": matter.member,
        "area": matter.area,
        "districts": list(dict.fromkeys(matter.offices)),
    }
