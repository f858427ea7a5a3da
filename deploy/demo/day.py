"""The day: residents of 欧景苑社区 and around it ask, follow, rate, withdraw, insist; some talk nonsense."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from deploy.demo.calls import Answer, Calls
from deploy.demo.diary import Diary
from deploy.demo.members import Plans

BETWEEN_S = 0.05
"""From one request to the next: a day of hours in a few seconds."""
SECOND_THOUGHTS_S = 1.2
"""After this a resident withdraws: the message to whoever was asked has left by then, and their offer still stands."""
ENDS_WITHIN_S = 60.0
RATED_AGAIN = 4
"""What a resident says after the second round of a matter that was reopened."""
SATISFIED = 3
BODY = ("text", "service", "location", "contact", "channel", "on_behalf")


def read_day(file: Path) -> list[dict[str, Any]]:
    """The lines of the day, in order."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


class Residents:
    """
    Everybody who asks for something.

    Args:
        day: the date that the day's clock times belong to.
        told: called with each line that has come to its end.
    """

    def __init__(
        self,
        calls: Calls,
        diary: Diary,
        plans: Plans,
        lines: list[dict[str, Any]],
        day: date,
        told: Callable[[], None],
    ) -> None:
        self._calls = calls
        self._diary = diary
        self._plans = plans
        self._lines = lines
        self._day = day
        self._told = told
        self._first: dict[int, Answer] = {}
        self.story: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """The id of the enclave case."""

    async def ask(self) -> list[asyncio.Task[None]]:
        """Post every line in order; what is left is how each of them goes on."""
        lives = []
        for line in self._lines:
            lives.append(asyncio.create_task(self._begin(line, await self._post(line))))
            await asyncio.sleep(BETWEEN_S)
        return lives

    async def insist(self) -> None:
        """What clients do that lost an answer: the same again, and once something else under a used key."""
        line = self._lines[0]
        again = await self._calls.post("intake", "/v1/requests", self._body(line), key=self._key(line))
        self._same("重复提交 / a repeat", self._first[line["n"]], again)
        other = self._body(line) | {"text": "另外一件事"}
        refused = await self._calls.post("intake", "/v1/requests", other, key=self._key(line))
        self._diary.expect("同键异文 / a used key with another body", refused, "key_reused")
        missing = await self._calls.post("intake", "/v1/requests", self._body(line))
        self._diary.expect("缺少键 / no key", missing, "key_missing")

    async def _post(self, line: dict[str, Any]) -> Answer:
        began = time.perf_counter()
        answer = await self._calls.post("intake", "/v1/requests", self._body(line), key=self._key(line))
        self._first[line["n"]] = answer
        if answer.ok and "repeat_of" not in line:
            id, district = answer.document["id"], answer.document["district"]
            self._diary.submitted(id, district, began, load=False)
            self._plans.set(id, line["plan"])
            if line.get("story"):
                self.story.set_result(id)
        return answer

    async def _begin(self, line: dict[str, Any], answer: Answer) -> None:
        """From the answer to the end of a matter."""
        name, expected = f"第 {line['n']} 条 / line {line['n']}", line["expect"]
        try:
            if "problem" in expected:
                self._diary.expect(name, answer, expected["problem"])
            elif "repeat_of" in line:
                self._same(name, self._first[line["repeat_of"]], answer)
            elif self._diary.expect(name, answer):
                self._check(name, line, answer.document)
                await self._live(name, line, answer.document)
        except TimeoutError:
            self._diary.fail(f"{name}：没有走到结果（{line['plan']}）/ never came to its end ({line['plan']})")
        finally:
            self._told()

    def _check(self, name: str, line: dict[str, Any], document: dict[str, Any]) -> None:
        """Whether intake made of it what a person would."""
        expected = dict(line["expect"])
        if "same_as" in line:
            expected["same_as"] = self._first[line["same_as"]].document["id"]
        for what, wanted in expected.items():
            if document.get(what) != wanted:
                self._diary.fail(f"{name}：{what} 应为 {wanted}，实为 {document.get(what)}")

    async def _live(self, name: str, line: dict[str, Any], document: dict[str, Any]) -> None:
        id, district = document["id"], document["district"]
        if line["plan"] == "withdraw":
            await self._diary.until(id, "task.offered", 1, ENDS_WITHIN_S)
            await asyncio.sleep(SECOND_THOUGHTS_S)
            await self._say(name, "withdraw", document, {"reason": "solved_otherwise"}, document["position"])
            self._diary.did("withdrawn", district, id)
            await self._diary.until(id, "task.closed", 1, ENDS_WITHIN_S)
            return
        if line["plan"] == "nobody":
            await self._diary.until(id, "task.unplaced", 1, ENDS_WITHIN_S)
            return
        done = await self._diary.until(id, "task.done", 1, ENDS_WITHIN_S)
        if line["rate"] is None:
            return
        await self._rate(name, document, line["rate"], done)
        if line["plan"] == "reopen":
            rated = await self._diary.until(id, "request.rated", 1, ENDS_WITHIN_S)
            await self._say(name, "reopen", document, {"reason": "not_solved"}, rated)
            self._diary.did("reopened", district, id)
            done = await self._diary.until(id, "task.done", 2, ENDS_WITHIN_S)
            await self._rate(name, document, RATED_AGAIN, done)
        await self._diary.until(id, "task.closed", 1, ENDS_WITHIN_S)

    async def _rate(self, name: str, document: dict[str, Any], grade: int, position: int) -> None:
        body = {"grade": grade, "solved": grade >= SATISFIED}
        if await self._say(name, "rate", document, body, position):
            self._diary.did("rated", document["district"], document["id"])

    async def _say(self, name: str, verb: str, document: dict[str, Any], body: dict[str, Any], position: int) -> bool:
        """A resident opens their request by its tracking code and does something with it."""
        path = f"/v1/requests/{document['tracking_code']}/{verb}"
        key = f"{document['id']}-{verb}-{position}"
        return self._diary.expect(
            f"{name} {verb}", await self._calls.post("intake", path, body, key=key, position=position)
        )

    def _same(self, name: str, first: Answer, again: Answer) -> None:
        if again.status not in (200, 201) or again.document != first.document:
            self._diary.fail(f"{name}：同一提交的两次应答不同 / two answers to one submission differ: {first} {again}")

    def _body(self, line: dict[str, Any]) -> dict[str, Any]:
        hours, minutes = map(int, line["at"].split(":"))
        at = datetime(self._day.year, self._day.month, self._day.day, hours, minutes, tzinfo=ZoneInfo("Asia/Shanghai"))
        return {name: line[name] for name in BODY if name in line} | {"reported_at": at.isoformat()}

    @staticmethod
    def _key(line: dict[str, Any]) -> str:
        return line.get("key") or f"day-{line['n']}"


def yesterday() -> date:
    """The day that is played: the one that has just gone by."""
    return datetime.now(ZoneInfo("Asia/Shanghai")).date() - timedelta(days=1)
