"""Exports are what a replay holds: valid in their formats, whole, the same bytes for the same question, and without people."""

import asyncio
import csv
import io
import os
import sys
from collections.abc import AsyncGenerator
from datetime import date
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pyarrow.parquet as pq
import pytest
from lxml import etree

from services.ledger.exporting import as_parquet, streaming
from services.ledger.exporting.as_csv import guarded
from services.ledger.exporting.checking import CutShortError, checked
from services.ledger.exporting.reading import Ground
from services.ledger.exporting.streaming import Export, Format, ShortExportError, behind, document, writer
from services.ledger.log import heads, notes, tree
from services.ledger.pinning import pin
from services.ledger.replay import Replay, scopes_of
from services.ledger.store import Selection
from shared.errors import RefusedError
from shared.facts import HUB, AreaSet, Name, RequestWithdrawn
from tests.bench.harness import resident_mib
from tests.ledger.examples import LI, QINGSHAN, WUCHANG, about, event, handover_asked, life, request_id, task_id
from tests.ledger.memory import ORIGIN, Memory

HERE = Path(__file__).parent / "exporting"
OCEL = jsonschema.Draft202012Validator(
    orjson.loads((HERE / "ocel.schema.json").read_bytes()), format_checker=jsonschema.FormatChecker()
)
XES = etree.XMLSchema(etree.parse(HERE / "xes.xsd"))
FORMATS: tuple[Format, ...] = ("ocel", "csv", "xes", "parquet")
SHARED = f"{WUCHANG},{QINGSHAN}"
AREA = "xinxiang-7k"
ENCLAVE = AreaSet(
    area=AREA,
    title=Name(zh="新乡七块", en="Xinxiang"),
    level="estate",
    valid_from=date(2026, 1, 1),
    located_in=QINGSHAN,
    administered_by=WUCHANG,
    owned_by="somebody",
    served_by=WUCHANG,
)


def filled(cases: int = 4) -> Memory:
    """An enclave, cases in it, every other one shared, one handed over; a message that is no fact; signed."""
    log = Memory()
    log.add(event(ENCLAVE, district=HUB, area="-"))
    for n in range(cases):
        log.add(*life(n, SHARED if n % 2 else None))
    log.add(handover_asked(0), ("evt.420106.x", b"nonsense"))
    sign(log)
    return log


def sign(log: Memory) -> None:
    edge = tree.Edge()
    edge.extend(leaf.hash for leaf in log.leaves)
    body = notes.checkpoint(ORIGIN, edge.size, edge.root(), heads.root({})).body
    log.sign(notes.Note(body, (notes.Key.make(ORIGIN).sign(body),)).text)


async def pinned(log: Memory, selection: Selection | None = None) -> Replay:
    found = await pin(log, None)
    return Replay(ORIGIN, selection or Selection(), found.size, note=found.note)


async def streamed(log: Any, asked: Replay, format: Format) -> AsyncGenerator[bytes]:
    made = writer(format, await Ground.of(log, asked.size))
    async for chunk in document(log, await Export.of(log, asked, format), made, asyncio.Lock()):
        yield chunk


async def exported(log: Memory, format: Format, selection: Selection | None = None) -> bytes:
    return b"".join([chunk async for chunk in streamed(log, await pinned(log, selection), format)])


def rows(data: bytes) -> list[dict[str, str]]:
    return [each for each in csv.DictReader(io.StringIO(data.decode("utf-8-sig"))) if each["seq"] != "#paidan"]


def said(data: bytes) -> Any:
    """What a CSV says of itself."""
    return orjson.loads(list(csv.reader(io.StringIO(data.decode())))[-1][1])


# --- OCEL -------------------------------------------------------------------------------------------------------------


async def test_ocel_holds_every_event_and_is_valid_and_whole_in_itself() -> None:
    log = filled()
    made = orjson.loads(await exported(log, "ocel"))
    OCEL.validate(made)
    events = [leaf for leaf in log.leaves if leaf.kind == "event"]
    assert [each["id"] for each in made["events"]] == [leaf.event_id for leaf in events]
    told = made["paidan"]["counts"]
    assert told == {"leaves": len(events), "events": len(events), "objects": len(made["objects"])}
    ids = [each["id"] for each in made["objects"]]
    assert len({*ids}) == len(ids)
    related = [each for one in (*made["events"], *made["objects"]) for each in one.get("relationships", ())]
    assert {each["objectId"] for each in related} <= {*ids}
    for kind in ("event", "object"):
        declared = {of["name"]: {each["name"] for each in of["attributes"]} for of in made[f"{kind}Types"]}
        for one in made[f"{kind}s"]:
            assert {each["name"] for each in one.get("attributes", ())} <= declared[one["type"]]


async def test_ocel_tells_what_changed_of_a_request_and_when_and_who_stands_how_to_an_enclave() -> None:
    made = orjson.loads(await exported(filled(), "ocel"))
    objects = {each["id"]: each for each in made["objects"]}
    changes = objects[f"request:{request_id(1)}"]["attributes"]
    status = [(each["time"], each["value"]) for each in changes if each["name"] == "status"]
    assert status[0] == ("1970-01-01T00:00:00Z", "submitted")
    assert [value for _, value in status[1:]] == ["opened", "offered", "accepted", "arrived", "done", "closed"]
    assert all(time.startswith("2026-11-22T01:02:04") for time, _ in status[1:])
    task = objects[f"task:{task_id(1)}"]
    assert {"name": "holder", "time": "1970-01-01T00:00:00Z", "value": LI} in task["attributes"]
    assert task["relationships"] == [{"objectId": f"request:{request_id(1)}", "qualifier": "of"}]
    area = objects[f"enclave:{AREA}"]
    assert [(each["qualifier"], each["objectId"]) for each in area["relationships"]] == [
        ("surrounded by", f"district:{QINGSHAN}"),
        ("administered by", f"district:{WUCHANG}"),
        ("served by", f"district:{WUCHANG}"),
    ]
    asked = next(each for each in made["events"] if "handover.offered" in each["type"])["relationships"]
    assert {(each["qualifier"], each["objectId"].partition(":")[0]) for each in asked} == {
        ("subject", "request"),
        ("task", "task"),
        ("handover", "handover"),
        ("place", "enclave"),
        ("origin", "district"),
        ("assignee district", "district"),
        ("performer", "officer"),
    }


async def test_ocel_of_nothing_is_valid() -> None:
    for log in (Memory(), filled(0)):
        made = orjson.loads(await exported(log, "ocel"))
        OCEL.validate(made)
        assert len(made["events"]) == made["paidan"]["counts"]["events"]
    only = orjson.loads(await exported(filled(0), "ocel", Selection(area="nowhere")))
    assert (only["events"], only["objects"]) == ([], [])


# --- XES --------------------------------------------------------------------------------------------------------------


async def test_xes_is_valid_with_a_trace_for_each_request_in_order() -> None:
    log = filled()
    made = etree.fromstring(await exported(log, "xes"))
    XES.assertValid(made)
    name = "string[@key='concept:name']/@value"
    traces = {trace.xpath(name)[0]: trace.xpath("event/id/@value") for trace in made.iter("trace")}
    assert traces == {
        request_id(n): [leaf.event_id for leaf in log.leaves if leaf.case == request_id(n)] for n in range(4)
    }
    events = [str(leaf.event_id) for leaf in log.leaves if leaf.kind == "event"]
    assert sorted(made.xpath("//event/id/@value")) == sorted(events)
    assert orjson.loads(str(made.xpath("string[@key='ledger:counts']/@value")[0]))["events"] == len(events)
    accepted = made.xpath("//event[string[@key='concept:name'][contains(@value, 'task.accepted')]]")[0]
    values = {each.get("key"): each.get("value") for each in accepted}
    assert values["org:resource"] == "dispatcher:staff-4"
    assert (values["org:group"], values["lifecycle:transition"], values["ledger:enclave"]) == (WUCHANG, "start", AREA)


async def test_what_xml_cannot_hold_stays_out_of_xes() -> None:
    log = Memory()
    log.add(about(1, RequestWithdrawn(request_id=request_id(1), reason="changed_mind"), districts=WUCHANG))
    odd = event(ENCLAVE.model_copy(update={"owned_by": '<&"\x00\ufffe\n'}), district=HUB, area="-")
    log.add(odd)
    made = etree.fromstring(await exported(log, "xes"))
    XES.assertValid(made)
    assert made.xpath("//string[@key='fact:owned_by']/@value") == ['<&"\ufffd\ufffd\n']


# --- tables -----------------------------------------------------------------------------------------------------------


async def test_a_csv_has_a_row_for_every_leaf_and_gives_the_root(tmp_path: Path) -> None:
    log = filled()
    data = await exported(log, "csv")
    assert data.startswith(b"\xef\xbb\xbfseq,kind,id,")
    assert [(int(each["seq"]), each["leaf_hash"]) for each in rows(data)] == [
        (leaf.index, leaf.hash.hex()) for leaf in log.leaves
    ]
    first = next(each for each in rows(data) if each["type"].endswith("task.offered.v1"))
    assert orjson.loads(first["data"])["members"] == [LI]
    assert (first["status"], first["enclave"], first["district"]) == ("offered", AREA, WUCHANG)
    (tmp_path / "all.csv").write_bytes(data)
    assert checked(tmp_path / "all.csv", "csv").proved
    (tmp_path / "cut.csv").write_bytes(data[: data.rindex(b"#paidan")])
    (tmp_path / "less.csv").write_bytes(
        b"".join(data.splitlines(keepends=True)[:3] + data.splitlines(keepends=True)[4:])
    )
    for name in ("cut.csv", "less.csv"):
        with pytest.raises(CutShortError):
            checked(tmp_path / name, "csv")
    other = data.replace(log.leaves[3].hash.hex().encode(), log.leaves[4].hash.hex().encode(), 1)
    (tmp_path / "other.csv").write_bytes(other)
    assert checked(tmp_path / "other.csv", "csv").proved is False


@pytest.mark.parametrize("begins", list("=+-@\t\r\n＝＋－＠"))
def test_no_cell_is_a_formula(begins: str) -> None:
    assert guarded(f"{begins}1+1") == f"'{begins}1+1"
    assert (guarded("a=1"), guarded(-1), guarded("")) == ("a=1", -1, "")


async def test_a_hostile_id_is_guarded_in_the_file() -> None:
    log = Memory()
    log.add(event(ENCLAVE, id='=HYPERLINK("x")', district=HUB, area="-", actor="@x"))
    (found,) = rows(await exported(log, "csv"))
    assert (found["id"], found["actor"], found["area"]) == ('\'=HYPERLINK("x")', "'@x", "")


async def test_parquet_gives_back_the_leaves_and_their_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(as_parquet, "GROUP_ROWS", 10)
    monkeypatch.setattr(streaming, "CHUNK", 5)
    log = filled()
    file = tmp_path / "all.parquet"
    file.write_bytes(await exported(log, "parquet"))
    table = pq.read_table(file)
    assert table["leaf"].to_pylist() == [leaf.data for leaf in log.leaves]
    assert pq.ParquetFile(file).metadata.num_row_groups > 1
    assert table.schema.field("recorded").type.unit == "ns"
    found = checked(file, "parquet")
    assert found.proved
    assert found.about["counts"] == {"leaves": len(log.leaves), "events": len(log.leaves) - 1}


async def test_without_pyarrow_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(as_parquet, "pa", None)
    with pytest.raises(RefusedError, match="no_parquet"):
        writer("parquet", Ground())


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
async def test_the_same_question_gives_the_same_bytes_while_the_log_has_grown(format: Format) -> None:
    log = filled()
    asked = await pinned(log)
    once = b"".join([chunk async for chunk in streamed(log, asked, format)])
    log.add(*life(9))
    again = b"".join([chunk async for chunk in streamed(log, asked, format)])
    assert again == once
    rest = [chunk async for chunk in behind(len(once) // 2, streamed(log, asked, format))]
    assert once[: len(once) // 2] + b"".join(rest) == once


@pytest.mark.parametrize("format", FORMATS)
async def test_two_offices_get_the_same_bytes_of_what_names_both(format: Format) -> None:
    log = filled()
    joint = [Selection(scopes=scopes_of(own), parties=(WUCHANG, QINGSHAN)) for own in (WUCHANG, QINGSHAN)]
    assert await exported(log, format, joint[0]) == await exported(log, format, joint[1])
    assert len(rows(await exported(log, "csv", joint[0]))) == 2 * len(life(1)) + 1


async def test_a_district_gets_what_its_replay_holds() -> None:
    log = filled()
    for selection in (
        Selection(scopes=scopes_of(QINGSHAN)),
        Selection(district=QINGSHAN),
        Selection(request=request_id(1)),
        Selection(types=("cn.paidan.task.offered.v1",)),
        Selection(scopes=scopes_of(QINGSHAN), lost=(AREA,)),
    ):
        wanted = [index for index, _ in await log.read(selection, 0, len(log.leaves), 1000)]
        data = await exported(log, "csv", selection)
        assert [int(each["seq"]) for each in rows(data)] == wanted
        assert said(data)["counts"] == {"leaves": len(wanted), "events": len(wanted)}
        assert said(data)["filter"]
        made = orjson.loads(await exported(log, "ocel", selection))
        assert [int(each["attributes"][0]["value"]) for each in made["events"]] == wanted
        traces = etree.fromstring(await exported(log, "xes", selection))
        assert len(traces.xpath("//event")) == len(wanted)


@pytest.mark.parametrize("format", FORMATS)
async def test_an_export_that_would_be_short_has_no_end(format: Format) -> None:
    class Losing(Memory):
        async def chunks(self, *of: Any) -> AsyncGenerator[list[tuple[int, bytes]]]:
            async for chunk in super().chunks(*of):
                yield [each for each in chunk if each[0] != 7]

        async def by_cases(self, *of: Any) -> list[tuple[str, int, bytes]]:
            return [each for each in await super().by_cases(*of) if each[1] != 7]

    log, losing = filled(), Losing()
    losing.leaves = log.leaves
    sent: list[bytes] = []
    asked = await pinned(log)
    with pytest.raises(ShortExportError):
        sent.extend([chunk async for chunk in streamed(losing, asked, format)])


class Repeated(Memory):
    """One life, told of as many requests as one likes, each made when it is asked for."""

    def __init__(self, cases: int) -> None:
        super().__init__()
        self.add(*life(0))
        self.cases, self.each = cases, len(self.leaves)

    def told(self, n: int, of: int) -> bytes:
        numbered = b'"index":%d,"kind"' % (n * self.each + of)
        data = self.leaves[of].data.replace(b'"index":%d,"kind"' % of, numbered)
        return data.replace(request_id(0).encode(), self.case(n).encode())

    def case(self, n: int) -> str:
        return f"{n:08d}{request_id(0)[8:]}"

    async def count(self, selection: Selection, since: int, below: int) -> int:
        return self.cases * self.each

    async def chunks(
        self, selection: Selection, since: int, below: int, limit: int | None, size: int
    ) -> AsyncGenerator[list[tuple[int, bytes]]]:
        for start in range(0, self.cases, size // self.each):
            lives = range(start, min(start + size // self.each, self.cases))
            yield [(n * self.each + of, self.told(n, of)) for n in lives for of in range(self.each)]

    async def by_cases(
        self, selection: Selection, after: tuple[str, int], below: int, limit: int
    ) -> list[tuple[str, int, bytes]]:
        start = int(after[0][:8]) + 1 if after[0] else 0
        lives = range(start, min(start + limit // self.each, self.cases))
        return [(self.case(n), n * self.each + of, self.told(n, of)) for n in lives for of in range(self.each)]

    async def read(self, selection: Selection, since: int, below: int, limit: int) -> list[tuple[int, bytes]]:
        return []  # no register


@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere each look is a process")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("format", FORMATS)
async def test_memory_does_not_grow_with_a_million_leaves(format: Format) -> None:
    log = Repeated(1_000_000 // 9)
    asked = Replay(ORIGIN, Selection(), log.cases * log.each)
    held = [resident_mib(os.getpid())[0] async for _ in streamed(log, asked, format)]
    assert len(held) > 80
    assert max(held) - held[len(held) // 10] < 48
