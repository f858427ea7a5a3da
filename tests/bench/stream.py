"""
The live stream to 500 clients: events a second when they come as fast as they can, and how late they are when they come one by one.

Ours is a dispatch process with its desk. The bare limit pulls the same facts and writes the same bytes to as many sockets, without a
filter, a position or HTTP. The clients are raw sockets in a process of their own, the same for both.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

from deploy.identities import issue_token
from deploy.servers import HOST, NatsServer, free_port
from shared.bus import Bus, Message
from shared.envelope import Envelope
from shared.facts import TaskAccepted, instant
from shared.ids import new_id
from tests.bench.ground import DISTRICT as TRUSTED
from tests.bench.ground import apply_register
from tests.bench.harness import ROOT, Row, Workshop, cpu_s, end, percentile, resident_mib, start_python, until

DISTRICT = "990002"
"""One that has no desk here: its facts are nobody's input, only watched."""
BATCH = 20
EVERY_S = 0.02


async def run(workshop: Workshop) -> list[Row]:
    """Ours and bare in turns."""
    clients, many, single = workshop.size(500, 20), workshop.size(4_000, 200), workshop.size(150, 20)
    rounds = workshop.size(3, 1)
    rates: dict[str, list[float]] = {"ours": [], "bare": []}
    lags: dict[str, list[float]] = {"ours": [], "bare": []}
    work: dict[str, dict[str, float]] = {}
    token = issue_token(workshop.identities, "staff-1", TRUSTED, ["dispatcher"])
    async with workshop.bus_server("stream") as (server, bus):
        await apply_register(bus)
        ports = {"ours": free_port(), "bare": free_port()}
        for n in range(rounds):
            for name, port in ports.items():
                process = _start(workshop, server, name, port, (await bus.state()).last)
                try:
                    await until(f"{name} listens", partial(_listens, port), 30)
                    async with _watching(port, clients, token, "last") as ask:
                        await _publish(bus, BATCH, 1)
                        used, began = cpu_s(process.pid), time.time()
                        last = await _publish(bus, many, BATCH)
                        rates[name].append(many / ((await ask(last))["at"] - began))
                        work[name] = {"process_cpu_us": (cpu_s(process.pid) - used) * 1e6 / many}
                    async with _watching(port, clients, token, "times") as ask:
                        put, used = {}, cpu_s(process.pid)
                        for _ in range(single):
                            await asyncio.sleep(EVERY_S)
                            at = time.time()
                            put[str(await _publish(bus, 1, 1))] = at
                        times = (await ask(int(max(put, key=int))))["times"]
                        work[name]["single_cpu_us"] = (cpu_s(process.pid) - used) * 1e6 / single
                        lags[name] += [(at - put[s]) * 1000 for s, all in times.items() if s in put for at in all]
                    work[name]["peak_mib"] = resident_mib(process.pid)[1]
                finally:
                    end(process)
                workshop.say(
                    f"stream {n + 1}/{rounds}: {name} {rates[name][-1]:.0f} events/s to {clients} clients, "
                    f"p50 {percentile(lags[name], 0.5):.1f} p99 {percentile(lags[name], 0.99):.1f} ms, {work[name]}"
                )
    return [
        Row.of("stream", rates["ours"], rates["bare"], "events/s", target="≥ 0.50", clients=clients, work=work),
        *(
            Row(
                f"stream lag p{share}",
                percentile(lags["ours"], share / 100),
                percentile(lags["bare"], share / 100),
                "ms",
                len(lags["ours"]),
                min(lags["ours"]),
                max(lags["ours"]),
            )
            for share in (50, 99)
        ),
    ]


def _start(workshop: Workshop, server: NatsServer, name: str, port: int, after: int) -> Any:
    identities = workshop.identities
    environment = {
        "NATS_URL": server.url,
        "SEED": identities.seed("admin"),
        "PAIDAN_NATS_SEED_FILE": str(identities.seed_file("dispatch")),
        "PAIDAN_HTTP_PORT": str(port),
        "PAIDAN_JWKS_FILE": str(identities.jwks_file),
        "PAIDAN_LOG_FORMAT": "json",
    }
    module = ("services.dispatch",) if name == "ours" else ("tests.bench.bare_stream", str(port), str(after))
    return start_python("-m", *module, log=workshop.folder / f"{name}.log", environment=environment)


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    writer.close()
    return True


async def _publish(bus: Bus, many: int, batch: int) -> int:
    """So many facts about tasks, a batch at a time; returns the last one's sequence."""
    last = 0
    for n in range(0, many, batch):
        now = instant(datetime.now(UTC))
        facts = [TaskAccepted(task_id=new_id(), member_id=f"m-{n + i}") for i in range(min(batch, many - n))]
        envelopes = [
            Envelope(
                new_id(), DISTRICT, "bench-1a", now, fact, f"{DISTRICT},{TRUSTED}", new_id(), new_id(), "member:m-1"
            )
            for fact in facts
        ]
        last = await bus.commit([Message(envelope.subject, envelope.encode()) for envelope in envelopes])
    return last


@asynccontextmanager
async def _watching(port: int, many: int, token: str, keep: str) -> AsyncIterator[Any]:
    """Clients that watch; what is yielded asks them when all of them had a sequence."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.watchers", HOST, str(port), str(many), token, keep),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 28,
    )
    assert process.stdin
    assert process.stdout

    async def told() -> bytes:
        assert process.stdout
        line = await process.stdout.readline()
        if not line:
            raise RuntimeError("the watchers have ended")
        return line

    async def ask(sequence: int) -> dict[str, Any]:
        assert process.stdin
        process.stdin.write(b"%d\n" % sequence)
        return json.loads(await told())  # type: ignore[no-any-return]

    try:
        await told()
        yield ask
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
