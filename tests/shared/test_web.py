"""The HTTP side that all services share."""

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import FastAPI, Query, Request
from pydantic import BaseModel

from deploy.identities import Identities, issue_token
from shared import web
from shared.access import allowed
from shared.auth import Caller, Doorkeeper
from shared.errors import RefusedError, UnavailableError

MISSING: dict[str, str] = {}


class Body(BaseModel):
    """What is posted."""

    name: str
    count: int = 1


def create(identities: Identities) -> FastAPI:
    """An app with a route for everything that may happen."""

    async def ready() -> dict[str, str]:
        return MISSING

    app = web.create_app("T", ready=ready, doorkeeper=Doorkeeper.from_file(identities.jwks_file), body_bytes_max=1000)

    @app.post("/posted")
    async def posted(body: Body) -> Body:
        return body

    @app.post("/raw")
    async def raw(request: Request) -> int:
        return len(await request.body())

    @app.get("/mine")
    async def mine(caller: Annotated[Caller, allowed("member", of="own")]) -> str:
        return caller.id

    @app.get("/asked")
    async def asked(n: Annotated[int, Query(ge=1)]) -> int:
        return n

    @app.get("/fails/{how}")
    async def fails(how: str) -> None:
        raise {
            "refused": RefusedError("too_many", retry_after=7),
            "away": UnavailableError("nats://secret:pw@host is away"),
            "bug": ZeroDivisionError("m-li 13800000000"),
        }[how]

    return app


@pytest.fixture
async def http(identities: Identities) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of that app."""
    transport = httpx2.ASGITransport(app=create(identities), raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def problem(answer: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """The problem document that it must be."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    document: dict[str, Any] = answer.json()
    assert (document["code"], document["status"]) == (code, status)
    return document


async def test_health_readiness_and_metrics(http: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await http.get("/healthz")).text == "ok\n"
    assert (await http.get("/readyz")).json() == {"ready": True, "missing": {}}
    monkeypatch.setitem(MISSING, "nats", "not connected")
    answer = await http.get("/readyz")
    assert (answer.status_code, answer.json()["missing"]) == (503, {"nats": "not connected"})
    assert "python_info" in (await http.get("/metrics")).text


async def test_the_documentation_needs_no_internet(http: httpx2.AsyncClient) -> None:
    page = (await http.get("/docs")).text
    assert "http://" not in page
    assert "https://" not in page
    for asset in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png"):
        assert f"/docs/assets/{asset}" in page
        assert (await http.get(f"/docs/assets/{asset}")).status_code == 200
    assert (await http.get("/openapi.json")).json()["info"]["title"] == "T"


async def test_what_is_announced_too_large_is_refused_before_it_is_read(http: httpx2.AsyncClient) -> None:
    for path in ("/posted", "/raw"):
        document = problem(await http.post(path, content=b"x" * 1001), 413, "too_large")
        assert document["limit"] == 1000
    assert (await http.post("/raw", content=b"x" * 1000)).json() == 1000


async def test_what_is_streamed_too_large_is_refused_too(http: httpx2.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(10_000):
            yield b'{"name":"' + b"x" * 100

    for path in ("/posted", "/raw"):
        document = problem(await http.post(path, content=endless()), 413, "too_large")
        assert document["limit"] == 1000


async def test_a_body_that_is_no_json(http: httpx2.AsyncClient) -> None:
    for content in (b"{", b"", b"\xff\xfe", b"{'name': 1}"):
        answer = await http.post("/posted", content=content, headers={"content-type": "application/json"})
        assert answer.json()["code"] in ("invalid_json", "invalid")
        assert answer.status_code in (400, 422)


async def test_a_body_of_another_shape_names_the_field(http: httpx2.AsyncClient) -> None:
    document = problem(await http.post("/posted", json={"name": "x", "count": "many"}), 422, "invalid")
    assert document["field"] == "count"
    assert problem(await http.get("/asked?n=0"), 422, "invalid")["field"] == "n"


async def test_what_is_not_there(http: httpx2.AsyncClient) -> None:
    problem(await http.get("/nowhere"), 404, "not_found")
    answer = await http.get("/posted")
    problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


async def test_a_refusal_says_when_to_come_back(http: httpx2.AsyncClient) -> None:
    answer = await http.get("/fails/refused")
    problem(answer, 429, "too_many")
    assert answer.headers["retry-after"] == "7"


async def test_an_outage_says_so_and_nothing_of_the_inside(http: httpx2.AsyncClient) -> None:
    answer = await http.get("/fails/away")
    problem(answer, 503, "unavailable")
    assert answer.headers["retry-after"] == "2"
    assert "secret" not in answer.text


async def test_a_bug_is_an_incident_with_a_number_and_nothing_of_the_inside(http: httpx2.AsyncClient) -> None:
    answer = await http.get("/fails/bug")
    assert len(problem(answer, 500, "internal")["id"]) == 36
    assert "13800000000" not in answer.text
    assert "ZeroDivision" not in answer.text


async def test_a_caller_is_asked_for_a_token(http: httpx2.AsyncClient, identities: Identities) -> None:
    answer = await http.get("/mine")
    problem(answer, 401, "unauthenticated")
    assert answer.headers["www-authenticate"] == "Bearer"
    token = issue_token(identities, "m-li", "420106", ["member"])
    assert (await http.get("/mine", headers={"authorization": f"Bearer {token}"})).json() == "m-li"
    problem(await http.get("/mine", headers={"authorization": f"Bearer {token}x"}), 401, "unauthenticated")


def test_a_route_lists_its_problems_by_status() -> None:
    listed = web.problems("unauthenticated", "unknown_task", "unknown_member")
    assert set(listed) == {401, 404}
    assert "unknown_task" in listed[404]["description"]
    assert "unknown_member" in listed[404]["description"]
    assert json.dumps(listed)
