"""Members in bulk, row by row."""

import json
from typing import Any

import pytest

from services.dispatch import importing
from services.dispatch.importing import check, duty, read, span_of_day
from shared.errors import RefusedError
from shared.facts import Duty
from shared.problems import problem
from tests.examples import ESTATE, LI, OUJING, QINGSHAN, WUCHANG

KNOWN = frozenset({OUJING, ESTATE, "a"})

HEADER = "id,kind,areas,skills,capacity,duty,district,name,phone,quiet,channels\n"
LI_ROW = f"{LI},grid_member,oujing-1 oujingyuan,repair,40,1-5 08:00-12:00; 6 09:00-10:00,{WUCHANG},李明,13800000001,22:00-07:00,console\n"


def csv(*rows: str, bom: bool = False) -> list[Any]:
    """The rows of a CSV file."""
    return read((HEADER + "".join(rows)).encode("utf-8-sig" if bom else "utf-8"), "text/csv")


def bad(*rows: str) -> list[tuple[int, str | None]]:
    """Number and field of the rows that cannot be enrolled."""
    return [(report.row, report.field) for report in check(csv(*rows), WUCHANG, KNOWN)[1]]


@pytest.mark.parametrize("bom", [False, True])
def test_csv_with_and_without_a_mark_at_its_beginning(bom: bool) -> None:
    ((number, row),), reports = check(csv(LI_ROW, bom=bom), WUCHANG, KNOWN)
    assert (number, reports) == (1, [])
    terms = row.enrolment()
    assert (terms.member_id, terms.areas, terms.skills, terms.capacity) == (
        LI, ("oujing-1", "oujingyuan"), ("repair",), 40,
    )  # fmt: skip
    assert terms.duty == (Duty(days=(1, 2, 3, 4, 5), since=480, until=720), Duty(days=(6,), since=540, until=600))


def test_json_gives_the_same_as_csv() -> None:
    fields = {
        "id": LI, "kind": "grid_member", "areas": ["oujing-1", "oujingyuan"], "skills": ["repair"], "capacity": 40,
        "duty": ["1-5 08:00-12:00", "6 09:00-10:00"], "district": WUCHANG, "name": "李明", "phone": "13800000001",
        "quiet": "22:00-07:00", "channels": ["console"],
    }  # fmt: skip
    rows = read(json.dumps([fields]).encode(), "application/json; charset=utf-8")
    assert check(rows, WUCHANG, KNOWN)[0] == check(csv(LI_ROW), WUCHANG, KNOWN)[0]


def test_a_contact_holds_what_no_fact_may() -> None:
    ((_, row),), _ = check(csv(LI_ROW), WUCHANG, KNOWN)
    assert json.loads(row.contact()) == {
        "name": "李明", "phone": "13800000001", "language": "zh-CN", "quiet": [1320, 420], "channels": ["console"],
    }  # fmt: skip
    assert "李明" not in row.enrolment().model_dump_json()
    assert "13800000001" not in row.enrolment().model_dump_json()


def test_a_row_without_hours_is_always_on_duty_and_told_on_the_console() -> None:
    ((_, row),), _ = check(csv(f"{LI},grid_member,oujing-1,,40,,{WUCHANG},,,,\n"), WUCHANG, KNOWN)
    assert row.enrolment().duty == ()
    assert json.loads(row.contact())["channels"] == ["console"]


@pytest.mark.parametrize(
    ("row", "field"),
    [
        (f"Li,grid_member,a,,40,,{WUCHANG},,,,\n", "id"),
        (f",grid_member,a,,40,,{WUCHANG},,,,\n", "id"),
        (f"{LI},wizard,a,,40,,{WUCHANG},,,,\n", "kind"),
        (f"{LI},grid_member,,,40,,{WUCHANG},,,,\n", "areas"),
        (f"{LI},grid_member,欧景,,40,,{WUCHANG},,,,\n", "areas.0"),
        (f"{LI},grid_member,a,,0,,{WUCHANG},,,,\n", "capacity"),
        (f"{LI},grid_member,a,,many,,{WUCHANG},,,,\n", "capacity"),
        (f"{LI},grid_member,a,,40,mornings,{WUCHANG},,,,\n", "duty"),
        (f"{LI},grid_member,a,,40,,Wuchang,,,,\n", "district"),
        (f"{LI},grid_member,a,,40,,{WUCHANG},,,late,\n", "quiet"),
        (f"{LI},grid_member,a,,40,,{WUCHANG},,,,,surplus\n", "…"),
        (f"{LI},grid_member,a,,40\n", "district"),
    ],
)
def test_a_row_that_is_wrong_is_named_with_its_field(row: str, field: str) -> None:
    assert bad(row) == [(1, field)]


def test_a_wrong_row_does_not_stop_the_others() -> None:
    good, reports = check(csv("x,,,,,,,,,,\n", LI_ROW), WUCHANG, KNOWN)
    assert [number for number, _ in good] == [2]
    assert [report.row for report in reports] == [1]


def test_an_id_that_comes_twice_is_enrolled_once() -> None:
    good, reports = check(csv(LI_ROW, LI_ROW), WUCHANG, KNOWN)
    assert [number for number, _ in good] == [1]
    assert [(report.row, report.field) for report in reports] == [(2, "id")]


def test_rows_of_another_district_are_skipped_and_say_so() -> None:
    good, (report,) = check(csv(LI_ROW), QINGSHAN, KNOWN)
    assert good == []
    assert (report.row, report.id, report.result, report.field) == (1, LI, "skipped", "district")
    assert WUCHANG in str(report.why)


def test_an_area_that_the_register_does_not_know_is_named() -> None:
    """Or nobody would notice that this member is never asked."""
    good, (report,) = check(csv(LI_ROW.replace("oujingyuan", "oujingyaun")), WUCHANG, KNOWN)
    assert good == []
    assert (report.result, report.field) == ("error", "areas")
    assert "oujingyaun" in str(report.why)
    assert OUJING not in str(report.why)


def test_columns_that_nobody_knows_are_one_problem_that_names_them() -> None:
    with pytest.raises(RefusedError) as refused:
        read((HEADER.replace("phone", "telephone,wechat") + LI_ROW * 3).encode(), "text/csv")
    said = problem(refused.value)
    assert said["code"] == "unknown_columns"
    assert "telephone、wechat" in said["title"]
    assert "capacity" in said["detail"]


def test_what_excel_saves_by_default_is_told_how_to_save_it() -> None:
    with pytest.raises(RefusedError) as refused:
        read((HEADER + LI_ROW).encode("gbk"), "text/csv")
    said = problem(refused.value)
    assert "另存为 CSV UTF-8" in said["detail"]
    assert "CSV UTF-8" in said["detail_en"]


def test_a_report_does_not_repeat_a_phone() -> None:
    (report,) = check(csv(LI_ROW.replace("13800000001", "1" * 300)), WUCHANG, KNOWN)[1]
    assert (report.field, "111" in str(report.why)) == ("phone", False)


@pytest.mark.parametrize(
    ("content", "media_type", "code"),
    [
        (b"", "text/csv", "invalid"),
        (HEADER.encode(), "text/csv", "invalid"),
        ((HEADER + LI_ROW).encode("gb18030"), "text/csv", "not_utf8"),
        (HEADER.encode() + b'"' + b"x" * 200_000, "text/csv", "invalid"),
        (b"[", "application/json", "invalid_json"),
        (b"{}", "application/json", "invalid"),
        (b"[1]", "application/json", "invalid"),
        (b"[]", "application/json", "invalid"),
        (b"[" + b",".join([b"{}"] * (importing.ROWS_MAX + 1)) + b"]", "application/json", "invalid"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_as_a_whole(content: bytes, media_type: str, code: str) -> None:
    with pytest.raises(RefusedError) as refused:
        read(content, media_type)
    assert refused.value.code == code


def test_json_of_the_wrong_types_is_wrong_row_by_row() -> None:
    rows = read(json.dumps([{"id": {}}, {"id": LI, "areas": 3}, {"id": None}]).encode(), "application/json")
    assert [report.row for report in check(rows, WUCHANG, KNOWN)[1]] == [1, 2, 3]


@pytest.mark.parametrize(
    ("span", "hours"),
    [
        ("1-5 08:00-12:00", Duty(days=(1, 2, 3, 4, 5), since=480, until=720)),
        ("7 00:00-24:00", Duty(days=(7,), since=0, until=1440)),
        (" 3 9:05-9:06 ", Duty(days=(3,), since=545, until=546)),
    ],
)
def test_hours_on_duty(span: str, hours: Duty) -> None:
    assert duty(span) == hours


@pytest.mark.parametrize(
    "span",
    ["", "1-5", "08:00-12:00", "5-1 08:00-12:00", "0-5 08:00-12:00", "1-8 08:00-12:00", "1-999999999 08:00-12:00",
     "1 12:00-08:00", "1 08:00-08:00", "1 08:00-24:01", "1 08:60-12:00", "1 8-12", "Mo 08:00-12:00", "1 -1:00-2:00"],
)  # fmt: skip
def test_hours_on_duty_that_are_none(span: str) -> None:
    with pytest.raises(ValueError, match="not like|needs weekdays|ends before"):
        duty(span)


def test_quiet_hours_may_span_midnight() -> None:
    assert span_of_day("22:00-07:00") == (1320, 420)
