"""`paidan ledger verify`: audits the log of a running stack, of a database, of a replay, or of a folder of tiles."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import httpx2
import typer

from deploy.errors import Said, SetupError

if TYPE_CHECKING:
    from services.ledger.audit.auditing import Anchor, Report
    from services.ledger.log.notes import Policy

SHOWN_MAX = 20
CHUNK_BYTES = 64 * 1024
NAMES = {
    "leaves": "叶子哈希与根 / leaf hashes and root",
    "order": "次序与流序号 / order and the stream's numbers",
    "ordinals": "各区与各诉求计数 / ordinals of districts and cases",
    "indexes": "索引字段 / indexed fields",
    "heads": "各区计数之根 / heads",
    "form": "规范形式 / canonical form",
    "tiles": "瓦片 / tiles",
    "checkpoints": "检查点 / checkpoints",
    "signatures": "签名 / signatures",
    "witnesses": "会签 / cosignatures",
    "rejects": "被拒原文 / rejected bytes",
    "projections": "投影 / projections",
    "stream": "流 / the stream",
    "repeats": "重复与被拒之于流 / repeats and rejects against the stream",
    "completeness": "无扣留 / nothing withheld",
    "inclusion": "逐条包含 / each leaf in the tree",
    "checkpoint": "检查点 / checkpoint",
    "others' checkpoints": "他方检查点 / others' checkpoints",
    "tail": "末尾 / the tail",
}


def verify(
    data: Annotated[
        Path, typer.Option("--data", help="运行中的整套系统 / a running stack", envvar="PAIDAN_DATA")
    ] = Path(".paidan"),
    mongodb: Annotated[
        str | None,
        typer.Option(help="数据库地址，以 auditor 读取 / a database, as user auditor", envvar="PAIDAN_AUDIT_URI"),
    ] = None,
    database: Annotated[str, typer.Option(help="库名 / its name")] = "paidan",
    file: Annotated[
        Path | None, typer.Option(help="重放文件 NDJSON，- 为标准输入 / a replay, - for standard input")
    ] = None,
    folder: Annotated[Path | None, typer.Option("--dir", help="瓦片目录 / a folder of tiles")] = None,
    url: Annotated[str | None, typer.Option(help="账本服务地址，须 --token-file / a ledger over HTTP")] = None,
    token_file: Annotated[Path | None, typer.Option(help="令牌文件 / the auditor's token")] = None,
    district: Annotated[
        str | None,
        typer.Option(
            help="配合 --url：只核对一个区，该区的审计员须给出 / with --url: one district alone, as its own auditor must"
        ),
    ] = None,
    vkey: Annotated[list[str] | None, typer.Option(help="账本公钥，可多次 / the log's vkey, repeatable")] = None,
    policy: Annotated[Path | None, typer.Option(help="见证策略文件 / a file in tlog-policy's words")] = None,
    witness: Annotated[
        list[str] | None,
        typer.Option(help="见证方地址或其检查点文件 / a witness's address, or its checkpoint in a file"),
    ] = None,
    form: Annotated[bool, typer.Option(help="逐条核对规范形式 / each leaf's canonical form")] = True,
    projections: Annotated[bool, typer.Option(help="重算投影并比较 / fold the projections again")] = True,
    json_output: Annotated[bool, typer.Option("--json", help="输出 JSON / print JSON")] = False,
) -> None:
    """
    核对账本；有问题则退出码 1 / audit the log; exit code 1 if anything is wrong.

    公钥与策略应由别的途径取得，不要取自被核对的系统 / get vkey and policy by another way than from what you audit.
    """
    from services.ledger.audit import copies
    from services.ledger.audit.auditing import NothingToAuditError
    from services.ledger.audit.copies import NoCopyError

    if sum(each is not None for each in (mongodb, file, folder, url)) > 1:
        raise SetupError(
            Said("--mongodb、--file、--dir、--url 只能选一", "choose one of --mongodb, --file, --dir, --url"),
            Said("都不写则核对运行中的系统", "none of them audits the running stack"),
        )
    trust = _trust(vkey or [], policy)
    show = _Progress(silent=json_output or not sys.stderr.isatty())
    try:
        if folder is not None:
            anchors = _witnesses(witness or [], trust, _origin_of(folder))
            report = copies.audit_folder(folder, trust, anchors=anchors, form=form, progress=show.leaves)
        elif file is not None or url is not None:
            with _lines(file, url, token_file, district) as lines:
                anchors = _witnesses(witness or [], trust, None)
                report = copies.audit_replay(
                    lines,
                    trust,
                    anchors=anchors,
                    asked=_filter(district) if url else None,
                    form=form,
                    progress=show.leaves,
                )
        else:
            work = _online(data, mongodb, database, trust, witness or [], form=form, projections=projections, show=show)
            report = asyncio.run(work)
    except (NoCopyError, NothingToAuditError) as why:
        raise SetupError(
            Said(f"没有可核对的账本：{why}", f"there is nothing to audit: {why}"),
            Said("请核对文件、目录或数据库", "check the file, folder or database"),
        ) from None
    show.end()
    if json_output:
        typer.echo(json.dumps({**report.document(), "seconds": show.seconds}, ensure_ascii=False, indent=2))
    else:
        typer.echo("\n".join(said(report)))
    raise typer.Exit(0 if report.fine else 1)


def said(report: "Report") -> list[str]:
    """A report for people."""
    document = report.document()
    many = "，".join(f"{kind} {n}" for kind, n in report.kinds.items())
    lines = [f"账本 / log          {report.log}", f"叶子 / leaves       {report.leaves}（{many}）"]
    if report.question is not None:
        parts = {name: " ".join(each) if isinstance(each, list) else each for name, each in report.question.items()}
        lines.append(f"部分 / part of it    {'，'.join(f'{name} {each}' for name, each in parts.items())}")
    if report.root is not None:
        lines.append(f"根 / root           {document['root']}")
    if report.checkpoint is not None:
        lines.append(f"检查点 / checkpoint {report.checkpoint.size}  {document['checkpoint']['root']}")
    if report.witnessed is not None:
        size, names, at = report.witnessed
        when = f"  {datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}" if at else ""
        lines.append(f"会签 / witnessed    {size}  {' '.join(names) or '–'}{when}")
    lines += [f"接续 / by rotation  {key}" for key in report.chained]
    lines += [f"  ✓ {NAMES[name]}" for name in dict.fromkeys(report.checked)]
    lines += [f"  – {NAMES[name]}：未核对 / not looked at（{why}）" for name, why in report.unchecked.items()]
    for finding in report.findings.listed[:SHOWN_MAX]:
        where = "" if finding.index is None else f" #{finding.index}"
        lines += [f"✗ {finding.code}{where}  {finding.zh}", f"    {finding.en}"]
    total = report.findings.counts.total()
    if total > SHOWN_MAX:
        counts = "，".join(f"{code} {many}" for code, many in report.findings.counts.most_common())
        lines.append(f"… 共 / in all {total}：{counts}")
    lines.append("有问题 / something is wrong" if total else "无误 / nothing is wrong")
    return lines


class _Progress:
    """A line on standard error that is written over."""

    def __init__(self, *, silent: bool) -> None:
        self._silent = silent
        self._begun = time.monotonic()
        self._width = 0

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self._begun, 3)

    def leaves(self, done: int, of: int) -> None:
        self("leaves", done, of)

    def __call__(self, what: str, done: int, of: int) -> None:
        if not self._silent:
            line = f"{what} {done} / {of}"
            self._width = max(self._width, len(line))
            typer.echo(f"\r{line:<{self._width}}", nl=False, err=True)

    def end(self) -> None:
        if self._width:
            typer.echo("\r" + " " * self._width + "\r", nl=False, err=True)


async def _online(
    data: Path,
    uri: str | None,
    database: str,
    trust: "Policy",
    witnesses: list[str],
    *,
    form: bool,
    projections: bool,
    show: _Progress,
) -> "Report":
    """A database, and, of a running stack, the bus beside it."""
    from deploy.running import Running
    from services.ledger.audit import auditing
    from services.ledger.audit.auditing import Anchor
    from services.ledger.log.notes import Policy, Verifier
    from services.ledger.store import Store, StoreUnavailableError
    from shared.errors import BusError

    stack = None if uri else Running.find(data)
    own: list[str] = []
    if stack and not trust.logs:
        own = stack.vkeys()
        trust = Policy(tuple(map(Verifier.parse, own)), trust.witnesses, trust.urls, trust.groups, trust.quorum)
    async with AsyncExitStack() as closing:
        store = Store.connect(stack.auditor_uri if stack else uri or "", database)
        closing.callback(store.close)
        bus = None
        if stack:
            bus = await stack.connect()
            closing.push_async_callback(bus.drain)
        try:
            await store.ping()
            log = trust.logs[0].name if trust.logs else None
            anchors: list[Anchor] = _witnesses(witnesses, trust, log)
            shown, silent = _urls(trust, log)
            held = await auditing.held(bus, log) if bus and log else None
            anchors += [*shown, *([held] if held else [])]
            report, audit = await auditing.audit_store(store, trust, log=log, anchors=anchors, form=form, progress=show)
            if silent:
                report.unchecked["others' checkpoints"] = "; ".join(silent)
            if bus and log and held is None and report.checkpoint is not None:
                report.findings.say("unheld", None, "KV CHECKPOINTS", report.checkpoint.size)
            if projections:
                await auditing.audit_projection(store, audit, report, show)
            else:
                report.unchecked["projections"] = "--no-projections"
            if bus:
                await auditing.audit_stream(bus, store, audit, report)
            else:
                report.unchecked["stream"] = "只在运行中的系统上核对 / of a running stack alone (--data)"
        except StoreUnavailableError as why:
            raise SetupError(
                Said(f"数据库不可用：{why}", f"the database cannot be read ({why})"),
                Said("请核对地址与用户", "check the address and its user"),
            ) from None
        except BusError as why:
            raise SetupError(
                Said(f"总线不可用：{why}", f"the bus cannot be asked ({why})"),
                Said("只核对数据库请用 --mongodb", "audit the database alone with --mongodb"),
            ) from None
    if own:
        report.unchecked["signatures"] = (
            "公钥取自这个账本自己，请用 --vkey 给出您的 / the key is what this very ledger names: give yours with --vkey"
        )
        report.checked = [name for name in report.checked if name != "signatures"]
    return report


def _trust(vkeys: list[str], policy: Path | None) -> "Policy":
    """Raises SetupError."""
    from services.ledger.log.notes import NoteError, Policy, Verifier

    try:
        read = Policy.parse(policy.read_text()) if policy else Policy()
        logs = (*read.logs, *(Verifier.parse(vkey) for vkey in vkeys))
    except (NoteError, OSError, UnicodeDecodeError) as why:
        raise SetupError(
            Said(f"看不懂公钥或策略：{why}", f"a vkey or the policy cannot be read ({why})"),
            Said("vkey 形如 名称+编号+公钥", "a vkey is name+id+key; a policy has lines log, witness, group, quorum"),
        ) from None
    return Policy(logs, read.witnesses, read.urls, read.groups, read.quorum)


def _witnesses(given: list[str], trust: "Policy", log: str | None) -> "list[Anchor]":
    """What witnesses hold: of a file, or as they serve it. Raises SetupError."""
    from hashlib import sha256

    from services.ledger.audit.auditing import Anchor

    log = log or (trust.logs[0].name if trust.logs else None)
    anchors = []
    for where in given:
        try:
            if where.startswith(("http://", "https://")):
                if log is None:
                    raise ValueError("which log? give its --vkey")
                address = f"{where.rstrip('/')}/{sha256(log.encode()).hexdigest()}/checkpoint"
                answer = httpx2.get(address, timeout=10, trust_env=False)
                answer.raise_for_status()
                anchors.append(Anchor(where, answer.text))
            else:
                anchors.append(Anchor(where, Path(where).read_text()))
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as why:
            raise SetupError(
                Said(
                    f"见证方 {where} 的检查点取不到：{why}", f"the checkpoint of witness {where} cannot be had ({why})"
                ),
                Said("请核对地址或文件", "check the address or the file"),
            ) from None
    return anchors


def _urls(trust: "Policy", log: str | None) -> "tuple[list[Anchor], list[str]]":
    """What the witnesses hold that the policy has an address of; and which of them did not say."""
    anchors: list[Anchor] = []
    silent: list[str] = []
    for name, url in trust.urls.items() if log else ():
        try:
            anchors += _witnesses([url], trust, log)
        except SetupError as why:
            silent.append(f"{name}: {str(why).splitlines()[0]}")
    return anchors, silent


def _origin_of(folder: Path) -> str | None:
    try:
        return (folder / "checkpoint").read_text().partition("\n")[0]
    except (OSError, UnicodeDecodeError):
        return None  # said when it is audited


@contextmanager
def _lines(
    file: Path | None, url: str | None, token_file: Path | None, district: str | None
) -> Iterator[Iterator[bytes]]:
    """The lines of a replay. Raises SetupError."""
    from services.ledger.audit.receiving import IncompleteError, whole_lines

    try:
        if file is not None:
            with nullcontext(sys.stdin.buffer) if str(file) == "-" else file.open("rb") as whole:
                yield whole_lines(iter(lambda: whole.read(CHUNK_BYTES), b""))
            return
        token = token_file.read_text().strip() if token_file else os.environ.get("AUDITOR", "")
        headers = {"Authorization": f"Bearer {token}"}
        params = {"district": district, "proof": "tiles"} if district else {"kinds": "all"}
        address = f"{(url or '').rstrip('/')}/v1/events"
        with httpx2.stream("GET", address, params=params, headers=headers, timeout=60, trust_env=False) as answer:
            if answer.is_error:
                from deploy.running import refused

                answer.read()
                raise refused("ledger", answer)
            yield whole_lines(answer.iter_bytes())
    except (OSError, httpx2.HTTPError, httpx2.InvalidURL, IncompleteError) as why:
        raise SetupError(
            Said(f"读不到重放：{why}", f"the replay cannot be read ({why or type(why).__name__})"),
            Said("请核对文件、地址与令牌", "check the file, the address and the token"),
        ) from None


def _filter(district: str | None) -> dict[str, object]:
    """What a header must say to the question of `_lines`."""
    return {"district": district, "kinds": ["event"]} if district else {}
