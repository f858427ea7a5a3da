"""What the demo itself did and saw, to be held against what the ledger says afterwards."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field

from deploy.demo.calls import Answer, Event

COUNTED = {
    "request.submitted": "submitted",
    "task.offered": "offered",
    "task.accepted": "accepted",
    "task.declined": "declined",
    "task.expired": "expired",
    "task.done": "done",
    "request.rated": "rated",
    "request.reopened": "reopened",
    "request.withdrawn": "withdrawn",
    "task.unplaced": "unplaced",
}
"""The facts that a district's line of the summary counts, each request once."""
DONE_BY_US = ("submitted", "accepted", "declined", "done", "rated", "reopened", "withdrawn")
"""What the demo knows because it did it; the rest it has seen on the live stream."""


@dataclass
class Diary:
    """
    The demo's own memory.

    Attributes:
        counted: by district and column, the requests of which the demo knows it.
        started: when a request's POST began, on the steady clock.
        offered: when its first offer was seen on the live stream.
        load: the requests of the load; the others are the day's.
        open_offers: tasks that somebody has been asked to take and nobody has answered.
        notices: messages that are still on their way.
        refused: problem codes that were expected, and came.
        failures: what did not hold, in a line each.
    """

    counted: defaultdict[str, defaultdict[str, set[str]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(set))
    )
    started: dict[str, float] = field(default_factory=dict)
    offered: dict[str, float] = field(default_factory=dict)
    load: set[str] = field(default_factory=set)
    open_offers: set[str] = field(default_factory=set)
    notices: set[str] = field(default_factory=set)
    refused: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    last_sequence: int = 0
    _offers: dict[str, tuple[str, str]] = field(default_factory=dict)
    _told: defaultdict[tuple[str, str], asyncio.Event] = field(default_factory=lambda: defaultdict(asyncio.Event))
    _happened: Counter[tuple[str, str]] = field(default_factory=Counter)
    _sequences: dict[tuple[str, str], int] = field(default_factory=dict)
    _waiting: dict[tuple[str, str, int], asyncio.Event] = field(default_factory=dict)

    def submitted(self, request: str, district: str, began: float, *, load: bool) -> None:
        """A request was acknowledged."""
        self.started[request] = began
        self.did("submitted", district, request)
        if load:
            self.load.add(request)

    def did(self, what: str, district: str, request: str) -> None:
        """Something was done to a request, and acknowledged."""
        self.counted[district][what].add(request)

    def fail(self, line: str) -> None:
        """Something did not hold."""
        self.failures.append(line)

    def expect(self, what: str, answer: Answer, problem: str | None = None) -> bool:
        """Note whether an answer is the expected one; True where it is."""
        if answer.problem == problem:
            if problem:
                self.refused[problem] += 1
            return True
        self.fail(f"{what}：应为 {problem or '成功'}，实为 {answer} / expected {problem or 'ok'}, got {answer}")
        return False

    def heard(self, event: Event) -> None:
        """One event of the live stream that shows everything."""
        name, request, fact = event.name, event.request, event.fact
        self.last_sequence = event.sequence
        column = COUNTED.get(name)
        if column and column not in DONE_BY_US:
            self.did(column, event.district, request)
        match name:
            case "task.offered":
                self.offered.setdefault(request, event.seen)
                self.open_offers.add(fact["task_id"])
            case "task.accepted" | "task.unplaced" | "task.closed":
                self.open_offers.discard(fact["task_id"])
            case "notice.queued":
                self.notices.add(fact["notice_id"])
                if fact["template"] == "offered":
                    self._offers[fact["notice_id"]] = (fact["task_id"], fact["recipient"])
            case "notice.sent" | "notice.held":
                self._message_over(fact["notice_id"])
            case "notice.failed" if "retry_at" not in fact:
                self._message_over(fact["notice_id"])
        if request:
            self._happened[request, name] += 1
            self._sequences[request, name] = event.sequence
            if waiting := self._waiting.pop((request, name, self._happened[request, name]), None):
                waiting.set()

    async def until(self, request: str, name: str, times: int, within_s: float) -> int:
        """
        Wait until a fact about a request has been seen so often; its sequence.

        Raises:
            TimeoutError: it was not.
        """
        if self._happened[request, name] < times:
            event = self._waiting.setdefault((request, name, times), asyncio.Event())
            await asyncio.wait_for(event.wait(), within_s)
        return self._sequences[request, name]

    async def until_told(self, task: str, member: str, within_s: float) -> None:
        """Wait until the message about an offer has left for a member, or will not for now; no longer than so."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._told[task, member].wait(), within_s)

    def _message_over(self, notice: str) -> None:
        self.notices.discard(notice)
        if offer := self._offers.pop(notice, None):
            self._told[offer].set()

    def latencies_ms(self) -> dict[str, list[float]]:
        """From the start of a POST to the first offer on the live stream: `day` and `load`."""
        found: dict[str, list[float]] = {"day": [], "load": []}
        for request, seen in self.offered.items():
            if (began := self.started.get(request)) is not None:
                found["load" if request in self.load else "day"].append((seen - began) * 1000)
        return found
