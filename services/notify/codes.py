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
_GAP = r"[\s:,.;!~、。,;:!\-—–·“”\"'「」]*"  # full-width signs are narrow by then
_CODE = r"(?P<code>[0-9a-z]{4}[ -]?[0-9a-z]{4})(?![0-9a-z])"
_END = rf"{_GAP}(?:谢谢|thanks|thank you)?{_GAP}$"
"""Whoever writes more than this after a yes may mean something else: `接不了`, `到不了`, `1小时后到`."""
_WHY = "(?P<why>.*)$"
_SHORT = ("2", "no")
"""Behind a code, more after these may mean something else: `2点到`, `no problem`."""


def _verb(verbs: Iterable[Verb], but: tuple[str, ...] = ()) -> str:
    words = sorted((word for verb in verbs for word in WORDS[verb] if word not in but), key=len, reverse=True)
    return rf"(?P<verb>{'|'.join(words)})"


_YES = tuple(verb for verb in VERBS if verb != "decline")
_SAID = tuple(
    re.compile(rf"{_GAP}{pattern}", re.DOTALL)
    for pattern in (
        # The code first, where it stands alone: it may begin with a figure that is a verb.
        rf"{_CODE}{_GAP}{_verb(VERBS)}了?{_END}",
        rf"{_CODE}{_GAP}{_verb(['decline'], _SHORT)}(?![a-z]|了?[不没吗]){_WHY}",
        rf"{_verb(_YES)}了?{_GAP}{_CODE}{_END}",
        rf"{_verb(['decline'])}了?{_GAP}{_CODE}{_WHY}",
    )
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
    What somebody means who writes this; None where it is not a verb with a code, or more than that and not why somebody declines.

    Full-width and small letters, spaces and punctuation do not matter, nor whether the verb or the code comes first.
    """
    line = normalize("NFKC", text[:TEXT_MAX]).casefold().strip()
    for pattern in _SAID:
        if (found := pattern.match(line)) and (code := canonical(found["code"])):
            word = found["verb"]
            why = found.groupdict().get("why", "")
            return Said(_VERBS[word], code, reason_of(why), "en" if word.isascii() and word.isalpha() else "zh-CN")
    return None


def reason_of(words: str) -> str:
    """The code that the words of a no stand for."""
    line = normalize("NFKC", words[:TEXT_MAX]).casefold()
    return next((code for code, known in REASONS.items() if any(word in line for word in known)), OTHER)


class Codes:
    """
    The codes of all notices that can be answered, by what they stand for; where two have the same, as hardly ever happens, for
    neither: whoever has one of them answers in another way.
    """

    def __init__(self, secret: str) -> None:
        self._secret = secret
        self._by_code: dict[str, tuple[str, ...]] = {}
        self._of: dict[str, str] = {}

    def of(self, notice: str) -> str:
        """The code of a notice."""
        return self._of.get(notice) or code_of(self._secret, notice)

    def find(self, code: str) -> str | None:
        """The notice that a canonical code stands for, of those that were last `kept`."""
        found = self._by_code.get(code, ())
        return found[0] if len(found) == 1 else None

    def keep(self, notices: Iterable[str]) -> None:
        """These can be answered, and no others."""
        now = set(notices)
        for notice in self._of.keys() - now:
            code = self._of.pop(notice)
            left = tuple(other for other in self._by_code.pop(code) if other != notice)
            if left:
                self._by_code[code] = left
        for notice in now - self._of.keys():
            code = self._of[notice] = code_of(self._secret, notice)
            self._by_code[code] = (*self._by_code.get(code, ()), notice)
