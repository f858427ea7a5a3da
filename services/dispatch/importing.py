"""Members in bulk: CSV and JSON to enrolments and contacts, row by row."""

from __future__ import annotations

import csv
import io
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from shared.errors import RefusedError
from shared.facts import District, Duty, Kind, Language, MemberEnrolled, MemberId, Text

ROWS_MAX = 5000
COLUMNS_NAMED_MAX = 10
Result = Literal["enrolled", "changed", "unchanged", "skipped", "error"]
RESULTS: tuple[Result, ...] = ("enrolled", "changed", "unchanged", "skipped", "error")
LISTS = ("areas", "skills", "duty", "channels")


class Row(BaseModel):
    """One member of an import: terms of work, and how to reach them. The names and phones go to CONTACTS, never into a fact."""

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    id: MemberId
    kind: Kind
    areas: tuple[str, ...]
    skills: tuple[str, ...] = ()
    capacity: int
    duty: tuple[str, ...] = ()
    """Spans such as `1-5 08:00-12:00`; none: always."""
    district: District
    name: Text = ""
    phone: Text = ""
    language: Language = "zh-CN"
    quiet: str = ""
    """`22:00-07:00`: not to be disturbed."""
    channels: tuple[Text, ...] = ()

    def enrolment(self) -> MemberEnrolled:
        """Their terms. Raises ValueError."""
        return MemberEnrolled(
            member_id=self.id,
            kind=self.kind,
            areas=self.areas,
            skills=self.skills,
            capacity=self.capacity,
            duty=tuple(duty(span) for span in self.duty),
        )

    def contact(self) -> bytes:
        """What CONTACTS holds about them."""
        held = {
            "name": self.name,
            "phone": self.phone,
            "language": self.language,
            "quiet": span_of_day(self.quiet) if self.quiet else None,
            "channels": self.channels or ("console",),
        }
        return orjson.dumps(held, option=orjson.OPT_SORT_KEYS)


@dataclass(frozen=True, slots=True)
class Report:
    """What becomes of a row, numbered from 1 without the header."""

    row: int
    id: str
    result: Result
    field: str | None = None
    why: str | None = None


def read(content: bytes, media_type: str) -> list[Mapping[str, Any]]:
    """
    The rows of a CSV (UTF-8, with header) or JSON (list of objects) file.

    Raises:
        RefusedError: `invalid_json`, `invalid`, `not_utf8`, `unknown_columns`.
    """
    try:
        if "json" in media_type:
            rows = orjson.loads(content)
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise RefusedError("invalid", field="body", why="a list of objects")
        else:
            table = csv.DictReader(io.StringIO(content.decode("utf-8-sig")), restkey="…")
            rows = list(table)
            if unknown := [name for name in table.fieldnames or () if name and name not in Row.model_fields]:
                columns = "、".join(name[:40] for name in unknown[:COLUMNS_NAMED_MAX])
                raise RefusedError("unknown_columns", field="body", columns=columns, known=" ".join(Row.model_fields))
    except csv.Error as why:
        raise RefusedError("invalid", field="body", why=str(why)) from None
    except UnicodeDecodeError:
        raise RefusedError("not_utf8", field="body") from None  # Excel's own default in China is GBK
    except orjson.JSONDecodeError:
        raise RefusedError("invalid_json") from None
    if not rows or len(rows) > ROWS_MAX:
        raise RefusedError("invalid", field="body", why=f"1 … {ROWS_MAX} rows")
    return rows


def check(
    rows: Iterable[Mapping[str, Any]], district: str, areas: Container[str]
) -> tuple[list[tuple[int, Row]], list[Report]]:
    """
    The rows that can be enrolled in this district, numbered, and reports on those that cannot.

    Args:
        areas: those that the register knows.
    """
    good: list[tuple[int, Row]] = []
    bad: list[Report] = []
    seen: set[str] = set()
    for number, raw in enumerate(rows, 1):
        id = str(raw.get("id") or "")[:50]
        try:
            row = Row.model_validate({key: _cell(key, value) for key, value in raw.items() if value not in (None, "")})
            row.enrolment()
        except ValidationError as why:
            first = why.errors(include_url=False, include_input=False)[0]
            bad.append(Report(number, id, "error", ".".join(map(str, first["loc"])), first["msg"]))
            continue
        except ValueError as why:
            bad.append(Report(number, id, "error", "duty", str(why)))
            continue
        try:
            row.contact()
        except ValueError as why:
            bad.append(Report(number, id, "error", "quiet", str(why)))
            continue
        if row.district != district:
            why_not = f"属于 {row.district},不属于 {district} / of {row.district}, not of {district}"
            bad.append(Report(number, id, "skipped", "district", why_not))
            continue
        if unknown := [area for area in row.areas if area not in areas]:
            named = " ".join(unknown[:COLUMNS_NAMED_MAX])
            bad.append(Report(number, id, "error", "areas", f"台账中没有 {named} / not in the register: {named}"))
            continue
        if row.id in seen:
            bad.append(Report(number, id, "error", "id", "twice in this file"))
            continue
        seen.add(row.id)
        good.append((number, row))
    return good, bad


def duty(span: str) -> Duty:
    """`1-5 08:00-12:00` or `7 00:00-24:00` as hours on duty. Raises ValueError."""
    days, _, hours = span.strip().partition(" ")
    since, until = span_of_day(hours)
    first, _, last = days.partition("-")
    try:
        begins, ends = int(first), int(last or first)
    except ValueError:
        raise ValueError(f"duty {span!r} is not like '1-5 08:00-12:00'") from None
    if not 1 <= begins <= ends <= 7:
        raise ValueError(f"duty {span!r} needs weekdays from 1 (Monday) to 7")
    if not since < until:
        raise ValueError(f"duty {span!r} ends before it begins: write a night as two spans, split at 24:00")
    return Duty(days=tuple(range(begins, ends + 1)), since=since, until=until)


def span_of_day(hours: str) -> tuple[int, int]:
    """`22:00-07:00` as minutes of the day. Raises ValueError."""
    try:
        since, until = (_minute(clock) for clock in hours.strip().split("-"))
    except ValueError:
        raise ValueError(f"{hours!r} is not like '08:00-12:00'") from None
    return since, until


def _minute(clock: str) -> int:
    hour, minute = map(int, clock.split(":"))
    if not (0 <= hour <= 24 and 0 <= minute < 60 and hour * 60 + minute <= 1440):
        raise ValueError(clock)
    return hour * 60 + minute


def _cell(key: str, value: Any) -> Any:
    if key in LISTS and isinstance(value, str):
        return [part.strip() for part in value.split(";" if key == "duty" else None) if part.strip()]
    return value
