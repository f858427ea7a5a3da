"""Two offices on one real bus, by HTTP: hand-over, conferral, help; each with tokens of its own."""

from __future__ import annotations

from typing import Any

import pytest

from shared.ids import derived_id
from tests.dispatch.conftest import Service
from tests.dispatch.test_api import code
from tests.examples import LI, OUJING, QINGSHAN, REQUEST, TASK, WUCHANG, envelope, id_of, submitted

CHEN = "m-chen"


class Offices:
    """武昌 and 青山, and who speaks for them."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.n = 0

    async def says(self, district: str, path: str, body: Any = None, *, role: str = "dispatcher") -> Any:
        """A POST of somebody in this office, under a key of its own."""
        self.n += 1
        token = self.service.token(f"staff-{district}", role, district=district)
        return await self.service.post(path, body or {}, token=token, key=f"key-{self.n}")

    async def sees(self, district: str, what: str) -> list[dict[str, Any]]:
        """What stands open there."""
        token = self.service.token(f"staff-{district}", "clerk", district=district)
        answer = await self.service.get(f"/v1/{what}", token=token)
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()[what]
        return found

    async def one(self, district: str, what: str) -> dict[str, Any]:
        """The only thing that stands open there, once it has arrived."""
        await self.service.until_holds(lambda: _matters(self, district))
        (found,) = await self.sees(district, what)
        return found

    def owner(self, request: str = REQUEST) -> list[str]:
        """Where its open task is."""
        desks = self.service.desks.desks
        return [code for code in sorted(desks) if desks[code].state.task_of(request)]


@pytest.fixture
async def offices(service: Service) -> Offices:
    """Both desks lead, each with a member, and 武昌 has a task."""
    made = Offices(service)
    await service.start()
    await service.until_holds(lambda: QINGSHAN in service.desks.desks and service.desks[QINGSHAN].leading)
    for district, member in ((WUCHANG, LI), (QINGSHAN, CHEN)):
        row = f"id,kind,areas,capacity,district\n{member},grid_member,{OUJING},40,{district}\n"
        token = service.token(f"staff-{district}", district=district)
        headers = {"content-type": "text/csv"}
        answer = await service.post("/v1/members/import", row.encode(), token=token, key=district, headers=headers)
        assert answer.json()["enrolled"] == 1, answer.text
    await service.store(service.intake, envelope(submitted()))
    await service.until_holds(lambda: TASK in service.desks[WUCHANG].state.tasks)
    return made


async def offer(offices: Offices) -> dict[str, Any]:
    """武昌 offers, and what 青山 sees."""
    answer = await offices.says(WUCHANG, f"/v1/tasks/{TASK}/hand-over", {"to": QINGSHAN, "reason": "wrong_place"})
    assert (answer.status_code, answer.json()["fact"]) == (200, "handover.offered"), answer.text
    return await offices.one(QINGSHAN, "handovers")


async def test_a_task_changes_its_office(offices: Offices) -> None:
    coming = await offer(offices)
    assert (coming["direction"], coming["asker"], coming["task_id"]) == ("in", WUCHANG, TASK)
    assert (coming["due"], coming["located_in"], coming["grant"]) == (coming["due"], WUCHANG, True)
    (going,) = await offices.sees(WUCHANG, "handovers")
    assert (going["direction"], going["id"], going["to"]) == ("out", coming["id"], QINGSHAN)
    signed = await offices.says(QINGSHAN, f"/v1/handovers/{coming['id']}/sign")
    assert (signed.status_code, signed.json()["fact"]) == (200, "handover.signed")
    await offices.service.until_holds(lambda: offices.owner() == [QINGSHAN])
    assert await offices.sees(WUCHANG, "handovers") == await offices.sees(QINGSHAN, "handovers") == []
    token = offices.service.token(LI, "member")
    late = await offices.service.post(f"/v1/tasks/{TASK}/accept", {}, token=token, key="late")
    assert code(late) == (409, "wrong_state")
    assert "已转办" in late.json()["title"]
    task = derived_id(coming["id"], "task")
    chen = offices.service.token(CHEN, "member", district=QINGSHAN)
    for verb in ("accept", "done"):
        assert (await offices.service.post(f"/v1/tasks/{task}/{verb}", {}, token=chen, key=verb)).status_code == 200


async def test_refused_taken_back_and_what_is_over(offices: Offices) -> None:
    coming = await offer(offices)
    no = {"reason": "beyond_ability", "basis": "law:city/7"}
    assert code(await offices.says(QINGSHAN, f"/v1/handovers/{coming['id']}/refuse", {**no, "basis": "不"})) == (
        422,
        "invalid",
    )
    refused = await offices.says(QINGSHAN, f"/v1/handovers/{coming['id']}/refuse", no)
    assert refused.json()["fact"] == "handover.refused"
    await offices.service.until_holds(lambda: not offices.service.desks[WUCHANG].state.matters)
    assert code(await offices.says(QINGSHAN, f"/v1/handovers/{coming['id']}/sign")) == (409, "over")
    second = await offer(offices)
    back = await offices.says(WUCHANG, f"/v1/handovers/{second['id']}/take-back")
    assert back.json()["fact"] == "handover.lapsed"
    assert offices.owner() == [WUCHANG]
    assert code(await offices.says(WUCHANG, f"/v1/handovers/{id_of('?')}/take-back")) == (404, "not_found")


async def test_a_foreign_offices_hand_over_is_out_of_reach(offices: Offices) -> None:
    coming = await offer(offices)
    path = f"/v1/handovers/{coming['id']}"
    token = offices.service.token("staff-420107", district=QINGSHAN)
    for verb in ("sign", "take-back"):
        answer = await offices.service.post(f"{path}/{verb}?district={WUCHANG}", {}, token=token, key=verb)
        assert code(answer) == (403, "foreign_district")
    assert code(await offices.says(QINGSHAN, f"/v1/tasks/{TASK}/hand-over", {"to": WUCHANG, "reason": "wrong_place"}))[
        1
    ] == ("unknown_task")
    assert code(await offices.says(WUCHANG, f"{path}/sign", role="member")) == (403, "forbidden")
    assert code(await offices.says(WUCHANG, "/v1/conferrals/x/rule", {}, role="dispatcher")) == (403, "forbidden")
    assert offices.owner() == [WUCHANG]


async def test_refused_twice_ruled_on_and_handed_over(offices: Offices) -> None:
    for _ in range(2):
        coming = await offer(offices)
        no = {"reason": "overlapping_duties", "basis": "law:city/7"}
        await offices.says(QINGSHAN, f"/v1/handovers/{coming['id']}/refuse", no)
        await offices.service.until_holds(
            lambda: not any(m.fact.name == "handover.offered" for m in _matters(offices, WUCHANG))
        )
    (conferral,) = await offices.sees(WUCHANG, "conferrals")
    assert (conferral["lead"], conferral["parties"]) == (WUCHANG, [WUCHANG, QINGSHAN])
    ruling = {"owner": QINGSHAN, "basis": "minutes:2026-11", "precedent": True}
    ruled = await offices.says(WUCHANG, f"/v1/conferrals/{conferral['id']}/rule", ruling, role="supervisor")
    assert ruled.json()["fact"] == "conferral.ruled", ruled.text
    await offices.service.until_holds(lambda: offices.owner() == [QINGSHAN])
    await offices.service.until_holds(lambda: not _matters(offices, QINGSHAN))


def _matters(offices: Offices, district: str) -> list[Any]:
    return list(offices.service.desks[district].state.matters.values())


async def test_whistled_for_lent_released_rated(offices: Offices) -> None:
    asked = await offices.says(WUCHANG, f"/v1/tasks/{TASK}/ask-help", {"to": QINGSHAN, "whistle": True})
    assert asked.json()["fact"] == "help.asked", asked.text
    coming = await offices.one(QINGSHAN, "help")
    assert (coming["direction"], coming["whistle"], coming["stage"]) == ("in", True, "open")
    assert (await offices.says(QINGSHAN, f"/v1/help/{coming['id']}/lend")).status_code == 200
    assert offices.service.desks[QINGSHAN].state.members[CHEN].load == 10
    await offices.service.until_holds(lambda: _matters(offices, WUCHANG)[0].stage == "seated")
    (going,) = await offices.sees(WUCHANG, "help")
    assert (going["member"], going["stage"]) == (CHEN, "seated")
    assert code(await offices.says(WUCHANG, f"/v1/help/{coming['id']}/rate", {"grade": 5})) == (409, "not_released")
    for verb in ("accept", "done"):
        assert (await offices.says(WUCHANG, f"/v1/tasks/{TASK}/{verb}", {"member": LI})).status_code == 200
    await offices.service.until_holds(lambda: offices.service.desks[QINGSHAN].state.members[CHEN].load == 0)
    assert (await offices.says(WUCHANG, f"/v1/help/{coming['id']}/rate", {"grade": 5})).json()["fact"] == "help.rated"
    assert await offices.sees(WUCHANG, "help") == []


async def test_every_desk_reads_what_others_say_and_sets_nothing_aside(offices: Offices) -> None:
    coming = await offer(offices)
    await offices.says(QINGSHAN, f"/v1/handovers/{coming['id']}/sign")
    await offices.service.until_holds(lambda: offices.owner() == [QINGSHAN])
    assert await offices.service.stored("evt.*.dispatch.-.turn.input_refused") == []
