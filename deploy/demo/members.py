"""Simulated members: they hear of an offer on the live stream, and answer it over HTTP as themselves."""

from __future__ import annotations

import asyncio
import csv
from collections.abc import Coroutine, Iterable
from pathlib import Path
from random import Random
from typing import Any

from deploy.demo.calls import Answer, Calls, Event
from deploy.demo.diary import Diary
from shared.ids import derived_id

PLAN_KNOWN_WITHIN_S = 10.0
MESSAGE_WITHIN_S = 1.2
"""How long a member of the day waits for the message about an offer that is on the live stream already."""
IMPOSTORS_WITHIN_S = 30.0
CREW_CALLS_MAX = 24
CREW_DONE_OF_TEN = 3
"""So many of ten tasks of the load are finished; the others stay in their members' hands."""
REASONS = ("busy", "too_far", "off_sick")


def read_members(file: Path) -> list[dict[str, str]]:
    """The rows of a member file."""
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


class Plans:
    """What is to happen with each request of the day, known once intake has given it an id."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}
        self._waiting: dict[str, asyncio.Event] = {}

    def set(self, request: str, plan: str) -> None:
        """The plan of a request."""
        self._known[request] = plan
        if waiting := self._waiting.pop(request, None):
            waiting.set()

    async def of(self, request: str) -> str:
        """The plan of a request; an offer may be on the stream before intake's answer is read."""
        if request not in self._known:
            waiting = self._waiting.setdefault(request, asyncio.Event())
            try:
                await asyncio.wait_for(waiting.wait(), PLAN_KNOWN_WITHIN_S)
            except TimeoutError:
                return "accept"
        return self._known[request]


class People:
    """
    Members of some districts.

    Args:
        rows: as in the file they were imported from.
    """

    def __init__(self, calls: Calls, diary: Diary, rows: Iterable[dict[str, str]]) -> None:
        self._calls = calls
        self._diary = diary
        self._districts = {row["id"]: row["district"] for row in rows}
        self._busy: set[asyncio.Task[None]] = set()

    def heard(self, event: Event) -> None:
        """An event of the live stream: those of us who are asked begin to think."""
        if event.name == "task.offered":
            for member in event.fact["members"]:
                if member in self._districts:
                    self._begin(self._answer(member, event))

    async def rest(self) -> None:
        """Until everybody has done what they had begun."""
        while self._busy:
            await asyncio.gather(*self._busy)

    def stop(self) -> None:
        """Drop everything."""
        for task in self._busy:
            task.cancel()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._busy.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._busy.discard(task)
        if not task.cancelled() and (why := task.exception()):
            self._diary.fail(f"人员模拟出错 / a simulated member stumbled: {why!r}")

    async def _answer(self, member: str, offer: Event) -> None:
        raise NotImplementedError

    async def _say(self, member: str, verb: str, task: str, body: dict[str, str], *, key: str = "") -> Answer:
        """One command, as the member."""
        token = self._calls.token("member", district=self._districts[member], sub=member)
        return await self._calls.post(
            "dispatch", f"/v1/tasks/{task}/{verb}", body, key=key or f"{task}-{member}-{verb}", token=token
        )


class Neighbours(People):
    """
    The members of the day: each request has a plan, and they play it.

    Plans: `accept` · `decline` the first asked says no · `silent` the first asked says nothing · `nobody` no one takes it ·
    `withdraw` no one answers before the resident withdraws · `reopen` like accept, twice.
    """

    def __init__(self, calls: Calls, diary: Diary, rows: Iterable[dict[str, str]], plans: Plans) -> None:
        super().__init__(calls, diary, rows)
        self._plans = plans
        self._random = Random(420106)

    async def _answer(self, member: str, offer: Event) -> None:
        plan = await self._plans.of(offer.request)
        task, first = offer.fact["task_id"], offer.fact["wave"] == 1
        again = task != derived_id(offer.request, "task", 1)
        await self._diary.until_told(task, member, MESSAGE_WITHIN_S)
        await asyncio.sleep(self._random.uniform(0.2, 0.6))
        if plan == "withdraw" or (first and not again and plan in ("silent", "nobody")):
            return
        if plan == "nobody" or (first and not again and plan == "decline"):
            answer = await self._say(member, "decline", task, {"reason": self._random.choice(REASONS)})
            self._noted("declined", answer, offer)
            return
        if not self._noted("accepted", await self._say(member, "accept", task, {}), offer):
            return
        await asyncio.sleep(self._random.uniform(0.2, 0.5))
        self._diary.expect("到场 / arrive", await self._say(member, "arrive", task, {}))
        await asyncio.sleep(self._random.uniform(0.3, 0.8))
        self._noted("done", await self._say(member, "done", task, {"outcome": "solved"}), offer)

    def _noted(self, what: str, answer: Answer, offer: Event) -> bool:
        """Whether it was done. Too late, when the machine is slow, is no failure: the next one is asked."""
        if answer.problem in ("not_offered", "already_taken") and what != "done":
            return False
        if self._diary.expect(f"{what} ({offer.request})", answer):
            self._diary.did(what, offer.district, offer.request)
            return True
        return False


class Crews(People):
    """The members of the load: they take everything, and finish a share of it."""

    def __init__(self, calls: Calls, diary: Diary, rows: Iterable[dict[str, str]]) -> None:
        super().__init__(calls, diary, rows)
        self._free = asyncio.Semaphore(CREW_CALLS_MAX)

    async def _answer(self, member: str, offer: Event) -> None:
        task = offer.fact["task_id"]
        await asyncio.sleep(0.5)
        async with self._free:
            if not self._diary.expect(f"accept ({offer.request})", await self._say(member, "accept", task, {})):
                return
            self._diary.did("accepted", offer.district, offer.request)
        if int(task[-4:], 16) % 10 < CREW_DONE_OF_TEN:
            async with self._free:
                if self._diary.expect(f"done ({offer.request})", await self._say(member, "done", task, {})):
                    self._diary.did("done", offer.district, offer.request)


async def impostors(calls: Calls, diary: Diary, story: asyncio.Future[str]) -> None:
    """What is not theirs, members cannot do: the task of the enclave case, once it has been taken, is tried from all sides."""
    try:
        request = await asyncio.wait_for(asyncio.shield(story), IMPOSTORS_WITHIN_S)
        await diary.until(request, "task.accepted", 1, IMPOSTORS_WITHIN_S)
    except TimeoutError:
        diary.fail("插花地的任务无人接单 / the task of the enclave case was never accepted")
        return
    path = f"/v1/tasks/{derived_id(request, 'task', 1)}/accept"
    own, foreign = ("m-wc04", "420106"), ("m-qs04", "420107")
    tries: tuple[tuple[str, str, dict[str, str], str], ...] = (
        (calls.token("member", district=own[1], sub="m-stranger"), own[1], {}, "already_taken"),
        (calls.token("member", district=own[1], sub="m-stranger"), own[1], {"member": own[0]}, "not_yourself"),
        (calls.token("member", district=foreign[1], sub=foreign[0]), own[1], {}, "foreign_district"),
        ("not.a.token", own[1], {}, "unauthenticated"),
    )
    for token, district, body, problem in tries:
        answer = await calls.post("dispatch", path, body, key=f"impostor-{problem}", token=token, district=district)
        diary.expect(f"冒名接单 / an impostor ({problem})", answer, problem)
