"""
One office floods; how long another's request takes from being submitted (HTTP) to its offer on the staff stream: p99, side by side.

Windows alternate: quiet, the first office at its quota, quiet, the same office far beyond it. `python -m tests.bench.flood HOST PORT
SECONDS CONNECTIONS PER_S SEED` is the flood, a process of its own: so many connections, each asking again as soon as it is
answered, or, with PER_S above 0, so many requests a second in all.
"""

from __future__ import annotations

import asyncio
import copy
import json
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import uvloop

from deploy.stack import Stack
from tests.bench.ground import AREAS, SIDE, SOUTH, WEST, document
from tests.bench.harness import ROOT, Row, Workshop, percentile
from tests.bench.latency import stream
from tests.bench.load import TEXTS
from tests.bench.pipe import enrol
from tests.system.http import Http

FLOODING, QUIET = "990001", "990002"
AREAS_OF = {FLOODING: AREAS[:2], QUIET: AREAS[2:]}
EVERY_S = 0.11
"""So often the quiet office gets a request: within its own quota."""
CONNECTIONS = 32
QUOTA_PER_S = 10
"""As intake has it unless told otherwise."""
WORSE_MS = 5.0
"""How much later the quiet office's p99 may come."""


async def run(workshop: Workshop) -> list[Row]:
    """Quiet and flooded windows in turns."""
    rounds, many = workshop.size(4, 1), workshop.size(90, 10)
    took: dict[str, list[list[float]]] = {"quiet": [], "at its quota": [], "beyond its quota": []}
    answered: dict[str, Counter[str]] = {kind: Counter() for kind in took}
    async with offices(workshop.folder / "flood") as stack:
        token = stack.token("dispatcher", district=QUIET)
        async with stream(stack.urls["dispatch"], token) as offers:
            quiet = Quiet(stack.urls["intake"], offers)
            await quiet.window(workshop.size(40, 5))
            for n in range(rounds):
                for kind, connections, per_s in (
                    ("quiet", 0, 0),
                    ("at its quota", 4, QUOTA_PER_S),
                    ("quiet", 0, 0),
                    ("beyond its quota", CONNECTIONS, 0),
                ):
                    seconds = many * EVERY_S + 1
                    async with flood(stack.urls["intake"], seconds, connections, per_s, n) as statuses:
                        took[kind].append(await quiet.window(many))
                    answered[kind] += statuses
                    p50, p99 = (percentile(took[kind][-1], share) for share in (0.5, 0.99))
                    workshop.say(f"flood {n + 1}/{rounds} {kind}: p50 {p50:.1f} p99 {p99:.1f} ms, {dict(statuses)}")
    return [_row(kind, took[kind], took["quiet"], answered[kind]) for kind in took if kind != "quiet"]


def _row(kind: str, flooded: list[list[float]], quiet: list[list[float]], answered: Counter[str]) -> Row:
    """Beside it stands the quiet p99 and what may be added: 5 ms, and by how much two halves of the quiet windows differ."""
    ours, calm = (percentile([each for window in windows for each in window], 0.99) for windows in (flooded, quiet))
    halves = [percentile([each for window in quiet[half::2] for each in window], 0.99) for half in (0, 1)]
    noise = abs(halves[0] - halves[1])
    windows = [percentile(window, 0.99) for window in flooded]
    return Row(
        f"flood {kind}: another's p99",
        ours,
        calm + noise + WORSE_MS,
        "ms",
        len(flooded),
        min(windows),
        max(windows),
        "≤ 1.00",
        {
            "quiet_p99": round(calm, 2),
            "noise": round(noise, 2),
            "worse_by": round(ours - calm, 2),
            "worse_by_in_the_middle": round(median(windows) - median(percentile(each, 0.99) for each in quiet), 2),
            "p50": [
                round(percentile([each for window in windows for each in window], 0.5), 2)
                for windows in (flooded, quiet)
            ],
            "quiet_p99_by_window": [round(percentile(window, 0.99), 1) for window in quiet],
            "p99_by_window": [round(each, 1) for each in windows],
            "flood_answered": dict(answered),
        },
    )


@asynccontextmanager
async def offices(folder: Path, **more: Any) -> AsyncIterator[Stack]:
    """A stack with two offices, half of the bench's areas each; intake's quotas are as they come unless `more` says."""
    register = copy.deepcopy(document())
    for part in ("districts", "policies"):
        register[part] = [
            {**row, "district": district} | ({"rate_limited": True} if part == "districts" else {})
            for row in register[part]
            for district in AREAS_OF
        ]
    for area in register["areas"]:
        district = next(district for district, areas in AREAS_OF.items() if area["area"] in areas)
        area |= {"located_in": district, "administered_by": district, "served_by": district}
    async with Stack(folder, nats_url=None, mongodb_uri=None, **more) as stack:
        await stack.apply_register(register)
        bus = await stack.connect("admin")
        try:
            for district, areas in AREAS_OF.items():
                await enrol(bus, stack.token("dispatcher", district=district), district, areas)
        finally:
            await bus.drain()
        yield stack


class Quiet:
    """The office that does not flood: one request at a time, each until its offer is seen."""

    def __init__(self, intake: str, offers: asyncio.Queue[str]) -> None:
        self._url = f"{intake}/v1/requests"
        self._offers = offers
        self._http = Http()
        self._numbers = count()

    async def window(self, many: int) -> list[float]:
        """How long each took (ms). Raises RuntimeError where one was not accepted, TimeoutError where one was not offered."""
        took_ms = []
        for _ in range(many):
            n = next(self._numbers)
            body = _body(QUIET, random.Random(f"quiet/{n}"))  # a place, no secret
            headers = {"Content-Type": "application/json", "Idempotency-Key": f"quiet-{n}"}
            began = time.perf_counter()
            answer = await self._http.request("POST", self._url, headers, body, {}, 10)
            if answer.status != 201:
                raise RuntimeError(f"the quiet office was refused: {answer}")
            request = json.loads(answer.body)["id"]
            while await asyncio.wait_for(self._offers.get(), 10) != request:
                pass
            took_ms.append((time.perf_counter() - began) * 1000)
            await asyncio.sleep(max(0.0, began + EVERY_S - time.perf_counter()))
        return took_ms


@asynccontextmanager
async def flood(url: str, seconds: float, connections: int, per_s: float, seed: int) -> AsyncIterator[Counter[str]]:
    """Flood while inside; what the flood was answered is there afterwards. No connections: no flood."""
    statuses: Counter[str] = Counter()
    if not connections:
        yield statuses
        return
    place = urlsplit(url)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.flood", str(place.hostname), str(place.port)),
        *(str(seconds), str(connections), str(per_s), str(seed)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout
    try:
        await process.stdout.readline()  # it is under way
        yield statuses
        statuses.update(json.loads(await process.stdout.readline()))
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def _body(district: str, chance: random.Random) -> bytes:
    east = AREAS.index(AREAS_OF[district][0]) * SIDE + chance.randrange(len(AREAS_OF[district]) * SIDE)
    place = {"lon": (WEST + east) / 1e7, "lat": (SOUTH + chance.randrange(1, SIDE)) / 1e7, "crs": "WGS84"}
    contact = {"name": "居民", "phone": f"13{chance.randrange(10**9):09d}"}
    body = {"text": chance.choice(TEXTS), "location": place, "contact": contact, "channel": "app"}
    return json.dumps(body, ensure_ascii=False).encode()


async def _flood(host: str, port: int, seconds: float, connections: int, per_s: float, seed: int) -> Counter[str]:
    statuses: Counter[str] = Counter()
    ends = time.monotonic() + seconds
    due = time.monotonic()

    async def one(number: int) -> None:
        nonlocal due
        chance = random.Random(f"{seed}/{number}/{time.time()}")  # a place, no secret
        reader, writer = await asyncio.open_connection(host, port)
        while (now := time.monotonic()) < ends:
            if per_s:
                mine, due = max(due, now), max(due, now) + 1 / per_s
                await asyncio.sleep(mine - now)
            data = _body(FLOODING, chance)
            head = (
                f"POST /v1/requests HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
                f"Idempotency-Key: flood-{chance.getrandbits(64):x}\r\nContent-Length: {len(data)}\r\n\r\n"
            )
            writer.write(head.encode() + data)
            try:
                answer = (await reader.readuntil(b"\r\n\r\n")).lower()
                at = answer.index(b"content-length: ") + 16
                await reader.readexactly(int(answer[at : answer.index(b"\r\n", at)]))
                statuses[answer[9:12].decode()] += 1
            except asyncio.IncompleteReadError:  # closed: it comes again, as a flood does
                statuses["closed"] += 1
                reader, writer = await asyncio.open_connection(host, port)

    sys.stdout.write("begun\n")
    sys.stdout.flush()
    await asyncio.gather(*(one(number) for number in range(connections)))
    return statuses


def main() -> None:
    """Flood, and print how often each status came."""
    host, port, seconds, connections, per_s, seed = sys.argv[1:7]
    statuses = uvloop.run(_flood(host, int(port), float(seconds), int(connections), float(per_s), int(seed)))
    print(json.dumps(statuses))


if __name__ == "__main__":
    main()
