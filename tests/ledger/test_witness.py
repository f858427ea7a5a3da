"""A witness cosigns what continues what it holds, keeps that on disk before it says so, and keeps the evidence of a fork."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import pytest
from prometheus_client import REGISTRY

from deploy.servers import free_port
from services.ledger.log import tree
from services.ledger.log.cosigning import Cosigning
from services.ledger.log.notes import COSIGNATURE, Checkpoint, Key, Note, NoteError, Policy, Verifier, checkpoint
from services.ledger.log.tree import Tile, Tiles
from services.ledger.log.witness import EVIDENCE_MAX, Asked, HeldElsewhereError, Memory, Witness, judge, origin_hash
from services.ledger.store import Signed
from shared.errors import RefusedError

ORIGIN = "ledger.example/main/1"
LOG = Key.make(ORIGIN)
STRANGER = Key.make(ORIGIN)
WITNESS = Key.make("witness.420107.example", COSIGNATURE)
HONEST = [tree.leaf_hash(b"%d" % n) for n in range(600)]
FORGED = [*HONEST[:99], tree.leaf_hash(b"another history"), *HONEST[100:]]


def signed(size: int, leaves: list[bytes] = HONEST, key: Key = LOG, heads: bytes = tree.EMPTY) -> Note:
    body = checkpoint(ORIGIN, size, tree.root_of(leaves[:size]), heads).body
    return Note(body).signed([key.sign(body)])


async def proof(old: int, new: int, leaves: list[bytes] = HONEST) -> list[bytes]:
    tiles = Tiles()
    full = {each[:2]: hashes for each, hashes in tiles.append(leaves[:new])}

    async def read(tile: Tile) -> bytes:
        return (full.get(tile[:2]) or tiles.tile(tile) or b"")[: tile.width * 32]

    return await tree.consistency(read, old, new)


async def asked(old: int, new: int, leaves: list[bytes] = HONEST, key: Key = LOG) -> Asked:
    return Asked(old, tuple(await proof(old, new, leaves)), signed(new, leaves, key))


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Witness]:
    made = Witness(WITNESS, [LOG.verifier], Memory(tmp_path / "memory"))
    yield made
    made.memory.close()


async def test_it_cosigns_what_continues_what_it_holds(witness: Witness, tmp_path: Path) -> None:
    for old, new in ((0, 100), (100, 100), (100, 300), (300, 600)):
        verdict = await witness.add((await asked(old, new)).body.encode())
        assert verdict.status == 200, verdict
        cosigned = Note.parse(signed(new).text + verdict.said)
        assert abs((cosigned.verified([WITNESS.verifier])[WITNESS.verifier] or 0) - time.time()) < 60
        assert (tmp_path / "memory" / f"{origin_hash(ORIGIN)}.note").read_text() == signed(new).text
    assert witness.memory.evidence() == []


@pytest.mark.parametrize(
    ("old", "new", "leaves", "key", "status", "fork"),
    [
        (0, 200, HONEST, LOG, 409, False),  # the log has forgotten what it showed
        (50, 200, HONEST, LOG, 409, False),
        (100, 50, HONEST, LOG, 400, False),
        (50, 50, HONEST, LOG, 409, False),
        (100, 100, FORGED, LOG, 409, True),
        (100, 200, FORGED, LOG, 422, False),  # of another size no two notes convict: the proof is whoever asks's
        (100, 200, HONEST, STRANGER, 403, False),
        (100, 200, HONEST, Key.make("other.example/log"), 403, False),
    ],
)
async def test_it_refuses_what_does_not(
    witness: Witness, old: int, new: int, leaves: list[bytes], key: Key, status: int, *, fork: bool
) -> None:
    assert (await witness.add((await asked(0, 100)).body.encode())).status == 200
    question = Asked(old, tuple(await proof(min(old, new), new, leaves)), signed(new, leaves, key))
    verdict = await witness.add(question.body.encode())
    assert verdict.status == status
    assert verdict.said == "100\n" or status != 409
    assert witness.size(ORIGIN) == 100
    evidence = witness.memory.evidence()
    assert len(evidence) == fork
    if fork:  # both notes are there, and the log has signed both
        assert signed(100).text in evidence[0]
        assert question.note.text in evidence[0]


async def test_another_count_of_the_districts_under_the_same_root_is_a_fork(witness: Witness) -> None:
    assert (await witness.add((await asked(0, 100)).body.encode())).status == 200
    other = signed(100, heads=tree.leaf_hash(b"an office without its last events"))
    for stranger in (STRANGER, Key.make("else.example")):  # the same two bodies are kept once, whoever adds lines
        verdict = await witness.add(Asked(100, (), other.signed([stranger.sign(other.body)])).body.encode())
        assert (verdict.status, verdict.said) == (409, "100\n")
    (kept,) = witness.memory.evidence()
    assert signed(100).text in kept
    assert other.body in kept


async def test_a_genuine_checkpoint_with_a_bad_proof_accuses_nobody(witness: Witness) -> None:
    assert (await witness.add((await asked(0, 100)).body.encode())).status == 200
    for n in range(3):
        assert (await witness.add(Asked(100, (tree.leaf_hash(b"%d" % n),), signed(200)).body.encode())).status == 422
    assert witness.memory.evidence() == []
    assert (await witness.add((await asked(100, 200)).body.encode())).status == 200


async def test_evidence_does_not_fill_the_disk(witness: Witness) -> None:
    assert (await witness.add((await asked(0, 100)).body.encode())).status == 200
    for n in range(EVIDENCE_MAX + 5):
        await witness.add(Asked(100, (), signed(100, heads=tree.leaf_hash(b"%d" % n))).body.encode())
    assert len(witness.memory.evidence()) == EVIDENCE_MAX


def test_a_log_that_is_not_watched_is_not_found() -> None:
    assert judge(None, [], Asked(0, (), signed(5))).status == 404


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"old x\n\n",
        b"old 1\n",
        b"old " + b"9" * 5000 + b"\n\n" + signed(5).text.encode(),
        b"old 1\nAAAA\n\n" + signed(5).text.encode(),
        b"old 0\n\nnonsense",
        b"0\n\n",
    ],
)
async def test_nonsense_is_malformed(witness: Witness, body: bytes) -> None:
    assert (await witness.add(body)).status == 400


async def test_nothing_is_cosigned_on_a_damaged_memory(witness: Witness, tmp_path: Path) -> None:
    await witness.add((await asked(0, 100)).body.encode())
    (tmp_path / "memory" / f"{origin_hash(ORIGIN)}.note").write_text("damaged")
    with pytest.raises(NoteError):
        await witness.add((await asked(100, 200)).body.encode())


async def test_nothing_is_cosigned_that_cannot_be_written_down(
    witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        await witness.add((await asked(0, 100)).body.encode())


def test_two_processes_do_not_share_a_memory(witness: Witness, tmp_path: Path) -> None:
    with pytest.raises(HeldElsewhereError):
        Memory(tmp_path / "memory")


def test_a_log_s_key_cannot_cosign(tmp_path: Path) -> None:
    with pytest.raises(NoteError, match="paidan witness key"):
        Witness(LOG, [LOG.verifier], Memory(tmp_path / "memory"))


# --- the log's side ---------------------------------------------------------------------------------------------------


@dataclass
class Kept:
    """Cosignatures in memory."""

    lines: dict[int, dict[str, str]] = field(default_factory=dict)
    notes: dict[int, Note] = field(default_factory=dict)
    """What some instance has signed."""

    async def checkpoint(self, size: int | None = None) -> Signed | None:
        found = max((each for each in self.notes if size is None or each <= size), default=None)
        return Signed(found, self.notes[found].text, 0, datetime.now(UTC)) if found is not None else None

    async def put_cosignature(self, size: int, witness: str, line: str) -> None:
        self.lines.setdefault(size, {}).setdefault(witness, line)

    async def cosignatures(self, size: int) -> list[str]:
        return list(self.lines.get(size, {}).values())


def cosigning(policy: str, kept: Kept, leaves: list[bytes] = HONEST) -> Cosigning:
    async def prove(old: int, new: int) -> list[bytes]:
        return await proof(old, new, leaves)

    return Cosigning(ORIGIN, lambda: [LOG.verifier], Policy.parse(policy), kept, prove)


@asynccontextmanager
async def running(made: Cosigning) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(made.run(stop))
    yield
    stop.set()
    await task


async def until(done: Callable[[], object], within_s: float = 15) -> None:
    async with asyncio.timeout(within_s):
        while not done():
            await asyncio.sleep(0.02)


@dataclass
class Process:
    """`paidan witness run` on a port of its own."""

    key: Path
    vkey: str
    memory: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = ["witness", "run", "--key", self.key, "--log", LOG.verifier.text, "--memory", self.memory]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "deploy.cli", *map(str, command), "--port", str(self.port)],
            stdout=subprocess.DEVNULL,
        )
        until = time.monotonic() + 20
        while time.monotonic() < until:
            try:
                if httpx2.get(f"{self.url}/readyz").status_code == 200:
                    return
            except httpx2.HTTPError:
                time.sleep(0.05)
        raise AssertionError("the witness did not start")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    key = tmp_path / "witness.key"
    made = subprocess.run(
        [sys.executable, "-m", "deploy.cli", "witness", "key", "witness.a.example", "--out", str(key)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert key.stat().st_mode & 0o777 == 0o600
    assert Verifier.parse(made.stdout) == Key.parse(key.read_text()).verifier
    running = Process(key, made.stdout.strip(), tmp_path / "memory")
    running.start()
    yield running
    running.kill()


async def test_a_witness_in_a_process_of_its_own_is_asked_killed_and_remembers(process: Process) -> None:
    kept = Kept()
    made = cosigning(f"log {LOG.verifier.text}\nwitness a {process.vkey} {process.url}\nquorum a", kept)
    async with running(made):
        await made.announce(signed(100))
        await until(lambda: made.cosigned)
        assert made.served() == made.cosigned
        assert made.policy.check(made.cosigned or signed(100)) == ["a"]
        assert [*kept.lines] == [100]
        process.kill()
        await made.announce(signed(200))
        await asyncio.sleep(0.2)
        assert Checkpoint.parse((made.served() or signed(0)).body).size == 100  # goes on showing what was witnessed
        process.start()
        await until(lambda: made.cosigned and Checkpoint.parse(made.cosigned.body).size == 200)
    held = httpx2.get(f"{process.url}/{origin_hash(ORIGIN)}/checkpoint").text
    assert held == signed(200).text
    about = httpx2.get(f"{process.url}/v1/witness").json()
    assert (about["vkey"], about["logs"][0]["size"], about["evidence"]) == (process.vkey, 200, [])

    # Another history: the same key, another leaf below what the witness holds.
    forged = cosigning(f"log {LOG.verifier.text}\nwitness a {process.vkey} {process.url}\nquorum a", Kept(), FORGED)
    async with running(forged):
        await forged.announce(signed(200, FORGED))
        await until(lambda: httpx2.get(f"{process.url}/v1/witness").json()["evidence"])
        assert forged.cosigned is None
    shown = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "deploy.cli", "witness", "show", "--memory", str(process.memory)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 1
    assert signed(200).text in shown.stdout
    assert signed(200, FORGED).text in shown.stdout

    # A log that was rolled back learns from the witness's own checkpoint that it has signed more.
    behind = cosigning(f"log {LOG.verifier.text}\nwitness a {process.vkey} {process.url}\nquorum a", Kept())
    async with running(behind):
        await behind.announce(signed(150))
        await until(lambda: behind.ahead)
        assert behind.ahead == Checkpoint.parse(signed(200).body)
        await behind.announce(signed(200))
        assert behind.ahead is None
        await until(lambda: behind.cosigned)


async def test_only_witnesses_that_the_policy_names_count() -> None:
    made = cosigning(f"log {LOG.verifier.text}\nwitness a {WITNESS.verifier.text}\nquorum a", Kept())
    await made.announce(signed(100))
    stranger = Key.make(WITNESS.name, COSIGNATURE)
    for line in (stranger.sign(signed(100).body, 1).line, WITNESS.sign(signed(200).body, 1).line, "nonsense"):
        with pytest.raises(RefusedError, match="invalid"):
            await made.take(100, line)
    with pytest.raises(RefusedError, match="invalid"):
        await made.take(200, WITNESS.sign(signed(200).body, 1).line)
    await made.take(100, WITNESS.sign(signed(100).body, 1).line)
    assert made.cosigned is not None


async def test_how_long_a_checkpoint_waits_for_its_witnesses_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("services.ledger.log.cosigning.monotonic", lambda: now)
    made = cosigning(f"log {LOG.verifier.text}\nwitness a {WITNESS.verifier.text}\nquorum a", Kept())
    assert REGISTRY.get_sample_value("paidan_ledger_uncosigned_seconds") == 0
    for size in (100, 200, 100):
        await made.announce(signed(size))
        now += 5
    assert REGISTRY.get_sample_value("paidan_ledger_uncosigned_seconds") == 15
    await made.take(100, WITNESS.sign(signed(100).body, 1).line)
    assert made.waiting_s() == 10, "since that of 200 was signed"
    await made.take(200, WITNESS.sign(signed(200).body, 1).line)
    assert made.waiting_s() == 0


async def test_a_claim_to_hold_more_needs_the_log_s_signature() -> None:
    made = cosigning("quorum none", Kept())
    await made.announce(signed(100))
    with pytest.raises(NoteError):
        await made.holds(signed(200, key=STRANGER).text)
    assert made.ahead is None
    assert await made.holds(signed(200).text) == 200
    assert made.ahead is not None


async def test_an_instance_that_lags_alarms_nobody_and_takes_what_is_for_the_other() -> None:
    kept = Kept()
    policy = f"log {LOG.verifier.text}\nwitness a {WITNESS.verifier.text}\nquorum a"
    made = cosigning(policy, kept)
    await made.announce(signed(100))
    kept.notes[200] = signed(200)  # by the other
    assert await made.holds(signed(200).text) == 200
    assert made.ahead is None
    assert await made.next(WITNESS.name, 200, 0.05) is None
    await made.take(200, WITNESS.sign(signed(200).body, 1).line)
    assert made.cosigned is None
    await made.announce(signed(200))
    assert made.cosigned == made.newest
    # The same size in the store, and another text at a witness: that is no lag.
    kept.notes[300] = signed(300)
    await made.holds(signed(300, FORGED).text)
    assert made.ahead == Checkpoint.parse(signed(300, FORGED).body)
    assert await made.next(WITNESS.name, 300, 0.05) is not None


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param((409, b"9" * 5000), id="digits"),
        pytest.param((409, b"200\n"), id="more, and does not show it"),
        pytest.param((200, b"x" * 100_000), id="long"),
        pytest.param((200, b"\xff nonsense"), id="bytes"),
    ],
)
async def test_a_witness_that_answers_nonsense_is_asked_again(answer: tuple[int, bytes]) -> None:
    asks, good = 0, WITNESS.sign(signed(100).body, 1).line.encode()

    async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asks
        asks += 1
        await reader.readuntil(b"\r\n\r\n")
        status, body = answer if asks == 1 else (200, good)
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (status, len(body), body))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answered, "127.0.0.1", port := free_port()):
        url = f"http://127.0.0.1:{port}"
        made = cosigning(f"log {LOG.verifier.text}\nwitness a {WITNESS.verifier.text} {url}\nquorum a", Kept())
        async with running(made):
            await made.announce(signed(100))
            await until(lambda: made.cosigned)
    assert asks > 1


async def test_cosignatures_are_found_again_after_a_restart() -> None:
    kept = Kept()
    await kept.put_cosignature(100, WITNESS.name, WITNESS.sign(signed(100).body, 7).line)
    made = cosigning(f"log {LOG.verifier.text}\nwitness a {WITNESS.verifier.text}\nquorum a", kept)
    await made.announce(signed(100))
    assert made.cosigned is not None
    assert json.dumps(made.cosigned.text) != json.dumps(signed(100).text)
