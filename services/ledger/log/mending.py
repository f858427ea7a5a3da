"""
Tiles made again from the leaves. The ledger itself may only add tiles: one that was spoiled is replaced under another identity (`repair`),
and only where the leaves are the ones that were signed, so that nothing can be mended into another history.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import NamedTuple

from services.ledger.log import tree
from services.ledger.log.notes import Checkpoint, Note, NoteError, Verifier
from services.ledger.log.tree import Tile, Tiles
from services.ledger.store import Selection, Store
from shared.errors import PaidanError

BATCH = 2048


class UnsoundError(PaidanError):
    """The leaves are not the ones that were signed: tiles of them would be of another log."""


class Mended(NamedTuple):
    """How many leaves and full tiles there are, and the paths of the tiles that were missing or wrong."""

    leaves: int
    tiles: int
    replaced: list[str]


async def mend_tiles(store: Store, progress: Callable[[int, int], None]) -> Mended:
    """
    Hold every full tile against the leaves, and put right what differs. A running ledger that began with a wrong one has to be
    started again.

    Args:
        progress: called with leaves read and leaves to read: they are read twice, once to see that they are what was signed.
    Raises:
        UnsoundError: nothing was changed.
        StoreUnavailableError.
    """
    size = await store.size()
    await be_signed(store, size, lambda done: progress(done, 2 * size))
    tiles, replaced = 0, list[str]()
    async for grown, full in _grow(store, size):
        wrong = {
            tile: hashes
            for tile, hashes in full
            if (await store.tiles(tile.level, [tile.number])).get(tile.number) != hashes
        }
        if wrong:
            await store.replace_tiles(wrong)
        tiles += len(full)
        replaced += [tile.path for tile in wrong]
        progress(size + grown.size, 2 * size)
    return Mended(size, tiles, replaced)


async def be_signed(
    store: Store, size: int, progress: Callable[[int], None], by: Callable[[str], Sequence[Verifier]] = lambda _: ()
) -> None:
    """
    Whether the leaves give the newest root that was signed; a log without a key has none.

    Args:
        by: whose signatures count under a checkpoint of this origin; none: any.
    Raises:
        UnsoundError, StoreUnavailableError.
    """
    signed = await store.checkpoint()
    if signed is None:
        return
    try:
        note = Note.parse(signed.note)
        newest = Checkpoint.parse(note.body)
        if (keys := by(newest.origin)) and not note.verified(keys):
            raise NoteError("it is not signed by this log's key")
    except NoteError as why:
        raise UnsoundError(f"the checkpoint of {signed.size} leaves cannot be believed: {why}") from None
    if newest.size > size:
        raise UnsoundError(f"the log has {size} leaves, and {newest.size} were signed")
    async for grown, _ in _grow(store, newest.size):
        progress(grown.size)
        if grown.size == newest.size and grown.root() != newest.root:
            raise UnsoundError(f"the leaves do not give the root that was signed at {newest.size}")


async def _grow(store: Store, size: int) -> AsyncIterator[tuple[Tiles, list[tuple[Tile, bytes]]]]:
    """The tree of so many leaves, batch by batch, with the tiles that each made full. Raises UnsoundError where one is missing."""
    tiles = Tiles()
    while tiles.size < size:
        found = await store.read(Selection(), tiles.size, size, BATCH)
        dense = range(tiles.size, tiles.size + len(found))
        if not found or any(index != due for (index, _), due in zip(found, dense, strict=True)):
            raise UnsoundError(f"leaves are missing behind {tiles.size}")
        full = tiles.append([tree.leaf_hash(data) for _, data in found])
        yield tiles, full
