"""
The audit of a copy: a replay in a file (NDJSON), whole or of one district, or a folder in the layout of C2SP tlog-tiles.

Needs no server. A whole copy is held against its checkpoint leaf by leaf. A district's replay cannot give the root; that nothing was
withheld is shown by the ordinals, which run without a hole to the district's head, and the head lies under the signed checkpoint; that
each leaf is the one that was signed, by the proofs that come along (`proof=each` or `tiles`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from services.ledger.audit.auditing import NO_KEY, NO_POLICY, Anchor, Report, believed, cosigned, entries
from services.ledger.audit.receiving import IncompleteError, Part, header_of
from services.ledger.audit.verifying import Audit
from services.ledger.log.notes import Checkpoint, Note, NoteError, Policy
from services.ledger.log.tree import (
    HASH_BYTES,
    TILE_WIDTH,
    Edge,
    Tile,
    Tiles,
    leaf_hash,
    split,
    tiles_of,
)
from shared.errors import PaidanError

LINES = 2000
Progress = Callable[[int, int], None]


class NoCopyError(PaidanError):
    """This is not a replay, or no folder of tiles: it cannot be audited at all."""


def audit_replay(
    lines: Iterable[bytes],
    trust: Policy,
    *,
    anchors: Sequence[Anchor] = (),
    asked: Mapping[str, Any] | None = None,
    form: bool = True,
    progress: Progress | None = None,
) -> Report:
    """
    A replay, line by line.

    Args:
        trust: as for `auditing.audit_store`.
        anchors: checkpoints that others hold.
        asked: the filter that was asked for, from the first leaf on; None: it is not known.
        form: look at the canonical form of every leaf of a whole log.
    Raises:
        NoCopyError: the first line is not a replay's.
    """
    lines = iter(lines)
    try:
        header = header_of(next(lines, b""))
    except IncompleteError as why:
        raise NoCopyError(str(why)) from None
    say = progress or (lambda _done, _of: None)
    report = Report(header["log"])
    if asked is not None:
        _answers(header, asked, report)
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
        trailer = _feed_part(lines, header, report, say)
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


def _answers(header: Mapping[str, Any], asked: Mapping[str, Any], report: Report) -> None:
    """Whether a header is that of the question: everything from the beginning, under this filter."""
    found = header["filter"]
    if "district" in asked:  # one district's auditor reads what lists that district in any case
        found = {name: value for name, value in found.items() if name != "scopes"}
    for name, want, said in (("filter", asked, found), ("from", 0, header["from"])):
        if said != want:
            report.findings.say("header", None, name, want, said)


def _feed_part(
    lines: Iterator[bytes], header: Mapping[str, Any], report: Report, progress: Progress
) -> Mapping[str, Any] | None:
    """Audit a part of a log; its last line."""
    part = Part(header, report.checkpoint, report.findings)
    closed = {"withheld": header["withheld"]} if header["withheld"] else {}
    report.question = {"from": header["from"], **header["filter"], **closed}
    trailer = None
    for n, line in enumerate(lines):
        if (trailer := part.take(line)) is not None:
            break
        if n % LINES == 0:
            progress(part.at + 1, header["size"])
    why = part.end(trailer)
    report.leaves, report.kinds, report.scopes = part.leaves, part.kinds, part.scopes
    report.checked += ["order", "ordinals"]
    if report.checkpoint is not None and header.get("proof") in ("each", "tiles"):
        report.checked.append("inclusion")
    else:
        report.unchecked["inclusion"] = "请用 proof=tiles 下载 / ask for proof=tiles"
    if why is not None:
        report.unchecked["completeness"] = f"{why.zh} / {why.en}"
    elif report.fine:
        report.checked.append("completeness")
    return trailer


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
        if not 0 <= index < 2**53:
            raise ValueError(index)
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


def _checkpoint(header: Mapping[str, Any], report: Report, trust: Policy) -> Checkpoint | None:
    """The checkpoint in a replay's header, of the size that it is pinned to."""
    text = header.get("checkpoint")
    if text is None:
        report.unchecked["checkpoint"] = "首行没有 / the header carries none"
        if trust.logs or trust.witnesses:
            report.findings.say("header", None, "checkpoint", "signed", None)
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
        report.witnessed = cosigned(checkpoint.size, text, lines, trust, report.findings)
        report.checked.append("witnesses")
        if not trust.satisfied(report.witnessed.by):
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
