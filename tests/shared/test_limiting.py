"""A line in which callers take turns: at the rate that is offered, the rate that is taken stays, and nobody is pushed out."""

from __future__ import annotations

from collections import Counter

import pytest

from shared.limiting import Line

APART_S, MOST_S = 0.01, 1.0


def simulate(offered_per_s: dict[str, float], seconds: int = 20) -> tuple[Counter[str], dict[str, float]]:
    """How many are taken of each caller, and how long the longest of theirs waited (s)."""
    line: Line[tuple[str, float]] = Line(APART_S, MOST_S)
    arrivals = sorted((n / per_s, whose) for whose, per_s in offered_per_s.items() for n in range(int(per_s * seconds)))
    taken: Counter[str] = Counter()
    waited = dict.fromkeys(offered_per_s, 0.0)
    arrivals.reverse()
    now_s = 0.0
    while arrivals:
        wait_s = line.wait_s(now_s)
        if wait_s is None or arrivals[-1][0] <= now_s + wait_s:
            now_s, whose = arrivals.pop()
            line.add(whose, (whose, now_s), now_s)
        else:
            now_s += wait_s
        _, one = line.next(now_s)
        if one is not None:
            whose, since_s = one
            taken[whose] += 1
            waited[whose] = max(waited[whose], now_s - since_s)
    return taken, waited


@pytest.mark.parametrize("per_s", [150, 300, 1000])
def test_whatever_one_offers_as_much_as_may_be_is_taken_and_another_is_served_at_once(per_s: float) -> None:
    taken, waited = simulate({"flood": per_s, "honest": 5.3})
    assert taken.total() == pytest.approx(20 / APART_S, rel=0.01)
    assert taken["honest"] == int(5.3 * 20)
    assert waited["honest"] <= 2 * APART_S + 1e-6
    assert waited["flood"] <= MOST_S + 1e-6


def test_many_who_flood_share_and_whoever_asks_little_gets_all_of_it() -> None:
    floods = {f"flood-{n}": 100.0 + n for n in range(9)}
    taken, waited = simulate({**floods, "honest": 2.3})
    assert taken["honest"] == 2.3 * 20
    assert waited["honest"] <= 11 * APART_S
    assert max(taken[one] for one in floods) - min(taken[one] for one in floods) <= 2
    assert max(waited.values()) <= MOST_S + 1e-6


def test_who_is_alone_does_not_wait_and_what_waited_too_long_is_let_go() -> None:
    line: Line[int] = Line(0.5, 1)
    assert line.add("one", 1, 10)
    assert line.next(10) == ([], 1)
    assert line.wait_s(10) is None
    assert [line.add("one", n, 10) for n in (2, 3, 4)] == [True, True, False]
    assert line.next(10.4) == ([], None)
    assert line.wait_s(10.4) == pytest.approx(0.1)
    assert line.add("other", 5, 11.5)
    assert line.next(11.5) == ([2, 3], 5)
    assert line.next(60) == ([], None)
