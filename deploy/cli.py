"""The `paidan` command: runs the stack, and does what an operator does. Chinese first, English second."""

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine
from datetime import datetime, timedelta
from enum import StrEnum
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from deploy import exporting, figures, register, replaying, signing, verifying, witnessing
from deploy.errors import Said, SetupError
from deploy.options import DEFAULT_DATA, Data, DryRun, Json, dry, print_json, read_json

if TYPE_CHECKING:
    from deploy.admitting import Admitted
    from deploy.running import Running
    from deploy.stack import Stack

DEMO_REGISTER = Path(__file__).parent / "demo" / "register.json"
DEMO_MEMBERS = Path(__file__).parent / "demo" / "members.csv"
PEOPLES_PACE = {"offer": {"amount": 15, "unit": "minutes"}, "close_after": {"amount": 1, "unit": "hours"}}
"""The demo's policy gives seconds, for simulated members; whoever tries it by hand gets time to type."""
HTTP_PORT = 8420

app = typer.Typer(
    help="派单 Paidan：居民诉求 → 网格任务 → 账本 / residents' requests become tasks, and a ledger.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
bus_app = typer.Typer(help="总线 / the bus", no_args_is_help=True)
members_app = typer.Typer(help="网格员与志愿者 / grid members and volunteers", no_args_is_help=True)
contact_app = typer.Typer(help="联系方式 / how people are reached", no_args_is_help=True)
ledger_app = typer.Typer(help="账本 / the ledger", no_args_is_help=True)
office_app = typer.Typer(help="各区在总线上的账户 / the offices' accounts on the bus", no_args_is_help=True)
person_app = typer.Typer(help="个人信息：查找、查看、删除 / people's data: find, open, erase", no_args_is_help=True)
keys_app = typer.Typer(help="包裹钥匙的主密钥 / what wraps the keys", no_args_is_help=True)
app.add_typer(bus_app, name="bus")
app.add_typer(office_app, name="office")
app.add_typer(register.app, name="register")
app.add_typer(members_app, name="members")
app.add_typer(contact_app, name="contact")
app.add_typer(person_app, name="person")
app.add_typer(keys_app, name="keys")
app.add_typer(ledger_app, name="ledger")
ledger_app.command(name="replay")(replaying.replay)
ledger_app.command(name="export")(exporting.export)
ledger_app.command(name="verify")(verifying.verify)
app.add_typer(witnessing.app, name="witness")

Why = Annotated[str, typer.Option(help="缘由，永久记入账本，勿写个人信息 / why, kept for ever; nothing personal")]
OfRequest = Annotated[str | None, typer.Option("--request", help="诉求编号 / one of their requests")]
OfContact = Annotated[
    str | None, typer.Option("--contact", help="- 为询问，或含号码的文件 / - asks, or a file with it")
]
OneDistrict = Annotated[
    str | None, typer.Option("--district", help="行政区代码，缺省为全部 / a district's code; else all")
]
T = TypeVar("T")
OPERATOR = "operator"
"""Whoever sits at this machine."""


def main() -> None:
    """Run the command; what stands in the way from outside is one line and exit code 2."""
    try:
        app()
    except SetupError as error:
        print(f"paidan: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.filename is None:  # no file that somebody named: ours to mend
            raise
        why = Said(f"{error.filename} 无法读写", f"{error.filename}: {error.strerror}")
        print(f"paidan: {SetupError(why, Said('请核对路径与权限', 'check the path and its rights'))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


@app.command()
def up(
    data: Data = DEFAULT_DATA,
    demo: Annotated[bool, typer.Option(help="载入演示社区 / load the demo's place")] = True,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="只报错误 / say nothing but errors")] = False,
    port: Annotated[
        int,
        typer.Option(help="首个端口，0 为任意 / first of six ports, 0: any", min=0),
    ] = HTTP_PORT,
    tls: Annotated[bool, typer.Option("--tls", help="用自建的 CA 加密 / TLS by a CA of its own")] = False,
    host: Annotated[
        str, typer.Option(help="监听地址，非本机须 --tls / where to listen; beyond loopback with --tls")
    ] = "127.0.0.1",
    name: Annotated[
        list[str] | None, typer.Option(help="证书中的域名或地址，可多次 / names for the certificates, repeatable")
    ] = None,
) -> None:
    """前台运行整套系统，Ctrl-C 停止 / run everything; Ctrl-C drains and stops."""
    from deploy.stack import Stack

    def on_event(line: str) -> None:
        if not quiet:
            print(line, flush=True)

    stack = Stack(data, http_port=port or None, host=host, tls=tls, names=name or (), on_event=on_event)
    _run(_up(stack, demo=demo))


@app.command(name="demo")
def demo_command(
    data: Annotated[
        Path | None, typer.Option("--data", help="数据目录，默认用后即删 / kept here; else removed")
    ] = None,
    json_output: Json = False,
) -> None:
    """演示：跑完一天的诉求并汇总 / play a day of requests and sum up."""
    from deploy import demo

    raise typer.Exit(_run(demo.run(json_output=json_output, data=data)))


@app.command()
def token(
    role: Annotated[list[str], typer.Option(help="resident clerk member dispatcher supervisor auditor admin")],
    district: Annotated[str, typer.Option(help="行政区代码，* 为全部 / a district's code, * for all")] = "*",
    sub: Annotated[str, typer.Option(help="持有人代号 / whose it is, a pseudonym such as m-17")] = OPERATOR,
    ttl: Annotated[str, typer.Option(help="有效期：90s 30m 12h 7d / how long it holds")] = "12h",
    data: Data = DEFAULT_DATA,
) -> None:
    """签发访问令牌 / issue a bearer token."""
    from deploy.identities import Identities, issue_token
    from shared.auth import ROLES

    unknown = [name for name in role if name not in ROLES]
    if unknown:
        raise SetupError(
            Said(f"没有角色 {'、'.join(unknown)}", f"there is no role {', '.join(unknown)}"),
            Said(f"可选：{' '.join(ROLES)}", f"choose from {' '.join(ROLES)}"),
        )
    if not (data / "secrets").is_dir():
        raise SetupError(
            Said(f"目录 {data} 中没有密钥", f"there are no keys in {data}"),
            Said("请先运行 paidan up，或用 --data 指定目录", "run `paidan up` first or name its folder with --data"),
        )
    holds = duration(ttl)
    _person(sub, district)
    if (stack := running(data)) and "ledger" in stack.urls:
        stack.acted("token_issued", sub, f"{' '.join(role)} {ttl}", district=district)
    print(issue_token(Identities.open(data / "secrets"), sub, district, role, holds))


@app.command()
def revoke(
    sub: Annotated[str, typer.Argument(help="持有人代号，如 m-17 / whose, a pseudonym such as m-17")],
    district: Annotated[str, typer.Option(help="令牌所属行政区代码，* 为全部区的人员 / as their tokens say; or *")],
    why: Why,
    issuer: Annotated[str | None, typer.Option(help="只限此签发者 / of this issuer only; else of all")] = None,
    data: Data = DEFAULT_DATA,
) -> None:
    """作废某人的全部令牌并断开其连接 / end somebody's tokens and connections."""
    from deploy import admitting
    from deploy.running import Running

    _person(sub, district)
    closed = _run(admitting.revoke(Running.find(data), sub, district, why=why, issuer=issuer))
    print(f"{district} {sub}：断开 {closed} 个总线连接 / {closed} bus connections closed")


@app.command()
def gate() -> None:
    """门房：人员凭令牌接入总线 / lets people in on the bus; the stack runs it by itself."""
    from deploy.gate import main as run_gate

    raise typer.Exit(run_gate())


@bus_app.command(name="apply")
def bus_apply(
    data: Data = DEFAULT_DATA,
    dry_run: DryRun = False,
    json_output: Json = False,
    show: Annotated[
        bool, typer.Option("--print", help="只输出自有 nats-server 所需配置 / print what a server of your own needs")
    ] = False,
    accounts: Annotated[
        Path, typer.Option(help="配合 --print：其存放账户的目录 / with --print: where that server keeps accounts")
    ] = Path("accounts"),
) -> None:
    """使总线的流与账户一如声明与台账 / bring streams and accounts to what they should be."""
    if show:
        from datetime import UTC, datetime

        from deploy.identities import Identities, bus_config

        print(bus_config(Identities.open(data / "secrets"), accounts_dir=accounts, now=datetime.now(UTC)), end="")
        return
    changes = _run(_bus_apply(data, dry_run=dry_run))
    if json_output:
        print_json({"changes": changes, "dry_run": dry_run})
    else:
        print("\n".join(changes) if changes else "无变化 / nothing to change")
    # Afterwards: what it mends may be what the ledger needs to record it.
    if changes and not dry_run and (stack := running(data)):
        stack.acted("bus_applied", "bus", f"{len(changes)} changes")


@bus_app.command(name="restore")
def bus_restore(
    source: Annotated[
        int | None,
        typer.Option(help="恢复到哪个来源为止 / restore up to this source of the ledger; else the last", min=0),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="丢弃流中账本没有的事实 / lose what the stream holds beside the ledger")
    ] = False,
    data: Data = DEFAULT_DATA,
    dry_run: DryRun = False,
    json_output: Json = False,
) -> None:
    """
    由账本恢复丢失的总线，可续作 / fill a lost bus from the ledger; resumable.

    先停止各服务（paidan up）。EVENTS 按原序号逐条恢复；SEALED、KEYS、CONTACTS 不在账本中，须由备份恢复。
    Stop the services first. EVENTS comes back number for number; SEALED, KEYS and CONTACTS are not in the ledger: they need a backup.
    """

    def progress(done: int, of: int, what: str = "恢复 / restoring") -> None:
        if not json_output and sys.stderr.isatty():
            print(f"\r{what} {done} / {of}  ", end="", file=sys.stderr, flush=True)

    def checking(done: int, of: int) -> None:
        progress(done, of, "核对 / checking")

    answer = _run(_bus_restore(data, source, replace=replace, dry_run=dry_run, progress=progress, checking=checking))
    if json_output:
        print_json({**answer, "dry_run": dry_run})
        return
    for one in answer["sources"]:
        print(f"来源 source {one['epoch']}  {one['created']}  {one['after'] + 1}–{one['until']}")
    if dry_run:
        missing = answer["last"] - answer["held"]
        print(f"将恢复 {missing} 条，已有 {answer['held']} 条 / would restore {missing}, {answer['held']} are there")
    elif answer["restored"]:
        print(
            f"已恢复 {answer['restored']} 条，现在可以启动各服务 / {answer['restored']} restored: the services may start"
        )
    else:
        print("总线完好，无需恢复 / the bus has what the ledger has: nothing to restore")


District = Annotated[str, typer.Argument(help="行政区代码 / the district's code")]


@office_app.command(name="add")
def office_add(
    district: District,
    name: Annotated[str, typer.Option("--app", help="应用名 / which of its programs")] = "app",
    people: Annotated[
        bool | None, typer.Option("--people/--no-people", help="人员可否凭令牌接入 / whether its people may connect")
    ] = None,
    why: Why = "paidan office add",
    data: Data = DEFAULT_DATA,
    dry_run: DryRun = False,
    json_output: Json = False,
) -> None:
    """准许一个区的应用接入，生成其凭据 / let in an office's app, with credentials of its own."""
    from deploy import admitting
    from deploy.running import Running

    stack = Running.find(data)
    admitted = _run(admitting.add(stack, district, name, people=people, why=why, dry_run=dry_run))
    _print_admitted(admitted, dry_run=dry_run, json_output=json_output)


@office_app.command(name="rotate")
def office_rotate(
    district: District,
    name: Annotated[str, typer.Option("--app", help="应用名 / which of its programs")] = "app",
    why: Why = "paidan office rotate",
    data: Data = DEFAULT_DATA,
    dry_run: DryRun = False,
    json_output: Json = False,
) -> None:
    """更换凭据，旧凭据立即失效 / new credentials; whoever uses the old ones is out at once."""
    from deploy import admitting
    from deploy.running import Running

    admitted = _run(admitting.rotate(Running.find(data), district, name, why=why, dry_run=dry_run))
    _print_admitted(admitted, dry_run=dry_run, json_output=json_output)


@office_app.command(name="remove")
def office_remove(
    district: District,
    name: Annotated[
        str | None, typer.Option("--app", help="只去掉这个应用 / this program only; else all, and people")
    ] = None,
    why: Why = "paidan office remove",
    data: Data = DEFAULT_DATA,
    dry_run: DryRun = False,
    json_output: Json = False,
) -> None:
    """取消接入，立即断开 / let in no more; who is connected is out at once."""
    from deploy import admitting
    from deploy.running import Running

    admitted = _run(admitting.remove(Running.find(data), district, name, why=why, dry_run=dry_run))
    _print_admitted(admitted, dry_run=dry_run, json_output=json_output)


@office_app.command(name="list")
def office_list(data: Data = DEFAULT_DATA, json_output: Json = False) -> None:
    """谁可接入，能看到什么 / who is let in, and what each sees."""
    from deploy import admitting
    from deploy.running import Running

    offices = _run(admitting.listed(Running.find(data)))
    if json_output:
        print_json({"offices": offices})
        return
    for office in offices:
        people = "人员可接入 / people may connect" if office["people"] else "人员不可接入 / no people"
        print(f"{office['district']}  {' '.join(app['app'] for app in office['apps']) or '–'}  {people}")
        print("\n".join(f"    {subject}" for subject in office["sees"]))
    if not offices:
        print("没有 / none")


@members_app.command(name="import")
def members_import(
    file: Annotated[Path, typer.Argument(help="CSV 或 JSON / a CSV or JSON file", exists=True, dir_okay=False)],
    district: Annotated[str, typer.Option(help="行政区代码 / the district's code")],
    data: Data = DEFAULT_DATA,
    dry_run: DryRun = False,
    json_output: Json = False,
) -> None:
    """批量登记，逐行报告，有错则退出码 1 / enrol in bulk; exit code 1 if a row is wrong."""
    from deploy.running import Running

    if file.suffix.lower() not in (".csv", ".json"):
        raise SetupError(
            Said(f"不支持 {file.suffix or file.name}", f"{file.suffix or file.name} is not supported"),
            Said("请使用 .csv 或 .json 文件", "use a .csv or .json file"),
        )
    media_type = "text/csv" if file.suffix.lower() == ".csv" else "application/json"
    answer = Running.find(data).post(
        "dispatch",
        "/v1/members/import",
        file.read_bytes(),
        roles=["admin"],
        params={"district": district, **dry(dry_run)},
        media_type=media_type,
        key=None if dry_run else _new_key(),
    )
    rows = [row for row in answer.get("rows", []) if isinstance(row, dict)]
    wrong = [row for row in rows if row.get("result") == "error"]
    if json_output:
        print_json(answer)
    else:
        for row in rows:
            print("  ".join(f"{key}={value}" for key, value in row.items() if value not in (None, "", [])))
        print(_counts(answer))
    raise typer.Exit(1 if wrong else 0)


@contact_app.command(name="set")
def contact_set(
    id: Annotated[str, typer.Argument(help="收件人代号，如 m-supervisor-420106 / whose, a pseudonym")],
    district: Annotated[str, typer.Option(help="行政区代码 / the district's code")],
    channels: Annotated[str | None, typer.Option(help='渠道，依次尝试，如 "wecom mail" / tried in this order')] = None,
    language: Annotated[str | None, typer.Option(help="zh-CN en")] = None,
    quiet: Annotated[str | None, typer.Option(help="免打扰，如 22:00-07:00 / quiet hours; else the policy's")] = None,
    name: Annotated[
        str | None, typer.Option(help="姓名，- 为询问；不入账本 / a name, - asks; never in the ledger")
    ] = None,
    phone: Annotated[
        str | None, typer.Option(help="电话，- 为询问；不入账本 / a number, - asks; never in the ledger")
    ] = None,
    from_file: Annotated[
        str | None, typer.Option(help="含以上各项的 JSON，- 为标准输入 / JSON with these, - for standard input")
    ] = None,
    why: Why = "",
    data: Data = DEFAULT_DATA,
    json_output: Json = False,
) -> None:
    """
    设置收件人的联系方式，替换原有 / how somebody is reached, in place of before.

    命令行参数在进程列表与 shell 历史中可见：姓名与电话请用 - 或 --from-file；终端中未给出的会询问。
    Everybody's `ps` and the shell's history show arguments: for name and phone use - or --from-file; what is left out is asked for.
    """
    from deploy import contacts
    from deploy.running import Running

    stack = Running.find(data)
    said = {"channels": channels, "language": language, "quiet": quiet, "name": name, "phone": phone}
    kept = contacts.given(id, district, said, from_file)
    stack.acted("contact_set", kept.id, why, district=kept.district)
    sequence = _run(contacts.put(stack, kept))
    if json_output:
        print_json({"id": kept.id, "district": kept.district, "channels": kept.channels, "sequence": sequence})
    else:
        print(f"{kept.id}：{' → '.join(kept.channels)}")


@person_app.command(name="find")
def person_find(
    request: OfRequest = None,
    contact: OfContact = None,
    district: OneDistrict = None,
    data: Data = DEFAULT_DATA,
    json_output: Json = False,
) -> None:
    """查找一个人的诉求，不显示内容 / somebody's requests, without what is in them."""
    from deploy import people
    from deploy.running import Running

    found = people.find(Running.find(data), people.sought(request, contact), district)
    if json_output:
        print_json({"people": found})
    else:
        print("\n".join(_of_people(found)) or "没有找到 / nothing is stored")


@person_app.command(name="disclose")
def person_disclose(
    request: Annotated[str, typer.Argument(help="诉求编号 / the request's id")],
    why: Annotated[str, typer.Option(help="contact visit understand verify call_back review appeal")],
    district: Annotated[str, typer.Option(help="负责的行政区代码 / the responsible district's code")],
    parts: Annotated[str, typer.Option(help="内容 / which")] = "contact text address",
    data: Data = DEFAULT_DATA,
    json_output: Json = False,
) -> None:
    """查看个人信息，先记入账本 / read what is personal; on record first."""
    from deploy import people
    from deploy.running import Running

    answer = people.disclose(Running.find(data), request, district, why, parts.split())
    if json_output:
        print_json(answer)
    else:
        for part, value in answer["parts"].items():
            print(f"{part}：{json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value}")


@person_app.command(name="erase")
def person_erase(
    request: OfRequest = None,
    contact: OfContact = None,
    member: Annotated[str | None, typer.Option(help="人员代号 / a member, m-…; needs --district")] = None,
    district: OneDistrict = None,
    yes: Annotated[bool, typer.Option("--yes", help="确认，不可恢复 / yes: it cannot be undone")] = False,
    data: Data = DEFAULT_DATA,
    dry_run: DryRun = False,
    json_output: Json = False,
) -> None:
    """删除一个人的个人信息，不可恢复 / forget somebody, for good."""
    from deploy import people
    from deploy.running import Running

    if not (yes or dry_run):
        raise SetupError(
            Said("删除不可恢复", "what is erased cannot be brought back"),
            Said("请先用 --dry-run 查看，再加 --yes", "look with --dry-run first, then say --yes"),
        )
    stack = Running.find(data)
    if member is not None:
        if district is None or request or contact:
            raise SetupError(
                Said("--member 须与 --district 同用", "--member goes with --district and nothing else"),
                Said("例如 --member m-wc03 --district 420106", "as in --member m-wc03 --district 420106"),
            )
        answer: dict[str, Any] = {"member": member} if dry_run else people.erase_member(stack, member, district)
        said = f"{member}：{'将删除联系方式 / would be forgotten' if dry_run else '已删除 / forgotten'}"
    else:
        answer = people.erase(stack, people.sought(request, contact), district, dry_run=dry_run)
        done = "将删除 / would be erased" if dry_run else "已删除 / erased"
        said = "\n".join(
            [*_of_people(answer["people"]), done] if answer["people"] else ["没有找到 / nothing is stored"]
        )
    if json_output:
        print_json({**answer, "dry_run": dry_run})
    else:
        print(said)


def _of_people(found: list[dict[str, Any]]) -> list[str]:
    return [
        f"{one['district']}  {one['kid']}  {asked['id']}  {asked['state'] or '—'}"
        for one in found
        for asked in one["requests"]
    ]


@keys_app.command(name="rotate")
def keys_rotate(
    district: OneDistrict = None,
    why: Why = "",
    data: Data = DEFAULT_DATA,
    dry_run: DryRun = False,
    json_output: Json = False,
) -> None:
    """更换主密钥并重新包裹，可中断后再来 / new secret, keys wrapped anew; may be broken off."""
    from deploy import people
    from deploy.running import Running

    def say(line: str) -> None:
        if not json_output:
            print(line, flush=True)

    answer = people.rotate(Running.find(data), district, why, dry_run=dry_run, say=say)
    if json_output:
        print_json(answer)
    else:
        print(_counts(answer))


@ledger_app.command(name="enclave")
def ledger_enclave(
    area: Annotated[str, typer.Argument(help="插花地代码 / the enclave's area")],
    month: Annotated[str | None, typer.Option(help="联席会月报，如 2026-11 / its sheet of a month")] = None,
    agreement: Annotated[str | None, typer.Option(help="协议代码 / which agreement; else the one in force")] = None,
    as_of: Annotated[
        str | None, typer.Option(help="账本大小或时间 / a size of the ledger, or a time; else now")
    ] = None,
    district: Annotated[str, typer.Option(help="以哪个区的名义 / as which office")] = "*",
    from_replay: Annotated[
        Path | None, typer.Option(help="由自己的重放复算 / make it again from this replay", exists=True, dir_okay=False)
    ] = None,
    at: Annotated[str | None, typer.Option(help="复算所截至的时刻，见档案 at / as of when, the file's `at`")] = None,
    check: Annotated[
        Path | None,
        typer.Option(help="与此档案比较，不同则退出码 1 / compare with it; exit code 1", exists=True, dir_okay=False),
    ] = None,
    prove: Annotated[
        bool, typer.Option("--prove", help="逐叶核对其在账本中的证明 / check the proof of every leaf it rests on")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="写入文件；.md 为可打印月报 / to a file; .md: the sheet for paper")
    ] = None,
    data: Data = DEFAULT_DATA,
    json_output: Json = False,
) -> None:
    """插花地一档归索、联席会月报 / an enclave's shared file, or its monthly sheet."""
    from deploy import enclaves

    def progress(done: int, of: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done} / {of} 叶 leaves", end="\n" if done == of else "", file=sys.stderr, flush=True)

    if prove and month:
        raise SetupError(
            Said("月报不载叶子，无从核对证明", "a monthly sheet names no leaves to prove"),
            Said("请对档案用 --prove，不加 --month", "prove the file: leave --month out"),
        )
    theirs = enclaves.read(check) if check else None
    how: dict[str, Any] = {"month": month, "agreement": agreement, "as_of": as_of, "district": district}
    made = enclaves.made(area, data=data, replay=from_replay, at=at, theirs=theirs, **how)
    document = json.loads(made)
    if out:
        out.write_bytes(enclaves.paper(document).encode() if out.suffix == ".md" else made)
        print(f"{out}：摘要 / digest {document['digest']}", file=sys.stderr)
    if theirs is not None:
        differs = enclaves.compared(theirs, document)
        print("\n".join(differs) or f"逐字节相同 / the same bytes：{document['digest']}")
        raise typer.Exit(1 if differs else 0)
    proved = enclaves.prove(document, data, progress) if prove and not month else 0
    if json_output:
        sys.stdout.buffer.write(made)
    elif not out:
        print(enclaves.paper(document), end="")
        if proved:
            print(f"{proved} 片叶子均在检查点之下 / leaves proved under the checkpoint")


class Part(StrEnum):
    """What can be made again from the leaves."""

    PROJECTIONS = "projections"
    TILES = "tiles"
    INDEXES = "indexes"


@ledger_app.command(name="rebuild")
def ledger_rebuild(
    only: Annotated[Part | None, typer.Option(help="只重建其一 / one of them only")] = None,
    why: Why = "",
    data: Data = DEFAULT_DATA,
    json_output: Json = False,
) -> None:
    """从叶子重建投影、瓦片与索引 / projections, tiles and indexes, from the leaves."""
    from deploy.running import Running

    stack = Running.find(data)
    said: dict[str, Any] = {}
    for part in [only] if only else Part:
        stack.acted("ledger_rebuilt", "proj_cases" if part is Part.PROJECTIONS else part.value, why)
        uri = stack.mongodb_uri if part is Part.PROJECTIONS else stack.repair_uri
        done = subprocess.run(
            [sys.executable, "-m", "services.ledger", "rebuild", "--only", part.value, *(["--json"] * json_output)],
            env={**os.environ, "MONGODB_URI": uri},
            stdout=subprocess.PIPE if json_output else None,
            check=False,
        )
        if done.returncode:
            raise typer.Exit(done.returncode)
        if json_output:
            said |= json.loads(done.stdout)
    if json_output:
        print_json(said)


@ledger_app.command(name="redecide")
def ledger_redecide(
    since: Annotated[
        str | None, typer.Option("--from", help="叶序号或时间（含） / a leaf's index or a time, inclusive")
    ] = None,
    to: Annotated[str | None, typer.Option("--to", help="叶序号或时间（不含） / likewise, exclusive")] = None,
    district: OneDistrict = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help="重放的 NDJSON，- 为标准输入 / a replay as NDJSON instead of the running ledger's; - reads stdin"
        ),
    ] = None,
    data: Data = DEFAULT_DATA,
    json_output: Json = False,
) -> None:
    """
    逐轮复核每个决定，并列不同之处 / take every decision again; show what differs.

    退出码：0 全部相同，1 有不同，3 有未能复核的 / exit code: 0 all the same, 1 some differ, 3 some could not be taken again.
    """
    from deploy import redeciding
    from deploy.running import Running

    again = redeciding.Redeciding(district, _moment(since), _moment(to))

    def progress(done: int, of: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done} / {of} 叶 leaves", end="", file=sys.stderr, flush=True)

    try:
        if file is None:
            stack = Running.find(data)
            report = redeciding.redecide(
                stack.lines("ledger", "/v1/events", roles=["auditor"], params={"kinds": "all"}), again, progress
            )
        elif str(file) == "-":
            report = redeciding.redecide(sys.stdin.buffer, again, progress)
        else:
            with file.open("rb") as lines:
                report = redeciding.redecide(lines, again, progress)
    except redeciding.UnreadableError as why:
        whole = "GET /v1/events?kinds=all"
        raise SetupError(
            Said(why.zh, str(why)), Said(f"请重新取一份完整的重放：{whole}", f"take a whole replay: {whole}")
        ) from None
    except OSError as why:
        raise SetupError(
            Said(f"无法读取 {file}", f"{file} cannot be read ({why.strerror})"), Said("请检查路径", "check the path")
        ) from None
    if sys.stderr.isatty():
        print(file=sys.stderr)
    if json_output:
        print_json(report.document())
    else:
        print("\n".join(redeciding.told(report)))
    raise typer.Exit(1 if report.differ else 3 if report.not_run else 0)


ledger_app.command(name="checkpoint")(signing.checkpoint)
ledger_app.command(name="key")(signing.key)
ledger_app.command(name="rotate-key")(signing.rotate_key)
ledger_app.command(name="rejects")(signing.rejects)

app.command(name="figures")(figures.figures)


@app.command()
def schema(
    check: Annotated[bool, typer.Option("--check", help="只比较；不同则退出码 1 / compare; exit code 1")] = False,
    folder: Annotated[Path, typer.Option(help="写入的目录 / where to")] = Path("docs"),
) -> None:
    """由事实目录与路由生成接口描述 / write the schemas and who may call what."""
    from deploy import access
    from shared import schema as schemas

    changes = schemas.write(folder, check, {"access.md": access.page()})
    if changes:
        print("\n".join(str(change) for change in changes))
    raise typer.Exit(1 if check and changes else 0)


@app.command()
def version() -> None:
    """版本 / the version."""
    print(installed_version("paidan"))


def running(data: Path) -> "Running | None":
    """The stack that runs in this folder, or None: what is done without one nobody can record."""
    from deploy.running import Running

    try:
        return Running.find(data)
    except SetupError:
        return None


def _person(sub: str, district: str) -> None:
    """Raises SetupError where somebody is named by more than a pseudonym: the ledger would keep it for ever."""
    from shared.auth import DISTRICTS, PSEUDONYM

    if not PSEUDONYM.fullmatch(sub):
        raise SetupError(
            Said(f"{sub} 不是代号", f"{sub} is no pseudonym"),
            Said("用小写字母、数字和 -，如 m-17", "use lower-case letters, digits and -, as in m-17"),
        )
    if not DISTRICTS.fullmatch(district):
        raise SetupError(
            Said(f"{district} 不是行政区代码", f"{district} is no district's code"),
            Said("六位数字，或 *", "six digits, or *"),
        )


def duration(text: str) -> timedelta:
    """`90s`, `30m`, `12h`, `7d`. Raises SetupError for anything else."""
    units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
    number, unit = text[:-1], text[-1:]
    if not number.isdecimal() or unit not in units:
        raise SetupError(
            Said(f"看不懂时长 {text}", f"{text} is no duration"),
            Said("例如 90s 30m 12h 7d", "write 90s, 30m, 12h or 7d"),
        )
    return timedelta(**{units[unit]: int(number)})


def _moment(text: str | None) -> int | datetime | None:
    """A leaf's index, or an ISO 8601 time (UTC where it names no zone). Raises SetupError for anything else."""
    from datetime import UTC

    if text is None:
        return None
    if text.isdecimal():
        return int(text)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise SetupError(
            Said(f"看不懂 {text}", f"{text} is neither a leaf's index nor a time"),
            Said("例如 12000 或 2026-11-22T08:00+08:00", "write 12000 or 2026-11-22T08:00+08:00"),
        ) from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


async def _up(stack: "Stack", *, demo: bool) -> None:
    say = stack.on_event
    for given, name in ((stack.nats_url, "NATS_URL"), (stack.mongodb_uri, "MONGODB_URI")):
        if given:
            say(f"使用 {name} 指定的服务器 / using the server of {name}")
    stopped = _stop_on_signals()
    say("正在启动 / starting …")
    starting = asyncio.create_task(_start(stack, demo=demo))
    either: list[asyncio.Future[Any]] = [starting, stopped]
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    try:
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return
        for line in _welcome(stack, starting.result()):
            say(line)
        await stopped
    finally:
        say("正在停止 / stopping …")
        await stack.stop()
        say("已停止 / stopped")


async def _start(stack: "Stack", *, demo: bool) -> list[str]:
    """Start it all; the districts that the register names."""
    await stack.start()
    if not demo:
        return []
    document = read_json(DEMO_REGISTER)
    for policy in document.get("policies", []):
        policy |= PEOPLES_PACE
    await stack.apply_register(document, why="演示社区 / the demo's place")
    districts = [str(entry["district"]) for entry in document.get("districts", [])]
    for district in districts:
        await stack.enrol(DEMO_MEMBERS.read_bytes(), district)
    return districts


def _stop_on_signals() -> "asyncio.Future[None]":
    """Done at the first SIGINT or SIGTERM; a second one ends the process at once, and the leash ends the rest."""
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[None] = loop.create_future()

    def on_signal() -> None:
        if stopped.done():
            os._exit(130)
        stopped.set_result(None)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    return stopped


def _welcome(stack: "Stack", districts: list[str]) -> list[str]:
    """Addresses, logins, and commands that work as they stand in another terminal of the same folder."""
    district = next(iter(districts), "*")
    of_member = ["token", "--role", "member", "--district", "420106", "--sub", "m-wc03", "--data", str(stack.data)]
    urls = stack.urls
    buses = {"NATS_URL": stack.bus_url, "NATS_WS_URL": stack.websocket_url}
    logins = {
        "DISPATCHER": stack.token("dispatcher", district=district),
        "AUDITOR": stack.token("auditor"),
        "ADMIN": stack.token("admin"),
    }
    return [
        "",
        "派单已就绪 / Paidan is ready",
        *(f"  {service:<9}{url}    {url}/docs" for service, url in urls.items()),
        f"  {'nats':<9}{stack.bus_url}" + (f"    {stack.websocket_url}" if stack.websocket_url else ""),
        f"  日志 / logs  {stack.data / 'logs'}",
        "",
        "地址与登录令牌（12 小时有效）：复制到另一个终端 / addresses and logins for 12 hours: paste into another terminal",
        *(f"  export {service.upper()}={url}" for service, url in urls.items()),
        *(f"  export {name}={url}" for name, url in buses.items() if url),
        *(f"  export {name}={token}" for name, token in logins.items()),
        *([f"  export CURL_CA_BUNDLE={shlex.quote(str(stack.ca_file))}"] if stack.ca_file else []),
        f"  export MEMBER=$({shlex.join([_as_started(sys.argv[0]), *of_member])})",
        "",
        "试一试 / try" + ("（派单等候 15 分钟答复 / offers wait 15 minutes here）" if districts else ""),
        "  curl -sS $INTAKE/v1/requests -H 'Idempotency-Key: try-1' -H 'Content-Type: application/json' \\",
        """    -d '{"text": "楼道路灯不亮了，老人晚上看不清台阶", "location": {"address": "欧景苑 3 栋"}}'""",
        """  curl -sSN "$DISPATCH/v1/stream?types=task." -H "Authorization: Bearer $DISPATCHER" """.rstrip(),
        """  curl -sS $DISPATCH/v1/tasks -H "Authorization: Bearer $DISPATCHER" """.rstrip(),
        """  curl -sS $LEDGER/v1/cases -H "Authorization: Bearer $AUDITOR" """.rstrip(),
        "",
        "Ctrl-C 平稳停止 / Ctrl-C drains and stops",
    ]


def _as_started(program: str) -> str:
    """What to type for this command, as it was typed: `.venv/bin/paidan` for those who came by `make up`."""
    return program if Path(program).name == "paidan" else "paidan"


async def _bus_apply(data: Path, *, dry_run: bool) -> list[str]:
    from datetime import UTC, datetime

    from deploy import keeping
    from deploy.identities import Identities
    from deploy.running import Running, given_ca_file, given_seed
    from shared import streams
    from shared.bus import Bus

    url, sys = os.environ.get("NATS_URL"), None
    if url:
        bus = await Bus.connect(url, name="admin", seed=given_seed("admin"), ca_file=given_ca_file())
        if seed := given_seed("sys"):  # else its accounts are somebody else's business
            sys = await Bus.connect(url, name="sys", seed=seed, ca_file=given_ca_file())
    else:
        stack = Running.find(data)
        bus = await stack.connect()
        sys = await stack.connect("sys") if stack.seed("sys") else None
    try:
        changes = await streams.apply(bus, dry_run=dry_run)
        if sys:
            identities = Identities.open(data / "secrets")
            kept = await keeping.current(bus)
            changes += await keeping.bring(sys, identities, kept, datetime.now(UTC), dry_run=dry_run)
        return changes
    finally:
        await bus.drain()
        if sys:
            await sys.drain()


async def _bus_restore(
    data: Path,
    source: int | None,
    *,
    replace: bool,
    dry_run: bool,
    progress: Callable[[int, int], None],
    checking: Callable[[int, int], None],
) -> dict[str, Any]:
    from deploy import restoring
    from deploy.stack import Stack
    from shared.errors import BusError

    if not (data / "secrets").is_dir():
        raise SetupError(
            Said(f"目录 {data} 中没有派单", f"there is no stack in {data}"),
            Said("请用 --data 指定其目录", "name its folder with --data"),
        )
    async with Stack(data, services=("ledger",)).servers_alone() as stack:
        bus, store = await stack.connect("admin"), stack.connect_store()
        try:
            return await restoring.restore(
                *(bus, store, source),
                replace=replace,
                dry_run=dry_run,
                progress=progress,
                checking=checking,
                key_file=data / "secrets" / "ledger" / "ledger_signing_key",
            )
        except BusError as why:
            raise SetupError(
                Said(f"恢复中断：{why}", f"it was broken off ({why})"),
                Said("再运行一次即从断点继续", "run it again: it goes on"),
            ) from why
        finally:
            store.close()
            await bus.drain()


def _run(work: Coroutine[Any, Any, T]) -> T:
    from shared.errors import UnavailableError

    try:
        return asyncio.run(work)
    except UnavailableError as error:
        raise SetupError(
            Said(f"无法连接总线：{error}", f"the bus cannot be reached ({error})"),
            Said("请检查 NATS_URL 与密钥，或先运行 paidan up", "check NATS_URL and its seed or run `paidan up` first"),
        ) from error


def _new_key() -> str:
    """Every import is a new one: the same file may be imported again after somebody left."""
    from uuid import uuid4

    return uuid4().hex


def _counts(answer: dict[str, Any]) -> str:
    """The plain values of an answer, for people."""
    plain = {key: value for key, value in answer.items() if isinstance(value, (str, int, float, bool))}
    lists = {key: len(value) for key, value in answer.items() if isinstance(value, list) and key != "rows"}
    return "，".join(f"{key} {value}" for key, value in {**plain, **lists}.items()) or "完成 / done"


def _print_admitted(admitted: "Admitted", *, dry_run: bool, json_output: bool) -> None:
    file = str(admitted.file) if admitted.file else None
    if json_output:
        print_json({"changes": admitted.changes, "credentials": file, "dry_run": dry_run, "late": admitted.late})
        return
    print("\n".join(admitted.changes) if admitted.changes else "无变化 / nothing to change")
    if file:
        print(f"凭据（只给该应用）/ its credentials, for it alone: {file}")
    if admitted.late:
        print(
            f"已登记；总线将由运行中的系统在一分钟内跟上（{admitted.late}） / "
            f"on record; the bus will be brought to it within a minute by the running stack ({admitted.late})"
        )


if __name__ == "__main__":
    main()
