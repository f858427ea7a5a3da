"""`paidan figures`: the rates that offices live by, from the running ledger or from a replay in a file."""

import json
import re
import sys
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.errors import Said, SetupError
from deploy.options import DEFAULT_DATA, Data, print_json, read_json

if TYPE_CHECKING:
    from services.ledger.audit.receiving import Received
    from services.ledger.rounds import Fold
    from shared.facts import FormulaSet

By = StrEnum("By", ["district", "area", "item", "month", "person"])
Format = StrEnum("Format", ["table", "json", "csv"])
PATH = "/v1/figures"
EPOCH = datetime.fromtimestamp(0, UTC)
WHOLE = frozenset({"kinds", "scopes"})
"""Filters of a replay that leave nothing of an office out, nor the register with its formulas."""
COLUMN = 14
WHY = {
    "appeal": "申诉",
    "withdrawn": "撤回",
    "parked": "缓办",
    "extended": "延期",
    "duplicate": "重复",
    "found": "自主发现",
    "returned": "退单",
    "unplaced": "无人可派",
    "reworked": "返工",
}
"""What a case was left out for, in Chinese; others keep the condition's name."""


def figures(
    district: Annotated[str | None, typer.Option(help="行政区代码，缺省为全部 / a district; else all")] = None,
    area: Annotated[str | None, typer.Option(help="只计此区域 / this area alone")] = None,
    item: Annotated[str | None, typer.Option(help="只计此事项 / this item alone")] = None,
    month: Annotated[str | None, typer.Option(help="月份，如 2026-11，缺省为全部 / a month; else all")] = None,
    by: Annotated[By, typer.Option(help="每行为何 / what each row is of")] = By.district,
    as_of: Annotated[str | None, typer.Option(help="账本规模或时间 / as of a size of the ledger, or a time")] = None,
    formula: Annotated[
        Path | None,
        typer.Option(help="试算：另一组公式 JSON，不留存 / what these would give", exists=True, dir_okay=False),
    ] = None,
    buildings: Annotated[
        bool, typer.Option("--buildings", help="楼栋积分与流动小红旗 / the buildings' scores")
    ] = False,
    from_replay: Annotated[
        Path | None,
        typer.Option(help="由重放 NDJSON 复算 / from this replay instead", exists=True, dir_okay=False),
    ] = None,
    at: Annotated[str | None, typer.Option(help="复算截至的时刻，见答复 at / as of when, the answer's `at`")] = None,
    format: Annotated[Format, typer.Option(help="输出格式 / how to print")] = Format.table,
    data: Data = DEFAULT_DATA,
) -> None:
    """指标：各项比率及其分子分母 / rates, and what they are of."""
    if buildings and (month is None or district is None):
        raise SetupError(
            Said("楼栋积分须指明辖区与月份", "the buildings' scores are of one district and month"),
            Said("请加上 --district 与 --month", "add --district and --month"),
        )
    if month and not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", month, re.ASCII):
        raise SetupError(
            Said(f"{month} 不是月份", f"{month} is no month"), Said("请写作 2026-11", "write it as 2026-11")
        )
    if from_replay and as_of:
        raise SetupError(
            Said("重放已固定规模，不能再用 --as-of", "a replay is of one size: --as-of changes nothing"),
            Said("请取该规模的重放：GET /v1/events?as_of=…", "take a replay of that size: GET /v1/events?as_of=…"),
        )
    asked: dict[str, str | None] = {"district": district, "month": month}
    if not buildings:
        asked |= {"area": area, "item": item, "by": by.value}
    if from_replay:
        answered = _again(from_replay, asked, at, formula, buildings=buildings)
    else:
        params = {name: value for name, value in {**asked, "as_of": as_of}.items() if value is not None}
        answered = _asked(data, params, formula, buildings=buildings)
    if format is Format.json:
        print_json(answered)
    elif format is Format.csv:
        from services.ledger.figures import as_csv

        sys.stdout.buffer.write(as_csv(answered))
    else:
        typer.echo("\n".join(_buildings(answered) if buildings else _table(answered)))


def _asked(data: Path, params: dict[str, str], formula: Path | None, *, buildings: bool) -> dict[str, Any]:
    from deploy.running import Running

    stack = Running.find(data)
    if buildings:
        return stack.get("ledger", f"{PATH}/buildings", params, roles=["auditor"])
    if formula is None:
        return stack.get("ledger", PATH, params, roles=["auditor"])
    body = json.dumps(read_json(formula)).encode()
    return stack.post("ledger", f"{PATH}/what-if", body, roles=["auditor"], params=params)


def _again(
    replay: Path, asked: dict[str, str | None], at: str | None, formula: Path | None, *, buildings: bool
) -> dict[str, Any]:
    """The same answer from a replay alone."""
    from services.ledger import figures as computing
    from services.ledger.log.notes import Note
    from shared.envelope import canonical

    fold, received, asked["district"] = _folded(replay, asked["district"])
    if asked.get("by") == "person" and asked["district"] is None:
        raise SetupError(
            Said("按人员统计须指明一个辖区", "people are measured by their own district"),
            Said("请加上 --district", "add --district"),
        )
    try:
        moment = datetime.fromisoformat(at) if at else EPOCH + timedelta(milliseconds=fold.recorded)
    except ValueError:
        raise SetupError(
            Said(f"看不懂 {at}", f"{at} is no time"), Said("请用答复中的 at", "use an answer's `at`")
        ) from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    note = received.header.get("checkpoint")
    pin = computing.Pin(received.header["log"], received.size, moment, Note.parse(note).body if note else None)
    if buildings:
        answered = computing.buildings(fold, pin, district=str(asked["district"]), month=str(asked["month"]))
    else:
        question = computing.Question(**asked)  # type: ignore[arg-type]
        answered = computing.answer(fold, question, pin, _formulas(formula) if formula else None)
    plain: dict[str, Any] = json.loads(canonical(answered))
    return plain


def _folded(replay: Path, district: str | None) -> "tuple[Fold, Received, str | None]":
    """What figures follow from in a replay, which must be whole, and whose it is. Raises SetupError."""
    from services.ledger.audit.receiving import IncompleteError, Received
    from services.ledger.rounds import Fold

    try:
        with replay.open("rb") as lines:
            received = Received(lines.readline().rstrip(b"\n"))
            chosen = received.header["filter"]
            if received.since or not chosen.keys() <= WHOLE or "event" not in chosen.get("kinds", ("event",)):
                raise IncompleteError("只是一部分", "is a part of the log only")
            whose: str | None = (chosen.get("scopes") or [None])[0]
            if whose is not None and district not in (None, whose):
                raise IncompleteError(f"只含 {whose}", f"is of {whose} alone")
            fold = Fold(district or whose)
            for line in lines:
                received.take([line.rstrip(b"\n")])
                _, found, leaf = line.partition(b',"leaf":')
                if found:
                    proved = leaf.rpartition(b',"proof":')[0] if received.header.get("proof") == "each" else b""
                    fold.take(proved or leaf.rstrip(b"\n")[:-1])
            received.end()
            if received.trailer and received.trailer["next"]:
                raise IncompleteError("未取完", "was not taken to its end")
    except (ValueError, KeyError, IndexError, OSError) as why:
        raise _wrong(replay, "不是完整的重放", f"is no whole replay ({why!r})") from None
    except IncompleteError as why:
        raise _wrong(replay, why.zh, str(why)) from None
    if received.withheld:
        typer.echo(f"! 已不再共享的 {received.withheld} 条未计入 / {received.withheld} leaves are withheld", err=True)
    return fold, received, district or whose


def _formulas(file: Path) -> "FormulaSet":
    """The formulas in a file. Raises SetupError."""
    from pydantic import ValidationError

    from services.ledger.figures_api import WhatIf
    from services.ledger.register.registering import check_formulas
    from shared.errors import RefusedError
    from shared.facts import FormulaSet
    from shared.problems import invalid, problem

    try:
        try:
            found = FormulaSet(**dict(WhatIf.model_validate(read_json(file))))
        except ValidationError as why:
            raise invalid(why.errors(include_url=False)) from None
        check_formulas("formula", found)
    except RefusedError as why:
        said = problem(why)
        where = said.get("field", "")
        raise SetupError(
            Said(f"{file.name} {where}：{said['title']}", f"{file.name} {where}: {said['title_en']}"),
            Said(said["detail"], said["detail_en"]),
        ) from None
    return found


def _wrong(file: Path, zh: str, en: str) -> SetupError:
    return SetupError(
        Said(f"{file} {zh}", f"{file} {en}"),
        Said("请重新取一份完整的重放：GET /v1/events", "take a whole one: GET /v1/events"),
    )


def _head(answered: dict[str, Any]) -> str:
    signed = "检查点已签署 / signed" if answered["checkpoint"] else "无检查点 / no checkpoint"
    return f"账本 / ledger {answered['log']}，规模 / size {answered['size']}（{signed}），截至 / at {answered['at']}"


def _table(answered: dict[str, Any]) -> list[str]:
    """Each row with its figures; beside each what another formula gives, marked where it differs."""
    by, month = answered["asked"]["by"], answered["asked"]["month"]
    lines = [_head(answered)]
    for row in answered["rows"]:
        name = row["district"] if by == "district" else f"{row['district']} {row[by]}"
        lines += ["", f"{name}{f'  {month}' if month else ''}"]
        others = {each["figure"]: each for each in row.get("what_if", {}).get("figures", ())}
        for cell in row["figures"]:
            line = f"  {_wide(cell['title']['zh'])}{cell['text']:>10}  {_of(cell):<14}"
            if other := others.get(cell["figure"]):
                line += f"→ {other['text']:>10}  {_of(other):<14}{'*' if other['differs'] else ' '}"
            lines.append((line + _left_out(other or cell)).rstrip())
        if not row["figures"]:
            lines.append("  尚无可计入的诉求 / nothing to count yet")
        if row["score"]:
            line = f"  {_wide('综合得分')}{row['score']['text']:>10}"
            after = (row.get("what_if") or {}).get("score")
            lines.append(line + (f"  {'':<14}→ {after['text']:>10}" if after else ""))
    if not answered["rows"]:
        lines.append("尚无可计入的诉求 / nothing to count yet")
    used = "、".join(
        f"{each['district']} v{each['version']}（{each['valid_from']} 起）" for each in answered["formulas"]
    )
    lines += ["", f"公式 / formulas：{used or '–'}"]
    if answered["what_if"]:
        lines.append("* 试算结果不同；未留存 / differs under the formulas tried; nothing was stored")
    return lines


def _of(cell: dict[str, Any]) -> str:
    return f"{cell['numerator']}/{cell['denominator']}"


def _left_out(cell: dict[str, Any]) -> str:
    if not cell["excluded"]:
        return ""
    why = "，".join(f"{WHY.get(reason, reason)} {many}" for reason, many in cell["excluded"].items())
    return f"  不计 / left out：{why}"


def _wide(text: str) -> str:
    """Chinese text in a column: each character is two wide."""
    return text + " " * max(1, COLUMN - 2 * len(text))


def _buildings(answered: dict[str, Any]) -> list[str]:
    lines = [_head(answered), f"{answered['district']} {answered['month']} 楼栋积分 / scores"]
    for one in answered["buildings"]:
        flag = "⚑ 流动小红旗" if one["flag"] else ""
        tied = "并列，按代码排序 / tied, ordered by code" if one["tied"] else ""
        lines.append(
            f"{one['rank']:>3}  {one['building']:<20}{one['text']:>8}  {one['raters']} 家评 / raters  {flag} {tied}".rstrip()
        )
    if not answered["buildings"]:
        lines.append("本月尚无互评 / nobody was rated in this month")
    return lines
