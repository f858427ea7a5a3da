"""The stack starts its services in order, starts again what dies, and drains when it is told to stop."""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx2
import pytest

from deploy.errors import SetupError
from deploy.running import Running
from deploy.servers import last_line
from deploy.stack import Stack, restart_delay

# A service in thirty lines: it answers with its environment, drains on SIGTERM, and dies at once where it is told to.
_SERVICE = """
import json, os, signal, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

if os.environ.get("BROKEN"):
    sys.exit("the settings are wrong")

class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(dict(os.environ)).encode())

    def log_message(self, *_):
        pass

def drain(*_):
    print("drained", flush=True)
    os._exit(0)

signal.signal(signal.SIGTERM, drain)
ThreadingHTTPServer(("127.0.0.1", int(os.environ["PAIDAN_HTTP_PORT"])), Answer).serve_forever()
"""


def _service(_: str) -> Sequence[str]:
    return (sys.executable, "-c", _SERVICE)


def _stack(data: Path, services: Sequence[str] = ("intake", "dispatch"), **more: object) -> Stack:
    return Stack(data, None, None, services=services, command=_service, **more)  # type: ignore[arg-type]


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """Servers and streams that are real, with stand-ins for two services; there is no mongod without a ledger."""
    async with _stack(tmp_path / "data", instances={"dispatch": 2}, environment={"intake": {"EXTRA": "1"}}) as stack:
        yield stack


async def _environment_of(url: str) -> dict[str, str]:
    async with httpx2.AsyncClient(trust_env=False) as client:
        answer: dict[str, str] = (await client.get(f"{url}/readyz")).json()
        return answer


async def test_links_in_messages_lead_to_dispatch_unless_somebody_has_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _stack(tmp_path / "data", ("dispatch", "notify")) as stack:
        assert (await _environment_of(stack.urls["notify"]))["PAIDAN_PUBLIC_URL"] == stack.urls["dispatch"]
    monkeypatch.setenv("PAIDAN_PUBLIC_URL", "https://paidan.example.org")
    async with _stack(tmp_path / "data", ("dispatch", "notify")) as stack:
        assert (await _environment_of(stack.urls["notify"]))["PAIDAN_PUBLIC_URL"] == "https://paidan.example.org"


async def test_a_service_is_told_where_things_are_and_no_more(stack: Stack) -> None:
    told = await _environment_of(stack.urls["intake"])
    assert told["NATS_URL"] == stack.bus_url
    assert told["PAIDAN_NATS_SEED_FILE"].endswith("nats/intake.creds")
    assert told["EXTRA"] == "1"
    assert "MONGODB_URI" not in told
    assert "district_kek" in {file.name for file in Path(told["PAIDAN_SECRETS_DIR"]).iterdir()}


async def test_instances_have_a_name_and_a_port_each(stack: Stack) -> None:
    first, second = [await _environment_of(url) for url in stack.all_urls["dispatch"]]
    assert (first["PAIDAN_INSTANCE"], second["PAIDAN_INSTANCE"]) == ("1", "2")
    assert set(stack.pids) == {"nats-server", "intake", "dispatch", "dispatch-2"}


async def test_the_streams_are_applied_before_the_services_start(stack: Stack) -> None:
    assert "+ EVENTS" in stack.stream_changes
    bus = await stack.connect()
    assert await bus.stream_config("EVENTS")
    await bus.drain()


async def _another_pid(stack: Stack, name: str, than: int | None) -> int:
    async with asyncio.timeout(10):
        while (pid := stack.pids[name]) in (None, than):
            await asyncio.sleep(0.02)
    assert pid
    return pid


@pytest.mark.parametrize("name", ["intake", "nats-server"])
async def test_what_is_killed_comes_back_at_the_same_address(stack: Stack, name: str) -> None:
    before, urls, bus_url = stack.pids[name], stack.urls, stack.bus_url
    await stack.kill(name)
    await _another_pid(stack, name, before)
    await stack.wait_until_ready(10)
    assert (stack.urls, stack.bus_url) == (urls, bus_url)
    await (await stack.connect()).drain()


async def test_a_frozen_service_is_not_taken_for_dead(stack: Stack) -> None:
    pid = stack.pids["dispatch-2"]
    stack.stop_process("dispatch", 2)
    await asyncio.sleep(0.3)
    stack.continue_process("dispatch", 2)
    await stack.wait_until_ready(10)
    assert stack.pids["dispatch-2"] == pid


async def test_stopping_drains_the_services_first(tmp_path: Path) -> None:
    async with _stack(tmp_path / "data") as stack:
        stack.stop_process("dispatch")  # a frozen one has to hear it too
    assert last_line(stack.data / "logs" / "intake.log") == "drained"
    assert last_line(stack.data / "logs" / "dispatch.log") == "drained"
    assert not any(stack.pids.values())
    assert not stack.addresses_file.exists()


async def test_a_service_that_cannot_start_is_quoted(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(SetupError, match="dispatch 没有就绪.*the settings are wrong"):
        async with _stack(tmp_path / "data", environment={"dispatch": {"BROKEN": "1"}}):
            pass
    assert time.monotonic() - started < 15


async def test_other_commands_find_a_running_stack_and_only_a_running_one(stack: Stack) -> None:
    found = Running.find(stack.data)
    assert found.urls == stack.urls
    assert found.pid == os.getpid()
    assert stack.addresses_file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(SetupError, match="没有正在运行的派单.*no stack runs"):
        Running.find(stack.data / "elsewhere")


async def test_one_folder_takes_one_stack(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "stack.json").write_text(json.dumps({"pid": os.getppid()}))
    with pytest.raises(SetupError, match="in use by process"):
        await _stack(data).start()


async def test_your_own_nats_server_is_used_when_named(
    tmp_path: Path, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("admin", "intake", "dispatch"):
        monkeypatch.setenv(f"PAIDAN_{name.upper()}_SEED_FILE", str(stack.identities.seed_file(name)))
    other = Stack(tmp_path / "other", stack.bus_url, None, services=("intake", "dispatch"), command=_service)
    async with other:
        assert other.nats is None
        assert other.stream_changes == []
        told = await _environment_of(other.urls["intake"])
        assert told["PAIDAN_NATS_SEED_FILE"] == str(stack.identities.seed_file("intake"))


def test_a_child_that_keeps_dying_is_started_less_and_less_often() -> None:
    assert [restart_delay(deaths) for deaths in (1, 2, 3, 10, 10_000)] == [0.2, 0.4, 0.8, 5.0, 5.0]
