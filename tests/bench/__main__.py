"""`python -m tests.bench [NAME ...] [--quick] [--json] [--report FILE]`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib import import_module
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from shared import telemetry
from tests.bench.harness import REPORT, Benchmark, Row, Workshop, write_report

BENCHMARKS = (
    *("pipe", "intake", "latency", "stream", "flood", "commit", "recovery", "memory", "login", "auth", "seal"),
    *("ledger_ingest", "ledger_replay", "ledger_export", "ledger_audit", "ledger_proofs", "ledger_checkpoint"),
)
"""In this order: those that share a filled stream come one after the other. Each is a module of this package with `run`."""


def main() -> int:
    """0 where all targets were met, or sizes were small; 1 where one was missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="small sizes: whether it works, not how fast")
    parser.add_argument("--json", action="store_true", help="print the report as JSON instead of a table")
    parser.add_argument("--report", type=Path, default=REPORT, metavar="FILE", help="where to write it")
    parser.add_argument(
        "--facts", type=int, default=150_000, metavar="N", help="how many the ledger's benchmarks work on (%(default)s)"
    )
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    telemetry.configure("bench", "1", format="console", level="error")  # standard output is for the report
    names = [name for name in BENCHMARKS if name in options.names or not options.names]
    rows = uvloop.run(_run(names, quick=options.quick, facts=options.facts))
    write_report(rows, options.report)
    if options.json:
        print(json.dumps([row.document() for row in rows], indent=2, ensure_ascii=False))
    else:
        _print(rows, options.report, quick=options.quick)
    return int(not options.quick and any(row.met is False for row in rows))


async def _run(names: list[str], *, quick: bool, facts: int) -> list[Row]:
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {line}" if line else "", file=sys.stderr, flush=True)

    rows: list[Row] = []
    async with Workshop(quick, say, facts) as workshop:
        for name in names:
            benchmark: Benchmark = import_module(f"tests.bench.{name}").run
            rows += await benchmark(workshop)
        say("done; stopping what was started")
    return rows


def _print(rows: list[Row], report: Path, *, quick: bool) -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table(title="quick: small sizes, the figures mean little" if quick else None)
    for heading in ("", "ours", "limit", "ratio", "target", "min", "max", "runs", "unit"):
        table.add_column(heading, justify="left" if heading in ("", "unit", "target") else "right")
    for row in rows:
        figures = [_figure(figure) for figure in (row.value, row.limit, row.ratio)]
        target = f"{row.target} {'✓' if row.met else '✗'}" if row.target else ""
        table.add_row(row.name, *figures, target, _figure(row.minimum), _figure(row.maximum), str(row.runs), row.unit)
    console.print(table)
    console.print(f"written to {report}", soft_wrap=True)


def _figure(figure: float) -> str:
    return f"{figure:,.0f}" if abs(figure) >= 100 else f"{figure:.3g}"


if __name__ == "__main__":
    sys.exit(main())
