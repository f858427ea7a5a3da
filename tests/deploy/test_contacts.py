"""Who is no member is reached too: the supervisor of a district, under an id of their own."""

import asyncio
import io
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx2
import pytest

from deploy.contacts import contact, given
from deploy.errors import SetupError
from deploy.stack import Stack, service_command
from services.dispatch.importing import Row
from services.notify.contacts import Contacts
from services.notify.decide import supervisor
from tests.deploy.test_stack import _service

DISTRICT = "420106"


def test_it_is_kept_as_a_members_is() -> None:
    ours = contact("m-1", DISTRICT, ["wecom", "mail"], "22:00-07:00", "李", "110", "en")
    row = Row(
        id="m-1", kind="grid_member", areas=(), capacity=1, district=DISTRICT,
        name="李", phone="110", language="en", quiet="22:00-07:00", channels=("wecom", "mail"),
    )  # fmt: skip
    assert ours.subject == f"$KV.CONTACTS.{DISTRICT}.m-1"
    assert json.loads(ours.encode()) == json.loads(row.contact())


@pytest.mark.parametrize(
    ("id", "district", "channels", "language", "quiet"),
    [
        ("supervisor", DISTRICT, ["mail"], "en", ""),
        ("m-1", "wuchang", ["mail"], "en", ""),
        ("m-1", DISTRICT, [], "en", ""),
        ("m-1", DISTRICT, ["mail"], "fr", ""),
        ("m-1", DISTRICT, ["mail"], "en", "at night"),
        ("m-1", DISTRICT, ["mail"], "en", "22:00-24:30"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    id: str, district: str, channels: list[str], language: str, quiet: str
) -> None:
    with pytest.raises(SetupError) as caught:
        contact(id, district, channels, quiet, "", "", language)
    assert "\n" not in str(caught.value)
    assert "Input should" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "from_file", "typed"),
    [
        ({"channels": "wecom mail", "name": "-", "phone": "-"}, None, "李\n110\n"),
        ({}, "-", '{"channels": ["wecom", "mail"], "name": "李", "phone": "110"}'),
        ({"phone": "-", "name": "李"}, "FILE", "110\n"),
    ],
)
def test_what_is_personal_comes_by_standard_input_or_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: dict[str, str], from_file: str | None, typed: str
) -> None:
    (tmp_path / "FILE").write_text('{"channels": "wecom mail", "name": "somebody", "phone": "1"}')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    assert given("m-1", DISTRICT, said, from_file) == contact("m-1", DISTRICT, ["wecom", "mail"], "", "李", "110")


def test_a_terminal_is_asked_for_what_was_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO("mail\n李\n\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    assert given("m-1", DISTRICT, {"channels": None, "name": None, "phone": None, "quiet": None}, None) == contact(
        "m-1", DISTRICT, ["mail"], "", "李", ""
    )


@pytest.mark.parametrize("typed", ["[]", "{", '{"phone": 110}', '{"number": "110"}', '{"channels": 7}'])
def test_a_file_that_holds_no_contact_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    with pytest.raises(SetupError) as caught:
        given("m-1", DISTRICT, {}, "-")
    assert "\n" not in str(caught.value)


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """With a ledger that is real: it records what is done."""

    def command(service: str) -> Sequence[str]:
        return service_command(service) if service == "ledger" else _service(service)

    async with Stack(tmp_path / "data", None, None, services=("dispatch", "ledger"), command=command) as stack:
        yield stack


async def paidan(stack: Stack, *arguments: str) -> str:
    """What the command prints, as an operator runs it."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", "from deploy.cli import main; main()", *arguments, "--data", str(stack.data)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_the_supervisor_of_a_district_is_given_one_from_the_command_line_and_that_is_recorded(
    stack: Stack,
) -> None:
    said = await paidan(
        stack, "contact", "set", supervisor(DISTRICT), "--district", DISTRICT, "--channels", "wecom mail",
        "--quiet", "00:00-00:00", "--name", "值班", "--why", "换班", "--json",
    )  # fmt: skip
    assert json.loads(said)["channels"] == ["wecom", "mail"]
    assert "值班" not in said
    bus = await stack.connect("notify")
    contacts = Contacts(bus)
    await contacts.look_up(DISTRICT, [supervisor(DISTRICT)])
    known = contacts.known(DISTRICT, supervisor(DISTRICT))
    assert known is not None
    assert (known.channels, known.quiet) == (("wecom", "mail"), (0, 0))
    await bus.drain()

    assert (await paidan(stack, "token", "--role", "member", "--district", DISTRICT, "--sub", "m-17")).startswith("ey")
    await paidan(stack, "token", "--role", "auditor")  # one's own too
    await paidan(stack, "ledger", "rebuild", "--why", "after a restore", "--json")
    async with asyncio.timeout(20), httpx2.AsyncClient(base_url=stack.urls["ledger"], trust_env=False) as http:
        acts: list[dict[str, str]] = []
        while len(acts) < 6:
            await asyncio.sleep(0.05)
            headers = {"Authorization": f"Bearer {stack.token('auditor')}"}
            acts = (await http.get("/v1/acts", headers=headers)).json()["acts"]
    assert [(one["district"], one["by"], one["act"], one["of"], one["why"]) for one in acts] == [
        (DISTRICT, "admin:operator", "contact_set", supervisor(DISTRICT), "换班"),
        (DISTRICT, "admin:operator", "token_issued", "m-17", "member 12h"),
        ("*", "admin:operator", "token_issued", "operator", "auditor 12h"),
        *(
            ("*", "admin:operator", "ledger_rebuilt", of, "after a restore")
            for of in ("proj_cases", "tiles", "indexes")
        ),
    ]
