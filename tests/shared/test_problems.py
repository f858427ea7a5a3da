"""Every way to say no, in both languages."""

import string
from typing import Annotated, Any, Literal

import pytest
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator

from shared.errors import RefusedError
from shared.problems import OWN, PROBLEMS, problem, said

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


class Form(BaseModel):
    """One field of every kind that people fill in."""

    model_config = ConfigDict(extra="forbid", strict=True)

    crs: Literal["WGS84", "GCJ02", "BD09"] = "WGS84"
    code: Annotated[str, Field(pattern=r"^[0-9]{6}$")] = "420106"
    text: Annotated[str, Field(max_length=4)] = ""
    grade: Annotated[int, Field(ge=1, le=5)] = 1
    lon: float = 0
    solved: bool = True
    at: AwareDatetime | None = None
    members: Annotated[list[str], Field(min_length=1)] = ["m-1"]
    part: dict[str, str] = {}
    phone: str = "110"

    @field_validator("phone")
    @classmethod
    def _has_digits(cls, value: str) -> str:
        if len(value) < 3:
            raise ValueError("a phone number has at least three digits" if value else "nothing at all")
        return value


@pytest.mark.parametrize(
    ("field", "value", "zh", "en"),
    [
        ("crs", "X", "须为 WGS84、GCJ02、BD09 之一", "must be one of WGS84, GCJ02, BD09"),
        ("code", "X", "格式不符", "not in the expected form"),
        ("text", 7, "须为文字", "must be text"),
        ("text", "12345", "至多 4 个字符", "at most 4 characters"),
        ("grade", "X", "须为整数", "must be a whole number"),
        ("grade", 6, "不得大于 5", "must be 5 or less"),
        ("lon", "X", "须为数字", "must be a number"),
        ("solved", 2, "须为 true 或 false", "must be true or false"),
        ("members", [], "至少 1 项", "at least 1 entries"),
        ("part", 1, "须为 JSON 对象", "must be a JSON object"),
        ("other", 1, "没有这个字段", "there is no such field"),
        ("phone", "1", "电话号码至少有三位数字", "a phone number has at least three digits"),
        ("phone", "", "填写有误(nothing at all)", "nothing at all"),
    ],
)
def test_what_is_wrong_with_a_field_is_said_in_both_languages(field: str, value: Any, zh: str, en: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Form.model_validate({field: value})
    assert said(caught.value.errors()[0]) == (zh, en)


def test_a_time_without_a_zone_is_told_what_is_missing() -> None:
    with pytest.raises(ValidationError) as caught:
        Form.model_validate_json('{"at": "2026-11-22T08:00:00"}')
    assert said(caught.value.errors()[0])[0].startswith("须注明时区")


def test_what_nobody_thought_of_is_still_said() -> None:
    assert said({"type": "is_instance_of", "msg": "Input should be an X"}) == ("格式不符", "Input should be an X")


def test_the_validators_of_intake_speak_chinese() -> None:
    from services.intake.model import Submission

    for body in ({}, {"text": "x", "location": {"lon": 1.0}}, {"text": "x", "contact": {"phone": "----"}}):
        with pytest.raises(ValidationError) as caught:
            Submission.model_validate(body)
        assert said(caught.value.errors()[0])[0] in OWN.values()


def test_what_a_resident_may_be_told_holds_no_command() -> None:
    for code in (
        "not_ready",
        "unavailable",
        "outside",
        "unknown_area",
        "too_many",
        "already_over",
        "not_found",
        "invalid",
    ):
        text = PROBLEMS[code]
        assert "paidan" not in text.zh + text.en + text.remedy_zh + text.remedy_en


def test_the_register_and_the_ledger_have_a_word_each() -> None:
    for text in PROBLEMS.values():
        assert ("台账" in text.zh + text.remedy_zh) <= ("register" in text.en + text.remedy_en)
        assert ("账本" in text.zh + text.remedy_zh) <= ("ledger" in text.en + text.remedy_en)
