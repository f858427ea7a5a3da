"""
What arrives of a replay, and whether it is all of it: the reader's half of `services.ledger.replay`, pure.

What must come is said by the question and by the signed checkpoint, never by what the server says that it sends. A whole log has every
index, and its leaves give the checkpoint's root (`Received` for who fetches one, `verifying.Audit` for who audits one). Of a part of it
`Part` holds the ordinals against the checkpoint's `heads`: a district's run without a hole from 1 to its head; all districts' together
give the root of the heads. Where neither can be shown, it is said that it is not known whether something was withheld.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

import orjson

from services.ledger.audit.findings import Findings
from services.ledger.audit.verifying import is_canonical
from services.ledger.log import heads, leaves, notes
from services.ledger.log.leaves import EVENT
from services.ledger.log.notes import Checkpoint, NoteError
from services.ledger.log.tree import (
    HASH_BYTES,
    TILE_HEIGHT,
    TILE_WIDTH,
    Edge,
    ProofError,
    Tile,
    inclusion,
    leaf_hash,
    verify_inclusion,
)
from shared.errors import PaidanError

VERSION = "paidan/replay/1"
LINE_MAX = 256 * 1024
"""Bytes: a leaf has 64 KiB at most."""
TILES_MAX = 4096
"""So many that are still needed are kept, 8 KiB each: twice as many as a chunk of leaves can ask for."""
COUNTED = {"district", "scopes", "kinds", "to"}
"""Filters that leave the ordinals of districts without holes; every other one, also one that is not known, makes some."""
NO_CHECKPOINT = "首行没有可信的检查点", "the header carries no checkpoint that can be believed"


class IncompleteError(PaidanError):
    """A replay is not what it says, or not all of it."""

    def __init__(self, zh: str, en: str) -> None:
        super().__init__(en)
        self.zh = zh


class Why(NamedTuple):
    """Why it is not known that nothing was withheld."""

    zh: str
    en: str


def whole_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """
    The lines in a stream of bytes, each with its line feed, but for a last one that was cut.

    Raises:
        IncompleteError: a line of more than `LINE_MAX` bytes.
    """
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line + b"\n" for line in lines)
        if len(rest) > LINE_MAX:
            raise IncompleteError("一行过长", f"a line of more than {LINE_MAX} bytes")
    if rest:
        yield rest


def header_of(line: bytes) -> dict[str, Any]:
    """The first line. Raises IncompleteError: it is no replay's, or not of the form that we know."""
    try:
        header: dict[str, Any] = orjson.loads(line)
        if header["replay"] != VERSION:
            raise ValueError(f"not {VERSION}")
        header = {"checkpoint": None, "heads": {}, "withheld": [], **header}
        chosen = header["filter"]
        shapes = {"log": str, "size": int, "from": int, "filter": dict, "heads": dict, "withheld": list}
        wrong = [name for name, shape in shapes.items() if type(header[name]) is not shape]
        wrong += [name for name in ("kinds", "scopes", "types") if name in chosen and not _are_words(chosen[name])]
        wrong += [name for name in ("district", "request") if type(chosen.get(name, "")) is not str]
        wrong += ["to"] if type(chosen.get("to", 0)) is not int else []
        wrong += ["checkpoint"] if not isinstance(header["checkpoint"], str | None) else []
        if wrong or header["size"] < 0 or header["from"] < 0:
            raise ValueError(" ".join(wrong) or "size, from")
    except (ValueError, KeyError, TypeError, AttributeError) as why:
        raise IncompleteError("首行不是重放的首行", f"the first line is not that of a replay: {why}") from None
    return header


def _are_words(value: Any) -> bool:
    return type(value) is list and value != [] and all(type(each) is str for each in value)


class Part:
    """
    A part of a log, line by line: in its order, under its checkpoint, and with ordinals that have no hole.

    Args:
        header: its first line, as `header_of` reads it.
        checkpoint: the one in the header, as far as somebody believes it; None: nothing can be proved.
        findings: where goes what is wrong.

    Attributes:
        leaves: how many came; `withheld`: those of them by hash only.
        at: the index of the last one; before the first, that before where it begins.
        kinds, scopes: how many by kind, and by district.
    """

    def __init__(self, header: Mapping[str, Any], checkpoint: Checkpoint | None, findings: Findings) -> None:
        self._header, self._filter = header, header["filter"]
        self._checkpoint, self._say = checkpoint, findings.say
        self._size, self._since = header["size"], header["from"]
        self._until = min(self._size, self._filter.get("to", self._size))
        self.leaves = self.withheld = 0
        self.at: int = self._since - 1
        self.kinds: dict[str, int] = {}
        self.scopes: dict[str, int] = {}
        self._proof = header.get("proof") if checkpoint else None
        self._tiles: dict[tuple[int, int], bytes] = {}
        self._proved = -1
        chosen, kinds = self._filter, self._filter.get("kinds")
        self._counted = chosen.keys() <= COUNTED and EVENT in (kinds or [EVENT])
        district = chosen.get("district")
        self._districts: list[str] | None = [district] if district is not None else chosen.get("scopes")
        self._request = chosen.get("request") if chosen.keys() <= {"request", "kinds", "to"} else None
        self._last: dict[str, tuple[int, int]] = {}
        self._heads = self._read_heads() if self._counted and checkpoint else {}

    def _read_heads(self) -> dict[str, heads.Path]:
        """Where each district that was asked for ends, as far as it is proved."""
        assert self._checkpoint is not None
        found = {}
        for district in self._districts or ():
            try:
                if (shown := self._header["heads"][district]) is None:
                    continue  # the log is said to have nothing of it
                path = heads.read(shown)
                heads.verify(path, self._checkpoint.heads or b"")
                if path.district != district:
                    raise ProofError(f"the head of {path.district}")
            except (ProofError, KeyError, ValueError, TypeError, AttributeError) as why:
                self._say("header", None, f"heads.{district}", "a head under the checkpoint", repr(why))
                continue
            found[district] = path
        return found

    def take(self, line: bytes) -> Mapping[str, Any] | None:
        """One more line, with or without its line feed; what it says, where it is the last one."""
        try:
            said = orjson.loads(line)
            if "end" in said:
                return dict(said)
            if "tile" in said:
                self._tile(said)
            else:
                self._leaf(said, line)
        except (ValueError, KeyError, TypeError, AttributeError) as why:
            self._say("leaf_unreadable", self.at + 1, str(why) or "line")
        return None

    def end(self, trailer: Mapping[str, Any] | None) -> Why | None:
        """Nothing more comes: whether it goes to where the heads say, and why it is not known that nothing was withheld; None where it is."""
        if self._checkpoint is None:
            return Why(*NO_CHECKPOINT)
        if not self._counted:
            return Why("这样过滤后，没有计数说明应到何处", "under this filter no count says where it ends")
        if self._since or "to" in self._filter or trailer is None or trailer.get("next") is not None:
            return Why("只是一段，或未到末尾", "it is a range, or does not go to the end")
        if self._districts is None:
            self._end_of_all(self._checkpoint.heads)
        else:
            self._end_of_each(self._districts)
        if self._proof not in ("each", "tiles"):  # ordinals that anybody may have made up prove nothing
            return Why("叶子不带证明，请用 proof=tiles", "leaves come without their proofs: ask for proof=tiles")
        if self.withheld:
            return Why(f"{self.withheld} 条只见哈希", f"{self.withheld} leaves came by their hash only")
        if self._districts is None and self._filter.get("kinds", [EVENT]) != [EVENT]:
            return Why("只有事件有计数", "events alone are counted")
        if without := [district for district in self._districts or () if district not in self._heads]:
            proved, unproved = " ".join(self._heads) or "–", " ".join(without)
            return Why(
                f"已证明：{proved}；首行称账本没有 {unproved} 的事件，无从证明",
                f"proved for {proved}; that the log has nothing of {unproved}, as the header says, cannot be",
            )
        return None

    def _end_of_all(self, root: bytes | None) -> None:
        """All events of all districts: their counts give the root of the heads."""
        if not self._filter and self.at + 1 != self._size:
            self._say("index", None, "s", self._size - 1, self.at)
        if (found := heads.root(self._last)) != root:
            self._say("heads_root", None, "heads", root, found)

    def _end_of_each(self, districts: Sequence[str]) -> None:
        for district in districts:
            head, (n, last) = self._heads.get(district), self._last.get(district, (0, -1))
            if head is not None and n < head.n:
                self._say("withheld", None, district, n + 1, "末行 / the last line")
            elif (n, last) != ((head.n, head.last) if head else (0, -1)):
                self._say("header", None, f"heads.{district}", [n, last], head and [head.n, head.last])

    def _leaf(self, said: Mapping[str, Any], line: bytes) -> None:
        index = said["s"]
        if type(index) is not int:
            raise TypeError("s")
        self.leaves += 1
        if said.get("withheld"):
            self.withheld += 1
            if not self._header["withheld"]:
                self._say("by_hash", index)
            self._place(index, bytes.fromhex(said["hash"]), said)
            self._hold(index, "event", {said["d"]: said["n"]}, None)
            return
        data = line.rstrip(b"\n")[line.index(b'"leaf":') + 7 : -1]
        if "proof" in said:
            data = data.rpartition(b',"proof":')[0]
        self._place(index, leaf_hash(data), said)
        leaf = said["leaf"]
        if not is_canonical(leaf, data):
            self._say("not_canonical", index)
        for name, want in {"v": leaves.VERSION, "log": self._header["log"], "index": index}.items():
            if leaf[name] != want:
                self._say("leaf_form", index, name, want, leaf[name])
        self._hold(index, leaf["kind"], {scope["d"]: scope["n"] for scope in leaf.get("scopes", ())}, leaf.get("case"))

    def _place(self, index: int, hash: bytes, said: Mapping[str, Any]) -> None:
        """Whether a leaf comes in order, and whether it is the one that was signed."""
        if not self.at < index < self._until or (not self._filter and index != self.at + 1):
            self._say("index", index, "s", self.at + 1, index)
        self.at = max(self.at, index)
        if self._checkpoint is None:
            return
        try:
            if self._proof == "each":
                proof = [b64decode(each) for each in said["proof"]]
                verify_inclusion(hash, index, self._size, proof, self._checkpoint.root)
            elif self._proof == "tiles":
                tile = self._proved_tile(index // TILE_WIDTH)
                at = index % TILE_WIDTH * HASH_BYTES
                if (signed := tile[at : at + HASH_BYTES]) != hash:
                    self._say("leaf_changed", index, "leaf", signed, hash)
        except (ProofError, KeyError, TypeError, ValueError) as why:
            self._say("proof", index, "proof", None, str(why))

    def _hold(self, index: int, kind: str, scopes: Mapping[str, int], case: Mapping[str, Any] | None) -> None:
        """Whether it was asked for, and whether it is the next of its districts and of its request."""
        chosen = self._filter
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        if self._districts is not None and not {*self._districts} & scopes.keys():
            self._say("filter", index, "district", " ".join(self._districts))
        if kind not in chosen.get("kinds", (kind,)):
            self._say("filter", index, "kinds", " ".join(chosen["kinds"]))
        if "request" in chosen and (case is None or case["id"] != chosen["request"]):
            self._say("filter", index, "request", chosen["request"])
        elif self._request is not None and case is not None:
            self._follow("withheld_case", self._request, case["n"], index)
        for district, n in scopes.items():
            if self._counted and (self._districts is None or district in self._districts):
                self._follow("withheld", district, n, index)
                self.scopes[district] = self.scopes.get(district, 0) + 1

    def _follow(self, code: str, scope: str, n: int, index: int) -> None:
        """The next ordinal; a replay that begins later begins with whichever comes first."""
        if type(scope) is not str or type(n) is not int:
            raise TypeError("scopes")
        before = self._last.get(scope)
        due = before[0] + 1 if before else 1 if self._since == 0 else n
        if n != due:
            self._say(code, index, scope, due, n)
        self._last[scope] = n, index

    def _tile(self, said: Mapping[str, Any]) -> None:
        tile, data = Tile.parse(said["tile"]), b64decode(said["h"])
        if len(data) != tile.width * HASH_BYTES:
            raise ValueError(tile.path)
        if len(self._tiles) >= TILES_MAX:  # those in front of the next leaf are needed no more
            ahead = {
                at: kept for at, kept in self._tiles.items() if at[1] >= (self.at + 1) >> TILE_HEIGHT * (at[0] + 1)
            }
            if len(ahead) >= TILES_MAX:
                raise ValueError(f"more than {TILES_MAX} tiles ahead")
            self._tiles = ahead
        self._tiles[tile.level, tile.number] = data

    def _proved_tile(self, number: int) -> bytes:
        """
        A tile of leaf hashes, shown once to be under the root: the path of its first leaf is made of all the others in it.

        Raises:
            ProofError, KeyError.
        """
        assert self._checkpoint is not None
        tile = self._tiles[0, number]

        async def read(wanted: Tile) -> bytes:
            return self._tiles[wanted.level, wanted.number][: wanted.width * HASH_BYTES]

        if number != self._proved:
            first = number * TILE_WIDTH
            try:
                inclusion(read, first, self._size).send(None)  # it waits for nothing
            except StopIteration as done:
                verify_inclusion(tile[:HASH_BYTES], first, self._size, done.value, self._checkpoint.root)
            self._proved = number
        return tile


class Received:
    """
    A replay as it comes in, line by line, for who takes it for what it is: the first thing that is wrong ends it.

    Who signed the checkpoint is for `paidan ledger verify` to say.

    Attributes:
        header: its first line.
        trailer: its last line, once it came.
        unproved: why it is not known that nothing was withheld, once it has ended.
    """

    def __init__(self, header: bytes) -> None:
        self.header = header_of(header)
        self.size, self.since = self.header["size"], self.header["from"]
        self.trailer: dict[str, Any] | None = None
        self.unproved: Why | None = None
        self._findings = Findings()
        self._checkpoint = self._noted(self.header["checkpoint"])
        self._part: Part | None = None
        self._edge: Edge | None = None
        self._lines, self._at = 0, self.since - 1
        if self.header["filter"] or self.header.get("proof") is not None:
            self._part = Part(self.header, self._checkpoint, self._findings)
            self._stop()
        elif self.since == 0:
            self._edge = Edge()

    @property
    def rooted(self) -> bool:
        """Whether every leaf hash went into the checkpoint's root."""
        return self._edge is not None and self._checkpoint is not None

    @property
    def lines(self) -> int:
        """How many leaves came, what is withheld among them."""
        return self._part.leaves if self._part else self._lines

    @property
    def withheld(self) -> int:
        """How many of them came by their hash only."""
        return self._part.withheld if self._part else 0

    @property
    def at(self) -> int:
        """The index of the last one; before the first, that before where it begins."""
        return self._part.at if self._part else self._at

    def take(self, lines: Iterable[bytes]) -> None:
        """
        More lines, each without its line feed.

        Raises:
            IncompleteError: something is missing, or is not as it was said.
        """
        if self._part is None:
            self._whole(lines)
            return
        for line in lines:
            self._behind()
            trailer = self._part.take(line)
            self._stop()
            if trailer is not None:
                self._ended(trailer)

    def end(self) -> None:
        """Nothing more comes. Raises IncompleteError where that is too early."""
        if self.trailer is None:
            raise IncompleteError(
                f"没有末行：重放在 {self.at} 之后被截断", f"there is no last line: it was cut short behind {self.at}"
            )
        if self._part is not None:
            self.unproved = self._part.end(self.trailer)
            self._stop()
        elif self._checkpoint is None:
            self.unproved = Why(*NO_CHECKPOINT)
        if self.trailer["next"] is not None:
            return  # as many as were asked for; the rest comes with the cursor
        wanted = self.header.get("expected")
        found = (
            {d: self._part.scopes.get(d, 0) for d in wanted} if isinstance(wanted, dict) and self._part else self.lines
        )
        if found != wanted:
            raise IncompleteError(f"应有 {wanted} 条，收到 {found} 条", f"{wanted} were to come, {found} did")
        if self._part is None and self.at + 1 < self.size:
            raise IncompleteError(f"缺少第 {self.at + 1} 条", f"leaf {self.at + 1} is missing")
        if self._edge and self._checkpoint and self._edge.root() != self._checkpoint.root:
            raise IncompleteError("叶子与检查点的根不符", "the leaves do not give the checkpoint's root")

    def _noted(self, note: str | None) -> Checkpoint | None:
        try:
            checkpoint = notes.Checkpoint.parse(notes.Note.parse(note).body) if note is not None else None
        except NoteError as why:
            raise IncompleteError("首行的检查点有误", f"the checkpoint in the first line is wrong: {why}") from None
        log, size = self.header["log"], self.size
        if checkpoint is not None and (checkpoint.origin, checkpoint.size) != (log, size):
            other = f"of {checkpoint.origin}, {checkpoint.size} for a replay of {log}, {size}"
            raise IncompleteError("首行与检查点不符", f"the first line does not agree with its checkpoint: {other}")
        return checkpoint

    def _stop(self) -> None:
        if self._findings.listed:
            first = self._findings.listed[0]
            where = "" if first.index is None else f" #{first.index}"
            raise IncompleteError(f"{first.zh}{where}", f"{first.en}{where}")

    def _whole(self, lines: Iterable[bytes]) -> None:
        due, hashes = self._at + 1, []
        for line in lines:
            prefix = b'{"s":%d,"leaf":' % due
            if line.startswith(prefix) and self.trailer is None:
                hashes.append(sha256(b"\x00" + line[len(prefix) : -1]).digest())
                due += 1
                continue
            self._hold(hashes)
            hashes = []
            self._behind()
            if not line.startswith(b'{"count":'):
                raise IncompleteError(f"缺少第 {due} 条", f"leaf {due} is missing")
            self._ended(line)
        self._hold(hashes)

    def _hold(self, hashes: Sequence[bytes]) -> None:
        self._at += len(hashes)
        self._lines += len(hashes)
        if self._edge is not None:
            self._edge.extend(hashes)

    def _behind(self) -> None:
        if self.trailer is not None:
            raise IncompleteError("末行之后还有内容", "there is more behind the last line")

    def _ended(self, last: bytes | Mapping[str, Any]) -> None:
        try:
            trailer = orjson.loads(last) if isinstance(last, bytes) else last
            if trailer["end"] is not True or trailer["count"] != self.lines:
                raise ValueError(f"{trailer['count']} of {self.lines}")
            self.trailer = {"next": trailer["next"], **trailer}
        except (ValueError, KeyError, TypeError) as why:
            raise IncompleteError("末行与收到的不符", f"the last line does not agree with what came: {why}") from None
