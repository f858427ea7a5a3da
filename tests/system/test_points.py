"""Crashes at exact points: between fetch and commit, between commit and answer, between two writes that belong together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from tests.system.world import DISTRICT, System, fresh_key

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def until(
    system: System,
    path: str,
    found: Callable[[Any], bool],
    service: str = "dispatch",
    within_s: float = 20,
    **params: Any,
) -> Any:
    """What a route says once it says the right thing; at whichever instance answers."""
    ends = time.monotonic() + within_s
    while True:
        answer = await system.insist("GET", service, path, token=system.token("auditor"), **params)
        if answer is not None and answer.status == 200 and found(answer.document):
            return answer.document
        assert time.monotonic() < ends, answer
        await asyncio.sleep(0.05)


async def task_of(system: System, request: str) -> dict[str, Any]:
    """The open task of a request, once it has been offered."""
    document = await until(
        system,
        "/v1/tasks",
        lambda said: any(t["request"] == request and t["offered"] for t in said["tasks"]),
        limit=1000,
    )
    task: dict[str, Any] = next(t for t in document["tasks"] if t["request"] == request)
    return task


async def finish(system: System, request: str) -> None:
    """Whoever is asked takes it and does it; where the offer ran out meanwhile, the next one."""
    while True:
        task = await task_of(system, request)
        member = task["offered"][0]
        yes = await system.command("accept", task["id"], fresh_key(), member=member)
        assert yes
        if yes.answer:
            break
    done = await system.command("done", task["id"], fresh_key(), member=member, outcome="solved")
    assert done
    assert done.answer


async def crash(
    system: System,
    service: str,
    where: str,
    about: str,
    work: Callable[[], Coroutine[Any, Any, Any]],
    *,
    leader: bool = False,
) -> Any:
    """Do some work while the instance that gets to the point dies there."""
    instances = (await system.leader(),) if leader else tuple(range(1, len(system.stack.all_urls[service]) + 1))
    return await crash_of(system, service, instances, where, about, work())


async def crash_of(
    system: System, service: str, instances: Sequence[int], where: str, about: str, work: Coroutine[Any, Any, Any]
) -> Any:
    """Do some work while that one of these instances that gets to the point dies there."""
    names = {n: service if n == 1 else f"{service}-{n}" for n in instances}
    before = system.stack.pids
    points = {n: system.point(service, n, where, about) for n in instances}
    doing = asyncio.create_task(work)
    async with asyncio.timeout(30):
        while all(point.exists() for point in points.values()):
            await asyncio.sleep(0.01)
    hit = next(n for n, point in points.items() if not point.exists())
    for n, point in points.items():
        if n != hit:
            point.unlink(missing_ok=True)  # one is enough
    async with asyncio.timeout(10):
        while system.stack.pids[names[hit]] == before[names[hit]]:
            await asyncio.sleep(0.01)
    return await doing


async def test_a_desk_that_dies_between_fetch_and_commit_opens_the_task_once(system: System) -> None:
    async def ask() -> dict[str, Any] | None:
        return await system.submit(fresh_key())

    asked = await crash(system, "dispatch", "before commit", ".task.opened", ask, leader=True)
    await finish(system, asked["id"])


async def test_a_desk_that_dies_between_commit_and_what_follows_opens_the_task_once(system: System) -> None:
    async def ask() -> dict[str, Any] | None:
        return await system.submit(fresh_key())

    asked = await crash(system, "dispatch", "after commit", ".task.opened", ask, leader=True)
    await finish(system, asked["id"])


@pytest.mark.parametrize("where", ["before commit", "after commit"])
async def test_a_command_whose_desk_dies_before_it_answers_takes_effect_once(system: System, where: str) -> None:
    asked = await system.submit(fresh_key())
    assert asked
    task = await task_of(system, asked["id"])
    key = fresh_key()

    async def accept() -> Any:
        return await system.command("accept", task["id"], key, member=task["offered"][0])

    given = await crash(system, "dispatch", where, ".task.accepted", accept, leader=True)
    assert given.answer, given
    assert given.answer["facts"] == 1
    again = await system.command("accept", task["id"], key, member=task["offered"][0])
    assert again
    assert again.answer is not None
    assert again.answer["id"] == given.answer["id"]
    done = await system.command("done", task["id"], fresh_key(), member=task["offered"][0], outcome="solved")
    assert done
    assert done.answer


@pytest.mark.parametrize(
    ("where", "about"),
    [
        ("before commit", "keys."),
        ("after commit", "keys."),  # a key without ciphertext
        ("before commit", "sealed."),
        ("after commit", "sealed."),  # a ciphertext without fact
        ("before commit", ".request.submitted."),
        ("after commit", ".request.submitted."),  # a fact that nobody was told of
    ],
)
async def test_a_door_that_dies_anywhere_takes_the_request_in_once(system: System, where: str, about: str) -> None:
    key = fresh_key()
    body = {
        "service": "lamp",
        "location": {"area": "north"},
        "text": f"灯 {key}",
        "contact": {"phone": key[:4] + "0123456"},
    }

    async def ask() -> Any:
        answer = await system.insist("POST", "intake", "/v1/requests", body, key=key)
        assert answer is not None
        assert answer.status == 201, answer
        system.submitted[key] = [answer.document]
        return answer.document

    asked = await crash(system, "intake", where, about, ask)
    again = await system.insist("POST", "intake", "/v1/requests", body, key=key)
    assert again is not None
    assert (again.status, again.document) == (201, asked)
    await finish(system, asked["id"])


@pytest.mark.parametrize("where", ["before append", "after append"])
async def test_a_ledger_that_dies_around_its_insert_has_every_leaf_and_case_once(system: System, where: str) -> None:
    async def ask() -> Any:
        return await system.submit(fresh_key())

    asked = await crash(system, "ledger", where, "request.submitted", ask)
    case = await until(system, f"/v1/cases/{asked['id']}", lambda _: True, "ledger", position=asked["position"])
    assert not case["stale"]
    assert case["case"]["timeline"][0]["sequence"] == asked["position"]
    await finish(system, asked["id"])


@pytest.mark.parametrize(("where", "again"), [("before commit", True), ("after commit", False)])
async def test_a_messenger_that_dies_between_sending_and_committing_sends_once_more_at_most(
    system: System, where: str, again: bool
) -> None:
    system.crashes += 1
    before = system.receiver.receipts.copy()

    async def ask() -> Any:
        for _ in range(8):  # every fourth member is reached by the webhook
            asked = await system.submit(fresh_key(), service="leak")
            assert asked
            await task_of(system, asked["id"])  # and an offer that is answered before it went out is not sent at all
            await until(system, "/v1/notices", lambda said: not said["waiting"], "notify", district=DISTRICT)
            await finish(system, asked["id"])

    # What others were sent at that moment may go once more as well: it is the one that is on record, or was about to be.
    await crash(system, "notify", where, '"channel":"webhook","notice_id"', ask)
    await until(system, "/v1/notices", lambda said: not said["waiting"], "notify", district=DISTRICT)
    more = system.receiver.receipts - before
    assert more
    assert max(more.values()) <= (2 if again else 1)


async def test_and_the_whole_history_holds(system: System) -> None:
    assert await system.verify() == []
