"""
The audit of a log: leaf by leaf, pure, trusting nothing but the bytes, the rules and what was signed. Every deviation is a `Finding`.

Everything a document is indexed by is computed again from its leaf: an index edited by hand leaves the root as it was while it
decides what a replay returns. Memory stays small: per leaf eight bytes of its event's id, per request and district a count.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from itertools import pairwise
from typing import Any, Protocol

import orjson

from services.ledger.audit.findings import FINDINGS_MAX, Findings
from services.ledger.log import heads
from services.ledger.log.leaves import (
    CONFLICT,
    DUP,
    EVENT,
    GAP,
    HEADS,
    HEADS_EVERY,
    KINDS,
    REJECT,
    RESET,
    VERSION,
)
from services.ledger.log.notes import Checkpoint
from services.ledger.log.tree import HASH_BYTES, TILE_WIDTH, Edge, Tile, node_hash, split
from shared.bus import STREAM
from shared.envelope import canonical as canonical_json

HOLE_MAX = 1 << 20
"""A jump over more leaves is taken for a wrong index, a smaller one for leaves that are not there."""
_MISSING = bytes(HASH_BYTES)
FLAT = {str, int, bool, type(None)}
STRICT = orjson.OPT_SORT_KEYS | orjson.OPT_STRICT_INTEGER
LATE = '"late":true,'
_RECORDED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", re.ASCII)
_FRACTION = re.compile(rb'\.\d{9}Z"')


@dataclass(frozen=True, slots=True)
class _Dispute:
    """A stored tile's entry that is not the hash below it."""

    tile: Tile
    entry: int
    stored: bytes
    computed: bytes

    def say(self, findings: Findings, code: str) -> None:
        index = (self.tile.number * TILE_WIDTH + self.entry) * TILE_WIDTH**self.tile.level
        field = f"{self.tile.path}[{self.entry}]"
        if code == "leaf_changed" and self.tile.level:
            code = "tile_or_leaf"
        expected, found = (self.computed, self.stored) if code == "tile" else (self.stored, self.computed)
        findings.say(code, index, field, expected, found)


class Growth:
    """
    The tree over the leaves as they come, beside the one that the stored tiles claim: the next checkpoint says which one was signed.

    Attributes:
        leaves: the hashes of the lowest tile as far as it goes; whoever appends the 256th calls `close`.
    """

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self.leaves: list[bytes] = []
        self._inner = Edge()
        self._upper = Edge()
        self._claimed: Edge | None = None
        self._disputes: list[_Dispute] = []
        self._levels: list[tuple[list[bytes], list[bytes]]] = []
        self._stored: dict[tuple[int, int], bytes] = {}
        self._due = 0
        self._wrong: list[tuple[Checkpoint, bytes]] = []
        self._good = 0

    def expect(self, tiles: Mapping[tuple[int, int], bytes], due: int) -> None:
        """Stored tiles by level and number, before the leaves they cover come; those of a tree of `due` leaves must be there."""
        self._stored.update(tiles)
        self._due = max(self._due, due)

    def root(self) -> bytes:
        """The root over all leaves so far."""
        return self._root(self._upper)

    def agrees(self, root: bytes) -> bool:
        """Whether this is the root over the leaves, or the one that the tiles claim."""
        return root == self.root() or (self._claimed is not None and root == self._root(self._claimed))

    def check(self, checkpoint: Checkpoint) -> None:
        """A signed checkpoint of the present size."""
        computed = self.root()
        if computed == checkpoint.root:
            for dispute in self._disputes:
                dispute.say(self._findings, "tile")
            for wrong, _ in self._wrong:
                self._findings.say("checkpoint_root", wrong.size, "root")
        elif self._claimed is not None and self._root(self._claimed) == checkpoint.root:
            for dispute in self._disputes:
                dispute.say(self._findings, "leaf_changed")
            self._upper = self._claimed
        else:
            self._wrong.append((checkpoint, computed))
            del self._wrong[FINDINGS_MAX:]
            return
        self._good, self._claimed = checkpoint.size, None
        self._disputes.clear()
        self._wrong.clear()

    def end(self) -> None:
        """No more leaves: what no checkpoint has decided."""
        for dispute in self._disputes:
            dispute.say(self._findings, "tile_or_leaf")
        if self._wrong:
            checkpoint, computed = self._wrong[0]
            field = f"[{self._good}, {checkpoint.size})"
            self._findings.say("root", checkpoint.size, field, checkpoint.root, computed)

    def _root(self, upper: Edge) -> bytes:
        inner = self._inner
        inner.extend(self.leaves[inner.size :])
        hashes = upper.hashes + inner.hashes
        if not hashes:
            return inner.root()
        root = hashes[-1]
        for left in reversed(hashes[:-1]):
            root = node_hash(left, root)
        return root

    def close(self) -> None:
        """The lowest tile is full: compare it with the stored one, and those above it that it fills."""
        computed = self.leaves.copy()
        self.leaves.clear()
        claimed, level, number = computed, 0, self._upper.size
        while True:
            tile = Tile(level, number >> (8 * level))
            claimed = self._compare(tile, computed, claimed)
            if level == 0 and self._inner.size:
                self._inner.extend(computed[self._inner.size :])
                root = self._inner.hashes[0]
                self._inner = Edge()
            else:
                root = _root_of_256(computed)
            root_claimed = root if claimed is computed else _root_of_256(claimed)
            if level == 0:
                if root_claimed != root and self._claimed is None:
                    self._claimed = self._upper.copy()
                self._upper.append(root)
                if self._claimed is not None:
                    self._claimed.append(root_claimed)
            if level == len(self._levels):
                self._levels.append(([], []))
            above, above_claimed = self._levels[level]
            above.append(root)
            above_claimed.append(root_claimed)
            if len(above) < TILE_WIDTH:
                return
            self._levels[level] = ([], [])
            computed, claimed, level = above, above if above == above_claimed else above_claimed, level + 1

    def _compare(self, tile: Tile, computed: list[bytes], claimed: list[bytes]) -> list[bytes]:
        """What the stored tile claims; an entry that fits neither the leaves nor what the tiles below claim is disputed."""
        stored = self._stored.pop((tile.level, tile.number), None)
        if stored is None:
            if tile.leaves <= self._due:
                self._findings.say("tile_missing", None, tile.path)
            return claimed
        if stored == b"".join(computed):
            return computed
        entries = split(stored)
        if len(stored) != TILE_WIDTH * HASH_BYTES:
            self._findings.say("tile", None, tile.path, f"{TILE_WIDTH * HASH_BYTES} bytes", f"{len(stored)} bytes")
            return claimed
        for n, entry in enumerate(entries):
            if entry != computed[n] and entry != claimed[n] and computed[n] != _MISSING:
                self._disputes.append(_Dispute(tile, n, entry, computed[n]))
        return entries


@dataclass(slots=True)
class _Scope:
    """How many events a district has, and the last one's index; with what its ordinal is written behind."""

    text: str
    n: int = 0
    last: int = 0


class Fields(Protocol):
    """How a store packs what it keeps with a leaf: bytes are compared, and looked into only where they differ."""

    def pack(self, fields: Mapping[str, Any], /) -> bytes:
        """In their order."""

    def unpack(self, packed: bytes, /) -> dict[str, Any]:
        """The way back."""


class NoFields:
    """Of leaves alone."""

    def pack(self, fields: Mapping[str, Any], /) -> bytes:
        raise NotImplementedError

    def unpack(self, packed: bytes, /) -> dict[str, Any]:
        raise NotImplementedError


class Audit:
    """
    A whole log, from its first leaf on.

    Feed it in order: `checkpoint`s and `tiles` of a stretch, then its leaves by `take`; at the end `end`.

    Attributes:
        findings: what was wrong so far.
        size: how many leaves were looked at.
        cases: events per request.
        kinds: leaves by kind.
        gaps: the numbers that gap leaves of the present epoch cover, first and last, with the leaf's index.
    """

    def __init__(
        self, log: str, *, canonical: bool = False, fields: Fields | None = None, findings: Findings | None = None
    ) -> None:
        """
        Of an empty log.

        Args:
            canonical: look at the canonical form of every leaf too.
            fields: how the store packs what it keeps with a leaf; None for leaves alone.
        """
        self._fields = fields or NoFields()
        self.findings = findings if findings is not None else Findings()
        self.growth = Growth(self.findings)
        self.log = log
        self.size = 0
        self._scopes: dict[str, _Scope] = {}
        self._groups: dict[str, tuple[list[str], list[_Scope]]] = {}
        self.cases: dict[str, int] = {}
        self.kinds: Counter[str] = Counter()
        self.rejected: dict[str, int] = {}
        self.gaps: list[tuple[int, int, int]] = []
        self.created = ""
        self.epoch = 0
        self.sequence = 0
        self.newest = ""
        self._canonical = canonical
        self._ids = array("q")
        self._missing = 0
        self._second = ""
        self._source = ""
        self._checkpoints: list[Checkpoint] = []
        self._anchors: list[tuple[int, str, Checkpoint]] = []

    @property
    def scopes(self) -> dict[str, tuple[int, int]]:
        """Events per district, and the index of the last one."""
        return {district: (scope.n, scope.last) for district, scope in self._scopes.items() if scope.n}

    def expect(
        self, checkpoints: Iterable[Checkpoint], tiles: Mapping[tuple[int, int], bytes] | None = None, due: int = 0
    ) -> None:
        """
        What the leaves that come next must agree with.

        Args:
            checkpoints: whose signatures hold; by size, each larger than what was taken so far.
            tiles: by level and number.
            due: the size of the last checkpoint: every full tile of it must be there.
        """
        self._checkpoints += checkpoints
        self.growth.expect(tiles or {}, due)

    def anchor(self, where: str, checkpoint: Checkpoint) -> None:
        """A checkpoint that somebody else holds, whose signature holds; before any leaf of it is taken."""
        self._anchors.append((checkpoint.size, where, checkpoint))
        self._anchors.sort(reverse=True, key=lambda anchor: anchor[0])

    def take(self, leaves: Iterable[tuple[int, bytes, bytes | None]]) -> None:
        """
        The next leaves: index, bytes, and, where they come from the store, what else is stored with them, packed.

        A leaf is a function of its message and of the leaves before it. So it is made again around its event; only where that
        gives other bytes somebody looks into it.
        """
        # One loop with everything an event needs in it: it is run a million times, and calls would be half of it.
        say, cases, ids, groups = self.findings.say, self.cases, self._ids, self._groups
        loads, parsed, pack, canonical = orjson.loads, datetime.fromisoformat, self._fields.pack, self._canonical
        precise = _FRACTION.match
        grow, log = self.growth.leaves.append, canonical_json(self.log).decode()
        due = self._next_due()
        for index, data, packed in leaves:
            if index != self.size:
                if not self._jump(index):
                    continue
                due = self._next_due()
            digest = sha256(b"\x00" + data).digest()
            grow(digest)
            self.size = size = index + 1
            id: str | None = None
            try:
                start, end = data.find(b'"event":') + 8, data.rfind(b',"index":')
                if start < 8:
                    self._rare(index, data, packed, digest)
                    continue
                text = data[start:end]
                event = loads(text)
                at = data.find(b'"recorded":"', end) + 12
                recorded = data[at : at + 30].decode()
                subject = data[data.rfind(b'"subject":"') + 11 : -22].decode()
                id, case, time = event["id"], event.get("correlationid"), event["time"]
                districts, counts = groups.get(event["districts"]) or self._group(event["districts"])
                if recorded[:19] != self._second or not precise(data, at + 19) or not index % HEADS_EVERY:
                    self._tick(index, EVENT, recorded)
                late = recorded < self.newest
                if not late and self._second:
                    self.newest = recorded
                self.sequence += 1
                counted = ""
                for scope in counts:
                    scope.n += 1
                    scope.last = index
                    counted = f"{counted}{scope.text}{scope.n}}},"
                if case is None:
                    head = '{"event":'
                else:
                    n = cases[case] = cases.get(case, 0) + 1
                    head = f'{{"case":{{"id":"{case}","n":{n}}},"event":'
                tail = (
                    f',"index":{index},"kind":"event",{LATE if late else ""}"log":{log},"recorded":"{recorded}"'
                    f',"scopes":[{counted[:-1]}],{self._source}{self.sequence},"stream":"{STREAM}"}}'
                    f',"subject":"{subject}","v":"{VERSION}"}}'
                )
                if data != b"".join((head.encode(), text, tail.encode())):
                    self._differs(index, data, late, case, districts)
                if canonical and not is_canonical(event, text):
                    say("not_canonical", index, "event")
                if packed is not None:
                    want = {
                        "h": digest,
                        "k": EVENT,
                        "src": self.epoch,
                        "sseq": self.sequence,
                        "eid": id,
                        "ty": event["type"],
                        "ar": subject.split(".", 4)[3],
                        # The store keeps whole milliseconds.
                        "et": parsed(time[:23]) if len(time) == 27 and time[26] == "Z" else _naive(time),
                    }
                    if case is not None:
                        want["case"] = case
                    if districts:
                        want["ds"] = districts
                    if pack(want) != packed:
                        self._indexed(index, packed, want)
            except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError, IndexError) as why:
                say("leaf_unreadable", index, repr(why))
                if packed is not None and (found := self._fields.unpack(packed).get("h")) != digest:
                    say("leaf_hash", index, "h", digest, found)
                self._missing += 1  # what it counted is not known
            finally:
                ids.append(hash(id) if id is not None else 0)
                if not size & 255:
                    self.growth.close()
                if size == due:
                    due = self._reached()

    def end(self) -> None:
        """There are no more leaves: what only the whole can show."""
        for checkpoint in self._checkpoints:
            self.findings.say("truncated", checkpoint.size, "checkpoint", checkpoint.size, self.size)
        for size, where, _ in self._anchors:
            self.findings.say("truncated", size, where, size, self.size)
        self.growth.end()
        self._repeated()
        self.kinds[EVENT] = self.size - self.kinds.total() - self._missing

    def _group(self, listed: str) -> tuple[list[str], list[_Scope]]:
        """The districts that an event lists, and their counts."""
        districts = list(dict.fromkeys(listed.split(","))) if listed else []
        for district in districts:
            self._scopes.setdefault(district, _Scope(f'{{"d":"{district}","n":'))
        self._groups[listed] = group = districts, [self._scopes[district] for district in districts]
        return group

    # --- what goes on from leaf to leaf -----------------------------------------------------------------------------

    def _next_due(self) -> int:
        """The size at which there is something to compare the root with; -1 where there is nothing."""
        sizes = [checkpoint.size for checkpoint in self._checkpoints[:1]] + [size for size, _, _ in self._anchors[-1:]]
        return min(sizes, default=-1)

    def _reached(self) -> int:
        """Compare the root; the next size at which there is something to compare it with."""
        roots: set[bytes] = set()
        while self._checkpoints and self._checkpoints[0].size == self.size:
            checkpoint = self._checkpoints.pop(0)
            roots.add(checkpoint.root)
            self.growth.check(checkpoint)
            root = heads.root(self.scopes)
            if not self._missing and checkpoint.heads not in (None, root):
                self.findings.say("checkpoint_heads", self.size, "heads", root, checkpoint.heads)
        while self._anchors and self._anchors[-1][0] == self.size:
            _, where, checkpoint = self._anchors.pop()
            if checkpoint.root not in roots and not self.growth.agrees(checkpoint.root):
                self.findings.say("fork", self.size, where, checkpoint.root, self.growth.root())
        return self._next_due()

    def _jump(self, index: int) -> bool:
        """Leaves are missing: go on as if they had been there; False where this one is out of place instead."""
        self.findings.say("index", min(index, self.size), "_id", self.size, index)
        if not self.size < index <= self.size + HOLE_MAX:
            return False
        self._missing += index - self.size
        while self.size < index:
            self.growth.leaves.append(_MISSING)
            self._ids.append(0)
            self.size += 1
            if not self.size & 255:
                self.growth.close()
            if self.size == self._next_due():
                self._reached()
        return True

    def _tick(self, index: int, kind: str, recorded: str) -> None:
        """Another second: it is one, and where heads are due there are heads. Of what is no time nothing follows for later leaves."""
        if not _RECORDED.fullmatch(recorded):
            self.findings.say("leaf_form", index, "recorded", "RFC 3339, UTC, nine digits", recorded)
            self._second = ""
            return
        self._second = recorded[:19]
        due = index > 0 and (index % HEADS_EVERY == 0 or recorded[:10] > self.newest[:10])
        if not self._missing and due != (kind == HEADS):
            self.findings.say(
                "heads_missing" if due else "heads_unexpected", index, "kind", HEADS if due else EVENT, kind
            )

    def _differs(self, index: int, data: bytes, late: bool, case: str | None, districts: Sequence[str]) -> None:
        """An event's leaf has other bytes than were made again: name the parts, and go on from what it says where that is sound."""
        say, leaf, before = self.findings.say, orjson.loads(data), self.findings.counts.total()
        if self._goes_on(index, leaf["src"], self.sequence):
            self.sequence = leaf["src"]["seq"]
        counted = [scope["d"] for scope in leaf["scopes"]]
        if counted != districts:
            say("scopes", index, "scopes", districts, counted)
        for found in leaf["scopes"]:
            if found["d"] in districts and found["n"] != (scope := self._scopes[found["d"]]).n:
                scope.n = self._ordinal("scope_ordinal", index, found["d"], scope.n, found["n"])
        of = leaf.get("case", {})
        if case != of.get("id"):
            say("leaf_form", index, "case", case, of)
        elif case is not None and of["n"] != self.cases[case]:
            self.cases[case] = self._ordinal("case_ordinal", index, case, self.cases[case], of["n"])
        self._form(index, leaf, EVENT, late)
        if canonical_json(leaf) != data:
            say("not_canonical", index)
        if self.findings.counts.total() > before:
            return
        source = {"created": self.created, "seq": self.sequence, "stream": STREAM}
        want = {name: leaf[name] for name in ("event", "recorded", "subject")} | {
            "index": index,
            "kind": EVENT,
            "log": self.log,
            "v": VERSION,
            "scopes": [{"d": district, "n": self._scopes[district].n} for district in districts],
            "src": source | ({"epoch": self.epoch} if self.epoch else {}),
            **({"late": True} if late else {}),
            **({"case": {"id": case, "n": self.cases[case]}} if case is not None else {}),
        }
        for name in sorted({*want, *leaf}):
            expected, found = want.get(name), leaf.get(name)
            if canonical_json(expected) != canonical_json(found):  # true is not 1 here
                say("leaf_form", index, name, expected, found)

    def _form(self, index: int, leaf: Mapping[str, Any], kind: str, late: bool) -> None:
        """What every leaf has."""
        for name, want in {"v": VERSION, "log": self.log, "index": index, "kind": kind}.items():
            if leaf[name] != want:
                self.findings.say("leaf_form", index, name, want, leaf[name])
        if leaf.get("late", False) is not late:
            self.findings.say("late", index, "late", late, leaf.get("late", False))

    def _goes_on(self, index: int, source: Mapping[str, Any], due: int) -> bool:
        """Whether a leaf is of the present source; says where it is not the next of it."""
        if not self.created:
            self._of(source["created"], 0)
        for name, want in {"created": self.created, "epoch": self.epoch, "stream": STREAM}.items():
            if (found := source.get(name, 0)) != want:
                self.findings.say("source", index, name, want, found)
                return False
        if source["seq"] != due and not self._excused(source["seq"] - due):
            self.findings.say("sequence", index, "src.seq", due, source["seq"])
        return True

    def _of(self, created: str, epoch: int) -> None:
        """From here on the leaves are of this source."""
        self.created, self.epoch = created, epoch
        self._source = f'"src":{{"created":"{created}",{f"{chr(34)}epoch{chr(34)}:{epoch}," if epoch else ""}"seq":'

    def _excused(self, many: int) -> bool:
        """Whether leaves that are known to be missing explain that so many numbers are."""
        return 0 < many <= self._missing

    def _ordinal(self, code: str, index: int, of: str, due: int, found: int) -> int:
        """An ordinal is not the one that is due; the one to go on from."""
        if type(found) is int and self._excused(found - due):
            return found
        self.findings.say(code, index, of, due, found)
        return due

    def _rare(self, index: int, data: bytes, packed: bytes | None, digest: bytes) -> None:
        """A leaf that is no event."""
        say, leaf = self.findings.say, orjson.loads(data)
        kind, source, recorded = leaf["kind"], leaf["src"], leaf["recorded"]
        sequence, id = source["seq"], None
        self.kinds[kind] += 1
        self._tick(index, kind, recorded)
        self._form(index, leaf, kind if kind in KINDS and kind != EVENT else DUP, recorded < self.newest)
        if self._second:
            self.newest = max(self.newest, recorded)
        if canonical_json(leaf) != data:
            say("not_canonical", index)
        if kind == RESET:
            self._reset(index, leaf["reset"], source)
        elif self._goes_on(index, source, self.sequence + (kind != HEADS)):
            self.sequence = sequence
        if kind == HEADS:
            want = {"root": heads.root(self.scopes).hex(), "scopes": len(self.scopes)}
            if not self._missing and leaf["heads"] != want:
                say("heads_root", index, "heads", want, leaf["heads"])
        elif kind == GAP:
            first, last = leaf["gap"]["from"], leaf["gap"]["to"]
            if first != sequence or last < first:
                say("gap", index, "gap", {"from": sequence, "to": f"≥ {sequence}"}, leaf["gap"])
            self.sequence = last
            self.gaps.append((first, last, index))
        elif kind in (DUP, CONFLICT):
            id, at = leaf["id"], leaf["first"]
            if not (type(at) is int and 0 <= at < index and (self._missing or self._ids[at] == hash(id))):
                say("first", index, "first", id, at)
        if kind in (REJECT, CONFLICT):
            self.rejected.setdefault(leaf["digest"], index)
        if packed is not None:
            want = {"h": digest, "k": kind, "src": self.epoch}
            if kind not in (RESET, HEADS):
                want["sseq"] = sequence
            if id is not None:
                want["eid"] = id
            if self._fields.pack(want) != packed:
                self._indexed(index, packed, want)

    def _reset(self, index: int, old: Mapping[str, Any], source: Mapping[str, Any]) -> None:
        want = {"created": self.created, "seq": self.sequence} | ({"epoch": self.epoch} if self.epoch else {})
        if old != want and not self._missing:
            self.findings.say("reset", index, "reset", want, old)
        if source.get("epoch") != self.epoch + 1:
            self.findings.say("reset", index, "src.epoch", self.epoch + 1, source.get("epoch"))
        self._of(source["created"], self.epoch + 1)
        self.sequence = source["seq"]
        self.gaps.clear()

    def _indexed(self, index: int, packed: bytes, want: Mapping[str, Any]) -> None:
        """Name the fields of a document that its leaf does not give."""
        document = self._fields.unpack(packed)
        for name in sorted({*document, *want}):
            expected, found = want.get(name), document.get(name)
            if expected != found:
                self.findings.say("leaf_hash" if name == "h" else "indexed_field", index, name, expected, found)

    def _repeated(self) -> None:
        """Events whose id is an earlier one's; a part of the ids at a time, so that it takes little memory."""
        parts = 1 + len(self._ids) // 2_000_000
        for part in range(parts):
            ordered = sorted(id for id in self._ids if id % parts == part and id)
            for before, id in pairwise(ordered):
                if before == id:
                    first = self._ids.index(id)
                    self.findings.say("event_twice", self._ids.index(id, first + 1), "event.id", first)


def is_canonical(value: Any, data: bytes) -> bool:
    """Whether bytes are the RFC 8785 form of what they say, on our profile: no fractions, integers below 2^53, plain keys."""
    try:
        if orjson.dumps(value, option=STRICT) != data:
            return False
    except TypeError:  # an integer too large
        return False
    # As it is with nearly every event: text alone, and data without anything inside.
    kinds = list(map(type, value.values()))
    if kinds.count(str) == len(kinds) - 1 and type(inside := value.get("data")) is dict and data.isascii():
        return set(map(type, inside.values())) <= FLAT or _exact(inside)
    return _exact(value)


def _exact(value: Any) -> bool:
    """Whether there are no fractions in it, nor keys that RFC 8785 would sort otherwise."""
    kind = type(value)
    if kind is dict:
        if not "".join(value).isascii() and any(max(key, default="") >= "\ud800" for key in value):
            return False
        value = value.values()
    elif kind is not list:
        return kind is not float
    for part in value:  # a loop, not all(): this is asked of every leaf  # noqa: SIM110
        if type(part) is not str and not _exact(part):
            return False
    return True


def _root_of_256(hashes: list[bytes]) -> bytes:
    """As `tree.perfect_root`, quicker."""
    while len(hashes) > 1:
        pairs = iter(hashes)
        hashes = [sha256(b"\x01" + left + right).digest() for left, right in zip(pairs, pairs, strict=True)]
    return hashes[0]


def _naive(time: str) -> datetime:
    moment = datetime.fromisoformat(time).astimezone(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000, tzinfo=None)
