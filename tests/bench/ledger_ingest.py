"""
How fast the ledger takes in a stream that is there already: with leaf, hash, tree and projections, as it runs in the stack.

The bare limit (`tests.bench.bare_ledger`) pulls the same stream and inserts documents of the same size with the same indexes
and durability, and nothing else. Both begin with an empty mongod of their own and take turns. What a fact costs in processor
time is beside the rates: it says more than they do on a machine that others use as well.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import pymongo

from deploy.servers import MongoServer
from services.ledger.log import leaves
from services.ledger.log.leaves import Prefix
from shared.bus import Delivery
from shared.facts import instant
from tests.bench.ground import DISTRICT, request
from tests.bench.harness import Row, Workshop, cpu_s, end, start_python, until
from tests.bench.ledger_ground import Told, start_ledger, told

WITHIN_S = 300.0


async def run(workshop: Workshop) -> list[Row]:
    """Ours and bare in turns."""
    stream, rounds = await told(workshop), workshop.size(3, 1)
    rates: dict[str, list[float]] = {"ours": [], "bare": []}
    spent: dict[str, dict[str, list[float]]] = {"ours": {}, "bare": {}}
    for n in range(rounds):
        for name, all in rates.items():
            rate, cpu = await _taken_in(workshop, stream, name, n)
            all.append(rate)
            for process, us in cpu.items():
                spent[name].setdefault(process, []).append(us)
            used = ", ".join(f"{process} {us:.0f}" for process, us in cpu.items())
            workshop.say(f"ledger ingest {n + 1}/{rounds}: {name} {rate:.0f} facts/s; µs of processor per fact: {used}")
    cpu_us = {name: {process: round(min(us), 1) for process, us in cpu.items()} for name, cpu in spent.items()}
    return [
        Row.of(
            *("ledger ingest", rates["ours"], rates["bare"], "facts/s"),
            target="≥ 0.60",
            facts=stream.facts,
            cpu_us=cpu_us,
        )
    ]


async def _taken_in(workshop: Workshop, stream: Told, name: str, n: int) -> tuple[float, dict[str, float]]:
    """Facts a second from the first one stored to the last, and microseconds of processor per fact, by process."""
    folder = workshop.folder / f"ingest-{name}-{n}"
    with (
        MongoServer(folder, workshop.identities) as mongod,
        pymongo.MongoClient[dict[str, Any]](mongod.admin_uri) as mongo,
    ):
        process = _start(workshop, stream, mongod, name, n)
        pids = {"itself": process.pid, "mongod": mongod.pid, "nats-server": stream.server.pid}
        try:
            began, first, cpu = 0.0, 0, dict.fromkeys(pids, 0.0)

            async def done() -> bool:
                nonlocal began, first, cpu
                if process.poll() is not None:
                    raise RuntimeError((workshop.folder / f"{folder.name}.log").read_text()[-2000:])
                stored = _stored(mongo, projected=name == "ours")
                if stored and not began:
                    began, first, cpu = time.perf_counter(), stored, {name: cpu_s(pid) for name, pid in pids.items()}
                return stored >= stream.facts

            await until("everything is in MongoDB", done, WITHIN_S, 0.05)
            took, many = time.perf_counter() - began, stream.facts - first
            return many / took, {name: (cpu_s(pid) - cpu[name]) * 1e6 / many for name, pid in pids.items()}
        finally:
            end(process)


def _start(workshop: Workshop, stream: Told, mongod: MongoServer, name: str, n: int) -> Any:
    if name == "ours":
        return start_ledger(workshop, f"ingest-{name}-{n}", stream.server.url, mongod.uri)
    environment = {
        "NATS_URL": stream.server.url,
        "MONGODB_URI": mongod.uri,
        "SEED": workshop.identities.seed("ledger"),
        "OVERHEAD": _overhead().hex(),
        "DISTRICT": DISTRICT,
    }
    return start_python(
        "-m", "tests.bench.bare_ledger", log=workshop.folder / f"ingest-{name}-{n}.log", environment=environment
    )


def _overhead() -> bytes:
    """What a leaf has besides the event."""
    envelope = request(0, instant(datetime.now(UTC)))
    message = Delivery(100_000, time.time_ns(), envelope.subject, envelope.encode())
    prefix = Prefix("bench.local/ingest-bare-0/1", "2026-11-22T01:02:03.123456789Z", sequence=99_999, size=99_999)
    before, _, after = leaves.extend(prefix, [leaves.read(message)], {})[0].data.partition(message.data)
    return before + after


def _stored(mongo: pymongo.MongoClient[dict[str, Any]], *, projected: bool) -> int:
    """How many leaves there are; of ours, how many of them are folded into the projection as well."""
    database = mongo["paidan"]
    found = database["events"].find_one({}, {"_id": 1}, sort=[("_id", -1)])
    stored = found["_id"] + 1 if found else 0
    if not projected:
        return int(stored)
    state = database["proj_state"].find_one({"_id": "cases"})
    return min(stored, state["position"]) if state else 0
