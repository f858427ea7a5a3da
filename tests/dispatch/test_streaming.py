"""The live stream of staff apps: nothing lost, nothing repeated, nothing of others."""

import asyncio
import json
import socket
import time
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import httpx2
import pytest

from services.dispatch import showing
from services.dispatch.history import History
from services.dispatch.settings import Settings
from services.dispatch.showing import Event, Wanted
from services.dispatch.streaming import LiveTail
from shared import serving
from shared.auth import Caller
from shared.bus import Delivery, Message
from shared.envelope import Envelope
from shared.errors import RefusedError
from shared.facts import HUB, Fact, MatchExplained, TaskAccepted, TaskClosed, TaskDeclined, TaskExpired, TaskOffered
from tests.dispatch.conftest import Service
from tests.dispatch.test_main import free_port
from tests.examples import (
    LEAK,
    LI,
    NOW,
    OFFER,
    OUJING,
    QINGSHAN,
    TASK,
    TEAM,
    WANG,
    WUCHANG,
    XINXIANG,
    envelope,
    id_of,
    submitted,
)

SHARED = f"{WUCHANG},{QINGSHAN}"


def accepted(n: int, *, area: str = OUJING, districts: str = WUCHANG) -> Envelope:
    """A fact of a task."""
    fact = TaskAccepted(task_id=id_of("task", n), member_id=LI)
    return envelope(fact, area=area, districts=districts, id=id_of("accepted", n))


def wanted(
    district: str = WUCHANG, *, area: str | None = None, types: str | None = None, of: str | None = None
) -> Wanted:
    """What somebody of this district wants."""
    return Wanted.by(Caller("staff-1", district, frozenset({"dispatcher"})), of, area, types)


class Client:
    """Somebody who watches and remembers what they got."""

    def __init__(self, tail: LiveTail, what: Wanted, after: int | None = None, *, pace_s: float = 0) -> None:
        self.ids: list[int] = []
        self.names: list[str] = []
        self.data: list[Any] = []
        self.began = asyncio.Event()
        self.until = asyncio.Event()
        self.pace_s = pace_s
        self.task = asyncio.create_task(self.watch(tail, what, after))

    async def watch(self, tail: LiveTail, what: Wanted, after: int | None) -> None:
        async for lines in tail.watch(what, after, self.until):
            if lines.startswith(b":"):
                self.began.set()
                continue
            for event in lines.decode().removesuffix("\n\n").split("\n\n"):
                id, name, data = event.split("\n")
                self.ids.append(int(id.removeprefix("id: ")))
                self.names.append(name.removeprefix("event: "))
                self.data.append(json.loads(data.removeprefix("data: ")))
                if self.pace_s:
                    await asyncio.sleep(self.pace_s)

    async def until_got(self, last: int, within_s: float = 10) -> None:
        """Wait for a sequence."""
        ends = asyncio.get_running_loop().time() + within_s
        while not self.ids or self.ids[-1] < last:
            assert asyncio.get_running_loop().time() < ends, f"only up to {self.ids[-1:]}"
            await asyncio.sleep(0.01)

    async def leave(self) -> None:
        self.until.set()
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def write(service: Service, first: int, n: int) -> int:
    """So many facts; returns the last one's sequence."""
    return await service.store(service.bus, *(accepted(i) for i in range(first, first + n)))


async def test_who_watches_gets_what_comes_from_now_on(service: Service) -> None:
    before = await write(service, 0, 5)
    await service.start(desks=False)
    client = Client(service.tail, wanted())
    await client.began.wait()
    last = await write(service, 5, 3)
    await client.until_got(last)
    assert client.ids == list(range(before + 1, last + 1))
    assert client.names == ["task.accepted"] * 3
    assert client.data[0]["data"]["task_id"] == id_of("task", 5)
    await client.leave()


async def test_who_comes_before_the_tail_has_begun_gets_no_history(service: Service) -> None:
    await write(service, 0, 5)
    client = Client(service.tail, wanted())
    await asyncio.sleep(0.05)
    await service.start(desks=False)
    await client.began.wait()
    last = await write(service, 5, 1)
    await client.until_got(last)
    assert client.ids == [last]
    await client.leave()


@pytest.mark.parametrize("back", [0, 1, 30, 49, 50, 51, 300])
async def test_who_comes_back_misses_and_repeats_nothing(service: Service, back: int) -> None:
    """The tail holds 50: further back it is read from the stream."""
    first = (await service.bus.state()).last
    await service.start(desks=False)
    other = Client(service.tail, wanted(), None)
    await service.until_holds(lambda: service.tail.last == first)
    last = await write(service, 0, 300)
    await service.until_holds(lambda: service.tail.last == last)
    client = Client(service.tail, wanted(), last - back)
    last = await write(service, 300, 5)
    await client.until_got(last)
    assert client.ids == list(range(max(first, last - 5 - back) + 1, last + 1))
    await client.leave()
    await other.leave()


async def test_what_was_there_before_the_tail_began_is_read_from_the_stream(service: Service) -> None:
    first = (await service.bus.state()).last
    last = await write(service, 0, 700)
    await service.start(desks=False)
    client = Client(service.tail, wanted(), first)
    await client.until_got(last)
    assert client.ids == list(range(first + 1, last + 1))
    await client.leave()


async def test_a_client_that_is_slower_than_the_facts_misses_nothing(service: Service) -> None:
    first = (await service.bus.state()).last
    await service.start(desks=False)
    clients = [Client(service.tail, wanted(), first, pace_s=pace) for pace in (0, 0.0005, 0.002)]
    last = first
    for n in range(20):
        last = await write(service, n * 40, 40)
        await asyncio.sleep(0.005)
    for client in clients:
        await client.until_got(last, within_s=20)
        assert client.ids == list(range(first + 1, last + 1))
        await client.leave()


async def test_those_who_want_the_same_share_what_is_written(service: Service) -> None:
    await service.start(desks=False)
    streams = [service.tail.watch(wanted(), None, service.until) for _ in range(3)]
    for stream in streams:
        assert (await anext(stream)).startswith(b": paidan")
    await write(service, 0, 5)
    writes = [await anext(stream) for stream in streams]
    assert writes[0] is writes[1] is writes[2]


async def test_a_hundred_who_were_away_read_the_stream_once(service: Service) -> None:
    """As after a restart of this process: everybody comes back at once, and the tail has only begun."""
    first = (await service.bus.state()).last
    last = await write(service, 0, 900)
    await service.start(desks=False)
    clients = [Client(service.tail, wanted(), first + n % 3) for n in range(100)]
    for n, client in enumerate(clients):
        await client.until_got(last, within_s=20)
        assert client.ids == list(range(first + n % 3 + 1, last + 1))
    info = json.loads(await service.bus.request("$JS.API.STREAM.INFO.EVENTS", b""))
    assert info["state"]["consumer_count"] <= 3
    for client in clients:
        await client.leave()


async def test_a_block_grows_with_the_stream_and_a_gap_at_its_end_is_passed(service: Service) -> None:
    history = History(service.bus)
    first = (await service.bus.state()).last
    last = await write(service, 0, 5)
    found, reached = await history.after(first, last)
    assert ([event.sequence for event in found], reached) == ([*range(first + 1, last + 1)], last)
    more = await write(service, 5, 5)
    found, reached = await history.after(last, more)
    assert ([event.sequence for event in found], reached) == ([*range(last + 1, more + 1)], more)
    assert await history.after(more, more + 3) == ([], more + 3)
    await history.close()


async def test_no_more_than_so_many_watch(service: Service) -> None:
    tail = LiveTail(service.bus, events=50, clients=2)

    def place(n: int) -> AbstractContextManager[None]:
        return tail.place(Caller(f"staff-{n}", str(n), frozenset({"dispatcher"})))

    with place(1):
        with place(2), pytest.raises(RefusedError, match="too_many_watch"), place(3):
            pass
        with place(2):
            pass


@pytest.mark.parametrize(("callers", "code"), [(1, "too_many_streams"), (9, "too_many_watch")])
async def test_neither_a_caller_nor_a_district_takes_all_places(service: Service, callers: int, code: str) -> None:
    tail = LiveTail(service.bus, events=50, clients=80)

    def place(n: int, district: str = WUCHANG, *, limited: bool = True) -> AbstractContextManager[None]:
        return tail.place(Caller(f"staff-{n % callers}", district, frozenset({"dispatcher"})), limited=limited)

    with ExitStack() as taken:
        for n in range(20 * min(callers, 2)):
            taken.enter_context(place(n))
        with pytest.raises(RefusedError, match=code), place(0):
            pass
        with place(0, QINGSHAN), place(0, limited=False):
            pass
    with place(0):
        pass


async def test_what_is_no_fact_is_passed_over(service: Service) -> None:
    first = (await service.bus.state()).last
    await service.bus.put("evt.420106.dispatch.-.task.accepted", b"{broken")
    await service.bus.put("evt.420106.dispatch.x", b"{}")
    await service.start(desks=False)
    client = Client(service.tail, wanted(), first)
    last = await write(service, 0, 1)
    await service.bus.commit([Message("evt.420106.dispatch.-.task.accepted", b"[]")])
    await client.until_got(last)
    assert client.ids == [last]
    await client.leave()


# --- who sees what ----------------------------------------------------------------------------------------------------


def event(fact: Envelope) -> Event:
    """As the tail holds it."""
    found = Event.of(Delivery(7, 0, fact.subject, fact.encode()))
    assert found
    return found


EXPLAINED = envelope(
    MatchExplained(match_id=id_of("m"), task_id=TASK, policy=1, considered=0, fell_out={}, best=(), chosen=()),
    area="-",
    districts=SHARED,
)


def test_a_district_sees_its_own_and_nothing_of_others() -> None:
    assert wanted(WUCHANG).shows(event(accepted(1)))
    assert not wanted(QINGSHAN).shows(event(accepted(1)))
    assert wanted(WUCHANG).shows(event(EXPLAINED))


def test_what_happens_in_an_enclave_both_see_but_not_why() -> None:
    shared = event(accepted(1, area=XINXIANG, districts=SHARED))
    assert wanted(WUCHANG).shows(shared)
    assert wanted(QINGSHAN).shows(shared)
    assert not wanted(QINGSHAN).shows(shared, shares=lambda _district, _event: False)
    public = event(accepted(1, area=XINXIANG, districts=HUB))
    assert wanted(QINGSHAN).shows(public, shares=lambda _district, _event: False), "what everybody may know"
    assert not wanted("420111").shows(shared)
    assert not wanted(QINGSHAN).shows(event(EXPLAINED))
    assert not wanted(QINGSHAN).shows(event(envelope(TEAM[0], districts=SHARED)))


def test_a_token_for_everywhere_sees_all_or_the_district_it_names() -> None:
    assert wanted("*").shows(event(accepted(1)))
    assert not wanted("*", of=QINGSHAN).shows(event(accepted(1)))


def test_nobody_watches_a_foreign_district() -> None:
    with pytest.raises(RefusedError, match="foreign_district"):
        wanted(QINGSHAN, of=WUCHANG)


def test_areas_and_kinds_can_be_chosen() -> None:
    assert wanted(area=OUJING).shows(event(accepted(1)))
    assert not wanted(area=XINXIANG).shows(event(accepted(1)))
    assert wanted(types="task.off, task.acc").shows(event(accepted(1)))
    assert not wanted(types="task.done").shows(event(accepted(1)))
    assert wanted(types=" , ").shows(event(accepted(1)))


def test_what_could_end_an_event_by_a_line_break_is_no_fact() -> None:
    fact = accepted(1)
    pretty = json.dumps(json.loads(fact.encode()), indent=1).encode()
    assert Event.of(Delivery(7, 0, fact.subject, pretty)) is None


# --- members ----------------------------------------------------------------------------------------------------------


def told(fact: Fact, *, asked: tuple[str, ...] = (), roles: frozenset[str] = frozenset({"member"})) -> bool:
    """Whether Li, who has these roles and was asked about these tasks, sees it."""
    what = Wanted.by(Caller(LI, WUCHANG, roles), None, None, None)
    return what.shows(event(envelope(fact, area="-" if fact.name.startswith("match") else OUJING)), asked)


def offered(*members: str) -> TaskOffered:
    """An offer to these."""
    return TaskOffered(
        task_id=TASK, wave=1, members=members, item=LEAK, urgency=0, until=NOW + OFFER, match_id=id_of("m")
    )


def test_a_member_sees_what_names_them_and_what_becomes_of_what_they_were_asked() -> None:
    assert told(offered(LI))
    assert told(TaskAccepted(task_id=TASK, member_id=LI))
    assert told(TaskAccepted(task_id=TASK, member_id=WANG), asked=(TASK,))
    assert told(TaskClosed(task_id=TASK, reason="withdrawn"), asked=(TASK,))


def test_a_member_sees_nothing_about_others() -> None:
    for fact in (
        offered(WANG),
        TaskAccepted(task_id=TASK, member_id=WANG),
        TaskClosed(task_id=TASK, reason="withdrawn"),
        submitted(),
        TEAM[0],
        TEAM[1],
        EXPLAINED.fact,
    ):
        assert not told(fact)
        assert told(fact, roles=frozenset({"member", "dispatcher"}))


def test_whom_else_the_desk_asked_and_why_they_said_no_is_not_shown() -> None:
    for fact in (
        offered(WANG),
        TaskDeclined(task_id=TASK, member_id=WANG, reason="off_sick"),
        TaskExpired(task_id=TASK, wave=1, members=(WANG,)),
        EXPLAINED.fact,
    ):
        assert not told(fact, asked=(TASK,))


def test_a_role_that_nobody_knows_widens_nothing() -> None:
    assert not told(offered(WANG), roles=frozenset({"member", "poet"}))


async def test_a_member_hears_how_what_they_were_offered_ends(service: Service) -> None:
    first = (await service.bus.state()).last
    facts = (offered(WANG), offered(LI), TaskAccepted(task_id=TASK, member_id=WANG))
    last = await service.store(service.bus, *(envelope(fact, area=OUJING) for fact in facts))
    await service.start(desks=False)
    client = Client(service.tail, Wanted.by(Caller(LI, WUCHANG, frozenset({"member"})), None, None, None), first)
    await client.until_got(last)
    assert client.ids == [last - 1, last]
    await client.leave()


async def test_a_stream_ends_with_its_token(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A little after it, as at the door: here 0.3 s instead of 5."""
    monkeypatch.setattr(showing, "LEEWAY_S", 0.3)
    await service.start(desks=False)
    client = Client(service.tail, wanted()._replace(expires=time.time() + 0.2))
    await client.began.wait()
    last = await write(service, 0, 1)
    await client.until_got(last)
    await asyncio.wait_for(client.task, 5)
    await write(service, 1, 1)
    assert client.ids == [last]


async def test_catching_up_ends_with_the_token_too(service: Service) -> None:
    first = (await service.bus.state()).last
    await write(service, 0, 300)
    await service.start(desks=False)
    client = Client(service.tail, wanted()._replace(expires=time.time() - 60), first)
    await asyncio.wait_for(client.task, 5)
    assert client.ids == []


# --- over HTTP --------------------------------------------------------------------------------------------------------


async def lines_of(service: Service, path: str, token: str, **headers: str) -> httpx2.Response:
    """The answer, after the service was told to stop."""

    async def stop() -> None:
        await service.until_holds(lambda: service.tail.last)
        await asyncio.sleep(0.5)
        service.until.set()

    stopping = asyncio.create_task(stop())
    try:
        async with asyncio.timeout(15):
            return await service.http.get(path, headers={"authorization": f"Bearer {token}", **headers})
    finally:
        await stopping


async def test_who_comes_while_the_service_stops_waits_for_nothing(service: Service) -> None:
    service.until.set()
    await service.start(desks=False)
    await asyncio.gather(*service.tasks)
    async with asyncio.timeout(5):
        answer = await service.get("/v1/stream")
    assert answer.status_code == 200


async def test_last_event_id_resumes_over_http(service: Service) -> None:
    first = (await service.bus.state()).last
    last = await write(service, 0, 4)
    await service.start(desks=False)
    answer = await lines_of(service, "/v1/stream", service.token(), **{"last-event-id": str(last - 2)})
    assert answer.headers["content-type"].startswith("text/event-stream")
    ids = [int(line.removeprefix("id: ")) for line in answer.text.splitlines() if line.startswith("id: ")]
    assert ids == [last - 1, last]
    assert first < last


async def test_an_office_sees_only_its_own_over_http(service: Service) -> None:
    first = (await service.bus.state()).last
    await write(service, 0, 3)
    shared = await service.store(service.bus, accepted(9, area=XINXIANG, districts=SHARED), EXPLAINED)
    await service.store(service.intake, envelope(submitted()))
    await service.start(desks=False)
    token = service.token(district=QINGSHAN)
    answer = await lines_of(service, f"/v1/stream?after={first}", token)
    assert [line for line in answer.text.splitlines() if line.startswith("id: ")] == [f"id: {shared - 1}"]


async def test_who_comes_when_all_places_are_taken_is_told_when_to_come_again(service: Service) -> None:
    await service.start(desks=False)
    with ExitStack() as taken:
        everyone = Caller("load", "*", frozenset({"dispatcher"}))
        for _ in range(800):
            taken.enter_context(service.tail.place(everyone, limited=False))
        answer = await service.get("/v1/stream")
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "too_many_watch", "10")


async def test_who_does_not_read_holds_up_nobody_and_has_missed_nothing(service: Service) -> None:
    """Over a real socket: 8 MB for a client that reads nothing until the others have everything."""
    await service.start(desks=False)
    port = free_port()
    served = asyncio.create_task(serving.serve(service.app, Settings(http_port=port), until=service.until))
    other = Client(service.tail, wanted())
    await other.began.wait()
    stuck, writer = await connected(port, service.token())
    await stuck.readuntil(b"\r\n\r\n")
    first = (await service.bus.state()).last
    last = first
    for n in range(0, 8_000, 400):
        last = await write(service, n, 400)
    await other.until_got(last, within_s=20)
    ids: list[int] = []
    async with asyncio.timeout(20):
        while not ids or ids[-1] < last:
            line = await stuck.readline()
            if line.startswith(b"id: "):
                ids.append(int(line[4:]))
    assert ids == list(range(first + 1, last + 1))
    writer.close()
    await other.leave()
    service.until.set()
    await served


async def connected(port: int, token: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client that has asked for the stream; it takes little at a time."""
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    one.setblocking(False)
    loop = asyncio.get_running_loop()
    while True:
        try:
            await loop.sock_connect(one, ("127.0.0.1", port))
            break
        except ConnectionRefusedError:
            await asyncio.sleep(0.05)
    reader, writer = await asyncio.open_connection(sock=one, limit=65536)
    writer.write(f"GET /v1/stream HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
    return reader, writer


@pytest.mark.parametrize("cursor", ["x", "-1", "1e3", "²", "9999999"])
async def test_a_cursor_that_is_none_is_refused(service: Service, cursor: str) -> None:
    await service.start(desks=False)
    headers = {b"authorization": f"Bearer {service.token()}".encode(), b"last-event-id": cursor.encode("latin-1")}
    answer = await service.http.get("/v1/stream", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_cursor")


async def test_without_a_token_or_a_role_nobody_watches(service: Service) -> None:
    await service.start(desks=False)
    assert (await service.http.get("/v1/stream")).json()["code"] == "unauthenticated"
    assert (await service.get("/v1/stream", token=service.token("x", "poet"))).json()["code"] == "forbidden"
