"""
Heads: how many events each district has up to a point of the log, and which leaf is its last; one hash over all of them.

The root lies in the log itself (a leaf of kind `heads` now and then) and in every signed checkpoint. Whoever is shown one district's
head and the path to that root knows where a complete replay of that district ends, without seeing anything of the others: the ordinals
in its leaves run from 1 to the head's `n`, and the last leaf is the head's `last`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from services.ledger.log import tree
from shared.envelope import canonical
from shared.errors import PaidanError

Scopes = Mapping[str, tuple[int, int]]
"""District → its last event's ordinal and that leaf's index."""


class UncountedError(PaidanError):
    """The store has other counts than were signed: whoever went on from them would write and sign wrong ordinals for ever."""


class Path(NamedTuple):
    """One district's head (`position` of `size`, by code) and what proves it: the sibling hashes, from the leaf upwards."""

    district: str
    n: int
    last: int
    position: int
    size: int
    hashes: Sequence[bytes]


def head(district: str, n: int, last: int) -> bytes:
    """The leaf of one district."""
    return canonical({"d": district, "last": last, "n": n})


def count(scopes: dict[str, tuple[int, int]], index: int, districts: Iterable[str]) -> None:
    """One more event of these districts, in this leaf."""
    for district in districts:
        scopes[district] = (scopes[district][0] + 1 if district in scopes else 1), index


def root(scopes: Scopes) -> bytes:
    """Over the districts in order of their codes, by the rules of RFC 9162 as for the log; of none: the root of no leaves."""
    return tree.root_of(_hashes(scopes))


def path(scopes: Scopes, district: str) -> Path | None:
    """The head of one district with its proof; None where the log has nothing of it."""
    if district not in scopes:
        return None
    hashes = _hashes(scopes)
    position = sorted(scopes).index(district)
    siblings: list[bytes] = []
    start, end = 0, len(hashes)
    while end - start > 1:
        middle = start + (1 << ((end - start - 1).bit_length() - 1))
        left = position < middle
        siblings.append(tree.root_of(hashes[middle:end] if left else hashes[start:middle]))
        start, end = (start, middle) if left else (middle, end)
    return Path(district, *scopes[district], position, len(hashes), siblings[::-1])


def verify(found: Path, under: bytes) -> None:
    """Whether a head lies under this root. Raises ProofError."""
    leaf = tree.leaf_hash(head(found.district, found.n, found.last))
    tree.verify_inclusion(leaf, found.position, found.size, found.hashes, under)


def shown(found: Path) -> dict[str, Any]:
    """As replays and reports carry it; hashes in hex."""
    return {**found._asdict(), "hashes": [each.hex() for each in found.hashes]}


def read(document: Mapping[str, Any]) -> Path:
    """The way back from `shown`. Raises ValueError, KeyError or TypeError."""
    return Path(**{**document, "hashes": [bytes.fromhex(each) for each in document["hashes"]]})


def _hashes(scopes: Scopes) -> list[bytes]:
    return [tree.leaf_hash(head(district, *scopes[district])) for district in sorted(scopes)]
