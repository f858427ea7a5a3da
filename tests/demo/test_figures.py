"""The summary's figures come from leaves alone, and what does not fit together is said."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from deploy.demo.diary import Diary
from deploy.demo.figures import Figures, compare
from deploy.demo.summary import percentiles


def leaf(seq: int, name: str, *, case: str = "r-1", district: str = "420106", **data: Any) -> dict[str, Any]:
    return {
        "kind": "event",
        "src": {"seq": seq},
        "subject": f"evt.{district}.dispatch.xinxiang.{name}",
        "case": {"id": case, "n": 1},
        "event": {"data": data},
    }


def folded(*leaves: dict[str, Any]) -> Figures:
    figures = Figures()
    for one in leaves:
        figures.take(one)
    return figures


def test_a_request_that_is_offered_twice_counts_once() -> None:
    figures = folded(leaf(1, "task.offered"), leaf(2, "task.offered"), leaf(3, "task.offered", case="r-2"))
    assert figures.districts(["420106"])["420106"]["offered"] == 2
    assert (figures.facts, figures.leaves) == (3, 3)


def test_a_gap_leaf_accounts_for_the_numbers_it_covers() -> None:
    gap = {"kind": "gap", "src": {"seq": 2}, "gap": {"from": 2, "to": 4}}
    assert folded(leaf(1, "task.done"), gap, leaf(5, "task.done")).accounted
    assert not folded(leaf(1, "task.done"), leaf(5, "task.done")).accounted


def test_what_the_demo_did_and_the_ledger_lacks_is_said() -> None:
    diary = Diary()
    diary.did("accepted", "420106", "r-1")
    assert compare(folded(leaf(1, "task.accepted")), diary, Counter()) == []
    (line,) = compare(folded(), diary, Counter())
    assert "420106 accepted" in line
    assert "r-1" in line


def test_a_message_that_was_received_and_not_sent_or_sent_and_not_received_is_said() -> None:
    sent = leaf(1, "notice.sent", channel="mail", notice_id="n-1", attempt=1)
    assert compare(folded(sent), Diary(), Counter(mail=1)) == []
    assert len(compare(folded(sent), Diary(), Counter(mail=2))) == 1
    assert len(compare(folded(sent), Diary(), Counter(mail=0))) == 1


@pytest.mark.parametrize(
    ("values", "p50", "p99"), [([], 0, 0), ([7], 7, 7), ([3, 1, 2], 2, 3), (list(range(1, 101)), 50, 99)]
)
def test_percentiles_are_values_that_were_measured(values: list[float], p50: float, p99: float) -> None:
    assert percentiles(values) == {"p50": p50, "p99": p99, "count": len(values)}
