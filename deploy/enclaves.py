"""`paidan ledger enclave`: the shared file of an enclave, from the ledger or made again from an office's own replay."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from deploy.errors import Said, SetupError
from services.ledger import enclaves, sheets
from services.ledger.audit.receiving import IncompleteError, Received
from services.ledger.enclaves import Filing, Pin
from services.ledger.log.notes import Checkpoint, Note, NoteError
from services.ledger.log.tree import ProofError, verify_inclusion
from shared.envelope import canonical
from shared.errors import MalformedError, RefusedError
from shared.problems import problem

NARROWED = ("district", "area", "request", "types", "event", "time_from", "time_to", "to")
"""Filters of a replay that leave out what a file may rest on."""


def made(
    area: str,
    *,
    data: Path,
    month: str | None = None,
    agreement: str | None = None,
    as_of: str | None = None,
    district: str = "*",
    replay: Path | None = None,
    at: str | None = None,
    theirs: dict[str, Any] | None = None,
) -> bytes:
    """
    The file, or the sheet of a month: the ledger's bytes, or those that follow from a replay.

    Args:
        theirs: a file to compare with: as of the same size and moment, between the same parties.
    Raises:
        SetupError: no running stack, it refused, or the replay is not whole.
    """
    if theirs and theirs.get("month") != month:
        raise SetupError(
            Said("月份与所比较的档案不符", "the month is not that of the file to compare with"),
            Said(f"请用 --month {theirs.get('month')}", f"use --month {theirs.get('month')}")
            if "month" in theirs
            else Said("档案不分月，请去掉 --month", "it is no monthly sheet: leave --month out"),
        )
    if theirs:
        agreement, as_of = theirs["agreements"][0]["agreement"], str(theirs["size"])
    if replay:
        return _again(replay, area, month, agreement, at, theirs)
    asked = {"month": month, "agreement": agreement, "as_of": as_of}
    params = {name: value for name, value in asked.items() if value is not None}
    path = f"/v1/enclaves/{area}/{'sheet' if month else 'file'}"
    from deploy.running import Running

    return Running.find(data).content("ledger", path, params, roles=["auditor"], district=district)


def paper(document: dict[str, Any]) -> str:
    """What people read of it: the sheet for the meeting, or a file in a few lines."""
    return sheets.page(document) if "month" in document else summary(document)


def summary(document: dict[str, Any]) -> str:
    """A file in a few lines."""
    balance = document["balance"][-1]["total"] if document["balance"] else {}
    title = document["title"]["zh"] if document["title"] else document["area"]
    owed = "，".join(f"{office} {total:+d}" for office, total in sorted(balance.items())) or "无 / none"
    still = sum(case["state"] not in ("closed", "withdrawn") for case in document["cases"])
    return (
        f"{title}  {' '.join(document['parties'])}\n"
        f"案件 / cases {len(document['cases'])}，未结 / open {still}；转办 / hand-overs {len(document['handovers'])}，"
        f"会商 / conferrals {len(document['conferrals'])}，判例 / precedents {len(document['precedents'])}，"
        f"支援 / help {len(document['help'])}\n"
        f"支援结余 / balance of help: {owed}\n"
        f"账本 / ledger {document['log']} {document['size']}，所据叶子 / leaves {len(document['leaves'])}\n"
        f"摘要 / digest {document['digest']}\n"
    )


def _again(
    replay: Path,
    area: str,
    month: str | None,
    agreement: str | None,
    at: str | None,
    theirs: dict[str, Any] | None,
) -> bytes:
    """The bytes that follow from a replay: of its own size and checkpoint, or of those of the file to compare with."""
    try:
        header, leaves = _lines(replay)
        size, checkpoint, told = header["size"], header.get("checkpoint"), header.get("at")
        checkpoint = Note.parse(checkpoint).body if checkpoint and "replay" in header else checkpoint
        if theirs:
            if theirs["size"] > size:
                raise _wrong(
                    replay, f"到 {size} 为止，档案到 {theirs['size']}", f"ends at {size}, the file at {theirs['size']}"
                )
            size, checkpoint, told = theirs["size"], theirs["checkpoint"], theirs["at"]
        if not (told := at or told):
            raise SetupError(
                Said("不知道截至何时", "the replay does not say as of when to judge"),
                Said(
                    "请用 --at 给出档案所载时刻，或用 --check 给出档案",
                    "give the file's `at` with --at, or the file with --check",
                ),
            )
        moment = _moment(told)
        pin = Pin(header["log"], size, moment, checkpoint)
        enclave = enclaves.enclave(
            enclaves.entries(leaves(), area, size), area, moment, agreement=agreement or header.get("agreement")
        )
        filing = Filing(enclave, until=sheets.months(enclave.zone, month)[1] if month else None)
        for entry in enclaves.entries(leaves(), area, size):
            filing.take(entry)
        return canonical(sheets.sheet(filing, pin, month) if month else filing.file(pin))
    except IncompleteError as why:
        raise _wrong(replay, why.zh, str(why)) from None
    except RefusedError as why:
        said = problem(why)
        raise SetupError(Said(said["title"], said["title_en"]), Said(said["detail"], said["detail_en"])) from None
    except (ValueError, KeyError, TypeError, IndexError, MalformedError, NoteError) as why:
        raise _wrong(replay, "不是完整的重放", f"is no complete replay ({why!r})") from why


def _moment(text: str) -> datetime:
    """A time as a file tells it; without a zone, UTC. Raises SetupError."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise SetupError(
            Said(f"看不懂 {text}", f"{text} is no time"), Said("请用档案所载的 at", "use the `at` of the file")
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _lines(replay: Path) -> tuple[dict[str, Any], Callable[[], Iterator[tuple[int, bytes]]]]:
    """The header of a replay, and its leaves as often as one likes; of those that were withheld there is nothing to read."""
    with replay.open("rb") as file:
        first = file.readline()
        header: dict[str, Any] = orjson.loads(first)
        received = (
            Received(first.rstrip(b"\n")) if "replay" in header else None
        )  # an enclave's own leaves have no ordinals
        last, lines = b"", -1
        for last in file:
            lines += 1
            if received:
                received.take([last.rstrip(b"\n")])
    trailer = orjson.loads(last)
    if not trailer.get("end"):
        raise _wrong(replay, "没有结尾，是截断的", "has no last line: it was cut short")
    if trailer["count"] != lines or trailer["next"]:
        raise _wrong(
            replay, f"应有 {trailer['count']} 条，只有 {lines} 条", f"says {trailer['count']} lines, and has {lines}"
        )
    if received:
        received.end()
    narrowed = [name for name in NARROWED if header.get("filter", {}).get(name) is not None]
    if narrowed or header.get("from"):
        raise _wrong(replay, "只是一部分", f"is a part only ({', '.join(narrowed) or 'from'})")

    def leaves() -> Iterator[tuple[int, bytes]]:
        with replay.open("rb") as file:
            for line in file:
                index, found, leaf = line.partition(b',"leaf":')
                if found:
                    yield int(index.removeprefix(b'{"s":')), leaf.rstrip(b"\n")[:-1]

    return header, leaves


def prove(document: dict[str, Any], data: Path, progress: Callable[[int, int], None]) -> int:
    """
    Whether every leaf of a file lies in the log, under the checkpoint in the file; how many they are.

    The proofs come from the ledger and are checked here: against the leaves' hashes and the checkpoint's root, both the file's own.

    Raises:
        SetupError: one does not, the file has no checkpoint, or the ledger refused.
    """
    from deploy.running import Running

    stack = Running.find(data)
    if not document["checkpoint"]:
        raise SetupError(
            Said("档案没有检查点", "the file has no checkpoint"),
            Said("请在账本签名后重取", "get it again when the log is signed"),
        )
    checkpoint, leaves = Checkpoint.parse(document["checkpoint"]), document["leaves"]
    for n, (index, leaf) in enumerate(leaves, 1):
        path, asked = f"/proof/{index}.tlog-proof", {"size": str(checkpoint.size)}
        proof = stack.content("ledger", path, asked, roles=["auditor"], district="*").decode()
        hashes = [b64decode(line) for line in proof.partition("\n\n")[0].splitlines()[2:]]
        try:
            verify_inclusion(bytes.fromhex(leaf), index, checkpoint.size, hashes, checkpoint.root)
        except ProofError as why:
            raise SetupError(
                Said(f"叶子 {index} 不在此检查点之下", f"leaf {index} is not proved: {why}"),
                Said("保留档案与账本的应答作为证据", "keep the file and the ledger's answer: they are the evidence"),
            ) from why
        progress(n, len(leaves))
    return len(leaves)


def read(file: Path) -> dict[str, Any]:
    """A file or a sheet that somebody keeps. Raises SetupError: it was changed."""
    try:
        return enclaves.read(file.read_bytes())
    except ValueError as why:
        raise SetupError(
            Said(f"{file} 不是原样", f"{file} is not as it was made: {why}"),
            Said("请重新取一份", "get it again, and keep its bytes as they are"),
        ) from why


def compared(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """Every place where they differ, with what either says."""
    found = enclaves.differences(theirs, ours)
    return [f"{path}：{_at(theirs, path)} ≠ {_at(ours, path)}" for path in found]


def _at(document: Any, path: str) -> str:
    for step in path.split("."):
        document = document[int(step)] if isinstance(document, list) else document.get(step)
    return json.dumps(document, ensure_ascii=False)[:200]


def _wrong(file: Path, zh: str, en: str) -> SetupError:
    return SetupError(
        Said(f"{file} {zh}", f"{file} {en}"),
        Said("请重新取一份完整的重放", "take a whole one: GET /v1/events, or /v1/enclaves/<area>/leaves"),
    )
