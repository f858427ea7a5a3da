"""Members without an app: the whole way on a real stack, by SMS gateway and link, with everything that must not work."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx2
import orjson
import pytest
import pytest_asyncio

from deploy.stack import Stack, service_command
from services.notify.inbound import FRESH_S, sign
from shared.bus import Delivery
from shared.ids import new_id
from tests.notify.conftest import WebReceiver, until
from tests.system.world import launched

pytestmark = pytest.mark.asyncio(loop_scope="module")

DISTRICT, NEIGHBOUR = "420106", "420107"
LI, WANG = "m-li", "m-wang"
LI_PHONE, WANG_PHONE = "13900000001", "13900000002"
NAME, PHONE, TEXT = "常桂芳", "199 0000 1009", "三楼常家门口的灯坏了"
"""A canary: who asks, and what they wrote."""
SECRET = "the gateway's secret of some length"
CODE = re.compile(r"“接 ([0-9A-Z]{8})”|“到 ([0-9A-Z]{8})”|“完 ([0-9A-Z]{8})”")
_LIMIT = {"amount": 8, "unit": "hours"}
REGISTER: dict[str, Any] = {
    "districts": [
        {"district": code, "title": {"zh": f"{zh}区", "en": en}, "office": {"zh": f"{zh}区网格办", "en": f"{en} office"}}
        for code, zh, en in ((DISTRICT, "武昌", "Wuchang"), (NEIGHBOUR, "青山", "Qingshan"))
    ],
    "areas": [
        {
            "area": "oujing", "title": {"zh": "欧景苑", "en": "Oujing"}, "level": "grid", "valid_from": "2024-01-01", "located_in": DISTRICT,
            "administered_by": DISTRICT, "owned_by": "-", "served_by": DISTRICT,
        }
    ],
    "items": [
        {
            "item": "lamp", "title": {"zh": "路灯不亮", "en": "Street light out"}, "category": ["市政", "照明"], "words": ["灯"], "effort": 1,
            "limits": dict.fromkeys(("sign", "contact", "handle", "life"), _LIMIT),
        },
    ],
    "policies": [
        {
            "district": code, "version": 1, "calendar": "always", "waves": 3, "weights": {"workload": 1},
            "offer": {"amount": 30, "unit": "minutes"}, "close_after": _LIMIT,
        }
        for code in (DISTRICT, NEIGHBOUR)
    ],
}  # fmt: skip


@dataclass
class Town:
    """A running stack with two members, who are reached by SMS, and the gateway that takes and brings their messages."""

    stack: Stack
    gateway: WebReceiver
    points: Path
    http: httpx2.AsyncClient
    at: int = 0

    def texts(self, to: str) -> list[str]:
        """What was sent to a number since the last `turn`."""
        return [
            f"{body['title']}\n{body['message']}"
            for path, body, _ in self.gateway.taken[self.at :]
            if path == f"/sms/{to}"
        ]

    def turn(self) -> None:
        """What was sent so far is no concern of what follows."""
        self.at = len(self.gateway.taken)

    async def heard(self, to: str, words: str) -> str:
        """The message with these words, once it has come."""
        await until(lambda: any(words in text for text in self.texts(to)), within_s=20)
        return next(text for text in self.texts(to) if words in text)

    async def ask(self, **more: Any) -> dict[str, Any]:
        """A resident asks."""
        body = {"text": TEXT, "service": "lamp", "location": {"area": "oujing"}, **more}
        answer = await self.http.post(
            self.stack.urls["intake"] + "/v1/requests", json=body, headers={"Idempotency-Key": new_id()}
        )
        assert answer.status_code == 201, answer.text
        asked: dict[str, Any] = answer.json()
        return asked

    async def offered(self) -> tuple[str, str]:
        """Whoever is asked next: their number, and the code they got."""

        def offers() -> list[tuple[str, str]]:
            return [
                (number, match[1])
                for number in (LI_PHONE, WANG_PHONE)
                for text in self.texts(number)
                if (match := re.search(r"“接 ([0-9A-Z]{8})”", text))
            ]

        await until(lambda: bool(offers()), within_s=20)
        found = offers()
        self.turn()
        return found[0]

    async def sms(
        self,
        text: str,
        sender: str = LI_PHONE,
        *,
        at: int | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> httpx2.Response:
        """A message comes in, signed as the gateway does."""
        body = json.dumps({"from": sender, "text": text}, ensure_ascii=False).encode()
        stamp = str(at or int(time.time()))
        signed = {
            "Paidan-Timestamp": stamp,
            "Paidan-Signature": sign(SECRET, stamp, body),
            "Content-Type": "application/json",
        }
        return await self.http.post(
            self.stack.urls["notify"] + "/v1/inbound/sms", content=body, headers={**signed, **headers}
        )

    async def said(self, text: str, sender: str = LI_PHONE) -> dict[str, Any]:
        """What comes back of it."""
        answer = await self.sms(text, sender)
        assert answer.status_code == 200, answer.text
        said: dict[str, Any] = answer.json()
        return said

    async def command(self, path: str, body: dict[str, Any], district: str = DISTRICT) -> None:
        """A dispatcher's command."""
        token = self.stack.token("dispatcher", district=district)
        answer = await self.http.post(
            self.stack.urls["dispatch"] + path,
            json=body,
            headers={"Authorization": f"Bearer {token}", "Idempotency-Key": new_id()},
        )
        assert answer.status_code == 200, answer.text

    async def task(self, request: str) -> str:
        """The task of a request."""
        headers = {"Authorization": f"Bearer {self.stack.token('dispatcher', district=DISTRICT)}"}
        said = await self.http.get(self.stack.urls["dispatch"] + "/v1/tasks?limit=1000", headers=headers)
        found: str = next(task["id"] for task in said.json()["tasks"] if task["request"] == request)
        return found

    async def facts(self, request: str) -> list[dict[str, Any]]:
        """The facts of a case, oldest first."""
        bus = await self.stack.connect("admin")
        try:
            last, taken = (await bus.state()).last, list[Delivery]()
            reader = bus.reader(("evt.>",), after=0)
            while not taken or taken[-1].sequence < last:
                taken += await reader.wait(1.0)
            await reader.close()
        finally:
            await bus.drain()
        facts = [orjson.loads(one.data) for one in taken]
        return [fact for fact in facts if fact.get("correlationid") == request]


def with_points(service: str) -> Sequence[str]:
    """notify can be ended at a point."""
    return launched(service) if service == "notify" else service_command(service)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def town(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Town]:
    """One for all tests here."""
    folder = tmp_path_factory.mktemp("town")
    gateway = WebReceiver()
    channels, inbound = folder / "channels.json", folder / "inbound.json"
    channels.write_text(json.dumps({"phone": f"json://127.0.0.1:{gateway.port}/sms/{{to}}"}))
    inbound.write_text(json.dumps({"sms": {"kind": "signed", "secret": SECRET}}))
    notify = {
        "PAIDAN_CHANNELS_FILE": str(channels),
        "PAIDAN_INBOUND_FILE": str(inbound),
        "PAIDAN_CAPS": '{"phone": [10000, 1]}',
    }
    environment = {"*": {"PAIDAN_TEST_POINTS": str(folder)}, "notify": notify}
    try:
        async with (
            Stack(folder / "data", None, None, environment=environment, command=with_points) as stack,
            httpx2.AsyncClient(trust_env=False, timeout=15) as http,
        ):
            await stack.apply_register(REGISTER, why="test")
            rows = [
                f"{id},{DISTRICT},grid_member,oujing,20,phone,{phone}"
                for id, phone in ((LI, LI_PHONE), (WANG, WANG_PHONE))
            ]
            await stack.enrol("\n".join(["id,district,kind,areas,capacity,channels,phone", *rows]).encode(), DISTRICT)
            await stack.wait_until_ready()
            yield Town(stack, gateway, folder, http)
    finally:
        gateway.close()


async def test_the_whole_way_by_sms_from_the_offer_to_the_rating(town: Town) -> None:
    asked = await town.ask(contact={"name": NAME, "phone": PHONE})
    resident = PHONE.replace(" ", "")
    await town.heard(resident, "已由武昌区网格办受理")
    at = town.at
    number, code = await town.offered()
    town.at = at
    assert (await town.said(f"接 {code}", number))["reply"].startswith("已接单")
    await town.heard(resident, "已由网格员接单")
    code = CODE.search(await town.heard(number, "您已接单"))[2]  # type: ignore[index]
    assert (await town.said(f"到{code}", number))["ok"]
    code = CODE.search(await town.heard(number, "您已到场"))[3]  # type: ignore[index]
    assert (await town.said(f"４　{code}", number))["ok"]
    assert "请凭查询码评价" in await town.heard(resident, "已办结")
    rated = await town.http.post(
        f"{town.stack.urls['intake']}/v1/requests/{asked['tracking_code']}/rate",
        json={"grade": 5, "solved": True},
        headers={"Idempotency-Key": new_id()},
    )
    assert rated.status_code == 200, rated.text
    async with asyncio.timeout(20):
        while not any(fact["type"].endswith("task.closed.v1") for fact in await town.facts(asked["id"])):
            await asyncio.sleep(0.1)
    facts = await town.facts(asked["id"])
    answered = [fact["data"] for fact in facts if "notice.answered" in fact["type"]]
    assert [(fact["verb"], fact["via"]) for fact in answered] == [("accept", "sms"), ("arrive", "sms"), ("done", "sms")]
    member = {LI_PHONE: LI, WANG_PHONE: WANG}[number]
    done = next(fact for fact in facts if "task.done" in fact["type"])
    assert (done["actor"], done["data"]["outcome"]) == (f"member:{member}", "solved")
    # a canary: neither who asked nor what they wrote, nor a member's number or a code, is in a fact, a log or a message to members
    logs = "".join(log.read_text() for log in (town.stack.data / "logs").glob("*.log"))
    told = "".join(text for text in town.texts(number))
    for secret in (NAME, PHONE, resident, TEXT, LI_PHONE, WANG_PHONE, code):
        assert secret not in json.dumps(facts, ensure_ascii=False) + logs
    assert not any(secret in told for secret in (NAME, resident, TEXT))
    town.turn()


async def test_a_link_shows_what_is_asked_and_only_a_press_answers(town: Town) -> None:
    asked = await town.ask()
    number, code = await town.offered()
    url = f"{town.stack.urls['notify']}/r/{code.lower()}"
    for _ in range(2):  # a messenger that looks at links answers nothing
        page = await town.http.get(url)
        assert page.status_code == 200
        assert all(words in page.text for words in ("路灯不亮", "欧景苑", "前答复", "接单", "拒单"))
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert not re.search(r"<script|src=|http", page.text)
    english = await town.http.get(url, headers={"Accept-Language": "en-GB,en"})
    assert "Street light out" in english.text
    assert "Oujing" in english.text
    assert not any("task.declined" in fact["type"] for fact in await town.facts(asked["id"]))
    answer = await town.http.post(url, data={"verb": "decline", "reason": "too_far"})
    assert answer.status_code == 200
    assert "已拒单" in answer.text
    await town.offered()  # the other one is asked
    facts = await town.facts(asked["id"])
    declined = next(fact["data"] for fact in facts if "task.declined" in fact["type"])
    assert declined == {
        "task_id": declined["task_id"], "member_id": {LI_PHONE: LI, WANG_PHONE: WANG}[number], "reason": "too_far",
    }  # fmt: skip
    (answered,) = (fact["data"] for fact in facts if "notice.answered" in fact["type"])
    assert (answered["via"], answered["reason"]) == ("link", "too_far")
    assert "您已答复：拒单" in (await town.http.get(url)).text


async def test_a_code_is_good_for_one_answer_which_may_be_repeated(town: Town) -> None:
    asked = await town.ask()
    number, code = await town.offered()
    first = await town.said(f"接 {code}", number)
    assert await town.said(f"接单 {code}", number) == first
    await town.heard(number, "您已接单")  # by now the code is used up
    assert await town.said(f"accept {code}", number) != first  # in English
    refused = await town.said(f"拒 {code} 太远", number)
    assert (refused["ok"], refused["code"]) == (False, "code_used")
    url = f"{town.stack.urls['notify']}/r/{code}"
    assert (await town.http.post(url, data={"verb": "decline"})).status_code == 409
    assert (await town.http.post(url, data={"verb": "dance"})).status_code == 422
    facts = await town.facts(asked["id"])
    assert sum("task.accepted" in fact["type"] for fact in facts) == 1
    assert sum("notice.answered" in fact["type"] for fact in facts) == 1
    town.turn()


async def test_the_code_decides_who_acts_not_the_number_it_comes_from(town: Town) -> None:
    asked = await town.ask()
    number, code = await town.offered()
    other = WANG_PHONE if number == LI_PHONE else LI_PHONE
    assert (await town.said(f"接 {code}", other))["ok"]
    accepted = next(fact for fact in await town.facts(asked["id"]) if "task.accepted" in fact["type"])
    assert accepted["data"]["member_id"] == {LI_PHONE: LI, WANG_PHONE: WANG}[number]
    await town.heard(number, "您已接单")
    town.turn()


async def test_what_somebody_else_has_taken_is_refused_in_words_and_uses_nothing_up(town: Town) -> None:
    asked = await town.ask()
    number, code = await town.offered()
    task, other = await town.task(asked["id"]), WANG if number == LI_PHONE else LI
    for verb in ("offer", "accept"):
        await town.command(f"/v1/tasks/{task}/{verb}", {"member": other})
    refused = await town.said(f"接 {code}", number)
    assert refused["code"] == "already_taken"
    assert "您无需处理" in refused["reply"]
    assert not any("notice.answered" in fact["type"] for fact in await town.facts(asked["id"]))
    town.turn()


async def test_unsigned_forged_old_and_replayed_messages_do_nothing(town: Town) -> None:
    asked = await town.ask()
    number, code = await town.offered()
    text, now = f"接 {code}", int(time.time())
    refused = [
        await town.sms(text, number, headers={"Paidan-Signature": ""}),
        await town.sms(text, number, headers={"Paidan-Signature": sign("another", str(now), b"")}),
        await town.sms(text, number, headers={"Paidan-Timestamp": str(now + 1)}),
        await town.sms(text, number, at=now - FRESH_S - 5),
        await town.http.post(f"{town.stack.urls['notify']}/v1/inbound/wecom", content=b""),
    ]
    assert [answer.status_code for answer in refused] == [401, 401, 401, 403, 404]
    assert all(answer.headers["content-type"] == "application/problem+json" for answer in refused)
    assert not any("task.accepted" in fact["type"] for fact in await town.facts(asked["id"]))
    assert (await town.sms(f"拒 {code}", number, at=now)).json()["ok"]
    replayed = await town.sms(f"拒 {code}", number, at=now)
    assert (replayed.status_code, replayed.json()["code"]) == (403, "stale_signature")
    await town.offered()


async def test_what_is_not_understood_or_no_code_is_said_so(town: Town) -> None:
    assert (await town.said("好的", "13900000009"))["code"] == "not_understood"
    assert (await town.said("接 00000000", "13900000009"))["code"] == "code_unknown"
    for code in ("00000000", "x", "%E6%8E%A5"):
        page = await town.http.get(f"{town.stack.urls['notify']}/r/{code}")
        assert (page.status_code, "回复码无效" in page.text) == (404, True)


async def test_when_it_is_handed_over_everybody_hears_whose_it_is_now(town: Town) -> None:
    watch = "13900000007"
    bus = await town.stack.connect("dispatch")
    contact = {"channels": ["phone"], "phone": watch, "language": "zh-CN", "quiet": [0, 0]}
    await bus.put(f"$KV.CONTACTS.{NEIGHBOUR}.m-supervisor-{NEIGHBOUR}", json.dumps(contact).encode())
    await bus.drain()
    asked = await town.ask(contact={"name": NAME, "phone": PHONE})
    await town.heard(PHONE.replace(" ", ""), "已由武昌区网格办受理")
    number, code = await town.offered()
    task = await town.task(asked["id"])
    await town.command(f"/v1/tasks/{task}/hand-over", {"to": NEIGHBOUR, "reason": "wrong_place", "grant": True})
    await town.heard(watch, "待签收：路灯不亮")
    offered = next(fact for fact in await town.facts(asked["id"]) if fact["type"].endswith("handover.offered.v1"))
    await town.command(f"/v1/handovers/{offered['data']['handover_id']}/sign", {}, NEIGHBOUR)
    await town.heard(PHONE.replace(" ", ""), "现由青山区网格办负责办理")
    await town.heard(number, "您无需处理")
    assert (await town.said(f"接 {code}", number))["code"] == "code_expired"
    town.turn()


async def test_a_messenger_that_dies_between_the_command_and_its_record_loses_nothing(town: Town) -> None:
    asked = await town.ask()
    number, code = await town.offered()
    point = town.points / "notify-1.json"
    point.with_suffix(".new").write_text(
        json.dumps({"where": "before commit", "about": ".notice.answered", "do": "kill"})
    )
    point.with_suffix(".new").replace(point)
    with suppress(httpx2.HTTPError):  # it may die before it has answered
        await town.sms(f"接 {code}", number)
    await until(lambda: not point.exists())
    await town.heard(number, "您已接单")  # by whoever leads next
    await town.stack.wait_until_ready()
    assert (await town.said(f"拒 {code}", number))["code"] == "code_used"
    facts = await town.facts(asked["id"])
    assert sum("task.accepted" in fact["type"] for fact in facts) == 1
    assert sum("notice.answered" in fact["type"] for fact in facts) == 1
    town.turn()


async def test_without_a_desk_a_member_is_asked_to_try_again_and_the_code_still_works(town: Town) -> None:
    await town.ask()
    number, code = await town.offered()
    town.stack.stop_process("dispatch")
    try:
        began = time.monotonic()
        refused = await town.said(f"接 {code}", number)
        took_s = time.monotonic() - began
    finally:
        town.stack.continue_process("dispatch")
    assert (refused["code"], took_s < 6) == ("no_leader", True)
    assert "请稍后用同一回复码重试" in refused["reply"]
    answer = await town.said(f"接 {code}", number)
    assert answer["ok"], answer
