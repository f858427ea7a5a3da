"""
One-time codes, and what members write with them: `接 7K3M9QX2`, `拒 7K3M9QX2 太远`, `done 7k3m-9qx2`.

A code is derived from a secret and the notice's id: every instance finds the same one, and no fact holds it. It has 40 bits in
Crockford's alphabet: nothing to mix up when it is read aloud.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple
from unicodedata import normalize

from services.notify.model import VERBS, Verb
from shared.facts import Language

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
CODE_CHARS = 8
TEXT_MAX = 500
"""An answer is a line; of a longer one the beginning is read."""
WORDS: Mapping[Verb, tuple[str, ...]] = {
    "accept": ("接单", "接", "accept", "yes", "1"),
    "decline": ("拒单", "拒绝", "拒", "decline", "no", "2"),
    "arrive": ("到场", "到", "arrived", "arrive", "3"),
    "done": ("办结", "完成", "完", "done", "4"),
}
"""What a member may write for each answer."""
REASONS: Mapping[str, tuple[str, ...]] = {
    "unsafe": ("危险", "不安全", "unsafe", "danger"),
    "off_sick": ("病", "不舒服", "不适", "sick", "unwell"),
    "off_duty": ("不当班", "下班", "休息", "休假", "请假", "off duty", "day off", "leave"),
    "too_far": ("远", "far"),
    "cannot_do": ("不会", "工具", "做不了", "cannot", "can't", "tool", "skill"),
    "not_ours": ("职责", "不归", "不属", "not ours", "not our", "not my"),
    "busy": ("忙", "有事", "没空", "走不开", "busy", "no time"),
}
"""What the words of a no stand for; the words themselves may name somebody, so they are not kept. Looked for in this order."""
OTHER = "other"
OUTCOME = "solved"
"""How a task ends that was done by a short reply."""

_VERBS = {word: verb for verb in VERBS for word in WORDS[verb]}
_VERB = "|".join(sorted(map(re.escape, _VERBS), key=len, reverse=True))
_GAP = r"[\s:,.;、。,;:\-—–·]*"  # full-width signs are narrow by then
_CODE = r"(?P<code>(?:[0-9a-z][ -]?){7}[0-9a-z])(?![0-9a-z])"
_SAID = (
    re.compile(rf"{_GAP}(?P<verb>{_VERB}){_GAP}{_CODE}(?P<rest>.*)", re.DOTALL),
    re.compile(rf"{_GAP}{_CODE}{_GAP}(?P<verb>{_VERB})(?P<rest>.*)", re.DOTALL),
)


class Said(NamedTuple):
    """What a member wrote, understood. `reason` is a code of `REASONS`, or `other`."""

    verb: Verb
    code: str
    reason: str
    language: Language


def code_of(secret: str, notice: str) -> str:
    """The one-time code of a notice."""
    n = int.from_bytes(hmac.digest(secret.encode(), f"reply:{notice}".encode(), "sha256")[:5], "big")
    return "".join(ALPHABET[n >> shift & 31] for shift in range(35, -1, -5))


def canonical(code: str) -> str | None:
    """A code as it is compared: what looks alike is alike, hyphens and spaces do not count. None where it is none."""
    plain = re.sub(r"[\s-]", "", normalize("NFKC", code[:64])).upper().translate(str.maketrans("ILO", "110"))
    return plain if len(plain) == CODE_CHARS and set(plain) <= set(ALPHABET) else None


def understand(text: str) -> Said | None:
    """
    What somebody means who writes this; None where it holds no verb with a code.

    Full-width and small letters, spaces and punctuation do not matter, nor whether the verb or the code comes first.
    """
    line = normalize("NFKC", text[:TEXT_MAX]).casefold().strip()
    for pattern in _SAID:
        if (found := pattern.match(line)) and (code := canonical(found["code"])):
            word = found["verb"]
            return Said(
                _VERBS[word], code, reason_of(found["rest"]), "en" if word.isascii() and word.isalpha() else "zh-CN"
            )
    return None


def reason_of(words: str) -> str:
    """The code that the words of a no stand for."""
    line = normalize("NFKC", words[:TEXT_MAX]).casefold()
    return next((code for code, known in REASONS.items() if any(word in line for word in known)), OTHER)


class Codes:
    """
    The codes of all notices that can be answered, by what they stand for; None where two have the same, as hardly ever happens:
    whoever has one of them answers in another way.
    """

    def __init__(self, secret: str) -> None:
        self._secret = secret
        self._by_code: dict[str, str | None] = {}
        self._of: dict[str, str] = {}

    def of(self, notice: str) -> str:
        """The code of a notice."""
        return self._of.get(notice) or code_of(self._secret, notice)

    def find(self, code: str) -> str | None:
        """The notice that a canonical code stands for, of those that were last `kept`."""
        return self._by_code.get(code)

    def keep(self, notices: Iterable[str]) -> None:
        """These can be answered, and no others."""
        self._of = {notice: self.of(notice) for notice in notices}
        self._by_code = {}
        for notice, code in self._of.items():
            self._by_code[code] = None if code in self._by_code else notice
