"""The benchmarks run, and their report has what it promises. Nothing here asserts a speed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.harness import ROOT

KEYS = {"name", "value", "limit", "ratio", "unit", "runs", "min", "max"}


@pytest.mark.timeout(120)
def test_a_quick_run_prints_and_writes_a_report_with_every_key(tmp_path: Path) -> None:
    report = tmp_path / "bench.json"
    ran = subprocess.run(
        [sys.executable, "-m", "tests.bench", "pipe", "commit", "auth", "--quick", "--json", "--report", str(report)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    rows = json.loads(ran.stdout)
    assert rows == json.loads(report.read_text())
    assert {row["name"] for row in rows} == {
        "pipe", "commit small", "commit large", "auth token", "auth cached", "auth request", "auth bounds",
    }  # fmt: skip
    for row in rows:
        assert row.keys() >= KEYS
        assert row["value"] > 0 < row["limit"]
        assert row["min"] <= row["value"] <= row["max"]
