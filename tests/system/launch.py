"""
Starts a service's own code and, where a test has asked for it, ends or freezes it at one exact point.

    python -m tests.system.launch dispatch        # a `command=` of the stack

The test writes `<PAIDAN_TEST_POINTS>/<service>-<instance>.json`; the next call that fits takes the file away and acts. Nothing of
this is known to the services: the calls are wrapped here, from outside.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from shared.bus import Bus

SERVICE = sys.argv[1] if len(sys.argv) > 1 else ""
POINT = Path(os.environ.get("PAIDAN_TEST_POINTS", ".")) / f"{SERVICE}-{os.environ.get('PAIDAN_INSTANCE', '1')}.json"


def reached(where: str, words: Iterable[str]) -> None:
    """End or freeze here, if that is what the file says. `where` is `<before|after> <call>`; `words` are what the call is about."""
    if not POINT.exists():
        return
    point = json.loads(POINT.read_text())
    if point["where"] == where and any(point["about"] in word for word in words):
        POINT.unlink()
        if point["do"] == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        else:
            os._exit(137)


def wrapped(name: str, call: Callable[..., Awaitable[Any]], words: Callable[..., list[str]]) -> Callable[..., Any]:
    """The call, with a point before and one after it."""

    async def with_points(*args: Any, **more: Any) -> Any:
        about = words(*args)
        reached(f"before {name}", about)
        result = await call(*args, **more)
        reached(f"after {name}", about)
        return result

    return with_points


def main() -> None:
    """Wrap what can be a point, then be the service; an instance of dispatch for one district, where the test says so."""
    if SERVICE == "dispatch" and (districts := os.environ.get("PAIDAN_TEST_DISTRICTS")):
        os.environ["PAIDAN_DISTRICTS"] = json.loads(districts)[os.environ.get("PAIDAN_INSTANCE", "1")]
    Bus.commit = wrapped("commit", Bus.commit, lambda _, messages: [f"{m.subject} {m.data!r}" for m in messages])  # type: ignore[method-assign]
    if SERVICE == "ledger":
        from services.ledger.store import Store

        Store.append = wrapped("append", Store.append, lambda _, batch: [leaf.type or "" for leaf in batch])  # type: ignore[method-assign]
    del sys.argv[1]
    runpy.run_module(f"services.{SERVICE}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
