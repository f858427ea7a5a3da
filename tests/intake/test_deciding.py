"""What follows from what residents ask: facts, or a refusal."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from services.intake.classifying import Catalogue
from services.intake.decide import rate, reopen, submit, withdraw
from services.intake.model import Case, Location, Rating, Submission
from services.intake.places import Places, standing
from shared.clocks import ALWAYS, dues
from shared.errors import RefusedError
from shared.facts import RequestSubmitted
from shared.limiting import Limits, Spacing
from shared.problems import problem
from tests.intake.examples import LIMITS, NOW, WUCHANG, register

ID = "0199aaaa-0000-8000-8000-000000000001"


def submitted(**body: object) -> RequestSubmitted:
    asked = Submission.model_validate({"location": {"area": "oujing"}, **body})
    held = register()
    return submit(
        asked,
        held,
        Places(standing(held, NOW)).locate(Location(area="oujing")),
        Catalogue(held).classify(asked.service, asked.text),
        request_id=ID,
        fingerprint="ab",
        tracking_hash="cd",
        same_as=None,
        sealed=None,
        now=NOW,
    )


def case(state: str, *steps: str) -> Case:
    timeline = [{"type": step, "time": NOW, "sequence": n} for n, step in enumerate(steps, 1)]
    return Case.model_validate(
        {
            "id": ID,
            "district": WUCHANG,
            "area": "oujing",
            "item": "tree",
            "state": state,
            "timeline": timeline,
            "pos": 9,
        }
    )


def refused(act: object) -> str:
    assert callable(act)
    with pytest.raises(RefusedError) as why:
        act()
    return why.value.code


def test_clocks_start_now_and_follow_the_office() -> None:
    due = submitted(text="水管漏水", reported_at="2020-01-01T00:00:00Z").due
    assert due.sign == NOW + timedelta(minutes=30)
    assert due.contact == NOW + timedelta(hours=6)  # four working hours, with two of lunch
    assert due.handle == NOW + timedelta(days=1)


def test_danger_to_life_knows_no_office_hours() -> None:
    assert submitted(text="有人晕倒,水管漏水").due == dues(NOW, LIMITS, ALWAYS)


def test_the_fact_says_which_rules_fired() -> None:
    fact = submitted(text="有人晕倒,水管漏水")
    assert (fact.item_rule, fact.urgency_rule, fact.area_rule) == ("word:水管漏水", "word:晕倒", "code")


@pytest.mark.parametrize("state", ["submitted", "opened", "offered", "accepted", "arrived", "unplaced"])
def test_what_is_open_may_be_withdrawn_and_not_yet_rated_or_reopened(state: str) -> None:
    assert withdraw(case(state), "other").reason == "other"
    assert refused(lambda: rate(case(state), Rating(grade=5, solved=True))) == "wrong_state"
    assert refused(lambda: reopen(case(state), "other", register().items["tree"], ALWAYS, NOW)) == "wrong_state"


@pytest.mark.parametrize("state", ["done", "closed"])
def test_what_is_done_may_be_rated_or_reopened_and_not_withdrawn(state: str) -> None:
    assert rate(case(state), Rating(grade=5, solved=True)).grade == 5
    again = reopen(case(state), "other", register().items["tree"], ALWAYS, NOW)
    assert (again.round, again.due.sign) == (2, NOW + timedelta(minutes=30))
    assert refused(lambda: withdraw(case(state), "other")) == "already_over"


def test_what_is_withdrawn_is_over() -> None:
    for act in (
        lambda: withdraw(case("withdrawn"), "other"),
        lambda: rate(case("withdrawn"), Rating(grade=1, solved=False)),
        lambda: reopen(case("withdrawn"), "other", register().items["tree"], ALWAYS, NOW),
    ):
        assert refused(act) == "already_over"


@pytest.mark.parametrize(
    ("act", "zh", "en"),
    [
        (lambda: withdraw(case("done"), "other"), "该诉求已办结", "This request is already done"),
        (
            lambda: rate(case("offered"), Rating(grade=5, solved=True)),
            "任务状态为正在派单,不能评价",
            "A task that is being assigned cannot be rated",
        ),
    ],
)
def test_a_refusal_is_said_in_one_language_at_a_time(act: Callable[[], object], zh: str, en: str) -> None:
    with pytest.raises(RefusedError) as why:
        act()
    document = problem(why.value)
    assert (document["title"], document["title_en"]) == (zh, en)


def test_a_round_is_rated_once() -> None:
    rating = Rating(grade=1, solved=False)
    assert refused(lambda: rate(case("closed", "request.submitted", "request.rated"), rating)) == "already_rated"
    assert rate(case("done", "cn.paidan.request.rated.v1", "cn.paidan.request.reopened.v1"), rating).grade == 1


def test_a_bucket_refills_at_its_rate_and_names_the_wait() -> None:
    limits = Limits(rate_per_s=0.5, burst=2)
    limits.take("420106", 0)
    limits.take("420106", 0)
    with pytest.raises(RefusedError) as why:
        limits.take("420106", 0)
    assert why.value.facts["retry_after"] == 2
    limits.take("420107", 0)
    limits.take("420106", 2)


def test_looking_takes_nothing_and_is_refused_where_nothing_is_left() -> None:
    limits = Limits(rate_per_s=1, burst=1)
    for _ in range(5):
        limits.look("192.0.2.1", 0)
    limits.take("192.0.2.1", 0)
    with pytest.raises(RefusedError):
        limits.look("192.0.2.1", 0)
    limits.look("192.0.2.2", 0)
    limits.look("192.0.2.1", 1)


def test_however_many_addresses_there_are_so_many_are_remembered_and_full_buckets_go_first() -> None:
    limits = Limits(rate_per_s=1, burst=2, buckets_max=100)
    for n in range(99):
        limits.take(f"early-{n}", 0)
    limits.take("flood", 1)
    limits.take("flood", 1)
    limits.take("late", 1.5)
    assert list(limits._buckets) == ["flood", "late"]
    for n in range(1000):
        limits.take(f"once-{n}", 1.5)
        assert len(limits._buckets) <= 100


def test_who_comes_alone_does_not_wait_and_who_come_at_once_come_apart() -> None:
    spacing = Spacing(apart_s=0.5, most_s=2)
    assert [spacing.wait_s("420106", 10) for _ in range(3)] == [0, 0.5, 1]
    assert spacing.wait_s("420107", 10) == 0
    assert spacing.wait_s("420106", 11.5) == 0
    assert spacing.wait_s("420106", 60) == 0


def test_nobody_waits_longer_than_is_said() -> None:
    spacing = Spacing(apart_s=0.5, most_s=1)
    assert [spacing.wait_s("420106", 10) for _ in range(5)] == [0, 0.5, 1, 1, 1]
