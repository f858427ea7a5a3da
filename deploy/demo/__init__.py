"""
`paidan demo`: the whole of Paidan on this machine, a day of requests from a real place, a load of real ones, and the sum.

Everything is done from outside, over HTTP: residents ask, simulated members answer, receivers count the messages. At the end
the ledger is replayed, and what it says is held against what the demo itself did.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from deploy.demo.playing import play
from deploy.demo.progress import Teller
from deploy.errors import Said, SetupError
from deploy.servers import require_room

TERMINATED = 128 + signal.SIGTERM


async def run(*, json_output: bool, data: Path | None) -> int:
    """
    Play the demo from start to end; the exit code: 0 where everything held, 1 where something did not.

    Args:
        json_output: print the summary as JSON and nothing else.
        data: where everything is kept; None for a folder that is removed at the end, and kept after a failure.
    Raises:
        SetupError: something outside stands in the way.
    """
    if data is not None and (data / "nats").exists():
        raise SetupError(
            Said(f"目录 {data} 已经用过", f"{data} has been used before"),
            Said(
                "演示要从空目录开始，请换一个或先删除",
                "the demo begins with an empty folder: name another or remove it",
            ),
        )
    folder = _folder(data)
    playing = asyncio.create_task(_play(folder, json_output=json_output))
    terminated = asyncio.Event()

    def on_terminate() -> None:
        terminated.set()
        playing.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, on_terminate)
    held = False
    try:
        held = await playing
    except asyncio.CancelledError:
        held = True  # stopped by hand: nothing to look into
        if terminated.is_set():
            return TERMINATED
        raise
    finally:
        if data is None and held:
            shutil.rmtree(folder, ignore_errors=True)
        elif not held:
            print(f"数据与日志保留在 {folder} / data and logs are kept in {folder}", file=sys.stderr)
    if not json_output:
        look = f"paidan up --data {data}" if data else "make up"
        print(f"接着自己试 / now try it yourself: {look}")
    return 0 if held else 1


def _folder(data: Path | None) -> Path:
    if data is None:
        return Path(tempfile.mkdtemp(prefix="paidan-demo-"))
    if (data / "secrets").exists():
        raise SetupError(
            Said(f"目录 {data} 已经用过", f"{data} has been used before"),
            Said(
                "演示要从空目录开始，请换一个或先删除",
                "the demo begins with an empty folder: name another or remove it",
            ),
        )
    require_room(data)
    return data


async def _play(folder: Path, *, json_output: bool) -> bool:
    """Play, and say what came of it; whether everything held."""
    with Teller(silent=json_output) as teller:
        summary = await play(folder, teller)
    if json_output:
        print(json.dumps(summary.document(), ensure_ascii=False, indent=2))
    else:
        summary.show(teller.console)
    return not summary.failures
