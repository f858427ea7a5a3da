"""
How fast the whole log is written out in each format, and in how much memory: one process per export.

The bare limit is the driver's cursor over the same documents in the same order, decoded and dropped.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from typing import Any, get_args

from deploy.servers import DATABASE
from services.ledger.exporting.reading import Ground
from services.ledger.exporting.streaming import Export, Format, document, writer
from services.ledger.replay import CHUNK, Replay
from services.ledger.store import Selection, Store
from tests.bench.harness import Row, Workshop
from tests.bench.ledger_ground import kept
from tests.bench.ledger_replay import count, documents

MEMORY_MIB = 300
"""That much may be held at most, however long the log is: most of it is the program."""


async def run(workshop: Workshop) -> list[Row]:
    """Each format, and the cursor before it."""
    log, rows = await kept(workshop), []
    for format in get_args(Format):
        began = time.perf_counter()
        many = await count(documents(log, CHUNK, {"b": 1}))
        cursor = many / (time.perf_counter() - began)
        told = await _in_a_process(log.mongod.auditor_uri, log.origin, format)
        rate = told["leaves"] / told["seconds"]
        name = f"ledger export {format}"
        workshop.say(f"{name}: {rate:.0f} leaves/s, {told['mib']:.0f} MiB of memory")
        rows.append(Row.of(name, [rate], [cursor], "leaves/s", leaves=told["leaves"], bytes=told["bytes"]))
        rows.append(Row.of(f"{name} memory", [told["mib"]], [MEMORY_MIB], "MiB", target="≤ 1.00"))
    return rows


async def _in_a_process(uri: str, origin: str, format: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__, uri, origin, format), stdout=asyncio.subprocess.PIPE
    )
    told, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"the export as {format} failed")
    found: dict[str, Any] = json.loads(told)
    return found


async def _export(uri: str, origin: str, format: Format) -> dict[str, Any]:
    store = Store.connect(uri, DATABASE)
    try:
        newest = await store.checkpoint()
        assert newest
        began, size = time.perf_counter(), 0
        asked = Replay(origin, Selection(), newest.size, note=newest.note)
        export = await Export.of(store, asked, format)
        made = writer(format, await Ground.of(store, newest.size))
        async for chunk in document(store, export, made, asyncio.Lock()):
            size += len(chunk)
        seconds = time.perf_counter() - began
    finally:
        store.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "leaves": export.leaves, "bytes": size, "mib": peak}


if __name__ == "__main__":
    _, uri, origin, format = sys.argv
    print(json.dumps(asyncio.run(_export(uri, origin, format))))  # type: ignore[arg-type]
