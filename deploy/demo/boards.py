"""The offices' own apps: each on the bus with what `paidan office add` gave it, keeping what it hears and acting by command."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

from deploy import admitting
from deploy.errors import Said, SetupError
from deploy.running import Running
from deploy.stack import Stack
from shared.bus import Bus, Request
from shared.ids import new_id

APP = "board"
WITHIN_S = 20.0


class Heard(NamedTuple):
    """One fact, as an app heard it."""

    id: str
    name: str
    data: dict[str, Any]


class Board:
    """
    What the app of one office heard over the bus.

    Attributes:
        heard: by case, in the order in which it came.
    """

    def __init__(self, district: str) -> None:
        self.district = district
        self.heard: dict[str, list[Heard]] = defaultdict(list)

    async def hear(self, message: Request) -> None:
        """One message from `live.evt.>`."""
        event, tokens = orjson.loads(message.data), message.subject.split(".")
        self.heard[event.get("correlationid", "")].append(Heard(event["id"], f"{tokens[5]}.{tokens[6]}", event["data"]))

    def ids(self, case: str) -> list[str]:
        """The facts of a case."""
        return [fact.id for fact in self.heard[case]]

    async def first(self, case: str, name: str) -> dict[str, Any]:
        """The data of the first such fact of a case, once it has come. Raises TimeoutError."""
        async with asyncio.timeout(WITHIN_S):
            while True:
                for fact in self.heard[case]:
                    if fact.name == name:
                        return fact.data
                await asyncio.sleep(0.01)


class Boards:
    """The apps of some offices, connected with their own accounts."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.buses: dict[str, Bus] = {}
        self.by_district: dict[str, Board] = {}

    async def connect(self, districts: Sequence[str]) -> None:
        """
        Let each office's app in, and listen as it.

        Raises:
            SetupError: the ledger, or the bus, did not let it in.
            UnavailableError: the bus cannot be reached with these credentials.
        """
        running = Running.find(self._stack.data)
        for district in districts:
            let_in = await admitting.add(running, district, APP, people=None, why="演示 / demo")
            assert let_in.file
            credentials = let_in.file.read_text()
            bus = await Bus.connect(self._stack.bus_url, name=APP, seed=credentials, ca_file=self._stack.bus_ca_file)
            self.buses[district] = bus
            self.by_district[district] = Board(district)
            await bus.serve("live.evt.>", self.by_district[district].hear)

    async def ask_over(self, case: asyncio.Future[str], asking: str, asked: str) -> None:
        """
        One office's app asks the other office to take a case over; the other's refuses, for there is an agreement.

        Raises:
            SetupError: a desk refused the command. TimeoutError: somebody did not hear of it.
        """
        request = await case
        task = (await self.by_district[asking].first(request, "task.opened"))["task_id"]
        await self._command(asking, "hand_over", {"task": task, "to": asked, "reason": "ownership_unclear"})
        received = await self.by_district[asked].first(request, "handover.received")
        answer = {"handover": received["handover_id"], "reason": "wrong_place", "basis": "agreement:agr-xinxiang"}
        await self._command(asked, "refuse", answer)
        await self.by_district[asking].first(request, "handover.returned")

    async def _command(self, district: str, verb: str, data: dict[str, Any]) -> None:
        token = self._stack.token("dispatcher", district=district, sub=f"duty-{district}")
        command = orjson.dumps({"id": new_id(), "token": token, "data": data})
        answer = orjson.loads(
            await self.buses[district].request(f"cmd.{district}.desk.{verb}", command, timeout_s=WITHIN_S)
        )
        if problem := answer.get("problem"):
            raise SetupError(Said(problem["title"], problem["title_en"]), Said(problem["detail"], problem["detail_en"]))

    async def end(self) -> None:
        """Close the connections."""
        for bus in self.buses.values():
            await bus.drain()
