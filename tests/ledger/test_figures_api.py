"""Figures as offices get them: over HTTP, by `paidan figures`, and again from a replay; appeals, rulings and buildings."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner

from deploy.cli import app
from deploy.identities import issue_token
from services.ledger.figures import DEFAULT
from shared.ids import new_id
from tests.examples import ESTATE, LI, OUJING, QINGSHAN, REGISTER, WUCHANG, XINXIANG, envelope
from tests.ledger.examples import message
from tests.ledger.test_api import Service, service  # noqa: F401
from tests.ledger.test_figures import BOTH, DAY, FIRST, a_life, closed, handed_over, opened, parked, request, submitted

FORMULAS = {**DEFAULT.model_dump(mode="json"), "district": WUCHANG, "version": 3, "valid_from": "2026-01-01"}


async def post(
    service: Service,  # noqa: F811
    path: str,
    body: Any,
    *roles: str,
    sub: str = "staff-4",
    of: str = WUCHANG,
    key: str | None = "",
    **params: str,
) -> httpx2.Response:
    """Ask for something as somebody of a district."""
    token = issue_token(service.identities, sub, of, roles, timedelta(hours=1))
    headers = {"Authorization": f"Bearer {token}", **({} if key is None else {"Idempotency-Key": key or new_id()})}
    return await service.http.post(path, params=params, json=body, headers=headers)


def shown(answer: Any, which: str) -> dict[str, Any]:
    """One figure of the first row."""
    return next(each for each in answer["rows"][0]["figures"] if each["figure"] == which)


def refused(response: httpx2.Response) -> tuple[int, str]:
    """Status and code."""
    return response.status_code, response.json()["code"]


async def test_figures_appeals_and_what_would_be_over_http_by_command_and_from_a_replay(
    service: Service,  # noqa: F811
    tmp_path: Path,
) -> None:
    cases = [submitted(1, FIRST), opened(1, FIRST), parked(1, FIRST + DAY), *a_life(2), *a_life(3, seen=BOTH)]
    cases += [submitted(4, FIRST), opened(4, FIRST), *handed_over(4, FIRST + DAY)]
    cases.append(closed(4, FIRST + 2 * DAY, round_=9, of=QINGSHAN))
    await service.published(*[message(envelope(fact)) for fact in REGISTER])
    assert (await service.apply({"formulas": [FORMULAS]})).status_code == 200
    await service.published(*map(message, cases))
    async with asyncio.timeout(10):
        while (await service.get("/v1/log")).json()["checkpoint"] is None:
            await asyncio.sleep(0.05)

    # who may
    for role in ("clerk", "member", "resident"):
        assert refused(await service.get("/v1/figures", role, of=WUCHANG)) == (403, "forbidden")
    answer = await service.get("/v1/figures", "dispatcher", of=WUCHANG, district=QINGSHAN)
    assert refused(answer) == (403, "foreign_district")
    assert refused(await service.get("/v1/figures", by="person")) == (422, "district_missing")
    assert refused(await service.get("/v1/figures", district="999999")) == (404, "unknown_district")
    assert refused(await service.get("/v1/figures", area="nowhere")) == (422, "unknown_area")
    assert refused(await service.get("/v1/figures", item="nothing")) == (422, "unknown_item")
    people = (await service.get("/v1/figures", "supervisor", of=WUCHANG, by="person")).json()
    assert LI in [row["person"] for row in people["rows"]]

    # the same for the office and for who sees everything
    mine = (await service.get("/v1/figures", "dispatcher", of=WUCHANG, month="2026-11")).json()
    everybody = (await service.get("/v1/figures", month="2026-11")).json()
    assert [row["district"] for row in everybody["rows"]] == [WUCHANG, QINGSHAN]
    assert mine["rows"] == everybody["rows"][:1]
    assert (shown(mine, "closing")["numerator"], shown(mine, "closing")["denominator"]) == (2, 3)
    assert shown(mine, "closing")["text"] == "66.67 %"
    assert [each["version"] for each in mine["formulas"]] == [3]
    assert mine["checkpoint"].splitlines()[1] == str(mine["size"])

    # an appeal, ruled on by somebody else
    appeals = "/v1/figures/appeals"
    body = {"request": request(1), "figure": "closing", "reason": "no_access", "why": "业主外出"}
    assert refused(await post(service, appeals, body, "supervisor", key=None)) == (400, "key_missing")
    assert refused(await post(service, appeals, body, "auditor")) == (403, "forbidden")
    assert refused(await post(service, appeals, {**body, "figure": "luck"}, "supervisor")) == (422, "not_listed")
    assert refused(await post(service, appeals, {**body, "why": "电话 13800000000"}, "supervisor")) == (422, "invalid")
    foreign = await post(service, appeals, {**body, "request": request(2)}, "supervisor", of=QINGSHAN)
    assert refused(foreign) == (404, "not_found")
    made = await post(service, appeals, body, "supervisor", key="one")
    again = await post(service, appeals, body, "supervisor", key="one")
    assert made.status_code == again.status_code == 201
    assert made.json() == again.json()
    id = made.json()["appeal_id"]
    ruling = f"{appeals}/{id}/ruling"
    yes = {"granted": True, "why": "属实"}
    assert refused(await post(service, ruling, yes, "admin", of=WUCHANG)) == (403, "own_appeal")
    assert refused(await post(service, ruling, yes, "dispatcher", sub="staff-5")) == (403, "forbidden")
    stranger = await post(service, ruling, yes, "supervisor", sub="staff-5", of=QINGSHAN)
    assert refused(stranger) == (403, "foreign_district")
    assert refused(await post(service, f"{appeals}/{new_id()}/ruling", yes, "supervisor")) == (404, "not_found")
    assert shown((await service.get("/v1/figures", of=WUCHANG)).json(), "closing")["denominator"] == 3
    ruled = await post(service, ruling, yes, "supervisor", sub="staff-5")
    assert ruled.status_code == 201, ruled.text
    assert (await post(service, ruling, yes, "supervisor", sub="staff-5")).json() == ruled.json()
    assert refused(await post(service, ruling, yes, "supervisor", sub="staff-6")) == (409, "already_ruled")
    listed = (await service.get(appeals, of=WUCHANG)).json()["appeals"]
    assert [(each["appeal_id"], each["ruling"]["granted"], each["ruling"]["by"]) for each in listed] == [
        (id, True, "supervisor:staff-5")
    ]
    assert (await service.get(appeals, of=QINGSHAN)).json()["appeals"] == []
    timeline = (await service.get(f"/v1/cases/{request(1)}", of=WUCHANG)).json()["case"]["timeline"]
    assert {"figure.appealed", "figure.ruled"} <= {each["name"] for each in timeline}

    now = (await service.get("/v1/figures", of=WUCHANG, month="2026-11")).json()
    assert (shown(now, "closing")["excluded"], shown(now, "closing")["appeals"]) == ({"appeal": 1}, [id])
    assert shown(now, "closing")["text"] == "100.00 %"
    before = await service.get("/v1/figures", "dispatcher", of=WUCHANG, month="2026-11", as_of=mine["size"])
    assert before.json() == mine, "what was published then"

    # what another formula would give
    changed = {"formulas": [{**FORMULAS["formulas"][5], "without": ["parked"]}]}
    tried = await post(service, "/v1/figures/what-if", changed, "auditor", month="2026-11")
    (other,) = tried.json()["rows"][0]["what_if"]["figures"]
    assert (other["figure"], other["differs"], other["excluded"]) == ("closing_in_time", True, {"parked": 1})
    wrong = {"formulas": [{**FORMULAS["formulas"][5], "without": ["bored"]}]}
    assert refused(await post(service, "/v1/figures/what-if", wrong, "auditor")) == (422, "invalid")
    twice = {"formulas": [FORMULAS["formulas"][5]] * 2}
    assert refused(await post(service, "/v1/figures/what-if", twice, "auditor")) == (422, "invalid")

    # tables
    table = await service.get("/v1/figures", of=WUCHANG, month="2026-11", format="csv")
    assert table.content.startswith(b"\xef\xbb\xbf")
    rows = [*csv.DictReader(io.StringIO(table.content.decode("utf-8-sig")))]
    closing = next(row for row in rows if row["figure"] == "closing")
    assert (closing["指标"], closing["numerator"], closing["denominator"], closing["rate"]) == (
        "结案率",
        "2",
        "2",
        "10000",
    )
    assert (closing["excluded"], closing["appeals"], closing["formulas"]) == ("appeal 1", id, f"{WUCHANG} v3")

    # the same from an office's own replay, without asking anybody
    replay = tmp_path / "replay.ndjson"
    replay.write_bytes((await service.get("/v1/events", of=WUCHANG)).content)
    command = ["figures", "--from-replay", str(replay), "--month", "2026-11", "--format"]
    made_again = json.loads(CliRunner().invoke(app, [*command, "json"], catch_exceptions=False).stdout)
    assert made_again["rows"] == now["rows"]
    assert made_again["formulas"] == now["formulas"]
    printed = CliRunner().invoke(app, [*command, "table"]).stdout
    assert "结案率" in printed
    assert "不计 / left out：申诉 1" in printed
    part = tmp_path / "part.ndjson"
    part.write_bytes((await service.get("/v1/events", district=WUCHANG)).content)
    failed = CliRunner().invoke(app, ["figures", "--from-replay", str(part)])
    assert "只是一部分" in str(failed.exception), "the register with its formulas is not in it"
    cut = tmp_path / "cut.ndjson"
    cut.write_bytes(b"".join(replay.read_bytes().splitlines(keepends=True)[:-1]))
    failed = CliRunner().invoke(app, ["figures", "--from-replay", str(cut)])
    assert "截断" in str(failed.exception)

    # and by command from a running stack
    (tmp_path / "secrets").symlink_to(service.identities.jwks_file.parent)
    stack = {"urls": {"ledger": str(service.http.base_url)}, "nats_url": service.bench.nats.url, "own_nats": True}
    (tmp_path / "stack.json").write_text(json.dumps({**stack, "pid": os.getpid(), "ports": {}, "ca_file": None}))
    (tmp_path / "tried.json").write_text(json.dumps(changed))
    asked = ["figures", "--data", str(tmp_path), "--district", WUCHANG, "--month", "2026-11"]
    told = await asyncio.to_thread(CliRunner().invoke, app, [*asked, "--formula", str(tmp_path / "tried.json")])
    assert told.exit_code == 0, told.exception
    line = next(line for line in told.stdout.splitlines() if "按期结案率" in line)
    assert "2/3" in line
    assert "*" in line
    tabled = await asyncio.to_thread(CliRunner().invoke, app, [*asked, "--format", "csv"])
    assert tabled.stdout_bytes == table.content


async def test_buildings_rate_each_other_and_the_flag_goes_round(service: Service) -> None:  # noqa: F811
    await service.published(*[message(envelope(fact)) for fact in REGISTER])
    path = "/v1/figures/buildings"
    body = {"building": OUJING, "by": ESTATE, "month": "2026-11", "points": 80}
    ours = [
        await post(service, path, each, "member", sub="m-li")
        for each in (body, {**body, "points": 85}, {**body, "building": XINXIANG, "by": OUJING})
    ]
    assert [each.status_code for each in ours] == [201, 201, 201], ours[0].text
    assert refused(await post(service, path, {**body, "by": OUJING}, "clerk")) == (422, "invalid")
    assert refused(await post(service, path, {**body, "points": 101}, "clerk")) == (422, "invalid")
    later = (date.today() + timedelta(days=40)).strftime("%Y-%m")  # noqa: DTZ011
    assert refused(await post(service, path, {**body, "month": later}, "clerk")) == (422, "invalid")
    assert refused(await post(service, path, body, "clerk", of=QINGSHAN)) == (422, "unknown_area")
    assert refused(await post(service, path, body, "auditor")) == (403, "forbidden")
    async with asyncio.timeout(10):
        while True:
            told = (await service.get(path, "member", of=WUCHANG, month="2026-11")).json()
            if len(told["buildings"]) == 2:
                break
    assert [(each["building"], each["text"], each["flag"]) for each in told["buildings"]] == [
        (OUJING, "85.00", True),
        (XINXIANG, "80.00", True),
    ]
    assert (await service.get(path, "member", of=QINGSHAN, month="2026-11")).json()["buildings"] == []
    table = await service.get(path, "member", of=WUCHANG, month="2026-11", format="csv")
    assert table.text.count("2026-11,") == 2


@pytest.mark.parametrize("given", ['{"formulas": []}', '{"formulas": [{"figure": "x"}]}', "[]", "{"])
def test_a_formula_file_that_is_none_is_said_in_one_line(given: str, tmp_path: Path) -> None:
    replay, formula = tmp_path / "replay.ndjson", tmp_path / "formula.json"
    replay.write_text(
        '{"checkpoint":null,"cursor":"","expected":0,"filter":{},"from":0,"heads":{},"log":"x","replay":"paidan/replay/1","size":0}\n'
        '{"count":0,"end":true,"next":null}\n'
    )
    formula.write_text(given)
    empty = CliRunner().invoke(app, ["figures", "--from-replay", str(replay)], catch_exceptions=False)
    assert "尚无可计入的诉求" in empty.stdout
    failed = CliRunner().invoke(app, ["figures", "--from-replay", str(replay), "--formula", str(formula)])
    assert type(failed.exception).__name__ == "SetupError"
    assert "\n" not in str(failed.exception)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("--month", "2026-13"), "不是月份"),
        (("--buildings",), "须指明辖区与月份"),
        (("--from-replay", __file__, "--as-of", "9"), "已固定规模"),
        (("--from-replay", __file__), "不是重放"),
    ],
)
def test_what_cannot_be_answered_is_said_with_what_to_do(asked: tuple[str, ...], said: str) -> None:
    assert said in str(CliRunner().invoke(app, ["figures", *asked]).exception)
