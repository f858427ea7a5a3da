"""The tree beside other implementations: the definition itself, pymerkle's roots, and RFC 9162's own test of proofs."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymerkle import InmemoryTree

from services.ledger.log import tree
from services.ledger.log.tree import EMPTY, Edge, ProofError, Tile, Tiles

LEAVES = [tree.leaf_hash(b"leaf %d" % n) for n in range(1100)]


def defined(leaves: list[bytes]) -> bytes:
    """MTH of RFC 9162 §2.1.1, word for word."""
    if not leaves:
        return sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return sha256(b"\x01" + defined(leaves[:k]) + defined(leaves[k:])).digest()


class Grown:
    """A tree of so many leaves with all its tiles, full and open."""

    def __init__(self, size: int) -> None:
        self.tiles = Tiles()
        self.full = {}
        for n in range(0, size, 300):
            self.full.update({(t.level, t.number): h for t, h in self.tiles.append(LEAVES[n : min(n + 300, size)])})

    async def read(self, tile: Tile) -> bytes:
        found = self.full.get((tile.level, tile.number)) or self.tiles.tile(tile)
        assert found is not None, tile
        return found[: tile.width * 32]


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 8, 255, 256, 257, 300, 512, 1023, 1100])
def test_the_root_is_the_one_of_the_definition_and_of_pymerkle(size: int) -> None:
    edge = Edge()
    edge.extend(LEAVES[:size])
    grown = Grown(size).tiles
    oracle = InmemoryTree(algorithm="sha256")
    for n in range(size):
        oracle.append_entry(b"leaf %d" % n)
    assert edge.root() == defined(LEAVES[:size]) == grown.root()
    assert edge.hashes == grown.edge().hashes
    assert grown.size == size
    if size:
        assert oracle.get_state() == edge.root()


@given(st.integers(1, 1100), st.data())
async def test_every_proof_proves_and_no_other_root_or_leaf_or_index(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    old = data.draw(st.integers(0, size))
    grown = Grown(size)
    root, old_root = tree.root_of(LEAVES[:size]), tree.root_of(LEAVES[:old])
    proof = await tree.inclusion(grown.read, index, size)
    tree.verify_inclusion(LEAVES[index], index, size, proof, root)
    for wrong in ((LEAVES[index - 1], index, proof), (LEAVES[index], (index + 1) % size, proof)):
        if size > 1:
            with pytest.raises(ProofError):
                tree.verify_inclusion(wrong[0], wrong[1], size, wrong[2], root)
    with pytest.raises(ProofError):
        tree.verify_inclusion(LEAVES[index], index, size, [*proof, EMPTY], root)
    path = await tree.consistency(grown.read, old, size)
    tree.verify_consistency(old, size, old_root, root, path)
    if 0 < old < size:
        with pytest.raises(ProofError):
            tree.verify_consistency(old, size, EMPTY, root, path)
        with pytest.raises(ProofError):
            tree.verify_consistency(old, size, old_root, EMPTY, path)
        with pytest.raises(ProofError):
            tree.verify_consistency(old, size, old_root, root, path[:-1])
        with pytest.raises(ProofError):
            tree.verify_consistency(old, size, old_root, root, [*path, EMPTY])


def test_the_known_root_of_the_rfc_s_reference_tree() -> None:
    # The tree of eight entries that certificate transparency implementations test with.
    entries = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
    leaves = [tree.leaf_hash(bytes.fromhex(entry)) for entry in entries]
    assert tree.root_of(leaves).hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 1100])
def test_a_tree_is_taken_up_again_from_its_tiles(size: int) -> None:
    before = Grown(size).tiles
    again = Tiles()
    for level in reversed(range(len(before.open))):
        assert again.resume(level, before.open[level]) == []
    assert (again.size, again.root()) == (before.size, before.root())
    assert again.append(LEAVES[:300]) == Grown(size).tiles.append(LEAVES[:300])


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (Tile(0, 0), "tile/0/000"),
        (Tile(1, 1234067, 5), "tile/1/x001/x234/067.p/5"),
        (Tile(0, 999), "tile/0/999"),
        (Tile(2, 1000, 255), "tile/2/x001/000.p/255"),
    ],
)
def test_the_path_of_a_tile(tile: Tile, path: str) -> None:
    assert tile.path == path
    assert Tile.parse(path) == tile


@pytest.mark.parametrize(
    "path",
    ["tile/0/0", "tile/0/x000/001", "tile/00/000", "tile/0/000.p/256", "tile/0/000.p/0", "tile/64/000", "tile/0/../x"],
)
def test_what_is_no_tile(path: str) -> None:
    with pytest.raises(ValueError, match="tile"):
        Tile.parse(path)


def test_the_tiles_of_a_size() -> None:
    assert list(tree.tiles_of(0)) == []
    assert list(tree.tiles_of(513)) == [Tile(0, 0), Tile(0, 1), Tile(0, 2, 1), Tile(1, 0, 2)]
