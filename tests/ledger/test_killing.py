"""Ledger and mongod, killed while they write or told to stop: dense, one root, nothing that was signed or acknowledged lost."""

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path

import httpx2
import orjson
import pytest

from deploy.stack import Stack
from services.ledger.log import tree
from services.ledger.log.checkpoints import BUCKET
from services.ledger.log.notes import Checkpoint, Note
from shared.bus import Bus, Message
from shared.errors import BusError
from tests.ledger.examples import WUCHANG, life, message, request_id

WITHIN_S = 60.0
PAGE = 200
KILLS = (
    ("ledger", signal.SIGKILL),
    ("mongod", signal.SIGKILL),
    ("ledger", signal.SIGTERM),
    ("mongod", signal.SIGKILL),
    ("ledger", signal.SIGKILL),
)


async def test_kill_9_of_ledger_and_mongod_in_the_middle_lose_and_double_nothing(tmp_path: Path) -> None:
    await kill(tmp_path, 5)


@pytest.mark.soak
@pytest.mark.timeout(300)
async def test_kill_9_of_ledger_and_mongod_again_and_again(tmp_path: Path) -> None:
    await kill(tmp_path, 20)


async def kill(folder: Path, rounds: int) -> None:
    """Publish and kill; then hold the log against all that was acknowledged, and against every checkpoint that anybody saw."""
    async with Stack(folder / "stack", nats_url=None, mongodb_uri=None, services=("ledger",)) as stack:
        admin, until = await stack.connect(), asyncio.Event()
        publishing = asyncio.create_task(publish(admin, until))
        seen: dict[int, Checkpoint] = {}
        watching = asyncio.create_task(watch(admin, seen))
        for n in range(rounds):
            await asyncio.sleep(0.3 + 0.1 * (n % 7))
            await end(stack, *KILLS[n % len(KILLS)])
        until.set()
        requests = await publishing
        await whole(stack, requests, seen)
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        await admin.drain()


async def publish(bus: Bus, until: asyncio.Event) -> int:
    """Whole lives of requests, acknowledged by the bus one after the other; how many."""
    n = 0
    while not until.is_set():
        await bus.commit([Message(*message(each)) for each in life(n)])
        n += 1
        await asyncio.sleep(0.02)
    return n


async def watch(bus: Bus, seen: dict[int, Checkpoint]) -> None:
    """Every checkpoint that stands outside the database; no two of one size may differ."""
    while True:
        with suppress(BusError):
            if held := await bus.next("$KV.CHECKPOINTS.>", after=0, stream=BUCKET):
                found = Checkpoint.parse(Note.parse(held.data.decode()).body)
                assert seen.setdefault(found.size, found) == found
        await asyncio.sleep(0.05)


async def end(stack: Stack, name: str, number: int) -> None:
    """End a process, and wait until another is there; for a ledger that writes, too: the next end is to come in its midst."""
    pid = stack.pids[name]
    assert pid is not None
    os.kill(pid, number)
    async with asyncio.timeout(WITHIN_S):
        while stack.pids[name] in (pid, None):
            await asyncio.sleep(0.01)
    if name == "ledger":
        await stack.wait_until_ready()


async def whole(stack: Stack, requests: int, seen: dict[int, Checkpoint]) -> None:
    """What must hold of a log of so many requests and nothing else."""
    facts = requests * 9
    headers = {"Authorization": f"Bearer {stack.token('auditor')}"}
    async with httpx2.AsyncClient(base_url=stack.urls["ledger"], timeout=20, trust_env=False, headers=headers) as http:
        async with asyncio.timeout(WITHIN_S):
            while (await http.get("/v1/ledger")).json()["projected_sequence"] < facts or max(seen, default=0) < facts:
                await asyncio.sleep(0.05)
        found = (await http.get("/v1/ledger")).json()
        assert (found["leaves"], found["facts"], found["complete"]) == (facts, facts, True)
        _, *lines, last = (await http.get("/v1/events")).content.splitlines()
        assert orjson.loads(last)["count"] == facts
        leaves = [orjson.loads(line)["leaf"] for line in lines]
        assert [leaf["src"]["seq"] for leaf in leaves] == list(range(1, facts + 1))
        assert [leaf["scopes"] for leaf in leaves] == [[{"d": WUCHANG, "n": n + 1}] for n in range(facts)]
        grown = tree.Edge()
        for line in lines:
            grown.append(tree.leaf_hash(line[line.index(b":", 5) + 1 : -1]))
            if signed := seen.get(grown.size):
                assert grown.root() == signed.root, f"the checkpoint of {grown.size} is contradicted"
        assert len(seen) > 1
        assert max(seen) == facts
        page = (await http.get("/v1/cases", params={"state": "closed", "limit": PAGE})).json()
        assert {case["id"] for case in page["cases"]} == {request_id(n) for n in range(requests - PAGE, requests)}
