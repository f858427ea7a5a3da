"""
The whole pipe: requests on the bus → tasks opened and offered, messages recorded, every fact in MongoDB.

Ours are the four services as they are, started by the stack. The bare limit (`tests.bench.bare`) has the same consumers and
processes, the same number and size of messages and documents, and the same durability. Both are fed the same way, begin with
empty servers, and take turns. What the servers counted in each run is printed beside each other: it shows that both did the
same work.
"""

from __future__ import annotations

import json
import pickle
import time
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pymongo

from deploy.identities import SERVICES
from deploy.servers import MongoServer, NatsServer
from deploy.stack import Stack
from services.dispatch.commands import Enrol
from services.dispatch.desk import RULES as DESK
from services.notify.rules import RULES as POST
from shared import streams
from shared.bus import BATCH_MAX, Bus, Message
from shared.envelope import canonical
from shared.facts import MatchExplained, NoticeQueued, NoticeSent, TaskOffered, TaskOpened, plain
from shared.ids import new_id
from tests.bench.bare import CONSUMERS, Play, Sample
from tests.bench.ground import AREAS, DISTRICT, apply_register, members, requests
from tests.bench.harness import Row, Workshop, cpu_s, end, start_python, until

SAMPLES = 300
WITHIN_S = 300.0
OFFERED = "evt.*.dispatch.*.task.offered"
SENT = "evt.*.notify.*.notice.sent"


@dataclass
class Work:
    """
    What one run took and did.

    Attributes:
        stages: seconds from the first put until everything had come so far.
        consumers: readers of the stream.
        counted: what the servers counted after the run less what they had counted before.
        cpu: seconds of processor time by process.
    """

    seconds: float
    stages: dict[str, float]
    consumers: int = 0
    counted: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Servers:
    """Where one run works."""

    bus: Bus
    monitor: str
    mongo: pymongo.MongoClient[dict[str, Any]]
    pids: dict[str, int | None]

    async def many(self, subjects: str) -> int:
        """How many facts the stream holds under these subjects."""
        state = await self._stream(subjects)
        return sum((state.get("subjects") or {}).values())

    async def reached(self) -> int:
        """The last sequence that is a document in MongoDB, and moved the projection where it had to."""
        found = self.mongo["paidan"]["events"].find_one({}, {"sseq": 1, "_id": 1}, sort=[("_id", -1)])
        projected = self.mongo["paidan"]["proj_state"].find_one({"_id": "cases"})
        if not found or not projected or projected["position"] <= found["_id"]:
            return 0
        return int(found["_id"]) + 1

    async def stored(self) -> int:
        """How many messages the stream holds."""
        return int((await self._stream(""))["messages"])

    async def consumers(self) -> int:
        """How many readers the stream has."""
        return int((await self._stream(""))["consumer_count"])

    async def _stream(self, subjects: str) -> dict[str, Any]:
        body = {"subjects_filter": subjects} if subjects else {}
        answer = json.loads(await self.bus.request("$JS.API.STREAM.INFO.EVENTS", json.dumps(body).encode()))
        state: dict[str, Any] = answer["state"]
        return state

    def counted(self) -> dict[str, float]:
        """What the servers have counted so far."""
        with urllib.request.urlopen(f"{self.monitor}/varz", timeout=5) as answer:
            varz = json.load(answer)
        status = self.mongo.admin.command("serverStatus")
        return {
            "messages to nats-server": varz["in_msgs"],
            "MB to nats-server": varz["in_bytes"] / 1e6,
            "messages from nats-server": varz["out_msgs"],
            "MB from nats-server": varz["out_bytes"] / 1e6,
            "documents inserted": status["opcounters"]["insert"],
            "documents updated": status["opcounters"]["update"],
            "queries to mongod": status["opcounters"]["query"] + status["opcounters"]["command"],
            "MB written to journal": status["wiredTiger"]["log"]["log bytes written"] / 1e6,
            "journal syncs": status["wiredTiger"]["log"]["log sync operations"],
        }


async def run(workshop: Workshop) -> list[Row]:
    """Ours and bare in turns."""
    many, rounds = workshop.size(20_000, 400), workshop.size(2, 1)
    ours: list[Work] = []
    bare: list[Work] = []
    play: Play | None = None
    for n in range(rounds):
        workshop.say(f"pipe {n + 1}/{rounds}: {many} requests through the four services")
        work, found = await _ours(workshop, many, f"pipe-{n}")
        ours.append(work)
        play = play or found
        workshop.say(f"pipe {n + 1}/{rounds}: {many / work.seconds:.0f} requests/s; now the bare limit")
        bare.append(await _bare(workshop, play, many, f"bare-{n}"))
        workshop.say(f"pipe {n + 1}/{rounds}: bare {many / bare[-1].seconds:.0f} requests/s")
    _print_work(workshop, many, ours[-1], bare[-1])
    return [
        Row.of(
            "pipe",
            [many / work.seconds for work in ours],
            [many / work.seconds for work in bare],
            "requests/s",
            target="≥ 0.40",
            requests=many,
            work={"ours": _rounded(ours[-1].counted), "bare": _rounded(bare[-1].counted)},
            stages_s={"ours": _rounded(ours[-1].stages), "bare": _rounded(bare[-1].stages)},
            cpu_s={"ours": _rounded(ours[-1].cpu), "bare": _rounded(bare[-1].cpu)},
        )
    ]


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: round(figure, 2) for name, figure in figures.items()}


def _print_work(workshop: Workshop, many: int, ours: Work, bare: Work) -> None:
    workshop.say("")
    workshop.say(f"{'what the servers counted, per request':40}{'ours':>10}{'bare':>10}")
    for name, figure in ours.counted.items():
        workshop.say(f"  {name:38}{figure / many:>10.3f}{bare.counted[name] / many:>10.3f}")
    workshop.say(f"{'readers of the stream, in all':40}{ours.consumers:>10}{bare.consumers:>10}")
    workshop.say(f"{'all requests, seconds from the first put':40}{'ours':>10}{'bare':>10}")
    for name, figure in ours.stages.items():
        workshop.say(f"  {name:38}{figure:>10.2f}{bare.stages[name]:>10.2f}")
    workshop.say(f"{'processor time, µs per request':40}{'ours':>10}{'bare':>10}")
    for name, figure in ours.cpu.items():
        workshop.say(f"  {name:38}{figure * 1e6 / many:>10.0f}{bare.cpu.get(name, 0) * 1e6 / many:>10.0f}")
    workshop.say("")


async def _measured(servers: Servers, messages: list[Message], *, within_s: float = WITHIN_S) -> Work:
    """Put the requests on the bus as intake does, and wait until the last fact of the last is in MongoDB."""
    before, cpu = servers.counted(), {name: cpu_s(pid) for name, pid in servers.pids.items()}
    began = time.perf_counter()
    own = time.process_time()
    for start in range(0, len(messages), BATCH_MAX):
        await servers.bus.commit(messages[start : start + BATCH_MAX], timeout_s=30)
    own = time.process_time() - own
    stages = {"put": time.perf_counter() - began}

    async def all_offered() -> bool:
        return await servers.many(OFFERED) >= len(messages)

    async def all_sent() -> bool:
        return await servers.many(SENT) >= len(messages)

    async def all_kept() -> bool:
        return await servers.reached() >= await servers.stored()

    for stage, done in (("offered", all_offered), ("message recorded", all_sent), ("in MongoDB", all_kept)):
        await until(f"{len(messages)} {stage}", done, within_s, 0.02)
        stages[stage] = time.perf_counter() - began
    after = servers.counted()
    spent = {name: cpu_s(pid) - cpu[name] for name, pid in servers.pids.items()}
    counted = {name: after[name] - before[name] for name in after}
    return Work(stages["in MongoDB"], stages, 0, counted, {"putting": own, **spent})


# --- ours -------------------------------------------------------------------------------------------------------------


async def enrol(bus: Bus, token: str, district: str = DISTRICT, areas: Sequence[str] = AREAS) -> None:
    """Enrol the members of these areas by command, as a dispatcher; waits for a leader."""
    those = tuple(member for member in members() if member.areas[0] in areas)
    data = {"members": [plain(fact) for fact in Enrol(members=those).members]}
    body = canonical({"id": new_id(), "token": token, "data": data})
    answer: dict[str, Any] = {}

    async def enrolled() -> bool:
        nonlocal answer
        try:
            answer = orjson.loads(await bus.request(f"cmd.{district}.desk.enrol", body, timeout_s=1))
        except Exception:
            return False
        return True

    await until("members enrolled", enrolled, 30, 0.2)
    if "problem" in answer:
        raise RuntimeError(answer["problem"])


@asynccontextmanager
async def running(workshop: Workshop, name: str, **stack: Any) -> AsyncIterator[tuple[Stack, Bus]]:
    """A stack with the bench's district and members, and the admin's connection to its bus."""
    async with Stack(workshop.folder / name, nats_url=None, mongodb_uri=None, **stack) as started:
        bus = await started.connect("admin")
        try:
            await apply_register(bus)
            await enrol(bus, started.token("dispatcher", district=DISTRICT))
            yield started, bus
        finally:
            await bus.drain()


async def _ours(workshop: Workshop, many: int, name: str) -> tuple[Work, Play]:
    async with running(workshop, name) as (stack, bus):
        assert stack.nats
        assert stack.mongo
        monitor = f"http://127.0.0.1:{stack.nats.monitor_port}"
        with pymongo.MongoClient[dict[str, Any]](stack.mongo.admin_uri) as mongo:
            servers = Servers(bus, monitor, mongo, stack.pids)

            async def quiet() -> bool:
                return await servers.reached() >= await servers.stored()

            await until("the ledger has the enrolments", quiet, 30)
            messages = list(requests(many))
            work = await _measured(servers, messages)
            work.consumers = await servers.consumers()
            return work, _play(mongo)


def _play(mongo: pymongo.MongoClient[dict[str, Any]]) -> Play:
    """Real messages of this run for the bare processes to send."""
    events = mongo["paidan"]["events"]

    def sample(type_: str, *, subject: str = "") -> Sample:
        found = list(events.find({"ty": type_}).sort("_id", -1).limit(SAMPLES))
        leaves = [orjson.loads(document["b"]) for document in found]
        return Sample(subject or leaves[0]["subject"], [canonical(leaf["event"]) for leaf in leaves])

    def of(fact: type[Any]) -> Sample:
        area = "-" if fact is MatchExplained else AREAS[0]
        return sample(fact.type(), subject=f"evt.{DISTRICT}.{fact.service}.{area}.{fact.name}")

    one = events.find_one({"ty": TaskOffered.type()})
    assert one
    leaf = orjson.loads(one["b"])
    event = canonical(leaf["event"])
    start = one["b"].index(event)
    case = mongo["paidan"]["proj_cases"].find_one({})
    assert case
    desk = [of(TaskOpened), of(MatchExplained), of(TaskOffered)]
    marker = {
        role: Sample(
            rules.marker_subject(DISTRICT),
            [
                canonical(orjson.loads(document["b"])["event"])
                for document in events.find({"ty": rules.marker.type()}).sort("_id", -1).limit(200)
                if orjson.loads(document["b"])["subject"] == rules.marker_subject(DISTRICT)
            ][:1],
        )
        for role, rules in (("desk", DESK), ("post", POST))
    }
    return Play(
        nats_url="",
        mongo_uri="",
        seeds={},
        request_subject=f"evt.{DISTRICT}.intake.>",
        offer_subject=desk[2].subject,
        desk=desk,
        post=[of(NoticeQueued), of(NoticeSent)],
        markers=marker,
        moves=frozenset({desk[0].subject, desk[2].subject}),
        leaf_overhead=one["b"][:start] + one["b"][start + len(event) :],
        district=DISTRICT,
        case=case,
    )


# --- bare -------------------------------------------------------------------------------------------------------------


async def _bare(workshop: Workshop, play: Play, many: int, name: str) -> Work:
    folder = workshop.folder / name
    identities = workshop.identities
    with (
        NatsServer(folder / "nats", identities, monitor=True) as nats,
        MongoServer(folder / "mongo", identities) as mongod,
        pymongo.MongoClient[dict[str, Any]](mongod.admin_uri) as mongo,
    ):
        bus = await Bus.connect(nats.url, name="admin", seed=identities.seed("admin"))
        await streams.apply(bus)
        seeds = {service: identities.seed(service) for service in SERVICES}
        file = folder / "play"
        file.write_bytes(
            pickle.dumps(Play(**{**vars(play), "nats_url": nats.url, "mongo_uri": mongod.uri, "seeds": seeds}))
        )
        roles = {"intake": "intake", "dispatch": "desk", "notify": "post", "ledger": "ledger"}
        processes = {
            service: start_python("-m", "tests.bench.bare", role, str(file), log=folder / f"{role}.log")
            for service, role in roles.items()
        }
        try:
            pids = {"nats-server": nats.pid, "mongod": mongod.pid, **{s: p.pid for s, p in processes.items()}}
            servers = Servers(bus, f"http://127.0.0.1:{nats.monitor_port}", mongo, pids)

            async def all_listen() -> bool:
                _raise_dead(folder, processes)
                return await servers.consumers() >= sum(CONSUMERS.values())

            await until("the bare processes listen", all_listen, 30)
            work = await _measured(servers, list(requests(many)))
            work.consumers = await servers.consumers()
            return work
        except TimeoutError:
            _raise_dead(folder, processes)
            raise
        finally:
            for process in processes.values():
                end(process)
            await bus.drain()


def _raise_dead(folder: Path, processes: dict[str, Any]) -> None:
    dead: Sequence[str] = [service for service, process in processes.items() if process.poll() is not None]
    if dead:
        logs = "\n".join(log.read_text()[-2000:] for log in folder.glob("*.log"))
        raise RuntimeError(f"bare {dead} ended:\n{logs}")
