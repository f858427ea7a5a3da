"""The offices' own apps: each on the bus with what `paidan office add` gave it, keeping what it hears of each case."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import orjson

from deploy import admitting
from deploy.running import Running
from deploy.stack import Stack
from shared.bus import Bus, Request

APP = "board"


class Board:
    """
    What the app of one office heard over the bus.

    Attributes:
        heard: ids of facts by case, in the order in which they came.
    """

    def __init__(self, district: str) -> None:
        self.district = district
        self.heard: dict[str, list[str]] = defaultdict(list)

    async def hear(self, message: Request) -> None:
        """One message from `live.evt.>`."""
        event = orjson.loads(message.data)
        self.heard[event.get("correlationid", "")].append(event["id"])


class Boards:
    """The apps of some offices, connected with their own accounts."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._buses: list[Bus] = []
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
            self._buses.append(bus)
            self.by_district[district] = Board(district)
            await bus.serve("live.evt.>", self.by_district[district].hear)

    async def end(self) -> None:
        """Close the connections."""
        for bus in self._buses:
            await bus.drain()
