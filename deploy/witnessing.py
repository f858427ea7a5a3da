"""`paidan witness`: an office's own witness of the ledger."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from deploy.errors import Said, SetupError

app = typer.Typer(no_args_is_help=True, help="见证：本单位留存账本的检查点 / an office's own witness of the ledger")

KeyFile = Annotated[Path, typer.Option("--key", help="见证私钥文件 / the witness's private key")]
Memory = Annotated[Path, typer.Option(help="留存目录，勿与他人共用 / what it remembers, on a disk of its own")]


@app.command(name="key")
def make_key(
    name: Annotated[str, typer.Argument(help="见证方名称，如 witness.420107.example / its name in signatures")],
    out: Annotated[Path, typer.Option(help="私钥写入此文件 / where the private key goes")] = Path("witness.key"),
) -> None:
    """生成见证密钥并显示公钥 / make a key; what it prints is public."""
    from services.ledger.log.notes import COSIGNATURE, Key, NoteError

    try:
        key = Key.make(name, COSIGNATURE)
        with os.fdopen(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(key.text + "\n")
    except NoteError as why:
        raise SetupError(Said(f"名称不合规：{name}", str(why)), Said("勿含空格与加号", "no spaces, no plus")) from None
    except FileExistsError:
        raise SetupError(
            Said(f"文件 {out} 已存在", f"{out} is there already"),
            Said("私钥不会被覆盖，请另指定 --out", "a private key is never overwritten: name another with --out"),
        ) from None
    typer.echo(key.verifier.text)


@app.command()
def run(
    key: KeyFile,
    log: Annotated[list[str], typer.Option(help="账本公钥 vkey，可多次 / the log's vkey, repeatable")],
    memory: Memory = Path("witness"),
    host: Annotated[str, typer.Option(help="监听地址 / where to listen")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="端口 / port", min=1, max=65535)] = 8090,
    nats: Annotated[
        str | None, typer.Option(help="总线地址，缺省只用 HTTP / the bus to follow; else HTTP alone")
    ] = None,
    creds: Annotated[Path | None, typer.Option(help="本单位应用的 .creds / of an app of this office")] = None,
    ca: Annotated[Path | None, typer.Option(help="总线证书的 CA / who signed the bus's certificate")] = None,
    district: Annotated[str | None, typer.Option(help="本单位区划代码 / the office's district")] = None,
    office_app: Annotated[str, typer.Option("--app", help="该应用的名称 / that app's name")] = "witness",
) -> None:
    """
    前台运行见证方，Ctrl-C 停止 / witness in the foreground.

    只为延续其留存记录的检查点副署 / cosigns a checkpoint only if it continues the one it holds.
    """
    from services.ledger.log import witness
    from shared import telemetry
    from shared.errors import PaidanError

    if (nats is None) != (district is None):
        raise SetupError(
            Said("--nats 与 --district 须同时给出", "--nats and --district belong together"),
            Said("只用 HTTP 时两者都不写", "leave both out for HTTP alone"),
        )
    settings = witness.WitnessSettings(
        key_file=key,
        logs=tuple(log),
        memory=memory,
        http_host=host,
        http_port=port,
        NATS_URL=nats or "nats://127.0.0.1:4222",
        NATS_CA_FILE=ca,
        nats_seed_file=creds,
        district=district,
        app=office_app,
    )
    telemetry.configure("witness", settings.instance, format=settings.log_format, level=settings.log_level)
    try:
        uvloop.run(witness.run(settings))
    except (PaidanError, OSError) as why:
        raise SetupError(
            Said("见证方无法运行", str(why)), Said("请核对参数与文件", "check options and files")
        ) from None


@app.command()
def show(memory: Memory = Path("witness")) -> None:
    """显示所留存的检查点与分叉证据 / what it holds, and the evidence of forks; works while it runs."""
    notes = sorted(memory.glob("*.note"))
    if not notes:
        typer.echo("尚无留存 / holds nothing yet")
    for file in notes:
        typer.echo(file.read_text())
    evidence = sorted((memory / "evidence").glob("*.txt"))
    for file in evidence:
        typer.echo(f"!! 分叉证据 / evidence of a fork: {file}\n{file.read_text()}")
    if evidence:
        sys.exit(1)
