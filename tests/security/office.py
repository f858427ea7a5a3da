"""A whole stack with the demo's register and members, started once for the tests of what is forbidden over HTTP."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import httpx2

from deploy.cli import DEMO_REGISTER
from deploy.stack import Stack

WUCHANG, QINGSHAN, HONGSHAN = "420106", "420107", "420111"
OWN, ENCLAVE, NEIGHBOUR = "oujing-b4", "xinxiang", "hongwei-1d"
"""Areas: of 武昌 alone; in 青山 and served by 武昌; of 青山 alone."""
PACE = {"offer": {"amount": 2, "unit": "hours"}, "close_after": {"amount": 1, "unit": "hours"}}
HEADER = "id,kind,areas,skills,capacity,duty,district,name,phone,language,quiet,channels"
SKILLS = "plumbing electrical handiwork lift patrol sanitation mediation care errands paperwork"
AREAS = {WUCHANG: f"{OWN} {ENCLAVE}", QINGSHAN: NEIGHBOUR, HONGSHAN: "heping-5w"}
T = TypeVar("T")


def members(district: str) -> bytes:
    """Forty of an office who can do everything at any hour: `m-<district>-<n>`."""
    rows = [
        f"m-{district}-{n},grid_member,{AREAS[district]},{SKILLS},20,,{district},某人,1990000{n:04},zh-CN,00:00-00:00,console"
        for n in range(40)
    ]
    return "\n".join([HEADER, *rows]).encode()


class Office:
    """The stack, and people who call it."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.http = httpx2.Client(timeout=30, trust_env=False)

    def token(self, sub: str, district: str, *roles: str) -> str:
        """Somebody's."""
        return self.stack.token(*roles, district=district, sub=sub)

    def call(self, method: str, service: str, path: str, token: str | None = None, **more: Any) -> httpx2.Response:
        """One request; a POST has a key of its own."""
        headers = {"Idempotency-Key": uuid4().hex} if method == "POST" else {}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        return self.http.request(method, self.stack.urls[service] + path, headers=headers, **more)

    def get(self, service: str, path: str, token: str | None = None, /, **params: Any) -> httpx2.Response:
        """GET."""
        return self.call("GET", service, path, token, params=params)

    def post(self, service: str, path: str, token: str | None, body: Any, /, **params: Any) -> httpx2.Response:
        """POST."""
        return self.call("POST", service, path, token, json=body, params=params)

    def submitted(self, area: str, text: str = "楼道路灯不亮了") -> dict[str, Any]:
        """A resident's request, once its case is in the ledger and its task has been offered: `id tracking_code task offered`."""
        body = {"text": text, "location": {"area": area}, "contact": {"name": "测试居民", "phone": "19900000000"}}
        answer = self.post("intake", "/v1/requests", None, body)
        assert answer.status_code == 201, answer.text
        request: dict[str, Any] = answer.json()
        auditor = self.token("staff-0", "*", "auditor")
        dispatcher = self.token("staff-0", "*", "dispatcher")

        def task() -> dict[str, Any] | None:
            case = self.get("ledger", f"/v1/cases/{request['id']}", auditor).json().get("case", {})
            if not case.get("task"):
                return None
            path = f"/v1/tasks/{case['task']}"
            found: dict[str, Any] = self.get("dispatch", path, dispatcher, district=case["district"]).json()
            return found if found.get("offered") else None

        found = eventually(task)
        return {**request, "task": found["id"], "offered": found["offered"]}


def eventually(what: Callable[[], T | None], within_s: float = 20) -> T:
    """What it gives once it gives something."""
    ends = time.monotonic() + within_s
    while (found := what()) is None:
        assert time.monotonic() < ends, "not in time"
        time.sleep(0.05)
    return found


@contextmanager
def running(data: Path) -> Iterator[Office]:
    """The stack, in a thread of its own."""
    ready, stop = threading.Event(), threading.Event()
    held: list[Stack] = []
    failed: list[BaseException] = []

    async def run() -> None:
        # Tests of one caller's pace are elsewhere; a fuzzer is one caller.
        quick = {"PAIDAN_CALLER_RATE_PER_S": "0", "PAIDAN_HTTP_RATE_PER_S": "0", "PAIDAN_LOGIN_MISSES_PER_S": "0"}
        async with Stack(data, None, None, environment={"*": quick}) as stack:
            document = json.loads(DEMO_REGISTER.read_text())
            for policy in document["policies"]:
                policy |= PACE
                policy.pop("quiet", None)
            await stack.apply_register(document, why="test")
            for district in (WUCHANG, QINGSHAN, HONGSHAN):
                await stack.enrol(members(district), district)
            held.append(stack)
            ready.set()
            await asyncio.to_thread(stop.wait)

    def main() -> None:
        try:
            asyncio.run(run())
        except BaseException as why:
            failed.append(why)
            ready.set()

    thread = threading.Thread(target=main, name="stack")
    thread.start()
    try:
        assert ready.wait(90)
        if failed:
            raise failed[0]
        yield Office(held[0])
    finally:
        stop.set()
        thread.join(60)
