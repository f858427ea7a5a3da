"""The monthly sheet for the joint meeting (联席会) of an enclave's offices: numbers, what is open, late or disputed, the balance; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from typing import Any
from zoneinfo import ZoneInfo

from services.ledger.enclaves import CLOCKS, Filing, Pin, midnight, sealed
from shared.errors import RefusedError

VERSION = "paidan/enclave-sheet/1"
KEPT, BROKEN = ("met",), ("late", "missed", "overdue")


def months(zone: ZoneInfo, month: str) -> tuple[datetime, datetime]:
    """
    The first moment of a local month, and the first behind it.

    Raises:
        RefusedError: `invalid`.
    """
    try:
        first = date.fromisoformat(f"{month}-01")
        following = date(first.year + first.month // 12, first.month % 12 + 1, 1)
        return midnight(first, zone), midnight(following, zone)
    except (ValueError, OverflowError):  # or at an end of the calendar
        raise RefusedError("invalid", field="month", why="须如 2026-11", why_en="as in 2026-11") from None


def sheet(filing: Filing, pin: Pin, month: str) -> dict[str, Any]:
    """
    The sheet of a month, from a filing of what happened before the month's end.

    Per office: `opened` tasks (of those `taken` from another office), `closed` for good (`closed_in_time`: within the whole-life limit)
    with the `effort` of these, `handed_over`, `refused` hand-overs, `helped` and `was_helped`; per clock how many fell due (or were
    met) in the month and how many of these were kept; `open` tasks at its end, `overdue` ones among them.

    Raises:
        RefusedError: `invalid`: the month has not begun.
    """
    of = filing.enclave
    since, until = months(of.zone, month)
    if since > pin.at:
        raise RefusedError("invalid", field="month", why=f"{month} 尚未开始", why_en=f"{month} has not begun")
    ends = min(until, pin.at)
    now = of.followed(ends)
    tasks = [{**task, "clocks": filing.clocks(task, now)} for task in filing.tasks.values()]
    head = filing.head(pin)
    still = [task for task in tasks if task["ended"] is None]

    def within(at: datetime | None) -> bool:
        return at is not None and since <= at < until

    late = [
        {"case": task["case"], "task": task["task"], "office": task["office"], "clock": name, **task["clocks"][name]}
        for task in still
        for name in CLOCKS
        if task["clocks"][name]["state"] == "overdue"
    ]
    standing = [month_ for month_ in filing.balance() if month_["month"] <= month]
    nothing = {"month": month, "flows": [], "net": dict.fromkeys(of.parties, 0)}
    last = standing[-1] if standing else {**nothing, "total": dict.fromkeys(of.parties, 0)}
    return sealed(
        {
            "v": VERSION,
            **head,
            "month": month,
            "since": since,
            "until": ends,
            "numbers": {office: _numbers(office, filing, tasks, within) for office in sorted(filing.offices())},
            "open": {
                "tasks": [
                    {name: task[name] for name in ("case", "task", "office", "opened")}
                    | {"item": filing.cases[task["case"]].get("item")}
                    for task in still
                ],
                "handovers": [one for one in filing.handovers.values() if one["ended"] is None],
                "conferrals": [one for one in filing.conferrals.values() if one["ended"] is None],
                "help": [one for one in filing.help.values() if one["ended"] is None],
            },
            "overdue": late,
            "disputed": {
                "refused": [one for one in filing.handovers.values() if one["refusal"] and within(one["answered"])],
                "conferrals": [
                    one
                    for one in filing.conferrals.values()
                    if one["ended"] is None or within(one["asked"]) or within(one["ended"])
                ],
            },
            "precedents": [one for one in filing.precedents() if within(one["at"])],
            "balance": last if last["month"] == month else {**nothing, "total": last["total"]},
        }
    )


def _numbers(office: str, filing: Filing, tasks: Sequence[Mapping[str, Any]], within: Any) -> dict[str, Any]:
    own = [task for task in tasks if task["office"] == office]
    opened = [task for task in own if within(task["opened"])]
    closed = [task for task in own if within(task["met"].get("life"))]
    still = [task for task in own if task["ended"] is None]
    asked, came = filing.handovers.values(), [one for one in filing.help.values() if one["answer"] == "came"]
    clocks = {}
    for name in CLOCKS:
        fell = [
            task["clocks"][name]["state"]
            for task in own
            if within(min(task["clocks"][name]["due"], task["clocks"][name]["met"] or task["clocks"][name]["due"]))
        ]
        clocks[name] = {"due": _many(fell, (*KEPT, *BROKEN)), "kept": _many(fell, KEPT)}
    return {
        "opened": len(opened),
        "taken": sum(task["by"] is not None for task in opened),
        "closed": len(closed),
        "closed_in_time": sum(task["clocks"]["life"]["state"] == "met" for task in closed),
        "effort": sum(task["effort"] for task in closed),
        "handed_over": sum(task["how"] == "handed_over" and within(task["ended"]) for task in own),
        "refused": sum(one["to"] == office and one["refusal"] is not None and within(one["answered"]) for one in asked),
        "helped": sum(one["to"] == office and within(one["answered"]) for one in came),
        "was_helped": sum(one["asker"] == office and within(one["answered"]) for one in came),
        "clocks": clocks,
        "open": len(still),
        "overdue": sum(any(task["clocks"][name]["state"] == "overdue" for name in CLOCKS) for task in still),
    }


def _many(states: Iterable[str], among: Sequence[str]) -> int:
    return sum(state in among for state in states)


# --- on paper ---------------------------------------------------------------------------------------------------------

CLOCK_WORDS = {"sign": "签收", "contact": "联系", "handle": "办理", "life": "全程"}
REASONS = {
    "wrong_place": "属地不符",
    "ownership_unclear": "权属不清",
    "overlapping_duties": "职能交叉",
    "information_missing": "信息不全",
    "nothing_to_do": "无需处置",
    "beyond_ability": "超出能力",
}
ROWS = {
    "opened": "受理",
    "taken": "其中接自他区",
    "closed": "结案",
    "closed_in_time": "其中按期",
    "effort": "结案工作量(分)",
    "handed_over": "转出",
    "refused": "退单",
    "helped": "支援他区",
    "was_helped": "受他区支援",
    "open": "在办",
    "overdue": "其中超时",
}


def page(sheet: Mapping[str, Any]) -> str:
    """The sheet as a joint meeting takes it along: Markdown, in Chinese, in local time."""
    zone = ZoneInfo(sheet["zone"])

    def at(moment: str | None) -> str:
        return datetime.fromisoformat(moment).astimezone(zone).strftime("%m-%d %H:%M") if moment else "–"

    def office(code: str) -> str:
        title = sheet["offices"].get(code)
        return title["zh"] if title else code

    def item(code: str | None) -> str:
        title = sheet["items"].get(code)
        return title["zh"] if title else code or "–"

    year, month = sheet["month"].split("-")
    title = sheet["title"]["zh"] if sheet["title"] else sheet["area"]
    offices = list(sheet["numbers"])
    numbers = sheet["numbers"]
    rows = [[word, *(numbers[code][name] for code in offices)] for name, word in ROWS.items()]
    rows += [
        [
            f"{word}时限(按时/到期)",
            *(f"{numbers[c]['clocks'][k]['kept']}/{numbers[c]['clocks'][k]['due']}" for c in offices),
        ]
        for k, word in CLOCK_WORDS.items()
    ]
    agreed = "；".join(
        f"{one['agreement']}({one['valid_from']} 至 {one['valid_to'] or '长期'},牵头 {office(one['lead'])})"
        for one in sheet["agreements"]
    )
    balance, waiting, disputed = sheet["balance"], sheet["open"], sheet["disputed"]
    pending = [
        *(("转办", one, f"{office(one['giver'])} → {office(one['to'])}", one["until"]) for one in waiting["handovers"]),
        *(("会商", one, f"牵头 {office(one['lead'])}", one["until"]) for one in waiting["conferrals"]),
        *(("支援", one, f"{office(one['asker'])} → {office(one['to'])}", one["until"]) for one in waiting["help"]),
    ]
    checkpoint = sheet["checkpoint"].splitlines()[2] if sheet["checkpoint"] else "尚无"
    return "\n".join(
        [
            f"# {title} 联席会月报 {year} 年 {int(month)} 月",
            "",
            f"各方：{'、'.join(map(office, sheet['parties']))}。协议：{agreed}。",
            f"统计截至 {at(sheet['until'])}（{sheet['zone']}）。",
            "",
            "## 一、各办数字",
            "",
            *_table(["", *map(office, offices)], rows),
            "## 二、在办事项",
            "",
            *_table(
                ["诉求", "事项", "责任单位", "受理"],
                [
                    [one["case"], item(one["item"]), office(one["office"]), at(one["opened"])]
                    for one in waiting["tasks"]
                ],
            ),
            *_table(
                ["待答复", "诉求", "双方", "期限"],
                [[kind, one["case"], who, at(until)] for kind, one, who, until in pending],
            ),
            "## 三、超时事项",
            "",
            *_table(
                ["诉求", "责任单位", "时限", "应于"],
                [
                    [one["case"], office(one["office"]), CLOCK_WORDS[one["clock"]], at(one["due"])]
                    for one in sheet["overdue"]
                ],
            ),
            "## 四、争议事项",
            "",
            *_table(
                ["退单", "退单单位", "理由", "依据", "时间"],
                [
                    [
                        one["case"],
                        office(one["to"]),
                        REASONS.get(one["refusal"]["reason"], one["refusal"]["reason"]),
                        one["refusal"]["basis"],
                        at(one["answered"]),
                    ]
                    for one in disputed["refused"]
                ],
            ),
            *_table(
                ["会商", "牵头", "裁定归属", "依据", "裁定时间"],
                [
                    [
                        one["case"],
                        office(one["lead"]),
                        office(one["ruling"]["owner"]) if one["ruling"] else "待裁定",
                        one["ruling"]["basis"] if one["ruling"] else "–",
                        at(one["ruling"]["at"]) if one["ruling"] else "–",
                    ]
                    for one in disputed["conferrals"]
                ],
            ),
            "## 五、形成的判例",
            "",
            *_table(
                ["事项", "归属", "依据", "自"],
                [
                    [
                        item(one["item"]),
                        office(one["owner"]) if one["owner"] else "撤销",
                        one["basis"],
                        one["valid_from"],
                    ]
                    for one in sheet["precedents"]
                ],
            ),
            "## 六、互助往来",
            "",
            *_table(
                ["出力", "受益", "方式", "件数", "工作量(分)"],
                [
                    [
                        office(one["by"]),
                        office(one["for"]),
                        "支援" if one["kind"] == "help" else "接办",
                        one["tasks"],
                        one["effort"],
                    ]
                    for one in balance["flows"]
                ],
            ),
            *_table(
                ["支援结余(分)", *map(office, balance["total"])],
                [
                    ["本月", *(f"{balance['net'].get(code, 0):+d}" for code in balance["total"])],
                    ["累计", *(f"{total:+d}" for total in balance["total"].values())],
                ],
            ),
            "## 核对",
            "",
            f"- 账本 {sheet['log']}，规模 {sheet['size']}，检查点 {checkpoint}",
            f"- 本表摘要 {sheet['digest']}",
            f"- 各方所得逐字节相同，可由各自的重放复算：`paidan ledger enclave {sheet['area']} --month {sheet['month']} --from-replay …`",
            "",
        ]
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """A Markdown table; one line where there is nothing to show."""
    if not rows:
        return [f"{head[0] or '数字'}：无", ""]
    return [f"| {' | '.join(map(_in_cell, row))} |" for row in (head, ["---"] * len(head), *rows)] + [""]


def _in_cell(value: Any) -> str:
    """What somebody wrote stays in its cell."""
    return " ".join(str(value).replace("|", "\\|").split())
