"""
Two offices on one bus, a desk process each: whichever dies, at whichever step, and however long one is away, a task has one owner.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import pytest_asyncio

from tests.system.history import History, check
from tests.system.test_points import crash_of
from tests.system.world import DISTRICT, OTHER, Answer, System, decided_otherwise, fresh_key, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

DESKS = {1: DISTRICT, 2: OTHER}
INSTANCE = {district: instance for instance, district in DESKS.items()}
BRIEF_S = 4
"""How long an offer of the item `brief` stands."""
WORKERS = {DISTRICT: "m-01", OTHER: "m-91"}


class Offices:
    """Two offices and their people, who do not give up before they have an answer."""

    def __init__(self, system: System) -> None:
        self.system = system

    async def says(self, district: str, path: str, body: Any = None, *, role: str = "dispatcher") -> Answer:
        """A POST of somebody in this office."""
        token = self.system.token(role, district=district)
        at, key = INSTANCE[district], fresh_key()
        answer = await self.system.insist("POST", "dispatch", path, body or {}, token=token, key=key, at=at)
        assert answer is not None, path
        return answer

    async def sees(self, district: str, path: str, found: Callable[[Any], Any], within_s: float = 30) -> Any:
        """What this office's desk shows, once it is what is wanted."""
        ends, token = time.monotonic() + within_s, self.system.token("auditor", district=district)
        while True:
            answer = await self.system.insist("GET", "dispatch", path, token=token, at=INSTANCE[district], limit=1000)
            if answer is not None and answer.status == 200 and (what := found(answer.document)):
                return what
            assert time.monotonic() < ends, (district, path, answer)
            await asyncio.sleep(0.05)

    async def task(self, district: str, request: str, round: int = 1) -> dict[str, Any]:
        """Its open task there."""

        def found(said: Any) -> Any:
            return next((t for t in said["tasks"] if (t["request"], t["round"]) == (request, round)), None)

        task: dict[str, Any] = await self.sees(district, "/v1/tasks", found)
        return task

    async def gone(self, district: str, request: str) -> None:
        """It is no longer there."""
        await self.sees(district, "/v1/tasks", lambda said: not any(t["request"] == request for t in said["tasks"]))

    async def coming(self, district: str, request: str, what: str = "handovers") -> dict[str, Any]:
        """What another office asks about a request."""
        matter: dict[str, Any] = await self.sees(
            district,
            f"/v1/{what}",
            lambda said: next((m for m in said[what] if m["request_id"] == request and m["direction"] == "in"), None),
        )
        return matter

    async def submit(self, service: str = "lamp", area: str = "north") -> dict[str, Any]:
        """One request, which its office has opened."""
        key = fresh_key()
        body = {"service": service, "location": {"area": area}}
        answer = await self.system.insist("POST", "intake", "/v1/requests", body, key=key)
        assert answer is not None
        assert answer.status == 201, answer
        self.system.submitted[key] = [answer.document]
        document: dict[str, Any] = answer.document
        await self.task(document["district"], document["id"])
        return document

    async def offer(self, request: str, *, giver: str = DISTRICT, to: str = OTHER) -> Answer:
        """The first key."""
        task = await self.task(giver, request)
        return await self.says(giver, f"/v1/tasks/{task['id']}/hand-over", {"to": to, "reason": "wrong_place"})

    async def sign(self, request: str, district: str = OTHER) -> Answer:
        """The second key, once the offer has come."""
        coming = await self.coming(district, request)
        return await self.says(district, f"/v1/handovers/{coming['id']}/sign")

    async def refuse(self, request: str, district: str = OTHER) -> Answer:
        """No."""
        coming = await self.coming(district, request)
        no = {"reason": "overlapping_duties", "basis": "law:city/7"}
        return await self.says(district, f"/v1/handovers/{coming['id']}/refuse", no)

    async def hand_over(self, request: str) -> None:
        """From `DISTRICT` to `OTHER`, to the end."""
        assert (await self.offer(request)).status == 200
        assert (await self.sign(request)).status == 200
        await self.task(OTHER, request)
        await self.gone(DISTRICT, request)

    async def finish(self, district: str, request: str, round: int = 1) -> None:
        """Somebody there is asked by hand, takes it and does it."""
        member = WORKERS[district]
        while True:
            task = await self.task(district, request, round)
            if not task["offered"]:
                await self.says(district, f"/v1/tasks/{task['id']}/offer", {"member": member})
                continue
            who = task["offered"][0]
            if (await self.says(district, f"/v1/tasks/{task['id']}/accept", {"member": who})).status == 200:
                break
        assert (await self.says(district, f"/v1/tasks/{task['id']}/done", {"member": who})).status == 200

    async def facts(self, request: str) -> list[str]:
        """`<district>:<fact>` of a request, as the ledger has them."""
        case = await self.case(request, "*")
        return [f"{line['district']}:{line['name']}" for line in case["timeline"]]

    async def case(self, request: str, district: str) -> dict[str, Any]:
        """A case as this office's auditor sees it, once the ledger has all that is in the stream."""
        bus = await self.system.stack.connect("admin")
        position = (await bus.state()).last
        await bus.drain()
        token = self.system.token("auditor", district=district)
        answer = await self.system.insist("GET", "ledger", f"/v1/cases/{request}", token=token, position=position)
        assert answer is not None
        assert answer.status == 200, answer
        case: dict[str, Any] = answer.document["case"]
        return case


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def offices(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Offices]:
    """武昌-like `DISTRICT` and `OTHER`, each with a desk process and people, a border area that both share, and a brief item."""
    async with running(tmp_path_factory.mktemp("offices"), seed=7, points=True, desks=DESKS) as system:
        made = Offices(system)
        admin = system.token("admin", district="*")
        found = await system.insist("GET", "ledger", "/v1/register", token=admin)
        assert found
        item = next(item for item in found.document["items"] if item["item"] == "lamp")
        north = next(area for area in found.document["areas"] if area["area"] == "north")
        more = {
            "items": [
                {**item, "item": "brief", "limits": {**item["limits"], "sign": {"amount": BRIEF_S, "unit": "seconds"}}}
            ],
            "areas": [{**north, "area": "border", "located_in": OTHER, "polygon": []}],
            "agreements": [
                {
                    "agreement": "border-2026",
                    "area": "border",
                    "parties": [DISTRICT, OTHER],
                    "lead": OTHER,
                    "services": ["lamp"],
                    "valid_from": "2024-01-01",
                }
            ],
        }
        applied = await system.insist(
            "POST", "ledger", "/v1/register", {"document": more, "why": "offices"}, token=admin
        )
        assert applied
        assert applied.status == 200, applied
        enrolled = await made.says(
            OTHER,
            "/v1/members/import",
            [
                {"id": f"m-9{n}", "kind": "grid_member", "areas": ["abroad"], "capacity": 40, "district": OTHER}
                for n in range(1, 4)
            ],
        )
        assert enrolled.document["enrolled"] == 3, enrolled
        yield made


@pytest.fixture(autouse=True)
def _first_death(offices: Offices) -> None:
    """The stack waits longer before it starts what dies again and again: here each death is the first."""
    for child in offices.system.stack.children:
        child.deaths = 0


# --- one of the two dies ----------------------------------------------------------------------------------------------

AFTER, BEFORE = "after commit", "before commit"
STEPS = [
    (DISTRICT, ".handover.offered", AFTER),
    (OTHER, ".handover.received", AFTER),
    (OTHER, ".handover.signed", AFTER),
    (DISTRICT, ".task.handed_over", BEFORE),
    (DISTRICT, ".task.handed_over", AFTER),
    (OTHER, ".task.opened", BEFORE),
    (OTHER, ".task.opened", AFTER),
    pytest.param(DISTRICT, ".handover.offered", BEFORE, marks=pytest.mark.soak),
    pytest.param(OTHER, ".handover.received", BEFORE, marks=pytest.mark.soak),
    pytest.param(OTHER, ".handover.signed", BEFORE, marks=pytest.mark.soak),
]


@pytest.mark.parametrize(("dies", "step", "where"), STEPS, ids=lambda value: value.rpartition(".")[2])
async def test_a_desk_dies_at_a_step_and_the_task_arrives_once(
    offices: Offices, dies: str, step: str, where: str
) -> None:
    asked = await offices.submit()
    await crash_of(offices.system, "dispatch", (INSTANCE[dies],), where, step, offices.hand_over(asked["id"]))
    facts = await offices.facts(asked["id"])
    for fact in ("handover.offered", "task.handed_over"):
        assert facts.count(f"{DISTRICT}:{fact}") == 1
    for fact in ("handover.received", "handover.signed", "task.opened"):
        assert facts.count(f"{OTHER}:{fact}") == 1
    await offices.finish(OTHER, asked["id"])


@pytest.mark.parametrize(
    ("dies", "step"),
    [
        (DISTRICT, ".conferral.opened"),
        (OTHER, ".conferral.ruled"),
        pytest.param(OTHER, ".handover.refused", marks=pytest.mark.soak),
        pytest.param(OTHER, ".conferral.received", marks=pytest.mark.soak),
        pytest.param(DISTRICT, ".conferral.ended", marks=pytest.mark.soak),
    ],
    ids=lambda value: value.rpartition(".")[2],
)
async def test_a_desk_dies_while_the_offices_confer_and_the_ruling_is_carried_out_once(
    offices: Offices, dies: str, step: str
) -> None:
    asked = await offices.submit(area="border")

    async def conferred() -> None:
        for _ in range(2):
            assert (await offices.offer(asked["id"])).status == 200
            assert (await offices.refuse(asked["id"])).status == 200
            await offices.sees(
                DISTRICT,
                "/v1/handovers",
                lambda said: not any(m["request_id"] == asked["id"] for m in said["handovers"]),
            )
        conferral = await offices.coming(OTHER, asked["id"], "conferrals")
        assert conferral["lead"] == OTHER
        ruling = {"owner": OTHER, "basis": "minutes:2026-11"}
        said = await offices.says(OTHER, f"/v1/conferrals/{conferral['id']}/rule", ruling, role="supervisor")
        assert said.status == 200, said
        await offices.task(OTHER, asked["id"])
        await offices.gone(DISTRICT, asked["id"])

    await crash_of(offices.system, "dispatch", (INSTANCE[dies],), "after commit", step, conferred())
    facts = await offices.facts(asked["id"])
    assert facts.count(f"{DISTRICT}:task.handed_over") == facts.count(f"{OTHER}:conferral.ruled") == 1
    await offices.finish(OTHER, asked["id"])


# --- one of the two is away -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", ["wakes", pytest.param("dies", marks=pytest.mark.soak)])
async def test_the_office_that_is_asked_is_away_for_as_long_as_the_offer_stands(offices: Offices, ends: str) -> None:
    asked = await offices.submit("brief")
    system = offices.system
    system.stack.stop_process("dispatch", INSTANCE[OTHER])
    task = await offices.task(DISTRICT, asked["id"])
    body = {"to": OTHER, "reason": "wrong_place"}
    token = system.token("dispatcher")
    path = f"/v1/tasks/{task['id']}/hand-over"
    offered = await system.call("POST", "dispatch", path, body, token=token, key=fresh_key(), instance=1)
    assert offered.status == 200, offered
    await asyncio.sleep(BRIEF_S + 0.5)
    await _back(offices, OTHER, ends)
    facts = await _until_fact(offices, asked["id"], f"{OTHER}:handover.settled")
    assert [fact for fact in facts if "handover" in fact] == [
        f"{DISTRICT}:handover.offered",
        f"{DISTRICT}:handover.lapsed",
        f"{OTHER}:handover.received",
        f"{OTHER}:handover.settled",
    ]
    await offices.finish(DISTRICT, asked["id"])


@pytest.mark.parametrize("ends", [pytest.param("wakes", marks=pytest.mark.soak), "dies"])
async def test_the_giver_is_away_when_it_is_signed_and_hears_of_it_before_the_offer_runs_out(
    offices: Offices, ends: str
) -> None:
    asked = await offices.submit("brief")
    system = offices.system
    assert (await offices.offer(asked["id"])).status == 200
    coming = await offices.coming(OTHER, asked["id"])
    system.stack.stop_process("dispatch", INSTANCE[DISTRICT])
    token = system.token("dispatcher", district=OTHER)
    path = f"/v1/handovers/{coming['id']}/sign"
    signed = await system.call("POST", "dispatch", path, {}, token=token, key=fresh_key(), instance=2)
    assert signed.status == 200, signed
    await asyncio.sleep(BRIEF_S + 0.5)
    await _back(offices, DISTRICT, ends)
    await offices.task(OTHER, asked["id"])
    await offices.gone(DISTRICT, asked["id"])
    assert f"{DISTRICT}:handover.lapsed" not in await offices.facts(asked["id"])
    await offices.finish(OTHER, asked["id"])


async def _back(offices: Offices, district: str, ends: str) -> None:
    """An office that was away is there again: its desk wakes, or was dead and is started anew."""
    stack, instance = offices.system.stack, INSTANCE[district]
    if ends == "wakes":
        stack.continue_process("dispatch", instance)
    else:
        await stack.kill("dispatch", instance)
        await stack.wait_until_ready()


async def _until_fact(offices: Offices, request: str, fact: str) -> list[str]:
    """The facts of a request once this one is among them."""
    ends = time.monotonic() + 20
    while fact not in (facts := await offices.facts(request)):
        assert time.monotonic() < ends, facts
        await asyncio.sleep(0.1)
    return facts


# --- the case, seen from both sides -----------------------------------------------------------------------------------


async def test_both_offices_see_the_same_case_and_it_begins_anew_where_it_was_last(offices: Offices) -> None:
    asked = await offices.submit(area="border")
    await offices.hand_over(asked["id"])
    await offices.finish(OTHER, asked["id"])
    one, other = [await offices.case(asked["id"], district) for district in (DISTRICT, OTHER)]
    for case in (one, other):
        case["timeline"] = [line for line in case["timeline"] if not line["name"].startswith(("match.", "notice."))]
    assert one == other
    assert (one["district"], one["granted"], one["state"]) == (OTHER, True, "done")
    path = f"/v1/requests/{asked['tracking_code']}"
    again = await offices.system.insist("POST", "intake", f"{path}/reopen", {"reason": "not_solved"}, key=fresh_key())
    assert again
    assert again.status == 200, again
    await offices.finish(OTHER, asked["id"], round=2)
    async with asyncio.timeout(10):  # the desk answers before the ledger has heard
        while (await offices.case(asked["id"], OTHER))["state"] != "done":
            await asyncio.sleep(0.05)
    rated = await offices.system.insist("POST", "intake", f"{path}/rate", {"grade": 4, "solved": True}, key=fresh_key())
    assert rated
    assert rated.status == 200, rated
    await offices.gone(OTHER, asked["id"])
    facts = await offices.facts(asked["id"])
    assert [fact for fact in facts if fact.endswith("task.opened")] == [
        f"{DISTRICT}:task.opened",
        f"{OTHER}:task.opened",
        f"{OTHER}:task.opened",
    ]


async def test_a_resident_withdraws_what_was_handed_over(offices: Offices) -> None:
    asked = await offices.submit()
    await offices.hand_over(asked["id"])
    path = f"/v1/requests/{asked['tracking_code']}/withdraw"
    assert (await offices.system.insist("POST", "intake", path, {}, key=fresh_key())) is not None
    await offices.gone(OTHER, asked["id"])


async def test_a_ruling_becomes_a_precedent_and_the_next_request_goes_there_at_once(offices: Offices) -> None:
    asked = await offices.submit("leak", area="border")
    assert asked["district"] == DISTRICT
    for _ in range(2):
        assert (await offices.offer(asked["id"])).status == 200
        assert (await offices.refuse(asked["id"])).status == 200
        await offices.sees(DISTRICT, "/v1/handovers", lambda said: not said["handovers"])
    conferral = await offices.coming(OTHER, asked["id"], "conferrals")
    ruling = {"owner": OTHER, "basis": "minutes:2026-11", "precedent": True}
    await offices.says(OTHER, f"/v1/conferrals/{conferral['id']}/rule", ruling, role="supervisor")
    await offices.task(OTHER, asked["id"])
    token = offices.system.token("auditor", district="*")
    ends = time.monotonic() + 10
    while not (kept := await _precedents(offices, token)):
        assert time.monotonic() < ends
        await asyncio.sleep(0.1)
    assert [(p["area"], p["item"], p["owner"], p["conferral"], p["basis"]) for p in kept] == [
        ("border", "leak", OTHER, conferral["id"], "minutes:2026-11")
    ]
    await offices.system.stack.kill("ledger")  # begins anew at the first ruling, and writes nothing twice
    await offices.system.stack.wait_until_ready()
    while (next_one := await offices.submit("leak", area="border"))["district"] != OTHER:
        assert time.monotonic() < ends + 10
        await offices.finish(DISTRICT, next_one["id"])
    assert (await offices.submit("lamp", area="border"))["district"] == DISTRICT, "another item goes where it went"
    assert await _precedents(offices, token) == kept


async def _precedents(offices: Offices, token: str) -> list[dict[str, Any]]:
    answer = await offices.system.insist("GET", "ledger", "/v1/register", token=token)
    assert answer
    precedents: list[dict[str, Any]] = answer.document["precedents"]
    return precedents


async def test_a_place_changes_its_office_from_today_and_what_is_open_stays(offices: Offices) -> None:
    admin = offices.system.token("admin", district="*")
    found = await offices.system.insist("GET", "ledger", "/v1/register", token=admin)
    assert found
    north = next(area for area in found.document["areas"] if area["area"] == "north")
    village = {**north, "area": "village", "polygon": [], "owned_by": "铁路局"}

    async def apply(areas: list[dict[str, Any]], why: str) -> None:
        body = {"document": {"areas": areas}, "why": why}
        answer = await offices.system.insist("POST", "ledger", "/v1/register", body, token=admin)
        assert answer
        assert answer.status == 200, answer

    await apply([village], "as it is")
    body = {"service": "lamp", "location": {"area": "village"}}
    ends, key = time.monotonic() + 20, fresh_key()
    while (
        first := await offices.system.insist("POST", "intake", "/v1/requests", body, key=key)
    ) and first.status != 201:
        assert time.monotonic() < ends, first  # intake has not heard of the village yet
        await asyncio.sleep(0.1)
    assert first
    offices.system.submitted[key] = [first.document]
    assert first.document["district"] == DISTRICT
    task = await offices.task(DISTRICT, first.document["id"])
    today = datetime.now(ZoneInfo("Asia/Shanghai")).date().isoformat()
    await apply([{**village, "valid_from": today, "served_by": OTHER}], "minutes 7")
    while (later := await offices.submit(area="village"))["district"] != OTHER:
        assert time.monotonic() < ends, later
        await offices.finish(DISTRICT, later["id"])
    assert (await offices.task(DISTRICT, first.document["id"]))["id"] == task["id"], "it stays with who signed for it"
    token = offices.system.token("auditor", district=OTHER)
    while True:
        told = await offices.system.insist("GET", "ledger", "/v1/register/areas/village", token=token)
        assert told
        if told.status == 200 and len(told.document["history"]) == 2:
            break
        assert time.monotonic() < ends, told
        await asyncio.sleep(0.1)
    owners = {name: owner["who"] for name, owner in told.document["owners"].items()}
    assert owners == {
        "located_in": DISTRICT,
        "administered_by": DISTRICT,
        "owned_by": "铁路局",
        "served_by": OTHER,
    }
    assert [(entry["by"], entry["why"]) for entry in told.document["history"]] == [
        ("admin:operator", "as it is"),
        ("admin:operator", "minutes 7"),
    ]
    for request, district in ((first.document["id"], DISTRICT), (later["id"], OTHER)):
        await offices.finish(district, request)


async def test_somebody_is_lent_and_free_again(offices: Offices) -> None:
    asked = await offices.submit()
    task = await offices.task(DISTRICT, asked["id"])
    whistle = await offices.says(DISTRICT, f"/v1/tasks/{task['id']}/ask-help", {"to": OTHER, "whistle": True})
    assert whistle.status == 200, whistle
    coming = await offices.coming(OTHER, asked["id"], "help")

    async def lend() -> Answer:
        return await offices.says(OTHER, f"/v1/help/{coming['id']}/lend")

    lent = await crash_of(offices.system, "dispatch", (INSTANCE[OTHER],), "after commit", ".help.seated", lend())
    assert lent.status == 200, lent
    await offices.sees(OTHER, "/v1/members", lambda said: sum(m["load"] for m in said["members"]) >= 1)
    await offices.finish(DISTRICT, asked["id"])
    await _until_fact(offices, asked["id"], f"{OTHER}:help.settled")


async def test_and_the_whole_history_holds(offices: Offices) -> None:
    """Every law of the history but that all must have ended: what was done waits for its resident."""
    system = offices.system
    bus = await system.stack.connect("admin")
    records, created, leaves, origin = await system._stable(bus)
    await bus.drain()
    told = system.receiver.receipts
    history = History(created, origin, records, leaves, submitted=system.submitted, receipts=told, ended=False)
    assert check(history) == []
    assert decided_otherwise(leaves) == []
    assert system.bugs == []
    owners: dict[str, set[str]] = {}
    for district in DESKS.values():
        shown = await offices.sees(district, "/v1/tasks", lambda said: said)
        for task in shown["tasks"]:
            owners.setdefault(task["request"], set()).add(district)
    assert all(len(held) == 1 for held in owners.values())
