"""
Inclusion proofs a second, made and verified, beside pymerkle, another implementation in Python that keeps its tree in memory too.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from pymerkle import InmemoryTree, verify_inclusion

from services.ledger.log import tree
from services.ledger.log.tree import Edge, Tile, Tiles
from tests.bench.harness import Row, Workshop

LEAVES = 100_000


async def run(workshop: Workshop) -> list[Row]:
    """Ours and theirs in turns."""
    size, proofs, rounds = workshop.size(LEAVES, 2_000), workshop.size(2_000, 100), workshop.size(5, 1)
    entries = [b'{"index":%d}' % n for n in range(size)]
    chosen = random.Random(7)
    made: dict[str, list[float]] = {"ours": [], "theirs": []}
    checked: dict[str, list[float]] = {"ours": [], "theirs": []}
    began = time.perf_counter()
    hashes = [tree.leaf_hash(entry) for entry in entries]
    tiles = Tiles()
    full = dict(tiles.append(hashes))
    ours_s = time.perf_counter() - began
    began = time.perf_counter()
    theirs = InmemoryTree.init_from_entries(entries, algorithm="sha256")
    theirs_s = time.perf_counter() - began
    edge = Edge()
    edge.extend(hashes)
    root, their_root = edge.root(), theirs.get_state()
    if root != their_root:
        raise RuntimeError("two roots")

    async def read(tile: Tile) -> bytes:
        found = full.get(tile) or tiles.tile(tile)
        assert found
        return found

    for n in range(rounds):
        indices = [chosen.randrange(size) for _ in range(proofs)]
        began = time.perf_counter()
        paths = [await tree.inclusion(read, index, size) for index in indices]
        made["ours"].append(proofs / (time.perf_counter() - began))
        began = time.perf_counter()
        others = [theirs.prove_inclusion(index + 1, size) for index in indices]
        made["theirs"].append(proofs / (time.perf_counter() - began))
        began = time.perf_counter()
        _verify(indices, paths, hashes, size, root)
        checked["ours"].append(proofs / (time.perf_counter() - began))
        began = time.perf_counter()
        for index, other in zip(indices, others, strict=True):
            verify_inclusion(hashes[index], their_root, other)
        checked["theirs"].append(proofs / (time.perf_counter() - began))
        said = " and ".join(
            f"{name} {made[name][-1]:.0f} made, {checked[name][-1]:.0f} verified a second" for name in made
        )
        workshop.say(f"ledger proofs {n + 1}/{rounds}: {said}")
    return [
        Row.of("ledger leaves", [size / ours_s], [size / theirs_s], "leaves/s"),
        Row.of("ledger proofs", made["ours"], made["theirs"], "proofs/s", leaves=size),
        Row.of("ledger proofs verified", checked["ours"], checked["theirs"], "proofs/s"),
    ]


def _verify(
    indices: Sequence[int], paths: Sequence[Sequence[bytes]], hashes: Sequence[bytes], size: int, root: bytes
) -> None:
    for index, path in zip(indices, paths, strict=True):
        tree.verify_inclusion(hashes[index], index, size, path, root)
