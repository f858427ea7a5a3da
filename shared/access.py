"""
Who may call a route: one declaration each, which asks the caller, shows in the OpenAPI document and makes `docs/access.md`.

    Office = Annotated[Caller, allowed("dispatcher", "supervisor", of="district")]

    @app.get("/v1/members")
    async def members(caller: Office) -> …

The declaration holds roles; which objects are theirs is the route's own work, and `of` says what it does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from time import monotonic
from types import MappingProxyType
from typing import Any, Literal

from fastapi import Depends, FastAPI, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from shared.auth import EVERYWHERE, Caller, Doorkeeper, Role, bearer
from shared.errors import RefusedError
from shared.limiting import Limits, network

Of = Literal[
    "nothing", "register", "submission", "code", "district", "own", "handled", "cases", "everywhere", "reply", "gateway"
]
OF: Mapping[Of, tuple[str, str]] = MappingProxyType(
    {
        "nothing": ("无个人或业务数据", "nothing of anybody's"),
        "register": ("公开台账", "what is public of the register"),
        "submission": (
            "新诉求;持令牌者仅限本辖区服务的地点",
            "a new request; with a token: at a place that their district serves",
        ),
        "code": ("凭追踪码查看的一件诉求", "the request that the tracking code opens"),
        "district": ("本辖区", "their own district"),
        "own": ("本辖区;网格员仅限与本人有关的", "their own district; a member: what concerns themselves"),
        "handled": (
            "本辖区正在办理的诉求;网格员仅限所持任务",
            "requests that their district handles; a member: whose task they hold",
        ),
        "cases": ("涉及本辖区的诉求与事实", "cases and facts that name their district"),
        "everywhere": ("所有辖区,令牌辖区须为 *", "every district: the token must be for *"),
        "reply": ("凭一次性回复码答复的一件派单", "the task that a message's one-time code is for"),
        "gateway": ("以签名证明身份的短信网关或企业微信", "an SMS gateway or WeCom, by its signature"),
    }
)


class Admission:
    """
    How much is let in, of one address, of one caller, and of tokens that turn out to be none.

    Args:
        addresses, callers: requests.
        misses: refused tokens of one address: whoever is known already does not wait for others.
    """

    def __init__(self, addresses: Limits, callers: Limits, misses: Limits) -> None:
        self.addresses = addresses
        self.callers = callers
        self.misses = misses

    @classmethod
    def unlimited(cls) -> Admission:
        """For an app that nobody serves yet."""
        return cls(Limits(0, 1), Limits(0, 1), Limits(0, 1))


class Allowed:
    """The declaration of one route: those with one of these roles, and admins where it says so; no roles: anybody, unasked."""

    def __init__(self, roles: tuple[Role, ...], of: Of, *, admin: bool) -> None:
        self.roles = roles
        self.of = of
        self.admin = admin

    async def __call__(self, request: Request) -> Caller | None:
        """
        The caller; None where nobody is asked, or a resident shows no token. Whoever shows one must show a valid one.

        Raises:
            RefusedError: `unauthenticated`, `forbidden`, `everywhere_only`, `too_many`.
        """
        if not self.roles:
            return None
        header = request.headers.get("authorization")
        if header is None and "resident" in self.roles:
            return None
        caller = await admitted(request, bearer(header))
        if self.admin:
            caller.need(*self.roles)
        elif not caller.roles & {*self.roles}:
            raise RefusedError("forbidden", need=" / ".join(self.roles))
        if self.of == "everywhere" and caller.district != EVERYWHERE:
            raise RefusedError("everywhere_only", yours=caller.district)
        return caller

    def may(self, role: Role) -> bool:
        """Whether somebody with this role alone may call."""
        return not self.roles or "resident" in self.roles or role in self.roles or (self.admin and role == "admin")


def allowed(*roles: Role, of: Of, admin: bool = True) -> Any:
    """
    The dependency that declares who may call a route, as the annotation of its `caller` or in `dependencies`.

    Args:
        admin: whether an admin may too, without one of the roles.
    """
    return Depends(Allowed(roles, of, admin=admin))


public = allowed(of="nothing")
"""Asks nobody: health, documentation."""


async def admitted(request: Request, token: str | None) -> Caller:
    """The holder of a token, at the pace that they and their address are let in. Raises RefusedError."""
    doorkeeper: Doorkeeper = request.app.state.doorkeeper
    admission: Admission = request.app.state.admission
    address = network(request.client)
    if token and doorkeeper.known(token) is None:
        admission.misses.look(address, monotonic())
    try:
        caller = await doorkeeper.admit(token)
    except RefusedError:
        if token:
            with suppress(RefusedError):
                admission.misses.take(address, monotonic())
        raise
    admission.callers.take(f"{caller.issuer} {caller.district} {caller.id}", monotonic())
    return caller


def routes(app: FastAPI) -> Iterator[tuple[str, APIRoute, Allowed | None]]:
    """Each method and path with its route and its declaration, as in `GET /v1/tasks`; None where there is none."""
    for route in _flat(app.routes):
        if isinstance(route, APIRoute):
            found = next(_declared([route.dependant]), None)
            for method in sorted(route.methods or ()):
                yield f"{method} {route.path_format}", route, found


def _flat(some: Iterable[BaseRoute]) -> Iterator[BaseRoute]:
    """Routes, and those of routers that were included, which FastAPI keeps as one."""
    for route in some:
        if (router := getattr(route, "original_router", None)) is not None:
            yield from _flat(router.routes)
        else:
            yield route


def _declared(dependants: Iterable[Dependant]) -> Iterator[Allowed]:
    for dependant in dependants:
        if isinstance(dependant.call, Allowed):
            yield dependant.call
        yield from _declared(dependant.dependencies)
