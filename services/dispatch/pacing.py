"""When what comes over the bus begins: so far apart in each district, its callers in turn, and only so many tokens checked."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from time import monotonic

from shared.auth import Caller, Doorkeeper, UnknownKeyError
from shared.errors import RefusedError
from shared.limiting import Limits, Line

CHECKS_PER_S, CHECKS_BURST = 200, 200
"""Tokens of one district that were not seen before: a forged one costs more than all else that is done for it."""
THEIRS_PER_S, THEIRS_BURST = 10, 20
"""Those of them that name the same person: a flood under one name leaves room for those under others."""
NOBODY = "-"
"""Who shows no valid token waits behind all others who do not, and before nobody else."""


class LetGoError(Exception):
    """Nobody answers this: there is more than can be. Whoever asked asks again with the same id, later."""


class Pace:
    """
    Lets what a district asks over the bus begin, one at a time.

    Args:
        apart_s: between two of one district.
        most_s: what would wait longer is let go.
        limited: whether a district waits at all.
    """

    def __init__(self, doorkeeper: Doorkeeper, apart_s: float, most_s: float, limited: Callable[[str], bool]) -> None:
        self._doorkeeper = doorkeeper
        self._limited = limited
        self._checks = Limits(CHECKS_PER_S, CHECKS_BURST)
        self._theirs = Limits(THEIRS_PER_S, THEIRS_BURST)
        self._lines: defaultdict[str, Line[asyncio.Future[bool]]] = defaultdict(lambda: Line(apart_s, most_s))
        self._calling: set[str] = set()

    async def admit(self, district: str, token: str | None, *, replies: bool = False) -> Caller:
        """
        The caller, when it is their turn.

        Raises:
            RefusedError: as `Doorkeeper.admit`, when it is the turn of those who have no valid token.
            LetGoError: there is no turn for it.
        """
        try:
            if token and self._limited(district) and self._doorkeeper.known(token) is None:
                self._count(district, await self._claimed(token))
            caller = await self._doorkeeper.admit(token, replies=replies)
        except RefusedError:
            await self.turn(district, NOBODY)
            raise
        await self.turn(district, caller.id)
        return caller

    async def turn(self, district: str, whose: str) -> None:
        """Wait for it. Raises LetGoError where there is none."""
        if not self._limited(district):
            return
        turn = asyncio.get_running_loop().create_future()
        if not self._lines[district].add(whose, turn, monotonic()):
            raise LetGoError
        if district not in self._calling:
            self._call(district)
        if not await turn:
            raise LetGoError

    async def _claimed(self, token: str) -> str:
        """Who it says it is for; refused here for nothing is what takes no look at the signature. Raises RefusedError."""
        try:
            return self._doorkeeper.claimed(token)
        except UnknownKeyError as why:
            await why.source.refresh()
        return self._doorkeeper.claimed(token)

    def _count(self, district: str, sub: str) -> None:
        try:
            self._theirs.take(f"{district} {sub}", now_s := monotonic())
            self._checks.take(district, now_s)
        except RefusedError:
            raise LetGoError from None

    def _call(self, district: str) -> None:
        """Whoever is next; and again when it is time, as long as somebody waits."""
        line, now_s = self._lines[district], monotonic()
        let_go, taken = line.next(now_s)
        for turn in let_go:
            _say(turn, taken=False)
        if taken is not None:
            _say(taken, taken=True)
        wait_s = line.wait_s(now_s)
        if wait_s is None:
            self._calling.discard(district)
        else:
            self._calling.add(district)
            asyncio.get_running_loop().call_later(wait_s, self._call, district)


def _say(turn: asyncio.Future[bool], *, taken: bool) -> None:
    if not turn.done():
        turn.set_result(taken)
