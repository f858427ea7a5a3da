"""
One office floods; how long another's request takes from being submitted (HTTP) to its offer on the staff stream: p99, side by side.

Windows alternate: quiet, the first office at its quota, quiet, the same office far beyond it, quiet, and its app asking over the bus
without end. `python -m tests.bench.flood URL SECONDS ASKERS PER_S SEED` is the flood, a process of its own: so many askers, each
asking again as soon as it is answered, or, with PER_S above 0, so many requests a second in all. SEED is the app's file for a URL of
the bus.
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

from deploy import admitting
from deploy.running import Running
from deploy.stack import Stack
from shared.bus import Bus
from shared.errors import UnavailableError
from shared.ids import new_id
from tests.bench.ground import AREAS, SIDE, SOUTH, WEST, document
from tests.bench.harness import ROOT, Row, Workshop, percentile, until
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
    took: dict[str, list[list[float]]] = {"quiet": [], "at its quota": [], "beyond its quota": [], "over the bus": []}
    answered: dict[str, Counter[str]] = {kind: Counter() for kind in took}
    async with offices(workshop.folder / "flood") as stack:
        app = await app_of(stack, FLOODING)
        token = stack.token("dispatcher", district=QUIET)
        async with stream(stack.urls["dispatch"], token) as offers:
            quiet = Quiet(stack.urls["intake"], offers)
            await quiet.window(workshop.size(40, 5))
            for n in range(rounds):
                for kind, url, askers, per_s, seed in (
                    ("quiet", "", 0, 0, ""),
                    ("at its quota", stack.urls["intake"], 4, QUOTA_PER_S, str(n)),
                    ("quiet", "", 0, 0, ""),
                    ("beyond its quota", stack.urls["intake"], CONNECTIONS, 0, str(n)),
                    ("quiet", "", 0, 0, ""),
                    ("over the bus", stack.bus_url, CONNECTIONS, 0, app),
                ):
                    seconds = many * EVERY_S + 1
                    async with flood(url, seconds, askers, per_s, seed) as statuses:
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
async def flood(url: str, seconds: float, askers: int, per_s: float, seed: str) -> AsyncIterator[Counter[str]]:
    """Flood while inside; what the flood was answered is there afterwards. No askers: no flood."""
    statuses: Counter[str] = Counter()
    if not askers:
        yield statuses
        return
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.flood", url, str(seconds), str(askers), str(per_s), seed),
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


async def app_of(stack: Stack, district: str) -> str:
    """Let an app of this office in; the file of its seed."""
    await admitting.add(Running.find(stack.data), district, "flood", people=None, why="bench")
    file = stack.identities.office_file(district, "flood")

    async def let_in() -> bool:
        try:
            await (await Bus.connect(stack.bus_url, name="flood", seed=file.read_text(), deadline_s=1)).drain()
        except UnavailableError:
            return False
        return True

    await until("the office's app is let in", let_in, 30)
    return str(file)


async def _flood_bus(url: str, seconds: float, askers: int, seed_file: str) -> Counter[str]:
    """Accept what is not there and ask for all there ever was, in turns."""
    statuses: Counter[str] = Counter()
    ends = time.monotonic() + seconds
    bus = await Bus.connect(url, name="flood", seed=Path(seed_file).read_text())

    async def one() -> None:
        for n in count():
            if time.monotonic() >= ends:
                return
            subject, body = (
                (f"cmd.{FLOODING}.desk.accept", {"id": new_id(), "token": "none", "data": {}}),
                (f"qry.{FLOODING}.desk.events", {"after": 0}),
            )[n % 2]
            try:
                answer = json.loads(await bus.request(subject, json.dumps(body).encode()))
                statuses[answer.get("problem", {}).get("code", "answered")] += 1
            except UnavailableError:
                statuses["no answer"] += 1

    _begun()
    await asyncio.gather(*(one() for _ in range(askers)))
    await bus.drain()
    return statuses


def _begun() -> None:
    sys.stdout.write("begun\n")
    sys.stdout.flush()


async def _flood(url: str, seconds: float, askers: int, per_s: float, seed: str) -> Counter[str]:
    place = urlsplit(url)
    if place.scheme in ("nats", "tls"):
        return await _flood_bus(url, seconds, askers, seed)
    host, port = str(place.hostname), place.port
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

    _begun()
    await asyncio.gather(*(one(number) for number in range(askers)))
    return statuses


def main() -> None:
    """Flood, and print how often each status came."""
    url, seconds, askers, per_s, seed = sys.argv[1:6]
    statuses = uvloop.run(_flood(url, float(seconds), int(askers), float(per_s), seed))
    print(json.dumps(statuses))


if __name__ == "__main__":
    main()
