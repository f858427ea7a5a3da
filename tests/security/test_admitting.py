"""Offices are let in by command, on a whole stack: on record, shown before it is done, and never the credentials themselves."""

import asyncio
import json
import stat
import subprocess
import sys
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from nats.aio.client import Client
from nats.errors import Error as NatsError

from deploy import admitting, keeping
from deploy.errors import SetupError
from deploy.running import Running
from shared.errors import UnavailableError
from tests.security.office import HONGSHAN, QINGSHAN, WUCHANG, Office, eventually


@pytest.fixture
def running(office: Office) -> Running:
    """The stack as other commands find it."""
    return Running.find(office.stack.data)


def paidan(office: Office, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, on this stack."""
    command = [sys.executable, "-m", "deploy.cli", *arguments, "--data", str(office.stack.data)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def register_of(office: Office) -> dict[str, object]:
    """The offices in the register, by district."""
    document = office.get("ledger", "/v1/register", office.token("staff-0", "*", "auditor")).json()
    return {entry["district"]: entry for entry in document["offices"]}


async def test_an_office_is_let_in_shown_rotated_and_shut_out(office: Office, running: Running) -> None:
    shown = await admitting.add(running, WUCHANG, "board", people=None, why="a test", dry_run=True)
    assert shown.changes[0] == f"+ D{WUCHANG}"
    assert shown.file is None
    assert WUCHANG not in register_of(office)
    assert not office.stack.identities.office_file(WUCHANG, "board").exists()

    added = await admitting.add(running, WUCHANG, "board", people=None, why="a test")
    assert added.file == office.stack.identities.office_file(WUCHANG, "board")
    assert stat.S_IMODE(added.file.stat().st_mode) == 0o600
    assert stat.S_IMODE(added.file.parent.stat().st_mode) == 0o700
    assert WUCHANG in register_of(office)
    app = await office.stack.connect_office(WUCHANG, "board")

    with pytest.raises(SetupError, match="already"):
        await admitting.add(running, WUCHANG, "board", people=None, why="a test")
    assert app.connected  # nothing was lost by that
    await (await office.stack.connect_office(WUCHANG, "board")).drain()

    await admitting.rotate(running, WUCHANG, "board", why="a test")
    again = await office.stack.connect_office(WUCHANG, "board")
    async with asyncio.timeout(2):
        while app.connected:
            await asyncio.sleep(0.01)

    await admitting.remove(running, WUCHANG, None, why="a test")
    assert not added.file.exists()
    assert await admitting.listed(running) == []
    async with asyncio.timeout(2):
        while again.connected:
            await asyncio.sleep(0.01)
    for bus in (app, again):
        await bus.drain()


async def test_at_the_same_moment_nobodys_change_is_lost(office: Office, running: Running) -> None:
    apps = [f"app-{n}" for n in range(3)]
    await asyncio.gather(*(admitting.add(running, WUCHANG, app, people=None, why="a test") for app in apps))
    [known] = [one for one in await admitting.listed(running) if one["district"] == WUCHANG]
    assert {one["app"] for one in known["apps"]} == {*apps}
    await admitting.remove(running, WUCHANG, None, why="a test")


async def test_what_the_ledger_accepted_is_not_lost_where_the_bus_is_late(
    office: Office, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def bring(*arguments: Any, dry_run: bool = False) -> list[str]:
        if not dry_run:
            raise UnavailableError("no answer")
        return await keeping.bring(*arguments, dry_run=True)

    late = SimpleNamespace(both=keeping.both, current=keeping.current, bring=bring)
    monkeypatch.setattr(admitting, "keeping", late)
    added = await admitting.add(running, WUCHANG, "late", people=None, why="a test")
    assert added.late == "UnavailableError: no answer"
    assert added.file is not None
    assert [*added.file.parent.iterdir()] == [added.file]
    async with asyncio.timeout(25):  # the running stack sees to it
        while True:
            with suppress(UnavailableError, OSError):
                await (await office.stack.connect_office(WUCHANG, "late")).drain()
                break
            await asyncio.sleep(0.1)
    removed = await admitting.remove(running, WUCHANG, None, why="a test")
    assert removed.late
    assert not added.file.exists()


async def test_people_come_and_go_with_their_tokens(office: Office, running: Running) -> None:
    await admitting.add(running, QINGSHAN, "board", people=True, why="a test")
    token = office.token("staff-7", QINGSHAN, "dispatcher")
    person = Client()
    await person.connect(office.stack.bus_url, token=token, inbox_prefix="_INBOX_staff-7", allow_reconnect=False)
    assert await admitting.revoke(running, "staff-7", QINGSHAN, why="left") == 1
    assert not person.is_connected
    assert office.get("dispatch", "/v1/tasks", token).status_code == 401  # over HTTP as well
    with pytest.raises((NatsError, OSError)):
        await Client().connect(office.stack.bus_url, token=token, allow_reconnect=False)
    with suppress(NatsError):
        await person.close()
    await admitting.remove(running, QINGSHAN, None, why="a test")


def test_the_command_shows_what_changes_and_never_the_credentials(office: Office) -> None:
    done = paidan(office, "office", "add", HONGSHAN, "--app", "wall", "--why", "展示屏", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert f"+ D{HONGSHAN} + live.evt.{HONGSHAN}.>" in answer["changes"]
    secret = office.stack.identities.office_file(HONGSHAN, "wall").read_text()
    assert answer["credentials"] == str(office.stack.identities.office_file(HONGSHAN, "wall"))
    lines = [line for line in secret.splitlines() if line and not line.startswith("-")]
    assert not any(line in done.stdout + done.stderr for line in lines)
    logs = [file.read_text() for file in (office.stack.data / "logs").glob("*.log")]
    assert not any(line in log for line in lines for log in logs)
    assert paidan(office, "bus", "apply").stdout == "无变化 / nothing to change\n"

    def recorded() -> bool | None:
        auditor = office.token("staff-0", "*", "auditor")
        found = office.get("ledger", "/v1/events", auditor, type="register.applied").text
        return True if '"why":"展示屏"' in found and '"by":"admin:operator"' in found else None

    assert eventually(recorded)
    assert paidan(office, "office", "remove", HONGSHAN).returncode == 0


async def test_what_cannot_be_is_refused_before_anything_is_done(office: Office, running: Running) -> None:
    with pytest.raises(SetupError, match="no district 999999"):
        await admitting.add(running, "999999", "board", people=None, why="a test")
    with pytest.raises(SetupError, match="will not do"):
        await admitting.add(running, WUCHANG, "../board", people=None, why="a test")
    with pytest.raises(SetupError, match="has no app nobody"):
        await admitting.rotate(running, WUCHANG, "nobody", why="a test")
    with pytest.raises(SetupError, match="has no app nobody"):
        await admitting.remove(running, WUCHANG, "nobody", why="a test")
    assert not [*(office.stack.data / "secrets" / "offices").glob("**/*.*")]
