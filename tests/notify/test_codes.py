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
        (f"“接 {CODE}”", "accept"),  # as the message shows it
        (f"{CODE}接", "accept"),
        (f"{CODE} 1", "accept"),
        (f"{CODE} 接了。", "accept"),
        (f"{CODE} yes!", "accept"),
        ("7K3M-9QX2，接单，谢谢！", "accept"),
        (f"接 {CODE} thank you", "accept"),
        (f"{CODE} 2", "decline"),
        (f"{CODE} no", "decline"),
        (f"no {CODE}, too far", "decline"),
        (f"2 {CODE} 在外地", "decline"),
        (f"{CODE} 拒太远", "decline"),
        (f"{CODE} 拒 不舒服", "decline"),
        (f"拒 {CODE} 不会修", "decline"),
        (f"{CODE} 拒绝，今天休息", "decline"),
        (f"{CODE} decline: busy", "decline"),
        (f"拒了{CODE}太远", "decline"),
        (f"{CODE} 到了", "arrive"),
        (f"到了 {CODE}", "arrive"),
        (f"{CODE} 到场", "arrive"),
        (f"{CODE} 3", "arrive"),
        (f"{CODE} 完成", "done"),
        (f"{CODE}，办结了", "done"),
        (f"完了 {CODE}", "done"),
    ],
)
def test_what_members_write_is_understood(text: str, verb: str) -> None:
    said = understand(text)
    assert said is not None
    assert (said.verb, said.code) == (verb, CODE)


@pytest.mark.parametrize(
    ("text", "verb", "code"),
    [
        ("27K3M9QX 1", "accept", "27K3M9QX"),
        ("1234ABCD 2", "decline", "1234ABCD"),
        ("1234-ABCD 3", "arrive", "1234ABCD"),
        ("4444 4444 4", "done", "44444444"),
        ("1 1234ABCD", "accept", "1234ABCD"),
        ("2 12345678 太远", "decline", "12345678"),
        ("done 7K3M 1QX2", "done", "7K3M1QX2"),
        ("1 7K3M 9QX2", "accept", "7K3M9QX2"),
    ],
)
def test_a_code_of_figures_is_read_whole(text: str, verb: str, code: str) -> None:
    said = understand(text)
    assert said is not None
    assert (said.verb, said.code) == (verb, code)


@pytest.mark.parametrize("order", ["{words} {code}", "{code} {words}", "{words}{code}", "{code}{words}"])
@pytest.mark.parametrize(
    "words",
    [
        "接不了", "接不到", "接吗", "接什么", "不接", "没接", "接单不了", "不能接单", "接不接", "1小时后到", "1点", "1楼", "一",
        "拒不了", "不拒", "没拒", "2点到", "2点", "2人", "2号楼", "到不了", "没到", "不到", "快到了", "3点到", "3分钟到", "到不到", "到哪",
        "完不成", "没完", "没完成", "不能办结", "4点完", "完成不了", "完成一半", "办结不了", "yes but later", "yesterday", "accept not",
        "not done", "done?", "nothing", "not arrived", "arriving", "接 1", "接 拒", "到 完", "1 2", "123", "?", "？", "接？",
    ],
)  # fmt: skip
def test_what_may_mean_something_else_is_not_guessed(order: str, words: str) -> None:
    assert understand(order.format(words=words, code=CODE)) is None


@pytest.mark.parametrize(
    "text",
    [f"{CODE} no problem", f"{CODE} no worries", f"{CODE} 2 点到", f"{CODE} 1 小时后到", f"接 {CODE} 不了", f"接 {CODE} 明天", f"到 {CODE} 不了",
     f"完 {CODE} 没有", f"1 {CODE} 小时", f"yes {CODE} but later", f"接 {CODE} {CODE}", f"{CODE} 拒不了"],
)  # fmt: skip
def test_more_than_an_answer_is_not_guessed_either(text: str) -> None:
    assert understand(text) is None


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
    codes.keep(["other", "third"])
    assert codes.find(CODE) is None
    codes.keep(["third"])
    assert codes.find(CODE) == "third"
    codes.keep([])
    assert codes.find(CODE) is None


def test_only_what_came_or_went_is_worked_out_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    from services.notify import codes as under_test

    made: list[str] = []

    def code_of(_: str, notice: str) -> str:
        made.append(notice)
        return notice

    monkeypatch.setattr(under_test, "code_of", code_of)
    codes = Codes("secret")
    codes.keep(["a", "b"])
    codes.keep(["b", "c"])
    assert sorted(made) == ["a", "b", "c"]
    assert [codes.find(each) for each in "abc"] == [None, "b", "c"]
