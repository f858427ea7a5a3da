"""
The Merkle tree over the log's leaves: RFC 9162 §2.1 (SHA-256) and the tiles of C2SP tlog-tiles, pure.

A tree of `size` leaves is named by its root. What has to be kept to go on is its right edge (`Edge`, a hash per power of two) or
its open tiles (`Tiles`); what has to be kept to prove anything is every full tile. A tile of level L holds up to 256 hashes, each
the root of 256^L leaves; a full tile never changes.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import NamedTuple, Self

from shared.errors import PaidanError

HASH_BYTES = 32
TILE_HEIGHT = 8
TILE_WIDTH = 1 << TILE_HEIGHT
EMPTY = sha256(b"").digest()
"""The root of no leaves."""
_PATH = re.compile(r"tile/(0|[1-9][0-9]?)/((?:x[0-9]{3}/)*[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")


class ProofError(PaidanError):
    """A proof does not prove what it should."""


def leaf_hash(data: bytes) -> bytes:
    """Of one leaf's bytes."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Of two subtrees."""
    return sha256(b"\x01" + left + right).digest()


class Edge:
    """
    A tree that only grows, and keeps no more than the roots of its perfect subtrees, largest first: one per bit of its size.

    Attributes:
        size: how many leaves.
        hashes: the roots of the perfect subtrees.
    """

    __slots__ = ("hashes", "size")

    def __init__(self, size: int = 0, hashes: Iterable[bytes] = ()) -> None:
        self.size = size
        self.hashes = list(hashes)
        if len(self.hashes) != size.bit_count():
            raise ValueError(f"a tree of {size} leaves has {size.bit_count()} perfect subtrees, not {len(self.hashes)}")

    def append(self, leaf: bytes) -> None:
        """One more leaf hash."""
        hashes, size = self.hashes, self.size
        while size & 1:
            leaf = sha256(b"\x01" + hashes.pop() + leaf).digest()
            size >>= 1
        hashes.append(leaf)
        self.size += 1

    def extend(self, leaves: Iterable[bytes]) -> None:
        """More leaf hashes, oldest first."""
        for leaf in leaves:
            self.append(leaf)

    def root(self) -> bytes:
        """The root at this size."""
        if not self.hashes:
            return EMPTY
        root = self.hashes[-1]
        for left in reversed(self.hashes[:-1]):
            root = node_hash(left, root)
        return root

    def copy(self) -> Self:
        """The same tree, to go on apart."""
        return type(self)(self.size, self.hashes)


def root_of(leaves: Iterable[bytes]) -> bytes:
    """The root over these leaf hashes."""
    edge = Edge()
    edge.extend(leaves)
    return edge.root()


# --- tiles ------------------------------------------------------------------------------------------------------------


class Tile(NamedTuple):
    """Which tile: its level, its number on that level, and how many hashes of it there are (256: it is full)."""

    level: int
    number: int
    width: int = TILE_WIDTH

    @property
    def path(self) -> str:
        """As C2SP tlog-tiles writes it: `tile/1/x001/234.p/56`."""
        return f"tile/{self.level}/{number_path(self.number)}" + (f".p/{self.width}" if self.width < TILE_WIDTH else "")

    @classmethod
    def parse(cls, path: str) -> Self:
        """The way back. Raises ValueError."""
        found = _PATH.fullmatch(path)
        if not found or (width := int(found[3] or TILE_WIDTH)) > TILE_WIDTH or (found[3] and width == TILE_WIDTH):
            raise ValueError(f"not the path of a tile: {path}")
        tile = cls(int(found[1]), int(found[2].replace("x", "").replace("/", "")), width)
        if tile.level > 63 or tile.path != path:
            raise ValueError(f"not the path of a tile: {path}")
        return tile

    @property
    def leaves(self) -> int:
        """How large a tree has to be to have it."""
        return ((self.number << TILE_HEIGHT) + self.width) << (TILE_HEIGHT * self.level)


def number_path(number: int) -> str:
    """1234067 as `x001/x234/067`."""
    digits = str(number)
    digits = digits.zfill(-(-len(digits) // 3) * 3)
    groups = [digits[n : n + 3] for n in range(0, len(digits), 3)]
    return "/".join([*(f"x{group}" for group in groups[:-1]), groups[-1]])


class Tiles:
    """
    The open tiles of a tree that grows, one per level; full ones leave it.

    Attributes:
        size: how many leaves.
        open: the hashes of each level's open tile, level 0 first.
    """

    __slots__ = ("open", "size")

    def __init__(self) -> None:
        self.size = 0
        self.open: list[list[bytes]] = [[]]

    def append(self, leaves: Iterable[bytes]) -> list[tuple[Tile, bytes]]:
        """Grow by these leaf hashes; the tiles that became full, with their hashes."""
        full: list[tuple[Tile, bytes]] = []
        bottom = self.open[0]
        for leaf in leaves:
            bottom.append(leaf)
            self.size += 1
            if len(bottom) == TILE_WIDTH:
                self._close(full)
        return full

    def resume(self, level: int, roots: Iterable[bytes]) -> list[tuple[Tile, bytes]]:
        """
        Grow by the roots of full tiles of the level below, so that a tree is taken up again without its leaves.

        From the highest level to the lowest, each with what no full tile above it holds.
        """
        while len(self.open) <= level:
            self.open.append([])
        full: list[tuple[Tile, bytes]] = []
        for root in roots:
            self.open[level].append(root)
            self.size += 1 << (TILE_HEIGHT * level)
            if len(self.open[level]) == TILE_WIDTH:
                self._close(full, level)
        return full

    def _close(self, full: list[tuple[Tile, bytes]], level: int = 0) -> None:
        while level < len(self.open) and len(self.open[level]) == TILE_WIDTH:
            hashes = self.open[level]
            number = (self.size >> (TILE_HEIGHT * (level + 1))) - 1
            full.append((Tile(level, number), b"".join(hashes)))
            if level + 1 == len(self.open):
                self.open.append([])
            self.open[level + 1].append(perfect_root(hashes))
            hashes.clear()
            level += 1

    def edge(self) -> Edge:
        """The right edge at this size."""
        hashes: list[bytes] = []
        for level in reversed(self.open):
            at = 0
            for bit in range(TILE_HEIGHT - 1, -1, -1):
                if len(level) >> bit & 1:
                    hashes.append(perfect_root(level[at : at + (1 << bit)]))
                    at += 1 << bit
        return Edge(self.size, hashes)

    def root(self) -> bytes:
        """The root at this size."""
        return self.edge().root()

    def tile(self, tile: Tile) -> bytes | None:
        """The hashes of a tile that is still open, as many as asked; None where it is full or not that wide."""
        if tile.level >= len(self.open) or tile.number != self.size >> (TILE_HEIGHT * (tile.level + 1)):
            return None
        hashes = self.open[tile.level]
        return b"".join(hashes[: tile.width]) if tile.width <= len(hashes) else None


def perfect_root(hashes: Sequence[bytes]) -> bytes:
    """The root over a power of two of subtrees of one size."""
    while len(hashes) > 1:
        hashes = [sha256(b"\x01" + hashes[n] + hashes[n + 1]).digest() for n in range(0, len(hashes), 2)]
    return hashes[0]


def split(tile: bytes) -> list[bytes]:
    """The hashes of a tile."""
    return [tile[n : n + HASH_BYTES] for n in range(0, len(tile), HASH_BYTES)]


def tiles_of(size: int) -> Iterator[Tile]:
    """Every tile of a tree, full ones and those at the right edge, level by level."""
    level = 0
    while count := size >> (TILE_HEIGHT * level):
        for number in range(count >> TILE_HEIGHT):
            yield Tile(level, number)
        if rest := count % TILE_WIDTH:
            yield Tile(level, count >> TILE_HEIGHT, rest)
        level += 1


# --- proofs -----------------------------------------------------------------------------------------------------------

ReadTile = Callable[[Tile], Awaitable[bytes]]
"""The hashes of a tile that the tree has."""


class _Subtrees:
    """Roots of perfect subtrees [start, start + 2^height) of a tree of `size`, out of its tiles, each read once."""

    def __init__(self, read: ReadTile, size: int) -> None:
        self._read = read
        self._size = size
        self._tiles: dict[tuple[int, int], bytes] = {}

    async def root(self, start: int, height: int) -> bytes:
        level, inside = divmod(height, TILE_HEIGHT)
        first = start >> (TILE_HEIGHT * level)
        number, at = divmod(first, TILE_WIDTH)
        tile = self._tiles.get((level, number))
        if tile is None:
            width = min(TILE_WIDTH, (self._size >> (TILE_HEIGHT * level)) - number * TILE_WIDTH)
            tile = self._tiles[level, number] = await self._read(Tile(level, number, width))
            if len(tile) != width * HASH_BYTES:
                raise ProofError(f"tile {Tile(level, number, width).path} has {len(tile)} bytes")
        return _levels(tile)[inside][at >> inside]

    async def range_root(self, start: int, end: int) -> bytes:
        """The root over [start, end), where start is a multiple of a power of two that is at least as large as the range."""
        pieces: list[bytes] = []
        while start < end:
            height = (end - start).bit_length() - 1
            pieces.append(await self.root(start, height))
            start += 1 << height
        root = pieces.pop()
        while pieces:
            root = node_hash(pieces.pop(), root)
        return root


@lru_cache(maxsize=512)
def _levels(tile: bytes) -> list[list[bytes]]:
    """The roots of all perfect subtrees inside a tile, by height: a proof asks for eight of them, its neighbours for others. 33 KB each."""
    levels = [split(tile)]
    while len(below := levels[-1]) > 1:
        levels.append([node_hash(below[n], below[n + 1]) for n in range(0, len(below) - 1, 2)])
    return levels


def _half(size: int) -> int:
    """The largest power of two smaller than a size."""
    return 1 << ((size - 1).bit_length() - 1)


async def inclusion(read: ReadTile, index: int, size: int) -> list[bytes]:
    """
    The inclusion proof PATH(index, D[size]) of RFC 9162 §2.1.3, from the leaf upwards.

    Raises:
        ValueError: the tree has no such leaf.
    """
    if not 0 <= index < size:
        raise ValueError(f"a tree of {size} leaves has no leaf {index}")
    subtrees, path = _Subtrees(read, size), []
    start, end = 0, size
    while end - start > 1:
        middle = start + _half(end - start)
        if index < middle:
            path.append((middle, end))
            end = middle
        else:
            path.append((start, middle))
            start = middle
    return [await subtrees.range_root(*sibling) for sibling in reversed(path)]


async def consistency(read: ReadTile, old: int, new: int) -> list[bytes]:
    """
    The consistency proof PROOF(old, D[new]) of RFC 9162 §2.1.4; empty where old is 0 or new.

    Raises:
        ValueError: the tree has never been that small.
    """
    if not 0 <= old <= new:
        raise ValueError(f"a tree of {new} leaves was never one of {old}")
    if old in (0, new):
        return []
    subtrees, path = _Subtrees(read, new), []
    start, end, whole = 0, new, True
    while old < end:
        middle = start + _half(end - start)
        if old <= middle:
            path.append((middle, end))
            end = middle
        else:
            path.append((start, middle))
            start, whole = middle, False
    if not whole:
        path.append((start, end))
    return [await subtrees.range_root(*piece) for piece in reversed(path)]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Whether a leaf hash lies at this index under this root (RFC 9162 §2.1.3.2). Raises ProofError."""
    if not 0 <= index < size:
        raise ProofError(f"a tree of {size} leaves has no leaf {index}")
    at, last, found = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise ProofError("the proof is too long")
        if at & 1 or at == last:
            found = node_hash(sibling, found)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        at, last = at >> 1, last >> 1
    if last or found != root:
        raise ProofError(f"leaf {index} is not under this root of {size} leaves")


def verify_consistency(old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Whether the larger tree begins with the smaller one (RFC 9162 §2.1.4.2). Raises ProofError."""
    if not 0 <= old <= new:
        raise ProofError(f"a tree of {new} leaves does not begin with one of {old}")
    if old in (0, new):
        if proof or (old_root != new_root if old else old_root != EMPTY):
            raise ProofError(f"two trees of {old} and {new} leaves do not agree")
        return
    path = list(proof)
    if old & (old - 1) == 0:
        path.insert(0, old_root)
    if not path:
        raise ProofError("the proof is too short")
    at, last = old - 1, new - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    before = after = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise ProofError("the proof is too long")
        if at & 1 or at == last:
            before, after = node_hash(sibling, before), node_hash(sibling, after)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            after = node_hash(after, sibling)
        at, last = at >> 1, last >> 1
    if last or before != old_root or after != new_root:
        raise ProofError(f"the tree of {new} leaves does not begin with the one of {old}")
