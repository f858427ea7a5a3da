"""`paidan ledger replay`: what happened, step by step in the terminal, live if wanted; or a replay in a file that can be resumed."""

import os
import re
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from deploy.errors import Said, SetupError
from deploy.options import DEFAULT_DATA, Data, Json

if TYPE_CHECKING:
    from services.ledger.asof import Held
    from services.ledger.audit.receiving import Received

EVENTS = "/v1/events"
LINES_AT_ONCE = 500
FOLLOW_S = 1.0
CASES_KEPT = 10_000

WORDS: Mapping[str, str] = {
    "request.submitted": "居民下单",
    "request.withdrawn": "居民撤回",
    "request.rated": "居民评价",
    "request.reopened": "居民要求重办",
    "request.disclosed": "查看个人信息",
    "request.frozen": "个人信息封存",
    "request.erased": "个人信息删除",
    "member.enrolled": "人员登记",
    "member.left": "人员离岗",
    "member.erased": "人员信息删除",
    "task.opened": "受理",
    "task.offered": "派单",
    "task.accepted": "接单",
    "task.declined": "拒单",
    "task.expired": "派单过时",
    "task.unplaced": "无人可派",
    "task.arrived": "到场",
    "task.done": "办结",
    "task.parked": "挂账",
    "task.resumed": "恢复计时",
    "task.extended": "延期",
    "task.closed": "结案",
    "task.handed_over": "移交",
    "match.explained": "匹配说明",
    "turn.committed": "回合提交",
    "turn.input_refused": "输入搁置",
    "handover.offered": "请求转办",
    "handover.received": "收到转办请求",
    "handover.signed": "同意接收",
    "handover.refused": "退单",
    "handover.returned": "转办被退回",
    "handover.lapsed": "转办失效",
    "handover.settled": "转办了结",
    "conferral.opened": "发起会商",
    "conferral.received": "收到会商",
    "conferral.ruled": "会商裁定",
    "conferral.ended": "会商结束",
    "conferral.settled": "会商了结",
    "help.asked": "吹哨求助",
    "help.received": "收到求助",
    "help.seated": "派员报到",
    "help.refused": "无人可派往",
    "help.answered": "求助有答复",
    "help.lapsed": "求助失效",
    "help.released": "支援结束",
    "help.settled": "支援了结",
    "help.rated": "支援评价",
    "notice.queued": "消息待发",
    "notice.sent": "消息已发",
    "notice.failed": "消息未发出",
    "notice.held": "免打扰暂存",
    "notice.answered": "短信回复",
    "register.district_set": "台账:辖区",
    "register.area_set": "台账:网格",
    "register.agreement_set": "台账:插花地协议",
    "register.item_set": "台账:服务清单",
    "register.urgency_set": "台账:紧急用语",
    "register.calendar_set": "台账:日历",
    "register.policy_set": "台账:规则",
    "register.office_set": "台账:接入",
    "register.precedent_set": "台账:先例",
    "register.formula_set": "台账:考核公式",
    "register.applied": "台账导入完成",
    "ledger.acted": "管理操作",
    "ledger.exported": "账本导出",
    "ledger.key_rotated": "账本换签名密钥",
    "figure.appealed": "考核申诉",
    "figure.ruled": "申诉裁定",
    "building.scored": "楼栋互评",
}
STATES: Mapping[str, str] = {
    "submitted": "待受理",
    "opened": "已受理",
    "offered": "待接单",
    "accepted": "已接单",
    "arrived": "已到场",
    "done": "已办结",
    "closed": "已结案",
    "unplaced": "无人可派",
    "withdrawn": "已撤回",
    "handed_over": "已移交",
}
CLOCKS: Mapping[str, str] = {"sign": "签收", "contact": "联系", "handle": "办理", "life": "全程"}
SAID: Sequence[tuple[str, str]] = (
    *(("members", "派给"), ("member_id", "人员"), ("wave", "第几波"), ("reason", "原因"), ("outcome", "结果")),
    *(("grade", "评分"), ("solved", "已解决"), ("round", "轮次"), ("to", "去向"), ("lead", "牵头"), ("owner", "归属")),
    *(
        ("basis", "依据"),
        ("item", "事项"),
        ("urgency", "紧急"),
        ("template", "内容"),
        ("channel", "渠道"),
        ("until", "至"),
    ),
)
"""What a step shows of a fact's data, where it has it."""


_MOMENT = re.compile(r"\d{4}-\d{2}-\d{2}T")


class Source(Protocol):
    """Whoever gives replays: a running stack."""

    def lines(
        self, service: str, path: str, *, roles: Sequence[str], params: Mapping[str, str] | None = None
    ) -> Iterator[bytes]:
        """What a service streams, line by line; what breaks off just ends."""


def replay(
    request: Annotated[str | None, typer.Argument(help="诉求编号 / a request's id")] = None,
    district: Annotated[str | None, typer.Option(help="行政区代码 / a district's code")] = None,
    area: Annotated[str | None, typer.Option(help="网格代码 / an area's code")] = None,
    as_of: Annotated[
        str | None, typer.Option(help="截至账本大小或时间 / as of a size of the log or a time; else the latest")
    ] = None,
    step: Annotated[bool, typer.Option("--step", help="回车看下一步，q 结束 / Enter shows the next, q ends")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="之后继续显示新事实 / go on with what happens then")] = False,
    out: Annotated[Path | None, typer.Option(help="写入文件并核对是否完整 / into a file, checked to be whole")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="接着写被中断的文件 / go on with a file cut short")] = False,
    data: Data = DEFAULT_DATA,
    json_output: Json = False,
) -> None:
    """逐步重放诉求、辖区或网格的经过 / what happened, step by step; to a file too."""
    from deploy.running import Running
    from services.ledger.audit.receiving import IncompleteError

    if follow and (out or as_of):
        raise SetupError(
            Said("--follow 不能与 --out、--as-of 同用", "--follow goes with neither --out nor --as-of"),
            Said("请去掉其一", "leave one out"),
        )
    asked = {"request": request, "district": district, "area": area, "as_of": as_of}
    params = {name: value for name, value in asked.items() if value is not None}
    if not params.keys() - {"as_of"} and (out or json_output):
        params["kinds"] = "all"  # every leaf, so that the root can be made of them
    stack = Running.find(data)
    try:
        if out:
            found = written(stack, params, out, resume=resume, progress=_progress)
            typer.echo(f"{out}：{summed_up(found)}")
        else:
            shown = Teller(_pause if step and sys.stdin.isatty() else None, raw=json_output)
            told(stack, params, shown, follow=follow)
    except IncompleteError as why:
        typer.echo(f"paidan: 重放不完整：{why.zh} / the replay is not whole: {why}", err=True)
        if out:
            typer.echo("再次运行并加 --resume 可接着写 / run it again with --resume to go on", err=True)
        raise typer.Exit(1) from None


def written(
    source: Source, params: Mapping[str, str], file: Path, *, resume: bool, progress: Callable[[int, int], None]
) -> "Received":
    """
    A replay in a file, as if it had come in one go; a file that was cut short goes on where it ends, pinned as it began.

    Args:
        progress: called with how far it is, and the size of the log.
    Raises:
        SetupError: there is such a file, or it is none of a replay.
        IncompleteError: what came is not all of it; the file holds what came.
    """
    from services.ledger.audit.receiving import IncompleteError, Received
    from shared.envelope import canonical

    if file.exists() and not resume:
        raise SetupError(
            Said(f"{file} 已存在", f"{file} is there already"),
            Said("请换一个文件名，或加 --resume 接着写", "choose another name, or go on with it by --resume"),
        )
    received: Received | None = None
    params = {**params}
    with file.open("rb+" if file.exists() else "wb+") as sink:
        received = _taken_up(sink, file)
        if received is not None and received.trailer is not None:
            received.end()
            return received
        if received is not None:
            params |= {"cursor": received.header["cursor"], "from": str(received.at + 1)}
        header = True
        for batch in _batches(source.lines("ledger", EVENTS, roles=["auditor"], params=params)):
            if header and received is None:
                received = Received(batch[0])
                sink.write(batch[0] + b"\n")
            elif header and received is not None:
                again = Received(batch[0]).header
                if any(again[name] != received.header[name] for name in ("log", "size", "filter")):
                    raise IncompleteError("接续的不是同一重放", "what goes on is another replay")
            assert received is not None
            for line in batch[1:] if header else batch:
                if line.startswith(b'{"count":'):
                    line = canonical({"end": True, "count": received.lines, "next": None})
                received.take([line])
                sink.write(line + b"\n")
            header = False
            progress(received.at + 1, received.size)
        if received is None:
            raise IncompleteError("什么也没有收到", "nothing came")
        sink.flush()
        os.fsync(sink.fileno())
    received.end()
    return received


def _taken_up(sink: Any, file: Path) -> "Received | None":
    """What a file holds, up to its last whole line, behind which it is cut; None where it holds nothing yet."""
    from services.ledger.audit.receiving import IncompleteError, Received

    received: Received | None = None
    end = 0
    try:
        for line in sink:
            if not line.endswith(b"\n"):
                break
            if received is None:
                received = Received(line[:-1])
            else:
                received.take([line[:-1]])
            end += len(line)
    except IncompleteError as why:
        raise SetupError(
            Said(f"{file} 不是可接续的重放：{why.zh}", f"{file} is no replay to go on with: {why}"),
            Said("请换一个文件名重新取", "take it anew under another name"),
        ) from None
    sink.seek(end)
    sink.truncate()
    return received


def summed_up(received: "Received") -> str:
    """What was received, and how far that is proved."""
    counted = f"{received.lines} 条 / {received.lines} leaves"
    if received.withheld:
        counted += f"，其中 {received.withheld} 条只见哈希 / {received.withheld} of them by hash only"
    if received.rooted:
        return f"{counted}，与检查点的根一致 / they give the root of checkpoint {received.size}"
    if received.header["checkpoint"] is None:
        return f"{counted}，账本大小 {received.size}，无签名 / size {received.size}, not signed"
    counted = f"{counted}，截至检查点 {received.size} / as of checkpoint {received.size}"
    if (why := received.unproved) is None:
        return f"{counted}，无扣留 / nothing withheld"
    return f"{counted}，未证明无扣留：{why.zh} / not proved that nothing is withheld: {why.en}"


class Teller:
    """
    Tells leaves to people, one step each.

    Args:
        pause: called before each step but the first; False ends it. None: nobody is asked.
        raw: the lines as they came.
    """

    def __init__(self, pause: Callable[[], bool] | None, *, raw: bool) -> None:
        self._pause, self._raw = pause, raw
        self._cases: OrderedDict[str, Held] = OrderedDict()
        self._begun = False

    def head(self, line: bytes) -> None:
        """The first line of a replay."""
        if self._raw:
            typer.echo(line.decode())

    def end(self, line: bytes, lines: int) -> None:
        """The last one."""
        if self._raw:
            typer.echo(line.decode())
        elif not lines:
            typer.echo("没有事实 / no facts")

    def take(self, line: bytes) -> bool:
        """One leaf; False where nobody wants to see more."""
        import orjson

        if self._raw:
            typer.echo(line.decode())
            return True
        if self._begun and self._pause is not None and not self._pause():
            return False
        self._begun = True
        document = orjson.loads(line)
        typer.echo("\n".join(self._said(document)))
        return True

    def _said(self, line: dict[str, Any]) -> list[str]:
        from services.ledger.asof import Held, stepped

        leaf = line.get("leaf")
        if leaf is None:
            return [f"#{line['s']}  不可见：协议已终止 / withheld: the agreement is over  {line['hash'][:16]}"]
        if leaf["kind"] != "event":
            return [f"#{line['s']}  {leaf['kind']}  {leaf['recorded']}"]
        _, district, _, area, entity, fact, *_ = leaf["subject"].split(".")
        event, name = leaf["event"], f"{entity}.{fact}"
        said = [f"#{line['s']}  {_local(event['time'])}  {WORDS.get(name, name)} / {name}  {district} {area}"]
        if "actor" in event:
            said[0] += f"  {event['actor']}"
        given = [f"{word} {_plain(event['data'][key])}" for key, word in SAID if key in event["data"]]
        if given:
            said.append(f"      {'，'.join(given)}")
        if "case" not in leaf:
            return said
        held = self._cases.pop(leaf["case"]["id"], None) or Held()
        before = held.case
        held.take(stepped(leaf), None)
        self._cases[leaf["case"]["id"]] = held
        if len(self._cases) > CASES_KEPT:
            self._cases.popitem(last=False)
        if held.case is not None and held.case is not before:
            case = held.case
            said.append(
                f"      → {STATES[case['state']]} / {case['state']}，责任单位 {case['district']}，"
                f"承办 {case.get('holder') or '–'}，第 {case['round']} 轮"
            )
            due = [f"{CLOCKS[clock]} {_local(case['due'][clock])}" for clock in CLOCKS if clock in case.get("due", {})]
            if due and (before is None or before.get("due") != case.get("due")):
                said.append(f"      时限 / due：{'，'.join(due)}")
        return said


def told(
    source: Source,
    params: Mapping[str, str],
    teller: Teller,
    *,
    follow: bool,
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """
    Tell a replay, then, where it is followed, what comes after it until somebody interrupts.

    Raises:
        SetupError: the ledger refused or is silent.
        IncompleteError: it is not all there.
    """
    from services.ledger.audit.receiving import Received

    since, first = 0, True
    while True:
        lines = source.lines("ledger", EVENTS, roles=["auditor"], params={**params, "from": str(since)})
        received: Received | None = None
        for line in lines:
            if received is None:
                received = Received(line)
                if first:
                    teller.head(line)
                continue
            received.take([line])
            if received.trailer is not None:
                if not follow:
                    teller.end(line, received.lines)
            elif not line.startswith(b'{"h":') and not teller.take(line):
                return
        if received is None:
            from services.ledger.audit.receiving import IncompleteError

            raise IncompleteError("什么也没有收到", "nothing came")
        received.end()
        if not follow:
            return
        since, first = max(since, received.size), False
        wait(FOLLOW_S)


def _batches(lines: Iterator[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    for line in lines:
        batch.append(line)
        if len(batch) == LINES_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _local(moment: str) -> str:
    return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return "、".join(map(_plain, value))
    if isinstance(value, bool):
        return "是" if value else "否"
    return _local(value) if _MOMENT.match(str(value)) else str(value)


def _pause() -> bool:
    try:
        return input().strip().lower() != "q"
    except EOFError:
        return False


def _progress(done: int, of: int) -> None:
    if sys.stderr.isatty():
        typer.echo(f"\r{done} / {of}", nl=done >= of, err=True)
