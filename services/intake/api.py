"""HTTP in front of intake: bodies in, answers and problems out."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from time import monotonic, perf_counter
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import FastAPI, Query, Request, Response
from pydantic import BaseModel, ValidationError

from services.intake.cases import Cases, told
from services.intake.decide import rate, reopen, withdraw
from services.intake.disclosing import WHYS, Disclosing, Disclosures
from services.intake.door import Door
from services.intake.erasing import Person
from services.intake.following import Following
from services.intake.metrics import REFUSED, SECONDS
from services.intake.model import REOPENING, WITHDRAWING, Case, Rating, Reopening, Submission, Withdrawing
from services.intake.naming import Naming
from services.intake.people import Forgetting, People
from services.intake.rewrapping import Rewrapping
from shared.access import allowed
from shared.auth import Caller, Doorkeeper
from shared.errors import RefusedError
from shared.facts import Fact, plain
from shared.limiting import Limits, network
from shared.problems import invalid
from shared.telemetry import logger
from shared.web import Readiness, problems
from shared.web import create_app as create_shared_app

JSON = "application/json"
KEY = re.compile(r"[\x20-\x7e]{1,200}")
TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
Body = TypeVar("Body", bound=BaseModel)

KEY_PARAMETER = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": True,
    "description": "One per submission, repeated on retries: 1 to 200 printable ASCII characters",
    "schema": {"type": "string", "minLength": 1, "maxLength": 200},
}
SEEKING = (
    *("invalid_json", "unauthenticated", "forbidden", "foreign_district", "unknown_district", "not_found", "invalid"),
    *("not_ready", "unavailable"),
)
Of = Annotated[str | None, Query(pattern=r"^[0-9]{6}$", description="六位区划代码 / six-digit code")]
POSITION = Query(None, ge=0, lt=2**53, description="As of this position at least: the one a POST has answered")

Submitter = Annotated[Caller | None, allowed("resident", of="submission")]
by_code = allowed("resident", of="code")
Holder = Annotated[Caller | None, by_code]
"""Of a tracking code."""
Discloser = Annotated[Caller, allowed("clerk", "member", "dispatcher", "supervisor", of="handled", admin=False)]
Seeker = Annotated[Caller, allowed("supervisor", of="district")]
listed = allowed(of="register")


def create_app(
    *,
    door: Door,
    cases: Cases,
    disclosures: Disclosures,
    people: People,
    rewrapping: Rewrapping,
    following: Following,
    naming: Naming,
    doorkeeper: Doorkeeper,
    misses: Limits,
    ready: Readiness,
) -> FastAPI:
    """
    The app of one instance; what it uses is made and ended by its caller.

    Args:
        misses: how many wrong tracking codes an address may try: each costs the ledger two questions.
    """
    app = create_shared_app("派单 intake: 居民下单 / requests in", ready=ready, doorkeeper=doorkeeper)
    log = logger()

    @app.post(
        "/v1/requests",
        status_code=201,
        tags=["requests"],
        summary="下单 / submit a request",
        description=(
            "A repeat with the same Idempotency-Key and body gets the same answer, at any later time. "
            "A bearer token is optional; a clerk's must be of the district that serves the place."
        ),
        responses=problems(
            "invalid_json", "key_missing", "unauthenticated", "foreign_district", "too_large", "invalid", "key_reused", "no_location",
            "unknown_area", "outside", "unknown_item", "too_many", "not_ready", "unavailable",
        ),
        openapi_extra={"requestBody": _body(Submission), "parameters": [KEY_PARAMETER]},
    )  # fmt: skip
    async def submit_request(request: Request, caller: Submitter) -> Response:
        began = perf_counter()
        async with _refusals_counted():
            headers = request.headers
            key = _key(request)
            sent = _loads(await request.body())
            asked = _validated(Submission, sent)
            accepted, answer = await door.submit(
                sent, asked, caller=caller, key=key, traceparent=_traceparent(headers.get("traceparent"))
            )
        took_s = perf_counter() - began
        SECONDS.observe(took_s)
        log.info(
            "request_accepted",
            request=accepted.fact.request_id,
            district=accepted.envelope.district,
            area=accepted.fact.area,
            item=accepted.fact.item,
            urgency=accepted.fact.urgency,
            sequence=accepted.sequence,
            ms=round(took_s * 1000),
        )
        return _json(answer, 201)

    @app.get(
        "/v1/requests/{tracking_code}",
        tags=["requests"],
        summary="查询进度 / how a request stands",
        responses=problems("unauthenticated", "not_found", "too_many", "not_ready", "unavailable"),
        dependencies=[by_code],
    )
    async def get_request(request: Request, tracking_code: str, position: int | None = POSITION) -> Response:
        async with _refusals_counted(), _misses_limited(misses, request):
            register = following.known.register
            found = await cases.find(cases.by_code(tracking_code), position)
        return _json(told(found, naming.tracking_code(found.case.id), register))

    async def change(
        request: Request,
        caller: Caller | None,
        tracking_code: str,
        what: str,
        decide: Callable[[Case, datetime], Fact],
        sent: BaseModel,
        position: int | None,
    ) -> Response:
        answer = await cases.change(
            tracking_code,
            what,
            decide,
            sent,
            caller=caller,
            key=_key(request),
            traceparent=_traceparent(request.headers.get("traceparent")),
            position=position,
        )
        log.info(what.replace(".", "_"), request=answer["id"], sequence=answer["position"])
        return _json(answer)

    changing: dict[str, Any] = {
        "tags": ["requests"],
        "responses": problems(
            "invalid_json", "key_missing", "unauthenticated", "foreign_district", "not_found", "invalid", "not_listed",
            "key_reused", "already_over", "already_rated", "wrong_state", "too_many", "not_ready", "unavailable",
        ),
    }  # fmt: skip

    @app.post(
        "/v1/requests/{tracking_code}/withdraw",
        summary="撤回 / withdraw",
        openapi_extra={"requestBody": _body(Withdrawing, required=False), "parameters": [KEY_PARAMETER]},
        **changing,
    )
    async def withdraw_request(
        request: Request, caller: Holder, tracking_code: str, position: int | None = POSITION
    ) -> Response:
        async with _refusals_counted(), _misses_limited(misses, request):
            asked = _validated(Withdrawing, _loads(await request.body() or b"{}"))
            return await change(
                request,
                caller,
                tracking_code,
                "request.withdrawn",
                lambda case, _: withdraw(case, asked.reason),
                asked,
                position,
            )

    @app.post(
        "/v1/requests/{tracking_code}/rate",
        summary="评单 / rate",
        openapi_extra={"requestBody": _body(Rating), "parameters": [KEY_PARAMETER]},
        **changing,
    )
    async def rate_request(
        request: Request, caller: Holder, tracking_code: str, position: int | None = POSITION
    ) -> Response:
        async with _refusals_counted(), _misses_limited(misses, request):
            asked = _validated(Rating, _loads(await request.body()))
            return await change(
                request, caller, tracking_code, "request.rated", lambda case, _: rate(case, asked), asked, position
            )

    @app.post(
        "/v1/requests/{tracking_code}/reopen",
        summary="重办 / reopen",
        openapi_extra={"requestBody": _body(Reopening, required=False), "parameters": [KEY_PARAMETER]},
        **changing,
    )
    async def reopen_request(
        request: Request, caller: Holder, tracking_code: str, position: int | None = POSITION
    ) -> Response:
        async with _refusals_counted(), _misses_limited(misses, request):
            register = following.known.register
            asked = _validated(Reopening, _loads(await request.body() or b"{}"))
            return await change(
                request,
                caller,
                tracking_code,
                "request.reopened",
                lambda case, now: reopen(
                    case,
                    asked.reason,
                    register.items.get(case.item),
                    register.calendar(case.district, case.urgency),
                    now,
                ),
                asked,
                position,
            )

    @app.post(
        "/v1/requests/{id}/disclosures",
        tags=["people"],
        summary="查看个人信息,先记账后打开 / read what is personal: on record first, then opened",
        responses=problems(
            "invalid_json", "key_missing", "unauthenticated", "forbidden", "foreign_district", "not_handling", "only_review",
            "not_found", "nothing_sealed", "erased", "invalid", "not_listed", "key_reused", "unavailable",
        ),
        openapi_extra={"requestBody": _body(Disclosing), "parameters": [KEY_PARAMETER]},
    )  # fmt: skip
    async def disclose_request(request: Request, id: str, caller: Discloser) -> Response:
        async with _refusals_counted():
            asked = _validated(Disclosing, _loads(await request.body()))
            answer = await disclosures.disclose(
                id,
                asked,
                caller=caller,
                key=_key(request),
                traceparent=_traceparent(request.headers.get("traceparent")),
            )
        log.info("request_disclosed", request=id, to=caller.actor, why=asked.why, parts=asked.parts)
        return _json(answer)

    @app.get(
        "/v1/requests/{tracking_code}/data",
        tags=["people"],
        summary="保存了什么、谁看过 / what is stored about you, and who looked",
        responses=problems("unauthenticated", "not_found", "too_many", "not_ready", "unavailable"),
        dependencies=[by_code],
    )
    async def stored_data(request: Request, tracking_code: str, position: int | None = POSITION) -> Response:
        async with _refusals_counted(), _misses_limited(misses, request):
            return _json(await people.data(tracking_code, following.known.register, position))

    @app.post(
        "/v1/requests/{tracking_code}/erase",
        tags=["people"],
        summary="删除个人信息,不可恢复 / erase what is personal, for good",
        responses=problems(
            "invalid_json", "key_missing", "unauthenticated", "not_found", "nothing_sealed", "invalid", "too_many", "unavailable"
        ),
        openapi_extra={"requestBody": _body(Forgetting), "parameters": [KEY_PARAMETER]},
        dependencies=[by_code],
    )  # fmt: skip
    async def erase_request(request: Request, tracking_code: str) -> Response:
        async with _refusals_counted(), _misses_limited(misses, request):
            _key(request)
            _validated(Forgetting, _loads(await request.body()))
            return _json(await people.forget(tracking_code))

    @app.post(
        "/v1/people/find",
        tags=["people"],
        summary="按联系方式或诉求查找,不显示内容 / where something is sealed for somebody; nothing is opened to you",
        description="A POST, so that the number is in no address and no log; it opens nothing, is on record for each request found, and takes no Idempotency-Key.",
        responses=problems(*SEEKING),
        openapi_extra={"requestBody": _body(Person)},
    )
    async def find_person(request: Request, caller: Seeker, district: Of = None) -> Response:
        async with _refusals_counted():
            person = _validated(Person, _loads(await request.body()))
            found = await people.find(person, caller, district, following.known.register)
        log.info("person_sought", by=caller.actor, requests=sum(len(one["requests"]) for one in found))
        return _json({"people": found})

    @app.post(
        "/v1/people/erase",
        tags=["people"],
        summary="删除一个人的全部个人信息,不可恢复 / erase everything sealed for somebody, for good",
        description="With `dry_run=true` it says what would be erased. A repeat goes on where the first was stopped.",
        responses=problems("key_missing", *SEEKING),
        openapi_extra={"requestBody": _body(Person), "parameters": [{**KEY_PARAMETER, "required": False}]},
    )
    async def erase_person(request: Request, caller: Seeker, district: Of = None, dry_run: bool = False) -> Response:
        async with _refusals_counted():
            person = _validated(Person, _loads(await request.body()))
            register = following.known.register
            if dry_run:
                return _json({"dry_run": True, "people": await people.find(person, caller, district, register)})
            _key(request)
            erased = await people.erase(person, caller, district, register)
        log.info("person_erased", by=caller.actor, requests=sum(len(one["requests"]) for one in erased))
        return _json({"dry_run": False, "people": erased})

    @app.post(
        "/v1/keys/rewrap",
        tags=["people"],
        summary="换用新的主密钥包裹,一次若干 / wrap keys by the new secret, some at a time",
        description="Ask again with the `after` that it answers, until that is null. Facts and ciphertexts stay as they are.",
        responses=problems("unauthenticated", "forbidden", "everywhere_only", "key_missing", "invalid", "unavailable"),
        openapi_extra={"parameters": [KEY_PARAMETER]},
        dependencies=[allowed("admin", of="everywhere")],
    )
    async def rewrap_keys(
        request: Request, after: Annotated[int, Query(ge=0, lt=2**53)] = 0, district: Of = None, dry_run: bool = False
    ) -> Response:
        _key(request)
        page = await rewrapping.page(district, after, dry_run=dry_run)
        log.info("keys_rewrapped", district=district or "*", dry_run=dry_run, **page._asdict())
        return _json(page._asdict())

    @app.get(
        "/v1/catalogue",
        tags=["register"],
        summary="服务清单 / the catalogue",
        responses=problems("not_ready"),
        dependencies=[listed],
    )
    async def catalogue() -> Response:
        items = following.known.register.items
        return _json(
            {
                "items": [
                    {
                        "item": item.item,
                        "name": item.title,
                        "category": item.category,
                        "urgency": item.urgency,
                        "phone": item.phone,
                    }
                    for _, item in sorted(items.items())
                ]
            }
        )

    @app.get(
        "/v1/reasons",
        tags=["register"],
        summary="撤回、重办与查看的原因 / why a request may be withdrawn, reopened, or opened",
        dependencies=[listed],
    )
    async def reasons() -> Response:
        return _json(
            {
                action: [{"reason": code, "name": name} for code, name in listed.items()]
                for action, listed in (("withdraw", WITHDRAWING), ("reopen", REOPENING), ("disclose", WHYS))
            }
        )

    @app.get(
        "/v1/areas",
        tags=["register"],
        summary="网格 / the areas",
        responses=problems("not_ready"),
        dependencies=[listed],
    )
    async def areas() -> Response:
        return _json(
            {
                "areas": [
                    {
                        "area": area.area,
                        "name": area.title,
                        "level": area.level,
                        "parent": area.parent,
                        "located_in": area.located_in,
                        "served_by": area.served_by,
                    }
                    for area in following.areas()
                ]
            }
        )

    return app


@asynccontextmanager
async def _refusals_counted() -> AsyncIterator[None]:
    try:
        yield
    except RefusedError as why:
        REFUSED.labels(why.code).inc()
        logger().info("request_refused", code=why.code)  # no field: its name may be the sender's own words
        raise


@asynccontextmanager
async def _misses_limited(misses: Limits, request: Request) -> AsyncIterator[None]:
    address = network(request.client)
    misses.look(address, monotonic())
    try:
        yield
    except RefusedError as why:
        if why.code == "not_found":
            misses.take(address, monotonic())
        raise


def _json(document: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(document, default=plain, option=orjson.OPT_UTC_Z), status, media_type=JSON)


def _loads(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise RefusedError("invalid_json") from None


def _validated(model: type[Body], sent: Any) -> Body:
    try:
        return model.model_validate(sent)
    except ValidationError as why:
        raise invalid(why.errors()) from None


def _key(request: Request) -> str:
    key = request.headers.get("idempotency-key")
    if not key:
        raise RefusedError("key_missing")
    if KEY.fullmatch(key) is None:
        raise RefusedError("invalid", field="Idempotency-Key", why="1 to 200 printable ASCII characters")
    return key


def _traceparent(header: str | None) -> str | None:
    return header if header is not None and TRACEPARENT.fullmatch(header) else None


def _body(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """What the OpenAPI document says of a body that the route reads by itself."""
    return {"required": required, "content": {JSON: {"schema": model.model_json_schema()}}}
