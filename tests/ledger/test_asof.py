"""As of any moment a case, a list and an office's state are what a fold of the log's beginning gives."""

from collections import Counter
from datetime import timedelta
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from services.ledger import asof, cases
from services.ledger.asof import case_at, cases_at, state_at
from services.ledger.cases import Case
from shared.envelope import Envelope, opened
from shared.facts import (
    RequestReopened,
    RequestWithdrawn,
    TaskAccepted,
    TaskArrived,
    TaskClosed,
    TaskDone,
    TaskHandedOver,
)
from shared.ids import new_id
from tests.ledger.examples import (
    DUE,
    HONGSHAN,
    LI,
    NOW,
    QINGSHAN,
    WUCHANG,
    about,
    life,
    offered,
    request_id,
    submitted,
    task_id,
)
from tests.ledger.examples import (
    opened as task_opened,
)
from tests.ledger.memory import Memory

OFFICES = (WUCHANG, QINGSHAN, HONGSHAN)


def handed_over(n: int, round_: int, to: str) -> TaskHandedOver:
    return TaskHandedOver(
        task_id=task_id(n, round_),
        new_task_id=task_id(n, round_ + 1),
        request_id=request_id(n),
        round=1,
        to=to,
        by=new_id(),
        item="repair.leak",
        urgency=1,
        due=DUE,
        grant=True,
    )


@st.composite
def histories(draw: st.DrawFn) -> Memory:
    """Cases that are opened, taken, handed from office to office, ended and opened again; time runs in each as it likes."""
    log, rounds, clocks = Memory(), dict.fromkeys(range(4), 1), dict.fromkeys(range(4), 0)
    offices: dict[int, str] = {}
    at_hand: set[int] = set()
    over: set[int] = set()
    for _ in range(draw(st.integers(1, 30))):
        n, what = draw(st.integers(0, 3)), draw(st.sampled_from("oohaadcwr!"))
        clocks[n] = at_s = clocks[n] + draw(st.integers(0, 20))
        if n not in offices:
            offices[n] = WUCHANG
            log.add(submitted(n, at_s=at_s))
            continue
        office = seen = offices[n]
        if n in over:
            what = "r"  # what is over moves no more until it is opened again
        if what in "cw":
            over.add(n)
        if what == "r":
            over.discard(n)
            rounds[n] += 1
            at_hand.discard(n)
        if what == "h" and n not in at_hand:
            what = "o"  # nobody hands over what was never opened
        if what == "o":
            at_hand.add(n)
        task = task_id(n, rounds[n])
        if what == "h":
            at_hand.discard(n)
            to = draw(st.sampled_from([other for other in OFFICES if other != office]))
            fact: Any = handed_over(n, rounds[n], to)
            offices[n], rounds[n], seen = to, rounds[n] + 1, f"{office},{to}"
        else:
            fact = {
                "o": task_opened(n, rounds[n]),
                "a": TaskAccepted(task_id=task, member_id=draw(st.sampled_from([LI, "m-wang"]))),
                "d": TaskDone(task_id=task, member_id=LI, outcome="solved"),
                "c": TaskClosed(task_id=task, reason="rated"),
                "w": RequestWithdrawn(request_id=request_id(n), reason="changed_mind"),
                "!": TaskArrived(task_id=task, member_id=LI),
                "r": RequestReopened(
                    request_id=request_id(n), reason="not_solved", due=DUE, round=2, item="repair.leak", urgency=1
                ),
            }[what]
        log.add(about(n, fact, district=office, districts=seen, at_s=at_s))
    return log


def folded(log: Memory, size: int, until: Any = None) -> dict[str, tuple[Case, int]]:
    """Every case after these leaves, and what its task weighs: all of them at once, nothing left out."""
    found: dict[str, Case | None] = {}
    efforts: dict[str, int] = {}
    for leaf in log.leaves[:size]:
        if leaf.kind != "event" or leaf.case is None:
            continue
        document = orjson.loads(leaf.data)
        event: Envelope = opened(document["subject"], document["event"])
        if until is not None and event.time > until:
            continue
        found[leaf.case] = cases.evolve(found.get(leaf.case), leaf.index, event)
        efforts[leaf.case] = (
            getattr(event.fact, "effort", efforts.get(leaf.case, 0))
            if document["subject"].endswith("opened")
            else efforts.get(leaf.case, 0)
        )
    return {id: (case, efforts[id]) for id, case in found.items() if case is not None}


@settings(max_examples=60, deadline=None)
@given(
    log=histories(),
    size=st.integers(0, 34),
    district=st.sampled_from([None, *OFFICES]),
    until=st.none() | st.integers(0, 100),
)
async def test_an_offices_state_is_the_fold_of_the_logs_beginning(
    log: Memory, size: int, district: str | None, until: int | None
) -> None:
    at = None if until is None else NOW + timedelta(seconds=until)
    found = (await state_at(log, district, size, at)).shown()
    theirs = [(case, effort) for case, effort in folded(log, size, at).values() if district in (None, case["district"])]
    open_ = [(case, effort) for case, effort in theirs if case["state"] not in asof.OVER]
    assert found["cases"] == {
        "open": len(open_),
        "states": dict(Counter(case["state"] for case, _ in open_)),
        **{over: sum(case["state"] == over for case, _ in theirs) for over in asof.OVER},
    }
    held = [
        (case["holder"], effort)
        for case, effort in open_
        if case["state"] in ("accepted", "arrived") and case["holder"]
    ]
    assert found["members"] == [
        {"member": m, "held": sum(h == m for h, _ in held), "effort": sum(e for h, e in held if h == m)}
        for m in sorted({str(m) for m, _ in held})
    ]


@settings(max_examples=40, deadline=None)
@given(log=histories(), size=st.integers(0, 34), until=st.none() | st.integers(0, 100), limit=st.integers(1, 3))
async def test_a_case_and_the_list_of_cases_are_the_fold_of_the_logs_beginning(
    log: Memory, size: int, until: int | None, limit: int
) -> None:
    at = None if until is None else NOW + timedelta(seconds=until)
    want = {id: cases.shown(case) for id, (case, _) in folded(log, size, at).items()}
    for n in range(4):
        case, leaves = await case_at(log, request_id(n), size, at)
        assert (case and cases.shown(case)) == want.get(request_id(n))
        assert all(index < size for index, _ in leaves)
    seen: list[Any] = []
    below: int | None = None
    while True:
        page, below = await cases_at(log, {}, size, at, district=None, closed=(), below=below, limit=limit)
        assert len(page) <= limit
        seen += page
        if below is None:
            break
    assert {case["id"]: case for case in seen} == want
    assert len(seen) == len(want)


async def test_a_case_that_was_over_is_read_again_when_it_is_opened_again() -> None:
    log = Memory()
    log.add(*life(1))
    over = (await state_at(log, WUCHANG, 9)).shown()
    assert over["cases"] == {"open": 0, "states": {}, "closed": 1, "withdrawn": 0}
    again = RequestReopened(
        request_id=request_id(1), reason="not_solved", due=DUE, round=2, item="repair.leak", urgency=1
    )
    log.add(about(1, again), about(1, task_opened(1, 2)), about(1, offered(1, 2)))
    log.add(about(1, TaskAccepted(task_id=task_id(1, 2), member_id=LI)))
    now = (await state_at(log, WUCHANG, 13)).shown()
    assert now == {
        "cases": {"open": 1, "states": {"accepted": 1}, "closed": 0, "withdrawn": 0},
        "members": [{"member": LI, "held": 1, "effort": 3}],
    }
    assert (await state_at(log, QINGSHAN, 13)).shown()["cases"]["open"] == 0
