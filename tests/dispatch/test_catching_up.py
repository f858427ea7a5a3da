"""What was missed, asked for on the bus: every page by the rules of the live stream, bounded, and always further."""

import asyncio
from collections.abc import AsyncIterator
from datetime import date
from typing import Any

import orjson
import pytest

from services.dispatch import streaming
from services.dispatch.catching_up import AT_ONCE_MAX, CatchingUp
from shared.auth import Doorkeeper
from shared.bus import Bus, Message
from shared.facts import TaskAccepted, TaskClosed
from tests.conftest import Connect
from tests.dispatch.conftest import IN_FORCE, Service
from tests.dispatch.test_streaming import EXPLAINED, SHARED, Client, accepted, offered, wanted, write
from tests.examples import (
    HONGSHAN,
    LI,
    OUJING,
    QINGSHAN,
    REGISTER,
    TASK,
    WANG,
    WUCHANG,
    XINXIANG,
    envelope,
    id_of,
    submitted,
)


class Asker:
    """Somebody on the bus; here the administrator, who is let in everywhere."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def __call__(self, district: str = WUCHANG, what: str = "events", /, **ask: Any) -> dict[str, Any]:
        """One page."""
        answer = await self._bus.request(f"qry.{district}.desk.{what}", orjson.dumps(ask), timeout_s=5)
        return orjson.loads(answer)  # type: ignore[no-any-return]

    async def refused(self, district: str = WUCHANG, what: str = "events", /, **ask: Any) -> str:
        """The code of the problem."""
        return str((await self(district, what, **ask))["problem"]["code"])

    async def sequences(
        self, district: str = WUCHANG, what: str = "events", /, after: int = 0, **ask: Any
    ) -> list[int]:
        """All pages from a sequence on."""
        found: list[int] = []
        while True:
            page = await self(district, what, after=after, **ask)
            found += [event["sequence"] for event in page["events"]]
            assert page["after"] > after or page["after"] == page["last"]
            after = page["after"]
            if after >= page["last"]:
                return found


@pytest.fixture
async def ask(service: Service, connect: Connect) -> AsyncIterator[Asker]:
    """The service answers."""
    catching_up = CatchingUp(
        service.bus, service.desks, service.tail, Doorkeeper.from_file(service.identities.jwks_file)
    )
    answering = asyncio.create_task(catching_up.run(service.until))
    await service.start(desks=False)
    yield Asker(await connect("admin"))
    service.until.set()
    await answering


async def test_pages_follow_each_other_without_loss_or_repeat_across_what_the_tail_holds(
    service: Service, ask: Asker
) -> None:
    """The tail begins with the first question and holds 50; the rest is read from the stream."""
    first = (await service.bus.state()).last
    await write(service, 0, 300)
    await ask()
    last = await write(service, 300, 300)
    for limit in (200, 7):
        assert await ask.sequences(after=first, limit=limit) == list(range(first + 1, last + 1))


async def test_a_page_has_what_was_stored_before_it_was_asked_for(service: Service, ask: Asker) -> None:
    for n in range(30):
        last = await write(service, n, 1)
        page = await ask(after=last - 1)
        assert [event["sequence"] for event in page["events"]] == [last]
        assert page["last"] >= page["after"] >= last


async def test_an_event_is_the_envelope_as_it_is_stored(service: Service, ask: Asker) -> None:
    last = await write(service, 0, 1)
    page = await ask(after=last - 1)
    assert page["events"] == [{"sequence": last, "event": orjson.loads(accepted(0).encode())}]


async def test_who_says_no_sequence_is_told_where_now_is(service: Service, ask: Asker) -> None:
    last = await write(service, 0, 3)
    assert await ask() == {"events": [], "after": last, "last": last}


async def test_an_office_is_shown_its_own_and_what_is_shared_with_it(service: Service, ask: Asker) -> None:
    first = await write(service, 0, 3)
    shared = await service.store(service.bus, accepted(9, area=XINXIANG, districts=SHARED))
    await service.store(service.bus, EXPLAINED)
    await service.store(service.intake, envelope(submitted()))
    assert await ask.sequences(QINGSHAN, after=first) == [shared]
    assert await ask.sequences("420111", after=first) == []
    assert await ask.sequences(after=first, types="task., handover.") == [shared]
    assert len(await ask.sequences(after=first)) == 3


async def test_before_the_register_is_read_nobody_is_shown_what_it_may_have_closed(
    service: Service, ask: Asker
) -> None:
    service.desks.sharing.loaded = False
    assert await ask.refused(QINGSHAN) == "unavailable"
    stream = await service.get("/v1/stream")
    assert (stream.status_code, stream.json()["code"]) == (503, "unavailable")
    assert "register" in (await service.http.get("/readyz")).json()["missing"]
    desks = asyncio.create_task(service.desks.run())
    await service.until_holds(lambda: service.desks.sharing.loaded)
    assert (await ask(QINGSHAN))["events"] == []
    service.until.set()
    await desks


@pytest.mark.parametrize("how", ["ended", "without them"])
async def test_an_agreement_that_has_ended_closes_the_past_as_well(service: Service, ask: Asker, how: str) -> None:
    for fact in (*REGISTER, IN_FORCE):
        service.desks.sharing.take(fact)
    first = (await service.bus.state()).last
    shared = await service.store(service.bus, accepted(9, area=XINXIANG, districts=SHARED))
    asked = await service.store(service.bus, accepted(8, area=OUJING, districts=SHARED))
    assert await ask.sequences(QINGSHAN, after=first) == [shared, asked]
    watching = Client(service.tail, wanted(QINGSHAN), first)
    await watching.until_got(asked)
    change = {"valid_to": date(2026, 3, 2)} if how == "ended" else {"parties": (WUCHANG, HONGSHAN)}
    service.desks.sharing.take(IN_FORCE.model_copy(update=change))
    assert await ask.sequences(QINGSHAN, after=first) == [asked], "what names them for another reason stays"
    again = Client(service.tail, wanted(QINGSHAN), first)
    await again.until_got(asked)
    assert again.ids == [asked], "also of what the tail still holds"
    assert await ask.sequences(WUCHANG, after=first) == [shared, asked]
    await watching.leave()
    await again.leave()


async def test_a_page_that_finds_nothing_in_time_says_how_far_it_looked(
    service: Service, ask: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = (await service.bus.state()).last
    await write(service, 0, 700)
    monkeypatch.setattr(streaming, "PAGE_S", 0.0001)
    page = await ask(QINGSHAN, after=first)
    assert page["events"] == []
    assert first < page["after"] < page["last"]
    assert await ask.sequences(QINGSHAN, after=first) == []


async def test_a_page_holds_no_more_than_the_bus_carries(
    service: Service, ask: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = (await service.bus.state()).last
    last = await write(service, 0, 40)
    monkeypatch.setattr(streaming, "PAGE_BYTES", 2000)
    assert 1 <= len((await ask(after=first))["events"]) < 10
    assert await ask.sequences(after=first) == list(range(first + 1, last + 1))
    monkeypatch.setattr(streaming, "PAGE_BYTES", 1)
    assert await ask.sequences(after=last - 2) == [last - 1, last]


async def test_a_member_is_shown_their_own_for_their_token(service: Service, ask: Asker) -> None:
    first = (await service.bus.state()).last
    facts = (
        offered(WANG),
        offered(LI),
        TaskAccepted(task_id=TASK, member_id=WANG),
        TaskClosed(task_id=TASK, reason="withdrawn"),
        TaskAccepted(task_id=id_of("task", 9), member_id=WANG),
    )
    last = await service.store(service.bus, *(envelope(fact, area=OUJING) for fact in facts))
    token = service.token(LI, "member")
    assert await ask.sequences(WUCHANG, "mine", after=first, token=token) == [last - 3, last - 2, last - 1]
    clerk = service.token("staff-2", "clerk")
    assert await ask.sequences(WUCHANG, "mine", after=first, token=clerk) == list(range(first + 1, last + 1))


async def test_what_is_theirs_needs_a_token_of_that_district(service: Service, ask: Asker) -> None:
    assert await ask.refused(WUCHANG, "mine", after=0) == "unauthenticated"
    assert await ask.refused(WUCHANG, "mine", after=0, token="e30.e30.e30") == "unauthenticated"
    assert await ask.refused(QINGSHAN, "mine", after=0, token=service.token()) == "foreign_district"
    assert await ask.refused(WUCHANG, "mine", after=0, token=service.token("x", "poet")) == "forbidden"


@pytest.mark.parametrize(
    ("ask_for", "field"),
    [({"after": -1}, "after"), ({"after": "1"}, "after"), ({"limit": 201}, "limit"), ({"what": 1}, "what")],
)
async def test_a_question_that_is_none_is_refused_with_the_field(
    ask: Asker, ask_for: dict[str, Any], field: str
) -> None:
    found = (await ask(**ask_for))["problem"]
    assert (found["code"], found["field"]) == ("invalid", field)


async def test_what_cannot_be_read_or_is_not_known_is_refused(service: Service, ask: Asker, connect: Connect) -> None:
    admin = await connect("admin")
    broken = orjson.loads(await admin.request(f"qry.{WUCHANG}.desk.events", b"{broken"))
    assert broken["problem"]["code"] == "invalid_json"
    assert await ask.refused(WUCHANG, "everything") == "unknown_command"
    assert await ask.refused(after=10_000_000) == "bad_cursor"


async def test_an_office_that_asks_too_much_at_once_is_told_to_wait_and_others_are_answered(
    service: Service, ask: Asker
) -> None:
    first = (await service.bus.state()).last
    for n in range(3):
        await write(service, n * 900, 900)
    asking = [asyncio.create_task(ask(after=first)) for _ in range(3 * AT_ONCE_MAX)]
    await asyncio.sleep(0)
    other = await ask(QINGSHAN)
    codes = [(await one).get("problem", {}).get("code") for one in asking]
    assert set(codes) <= {None, "too_many"}
    assert codes.count(None) >= AT_ONCE_MAX
    assert other["events"] == []


async def test_what_the_bus_stores_meanwhile_joins_the_pages_by_its_sequence(
    service: Service, ask: Asker, connect: Connect
) -> None:
    """As an app does it: listen first, then ask for pages, then go on with what was heard behind them."""
    first = (await service.bus.state()).last
    await write(service, 0, 100)
    listener = await connect("admin")
    heard: list[int] = []

    async def hear(message: Any) -> None:
        heard.append(int(message.headers["Nats-Sequence"]))

    writing = asyncio.create_task(write_slowly(service))
    await listener._nc.subscribe(f"live.evt.{WUCHANG}.>", cb=hear)
    await listener._nc.flush()
    got = await ask.sequences(after=first, limit=20)
    last = await writing
    await service.until_holds(lambda: heard and heard[-1] == last)
    got += [sequence for sequence in heard if sequence > got[-1]]
    assert got == list(range(first + 1, last + 1))


async def write_slowly(service: Service) -> int:
    """Two hundred facts, one by one."""
    last = 0
    for n in range(100, 300):
        fact = accepted(n)
        last = await service.bus.commit([Message(fact.subject, fact.encode())])
    return last
