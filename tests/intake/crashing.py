"""A process that ends at one exact change of what is stored."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any


class Crash(BaseException):
    """The process ends here."""


class Crashing:
    """A bus that ends the process before its n-th change, or after it."""

    def __init__(self, bus: Any, changes: int, *, after: bool) -> None:
        self._bus, self._left, self._after = bus, changes, after

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._bus, name)
        if name in ("erase", "replace"):  # made of the others: so that these can be counted
            return getattr(type(self._bus), name).__get__(self)
        return self._counted(call) if name in ("put", "delete", "commit") else call

    def _counted(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def counted(*args: Any, **more: Any) -> Any:
            self._left -= 1
            if self._left < 0 and not self._after:
                raise Crash
            result = await call(*args, **more)
            if self._left < 0:
                raise Crash
            return result

        return counted
