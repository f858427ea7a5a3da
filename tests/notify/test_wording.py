"""What messages say, in both languages, and what they never say."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest

from services.notify.codes import Codes, understand
from services.notify.model import TEMPLATES
from services.notify.wording import LANGUAGES, TEXTS, Wording, plain_line
from shared.facts import Language, Name
from tests.notify.examples import (
    AREA,
    LI,
    LIGHT_OUT,
    NOON,
    OFFICE,
    TASK,
    XINXIANG,
    given,
    offered,
    only,
    when,
    with_register,
)

WORDING = Wording.open("https://paidan.example.org/")


def test_an_offer_in_chinese() -> None:
    post, _ = when(given(), offered(LI, urgency=2))
    text = WORDING.message(post, only(post), "zh-CN")
    assert text.title == "【紧急】派单：路灯不亮"
    assert text.body == (
        "新湘小区有一项任务派给您：路灯不亮。请在 11-22 12:30 前接单或拒单。\n"
        f"https://paidan.example.org/v1/tasks/{TASK}"
    )


def test_an_offer_in_english() -> None:
    post, _ = when(given(), offered(LI))
    text = WORDING.message(post, only(post), "en")
    assert text.title == "New task: Street light out"
    assert text.body.startswith("A task in Xinxiang estate is offered to you: Street light out.")
    assert "by 11-22 12:30." in text.body


def test_every_template_exists_in_every_language() -> None:
    assert set(TEXTS) == {f"{name}.{language}" for name in (*TEMPLATES, "digest") for language in LANGUAGES}


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_message_names_no_person(language: Language) -> None:
    post, _ = when(given(), offered(LI))
    text = WORDING.message(post, only(post), language)
    assert LI not in text.title + text.body


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_the_register_does_not_know_is_said_in_general_words(language: Language) -> None:
    post, _ = when(with_register(OFFICE), offered(LI))
    text = WORDING.message(post, only(post), language)
    assert AREA not in text.title + text.body
    assert "light.out" not in text.title + text.body


@pytest.mark.parametrize(
    "hostile",
    [
        "{{ 7 * 7 }}{% raw %}",
        "{{ ''.__class__.__mro__ }}",
        "灯\r\nBcc: everybody@example.org",
        "灯\u202e\u0000\u200b",
        "<script>alert(1)</script>",
        "长" * 500,
    ],
)
def test_hostile_words_stay_words_on_one_line(hostile: str) -> None:
    item = LIGHT_OUT.model_copy(update={"title": Name(zh=hostile[:200], en=hostile[:200])})
    post, _ = when(with_register(OFFICE, XINXIANG, item), offered(LI))
    text = WORDING.message(post, only(post), "zh-CN")
    assert text.title == f"派单：{plain_line(hostile)}"
    assert all(character.isprintable() for character in text.title)
    assert len(text.body.splitlines()) == 2


def test_a_digest_counts_what_it_cannot_list() -> None:
    post = given()
    for n in range(25):
        post, _ = when(post, offered(LI, n=n, at=NOON + timedelta(seconds=n)))
    text = WORDING.digest(post, post.notices.values(), "zh-CN")
    assert text.title == "免打扰期间的 25 条消息"
    assert text.body.count("· 派单：路灯不亮") == 20
    assert "· 另有 5 条" in text.body


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_digest_says_of_each_offer_how_to_answer_it(language: Language) -> None:
    post, _ = when(given(), offered(LI), offered(LI, n=1, at=NOON + timedelta(seconds=1)))
    codes = Codes("secret")
    wording = Wording.open("https://x", reply_url="https://r", codes=codes)
    lines = wording.digest(post, post.notices.values(), language).body.splitlines()
    for notice in post.notices:
        (line,) = (line for line in lines if codes.of(notice) in line)
        said = [understand(words) for words in re.findall("“(.*?)”", line)]
        assert [(one.verb, one.code) for one in said if one] == [
            (verb, codes.of(notice)) for verb in ("accept", "decline")
        ]
        assert f"https://r/r/{codes.of(notice)}" in line


def test_a_digest_of_one_is_that_message() -> None:
    post, _ = when(given(), offered(LI))
    assert WORDING.digest(post, [only(post)], "en") == WORDING.message(post, only(post), "en")


def test_an_office_may_bring_its_own_words(tmp_path: Path) -> None:
    (tmp_path / "offered.zh-CN.txt").write_text("新任务 {{ item }}\n点这里 {{ link }}")
    post, _ = when(given(), offered(LI))
    assert Wording.open("https://x", tmp_path).message(post, only(post), "zh-CN").title == "新任务 路灯不亮"


@pytest.mark.parametrize(
    "wrong",
    ["{{ resident }}", "{{ item", "{{ item.__class__.__base__.__subclasses__() }}", "{% include '/etc/passwd' %}"],
)
def test_a_wrong_template_is_named_at_the_start(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "taken.en.txt").write_text(wrong)
    with pytest.raises(ValueError, match=r"template taken\.en"):
        Wording.open("https://x", tmp_path)
