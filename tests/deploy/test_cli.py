"""The `paidan` command says what it does, and in one line what stands in its way."""

import os
import subprocess
import sys
import unicodedata
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

from deploy.cli import _welcome, duration
from deploy.errors import SetupError
from deploy.identities import Identities
from deploy.running import refused


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
    *(("bus", "apply"), ("bus", "restore")),
    *(("register", name) for name in ("apply", "import-polygons", "export-polygons", "check", "area")),
    ("members", "import"),
    ("contact", "set"),
    *(("person", "find"), ("person", "disclose"), ("person", "erase"), ("keys", "rotate")),
    *(("ledger", "replay"), ("ledger", "rebuild"), ("ledger", "redecide")),
]
GROUPS = [(), ("bus",), ("register",), ("members",), ("contact",), ("person",), ("keys",), ("ledger",)]


@pytest.mark.parametrize("command", [(), *COMMANDS], ids=" ".join)
def test_every_command_explains_itself(command: tuple[str, ...]) -> None:
    done = paidan(*command, "--help")
    assert done.returncode == 0
    assert " / " in done.stdout


@pytest.mark.parametrize("group", GROUPS, ids=" ".join)
def test_a_list_of_commands_shows_both_languages_in_a_hundred_columns(
    group: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lines = paidan(*group, "--help").stdout.partition("Commands:")[2].splitlines()
    assert len(lines) > 1
    for line in lines[1:]:
        assert " / " in line
        assert not line.endswith("...")
        assert sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in line) <= 100, line


def test_what_up_says_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = str(Path(sys.executable).with_name("paidan"))
    monkeypatch.setattr(sys, "argv", [program, "up"])
    data = tmp_path / "my data"
    Identities.open(data / "secrets")
    urls = {service: f"http://127.0.0.1:{8420 + n}" for n, service in enumerate(("intake", "dispatch", "ledger"))}
    stack: Any = SimpleNamespace(
        urls=urls, bus_url="nats://x", websocket_url="ws://x", data=data, token=lambda *_, **__: "t", ca_file=None
    )
    lines = _welcome(stack, ["420106"])
    said = "\n".join(lines)
    assert "$RANDOM" not in said
    assert "15 minutes" in said
    exports = "\n".join(line.strip() for line in lines if line.startswith("  export "))
    shell = subprocess.run(
        ["sh", "-euc", f'{exports}\necho "$INTAKE $MEMBER"'],
        capture_output=True, text=True, timeout=60, check=False, env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
    )  # fmt: skip
    assert shell.returncode == 0, shell.stderr
    assert shell.stdout.startswith("http://127.0.0.1:8420 ey")


@pytest.mark.parametrize(
    "command",
    [
        ("bus", "apply"),
        ("register", "apply", "a.json"),
        ("register", "check"),
        ("members", "import", "a.json", "--district", "420106"),
        ("contact", "set", "m-supervisor-420106", "--district", "420106", "--channels", "mail"),
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


def test_a_file_that_cannot_be_written_is_one_line() -> None:
    done = paidan("witness", "key", "witness.420106.example", "--out", "/nowhere/witness.key")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "/nowhere/witness.key 无法读写" in done.stderr


def test_a_refusal_names_the_field() -> None:
    answer = {
        "code": "invalid",
        "title": "内容有误:格式不符",
        "title_en": "Invalid: not in the expected form",
        "field": "area",
    }
    said = str(refused("ledger", httpx2.Response(422, json=answer)))
    assert "area：内容有误:格式不符" in said
    assert "area: Invalid: not in the expected form" in said


def test_a_taken_port_is_one_line(tmp_path: Path, nats_server: object) -> None:
    port = str(nats_server.port)  # type: ignore[attr-defined]
    done = paidan("up", "--no-demo", "--port", port, cwd=tmp_path)
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line] == [done.stderr.strip()]
    assert f"port {port}, wanted by intake, is taken" in done.stderr


def test_listening_beyond_loopback_without_tls_is_one_line(tmp_path: Path) -> None:
    done = paidan("up", "--no-demo", "--port", "0", "--host", "0.0.0.0", cwd=tmp_path)
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line] == [done.stderr.strip()]
    assert "不加密就不能监听 0.0.0.0；请加上 --tls" in done.stderr


def test_a_token_is_printed_bare(tmp_path: Path) -> None:
    Identities.open(tmp_path / "secrets")
    done = paidan("token", "--role", "auditor", "--district", "420106", "--ttl", "30m", "--data", str(tmp_path))
    assert done.stdout.count(".") == 2
    assert done.stdout.count("\n") == 1


def test_an_unknown_role_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    done = paidan("token", "--role", "king", "--data", str(tmp_path))
    assert done.returncode == 2
    assert "dispatcher" in done.stderr


@pytest.mark.parametrize("sub", ["李四", "13800000000", "li.si@example.com", "Li"])
@pytest.mark.parametrize(
    "command", [("token", "--role", "member", "--sub"), ("revoke", "--why", "left", "--district", "420106")]
)
def test_who_is_named_by_more_than_a_pseudonym_is_not_recorded(
    tmp_path: Path, command: tuple[str, ...], sub: str
) -> None:
    Identities.open(tmp_path / "secrets")
    done = paidan(*command, sub, "--data", str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert "no pseudonym" in done.stderr


def test_durations_have_a_unit() -> None:
    assert duration("90s") == timedelta(seconds=90)
    assert duration("12h") == timedelta(hours=12)
    for text in ("", "12", "h", "-1h", "1.5h", "1w"):
        with pytest.raises(SetupError):
            duration(text)
