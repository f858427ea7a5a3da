"""Which item and which urgency, and which rule said so."""

from __future__ import annotations

import pytest

from services.intake.classifying import Catalogue
from services.intake.words import Found, Words
from shared.errors import RefusedError
from shared.register import Register, evolve
from tests.intake.examples import item, register


def classify(text: str, given: str | None = None) -> tuple[str, str, int, str]:
    found = Catalogue(register()).classify(given, text)
    return found.item.item, found.item_rule, found.urgency, found.urgency_rule


def test_a_given_item_wins_over_words() -> None:
    assert classify("厨房漏水", "tree") == ("tree", "given", 0, "item")


def test_an_unknown_item_is_refused() -> None:
    with pytest.raises(RefusedError, match="unknown_item"):
        classify("厨房漏水", "no.such")


def test_the_longest_word_wins() -> None:
    assert classify("下水道和水管漏水") == ("repair.leak", "word:水管漏水", 1, "item")


def test_of_equally_long_words_the_smallest_item_wins() -> None:
    assert classify("树枝压了水管")[0] == "repair.leak"


def test_nothing_fits_is_other_and_where_there_is_none_a_refusal() -> None:
    assert classify("你好") == ("other", "none", 0, "item")
    with pytest.raises(RefusedError, match="unknown_item"):
        Catalogue(evolve(Register(), item("tree"))).classify(None, "你好")


def test_urgent_words_raise_and_never_lower() -> None:
    assert classify("漏水到电表了,有人晕倒") == ("repair.leak", "word:漏水", 3, "word:晕倒")
    assert classify("漏水到电表了") == ("repair.leak", "word:漏水", 2, "word:漏水到电表")
    assert classify("漏水到电表了,起火了") == ("repair.leak", "word:漏水", 3, "word:起火")
    assert classify("漏水到电表了", "fire") == ("fire", "given", 3, "item")


def test_latin_words_are_whole_and_of_any_case() -> None:
    assert classify("a TREE fell")[1] == "word:tree"
    assert classify("the street is dirty")[0] == "other"
    assert classify("ｔｒｅｅ倒了")[0] == "tree"


def test_a_long_text_and_many_words_stay_quick() -> None:
    words = Words(Found(f"i-{n}", f"词{n}") for n in range(20_000))
    assert words.longest("词" * 1999 + "7") == Found("i-7", "词7")
