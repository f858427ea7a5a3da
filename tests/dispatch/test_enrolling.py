"""登记 and 离岗: who may be given work, on which terms."""

from services.dispatch import model
from services.dispatch.commands import Accept, Enrol, Erase, Leave
from shared.facts import MemberErased, MemberLeft
from tests.dispatch.telling import after, asked, decision, given, refusal, seen, when
from tests.examples import ESTATE, LI, OUJING, TASK, TEAM, WANG, enrolled, id_of, submitted

ENROL = asked(Enrol(members=TEAM))


def test_who_is_enrolled_is_there_with_these_terms() -> None:
    assert when(given(), ENROL) == list(TEAM)
    desk = after(given(), ENROL)
    assert sorted(desk.members) == ["m-li", "m-wang", "m-zhao"]
    assert desk.by_area[OUJING] == ("m-li", "m-wang", "m-zhao")


def test_the_same_command_again_has_the_same_answer_and_no_second_fact() -> None:
    desk = after(given(), ENROL)
    assert when(desk, ENROL) == []
    assert decision(desk, ENROL).answer == decision(given(), ENROL).answer
    assert decision(desk, ENROL).answer["facts"] == 3


def test_the_answer_says_who_was_new_and_who_was_known() -> None:
    desk = after(given(enrolled(LI, capacity=10), enrolled(WANG)), asked(Leave(member=WANG)))
    answer = decision(desk, ENROL).answer
    assert (answer["enrolled"], answer["changed"]) == (["m-zhao"], ["m-li", "m-wang"])
    again = decision(after(desk, ENROL), ENROL).answer
    assert again == answer
    assert model.load(model.dump(after(desk, ENROL))) == after(desk, ENROL)


def test_enrolling_on_the_same_terms_changes_nothing() -> None:
    shuffled = enrolled(LI, ESTATE, OUJING, skills=("b", "a"))
    desk = after(given(enrolled(LI, OUJING, ESTATE, skills=("a", "b"))))
    assert when(desk, asked(Enrol(members=(shuffled,)))) == []


def test_enrolling_on_other_terms_keeps_the_load() -> None:
    desk = after(given(*TEAM), seen(submitted()), asked(Accept(task=TASK, member=LI)))
    moved = after(desk, asked(Enrol(members=(enrolled(LI, ESTATE, capacity=80),))))
    assert (moved.members[LI].load, moved.members[LI].capacity) == (10, 80)
    assert (moved.by_area[OUJING], moved.by_area[ESTATE]) == (("m-wang", "m-zhao"), (LI,))


def test_an_area_that_nobody_serves_any_more_leaves_nothing_behind() -> None:
    desk = after(given(enrolled(LI, OUJING)), asked(Enrol(members=(enrolled(LI, ESTATE),))))
    assert OUJING not in desk.by_area
    assert model.load(model.dump(desk)) == desk


def test_one_command_with_somebody_twice_keeps_the_last_terms() -> None:
    desk = after(given(), asked(Enrol(members=(enrolled(LI, capacity=10), enrolled(LI, capacity=20)))))
    assert desk.members[LI].capacity == 20


def test_who_left_is_not_asked_and_keeps_what_they_hold() -> None:
    desk = after(given(*TEAM), seen(submitted()), asked(Accept(task=TASK, member=LI)))
    assert when(desk, asked(Leave(member=LI))) == [MemberLeft(member_id=LI)]
    gone = after(desk, asked(Leave(member=LI)))
    assert gone.members[LI].load == 10
    task = after(gone, seen(submitted(2), sequence=2)).tasks
    assert [t.offered for t in task.values() if t.id != TASK] == [(WANG,)]


def test_leaving_twice_changes_nothing() -> None:
    gone = after(given(*TEAM), asked(Leave(member=LI)))
    assert when(gone, asked(Leave(member=LI), id=id_of("again"))) == []


def test_nobody_leaves_who_was_not_there() -> None:
    assert refusal(given(), asked(Leave(member=LI))) == "unknown_member"


def test_who_left_comes_back_by_being_enrolled() -> None:
    gone = after(given(*TEAM), asked(Leave(member=LI)))
    back = after(gone, asked(Enrol(members=(enrolled(LI),))))
    assert not back.members[LI].left


def test_who_is_erased_has_left_and_is_a_name_without_a_person() -> None:
    erased = asked(Erase(member=LI))
    assert when(given(*TEAM), erased) == [MemberErased(member_id=LI), MemberLeft(member_id=LI)]
    assert when(after(given(*TEAM), asked(Leave(member=LI))), erased) == [MemberErased(member_id=LI)]
    assert when(after(given(*TEAM), erased), erased) == []
    assert when(given(), asked(Erase(member="m-supervisor-420106"))) == [MemberErased(member_id="m-supervisor-420106")]


def test_who_is_erased_keeps_what_they_hold() -> None:
    desk = after(given(*TEAM), seen(submitted()), asked(Accept(task=TASK, member=LI)), asked(Erase(member=LI)))
    assert desk.tasks[TASK].holder == LI
