"""The cases in the store: behind the log, never wrong, and the same when made again."""

import asyncio
import json
import os
import subprocess
import sys

from services.ledger.cases import Case
from services.ledger.projecting import Projector, rebuild
from services.ledger.store import Projected
from tests.ledger.conftest import Bench
from tests.ledger.examples import handover_asked, life, message, reopened, request_id, submitted


async def everything(bench: Bench) -> list[Case]:
    return [case async for case in bench.store.all_cases()]


async def projected(projector: Projector, position: int) -> None:
    async with asyncio.timeout(20):
        while projector.at.position < position:
            await asyncio.sleep(0.01)


async def test_cases_follow_the_log_and_a_rebuild_gives_the_same_documents(bench: Bench) -> None:
    projector = bench.project()
    bench.ingest(projector)
    for n in range(0, 120, 40):
        await bench.publish(*[message(each) for k in range(n, n + 40) for each in life(k)])
    await bench.publish(message(reopened(7)), message(submitted(500)), message(handover_asked(5)))
    await projected(projector, 120 * 9 + 3)
    before = await everything(bench)
    assert (len(before), projector.at.sequence) == (121, 120 * 9 + 3)
    assert sum(len(case["involved"]) for case in before) == 1
    await bench.stop()
    told: list[tuple[int, int]] = []
    assert await rebuild(bench.store, lambda done, of: told.append((done, of))) == 121
    assert await everything(bench) == before
    assert told[-1] == (1083, 1083)


async def test_the_command_rebuilds_and_counts(bench: Bench) -> None:
    bench.ingest()
    await bench.publish(*[message(each) for n in range(3) for each in life(n)])
    await bench.leaves(27)
    environment = {**os.environ, "MONGODB_URI": bench.mongo.uri, "PAIDAN_DATABASE": bench.database}
    command = (sys.executable, "-m", "services.ledger", "rebuild")
    process = await asyncio.create_subprocess_exec(*command, "--json", env=environment, stdout=subprocess.PIPE)
    out, _ = await process.communicate()
    assert (process.returncode, json.loads(out)) == (0, {"cases": 3, "leaves": 27})
    process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=subprocess.PIPE)
    out, _ = await process.communicate()
    assert out.decode() == "重建 3 件诉求 / 3 cases rebuilt from 27 leaves\n"
    assert len(await everything(bench)) == 3


async def test_what_was_stored_but_not_folded_before_a_crash_is_folded_after_it(bench: Bench) -> None:
    bench.ingest()  # nobody folds: as if killed between the two
    await bench.publish(*[message(each) for n in range(3) for each in life(n)])
    await bench.leaves(27)
    projector = bench.project()
    await projected(projector, 27)
    assert {case["state"] for case in await everything(bench)} == {"closed"}


async def test_a_fold_repeated_after_a_crash_before_its_cursor_moved_changes_nothing(bench: Bench) -> None:
    projector = bench.project()
    bench.ingest(projector)
    await bench.publish(*[message(each) for n in range(3) for each in life(n)])
    await projected(projector, 27)
    await bench.stop()
    before = await everything(bench)
    was = await bench.store.projected("cases")
    assert await bench.store.move_projected("cases", Projected(4, 5, was.generation), was=was)
    again = bench.project()
    await projected(again, 27)
    assert await everything(bench) == before


async def test_two_instances_fold_side_by_side(bench: Bench) -> None:
    one, two = bench.project(), bench.project()
    bench.ingest(one)
    for n in range(30):
        await bench.publish(*[message(each) for each in life(n)])
    await projected(one, 270)
    await projected(two, 270)
    await bench.stop()
    before = await everything(bench)
    await rebuild(bench.store, lambda done, of: None)
    assert (len(before), await everything(bench)) == (30, before)


async def test_a_rebuild_beside_a_running_ledger_loses_nothing(bench: Bench) -> None:
    projector = bench.project()
    bench.ingest(projector)
    stop = asyncio.Event()
    written = 0

    async def publish() -> None:
        nonlocal written
        while not stop.is_set():
            await bench.publish(*[message(each) for each in life(written)])
            written += 1
            await asyncio.sleep(0.01)

    publishing = asyncio.create_task(publish())
    await asyncio.sleep(0.5)
    for _ in range(3):
        await rebuild(bench.store, lambda done, of: None)
        await asyncio.sleep(0.3)
    stop.set()
    await publishing
    await projected(projector, written * 9)
    await bench.stop()
    live = await everything(bench)
    await rebuild(bench.store, lambda done, of: None)
    assert await everything(bench) == live
    assert {case["_id"] for case in live} == {request_id(n) for n in range(written)}
    assert {case["state"] for case in live} == {"closed"}
