"""Known words in what a person wrote: for the gazetteer, the catalogue and urgency. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple
from unicodedata import normalize


class Found(NamedTuple):
    """A word that was found, as the register writes it, and what it stands for. Sorted by what it stands for."""

    code: str
    word: str


class Words:
    """
    Finds the longest known word in a text; among equally long ones the one with the smallest code.

    Built once per register. A search costs one look-up per distinct word length and position where some word begins,
    however many words there are. Full-width and capital letters are equal to others; a word that begins or ends with a
    Latin letter or digit is found only at that boundary (`tree` is not in `street`), Chinese has none.
    """

    def __init__(self, known: Iterable[Found]) -> None:
        by_size: dict[int, dict[str, Found]] = {}
        for found in known:
            word = folded(found.word)
            if word:
                words = by_size.setdefault(len(word), {})
                words[word] = min(found, words.get(word, found))
        self._by_size = sorted(by_size.items(), reverse=True)
        self._begins = frozenset(word[0] for words in by_size.values() for word in words)

    def longest(self, text: str) -> Found | None:
        """The longest known word in a text, or None."""
        text = folded(text)
        begins = self._begins
        starts = [n for n, letter in enumerate(text) if letter in begins]
        if not starts:
            return None
        for size, words in self._by_size:
            found = [words[part] for n in starts if (part := text[n : n + size]) in words and _whole(text, n, n + size)]
            if found:
                return min(found)
        return None


def folded(text: str) -> str:
    """A text as it is compared: compatibility forms and capitals made equal."""
    return normalize("NFKC", text).casefold()


def _whole(text: str, start: int, end: int) -> bool:
    before = start == 0 or not (_latin(text[start]) and _latin(text[start - 1]))
    after = end >= len(text) or not (_latin(text[end - 1]) and _latin(text[end]))
    return before and after


def _latin(letter: str) -> bool:
    return letter.isascii() and letter.isalnum()
