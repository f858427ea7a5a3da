"""
The audit of a copy: a replay in a file (NDJSON), whole or of one district, or a folder in the layout of C2SP tlog-tiles.

Needs no server. A whole copy is held against its checkpoint leaf by leaf. A district's replay cannot give the root; that nothing was
withheld is shown by the ordinals, which run without a hole to the district's head, and the head lies under the signed checkpoint; that
each leaf is the one that was signed, by the proofs that come along (`proof=each` or `tiles`).
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from services.ledger import heads
from services.ledger.auditing import NO_KEY, NO_POLICY, Anchor, Report, believed, cosigned, entries
from services.ledger.leaves import EVENT, VERSION
from services.ledger.notes import Checkpoint, Note, NoteError, Policy
from services.ledger.replay import VERSION as REPLAY
from services.ledger.tree import (
    HASH_BYTES,
    TILE_WIDTH,
    Edge,
    ProofError,
    Tile,
    Tiles,
    inclusion,
    leaf_hash,
    split,
    tiles_of,
    verify_inclusion,
)
from services.ledger.verifying import Audit, is_canonical
from shared.errors import PaidanError

LINES = 2000
NARROWING = ("area", "request", "types", "event", "time_from", "time_to")
"""Filters that leave out leaves of a district, so that its ordinals have holes."""

Progress = Callable[[int, int], None]


class NoCopyError(PaidanError):
    """This is not a replay, or no folder of tiles: it cannot be audited at all."""


def audit_replay(
    lines: Iterable[bytes],
    trust: Policy,
    *,
    anchors: Sequence[Anchor] = (),
    form: bool = True,
    progress: Progress | None = None,
) -> Report:
    """
    A replay, line by line.

    Args:
        trust: as for `auditing.audit_store`.
        anchors: checkpoints that others hold.
        form: look at the canonical form of every leaf of a whole log.
    Raises:
        NoCopyError: the first line is not a replay's.
    """
    lines = iter(lines)
    header = _header(next(lines, b""))
    say = progress or (lambda _done, _of: None)
    report = Report(str(header["log"]))
    report.checkpoint = _checkpoint(header, report, trust)
    if not header["filter"] and header["from"] == 0 and header.get("proof") is None:
        audit = Audit(report.log, canonical=form, findings=report.findings)
        _anchor(audit, anchors, report, trust)
        audit.expect([report.checkpoint] if report.checkpoint else [])
        trailer = _feed_whole(lines, audit, header["size"], say)
        audit.end()
        _of(report, audit)
        report.checked += ["leaves", "order", "ordinals", "heads", *(["form"] if form else [])]
        if report.leaves != header["size"]:
            report.findings.say("count", None, "size", header["size"], report.leaves)
    else:
        part = Part(header, report)
        trailer = part.feed(lines, say)
        part.end(trailer)
        if anchors:
            report.unchecked["others' checkpoints"] = "部分重放没有自己的根 / a part of a log has no root of its own"
    if trailer is None:
        report.findings.say("cut_short", None, "end", None, report.leaves)
    elif trailer.get("count") != report.leaves:
        report.findings.say("count", None, "end", trailer.get("count"), report.leaves)
    return report


def audit_folder(
    folder: Path, trust: Policy, *, anchors: Sequence[Anchor] = (), form: bool = True, progress: Progress | None = None
) -> Report:
    """
    A folder with `checkpoint`, `tile/<level>/<number>` and, where leaves are to be looked at, `tile/entries/<number>`.

    Raises:
        NoCopyError: there is no checkpoint in it.
    """
    text = _text(folder / "checkpoint")
    report = Report("")
    try:
        named = Checkpoint.parse(Note.parse(text).body)
    except NoteError as why:
        raise NoCopyError(f"{folder / 'checkpoint'}: {why}") from None
    report.log = named.origin
    report.checkpoint = _believed(text, report, trust)
    size = named.size
    if not (folder / "tile" / "entries").is_dir():
        _hashes_alone(folder, report, trust, anchors)
        report.leaves, report.root = size, named.root
        report.unchecked["leaves"] = "目录中没有 tile/entries / the folder has none"
        return report
    audit, grown = Audit(report.log, canonical=form, findings=report.findings), Tiles()
    _anchor(audit, anchors, report, trust)
    audit.expect([report.checkpoint] if report.checkpoint else [])
    for since in range(0, size, TILE_WIDTH):
        width = min(TILE_WIDTH, size - since)
        try:
            found = entries(_bytes(folder, Tile(0, since // TILE_WIDTH, width), "entries"))[:width]
        except (FileNotFoundError, ValueError) as why:
            raise NoCopyError(f"entries of leaf {since}: {why}") from None
        tiles = {}
        level, covers = 0, TILE_WIDTH
        while (since + width) % covers == 0:
            tile = Tile(level, (since + width) // covers - 1)
            if (data := _tile(folder, tile)) is not None:
                tiles[tile.level, tile.number] = data
            level, covers = level + 1, covers * TILE_WIDTH
        audit.expect([], tiles, size)
        audit.take([(n, leaf, None) for n, leaf in enumerate(found, since)])
        grown.append(map(leaf_hash, found))
        if progress:
            progress(audit.size, size)
    audit.end()
    _of(report, audit)
    agree = report.checkpoint is not None and report.checkpoint.root == grown.root()
    for tile in tiles_of(size) if audit.size == size else ():
        # Full tiles have been compared. Where the leaves are wrong, so is what they give for the tiles above.
        if tile.width < TILE_WIDTH and (agree or tile.level == 0):
            _compare(folder, tile, grown.tile(tile) or b"", report, "tile" if agree else "tile_or_leaf")
    report.checked += ["leaves", "order", "ordinals", "heads", "tiles", *(["form"] if form else [])]
    return report


class Part:
    """A replay that is not the whole log."""

    def __init__(self, header: Mapping[str, Any], report: Report) -> None:
        self._filter: Mapping[str, Any] = header["filter"]
        self._header = header
        self._report = report
        self._proof = header.get("proof") if report.checkpoint else None
        self._tiles: dict[tuple[int, int], bytes] = {}
        self._proved: set[int] = set()
        self._dense = not any(name in self._filter for name in NARROWING)
        self._heads: dict[str, heads.Path | None] = {}
        self._next = 0
        self._case = 0
        # Ordinals begin with 1 in a replay from the first leaf on; elsewhere with whichever comes first.
        self._ordinals: dict[str, int] = {}
        self._last: dict[str, int] = {}
        self._read_heads()

    def _read_heads(self) -> None:
        report, root = self._report, self._report.checkpoint.heads if self._report.checkpoint else None
        for district, shown in (self._header.get("heads") or {}).items():
            self._heads[district] = None
            if shown is None:
                continue
            try:
                path = heads.read(shown)
                if path.district != district:
                    raise ProofError(f"the head of {path.district}")
                if root is not None:
                    heads.verify(path, root)
            except (ProofError, KeyError, ValueError, TypeError) as why:
                report.findings.say("header", None, f"heads.{district}", "a head under the checkpoint", str(why))
                continue
            self._heads[district] = path
        if root is None:
            report.unchecked["completeness"] = (
                "首行没有可信的检查点 / the header carries no checkpoint that can be believed"
            )
        elif self._heads and self._dense:
            report.checked.append("completeness")

    def feed(self, lines: Iterable[bytes], progress: Progress) -> Mapping[str, Any] | None:
        """Every line; the last one, where it is a trailer."""
        for line in lines:
            try:
                said = orjson.loads(line)
            except orjson.JSONDecodeError:
                self._report.findings.say("leaf_unreadable", self._next, "line")
                continue
            if "end" in said:
                return dict(said)
            try:
                self._line(said, line)
            except (KeyError, TypeError, AttributeError, ValueError) as why:
                self._report.findings.say("leaf_unreadable", self._next, repr(why))
            if self._report.leaves % LINES == 0:
                progress(self._next, self._header["size"])
        return None

    def _line(self, said: Mapping[str, Any], line: bytes) -> None:
        if "tile" in said:
            tile = Tile.parse(said["tile"])
            self._tiles[tile.level, tile.number] = b64decode(said["h"])
            return
        self._report.leaves += 1
        index = said["s"]
        if said.get("withheld"):
            self._place(index, bytes.fromhex(said["hash"]), said)
            self._ordinal(index, said["d"], said["n"])
            return
        data = line.rstrip(b"\n")[line.index(b'"leaf":') + 7 : -1]
        if "proof" in said:
            data = data.rpartition(b',"proof":')[0]
        self._place(index, leaf_hash(data), said)
        self._leaf(index, said["leaf"], data)

    def _place(self, index: int, hash: bytes, said: Mapping[str, Any]) -> None:
        """Whether a leaf comes in order, and whether it is the one that was signed."""
        report, size = self._report, self._header["size"]
        if not self._next <= index < size or (not self._filter and index != self._next):
            report.findings.say("index", index, "s", self._next, index)
        self._next = index + 1
        if report.checkpoint is None:
            return
        try:
            if self._proof == "each":
                proof = [b64decode(each) for each in said["proof"]]
                verify_inclusion(hash, index, size, proof, report.checkpoint.root)
            elif self._proof == "tiles":
                tile = self._tile(index // TILE_WIDTH)
                at = index % TILE_WIDTH * HASH_BYTES
                if (signed := tile[at : at + HASH_BYTES]) != hash:
                    report.findings.say("leaf_changed", index, "leaf", signed, hash)
        except (ProofError, KeyError, TypeError, ValueError) as why:
            report.findings.say("proof", index, "proof", None, str(why))

    def _tile(self, number: int) -> bytes:
        """
        A tile of leaf hashes, shown once to be under the root: the path of its first leaf is made of all the others in it.

        Raises:
            ProofError, KeyError.
        """
        assert self._report.checkpoint is not None
        size, tile = self._header["size"], self._tiles[0, number]

        async def read(wanted: Tile) -> bytes:
            return self._tiles[wanted.level, wanted.number][: wanted.width * HASH_BYTES]

        if number not in self._proved:
            first = number * TILE_WIDTH
            try:
                inclusion(read, first, size).send(None)  # it waits for nothing
            except StopIteration as done:
                verify_inclusion(tile[:HASH_BYTES], first, size, done.value, self._report.checkpoint.root)
            self._proved.add(number)
        return tile

    def _leaf(self, index: int, leaf: Mapping[str, Any], data: bytes) -> None:
        say = self._report.findings.say
        if orjson.dumps(leaf, option=orjson.OPT_SORT_KEYS) != data or not is_canonical(leaf, data):
            say("not_canonical", index)
        for name, want in {"v": VERSION, "log": self._report.log, "index": index}.items():
            if leaf[name] != want:
                say("leaf_form", index, name, want, leaf[name])
        kind = leaf["kind"]
        scopes = {scope["d"]: scope["n"] for scope in leaf.get("scopes", ())}
        case = leaf.get("case", {})
        self._report.kinds[kind] = self._report.kinds.get(kind, 0) + 1
        wanted = (self._filter["district"],) if "district" in self._filter else self._filter.get("scopes")
        if wanted is not None and not {*wanted} & scopes.keys():
            say("filter", index, "district", " ".join(wanted))
        if kind not in self._filter.get("kinds", (kind,)):
            say("filter", index, "kinds", " ".join(self._filter["kinds"]))
        if (request := self._filter.get("request")) is not None:
            if case.get("id") != request:
                say("filter", index, "request", request)
            elif wanted is None and not {"area", "types"} & self._filter.keys() and self._header["from"] == 0:
                self._case += 1
                if case["n"] != self._case:
                    say("withheld_case", index, request, self._case, case["n"])
                    self._case = case["n"]
        for district, n in scopes.items():
            self._ordinal(index, district, n)

    def _ordinal(self, index: int, district: str, n: int) -> None:
        """The next event of a district, where all of them are asked for."""
        if not self._dense or (self._heads and district not in self._heads):
            return
        before = self._ordinals.get(district)
        due = before + 1 if before is not None else (1 if self._header["from"] == 0 else n)
        if n != due:
            self._report.findings.say("withheld", index, district, due, n)
        self._ordinals[district], self._last[district] = n, index
        self._report.scopes[district] = self._report.scopes.get(district, 0) + 1

    def end(self, trailer: Mapping[str, Any] | None) -> None:
        """Whether it goes to where the districts' heads say."""
        if self._proof is not None:
            self._report.checked.append("inclusion")
        else:
            self._report.unchecked["inclusion"] = "请用 proof=tiles 下载 / ask for proof=tiles"
        self._report.checked += ["order", "ordinals"]
        if trailer is None or trailer.get("next") is not None or "to" in self._filter or not self._dense:
            if "completeness" in self._report.checked:
                self._report.checked.remove("completeness")
                self._report.unchecked["completeness"] = "重放未到末尾 / the replay does not go to the end"
            return
        if EVENT not in self._filter.get("kinds", (EVENT,)):
            return
        for district, head in self._heads.items():
            found = self._ordinals.get(district, 0 if self._header["from"] == 0 else None)
            if head is None or found is None:
                continue
            if found != head.n:
                self._report.findings.say("withheld", None, district, head.n, found)
            elif found and self._last[district] != head.last:
                self._report.findings.say("header", None, f"heads.{district}.last", self._last[district], head.last)


def _feed_whole(lines: Iterator[bytes], audit: Audit, size: int, progress: Progress) -> Mapping[str, Any] | None:
    """Give an audit the leaves of a whole replay; its last line."""
    batch: list[tuple[int, bytes, None]] = []
    due = 0
    for line in lines:
        prefix = b'{"s":%d,"leaf":' % due
        if line.startswith(prefix) and line.endswith(b"}\n"):
            batch.append((due, line[len(prefix) : -2], None))
            due += 1
        elif line.startswith(b'{"s":'):
            due = _out_of_order(line, batch, audit, due)
        else:
            audit.take(batch)
            return _trailer(line)
        if len(batch) == LINES:
            audit.take(batch)
            batch.clear()
            progress(audit.size, size)
    audit.take(batch)
    return None


def _out_of_order(line: bytes, batch: list[tuple[int, bytes, None]], audit: Audit, due: int) -> int:
    """A leaf that is not the one that is due, or a line that was cut; which one is due now."""
    try:
        index = int(line[5 : line.index(b",")])
        batch.append((index, line.rstrip(b"\n")[line.index(b'"leaf":') + 7 : -1], None))
    except ValueError:
        audit.findings.say("leaf_unreadable", due, "line")
        return due
    return max(due, index + 1)


def _trailer(line: bytes) -> Mapping[str, Any] | None:
    try:
        said = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return said if isinstance(said, dict) and said.get("end") is True else None


def _header(line: bytes) -> Mapping[str, Any]:
    try:
        header = orjson.loads(line)
        if header["replay"] == REPLAY and {"log", "size", "from", "filter"} <= header.keys():
            return dict(header)
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        pass
    raise NoCopyError(f"the first line is not that of a replay ({REPLAY})")


def _checkpoint(header: Mapping[str, Any], report: Report, trust: Policy) -> Checkpoint | None:
    """The checkpoint in a replay's header, of the size that it is pinned to."""
    text = header.get("checkpoint")
    if text is None:
        report.unchecked["checkpoint"] = "首行没有 / the header carries none"
        return None
    checkpoint = _believed(text, report, trust)
    if checkpoint is not None and checkpoint.size != header["size"]:
        report.findings.say("header", None, "size", checkpoint.size, header["size"])
        return None
    return checkpoint


def _believed(text: str, report: Report, trust: Policy) -> Checkpoint | None:
    checkpoint = believed(text, report.log, trust, report.findings)
    if trust.logs:
        report.checked.append("signatures")
    else:
        report.unchecked["signatures"] = NO_KEY
    if trust.witnesses and checkpoint is not None:
        lines = [signature.line for signature in Note.parse(text).signatures]
        names = cosigned(checkpoint.size, text, lines, trust, report.findings)
        report.witnessed = checkpoint.size, names
        report.checked.append("witnesses")
        if not trust.satisfied(names):
            report.findings.say("unwitnessed", checkpoint.size, str(trust.quorum))
    elif not trust.witnesses:
        report.unchecked["witnesses"] = NO_POLICY
    return checkpoint


def _anchor(audit: Audit, anchors: Iterable[Anchor], report: Report, trust: Policy) -> None:
    for where, checkpoint in _believed_anchors(anchors, report, trust):
        audit.anchor(where, checkpoint)


def _believed_anchors(anchors: Iterable[Anchor], report: Report, trust: Policy) -> Iterator[tuple[str, Checkpoint]]:
    for where, text in anchors:
        if (checkpoint := believed(text, report.log, trust, report.findings)) is not None:
            yield where, checkpoint


def _of(report: Report, audit: Audit) -> None:
    report.leaves, report.root = audit.size, audit.growth.root()
    report.kinds = {kind: many for kind, many in sorted(audit.kinds.items()) if many}
    report.scopes = {district: n for district, (n, _) in sorted(audit.scopes.items())}


# --- folders ----------------------------------------------------------------------------------------------------------


def _hashes_alone(folder: Path, report: Report, trust: Policy, anchors: Iterable[Anchor]) -> None:
    """A folder without leaves: whether its leaf hashes give the checkpoint's root, all tiles above them, and what others hold."""
    checkpoint = report.checkpoint
    if checkpoint is None:
        report.unchecked["tiles"] = "没有可比对的检查点 / there is no checkpoint to hold them against"
    hashes: list[bytes] = []
    for tile in tiles_of(checkpoint.size if checkpoint else 0):
        data = _tile(folder, tile)
        if tile.level == 0 and (data is None or len(data) != tile.width * HASH_BYTES):
            report.findings.say("tile_missing", None, tile.path)
            checkpoint = None
        elif tile.level == 0:
            hashes += split(data or b"")
    if checkpoint is None:
        if anchors:
            report.unchecked["others' checkpoints"] = "瓦片不全，无从比对 / not without all tiles"
        return
    held = [(each.size, where, each) for where, each in _believed_anchors(anchors, report, trust)]
    edge, grown = Edge(), Tiles()
    for size, where, other in sorted(held, key=lambda anchor: anchor[0]):
        edge.extend(hashes[edge.size : size])
        if edge.size < size:
            report.findings.say("truncated", size, where, size, edge.size)
        elif edge.root() != other.root:
            report.findings.say("fork", size, where, other.root, edge.root())
    edge.extend(hashes[edge.size :])
    agree = edge.root() == checkpoint.root
    if not agree:
        report.findings.say("root", checkpoint.size, f"[0, {checkpoint.size})", checkpoint.root, edge.root())
    full = dict(grown.append(hashes))
    for tile in tiles_of(checkpoint.size):
        if tile.level:
            computed = full.get(tile) or grown.tile(tile) or b""
            _compare(folder, tile, computed, report, "tile" if agree else "tile_or_leaf")
    report.checked.append("tiles")


def _compare(folder: Path, tile: Tile, computed: bytes, report: Report, code: str) -> None:
    """A tile in the folder with the one that follows from what it covers; `code` says which of them is wrong."""
    data = _tile(folder, tile)
    if data is None:
        report.findings.say("tile_missing", None, tile.path)
    elif len(data) != len(computed):
        report.findings.say("tile", None, tile.path, f"{len(computed)} bytes", f"{len(data)} bytes")
    else:
        for n, (expected, found) in enumerate(zip(split(computed), split(data), strict=True)):
            if expected != found:
                index = (tile.number * TILE_WIDTH + n) * TILE_WIDTH**tile.level
                report.findings.say(code, index, f"{tile.path}[{n}]", expected, found)


def _tile(folder: Path, tile: Tile) -> bytes | None:
    try:
        return _bytes(folder, tile, str(tile.level))
    except FileNotFoundError:
        return None


def _bytes(folder: Path, tile: Tile, level: str) -> bytes:
    """A tile's or bundle's file; of a part, from the full one where only that is there."""
    full = tile._replace(level=0, width=TILE_WIDTH).path.removeprefix("tile/0/")
    partial = tile._replace(level=0).path.removeprefix("tile/0/")
    file = folder / "tile" / level / partial
    if file.is_file():
        return file.read_bytes()
    return (folder / "tile" / level / full).read_bytes()[: tile.width * HASH_BYTES if level != "entries" else None]


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as why:
        raise NoCopyError(f"{file}: {why}") from None
