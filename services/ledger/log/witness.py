"""
A witness: an office that remembers how long the log was and what was in it, so that nobody can rewrite it unseen.

It follows the rules of C2SP tlog-witness: a checkpoint that the log has signed is cosigned if, and only if, it continues the one
that this witness holds. What it holds lies on its own disk and is written there before the cosignature leaves the house. Two
checkpoints that the log has signed and that contradict each other are kept: they are the evidence, whoever made them.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import orjson
from fastapi import FastAPI, Request, Response
from fastapi import Path as InPath
from fastapi.responses import PlainTextResponse
from prometheus_client import Counter, Gauge

from services.ledger.log import tree
from services.ledger.log.notes import COSIGNATURE, NOTE_BYTES_MAX, Checkpoint, Key, Note, NoteError, Verifier
from services.ledger.log.tree import HASH_BYTES, ProofError
from shared.access import public
from shared.auth import Doorkeeper
from shared.bus import Bus
from shared.errors import PaidanError, RefusedError, UnavailableError
from shared.serving import serve, stop_on_signals
from shared.settings import ServiceSettings
from shared.telemetry import logger
from shared.web import Readiness, create_app, problems

PROOF_MAX = 63
BODY_BYTES_MAX = NOTE_BYTES_MAX + 64 * 48
SHOWN_MAX = 2000
"""Characters of a checkpoint that was not cosigned that go into the log."""
EVIDENCE_MAX = 20
"""Forks of which both notes are kept: one is enough to convict, and more must not fill the disk."""
ASK_WITHIN_S = 15.0
"""The ledger holds a question until there is something new, for less than this."""
REFUSALS: Mapping[int, str] = {
    400: "格式有误 / malformed",
    403: "未由该账本签名 / not signed by the log",
    404: "不见证该账本 / a log that is not watched",
    409: "与所持大小不同(正文为所持大小) / not the size held, which the body says",
    422: "不是所持检查点的延续 / no continuation",
}
ANSWERS = Counter("paidan_witness_answers_total", "What was said to checkpoints", ["status"])
FORKS = Counter("paidan_witness_forks_total", "Signed checkpoints that contradict what this witness holds")
SIZE = Gauge("paidan_witness_size", "Leaves of the checkpoint held", ["log"])


class Asked(NamedTuple):
    """A request: the size that the log believes this witness holds, the proof from there, and the checkpoint."""

    old: int
    proof: tuple[bytes, ...]
    note: Note

    @property
    def body(self) -> str:
        """As C2SP tlog-witness writes it."""
        lines = [f"old {self.old}", *(b64encode(piece).decode() for piece in self.proof), "", ""]
        return "\n".join(lines) + self.note.text

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """The way back. Raises NoteError."""
        try:
            head, found, note = body.decode().partition("\n\n")
            first, *lines = head.split("\n")
            old = first.removeprefix("old ")
            if not found or not first.startswith("old ") or not old.isascii() or not old.isdecimal():
                raise ValueError("it begins with a line `old SIZE`")
            proof = tuple(b64decode(line, validate=True) for line in lines)
            if len(proof) > PROOF_MAX or any(len(piece) != HASH_BYTES for piece in proof):
                raise ValueError(f"the proof is at most {PROOF_MAX} hashes of 32 bytes")
            return cls(int(old), proof, Note.parse(note))
        except ValueError as why:
            raise NoteError(f"not an add-checkpoint request: {why}") from None


@dataclass(frozen=True, slots=True)
class Verdict:
    """
    What a witness says of a request.

    Attributes:
        status: 200; 400 malformed or smaller than it says, 403 not signed by the log, 404 a log it does not watch, 409 not what it
            holds, 422 no continuation.
        said: why, or with 409 the size it holds.
        checkpoint: with 200, what it holds from now on.
        contradicts: the log's signature stands under what it holds and under another text of the same size: the evidence of a fork.
            A proof that fails is none: anybody may bring a bad proof with a good checkpoint.
    """

    status: int
    said: str = ""
    checkpoint: Checkpoint | None = None
    contradicts: bool = False


def judge(held: Note | None, logs: Sequence[Verifier], asked: Asked) -> Verdict:
    """
    Whether a checkpoint continues the one that is held: the rules of C2SP tlog-witness.

    Args:
        held: the last one cosigned, of the same origin; None for the first.
        logs: the keys of that log; none: it is not watched.
    """
    try:
        new = Checkpoint.parse(asked.note.body)
        if not logs:
            return Verdict(404, "a log that this witness does not watch")
        if not asked.note.verified(logs):
            return Verdict(403, "not signed by a key of the log that this witness knows")
    except NoteError as why:
        return Verdict(403, str(why))
    if asked.old > new.size:
        return Verdict(400, f"the checkpoint has {new.size} leaves, fewer than the {asked.old} before")
    have = Checkpoint.parse(held.body) if held else Checkpoint(new.origin, 0, tree.EMPTY)
    if held and have.size == new.size and held.body != asked.note.body:
        return Verdict(409, f"{have.size}\n", contradicts=True)
    if asked.old != have.size:
        return Verdict(409, f"{have.size}\n")
    try:
        tree.verify_consistency(have.size, new.size, have.root, new.root, asked.proof)
    except ProofError as why:
        return Verdict(422, str(why))
    return Verdict(200, checkpoint=new)


class HeldElsewhereError(PaidanError):
    """Another process keeps its memory in the same folder: two of them could cosign two histories."""


@dataclass
class Memory:
    """
    What a witness holds, on disk: `<hex SHA-256 of origin>.note`, and `evidence/` beside it. One process at a time.

    Raises:
        HeldElsewhereError, OSError: when opened.
    """

    folder: Path
    _lock: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise HeldElsewhereError(f"another witness keeps its memory in {self.folder}") from None

    def close(self) -> None:
        """Let another process have it."""
        os.close(self._lock)

    def held(self, origin: str) -> Note | None:
        """The last checkpoint of a log. Raises NoteError: the file is damaged, and nothing must be cosigned on it."""
        file = self.folder / f"{origin_hash(origin)}.note"
        return Note.parse(file.read_text()) if file.exists() else None

    def hold(self, origin: str, note: Note) -> None:
        """Keep this one instead, for good before this returns. Raises OSError."""
        self._write(self.folder / f"{origin_hash(origin)}.note", note.text)

    def accuse(self, held: Note, other: Note) -> Path | None:
        """Keep two signed checkpoints that contradict each other; returns where, None where these two, or `EVIDENCE_MAX`, are kept."""
        folder = self.folder / "evidence"
        folder.mkdir(exist_ok=True, mode=0o700)
        file = folder / f"{sha256((held.body + other.body).encode()).hexdigest()[:16]}.txt"
        if file.exists() or len(list(folder.glob("*.txt"))) >= EVIDENCE_MAX:
            return None
        self._write(file, f"{held.text}\n{other.text}")
        return file

    def evidence(self) -> list[str]:
        """What was kept of forks, oldest first."""
        files = sorted((self.folder / "evidence").glob("*.txt"), key=lambda file: file.stat().st_mtime)
        return [file.read_text() for file in files]

    def _write(self, file: Path, text: str) -> None:
        new = file.with_suffix(".new")
        with new.open("w") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        new.replace(file)
        folder = os.open(self.folder if file.parent == self.folder else file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def origin_hash(origin: str) -> str:
    """How a log is named in addresses and files."""
    return sha256(origin.encode()).hexdigest()


class Witness:
    """One key, the logs it watches (by origin: their keys), and its memory."""

    def __init__(self, key: Key, logs: Iterable[Verifier], memory: Memory) -> None:
        """Raises NoteError: the key is not one for cosignatures."""
        if key.type != COSIGNATURE:
            raise NoteError(f"the key of {key.name} is a log's: make one with `paidan witness key`")
        self.key = key
        self.memory = memory
        self.logs: dict[str, tuple[Verifier, ...]] = {}
        for log in logs:
            self.logs[log.name] = (*self.logs.get(log.name, ()), log)
        self._turn = asyncio.Lock()

    async def add(self, body: bytes) -> Verdict:
        """
        Take an add-checkpoint request; with 200 `said` is the cosignature's line.

        Raises:
            OSError: it could not be written down, and is not cosigned.
        """
        try:
            asked = Asked.parse(body)
            origin = Checkpoint.parse(asked.note.body).origin
        except NoteError as why:
            return self._say(Verdict(400, str(why)))
        async with self._turn:
            held = self.memory.held(origin) if origin in self.logs else None
            verdict = judge(held, self.logs.get(origin, ()), asked)
            if verdict.checkpoint is None:
                if verdict.contradicts and held is not None:
                    FORKS.inc()
                    if where := await asyncio.to_thread(self.memory.accuse, held, asked.note):
                        logger().error("fork", log=origin, held=Checkpoint.parse(held.body).size, evidence=str(where))
                return self._say(verdict)
            await asyncio.to_thread(self.memory.hold, origin, asked.note)
        SIZE.labels(origin).set(verdict.checkpoint.size)
        line = self.key.sign(asked.note.body, int(time.time())).line
        return self._say(Verdict(200, line, verdict.checkpoint))

    def _say(self, verdict: Verdict) -> Verdict:
        ANSWERS.labels(str(verdict.status)).inc()
        return verdict

    def size(self, origin: str) -> int:
        """How many leaves the checkpoint held of a log has; 0 without one. Raises NoteError."""
        held = self.memory.held(origin)
        return Checkpoint.parse(held.body).size if held else 0


# --- over the bus -----------------------------------------------------------------------------------------------------


async def follow(bus: Bus, district: str, witness: Witness, origin: str, stop: asyncio.Event) -> None:
    """
    Ask the ledger for what is new behind what is held, and give it the cosignature, until told to stop.

    The witness asks, so that no way into the office has to be open: `qry.<district>.witness.next` `{"log",
    "witness": <its name>, "held": <checkpoint held, or null>}`, kept waiting until there is something → `{"add": <add-checkpoint
    request>}` or `{}`; `qry.<district>.witness.cosigned` `{"log", "size", "line"}`.
    """
    failures = 0
    while not stop.is_set():
        try:
            await _follow_once(bus, f"qry.{district}.witness", witness, origin)
            failures = 0
        except Exception as why:  # whatever the ledger says must not end this: nobody would notice
            failures += 1
            logger().warning("witness_waits", log=origin, why=str(why) or type(why).__name__)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), min(10.0, 0.5 * 2 ** min(failures, 5)))


async def _follow_once(bus: Bus, subject: str, witness: Witness, origin: str) -> None:
    held = witness.memory.held(origin)
    asking = orjson.dumps({"log": origin, "witness": witness.key.name, "held": held.text if held else None})
    answer = _read(await bus.request(f"{subject}.next", asking, timeout_s=ASK_WITHIN_S))
    if (body := answer.get("add")) is None:
        return
    verdict = await witness.add(str(body).encode())
    if verdict.checkpoint is None:
        # Either the ledger is behind what it once signed, or it tells another history: a person has to look.
        why = verdict.said.strip()
        logger().error("not_cosigned", log=origin, status=verdict.status, why=why, shown=str(body)[-SHOWN_MAX:])
        raise UnavailableError(f"not cosigned: {verdict.status}: {why}")
    told = orjson.dumps({"log": origin, "size": verdict.checkpoint.size, "line": verdict.said})
    _read(await bus.request(f"{subject}.cosigned", told, timeout_s=5))


def _read(answer: bytes) -> dict[str, Any]:
    """Raises UnavailableError: what the ledger says is a problem, or no answer at all."""
    try:
        said: dict[str, Any] = orjson.loads(answer)
        wrong = said.get("problem")
    except (orjson.JSONDecodeError, AttributeError):
        raise UnavailableError("the ledger's answer is not understood") from None
    if wrong is not None:
        told = (wrong.get("detail_en") or wrong.get("code")) if isinstance(wrong, dict) else wrong
        raise UnavailableError(str(told))
    return said


# --- over HTTP --------------------------------------------------------------------------------------------------------


class WitnessSettings(ServiceSettings):
    """What a witness runs on, beside the address that it listens on and the bus it may follow."""

    key_file: Path
    """Its private key, of `paidan witness key`."""
    logs: tuple[str, ...]
    """The vkeys of the logs that it watches, got from each log's owner by another way than this network."""
    memory: Path
    district: str | None = None
    """Of the office's app on the bus (`nats_seed_file`); None: HTTP alone."""
    app: str = "witness"
    """The name of that app."""


def create_witness_app(witness: Witness, *, ready: Readiness) -> FastAPI:
    """`POST /add-checkpoint`, and what everybody may see: the checkpoint held, and the evidence of forks."""
    app = create_app("派单见证 / Paidan witness", ready=ready, doorkeeper=Doorkeeper([]), body_bytes_max=BODY_BYTES_MAX)

    @app.post(
        "/add-checkpoint",
        tags=["witness"],
        summary="见证一个检查点(C2SP tlog-witness) / cosign a checkpoint that continues the one held",
        response_class=PlainTextResponse,
        responses={status: {"description": why} for status, why in REFUSALS.items()},
        openapi_extra={"requestBody": {"required": True, "content": {"text/plain": {"schema": {"type": "string"}}}}},
        dependencies=[public],
    )
    async def add_checkpoint(request: Request) -> Response:
        verdict = await witness.add(await request.body())
        kind = "text/x.tlog.size" if verdict.status == 409 else "text/plain; charset=utf-8"
        said = verdict.said if verdict.said.endswith("\n") else f"{verdict.said}\n"
        return Response(said, verdict.status, media_type=kind)

    @app.get(
        "/{log}/checkpoint",
        tags=["witness"],
        summary="所见证的最新检查点 / the checkpoint held of a log, by the hex SHA-256 of its origin",
        response_class=PlainTextResponse,
        responses=problems("not_found"),
        dependencies=[public],
    )
    async def checkpoint(log: Annotated[str, InPath(pattern="^[0-9a-f]{64}$")]) -> Response:
        origin = next((origin for origin in witness.logs if origin_hash(origin) == log), None)
        held = witness.memory.held(origin) if origin is not None else None
        if held is None:
            raise RefusedError("not_found", what=log)
        return PlainTextResponse(held.text)

    @app.get(
        "/v1/witness",
        tags=["witness"],
        summary="见证方公钥、所见证的账本与分叉证据 / the witness's key, the logs it watches, evidence of forks",
        dependencies=[public],
    )
    async def about() -> dict[str, Any]:
        logs = [{"log": origin, "hash": origin_hash(origin), "size": witness.size(origin)} for origin in witness.logs]
        return {"vkey": witness.key.verifier.text, "logs": logs, "evidence": witness.memory.evidence()}

    return app


async def run(settings: WitnessSettings) -> None:
    """
    Answer, and follow the bus where the settings say so, until told to stop.

    Raises:
        NoteError: the key or a vkey is not one.
        HeldElsewhereError: the folder is another witness's.
        UnavailableError: the bus cannot be reached. OSError: a file or the port cannot be had.
    """
    until = stop_on_signals()
    logs = [Verifier.parse(vkey) for vkey in settings.logs]
    witness = Witness(Key.parse(settings.key_file.read_text()), logs, Memory(settings.memory))
    bus: Bus | None = None
    if settings.district is not None:
        bus = await Bus.connect(
            settings.nats_url, name=settings.app, seed=settings.seed(), ca_file=settings.nats_ca_file
        )

    async def ready() -> Mapping[str, str]:
        return {"nats": "not connected"} if bus is not None and not bus.connected else {}

    following = [
        asyncio.create_task(follow(bus, settings.district, witness, origin, until))
        for origin in witness.logs
        if bus is not None and settings.district is not None
    ]
    logger().info("witness_started", name=witness.key.name, logs=list(witness.logs), port=settings.http_port)
    try:
        await serve(create_witness_app(witness, ready=ready), settings, until=until)
    finally:
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
        if bus is not None:
            await bus.drain()
        witness.memory.close()
