"""Exports over HTTP, from a real database: rights, the fact that comes first, what breaks off and goes on."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import orjson
import pytest
from lxml import etree

from deploy.errors import SetupError
from deploy.exporting import fetched, proved
from deploy.running import Running
from services.ledger import export_api
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
    for wrong in (
        {"format": "pdf"},
        {"area": "张三"},
        {"request": "13912648759"},
        {"type": "task offered"},
        {"time_from": "0001-01-01T00:00:00+08:00"},
    ):
        response = await filled.get("/v1/exports", **{"format": "csv", **wrong})
        assert (response.status_code, response.json()["code"]) == (422, "invalid")


async def test_a_file_that_broke_off_is_resumed_and_the_old_one_stays_until_all_is_there(
    filled: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger breaks off, then the command is killed; then all of it comes, as it was when it began."""
    ways, killed = iter(["breaks", "stands"]), asyncio.Event()

    async def broken(*of: Any) -> AsyncGenerator[bytes]:
        way, n = next(ways, "goes on"), 0
        async with aclosing(streaming.document(*of)) as body:
            async for chunk in body:
                yield chunk
                n += 1
                if n > 2 and way == "breaks":
                    raise OSError("gone")
                if n > 4 and way == "stands":
                    await killed.wait()

    monkeypatch.setattr(export_api, "document", broken)
    data, out = running(filled, tmp_path), tmp_path / "all.csv"
    out.write_bytes(b"of last year")
    part = tmp_path / "all.csv.part"
    stack, asked = Running.find(data), {"format": "csv"}
    with pytest.raises(SetupError, match="--resume"):
        await asyncio.to_thread(fetched, stack, out, asked, office="*")
    broke_off = part.read_bytes()
    assert broke_off
    await filled.published(message(life(MANY + 1)[0]))
    command = [
        sys.executable,
        "-m",
        "deploy.cli",
        "ledger",
        "export",
        "--out",
        str(out),
        "--data",
        str(data),
        "--resume",
    ]
    process = await asyncio.create_subprocess_exec(*command)
    async with asyncio.timeout(30):
        while part.stat().st_size <= len(broke_off):
            await asyncio.sleep(0.02)
    process.kill()
    await process.wait()
    killed.set()
    assert out.read_bytes() == b"of last year"
    seen: list[tuple[int, int, int]] = []
    begun = await asyncio.to_thread(
        fetched, stack, out, asked, office="*", resume=True, progress=lambda *of: seen.append(of)
    )
    assert out.read_bytes() == await export(filled, "csv", as_of=str(begun.size))
    assert proved(out, "csv")
    assert seen[-1] == (begun.leaves, begun.leaves, out.stat().st_size)
    assert not part.exists()
    with pytest.raises(SetupError, match="foreign_district|不属于"):
        await asyncio.to_thread(fetched, stack, out, {"format": "csv", "district": WUCHANG}, office=QINGSHAN)


def running(service: Service, folder: Path) -> Path:  # noqa: F811
    """A data folder in which commands find this service."""
    data = folder / "data"
    data.mkdir()
    (data / "secrets").symlink_to(service.identities.folder)
    stack = {"urls": {"ledger": str(service.http.base_url).rstrip("/")}, "nats_url": service.bench.nats.url}
    more = {"own_nats": True, "pid": os.getpid(), "ports": {}, "ca_file": None}
    (data / "stack.json").write_bytes(orjson.dumps({**stack, **more}))
    return data
