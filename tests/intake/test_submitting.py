"""POST /v1/requests against a real bus: one request per key, whatever happens around it."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import httpx2
import orjson
import pytest

from deploy.identities import Identities, issue_token
from shared.bus import Message
from shared.envelope import decode
from shared.facts import DistrictSet, Name, PrecedentSet, RequestSubmitted
from tests.intake.conftest import World, keyed, until
from tests.intake.examples import LEAK, OUJING, QINGSHAN, SINCE, WUCHANG, applied, envelope, item


async def test_a_request_is_answered_with_what_was_understood_and_promised(
    world: World, intake: httpx2.AsyncClient
) -> None:
    response = await intake.post("/v1/requests", json=LEAK, headers=keyed("k-1"))

    assert response.status_code == 201
    answer = response.json()
    assert answer["district"] == WUCHANG
    assert answer["district_name"] == {"zh": "武昌区", "en": "Wuchang"}
    assert (answer["area"], answer["located_in"]) == ("oujing", WUCHANG)
    assert (answer["item"], answer["item_rule"]) == ("repair.leak", "word:水管漏水")
    assert (answer["urgency"], answer["urgency_rule"]) == (1, "item")
    assert answer["same_as"] is None
    assert set(answer["due"]) == {"sign", "contact", "handle", "life"}
    [(subject, data)] = await world.submitted()
    fact = decode(subject, data).fact
    assert isinstance(fact, RequestSubmitted)
    assert fact.request_id == answer["id"]
    assert answer["position"] == (await world.admin.state()).last


async def test_an_enclave_is_served_by_another_district_and_both_may_see_it(
    world: World, intake: httpx2.AsyncClient
) -> None:
    body = {"text": "路灯不亮", "location": {"lon": 114.3650, "lat": 30.5950}}
    answer = (await intake.post("/v1/requests", json=body, headers=keyed("k-1"))).json()

    assert (answer["district"], answer["area"], answer["located_in"]) == (WUCHANG, "xinxiang", "420107")
    [(subject, data)] = await world.submitted()
    assert decode(subject, data).districts == "420106,420107"


async def test_fifty_copies_at_once_and_one_later_elsewhere_are_one_request(
    world: World, intake: httpx2.AsyncClient
) -> None:
    elsewhere = await world.instance()
    copies = [(intake if n % 2 else elsewhere).post("/v1/requests", json=LEAK, headers=keyed("k-1")) for n in range(50)]
    answers = {(response.status_code, response.content) for response in await asyncio.gather(*copies)}
    later = await (await world.instance()).post("/v1/requests", json=LEAK, headers=keyed("k-1"))

    assert answers == {(201, later.content)}
    assert len(await world.submitted()) == 1
    assert [subject.split(".")[1] for subject, _ in await world.messages("SEALED")] == [WUCHANG, "claims"]


async def test_white_space_and_the_order_of_fields_do_not_make_another_body(intake: httpx2.AsyncClient) -> None:
    first = await intake.post("/v1/requests", json=LEAK, headers=keyed("k-1"))
    turned = orjson.dumps(dict(reversed(LEAK.items())), option=orjson.OPT_INDENT_2)
    second = await intake.post("/v1/requests", content=turned, headers=keyed("k-1"))

    assert second.content == first.content


@pytest.mark.parametrize(
    "other", [{"text": "别的事"}, {"location": {"area": "yuanlin"}}, {"contact": {"phone": "110"}}]
)
async def test_the_same_key_with_another_body_is_refused(
    world: World, intake: httpx2.AsyncClient, other: dict[str, object]
) -> None:
    await intake.post("/v1/requests", json=LEAK, headers=keyed("k-1"))
    for instance in (intake, await world.instance()):
        response = await instance.post("/v1/requests", json={**LEAK, **other}, headers=keyed("k-1"))

        assert (response.status_code, response.json()["code"]) == (422, "key_reused")


async def test_copies_with_two_bodies_at_once_leave_one_request_and_its_own_ciphertext(
    world: World, intake: httpx2.AsyncClient
) -> None:
    elsewhere = await world.instance()
    bodies = [LEAK, {**LEAK, "text": "下水道堵了"}]
    responses = await asyncio.gather(
        *((intake, elsewhere)[n % 2].post("/v1/requests", json=bodies[n % 2], headers=keyed("k-1")) for n in range(20))
    )

    assert {response.status_code for response in responses} == {201, 422}
    assert len({response.content for response in responses if response.status_code == 201}) == 1
    assert len(await world.submitted()) == 1


async def test_callers_do_not_share_keys(world: World, intake: httpx2.AsyncClient, identities: Identities) -> None:
    token = issue_token(identities, "staff-4", WUCHANG, ["clerk"])
    by_resident = await intake.post("/v1/requests", json=LEAK, headers=keyed("k-1"))
    by_clerk = await intake.post("/v1/requests", json=LEAK, headers=keyed("k-1", token))

    assert by_resident.json()["id"] != by_clerk.json()["id"]
    assert b'"actor":"clerk:staff-4"' in (await world.submitted())[1][1]


async def test_a_repeat_finds_its_request_after_the_area_has_gone_to_another_district(
    world: World, intake: httpx2.AsyncClient
) -> None:
    first = await intake.post("/v1/requests", json=LEAK, headers=keyed("k-1"))
    await world.apply(OUJING.model_copy(update={"served_by": "420107"}))
    elsewhere = await world.instance()

    async def moved() -> bool:
        areas = (await intake.get("/v1/areas")).json()["areas"]
        return any(area["area"] == "oujing" and area["served_by"] == "420107" for area in areas)

    await until(moved)
    for instance in (intake, elsewhere):
        assert (await instance.post("/v1/requests", json=LEAK, headers=keyed("k-1"))).json()["id"] == first.json()["id"]
    assert len(await world.submitted()) == 1
    assert (await intake.post("/v1/requests", json=LEAK, headers=keyed("k-2"))).json()["district"] == "420107"


async def test_what_a_conferral_ruled_is_where_the_next_request_of_its_kind_goes(world: World) -> None:
    ruled = PrecedentSet(area="oujing", item="repair.leak", owner=QINGSHAN, basis="minutes:1", valid_from=SINCE)
    await world.apply(ruled)
    intake = await world.instance()
    leak = (await intake.post("/v1/requests", json=LEAK, headers=keyed("k-1"))).json()
    assert (leak["district"], leak["area"], leak["item"]) == (QINGSHAN, "oujing", "repair.leak")
    tree = {**LEAK, "service": "tree"}
    assert (await intake.post("/v1/requests", json=tree, headers=keyed("k-2"))).json()["district"] == WUCHANG
    (subject, event), _ = await world.submitted()
    assert subject.startswith(f"evt.{QINGSHAN}.intake.oujing.")
    assert b'"districts":"420107,420106"' in event


async def test_a_repeat_is_answered_as_the_first_whatever_the_register_says_now(world: World) -> None:
    intake = await world.instance(rate_burst=2, rate_per_s=0.001)
    body = {**LEAK, "location": {"address": "欧景苑 17 栋"}}
    first = await intake.post("/v1/requests", json=body, headers=keyed("k-1"))
    assert first.status_code == 201

    await world.apply(
        OUJING.model_copy(update={"words": (), "title": Name(zh="新名", en="New")}),
        item("repair.leak", "水管").model_copy(update={"title": Name(zh="别的名字", en="Another name")}),
        DistrictSet(district=WUCHANG, title=Name(zh="新区", en="New"), office=Name(zh="新", en="New")),
    )

    async def renamed() -> bool:
        areas = (await intake.get("/v1/areas")).json()["areas"]
        return any(area["name"]["en"] == "New" for area in areas)

    await until(renamed)
    other = {**body, "text": "别的事"}
    for instance in (intake, await world.instance()):
        unknown = await instance.post("/v1/requests", json=body, headers=keyed("k-2"))
        assert unknown.json()["code"] == "unknown_area"
        assert (await instance.post("/v1/requests", json=body, headers=keyed("k-1"))).content == first.content
        reused = await instance.post("/v1/requests", json=other, headers=keyed("k-1"))
        assert (reused.status_code, reused.json()["code"]) == (422, "key_reused")
    fresh = await intake.post("/v1/requests", json=LEAK, headers=keyed("k-3"))
    assert fresh.json()["district_name"] == {"zh": "新区", "en": "New"}
    assert len(await world.submitted()) == 2


async def test_a_repeat_is_answered_although_the_district_takes_nothing_more(world: World) -> None:
    intake = await world.instance(rate_burst=1, rate_per_s=0.001)
    first = await intake.post("/v1/requests", json=LEAK, headers=keyed("k-1"))
    assert (await intake.post("/v1/requests", json=LEAK, headers=keyed("k-2"))).status_code == 429
    repeat = await intake.post("/v1/requests", json=LEAK, headers=keyed("k-1"))
    assert (repeat.status_code, repeat.content) == (201, first.content)


async def test_half_a_document_is_not_the_register(world: World, intake: httpx2.AsyncClient) -> None:
    half = (item("half"), applied(1).model_copy(update={"more": True}))
    sent = [envelope(fact, "half") for fact in half]
    await world.admin.commit([Message(one.subject, one.encode()) for one in sent])
    started_now = await world.instance()
    codes = [entry["item"] for entry in (await started_now.get("/v1/catalogue")).json()["items"]]
    assert "half" not in codes

    await world.apply(item("rest"))

    async def whole(client: httpx2.AsyncClient) -> bool:
        items = (await client.get("/v1/catalogue")).json()["items"]
        return {"half", "rest"} <= {entry["item"] for entry in items}

    for instance in (intake, started_now):
        await until(lambda: whole(instance))  # noqa: B023


async def test_a_second_request_nearby_is_linked_and_not_dropped(world: World, intake: httpx2.AsyncClient) -> None:
    first = (await intake.post("/v1/requests", json=LEAK, headers=keyed("k-1"))).json()
    near = {"text": "水管漏水", "location": {"lon": 114.3451, "lat": 30.5951}}
    second = (await intake.post("/v1/requests", json=near, headers=keyed("k-2"))).json()
    elsewhere = await world.instance()
    third = (await elsewhere.post("/v1/requests", json=LEAK, headers=keyed("k-3"))).json()

    assert second["same_as"] == first["id"]
    assert third["same_as"] == first["id"]
    assert len(await world.submitted()) == 3


async def test_traceparent_is_passed_on_where_it_is_one(world: World, intake: httpx2.AsyncClient) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    await intake.post("/v1/requests", json=LEAK, headers=keyed("k-1", traceparent=trace))
    await intake.post("/v1/requests", json=LEAK, headers=keyed("k-2", traceparent="13800138000"))

    [(_, first), (_, second)] = await world.submitted()
    assert orjson.loads(first)["traceparent"] == trace
    assert b"traceparent" not in second


async def test_the_bus_going_down_and_up_in_the_middle_loses_and_doubles_nothing(world: World) -> None:
    intake = await world.instance()
    posts = [
        asyncio.create_task(
            intake.post("/v1/requests", json={**LEAK, "text": f"水管漏水 {n}"}, headers=keyed(f"k-{n}"))
        )
        for n in range(40)
    ]
    await asyncio.sleep(0.02)
    world.server.kill()
    await asyncio.sleep(0.5)
    world.server.start()
    responses = await asyncio.gather(*posts)

    assert {response.status_code for response in responses} == {201}
    await until(lambda: _connected(world))
    ids = [orjson.loads(data)["data"]["request_id"] for _, data in await world.submitted()]
    assert sorted(ids) == sorted(response.json()["id"] for response in responses)


async def _connected(world: World) -> bool:
    return world.admin.connected


async def test_while_the_bus_is_down_the_answer_is_when_to_retry_and_whom_to_ring(world: World) -> None:
    intake = await world.instance(commit_within_s=0.5)
    world.server.kill()
    fire = {"text": "着火了", "location": {"area": "oujing"}}
    response = await intake.post("/v1/requests", json=fire, headers=keyed("k-1"))
    ready = await intake.get("/readyz")
    world.server.start()

    assert (response.status_code, response.json()["code"]) == (503, "unavailable")
    assert int(response.headers["Retry-After"]) > 0
    assert "119" in response.json()["detail"]
    assert ready.status_code == 503

    async def accepted() -> bool:
        return (await intake.post("/v1/requests", json=fire, headers=keyed("k-1"))).status_code == 201

    await until(accepted)
    await until(lambda: _connected(world))
    assert len(await world.submitted()) == 1


async def test_without_a_register_nothing_is_taken_in(empty_world: World) -> None:
    intake = await empty_world.unready()
    response = await intake.post("/v1/requests", json=LEAK, headers=keyed("k-1"))

    assert (response.status_code, response.json()["code"]) == (503, "not_ready")
    assert "register" in (await intake.get("/readyz")).json()["missing"]


async def test_a_token_must_be_valid_and_of_the_district_that_serves(
    intake: httpx2.AsyncClient, identities: Identities
) -> None:
    good = issue_token(identities, "staff-4", WUCHANG, ["clerk"])
    head, claims, signature = good.split(".")
    forged = ".".join((head, claims, signature[:-8] + "AAAAAAAA"))
    expired = issue_token(identities, "staff-4", WUCHANG, ["clerk"], timedelta(hours=-1))
    foreign = issue_token(identities, "staff-9", "420107", ["clerk"])

    async def status(token: str) -> tuple[int, str]:
        response = await intake.post("/v1/requests", json=LEAK, headers=keyed("k-1", token))
        return response.status_code, response.json().get("code", "")

    assert await status(forged) == (401, "unauthenticated")
    assert await status(expired) == (401, "unauthenticated")
    assert await status("not-a-token") == (401, "unauthenticated")
    assert await status(foreign) == (403, "foreign_district")
    assert (await status(good))[0] == 201


async def test_a_district_takes_in_so_much_and_a_trusted_load_is_outside(world: World) -> None:
    intake = await world.instance(rate_burst=3, rate_per_s=0.1)

    async def statuses(location: dict[str, object], name: str) -> list[int]:
        body = {**LEAK, "location": location}
        posts = [await intake.post("/v1/requests", json=body, headers=keyed(f"{name}-{n}")) for n in range(5)]
        assert all("Retry-After" in response.headers for response in posts if response.status_code == 429)
        return [response.status_code for response in posts]

    assert await statuses({"area": "oujing"}, "a") == [201, 201, 201, 429, 429]
    assert await statuses({"area": "yuanlin"}, "b") == [201, 201, 201, 429, 429]
    assert await statuses({"area": "ward-1"}, "c") == [201] * 5
