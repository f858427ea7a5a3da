"""HTTP routes of the register (台账): the register of any day as it was known at any time, its outlines, and the one way to change it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any

import orjson
from fastapi import FastAPI, Header, Path, Query, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from services.ledger.asking import Registrar, Staff
from services.ledger.events import AsOf
from services.ledger.pinning import size_at
from services.ledger.register.outlining import geojson, outlines
from services.ledger.register.recalling import Recall
from services.ledger.register.registering import SECTIONS, Registry, as_document, digest
from services.ledger.register.surveying import survey
from services.ledger.store import Store
from shared.auth import Caller
from shared.envelope import canonical
from shared.errors import RefusedError
from shared.facts import HUB, AreaSet, Text
from shared.register import Register
from shared.telemetry import logger
from shared.web import problems

GEOJSON = "application/geo+json"


def _impersonal(why: str) -> str:
    if LONG_NUMBER.search(why):
        raise ValueError("a number of seven digits or more may be somebody's, and is kept for ever")
    return why


LONG_NUMBER = re.compile(r"\d{7}")
Sentence = Annotated[Text, AfterValidator(_impersonal), Field(json_schema_extra={"pattern": r"^\d{0,6}(\D+\d{0,6})*$"})]
"""An administrator's: it goes into the ledger."""


class Application(BaseModel):
    """A register document, and why it is applied; the document alone will do."""

    model_config = ConfigDict(extra="forbid")

    document: dict[str, Any]
    why: Sentence = ""

    @model_validator(mode="before")
    @classmethod
    def _alone(cls, body: Any) -> Any:
        return {"document": body} if isinstance(body, dict) and body and not body.keys() - SECTIONS.keys() else body


class Outlines(BaseModel):
    """A GeoJSON FeatureCollection whose features name their `area`, and why they are drawn so."""

    model_config = ConfigDict(extra="forbid")

    outlines: dict[str, Any]
    why: Sentence = ""


Version = Annotated[
    str | None, Header(alias="If-Match", pattern=r'^"[0-9a-f]{64}"$', description="ETag of the register that was read")
]
DryRun = Annotated[bool, Query(description="只预览 / only say what would change")]
On = Annotated[date | None, Query(description="哪一天,默认今天 / the day; default: today")]


def add_routes(app: FastAPI, registry: Registry, store: Store) -> None:
    """The register's routes."""
    recall = Recall(store)
    barred = problems("unauthenticated", "forbidden")
    refusals = problems("unauthenticated", "forbidden", "everywhere_only", "invalid", "stale_register", "unavailable")
    asking = {**barred, **problems("invalid", "no_checkpoint", "unavailable")}

    async def asked(on: date | None, as_of: str | None) -> tuple[Register, date]:
        known = None if as_of is None else await size_at(store, as_of)
        register = await registry.current() if known is None else await recall.register(known)
        return register, on or register.today(HUB, registry.now())

    async def apply(document: Any, why: str, by: Caller, if_match: str | None, *, dry_run: bool) -> Response:
        of = if_match.strip('"') if if_match else None
        answer = await registry.apply(document, why=why, by=by.actor, of=of, dry_run=dry_run)
        if answer["applied"]:
            logger().info("register_applied", by=by.actor, facts=answer["facts"], sequence=answer["sequence"])
        return _json(answer)

    @app.post("/v1/register", tags=["register"], summary="导入台账 / apply a register document", responses=refusals)
    async def apply_register(  # the register is one for all: a district's admin would rewrite the others'
        caller: Registrar, body: Application, dry_run: DryRun = False, if_match: Version = None
    ) -> Response:
        return await apply(body.document, body.why, caller, if_match, dry_run=dry_run)

    @app.post(
        "/v1/register/outlines",
        tags=["register"],
        summary="导入边界 GeoJSON / draw areas from GeoJSON",
        responses=refusals,
    )
    async def apply_outlines(
        caller: Registrar,
        body: Outlines,
        since: Annotated[
            date | None, Query(alias="from", description="自哪一天起 / a new version from this day on")
        ] = None,
        dry_run: DryRun = False,
        if_match: Version = None,
    ) -> Response:
        register = await registry.current()
        document = outlines(register, body.outlines, register.today(HUB, registry.now()), since)
        return await apply(document, body.why, caller, if_match or f'"{digest(register)}"', dry_run=dry_run)

    @app.get("/v1/register", tags=["register"], summary="台账 / the register as a document", responses=asking)
    async def read_register(caller: Staff, on: On = None, as_of: AsOf = None) -> Response:
        register, day = await asked(on, as_of)
        document = as_document(register if on is None else register.at(day))
        document["offices"] = [office for office in document["offices"] if caller.of(office.district)]
        return _json(document, {"ETag": f'"{digest(register)}"'} if on is None and as_of is None else None)

    @app.get(
        "/v1/register/areas/{area}",
        tags=["register"],
        summary="区域档案:归属、协议、变更 / an area: its owners, what is agreed, who changed it and why",
        responses={**asking, **problems("not_found")},
    )
    async def read_area(
        _: Staff, area: Annotated[str, Path(max_length=40)], on: On = None, as_of: AsOf = None
    ) -> Response:
        size = await size_at(store, as_of)
        register = await recall.register(size)
        told = _dossier(register, on or register.today(HUB, registry.now()), area)
        history = [entry.told() for entry in await recall.history(area, size)]
        return _json({**told, "history": history, "as_of": size})

    @app.get(
        "/v1/register.geojson",
        tags=["register"],
        summary="边界 GeoJSON / the areas as GeoJSON",
        responses={**asking, 200: {"content": {GEOJSON: {}}}},
    )
    async def read_outlines(_: Staff, on: On = None, as_of: AsOf = None) -> Response:
        drawn = await asyncio.to_thread(geojson, *await asked(on, as_of))
        return Response(orjson.dumps(drawn), media_type=GEOJSON)

    @app.get(
        "/v1/register/survey",
        tags=["register"],
        summary="边界与协议核对 / overlaps, gaps, and who serves without an agreement",
        responses=asking,
    )
    async def read_survey(_: Staff, on: On = None, as_of: AsOf = None) -> Response:
        register, day = await asked(on, as_of)
        found = await asyncio.to_thread(survey, register, day)
        areas = sum(1 for code in register.areas if register.area(code, day))
        return _json({"on": day, "areas": areas, "findings": [finding.told() for finding in found]})


def _dossier(register: Register, day: date, code: str) -> dict[str, Any]:
    """An area on a day: who owns, runs and serves it, by which agreement, and which versions and agreements there are."""
    versions = register.areas.get(code)
    if not versions:
        raise RefusedError("not_found", what=code)
    version, agreement = register.area(code, day), register.agreement(code, day)
    return {
        "area": code,
        "on": day,
        "standing": version,
        "owners": _owners(register, versions, version) if version else None,
        "agreement": agreement,
        "lead": agreement.lead if agreement else None,
        "parties": register.parties(code, day),
        "versions": [each.valid_from for each in versions],
        "agreements": register.agreed(code),
        "precedents": [ruled for key, ruled in sorted(register.precedents.items()) if key[0] == code],
    }


def _owners(register: Register, versions: tuple[AreaSet, ...], version: AreaSet) -> dict[str, Any]:
    """The four owners of a version, each with its name where it is an office, and since which day it has been so."""
    told: dict[str, Any] = {}
    for name in ("located_in", "administered_by", "owned_by", "served_by"):
        who, since = getattr(version, name), version.valid_from
        for earlier in reversed(versions[: versions.index(version)]):
            if getattr(earlier, name) != who:
                break
            since = earlier.valid_from
        district = register.districts.get(who)
        told[name] = {"who": who, "since": since, "title": district.title if district else None}
    return told


def _json(content: Any, headers: Mapping[str, str] | None = None) -> Response:
    return Response(canonical(content), media_type="application/json", headers=dict(headers or {}))
