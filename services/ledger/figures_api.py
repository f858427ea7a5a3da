"""HTTP side of the figures: rates, what would come out by other formulas, appeals and rulings, and buildings that rate each other."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, Literal

import orjson
from fastapi import FastAPI, Header, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from services.ledger import figures, pinning
from services.ledger.acting import Acts, shown
from services.ledger.asking import AreaGiven, District, Scans, district_of
from services.ledger.figures import DEFAULT, By, Pin, Question
from services.ledger.log.notes import Note
from services.ledger.register.register_api import Sentence
from services.ledger.register.registering import check_formulas
from services.ledger.replay import types_named
from services.ledger.rounds import FOLLOWED, Fold
from services.ledger.store import Selection
from shared.access import allowed
from shared.auth import Caller
from shared.envelope import canonical
from shared.errors import RefusedError
from shared.facts import (
    HUB,
    AreaCode,
    BuildingScored,
    Code,
    Count,
    FigureAppealed,
    FigureRuled,
    Formula,
    FormulaSet,
    Id,
)
from shared.facts import Month as OfMonth
from shared.ids import derived_id
from shared.telemetry import logger
from shared.web import problems

if TYPE_CHECKING:  # the routes' home knows us
    from services.ledger.api import Ledger

CHUNK = 2000
PAGE_MAX = 500
WAIT_S = 2.0
"""How long a ruling waits for the appeal to be in the log."""
TYPES = types_named([fact.name for fact in FOLLOWED])

Measurer = Annotated[Caller, allowed("dispatcher", "supervisor", "auditor", of="district")]
Appellant = Annotated[Caller, allowed("dispatcher", "supervisor", of="district", admin=False)]
Judge = Annotated[Caller, allowed("supervisor", of="district")]
Neighbour = Annotated[Caller, allowed("clerk", "member", "dispatcher", "supervisor", of="district")]
Onlooker = Annotated[Caller, allowed("clerk", "member", "dispatcher", "supervisor", "auditor", of="district")]
Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200)]
AsOf = Annotated[
    str | None, Query(max_length=40, description="账本规模或时间,默认现在 / a size of the log, or a time; else now")
]
Format = Annotated[Literal["json", "csv"], Query(description="csv:UTF-8 BOM")]
ItemGiven = Annotated[str | None, Query(max_length=48)]
MonthGiven = Annotated[OfMonth | None, Query(description="2026-11,默认全部 / else all")]
ByGiven = Annotated[By, Query(description="每行为何 / what each row is of")]


class WhatIf(BaseModel):
    """Formulas to try: those of a `formulas` entry of the register, as a whole or only the ones to compare."""

    model_config = ConfigDict(extra="forbid")

    district: str = HUB
    version: Count = 0
    valid_from: date = DEFAULT.valid_from
    formulas: Annotated[tuple[Formula, ...], Field(min_length=1, max_length=40)]
    weights: dict[Code, Count] = {}


class Appeal(BaseModel):
    """Which case is to be left out of which figure, and why. It is kept for ever: nothing personal."""

    model_config = ConfigDict(extra="forbid")

    request: Id
    figure: Code
    reason: Code
    why: Sentence = ""


class Ruling(BaseModel):
    """Whether it is left out, and why. It is kept for ever: nothing personal."""

    model_config = ConfigDict(extra="forbid")

    granted: bool
    why: Sentence = ""


class Scored(BaseModel):
    """What one building's people say of another in a month, 0 to 100."""

    model_config = ConfigDict(extra="forbid")

    building: AreaCode
    by: AreaCode
    month: OfMonth
    points: Annotated[int, Field(strict=True, ge=0, le=100)]


def add_routes(app: FastAPI, ledger: Ledger, acts: Acts) -> None:
    """The routes."""
    barred = problems("unauthenticated", "forbidden", "foreign_district")
    none_such = "unknown_district", "unknown_area", "unknown_item"
    asking = {**barred, **problems("invalid", *none_such, "no_checkpoint", "district_missing", "unavailable")}
    recording = {**barred, **problems("invalid", "key_missing", "key_reused", "district_missing", "unavailable")}
    csv: dict[int | str, dict[str, Any]] = {200: {"content": {"text/csv": {}}}}
    scans = Scans(1)

    async def folded(district: str | None, as_of: str | None) -> tuple[Fold, Pin]:
        """What figures follow from, of an office or of all, as of a size; one fold at a time: it is a scan of the log."""
        at = await pinning.pin(ledger.store, as_of)
        recorded = await pinning.recorded_ns(ledger.store, at.size)
        moment = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=recorded // 1000)
        checkpoint = Note.parse(at.note).body if at.note else None
        fold = Fold(district)
        wanted = Selection(scopes=(district, HUB) if district else None, types=TYPES, kinds=("event",))
        async with scans.one():
            since = 0
            while chunk := await ledger.store.read(wanted, since, at.size, CHUNK):
                await asyncio.to_thread(fold.take_all, [leaf for _, leaf in chunk])
                since = chunk[-1][0] + 1
        return fold, Pin(ledger.origin, at.size, moment, checkpoint)

    async def computed(
        caller: Caller, asked: Question, as_of: str | None, format: str, formulas: FormulaSet | None = None
    ) -> Response:
        whose = district_of(caller, asked.district)
        if asked.by == "person" and whose is None:
            raise RefusedError("district_missing", field="district")
        fold, pin = await folded(whose, as_of)
        answered = await asyncio.to_thread(figures.answer, fold, replace(asked, district=whose), pin, formulas)
        if not any(row["figures"] for row in answered["rows"]):
            await known(replace(asked, district=whose))
        return _told(answered, format)

    async def known(asked: Question) -> None:
        """Nothing of what there is no entry for is a slip of the pen. Raises RefusedError."""
        register = await ledger.registry.current()
        if asked.district is not None and asked.district not in register.districts:
            raise RefusedError("unknown_district", field="district", district=asked.district)
        if asked.area is not None and asked.area not in register.areas:
            raise RefusedError("unknown_area", field="area", what=asked.area)
        if asked.item is not None and asked.item not in register.items:
            raise RefusedError("unknown_item", field="item", item=asked.item)

    @app.get(
        "/v1/figures",
        tags=["figures"],
        summary="指标:各项比率及其分子分母 / rates, with what they are of",
        responses={**asking, **csv},
    )
    async def read_figures(
        caller: Measurer,
        district: District = None,
        area: AreaGiven = None,
        item: ItemGiven = None,
        month: MonthGiven = None,
        by: ByGiven = "district",
        as_of: AsOf = None,
        format: Format = "json",
    ) -> Response:
        return await computed(caller, Question(district, area, item, month, by), as_of, format)

    @app.post(
        "/v1/figures/what-if",
        tags=["figures"],
        summary="试算:换用别的公式,不留存 / what other formulas would give; nothing is stored",
        responses={**asking, **csv},
    )
    async def try_formulas(
        caller: Measurer,
        body: WhatIf,
        district: District = None,
        area: AreaGiven = None,
        item: ItemGiven = None,
        month: MonthGiven = None,
        by: ByGiven = "district",
        as_of: AsOf = None,
        format: Format = "json",
    ) -> Response:
        tried = FormulaSet(**dict(body))
        check_formulas("body", tried)
        return await computed(caller, Question(district, area, item, month, by), as_of, format, tried)

    @app.post(
        "/v1/figures/appeals",
        status_code=201,
        tags=["figures"],
        summary="申诉:请将一件诉求不计入某项指标 / appeal that a case be left out of a figure",
        responses={**recording, **problems("not_found", "not_listed")},
    )
    async def appeal(caller: Appellant, body: Appeal, district: District = None, key: Key = None) -> Response:
        whose = caller.one(district)
        case = await ledger.store.case(id=body.request)
        if case is None or whose not in case["districts"]:
            raise RefusedError("not_found", what=body.request)
        register = await ledger.registry.current()
        known = register.formula_set(whose, register.today(whose, datetime.now(UTC))) or DEFAULT
        listed = [formula.figure for formula in known.formulas]
        if body.figure not in listed:
            raise RefusedError("not_listed", field="figure", accepted=", ".join(listed))
        id = derived_id("appeal", caller.actor, whose, key := _keyed(key))
        fact = FigureAppealed(
            appeal_id=id, request_id=body.request, figure=body.figure, reason=body.reason, why=body.why
        )
        answer = await acts.record(fact, district=whose, by=caller, key=key, id=id, case=body.request)
        logger().info("figure_appealed", by=caller.actor, appeal=id, figure=body.figure)
        return _json(answer, 201)

    @app.post(
        "/v1/figures/appeals/{id}/ruling",
        status_code=201,
        tags=["figures"],
        summary="裁定申诉,申诉人不得自裁 / rule on an appeal, not one's own",
        responses={**recording, **problems("not_found", "own_appeal", "already_ruled")},
    )
    async def rule(caller: Judge, id: Annotated[Id, Path()], body: Ruling, key: Key = None) -> Response:
        event = await _appealed(id)
        district, request = event["source"].split("/")[2], event["data"]["request_id"]
        caller.need("supervisor", district=district)
        if event["actor"].partition(":")[2] == caller.id:
            raise RefusedError("own_appeal")
        answer = await acts.record(
            FigureRuled(appeal_id=id, granted=body.granted, why=body.why),
            district=district,
            by=caller,
            key=_keyed(key),
            id=_ruling_id(id),
            case=request,
            taken=RefusedError("already_ruled"),
        )
        logger().info("figure_ruled", by=caller.actor, appeal=id, granted=body.granted)
        return _json(answer, 201)

    async def _appealed(id: str) -> dict[str, Any]:
        """The appeal's event, which may have been committed just now."""
        ends = monotonic() + WAIT_S
        while not (found := (await ledger.store.known([id])).get(id)):
            if monotonic() > ends:
                raise RefusedError("not_found", what=id)
            await asyncio.sleep(0.05)
        event: dict[str, Any] = orjson.loads(found.data)
        if event["type"] != FigureAppealed.type():
            raise RefusedError("not_found", what=id)
        return event

    @app.get(
        "/v1/figures/appeals",
        tags=["figures"],
        summary="申诉及其裁定,旧者在前 / appeals and how they were ruled on, oldest first",
        responses={**barred, **problems("bad_cursor", "unavailable")},
    )
    async def list_appeals(
        caller: Measurer,
        district: District = None,
        limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 100,
        cursor: Annotated[str | None, Query(max_length=200)] = None,
    ) -> Response:
        whose = district_of(caller, district)
        question = {"appeals": whose or "*"}
        since = ledger.cursors.open(question, cursor)[0] if cursor else 0
        wanted = Selection(
            scopes=(whose,) if whose else None, types=types_named([FigureAppealed.name]), kinds=("event",)
        )
        found = await ledger.store.read(wanted, since, 2**53, limit + 1)
        events = [orjson.loads(leaf)["event"] for _, leaf in found[:limit]]
        ruled = await ledger.store.known([_ruling_id(event["id"]) for event in events])
        told = [
            {**shown(event), "ruling": shown(orjson.loads(ruled[of].data)) if of in ruled else None}
            for event in events
            for of in (_ruling_id(event["id"]),)
        ]
        following = ledger.cursors.seal(question, found[limit][0]) if len(found) > limit else None
        return _json({"appeals": told, "next": following})

    @app.post(
        "/v1/figures/buildings",
        status_code=201,
        tags=["figures"],
        summary="楼栋互评:某楼对另一楼的本月评分 / one building rates another for a month",
        responses={**recording, **problems("unknown_area")},
    )
    async def rate_building(caller: Neighbour, body: Scored, district: District = None, key: Key = None) -> Response:
        whose = caller.one(district)
        register = await ledger.registry.current()
        today = register.today(whose, datetime.now(UTC))
        if body.building == body.by:
            raise RefusedError(
                "invalid", field="by", why="楼栋不能给自己评分", why_en="a building does not rate itself"
            )
        if body.month > today.strftime("%Y-%m"):
            raise RefusedError("invalid", field="month", why="该月尚未开始", why_en="that month has not begun")
        for field, code in (("building", body.building), ("by", body.by)):
            area = register.area(code, today)
            if area is None or area.served_by != whose:
                raise RefusedError("unknown_area", field=field, what=code)
        fact = BuildingScored(**dict(body))
        return _json(await acts.record(fact, district=whose, by=caller, key=_keyed(key)), 201)

    @app.get(
        "/v1/figures/buildings",
        tags=["figures"],
        summary="楼栋积分与流动小红旗 / the buildings' scores of a month, and who holds the flag",
        responses={**asking, **csv},
    )
    async def read_buildings(
        caller: Onlooker,
        month: Annotated[OfMonth, Query(description="2026-11")],
        district: District = None,
        as_of: AsOf = None,
        format: Format = "json",
    ) -> Response:
        whose = caller.one(district)
        fold, pin = await folded(whose, as_of)
        return _told(figures.buildings(fold, pin, district=whose, month=month), format)


def _keyed(key: str | None) -> str:
    if key is None:
        raise RefusedError("key_missing", field="Idempotency-Key")
    return key


def _ruling_id(appeal: str) -> str:
    """The id of the one ruling on an appeal, whoever gives it."""
    return derived_id("figure", "ruled", appeal)


def _told(answered: dict[str, Any], format: str) -> Response:
    if format == "csv":
        return Response(figures.as_csv(answered), media_type="text/csv; charset=utf-8")
    return _json(answered)


def _json(content: Any, status: int = 200) -> Response:
    return Response(canonical(content), status, media_type="application/json")
