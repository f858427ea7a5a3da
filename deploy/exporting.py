"""`paidan ledger export`: an export into a file, with progress; one that broke off goes on where it was."""

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import httpx2
import typer

from deploy.errors import Said, SetupError
from deploy.options import DEFAULT_DATA, Data, Json, print_json

if TYPE_CHECKING:
    from deploy.running import Running

Format = StrEnum("Format", ["ocel", "csv", "xes", "parquet"])
PATH = "/v1/exports"
LEAVES = {"ocel": b'"leaf_hash"', "csv": b"\r\n", "xes": b"<event>"}
"""What each leaf has once, to count by."""


@dataclass
class Begun:
    """An export under way, as it is noted beside its part: what was asked, its cursor, leaves and size of the log."""

    asked: dict[str, str]
    cursor: str
    leaves: int
    size: int


def export(
    out: Annotated[Path, typer.Option(help="写入此文件 / into this file", dir_okay=False)],
    format: Annotated[Format, typer.Option(help="格式 / which format")] = Format.csv,
    district: Annotated[str | None, typer.Option(help="只要此区 / a district alone")] = None,
    parties: Annotated[
        str | None, typer.Option(help="各方共有者，如 420106,420107 / what names all of these offices")
    ] = None,
    area: Annotated[str | None, typer.Option(help="只要此区域 / an area alone")] = None,
    request: Annotated[str | None, typer.Option(help="只要此诉求 / a request alone")] = None,
    type: Annotated[str | None, typer.Option(help="事实种类，如 task.offered / facts of these types")] = None,
    time_from: Annotated[str | None, typer.Option(help="发生于此时起 / what happened from then on")] = None,
    time_to: Annotated[str | None, typer.Option(help="发生于此时前 / and before then")] = None,
    as_of: Annotated[str | None, typer.Option(help="账本大小或时间 / a size of the ledger, or a time")] = None,
    office: Annotated[str, typer.Option("--as", help="以哪个区的名义 / as which office")] = "*",
    why: Annotated[str, typer.Option(help="缘由，永久记入账本 / why, kept for ever; nothing personal")] = "",
    resume: Annotated[bool, typer.Option("--resume", help="接着上次中断处 / go on where it broke off")] = False,
    data: Data = DEFAULT_DATA,
    json_output: Json = False,
) -> None:
    """
    导出账本：OCEL、CSV、XES、Parquet / export the ledger; each export is on record.

    写完才替换原有文件；中断的留在 FILE.part，用 --resume 续传。
    The file is replaced when all is there; what broke off stays in FILE.part: go on with --resume.
    """
    from deploy.running import Running

    given = {"district": district, "parties": parties, "area": area, "request": request, "type": type}
    given |= {"time_from": time_from, "time_to": time_to, "as_of": as_of, "why": why or None}
    asked = {"format": format.value, **{name: value for name, value in given.items() if value is not None}}
    show = _shown if sys.stderr.isatty() and not json_output else None
    begun = fetched(Running.find(data), out, asked, office=office, resume=resume, progress=show)
    if show:
        typer.echo(err=True)
    told = proved(out, format.value)
    if json_output:
        print_json({"file": str(out), "bytes": out.stat().st_size, **asdict(begun), "proved": told})
        return
    typer.echo(f"{out}：{begun.leaves} 叶，账本大小 {begun.size} / {begun.leaves} leaves of a ledger of {begun.size}")
    if told is not None:
        typer.echo("与检查点一致 / it is what the checkpoint signed" if told else "与检查点不符 / NOT what was signed")
        raise typer.Exit(0 if told else 1)


def fetched(
    stack: "Running",
    out: Path,
    asked: Mapping[str, str],
    *,
    office: str,
    resume: bool = False,
    progress: Callable[[int, int, int], None] | None = None,
) -> Begun:
    """
    An export in its file; until all of it is there it is in `<file>.part`, and what it is in `<file>.part.json`.

    Args:
        progress: called with leaves so far, of how many, and bytes.
    Raises:
        SetupError: as `Running.post`; or it broke off, and can be resumed.
    """
    from deploy.running import silent

    part, note = out.with_name(f"{out.name}.part"), out.with_name(f"{out.name}.part.json")
    question = {**asked, "as": office}
    begun = _noted(note, part, question) if resume else None
    if resume and begun is None and part.exists():
        _warn(f"{part} 问的不是同一件事，从头导出 / {part} is of another question: from the beginning")
    if not os.access(part if part.exists() else out.parent, os.W_OK):  # looked at before the export is on record
        raise SetupError(
            Said(f"写不了 {part}", f"{part} cannot be written"), Said("请另指定 --out", "name another file with --out")
        )
    there = part.stat().st_size if begun else 0
    mark = LEAVES.get(asked["format"])
    done = _counted(part, mark) if begun and mark else 0
    params = {**asked, **({"cursor": begun.cursor, "offset": str(there)} if begun else {})}
    try:
        with stack.stream("ledger", PATH, params, roles=["auditor"], district=office) as response:
            told = response.headers
            if begun is None:
                begun = Begun(question, told["paidan-cursor"], int(told["paidan-leaves"]), int(told["paidan-size"]))
                part.unlink(missing_ok=True)
                note.write_text(json.dumps(asdict(begun)))
            with part.open("ab") as file:
                for chunk in response.iter_bytes():
                    file.write(chunk)
                    there += len(chunk)
                    done += chunk.count(mark) if mark else 0
                    if progress:
                        progress(min(done, begun.leaves), begun.leaves, there)
                file.flush()
                os.fsync(file.fileno())
    except SetupError as why:
        if begun is not None and why.code == "bad_cursor":  # another version makes other bytes: from the beginning
            return fetched(stack, out, asked, office=office, progress=progress)
        raise
    except httpx2.TransportError as why:
        if begun is None:
            raise silent("ledger", stack.urls["ledger"], why) from why
        raise SetupError(
            Said(f"导出中断于 {there} 字节", f"the export broke off after {there} bytes"),
            Said("请加 --resume 再次运行", "run it again with --resume"),
        ) from why
    part.replace(out)
    note.unlink()
    return begun


def proved(file: Path, format: str) -> bool | None:
    """
    Whether a table gives the root that its checkpoint signs; None where that cannot be told: a part of the log, no table, or unsigned.

    Raises:
        SetupError: it is not whole.
    """
    from services.ledger.exporting.checking import CutShortError, checked

    if format not in ("csv", "parquet"):
        return None
    try:
        return checked(file, format).proved
    except ImportError:
        return None  # the ledger has pyarrow, this machine has not
    except CutShortError as why:
        raise SetupError(
            Said(f"{file} 不完整", f"{file} is not whole: {why}"), Said("请重新导出", "export again")
        ) from why


def _noted(note: Path, part: Path, question: Mapping[str, str]) -> Begun | None:
    """What was begun with the same question; None: from the beginning."""
    try:
        begun = Begun(**json.loads(note.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    return begun if begun.asked == question and part.exists() else None


def _counted(part: Path, mark: bytes) -> int:
    with part.open("rb") as file:
        return sum(block.count(mark) for block in iter(partial(file.read, 1 << 20), b""))


def _warn(line: str) -> None:
    typer.echo(line, err=True)


def _shown(done: int, of: int, there: int) -> None:
    leaves = f"{done} / {of} 叶 leaves" if done else f"{of} 叶 leaves"
    typer.echo(f"\r{leaves}  {there >> 20} MiB", nl=False, err=True)
