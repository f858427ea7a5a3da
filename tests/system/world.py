"""
A small city around a running stack: residents who ask and ask again, members who answer or do not, people who watch, a receiver
of messages. It remembers all that it was promised, and hands it over as a `History`.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote
from uuid import UUID

import httpx2
import orjson

from deploy.redeciding import Redeciding, told
from deploy.servers import HOST
from deploy.stack import Stack, service_command
from services.dispatch.desk import RULES
from services.dispatch.model import Desk
from shared.bus import STREAM, Bus, Request
from shared.errors import BusError
from shared.ids import derived_id
from shared.turns import recover
from tests.system.history import Commanded, History, Record, Violation, Watched, check
from tests.system.http import BrokenError, Http

DISTRICT, OTHER = "990011", "990012"
AREAS = ("north", "south")
MEMBERS = 24
OFFER_S = 5
"""Longer than a desk may take to change its leader."""
WITHIN_S = 45.0
OPERATOR = "operator"
PASSING = frozenset({429, 500, 502, 503, 504})
"""Worth another try with the same key. (500 never comes; if it does, `System.bugs` counts it.)"""


def _limit(amount: int, unit: str = "seconds") -> dict[str, Any]:
    return {"amount": amount, "unit": unit}


def _name(text: str) -> dict[str, str]:
    return {"zh": text, "en": text}


BOTH_LEAD: Mapping[int, str] = {1: DISTRICT, 2: DISTRICT}
"""Two instances of dispatch, either of which may lead any desk."""


def register() -> dict[str, Any]:
    """Two districts outside the rate limit, three areas, three items, clocks of seconds."""

    def area(code: str, district: str, west: int) -> dict[str, Any]:
        ring = [
            [west, 305_000_000],
            [west + 9_000_000, 305_000_000],
            [west + 9_000_000, 306_000_000],
            [west, 306_000_000],
        ]
        return {
            "area": code,
            "title": _name(code),
            "level": "grid",
            "valid_from": "2024-01-01",
            "owned_by": "-",
            "located_in": district,
            "administered_by": district,
            "served_by": district,
            "polygon": [ring],
        }

    limits = {name: _limit(n, "hours") for n, name in enumerate(("sign", "contact", "handle", "life"), 1)}

    def item(code: str, word: str, effort: int, urgency: int = 0) -> dict[str, Any]:
        return {
            "item": code,
            "title": _name(word),
            "category": [word, word],
            "words": [word],
            "effort": effort,
            "urgency": urgency,
            "limits": limits,
            "phone": "119" if urgency else None,
        }

    return {
        "districts": [
            {"district": code, "title": _name(code), "office": _name(code), "rate_limited": False}
            for code in (DISTRICT, OTHER)
        ],
        "areas": [
            area("north", DISTRICT, 1_140_000_000),
            area("south", DISTRICT, 1_150_000_000),
            area("abroad", OTHER, 1_160_000_000),
        ],
        "items": [
            item("lamp", "路灯", 1),
            item("leak", "漏水", 2),
            item("fire", "着火", 3, 2),
            item("other", "其他", 1),
        ],
        "policies": [
            {
                "district": code,
                "version": 1,
                "calendar": "always",
                "waves": 3,
                "weights": {"workload": 1},
                "offer": _limit(OFFER_S),
                "close_after": _limit(1),
            }
            for code in (DISTRICT, OTHER)
        ],
    }


def members() -> list[dict[str, Any]]:
    """Those who are enrolled, every fourth one reached by the webhook."""
    return [
        {
            "id": f"m-{n:02}",
            "kind": "grid_member",
            "areas": list(AREAS),
            "capacity": 20,
            "district": DISTRICT,
            "channels": ["webhook" if n % 4 == 1 else "console"],
        }
        for n in range(1, MEMBERS + 1)
    ]


class Answer(NamedTuple):
    """A definite answer."""

    status: int
    document: Any
    headers: Mapping[str, str]

    @property
    def code(self) -> str:
        """The stable code of a refusal."""
        return str(self.document.get("code")) if isinstance(self.document, dict) else ""


class Receiver:
    """Takes the webhook's messages; its texts are the test's own templates: `<template>` and the link."""

    def __init__(self) -> None:
        self.receipts: Counter[tuple[str, str, str]] = Counter()
        self._server: asyncio.Server | None = None

    async def start(self, folder: Path) -> dict[str, str]:
        """Listen. Returns the environment that leads notify here."""
        self._server = await asyncio.start_server(self._serve, HOST, 0)
        port = self._server.sockets[0].getsockname()[1]
        (folder / "channels.json").write_text(json.dumps({"webhook": f"json://{HOST}:{port}/{{id}}"}))
        for template in ("offered", "taken", "over", "withdrawn", "unplaced", "given_away", "lent", "help_over"):
            for language in ("zh-CN", "en"):
                (folder / f"{template}.{language}.txt").write_text(template + "\n{{ link }}")
        return {
            "PAIDAN_CHANNELS_FILE": str(folder / "channels.json"),
            "PAIDAN_TEMPLATES_DIR": str(folder),
            "PAIDAN_CAPS": '{"webhook": [100000, 10]}',
        }

    def stop(self) -> None:
        """Take no more."""
        if self._server:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                length = int(head.lower().partition("content-length:")[2].split("\r\n")[0] or 0)
                body = json.loads(await reader.readexactly(length))
                recipient = unquote(head.split(" ")[1].strip("/"))
                self.receipts[recipient, body["message"].strip()[-12:], body["title"].strip()] += 1
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def decided_otherwise(leaves: Sequence[tuple[int, bytes]]) -> list[Violation]:
    """I6: every decision in the ledger, taken again, gives the same facts."""
    again = Redeciding()
    for index, leaf in leaves:
        again.take(index, orjson.loads(leaf))
    assert again.report.decisions
    return [Violation("decided otherwise", "\n".join(told(again.report)))] if again.report.differ else []


class System:
    """
    A stack with people around it.

    Attributes:
        points: where `tests.system.launch` looks for what it has to do.
        bugs: answers that never should come.
        unfinished: what a client gave up on.
    """

    def __init__(self, stack: Stack, receiver: Receiver, points: Path, seed: int) -> None:
        self.stack = stack
        self.receiver = receiver
        self.points = points
        self.random = random.Random(seed)
        self.submitted: dict[str, list[dict[str, Any]]] = {}
        self.keys: dict[str, str] = {}
        self.commanded: dict[str, Commanded] = {}
        self.watched: list[Watched] = []
        self.live: list[tuple[int, bytes]] = []
        self.overheard: list[tuple[str, bytes]] = []
        self.counts: Counter[str] = Counter()
        self.bugs: list[str] = []
        self.unfinished: list[str] = []
        self.crashes = 0
        self._tokens: dict[tuple[str, str, tuple[str, ...]], str] = {}
        self._jobs: set[asyncio.Task[Any]] = set()
        self._watching: set[asyncio.Task[None]] = set()
        self._listener: Bus | None = None
        self.http = Http()
        self.streams = httpx2.AsyncClient(trust_env=False)

    # --- calls ----------------------------------------------------------------------------------------------------

    def token(self, *roles: str, district: str = DISTRICT, sub: str = OPERATOR) -> str:
        """A bearer token, made once."""
        who = (sub, district, roles)
        if who not in self._tokens:
            self._tokens[who] = self.stack.token(*roles, district=district, sub=sub)
        return self._tokens[who]

    async def call(
        self,
        method: str,
        service: str,
        path: str,
        document: Any = None,
        *,
        token: str | None = None,
        key: str | None = None,
        instance: int | None = None,
        **params: Any,
    ) -> Answer:
        """One try at one instance (1 by default). Raises BrokenError."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if key is not None:
            headers["Idempotency-Key"] = key
        content = document if isinstance(document, bytes) else None if document is None else orjson.dumps(document)
        if content is not None:
            headers["Content-Type"] = "application/json"
        urls = self.stack.all_urls[service]
        url = urls[((instance or 1) - 1) % len(urls)]
        timeout_s = 3 if method == "GET" else 13  # an instance that is frozen should not hold up who only looks
        response = await self.http.request(method, url + path, headers, content, params, timeout_s)
        try:
            said: Any = orjson.loads(response.body)
        except orjson.JSONDecodeError:
            said = response.body.decode(errors="replace")
        if response.status == 500:
            self.bugs.append(f"{method} {path}: {said}")
        return Answer(response.status, said, response.headers)

    async def insist(
        self, method: str, service: str, path: str, document: Any = None, *, at: int | None = None, **more: Any
    ) -> Answer | None:
        """The same call, at one instance after the other (or only `at` one), until the answer is definite; None after 45 s."""
        ends, n = time.monotonic() + WITHIN_S, self.random.randrange(2)
        while time.monotonic() < ends:
            n += 1
            try:
                answer = await self.call(method, service, path, document, instance=at or n, **more)
            except BrokenError:
                self.counts["broken connections"] += 1
            else:
                if answer.status not in PASSING:
                    return answer
                self.counts[f"{service} {answer.status} {answer.code}"] += 1
            await asyncio.sleep(self.random.uniform(0.05, 0.3))
        self.unfinished.append(f"{method} {path}")
        return None

    # --- residents ------------------------------------------------------------------------------------------------

    async def submit(self, key: str, *, service: str | None = None, repeat: bool = False) -> dict[str, Any] | None:
        """One request, until it is acknowledged; with `repeat` once more after the stream's duplicates window."""
        n = sum(key.encode())
        body: dict[str, Any] = {"service": service or "lamp", "location": {"area": AREAS[n % 2]}}
        if n % 3:
            body["text"] = f"请看一下 {key}"
        if n % 4 == 1:
            body["contact"] = {"phone": f"199 0000 {n % 100:04}"}
        answer = await self.insist("POST", "intake", "/v1/requests", body, key=key)
        if answer is None:
            return None
        if answer.status != 201:
            self.bugs.append(f"submission {key}: {answer.status} {answer.document}")
            return None
        self.submitted.setdefault(key, []).append(answer.document)
        self.keys[answer.document["id"]] = key
        if repeat:
            await asyncio.sleep(2.5)
            self.counts["submissions repeated"] += 1
            again = await self.insist("POST", "intake", "/v1/requests", body, key=key)
            if again is not None and again.status == 201:
                self.submitted[key].append(again.document)
            elif again is not None:
                self.bugs.append(f"repeat of {key}: {again.status} {again.document}")
        document: dict[str, Any] = answer.document
        return document

    async def resident(self, key: str) -> None:
        """Somebody who asks, sometimes twice, and sometimes thinks better of it."""
        r = self.random.random()
        service = "leak" if r < 0.3 else "fire" if r < 0.35 else "lamp"
        asked = await self.submit(key, service=service, repeat=0.4 < r < 0.46)
        if asked and 0.5 < r < 0.53:
            await self.insist(
                "POST", "intake", f"/v1/requests/{asked['tracking_code']}/withdraw", {"reason": "other"}, key=key
            )
            self.counts["withdrawn"] += 1

    async def afterwards(self, key: str, r: float) -> None:
        """A resident whose request is done: rates it, or has it done again."""
        answers = self.submitted.get(key)
        if not answers:
            return
        code = answers[0]["tracking_code"]
        if r < 0.1:
            await self.insist("POST", "intake", f"/v1/requests/{code}/rate", {"grade": 4, "solved": True}, key=key)
            self.counts["rated"] += 1
        elif r < 0.13:
            await self.insist("POST", "intake", f"/v1/requests/{code}/reopen", {}, key=key)
            self.counts["reopened"] += 1

    # --- members --------------------------------------------------------------------------------------------------

    async def command(self, verb: str, task: str, key: str, **data: Any) -> Commanded | None:
        """A command of the office, until it is answered; sometimes the answer gets lost and it is asked again."""
        path, id = f"/v1/tasks/{task}/{verb}", command_id(verb, task, key, **data)
        token = self.token("dispatcher")
        for _ in range(2 if self.random.random() < 0.07 else 1):
            answer = await self.insist("POST", "dispatch", path, data, token=token, key=key, district=DISTRICT)
        if answer is None:
            return None
        if answer.status == 200:
            given = Commanded(id, verb, answer.document)
        else:
            given = Commanded(id, verb, None, f"{answer.status} {answer.code}")
        before = self.commanded.get(id)
        if before is not None and (before.answer is None) != (given.answer is None):
            self.bugs.append(f"{verb} {task}: {before} and then {given}")
        self.commanded[id] = given
        self.counts[f"{verb} {'done' if given.answer else given.problem}"] += 1
        return given

    async def member(self, event: Mapping[str, Any]) -> None:
        """Somebody who was asked: says yes, says no, says nothing, or says it too late."""
        data, r = event["data"], self.random.random()
        task, member, key = data["task_id"], data["members"][0], f"{data['wave']}-{data['members'][0]}"
        await asyncio.sleep(self.random.uniform(0.0, 0.6) if r < 0.97 else OFFER_S + 0.3)
        if r < 0.8 or r > 0.97:
            yes = await self.command("accept", task, key, member=member)
            if yes is None or not yes.answer:
                return
            if r < 0.2:
                await self.command("arrive", task, key, member=member)
            await asyncio.sleep(self.random.uniform(0.1, 0.8))
            await self.command("done", task, key, member=member, outcome="solved")
        elif r < 0.94:
            await self.command("decline", task, key, member=member, reason="busy")

    async def supervisor(self, event: Mapping[str, Any]) -> None:
        """Somebody who looks after what nobody took, now and then."""
        if self.random.random() < 0.3:
            await asyncio.sleep(1)
            await self.command(
                "offer", event["data"]["task_id"], event["id"], member=f"m-{self.random.randint(1, MEMBERS):02}"
            )

    def play(self, sequence: int, event: Mapping[str, Any]) -> None:
        """What people do about an event of the staff stream."""
        match event["type"]:
            case "cn.paidan.task.offered.v1":
                self.go(self.member(event))
            case "cn.paidan.task.unplaced.v1":
                self.go(self.supervisor(event))
            case "cn.paidan.task.done.v1":
                r = self.random.random()
                if r < 0.13 and (key := self.keys.get(event["correlationid"])):
                    self.go(self.afterwards(key, r))

    # --- who watches ----------------------------------------------------------------------------------------------

    async def watch(
        self, name: str, *, instance: int | None = None, heard: Callable[[int, Mapping[str, Any]], None] | None = None
    ) -> Watched:
        """Follow the staff stream of the district from here on, over every break; `instance` None goes from one to the other."""
        after = (await self._listening()).last
        watched = Watched(name, DISTRICT, after)
        self.watched.append(watched)
        task = asyncio.create_task(self._watch(watched, instance, heard))
        self._watching.add(task)
        return watched

    async def _listening(self) -> Any:
        if self._listener is None:
            self._listener = await self.stack.connect("admin")

            async def live(request: Request) -> None:
                self.live.append((int(request.headers.get("Nats-Sequence", 0)), request.data))

            await self._listener.serve("live.evt.>", live)
        return await self._listener.state()

    async def overhear(self) -> None:
        """From now on also what is said on the bus and perhaps not stored: `overheard`."""

        async def take(request: Request) -> None:
            self.overheard.append((request.subject, request.data))

        await self._listening()
        assert self._listener
        await self._listener.serve("evt.*.dispatch.>", take)

    async def _watch(
        self, watched: Watched, instance: int | None, heard: Callable[[int, Mapping[str, Any]], None] | None
    ) -> None:
        headers = {"Authorization": f"Bearer {self.token('auditor')}"}
        last, n = watched.after, 0
        timeout = httpx2.Timeout(5, read=3)
        while True:
            n += 1
            urls = self.stack.all_urls["dispatch"]
            url = urls[((instance or n) - 1) % len(urls)]
            leave_after = self.random.randint(100, 1500)
            with suppress(httpx2.TransportError):
                async with self.streams.stream(
                    "GET", f"{url}/v1/stream", headers={**headers, "Last-Event-ID": str(last)}, timeout=timeout
                ) as response:
                    if response.status_code == 200:
                        rest = b""
                        async for chunk in response.aiter_bytes():
                            *blocks, rest = (rest + chunk).split(b"\n\n")
                            for block in blocks:
                                fields = dict(line.partition(b": ")[::2] for line in block.split(b"\n"))
                                if b"data" not in fields:
                                    continue
                                last = int(fields[b"id"])
                                watched.events.append((last, fields[b"data"]))
                                leave_after -= 1
                                if heard:
                                    heard(last, orjson.loads(fields[b"data"]))
                            if leave_after < 0:
                                break
            self.counts["streams resumed"] += 1
            await asyncio.sleep(0.1)

    # --- faults ---------------------------------------------------------------------------------------------------

    async def leader(self, bus: Bus | None = None, district: str = DISTRICT) -> int:
        """Which instance of dispatch wrote the last marker."""
        own = bus or await self.stack.connect("admin")
        try:
            while True:
                with suppress(BusError):
                    if last := await own.last(RULES.marker_subject(district)):
                        return int(orjson.loads(last.data)["data"]["by"].rpartition("-")[2])
                await asyncio.sleep(0.05)
        finally:
            if bus is None:
                await own.drain()

    def point(self, service: str, instance: int, where: str, about: str, do: str = "kill") -> Path:
        """Ask `launch` to end (or freeze) an instance where a call is about a word; the file goes when it does."""
        file = self.points / f"{service}-{instance}.json"
        fresh = file.with_suffix(".new")
        fresh.write_text(json.dumps({"where": where, "about": about, "do": do}))
        fresh.replace(file)
        return file

    # --- the end --------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> int:
        """How many people are doing something."""
        return len(self._jobs)

    def go(self, work: Coroutine[Any, Any, Any]) -> None:
        """Let it happen in the background; `settle` waits for it."""
        task = asyncio.create_task(work)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)

    async def settle(self, within_s: float = 90) -> None:
        """Until nobody does anything any more, every task has come to its end, and everybody has been told of it."""
        ends, quiet, why = time.monotonic() + within_s, 0, ""
        while quiet < 3:
            why = f"{len(self._jobs)} people are busy" if self._jobs else await self._unrest()
            quiet = 0 if why else quiet + 1
            assert time.monotonic() < ends, f"not at rest after {within_s:.0f} s: {why}"
            await asyncio.sleep(0.15)

    async def _unrest(self) -> str:
        """What is still going on; empty where nothing is."""
        token = self.token("auditor")
        try:
            everything = await self.call("GET", "dispatch", "/v1/tasks", token=token, limit=1)
            unplaced = await self.call("GET", "dispatch", "/v1/tasks", token=token, limit=1, status="unplaced")
            notices = await self.call("GET", "notify", "/v1/notices", token=token, district=DISTRICT)
            ledger = await self.call("GET", "ledger", "/v1/ledger", token=token)
        except BrokenError as why:
            return str(why)
        for answer in (everything, unplaced, notices, ledger):
            if answer.status != 200:
                return str(answer)
        if open_tasks := everything.document["total"] - unplaced.document["total"]:
            return f"{open_tasks} tasks are under way"
        if waiting := notices.document["waiting"]:
            return f"{waiting} notices wait"
        numbers = ledger.document
        if not numbers["complete"] or numbers["last_sequence"] != numbers["stream_last_sequence"]:
            return f"the ledger is behind: {numbers}"
        return ""

    async def history(self) -> History:
        """Everything, as it stands."""
        bus = await self.stack.connect("admin")
        try:
            async with asyncio.timeout(40):
                records, created, leaves, origin = await self._stable(bus)
                last_fact = max(
                    (r.sequence for r in records if f".{DISTRICT}." in r.subject and ".turn." not in r.subject),
                    default=0,
                )
                for watched in self.watched:
                    watched.until = last_fact
                    while _expected_last(records, watched) > (
                        watched.events[-1][0] if watched.events else watched.after
                    ):
                        await asyncio.sleep(0.05)
            states = await self._states(bus)
        finally:
            await bus.drain()
        return History(
            created=created,
            origin=origin,
            records=records,
            leaves=leaves,
            submitted=self.submitted,
            commanded=list(self.commanded.values()),
            watched=self.watched,
            live=self.live,
            receipts=self.receiver.receipts,
            crashes=self.crashes,
            states=states,
        )

    async def _stable(self, bus: Bus) -> tuple[list[Record], str, list[tuple[int, bytes]], str]:
        """Stream and ledger as of the same sequence: a marker may still come while we look."""
        while True:
            state = await bus.state()
            records = await read_stream(bus, state.last)
            header, leaves = await self.replay()
            covered = orjson.loads(leaves[-1][1])["src"]["seq"] if leaves else 0
            if covered == state.last and (await bus.state()).last == state.last:
                return records, state.created, leaves, header["log"]
            await asyncio.sleep(0.3)

    async def replay(self) -> tuple[dict[str, Any], list[tuple[int, bytes]]]:
        """The whole ledger: the header of its replay, and every leaf."""
        url = f"{self.stack.urls['ledger']}/v1/events"
        headers = {"Authorization": f"Bearer {self.token('auditor', district='*')}"}
        response = await self.http.request("GET", url, headers, None, {"kinds": "all"}, 30)
        assert response.status == 200, response.body
        header, *lines, trailer = response.body.splitlines()
        said = orjson.loads(trailer)
        assert said["end"], "the replay was cut short"
        assert said["count"] == len(lines)
        leaves = []
        for line in lines:
            index, _, leaf = line.removeprefix(b'{"s":').partition(b',"leaf":')
            leaves.append((int(index), leaf[:-1]))
        return orjson.loads(header), leaves

    async def _states(self, bus: Bus) -> dict[str, tuple[Any, Any]]:
        """The desk folded from zero, beside the one from a snapshot and the ones that live."""
        folded = await recover(bus, RULES, DISTRICT, snapshot=False)
        quick = await recover(bus, RULES, DISTRICT)
        if quick.folded > folded.folded:
            folded = await recover(bus, RULES, DISTRICT, snapshot=False)
        states: dict[str, tuple[Any, Any]] = {
            "snapshot": (plain(RULES.dump(folded.state)), plain(RULES.dump(quick.state)))
        }
        expected = plain(shown(folded.state))
        for instance in range(1, len(self.stack.all_urls["dispatch"]) + 1):
            live = await self._live(instance)
            ends = time.monotonic() + 5  # a standby is a moment behind
            while live != expected and time.monotonic() < ends:
                await asyncio.sleep(0.1)
                live = await self._live(instance)
            states[f"dispatch-{instance}"] = (expected, live)
        return states

    async def _live(self, instance: int) -> Any:
        token, tasks, after = self.token("auditor"), list[Any](), ""
        while True:
            page = await self.call(
                "GET", "dispatch", "/v1/tasks", token=token, instance=instance, limit=1000, after=after
            )
            assert page.status == 200, page.document
            tasks += page.document["tasks"]
            if not (after := page.document["next"]):
                break
        people = await self.call("GET", "dispatch", "/v1/members", token=token, instance=instance)
        return {
            "tasks": {task["id"]: task for task in tasks},
            "members": {member["id"]: {key: member[key] for key in MEMBER} for member in people.document["members"]},
        }

    async def verify(self, within_s: float = 90) -> list[Violation]:
        """Let everything run out, and check all there is; also that no client saw what it never should."""
        await self.settle(within_s)
        history = await self.history()
        broken = check(history) + decided_otherwise(history.leaves)
        broken += [Violation("a bug was answered", bug) for bug in self.bugs[:10]]
        broken += [Violation("no definite answer", what) for what in self.unfinished[:10]]
        return broken

    async def close(self) -> None:
        """Let go of everything but the stack."""
        for task in (*self._watching, *self._jobs):
            task.cancel()
        await asyncio.gather(*self._watching, *self._jobs, return_exceptions=True)
        if self._listener:
            await self._listener.drain()
        await self.streams.aclose()
        self.http.close()
        self.receiver.stop()


MEMBER = ("kind", "areas", "skills", "capacity", "load", "left")
TASK = (
    *("id", "request", "round", "area", "item", "urgency", "effort", "status", "wave", "offered", "tried", "holder"),
    *("until", "due", "asking", "helps"),
)


def shown(desk: Desk) -> Any:
    """A desk as `/v1/tasks` and `/v1/members` show it."""
    return {
        "tasks": {
            id: {name: getattr(task, name) for name in TASK} | {"districts": task.districts.split(",")}
            for id, task in desk.tasks.items()
        },
        "members": {
            id: {name: getattr(member, name) for name in MEMBER} | {"skills": sorted(member.skills)}
            for id, member in desk.members.items()
        },
    }


def plain(value: Any) -> Any:
    """As JSON would show it."""
    return orjson.loads(orjson.dumps(value, default=vars, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_UTC_Z))


def command_id(verb: str, task: str, key: str, **data: Any) -> str:
    """The id that dispatch gives a command: the client's key, within caller, district, verb and content."""
    content = orjson.dumps({"task": task, **data}, option=orjson.OPT_SORT_KEYS)
    return derived_id("command", OPERATOR, DISTRICT, verb, key, content)


def _expected_last(records: Sequence[Record], watched: Watched) -> int:
    """The last fact that this client has to see."""
    return max(
        (
            record.sequence
            for record in records
            if record.subject.startswith(f"evt.{watched.district}.") and ".turn." not in record.subject
            if watched.after < record.sequence
        ),
        default=0,
    )


async def read_stream(bus: Bus, last: int) -> list[Record]:
    """The whole stream with headers, by a consumer of its own."""
    from nats.js.api import AckPolicy, ConsumerConfig

    records: list[Record] = []
    nc = bus._nc
    config = ConsumerConfig(ack_policy=AckPolicy.NONE, mem_storage=True, inactive_threshold=30)
    consumer = await nc.jetstream(timeout=5).add_consumer(STREAM, config)
    inbox = nc.new_inbox()
    subscription = await nc.subscribe(inbox, pending_msgs_limit=-1, pending_bytes_limit=-1)
    ask = {"batch": max(last, 1), "expires": 30_000_000_000}
    await nc.publish(f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{consumer.name}", json.dumps(ask).encode(), reply=inbox)
    while len(records) < last:
        message = await subscription.next_msg(timeout=10)
        tokens = message.reply.split(".")
        headers = dict(message.headers or {})
        records.append(Record(int(tokens[5]), int(tokens[7]), message.subject, message.data, headers))
    await subscription.unsubscribe()
    return records


@asynccontextmanager
async def running(
    data: Path, *, seed: int, points: bool = False, desks: Mapping[int, str] = BOTH_LEAD
) -> AsyncIterator[System]:
    """
    A stack with register, members and receiver.

    Args:
        points: its services are started by `tests.system.launch`.
        desks: which district's desk each instance of dispatch is for; needs `points` where they differ.
    """
    folder = data / "world"
    folder.mkdir(parents=True)
    receiver = Receiver()
    stack = Stack(
        data / "stack",
        None,
        None,
        instances={"dispatch": len(desks), "intake": 2},
        services=("ledger", "dispatch", "notify", "intake"),
        environment={
            # Many are refused here, all from one address; who guesses is slowed down in tests of their own.
            "*": {"PAIDAN_LOGIN_MISSES_PER_S": "0"} | ({"PAIDAN_TEST_POINTS": str(folder)} if points else {}),
            "dispatch": {
                "PAIDAN_SNAPSHOT_FACTS": "1000",
                "PAIDAN_TAIL_EVENTS": "500",
                **({} if desks == BOTH_LEAD else {"PAIDAN_TEST_DISTRICTS": json.dumps(desks)}),
            },
            "notify": await receiver.start(folder),
        },
        command=launched if points else service_command,
    )
    system = System(stack, receiver, folder, seed)
    try:
        starting = asyncio.create_task(stack.start())
        await _apply(system, starting, desks)
        yield system
    finally:
        await system.close()
        await stack.stop()


def launched(service: str) -> Sequence[str]:
    """The service's own code under `tests.system.launch`."""
    return (service_command(service)[0], "-m", "tests.system.launch", service)


async def _apply(system: System, starting: asyncio.Task[None], desks: Mapping[int, str]) -> None:
    """Register and members. Intake is ready only when it has a register, so it is applied while the stack starts."""
    stack = system.stack
    document = {"document": register(), "why": "test"}
    admin: str | None = None
    while not starting.done() or admin is None:
        if starting.done():
            starting.result()
        with suppress(BrokenError, KeyError, AttributeError, IndexError):
            admin = admin or stack.token("admin")
            if (await system.call("POST", "ledger", "/v1/register", document, token=admin)).status == 200:
                break
        await asyncio.sleep(0.05)
    await starting
    await stack.wait_until_ready()
    for instance, of in desks.items():  # each has to have heard of its district
        token = system.token("auditor", district=of)
        while (await system.call("GET", "dispatch", "/v1/members", token=token, instance=instance)).status != 200:
            await asyncio.sleep(0.05)
    answer = await system.insist(
        "POST",
        "dispatch",
        "/v1/members/import",
        members(),
        token=system.token("dispatcher"),
        key=fresh_key(),
        at=next(instance for instance, of in desks.items() if of == DISTRICT),
        district=DISTRICT,
    )
    assert answer is not None
    assert answer.document["enrolled"] == MEMBERS, answer.document


def fresh_key() -> str:
    """An Idempotency-Key that nobody has used."""
    return str(UUID(int=random.getrandbits(128)))
