"""
Two people whose names, numbers and words are like no others go through the whole of Paidan: where they may be found, and, once
they are forgotten, that they are nowhere.
"""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import bson
import httpx2
import orjson
import pyarrow.parquet as parquet
import pymongo
import pytest
import pytest_asyncio

from deploy.cli import DEMO_REGISTER, PEOPLES_PACE
from deploy.people import rotate
from deploy.running import Running
from deploy.stack import Stack
from services.dispatch.desk import RULES as DESK
from services.intake.sealing import kek_id
from services.notify.rules import RULES as NOTIFY
from shared.bus import Bus
from shared.errors import BusError
from shared.turns import Rules, recover, snapshot_name, write_snapshot

DISTRICT, MEMBER = "420106", "m-canary"
RESIDENT = {
    "text": "厨房水管漏水,门口密码锦鲤七七四九",
    "location": {"address": "欧景苑 17 栋锦鲤单元 8848"},
    "contact": {"name": "锦鲤贞", "phone": "13912648759", "email": "jinli.zhen@canary.example"},
}
OF_RESIDENT = ("锦鲤", "七七四九", "13912648759", "jinli.zhen")
OF_MEMBER = ("翠鸟明", "13687412965")
ENROLMENT = (
    "id,kind,areas,skills,capacity,duty,district,name,phone,language,quiet,channels\n"
    f"{MEMBER},grid_member,wuchang,plumbing patrol sanitation mediation care errands paperwork,100,,{DISTRICT},"
    "翠鸟明,13687412965,zh-CN,00:00-00:00,console\n"
)


def forms(word: str) -> set[bytes]:
    """How a word may be written."""
    return {word.encode(), quote(word).encode(), json.dumps(word)[1:-1].encode(), word.encode("utf-16-le")}


@dataclass(frozen=True, repr=False)  # asyncio and pytest would write it out
class Searched:
    """Everything that is kept or shown anywhere, by where it is."""

    places: dict[str, bytes]

    def having(self, *words: str) -> set[str]:
        """Where one of these words is, in whatever form."""
        wanted = {form for word in words for form in forms(word)}
        return {place for place, held in self.places.items() if any(form in held for form in wanted)}


@dataclass(frozen=True, repr=False)
class Story:
    """What was found before they were forgotten, after, and when all had stopped; and what had sealed them."""

    before: Searched
    after: Searched
    stopped: Searched
    secrets: list[bytes]
    opened: dict[str, Any]
    rotated: dict[str, Any]
    kek: bytes
    erased: dict[str, Any]
    facts: list[dict[str, Any]]
    verified: bool


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def story(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Story]:
    """The whole of it, once."""
    stack = Stack(tmp_path_factory.mktemp("canary") / "data", None, None)
    async with stack, httpx2.AsyncClient(timeout=20, trust_env=False) as http:
        told = Teller(stack, http)
        await told.begin()
        closed, still_open = await told.requests()
        opened = await told.handle(closed)
        await told.reach(closed["id"])
        before = await told.search()
        running = Running.find(stack.data)
        rotated = await asyncio.to_thread(
            lambda: rotate(running, None, "canary", dry_run=False, say=lambda _: None, settle_s=0)
        )
        [current] = [data for subject, data in await messages(told.admin, "KEYS") if ".by." not in subject]
        secrets = [
            *(d for s, d in await messages(told.admin, "SEALED") if closed["id"] in s and "claims" not in s),
            current,
        ]
        erased = await told.forget()
        assert stack.nats is not None
        await stack.kill("nats-server")
        await until(told.admin_answers)
        after = await told.search()
        facts = [orjson.loads(data) for subject, data in await messages(told.admin, "EVENTS") if "intake" in subject]
        verified = await told.goes_on(still_open)
        await told.admin.drain()
    stopped = Searched(files(stack.data))
    yield Story(before, after, stopped, secrets, opened, rotated, current[1:9], erased, facts, verified)


class Teller:
    """Whoever plays the people of the story."""

    def __init__(self, stack: Stack, http: httpx2.AsyncClient) -> None:
        self.stack = stack
        self.http = http
        self.admin: Bus

    async def post(self, service: str, path: str, body: Any, token: str | None = None) -> dict[str, Any]:
        """POST; what it answers."""
        headers = {"Idempotency-Key": uuid4().hex} | ({"Authorization": f"Bearer {token}"} if token else {})
        response = await self.http.post(f"{self.stack.urls[service]}{path}", json=body, headers=headers)
        assert response.is_success, response.text
        answer: dict[str, Any] = response.json()
        return answer

    async def begin(self) -> None:
        """Register and member."""
        document = json.loads(DEMO_REGISTER.read_text())
        for policy in document["policies"]:
            policy |= PEOPLES_PACE
        await self.stack.apply_register(document, why="canary")
        await self.stack.enrol(ENROLMENT.encode(), DISTRICT)
        await self.stack.wait_until_ready()
        self.admin = await self.stack.connect("admin")

    async def requests(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Two of the same resident."""
        first = await self.post("intake", "/v1/requests", RESIDENT)
        return first, await self.post("intake", "/v1/requests", {**RESIDENT, "text": "锦鲤七七四九,又漏水了"})

    async def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """From the offer to the rating; what the member was shown."""
        member = self.stack.token("member", district=DISTRICT, sub=MEMBER)
        task = await self.offered(request["id"])
        await self.post("dispatch", f"/v1/tasks/{task}/accept", {}, member)
        asked = {"why": "visit", "parts": ["contact", "address", "text"]}
        opened = await self.shown(f"/v1/requests/{request['id']}/disclosures", asked, member)
        for verb in ("arrive", "done"):
            await self.post("dispatch", f"/v1/tasks/{task}/{verb}", {}, member)
        code = request["tracking_code"]
        await until(lambda: self.rated(code))
        await self.http.get(f"{self.stack.urls['intake']}/v1/requests/{code}/data")
        return opened

    async def offered(self, request_id: str) -> str:
        """The task, once the member is asked."""
        token = self.stack.token("dispatcher", district=DISTRICT)
        async with asyncio.timeout(20):
            while True:
                response = await self.http.get(
                    f"{self.stack.urls['dispatch']}/v1/tasks", headers={"Authorization": f"Bearer {token}"}
                )
                for task in response.json()["tasks"]:
                    if task["request"] == request_id and MEMBER in task["offered"]:
                        return str(task["id"])
                await asyncio.sleep(0.1)

    async def shown(self, path: str, asked: dict[str, Any], token: str) -> dict[str, Any]:
        """What is disclosed, as soon as the ledger has heard that the task was accepted."""
        for _ in range(50):
            headers = {"Idempotency-Key": uuid4().hex, "Authorization": f"Bearer {token}"}
            response = await self.http.post(f"{self.stack.urls['intake']}{path}", json=asked, headers=headers)
            if response.status_code == 200:
                break
            await asyncio.sleep(0.1)
        answer: dict[str, Any] = response.json()
        return answer

    async def rated(self, code: str) -> bool:
        """Whether the rating was taken: it is, once the ledger has heard that it is done."""
        response = await self.http.post(
            f"{self.stack.urls['intake']}/v1/requests/{code}/rate",
            json={"grade": 5, "solved": True},
            headers={"Idempotency-Key": "rate-1"},
        )
        return response.status_code == 200

    async def reach(self, request_id: str) -> None:
        """As notify asks for an address."""
        notify = await self.stack.connect("notify")
        question = orjson.dumps({"request": request_id, "notice": "canary"})
        answer = orjson.loads(await notify.request(f"qry.{DISTRICT}.intake.reach", question, timeout_s=5))
        await notify.drain()
        assert answer["contact"] == RESIDENT["contact"]

    async def forget(self) -> dict[str, Any]:
        """By the command line, as an operator does it."""
        number = self.stack.data.parent / "number"
        number.write_text("+86 139 1264 8759\n")
        found = await paidan("person", "find", "--json", "--data", str(self.stack.data), "--contact", str(number))
        assert [len(person["requests"]) for person in found["people"]] == [2]
        keys = await paidan("keys", "rotate", "--dry-run", "--json", "--data", str(self.stack.data))
        assert (keys["seen"], keys["dropped"]) == (1, False)
        person = ["person", "erase", "--yes", "--json", "--data", str(self.stack.data)]
        erased = await paidan(*person, "--contact", str(number))
        number.unlink()
        await paidan(*person, "--member", MEMBER, "--district", DISTRICT)
        return erased

    async def admin_answers(self) -> bool:
        """Whether the bus is there again."""
        try:
            await self.admin.state()
        except BusError:
            return False
        await self.stack.wait_until_ready()
        return True

    async def goes_on(self, request: dict[str, Any]) -> bool:
        """The request that is still open is done, though nobody can be reached any more; the ledger accounts for all."""
        task = await self.offered(request["id"])
        member = self.stack.token("member", district=DISTRICT, sub=MEMBER)
        await self.post("dispatch", f"/v1/tasks/{task}/accept", {}, member)
        auditor = {"Authorization": f"Bearer {self.stack.token('auditor')}"}
        return bool((await self.http.get(f"{self.stack.urls['ledger']}/v1/ledger", headers=auditor)).json()["complete"])

    async def search(self) -> Searched:
        """Every byte that is kept, and everything that is shown without a disclosure."""
        await self.snapshot("dispatch", DESK)
        await self.snapshot("notify", NOTIFY)
        places = files(self.stack.data)
        places["facts"] = b"\n".join(data for _, data in await messages(self.admin, "EVENTS"))
        for service, url in self.stack.urls.items():
            places[f"metrics of {service}"] = (await self.http.get(f"{url}/metrics")).content
        auditor = {"Authorization": f"Bearer {self.stack.token('auditor')}"}
        for path in ("/v1/events?kinds=all", "/v1/cases", "/v1/ledger"):
            places[path] = (await self.http.get(f"{self.stack.urls['ledger']}{path}", headers=auditor)).content
        for format in ("csv", "ocel", "xes", "parquet"):
            path = f"/v1/exports?format={format}"
            held = (await self.http.get(f"{self.stack.urls['ledger']}{path}", headers=auditor)).content
            if format == "parquet":  # it is compressed
                columns = parquet.read_table(io.BytesIO(held)).drop_columns(["time", "recorded"]).columns
                cells = (cell for column in columns for cell in column.to_pylist())
                held = b"\n".join(cell if isinstance(cell, bytes) else str(cell).encode() for cell in cells)
            places[path] = held
        places["mongo"] = await asyncio.to_thread(self.dump)
        both: tuple[Rules[Any], ...] = (DESK, NOTIFY)
        for name in (snapshot_name(rules, DISTRICT, n) for rules in both for n in range(2)):
            places[f"snapshot {name}"] = await self.admin.get_object("SNAPSHOTS", name) or b""
        return Searched(places)

    async def snapshot(self, service: str, rules: Rules[Any]) -> None:
        """What a service remembers, written down."""
        bus = await self.stack.connect(service)
        await write_snapshot(bus, await recover(bus, rules, DISTRICT))
        await bus.drain()

    def dump(self) -> bytes:
        """Every document of every collection."""
        assert self.stack.mongo is not None
        with pymongo.MongoClient[dict[str, Any]](self.stack.mongo.admin_uri) as client:
            return b"".join(
                bson.encode(document)
                for database in sorted(
                    {*client.list_database_names()} - {"admin", "config", "local"}
                )  # the server's own
                for collection in client[database].list_collection_names(filter={"type": "collection"})
                for document in client[database][collection].find()
            )


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a stack, by its path, without the zeros that a journal is laid out with."""
    return {
        str(file.relative_to(folder)): file.read_bytes().rstrip(b"\0") for file in folder.rglob("*") if file.is_file()
    }


async def messages(bus: Bus, stream: str) -> list[tuple[str, bytes]]:
    """Everything that a stream holds."""
    held, after = [], 0
    while message := await bus.next(">", after=after, stream=stream):
        held.append((message.subject, message.data))
        after = message.sequence
    return held


async def paidan(*arguments: str) -> dict[str, Any]:
    """The command, as an operator runs it; what it prints."""
    program = [sys.executable, "-c", "from deploy.cli import main; main()", *arguments]
    done = await asyncio.to_thread(subprocess.run, program, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for word in (*OF_RESIDENT, *OF_MEMBER):
        assert word not in done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


async def until(there: Callable[[], Any], within_s: float = 30) -> None:
    """Wait for something to become true. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        while not await there():
            await asyncio.sleep(0.1)


# --- what is promised -------------------------------------------------------------------------------------------------

once = pytest.mark.asyncio(loop_scope="module")


@once
async def test_the_member_who_came_was_shown_what_was_sealed(story: Story) -> None:
    assert story.opened["parts"] == {
        "contact": RESIDENT["contact"],
        "address": RESIDENT["location"]["address"],  # type: ignore[index]
        "text": RESIDENT["text"],
    }


@once
async def test_a_resident_is_nowhere_in_the_clear_while_everything_works(story: Story) -> None:
    exports = [f"/v1/exports?format={format}" for format in ("csv", "ocel", "xes", "parquet")]
    there = (
        *exports,
        "facts",
        "mongo",
        "/v1/events?kinds=all",
        "metrics of intake",
        "logs/intake.log",
        "logs/notify.log",
    )
    assert [place for place in there if not story.before.places.get(place)] == []
    snapshots = [held for place, held in story.before.places.items() if place.startswith("snapshot") and held]
    assert len(snapshots) >= 2
    assert story.before.having(*OF_RESIDENT) == set()


@once
async def test_a_member_is_in_contacts_and_nowhere_else(story: Story) -> None:
    found = story.before.having(*OF_MEMBER)
    assert found
    assert {place for place in found if "/KV_CONTACTS/msgs/" not in place} == set()


@once
async def test_the_secret_was_rotated_in_between(story: Story) -> None:
    assert (story.rotated["rewrapped"], story.rotated["dropped"]) == (1, True)
    assert "secrets/intake/district_kek_old" not in story.stopped.places
    assert story.kek == kek_id(story.stopped.places["secrets/intake/district_kek"].decode())


@once
async def test_once_forgotten_they_are_nowhere_at_all(story: Story) -> None:
    for searched in (story.after, story.stopped):
        assert searched.having(*OF_RESIDENT) == set()
        assert searched.having(*OF_MEMBER) == set()


@once
async def test_neither_key_nor_ciphertext_is_left_on_the_disk(story: Story) -> None:
    assert len(story.secrets) == 2
    for searched in (story.after, story.stopped):
        for secret in story.secrets:
            assert [place for place, held in searched.places.items() if secret in held] == []


@once
async def test_both_requests_are_said_to_be_erased_and_the_open_one_goes_on(story: Story) -> None:
    [person] = story.erased["people"]
    erased = [fact["data"]["request_id"] for fact in story.facts if fact["type"].endswith("request.erased.v1")]
    assert sorted(erased) == sorted(asked["id"] for asked in person["requests"])
    assert len(erased) == 2
    assert story.verified


@once
async def test_who_looked_is_on_record(story: Story) -> None:
    looks = [fact["data"] for fact in story.facts if fact["type"].endswith("request.disclosed.v1")]
    assert {"member:m-canary", "service:notify"} <= {look["to"] for look in looks}
