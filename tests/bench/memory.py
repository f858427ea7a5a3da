"""Resident memory: each service idle after its start, and the desk with 100,000 open tasks. The limits are what was agreed."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2

from deploy.servers import HOST, free_port
from tests.bench.aged import aged
from tests.bench.ground import DISTRICT
from tests.bench.harness import Row, Workshop, end, resident_mib, start_python, until
from tests.bench.pipe import running

IDLE_MIB = 150
DESK_MIB = 400
SETTLE_S = 3.0


async def run(workshop: Workshop) -> list[Row]:
    """Idle services, then the loaded desk."""
    rows = []
    async with running(workshop, "memory") as (stack, _):
        await asyncio.sleep(SETTLE_S)
        for service in stack.services:
            pid = stack.pids[service]
            assert pid
            rows.append(_row(f"memory {service}", *resident_mib(pid), IDLE_MIB))
    workshop.say("memory: " + ", ".join(f"{row.name.split()[1]} {row.value:.0f} MiB" for row in rows))
    rows.append(await _loaded(workshop))
    return rows


def _row(name: str, now: float, peak: float, limit: int, **notes: Any) -> Row:
    return Row(name, now, limit, "MiB", 1, now, now, "≤ 1.00", {"peak": round(peak), **notes})


async def _loaded(workshop: Workshop) -> Row:
    """A dispatch process on the old stream, once it leads."""
    old = await aged(workshop)
    port = free_port()
    environment = {
        "NATS_URL": old.server.url,
        "PAIDAN_NATS_SEED_FILE": str(workshop.identities.seed_file("dispatch")),
        "PAIDAN_HTTP_PORT": str(port),
        "PAIDAN_JWKS_FILE": str(workshop.identities.jwks_file),
        "PAIDAN_LOG_FORMAT": "json",
    }
    process = start_python("-m", "services.dispatch", log=workshop.folder / "desk.log", environment=environment)
    leading = f'paidan_leading{{district="{DISTRICT}",service="dispatch"}} 1.0'
    try:
        async with httpx2.AsyncClient(trust_env=False, timeout=30) as client:

            async def leads() -> bool:
                if process.poll() is not None:
                    raise RuntimeError((workshop.folder / "desk.log").read_text()[-2000:])
                try:
                    return leading in (await client.get(f"http://{HOST}:{port}/metrics")).text
                except httpx2.HTTPError:
                    return False

            await until("the desk leads", leads, 300, 0.2)
        await asyncio.sleep(SETTLE_S)
        now, peak = resident_mib(process.pid)
    finally:
        end(process)
    open_tasks = old.past.tasks * 4 // 10
    workshop.say(f"memory: desk with about {open_tasks} open tasks {now:.0f} MiB (peak {peak:.0f})")
    return _row("memory desk", now, peak, DESK_MIB, open_tasks=open_tasks, facts=old.past.facts)
