"""
The log's side of witnessing: whoever witnesses is given each new checkpoint with the proof that it continues theirs.

Witnesses are asked (`POST <url>/add-checkpoint`, C2SP tlog-witness) or ask by themselves over the bus (`services.ledger.log.witness`). What
the policy does not name is not kept. A witness that holds more than the log has signed is a sign that the log was rolled back:
nothing is signed below what it holds.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Protocol

import httpx2
import orjson
from prometheus_client import Counter, Gauge

from services.ledger.log.notes import NOTE_BYTES_MAX, Checkpoint, Note, NoteError, Policy, Signature, Verifier
from services.ledger.log.witness import Asked, origin_hash
from services.ledger.store import Signed
from shared.bus import Request
from shared.envelope import canonical
from shared.errors import RefusedError, UnavailableError
from shared.problems import problem
from shared.telemetry import logger

QUERIES = "qry.*.witness.*"
HOLD_S = 10.0
"""How long a witness that asks over the bus is kept waiting for something new."""
ASK_WITHIN_S = 5.0
CORRECTED_S = 0.1
"""Between two questions to a witness that says it holds something else."""
WAITING_MAX = 200
"""Of those who ask over the bus at a time; more of them are told that there is nothing new, and ask again."""
KEPT = 1000
"""Checkpoints that are kept at hand."""
COSIGNED = Gauge("paidan_ledger_cosigned_size", "Leaves of the last checkpoint that enough witnesses have cosigned")
WAITING = Gauge(
    "paidan_ledger_uncosigned_seconds",
    "How long the oldest checkpoint behind the last cosigned one has waited; 0: none waits",
)
REFUSED = Counter(
    "paidan_ledger_witness_refusals_total", "Checkpoints a witness refused to cosign", ["witness", "status"]
)

Prove = Callable[[int, int], Awaitable[list[bytes]]]
"""The consistency proof between two sizes."""


class Cosignatures(Protocol):
    """What is needed of the store."""

    async def checkpoint(self, size: int | None = None) -> Signed | None:
        """The last checkpoint that is not larger than a size."""

    async def put_cosignature(self, size: int, witness: str, line: str) -> None:
        """Keep one, for good; one that is there already stays."""

    async def cosignatures(self, size: int) -> list[str]:
        """The lines under one checkpoint."""


class Cosigning:
    """
    Keeps a log's witnesses up to date, and their cosignatures.

    Attributes:
        newest: the last checkpoint that the log has signed.
        ahead: the last checkpoint of this log that a witness showed and the log, whichever instance signed, no longer knows;
            None: all is well.
        cosigned: the last checkpoint, with cosignatures, that satisfies the policy; the newest where it asks for none.
    """

    def __init__(
        self, origin: str, keys: Callable[[], Sequence[Verifier]], policy: Policy, store: Cosignatures, prove: Prove
    ) -> None:
        """With `keys`: the log's own, as they are when asked."""
        self.origin = origin
        self._keys = keys
        self.policy = policy
        self._store = store
        self._prove = prove
        self._signed: OrderedDict[int, Note] = OrderedDict()
        self._since: dict[int, float] = {}
        self._moved = asyncio.Condition()
        self._waiting = 0
        self._closing = False
        self.newest: Note | None = None
        self.cosigned: Note | None = None
        self.ahead: Checkpoint | None = None
        WAITING.set_function(self.waiting_s)

    def waiting_s(self) -> float:
        """For how long a signed checkpoint, the oldest of those that are newer than `cosigned`, has not had enough witnesses."""
        return monotonic() - min(self._since.values()) if self._since else 0.0

    async def announce(self, note: Note) -> None:
        """The log has signed this; with what cosignatures the store has of it, after a restart."""
        size = Checkpoint.parse(note.body).size
        kept = [Signature.parse(line) for line in await self._store.cosignatures(size)]
        self._signed[size] = note = note.signed(kept)
        if len(self._since) < KEPT:
            self._since.setdefault(size, monotonic())
        while len(self._signed) > KEPT:
            self._signed.popitem(last=False)
        async with self._moved:
            self.newest = note
            self._moved.notify_all()
        if self.ahead is not None and self.ahead.size <= size:
            self.ahead = None
        self._look(size)

    async def next(self, witness: str, old: int, within_s: float) -> Asked | None:
        """
        What a witness of this name that holds `old` leaves has to be shown; None: nothing new in this time.

        The checkpoint that it holds is shown again where its cosignature is not there: it was lost on the way.
        Where it holds more than this instance has signed, it waits: another one was quicker. Where the log was rolled back, it is
        shown the newest all the same: it refuses, and says so at home.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s), self._moved:
                await self._moved.wait_for(lambda: self._closing or self._lacks(witness, old))
        note, size = self.newest, self._size()
        if note is None or not self._lacks(witness, old):
            return None
        proof = await self._prove(old, size) if 0 < old < size else []
        return Asked(old, tuple(proof), Note(note.body, note.signatures))

    async def take(self, size: int, line: str) -> None:
        """
        Keep a cosignature.

        Raises:
            RefusedError: `invalid`: of a checkpoint that is not there, by nobody whom the policy names, or wrong.
            UnavailableError: the store is away; the witness cosigns the next one.
        """
        note = self._signed.get(size) or await self._kept(size)
        try:
            if note is None:
                raise NoteError(f"there is no checkpoint of {size} leaves")
            signature = Signature.parse(line)
            if not Note(note.body, (signature,)).verified(self.policy.witnesses.values()):
                raise NoteError(f"the policy names no witness {signature.name} with this key")
        except NoteError as why:
            raise RefusedError("invalid", field="line", why=str(why)) from None
        await self._store.put_cosignature(size, signature.name, signature.line)
        if size in self._signed:  # else another instance signed it, and this one reads it with its cosignatures
            self._signed[size] = self._signed[size].signed([signature])
            self._look(size)

    async def _kept(self, size: int) -> Note | None:
        """The checkpoint of a size, whichever instance signed it. Raises UnavailableError, NoteError."""
        found = await self._store.checkpoint(size)
        return Note.parse(found.note) if found and found.size == size else None

    async def close(self) -> None:
        """Keep nobody waiting any longer."""
        async with self._moved:
            self._closing = True
            self._moved.notify_all()

    def served(self) -> Note | None:
        """What is shown to everybody: the last checkpoint that enough witnesses have seen, the newest until there is one."""
        return self.cosigned or self.newest

    def _look(self, size: int) -> None:
        """Whether the policy is satisfied by what there is under this checkpoint."""
        note = self._signed[size]
        before = Checkpoint.parse(self.cosigned.body).size if self.cosigned else -1
        if size < before:
            return
        with suppress(NoteError):
            signed = note.verified(self.policy.witnesses.values())
            if self.policy.satisfied([name for name, key in self.policy.witnesses.items() if key in signed]):
                self.cosigned = note
                self._since = {of: since for of, since in self._since.items() if of > size}
                COSIGNED.set(size)

    def _lacks(self, witness: str, old: int) -> bool:
        size = self._size()
        if size == old:
            return size > 0 and all(each.name != witness for each in self._signed[size].signatures)
        return size > old or (size > 0 and self.ahead is not None)

    def _size(self) -> int:
        return Checkpoint.parse(self.newest.body).size if self.newest else 0

    def _known(self) -> int:
        return max(self._size(), self.ahead.size if self.ahead else 0)

    async def holds(self, text: str) -> int:
        """
        What a witness says it holds, by the checkpoint itself: the log's signature under it is what makes it count.

        Raises:
            NoteError: it is none of this log's.
            UnavailableError: the store is away, and only there can be seen whether another instance signed it.
        """
        note = Note.parse(text)
        held = Checkpoint.parse(note.body)
        if held.origin != self.origin or not note.verified(self._keys()):
            raise NoteError("not a checkpoint that this log has signed")
        if held.size <= self._known():
            return held.size
        kept = await self._kept(held.size)
        # While we looked it may have been announced.
        if held.size > self._known() and (kept is None or kept.body != note.body):
            logger().error("witness_ahead", log=self.origin, holds=held.size, signed=self._size())
            self.ahead = held
        return held.size

    # --- over the bus -------------------------------------------------------------------------------------------------

    async def answer(self, request: Request) -> None:
        """Answer `qry.<district>.witness.next` and `.cosigned`, each in a task of its own; with `{"problem"}` what is not understood or not theirs."""
        try:
            await request.answer(canonical(await self._answered(request)))
        except RefusedError as why:
            await request.answer(canonical({"problem": problem(why)}))
        except UnavailableError as why:
            logger().warning("witness_not_answered", why=str(why))
            await request.answer(canonical({"problem": problem(RefusedError("unavailable", retry_after=2))}))

    async def _answered(self, request: Request) -> dict[str, object]:
        try:
            asked = orjson.loads(request.data)
            log = asked.get("log")
        except (orjson.JSONDecodeError, AttributeError):
            raise RefusedError("invalid_json") from None
        if log != self.origin:
            raise RefusedError("not_found", what=str(log)[:200])
        if request.subject.endswith(".next"):
            try:
                old = await self.holds(held) if (held := asked.get("held")) else 0
            except (NoteError, AttributeError) as why:
                raise RefusedError("invalid", field="held", why=str(why)) from None
            self._waiting += 1
            try:
                found = await self.next(str(asked.get("witness")), old, HOLD_S if self._waiting <= WAITING_MAX else 0)
            finally:
                self._waiting -= 1
            return {"add": found.body} if found else {}
        size, line = asked.get("size"), asked.get("line")
        if type(size) is not int or not 0 <= size < 2**53 or not isinstance(line, str):
            raise RefusedError("invalid", field="line", why="须为签名行与大小", why_en="a signature's line, and a size")
        await self.take(size, line)
        return {}

    # --- over HTTP ----------------------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Show every new checkpoint to the witnesses that have an address, each at its own pace, until told to stop."""
        tasks = [asyncio.create_task(self._press(name, url.rstrip("/"))) for name, url in self.policy.urls.items()]
        await stop.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _press(self, name: str, url: str) -> None:
        held, failures, key = 0, 0, self.policy.witnesses[name].name
        async with httpx2.AsyncClient(timeout=ASK_WITHIN_S, headers={"Accept-Encoding": "identity"}) as client:
            while True:
                try:
                    asked = await self.next(key, held, 60)
                    if asked is None:
                        continue
                    status, said = await _exchange(client, "POST", f"{url}/add-checkpoint", asked.body)
                    if status == 200:
                        held = Checkpoint.parse(asked.note.body).size
                        await self.take(held, said)
                        failures = 0
                        continue
                    REFUSED.labels(name, str(status)).inc()
                    said = said.strip()
                    if status == 409 and said.isascii() and said.isdecimal() and int(said) != held:
                        holds = int(said)  # it knows better, and shows it where that is more than was signed
                        if holds > self._size():
                            _, shown = await _exchange(client, "GET", f"{url}/{origin_hash(self.origin)}/checkpoint")
                            holds = await self.holds(shown)
                        held = holds
                        await asyncio.sleep(CORRECTED_S)
                        continue
                    raise NoteError(f"{status}: {said[:200]}")
                except Exception as why:  # whatever a witness says must not end this: nobody would notice
                    failures += 1
                    logger().warning("witness_not_reached", witness=name, why=str(why)[:200] or type(why).__name__)
                    await asyncio.sleep(min(30.0, 0.5 * 2 ** min(failures, 6)))


async def _exchange(client: httpx2.AsyncClient, method: str, url: str, body: str | None = None) -> tuple[int, str]:
    """Status and text of an answer, which is no longer than a note. Raises HTTPError, InvalidURL, TimeoutError, NoteError."""
    said = b""
    async with asyncio.timeout(ASK_WITHIN_S), client.stream(method, url, content=body) as response:
        async for chunk in response.aiter_raw():
            said += chunk
            if len(said) > NOTE_BYTES_MAX:
                raise NoteError(f"{response.status_code}, and an answer of more than {NOTE_BYTES_MAX} bytes")
    return response.status_code, said.decode(errors="replace")
