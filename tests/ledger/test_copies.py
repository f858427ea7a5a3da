"""
Copies of a log that an auditor holds: replays in files, and folders of tiles. Whatever is done to them is found twice: by the command's
own audit, and by the script that shares no code with it.
"""

import asyncio
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import orjson
import pytest

from services.ledger.audit import copies
from services.ledger.audit.auditing import Anchor, Report
from services.ledger.audit.copies import NoCopyError
from services.ledger.audit.receiving import TILES_MAX
from services.ledger.log import heads, notes
from services.ledger.log.notes import COSIGNATURE, Key, Note, Policy
from services.ledger.log.tree import Tile, Tiles, leaf_hash, tiles_of
from services.ledger.proving import Kind, Proofs
from services.ledger.replay import Cursors, Replay, lines
from services.ledger.store import Selection
from shared.facts import HUB
from tests.ledger.examples import QINGSHAN, WUCHANG, life
from tests.ledger.memory import ORIGIN, Memory

SCRIPT = Path(__file__).parents[2] / "docs" / "audit" / "verify_ledger.py"
KEY = Key.make(ORIGIN)
WITNESSES = {name: Key.make(f"witness.{name}.test", COSIGNATURE) for name in ("a", "b", "c")}
WORDS = [f"log {KEY.verifier.text}", *(f"witness {name} {key.verifier.text}" for name, key in WITNESSES.items())]
POLICY = "\n".join([*WORDS, "group most 2 a b c", "quorum most"])
TRUST = Policy.parse(POLICY)
Lines = list[bytes]


@dataclass
class Copies:
    """An honest log's copies: `whole` and `of_one` (a district's, each leaf with its proof) by lines, `folder` with tiles and entries."""

    note: str
    whole: Lines
    of_one: Lines
    with_tiles: Lines
    all_events: Lines
    folder: Path
    policy: Path


def asked(log: Memory, note: str, selection: Selection, proof: Kind = "none") -> Lines:
    tree = Tiles()
    full = dict(tree.append(leaf.hash for leaf in log.leaves))

    async def read(tile: Tile) -> bytes:
        found = tree.tile(tile) or full[Tile(tile.level, tile.number)]
        return found[: tile.width * 32]

    async def collect() -> bytes:
        replay = Replay(ORIGIN, selection, len(log.leaves), note=note)
        proofs = None if proof == "none" else Proofs(read, replay.size, proof)
        return b"".join([chunk async for chunk in lines(log, replay, Cursors(b"a key"), proofs=proofs)])

    return asyncio.run(collect()).splitlines(keepends=True)


def laid_out(log: Memory, note: str, folder: Path) -> Path:
    """As the static paths of a log are downloaded."""
    tree = Tiles()
    full = dict(tree.append(leaf.hash for leaf in log.leaves))
    files = {"checkpoint": note.encode()}
    for tile in tiles_of(len(log.leaves)):
        files[tile.path] = tree.tile(tile) or full[tile]
        if tile.level == 0:
            of = log.leaves[tile.number * 256 : tile.number * 256 + tile.width]
            bundle = b"".join(len(leaf.data).to_bytes(2, "big") + leaf.data for leaf in of)
            files[tile.path.replace("tile/0/", "tile/entries/")] = bundle
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Copies:
    log = Memory()
    for n in range(60):
        log.add(*life(n, f"{WUCHANG},{QINGSHAN}" if n % 3 == 0 else None))
    log.add(("evt.420106.x", b"nonsense"))
    log.add(*life(60), apart_ns=90_000_000_000_000)  # another day: heads
    tree = Tiles()
    tree.append(leaf.hash for leaf in log.leaves)
    root = heads.root(asyncio.run(log.scopes()))
    checkpoint = notes.checkpoint(ORIGIN, len(log.leaves), tree.root(), root)
    signers = [
        KEY.sign(checkpoint.body),
        *(WITNESSES[name].sign(checkpoint.body, 1_800_000_000) for name in ("a", "b")),
    ]
    note = Note(checkpoint.body).signed(signers).text
    folder = tmp_path_factory.mktemp("copies")
    (folder / "policy").write_text(POLICY)
    district = Selection(scopes=(QINGSHAN, HUB), district=QINGSHAN, kinds=("event",))
    return Copies(
        *(note, asked(log, note, Selection()), asked(log, note, district, "each"), asked(log, note, district, "tiles")),
        asked(log, note, Selection(kinds=("event",)), "each"),
        *(laid_out(log, note, folder / "log"), folder / "policy"),
    )


def script(*arguments: str | Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-I", str(SCRIPT), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def codes(report: Report) -> list[tuple[str, int | None]]:
    return [(each.code, each.index) for each in report.findings.listed]


def test_honest_copies_are_found_to_be_so(held: Copies, tmp_path: Path) -> None:
    size = len(held.whole) - 2
    whole = copies.audit_replay(held.whole, TRUST, anchors=[Anchor("witness", held.note)])
    assert (codes(whole), whole.unchecked, whole.leaves, whole.kinds["heads"]) == ([], {}, size, 9)
    assert whole.witnessed == (size, ["a", "b"], 1_800_000_000)
    for each in (held.of_one, held.with_tiles):
        report = copies.audit_replay(each, TRUST)
        assert (codes(report), report.unchecked, report.leaves) == ([], {}, 180)
        assert {"completeness", "inclusion", "ordinals", "signatures", "witnesses"} <= {*report.checked}
    folder = copies.audit_folder(held.folder, TRUST)
    assert (codes(folder), folder.unchecked, folder.leaves) == ([], {}, size)
    for name, of in (("whole", held.whole), ("of_one", held.of_one)):
        (tmp_path / name).write_bytes(b"".join(of))
        code, said = script("--policy", held.policy, tmp_path / name)
        assert (code, said.splitlines()[-1]) == (0, "无误 / nothing is wrong"), said
    code, said = script("--vkey", KEY.verifier.text, held.folder)
    assert (code, said.splitlines()[-1]) == (0, "无误 / nothing is wrong"), said


def without(at: int) -> Callable[[Lines], Lines]:
    return lambda of: of[:at] + of[at + 1 :]


def line(at: int, change: Callable[[bytes], bytes]) -> Callable[[Lines], Lines]:
    def doing(of: Lines) -> Lines:
        assert change(of[at]) != of[at]
        return [*of[:at], change(of[at]), *of[at + 1 :]]

    return doing


def header(**changes: object) -> Callable[[Lines], Lines]:
    def doing(of: Lines) -> Lines:
        return [orjson.dumps(orjson.loads(of[0]) | changes, option=orjson.OPT_SORT_KEYS) + b"\n", *of[1:]]

    return doing


def resigned(by: Key, root: bytes | None = None) -> Callable[[Lines], Lines]:
    """Another checkpoint in the header."""

    def doing(of: Lines) -> Lines:
        found = notes.Checkpoint.parse(Note.parse(orjson.loads(of[0])["checkpoint"]).body)
        body = replace(found, root=root or found.root).body
        return header(checkpoint=Note(body).signed([by.sign(body)]).text)(of)

    return doing


def somebody(of: bytes) -> bytes:
    return of.replace(b"m-li", b"m-wu")


def wrong_proof(of: bytes) -> bytes:
    said = orjson.loads(of)
    proof = [b64encode(bytes(32)).decode(), *said["proof"][1:]]
    assert len(b64decode(proof[0])) == 32
    return of[: of.rindex(b',"proof":')] + b',"proof":' + orjson.dumps(proof) + b"}\n"


FORGER = Key.make(ORIGIN)
WHOLE: dict[str, tuple[Callable[[Lines], Lines], set[str]]] = {
    "cut_short": (lambda of: of[:200], {"cut_short", "truncated", "count"}),
    "the_trailer_gone": (lambda of: of[:-1], {"cut_short"}),
    "a_leaf_withheld": (without(301), {"index", "root"}),
    "two_leaves_swapped": (lambda of: [*of[:300], of[301], of[300], *of[302:]], {"index", "root"}),
    "a_leaf_changed": (line(303, somebody), {"root"}),
    "a_leaf_spaced_out": (line(303, lambda of: of.replace(b'"kind":"event"', b'"kind": "event"')), {"root", "not_canonical"}),
    "a_stranger_signed": (resigned(FORGER), {"signature"}),
    "signed_anew_without_witnesses": (resigned(KEY), {"unwitnessed"}),
    "another_root_signed": (resigned(KEY, root=bytes(32)), {"root", "unwitnessed"}),
    "the_header_of_another_size": (header(size=9), {"header", "count"}),
}  # fmt: skip
OF_ONE: dict[str, tuple[Callable[[Lines], Lines], set[str]]] = {
    "cut_short": (lambda of: of[:90], {"cut_short"}),
    "an_event_withheld": (without(50), {"withheld", "count"}),
    "the_last_event_withheld": (lambda of: [*of[:-2], of[-1]], {"withheld", "count"}),
    "the_last_event_withheld_and_the_count_mended": (
        lambda of: [*of[:-2], of[-1].replace(b'"count":180', b'"count":179')], {"withheld"},
    ),
    "a_leaf_changed": (line(51, lambda of: somebody(of) if b"m-li" in of else of.replace(b"420107", b"420108")), {"proof"}),
    "a_proof_changed": (line(50, wrong_proof), {"proof"}),
    "a_head_that_is_smaller": (
        lambda of: header(heads={d: h and {**h, "n": 3} for d, h in orjson.loads(of[0])["heads"].items()})(of), {"header"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "fault"), [*(("whole", fault) for fault in WHOLE), *(("of_one", fault) for fault in OF_ONE)]
)
def test_what_was_done_to_a_replay_is_found_by_both(held: Copies, tmp_path: Path, kind: str, fault: str) -> None:
    change, expected = (WHOLE if kind == "whole" else OF_ONE)[fault]
    spoilt = change(held.whole if kind == "whole" else held.of_one)
    report = copies.audit_replay(spoilt, TRUST)
    assert expected <= {each.code for each in report.findings.listed}, codes(report)
    (tmp_path / "replay").write_bytes(b"".join(spoilt))
    code, said = script("--policy", held.policy, tmp_path / "replay")
    assert code == 1, said
    assert "✗" in said


def ended(of: Lines) -> Lines:
    """The same with a last line that agrees."""
    return [*of, b'{"count":%d,"end":true,"next":null}\n' % (len(of) - 1)]


def hidden(of: bytes) -> bytes:
    """A leaf by its hash only, with its true ordinal and proof."""
    said = orjson.loads(of)
    data = of[of.index(b'"leaf":') + 7 : of.rindex(b',"proof":')]
    n = next(scope["n"] for scope in said["leaf"]["scopes"] if scope["d"] == QINGSHAN)
    line = {"s": said["s"], "withheld": True, "d": QINGSHAN, "n": n, "hash": leaf_hash(data).hex()}
    return orjson.dumps({**line, "proof": said["proof"]}, option=orjson.OPT_SORT_KEYS) + b"\n"


def bare(of: bytes) -> bytes:
    return of[: of.rindex(b',"proof":')] + b"}\n"


FILTER = {"district": QINGSHAN, "kinds": ["event"], "scopes": [QINGSHAN, HUB]}
UNPROVED: dict[str, Callable[[Lines], Lines]] = {
    "said to have nothing": lambda of: ended(header(heads={QINGSHAN: None})(of)[:1]),
    "without proofs": lambda of: [*header(proof=None)(of)[:1], *map(bare, of[1:-1]), of[-1]],
    "narrowed": header(filter={**FILTER, "types": ["x"]}),
    "narrowed by what nobody knows": header(filter={**FILTER, "colour": "red"}),
    "from later on": lambda of: ended(header(**{"from": orjson.loads(of[9])["s"]})([of[0], *of[9:-1]])),
    "by hash": lambda of: header(withheld=["xinxiang-7k"])([of[0], *map(hidden, of[1:-1]), of[-1]]),
}  # fmt: skip
FOUND: dict[str, tuple[Callable[[Lines], Lines], str]] = {
    "no head and still leaves": (header(heads={QINGSHAN: None}), "header"),
    "no heads at all": (header(heads={}), "header"),
    "no heads and the end cut": (lambda of: ended(header(heads={})(of)[:90]), "header"),
    "by hash without a reason": (lambda of: [of[0], *map(hidden, of[1:-1]), of[-1]], "by_hash"),
    "no checkpoint": (header(checkpoint=None), "header"),
    "a line that is a number": (lambda of: [*of[:9], b"5\n", *of[9:]], "leaf_unreadable"),
    "a line without end": (lambda of: [*of[:9], b'{"s":9,"leaf":' + b"[" * 9000 + b"\n", *of[9:]], "leaf_unreadable"),
}


@pytest.mark.parametrize("way", UNPROVED)
def test_it_is_never_said_that_nothing_was_withheld_where_that_is_not_proved(
    held: Copies, tmp_path: Path, way: str
) -> None:
    spoilt = UNPROVED[way](held.of_one)
    report = copies.audit_replay(spoilt, TRUST)
    assert "completeness" not in report.checked
    assert "completeness" in report.unchecked
    (tmp_path / "replay").write_bytes(b"".join(spoilt))
    _, said = script("--policy", held.policy, tmp_path / "replay")
    assert "not looked at" in said or "unreadable" in said


@pytest.mark.parametrize("way", FOUND)
def test_neither_header_nor_lines_decide_what_is_looked_at(held: Copies, tmp_path: Path, way: str) -> None:
    change, code = FOUND[way]
    spoilt = change(held.of_one)
    report = copies.audit_replay(spoilt, TRUST)
    assert code in {each.code for each in report.findings.listed}
    assert "completeness" not in report.checked
    (tmp_path / "replay").write_bytes(b"".join(spoilt))
    assert script("--policy", held.policy, tmp_path / "replay")[0] != 0


def test_all_events_are_complete_when_their_counts_give_the_root_of_the_heads(held: Copies, tmp_path: Path) -> None:
    log = held.all_events
    assert "completeness" in copies.audit_replay(log, TRUST).checked
    cut = ended(log[:-101])
    assert codes(copies.audit_replay(cut, TRUST)) == [("heads_root", None)]
    for of, expected in ((log, 0), (cut, 1)):
        (tmp_path / "replay").write_bytes(b"".join(of))
        assert script("--policy", held.policy, tmp_path / "replay")[0] == expected


def test_an_answer_to_another_question_is_found_to_be_one(held: Copies) -> None:
    asked = {"district": QINGSHAN, "kinds": ["event"]}
    assert copies.audit_replay(held.of_one, TRUST, asked=asked).fine
    assert not copies.audit_replay(held.of_one, TRUST, asked={}).fine
    assert not copies.audit_replay(held.all_events, TRUST, asked=asked).fine
    assert not copies.audit_replay(header(filter={**FILTER, "types": ["x"]})(held.of_one), TRUST, asked=asked).fine


def test_tiles_that_nobody_needs_are_not_kept_for_ever(held: Copies) -> None:
    tile = next(each for each in held.with_tiles if b'"tile/0/000"' in each)
    many = [tile.replace(b"0/000", b"0/x%03d/%03d" % divmod(n, 1000)) for n in range(1000, 1000 + TILES_MAX + 1)]
    report = copies.audit_replay([held.with_tiles[0], *many, *held.with_tiles[1:]], TRUST)
    assert "leaf_unreadable" in {each.code for each in report.findings.listed}


def test_a_leaf_changed_behind_its_tile_is_found(held: Copies) -> None:
    at = next(n for n, each in enumerate(held.with_tiles) if n > 50 and b"m-li" in each)
    spoilt = line(at, somebody)(held.with_tiles)
    assert [code for code, _ in codes(copies.audit_replay(spoilt, TRUST))] == ["leaf_changed"]


def test_a_forged_tile_does_not_lie_under_the_root(held: Copies) -> None:
    at = next(n for n, each in enumerate(held.with_tiles) if b'"tile/0/' in each)
    said = orjson.loads(held.with_tiles[at])
    forged = bytes(32) + b64decode(said["h"])[32:]
    spoilt = [
        *held.with_tiles[:at],
        orjson.dumps({**said, "h": b64encode(forged).decode()}),
        *held.with_tiles[at + 1 :],
    ]
    assert {code for code, _ in codes(copies.audit_replay(spoilt, TRUST))} == {"proof"}


@pytest.fixture
def folder(held: Copies, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    subprocess.run(["cp", "-r", str(held.folder), str(tmp_path / "log")], check=True)
    return tmp_path / "log"


def test_an_entry_changed_in_a_folder_is_named(held: Copies, folder: Path) -> None:
    file = folder / "tile" / "entries" / "001"
    file.write_bytes(file.read_bytes().replace(b"m-li", b"m-wu", 1))
    [(code, index)] = codes(copies.audit_folder(folder, TRUST))
    assert code == "leaf_changed"
    assert index is not None
    assert 256 <= index < 512
    assert script("--policy", held.policy, folder)[0] == 1


def test_a_corrupt_tile_in_a_folder_is_named(folder: Path) -> None:
    file = folder / "tile" / "0" / "001"
    data = file.read_bytes()
    file.write_bytes(data[:320] + bytes(32) + data[352:])
    report = copies.audit_folder(folder, TRUST)
    assert [(each.code, each.index, each.field) for each in report.findings.listed] == [("tile", 266, "tile/0/001[10]")]
    (folder / "tile" / "entries").rename(folder / "elsewhere")
    assert [code for code, _ in codes(copies.audit_folder(folder, TRUST))] == ["root", "tile_or_leaf"]


def without_entries(folder: Path) -> Path:
    (folder / "tile" / "entries").rename(folder / "elsewhere")
    return folder


@pytest.mark.parametrize("entries", [True, False])
def test_what_others_hold_is_compared_with_a_folder(held: Copies, folder: Path, entries: bool) -> None:
    if not entries:
        without_entries(folder)
    forked = notes.checkpoint(ORIGIN, 300, bytes(32), bytes(32))
    ahead = notes.checkpoint(ORIGIN, 9000, bytes(32), bytes(32))
    anchors = [Anchor(str(each.size), Note(each.body).signed([KEY.sign(each.body)]).text) for each in (forked, ahead)]
    report = copies.audit_folder(folder, TRUST, anchors=[*anchors, Anchor("same", held.note)])
    assert sorted(codes(report)) == [("fork", 300), ("truncated", 9000)]
    next((folder / "tile" / "0").glob("002.p/*")).unlink()
    report = copies.audit_folder(folder, TRUST, anchors=anchors)
    assert ("tile_missing", None) in codes(report)
    assert ("others' checkpoints" in report.unchecked) is not entries


@pytest.mark.parametrize("entries", [True, False])
def test_tiles_at_the_right_edge_are_compared_too(folder: Path, entries: bool) -> None:
    if not entries:
        without_entries(folder)
    [upper] = (folder / "tile" / "1").glob("000.p/*")
    data = upper.read_bytes()
    for spoilt, index in ((data[:32] + bytes(32), 256), (data[:32], None)):
        upper.write_bytes(spoilt)
        assert codes(copies.audit_folder(folder, TRUST)) == [("tile", index)]
    upper.unlink()
    assert codes(copies.audit_folder(folder, TRUST)) == [("tile_missing", None)]
    upper.write_bytes(data)
    [lowest] = (folder / "tile" / "0").glob("002.p/*")
    lowest.write_bytes(bytes(32) + lowest.read_bytes()[32:])
    assert codes(copies.audit_folder(folder, TRUST)) == ([("tile", 512)] if entries else [("root", len_of(folder))])


def test_full_tiles_do_where_the_folder_was_filled_later(folder: Path) -> None:
    for level in ("0", "entries"):
        [part] = (folder / "tile" / level).glob("002.p/*")
        bundle = part.read_bytes() + (bytes(32 * 200) if level == "0" else b"\0\1x" * 200)
        (folder / "tile" / level / "002").write_bytes(bundle)
        part.unlink()
    assert codes(copies.audit_folder(folder, TRUST)) == []
    assert codes(copies.audit_folder(without_entries(folder), TRUST)) == []


def len_of(folder: Path) -> int:
    return notes.Checkpoint.parse(Note.parse((folder / "checkpoint").read_text()).body).size


@pytest.mark.parametrize("content", [b"", b"{}\n", b"not a replay\n", b'{"replay":"paidan/replay/1"}\n'])
def test_what_is_no_replay_cannot_be_audited(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(NoCopyError):
        copies.audit_replay(content.splitlines(keepends=True), TRUST)
    (tmp_path / "replay").write_bytes(content)
    assert script("--vkey", KEY.verifier.text, tmp_path / "replay")[0] == 2


def test_the_script_imports_nothing_of_ours_and_can_be_read_in_an_hour() -> None:
    text = SCRIPT.read_text()
    imported = {words[1] for each in text.splitlines() if (words := each.split()) and words[0] in ("import", "from")}
    assert imported <= {*sys.stdlib_module_names}
    assert len(text.splitlines()) < 450
