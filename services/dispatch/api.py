"""HTTP in front of the desk: commands in, tasks and the live stream out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, FastAPI, Header, Query, Request
from fastapi.responses import Response, StreamingResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict
from starlette.types import Receive, Scope, Send

from services.dispatch import importing
from services.dispatch.between import seen_by
from services.dispatch.commands import VERBS, Outcome, Reason
from services.dispatch.decide import unchanged
from services.dispatch.desk import Desks
from services.dispatch.matching import workload
from services.dispatch.model import Desk, Task
from services.dispatch.offices import Dispatcher, Key, Of, Supervisor, add_routes
from services.dispatch.showing import OFFICE, Wanted
from services.dispatch.streaming import LiveTail
from shared import web
from shared.access import allowed
from shared.auth import Caller, Doorkeeper, bearer
from shared.bus import Bus
from shared.errors import BusError, RefusedError, UnavailableError
from shared.facts import MemberId, plain
from shared.ids import derived_id

COMMAND_S = 5.0
"""How long HTTP forwards and repeats one command id before it gives up."""
TRY_S = 1.5
IMPORT_BYTES_MAX = 2 * 1024 * 1024
CHUNK = 400
"""How many members one command enrols."""
REGISTER_S = 2.0
"""How long an import waits for areas that the desk does not know yet."""

Holder = Annotated[Caller, allowed("member", "dispatcher", "supervisor", of="own")]
Planner = Annotated[Caller, allowed("dispatcher", "supervisor", "auditor", of="district")]
Watcher = Annotated[Caller, allowed("member", "clerk", "dispatcher", "supervisor", "auditor", of="own")]


class ByMember(BaseModel):
    """Who acts; left out, the caller."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    member: MemberId | None = None


class ByMemberWithReason(ByMember):
    """A no, and why."""

    reason: Reason = "other"


class ByMemberWithOutcome(ByMember):
    """An end, and how."""

    outcome: Outcome = "solved"


class ToMember(BaseModel):
    """Whom a dispatcher asks."""

    model_config = ConfigDict(extra="forbid")
    member: MemberId


class JsonRoute(APIRoute):
    """Reads a body as JSON even where `curl -d` calls it a form, or nobody says what it is."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As for every route, with the content type that is meant."""
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            given = request.headers.get("content-type", "")
            if not given or given.startswith("application/x-www-form-urlencoded"):
                headers = [(name, value) for name, value in request.scope["headers"] if name != b"content-type"]
                scope = {**request.scope, "headers": [*headers, (b"content-type", b"application/json")]}
                request = Request(scope, request.receive)
            return await handle(request)

        return handle_json


def create_app(bus: Bus, desks: Desks, tail: LiveTail, doorkeeper: Doorkeeper, until: asyncio.Event) -> FastAPI:
    """The app; it holds nothing but what it is given."""

    async def ready() -> dict[str, str]:
        missing = {**desks.recovering, **desks.failed}
        if not desks.sharing.loaded:
            missing["register"] = "not read yet"
        if not bus.connected:
            missing["nats"] = "not connected"
        if bus.refused:
            missing["permissions"] = bus.refused
        try:
            await bus.state()
        except Exception as why:
            missing["streams"] = str(why)
        return missing

    app = web.create_app("Paidan dispatch · 派单", ready=ready, doorkeeper=doorkeeper, body_bytes_max=IMPORT_BYTES_MAX)

    async def forward(
        request: Request, caller: Caller, verb: str, of: str | None, key: str | None, data: Any
    ) -> dict[str, Any]:
        """One command to whichever instance leads, repeated under one id until somebody answers."""
        if key is None:
            raise RefusedError("key_missing", field="Idempotency-Key")
        district = caller.one(of)
        if desks.register.districts and district not in desks.register.districts:
            raise RefusedError("unknown_district", district=district)  # nobody will ever lead it
        token = bearer(request.headers.get("authorization"))
        id = derived_id("command", caller.id, district, verb, key, orjson.dumps(data, option=orjson.OPT_SORT_KEYS))
        body = orjson.dumps({"id": id, "token": token, "data": data})
        ends = asyncio.get_running_loop().time() + COMMAND_S
        while True:
            try:
                answer: dict[str, Any] = orjson.loads(
                    await bus.request(f"cmd.{district}.desk.{verb}", body, timeout_s=TRY_S)
                )
                break
            except UnavailableError:
                if asyncio.get_running_loop().time() > ends:
                    raise RefusedError("no_leader", district=district, retry_after=2) from None
                await asyncio.sleep(0.1)
        if found := answer.get("problem"):
            facts = {
                k: v
                for k, v in found.items()
                if k not in ("type", "title", "status", "detail", "code", "title_en", "detail_en", "field")
            }
            raise RefusedError(found["code"], field=found.get("field"), **facts)
        return answer

    refusals = web.problems(
        "unauthenticated",
        "forbidden",
        "foreign_district",
        "district_missing",
        "unknown_district",
        "key_missing",
        "invalid",
        "no_leader",
    )
    of_task = {
        **refusals,
        **web.problems("unknown_task", "already_taken", "not_offered", "not_holder", "wrong_state", "not_yourself"),
    }

    on_task = APIRouter(route_class=JsonRoute)

    @on_task.post("/v1/tasks/{task}/accept", tags=["tasks"], summary="接单 / accept", responses=of_task)
    async def accept(
        task: str,
        request: Request,
        caller: Holder,
        body: ByMember = ByMember(),  # noqa: B008  # frozen
        district: Of = None,
        key: Key = None,
    ) -> dict[str, Any]:
        return await forward(
            request, caller, "accept", district, key, {"task": task, "member": body.member or caller.id}
        )

    @on_task.post("/v1/tasks/{task}/decline", tags=["tasks"], summary="拒单 / decline", responses=of_task)
    async def decline(
        task: str,
        request: Request,
        caller: Holder,
        body: ByMemberWithReason = ByMemberWithReason(),  # noqa: B008  # frozen
        district: Of = None,
        key: Key = None,
    ) -> dict[str, Any]:
        data = {"task": task, "member": body.member or caller.id, "reason": body.reason}
        return await forward(request, caller, "decline", district, key, data)

    @on_task.post("/v1/tasks/{task}/arrive", tags=["tasks"], summary="到场 / arrive", responses=of_task)
    async def arrive(
        task: str,
        request: Request,
        caller: Holder,
        body: ByMember = ByMember(),  # noqa: B008  # frozen
        district: Of = None,
        key: Key = None,
    ) -> dict[str, Any]:
        return await forward(
            request, caller, "arrive", district, key, {"task": task, "member": body.member or caller.id}
        )

    @on_task.post("/v1/tasks/{task}/done", tags=["tasks"], summary="办结 / done", responses=of_task)
    async def done(
        task: str,
        request: Request,
        caller: Holder,
        body: ByMemberWithOutcome = ByMemberWithOutcome(),  # noqa: B008  # frozen
        district: Of = None,
        key: Key = None,
    ) -> dict[str, Any]:
        data = {"task": task, "member": body.member or caller.id, "outcome": body.outcome}
        return await forward(request, caller, "done", district, key, data)

    @on_task.post(
        "/v1/tasks/{task}/offer",
        tags=["tasks"],
        summary="手动派单 / offer by hand",
        responses={**of_task, **web.problems("unknown_member", "over_capacity")},
    )
    async def offer(
        task: str, body: ToMember, request: Request, caller: Dispatcher, district: Of = None, key: Key = None
    ) -> dict[str, Any]:
        return await forward(request, caller, "offer", district, key, {"task": task, "member": body.member})

    add_routes(on_task, desks, forward)
    app.include_router(on_task)

    @app.get(
        "/v1/tasks",
        tags=["tasks"],
        summary="未结任务 / open tasks",
        responses=web.problems(
            "unauthenticated",
            "forbidden",
            "foreign_district",
            "district_missing",
            "unknown_district",
            "not_recovered",
        ),
    )
    async def tasks(
        caller: Watcher,
        district: Of = None,
        status: Annotated[str | None, Query(description="opened offered accepted arrived done unplaced")] = None,
        area: str | None = None,
        member: str | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        after: Annotated[str, Query(description="上一页末尾的编号 / the last id of the page before")] = "",
    ) -> dict[str, Any]:
        desk = desks.known(caller.one(district))
        if not caller.roles & OFFICE:
            member = caller.id
        found = [
            task
            for task in desk.tasks.values()
            if task.id > after
            and (status is None or task.status == status)
            and (area is None or task.area == area)
            and (member is None or task.holder == member or member in task.offered)
        ]
        page = sorted(found, key=lambda task: task.id)[:limit]
        return {
            "tasks": [_shown(desk, task, caller) for task in page],
            "total": len(found),
            "next": page[-1].id if len(found) > limit else None,
        }

    @app.get(
        "/v1/tasks/{task}",
        tags=["tasks"],
        summary="任务 / one open task",
        responses=web.problems(
            "unauthenticated", "unknown_task", "foreign_district", "district_missing", "not_recovered"
        ),
    )
    async def one(task: str, caller: Watcher, district: Of = None) -> dict[str, Any]:
        desk = desks.known(caller.one(district))
        found = desk.tasks.get(task)
        if found is None or (not caller.roles & OFFICE and caller.id not in (found.holder, *found.tried)):
            raise RefusedError("unknown_task", task=task)
        return _shown(desk, found, caller)

    @app.get(
        "/v1/members",
        tags=["members"],
        summary="人员与负荷 / members and their load",
        responses=web.problems("unauthenticated", "forbidden", "foreign_district", "district_missing", "not_recovered"),
    )
    async def members(caller: Planner, district: Of = None) -> dict[str, Any]:
        desk = desks.known(caller.one(district))
        return {
            "members": [
                {
                    "id": member.id,
                    "kind": member.kind,
                    "areas": member.areas,
                    "skills": sorted(member.skills),
                    "capacity": member.capacity,
                    "load": member.load,
                    "workload": workload(member, 0),
                    "left": member.left,
                    "duty": [plain(duty) for duty in member.duty],
                }
                for _, member in sorted(desk.members.items())
            ]
        }

    @app.post(
        "/v1/members/import",
        tags=["members"],
        summary="批量登记 / enrol in bulk (CSV or JSON)",
        responses={
            **refusals,
            **web.problems("invalid_json", "not_utf8", "unknown_columns", "unknown_district", "not_recovered"),
        },
    )
    async def import_members(
        request: Request, caller: Dispatcher, district: Of = None, dry_run: bool = False, key: Key = None
    ) -> dict[str, Any]:
        of = caller.one(district)
        if key is None and not dry_run:
            raise RefusedError("key_missing", field="Idempotency-Key")
        desks.known(of)
        rows = importing.read(await request.body(), request.headers.get("content-type", "text/csv"))
        good, reports = await checked(rows, of)
        if dry_run:
            desk = desks.known(of)
            for number, row in good:
                new = row.id not in desk.members
                result: importing.Result = (
                    "enrolled" if new else "unchanged" if unchanged(desk, row.enrolment()) else "changed"
                )
                reports.append(importing.Report(number, row.id, result))
        else:
            enrolled: set[str] = set()
            changed: set[str] = set()
            for n, first in enumerate(range(0, len(good), CHUNK)):
                chunk = [row for _, row in good[first : first + CHUNK]]
                facts = [row.enrolment() for row in chunk]
                content = [plain(fact) | {"duty": [plain(duty) for duty in fact.duty]} for fact in facts]
                try:
                    for row in chunk:  # first: an enrolment may be followed by an offer at once
                        await bus.replace("KV_CONTACTS", contact(of, row), row.contact())
                    answer = await forward(
                        request, caller, "enrol", of, derived_id("import", key, n), {"members": content}
                    )
                except (RefusedError, BusError):
                    await forget(of, chunk)
                    raise
                enrolled.update(answer.get("enrolled", ()))
                changed.update(answer.get("changed", ()))
            for number, row in good:
                result = "enrolled" if row.id in enrolled else "changed" if row.id in changed else "unchanged"
                reports.append(importing.Report(number, row.id, result))
        reports.sort(key=lambda report: report.row)
        counts: dict[str, int] = {result: sum(r.result == result for r in reports) for result in importing.RESULTS}
        return {"district": of, "dry_run": dry_run, **counts, "rows": [plain_report(report) for report in reports]}

    async def forget(of: str, rows: list[importing.Row]) -> None:
        """
        Contacts of whom no desk knows. Of an enrolment without an answer nobody can say whether it holds: until the import is
        repeated these are reached like those who have none.
        """
        known = desks.known(of).members
        for row in rows:
            if row.id not in known:
                with suppress(BusError):
                    await bus.erase("KV_CONTACTS", contact(of, row))

    async def checked(
        rows: list[Mapping[str, Any]], of: str
    ) -> tuple[list[tuple[int, importing.Row]], list[importing.Report]]:
        """The rows and their reports; a register that was applied a moment ago may still be on its way to the desk."""
        ends = asyncio.get_running_loop().time() + REGISTER_S
        while True:
            good, reports = importing.check(rows, of, desks.register.areas)
            late = any(report.result == "error" and report.field == "areas" for report in reports)
            if not late or asyncio.get_running_loop().time() > ends:
                return good, reports
            await asyncio.sleep(0.1)

    @app.post(
        "/v1/members/{member}/leave",
        tags=["members"],
        summary="离岗 / no longer given work",
        responses={**refusals, **web.problems("unknown_member")},
    )
    async def leave(
        member: str, request: Request, caller: Dispatcher, district: Of = None, key: Key = None
    ) -> dict[str, Any]:
        return await forward(request, caller, "leave", district, key, {"member": member})

    @app.post(
        "/v1/members/{member}/erase",
        tags=["members"],
        summary="删除联系方式,不可恢复 / forget how somebody is reached, for good",
        responses=refusals,
    )
    async def erase(
        member: str, request: Request, caller: Supervisor, district: Of = None, key: Key = None
    ) -> dict[str, Any]:
        return await forward(request, caller, "erase", district, key, {"member": member})

    @app.get(
        "/v1/stream",
        tags=["stream"],
        summary="实时事件 / live events (SSE); id = sequence, Last-Event-ID resumes",
        response_class=StreamingResponse,
        responses=web.problems(
            *("unauthenticated", "forbidden", "foreign_district", "bad_cursor"),
            *("too_many_watch", "too_many_streams", "unavailable"),
        ),
    )
    async def stream(
        caller: Watcher,
        district: Of = None,
        area: str | None = None,
        types: Annotated[str | None, Query(description="task.offered,task. … / prefixes, comma-separated")] = None,
        after: Annotated[int | None, Query(ge=0, description="从此序号之后 / from behind this sequence")] = None,
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> StreamingResponse:
        wanted = Wanted.by(caller, district, area, types)
        desks.need_register()
        if last_event_id is not None:
            if not (last_event_id.isascii() and last_event_id.isdigit()):
                raise RefusedError("bad_cursor", field="Last-Event-ID")
            after = int(last_event_id)
        if after is not None and after > tail.last and after > (await bus.state()).last:
            raise RefusedError("bad_cursor", field="Last-Event-ID", last=tail.last)

        asked = desks.asked(wanted.member, wanted.district) if wanted.member is not None else ()
        holds = partial(doorkeeper.holds, caller)
        place = tail.place(caller, limited=desks.limited(caller.district))
        return Watching(place, tail.watch(wanted, after, until, asked=asked, holds=holds))

    @app.get(
        "/v1/verbs",
        tags=["tasks"],
        summary="指令 / the commands a desk takes on the bus",
        dependencies=[allowed(of="nothing")],
    )
    async def verbs() -> dict[str, Any]:
        return {verb: model.model_json_schema() for verb, model in VERBS.items()}

    return app


class Watching(StreamingResponse):
    """The stream as an answer; raises RefusedError as `LiveTail.place` before it begins."""

    media_type = "text/event-stream"

    def __init__(self, place: AbstractContextManager[None], events: AsyncIterator[bytes]) -> None:
        super().__init__(events, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hold a place while the client is there."""
        with self._place:
            await super().__call__(scope, receive, send)


def contact(district: str, row: importing.Row) -> str:
    """Where it is kept how somebody is reached."""
    return f"$KV.CONTACTS.{district}.{row.id}"


def plain_report(report: importing.Report) -> dict[str, Any]:
    """A row's report without what is absent."""
    fields = {"row": report.row, "id": report.id, "result": report.result, "field": report.field, "why": report.why}
    return {key: value for key, value in fields.items() if value is not None}


def _shown(desk: Desk, task: Task, caller: Caller) -> dict[str, Any]:
    """As they may see it: whom else the desk asked is not a member's affair."""
    office = bool(caller.roles & OFFICE)
    return {
        "id": task.id,
        "request": task.request,
        "round": task.round,
        "area": task.area,
        "districts": seen_by(desk, task.area, datetime.now(UTC), task=task).split(","),
        "item": task.item,
        "urgency": task.urgency,
        "effort": task.effort,
        "status": task.status,
        "wave": task.wave,
        "offered": [member for member in task.offered if office or member == caller.id],
        "tried": [member for member in task.tried if office or member == caller.id],
        "holder": task.holder,
        "until": task.until,
        "due": task.due,
        "asking": task.asking,
        "helps": list(task.helps),
    }
