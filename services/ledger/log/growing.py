"""
The tree over the log, growing behind the ingest: what checkpoints are signed of, and every full tile into the store.

It keeps no more than the open tiles and how many events each district has. After a start it goes on from the tiles in the store and the
leaves behind them; where a tile is missing, or they do not give what was signed, it begins from the first leaf, and so puts missing tiles back
and finds those that differ.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import orjson

from services.ledger.log import heads, leaves, tree
from services.ledger.log.handing import Handed
from services.ledger.log.heads import Scopes, UncountedError
from services.ledger.log.ingesting import ALARMS
from services.ledger.log.leaves import Leaf
from services.ledger.log.tree import TILE_HEIGHT, TILE_WIDTH, Tile, Tiles
from services.ledger.store import Selection
from shared.errors import UnavailableError
from shared.telemetry import logger

BATCH_MAX = 2000
UNSAVED_MAX = 64
"""Full tiles in memory: they are stored before anything that rests on them is signed, and many of them at once."""


class Standing(NamedTuple):
    """The tree at one size: root, the root over the districts' heads, and the latest `recorded` (ns) up to there."""

    size: int
    root: bytes
    heads: bytes
    recorded_ns: int


class Log(Protocol):
    """What the tree needs of the store."""

    async def size(self) -> int:
        """How many leaves there are."""

    async def read(self, selection: Selection, since: int, below: int, limit: int) -> list[tuple[int, bytes]]:
        """Leaves in a range."""

    async def tail(self, below: int | None = None) -> tuple[bytes | None, int]:
        """The last leaf, and the newest `recorded`."""

    async def scopes(self, below: int | None = None) -> dict[str, tuple[int, int]]:
        """Events per district, and the index of the last one."""

    async def tiles(self, level: int, numbers: Iterable[int]) -> dict[int, bytes]:
        """Full tiles of a level."""

    async def put_tiles(self, tiles: Mapping[Tile, bytes]) -> list[Tile]:
        """Store full tiles; those that are there already and differ."""


class Tree:
    """
    The tree of one log.

    Attributes:
        missing: the first index that the log has no leaf for though it has later ones; None where it is dense.
        differing: full tiles as the leaves give them, of those that the store has otherwise: believed are the leaves.
    """

    def __init__(self, store: Log, *, scopes: Callable[[int], Awaitable[Scopes]] | None = None) -> None:
        """`scopes` gives the events per district below an index; None: as the store has it."""
        self._store = store
        self._recount = scopes or store.scopes
        self._handed = Handed()
        self._known = False
        self._unsaved: dict[Tile, bytes] = {}
        self._start(Tiles(), {}, 0)
        self.missing: int | None = None
        self._afresh = False

    def _start(self, tiles: Tiles, scopes: dict[str, tuple[int, int]], newest_ns: int) -> None:
        self._tiles, self._scopes, self._newest_ns = tiles, scopes, newest_ns
        self._unsaved.clear()
        self.differing = dict[Tile, bytes]()

    @property
    def size(self) -> int:
        """How many leaves it has."""
        return self._tiles.size

    def hand(self, stored: Sequence[Leaf]) -> None:
        """Leaves that have just been stored, so that they need not be read back."""
        if stored[0].index < self.size:
            self._known = False  # read back already; or the store went back to an older state: look
        self._handed.put(stored)

    async def run(self, stop: asyncio.Event) -> None:
        """Follow the log until told to stop, then once more to its end."""
        quiet = True
        while True:
            try:
                if not self._known:
                    await self._recover()
                    quiet = True
                while self._known and await self._step(look_back=quiet):
                    pass
                if stop.is_set() and self._known:
                    await self._save()
                    return
                self._handed.wake.clear()
                if not (quiet := not self._handed):
                    continue
                try:
                    async with asyncio.timeout(0.5):
                        await self._handed.wake.wait()
                    quiet = False
                except TimeoutError:
                    await self._save()  # nothing was handed over: perhaps another instance writes
            except (UncountedError, UnavailableError) as why:
                logger().warning("tree_waits", why=str(why))
                self._known = False
                if stop.is_set():
                    return
                await asyncio.sleep(0.5)

    def start_over(self) -> None:
        """Make it again from the first leaf, whatever tiles there are."""
        self._known, self._afresh = False, True

    async def standing(self) -> Standing | None:
        """
        Where it stands, with every full tile of it in the store; None until it is known.

        Raises:
            StoreUnavailableError.
        """
        if not self._known:
            return None
        found = Standing(self.size, self._tiles.root(), heads.root(self._scopes), self._newest_ns)
        await self._save()
        return found

    async def tile(self, wanted: Tile) -> bytes:
        """
        The hashes of a tile, as many as asked: of the store, or of what is still open.

        Raises:
            LookupError: the tree does not have it, or the store has lost it.
            StoreUnavailableError.
        """
        if wanted.leaves > self.size or wanted.width < 1:
            raise LookupError(f"{wanted.path}: the tree has {self.size} leaves")
        if (here := self._tiles.tile(wanted)) is not None:
            return here
        full = wanted._replace(width=TILE_WIDTH)
        found = (
            self._unsaved.get(full)
            or self.differing.get(full)
            or (await self._store.tiles(full.level, [full.number])).get(full.number)
        )
        if found is None:
            raise LookupError(f"{wanted.path} is not in the store")
        return found[: wanted.width * tree.HASH_BYTES]

    async def prove(self, old: int, new: int) -> list[bytes]:
        """
        The proof that the tree of one size begins with that of another.

        Raises:
            UnavailableError: this instance has not come so far, or a tile is missing.
        """
        try:
            return await tree.consistency(self.tile, old, new)
        except LookupError as why:
            raise UnavailableError(str(why)) from None

    async def _step(self, *, look_back: bool) -> bool:
        """Grow by what is next; whether there was anything. What was not handed over in turn is read from the store."""
        batch = self._handed.take(self.size, BATCH_MAX)
        if not batch and (look_back or self._handed):
            batch = await self._read_back()
        if not batch:
            return False
        self._grow(batch)
        if len(self._unsaved) >= UNSAVED_MAX:
            await self._save()
        await asyncio.sleep(0)  # let those who wait for an answer have their turn
        return True

    def _grow(self, batch: Sequence[Leaf]) -> None:
        self._unsaved.update(self._tiles.append([leaf.hash for leaf in batch]))
        scopes = self._scopes
        for leaf in batch:
            heads.count(scopes, leaf.index, leaf.districts)
        newest = next(filter(None, (leaves.timely_ns(leaf.data) for leaf in reversed(batch))), 0)
        self._newest_ns = max(self._newest_ns, newest)

    async def _read_back(self) -> list[Leaf]:
        since = self.size
        found = await self._store.read(Selection(), since, 2**53, BATCH_MAX)
        if since != self.size:
            return []
        dense = [_leaf(index, data) for n, (index, data) in enumerate(found, since) if index == n]
        missing = since + len(dense) if len(dense) < len(found) else None
        if missing is not None:
            self._handed.clear()
            if missing != self.missing:
                ALARMS.labels("hole").inc()
                logger().error("ledger_hole", missing=missing)
        self.missing = missing
        return dense

    async def _save(self) -> None:
        """Every full tile into the store."""
        if not self._unsaved:
            return
        tiles = dict(self._unsaved)
        for tile in await self._store.put_tiles(tiles):
            self.differing[tile] = tiles[tile]
            ALARMS.labels("tile").inc()
            logger().error("ledger_tile_differs", tile=tile.path)
        for tile in tiles:
            self._unsaved.pop(tile, None)

    async def _recover(self) -> None:
        """Take it up again from the store: the tiles that are there, then (`_step`) the leaves behind them."""
        self._handed.clear()
        afresh = self._afresh
        size = await self._store.size()
        await self._recount(size)  # where this raises, nothing is to be signed, whatever the tiles give
        full = await self._full(size // TILE_WIDTH)
        tiles = (None if afresh else await self._resumed(full)) or Tiles()
        scopes: dict[str, tuple[int, int]] = {}
        newest_ns = 0
        if tiles.size:
            scopes.update(await self._recount(tiles.size))
            _, newest_ns = await self._store.tail(tiles.size)
        self._start(tiles, scopes, newest_ns)
        if afresh == self._afresh:  # nobody has asked meanwhile
            self._known, self._afresh = True, False

    async def _full(self, most: int) -> int:
        """How many tiles of leaves are in the store, so many at most: they are stored in order."""
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            if await self._store.tiles(0, [middle - 1]):
                low = middle
            else:
                high = middle - 1
        return low

    async def _resumed(self, full: int) -> Tiles | None:
        """The open tiles of a tree of so many full tiles; None where one is missing or no tile."""
        tiles = Tiles()
        for level in range(max(1, -(-full.bit_length() // TILE_HEIGHT)), 0, -1):
            count = full >> (TILE_HEIGHT * (level - 1))
            numbers = range(count // TILE_WIDTH * TILE_WIDTH, count)
            found = await self._store.tiles(level - 1, numbers)
            if any(len(found.get(number, b"")) != TILE_WIDTH * tree.HASH_BYTES for number in numbers):
                logger().error("ledger_tile_missing", level=level - 1)
                return None
            tiles.resume(level, [tree.perfect_root(tree.split(found[number])) for number in numbers])
        return tiles


def _leaf(index: int, data: bytes) -> Leaf:
    """A leaf read back, with what the tree needs of it."""
    document = orjson.loads(data)
    districts = tuple(scope["d"] for scope in document.get("scopes", ()))
    return Leaf(index, data, document["kind"], document["src"].get("epoch", 0), None, districts=districts)
