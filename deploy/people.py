"""People's data from the command line: found, opened and forgotten by intake's own routes; and what wraps the keys, changed."""

import secrets
import sys
import time
from collections.abc import Callable
from getpass import getpass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import orjson

from deploy.errors import Said, SetupError
from deploy.identities import write_secret
from deploy.running import Running
from services.intake.sealing import kek_id

SETTLE_S = 15.0
"""A key that was wrapped just before the secret changed is stored by then, or never: intake tries for 10 s."""


# --- people -----------------------------------------------------------------------------------------------------------


def contact_given(where: str) -> dict[str, str]:
    """
    A phone number or an address, from standard input (`-`, asked for without an echo on a terminal) or a file's first line.

    Raises:
        SetupError: it was written on the command line, where the shell keeps it and everybody's `ps` shows it; or is empty.
    """
    if where == "-":
        line = getpass("手机号或邮箱 / phone or mail: ") if sys.stdin.isatty() else sys.stdin.readline()
    else:
        try:
            line = Path(where).read_text().partition("\n")[0]
        except OSError:
            raise SetupError(
                Said("请勿在命令行写联系方式", "no such file, and a contact is not written on the command line"),
                Said("请用 --contact - 输入，或给出文件", "use --contact - to be asked, or name a file with it"),
            ) from None
    contact = line.strip()
    if not contact:
        raise SetupError(
            Said("联系方式为空", "the contact is empty"), Said("请重新输入", "give a phone number or a mail address")
        )
    return {"email": contact} if "@" in contact else {"phone": contact}


def sought(request: str | None, contact: str | None) -> dict[str, Any]:
    """Whom to look for. Raises SetupError where it is not exactly one of the two."""
    if (request is None) == (contact is None):
        raise SetupError(
            Said("须给出 --request 或 --contact 之一", "name either --request or --contact"),
            Said("联系方式用 --contact -", "for a contact: --contact -"),
        )
    return {"request": request} if request is not None else {"contact": contact_given(str(contact))}


def find(stack: Running, person: dict[str, Any], district: str | None) -> list[dict[str, Any]]:
    """Where something is sealed for somebody. Raises SetupError."""
    found: list[dict[str, Any]] = _people(stack, "find", person, district)["people"]
    return found


def erase(stack: Running, person: dict[str, Any], district: str | None, *, dry_run: bool) -> dict[str, Any]:
    """Erase it, or say what would be. Raises SetupError; what was begun is gone on with by asking again."""
    return _people(stack, "erase", person, district, **({"dry_run": "true"} if dry_run else {}))


def disclose(stack: Running, request: str, district: str, why: str, parts: list[str]) -> dict[str, Any]:
    """What is personal in a request, as a supervisor of this district, on record. Raises SetupError."""
    body = orjson.dumps({"why": why, "parts": parts})
    path = f"/v1/requests/{quote(request, safe='')}/disclosures"
    return stack.post("intake", path, body, roles=["supervisor"], district=district, key=uuid4().hex)


def erase_member(stack: Running, member: str, district: str) -> dict[str, Any]:
    """Forget how a member is reached. Raises SetupError."""
    path = f"/v1/members/{quote(member, safe='')}/erase"
    return stack.post("dispatch", path, b"{}", roles=["admin"], params={"district": district}, key=uuid4().hex)


def _people(stack: Running, what: str, person: dict[str, Any], district: str | None, **params: str) -> dict[str, Any]:
    return stack.post(
        "intake",
        f"/v1/people/{what}",
        orjson.dumps(person),
        roles=["admin"],
        params=params | ({"district": district} if district else {}),
        key=uuid4().hex,
    )


# --- keys -------------------------------------------------------------------------------------------------------------


def rotate(
    stack: Running,
    district: str | None,
    why: str,
    *,
    dry_run: bool,
    say: Callable[[str], None],
    settle_s: float = SETTLE_S,
) -> dict[str, Any]:
    """
    Put a new secret in the place of the one that wraps the keys, wrap them all anew, and drop the old one.

    Beginning again goes on where it was: while the old secret is there, no new one is made. With a district only its keys are
    wrapped anew, and the old secret stays for the others.

    Returns: keys seen and rewrapped, and whether the old secret is gone.
    Raises:
        SetupError: intake refused or uses other secrets, or a key cannot be read: then the old secret stays.
    """
    folder = stack.data / "secrets" / "intake"
    current, old = folder / "district_kek", folder / "district_kek_old"
    if dry_run:
        seen, rewrapped = _pass(stack, district, dry_run=True, say=say, kek=current.read_text().strip())
        would = rewrapped if old.exists() else seen
        return {"dry_run": True, "seen": seen, "rewrapped": would, "dropped": False}
    stack.acted("keys_rotated", "district_kek", why, **({"district": district} if district else {}))
    if not old.exists():
        write_secret(old, current.read_text())
    if current.read_text() == old.read_text():
        write_secret(current, secrets.token_hex(32))
    kek = current.read_text().strip()
    seen, rewrapped = _pass(stack, district, dry_run=False, say=say, kek=kek)
    if district is None:
        if (wait_s := settle_s - (time.time() - current.stat().st_mtime)) > 0:
            say(f"等候 {wait_s:.0f} 秒，待在途诉求写完 / waiting {wait_s:.0f} s for what is on its way")
            time.sleep(wait_s)
        while (late := _pass(stack, None, dry_run=False, say=say, kek=kek)[1]) > 0:
            rewrapped += late
        old.unlink()
    return {"dry_run": False, "seen": seen, "rewrapped": rewrapped, "dropped": district is None}


def _pass(
    stack: Running, district: str | None, *, dry_run: bool, say: Callable[[str], None], kek: str
) -> tuple[int, int]:
    """Every key once: how many there were, and how many were rewrapped, or would be."""
    seen = rewrapped = after = 0
    while True:
        params = {"after": str(after)} | ({"district": district} if district else {})
        params |= {"dry_run": "true"} if dry_run else {}
        page = stack.post("intake", "/v1/keys/rewrap", b"", roles=["admin"], params=params, key=uuid4().hex)
        if page["kek"] != kek_id(kek).hex():
            raise SetupError(
                Said("intake 使用的不是此目录的密钥", "intake uses other secrets than those in this folder"),
                Said("请核对 PAIDAN_SECRETS_DIR", "check its PAIDAN_SECRETS_DIR"),
            )
        if page["unreadable"]:
            raise SetupError(
                Said(f"{page['unreadable']} 把钥匙无法打开，旧密钥保留", f"{page['unreadable']} keys cannot be opened"),
                Said("请恢复当时的主密钥", "the old secret stays: bring back the one they were wrapped by"),
            )
        seen, rewrapped = seen + page["seen"], rewrapped + page["rewrapped"]
        if page["after"] is None:
            return seen, rewrapped
        after = page["after"]
        say(f"已查 {seen} 把，换 {rewrapped} 把 / {seen} seen, {rewrapped} rewrapped")
