"""The proofs that go along with a replay: the inclusion of each leaf, or the tiles that prove all of them."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from typing import Literal

from services.ledger.log import tree
from services.ledger.log.tree import TILE_HEIGHT, TILE_WIDTH, ReadTile, Tile
from shared.envelope import canonical

Kind = Literal["none", "tiles", "each"]
KEPT_MAX = 256
PROOFS_AT_ONCE = 100


class Proofs:
    """
    What proves leaves under the root of a size.

    Args:
        read: the tiles of a tree that is at least so large.
    """

    def __init__(self, read: ReadTile, size: int, kind: Kind) -> None:
        self._read, self._size, self.kind = read, size, kind
        self._kept: dict[Tile, bytes] = {}
        self._given: set[Tile] = set()

    async def inclusions(self, indices: list[int]) -> list[list[str]]:
        """The proof of each, from the leaf upwards, in base64."""
        found = []
        for n, index in enumerate(indices):
            hashes = await tree.inclusion(self._tile, index, self._size)
            found.append([b64encode(each).decode() for each in hashes])
            if n % PROOFS_AT_ONCE == 0:
                await asyncio.sleep(0)
        return found

    async def tiles(self, indices: list[int]) -> list[bytes]:
        """A line per tile that the proofs of these are made of, each once in a replay: its C2SP path and its hashes."""
        needed: dict[Tile, bytes] = {}

        async def noted(wanted: Tile) -> bytes:
            needed[wanted] = await self._tile(wanted)
            return needed[wanted]

        for number in sorted({index >> TILE_HEIGHT for index in indices}):
            start = number << TILE_HEIGHT
            await noted(Tile(0, number, min(TILE_WIDTH, self._size - start)))
            await tree.inclusion(noted, start, self._size)
        new = [wanted for wanted in needed if wanted not in self._given]
        self._given.update(new)
        return [canonical({"tile": wanted.path, "h": b64encode(needed[wanted]).decode()}) for wanted in new]

    async def _tile(self, wanted: Tile) -> bytes:
        found = self._kept.get(wanted)
        if found is None:
            if len(self._kept) >= KEPT_MAX:
                self._kept.clear()
            found = self._kept[wanted] = await self._read(wanted)
        return found
