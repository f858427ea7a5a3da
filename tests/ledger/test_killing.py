"""The ledger as a process that is killed while it writes, and told to stop while it writes."""

import asyncio
import os
import signal
from hashlib import sha256
from pathlib import Path

import httpx2
import orjson

from deploy.stack import Stack
from services.ledger import tree
from services.ledger.checkpoints import BUCKET
from services.ledger.notes import Checkpoint, Note
from shared.bus import Bus, Message
from tests.ledger.examples import WUCHANG, life, message, request_id

REQUESTS = 400


async def test_kill_9_and_sigterm_in_the_middle_lose_and_double_nothing(tmp_path: Path) -> None:
    async with Stack(tmp_path / "stack", nats_url=None, mongodb_uri=None, services=("ledger",)) as stack:
        admin = await stack.connect()
        publishing = asyncio.create_task(publish(admin))
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
            await asyncio.sleep(0.6)
            pid = stack.pids["ledger"]
            assert pid is not None
            os.kill(pid, number)
            while stack.pids["ledger"] == pid:
                await asyncio.sleep(0.01)
            await stack.wait_until_ready()
        await publishing
        headers = {"Authorization": f"Bearer {stack.token('auditor')}"}
        async with httpx2.AsyncClient(
            base_url=stack.urls["ledger"], timeout=20, trust_env=False, headers=headers
        ) as http:
            async with asyncio.timeout(60):
                while (await http.get("/v1/ledger")).json()["projected_sequence"] < REQUESTS * 9:
                    await asyncio.sleep(0.05)
            found = (await http.get("/v1/ledger")).json()
            assert (found["leaves"], found["facts"], found["complete"]) == (REQUESTS * 9, REQUESTS * 9, True)
            async with asyncio.timeout(10):
                while (await http.get("/v1/log")).json()["size"] < REQUESTS * 9:
                    await asyncio.sleep(0.05)
            checkpoint = Checkpoint.parse(Note.parse((await http.get("/checkpoint")).text).body)
            held = await admin.last(f"$KV.CHECKPOINTS.{sha256(checkpoint.origin.encode()).hexdigest()}", stream=BUCKET)
            assert held is not None
            assert Checkpoint.parse(Note.parse(held.data.decode()).body) == checkpoint
            _, *lines, end = (await http.get("/v1/events")).content.splitlines()
            leaves = [orjson.loads(line)["leaf"] for line in lines]
            stored = [line[line.index(b":", 5) + 1 : -1] for line in lines]
            assert tree.root_of(map(tree.leaf_hash, stored)) == checkpoint.root
            assert [leaf["src"]["seq"] for leaf in leaves] == list(range(1, REQUESTS * 9 + 1))
            assert [leaf["scopes"] for leaf in leaves] == [[{"d": WUCHANG, "n": n + 1}] for n in range(REQUESTS * 9)]
            assert orjson.loads(end)["count"] == REQUESTS * 9
            page = (await http.get("/v1/cases", params={"state": "closed", "limit": REQUESTS})).json()
            assert {case["id"] for case in page["cases"]} == {request_id(n) for n in range(REQUESTS)}
        await admin.drain()


async def publish(bus: Bus) -> None:
    for n in range(REQUESTS):
        await bus.commit([Message(*message(each)) for each in life(n)])
        await asyncio.sleep(0.005)
