"""
XES (IEEE 1849-2016) for process mining by request: a trace per request, and what is about none of them behind the traces.

`concept:name` is the fact's type, `org:group` the district that acts, `org:resource` who did it, by pseudonym; `lifecycle:transition`
is the step of the standard's own life cycle where a fact moves a request, else `complete`. What only the ledger has is `ledger:…`,
the fact's own values are `fact:…`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

from services.ledger.exporting.reading import Ground, Row, scalars
from services.ledger.exporting.writing import Pass, Writer
from shared.envelope import canonical

EXTENSIONS = ("Concept", "Time", "Identity", "Lifecycle")
LEDGER = "urn:paidan:xes:ledger:1"
STEPS = {
    "request.submitted": "schedule",
    "request.reopened": "resume",
    "request.withdrawn": "withdraw",
    "task.opened": "schedule",
    "task.offered": "assign",
    "task.accepted": "start",
    "task.handed_over": "reassign",
}
REPLACED = "\ufffd"
"""For what XML cannot hold."""
_SPECIAL = re.compile("[^ !#-%'-;=?-~\u4e00-\u9fff]")
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class AsXes(Writer):
    """Traces."""

    passes: Sequence[Pass] = ("cases", "leaves")

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        self._open = ""

    def head(self, about: Mapping[str, Any]) -> bytes:
        """Extensions, globals, and what it is."""
        uri = "http://www.xes-standard.org/"
        extensions = [(name, name.lower(), f"{uri}{name.lower()}.xesext") for name in EXTENSIONS]
        extensions += [("Organizational", "org", f"{uri}org.xesext"), ("Ledger", "ledger", LEDGER)]
        lines = ['<?xml version="1.0" encoding="UTF-8"?>', '<log xes.version="2.0">']
        lines += [
            f'<extension name="{name}" prefix="{prefix}" uri="{address}"/>' for name, prefix, address in extensions
        ]
        lines += [f'<global scope="trace">{_text("concept:name", "")}</global>']
        required = [_text("concept:name", ""), _date("time:timestamp", "1970-01-01T00:00:00Z")]
        lines += [f'<global scope="event">{"".join(required)}</global>']
        lines += ['<classifier name="Activity" keys="concept:name"/>', _text("concept:name", about["log"])]
        lines += [
            _text(f"ledger:{name}", value if isinstance(value, str) else canonical(value).decode())
            for name, value in sorted(about.items())
            if value is not None
        ]
        return ("\n".join(lines) + "\n").encode()

    def cases(self, rows: Sequence[Row]) -> bytes:
        """Traces; the last one stays open."""
        lines: list[str] = []
        for row in rows:
            if row.request != self._open:
                lines += ["</trace>"] * bool(self._open)
                lines += ["<trace>", _text("concept:name", row.request)]
                self._open = row.request
            lines.append(self._event(row))
        return ("\n".join(lines) + "\n").encode()

    def leaves(self, rows: Sequence[Row]) -> bytes:
        """What is about no request."""
        lines = ["</trace>"] * bool(self._open)
        self._open = ""
        lines += [self._event(row) for row in rows if not row.request]
        return ("\n".join(lines) + "\n").encode() if lines else b""

    def foot(self, _: Mapping[str, Any]) -> bytes:
        """The end."""
        return b"</log>\n"

    def _event(self, row: Row) -> str:
        self.written += 1
        return f"<event>{''.join(self._attributes(row))}</event>"

    def _attributes(self, row: Row) -> Iterator[str]:
        yield _attribute("id", "identity:id", row.id)
        yield _text("concept:name", row.type)
        yield _date("time:timestamp", row.time)
        yield _text("lifecycle:transition", STEPS.get(row.name, "complete"))
        enclave = row.area if self.ground.enclave(row.area) else ""
        for key, value in (
            *(("org:resource", row.actor), ("org:group", row.district), ("ledger:leaf", row.hash)),
            *(("ledger:recorded", row.recorded), ("ledger:districts", " ".join(row.districts))),
            *(("ledger:area", row.area), ("ledger:enclave", enclave), ("ledger:status", row.status)),
            *(("ledger:correlation", row.request), ("ledger:causation", row.cause), ("ledger:trace", row.trace)),
        ):
            if value:
                yield _text(key, value)
        yield _attribute("int", "ledger:index", str(row.index))
        yield _attribute("int", "ledger:sequence", str(row.sequence))
        for name, kind, value in scalars(row.data):
            yield _attribute({"integer": "int"}.get(kind, kind), f"fact:{name}", value)


def _text(key: str, value: str) -> str:
    return _attribute("string", key, value)


def _date(key: str, value: str) -> str:
    return _attribute("date", key, value)


def _attribute(kind: str, key: str, value: str) -> str:
    quoted = quoteattr(_ILLEGAL.sub(REPLACED, value)) if _SPECIAL.search(value) else f'"{value}"'
    return f'<{kind} key="{key}" value={quoted}/>'
