"""The shared file as the offices of an enclave get it over HTTP, and make it again from replays of their own."""

from __future__ import annotations

import asyncio
from base64 import b64decode
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner

from deploy import enclaves as again
from deploy.cli import app
from deploy.errors import SetupError
from services.ledger.enclaves import read, sealed
from services.ledger.log.notes import Checkpoint
from services.ledger.log.tree import verify_inclusion
from shared.envelope import canonical
from tests.examples import AGREEMENT, HONGSHAN, QINGSHAN, REGISTER, WUCHANG, XINXIANG, envelope, id_of, submitted
from tests.ledger.examples import message
from tests.ledger.test_api import Service, service  # noqa: F401
from tests.ledger.test_enclaves import ask, joint, played

OFFICES = (WUCHANG, QINGSHAN)
FILE, SHEET = f"/v1/enclaves/{XINXIANG}/file", f"/v1/enclaves/{XINXIANG}/sheet"
FOR_EVER = AGREEMENT.model_copy(update={"valid_to": None})


async def got(service: Service, path: str, of: str, **params: str | int) -> bytes:  # noqa: F811
    """What somebody of an office is answered."""
    role = "auditor" if of == "*" else "dispatcher"
    response = await service.get(path, role, of=of, **params)
    assert response.status_code == 200, response.text
    return response.content


async def signed(service: Service) -> None:  # noqa: F811
    """Until a checkpoint covers what there is."""
    async with asyncio.timeout(20):
        while True:
            newest = (await service.get("/v1/log")).json()["checkpoint"]
            if newest and newest["size"] >= (await service.get("/v1/ledger")).json()["leaves"]:
                return
            await asyncio.sleep(0.05)


async def test_both_offices_get_the_same_bytes_and_make_them_again_from_their_own_replay(
    service: Service,  # noqa: F811
    tmp_path: Path,
) -> None:
    city = played(FOR_EVER)
    await service.published(*map(message, city.stream))
    await signed(service)
    mine, theirs = [await got(service, FILE, of) for of in OFFICES]
    assert mine == theirs == await got(service, FILE, "*")
    made = read(mine)
    assert len(made["cases"]) == 4
    sheets = [await got(service, SHEET, of, month="2026-11") for of in (*OFFICES, "*")]
    assert len({*sheets}) == 1
    papers = [await got(service, SHEET, of, month="2026-11", format="md") for of in OFFICES]
    assert papers[0] == papers[1]
    assert "联席会月报 2026 年 11 月" in papers[0].decode()

    replays = {}
    for of in OFFICES:
        replays[of] = tmp_path / f"{of}.ndjson"
        replays[of].write_bytes(await got(service, "/v1/events", of))
        assert again.made(XINXIANG, data=tmp_path, replay=replays[of], theirs=made) == mine
        kept = read(sheets[0])
        assert again.made(XINXIANG, data=tmp_path, replay=replays[of], month="2026-11", theirs=kept) == sheets[0]
        leaves = tmp_path / f"{of}-leaves.ndjson"
        leaves.write_bytes(await got(service, f"/v1/enclaves/{XINXIANG}/leaves", of))
        assert again.made(XINXIANG, data=tmp_path, replay=leaves) == mine
    assert replays[WUCHANG].read_bytes() != replays[QINGSHAN].read_bytes()

    # Every leaf it names lies in the log, under the checkpoint that it names.
    checkpoint = Checkpoint.parse(made["checkpoint"])
    assert checkpoint.size == made["size"]
    for index, leaf in made["leaves"]:
        proof = (await got(service, f"/proof/{index}.tlog-proof", "*", size=checkpoint.size)).decode()
        hashes = [b64decode(line) for line in proof.partition("\n\n")[0].splitlines()[2:]]
        verify_inclusion(bytes.fromhex(leaf), index, checkpoint.size, hashes, checkpoint.root)

    # What follows does not change what was pinned.
    before = len(city.stream)
    ask(city, 5)
    await service.published(*map(message, city.stream[before:]))
    await signed(service)
    assert await got(service, FILE, WUCHANG) != mine
    pinned = [await got(service, FILE, of, as_of=made["size"]) for of in OFFICES]
    assert pinned == [mine, mine]
    assert again.made(XINXIANG, data=tmp_path, replay=replays[WUCHANG], theirs=made) == mine
    with pytest.raises(SetupError, match="ends at"):
        again.made(XINXIANG, data=tmp_path, replay=replays[WUCHANG], theirs=read(await got(service, FILE, WUCHANG)))

    # A file that was changed, and replays that are not whole.
    cases = [{**made["cases"][0], "office": QINGSHAN}, *made["cases"][1:]]
    doctored = sealed({name: value for name, value in {**made, "cases": cases}.items() if name != "digest"})
    for name, content, code in (("kept", mine, 0), ("doctored", canonical(doctored), 1)):
        (tmp_path / name).write_bytes(content)
        run = ["ledger", "enclave", XINXIANG, "--from-replay", str(replays[QINGSHAN]), "--check", str(tmp_path / name)]
        result = CliRunner().invoke(app, run)
        assert result.exit_code == code, result.output
        assert ("cases.0.office" in result.output) is bool(code)
    (tmp_path / "edited").write_bytes(mine.replace(b'"grade":5', b'"grade":1'))
    with pytest.raises(SetupError, match="digest"):
        again.read(tmp_path / "edited")
    cut = tmp_path / "cut.ndjson"
    cut.write_bytes(b"".join(replays[WUCHANG].read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(SetupError, match="cut short"):
        again.made(XINXIANG, data=tmp_path, replay=cut, theirs=made)
    lines = replays[WUCHANG].read_bytes().splitlines(keepends=True)
    cut.write_bytes(b"".join(lines[:5] + lines[6:]))
    with pytest.raises(SetupError, match="withheld"):
        again.made(XINXIANG, data=tmp_path, replay=cut, theirs=made)
    part = tmp_path / "part.ndjson"
    part.write_bytes(await got(service, "/v1/events", WUCHANG, area=XINXIANG))
    with pytest.raises(SetupError, match="a part only"):
        again.made(XINXIANG, data=tmp_path, replay=part, theirs=made)
    with pytest.raises(SetupError, match="as of when"):
        again.made(XINXIANG, data=tmp_path, replay=replays[WUCHANG])


async def test_who_may_read_it(service: Service) -> None:  # noqa: F811
    await service.published(*map(message, played(FOR_EVER).stream))
    await signed(service)
    (listed,) = orjson.loads(await got(service, "/v1/enclaves", QINGSHAN))["enclaves"]
    assert (listed["area"], listed["agreement"], listed["parties"]) == (XINXIANG, AGREEMENT.agreement, [*OFFICES])
    assert listed["open_cases"] == 3
    assert orjson.loads(await got(service, "/v1/enclaves", HONGSHAN)) == {"enclaves": []}
    for path in (FILE, SHEET, f"/v1/enclaves/{XINXIANG}/leaves"):
        answers = [
            await service.get(path, "dispatcher", of=HONGSHAN, month="2026-11"),
            await service.get(path, "clerk", of=WUCHANG, month="2026-11"),
            await service.get(path.replace(XINXIANG, "nowhere"), "auditor", month="2026-11"),
        ]
        assert [answer.json()["code"] for answer in answers] == ["foreign_district", "forbidden", "not_found"]
    wrong = await service.get(SHEET, "auditor", month="2026-13")
    assert (wrong.status_code, wrong.json()["field"]) == (422, "month")
    assert id_of("request", 1) in (await service.get(FILE, "supervisor", of=WUCHANG)).text


async def test_who_was_a_party_keeps_the_file_and_gets_the_facts_no_more(service: Service) -> None:  # noqa: F811
    day = datetime(2026, 11, 19, 2, tzinfo=UTC)
    ended = AGREEMENT.model_copy(update={"valid_to": day.date()})
    register = [envelope(fact, at=day) for fact in (*REGISTER, ended)]
    await service.published(*map(message, (*register, joint(submitted(1, area=XINXIANG), at=day))))
    await signed(service)
    mine, theirs = [await got(service, FILE, of) for of in OFFICES]
    assert mine == theirs
    assert [case["case"] for case in read(mine)["cases"]] == [id_of("request", 1)]
    path = f"/v1/enclaves/{XINXIANG}/leaves"
    assert (await service.get(path, "auditor", of=QINGSHAN)).json()["code"] == "foreign_district"
    serving = await got(service, path, WUCHANG)
    assert serving == await got(service, path, "*")
    assert id_of("request", 1).encode() in serving
