"""HTTP and bus side of the ledger: cases, replay, summary, register."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any

import orjson
from fastapi import FastAPI, Query, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from services.ledger import cases, enclave_api, export_api, figures_api
from services.ledger.acting import Acts
from services.ledger.asking import (
    Admin,
    Anyone,
    AreaGiven,
    Auditor,
    District,
    Key,
    Office,
    district_of,
)
from services.ledger.asof import case_at, cases_at
from services.ledger.events import AsOf, At
from services.ledger.events import add_routes as add_event_routes
from services.ledger.log import publishing
from services.ledger.log.checkpoints import Signer
from services.ledger.log.ingesting import Ingest
from services.ledger.log.leaves import GAP, KINDS, RESET
from services.ledger.pinning import size_at
from services.ledger.projecting import Projector
from services.ledger.register import register_api
from services.ledger.register.register_api import Sentence
from services.ledger.register.registering import Registry
from services.ledger.replay import Cursors
from services.ledger.store import Selection, Store
from shared.auth import EVERYWHERE, Doorkeeper
from shared.bus import STREAM, Bus, Request
from shared.envelope import canonical
from shared.errors import RefusedError, UnavailableError
from shared.facts import HUB, Code, LedgerActed, Text
from shared.problems import problem
from shared.register import Sharing
from shared.telemetry import logger
from shared.web import Readiness, problems
from shared.web import create_app as create_shared_app

QUERY = "qry.*.ledger.case"
"""Asks for one case; the district token is the asker's scope, `000000` for all."""
WAIT_S = 2.0
"""How long a query waits for the projection to come to a position."""
REGISTER_BYTES_MAX = 16 * 1024 * 1024
TIMELINE_MAX = 1000
PAGE_MAX = 500


@dataclass
class Ledger:
    """What the routes speak for."""

    origin: str
    bus: Bus
    store: Store
    ingest: Ingest
    projector: Projector
    registry: Registry
    cursors: Cursors
    signer: Signer
    counted: tuple[int, int, int] = field(default=(0, 0, 0))
    """Epoch, sequence and how many leaves were counted up to there: the log below never changes."""

    @property
    def sharing(self) -> Sharing:
        """Raises RefusedError `unavailable` until the register has been read: what is closed would look open."""
        if not self.registry.sharing.loaded:
            raise RefusedError("unavailable", retry_after=2)
        return self.registry.sharing


async def find_case(
    ledger: Ledger,
    *,
    id: str | None = None,
    tracking_hash: str | None = None,
    position: int | None = None,
    scope: str = HUB,
    fact: str | None = None,
) -> dict[str, Any]:
    """
    A case with its timeline, read-your-writes where a position is given: waits up to 2 s for the projection.

    Args:
        fact: an event's id: the timeline is this fact alone, if it is there. A timeline without it holds the first 1,000 at most.
        scope: the district for whom: the case and each entry of the timeline must list it, and it must share the area today or
            have to do with the case still; `000000` or `*` sees all.
    Returns: `case`, `as_of` (the source sequence of the projection) and whether that is `stale`, before the position.
    Raises:
        RefusedError: `not_found`, `foreign_district`; `unavailable` for what may lie between the projection and the position.
    """
    reached = position is None or await _reached(ledger, position)
    as_of = ledger.projector.at.sequence
    document = await ledger.store.case(id=id, tracking_hash=tracking_hash)
    if document is None:
        if not reached and not await _at_the_end(ledger, as_of):
            raise RefusedError("unavailable", retry_after=2)
        raise RefusedError("not_found", what=id or "case")
    everything = scope in (HUB, EVERYWHERE)
    if not everything:
        closed = document["area"] in ledger.sharing.closed(scope, datetime.now(UTC))
        if scope not in document["districts"] or (closed and not cases.concerns(document, scope)):
            raise RefusedError("foreign_district", district=document["district"], yours=scope)
    seen = Selection(request=document["_id"], kinds=("event",), event=fact)
    found = await ledger.store.read(seen, 0, 2**53, TIMELINE_MAX)
    steps = timeline(found, scope)
    return {"case": {**cases.shown(document), "timeline": steps}, "as_of": as_of, "stale": not reached}


def timeline(found: Iterable[tuple[int, bytes]], scope: str) -> list[dict[str, Any]]:
    """These leaves about a case as its timeline, as far as they list the district for whom it is."""
    leaves = ((index, orjson.loads(leaf)) for index, leaf in found)
    everything = scope in (HUB, EVERYWHERE)
    return [cases.entry(index, leaf) for index, leaf in leaves if everything or _lists(leaf, scope)]


async def _reached(ledger: Ledger, position: int) -> bool:
    """Whether the projection comes to a position in time; nobody is held for one that the stream has not come to itself."""
    if ledger.projector.at.sequence >= position:
        return True
    try:
        there = (await ledger.bus.state()).last >= position
    except UnavailableError:
        there = True  # we cannot know: wait
    return there and await ledger.projector.wait_for(position, WAIT_S)


async def _at_the_end(ledger: Ledger, sequence: int) -> bool:
    """Whether the stream has come no further than this; False where we cannot know."""
    try:
        return (await ledger.bus.state()).last <= sequence
    except UnavailableError:
        return False


async def answer_query(ledger: Ledger, request: Request) -> None:
    """Answer `qry.<district>.ledger.case`: `{"case", "as_of", "stale"}`, or `{"problem"}`."""
    try:
        try:
            asked = orjson.loads(request.data)
            id_, tracking_hash, position = asked.get("id"), asked.get("tracking_hash"), asked.get("position")
            if (id_ is None) == (tracking_hash is None) or not isinstance(id_ or tracking_hash, str):
                raise RefusedError(
                    "invalid", field="id", why="须给出 id 或 tracking_hash 之一", why_en="either id or tracking_hash"
                )
            fact = asked.get("fact")
            if fact is not None and not isinstance(fact, str):
                raise RefusedError("invalid", field="fact", why="须为文字或 null", why_en="text or null")
            if position is not None and type(position) is not int:
                raise RefusedError("invalid", field="position", why="须为整数或 null", why_en="an integer or null")
        except (orjson.JSONDecodeError, AttributeError):
            raise RefusedError("invalid_json") from None
        scope = request.subject.split(".")[1]
        answer = await find_case(ledger, id=id_, tracking_hash=tracking_hash, position=position, scope=scope, fact=fact)
    except RefusedError as why:
        answer = {"problem": problem(why)}
    except UnavailableError as why:
        logger().warning("query_failed", why=str(why))
        answer = {"problem": problem(RefusedError("unavailable", retry_after=2))}
    await request.answer(canonical(answer))


async def summary(ledger: Ledger) -> dict[str, Any]:
    """
    The ledger in numbers, of the present source where they are about sequences.

    `complete`: every number of the stream up to `last_sequence` has its own leaf or lies in a gap leaf, counted in the store.
    """
    size = await ledger.store.size()
    rare = await ledger.store.rare(below=size)
    many = {kind: sum(n for found, n, _ in rare if found == kind) for kind in KINDS}
    epoch, base, covered, gaps_here = 0, 0, 0, 0
    created = ""
    for kind, _, leaf in rare:
        if leaf is None:
            continue
        document = orjson.loads(leaf)
        if kind == RESET:
            epoch, base, covered, gaps_here = document["src"]["epoch"], document["src"]["seq"], 0, 0
        elif kind == GAP:
            covered += document["gap"]["to"] - document["gap"]["from"] + 1
            gaps_here += 1
        created = document["src"]["created"]
    last = base
    tail = await ledger.store.read(Selection(), size - 1, size, 1) if size else []
    if tail:
        document = orjson.loads(tail[0][1])
        created = document["src"]["created"]
        last = document["gap"]["to"] if document["kind"] == GAP else document["src"]["seq"]
    if ledger.counted[0] != epoch:
        ledger.counted = (epoch, base, 0)
    _, before, counted = ledger.counted
    before = max(before, base)
    if last > before:
        counted += await ledger.store.sequenced(epoch, before, last)
        ledger.counted = (epoch, last, counted)
    try:
        stream_last: int | None = (await ledger.bus.state()).last
    except UnavailableError:
        stream_last = None
    return {
        "log": ledger.origin,
        "leaves": size,
        "facts": size - sum(many.values()),
        "gaps": many["gap"],
        "rejects": many["reject"],
        "dups": many["dup"],
        "conflicts": many["conflict"],
        "resets": many["reset"],
        "heads": many["heads"],
        "last_sequence": last,
        "source": {"stream": STREAM, "created": created, "epoch": epoch},
        "stream_last_sequence": stream_last,
        "projected_sequence": ledger.projector.at.sequence,
        "checkpoint": publishing.in_numbers(ledger.signer),
        "complete": counted - gaps_here + covered == last - base,
    }


def _id(of: str) -> str:
    if not ID.fullmatch(of):
        raise ValueError("a pseudonym such as m-17, or another id: it is kept for ever")
    return of


ID = re.compile(r"(?:[a-z]|[0-9][0-9_-]*[a-z])[a-z0-9_-]*", re.ASCII)
OfWhat = Annotated[Text, AfterValidator(_id), Field(max_length=64, json_schema_extra={"pattern": f"^{ID.pattern}$"})]


class Act(BaseModel):
    """What was done, on what (a pseudonym or another id), and why. It is kept for ever: nothing personal."""

    model_config = ConfigDict(extra="forbid")

    act: Code
    of: OfWhat
    why: Sentence = ""


def create_app(ledger: Ledger, *, ready: Readiness, doorkeeper: Doorkeeper) -> FastAPI:
    """The ledger's HTTP side."""
    app = create_shared_app(
        "派单账本 / Paidan ledger", ready=ready, doorkeeper=doorkeeper, body_bytes_max=REGISTER_BYTES_MAX
    )
    barred = problems("unauthenticated", "forbidden", "foreign_district")

    @app.get(
        "/v1/cases",
        tags=["cases"],
        summary="诉求列表,新者在前 / cases, newest first",
        responses={**barred, **problems("bad_cursor", "no_checkpoint", "unavailable")},
    )
    async def list_cases(
        caller: Office,
        district: District = None,
        state: Annotated[cases.State | None, Query()] = None,
        area: AreaGiven = None,
        item: Annotated[str | None, Query(max_length=48)] = None,
        limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 50,
        cursor: Annotated[str | None, Query(max_length=200)] = None,
        as_of: AsOf = None,
        at: At = None,
    ) -> Response:
        whose = district_of(caller, district)
        by = {name: value for name, value in (("state", state), ("area", area), ("item", item)) if value is not None}
        question = {"cases": by, "district": whose or EVERYWHERE}
        closed = ledger.sharing.closed(whose, datetime.now(UTC)) if whose else ()
        if as_of is not None or at is not None:
            then = {**question, "at": at}
            below, size = ledger.cursors.open(then, cursor) if cursor else (None, await size_at(ledger.store, as_of))
            seen, following = await cases_at(
                *(ledger.store, by, size, at), district=whose, closed=closed, below=below, limit=limit
            )
            following_cursor = ledger.cursors.seal(then, following, size) if following is not None else None
            return _json({"cases": seen, "next": following_cursor, "size": size, "at": at})
        below = ledger.cursors.open(question, cursor)[0] if cursor else None
        found = await ledger.store.list_cases(by, district=whose, closed=closed, below=below, limit=limit + 1)
        page, more = found[:limit], len(found) > limit
        return _json(
            {
                "cases": [cases.shown(document) for document in page],
                "next": ledger.cursors.seal(question, page[-1]["first"]) if more else None,
                "as_of": ledger.projector.at.sequence,
            }
        )

    @app.get(
        "/v1/cases/{id}",
        tags=["cases"],
        summary="诉求全程 / one case with its timeline",
        responses={**barred, **problems("not_found", "no_checkpoint", "unavailable")},
    )
    async def one_case(
        caller: Office,
        id: str,
        position: Annotated[int | None, Query(ge=0, description="read-your-writes: wait for this sequence")] = None,
        as_of: AsOf = None,
        at: At = None,
    ) -> Response:
        scope = district_of(caller, None) or EVERYWHERE
        now = await find_case(ledger, id=id, position=position, scope=scope)
        if as_of is None and at is None:
            return _json(now)
        size = await size_at(ledger.store, as_of)
        case, found = await case_at(ledger.store, id, size, at)
        if case is None:
            raise RefusedError("not_found", what=id)
        return _json({"case": {**cases.shown(case), "timeline": timeline(found, scope)}, "size": size, "at": at})

    add_event_routes(app, ledger)
    export_api.add_routes(app, ledger)

    @app.get("/v1/ledger", tags=["replay"], summary="账本概况 / the ledger in numbers", responses=barred)
    async def in_numbers(_: Anyone) -> Response:
        return _json(await summary(ledger))

    register_api.add_routes(app, ledger.registry, ledger.store)
    acts = Acts(ledger.bus, ledger.store)

    @app.post(
        "/v1/acts",
        status_code=201,
        tags=["acts"],
        summary="记录管理操作 / record an administrative act that is no fact by itself",
        responses={**barred, **problems("key_missing", "key_reused", "invalid", "unavailable")},
    )
    async def record_act(caller: Admin, body: Act, district: District = None, key: Key = None) -> Response:
        if key is None:
            raise RefusedError("key_missing", field="Idempotency-Key")
        whose = district_of(caller, district) or HUB
        answer = await acts.record(LedgerActed(**body.model_dump()), district=whose, by=caller, key=key)
        logger().info("act_recorded", by=caller.actor, act=body.act, district=whose)
        return Response(canonical(answer), 201, media_type="application/json")

    @app.get(
        "/v1/acts",
        tags=["acts"],
        summary="管理操作,旧者在前 / administrative acts, oldest first",
        responses={**barred, **problems("bad_cursor")},
    )
    async def list_acts(
        caller: Auditor,
        district: District = None,
        limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 100,
        cursor: Annotated[str | None, Query(max_length=200)] = None,
    ) -> Response:
        whose = district_of(caller, district)
        question = {"acts": whose or EVERYWHERE}
        since = ledger.cursors.open(question, cursor)[0] if cursor else 0
        found = await acts.page(district=whose, since=since, limit=limit + 1)
        following = ledger.cursors.seal(question, found[limit][0]) if len(found) > limit else None
        return _json({"acts": [act for _, act in found[:limit]], "next": following})

    enclave_api.add_routes(app, ledger)
    figures_api.add_routes(app, ledger, acts)
    publishing.add_routes(app, ledger.store, ledger.signer, ledger.cursors, acts)
    return app


def _json(content: Any, headers: Mapping[str, str] | None = None) -> Response:
    return Response(canonical(content), media_type="application/json", headers=dict(headers or {}))


def _lists(leaf: Mapping[str, Any], district: str) -> bool:
    return any(scope["d"] in (district, HUB) for scope in leaf["scopes"])
