"""What a request is about and how urgent it is, and which rule said so. Pure."""

from __future__ import annotations

from typing import NamedTuple

from services.intake.words import Found, Words
from shared.errors import RefusedError
from shared.facts import ItemSet
from shared.register import Register

OTHER = "other"
"""The item of what nothing else fits."""
RULE_MAX = 200


class Classified(NamedTuple):
    """An item of the catalogue and an urgency, each with the rule that fired."""

    item: ItemSet
    item_rule: str
    urgency: int
    urgency_rule: str


class Catalogue:
    """The catalogue and the urgent words of one register, ready to be searched."""

    def __init__(self, register: Register) -> None:
        self._items = register.items
        self._words = Words(Found(item.item, word) for item in register.items.values() for word in item.words)
        self._urgent = [
            (urgency, Words(Found(str(urgency), word) for word in fact.words))
            for urgency, fact in sorted(register.urgency.items(), reverse=True)
        ]

    def classify(self, given: str | None, text: str) -> Classified:
        """
        A given item wins; else the longest word of the catalogue in the text; else the item `other`.

        Urgency is the item's own, raised by urgent words, never lowered.

        Raises:
            RefusedError: `unknown_item`: no such code, or nothing fits and the catalogue has no `other`.
        """
        item, item_rule = self._item(given, text)
        for urgency, words in self._urgent:
            if urgency <= item.urgency:
                break
            if found := words.longest(text):
                return Classified(item, item_rule, urgency, _by_word(found.word))
        return Classified(item, item_rule, item.urgency, "item")

    def _item(self, given: str | None, text: str) -> tuple[ItemSet, str]:
        if given is not None:
            item, rule = self._items.get(given), "given"
        elif found := self._words.longest(text):
            item, rule = self._items.get(found.code), _by_word(found.word)
        else:
            item, rule = self._items.get(OTHER), "none"
        if item is None:
            raise RefusedError("unknown_item", field="service", item=given or OTHER)
        return item, rule


def _by_word(word: str) -> str:
    return f"word:{word}"[:RULE_MAX]
