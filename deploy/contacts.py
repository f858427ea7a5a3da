"""How somebody who is no member is reached: whoever is on duty for a district hears under `m-supervisor-<district>` what nobody took."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deploy.errors import Said, SetupError
from deploy.running import Running
from shared.facts import District, Language, MemberId, Text
from shared.problems import invalid

HOURS = re.compile(r"([01]\d|2[0-4]):([0-5]\d)-([01]\d|2[0-4]):([0-5]\d)", re.ASCII)


class Contact(BaseModel):
    """What the bucket CONTACTS holds of one recipient, as dispatch writes it of a member and notify reads it."""

    model_config = ConfigDict(frozen=True, str_strip_whitespace=True)

    id: MemberId
    district: District
    channels: tuple[Text, ...] = Field(min_length=1)
    language: Language = "zh-CN"
    quiet: tuple[int, int] | None = None
    name: Text = ""
    phone: Text = ""

    @property
    def subject(self) -> str:
        """Where it is kept."""
        return f"$KV.CONTACTS.{self.district}.{self.id}"

    def encode(self) -> bytes:
        """What is kept."""
        held = self.model_dump(mode="json", exclude={"id", "district"})
        return json.dumps(held, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


ASKED = {"channels": "渠道，如 wecom mail / channels", "name": "姓名 / name", "phone": "电话 / phone"}
"""What a terminal is asked for, in this order."""


def given(id: str, district: str, said: Mapping[str, str | None], from_file: str | None) -> Contact:
    """
    A contact as it was given: in a file, on the command line where that may be, else by who is asked.

    Args:
        said: by field, what was on the command line; `-` to be asked, from standard input where that is no terminal.
        from_file: a JSON object with the same fields, `-` for standard input; what was said beside it goes before.
    Raises:
        SetupError: one of them cannot be so, or the file cannot be read.
    """
    known: dict[str, Any] = _read(from_file) if from_file else {}
    for field, value in said.items():
        left_out = value is None and field in ASKED and from_file is None and sys.stdin.isatty()
        if value == "-" or left_out:
            known[field] = _ask(ASKED.get(field, field))
        elif value is not None:
            known[field] = value
    channels = known.pop("channels", "")
    words = channels.split() if isinstance(channels, str) else channels
    return contact(
        id, district, words, **{field: known.pop(field, "") for field in ("quiet", "name", "phone")}, **known
    )


def _ask(what: str) -> str:
    if sys.stdin.isatty():
        print(f"{what}: ", end="", file=sys.stderr, flush=True)  # noqa: T201
    return sys.stdin.readline().strip()


def _read(file: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(sys.stdin.read() if file == "-" else Path(file).read_text())
        fit = isinstance(found, dict) and found.keys() <= {*ASKED, "language", "quiet"}
        if not fit or not all(isinstance(v, (str, list) if k == "channels" else str) for k, v in found.items()):
            raise ValueError
    except (OSError, ValueError):
        raise SetupError(
            Said(f"{file} 不是联系方式的 JSON", f"{file} holds no contact"),
            Said("可含 channels language quiet name phone", "it may hold channels, language, quiet, name, phone"),
        ) from None
    return found


def contact(
    id: str, district: str, channels: Sequence[str], quiet: str, name: str, phone: str, language: str = "zh-CN"
) -> Contact:
    """
    A contact from words.

    Args:
        quiet: `22:00-07:00`; empty: as the district's policy says.
    Raises:
        SetupError: one of them cannot be so.
    """
    given = {"id": id, "district": district, "channels": tuple(channels), "language": language, "name": name}
    try:
        return Contact.model_validate(given | {"phone": phone, "quiet": _minutes(quiet) if quiet else None})
    except ValidationError as why:
        wrong = invalid(why.errors())
        raise SetupError(
            Said(f"{wrong.field} 有误：{wrong.facts['why']}", f"{wrong.field}: {wrong.facts['why_en']}"),
            Said("例如 m-supervisor-420106 --district 420106", "as in m-supervisor-420106 --district 420106"),
        ) from None


async def put(running: Running, kept: Contact) -> int:
    """Keep it in place of what was kept before, as dispatch does; its sequence. Raises BusError."""
    bus = await running.connect("dispatch")
    try:
        return await bus.replace("KV_CONTACTS", kept.subject, kept.encode())
    finally:
        await bus.drain()


def _minutes(quiet: str) -> tuple[int, int]:
    found = HOURS.fullmatch(quiet.strip())
    numbers = [int(part) for part in found.groups()] if found else []
    if not numbers or max(since := numbers[0] * 60 + numbers[1], until := numbers[2] * 60 + numbers[3]) > 1440:
        raise SetupError(
            Said(f"看不懂免打扰时段 {quiet}", f"{quiet} are no hours"), Said("例如 22:00-07:00", "write 22:00-07:00")
        )
    return since, until
