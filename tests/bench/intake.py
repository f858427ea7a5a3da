"""
POST /v1/requests: accepted requests a second of one intake process, beside a bare route that makes the same writes.

Both serve on the same real nats-server, in turns; the load comes from a process of its own with 64 connections.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import httpx2

from deploy.servers import HOST, NatsServer, free_port
from shared.bus import Bus
from tests.bench.ground import DISTRICT, apply_register
from tests.bench.harness import ROOT, Row, Workshop, cpu_s, end, start_python, until

CONCURRENCY = 64


async def run(workshop: Workshop) -> list[Row]:
    """Ours and bare in turns, after a short warm-up of each."""
    many, rounds = workshop.size(6_000, 300), workshop.size(3, 1)
    async with workshop.bus_server("intake") as (server, bus):
        await apply_register(bus)
        log = workshop.folder / "intake.log"
        ours_port, bare_port = free_port(), free_port()
        environment = _environment(workshop, server, ours_port)
        ours = start_python("-m", "services.intake", log=log, environment=environment)
        bare = None
        try:
            await _ready(ours_port, "/readyz")
            await _drive(ours_port, workshop.size(500, 50), 0)
            sizes = await _sizes(bus)
            workshop.say(f"intake: a request is {sizes}")
            bare = start_python(
                *("-m", "tests.bench.bare_intake", str(bare_port), str(sizes["fact"])),
                log=workshop.folder / "bare_intake.log",
                environment=environment,
            )
            await _ready(bare_port, "/openapi.json")
            await _drive(bare_port, workshop.size(500, 50), 0)
            rates: dict[str, list[float]] = {"ours": [], "bare": []}
            work: dict[str, Any] = {}
            for n in range(rounds):
                for name, port, process in (("ours", ours_port, ours), ("bare", bare_port, bare)):
                    used = cpu_s(process.pid), cpu_s(server.pid)
                    result = await _drive(port, many, n + 1)
                    rates[name].append(many / result["seconds"])
                    work[name] = {
                        "ms": result["ms"],
                        "process_cpu_us": round((cpu_s(process.pid) - used[0]) * 1e6 / many),
                        "nats_cpu_us": round((cpu_s(server.pid) - used[1]) * 1e6 / many),
                    }
                    workshop.say(f"intake {n + 1}/{rounds}: {name} {rates[name][-1]:.0f} requests/s {work[name]}")
        finally:
            end(ours)
            if bare:
                end(bare)
    return [
        Row.of(
            "intake", rates["ours"], rates["bare"], "requests/s", target="≥ 0.60", requests=many, bytes=sizes, work=work
        )
    ]


def _environment(workshop: Workshop, server: NatsServer, port: int) -> dict[str, str]:
    identities = workshop.identities
    return {
        "NATS_URL": server.url,
        "PAIDAN_NATS_SEED_FILE": str(identities.seed_file("intake")),
        "PAIDAN_HTTP_PORT": str(port),
        "PAIDAN_JWKS_FILE": str(identities.jwks_file),
        "PAIDAN_SECRETS_DIR": str(identities.secrets_dir("intake")),
        "PAIDAN_LOG_FORMAT": "json",
        # The district is outside the rate limit by the register; should that ever change, the bucket is deep.
        "PAIDAN_RATE_PER_S": "1000000",
        "PAIDAN_RATE_BURST": "1000000",
        "PAIDAN_HTTP_RATE_PER_S": "0",
    }


async def _ready(port: int, path: str) -> None:
    async with httpx2.AsyncClient(trust_env=False, timeout=2) as client:

        async def there() -> bool:
            try:
                return (await client.get(f"http://{HOST}:{port}{path}")).status_code == 200
            except httpx2.HTTPError:
                return False

        await until(f"port {port} ready", there, 30, 0.05)


async def _drive(port: int, many: int, seed: int) -> dict[str, Any]:
    generator = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.load", HOST, str(port), str(many), str(CONCURRENCY), str(seed)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await generator.communicate()
    result: dict[str, Any] = json.loads(out)
    if result["statuses"] != {"201": many}:
        raise RuntimeError(f"not all were accepted: {result['statuses']}")
    return result


async def _sizes(bus: Bus) -> dict[str, int]:
    """What one request stores, bytes, by the last of each."""
    stored = {
        "fact": await bus.last(f"evt.{DISTRICT}.intake.*.request.submitted.*"),
        "ciphertext": await bus.last(f"sealed.{DISTRICT}.>", stream="SEALED"),
        "key": await bus.last(f"keys.{DISTRICT}.*", stream="KEYS"),
    }
    return {name: len(found.data) if found else 0 for name, found in stored.items()}
