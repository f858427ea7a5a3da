"""Following, withdrawing, rating and reopening by tracking code."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest

from shared.facts import TaskDone
from tests.intake.conftest import World, keyed
from tests.intake.examples import WUCHANG, opened, task_of
from tests.intake.ledger import Ledger


async def done(world: World, request_id: str) -> None:
    """As dispatch says it."""
    for fact in (opened(request_id), TaskDone(task_id=task_of(request_id), member_id="m-1", outcome="solved")):
        await world.tell(fact, request_id)


Post = Callable[..., Awaitable[httpx2.Response]]


@pytest.fixture
def act(intake: httpx2.AsyncClient, ledger: Ledger, submitted: dict[str, Any]) -> Post:
    """Post one of the verbs."""

    async def post(verb: str, key: str = "a-1", body: Any = None, by: httpx2.AsyncClient = intake) -> httpx2.Response:
        url = f"/v1/requests/{submitted['tracking_code']}/{verb}"
        return (
            await by.post(url, json=body, headers=keyed(key))
            if body is not None
            else await by.post(url, headers=keyed(key))
        )

    return post


async def test_it_is_told_in_peoples_words_and_without_members(
    world: World, intake: httpx2.AsyncClient, ledger: Ledger, submitted: dict[str, Any]
) -> None:
    await done(world, submitted["id"])
    sloppy = submitted["tracking_code"].replace("-", "").lower()
    response = await intake.get(f"/v1/requests/{sloppy}", params={"position": submitted["position"]})

    assert response.status_code == 200
    told = response.json()
    assert (told["id"], told["tracking_code"]) == (submitted["id"], submitted["tracking_code"])
    assert told["state_name"] == {"zh": "已办结", "en": "done"}
    assert [step["code"] for step in told["steps"]] == ["request.submitted", "task.opened", "task.done"]
    assert "m-1" not in response.text


async def test_a_ledger_that_lags_still_finds_what_was_just_taken_in(
    world: World, intake: httpx2.AsyncClient, ledger: Ledger, submitted: dict[str, Any]
) -> None:
    ledger.lag = 1
    url = f"/v1/requests/{submitted['tracking_code']}"
    assert (await intake.get(url)).status_code == 200
    assert (await (await world.instance()).get(url)).status_code == 200


@pytest.mark.parametrize("code", ["0000-0000-0000", "x", "no code at all", "U" * 12])
async def test_a_code_that_opens_nothing_is_not_found(intake: httpx2.AsyncClient, ledger: Ledger, code: str) -> None:
    response = await intake.get(f"/v1/requests/{code}")
    assert (response.status_code, response.json()["code"]) == (404, "not_found")


async def test_an_address_tries_so_many_wrong_codes_and_right_ones_cost_nothing(
    world: World, ledger: Ledger, submitted: dict[str, Any]
) -> None:
    intake = await world.instance(misses_burst=3, misses_per_s=0.01)
    right, wrong = (f"/v1/requests/{code}" for code in (submitted["tracking_code"], "0000-0000-0000"))
    assert {(await intake.get(right)).status_code for _ in range(5)} == {200}
    assert [(await intake.get(wrong)).status_code for _ in range(2)] == [404, 404]
    assert (await intake.post(f"{wrong}/withdraw", headers=keyed("a-1"))).status_code == 404
    refused = await intake.get(wrong)
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many")
    assert int(refused.headers["Retry-After"]) > 1


async def test_a_position_that_the_stream_has_not_come_to_is_not_waited_for(
    world: World, intake: httpx2.AsyncClient, ledger: Ledger, submitted: dict[str, Any]
) -> None:
    url = f"/v1/requests/{submitted['tracking_code']}"
    response = await intake.get(url, params={"position": 2**52})
    last = (await world.admin.state()).last
    assert (response.status_code, response.json()["position"]) == (200, last)
    assert max(ledger.asked) == last


async def test_without_a_ledger_it_is_unavailable(intake: httpx2.AsyncClient, submitted: dict[str, Any]) -> None:
    response = await intake.get(f"/v1/requests/{submitted['tracking_code']}")
    assert (response.status_code, response.json()["code"]) == (503, "unavailable")


async def test_withdrawing_is_done_once_and_repeated_with_the_same_answer(
    world: World, act: Post, ledger: Ledger
) -> None:
    elsewhere = await world.instance()
    first = await act("withdraw", body={"reason": "solved_itself"})
    ledger.lag = 1
    repeat = await act("withdraw", body={"reason": "solved_itself"}, by=elsewhere)
    other = await act("withdraw", key="a-2", by=elsewhere)

    assert first.status_code == 200
    assert repeat.content == first.content
    assert (other.status_code, other.json()["code"]) == (409, "already_over")
    assert "撤回" in other.json()["title"]
    assert await facts(world, "request.withdrawn") == 1


async def test_withdrawing_at_once_from_two_instances_leaves_one_fact(
    world: World, act: Post, intake: httpx2.AsyncClient
) -> None:
    instances = [intake, await world.instance()]
    same = await asyncio.gather(*(act("withdraw", by=instances[n % 2]) for n in range(10)))
    assert {(response.status_code, response.content) for response in same} == {(200, same[0].content)}
    assert await facts(world, "request.withdrawn") == 1

    others = await asyncio.gather(*(act("withdraw", key=f"b-{n}", by=instances[n % 2]) for n in range(4)))
    assert {response.status_code for response in others} == {409}


async def test_rating_and_reopening_wait_until_it_is_done(world: World, act: Post, submitted: dict[str, Any]) -> None:
    assert (await act("rate", body={"grade": 5, "solved": True})).json()["code"] == "wrong_state"
    assert (await act("reopen")).json()["code"] == "wrong_state"
    await done(world, submitted["id"])

    rated = await act("rate", body={"grade": 2, "solved": False})
    assert (rated.status_code, (await act("rate", body={"grade": 2, "solved": False})).content) == (200, rated.content)
    assert (await act("rate", key="a-2", body={"grade": 5, "solved": True})).json()["code"] == "already_rated"
    reopened = await act("reopen")
    assert (reopened.status_code, (await act("reopen")).content) == (200, reopened.content)
    assert (await act("reopen", key="a-2")).json()["code"] == "wrong_state"
    assert (await facts(world, "request.rated"), await facts(world, "request.reopened")) == (1, 1)


async def test_the_same_key_with_another_body_is_refused(
    world: World, act: Post, ledger: Ledger, submitted: dict[str, Any]
) -> None:
    await done(world, submitted["id"])
    bodies: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
        "rate": ({"grade": 2, "solved": False}, [{"grade": 5, "solved": False}, {"grade": 2, "solved": True}]),
        "reopen": ({"reason": "not_solved"}, [{"reason": "came_back"}, {}]),
        "withdraw": ({}, [{"reason": "not_needed"}]),
    }
    for verb, (body, others) in bodies.items():
        first = await act(verb, body=body)
        assert first.status_code == 200
        for other in others:
            reused = await act(verb, body=other)
            assert (reused.status_code, reused.json()["code"]) == (422, "key_reused")
        assert (await act(verb, body=body)).content == first.content
    assert [await facts(world, f"request.{name}") for name in ("rated", "reopened", "withdrawn")] == [1, 1, 1]


async def test_reasons_are_listed_and_only_these_are_taken(
    world: World, intake: httpx2.AsyncClient, act: Post, submitted: dict[str, Any]
) -> None:
    listed = (await intake.get("/v1/reasons")).json()
    schemas = (await intake.get("/openapi.json")).json()["paths"]
    for verb in ("withdraw", "reopen"):
        codes = [entry["reason"] for entry in listed[verb]]
        assert all(entry["name"]["zh"] and entry["name"]["en"] for entry in listed[verb])
        body = schemas[f"/v1/requests/{{tracking_code}}/{verb}"]["post"]["requestBody"]["content"]["application/json"]
        assert body["schema"]["properties"]["reason"]["enum"] == codes

        problem = (await act(verb, body={"reason": "不要了"})).json()
        assert (problem["code"], problem["field"]) == ("not_listed", "reason")
        assert all(code in problem["detail"] and code in problem["detail_en"] for code in codes)
    await done(world, submitted["id"])
    assert (await act("reopen", body={"reason": "too_slow"})).json()["code"] == "not_listed"
    assert (await act("reopen", body={"reason": "not_solved"})).status_code == 200


@pytest.mark.parametrize("body", [{"grade": 6, "solved": True}, {"grade": "5", "solved": True}, {"grade": 5}, []])
async def test_a_rating_outside_the_scale_is_invalid(act: Post, body: Any) -> None:
    response = await act("rate", body=body)
    assert (response.status_code, response.json()["code"]) == (422, "invalid")


async def test_the_catalogue_and_the_areas_are_listed(intake: httpx2.AsyncClient) -> None:
    items = (await intake.get("/v1/catalogue")).json()["items"]
    areas = (await intake.get("/v1/areas")).json()["areas"]
    document = (await intake.get("/openapi.json")).json()

    assert {
        "item": "fire",
        "name": {"zh": "fire", "en": "Fire"},
        "category": ["房屋", "维修"],
        "urgency": 3,
        "phone": "119",
    } in items
    assert next(area for area in areas if area["area"] == "xinxiang")["served_by"] == WUCHANG
    assert "/v1/requests" in document["paths"]


async def facts(world: World, name: str) -> int:
    return sum(subject.endswith(name) for subject, _ in await world.messages("EVENTS"))
