"""One-time codes, and what members write."""

from __future__ import annotations

import pytest

from services.dispatch.words import OUTCOMES
from services.dispatch.words import REASONS as OF_THE_DESK
from services.notify.codes import ALPHABET, OTHER, OUTCOME, REASONS, Codes, canonical, code_of, reason_of, understand
from services.notify.pages import WHY
from shared.ids import derived_id

CODE = "7K3M9QX2"


@pytest.mark.parametrize(
    ("text", "verb"),
    [
        (f"接 {CODE}", "accept"),
        (f"接{CODE}", "accept"),
        (f"  接单：{CODE}。", "accept"),
        ("接　７Ｋ３Ｍ９ＱＸ２", "accept"),  # full width
        ("接 7k3m-9qx2", "accept"),
        ("接 7K3M 9QX2", "accept"),
        (f"{CODE} 接", "accept"),
        (f"1 {CODE}", "accept"),
        (f"１，{CODE}", "accept"),
        (f"1{CODE}", "accept"),
        (f"ACCEPT {CODE}", "accept"),
        (f"拒 {CODE} 太远", "decline"),
        (f"拒单{CODE}", "decline"),
        (f"2 {CODE}", "decline"),
        (f"decline {CODE} busy", "decline"),
        (f"到 {CODE}", "arrive"),
        (f"到场 {CODE}", "arrive"),
        (f"3 {CODE}", "arrive"),
        (f"arrived {CODE}", "arrive"),
        (f"完 {CODE}", "done"),
        (f"办结，{CODE}，谢谢", "done"),
        (f"4 {CODE}", "done"),
        (f"Done\n{CODE}", "done"),
    ],
)
def test_what_members_write_is_understood(text: str, verb: str) -> None:
    said = understand(text)
    assert said is not None
    assert (said.verb, said.code) == (verb, CODE)


@pytest.mark.parametrize(
    "text",
    ["", "接", CODE, f"好的 {CODE}", "接 7K3M9QX", "接 7K3M9QX22", "接 7K3M9QXU", "不接", "5 " + CODE, "接" * 10_000, "\0", "{{7*7}}"],
)  # fmt: skip
def test_what_is_no_verb_with_a_code_is_not_guessed(text: str) -> None:
    assert understand(text) is None


def test_the_language_of_an_answer_is_that_of_its_verb() -> None:
    assert [understand(f"{word} {CODE}").language for word in ("接", "1", "accept")] == ["zh-CN", "zh-CN", "en"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("", OTHER), ("太远了", "too_far"), ("在忙", "busy"), ("今天下班了", "off_duty"), ("人不舒服", "off_sick"), ("没有工具", "cannot_do"),
        ("不归我管", "not_ours"), ("现场有危险", "unsafe"), ("TOO FAR", "too_far"), ("张三欠我钱", OTHER), ("x" * 10_000, OTHER),
    ],
)  # fmt: skip
def test_the_words_of_a_no_become_a_code_and_are_not_kept(words: str, reason: str) -> None:
    assert reason_of(words) == reason
    said = understand(f"拒 {CODE} {words}")
    assert said is not None
    assert said.reason == reason


def test_reasons_and_outcomes_are_those_of_the_desk() -> None:
    assert {*REASONS, OTHER} == set(WHY) == set(OF_THE_DESK)
    assert OUTCOME in OUTCOMES


def test_what_looks_alike_is_alike() -> None:
    assert canonical("oil0-1234") == canonical("0110 1234") == "01101234"
    assert [canonical(wrong) for wrong in ("", "U" * 8, "0" * 7, "0" * 9, "接单接单接单接单", "0" * 10_000)] == [
        None
    ] * 6


def test_a_code_follows_from_secret_and_notice_alone() -> None:
    notices = [derived_id("notice", n) for n in range(2000)]
    codes = [code_of("secret", notice) for notice in notices]
    assert len(set(codes)) == 2000
    assert codes == [code_of("secret", notice) for notice in notices]
    assert all(canonical(code) == code and set(code) <= set(ALPHABET) for code in codes)
    assert not set(codes) & {code_of("another", notice) for notice in notices}


def test_a_code_stands_for_its_notice_as_long_as_it_can_be_answered() -> None:
    codes = Codes("secret")
    one, other = derived_id("notice", 1), derived_id("notice", 2)
    codes.keep([one, other])
    assert codes.find(codes.of(one)) == one
    codes.keep([other])
    assert codes.find(code_of("secret", one)) is None


def test_two_notices_of_one_code_are_answered_in_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    from services.notify import codes as under_test

    monkeypatch.setattr(under_test, "code_of", lambda *_: CODE)
    codes = Codes("secret")
    codes.keep(["one", "other"])
    assert codes.find(CODE) is None
