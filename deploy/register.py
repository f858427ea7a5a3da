"""`paidan register`: the register (台账) shown, checked and changed from the command line."""

import json
import re
from datetime import date
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer

from deploy.errors import Said, SetupError
from deploy.options import DEFAULT_DATA, Data, DryRun, Json, dry, print_json, read_json

app = typer.Typer(help="台账：网格、清单、日历 / the register: areas, catalogue, calendars", no_args_is_help=True)

Why = Annotated[str, typer.Option(help="缘由，记入账本 / why, for the ledger; else the file's name")]
On = Annotated[str | None, typer.Option("--on", help="哪一天，默认今天 / the day; default: today")]
AsOf = Annotated[
    str | None, typer.Option("--as-of", help="当时所知：账本条数或时间 / as known at: the log's size, or a time")
]
KINDS = {
    "district": "辖区",
    "calendar": "日历",
    "area": "区域",
    "agreement": "协议",
    "item": "清单",
    "urgency": "紧急词",
    "policy": "规则",
    "office": "接入",
    "precedent": "先例",
    "formula": "指标公式",
}
FIELDS = {
    "title": "名称",
    "level": "层级",
    "parent": "上级",
    "valid_from": "起始",
    "valid_to": "终止",
    "located_in": "行政归属",
    "administered_by": "管理权属",
    "owned_by": "产权",
    "served_by": "服务承担",
    "words": "地址词",
    "polygon": "边界",
    "parties": "各方",
    "lead": "牵头",
    "services": "服务内容",
    "items": "清单范围",
    "effort": "工作量",
    "limits": "时限",
    "owner": "承办",
    "basis": "依据",
    "formulas": "公式",
    "weights": "权重",
}
"""What the fields of areas and agreements are called; those of others keep the name that the document has."""
FINDINGS = {
    "overlap": "重叠 / overlaps",
    "gap": "空白 / gaps",
    "outside": "越界 / outside what they are part of",
    "undrawn": "无边界 / not drawn",
    "unsound": "边界不成形 / outlines that are not sound",
    "outlived": "协议已终止 / served beyond the agreement",
    "unagreed": "无协议 / served without an agreement",
}
TEXT_MAX = 60


@app.command(name="apply")
def apply_document(
    file: Annotated[Path, typer.Argument(help="台账 JSON / a register document", exists=True, dir_okay=False)],
    why: Why = "",
    data: Data = DEFAULT_DATA,
    dry_run: DryRun = False,
    json_output: Json = False,
) -> None:
    """导入台账，每处变化成为事实 / apply a register, as facts."""
    body = {"document": read_json(file), "why": why or _named(file)}
    _apply(data, file, "/v1/register", body, {}, dry_run=dry_run, json_output=json_output)


@app.command(name="import-polygons")
def import_polygons(
    file: Annotated[Path, typer.Argument(help="GeoJSON，WGS-84", exists=True, dir_okay=False)],
    since: Annotated[
        str | None, typer.Option("--from", help="自哪一天起，缺省为更正现有 / from this day on; else a correction")
    ] = None,
    why: Why = "",
    data: Data = DEFAULT_DATA,
    dry_run: DryRun = False,
    json_output: Json = False,
) -> None:
    """导入边界，要素须有属性 area / draw areas, from GeoJSON."""
    body = {"outlines": read_json(file), "why": why or _named(file)}
    params = {"from": _day(since)} if since else {}
    _apply(data, file, "/v1/register/outlines", body, params, dry_run=dry_run, json_output=json_output)


@app.command(name="export-polygons")
def export_polygons(on: On = None, as_of: AsOf = None, data: Data = DEFAULT_DATA) -> None:
    """导出边界 GeoJSON / print the areas as GeoJSON."""
    typer.echo(json.dumps(_get(data, "/v1/register.geojson", on, as_of), ensure_ascii=False))


@app.command()
def check(on: On = None, as_of: AsOf = None, data: Data = DEFAULT_DATA, json_output: Json = False) -> None:
    """核对重叠、空白、越界与协议 / overlaps, gaps, borders, agreements."""
    answer = _get(data, "/v1/register/survey", on, as_of)
    if json_output:
        print_json(answer)
        return
    typer.echo(f"{answer['on']}，{answer['areas']} 个区域 / areas")
    for kind, found in groupby(answer["findings"], lambda finding: finding["finding"]):
        findings = list(found)
        typer.echo(f"{FINDINGS[kind]}：{len(findings)}")
        for finding in findings:
            typer.echo(f"  {_finding(finding)}")
    if not answer["findings"]:
        typer.echo("未发现问题 / nothing is amiss")


@app.command()
def area(
    code: Annotated[str, typer.Argument(help="区域代码 / the area's code")],
    on: On = None,
    as_of: AsOf = None,
    data: Data = DEFAULT_DATA,
    json_output: Json = False,
) -> None:
    """归属、协议与变更 / an area: its owners and changes."""
    answer = _get(data, f"/v1/register/areas/{code}", on, as_of)
    if json_output:
        print_json(answer)
        return
    standing = answer["standing"]
    typer.echo(
        f"{code}  {_value('title', standing['title']) if standing else '尚未生效 / not yet valid'}  {answer['on']}"
    )
    for name, owner in (answer["owners"] or {}).items():
        who = f"{owner['who']} {owner['title']['zh']}" if owner["title"] else owner["who"]
        typer.echo(f"  {FIELDS[name]} {name}：{who}，自 / since {owner['since']}")
    agreement = answer["agreement"]
    if agreement:
        until = agreement.get("valid_to", "")
        typer.echo(
            f"  协议 agreement：{agreement['agreement']}，牵头 / lead {agreement['lead']}，{agreement['valid_from']} – {until}"
        )
    typer.echo("变更 / changes")
    for entry in answer["history"]:
        typer.echo(f"  {entry['index']}  {entry['recorded'][:19]}Z  {entry['by']}：{entry['why'] or '–'}")
        _print_fields(entry["fields"], indent=6)


def _apply(
    data: Path, file: Path, path: str, body: dict[str, Any], params: dict[str, str], *, dry_run: bool, json_output: bool
) -> None:
    from deploy.running import Running

    answer = Running.find(data).post(
        "ledger", path, json.dumps(body).encode(), roles=["admin"], params={**params, **dry(dry_run)}
    )
    if json_output:
        print_json(answer)
        return
    by = {sign: [change for change in answer["changes"] if change["change"] == sign] for sign in "+~="}
    new, changed, same = (len(by[sign]) for sign in "+~=")
    typer.echo(f"{file.name}：新增 {new}，修改 {changed}，不变 {same} / {new} new, {changed} changed, {same} the same")
    for change in (*by["+"], *by["~"]):
        kind, _, which = change["what"].partition(" ")
        typer.echo(f"{change['change']} {KINDS[kind]} {kind} {which}")
        _print_fields(change.get("fields", ()), indent=4)
    for warning in answer["warnings"]:
        typer.echo(f"! 自 / from {warning['from']}：{_finding(warning)}")
    if answer["applied"]:
        typer.echo(f"已记入账本 {answer['facts']} 条 / {answer['facts']} facts in the ledger")
    elif dry_run and new + changed:
        typer.echo("仅预览，未改动 / a preview: nothing was changed")
    else:
        typer.echo("无变化 / nothing to change")


def _get(data: Path, path: str, on: str | None, as_of: str | None) -> dict[str, Any]:
    from deploy.running import Running

    params = {**({"on": _day(on)} if on else {}), **({"as_of": as_of} if as_of else {})}
    return Running.find(data).get("ledger", path, params, roles=["auditor"])


def _day(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise SetupError(
            Said(f"{text} 不是日期", f"{text} is no date"), Said("请写作 2026-11-22", "write it as 2026-11-22")
        ) from None


def _named(file: Path) -> str:
    return re.sub(r"\d{7,}", "…", file.name)  # the ledger takes no long numbers: they may be somebody's


def _finding(finding: dict[str, Any]) -> str:
    where = ""
    if at := finding.get("at"):
        where = "（{:.6f}, {:.6f}）".format(*(degree / 1e7 for degree in at))
    return f"{finding['said']} / {finding['said_en']}{where}"


def _print_fields(fields: list[dict[str, Any]], *, indent: int) -> None:
    for field in fields:
        name = field["field"]
        called = f"{FIELDS[name]} {name}" if name in FIELDS else name
        old, new = (_value(name, field[which]) for which in ("old", "new"))
        typer.echo(f"{' ' * indent}{called}：{new if old == '–' else f'{old} → {new}'}")


def _value(name: str, value: Any) -> str:
    """A field's value in a few words."""
    if value is None or value == []:
        return "–"
    if name == "polygon":
        points = sum(map(len, value))
        return f"{points} 点 / points"
    if isinstance(value, dict) and value.keys() == {"zh", "en"}:
        return f"{value['zh']} / {value['en']}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= TEXT_MAX else f"{text[:TEXT_MAX]}…"
