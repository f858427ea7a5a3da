"""
How many events each district has, for whoever takes a log up again: the ordinals of the next leaves and the heads of the next
checkpoint go on from there.

The store tells it by what it has indexed, which nobody signed. That is believed up to a checkpoint, where it gives the heads that were
signed; behind it the leaves are counted.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import orjson

from services.ledger.log import heads
from services.ledger.log.checkpoints import BUCKET, Keys, subject_of
from services.ledger.log.heads import Scopes, UncountedError
from services.ledger.log.notes import Checkpoint, Note, NoteError, Verifier
from services.ledger.store import Selection, Store
from shared.bus import Bus

BATCH_MAX = 2000


@dataclass(frozen=True)
class Recount:
    """The counts of one log."""

    bus: Bus
    store: Store
    keys: Keys

    async def scopes(self, size: int) -> Scopes:
        """
        Events per district below an index, and the index of the last one.

        Raises:
            UncountedError: what is indexed is not what was signed.
            UnavailableError: bus or store do not answer.
        """
        verifiers: list[Verifier] = []
        with suppress(NoteError):  # the signer says so
            verifiers = self.keys.verifiers
        held = await self.bus.last(subject_of(self.keys.origin), stream=BUCKET)
        if not verifiers or (held is None and await self.store.checkpoint() is None):
            return await self.store.scopes(size)  # nothing was ever signed
        stored = await self.store.checkpoint(size)
        texts = [held.data.decode(errors="replace") if held else "", stored.note if stored else ""]
        signed = [each for text in texts if (each := self._ours(text, verifiers)) and each.size <= size]
        scopes, at = dict[str, tuple[int, int]](), 0
        if signed:
            last = max(signed, key=lambda each: each.size)
            scopes, at = await self.store.scopes(last.size), last.size
            if heads.root(scopes) != last.heads:
                raise UncountedError(
                    f"the districts' index is not what was signed at {at}, so nothing is written or signed: "
                    "`paidan ledger verify` names the leaves; mend their fields or `paidan ledger rebuild --only indexes`"
                )
        while at < size:
            found = await self.store.read(Selection(), at, size, BATCH_MAX)
            for index, data in found:
                heads.count(scopes, index, [scope["d"] for scope in orjson.loads(data).get("scopes", ())])
            at = found[-1][0] + 1 if found else size
        return scopes

    def _ours(self, text: str, verifiers: list[Verifier]) -> Checkpoint | None:
        with suppress(NoteError):
            note = Note.parse(text)
            checkpoint = Checkpoint.parse(note.body)
            if checkpoint.origin == self.keys.origin and checkpoint.heads and note.verified(verifiers):
                return checkpoint
        return None
