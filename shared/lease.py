"""
The lease of a leader: who may work, so that two do not do the same twice for nothing. It only spares work; the fence is the safety.

A key with a time to live of 3 s, renewed each second and given up after 2 s by the holder's own monotonic clock. A standby
that gets no answer from the holder because nobody listens there (`NoResponders`) takes the lease at once, by revision.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from shared.bus import Bus, Request, Subscription
from shared.errors import BusError, ConflictError, UnavailableError

TTL_S = 3
HELD_S = 2.0
RENEW_S = 1.0
BUCKET = "KV_LEASES"
NO_RESPONDERS = 503


class Lease:
    """
    The lease on one key, as seen by one instance.

    Attributes:
        epoch: the lease's revision; grows with every renewal and every holder.
    """

    def __init__(self, bus: Bus, *, scope: str, district: str, holder: str) -> None:
        self._bus = bus
        self._subject = f"$KV.LEASES.{scope}.{district}"
        self._alive = f"{scope}.{district}.alive."
        self._holder = holder
        self._until = 0.0
        self._keeper: asyncio.Task[None] | None = None
        self._answering: Subscription | None = None
        self._renewing = asyncio.Lock()
        self.epoch = 0

    @property
    def held(self) -> bool:
        """Whether we may work, by our own clock."""
        return time.monotonic() < self._until

    async def open(self) -> None:
        """Answer those who ask whether we live."""

        async def here(request: Request) -> None:
            await request.answer(b"1")

        if self._answering:
            return  # opened by an earlier leadership of this instance
        self._answering = await self._bus.serve(self._alive + self._holder, here)

    async def acquire(self) -> bool:
        """Try once to get it; keeps it renewed from then on. False where somebody else holds it or the bus is away."""
        started = time.monotonic()
        try:
            held = await self._bus.last(self._subject, stream=BUCKET, timeout_s=1)
            if (
                held is not None
                and held.data
                and held.data.decode() != self._holder
                and await self._lives(held.data.decode())
            ):
                return False
            self.epoch = await self._write(expect=held.sequence if held else 0)
        except BusError:
            return False
        self._until = started + HELD_S
        self._keeper = asyncio.create_task(self._keep())
        return True

    async def confirm(self) -> bool:
        """
        Whether it is ours in truth, and not by our own clock alone: while the bus was away a standby may have taken it.

        Raises:
            UnavailableError: the bus does not say.
        """
        try:
            await self._renew()
        except ConflictError:
            self._until = 0.0
            return False
        return True

    async def release(self) -> None:
        """Let the next one have it at once."""
        if self._keeper:
            self._keeper.cancel()
            self._keeper = None
        if self.held:
            self._until = 0.0
            with suppress(BusError):
                await self._bus.put(self._subject, b"", expect=self.epoch, ttl_s=1, timeout_s=1)

    async def close(self) -> None:
        """Release, and answer no more."""
        await self.release()
        if self._answering:
            await self._answering.end()

    async def _write(self, *, expect: int) -> int:
        return await self._bus.put(self._subject, self._holder.encode(), expect=expect, ttl_s=TTL_S, timeout_s=1)

    async def _lives(self, holder: str) -> bool:
        """Whether the holder has a connection; a frozen one has, and loses the lease by its time to live."""
        try:
            await self._bus.request(self._alive + holder, b"", timeout_s=0.3)
        except UnavailableError as why:
            return why.code != NO_RESPONDERS
        return True

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            try:
                await self._renew()
            except ConflictError:
                self._until = 0.0
                return
            except BusError:
                continue

    async def _renew(self) -> None:
        async with self._renewing:
            started = time.monotonic()
            self.epoch = await self._write(expect=self.epoch)
            self._until = started + HELD_S
