"""The servers of the one-machine stack start, die, come back, and say what is wrong."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pymongo
import pytest

from deploy import servers
from deploy.errors import SetupError
from deploy.identities import Identities
from deploy.servers import HOST, MongoServer, NatsServer, free_port, last_line


def _mongo(uri: str) -> "pymongo.MongoClient[dict[str, Any]]":
    return pymongo.MongoClient(uri, serverSelectionTimeoutMS=5000)


def test_a_killed_nats_server_comes_back_on_its_port(fresh_nats: NatsServer) -> None:
    url, pid = fresh_nats.url, fresh_nats.pid
    fresh_nats.kill()
    assert not fresh_nats.running
    fresh_nats.start()
    assert fresh_nats.url == url
    assert fresh_nats.pid != pid


def test_jetstream_syncs_before_it_acknowledges(fresh_nats: NatsServer) -> None:
    assert "sync_interval: always" in fresh_nats.config_file.read_text()


def test_mongod_keeps_what_was_written_over_a_kill_and_on_another_port(tmp_path: Path, identities: Identities) -> None:
    with MongoServer(tmp_path / "mongo", identities) as server, _mongo(server.uri) as ledger:
        ledger["paidan"]["events"].insert_one({"_id": 1})
        server.kill()
        server.start()
        assert ledger["paidan"]["events"].count_documents({}) == 1
    with MongoServer(tmp_path / "mongo", identities) as moved, _mongo(moved.uri) as ledger:
        assert moved.port != server.port
        assert ledger["paidan"]["events"].count_documents({}) == 1


def test_a_taken_port_is_named_with_its_remedy(tmp_path: Path, identities: Identities) -> None:
    with socket.socket() as holder:
        holder.bind((HOST, 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(SetupError, match=f"端口 {port} 已被占用.*port {port}, wanted by nats-server, is taken"):
            NatsServer(tmp_path, identities, port).start()


def test_a_full_disk_is_named_with_its_remedy(
    tmp_path: Path, identities: Identities, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "FREE_SPACE_MIN_BYTES", 1 << 60)
    with pytest.raises(SetupError, match=r"磁盘只剩.*are left on the disk"):
        NatsServer(tmp_path, identities).start()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, identities: Identities) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(SetupError, match=r"不可写.*cannot be written"):
        NatsServer(tmp_path / "file" / "nats", identities).start()


@pytest.mark.parametrize(
    ("complaint", "package"),
    [
        ("error while loading shared libraries: libcurl.so.4: cannot open shared object file", "libcurl4"),
        ("error while loading shared libraries: libssl.so.3: cannot open shared object file", "libssl3"),
    ],
)
def test_a_missing_system_library_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, complaint: str, package: str
) -> None:
    broken = tmp_path / "mongod"
    broken.write_text(f"#!/bin/sh\necho '{complaint}' >&2\nexit 127\n")
    broken.chmod(0o755)
    monkeypatch.setattr(servers, "mongod_binary", lambda: broken)
    with pytest.raises(SetupError, match=f"apt-get install {package}"):
        servers.require_mongod.__wrapped__()


def test_a_server_that_dies_at_start_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, identities: Identities
) -> None:
    broken = tmp_path / "nats-server"
    broken.write_text("#!/bin/sh\necho first\necho 'the store is broken'\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(servers, "nats_server_binary", lambda: broken)
    with pytest.raises(SetupError, match="the store is broken"):
        NatsServer(tmp_path / "nats", identities).start()


def test_an_error_is_one_line_in_two_languages(tmp_path: Path, identities: Identities) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError) as caught:
        NatsServer(tmp_path / "file", identities).start()
    assert "\n" not in str(caught.value)
    assert " / " in str(caught.value)


_OWNER = """
import sys, time
from pathlib import Path
from deploy.identities import Identities
from deploy.servers import NatsServer

folder = Path(sys.argv[1])
server = NatsServer(folder / "nats", Identities.open(folder / "secrets")).start()
print(server.pid, flush=True)
time.sleep(600)
"""


def test_a_server_does_not_outlive_a_killed_owner(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", _OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout
    pid = int(owner.stdout.readline())
    os.kill(owner.pid, signal.SIGKILL)
    owner.communicate()
    deadline = time.monotonic() + 10
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and that nobody has waited for does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.strip().startswith("Z")


def test_the_last_line_of_a_log_is_its_last_line_with_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_line(log) == ""
    log.write_text("one\ntwo\n\n")
    assert last_line(log) == "two"


def test_a_free_port_can_be_bound() -> None:
    with socket.socket() as probe:
        probe.bind((HOST, free_port()))
