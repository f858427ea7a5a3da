"""Commands through HTTP, on a real bus."""

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest

from deploy.identities import Identities, issue_token
from deploy.servers import NatsServer
from services.dispatch import api
from services.dispatch.commands import Enrol
from services.dispatch.desk import RULES
from shared.errors import FencedError, RefusedError
from shared.ids import derived_id, new_id
from shared.turns import Command, Turns
from tests.dispatch.conftest import Service
from tests.examples import (
    LI,
    QINGSHAN,
    REQUEST,
    TASK,
    TEAM,
    WANG,
    WITHDRAWN,
    WUCHANG,
    area,
    envelope,
    id_of,
    submitted,
)

HEADER = "id,kind,areas,skills,capacity,duty,district,name,phone,quiet,channels\n"
ROWS = "".join(
    f"{member.member_id},grid_member,oujing-1,,40,,{WUCHANG},李明,1380000000{n},22:00-07:00,console\n"
    for n, member in enumerate(TEAM)
)


@pytest.fixture
async def running(service: Service) -> Service:
    """With its desks and its team, and a first request offered to Li."""
    await service.start()
    answer = await service.post("/v1/members/import", (HEADER + ROWS).encode(), headers={"content-type": "text/csv"})
    assert answer.status_code == 200, answer.text
    await service.store(service.intake, envelope(submitted()))
    await service.until_holds(lambda: TASK in service.desks[WUCHANG].state.tasks)
    return service


def code(answer: Any) -> tuple[int, str]:
    """Status and code of a problem."""
    return answer.status_code, answer.json()["code"]


async def test_a_task_goes_its_way_by_http(running: Service) -> None:
    li = running.token(LI, "member")
    positions = []
    for step, body in (("accept", {}), ("arrive", {}), ("done", {"outcome": "repaired"})):
        answer = await running.post(f"/v1/tasks/{TASK}/{step}", body, token=li)
        assert answer.status_code == 200, answer.text
        assert answer.json()["fact"].startswith("task.")
        positions.append(answer.json()["position"])
    assert positions == sorted(set(positions))
    shown = (await running.get(f"/v1/tasks/{TASK}")).json()
    assert (shown["status"], shown["holder"], shown["request"]) == ("done", LI, REQUEST)
    (li_shown,) = [m for m in (await running.get("/v1/members")).json()["members"] if m["id"] == LI]
    assert (li_shown["load"], li_shown["workload"]) == (0, 0)


async def test_the_same_key_again_has_the_same_answer_and_no_second_fact(running: Service) -> None:
    answers = await asyncio.gather(*(running.post(f"/v1/tasks/{TASK}/accept", {"member": LI}) for _ in range(10)))
    assert len({(answer.status_code, answer.json()["id"], answer.json()["facts"]) for answer in answers}) == 1
    accepted = await running.stored(f"evt.{WUCHANG}.dispatch.*.task.accepted")
    assert len(accepted) == 1


async def test_a_refusal_is_a_problem_in_both_languages(running: Service) -> None:
    answer = await running.post(f"/v1/tasks/{TASK}/accept", {"member": WANG})
    assert code(answer) == (409, "not_offered")
    assert WANG in answer.json()["title"]
    assert WANG in answer.json()["title_en"]
    assert code(await running.post(f"/v1/tasks/{id_of('?')}/accept", {"member": LI})) == (404, "unknown_task")
    assert code(await running.post("/v1/tasks/42/accept", {"member": LI})) == (422, "invalid")


async def test_without_a_key_nothing_is_done(running: Service) -> None:
    headers = {"authorization": f"Bearer {running.token()}"}
    answer = await running.http.post(f"/v1/tasks/{TASK}/accept", json={"member": LI}, headers=headers)
    assert code(answer) == (400, "key_missing")


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"phone":"1"}', b'{"member":"Li"}', b"\xff"])
async def test_a_body_of_another_shape_is_refused(running: Service, body: bytes) -> None:
    answer = await running.post(f"/v1/tasks/{TASK}/accept", body)
    assert answer.status_code in (400, 422)
    assert answer.json()["code"] in ("invalid", "invalid_json")


@pytest.mark.parametrize("kind", [None, "application/x-www-form-urlencoded", "application/json"])
@pytest.mark.parametrize("body", [b"", b"{}"])
async def test_where_everything_is_optional_a_body_may_be_missing(
    running: Service, body: bytes, kind: str | None
) -> None:
    """`curl -X POST` sends none, `curl -d '{}'` calls it a form."""
    headers = {"authorization": f"Bearer {running.token(LI, 'member')}", "content-type": kind}
    for verb in ("accept", "arrive", "done"):
        answer = await running.http.post(
            f"/v1/tasks/{TASK}/{verb}",
            content=body,
            headers={name: held for name, held in headers.items() if held} | {"idempotency-key": verb},
        )
        assert answer.status_code == 200, answer.text
    assert running.desks[WUCHANG].state.tasks[TASK].status == "done"


async def test_a_token_for_everywhere_is_asked_for_a_district_in_both_languages(running: Service) -> None:
    for path in ("/v1/tasks", "/v1/members", f"/v1/tasks/{TASK}"):
        answer = await running.get(path, token=running.token("root", "admin", district="*"))
        assert code(answer) == (422, "district_missing")
        assert WUCHANG not in answer.text
        assert "辖区" in answer.json()["detail"]
        assert "district" in answer.json()["detail_en"]


async def test_a_code_that_is_not_listed_is_refused(running: Service) -> None:
    li = running.token(LI, "member")
    answer = await running.post(f"/v1/tasks/{TASK}/decline", {"reason": "tired"}, token=li)
    assert code(answer) == (422, "not_listed")
    assert "busy(手头有事)" in answer.json()["detail"]
    document = (await running.http.get("/openapi.json")).json()["components"]["schemas"]
    assert "off_sick" in document["ByMemberWithReason"]["properties"]["reason"]["enum"]
    assert "solved" in document["ByMemberWithOutcome"]["properties"]["outcome"]["enum"]


async def test_a_task_that_is_over_says_so_in_chinese_and_in_english(running: Service) -> None:
    li = running.token(LI, "member")
    for verb in ("accept", "done"):
        await running.post(f"/v1/tasks/{TASK}/{verb}", {}, token=li)
    answer = await running.post(f"/v1/tasks/{TASK}/arrive", {}, token=li)
    assert code(answer) == (409, "wrong_state")
    assert answer.json()["title"] == "任务状态为已办结,不能到场"
    assert answer.json()["title_en"] == "A task that is done cannot be marked as arrived"


async def test_who_may_not_is_told_so_and_nothing_changes(running: Service, tmp_path: Any) -> None:
    path, body = f"/v1/tasks/{TASK}/accept", {"member": LI}
    other = Identities.open(tmp_path / "others")
    forged = issue_token(other, "staff-1", WUCHANG, ["admin"])
    expired = running.token(ttl=timedelta(seconds=-60))
    assert code(await running.post(path, body, token=forged)) == (401, "unauthenticated")
    assert code(await running.post(path, body, token=expired)) == (401, "unauthenticated")
    assert code(await running.http.post(path, json=body, headers={"idempotency-key": "x"})) == (401, "unauthenticated")
    foreign = running.token(district=QINGSHAN)
    assert code(await running.post(f"{path}?district={WUCHANG}", body, token=foreign)) == (403, "foreign_district")
    assert code(await running.post(path, body, token=running.token(WANG, "member"))) == (403, "not_yourself")
    assert code(await running.post(path, body, token=running.token("x", "auditor"))) == (403, "forbidden")
    assert code(await running.post(path, body, token=running.token("x", "admin", district="*"))) == (
        422,
        "district_missing",
    )
    assert running.desks[WUCHANG].state.tasks[TASK].holder is None


async def test_a_token_for_everywhere_names_its_district(running: Service) -> None:
    everywhere = running.token("root", "admin", district="*")
    answer = await running.post(f"/v1/tasks/{TASK}/accept?district={WUCHANG}", {"member": LI}, token=everywhere)
    assert answer.status_code == 200


async def test_a_token_on_the_bus_is_checked_too(running: Service) -> None:
    async def ask(verb: str, content: Any, district: str = WUCHANG) -> str:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        found = json.loads(await running.bus.request(f"cmd.{district}.desk.{verb}", body))
        return str(found.get("problem", {}).get("code", "done"))

    data, id = {"task": TASK, "member": LI}, id_of("by hand")
    assert await ask("accept", {"id": id, "data": data}) == "unauthenticated"
    assert await ask("accept", {"id": id, "data": data, "token": "x"}) == "unauthenticated"
    foreign = running.token(district=QINGSHAN)
    assert await ask("accept", {"id": id, "data": data, "token": foreign}) == "foreign_district"
    for broken in (b"{", b"[]", b"null", b"7", {"token": running.token()}):
        assert await ask("accept", broken) == "invalid_json"
    for odd in ("short", "x" * 101, "一二三四五六七八"):
        assert await ask("accept", {"id": odd, "token": running.token(), "data": data}) == "invalid"
    assert await ask("fly", {"id": id, "token": running.token(), "data": data}) == "unknown_command"
    assert await ask("accept", {"id": id, "token": running.token(), "data": data}) == "done"


async def test_without_a_leader_it_says_so_after_a_while(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "COMMAND_S", 0.3)
    await service.start(desks=False)
    answer = await service.post(f"/v1/tasks/{TASK}/accept", {"member": LI})
    assert code(answer) == (503, "no_leader")
    assert answer.headers["retry-after"] == "2"


async def test_a_command_waits_for_a_leader_that_comes(service: Service) -> None:
    asked = asyncio.create_task(service.post(f"/v1/tasks/{TASK}/accept", {"member": LI}))
    await asyncio.sleep(0.3)
    await service.start()
    assert code(await asked) == (404, "unknown_task")


# --- reading ----------------------------------------------------------------------------------------------------------


async def test_open_tasks_come_in_pages(running: Service) -> None:
    await running.store(running.intake, *(envelope(submitted(n)) for n in range(2, 8)))
    await running.until_holds(lambda: len(running.desks[WUCHANG].state.tasks) == 7)
    seen, after = [], ""
    while after is not None:
        page = (await running.get(f"/v1/tasks?limit=3&after={after}")).json()
        seen += [task["id"] for task in page["tasks"]]
        after = page["next"]
    assert seen == sorted(derived_id(submitted(n).request_id, "task", 1) for n in range(1, 8))
    assert (await running.get("/v1/tasks?status=done")).json()["tasks"] == []
    assert code(await running.get("/v1/tasks?limit=0")) == (422, "invalid")


async def test_a_member_sees_their_own(running: Service) -> None:
    li, zhao = running.token(LI, "member"), running.token("m-zhao", "member")
    assert [task["id"] for task in (await running.get("/v1/tasks", token=li)).json()["tasks"]] == [TASK]
    assert (await running.get("/v1/tasks?member=m-li", token=zhao)).json()["tasks"] == []
    assert code(await running.get(f"/v1/tasks/{TASK}", token=zhao)) == (404, "unknown_task")
    assert code(await running.get("/v1/members", token=li)) == (403, "forbidden")


async def test_a_foreign_district_sees_nothing(running: Service) -> None:
    foreign = running.token(district=QINGSHAN)
    for path in ("/v1/tasks", f"/v1/tasks/{TASK}", "/v1/members"):
        assert code(await running.get(f"{path}?district={WUCHANG}", token=foreign)) == (403, "foreign_district")
    assert code(await running.get("/v1/tasks?district=990001", token=running.token("r", "admin", district="*"))) == (
        404,
        "unknown_district",
    )


async def test_what_was_withdrawn_is_no_longer_open(running: Service) -> None:
    await running.store(running.intake, envelope(WITHDRAWN))
    await running.until_holds(lambda: not running.desks[WUCHANG].state.tasks)
    assert code(await running.get(f"/v1/tasks/{TASK}")) == (404, "unknown_task")
    assert code(await running.post(f"/v1/tasks/{TASK}/accept", {"member": LI})) == (409, "wrong_state")


async def test_it_is_ready_while_its_bus_is(running: Service) -> None:
    assert (await running.http.get("/readyz")).json() == {"ready": True, "missing": {}}
    assert (await running.http.get("/docs")).status_code == 200
    assert "/v1/tasks/{task}/accept" in (await running.http.get("/openapi.json")).json()["paths"]


async def test_a_broken_district_does_not_stop_the_others(running: Service) -> None:
    await running.ledger.put("evt.000000.ledger.-.register.district_set", b"{broken")
    await running.store(running.intake, envelope(submitted(2)))
    await running.until_holds(lambda: len(running.desks[WUCHANG].state.tasks) == 2)
    assert all(not task.done() for task in running.tasks)


# --- importing --------------------------------------------------------------------------------------------------------


async def imports(service: Service, content: str, **query: Any) -> Any:
    """Import a CSV file."""
    path = "/v1/members/import" + ("?dry_run=true" if query.get("dry_run") else "")
    key = query.get("key") or new_id()
    answer = await service.post(path, content.encode(), headers={"content-type": "text/csv"}, key=key)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def contact(service: Service, member: str) -> Any:
    """What CONTACTS holds."""
    found = await service.bus.last(f"$KV.CONTACTS.{WUCHANG}.{member}", stream="KV_CONTACTS")
    return json.loads(found.data) if found else None


async def test_a_dry_run_reports_and_changes_nothing(service: Service) -> None:
    await service.start()
    report = await imports(service, HEADER + ROWS + "x,,,,,,,,,,\n", dry_run=True)
    assert (report["dry_run"], report["enrolled"], report["error"]) == (True, 3, 1)
    assert [row["result"] for row in report["rows"]] == ["enrolled"] * 3 + ["error"]
    assert not service.desks[WUCHANG].state.members
    assert await contact(service, LI) is None


async def test_an_import_enrols_and_keeps_names_and_phones_out_of_every_fact(service: Service) -> None:
    await service.start()
    report = await imports(service, HEADER + ROWS)
    assert (report["enrolled"], report["error"]) == (3, 0)
    assert sorted(service.desks[WUCHANG].state.members) == sorted(member.member_id for member in TEAM)
    held = await contact(service, LI)
    assert (held["name"], held["phone"]) == ("李明", "13800000000")
    everything = b"".join(await service.stored())
    assert "李明".encode() not in everything
    assert b"1380000000" not in everything


async def test_who_is_erased_is_on_no_disk_and_only_a_supervisor_may(service: Service, fresh_nats: NatsServer) -> None:
    await service.start()
    await imports(service, HEADER + ROWS.replace("13800000000", "13611112222"))
    await imports(service, HEADER + ROWS.replace("李明", "李晓明", 1))  # another number: the first is overwritten

    def written() -> bytes:
        return b"".join(file.read_bytes() for file in fresh_nats.data.rglob("*") if file.is_file())

    assert b"13800000000" in written()
    assert b"13611112222" not in written()
    path = f"/v1/members/{LI}/erase"
    assert (await service.post(path, {})).json()["code"] == "forbidden"
    boss = service.token("staff-9", "supervisor")
    first = await service.post(path, {}, token=boss)
    assert first.status_code == 200
    assert (await service.post(path, {}, token=boss)).json()["id"] == first.json()["id"]
    assert await contact(service, LI) is None
    assert service.desks[WUCHANG].state.members[LI].left
    fresh_nats.stop()
    assert b"13800000000" not in written()
    assert "李晓明".encode() not in written()
    fresh_nats.start()


async def test_an_erasure_that_is_refused_or_repeated_deletes_nothing(service: Service) -> None:
    await service.start()
    await imports(service, HEADER + ROWS)
    boss = service.token("staff-9", "supervisor")

    async def ask(verb: str, member: str, id: str) -> Any:
        body = json.dumps({"id": id_of(id), "token": boss, "data": {"member": member}}).encode()
        return json.loads(await service.bus.request(f"cmd.{WUCHANG}.desk.{verb}", body))

    await ask("leave", LI, "left")
    assert (await ask("erase", WANG, "left"))["problem"]["code"] == "key_reused"
    assert await contact(service, WANG)
    first = await ask("erase", WANG, "erased")
    assert await contact(service, WANG) is None
    assert (await ask("erase", LI, "erased"))["problem"]["code"] == "key_reused"
    assert await contact(service, LI)
    await imports(service, HEADER + ROWS)
    assert (await ask("erase", WANG, "erased"))["id"] == first["id"]
    assert await contact(service, WANG), "who came back is reached"


async def test_an_erasure_that_a_leader_did_not_live_to_write_is_written_when_it_is_repeated(service: Service) -> None:
    await service.start()
    await imports(service, HEADER + ROWS)
    turns = service.desks[WUCHANG]
    ask = turns.ask
    fenced: list[str] = []

    async def once(command: Command) -> Any:
        if not fenced:
            fenced.append(command.id)
            raise FencedError("another leads")
        return await ask(command)

    turns.ask = once  # type: ignore[method-assign]
    answer = await service.post(f"/v1/members/{LI}/erase", {}, token=service.token("staff-9", "supervisor"))
    assert (answer.json()["fact"], answer.json()["facts"]) == ("member.erased", 2)
    assert fenced
    assert await contact(service, LI) is None


async def test_importing_again_changes_only_what_changed(service: Service) -> None:
    await service.start()
    await imports(service, HEADER + ROWS)
    last = (await service.bus.state()).last
    again = await imports(service, HEADER + ROWS)
    assert (again["unchanged"], again["enrolled"], again["changed"]) == (3, 0, 0)
    assert (await service.bus.state()).last == last
    changed = await imports(service, HEADER + ROWS.replace(",40,", ",80,", 1).replace("李明", "李新"))
    assert (changed["unchanged"], changed["changed"]) == (2, 1)
    assert service.desks[WUCHANG].state.members[LI].capacity == 80
    assert (await contact(service, WANG))["name"] == "李新"


async def test_who_left_is_enrolled_again_by_importing_them_again(service: Service) -> None:
    """The same rows as before, but another import: nothing that was answered before stands in its way."""
    await service.start()
    await imports(service, HEADER + ROWS)
    assert (await service.post(f"/v1/members/{LI}/leave", {})).status_code == 200
    again = await imports(service, HEADER + ROWS)
    assert (again["changed"], again["unchanged"]) == (1, 2)
    assert not service.desks[WUCHANG].state.members[LI].left


async def test_terms_that_go_back_to_what_they_were_hold(service: Service) -> None:
    await service.start()
    other = HEADER + ROWS.replace(",40,", ",80,")
    for content, capacity in ((HEADER + ROWS, 40), (other, 80), (HEADER + ROWS, 40), (other, 80)):
        await imports(service, content)
        assert service.desks[WUCHANG].state.members[LI].capacity == capacity


async def test_an_import_that_is_repeated_under_its_key_has_the_same_report(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks of two: each is a command of its own."""
    monkeypatch.setattr(api, "CHUNK", 2)
    await service.start()
    first = await imports(service, HEADER + ROWS, key="k")
    last = (await service.bus.state()).last
    assert first["enrolled"] == 3
    assert await imports(service, HEADER + ROWS, key="k") == first
    assert (await service.bus.state()).last == last


async def test_of_an_import_that_the_desk_refuses_no_phone_stays(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.start()
    await imports(service, HEADER + next(row for row in ROWS.splitlines(keepends=True) if row.startswith(LI)))
    first = await contact(service, LI)

    def no(*_: Any) -> None:
        raise RefusedError("forbidden", roles="")

    monkeypatch.setattr(Enrol, "allow", no)
    headers = {"content-type": "text/csv"}
    assert code(await service.post("/v1/members/import", (HEADER + ROWS).encode(), headers=headers)) == (
        403,
        "forbidden",
    )
    assert await contact(service, WANG) is None
    assert await contact(service, LI) == first, "who was known is reached as before"


async def test_only_a_dry_run_may_come_without_a_key(service: Service) -> None:
    await service.start()
    headers = {"authorization": f"Bearer {service.token()}", "content-type": "text/csv"}
    content = (HEADER + ROWS).encode()
    answer = await service.http.post("/v1/members/import", content=content, headers=headers)
    assert code(answer) == (400, "key_missing")
    answer = await service.http.post("/v1/members/import?dry_run=true", content=content, headers=headers)
    assert answer.json()["rows"][0]["result"] == "enrolled"


async def test_a_report_says_what_the_desk_did_and_not_what_was_expected(service: Service) -> None:
    """Two imports at once: each member is enrolled by one of them."""
    await service.start()
    reports = await asyncio.gather(*(imports(service, HEADER + ROWS) for _ in range(3)))
    assert sum(report["enrolled"] for report in reports) == 3
    assert sum(report["unchanged"] for report in reports) == 6


async def test_rows_that_are_not_enrolled_are_counted_and_say_why(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "REGISTER_S", 0.2)
    await service.start()
    rows = ROWS + f"m-a,grid_member,nowhere,,40,,{WUCHANG},,,,\nm-b,grid_member,oujing-1,,40,,{QINGSHAN},,,,\n"
    report = await imports(service, HEADER + rows)
    assert (report["enrolled"], report["error"], report["skipped"]) == (3, 1, 1)
    assert "nowhere" in report["rows"][3]["why"]
    assert QINGSHAN in report["rows"][4]["why"]
    assert "m-a" not in service.desks[WUCHANG].state.members
    assert await contact(service, "m-a") is None


async def test_areas_that_are_on_their_way_are_waited_for(service: Service) -> None:
    await service.start()
    row = f"m-a,grid_member,brand-new,,40,,{WUCHANG},,,,\n"
    waiting = asyncio.create_task(imports(service, HEADER + row))
    await asyncio.sleep(0.2)
    await service.store(service.ledger, envelope(area("brand-new")))
    assert (await waiting)["enrolled"] == 1


async def test_before_it_has_recovered_a_desk_says_so_and_does_not_look_empty(service: Service) -> None:
    service.desks.desks[WUCHANG] = Turns(RULES, service.bus, WUCHANG, "d-1")
    for path in ("/v1/tasks", f"/v1/tasks/{TASK}", "/v1/members"):
        answer = await service.get(path)
        assert code(answer) == (503, "not_recovered")
        assert answer.headers["retry-after"] == "2"
    answer = await service.post("/v1/members/import", (HEADER + ROWS).encode(), headers={"content-type": "text/csv"})
    assert code(answer) == (503, "not_recovered")
    assert await contact(service, LI) is None
    ready = await service.http.get("/readyz")
    assert (ready.status_code, ready.json()["missing"][f"desk {WUCHANG}"]) == (503, "not recovered")
    del service.desks.desks[WUCHANG]
    await service.start()
    assert (await service.get("/v1/members")).json() == {"members": []}
    assert (await service.http.get("/readyz")).status_code == 200


async def test_an_import_is_for_dispatchers_of_the_district(service: Service) -> None:
    await service.start()
    for token, expected in (
        (service.token(LI, "member"), (403, "forbidden")),
        (service.token("c", "clerk"), (403, "forbidden")),
    ):
        assert code(await service.post("/v1/members/import", (HEADER + ROWS).encode(), token=token)) == expected
    foreign = service.token(district=QINGSHAN)
    path = f"/v1/members/import?district={WUCHANG}"
    assert code(await service.post(path, (HEADER + ROWS).encode(), token=foreign)) == (403, "foreign_district")
    assert await contact(service, LI) is None


async def test_an_import_that_is_too_large_is_refused(service: Service) -> None:
    await service.start()
    answer = await service.post("/v1/members/import", b"x" * (api.IMPORT_BYTES_MAX + 1))
    assert code(answer) == (413, "too_large")
