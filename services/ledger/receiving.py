"""
What arrives of a replay, and whether it is all of it: the reader's half of `services.ledger.replay`, pure.

A replay of the whole log has every index, and its leaves give the checkpoint's root. One of a district has every ordinal from 1 to the
one that the checkpoint's `heads` name; what is withheld has its line. One of a request has dense ordinals of the request. Of any
other filter it is known only that the server sent as many as it said. Who signed the checkpoint is for `paidan ledger verify` to say.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any

import orjson

from services.ledger import heads, notes, tree
from services.ledger.notes import NoteError
from services.ledger.tree import Edge, ProofError
from shared.errors import PaidanError


class IncompleteError(PaidanError):
    """A replay is not what it says, or not all of it."""

    def __init__(self, zh: str, en: str) -> None:
        super().__init__(en)
        self.zh = zh


class Received:
    """
    A replay as it comes in, line by line.

    Attributes:
        header: its first line.
        lines: how many leaves came, what is withheld among them.
        withheld: how many of those were.
        at: the index of the last one; -1 before the first.
        trailer: its last line, once it came.
    """

    def __init__(self, header: bytes) -> None:
        try:
            self.header: dict[str, Any] = orjson.loads(header)
            self.size, self.since = int(self.header["size"]), int(self.header["from"])
            self._filter: dict[str, Any] = self.header["filter"]
            note = self.header["checkpoint"]
            self._checkpoint = notes.Checkpoint.parse(notes.Note.parse(note).body) if note else None
        except (ValueError, KeyError, TypeError, NoteError) as why:
            raise IncompleteError("首行不是重放的首行", f"the first line is not that of a replay: {why}") from None
        self.lines = self.withheld = 0
        self.at = self.since - 1
        self.trailer: dict[str, Any] | None = None
        self._every = not self._filter and self.header.get("proof") is None
        self._edge = Edge() if self._every and self.since == 0 else None
        self._ordinals: dict[str, tuple[int, int]] = {}
        self._first: dict[str, int] = {}
        self._heads()

    @property
    def rooted(self) -> bool:
        """Whether every leaf hash went into the checkpoint's root."""
        return self._edge is not None and self._checkpoint is not None

    def take(self, lines: Iterable[bytes]) -> None:
        """
        More lines, each without its line feed.

        Raises:
            IncompleteError: something is missing, or is not as it was said.
        """
        if self._every:
            self._whole(lines)
            return
        for line in lines:
            self._part(line)

    def end(self) -> None:
        """Nothing more comes. Raises IncompleteError where that is too early."""
        if self.trailer is None:
            raise IncompleteError(
                f"没有末行：重放在 {self.at} 之后被截断", f"there is no last line: it was cut short behind {self.at}"
            )
        if self.trailer["next"] is not None:
            return  # as many as were asked for; the rest comes with the cursor
        wanted = self.header["expected"]
        found = self._counts() if isinstance(wanted, dict) else self.lines
        if found != wanted:
            raise IncompleteError(f"应有 {wanted} 条，收到 {found} 条", f"{wanted} were to come, {found} did")
        if self._edge is not None and self._edge.size == self.size and not self._rooted():
            raise IncompleteError("叶子与检查点的根不符", "the leaves do not give the checkpoint's root")
        if self.since == 0 and "to" not in self._filter:
            for district, head in self.header["heads"].items():
                stands = (head["n"], head["last"]) if head else (0, -1)
                if district in self._counted() and self._ordinals.get(district, (0, -1)) != stands:
                    raise IncompleteError(
                        f"{district} 的最后一条不在其中", f"the last event of {district} is not there"
                    )

    def _rooted(self) -> bool:
        return self._edge is None or self._checkpoint is None or self._edge.root() == self._checkpoint.root

    def _whole(self, lines: Iterable[bytes]) -> None:
        due, hashes = self.at + 1, []
        for line in lines:
            prefix = b'{"s":%d,"leaf":' % due
            if line.startswith(prefix) and self.trailer is None:
                hashes.append(sha256(b"\x00" + line[len(prefix) : -1]).digest())
                due += 1
                continue
            self._hold(hashes)
            hashes = []
            if not self._ended(line):
                raise IncompleteError(f"缺少第 {due} 条", f"leaf {due} is missing")
        self._hold(hashes)

    def _hold(self, hashes: Sequence[bytes]) -> None:
        self.at += len(hashes)
        self.lines += len(hashes)
        if self._edge is not None:
            self._edge.extend(hashes)

    def _part(self, line: bytes) -> None:
        if line.startswith(b'{"h":') or self._ended(line):
            return  # a tile is for who makes proofs of it
        try:
            document = orjson.loads(line)
            index, leaf = document["s"], document.get("leaf")
            listed = leaf.get("scopes", ()) if leaf else ({"d": document["d"], "n": document["n"]},)
            case = leaf.get("case") if leaf else None
            if type(index) is not int or not self.at < index < self.size or (leaf and leaf["index"] != index):
                raise ValueError("its index")
            if "proof" in document and self._checkpoint is not None:
                whole, _, _ = line[line.index(b'"leaf":') + 7 :].rpartition(b',"proof":') if leaf else (b"", b"", b"")
                hashed = tree.leaf_hash(whole) if leaf else bytes.fromhex(document["hash"])
                proof = [b64decode(each) for each in document["proof"]]
                tree.verify_inclusion(hashed, index, self.size, proof, self._checkpoint.root)
        except (ValueError, KeyError, TypeError, AttributeError, ProofError) as why:
            raise IncompleteError(f"{self.at} 之后的一行有误", f"the line behind {self.at} is wrong: {why}") from None
        for scope in listed:
            if scope["d"] in self._counted() or self._filter.keys() <= {"kinds", "to"}:
                self._follow(scope["d"], scope["n"], index)
        if self._of_request and case is not None:
            self._follow(case["id"], case["n"], index)
        self.at, self.lines = index, self.lines + 1
        self.withheld += leaf is None

    def _follow(self, scope: str, n: int, index: int) -> None:
        before = self._ordinals.get(scope)
        due = before[0] + 1 if before else (1 if self.since == 0 else n)
        if n != due:
            raise IncompleteError(
                f"{scope} 缺少第 {due} 条（在 {index} 之前）", f"event {due} of {scope} is missing before {index}"
            )
        self._first.setdefault(scope, n)
        self._ordinals[scope] = n, index

    def _ended(self, line: bytes) -> bool:
        """Whether this is the last line. Raises IncompleteError: there was one already, or it is wrong."""
        if self.trailer is not None:
            raise IncompleteError("末行之后还有内容", "there is more behind the last line")
        if not line.startswith(b'{"count":'):
            return False
        try:
            trailer = orjson.loads(line)
            if trailer["end"] is not True or trailer["count"] != self.lines:
                raise ValueError(f"{trailer['count']} of {self.lines}")
            self.trailer = {"next": trailer["next"], **trailer}
        except (ValueError, KeyError, TypeError) as why:
            raise IncompleteError("末行与收到的不符", f"the last line does not agree with what came: {why}") from None
        return True

    def _heads(self) -> None:
        """The heads in the header must lie under the checkpoint."""
        under = self._checkpoint.heads if self._checkpoint else None
        try:
            for district, head in self.header["heads"].items():
                if head is not None:
                    found = heads.read(head)
                    if found.district != district:
                        raise ProofError(f"{found.district} in place of {district}")
                    if under is not None:
                        heads.verify(found, under)
            if self._checkpoint is not None and self._checkpoint.size != self.size:
                raise ProofError(f"a checkpoint of {self._checkpoint.size} for a replay of {self.size}")
        except (ProofError, ValueError, KeyError, TypeError) as why:
            raise IncompleteError(
                "首行与检查点不符", f"the first line does not agree with its checkpoint: {why}"
            ) from None

    def _counted(self) -> Iterable[str]:
        """Districts whose ordinals must be dense."""
        wanted = self.header["expected"]
        return wanted if isinstance(wanted, dict) else ()

    def _counts(self) -> dict[str, int]:
        return {d: self._ordinals[d][0] - self._first[d] + 1 if d in self._first else 0 for d in self._counted()}

    @property
    def _of_request(self) -> bool:
        return self._filter.keys() <= {"request", "kinds", "to"} and "request" in self._filter
