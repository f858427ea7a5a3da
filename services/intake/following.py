"""What intake knows from the stream: the register, and the open requests of the recent past."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Container
from contextlib import suppress
from datetime import datetime, timedelta
from operator import itemgetter
from time import monotonic
from typing import TypeVar

from services.intake.classifying import Catalogue
from services.intake.matters import Matter, Matters
from services.intake.metrics import MALFORMED
from services.intake.places import Places, standing
from shared.bus import Bus, Delivery
from shared.envelope import Envelope, decode
from shared.errors import BusError, MalformedError, RefusedError, UnavailableError
from shared.facts import AreaSet, RegisterApplied, RequestSubmitted, RequestWithdrawn, TaskClosed, TaskDone
from shared.register import SUBJECTS, Register, evolve
from shared.telemetry import logger

Answer = TypeVar("Answer")

MATTERS_SUBJECTS = (
    "evt.*.intake.*.request.submitted.*",
    "evt.*.intake.*.request.withdrawn",
    "evt.*.dispatch.*.task.done",
    "evt.*.dispatch.*.task.closed",
)
WAIT_S = 1.0
VERSION_WITHIN_S = 2.0
FIRST_WAIT_S = 0.2
"""Where nothing has come for so long at the start, nothing was there; a link that is missed is not a request that is missed."""
LOOK_AGAIN_S = 900
"""Areas are dated by local days, and no zone begins its day off a quarter of an hour."""


class Known:
    """
    One applied register, ready to be searched.

    Attributes:
        sequence: of the message that made it whole: what names this version of the register.
    """

    def __init__(self, register: Register, sequence: int) -> None:
        self.register = register
        self.sequence = sequence
        self.catalogue = Catalogue(register)
        self._places = Places(())
        self._looked = -1

    def places(self, now: datetime) -> Places:
        """The areas as they stand now; searched anew each quarter of an hour, built anew only where one has changed."""
        quarter = int(now.timestamp()) // LOOK_AGAIN_S
        if quarter != self._looked:
            areas = standing(self.register, now)
            if areas != self._places.areas:
                self._places = Places(areas)
                if self._places.unsound:
                    logger().warning("polygons_unsound", areas=self._places.unsound)
            self._looked = quarter
        return self._places

    @property
    def window_max(self) -> timedelta:
        """How far back an open request can be the same matter."""
        return timedelta(seconds=max((item.same_window_s for item in self.register.items.values()), default=0))


class Following:
    """
    Two folds of the stream that never end: run them with `run`.

    Attributes:
        matters: open requests; complete once `caught_up`.
        under_way: the requests that this instance is committing, and adds itself.
    """

    def __init__(self, bus: Bus, clock: Callable[[], datetime]) -> None:
        self._bus = bus
        self._clock = clock
        self._known: Known | None = None
        self._applied = asyncio.Event()
        self._register = Register()
        self._versions: list[tuple[int, Register]] = []
        self._created: str | None = None
        self.matters = Matters()
        self.under_way: Container[str] = ()
        self.caught_up = False

    @property
    def known(self) -> Known:
        """The register in force. Raises RefusedError `not_ready` until one has been applied and read."""
        if self._known is None:
            raise RefusedError("not_ready", retry_after=5)
        return self._known

    async def version(self, sequence: int) -> Register:
        """
        The register as it stood at a sequence; versions share what has not changed, so all of them are kept.

        Raises:
            UnavailableError: another instance knows this version, and we have not come to it in time.
        """
        ends = monotonic() + VERSION_WITHIN_S
        while not self._versions or self._versions[-1][0] < sequence:
            if monotonic() > ends:
                raise UnavailableError(f"the register has not come to sequence {sequence}")
            await asyncio.sleep(0.02)
        after = bisect_right(self._versions, sequence, key=itemgetter(0))
        return self._versions[max(after - 1, 0)][1]

    def areas(self) -> tuple[AreaSet, ...]:
        """Every area as it stands now. Raises RefusedError `not_ready`."""
        return self.known.places(self._clock()).areas

    async def run(self) -> None:
        """Follow until cancelled."""
        tasks = {asyncio.create_task(self._follow_register()), asyncio.create_task(self._follow_matters())}
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
        finally:
            # Before Python 3.12 `wait_for` may swallow a cancellation that meets its result: say it until it is heard.
            while pending := {task for task in tasks if not task.done()}:
                for task in pending:
                    task.cancel()
                await asyncio.wait(pending, timeout=0.5)

    async def missing(self) -> dict[str, str]:
        """What is not there yet, by name."""
        missing = {}
        if self._known is None:
            missing["register"] = "none has been applied: paidan register apply"
        elif not self.caught_up:
            missing["matters"] = "still reading the open requests"
        for stream in ("EVENTS", "SEALED", "KEYS"):
            try:
                state = await self._bus.state(stream)
            except BusError as why:
                missing["streams"] = f"{stream}: {why}"
            else:
                if stream == "EVENTS" and self._created not in (None, state.created):
                    missing["streams"] = "EVENTS: the stream was made anew: restart intake"
        return missing

    async def _follow_register(self) -> None:
        last = await self._until_answered(lambda: self._bus.last(SUBJECTS))
        self._created = (await self._until_answered(self._bus.state)).created
        target = last.sequence if last else 0
        reader = self._bus.reader([SUBJECTS], after=0)
        while True:
            for delivery in await reader.wait(WAIT_S):
                self._fold(delivery, target)

    def _fold(self, delivery: Delivery, target: int) -> None:
        if envelope := _read(delivery):
            self._register = evolve(self._register, envelope.fact)
            # A document counts once it is whole: one of several batches when the last of them has come.
            if isinstance(envelope.fact, RegisterApplied) and not envelope.fact.more:
                self._versions.append((delivery.sequence, self._register))
        if delivery.sequence < target or not self._versions:
            return  # at the start only the last whole document is made ready to be searched
        sequence, register = self._versions[-1]
        if self._known is None or self._known.sequence < sequence:
            self._known = Known(register, sequence)
            self._known.places(self._clock())
            self._applied.set()
            logger().info("register_applied", applied=register.applied, digest=register.digest)

    async def _follow_matters(self) -> None:
        await self._applied.wait()
        since = self._clock() - self.known.window_max
        after = await self._until_answered(lambda: first_since(self._bus, since)) - 1
        target = (await self._until_answered(self._bus.state)).last
        reader = self._bus.reader(MATTERS_SUBJECTS, after=after)
        while True:
            deliveries = await reader.wait(WAIT_S if self.caught_up else FIRST_WAIT_S)
            for delivery in deliveries:
                request_id = delivery.subject.rpartition(".")[2]
                if request_id in self.matters or request_id in self.under_way:
                    continue  # our own: its door adds it, or has
                if envelope := _read(delivery):
                    follow(self.matters, envelope)
            if not self.caught_up:
                self.caught_up = not deliveries or reader.after >= target or reader.pending == 0
            self.matters.forget_before((self._clock() - self.known.window_max).timestamp())

    async def _until_answered(self, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        while True:
            with suppress(BusError):
                return await ask()
            await asyncio.sleep(0.5)


def follow(matters: Matters, envelope: Envelope) -> None:
    """One more fact about which requests are open."""
    match envelope.fact:
        case RequestSubmitted() as fact:
            matters.add(Matter(fact.request_id, fact.item, fact.area, fact.point, envelope.time.timestamp()))
        case RequestWithdrawn(request_id=request_id):
            matters.close(request_id)
        case TaskDone() | TaskClosed() if envelope.case is not None:
            matters.close(envelope.case)
        case _:
            pass


async def first_since(bus: Bus, since: datetime) -> int:
    """The first sequence that the stream took at or after a moment: a search by halves, about 20 reads for a million facts."""
    state = await bus.state()
    low, high = max(state.first, 1), state.last + 1
    while low < high:
        middle = (low + high) // 2
        stored = await bus.at(middle)
        if stored is not None and stored.recorded < since:
            low = middle + 1
        else:
            high = middle
    return low


def _read(delivery: Delivery) -> Envelope | None:
    try:
        return decode(delivery.subject, delivery.data)
    except MalformedError as why:
        MALFORMED.labels(why.code).inc()
        logger().warning("message_malformed", sequence=delivery.sequence, code=why.code)
        return None
