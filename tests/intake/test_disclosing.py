"""What a resident has sealed is opened for who handles it, for a reason, and on record first."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import orjson
import pytest

from services.intake import cases, disclosing
from services.intake.disclosing import allow
from services.intake.model import Case
from shared.auth import Caller
from shared.bus import Bus
from shared.errors import RefusedError, UnavailableError
from shared.facts import (
    RequestErased,
    RequestFrozen,
    TaskAccepted,
    TaskClosed,
    TaskDone,
    TaskHandedOver,
)
from shared.ids import derived_id
from tests.intake.conftest import World, keyed, until
from tests.intake.examples import LEAK, NOW, QINGSHAN, WUCHANG, opened, task_of
from tests.intake.ledger import Ledger

OPEN = Case(
    id="r", district=WUCHANG, area="oujing", item="tree", state="accepted", holder="m-1", home=WUCHANG, granted=True,
    sealed="kept",
)  # fmt: skip
AWAY = OPEN.model_copy(update={"district": QINGSHAN, "holder": "m-9"})
CLOSED = OPEN.model_copy(update={"state": "closed", "closed": NOW})


def caller(sub: str, district: str, *roles: str) -> Caller:
    return Caller(sub, district, frozenset(roles))


def refusal(case: Case, who: Caller, why: str) -> str:
    try:
        allow(case, who, why)
    except RefusedError as refused:
        return refused.code
    return "allowed"


HOLDER = caller("m-1", WUCHANG, "member")


@pytest.mark.parametrize("role", ["clerk", "dispatcher", "supervisor"])
def test_the_responsible_office_may_look_while_it_is_open(role: str) -> None:
    assert refusal(OPEN, caller("s-1", WUCHANG, role), "contact") == "allowed"
    assert refusal(OPEN.model_copy(update={"state": "done"}), caller("s-1", WUCHANG, role), "call_back") == "allowed"


def test_the_member_who_holds_the_task_may_look_until_it_is_done() -> None:
    assert refusal(OPEN, HOLDER, "visit") == "allowed"
    assert refusal(OPEN.model_copy(update={"state": "arrived"}), HOLDER, "visit") == "allowed"
    for state in ("submitted", "opened", "offered", "unplaced", "done"):
        assert refusal(OPEN.model_copy(update={"state": state}), HOLDER, "visit") == "not_handling"


@pytest.mark.parametrize(
    ("who", "code"),
    [
        (caller("m-2", WUCHANG, "member"), "not_handling"),
        (caller("s-1", QINGSHAN, "dispatcher"), "foreign_district"),
        (caller("m-1", QINGSHAN, "member"), "foreign_district"),
        (caller("s-1", "*", "supervisor"), "foreign_district"),
        (caller("a-1", WUCHANG, "auditor"), "forbidden"),
        (caller("a-1", WUCHANG, "admin"), "forbidden"),
        (caller("r-1", WUCHANG, "resident"), "forbidden"),
        (caller("n-1", WUCHANG), "forbidden"),
    ],
)
def test_nobody_else_may_look(who: Caller, code: str) -> None:
    assert refusal(OPEN, who, "contact") == code


def test_a_hand_over_takes_the_right_away_and_gives_it_only_if_granted() -> None:
    giver, receiver = caller("s-1", WUCHANG, "supervisor"), caller("s-2", QINGSHAN, "dispatcher")
    assert refusal(AWAY, giver, "contact") == "foreign_district"
    assert refusal(AWAY, HOLDER, "visit") == "foreign_district"
    assert refusal(AWAY, receiver, "contact") == "allowed"
    assert refusal(AWAY, caller("m-9", QINGSHAN, "member"), "visit") == "allowed"
    ungranted = AWAY.model_copy(update={"granted": False})
    assert refusal(ungranted, receiver, "contact") == "not_handling"
    assert refusal(ungranted, caller("m-9", QINGSHAN, "member"), "visit") == "not_handling"


def test_once_it_is_over_a_supervisor_of_the_first_office_may_look_for_a_review() -> None:
    supervisor = caller("s-1", WUCHANG, "supervisor")
    for case in (CLOSED, OPEN.model_copy(update={"sealed": "frozen"}), OPEN.model_copy(update={"state": "withdrawn"})):
        assert refusal(case, supervisor, "review") == "allowed"
        assert refusal(case, supervisor, "appeal") == "allowed"
        assert refusal(case, supervisor, "contact") == "only_review"
        assert refusal(case, caller("s-1", WUCHANG, "dispatcher"), "review") == "only_review"
        assert refusal(case, HOLDER, "visit") == "only_review"
    lapsed = CLOSED.model_copy(update={"district": QINGSHAN})
    assert refusal(lapsed, supervisor, "review") == "allowed"
    assert refusal(lapsed, caller("s-2", QINGSHAN, "supervisor"), "review") == "foreign_district"
    assert refusal(OPEN, caller("s-1", WUCHANG, "dispatcher"), "review") == "only_review"


def test_what_is_erased_or_was_never_there_cannot_be_opened() -> None:
    assert refusal(OPEN.model_copy(update={"sealed": "erased"}), HOLDER, "visit") == "erased"
    assert refusal(OPEN.model_copy(update={"sealed": None}), HOLDER, "visit") == "nothing_sealed"


# --- on the bus -------------------------------------------------------------------------------------------------------

ASKED = {"why": "contact", "parts": ["contact", "text", "address"]}


async def look(
    by: httpx2.AsyncClient, request_id: str, token: str | None, key: str = "d-1", **body: Any
) -> httpx2.Response:
    return await by.post(f"/v1/requests/{request_id}/disclosures", json={**ASKED, **body}, headers=keyed(key, token))


async def test_it_is_opened_after_the_fact_is_there_and_a_repeat_leaves_one_fact(
    world: World, intake: httpx2.AsyncClient, ledger: Ledger, submitted: dict[str, Any]
) -> None:
    clerk = world.token("staff-1", WUCHANG, "clerk")
    first = await look(intake, submitted["id"], clerk)
    elsewhere = await world.instance()
    repeats = await asyncio.gather(*(look(by, submitted["id"], clerk) for by in (intake, elsewhere, elsewhere)))

    assert first.status_code == 200
    assert first.json()["parts"] == {"contact": LEAK["contact"], "text": LEAK["text"]}
    assert {repeat.content for repeat in repeats} == {first.content}
    [fact] = await world.facts("request.disclosed")
    assert fact["data"] == {
        "request_id": submitted["id"],
        "to": "clerk:staff-1",
        "office": WUCHANG,
        "why": "contact",
        "parts": ["contact", "text"],
    }
    [subject] = [s for s, _ in await world.messages("EVENTS") if s.endswith("request.disclosed")]
    assert subject == f"evt.{WUCHANG}.intake.-.request.disclosed"


async def test_a_repeat_is_known_beyond_what_a_timeline_tells(
    world: World, intake: httpx2.AsyncClient, ledger: Ledger, submitted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cases, "TIMELINE_MAX", 2)
    ledger.tells = 2
    await world.tell(opened(submitted["id"]), submitted["id"])
    clerk = world.token("staff-1", WUCHANG, "clerk")
    assert {(await look(intake, submitted["id"], clerk)).status_code for _ in range(2)} == {200}
    assert len(await world.facts("request.disclosed")) == 1


async def test_another_caller_with_the_same_key_is_asked_and_written_down_for_themselves(
    world: World, intake: httpx2.AsyncClient, ledger: Ledger, submitted: dict[str, Any]
) -> None:
    await world.tell(opened(submitted["id"]), submitted["id"])
    await look(intake, submitted["id"], world.token("staff-1", WUCHANG, "clerk"))
    impostor = await look(intake, submitted["id"], world.token("m-2", WUCHANG, "member"))
    colleague = await look(intake, submitted["id"], world.token("staff-2", WUCHANG, "clerk"))
    assert (impostor.status_code, impostor.json()["code"]) == (403, "not_handling")
    assert colleague.status_code == 200
    assert [fact["data"]["to"] for fact in await world.facts("request.disclosed")] == ["clerk:staff-1", "clerk:staff-2"]


async def test_the_same_key_for_something_else_and_unknown_words_are_refused(
    world: World, intake: httpx2.AsyncClient, ledger: Ledger, submitted: dict[str, Any]
) -> None:
    clerk = world.token("staff-1", WUCHANG, "clerk")
    await look(intake, submitted["id"], clerk)
    answers = [
        await look(intake, submitted["id"], clerk, why="verify"),
        await look(intake, submitted["id"], clerk, parts=["text"]),
        await look(intake, submitted["id"], clerk, "d-2", why="notice"),
        await look(intake, submitted["id"], clerk, "d-2", parts=["name"]),
        await look(intake, submitted["id"], clerk, "d-2", parts=[]),
        await look(intake, submitted["id"], clerk, "d-2", parts=["address"]),
        await look(intake, derived_id("none"), clerk, "d-2"),
        await look(intake, submitted["id"], None, "d-2"),
    ]
    assert [answer.json()["code"] for answer in answers] == [
        *("key_reused", "key_reused", "not_listed", "invalid", "invalid", "nothing_sealed", "not_found"),
        "unauthenticated",
    ]
    assert len(await world.facts("request.disclosed")) == 1


async def test_a_ledger_that_lags_opens_nothing(
    world: World, intake: httpx2.AsyncClient, ledger: Ledger, submitted: dict[str, Any]
) -> None:
    clerk = world.token("staff-1", WUCHANG, "clerk")
    ledger.stuck = (await world.admin.state()).last
    await world.tell(handed_over(submitted["id"], grant=True), submitted["id"])
    answer = await look(intake, submitted["id"], clerk)
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert await world.facts("request.disclosed") == []


async def test_it_follows_the_task_from_office_to_office_until_it_closes(
    world: World, intake: httpx2.AsyncClient, ledger: Ledger, submitted: dict[str, Any]
) -> None:
    id = submitted["id"]
    giver, receiver = world.token("staff-1", WUCHANG, "clerk"), world.token("staff-2", QINGSHAN, "dispatcher")
    member = world.token("m-9", QINGSHAN, "member")
    await world.tell(opened(id), id)
    assert (await look(intake, id, receiver)).json()["code"] == "foreign_district"
    assert (await look(intake, id, giver)).status_code == 200
    await world.tell(handed_over(id, grant=True), id)
    assert (await look(intake, id, giver)).json()["code"] == "foreign_district"  # a repeat is asked anew
    assert (await look(intake, id, receiver)).status_code == 200
    theirs = task_of(id, district=QINGSHAN)
    await world.tell(opened(id, district=QINGSHAN), id, QINGSHAN)
    assert (await look(intake, id, member)).json()["code"] == "not_handling"
    await world.tell(TaskAccepted(task_id=theirs, member_id="m-9"), id, QINGSHAN)
    assert (await look(intake, id, member)).status_code == 200
    await world.tell(TaskDone(task_id=theirs, member_id="m-9", outcome="solved"), id, QINGSHAN)
    assert (await look(intake, id, member)).json()["code"] == "not_handling"
    await world.tell(TaskClosed(task_id=theirs, reason="rated"), id, QINGSHAN)
    assert (await look(intake, id, receiver)).json()["code"] == "foreign_district"
    supervisor = world.token("staff-3", WUCHANG, "supervisor")
    assert (await look(intake, id, supervisor)).json()["code"] == "only_review"
    assert (await look(intake, id, supervisor, why="appeal")).status_code == 200
    offices = [(fact["data"]["office"], fact["districts"]) for fact in await world.facts("request.disclosed")]
    both = f"{WUCHANG},{QINGSHAN}"
    assert offices == [(WUCHANG, WUCHANG), (QINGSHAN, both), (QINGSHAN, both), (WUCHANG, both)]


async def test_what_was_handed_over_without_a_grant_stays_closed(
    world: World, intake: httpx2.AsyncClient, ledger: Ledger, submitted: dict[str, Any]
) -> None:
    await world.tell(opened(submitted["id"]), submitted["id"])
    await world.tell(handed_over(submitted["id"], grant=False), submitted["id"])
    answer = await look(intake, submitted["id"], world.token("staff-2", QINGSHAN, "supervisor"))
    assert answer.json()["code"] == "not_handling"


async def test_what_is_frozen_or_erased_says_so(
    world: World, intake: httpx2.AsyncClient, ledger: Ledger, submitted: dict[str, Any]
) -> None:
    id, clerk = submitted["id"], world.token("staff-1", WUCHANG, "clerk")
    await world.tell(RequestFrozen(request_id=id, until=NOW.date()), id)
    assert (await look(intake, id, clerk)).json()["code"] == "only_review"
    await world.tell(RequestErased(request_id=id, kid="ab", reason="asked"), id)
    answer = await look(intake, id, clerk)
    assert (answer.status_code, answer.json()["code"]) == (410, "erased")


# --- notify -----------------------------------------------------------------------------------------------------------


async def reach(notify: Bus, request_id: Any, notice: str = "n-1") -> dict[str, Any]:
    question = orjson.dumps({"request": request_id, "notice": notice})
    answer: dict[str, Any] = orjson.loads(await notify.request(f"qry.{WUCHANG}.intake.reach", question))
    return answer


@pytest.fixture
async def notify(world: World) -> Bus:
    """notify's own connection, with its own rights."""
    bus = await Bus.connect(world.server.url, name="notify", seed=world.identities.seed("notify"))
    world.stack.push_async_callback(bus.drain)
    return bus


async def test_notify_reaches_a_resident_and_leaves_one_fact_in_each_round(
    world: World, intake: httpx2.AsyncClient, ledger: Ledger, submitted: dict[str, Any], notify: Bus
) -> None:
    await world.instance()
    answers = await asyncio.gather(*(reach(notify, submitted["id"], f"n-{n}") for n in range(5)))
    assert answers == [{"contact": LEAK["contact"], "language": "zh-CN"}] * 5
    [fact] = await world.facts("request.disclosed")
    assert (fact["data"]["to"], fact["data"]["why"], fact["data"]["parts"]) == ("service:notify", "notice", ["contact"])
    assert fact["causationid"].startswith("n-")


async def test_notify_is_told_why_a_resident_cannot_be_reached(
    world: World, intake: httpx2.AsyncClient, ledger: Ledger, notify: Bus
) -> None:
    without = (await intake.post("/v1/requests", json={**LEAK, "contact": None}, headers=keyed("k-2"))).json()
    assert (await reach(notify, without["id"]))["problem"]["code"] == "nothing_sealed"
    assert (await reach(notify, derived_id("none")))["problem"]["code"] == "not_found"
    assert (await reach(notify, 7))["problem"]["code"] == "invalid"
    await world.tell(RequestErased(request_id=without["id"], kid="ab", reason="asked"), without["id"])
    assert (await reach(notify, without["id"]))["problem"]["code"] == "erased"
    assert await world.facts("request.disclosed") == []


async def test_a_question_that_the_ledger_keeps_waiting_holds_up_no_other_and_is_given_up(
    world: World,
    intake: httpx2.AsyncClient,
    ledger: Ledger,
    submitted: dict[str, Any],
    notify: Bus,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = (await intake.post("/v1/requests", json=LEAK, headers=keyed("k-2"))).json()
    disclosures = world.instances[0].disclosures
    ledger.silent_on = submitted["id"]
    stuck = [asyncio.create_task(reach(notify, submitted["id"], f"n-{n}")) for n in range(3)]
    await until(lambda: _under_way(disclosures, 3))
    assert (await reach(notify, other["id"]))["contact"] == LEAK["contact"]
    monkeypatch.setattr(disclosing, "REACHING_MAX", 3)
    assert (await reach(notify, other["id"]))["problem"]["code"] == "unavailable"
    answers = await asyncio.gather(*stuck, return_exceptions=True)
    assert {type(answer) for answer in answers} == {UnavailableError}
    await until(lambda: _under_way(disclosures, 0), within_s=1)


async def _under_way(disclosures: disclosing.Disclosures, count: int) -> bool:
    return disclosures._reaching == count


def handed_over(request_id: str, *, grant: bool) -> TaskHandedOver:
    task = opened(request_id)
    return TaskHandedOver(
        task_id=task.task_id,
        request_id=request_id,
        round=1,
        to=QINGSHAN,
        by=derived_id("handover", request_id),
        new_task_id=task_of(request_id, district=QINGSHAN),
        item=task.item,
        urgency=1,
        due=task.due,
        grant=grant,
    )
