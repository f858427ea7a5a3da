"""Every body that cannot be taken in has its own problem, in two languages, and leaves nothing on the bus."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from tests.intake.conftest import World, keyed
from tests.intake.examples import LEAK


@pytest.mark.parametrize(
    ("change", "status", "code", "field"),
    [
        ({"location": {"area": "atlantis"}}, 422, "unknown_area", "location.area"),
        ({"location": {"address": "火星路一号"}}, 422, "unknown_area", "location.address"),
        ({"location": {"lon": 125.0, "lat": 28.0}}, 422, "outside", "location"),
        ({"location": None}, 422, "no_location", "location"),
        ({"location": {}}, 422, "no_location", "location"),
        ({"service": "no.such"}, 422, "unknown_item", "service"),
        ({"location": {"lon": 181, "lat": 0}}, 422, "invalid", "location.lon"),
        ({"location": {"lon": 114.0}}, 422, "invalid", "location"),
        ({"location": {"lon": 114.0, "lat": 30.0, "crs": "MARS"}}, 422, "invalid", "location.crs"),
        ({"text": "字" * 2001}, 422, "invalid", "text"),
        ({"text": "  "}, 422, "invalid", "body"),
        ({"contact": {"phone": "call me"}}, 422, "invalid", "contact.phone"),
        ({"contact": {"phone": ["1"]}}, 422, "invalid", "contact.phone"),
        ({"channel": "telepathy"}, 422, "invalid", "channel"),
        ({"reported_at": "yesterday"}, 422, "invalid", "reported_at"),
        ({"colour": "red"}, 422, "invalid", "colour"),
    ],
)
async def test_a_wrong_field_is_named(
    world: World, intake: httpx2.AsyncClient, change: dict[str, Any], status: int, code: str, field: str
) -> None:
    response = await intake.post("/v1/requests", json={**LEAK, **change}, headers=keyed("k-1"))

    problem = response.json()
    assert (response.status_code, problem["code"], problem["field"]) == (status, code, field)
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["title"]
    assert problem["title_en"]
    assert await world.submitted() == []
    assert await world.messages("SEALED") == []


@pytest.mark.parametrize("body", [b"", b"{", b'{"text": "\\ud800"}', b"\xff\xfe", b'{"text": NaN}', b"[" * 5000])
async def test_what_is_not_json_is_said_to_be_none(intake: httpx2.AsyncClient, body: bytes) -> None:
    response = await intake.post("/v1/requests", content=body, headers=keyed("k-1"))

    assert (response.status_code, response.json()["code"]) == (400, "invalid_json")


@pytest.mark.parametrize("body", [b"[]", b"1", b'"x"', b"null"])
async def test_json_that_is_no_object_is_invalid(intake: httpx2.AsyncClient, body: bytes) -> None:
    response = await intake.post("/v1/requests", content=body, headers=keyed("k-1"))

    assert (response.status_code, response.json()["code"]) == (422, "invalid")


@pytest.mark.parametrize(("key", "status", "code"), [(None, 400, "key_missing"), ("x" * 201, 422, "invalid")])
async def test_a_key_is_needed(intake: httpx2.AsyncClient, key: str | None, status: int, code: str) -> None:
    headers = keyed(key) if key else {}
    response = await intake.post("/v1/requests", json=LEAK, headers=headers)

    assert (response.status_code, response.json()["code"]) == (status, code)


async def test_ten_megabytes_are_refused_announced_or_not(intake: httpx2.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(160):
            yield b"x" * 65_536

    announced = await intake.post("/v1/requests", content=b"x" * 10_485_760, headers=keyed("k-1"))
    streamed = await intake.post("/v1/requests", content=chunks(), headers=keyed("k-1"))

    assert (announced.status_code, announced.json()["code"]) == (413, "too_large")
    assert (streamed.status_code, streamed.json()["code"]) == (413, "too_large")


async def test_an_address_is_not_repeated_in_the_problem(intake: httpx2.AsyncClient) -> None:
    body = {**LEAK, "location": {"address": "某某路 8 栋 301"}}
    response = await intake.post("/v1/requests", json=body, headers=keyed("k-1"))

    assert "301" not in response.text
