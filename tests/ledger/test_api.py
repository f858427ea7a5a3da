"""The ledger as others meet it: over HTTP and over the bus, as one running service."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest

from deploy.identities import Identities, issue_token
from deploy.servers import free_port
from services.ledger import api
from services.ledger.__main__ import run
from services.ledger.api import Ledger
from services.ledger.log.growing import Tree
from services.ledger.log.ingesting import Ingest
from services.ledger.projecting import Projector
from services.ledger.register.registering import Registry
from services.ledger.replay import Cursors
from services.ledger.settings import LedgerSettings
from services.ledger.store import Selection, StoreUnavailableError
from shared.bus import Bus
from shared.errors import RefusedError
from shared.facts import HUB, AgreementSet, AreaSet, HelpAnswered
from shared.ids import new_id
from tests.examples import AGREEMENT, REGISTER
from tests.ledger.conftest import ORIGIN, Bench
from tests.ledger.examples import (
    HONGSHAN,
    QINGSHAN,
    WUCHANG,
    about,
    event,
    handover_asked,
    handover_returned,
    life,
    message,
    request_id,
    submitted,
    task_id,
    tracking_hash,
)

DOCUMENT = json.loads((Path(__file__).parents[2] / "deploy" / "demo" / "register.json").read_text())


@dataclass
class Service:
    bench: Bench
    http: httpx2.AsyncClient
    identities: Identities

    def bearer(self, *roles: str, district: str = "*", ttl: timedelta = timedelta(hours=1)) -> dict[str, str]:
        return {"Authorization": f"Bearer {issue_token(self.identities, 'staff-4', district, roles, ttl)}"}

    async def get(self, path: str, *roles: str, of: str = "*", **params: Any) -> httpx2.Response:
        """Ask as somebody `of` a district, an auditor where no role is given."""
        headers = self.bearer(*(roles or ("auditor",)), district=of)
        return await self.http.get(path, params=params, headers=headers)

    async def replay(self, of: str = "*", **params: Any) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
        """Header, lines and last line."""
        response = await self.get("/v1/events", of=of, **params)
        assert response.status_code == 200, response.text
        header, *lines, trailer = [orjson.loads(line) for line in response.content.splitlines()]
        return header, lines, trailer

    async def apply(self, document: Any, **params: Any) -> httpx2.Response:
        body = {"document": document, "why": "test"}
        return await self.http.post("/v1/register", params=params, json=body, headers=self.bearer("admin"))

    async def query(self, district: str, **asked: Any) -> dict[str, Any]:
        body = orjson.dumps({"position": None, **asked})
        answer: dict[str, Any] = orjson.loads(
            await self.bench.admin.request(f"qry.{district}.ledger.case", body, timeout_s=5)
        )
        return answer

    async def published(self, *messages: tuple[str, bytes]) -> int:
        """Publish, and wait until it is in the cases."""
        sequence = await self.bench.publish(*messages)
        async with asyncio.timeout(20):
            while (await self.get("/v1/ledger")).json()["projected_sequence"] < sequence:
                await asyncio.sleep(0.01)
        return sequence


@pytest.fixture
async def service(bench: Bench, identities: Identities, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    port = free_port()
    for name, value in {
        "NATS_URL": bench.nats.url,
        "MONGODB_URI": bench.mongo.uri,
        "PAIDAN_DATABASE": bench.database,
        "PAIDAN_ORIGIN": ORIGIN,
        "PAIDAN_NATS_SEED_FILE": str(identities.seed_file("ledger")),
        "PAIDAN_HTTP_PORT": str(port),
        "PAIDAN_JWKS_FILE": str(identities.jwks_file),
        "PAIDAN_SECRETS_DIR": str(identities.secrets_dir("ledger")),
    }.items():
        monkeypatch.setenv(name, value)
    stop = asyncio.Event()
    running = asyncio.create_task(run(LedgerSettings(), stop))
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as http:
        async with asyncio.timeout(20):
            while True:
                assert not running.done(), running.result()
                try:
                    if (await http.get("/readyz")).status_code == 200:
                        break
                except httpx2.HTTPError:
                    pass
                await asyncio.sleep(0.05)
        yield Service(bench, http, identities)
    stop.set()
    async with asyncio.timeout(20):
        await running


# --- who may ----------------------------------------------------------------------------------------------------------


async def test_without_a_valid_token_nobody_reads_anything(service: Service) -> None:
    forged = service.bearer("auditor")["Authorization"][:-8] + "AAAAAAAA"
    expired = service.bearer("auditor", ttl=timedelta(hours=-1))["Authorization"]
    for path in ("/v1/cases", f"/v1/cases/{request_id(1)}", "/v1/events", "/v1/ledger", "/v1/register"):
        assert (await service.http.get(path)).status_code == 401
        for token in (forged, expired):
            response = await service.http.get(path, headers={"Authorization": token})
            assert (response.status_code, response.json()["code"]) == (401, "unauthenticated")


async def test_another_districts_cases_and_leaves_stay_closed(service: Service) -> None:
    await service.published(*[message(each) for each in life(1, f"{WUCHANG},{QINGSHAN}")])
    for path in ("/v1/cases", "/v1/events"):
        response = await service.get(path, "dispatcher", of=HONGSHAN, district=WUCHANG)
        assert (response.status_code, response.json()["code"]) == (403, "foreign_district")
    assert (await service.get("/v1/cases", "dispatcher", of=HONGSHAN)).json()["cases"] == []
    response = await service.get(f"/v1/cases/{request_id(1)}", "dispatcher", of=HONGSHAN)
    assert (response.status_code, response.json()["code"]) == (403, "foreign_district")
    assert (await service.get(f"/v1/cases/{request_id(1)}", "clerk", of=QINGSHAN)).status_code == 200
    assert (await service.get("/v1/events", "member", of=WUCHANG)).status_code == 403
    assert (await service.get("/v1/events", "auditor", of="")).status_code == 401


async def test_what_an_agreement_opened_is_closed_when_it_ends_but_for_who_has_to_do_with_it(service: Service) -> None:
    shared = f"{WUCHANG},{QINGSHAN}"
    asking = HelpAnswered(help_id=new_id(), task_id=task_id(2), to=QINGSHAN, member_id="m-chen")
    lent = [*life(2, shared), about(2, asking, districts=shared)]
    await service.published(*[message(each) for each in (*life(1, shared), *lent)])

    async def seen() -> list[int]:
        answers = [await service.get(f"/v1/cases/{request_id(n)}", "clerk", of=QINGSHAN) for n in (1, 2)]
        listed = (await service.get("/v1/cases", "clerk", of=QINGSHAN)).json()["cases"]
        replayed = (await service.get("/v1/events", "auditor", of=QINGSHAN)).text
        return [*(answer.status_code for answer in answers), len(listed), replayed.count(".xinxiang-7k.")]

    async def agreed(until: date | None) -> None:
        change = {"valid_to": until}
        facts = (*REGISTER, AGREEMENT.model_copy(update=change))
        told = [
            event(fact, id=new_id(), district=HUB, area="-")
            for fact in facts
            if isinstance(fact, AreaSet | AgreementSet)
        ]
        await service.published(*[message(each) for each in told])

    async def becomes(wanted: list[int]) -> None:
        async with asyncio.timeout(10):
            while (found := await seen()) != wanted:
                assert found, "it becomes what is wanted"
                await asyncio.sleep(0.1)

    await agreed(None)
    await becomes([200, 200, 2, len(life(1)) + len(lent)])
    await agreed(date(2026, 3, 2))
    await becomes([403, 200, 1, 0])
    assert (await service.get("/v1/cases", "clerk", of=QINGSHAN)).json()["cases"][0]["id"] == request_id(2)
    public = event(next(fact for fact in REGISTER if isinstance(fact, AreaSet)), id=new_id(), district=HUB)
    await service.published(message(public))
    await becomes([403, 200, 1, 1])
    assert (await service.get(f"/v1/cases/{request_id(1)}", "clerk", of=WUCHANG)).status_code == 200


async def test_the_list_shows_what_the_case_shows_also_to_who_was_asked_in_vain(service: Service) -> None:
    areas = [event(fact, id=new_id(), district=HUB, area="-") for fact in REGISTER if isinstance(fact, AreaSet)]
    await service.published(*[message(each) for each in (*areas, *life(1), handover_asked(1, HONGSHAN))])

    async def seen() -> tuple[int, int]:
        one = await service.get(f"/v1/cases/{request_id(1)}", "clerk", of=HONGSHAN)
        return one.status_code, len((await service.get("/v1/cases", "clerk", of=HONGSHAN)).json()["cases"])

    assert await seen() == (200, 1)
    await service.published(message(handover_returned(1, HONGSHAN)))
    assert await seen() == (403, 0)


async def test_before_the_register_is_read_nobody_is_shown_what_it_may_have_closed(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.published(*[message(each) for each in life(1, f"{WUCHANG},{QINGSHAN}")])
    asked: list[str] = []

    async def silent(_: Bus, subject: str) -> None:
        asked.append(subject)

    monkeypatch.setattr(Bus, "end", silent)
    registry = Registry(service.bench.bus)
    bench, projector = service.bench, Projector(service.bench.store)
    ingest = Ingest(bench.bus, bench.store, ORIGIN, stored=projector.hand)
    ledger = Ledger(
        ORIGIN, bench.bus, bench.store, ingest, projector, registry, Cursors(b"key"), bench.signer(Tree(bench.store))
    )
    stop = asyncio.Event()
    following = asyncio.create_task(registry.run(stop))
    async with asyncio.timeout(10):
        while len(asked) < 3:
            await asyncio.sleep(0.02)
    with pytest.raises(RefusedError, match="unavailable"):
        await api.find_case(ledger, id=request_id(1), scope=QINGSHAN)
    assert (await api.find_case(ledger, id=request_id(1)))["case"]["id"] == request_id(1)
    monkeypatch.undo()
    async with asyncio.timeout(10):
        while not registry.sharing.loaded:
            await asyncio.sleep(0.02)
    assert (await api.find_case(ledger, id=request_id(1), scope=QINGSHAN))["case"]["id"] == request_id(1)
    stop.set()
    await following


# --- cases ------------------------------------------------------------------------------------------------------------


async def test_a_case_is_told_from_beginning_to_end(service: Service) -> None:
    sequence = await service.bench.publish(*[message(each) for each in life(1)])
    answer = (await service.get(f"/v1/cases/{request_id(1)}", position=sequence)).json()
    assert (answer["stale"], answer["as_of"], answer["case"]["state"]) == (False, sequence, "closed")
    assert [entry["name"] for entry in answer["case"]["timeline"]] == [each.fact.name for each in life(1)]
    assert answer["case"]["timeline"][2]["members"] == ["m-li"]
    assert "tracking_hash" not in answer["case"]


async def test_cases_come_newest_first_in_pages_that_only_we_can_make(service: Service) -> None:
    await service.published(*[message(submitted(n)) for n in range(5)])
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = (await service.get("/v1/cases", limit=2, **({"cursor": cursor} if cursor else {}))).json()
        seen += [case["id"] for case in page["cases"]]
        if (cursor := page["next"]) is None:
            break
        assert (await service.get("/v1/cases", limit=2, state="done", cursor=cursor)).status_code == 400
    assert seen == [request_id(n) for n in (4, 3, 2, 1, 0)]
    assert (await service.get("/v1/cases", limit=2, cursor="AAAA")).json()["code"] == "bad_cursor"
    assert len((await service.get("/v1/cases", state="submitted", item="repair.leak")).json()["cases"]) == 5
    assert (await service.get("/v1/cases", area="nowhere")).json()["cases"] == []


async def test_a_query_over_the_bus_waits_for_its_position(service: Service) -> None:
    sequence = await service.bench.publish(*[message(each) for each in life(4, f"{WUCHANG},{QINGSHAN}")])
    answer = await service.query("000000", tracking_hash=tracking_hash(4), position=sequence)
    assert (answer["case"]["id"], answer["stale"]) == (request_id(4), False)
    assert (await service.query(QINGSHAN, id=request_id(4)))["case"]["state"] == "closed"
    third = answer["case"]["timeline"][2]
    one = await service.query("000000", id=request_id(4), fact=third["id"])
    assert (one["case"]["state"], one["case"]["timeline"]) == ("closed", [third])
    assert (await service.query("000000", id=request_id(4), fact=7))["problem"]["code"] == "invalid"
    assert (await service.query(HONGSHAN, id=request_id(4)))["problem"]["code"] == "foreign_district"
    assert (await service.query("000000", id=request_id(5)))["problem"]["code"] == "not_found"
    assert (await service.query("000000"))["problem"]["code"] == "invalid"
    started = asyncio.get_running_loop().time()
    behind = await service.query("000000", id=request_id(4), position=sequence + 1)
    assert (behind["stale"], behind["as_of"]) == (True, sequence)
    assert asyncio.get_running_loop().time() - started < 1  # the stream has not come there either
    assert (await service.query("000000", id=request_id(5), position=sequence + 1))["problem"]["code"] == "not_found"


async def test_what_the_projection_may_not_have_come_to_is_not_said_to_be_unknown(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stall(*_: object, **__: object) -> bool:
        await asyncio.sleep(0.1)
        return False

    monkeypatch.setattr(Projector, "_step", stall)
    monkeypatch.setattr(api, "WAIT_S", 0.2)
    sequence = await service.bench.publish(message(submitted(7)))
    assert (await service.query("000000", id=request_id(7), position=sequence))["problem"]["code"] == "unavailable"


# --- replay -----------------------------------------------------------------------------------------------------------


async def test_a_replay_says_what_to_expect_and_how_it_ended(service: Service) -> None:
    messages = [message(each) for n in range(30) for each in life(n)]
    await service.published(*messages)
    header, lines, trailer = await service.replay()
    assert (header["log"], header["size"], header["expected"]) == (ORIGIN, 270, 270)
    assert trailer == {"end": True, "count": 270, "next": None}
    stored = await service.bench.store.read(Selection(), 0, 270, 270)
    assert [(line["s"], orjson.dumps(line["leaf"], option=orjson.OPT_SORT_KEYS)) for line in lines] == stored


async def test_a_replay_in_parts_stays_pinned_to_one_size(service: Service) -> None:
    await service.published(*[message(each) for n in range(3) for each in life(n)])
    header, lines, trailer = await service.replay(limit=10)
    await service.published(*[message(each) for each in life(9)])
    seen = lines
    while trailer["next"]:
        header, lines, trailer = await service.replay(limit=10, cursor=trailer["next"])
        assert header["size"] == 27
        seen += lines
    assert [line["s"] for line in seen] == list(range(27))


async def test_filters_narrow_a_replay(service: Service) -> None:
    one, two = life(1, f"{WUCHANG},{QINGSHAN}"), life(2)
    await service.published(*[message(each) for each in one + two], ("evt.420106.x", b"nonsense"))
    header, lines, _ = await service.replay(district=QINGSHAN)
    assert (header["expected"], len(lines)) == ({QINGSHAN: 9}, 9)
    header, lines, _ = await service.replay(request=request_id(2))
    assert (header["expected"], [line["leaf"]["case"]["n"] for line in lines]) == (9, list(range(1, 10)))
    _, lines, _ = await service.replay(type="task.offered,cn.paidan.task.done.v1")
    assert [line["s"] for line in lines] == [2, 6, 11, 15]
    _, lines, _ = await service.replay("*", area="xinxiang-7k", to=7, **{"from": "4"})
    assert [line["s"] for line in lines] == [4, 5, 6]
    _, lines, _ = await service.replay(area="elsewhere")
    assert lines == []
    header, lines, _ = await service.replay(kinds="reject")
    assert [line["leaf"]["reason"] for line in lines] == ["json"]
    header, lines, _ = await service.replay(kinds="all")
    assert (header["expected"], len(lines)) == (19, 19)
    assert (await service.get("/v1/events", kinds="secrets")).status_code == 422


async def test_a_district_gets_its_own_leaves_only_and_can_prove_that_it_got_them_all(service: Service) -> None:
    await service.published(*[message(each) for each in life(1, f"{WUCHANG},{QINGSHAN}") + life(2)])
    for asked in ({}, {"kinds": "all"}, {"request": request_id(1)}):
        header, lines, trailer = await service.replay(of=QINGSHAN, **asked)
        assert (header["expected"], trailer["count"]) in (({QINGSHAN: 9, "000000": 0}, 9), (9, 9))
        assert [line["leaf"]["scopes"][1] for line in lines] == [{"d": QINGSHAN, "n": n} for n in range(1, 10)]
    assert (await service.replay(of=QINGSHAN, request=request_id(2)))[1] == []


async def test_a_stream_of_events_goes_on_behind_the_last_event_id_and_comes_zipped_to_who_asks(
    service: Service,
) -> None:
    await service.published(*[message(each) for each in life(1)])
    headers = {**service.bearer("auditor"), "Last-Event-ID": "5", "Accept-Encoding": "gzip"}
    sent = await service.http.get("/v1/events", params={"format": "sse"}, headers=headers)
    assert sent.headers["content-type"].startswith("text/event-stream")
    assert sent.headers["content-encoding"] == "gzip"
    assert [line for line in sent.text.splitlines() if line.startswith("id: ")] == ["id: 6", "id: 7", "id: 8"]
    headers["Accept-Encoding"] = "identity"
    plain = await service.http.get("/v1/events", params={"format": "sse"}, headers=headers)
    assert "content-encoding" not in plain.headers
    assert plain.text == sent.text


async def test_what_was_is_told_as_of_a_size_and_of_a_moment(service: Service) -> None:
    await service.published(*[message(each) for each in (*life(1), submitted(2, at_s=60))])
    one = f"/v1/cases/{request_id(1)}"
    case = (await service.get(one, as_of=4)).json()
    assert (case["size"], case["case"]["state"], len(case["case"]["timeline"])) == (4, "offered", 4)
    assert (await service.get(one, at="2026-11-22T01:02:04Z")).json()["case"]["state"] == "submitted"
    assert (await service.get(one, as_of=0)).json()["code"] == "not_found"
    assert (await service.get(one, as_of=99)).json()["code"] == "no_checkpoint"
    assert (await service.get(one, as_of="soon")).json()["field"] == "as_of"
    assert (await service.get(one, at="0001-01-01T00:00:00+23:00")).json()["field"] == "at"
    assert (await service.get("/v1/events", to=2**63)).json()["field"] == "to"
    listed = (await service.get("/v1/cases", as_of=4, state="offered")).json()
    assert ([each["id"] for each in listed["cases"]], listed["size"]) == ([request_id(1)], 4)
    first = (await service.get("/v1/cases", as_of=10, limit=1)).json()
    second = (await service.get("/v1/cases", as_of=10, limit=1, cursor=first["next"])).json()
    assert [page["cases"][0]["id"] for page in (first, second)] == [request_id(2), request_id(1)]
    state = (await service.get("/v1/state", of=WUCHANG, as_of=5)).json()
    assert (state["district"], state["cases"]["states"]) == (WUCHANG, {"accepted": 1})
    assert state["members"] == [{"member": "m-li", "held": 1, "effort": 3}]
    assert (await service.get("/v1/state", of=QINGSHAN)).json()["cases"]["open"] == 0
    assert (await service.get("/v1/state", of=QINGSHAN, district=WUCHANG)).json()["code"] == "foreign_district"


async def test_a_replay_that_breaks_off_has_no_last_line(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    await service.published(*[message(each) for n in range(30) for each in life(n)])
    monkeypatch.setattr("services.ledger.replay.CHUNK", 100)
    chunks = type(service.bench.store).chunks

    async def failing(self: Any, *asked: Any) -> AsyncIterator[list[tuple[int, bytes]]]:
        async for chunk in chunks(self, *asked):
            if chunk[0][0] >= 200:
                raise StoreUnavailableError("the store is gone")
            yield chunk

    monkeypatch.setattr(type(service.bench.store), "chunks", failing)
    got = b""
    async with service.http.stream("GET", "/v1/events", headers=service.bearer("auditor")) as response:
        with suppress(httpx2.HTTPError):
            async for part in response.aiter_bytes():
                got += part
    assert got.count(b"\n") > 100
    assert b'"end":true' not in got


async def test_the_summary_accounts_for_every_sequence(service: Service) -> None:
    subject, data = message(submitted(1))
    sequence = await service.published((subject, data), (subject, data), ("evt.420106.x", b"nonsense"))
    found = (await service.get("/v1/ledger", "member", of=WUCHANG)).json()
    assert (found["leaves"], found["facts"], found["dups"], found["rejects"], found["gaps"]) == (3, 1, 1, 1, 0)
    assert (found["last_sequence"], found["stream_last_sequence"], found["complete"]) == (sequence, sequence, True)


# --- the register -----------------------------------------------------------------------------------------------------


async def test_a_register_is_previewed_applied_and_then_already_there(service: Service) -> None:
    preview = (await service.apply(DOCUMENT, dry_run="true")).json()
    assert (preview["applied"], preview["sequence"], {c["change"] for c in preview["changes"]}) == (False, 0, {"+"})
    done = (await service.apply(DOCUMENT)).json()
    assert (done["applied"], done["facts"], done["digest"]) == (True, preview["facts"], preview["digest"])
    again = (await service.apply(DOCUMENT)).json()
    assert (again["applied"], again["facts"], again["digest"]) == (False, 0, done["digest"])
    current = await service.get("/v1/register", "member", of=WUCHANG)
    assert current.headers["etag"] == f'"{done["digest"]}"'
    assert (await service.apply(current.json())).json()["facts"] == 0
    bare = await service.http.post("/v1/register", json=DOCUMENT, headers=service.bearer("admin"))
    assert (bare.status_code, bare.json()["facts"]) == (200, 0)


async def test_a_document_for_another_register_than_there_is_changes_nothing(service: Service) -> None:
    digest = (await service.apply(DOCUMENT)).json()["digest"]
    changed = json.loads(json.dumps({"items": DOCUMENT["items"][:1]}))
    changed["items"][0]["effort"] = 21

    async def apply(of: str) -> tuple[int, str]:
        headers = {**service.bearer("admin"), "If-Match": of}
        answer = await service.http.post("/v1/register", json=changed, headers=headers)
        return answer.status_code, answer.json().get("code", "")

    assert await apply(f'"{digest}"') == (200, "")
    assert await apply(f'"{digest}"') == (409, "stale_register")
    assert await apply(digest) == (422, "invalid")


async def test_only_what_changed_becomes_a_fact(service: Service) -> None:
    await service.apply(DOCUMENT)
    changed = json.loads(json.dumps(DOCUMENT))
    effort = DOCUMENT["items"][0]["effort"]
    changed["items"][0]["effort"] = effort + 1
    answer = (await service.apply(changed)).json()
    assert answer["facts"] == 1
    assert [c for c in answer["changes"] if c["change"] != "="] == [
        {
            "change": "~",
            "what": f"item {changed['items'][0]['item']}",
            "fields": [{"field": "effort", "old": effort, "new": effort + 1}],
        }
    ]


def moved(document: Any, since: str, **fields: Any) -> dict[str, Any]:
    """The enclave of the demo on other terms from a day on."""
    area = next(area for area in document["areas"] if area["area"] == "xinxiang")
    return {"areas": [{**area, "valid_from": since, **fields}]}


async def test_the_register_is_told_of_any_day_as_it_was_known_at_any_time(service: Service) -> None:
    await service.apply(DOCUMENT)
    await service.apply(moved(DOCUMENT, "2027-01-01", served_by=QINGSHAN))
    sequence = (await service.apply(moved(DOCUMENT, "2027-01-01", served_by=HONGSHAN))).json()["sequence"]
    async with asyncio.timeout(20):
        while (area := await dossier(service))["as_of"] < sequence:
            await asyncio.sleep(0.02)
    assert area["owners"]["served_by"]["who"] == WUCHANG
    assert (area["owners"]["served_by"]["since"], area["agreement"]["agreement"]) == ("2024-01-01", "agr-xinxiang")
    later = await dossier(service, on="2027-02-01")
    assert (later["owners"]["served_by"]["who"], later["owners"]["located_in"]["since"]) == (HONGSHAN, "2024-01-01")
    *_, second, third = later["history"]
    assert (third["by"], third["why"]) == ("admin:staff-4", "test")
    assert third["fields"] == [{"field": "served_by", "old": QINGSHAN, "new": HONGSHAN}]
    assert {field["old"] for field in second["fields"]} == {None}
    known = await dossier(service, on="2027-02-01", as_of=third["index"])
    assert (known["owners"]["served_by"]["who"], len(known["history"])) == (QINGSHAN, len(later["history"]) - 1)
    assert (await dossier(service, on="2027-02-01", as_of=second["recorded"]))["owners"]["served_by"]["who"] == WUCHANG
    for asked, served in (({"on": "2027-02-01"}, HONGSHAN), ({"on": "2026-02-01"}, WUCHANG)):
        document = (await service.get("/v1/register", **asked)).json()
        assert [a["served_by"] for a in document["areas"] if a["area"] == "xinxiang"] == [served]
    empty = (await service.get("/v1/register", as_of=0)).json()
    assert not any(empty.values())
    for wrong in ("tomorrow", "2027-01-01T00:00:00", str(sequence + 10_000)):
        refused = await service.get("/v1/register", as_of=wrong)
        assert (refused.status_code // 100, refused.json()["field"]) == (4, "as_of")
    assert (await service.get("/v1/register/areas/nowhere")).status_code == 404


async def dossier(service: Service, **params: Any) -> dict[str, Any]:
    answer = await service.get("/v1/register/areas/xinxiang", "clerk", of=WUCHANG, **params)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def test_outlines_go_out_as_geojson_come_in_again_and_what_no_longer_fits_is_told(service: Service) -> None:
    await service.apply(DOCUMENT)
    out = await service.get("/v1/register.geojson", "member", of=WUCHANG)
    assert out.headers["content-type"] == "application/geo+json"
    collection = out.json()
    drawn = [feature for feature in collection["features"] if feature["geometry"]]
    one, other = drawn[0]["properties"]["area"], drawn[1]
    body = {"outlines": {**collection, "features": [{**other, "properties": {"area": one}}]}, "why": "survey"}
    asked = {"dry_run": "true", "from": "2027-01-01"}
    preview = await service.http.post("/v1/register/outlines", params=asked, json=body, headers=service.bearer("admin"))
    answer = preview.json()
    assert [(c["change"], c["what"]) for c in answer["changes"]] == [("+", f"area {one} from 2027-01-01")]
    assert {(w["finding"], w["from"]) for w in answer["warnings"]} >= {("overlap", "2027-01-01")}
    assert not answer["applied"]
    survey = (await service.get("/v1/register/survey", "auditor", of=WUCHANG, on="2026-06-01")).json()
    assert (survey["on"], survey["areas"]) == ("2026-06-01", len(DOCUMENT["areas"]))


async def test_a_register_of_thousands_is_applied_in_batches(service: Service) -> None:
    area = DOCUMENT["areas"][0]
    areas = [{**area, "area": f"g-{n}", "parent": area["area"]} for n in range(2500)]
    answer = (await service.apply({**DOCUMENT, "areas": [*DOCUMENT["areas"], *areas]})).json()
    assert answer["applied"]
    assert answer["sequence"] == answer["facts"] + 3  # one register.applied per batch
    assert (await service.apply({"areas": areas})).json()["facts"] == 0


async def test_of_two_admins_at_once_one_is_told_that_the_register_has_moved(service: Service) -> None:
    await service.apply(DOCUMENT)
    documents = []
    for effort in range(20, 28):
        changed = json.loads(json.dumps({"items": DOCUMENT["items"][:1]}))
        changed["items"][0]["effort"] = effort
        documents.append(changed)
    answers = await asyncio.gather(*(service.apply(document) for document in documents))
    codes = sorted(answer.status_code for answer in answers)
    assert codes[0] == 200
    assert {*codes} <= {200, 409}
    assert all(answer.json()["code"] == "stale_register" for answer in answers if answer.status_code == 409)
    _, facts, _ = await service.replay(type="register.item_set")
    assert len(facts) == len(DOCUMENT["items"]) + codes.count(200)


async def test_who_is_no_admin_changes_no_register(service: Service) -> None:
    response = await service.http.post("/v1/register", json=DOCUMENT, headers=service.bearer("supervisor"))
    assert (response.status_code, response.json()["code"]) == (403, "forbidden")


async def test_the_admin_of_one_district_does_not_change_what_is_everybodys(service: Service) -> None:
    mine = service.bearer("admin", district=WUCHANG)
    for params in ({}, {"dry_run": "true"}):
        response = await service.http.post("/v1/register", params=params, json=DOCUMENT, headers=mine)
        assert (response.status_code, response.json()["code"]) == (403, "everywhere_only")
    assert (await service.get("/v1/register", "admin", of=WUCHANG)).json().get("areas", []) == []


async def test_a_mistake_in_a_register_is_named_by_entry_and_field(service: Service) -> None:
    wrong = json.loads(json.dumps(DOCUMENT))
    wrong["areas"][3]["served_by"] = "999999"
    response = await service.apply(wrong)
    assert (response.status_code, response.json()["code"], response.json()["field"]) == (
        422,
        "invalid",
        "areas.3.served_by",
    )
    assert (await service.get("/v1/ledger")).json()["leaves"] == 0


async def test_metrics_count_leaves_by_kind(service: Service) -> None:
    await service.published(*[message(each) for each in life(1)])
    assert 'paidan_ledger_leaves_total{kind="event"}' in (await service.http.get("/metrics")).text


# --- acts -------------------------------------------------------------------------------------------------------------

ACT = {"act": "contact_set", "of": "m-supervisor-420106", "why": "值班调整"}


NAMES = ("李四", "13800000000", "138-0000-0000", "li.si@example.com", "Li", "a" * 65, "")


async def act(service: Service, key: str | None, *roles: str, of: str = "*", body: Any = ACT, **params: Any) -> Any:
    """Record an act; the answer."""
    headers = service.bearer(*(roles or ("admin",)), district=of) | ({"Idempotency-Key": key} if key else {})
    return await service.http.post("/v1/acts", json=body, headers=headers, params=params)


async def acts_read(service: Service, count: int, of: str = "*", **params: Any) -> dict[str, Any]:
    """The acts, once there are so many in the log."""
    async with asyncio.timeout(20):
        while len((page := (await service.get("/v1/acts", of=of, **params)).json())["acts"]) < count:
            await asyncio.sleep(0.02)
    return dict(page)


async def test_an_act_is_recorded_once_per_key_and_read_by_auditors(service: Service) -> None:
    first = await act(service, "k-1", district=WUCHANG)
    assert (first.status_code, first.json()["by"], first.json()["district"]) == (201, "admin:staff-4", WUCHANG)
    assert first.json().items() >= ACT.items()
    again = await asyncio.gather(*(act(service, "k-1", district=WUCHANG) for _ in range(3)))
    assert all(answer.json() == first.json() for answer in again)
    await act(service, "k-2", district=WUCHANG)
    assert (await act(service, "k-1", district=WUCHANG)).json() == first.json()  # also behind another
    reused = await act(service, "k-1", body={**ACT, "of": "m-17"}, district=WUCHANG)
    assert (reused.status_code, reused.json()["code"]) == (422, "key_reused")
    read = await acts_read(service, 2)
    assert read["acts"][0]["id"] == first.json()["id"]
    assert (len(read["acts"]), read["next"]) == (2, None)


async def test_at_the_same_moment_one_act_is_recorded_once_and_others_each(service: Service) -> None:
    answers = await asyncio.gather(*(act(service, f"k-{n % 4}") for n in range(12)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 4
    page = await acts_read(service, 4)
    assert len(page["acts"]) == 4
    half = await acts_read(service, 2, limit=2)
    rest = (await service.get("/v1/acts", limit=2, cursor=half["next"])).json()
    assert [*half["acts"], *rest["acts"]] == page["acts"]
    assert (await service.get("/v1/acts", limit=2, cursor=half["next"][:-2])).json()["code"] == "bad_cursor"
    assert (await service.get("/v1/ledger")).json()["dups"] == 0


async def test_acts_are_an_admins_in_their_own_district_and_an_auditors_to_read(service: Service) -> None:
    for answer, status, code in (
        (await act(service, "k", "supervisor"), 403, "forbidden"),
        (await act(service, "k", of=WUCHANG, district=QINGSHAN), 403, "foreign_district"),
        (await act(service, None), 400, "key_missing"),
        (await act(service, "k", body={**ACT, "act": "Contact Set"}), 422, "invalid"),
        (await act(service, "k", body={**ACT, "phone": "1"}), 422, "invalid"),
        *[(await act(service, "k", body={**ACT, "of": of}), 422, "invalid") for of in NAMES],
        (await act(service, "k", body={**ACT, "why": "致电 13800000000"}), 422, "invalid"),
        (await service.get("/v1/acts", "dispatcher"), 403, "forbidden"),
        (await service.get("/v1/acts", of=WUCHANG, district=QINGSHAN), 403, "foreign_district"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (status, code)
    mine = await act(service, "k", of=WUCHANG)
    everybodys = await act(service, "k")
    await acts_read(service, 2)
    seen = {one["id"] for one in (await service.get("/v1/acts", of=WUCHANG)).json()["acts"]}
    assert seen == {mine.json()["id"], everybodys.json()["id"]}
    seen = {one["id"] for one in (await service.get("/v1/acts", of=QINGSHAN)).json()["acts"]}
    assert seen == {everybodys.json()["id"]}
