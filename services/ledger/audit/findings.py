"""What an audit finds: a code, where, what was expected and found, and a sentence in Chinese and English."""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from services.ledger.log.tree import HASH_BYTES

FINDINGS_MAX = 1000
"""So many are kept in full; beyond, they are counted by code."""
CODES: Mapping[str, tuple[str, str]] = {
    "index": (
        "序号不连续：应为 {expected}，却是 {found}，其间的叶子缺失或多余",
        "indices are not dense: {expected} expected, {found} found: leaves in between are missing or too many",
    ),
    "leaf_unreadable": ("叶子不是 JSON，或缺少 {field}", "the leaf is no JSON, or lacks {field}"),
    "leaf_form": (
        "叶子的 {field} 应为 {expected}，却是 {found}",
        "the leaf's {field} should be {expected} and is {found}",
    ),
    "leaf_hash": (
        "所存哈希不是所存字节的哈希：字节或哈希被改动",
        "the stored hash is not the hash of the stored bytes: one of them was changed",
    ),
    "leaf_changed": (
        "叶子的字节不是检查点签名时的字节：应有哈希 {expected}，却是 {found}",
        "the leaf's bytes are not those that were signed: hash {expected} expected, {found} found",
    ),
    "not_canonical": (
        "叶子的字节不是其规范形式（RFC 8785）",
        "the leaf's bytes are not its canonical form (RFC 8785)",
    ),
    "indexed_field": (
        "索引字段 {field} 与叶子不符：应为 {expected}，却是 {found}",
        "the indexed field {field} is not what the leaf says: {expected} expected, {found} found",
    ),
    "sequence": (
        "流序号不连续：应为 {expected}，却是 {found}，其间没有 gap 叶子",
        "the stream's numbers are not continuous: {expected} expected, {found} found, and no gap leaf between",
    ),
    "source": (
        "来源的 {field} 应为 {expected}，却是 {found}",
        "the source's {field} should be {expected} and is {found}",
    ),
    "gap": (
        "gap 叶子的 {field} 应为 {expected}，却是 {found}",
        "the gap's {field} should be {expected} and is {found}",
    ),
    "reset": (
        "reset 叶子的 {field} 应为 {expected}，却是 {found}",
        "the reset's {field} should be {expected} and is {found}",
    ),
    "late": ("late 标记应为 {expected}，却是 {found}", "the mark `late` should be {expected} and is {found}"),
    "first": (
        "{field} 应指向更早的同号事件，却指向 {found}",
        "{field} should point to an earlier event of that id and points to {found}",
    ),
    "event_twice": (
        "同一事件编号又作为事件出现：首次在 {expected}",
        "an event's id appears as an event again: it was first at {expected}",
    ),
    "scope_ordinal": (
        "{field} 的计数应为 {expected}，却是 {found}",
        "the ordinal of {field} should be {expected} and is {found}",
    ),
    "scopes": (
        "计数的行政区应为 {expected}，却是 {found}",
        "the districts that are counted should be {expected} and are {found}",
    ),
    "case_ordinal": (
        "诉求 {field} 的计数应为 {expected}，却是 {found}",
        "the ordinal of case {field} should be {expected} and is {found}",
    ),
    "heads_missing": ("此处应有 heads 叶子，却是 {found}", "a leaf of kind heads is due here and it is {found}"),
    "heads_unexpected": ("此处不应有 heads 叶子", "no leaf of kind heads is due here"),
    "heads_root": (
        "各区计数的根应为 {expected}，却是 {found}",
        "the root over the districts' counts should be {expected} and is {found}",
    ),
    "root": (
        "叶子的根与检查点不符：应为 {expected}，却是 {found}；被改动的叶子在 {field} 之间",
        "the leaves' root is not the checkpoint's: {expected} expected, {found} found; what was changed lies in {field}",
    ),
    "checkpoint_root": (
        "大小为 {index} 的检查点所载的根是错的：叶子与其后签名的检查点相符",
        "the checkpoint of size {index} has a wrong root: the leaves agree with those signed after it",
    ),
    "checkpoint_heads": (
        "大小为 {index} 的检查点：各区计数的根应为 {expected}，却是 {found}",
        "the checkpoint of size {index}: the root over the districts' counts should be {expected} and is {found}",
    ),
    "checkpoint_form": (
        "大小为 {index} 的检查点的 {field} 应为 {expected}，却是 {found}",
        "the checkpoint of size {index}: its {field} should be {expected} and is {found}",
    ),
    "signature": (
        "大小为 {index} 的检查点签名无效：{found}",
        "the checkpoint of size {index} is not signed as it should be: {found}",
    ),
    "cosignature": (
        "大小为 {index} 的检查点，见证人 {field} 的会签无效：{found}",
        "the checkpoint of size {index}: the cosignature of {field} is wrong: {found}",
    ),
    "unwitnessed": (
        "没有检查点得到策略所要的会签：{field}",
        "no checkpoint is cosigned as the policy demands: {field}",
    ),
    "truncated": (
        "末尾被截去：{field} 已有 {expected} 片叶子，这里只有 {found}",
        "the end was cut off: {field} has {expected} leaves and there are {found} here",
    ),
    "fork": (
        "{field} 在大小 {index} 有另一个根 {expected}，这里是 {found}：两段历史，两份签名即是证据",
        "{field} has another root at size {index}: {expected}, here it is {found}: two histories, and both notes are the evidence",
    ),
    "tile": (
        "瓦片 {field} 损坏：应为 {expected}，却是 {found}",
        "the tile {field} is corrupt: {expected} expected, {found} found",
    ),
    "tile_or_leaf": (
        "瓦片 {field} 与叶子不符（尚无检查点判定谁对）：{expected}，{found}",
        "the tile {field} and the leaf disagree, and no checkpoint says which is right: {expected}, {found}",
    ),
    "tile_missing": ("缺少瓦片 {field}", "the tile {field} is missing"),
    "reject_missing": (
        "被拒内容的原始字节 {expected} 不在 rejects 中",
        "the raw bytes {expected} that the leaf names are not in `rejects`",
    ),
    "reject_changed": (
        "rejects 中 {expected} 的字节被改动，其摘要是 {found}",
        "the raw bytes kept under {expected} were changed: their digest is {found}",
    ),
    "reject_untrue": (
        "这片叶子把本该是 {expected} 的内容记作 {found}",
        "the leaf calls {found} what is {expected} by the rules",
    ),
    "projection": (
        "投影 {field} 与重新折叠的不符：应为 {expected}，却是 {found}",
        "the projection {field} is not what its leaves fold to: {expected} expected, {found} found",
    ),
    "projection_missing": ("投影中缺少诉求 {field}", "the projection lacks the case {field}"),
    "projection_unknown": ("投影中的诉求 {field} 没有叶子", "the projection has a case {field} without a leaf"),
    "gap_untrue": (
        "gap 叶子称已缺失的 {found} 号消息仍在流中",
        "the gap says that the stream has lost message {found}, and it is still there",
    ),
    "stream": (
        "流中 {field} 号消息与叶子不符：应为 {expected}，却是 {found}",
        "the stream's message {field} is not the leaf's: {expected} expected, {found} found",
    ),
    "unsigned": ("有公钥，却没有一个检查点", "there is a key, and not one checkpoint is stored"),
    "unheld": (
        "总线上没有最后的检查点：它应有大小 {expected}，或其后的",
        "the bus holds no checkpoint of this log, and should hold that of size {expected} or one after it",
    ),
    "key": (
        "公钥 {field} 由一片叶子接续，却没有受信公钥签过的检查点覆盖这片叶子",
        "a leaf names the key {field} as another's successor, and no checkpoint signed by a trusted key covers that leaf",
    ),
    "header": (
        "首行的 {field} 应为 {expected}，却是 {found}",
        "the header's {field} should be {expected} and is {found}",
    ),
    "cut_short": (
        "没有末行：重放被截短，最后是 {found}",
        "there is no last line: the replay was cut short, behind {found}",
    ),
    "count": ("{field} 应有 {expected} 片叶子，却有 {found}", "{field} should have {expected} leaves and has {found}"),
    "withheld": (
        "行政区 {field} 有事件被扣下：应有第 {expected} 件，接着的却是 {found}",
        "an event of district {field} was withheld: number {expected} is due, and {found} follows",
    ),
    "by_hash": (
        "这片叶子只给出哈希，而首行没有说因协议终止而不可见",
        "this leaf comes by its hash only, and the header names nothing that an ended agreement closed",
    ),
    "withheld_case": (
        "诉求 {field} 有事件被扣下：应有第 {expected} 件，接着的却是 {found}",
        "an event of case {field} was withheld: number {expected} is due, and {found} follows",
    ),
    "filter": (
        "这片叶子不属于所要的 {field}（{expected}）",
        "this leaf is not of the {field} that was asked for ({expected})",
    ),
    "proof": ("这片叶子的包含证明无效：{found}", "the proof that this leaf is in the tree is wrong: {found}"),
}
"""Every code with its sentence, Chinese and English."""


@dataclass(frozen=True, slots=True)
class Finding:
    """
    Something that is not as it should be.

    Attributes:
        code: one of `CODES`.
        index: the leaf's, or a checkpoint's size; None where it is about neither.
        field: which of its parts.
    """

    code: str
    index: int | None = None
    field: str = ""
    expected: Any = None
    found: Any = None

    @property
    def zh(self) -> str:
        """A sentence."""
        return self._said(0)

    @property
    def en(self) -> str:
        """The same."""
        return self._said(1)

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "code": self.code,
            "index": self.index,
            "field": self.field,
            "expected": plain(self.expected),
            "found": plain(self.found),
            "zh": self.zh,
            "en": self.en,
        }

    def _said(self, language: int) -> str:
        values = {"expected": plain(self.expected), "found": plain(self.found)}
        return CODES[self.code][language].format(index=self.index, field=self.field, **values)


@dataclass
class Findings:
    """What was found: the first in full, all by code."""

    listed: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def say(
        self, code: str, index: int | None = None, field: str = "", expected: Any = None, found: Any = None
    ) -> None:
        """One more."""
        self.counts[code] += 1
        if len(self.listed) < FINDINGS_MAX:
            self.listed.append(Finding(code, index, field, expected, found))


def plain(value: Any) -> Any:
    """A value as JSON and sentences show it: hashes in base64, as in a checkpoint."""
    if isinstance(value, bytes):
        return b64encode(value).decode() if len(value) == HASH_BYTES else value.hex()
    if isinstance(value, datetime):
        return value.isoformat()
    return value
