"""借调 and 吹哨报到: another office's people help with one task, which stays where it is; their load counts where they are."""

from __future__ import annotations

from datetime import timedelta

import pytest

from services.dispatch.commands import Accept, AskHelp, Done, HandOver, Lend, RateHelp, RefuseHelp, Sign, TakeBackHelp
from shared.facts import HelpAnswered, HelpAsked, HelpSeated, HelpSettled, MatchExplained
from tests.dispatch.offices import City
from tests.examples import DUE, HONGSHAN, LEAK, LI, NOW, QINGSHAN, REQUEST, TASK, WITHDRAWN, WUCHANG, id_of, submitted

CHEN, GUO = "m-chen", "m-guo"
WHISTLE = AskHelp(task=TASK, to=QINGSHAN, whistle=True)


def whistled() -> City:
    """武昌 has whistled for 青山, and 青山 has heard."""
    city = City.at_work()
    city.publish(submitted())
    city.settle()
    assert city.ask(WUCHANG, WHISTLE) is None
    city.settle()
    return city


def seated() -> City:
    """And somebody is lent."""
    city = whistled()
    assert city.ask(QINGSHAN, Lend(help=city.id("help.asked"))) is None
    city.settle()
    return city


def done(city: City) -> City:
    """武昌's own member has finished it."""
    city.ask(WUCHANG, Accept(task=TASK, member=LI))
    assert city.ask(WUCHANG, Done(task=TASK, member=LI)) is None
    city.settle()
    return city


def load(city: City, member: str = CHEN) -> int:
    """A member of 青山's."""
    return city.desks[QINGSHAN].members[member].load


def over(city: City) -> None:
    """Nothing more comes, and everything held."""
    city.settle()
    city.check()
    city.check_all()


def test_whistled_seated_released_rated() -> None:
    city = done(seated())
    assert city.ask(WUCHANG, RateHelp(help=city.id("help.asked"), grade=5)) is None
    assert city.names("help.", "task.handed_over") == [
        "6:help.asked",
        "7:help.received",
        "7:help.seated",
        "6:help.answered",
        "6:help.released",
        "7:help.settled",
        "6:help.rated",
    ]
    assert city.owners() == [WUCHANG]
    over(city)


def test_a_whistle_gives_an_hour_and_the_question_says_what_there_is_to_do() -> None:
    assert whistled().last("help.asked").fact == HelpAsked(
        help_id=whistled().id("help.asked"),
        task_id=TASK,
        request_id=REQUEST,
        to=QINGSHAN,
        whistle=True,
        item=LEAK,
        urgency=0,
        effort=10,
        due=DUE,
        until=NOW + timedelta(hours=1),
    )


def test_the_lending_office_matches_among_all_its_people_and_explains_it_to_itself() -> None:
    city = seated()
    fact = city.last("help.seated").fact
    assert isinstance(fact, HelpSeated)
    assert (fact.member_id, fact.effort, fact.asker) == (CHEN, 10, WUCHANG)
    (explained,) = (one for one in city.stream if isinstance(one.fact, MatchExplained) and one.district == QINGSHAN)
    assert isinstance(explained.fact, MatchExplained)
    assert (explained.fact.considered, explained.fact.chosen) == (2, (CHEN,))
    assert (explained.area, explained.districts) == ("-", QINGSHAN)


def test_load_counts_where_they_are_from_the_seat_to_the_release() -> None:
    city = whistled()
    assert load(city) == 0
    city.ask(QINGSHAN, Lend(help=city.id("help.asked")))
    assert load(city) == 10
    city.settle()
    assert load(done(city)) == 0
    over(city)


def test_somebody_in_particular_is_lent_if_they_have_room() -> None:
    city = whistled()
    help = city.id("help.asked")
    assert city.ask(QINGSHAN, Lend(help=help, member="m-nobody")) == "unknown_member"
    assert city.ask(QINGSHAN, Lend(help=help, member=GUO)) is None
    assert (load(city, GUO), load(city)) == (10, 0)
    for n in range(2, 4):
        city.publish(submitted(n))
    city.settle()
    assert city.ask(WUCHANG, AskHelp(task=_task(city, 2), to=QINGSHAN)) is None
    assert city.ask(WUCHANG, AskHelp(task=_task(city, 3), to=QINGSHAN)) is None
    asked = [one.fact.help_id for one in city.stream if type(one.fact) is HelpAsked]
    city.settle()
    assert city.ask(QINGSHAN, Lend(help=asked[1], member=GUO)) is None
    assert city.ask(QINGSHAN, Lend(help=asked[2], member=GUO)) == "over_capacity"
    city.check()


def _task(city: City, n: int) -> str:
    task = city.task(WUCHANG, n)
    assert task
    return task.id


def test_nobody_who_may_is_said_and_the_question_stays() -> None:
    city = City.at_work()
    city.publish(submitted(item="rescue.lift"))
    city.settle()
    city.ask(WUCHANG, WHISTLE)
    city.settle()
    assert city.ask(QINGSHAN, Lend(help=city.id("help.asked"))) == "nobody_free"
    assert city.ask(QINGSHAN, RefuseHelp(help=city.id("help.asked"), reason="nobody_able")) is None
    city.settle()
    answer = city.last("help.answered").fact
    assert isinstance(answer, HelpAnswered)
    assert (answer.member_id, answer.reason) == (None, "nobody_able")
    assert city.ask(WUCHANG, WHISTLE, id=id_of("again")) is None, "it may be asked again"
    city.wait(hours=1)
    over(city)


def test_nobody_reports_in_within_the_hour() -> None:
    city = whistled()
    city.wait(hours=1)
    assert city.ask(QINGSHAN, Lend(help=city.id("help.asked"))) == "over"
    city.settle()
    assert city.names("help.")[-2:] == ["6:help.lapsed", "7:help.settled"]
    over(city)


def test_a_call_for_help_is_taken_back() -> None:
    city = whistled()
    back = TakeBackHelp(help=city.id("help.asked"))
    assert city.ask(QINGSHAN, back) == "not_found"
    assert city.ask(WUCHANG, back) is None
    city.settle()
    assert (city.said("help.lapsed").reason, city.said("help.settled").reason) == ("taken_back", "taken_back")
    assert city.ask(QINGSHAN, Lend(help=back.help)) == "over"
    assert city.ask(WUCHANG, back) == "over"
    over(city)


def test_who_is_coming_is_not_called_off() -> None:
    city = seated()
    assert city.ask(WUCHANG, TakeBackHelp(help=city.id("help.asked"))) == "already_signed"


def test_lent_while_it_was_taken_back_they_are_free_again() -> None:
    city = whistled()
    city.ask(QINGSHAN, Lend(help=city.id("help.asked")))
    city.ask(WUCHANG, TakeBackHelp(help=city.id("help.asked")))
    city.settle()
    assert load(city) == 0
    over(city)


def test_lent_just_when_it_lapsed_they_are_free_again() -> None:
    city = whistled()
    city.wait(minutes=59)
    assert city.ask(QINGSHAN, Lend(help=city.id("help.asked"))) is None
    city.wait(minutes=1)
    city.turn(WUCHANG, inputs=0)
    assert city.names("help.")[-1] == "6:help.lapsed"
    city.settle()
    settled = city.last("help.settled").fact
    assert isinstance(settled, HelpSettled)
    assert (settled.reason, settled.member_id, load(city)) == ("unanswered", CHEN, 0)
    assert "6:help.answered" not in city.names()
    over(city)


@pytest.mark.parametrize("how", ["withdrawn", "handed over"])
def test_the_end_of_the_task_releases_who_helped(how: str) -> None:
    city = seated()
    if how == "withdrawn":
        city.publish(WITHDRAWN)
    else:
        city.ask(WUCHANG, HandOver(task=TASK, to=HONGSHAN, reason="wrong_place"))
        city.settle()
        city.ask(HONGSHAN, Sign(handover=city.id("handover.offered")))
    city.settle()
    assert "6:help.released" in city.names()
    assert load(city) == 0
    over(city)


def test_done_before_anybody_was_lent() -> None:
    city = done(whistled())
    assert city.said("help.lapsed").reason == "ended"
    assert city.ask(QINGSHAN, Lend(help=city.id("help.asked"))) == "over"
    over(city)


def test_help_can_be_rated_for_a_week_once() -> None:
    city = seated()
    rating = RateHelp(help=city.id("help.asked"), grade=2)
    assert city.ask(WUCHANG, rating) == "not_released"
    done(city)
    for _ in range(6):
        city.wait(hours=24)
        city.turn(WUCHANG)
    assert city.ask(WUCHANG, rating) is None
    assert city.ask(WUCHANG, rating) == "over"


def test_what_nobody_rated_is_forgotten() -> None:
    city = done(seated())
    for _ in range(10):
        city.wait(hours=24)
        city.turn(WUCHANG)
    assert not city.desks[WUCHANG].matters
    assert city.ask(WUCHANG, RateHelp(help=city.id("help.asked"), grade=2)) == "not_found"


def test_repeats_and_what_cannot_be_said() -> None:
    city = whistled()
    help = city.id("help.asked")
    assert city.ask(WUCHANG, WHISTLE) == "already_asking"
    assert city.ask(WUCHANG, WHISTLE.model_copy(update={"to": HONGSHAN})) is None
    assert city.ask(WUCHANG, WHISTLE.model_copy(update={"to": WUCHANG})) == "own_office"
    assert city.ask(WUCHANG, Lend(help=help)) == "not_found"
    assert city.ask(HONGSHAN, Lend(help=help)) == "not_found"
    for _ in range(2):
        assert city.ask(QINGSHAN, Lend(help=help)) is None
    assert city.ask(QINGSHAN, RefuseHelp(help=help)) == "already_signed"
    assert len(city.names("help.seated")) == 1
    done(city)
    assert city.ask(WUCHANG, WHISTLE) == "wrong_state"
    city.check()


def test_two_offices_help_with_one_task() -> None:
    city = seated()
    first = city.id("help.asked")
    assert city.ask(WUCHANG, WHISTLE.model_copy(update={"to": HONGSHAN})) is None
    city.settle()
    assert city.ask(HONGSHAN, Lend(help=city.id("help.asked"), member="m-hu")) is None
    city.settle()
    task = city.task(WUCHANG)
    assert task
    assert task.helps == (first, city.id("help.asked"))
    done(city)
    assert len(city.names("help.settled")) == 2
    over(city)
