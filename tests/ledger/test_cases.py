"""What became of a request: given these facts, it stands like this."""

from services.ledger import cases
from services.ledger.cases import Case
from shared.envelope import Envelope
from shared.facts import (
    HandoverLapsed,
    HelpAnswered,
    RequestRated,
    RequestReopened,
    TaskAccepted,
    TaskClosed,
    TaskDeclined,
    TaskHandedOver,
    TaskOffered,
    TaskOpened,
    TaskUnplaced,
)
from shared.ids import derived_id
from tests.ledger.examples import (
    DUE,
    LI,
    QINGSHAN,
    WUCHANG,
    about,
    handover_asked,
    handover_returned,
    life,
    offered,
    opened,
    reopened,
    request_id,
    submitted,
    task_id,
    withdrawn,
)


def given(*history: Envelope) -> Case:
    case: Case | None = None
    for index, each in enumerate(history):
        case = cases.evolve(case, index, each)
    assert case is not None
    return case


OPENED, OFFERED = about(1, opened(1)), about(1, offered(1))
ACCEPTED = about(1, TaskAccepted(task_id=task_id(1), member_id=LI))


def test_each_step_has_its_state() -> None:
    history = life(1)
    states = [given(*history[: n + 1])["state"] for n in range(len(history))]
    assert states == [
        *("submitted", "opened", "offered", "offered", "accepted", "arrived", "done", "done", "closed"),
    ]


def test_a_closed_case_remembers_who_did_it_and_how_it_was_judged() -> None:
    case = given(*life(1))
    assert (case["holder"], case["rated"], case["offers"]) == (LI, {"grade": 5, "solved": True}, 1)
    assert (case["first"], case["pos"], case["task"]) == (0, 8, task_id(1))


def test_a_decline_leaves_the_offer_open_until_the_next_step() -> None:
    declined = about(1, TaskDeclined(task_id=task_id(1), member_id=LI, reason="busy"))
    assert given(submitted(1), OPENED, OFFERED, declined)["state"] == "offered"


def test_nobody_left_is_unplaced() -> None:
    unplaced = about(1, TaskUnplaced.model_validate({"task_id": task_id(1), "match_id": derived_id(1)}))
    assert given(submitted(1), OPENED, OFFERED, unplaced)["state"] == "unplaced"


def test_withdrawn_stays_withdrawn_whatever_the_desk_still_does() -> None:
    closed = about(1, TaskClosed(task_id=task_id(1), reason="withdrawn"))
    assert given(submitted(1), withdrawn(1), OPENED, OFFERED, closed)["state"] == "withdrawn"


def test_reopening_begins_a_new_round_and_the_old_task_has_no_say_any_more() -> None:
    again = given(*life(1), reopened(1))
    assert (again["state"], again["round"], again["task"], again["holder"]) == ("submitted", 2, None, None)
    old = about(1, TaskClosed(task_id=task_id(1), reason="reopened"))
    second = given(*life(1), reopened(1), about(1, opened(1, 2)), old, about(1, offered(1, 2)), ACCEPTED)
    assert (second["state"], second["task"], second["offers"]) == ("offered", task_id(1, 2), 2)


def test_a_rating_after_the_end_changes_no_state() -> None:
    rated = about(1, RequestRated(request_id=request_id(1), grade=1, solved=False))
    assert given(*life(1), rated)["state"] == "closed"
    assert given(*life(1), rated)["rated"] == {"grade": 1, "solved": False}


def test_everybody_who_may_see_one_of_its_facts_may_see_the_case() -> None:
    shared = about(1, offered(1), districts=f"{WUCHANG},{QINGSHAN}")
    assert given(submitted(1), OPENED, shared)["districts"] == [WUCHANG, QINGSHAN]


def handed_over(by: str = derived_id("handover"), *, grant: bool = True) -> Envelope:
    fact = TaskHandedOver(
        task_id=task_id(1),
        request_id=request_id(1),
        round=1,
        to=QINGSHAN,
        by=by,
        new_task_id=derived_id(by, "task"),
        item="repair.leak",
        urgency=1,
        due=DUE,
        grant=grant,
    )
    return about(1, fact, districts=f"{WUCHANG},{QINGSHAN}")


def test_who_is_asked_has_to_do_with_it_until_they_refuse_and_who_took_or_helped_for_good() -> None:
    begun = (submitted(1), OPENED, OFFERED, ACCEPTED)
    assert not cases.concerns(given(*begun), QINGSHAN)
    assert cases.concerns(given(*begun, handover_asked(1)), QINGSHAN)
    returned = given(*begun, handover_asked(1), handover_returned(1))
    lapse = HandoverLapsed(handover_id=derived_id("handover"), task_id=task_id(1), to=QINGSHAN, reason="taken_back")
    lapsed = given(*begun, handover_asked(1), about(1, lapse, districts=f"{WUCHANG},{QINGSHAN}"))
    for over in (returned, lapsed):
        assert (cases.concerns(over, QINGSHAN), cases.concerns(over, WUCHANG), over["state"]) == (
            False,
            True,
            "accepted",
        )
        assert QINGSHAN in over["districts"], "it may still read what was said to it, where it shares the area"
    taken = given(*begun, handover_asked(1), handed_over())
    assert [one["by"] for one in taken["involved"]] == [None, None]
    helped = HelpAnswered(help_id=derived_id("help"), task_id=task_id(1), to=QINGSHAN, member_id="m-chen")
    for case in (taken, given(*begun, about(1, helped))):
        assert cases.concerns(case, QINGSHAN)
    refused = HelpAnswered.model_validate({**helped.model_dump(), "member_id": None})
    assert not cases.concerns(given(*begun, about(1, refused)), QINGSHAN)


def test_it_is_another_offices_from_the_moment_it_is_handed_over_and_not_before() -> None:
    asked = handover_asked(1)
    before = given(submitted(1), OPENED, OFFERED, ACCEPTED, asked)
    assert (before["district"], before["state"], before["districts"]) == (WUCHANG, "accepted", [WUCHANG, QINGSHAN])
    after = given(submitted(1), OPENED, OFFERED, ACCEPTED, asked, handed_over())
    assert (after["district"], after["state"], after["holder"], after["granted"]) == (
        *(QINGSHAN, "handed_over", None, True),
    )
    assert after["task"] == derived_id(derived_id("handover"), "task")
    theirs = TaskOpened.model_validate({**opened(1).model_dump(), "task_id": after["task"]})
    there = given(submitted(1), OPENED, asked, handed_over(), about(1, theirs, district=QINGSHAN))
    assert (there["district"], there["state"], there["task"]) == (QINGSHAN, "opened", after["task"])


def test_a_grant_ends_with_the_task_it_was_given_for() -> None:
    again = RequestReopened(
        request_id=request_id(1), reason="not_solved", round=2, item="repair.leak", urgency=1, due=DUE
    )
    there = given(submitted(1), OPENED, handed_over(), about(1, again, district=QINGSHAN))
    assert (there["district"], there["round"], there["granted"]) == (QINGSHAN, 2, False)
    here = given(submitted(1), OPENED, about(1, again))
    assert (here["district"], here["granted"]) == (WUCHANG, True)


def test_withdrawn_it_stays_so_though_it_was_handed_over() -> None:
    assert given(submitted(1), OPENED, withdrawn(1), handed_over())["state"] == "withdrawn"


def test_folding_the_same_facts_again_changes_nothing() -> None:
    case: Case | None = given(*life(1))
    for index, each in enumerate(life(1)):
        case = cases.evolve(case, index, each)
    assert case == given(*life(1))


def test_a_task_that_nobody_opened_makes_no_case() -> None:
    fact = TaskOffered.model_validate({**offered(9).model_dump(), "task_id": derived_id("lost")})
    assert cases.evolve(None, 0, about(9, fact)) is None
