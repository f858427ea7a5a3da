"""
Checkpoints: the log signs how long it is and the root over all of it, every second while it grows.

The last one signed is held outside MongoDB as well, in the bucket CHECKPOINTS of the bus, and comes there first: nothing is signed that
does not begin with it. Whoever takes leaves away, changes them, or brings an old copy back finds that this log signs no more, until
the same leaves are there again. The bucket is written by revision, so two instances never sign two histories.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from time import monotonic
from typing import NamedTuple, Protocol

from prometheus_client import Gauge

from services.ledger.log import notes, tree
from services.ledger.log.growing import Standing, Tree
from services.ledger.log.ingesting import ALARMS
from services.ledger.log.notes import Checkpoint, Key, Note, NoteError, Verifier
from services.ledger.log.tree import ProofError
from services.ledger.store import Signed, Store
from shared.bus import Bus, Stored
from shared.errors import BusError, ConflictError, PaidanError
from shared.telemetry import logger

EVERY_S = 1.0
BUCKET = "KV_CHECKPOINTS"
SEED_BYTES = 32
TILES = "the tiles do not give what was signed"

SIGNED = Gauge("paidan_ledger_signed_size", "Leaves under the last checkpoint")
REFUSING = Gauge("paidan_ledger_refuses_to_sign", "1 while the log is not consistent with the last checkpoint")


class RefusalError(PaidanError):
    """
    The log is not the one that was signed.

    Attributes:
        code: `truncated` (shorter than signed), `diverged` (other leaves), `tile` (the hashes kept of the leaves are
            not theirs; they are being made again), `hole` (leaves missing before its end), `foreign` (what is
            held as the last checkpoint is none of this log), `key` (the key cannot be read).
    """

    def __init__(self, code: str, why: str) -> None:
        super().__init__(why)
        self.code = code


class Witnesses(Protocol):
    """
    Who is shown what was signed.

    Attributes:
        ahead: a checkpoint of this log that a witness holds and the log no longer knows; None: all is well.
    """

    ahead: Checkpoint | None

    async def announce(self, note: Note) -> None:
        """There is a new checkpoint, or the last one is known after a start."""

    def served(self) -> Note | None:
        """What is shown to everybody."""


class Last(NamedTuple):
    """A checkpoint and the note it stands in."""

    checkpoint: Checkpoint
    note: Note


@dataclass(frozen=True)
class Keys:
    """
    What the log signs with: read anew for each checkpoint, so that a rotation needs no restart.

    Attributes:
        origin: the keys' name.
        file: 32 bytes, hex; beside it `<file>_old` after a rotation, which also says until when it signs (RFC 3339). None: nothing is signed.
    """

    origin: str
    file: Path | None

    @property
    def current(self) -> Key | None:
        """The log's key; None where there is none. Raises NoteError where it cannot be read."""
        words = self._words(self.file)
        return self._key(words[0]) if words else None

    @property
    def old(self) -> tuple[Key, datetime] | None:
        """The key before, and until when it signs too. Raises NoteError where it cannot be read."""
        words = self._words(self.file and self.file.with_name(f"{self.file.name}_old"))
        if len(words) != 2:
            return None
        try:
            return self._key(words[0]), datetime.fromisoformat(words[1])
        except ValueError:
            raise NoteError("the log's old key cannot be read") from None

    def signing(self, now: datetime) -> list[Key]:
        """The keys that sign at this time, the current one first."""
        current, old = self.current, self.old
        return [key for key in (current, old[0] if old and now < old[1] else None) if key]

    def published(self, now: datetime) -> list[Verifier]:
        """Whose signature others should believe at this time, the current key's first. Raises NoteError."""
        return [key.verifier for key in self.signing(now)]

    @property
    def verifiers(self) -> list[Verifier]:
        """Whose signature makes a checkpoint ours: the current key's, and the old one's for ever. Raises NoteError."""
        current, old = self.current, self.old
        return [key.verifier for key in (current, old[0] if old else None) if key]

    def _key(self, seed: str) -> Key:
        with suppress(ValueError):
            if len(read := bytes.fromhex(seed)) == SEED_BYTES:
                return Key(self.origin, notes.LOG, read)
        raise NoteError("the log's key is not 32 bytes in hex")

    def _words(self, file: Path | None) -> list[str]:
        try:
            return file.read_text().split() if file else []
        except FileNotFoundError:
            return []
        except OSError as why:
            raise NoteError(f"the log's key cannot be read: {why.strerror}") from None


@dataclass
class Signer:
    """
    Signs the log of one origin.

    Attributes:
        policy: whose signatures make a checkpoint believable, as published (tlog-policy); "": the log's own.
        last: the newest checkpoint that this instance knows of, signed by any.
        refusal: why it does not sign; None where all is well.
    """

    bus: Bus
    store: Store
    tree: Tree
    keys: Keys
    witnesses: Witnesses | None = None
    policy: str = ""
    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))
    last: Last | None = None
    refusal: RefusalError | None = None
    _stored: int = -1
    _read_again: int | None = None
    _warned: bool = False
    _unheld: bool = False

    @property
    def size(self) -> int:
        """Leaves under the last checkpoint."""
        return self.last.checkpoint.size if self.last else 0

    @property
    def subject(self) -> str:
        """Where the bus holds the last checkpoint."""
        return subject_of(self.keys.origin)

    async def run(self, stop: asyncio.Event) -> None:
        """Sign until told to stop, then once more, so that the last checkpoint is of the whole log."""
        while True:
            last, began = stop.is_set(), monotonic()
            try:
                async with asyncio.timeout(10):
                    await self.step()
            except (BusError, TimeoutError) as why:
                logger().warning("checkpoint_waits", why=str(why) or type(why).__name__)
            if last:
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), max(0.0, began + EVERY_S - monotonic()))

    async def step(self) -> None:
        """
        Sign what the log has grown to, if it has and may be signed.

        Raises:
            UnavailableError: bus or store do not answer.
        """
        try:
            await self._sign()
        except (RefusalError, NoteError) as why:
            refusal = why if isinstance(why, RefusalError) else RefusalError("key", str(why))
            if self.refusal is None or self.refusal.code != refusal.code:
                ALARMS.labels(f"unsigned_{refusal.code}").inc()
                logger().error("checkpoint_refused", code=refusal.code, why=str(refusal))
            self.refusal = refusal
            REFUSING.set(1)
        else:
            if self.refusal is not None:
                logger().info("checkpoint_signed_again", size=self.size)
            self.refusal, self._read_again = None, None
            REFUSING.set(0)

    async def _sign(self) -> None:
        """Raises RefusalError, NoteError."""
        keys = self.keys.signing(self.now())
        if not keys:
            if not self._warned:
                logger().warning("nothing_is_signed", why="no ledger_signing_key in PAIDAN_SECRETS_DIR")
            self._warned = True
            return
        standing = await self.tree.standing()
        if self._read_again and await self._is_behind(standing, self._read_again):
            raise RefusalError("tile", f"{TILES}: they are being made again from the {self._read_again} leaves")
        if standing is None:
            return
        ahead = self.witnesses.ahead if self.witnesses else None
        if self.last and self.size == standing.size == self._stored and self.refusal is None and ahead is None:
            return
        held = await self.bus.last(self.subject, stream=BUCKET)
        before = await self._before(held)
        if self.tree.missing is not None:
            raise RefusalError("hole", f"leaf {self.tree.missing} is missing, and there are later ones")
        if before and not await self._begins_with(before.checkpoint, standing):
            return
        if ahead and not await self._begins_with(ahead, standing):
            return
        if standing.size == (before.checkpoint.size if before else 0):
            await self._is(before)
            return
        since = max(0, before.checkpoint.size - 1) if before else 0
        if not await self.store.whole(since, standing.size):
            raise RefusalError("hole", f"of the leaves from {since} to {standing.size - 1} some are missing")
        checkpoint = notes.checkpoint(self.keys.origin, standing.size, standing.root, standing.heads)
        note = Note(checkpoint.body).signed(key.sign(checkpoint.body) for key in keys)
        try:
            await self.bus.put(self.subject, note.text.encode(), expect=held.sequence if held else 0)
        except ConflictError:
            return  # another instance signed: next time we go on from its checkpoint
        await self.store.put_checkpoint(Signed(standing.size, note.text, standing.recorded_ns, self.now()))
        self._stored = standing.size
        await self._is(Last(checkpoint, note))

    async def _before(self, held: Stored | None) -> Last | None:
        """
        The last checkpoint that was signed: as the bus holds it, or, where that lost it or went back, as MongoDB does.

        One that came to the bus and not to MongoDB, because an instance was killed in between, comes there now.
        """
        on_bus = self._ours(held.data.decode(errors="replace"), "the bus") if held else None
        newest = await self.store.checkpoint()
        stored = self._ours(newest.note, "MongoDB") if newest else None
        self._stored = stored.checkpoint.size if stored else -1
        if held is None and stored is not None and not self._unheld:
            # Then only MongoDB says what was signed, and whoever can edit it: somebody has to compare it with the witnesses'.
            ALARMS.labels("unheld").inc()
            logger().error("checkpoint_not_held", signed=self._stored)
        self._unheld = held is None
        if held is None or on_bus is None or on_bus.checkpoint.size < self._stored:
            return stored
        if self._stored < (size := on_bus.checkpoint.size) <= self.tree.size:
            _, recorded_ns = await self.store.tail(size)
            await self.store.put_checkpoint(Signed(size, on_bus.note.text, recorded_ns, held.recorded))
            self._stored = size
        return on_bus

    def _ours(self, text: str, where: str) -> Last:
        try:
            note = Note.parse(text)
            checkpoint = Checkpoint.parse(note.body)
            if checkpoint.origin == self.keys.origin and note.verified(self.keys.verifiers):
                return Last(checkpoint, note)
            why = f"of {checkpoint.origin}, and not signed by its key"
        except NoteError as error:
            why = str(error)
        raise RefusalError("foreign", f"the last checkpoint in {where} is not this log's: {why}")

    async def _begins_with(self, before: Checkpoint, standing: Standing) -> bool:
        """
        Whether what stands begins with what was signed; False where this tree has not come so far yet, and the log has.

        Raises:
            RefusalError: it does not.
        """
        if before.size > standing.size:
            if before.size <= await self.store.size():
                return False
            raise RefusalError("truncated", f"the log has {standing.size} leaves, and {before.size} were signed")
        try:
            proof = await tree.consistency(self.tree.tile, before.size, standing.size)
            tree.verify_consistency(before.size, standing.size, before.root, standing.root, proof)
        except (ProofError, LookupError) as why:
            if self._read_again is None:  # the tiles may be wrong, and not the leaves
                self._read_again = standing.size
                self.tree.start_over()
                raise RefusalError(
                    "tile", f"{TILES} at {before.size}: they are being made again from the leaves"
                ) from None
            raise RefusalError("diverged", f"the log is not the one signed at {before.size}: {why}") from None
        return True

    async def _is_behind(self, standing: Standing | None, size: int) -> bool:
        """Whether the tree has yet to read leaves below this size that are there."""
        if standing is None:
            return True
        return self.tree.missing is None and standing.size < min(size, await self.store.size())

    async def _is(self, last: Last | None) -> None:
        new, self.last = last is not None and last != self.last, last
        SIGNED.set(self.size)
        if new and last and self.witnesses:
            await self.witnesses.announce(last.note)


def subject_of(origin: str) -> str:
    """Where the bus holds the last checkpoint of a log, in the stream `BUCKET`."""
    return f"$KV.CHECKPOINTS.{sha256(origin.encode()).hexdigest()}"
