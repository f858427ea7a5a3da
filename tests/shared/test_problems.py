"""Every way to say no, in both languages."""

import string

import pytest

from shared.errors import RefusedError
from shared.problems import PROBLEMS, problem

CODES = sorted(PROBLEMS)


def placeholders(code: str) -> set[str]:
    """What its texts want to be filled with."""
    text = PROBLEMS[code]
    parts = (text.zh, text.en, text.remedy_zh, text.remedy_en)
    return {name for part in parts for _, name, _, _ in string.Formatter().parse(part) if name}


@pytest.mark.parametrize("code", CODES)
def test_it_has_a_status_and_texts_that_fill(code: str) -> None:
    names = placeholders(code)
    assert all(name.isidentifier() and name not in ("code", "field") for name in names)
    document = problem(RefusedError(code, field="a.b", **dict.fromkeys(names, "VALUE")))
    texts = [document[name] for name in ("title", "detail", "title_en", "detail_en")]
    assert all(text and "{" not in text and "—" not in text for text in texts)
    assert 400 <= document["status"] < 600
    assert (document["type"], document["code"]) == (f"urn:paidan:problem:{code}", code)
    assert document["field"] == "a.b"


@pytest.mark.parametrize("code", CODES)
def test_it_says_the_same_in_chinese_and_english(code: str) -> None:
    text = PROBLEMS[code]
    for zh, en in ((text.zh, text.en), (text.remedy_zh, text.remedy_en)):
        assert any("\u4e00" <= letter <= "\u9fff" for letter in zh)
        assert en.isascii()
        named = [{name for _, name, _, _ in string.Formatter().parse(part) if name} for part in (zh, en)]
        assert named[0] == named[1]


@pytest.mark.parametrize("code", CODES)
def test_a_fact_that_is_missing_leaves_a_readable_text(code: str) -> None:
    assert "{" not in "".join(str(value) for value in problem(RefusedError(code)).values())


def test_facts_are_there_for_programs_and_cannot_take_a_names_place() -> None:
    document = problem(RefusedError("too_large", limit=7, status=200, title="fine"))
    assert (document["limit"], document["status"]) == (7, 413)
    assert document["title"] != "fine"


def test_braces_in_a_value_stay_what_they_are() -> None:
    assert "{status.__class__}" in problem(RefusedError("invalid", why="{status.__class__}"))["title"]


def test_english_prefers_the_fact_that_is_in_english() -> None:
    document = problem(RefusedError("wrong_state", state="已办结", state_en="done", verb="accept"))
    assert document["title"] == "任务状态为已办结,不能accept"
    assert document["title_en"] == "A task that is done cannot be accept"
