"""Exports over HTTP, from a real database: rights, the fact that comes first, what breaks off and goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from lxml import etree

from services.ledger.exporting import streaming
from services.ledger.exporting.checking import checked
from shared.envelope import decode
from shared.facts import HUB, LedgerExported
from tests.ledger.examples import HONGSHAN, QINGSHAN, WUCHANG, life, message, request_id
from tests.ledger.test_api import Service, service  # noqa: F401
from tests.ledger.test_enclave_api import signed
from tests.ledger.test_exporting import FORMATS, OCEL, SHARED, XES, rows, said

MANY = 12
ON_RECORD = f"evt.{HUB}.ledger.-.ledger.exported"


@pytest.fixture
async def filled(service: Service, monkeypatch: pytest.MonkeyPatch) -> Service:  # noqa: F811
    """Cases, every other one shared: several pages of leaves."""
    monkeypatch.setattr(streaming, "CHUNK", 20)
    cases = [life(n, SHARED if n % 2 else None) for n in range(MANY)]
    await service.published(*[message(each) for case in (*cases, life(MANY)[:1]) for each in case])
    await signed(service)
    return service


async def export(service: Service, format: str, of: str = "*", **params: Any) -> bytes:  # noqa: F811
    response = await service.get("/v1/exports", of=of, format=format, **params)
    assert response.status_code == 200, response.text
    return response.content


async def test_every_format_is_whole_and_on_record_first_and_the_same_again(filled: Service, tmp_path: Path) -> None:
    size = str((await filled.get("/v1/log")).json()["checkpoint"]["size"])
    _, replayed, trailer = await filled.replay(as_of=size, kinds="all")
    for format in FORMATS:
        response = await filled.get("/v1/exports", format=format, as_of=size, why="yearly audit")
        assert response.headers["paidan-size"] == size
        assert int(response.headers["paidan-leaves"]) == len(replayed) == trailer["count"]
        assert f"paidan-{size}." in response.headers["content-disposition"]
        last = await filled.bench.admin.last(ON_RECORD)
        assert last is not None
        fact = decode(ON_RECORD, last.data).fact
        assert isinstance(fact, LedgerExported)
        assert (fact.format, fact.size, fact.why, fact.by) == (format, int(size), "yearly audit", "auditor:staff-4")
        made = await export(filled, format, as_of=size)
        assert made == response.content
        match format:
            case "csv" | "parquet":
                (tmp_path / format).write_bytes(made)
                assert checked(tmp_path / format, format).proved
            case "ocel":
                document = orjson.loads(made)
                OCEL.validate(document)
                assert len(document["events"]) == trailer["count"]
            case "xes":
                root = etree.fromstring(made)
                XES.assertValid(root)
                assert len(root.xpath("//event")) == trailer["count"]
                traces = [str(each) for each in root.xpath("//trace/string/@value")]
                assert traces == sorted(request_id(n) for n in range(MANY + 1))


async def test_what_broke_off_goes_on_behind_the_bytes_that_are_there_though_the_log_has_grown(filled: Service) -> None:
    for format in FORMATS:
        params: dict[str, Any] = (
            {"format": format, "request": request_id(1)} if format == "ocel" else {"format": format}
        )
        whole = await filled.get("/v1/exports", **params)
        cursor, half = whole.headers["paidan-cursor"], len(whole.content) // 2
        await filled.published(message(life(MANY + 1 + FORMATS.index(format))[0]))
        rest = await filled.get("/v1/exports", **params, cursor=cursor, offset=half)
        assert rest.status_code == 200, rest.text
        assert whole.content[:half] + rest.content == whole.content
        other = "csv" if format != "csv" else "xes"
        refused = await filled.get("/v1/exports", **{**params, "format": other}, cursor=cursor, offset=half)
        assert (refused.status_code, refused.json()["code"]) == (400, "bad_cursor")
    response = await filled.get("/v1/exports", format="csv", offset=3)
    assert (response.status_code, response.json()["code"]) == (422, "invalid")


async def test_an_office_gets_its_own_and_what_lists_it_and_two_get_the_same_of_what_lists_both(
    filled: Service,
) -> None:
    async def seqs(of: str, **params: Any) -> list[int]:
        return [int(each["seq"]) for each in rows(await export(filled, "csv", of, **params))]

    for of, params in ((QINGSHAN, {}), (WUCHANG, {"district": WUCHANG}), (QINGSHAN, {"request": request_id(3)})):
        pinned = {**params, "as_of": str((await filled.get("/v1/log")).json()["checkpoint"]["size"])}
        assert await seqs(of, **pinned) == [each["s"] for each in (await filled.replay(of, **pinned))[1]]
    assert await seqs(HONGSHAN, request=request_id(1)) == []
    size = str((await filled.get("/v1/log")).json()["checkpoint"]["size"])
    for format in FORMATS:
        ours = [await export(filled, format, of, parties=SHARED, as_of=size) for of in (WUCHANG, QINGSHAN, "*")]
        assert ours[0] == ours[1] == ours[2]
    joint = await export(filled, "csv", QINGSHAN, parties=f"{QINGSHAN},{WUCHANG}", as_of=size)
    assert said(joint)["filter"] == {"parties": [WUCHANG, QINGSHAN]}
    assert said(joint)["counts"]["events"] == MANY // 2 * len(life(1))
    for of, params in ((HONGSHAN, {"parties": SHARED}), (HONGSHAN, {"district": WUCHANG})):
        response = await filled.get("/v1/exports", of=of, format="csv", **params)
        assert (response.status_code, response.json()["code"]) == (403, "foreign_district")
    assert (await filled.get("/v1/exports", "member", of=WUCHANG, format="csv")).status_code == 403
    assert (await filled.get("/v1/exports", format="pdf")).status_code == 422
