"""What the ledger signs and proves, checked by code that we did not write: Go's sumdb packages and OpenSSL."""

import asyncio
import json
import os
import shutil
import subprocess
from base64 import b64decode, b64encode
from collections.abc import Callable
from pathlib import Path

import pytest

from services.ledger.log import notes, tree
from services.ledger.log.notes import Key, Note
from services.ledger.log.publishing import PROOF
from services.ledger.log.tree import Tile, Tiles

PROGRAM = Path(__file__).parents[2] / "docs" / "audit" / "verify.go"
PACKAGES = Path("/usr/share/gocode")
"""Where Debian's golang-golang-x-mod-dev puts them."""
KEY = Key.make("paidan.test/main/1")
LEAVES = [b'{"index":%d}' % n for n in range(700)]
OLD, NEW, INDEX = 300, 700, 511
Check = Callable[..., subprocess.CompletedProcess[str]]


def needed(*there: bool, what: str) -> None:
    """Skip where a tool is missing; in CI, which installs it, fail."""
    if not all(there):
        missing = f"{what} is not installed"
        pytest.fail(missing) if os.environ.get("PAIDAN_CI") else pytest.skip(missing)


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Check:
    """The Go program, built."""
    needed(bool(shutil.which("go")), (PACKAGES / "src/golang.org/x/mod/sumdb/note").is_dir(), what="Go with x/mod")
    binary = tmp_path_factory.mktemp("go") / "verify"
    environment = {**os.environ, "GO111MODULE": "off", "GOPATH": str(PACKAGES)}
    subprocess.run(["go", "build", "-o", binary, PROGRAM], env=environment, check=True, timeout=110)
    return lambda *arguments: subprocess.run(
        [binary, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=10
    )


def grown(size: int) -> tuple[Tiles, dict[Tile, bytes]]:
    tiles = Tiles()
    return tiles, dict(tiles.append(map(tree.leaf_hash, LEAVES[:size])))


async def read(wanted: Tile) -> bytes:
    tiles, full = grown(NEW)
    return (tiles.tile(wanted) or full[Tile(wanted.level, wanted.number)])[: wanted.width * 32]


def signed(size: int) -> str:
    body = notes.checkpoint(KEY.name, size, grown(size)[0].root(), tree.EMPTY).body
    return Note(body).signed([KEY.sign(body)]).text


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """`old` and `new` checkpoints, `consistency`, `leaf` and its `proof`, as the ledger serves them."""
    path = asyncio.run(tree.inclusion(read, INDEX, NEW))
    between = asyncio.run(tree.consistency(read, OLD, NEW))
    lines = [PROOF, f"index {INDEX}", *(b64encode(each).decode() for each in path), "", signed(NEW)]
    (tmp_path / "proof").write_text("\n".join(lines))
    (tmp_path / "leaf").write_bytes(LEAVES[INDEX])
    (tmp_path / "old").write_text(signed(OLD))
    (tmp_path / "new").write_text(signed(NEW))
    (tmp_path / "consistency").write_text(json.dumps({"hashes": [b64encode(each).decode() for each in between]}))
    return tmp_path


def test_go_finds_a_leaf_under_our_checkpoint(check: Check, files: Path) -> None:
    done = check(KEY.verifier.text, files / "proof", files / "leaf")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "✓ 包含 / included: leaf 511 of 700")


def test_go_finds_that_our_tree_grows(check: Check, files: Path) -> None:
    done = check(KEY.verifier.text, files / "new", files / "old", files / "consistency")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "✓ 一致 / consistent: 300 → 700")


def flipped(text: str, line: int) -> str:
    """One bit of the hash on a line."""
    lines = text.split("\n")
    data = b64decode(lines[line])
    lines[line] = b64encode(bytes([data[0] ^ 1]) + data[1:]).decode()
    return "\n".join(lines)


@pytest.mark.parametrize("fault", ["leaf", "path", "checkpoint", "consistency", "old root", "key"])
def test_go_refuses_what_was_changed(check: Check, files: Path, fault: str) -> None:
    key = KEY.verifier.text
    leaf, proof = files / "leaf", files / "proof"
    match fault:
        case "leaf":
            leaf.write_bytes(LEAVES[INDEX].replace(b"511", b"512"))
        case "path":
            proof.write_text(flipped(proof.read_text(), 2))
        case "checkpoint":
            proof.write_text(proof.read_text().replace("\n700\n", "\n701\n"))
        case "key":
            key = Key.make(KEY.name).verifier.text
        case "consistency":
            between = json.loads((files / "consistency").read_text())["hashes"]
            (files / "consistency").write_text(json.dumps({"hashes": between[:-1]}))
        case "old root":
            (files / "old").write_text(flipped((files / "old").read_text(), 2))
    ways = ((proof, leaf), (files / "new", files / "old", files / "consistency"))
    done = check(key, *ways[fault in ("consistency", "old root")])
    assert (done.returncode, "✗" in done.stdout) == (1, True)


@pytest.mark.parametrize("change", [("", ""), ("\n700\n", "\n701\n")])
def test_openssl_verifies_our_signature(tmp_path: Path, change: tuple[str, str]) -> None:
    needed(bool(shutil.which("openssl")), what="openssl")
    note = Note.parse(signed(NEW))
    (tmp_path / "text").write_text(note.body.replace(*change) if change[0] else note.body)
    (tmp_path / "sig").write_bytes(note.signatures[0].blob)
    (tmp_path / "pub.der").write_bytes(b64decode("MCowBQYDK2VwAyEA") + KEY.verifier.public)
    command = "openssl pkeyutl -verify -rawin -pubin -keyform DER -inkey pub.der -in text -sigfile sig"
    done = subprocess.run(command.split(), cwd=tmp_path, capture_output=True, check=False, timeout=10)
    assert done.returncode == (1 if change[0] else 0), done.stderr
