"""`paidan ledger checkpoint`, `key`, `rotate-key` and `rejects`: what the log signs, with what, and what it did not accept."""

import json
import secrets
from base64 import b64encode
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from deploy.errors import Said, SetupError
from deploy.identities import write_secret
from deploy.options import DEFAULT_DATA, Data, DryRun, Json, print_json
from deploy.running import Running

Why = Annotated[str, typer.Option(help="缘由，永久记入账本，勿写个人信息 / why, kept for ever; nothing personal")]
REFUSED = {
    "truncated": "账本比已签署的短：正在重新导入，或被删减 / shorter than was signed: being read again, or cut",
    "diverged": "账本内容与已签署的不符 / its leaves are not those that were signed",
    "tile": "散列与已签署的不符，正由条目重新计算 / its hashes are not what was signed; they are being made again from the leaves",
    "hole": "账本中间缺少条目 / leaves are missing before its end",
    "foreign": "总线上保存的检查点不属于本账本 / the checkpoint held on the bus is none of this log's",
    "key": "签名密钥无法读取 / the signing key cannot be read",
}


def checkpoint(data: Data = DEFAULT_DATA, json_output: Json = False) -> None:
    """最新检查点 / the newest checkpoint: how long the log is, who signed."""
    from services.ledger.log.notes import Checkpoint, Note

    stack = Running.find(data)
    log = stack.get("ledger", "/v1/log", {}, roles=["auditor"])
    if log["checkpoint"] is None:
        said = _kept_from(log)
        if json_output:
            print_json({"checkpoint": None, "refused": log["refused"]})
        else:
            typer.echo(f"还没有检查点 / no checkpoint yet{said}")
        raise typer.Exit(1)
    text = stack.content("ledger", "/checkpoint", {}, roles=["auditor"], district="*").decode()
    note = Note.parse(text)
    signed = Checkpoint.parse(note.body)
    verified = _verified(note, log["vkeys"])
    if json_output:
        print_json(
            {
                "origin": signed.origin,
                "size": signed.size,
                "root": b64encode(signed.root).decode(),
                "at": log["checkpoint"]["at"],
                "signed_by": [{"name": name, "time": time} for name, time in verified],
                "refused": log["refused"],
                "note": text,
            }
        )
        return
    typer.echo(text)
    typer.echo(f"账本 / log        {signed.origin}")
    typer.echo(f"条数 / leaves     {signed.size}")
    typer.echo(f"签于 / signed     {log['checkpoint']['at']}")
    for name, time in verified:
        typer.echo(f"签署 / by         {name}{f'  {time}' if time else ''}")
    typer.echo(
        f"  {len(note.signatures)} 个签名，{len(verified)} 个已核对 / signatures, {len(verified)} checked by the log's keys"
    )
    if said := _kept_from(log):
        typer.echo(said.strip())


def key(data: Data = DEFAULT_DATA, json_output: Json = False) -> None:
    """账本的公钥，供核验者留存 / the log's public keys, for whoever verifies."""
    log = Running.find(data).get("ledger", "/v1/log", {}, roles=["auditor"])
    if json_output:
        print_json({"origin": log["origin"], "vkeys": log["vkeys"]})
    else:
        typer.echo("\n".join(log["vkeys"]) or "没有签名密钥，不签检查点 / no key: nothing is signed")


def rotate_key(
    overlap_days: Annotated[
        int,
        typer.Option(
            "--overlap-days", help="新旧同签的天数，旧密钥失窃时用 0 / both sign so long; 0: stolen", min=0, max=366
        ),
    ] = 30,
    why: Why = "",
    data: Data = DEFAULT_DATA,
    dry_run: DryRun = False,
    json_output: Json = False,
) -> None:
    """更换签名密钥，可中断后再来 / a new signing key; may be broken off."""
    stack = Running.find(data)
    answer = rotate(stack, why, timedelta(days=overlap_days), dry_run=dry_run)
    if json_output:
        print_json(answer)
        return
    for name, zh in (("old", "旧钥"), ("new", "新钥"), ("until", "同签至")):
        typer.echo(f"{zh} / {name}  {answer[name]}")
    if dry_run:
        typer.echo("未改动 / nothing was changed")
    else:
        typer.echo("请把新公钥发给每个核验者与见证方 / give the new key to everybody who verifies or witnesses")


def rejects(
    limit: Annotated[int, typer.Option(help="最多几条 / how many at most", min=1, max=500)] = 100,
    raw: Annotated[
        str | None, typer.Option(help="写出此摘要的原文 / the bytes with this digest, to standard output")
    ] = None,
    data: Data = DEFAULT_DATA,
    json_output: Json = False,
) -> None:
    """未被接受的消息 / messages that are no facts, kept aside."""
    stack = Running.find(data)
    if raw is not None:
        typer.get_binary_stream("stdout").write(
            stack.content("ledger", f"/v1/rejects/{raw}", {}, roles=["auditor"], district="*")
        )
        return
    answer = stack.get("ledger", "/v1/rejects", {"limit": str(limit)}, roles=["auditor"])
    if json_output:
        print_json(answer)
        return
    for row in answer["rejects"]:
        typer.echo(
            f"{row['index']:>9}  {row['sequence']:>9}  {row['reason']:<10}{row['size'] or 0:>8}  "
            f"{row['digest'][:16]}  {row['subject'][:80]}"
        )
    if not answer["rejects"]:
        typer.echo("没有 / none")
    elif answer["next"]:
        typer.echo(f"仅前 {limit} 条 / the first {limit} only")


# --- changing the key -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Next:
    """A key that is made and not yet in place, with what is said of it: a repeat says the same."""

    seed: str
    until: str
    from_size: int
    why: str

    @classmethod
    def of(cls, file: Path) -> "Next | None":
        """What was begun, if anything was."""
        return cls(**json.loads(file.read_text())) if file.exists() else None


def rotate(stack: Running, why: str, overlap: timedelta, *, dry_run: bool) -> dict[str, Any]:
    """
    Make a new key, record it in the ledger, then put it in place; the old one stays beside it and signs too for a while.

    Beginning again goes on where it was. The running ledger reads its keys anew for each checkpoint.

    Returns: `old`, `new` (vkeys; of a dry run none), `from_size`, `until`.
    Raises:
        SetupError: the ledger refused, uses another key than the one in this folder, or two keys sign already.
    """
    from services.ledger.log.notes import LOG, Key

    folder = stack.data / "secrets" / "ledger"
    current, old, following = (folder / f"ledger_signing_key{suffix}" for suffix in ("", "_old", "_next"))
    log = stack.get("ledger", "/v1/log", {}, roles=["auditor"])

    def vkey(seed: str) -> str:
        return Key(log["origin"], LOG, bytes.fromhex(seed)).verifier.text

    before, begun = current.read_text().strip(), Next.of(following)
    if begun is None:
        if vkey(before) not in log["vkeys"]:
            raise SetupError(
                Said("账本使用的不是此目录的密钥", "the ledger uses another key than the one in this folder"),
                Said("请核对 PAIDAN_SECRETS_DIR", "check its PAIDAN_SECRETS_DIR"),
            )
        signs_until = old.read_text().split()[1] if old.exists() else ""
        if overlap and signs_until and datetime.fromisoformat(signs_until) > datetime.now(UTC):
            raise SetupError(  # a third key would end the first one's days before they are over
                Said(
                    f"新旧密钥仍在同签，至 {signs_until}",
                    f"the last key and the one before both sign until {signs_until}",
                ),
                Said("请届时再更换；失窃时用 --overlap-days 0", "rotate then; where one was stolen, --overlap-days 0"),
            )
        size = log["checkpoint"]["size"] if log["checkpoint"] else 0
        until = (datetime.now(UTC) + overlap).isoformat(timespec="seconds")
        begun = Next(secrets.token_hex(32), until, size, why)
        if dry_run:
            return {"dry_run": True, "old": vkey(before), "new": "—", "from_size": size, "until": until}
        write_secret(following, json.dumps(begun.__dict__))
    said = {"new": vkey(begun.seed), "old": vkey(before), "from_size": begun.from_size, "until": begun.until}
    if dry_run:
        return {"dry_run": True, **said}
    if before != begun.seed:
        body = json.dumps({**said, "why": begun.why}).encode()
        stack.post("ledger", "/v1/log/keys", body, roles=["admin"], key=f"rotate {said['new']}"[:200])
        write_secret(old, f"{before} {begun.until}")
        write_secret(current, begun.seed)
    following.unlink()
    return {"dry_run": False, **said}


def _verified(note: Any, vkeys: list[str]) -> list[tuple[str, str | None]]:
    from services.ledger.log.notes import Verifier

    signed = note.verified(map(Verifier.parse, vkeys))
    return [
        (f"{verifier.name}+{verifier.id.hex()}", datetime.fromtimestamp(time, UTC).isoformat() if time else None)
        for verifier, time in signed.items()
    ]


def _kept_from(log: dict[str, Any]) -> str:
    if refused := log["refused"]:
        return f"\n停止签署 / nothing is signed: {REFUSED.get(refused['code'], refused['code'])}"
    return "" if log["vkeys"] else "\n没有签名密钥 / there is no signing key"
