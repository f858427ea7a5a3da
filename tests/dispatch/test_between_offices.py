"""Three offices, each as far behind the others as it likes, whatever they say: one owner, an end to every question, nobody overloaded."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.dispatch import between, model, states
from services.dispatch.commands import (
    Accept,
    AskHelp,
    Decline,
    Done,
    HandOver,
    Lend,
    RateHelp,
    Refuse,
    RefuseHelp,
    Rule,
    Sign,
    TakeBack,
    Verb,
)
from shared.facts import ConferralOpened, HandoverOffered, HelpAsked
from tests.dispatch.offices import GARDEN, OFFICES, City
from tests.examples import OUJING, RATED, REOPENED, WITHDRAWN, id_of, submitted

REQUESTS = range(1, 4)
things = st.one_of(
    st.tuples(st.just("turn"), st.sampled_from(OFFICES), st.sampled_from([1, 1, 2, 5, None])),
    st.tuples(st.just("turn"), st.sampled_from(OFFICES), st.sampled_from([1, 2, None])),
    st.tuples(
        st.just("submitted"), st.sampled_from(REQUESTS), st.sampled_from(OFFICES), st.sampled_from([OUJING, GARDEN])
    ),
    st.tuples(st.just("says"), st.sampled_from(OFFICES), st.integers(0, 10_000)),
    st.tuples(st.just("says"), st.sampled_from(OFFICES), st.integers(0, 10_000)),
    st.tuples(st.just("says"), st.sampled_from(OFFICES), st.integers(0, 10_000)),
    st.tuples(st.sampled_from(["withdrawn", "rated", "reopened"]), st.sampled_from(REQUESTS)),
    st.tuples(st.just("torn"), st.sampled_from(OFFICES), st.integers(0, 4)),
    st.tuples(st.just("minutes pass"), st.sampled_from([1, 14, 16, 31, 61, 3000])),
)


class Story:
    """What three offices do with three requests."""

    def __init__(self) -> None:
        self.city = City.at_work()
        self.sent: set[int] = set()
        self.rounds: dict[int, int] = {}

    def tell(self, thing: tuple[object, ...]) -> None:
        """One thing that happens."""
        city = self.city
        match thing:
            case ("turn", str(district), inputs):
                city.turn(district, inputs=inputs if isinstance(inputs, int) else None)
            case ("torn", str(district), int(kept)):
                city.turn(district, kept=kept)
                city.turn(district)
            case ("submitted", int(n), str(district), str(area)) if n not in self.sent:
                self.sent.add(n)
                city.publish(submitted(n, area=area, urgency=n % 2), district, area=area)
            case ("withdrawn", int(n)) if n in self.sent and (where := self.known_at(n)):
                city.publish(WITHDRAWN.model_copy(update={"request_id": id_of("request", n)}), where)
            case ("rated" | "reopened" as what, int(n)) if n in self.sent:
                self.judge(what, n)
            case ("says", str(district), int(n)):
                self.say(district, random.Random(n))
            case ("minutes pass", int(minutes)):
                city.wait(minutes=minutes)

    def known_at(self, n: int) -> str | None:
        """The office responsible as the ledger's case tells: the case moves at `task.handed_over`."""
        for one in reversed(self.city.stream):
            if one.case == id_of("request", n):
                if one.fact.name == "task.handed_over":
                    return str(getattr(one.fact, "to", ""))
                if one.fact.name in ("task.opened", "request.submitted"):
                    return one.district
        return None

    def judge(self, what: str, n: int) -> None:
        """A resident may judge what the ledger shows as done."""
        last = next((one for one in reversed(self.city.stream) if one.case == id_of("request", n)), None)
        if last is None or last.fact.name not in ("task.done", "task.closed", "match.explained"):
            return
        task = self.city.task(last.district, n)
        if not task or task.status != "done":
            return
        request = {"request_id": id_of("request", n)}
        if what == "rated":
            self.city.publish(RATED.model_copy(update=request), last.district)
        else:
            again = REOPENED.model_copy(update={**request, "round": task.round + 1})
            self.city.publish(again, last.district)

    def say(self, district: str, r: random.Random) -> None:
        """Somebody in this office gives a command about something that the office knows."""
        city, desk = self.city, self.city.desks[district]
        others = [code for code in OFFICES if code != district]
        known: list[model.Task | between.Matter] = [task for _, task in sorted(desk.tasks.items())]
        known += [matter for _, matter in sorted(desk.matters.items())]
        known += [
            one for one in known if isinstance(one, between.Matter) for _ in range(2)
        ]  # they are rarer than tasks
        about = r.choice(known) if known else None
        if isinstance(about, model.Task):
            member = about.holder or (about.offered[0] if about.offered else "m-li")
            verbs: list[Verb] = [
                *(HandOver(task=about.id, to=to, reason="ownership_unclear") for to in others),
                AskHelp(task=about.id, to=r.choice(others), whistle=r.random() < 0.5),
                Accept(task=about.id, member=member),
                Decline(task=about.id, member=member),
                Done(task=about.id, member=member),
            ]
        elif about is None:
            return
        elif isinstance(about.fact, HandoverOffered) and about.ours:
            verbs = [TakeBack(handover=about.id)]
        elif isinstance(about.fact, HandoverOffered):
            no = Refuse(handover=about.id, reason="wrong_place", basis="map:7")
            verbs = [Sign(handover=about.id), no, no, no]
        elif isinstance(about.fact, ConferralOpened):
            owner = r.choice(about.fact.parties)
            verbs = [Rule(conferral=about.id, owner=owner, basis="minutes:1")]
        else:
            assert isinstance(about.fact, HelpAsked)
            mine = [RateHelp(help=about.id, grade=3)]
            verbs = [*mine] if about.ours else [Lend(help=about.id), RefuseHelp(help=about.id)]
        city.ask(district, r.choice(verbs))


def follow(story: list[tuple[object, ...]]) -> City:
    """Tell it, hold every promise after each thing, and at the end let everything run out."""
    told = Story()
    for thing in story:
        told.tell(thing)
        told.city.check()
    told.city.check_all(ended=False)
    for _ in range(3):  # conferrals that open when the last questions end take days of their own
        told.city.settle()
        told.city.wait(hours=100)
    told.city.settle()
    told.city.check()
    for task in (task for desk in told.city.desks.values() for task in desk.tasks.values()):
        if task.helps:  # somebody is still lent: only the task's end releases them
            return told.city
    told.city.check_all()
    return told.city


@given(st.lists(things, max_size=60))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_three_offices_say_and_however_late_they_hear_it(story: list[tuple[object, ...]]) -> None:
    follow(story)


@pytest.mark.soak
@given(st.lists(things, min_size=40, max_size=300))
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_three_offices_say_for_long(story: list[tuple[object, ...]]) -> None:
    follow(story)


BETWEEN = {
    "handover": "offered received signed refused returned lapsed settled",
    "conferral": "opened received ruled ended settled",
    "help": "asked received seated refused answered lapsed released settled rated",
    "task": "handed_over closed done",
}


def test_random_stories_tell_all_there_is_between_offices() -> None:
    told: set[str] = set()
    for seed in range(16):
        r = random.Random(seed)
        city = follow([tell(r) for _ in range(250)])
        told.update(one.fact.name for one in city.stream)
    wanted = {f"{entity}.{fact}" for entity, facts in BETWEEN.items() for fact in facts.split()}
    assert wanted <= told, wanted - told
    assert states.STEPS.keys() >= {name for name in told if name.startswith("task.")} - {"task.opened"}


def tell(r: random.Random) -> tuple[object, ...]:
    """One thing, mostly words and turns."""
    district = r.choice(OFFICES)
    return r.choices(
        [
            ("turn", district, r.choice([1, 2, 5, None])),
            ("says", district, r.randrange(10_000)),
            ("submitted", r.choice(REQUESTS), district, r.choice([OUJING, GARDEN])),
            (r.choice(["withdrawn", "rated", "reopened"]), r.choice(REQUESTS)),
            ("minutes pass", r.choice([1, 14, 31, 61])),
            ("torn", district, r.randrange(4)),
        ],
        [40, 30, 5, 3, 5, 4],
    )[0]
