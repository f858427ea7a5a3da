"""Whoever asks is forgotten: key, ciphertexts, and the fact that says so; wherever it was broken off, it is gone on with."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import orjson
import pytest

from services.intake.door import SEALED, Door
from services.intake.erasing import Erasing, Plan, plan
from services.intake.keeping import KeyKeeper
from services.intake.sweeping import Sweeper
from shared import streams
from shared.bus import Message
from shared.errors import UnavailableError
from tests.intake.conftest import World, keyed
from tests.intake.crashing import Crash, Crashing
from tests.intake.examples import LEAK, NOW, QINGSHAN, WUCHANG, opened
from tests.intake.ledger import Ledger

OTHER = {**LEAK, "contact": {"phone": "13900001111"}}
CONTACT = {"contact": {"phone": "+86 138-0013-8000"}}


async def submit(by: httpx2.AsyncClient, key: str, **body: Any) -> dict[str, Any]:
    answer = await by.post("/v1/requests", json={**LEAK, **body}, headers=keyed(key))
    assert answer.status_code == 201
    told: dict[str, Any] = answer.json()
    return told


async def held(world: World, stream: str) -> list[str]:
    """Subjects of keys and ciphertexts; claims hold nothing about anybody."""
    return [subject for subject, _ in await world.messages(stream) if "claims" not in subject]


async def forget(by: httpx2.AsyncClient, code: str, key: str = "e-1", confirm: Any = "erase") -> httpx2.Response:
    return await by.post(f"/v1/requests/{code}/erase", json={"confirm": confirm}, headers=keyed(key))


def test_a_plan_is_read_as_it_was_written() -> None:
    for planned in (
        Plan(WUCHANG, "ab", ("r-1", "r-2"), True, "asked", NOW, "keys.1.by.2", "supervisor:s-1"),
        Plan(WUCHANG, "ab", ("r-1",), False, "retention", NOW),
    ):
        assert plan(planned.subject, planned.encode()) == planned


def test_a_plan_without_a_time_is_from_long_ago() -> None:
    held = {"requests": ["r-1"], "whole": False, "reason": "asked", "lookup": None, "actor": None}
    assert plan(f"sealed.erasing.{WUCHANG}.ab.r-1", orjson.dumps(held)).at.year == 1970


# --- a resident, by tracking code -------------------------------------------------------------------------------------


async def test_a_resident_sees_what_is_stored_and_who_looked_and_has_it_erased(
    world: World, intake: httpx2.AsyncClient, ledger: Ledger, submitted: dict[str, Any]
) -> None:
    id, code = submitted["id"], submitted["tracking_code"]
    await world.tell(opened(id), id)
    token = world.token("staff-17", WUCHANG, "clerk")
    await intake.post(
        f"/v1/requests/{id}/disclosures", json={"why": "contact", "parts": ["contact"]}, headers=keyed("d-1", token)
    )
    shown = await intake.get(f"/v1/requests/{code}/data")
    told = shown.json()
    assert (told["state"], [one["part"] for one in told["stored"]]) == ("kept", ["contact", "text"])
    assert all(one["since"] and one["until"] is None for one in told["stored"])
    [look] = told["looks"]
    assert (look["role"], look["office"], look["why"], look["parts"]) == ("clerk", WUCHANG, "contact", ["contact"])
    assert look["why_name"]["zh"] == "联系居民"
    assert "staff-17" not in shown.text
    assert LEAK["text"] not in shown.text

    ciphertexts = [data for subject, data in await world.messages(SEALED) if "claims" not in subject]
    keys = [data for subject, data in await world.messages("KEYS") if ".by." not in subject]
    first = await forget(intake, code)
    assert first.status_code == 200
    assert "继续办理" in first.json()["note"]["zh"]
    assert (await forget(await world.instance(), code, "e-2")).content == first.content
    assert await held(world, SEALED) == await held(world, "KEYS") == []
    for secret in (*ciphertexts, *keys):
        assert secret not in world.on_disk()

    after = (await intake.get(f"/v1/requests/{code}/data")).json()
    assert (after["state"], after["stored"], bool(after["erased"])) == ("erased", [], True)
    assert (await intake.get(f"/v1/requests/{code}")).json()["state"] == "opened"  # the request itself goes on
    [fact] = await world.facts("request.erased")
    assert (fact["data"]["request_id"], fact["data"]["reason"]) == (id, "asked")


async def test_a_tracking_code_erases_its_own_request_and_no_other(
    world: World, intake: httpx2.AsyncClient, ledger: Ledger, submitted: dict[str, Any]
) -> None:
    other = await submit(intake, "k-2", text="又漏水了")
    assert (await forget(intake, submitted["tracking_code"])).status_code == 200
    [sealed] = await held(world, SEALED)
    assert sealed.endswith(other["id"])
    assert len(await held(world, "KEYS")) == 2  # the look-up and the key, which the other still needs
    clerk = world.token("staff-1", WUCHANG, "clerk")
    for id, status in ((submitted["id"], 410), (other["id"], 200)):
        answer = await intake.post(
            f"/v1/requests/{id}/disclosures", json={"why": "contact", "parts": ["contact"]}, headers=keyed("d-1", clerk)
        )
        assert answer.status_code == status
    assert (await forget(intake, other["tracking_code"])).status_code == 200
    assert await held(world, SEALED) == await held(world, "KEYS") == []


async def test_erasing_asks_for_the_word_the_key_and_the_code(
    intake: httpx2.AsyncClient, ledger: Ledger, submitted: dict[str, Any]
) -> None:
    code = submitted["tracking_code"]
    assert (await forget(intake, code, confirm="yes")).json()["code"] == "invalid"
    assert (await intake.post(f"/v1/requests/{code}/erase", json={"confirm": "erase"})).json()["code"] == "key_missing"
    assert (await forget(intake, "0000-0000-0000")).json()["code"] == "not_found"
    nothing = {"service": "tree", "location": {"area": "oujing"}}
    bare = (await intake.post("/v1/requests", json=nothing, headers=keyed("k-9"))).json()
    assert (await forget(intake, bare["tracking_code"])).json()["code"] == "nothing_sealed"
    assert (await intake.get(f"/v1/requests/{bare['tracking_code']}/data")).json()["state"] == "none"


# --- a person, by the office ------------------------------------------------------------------------------------------


async def ask(
    by: httpx2.AsyncClient, what: str, person: dict[str, Any], token: str | None, key: str | None = "p-1", **params: str
) -> httpx2.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    headers |= {"Idempotency-Key": key} if key else {}
    return await by.post(f"/v1/people/{what}", json=person, headers=headers, params=params)


async def test_a_person_is_found_by_contact_and_erased_with_all_their_requests(
    world: World, intake: httpx2.AsyncClient, ledger: Ledger, submitted: dict[str, Any]
) -> None:
    second = await submit(intake, "k-2", text="又漏水了", contact={"phone": "0086 138 0013 8000"})
    stranger = await submit(intake, "k-3", contact=OTHER["contact"])
    supervisor = world.token("staff-3", WUCHANG, "supervisor")
    found = await ask(intake, "find", CONTACT, supervisor, None)
    [one] = found.json()["people"]
    assert [request["id"] for request in one["requests"]] == [submitted["id"], second["id"]]
    assert "138" not in found.text.replace(one["kid"], "").replace(submitted["id"], "").replace(second["id"], "")

    dry = await ask(intake, "erase", CONTACT, supervisor, None, dry_run="true")
    assert dry.json() == {"dry_run": True, **found.json()}
    looked = await world.facts("request.disclosed")  # each look at each request, and never for whom was looked
    assert [fact["data"]["request_id"] for fact in looked] == [submitted["id"], second["id"]] * 2
    assert {(fact["data"]["to"], fact["data"]["why"], *fact["data"]["parts"]) for fact in looked} == {
        ("supervisor:staff-3", "sought")
    }
    shown = (await intake.get(f"/v1/requests/{submitted['tracking_code']}/data")).json()
    assert [(look["role"], look["why"], look["parts"]) for look in shown["looks"]] == [("supervisor", "sought", [])] * 2
    assert "查找" in shown["looks"][0]["why_name"]["zh"]
    assert await world.facts("request.erased") == []

    erased = (await ask(intake, "erase", CONTACT, supervisor)).json()["people"]
    assert [request["id"] for request in erased[0]["requests"]] == [submitted["id"], second["id"]]
    [left] = await held(world, SEALED)
    assert left.endswith(stranger["id"])
    assert len(await held(world, "KEYS")) == 2  # the stranger's
    facts = await world.facts("request.erased")
    assert [fact["data"]["request_id"] for fact in facts] == [submitted["id"], second["id"]]
    assert {fact["actor"] for fact in facts} == {"supervisor:staff-3"}
    assert (await ask(intake, "erase", CONTACT, supervisor)).json()["people"] == []

    again = await submit(intake, "k-4")  # who comes back is somebody new
    [one] = (await ask(intake, "find", CONTACT, supervisor)).json()["people"]
    assert [request["id"] for request in one["requests"]] == [again["id"]]
    assert one["kid"] != erased[0]["kid"]


async def test_a_person_is_erased_by_one_of_their_requests(
    world: World, intake: httpx2.AsyncClient, ledger: Ledger, submitted: dict[str, Any]
) -> None:
    second = await submit(intake, "k-2", text="又漏水了")
    admin = world.token("root", "*", "admin")
    by_request = {"request": second["id"]}
    first, repeat = [(await ask(intake, "erase", by_request, admin)).json()["people"] for _ in range(2)]
    assert {request["id"] for request in first[0]["requests"]} == {submitted["id"], second["id"]}
    assert [request["fact"] for request in repeat[0]["requests"]] == [
        request["fact"] for request in first[0]["requests"] if request["id"] == second["id"]
    ]
    assert await held(world, SEALED) == await held(world, "KEYS") == []
    assert len(await world.facts("request.erased")) == 2


@pytest.mark.parametrize("what", ["find", "erase"])
async def test_only_a_supervisor_of_the_district_or_an_admin_looks_for_people(
    world: World, intake: httpx2.AsyncClient, ledger: Ledger, submitted: dict[str, Any], what: str
) -> None:
    for roles, district, code in (
        (["dispatcher", "clerk"], WUCHANG, "forbidden"),
        (["member"], WUCHANG, "forbidden"),
        (["auditor"], "*", "forbidden"),
    ):
        refused = await ask(intake, what, CONTACT, world.token("staff-5", district, *roles))
        assert (refused.status_code, refused.json()["code"]) == (403, code)
    foreign = world.token("staff-6", QINGSHAN, "supervisor")
    assert (await ask(intake, what, CONTACT, foreign)).json() == {"people": []} | (
        {"dry_run": False} if what == "erase" else {}
    )
    assert (await ask(intake, what, CONTACT, foreign, district=WUCHANG)).json()["code"] == "foreign_district"
    assert (await ask(intake, what, {"request": submitted["id"]}, foreign)).json()["code"] == "foreign_district"
    assert (await ask(intake, what, CONTACT, None)).json()["code"] == "unauthenticated"
    ours = world.token("staff-3", WUCHANG, "supervisor")
    for wrong in ({}, {**CONTACT, "request": submitted["id"]}, {"contact": {"name": "张三"}}, {"name": "张三"}):
        assert (await ask(intake, what, wrong, ours)).json()["code"] == "invalid"
    assert len(await held(world, SEALED)) == 1


# --- broken off -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [False, True])
async def test_wherever_it_is_broken_off_it_is_gone_on_with(
    world: World, intake: httpx2.AsyncClient, ledger: Ledger, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    erasing = world.instances[0].retention.erasing
    erased = 0
    for changes in range(40):
        phone = f"137000{changes:05}"
        ids = [(await submit(intake, f"{phone}-{n}", contact={"phone": phone}))["id"] for n in range(2)]
        first = await erasing._cases.fresh({"id": ids[0]})
        person = await erasing.held(first.case)
        assert person is not None
        with monkeypatch.context() as patched:
            crashing = Crashing(erasing._bus, changes, after=after)
            patched.setattr(erasing, "_bus", crashing)
            patched.setattr(erasing._cases, "_bus", crashing)
            try:
                await erasing.erase_person(person, actor="supervisor:staff-3")
            except Crash:
                broken_off = True
            else:
                broken_off = False
        assert await erasing.go_on() <= 1
        if changes > 0 or after:  # it was written down what was to be done: so it is done
            erased += 2
            assert not [subject for subject in await held(world, SEALED) if ids[0] in subject or ids[1] in subject]
            keys = await world.messages("KEYS")
            assert not [subject for subject, data in keys if person.kid in subject or data == person.kid.encode()]
            facts = await world.facts("request.erased")
            assert {fact["data"]["request_id"] for fact in facts[-2:]} == set(ids)
            assert len(facts) == erased
            assert {fact["actor"] for fact in facts} == {"supervisor:staff-3"}
        assert await erasing.go_on() == 0
        if not broken_off:
            break
    else:
        pytest.fail("it never came to its end")
    assert changes == 8  # the plan, key and look-up, two ciphertexts, two facts, the plan again


async def test_without_the_ledger_it_says_so_and_goes_on_by_itself(
    world: World, intake: httpx2.AsyncClient, submitted: dict[str, Any], ledger: Ledger
) -> None:
    erasing = world.instances[0].retention.erasing
    found = await erasing._cases.fresh({"id": submitted["id"]})
    person = await erasing.held(found.case)
    assert person is not None
    ledger.mute = True
    with pytest.raises(UnavailableError):
        await erasing.erase_person(person, actor=None)
    assert await held(world, "KEYS") == []
    ledger.mute = False
    assert await erasing.go_on() == 1
    assert len(await world.facts("request.erased")) == 1


async def test_who_asked_stays_on_record_though_the_sweeper_goes_on_with_it(
    world: World, intake: httpx2.AsyncClient, submitted: dict[str, Any], ledger: Ledger
) -> None:
    erasing = world.instances[0].retention.erasing
    person = await erasing.held((await erasing._cases.fresh({"id": submitted["id"]})).case)
    assert person is not None
    ledger.mute = True
    with pytest.raises(UnavailableError):
        await erasing.erase_person(person, actor="supervisor:s-1")
    ledger.mute = False
    await erasing.finish(person.district, person.kid)
    [fact] = await world.facts("request.erased")
    assert (fact["data"]["reason"], fact["actor"]) == ("asked", "supervisor:s-1")


async def test_what_is_sealed_in_the_moment_in_which_its_key_goes_is_erased_by_the_sweeper(
    world: World, intake: httpx2.AsyncClient, ledger: Ledger, submitted: dict[str, Any]
) -> None:
    await world.admin.erase("KEYS", "keys.>")
    retention = world.instances[0].retention
    sweeper = Sweeper(world.instances[0].sweeper.bus, later, retention.erasing.finish, per_s=10_000)
    await sweeper.sweep()
    assert await held(world, SEALED) == ["sealed.swept"]
    [fact] = await world.facts("request.erased")
    assert (fact["data"]["request_id"], fact["data"]["reason"]) == (submitted["id"], "lost")


async def test_a_submission_on_its_way_in_during_the_erasure_is_erased_with_the_rest(
    world: World, intake: httpx2.AsyncClient, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    late: list[Message] = []
    decide = Door._decide

    def stop(door: Door, one: Any, sealed: Any) -> None:
        late.append(Message(one.subject, decide(door, one, sealed)[0].encode(), 0))
        raise RuntimeError("the key was there, the fact is not yet")

    monkeypatch.setattr(Door, "_decide", stop)
    assert (await intake.post("/v1/requests", json=LEAK, headers=keyed("k-1"))).status_code == 500
    erasing = world.instances[0].retention.erasing
    assert (await ask(intake, "erase", CONTACT, world.token("staff-3", WUCHANG, "supervisor"))).status_code == 200
    assert await held(world, "KEYS") == []
    assert await erasing.go_on() == 1  # it is not known yet
    await world.admin.commit(late)
    assert await erasing.go_on() == 1
    [fact] = await world.facts("request.erased")
    assert (fact["actor"], len(await held(world, SEALED))) == ("supervisor:staff-3", 0)
    assert await erasing.go_on() == 0


async def test_what_never_became_a_request_is_forgotten_after_an_hour_and_what_was_sealed_anew_is_kept(
    world: World, intake: httpx2.AsyncClient, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.delattr(Door, "_decide")
        assert (await intake.post("/v1/requests", json=LEAK, headers=keyed("k-1"))).status_code == 500
    supervisor = world.token("staff-3", WUCHANG, "supervisor")
    await ask(intake, "erase", CONTACT, supervisor)
    again = await intake.post("/v1/requests", json=LEAK, headers=keyed("k-1"))
    assert again.status_code == 201  # under a key of its own
    erasing = world.instances[0].retention.erasing
    assert await erasing.go_on() == 1
    monkeypatch.setattr(erasing, "_clock", later)
    assert await erasing.go_on() == 1
    assert await erasing.go_on() == 0
    assert await world.facts("request.erased") == []
    assert len(await held(world, SEALED)) == 1


async def test_whoever_asks_again_forgets_nothing_that_was_begun(
    world: World, intake: httpx2.AsyncClient, ledger: Ledger, submitted: dict[str, Any]
) -> None:
    second = await submit(intake, "k-2", text="又漏水了")
    erasing = world.instances[0].retention.erasing
    person = await erasing.held((await erasing._cases.fresh({"id": submitted["id"]})).case)
    assert person is not None
    ledger.mute = True
    with pytest.raises(UnavailableError):
        await erasing.erase_person(person, actor=None)
    ledger.mute = False
    supervisor = world.token("staff-3", WUCHANG, "supervisor")
    assert (await ask(intake, "erase", {"request": second["id"]}, supervisor)).status_code == 200
    facts = await world.facts("request.erased")
    assert {fact["data"]["request_id"] for fact in facts} == {submitted["id"], second["id"]}
    assert await erasing.go_on() == 0


@pytest.mark.parametrize("contact", [LEAK["contact"], None])
async def test_a_key_that_goes_before_the_ciphertext_is_there_is_made_again(
    world: World,
    intake: httpx2.AsyncClient,
    ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
    contact: dict[str, str] | None,
) -> None:
    find, gone = KeyKeeper.key, False

    async def find_and_lose(keeper: KeyKeeper, *args: Any) -> Any:
        nonlocal gone
        key = await find(keeper, *args)
        if not gone:
            gone = True
            assert await world.instances[0].retention.erasing.drop_unused(WUCHANG, key.kid, None)
        return key

    with monkeypatch.context() as patched:
        patched.delattr(Door, "_decide")
        await intake.post("/v1/requests", json={**LEAK, "contact": contact}, headers=keyed("k-1"))
    await world.admin.erase(SEALED, "sealed.*.*.*")  # of long ago: a key that seals nothing
    monkeypatch.setattr(KeyKeeper, "key", find_and_lose)
    request = await submit(intake, "k-1", contact=contact)
    clerk = world.token("staff-1", WUCHANG, "clerk")
    shown = await intake.post(
        f"/v1/requests/{request['id']}/disclosures",
        json={"why": "contact", "parts": ["text"]},
        headers=keyed("d-1", clerk),
    )
    assert shown.json()["parts"] == {"text": LEAK["text"]}


async def test_a_key_that_was_sealed_with_in_the_last_moment_comes_back(
    world: World, intake: httpx2.AsyncClient, submitted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    erasing: Erasing = world.instances[0].retention.erasing
    [(_, _), (subject, key)] = await world.messages("KEYS")
    kid = subject.rpartition(".")[2]
    bus = erasing._bus
    looks = 0

    class Late:
        """Sees the ciphertext at the second look only."""

        def __getattr__(self, name: str) -> Any:
            return getattr(bus, name)

        async def next(self, *args: Any, **more: Any) -> Any:
            nonlocal looks
            looks += 1
            return None if looks == 1 else await bus.next(*args, **more)

    monkeypatch.setattr(erasing, "_bus", Late())
    assert not await erasing.drop_unused(WUCHANG, kid, None)
    assert (await world.messages("KEYS"))[-1] == (subject, key)


async def test_a_key_stays_while_what_it_sealed_may_only_be_lost(
    world: World, intake: httpx2.AsyncClient, submitted: dict[str, Any]
) -> None:
    erasing = world.instances[0].retention.erasing
    [(_, _), (subject, _)] = keys = await world.messages("KEYS")
    kid = subject.rpartition(".")[2]
    await world.admin._api("STREAM.DELETE.SEALED")
    with pytest.raises(UnavailableError):
        await erasing.drop_unused(WUCHANG, kid, None)
    await streams.apply(world.admin)  # there again, and still to be filled
    assert not await erasing.drop_unused(WUCHANG, kid, None)
    assert await world.messages("KEYS") == keys


async def test_two_who_erase_at_once_leave_one_fact(
    world: World, intake: httpx2.AsyncClient, ledger: Ledger, submitted: dict[str, Any]
) -> None:
    elsewhere = await world.instance()
    codes = [submitted["tracking_code"]] * 6
    answers = await asyncio.gather(
        *(forget((intake, elsewhere)[n % 2], code, f"e-{n}") for n, code in enumerate(codes))
    )
    assert {answer.content for answer in answers} == {answers[0].content}
    assert len(await world.facts("request.erased")) == 1


def later() -> datetime:
    return datetime.now(UTC) + timedelta(hours=2)
