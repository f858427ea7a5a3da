"""`paidan demo` as a newcomer runs it: real servers, four services, a day, a load, and a sum that holds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

WUCHANG, QINGSHAN, HONGSHAN = "420106", "420107", "420111"
BOSTON = ("990001", "990002", "990003")
ROWS = 2_000
COMMAND = [sys.executable, "-m", "deploy.cli", "demo"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    folder = tmp_path_factory.mktemp("demo")
    return subprocess.run(
        [*COMMAND, "--json"], env=_environment(folder), capture_output=True, text=True, check=False, timeout=230
    )


@pytest.fixture(scope="module")
def summary(finished: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(finished.stdout)
    return document


def _environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(folder)}


@pytest.mark.timeout(240)
def test_it_says_that_everything_held(finished: subprocess.CompletedProcess[str], summary: dict[str, Any]) -> None:
    assert summary["failures"] == []
    assert (finished.returncode, summary["ok"]) == (0, True)


@pytest.mark.timeout(240)
def test_it_leaves_nothing_behind(finished: subprocess.CompletedProcess[str], tmp_path_factory: Any) -> None:
    folder = next(tmp_path_factory.getbasetemp().glob("demo*"))
    assert finished.returncode == 0
    assert not list(folder.glob("paidan-demo-*"))
    assert _processes_of(folder) == []


@pytest.mark.timeout(240)
def test_every_district_has_its_figures(summary: dict[str, Any]) -> None:
    assert list(summary["districts"]) == [WUCHANG, QINGSHAN, HONGSHAN, *BOSTON]
    for figures in summary["districts"].values():
        assert figures["submitted"] >= figures["offered"] >= figures["accepted"] >= figures["done"] >= figures["rated"]
        assert figures["submitted"] == figures["offered"] > 0
    assert sum(summary["districts"][code]["submitted"] for code in BOSTON) == ROWS
    assert sum(summary["districts"][code]["submitted"] for code in (WUCHANG, QINGSHAN, HONGSHAN)) == 77
    assert summary["districts"][WUCHANG]["unplaced"] == 1
    assert sum(figures["reopened"] for figures in summary["districts"].values()) == 2
    assert sum(figures["withdrawn"] for figures in summary["districts"].values()) == 1


@pytest.mark.timeout(240)
def test_messages_went_out_by_every_channel(summary: dict[str, Any]) -> None:
    assert {"wecom", "dingtalk", "mail", "webhook", "console"} <= set(summary["messages"])
    assert all(count > 0 for count in summary["messages"].values())
    sent, given_up = summary["notices"]["sent"], summary["notices"]["given_up"]
    assert sent <= sum(summary["messages"].values()) <= sent + given_up


@pytest.mark.timeout(240)
def test_the_ledger_accounts_for_every_sequence(summary: dict[str, Any]) -> None:
    ledger = summary["ledger"]
    assert ledger["accounted"]
    assert ledger["last_sequence"] == ledger["stream_last_sequence"] == ledger["leaves"] == ledger["facts"]
    assert ledger["gaps"] == 0


@pytest.mark.timeout(240)
def test_an_auditor_finds_nothing_wrong_and_both_offices_have_witnessed_it(summary: dict[str, Any]) -> None:
    verified = summary["ledger"]["verified"]
    assert (verified["ok"], verified["counts"]) == (True, {})
    assert {"leaves", "signatures", "witnesses", "indexes", "projections", "stream"} <= set(verified["checked"])
    assert sorted(verified["witnessed"]["by"]) == [WUCHANG, QINGSHAN]
    assert verified["checkpoint"]["size"] >= verified["witnessed"]["size"] >= summary["ledger"]["leaves"]


@pytest.mark.timeout(240)
def test_latency_is_measured_for_every_request_that_was_offered(summary: dict[str, Any]) -> None:
    latency = summary["latency_ms"]
    assert 0 < latency["p50"] <= latency["p99"]
    assert latency["count"] == sum(figures["offered"] for figures in summary["districts"].values())


@pytest.mark.timeout(240)
def test_the_enclave_case_is_told_in_chinese_as_both_offices_see_it(summary: dict[str, Any]) -> None:
    every = summary["enclave"]["steps"]
    between = [step for step in every if step["fact"].startswith("handover.")]
    assert [step["fact"] for step in between] == [
        f"handover.{w}" for w in ("offered", "received", "refused", "returned")
    ]
    assert all(step["districts"] == [WUCHANG, QINGSHAN] for step in between)
    steps = [step for step in every if step["fact"] and step not in between]
    assert [step["fact"] for step in steps] == [
        *("request.submitted", "task.opened", "task.offered", "task.declined", "task.offered", "task.accepted"),
        *("task.arrived", "task.done", "request.rated", "task.closed"),
    ]
    assert all(step["districts"] == [WUCHANG, QINGSHAN] for step in steps)
    story = "".join(step["zh"] for step in steps)
    assert "武昌区" in story
    assert "青山区" in story
    assert [step["time"] for step in steps] == sorted(step["time"] for step in steps)


@pytest.mark.timeout(240)
def test_both_offices_have_the_same_shared_file_with_the_case_in_it(summary: dict[str, Any]) -> None:
    file = summary["enclave"]["file"]
    assert len(file["digest"]) == 64
    assert file["cases"] >= 1
    assert file["handovers"] == 1
    assert file["leaves"] > len(summary["enclave"]["steps"])


@pytest.mark.timeout(240)
def test_each_offices_app_heard_its_side_of_the_case_on_the_bus(summary: dict[str, Any]) -> None:
    """The same steps, but for what the serving office keeps to itself: whom it considered, and whom it told."""
    enclave = summary["enclave"]
    own = [step for step in enclave["steps"] if not step["fact"]]
    assert own
    assert all(step["districts"] == [WUCHANG] for step in own)
    assert enclave["heard"][WUCHANG] > enclave["heard"][QINGSHAN] >= 10


@pytest.mark.timeout(240)
def test_nonsense_and_impostors_are_refused(summary: dict[str, Any]) -> None:
    expected = {"invalid", "outside", "unknown_area", "unknown_item", "key_reused", "key_missing"}
    expected |= {"already_taken", "not_yourself", "foreign_district", "unauthenticated"}
    assert set(summary["refused"]) == expected


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_by_hand_it_stops_everything(tmp_path: Path, number: signal.Signals, code: int) -> None:
    # A shell that runs the tests in the background has them ignore SIGINT, and with them all that they start.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        COMMAND,
        env=_environment(tmp_path),
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=heed,  # noqa: PLW1509
    ) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "ready" in line:
                break
        time.sleep(1)
        demo.send_signal(number)
        demo.communicate(timeout=40)
    assert demo.returncode == code
    assert not list(tmp_path.iterdir())
    assert _processes_of(tmp_path) == []


@pytest.mark.timeout(60)
def test_a_folder_that_was_used_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    done = subprocess.run([*COMMAND, "--data", str(tmp_path)], capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "empty folder" in done.stderr


def _processes_of(folder: Path) -> list[str]:
    """Living processes whose command or environment names the folder."""
    found = subprocess.run(["ps", "axeww", "-o", "command"], capture_output=True, text=True, check=True).stdout
    return [line[:200] for line in found.splitlines() if str(folder) in line]
