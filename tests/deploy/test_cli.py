"""The `paidan` command says what it does, and in one line what stands in its way."""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from deploy.cli import duration
from deploy.errors import SetupError
from deploy.identities import Identities


def paidan(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command, as a user runs it."""
    program = [sys.executable, "-c", "from deploy.cli import main; main()"]
    return subprocess.run([*program, *arguments], capture_output=True, text=True, timeout=60, check=False, cwd=cwd)


COMMANDS = [
    ("up",),
    ("demo",),
    ("token",),
    ("schema",),
    ("version",),
    ("bus", "apply"),
    ("register", "apply"),
    ("members", "import"),
    ("ledger", "rebuild"),
]


@pytest.mark.parametrize("command", [(), *COMMANDS], ids=" ".join)
def test_every_command_explains_itself(command: tuple[str, ...]) -> None:
    done = paidan(*command, "--help")
    assert done.returncode == 0
    assert " / " in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        ("bus", "apply"),
        ("register", "apply", "a.json"),
        ("members", "import", "a.json", "--district", "420106"),
        ("ledger", "rebuild"),
    ],
    ids=" ".join,
)
def test_without_a_running_stack_it_says_so_in_one_line(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "a.json").write_text("{}")
    done = paidan(*command, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "没有正在运行的派单" in done.stderr
    assert "run `paidan up` first" in done.stderr


def test_a_taken_port_is_one_line(tmp_path: Path, nats_server: object) -> None:
    port = str(nats_server.port)  # type: ignore[attr-defined]
    done = paidan("up", "--no-demo", "--port", port, cwd=tmp_path)
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line] == [done.stderr.strip()]
    assert f"port {port}, wanted by intake, is taken" in done.stderr


def test_a_token_is_printed_bare(tmp_path: Path) -> None:
    Identities.open(tmp_path / "secrets")
    done = paidan("token", "--role", "auditor", "--district", "420106", "--ttl", "30m", "--data", str(tmp_path))
    assert done.stdout.count(".") == 2
    assert done.stdout.count("\n") == 1


def test_an_unknown_role_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    done = paidan("token", "--role", "king", "--data", str(tmp_path))
    assert done.returncode == 2
    assert "dispatcher" in done.stderr


def test_durations_have_a_unit() -> None:
    assert duration("90s") == timedelta(seconds=90)
    assert duration("12h") == timedelta(hours=12)
    for text in ("", "12", "h", "-1h", "1.5h", "1w"):
        with pytest.raises(SetupError):
            duration(text)
