"""The demo's course: stack up, register and members in, the day, the load, until all is quiet; then the sum."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from deploy.demo import day, enclave, figures, load
from deploy.demo.boards import Boards
from deploy.demo.calls import Calls, Event
from deploy.demo.day import Residents
from deploy.demo.diary import Diary
from deploy.demo.members import Crews, Neighbours, Plans, impostors, read_members
from deploy.demo.progress import Teller
from deploy.demo.receivers import CAP, HTTP_CHANNELS, MAIL, Receivers
from deploy.demo.summary import Summary
from deploy.demo.witnesses import Witnesses
from deploy.errors import Said, SetupError
from deploy.stack import Stack
from shared.errors import BusError

HERE = Path(__file__).parent
PLACE, BOSTON = "register.json", "boston.json"
MEMBERS = {PLACE: "members.csv", BOSTON: "boston_members.csv"}
KNOWN_WITHIN_S = 30.0
"""How long the services take to hear of a new register."""
SETTLED_WITHIN_S = 60.0


async def play(folder: Path, teller: Teller) -> Summary:
    """
    Play the demo in an empty folder.

    Raises:
        SetupError: something outside stands in the way.
    """
    began = time.monotonic()
    async with AsyncExitStack() as open_:
        receivers = await open_.enter_async_context(Receivers())
        channels = folder / "channels.json"
        receivers.write_channels(channels)
        caps = json.dumps(dict.fromkeys((*HTTP_CHANNELS, MAIL), CAP))
        witnesses = Witnesses(folder / "witnesses", (enclave.SERVING, enclave.LOCATED))
        stack = Stack(
            folder,
            environment={
                "notify": {"PAIDAN_CHANNELS_FILE": str(channels), "PAIDAN_CAPS": caps},
                "ledger": {"PAIDAN_POLICY_FILE": str(witnesses.policy)},
            },
            on_event=teller.say,
        )
        teller.say("启动 nats-server、mongod 和四个服务 / starting two servers and four services …")
        await open_.enter_async_context(stack)
        await _refuse_used_bus(stack)
        teller.say("已就绪 / ready")
        calls = await open_.enter_async_context(Calls(stack))
        course = Course(stack, calls, receivers, witnesses, teller)
        open_.callback(course.stop)
        open_.push_async_callback(course.boards.end)
        open_.push_async_callback(witnesses.end)
        await course.fill_in()
        await course.listen()
        await course.live()
        await course.settle()
        summary = await course.sum_up(began)
        teller.say("停止 / stopping …")
    return summary


class Course:
    """One playing of the demo, from a running stack on."""

    def __init__(self, stack: Stack, calls: Calls, receivers: Receivers, witnesses: Witnesses, teller: Teller) -> None:
        self._stack = stack
        self._calls = calls
        self._receivers = receivers
        self._witnesses = witnesses
        self._teller = teller
        self._registers = {name: json.loads((HERE / name).read_text(encoding="utf-8")) for name in (PLACE, BOSTON)}
        self._members = {name: read_members(HERE / file) for name, file in MEMBERS.items()}
        self._files = {name: (HERE / file).read_bytes() for name, file in MEMBERS.items()}
        self._diary = Diary()
        self.boards = Boards(stack)
        self._plans = Plans()
        self._neighbours = Neighbours(calls, self._diary, self._members[PLACE], self._plans)
        self._crews = Crews(calls, self._diary, self._members[BOSTON])
        self._lines = day.read_day(HERE / "day.jsonl")
        self._rows = load.read_rows(HERE / "boston311.csv.gz")
        self._listening: list[asyncio.Task[None]] = []
        self._story = ""
        self._load: dict[str, float] = {}

    def stop(self) -> None:
        """Stop listening and playing."""
        for task in self._listening:
            task.cancel()
        self._neighbours.stop()
        self._crews.stop()

    async def fill_in(self) -> None:
        """Register and members, as an operator brings them in."""
        districts = [(name, code) for name in (PLACE, BOSTON) for code in self._codes(name)]
        step = self._teller.step("台账与人员", "register and members", 2 + len(districts))
        for name, why in ((PLACE, "演示 / demo"), (BOSTON, "压测 / load")):
            await self._stack.apply_register(self._registers[name], why=why)
            step.advance()
        for name, code in districts:
            answer = await self._import(self._files[name], code)
            ours = sum(row["district"] == code for row in self._members[name])
            if answer.get("enrolled") != ours or answer.get("error"):
                self._diary.fail(f"{code}：应登记 {ours} 人 / members to enrol, got {answer}")
            step.advance()
        items = {item["item"] for register in self._registers.values() for item in register["items"]}
        await _soon("intake", lambda: self._intake_knows(items))
        people = sum(map(len, self._members.values()))
        self._teller.say(
            f"已登记 {len(districts)} 个区、{people} 名人员 / {len(districts)} districts, {people} members"
        )

    async def listen(self) -> None:
        """
        Open the live streams: one that shows everything, one per district of the place, as its dispatcher sees it, for its
        members; and let the apps of the two offices of the enclave onto the bus, which witness the ledger as well.
        """
        streams: list[tuple[str, Callable[[Event], None], dict[str, str | int]]] = [
            (self._calls.token("dispatcher", sub="overview"), self._heard, {"types": "request.,task.,notice."})
        ]
        for code in self._codes(PLACE):
            token = self._calls.token("dispatcher", district=code, sub="overview")
            streams.append((token, self._neighbours.heard, {"types": "task.offered"}))
        await self.boards.connect((enclave.SERVING, enclave.LOCATED))
        self._witnesses.follow(self.boards.buses, self._signing_key)
        for token, heard, params in streams:
            connected = asyncio.Event()
            task = asyncio.create_task(self._calls.listen(token, heard, connected, **params))
            task.add_done_callback(self._broken)
            self._listening.append(task)
            await asyncio.wait_for(connected.wait(), KNOWN_WITHIN_S)

    async def live(self) -> None:
        """The day; while its last matters are being dealt with, the load."""
        day_step = self._teller.step("一天的诉求", "a day of requests", len(self._lines))
        residents = Residents(self._calls, self._diary, self._plans, self._lines, day.yesterday(), day_step.advance)
        meddling = asyncio.create_task(impostors(self._calls, self._diary, residents.story))
        asking_over = asyncio.create_task(self._ask_over(residents.story))
        lives = [*await residents.ask(), meddling, asking_over]
        await residents.insist()
        load_step = self._teller.step("压测：波士顿 311", "the load: Boston 311", len(self._rows))
        seconds = await load.post_all(self._calls, self._diary, self._rows, self._registers[BOSTON], load_step.advance)
        count = len(self._rows)
        self._load = {"requests": count, "seconds": round(seconds, 2), "per_second": round(count / seconds, 1)}
        await asyncio.gather(*lives)
        self._story = residents.story.result() if residents.story.done() else ""

    async def _ask_over(self, story: asyncio.Future[str]) -> None:
        try:
            await self.boards.ask_over(story, enclave.SERVING, enclave.LOCATED)
        except (SetupError, BusError, TimeoutError) as why:
            self._diary.fail(f"转办没有走完 / the hand-over did not come to its end: {why!r}")

    async def settle(self) -> None:
        """Until every offer has been answered, every message sent or put off, and everything is in the ledger."""
        self._teller.say(
            "等待收尾：派单有答复、消息已发、账本到齐 / until all offers are answered, messages sent, facts in"
        )
        await _soon("desk", self._all_offered, SETTLED_WITHIN_S, self._diary)
        await asyncio.gather(self._neighbours.rest(), self._crews.rest())
        await _soon("desk", self._no_open_offers, SETTLED_WITHIN_S, self._diary)
        await _soon("notify", self._no_messages, SETTLED_WITHIN_S, self._diary)

    async def sum_up(self, began: float) -> Summary:
        """Replay the ledger and hold it against everything else."""
        numbers: dict[str, Any] = {}

        async def complete() -> bool:
            numbers.update((await self._calls.get("ledger", "/v1/ledger", token=auditor)).document)
            caught_up: bool = (
                numbers["last_sequence"] == numbers["stream_last_sequence"] == numbers["projected_sequence"]
            )
            return caught_up and numbers["last_sequence"] >= self._diary.last_sequence

        async def cosigned() -> bool:
            checkpoint = [line async for line in self._calls.lines("/checkpoint", token=auditor)]
            return int(checkpoint[1]) >= int(numbers["leaves"])

        auditor = self._calls.token("auditor", sub="auditor")
        await _soon("ledger", complete, SETTLED_WITHIN_S, self._diary)
        self._teller.say("重放账本、核对 / replaying the ledger and comparing")
        if not numbers["complete"]:
            self._diary.fail("账本自称不全 / the ledger says it is not complete")
        folded = await figures.replay(self._calls, auditor, numbers["leaves"])
        if not folded.accounted or folded.last_sequence != numbers["last_sequence"]:
            self._diary.fail(f"序号对不上 / sequences unaccounted for: {numbers}")
        received = Counter({channel: self._receivers.counts[channel] for channel in (*HTTP_CHANNELS, MAIL)})
        told = await enclave.tell(self._calls, self._story, self._registers[PLACE], self.boards.by_district)
        shared = await enclave.share(self._calls, told.area)
        await _soon("witnesses", cosigned, KNOWN_WITHIN_S, self._diary)
        self._teller.say("核对账本 / verifying the ledger")
        verified = await self._witnesses.verify(self._stack.data, self._signing_key, numbers["leaves"])
        both = {key: [*self._registers[PLACE][key], *self._registers[BOSTON][key]] for key in self._registers[PLACE]}
        return Summary(
            districts=[code for name in (PLACE, BOSTON) for code in self._codes(name)],
            names=enclave.Names(both),
            figures=folded,
            received=received,
            notices=folded.notices(),
            refused=self._diary.refused,
            stream_last=numbers["stream_last_sequence"],
            latencies_ms=self._diary.latencies_ms(),
            load=self._load,
            enclave=told,
            shared=shared,
            verified=verified,
            took_s=time.monotonic() - began,
            failures=[
                *self._diary.failures,
                *told.failures,
                *shared.failures,
                *verified.failures,
                *figures.compare(folded, self._diary, received),
            ],
        )

    @property
    def _signing_key(self) -> Path:
        return self._stack.identities.secrets_dir("ledger") / "ledger_signing_key"

    def _codes(self, name: str) -> list[str]:
        return [entry["district"] for entry in self._registers[name]["districts"]]

    def _heard(self, event: Event) -> None:
        self._diary.heard(event)
        self._crews.heard(event)

    def _broken(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (why := task.exception()):
            self._diary.fail(f"实时流中断 / the live stream broke: {why!r}")

    async def _import(self, content: bytes, district: str) -> dict[str, Any]:
        """Enrol a district's members; its desk may have to hear of the register first."""
        ends = time.monotonic() + KNOWN_WITHIN_S
        token = self._calls.token("dispatcher", district=district, sub=f"duty-{district}")
        while True:
            answer = await self._calls.post(
                "dispatch", "/v1/members/import", content, token=token, key=f"members-{district}", media_type="text/csv"
            )
            if answer.problem != "unknown_district" or time.monotonic() > ends:
                document: dict[str, Any] = answer.document
                return document
            await asyncio.sleep(0.1)

    async def _intake_knows(self, items: set[str]) -> bool:
        answer = await self._calls.get("intake", "/v1/catalogue")
        return answer.ok and items <= {item["item"] for item in answer.document["items"]}

    async def _all_offered(self) -> bool:
        """Whether each request has been offered to somebody, withdrawn, or is known to be unplaced."""
        for columns in self._diary.counted.values():
            if columns["submitted"] - columns["offered"] - columns["withdrawn"] - columns["unplaced"]:
                return False
        return True

    async def _no_open_offers(self) -> bool:
        return not self._diary.open_offers

    async def _no_messages(self) -> bool:
        return not self._diary.notices


async def _refuse_used_bus(stack: Stack) -> None:
    bus = await stack.connect()
    try:
        last = (await bus.state()).last
    finally:
        await bus.drain()
    if last:
        raise SetupError(
            Said("总线上已有事实", f"there are {last} facts on the bus already"),
            Said("演示要从空的总线开始", "the demo begins with an empty bus: use another or unset NATS_URL"),
        )


async def _soon(
    who: str, holds: Callable[[], Any], within_s: float = KNOWN_WITHIN_S, diary: Diary | None = None
) -> None:
    """Wait until it holds; where it does not come to that, a failure of the demo; without a diary, SetupError."""
    ends = time.monotonic() + within_s
    while not await holds():
        if time.monotonic() > ends:
            line = f"{who} 在 {within_s:.0f} 秒内没有完成 / {who} did not finish within {within_s:.0f} s ({holds.__name__})"
            if diary is None:
                raise SetupError(
                    Said(f"{who} 在 {within_s:.0f} 秒内没有读到台账", f"{who} did not hear of the register"),
                    Said("请查看 logs 目录中的日志", "look at its log in the folder `logs`"),
                )
            diary.fail(line)
            return
        await asyncio.sleep(0.1)
