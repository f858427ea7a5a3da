"""What operations.md says to do when the bus, or the database, is lost: done, one after the other, on one real stack."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pymongo
import pytest
import pytest_asyncio

from deploy.cli import PEOPLES_PACE
from deploy.errors import SetupError
from deploy.servers import DATABASE
from deploy.stack import Stack
from services.ledger.log import tree
from services.ledger.log.notes import Checkpoint, Note

pytestmark = pytest.mark.asyncio(loop_scope="module")

DISTRICT = "420106"
DEMO = Path(__file__).parents[2] / "deploy" / "demo"
WITHIN_S = 30.0


class Drill:
    """A stack that is stopped, robbed and started again, and what it said before."""

    def __init__(self, data: Path) -> None:
        self.stack = Stack(data, nats_url=None, mongodb_uri=None)
        self.http = httpx2.AsyncClient(timeout=20, trust_env=False)
        self.requests: dict[str, str] = {}

    async def call(self, method: str, service: str, path: str, body: Any = None, key: str = "") -> Any:
        """What a service answers, as the dispatcher, or the auditor of everything where it is the ledger."""
        roles = ("auditor",) if service == "ledger" else ("dispatcher",)
        token = self.stack.token(*roles, district="*" if service == "ledger" else DISTRICT)
        headers = {"Authorization": f"Bearer {token}"} if service != "intake" else {}
        headers |= {"Idempotency-Key": key} if key else {}
        answer = await self.http.request(method, self.stack.urls[service] + path, json=body, headers=headers)
        assert answer.is_success, (path, answer.text)
        return answer.json() if answer.headers["content-type"] == "application/json" else answer.text

    async def until(self, what: Callable[[Any], Any], service: str, path: str) -> Any:
        """What a service says once it says the right thing."""
        ends = time.monotonic() + WITHIN_S
        while not what(said := await self.call("GET", service, path)):
            assert time.monotonic() < ends, said
            await asyncio.sleep(0.05)
        return said

    async def submit(self, key: str) -> str:
        """A request, or the same one again; its id once somebody has been asked."""
        body = {"text": "楼道路灯不亮了", "location": {"address": "欧景苑 3 栋"}}
        request = str((await self.call("POST", "intake", "/v1/requests", body, key))["id"])
        self.requests[key] = request
        return request

    async def task(self, request: str) -> dict[str, Any]:
        """The open task of a request, offered."""

        def found(said: Any) -> Any:
            return [one for one in said["tasks"] if one["request"] == request and one["offered"]]

        task: dict[str, Any] = found(await self.until(found, "dispatch", "/v1/tasks"))[0]
        return task

    async def finish(self, request: str) -> None:
        """Whoever is asked takes it and does it."""
        task = await self.task(request)
        member = {"member": task["offered"][0]}
        await self.call("POST", "dispatch", f"/v1/tasks/{task['id']}/accept", member, f"accept-{task['id']}")
        done = {**member, "outcome": "solved"}
        await self.call("POST", "dispatch", f"/v1/tasks/{task['id']}/done", done, f"done-{task['id']}")
        await self.until(lambda said: said["case"]["state"] == "done", "ledger", f"/v1/cases/{request}")

    async def signed(self) -> Checkpoint:
        """The newest checkpoint, once it is of the whole log."""
        size = (await self.call("GET", "ledger", "/v1/ledger"))["leaves"]

        def whole(text: Any) -> bool:
            return bool(Checkpoint.parse(Note.parse(text).body).size >= size)

        return Checkpoint.parse(Note.parse(await self.until(whole, "ledger", "/checkpoint")).body)

    async def facts(self) -> list[str]:
        """The ids of all facts in the ledger, oldest first."""
        _, *lines, end = (await self.call("GET", "ledger", "/v1/events")).splitlines()
        assert json.loads(end)["end"]
        return [json.loads(line)["leaf"]["event"]["id"] for line in lines]

    def paidan(self, *arguments: str) -> Any:
        """A command on the stopped stack."""
        done = subprocess.run(
            [sys.executable, "-m", "deploy.cli", *arguments, "--json", "--data", str(self.stack.data)],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def drill(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Drill]:
    drill = Drill(tmp_path_factory.mktemp("drill") / "data")
    await drill.stack.start()
    register = json.loads((DEMO / "register.json").read_bytes())
    for policy in register["policies"]:
        policy.update(PEOPLES_PACE)
    await drill.stack.apply_register(register)
    await drill.stack.enrol((DEMO / "members.csv").read_bytes(), DISTRICT)
    yield drill
    await drill.http.aclose()
    await drill.stack.stop()


async def test_a_lost_bus_comes_back_and_everybody_goes_on(drill: Drill) -> None:
    stack = drill.stack
    finished, offered = await drill.submit("drill-finished"), await drill.submit("drill-offered-1")
    await drill.finish(finished)
    before, tasks = await drill.task(offered), await drill.call("GET", "dispatch", "/v1/members")
    await stack.stop()
    shutil.rmtree(stack.data / "nats" / "jetstream")
    with pytest.raises(SetupError, match="paidan bus restore"):
        await stack.start()
    restored = drill.paidan("bus", "restore")["restored"]
    assert restored > 0
    await stack.start()
    assert await drill.call("GET", "dispatch", "/v1/members") == tasks
    assert await drill.task(offered) == before, "whoever was asked is asked"
    assert await drill.submit("drill-offered-1") == offered, "the same key is the same request"
    await drill.finish(offered)
    new = await drill.submit("drill-new-one")
    await drill.finish(new)
    found = await drill.call("GET", "ledger", "/v1/ledger")
    facts = await drill.facts()
    assert found["complete"]
    assert len(facts) == len(set(facts)) >= found["facts"]
    assert found["leaves"] > 2 * restored, "each came once more, and was known"
    await drill.signed()
    report = drill.paidan("ledger", "redecide")
    assert (report["differ"], report["not_run"]) == ([], {})
    assert report["matches"] >= 3


async def test_an_old_copy_of_the_database_is_brought_up_to_date_and_a_forged_one_is_not_signed(drill: Drill) -> None:
    stack = drill.stack
    backup = stack.data.parent / "backup"
    await drill.signed()
    await stack.stop()
    shutil.copytree(stack.data / "mongo" / "db", backup)
    await stack.start()
    after = await drill.submit("drill-after-the-backup")
    await drill.finish(after)
    last = await drill.signed()
    held = await on_the_bus(stack)
    await stack.stop()

    put_back(stack, backup)
    async with stack.servers_alone():
        forge(stack)
    starting = asyncio.create_task(stack.start())
    assert await unready(drill, "ledger", "checkpoints") == "diverged"
    assert await on_the_bus(stack) == held, "nothing was signed"
    starting.cancel()
    with suppress(asyncio.CancelledError):
        await starting
    await stack.stop()  # it may have been ready before it looked

    put_back(stack, backup)
    await stack.start()
    again = await drill.signed()
    assert again.size >= last.size
    _, *lines, _ = (await drill.call("GET", "ledger", f"/v1/events?kinds=all&to={last.size}")).splitlines()
    stored = [line.partition(b'"leaf":')[2][:-1] for line in map(str.encode, lines)]
    assert tree.root_of(map(tree.leaf_hash, stored)) == last.root, "the same leaves came again"
    assert (await drill.call("GET", "ledger", f"/v1/cases/{after}"))["case"]["state"] == "done"
    assert drill.paidan("ledger", "verify")["findings"] == []


def put_back(stack: Stack, backup: Path) -> None:
    """The database is gone; an old copy takes its place."""
    shutil.rmtree(stack.data / "mongo" / "db")
    shutil.copytree(backup, stack.data / "mongo" / "db")


def forge(stack: Stack) -> None:
    """Another leaf with its hash, and nothing left that was made of the old one: as good as a forger can who may do everything."""
    assert stack.mongo
    with pymongo.MongoClient[dict[str, Any]](stack.mongo.admin_uri) as client:
        database = client[DATABASE]
        leaf = database["events"].find_one({"ty": "cn.paidan.task.done.v1"})
        assert leaf
        forged = leaf["b"].replace(b'"outcome":"solved"', b'"outcome":"absent"')
        assert forged != leaf["b"]
        database["events"].update_one({"_id": leaf["_id"]}, {"$set": {"b": forged, "h": tree.leaf_hash(forged)}})
        database["tiles"].delete_many({})
        database["checkpoints"].delete_many({})


async def on_the_bus(stack: Stack) -> bytes:
    """The last checkpoint, as it is held outside the database."""
    admin = await stack.connect()
    async with asyncio.timeout(WITHIN_S):
        found = await admin.next("$KV.CHECKPOINTS.>", after=0, stream="KV_CHECKPOINTS")
    await admin.drain()
    assert found
    return found.data


async def unready(drill: Drill, service: str, what: str) -> str:
    """Why a service says that it is not ready, once it says so about this."""
    ends = time.monotonic() + WITHIN_S
    while True:
        with suppress(httpx2.HTTPError):
            missing: dict[str, str] = (
                (await drill.http.get(f"{drill.stack.urls[service]}/readyz")).json().get("missing", {})
            )
            if what in missing and missing[what].partition(":")[0] not in ("truncated", "tile"):
                return missing[what].partition(":")[0]
        assert time.monotonic() < ends
        await asyncio.sleep(0.1)
