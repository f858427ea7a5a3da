"""Given these facts, when this happens, then those follow: how the tests of the desk's decisions are told."""

from datetime import datetime
from functools import reduce

import pytest

from services.dispatch import model
from services.dispatch.commands import Verb
from services.dispatch.decide import decide
from services.dispatch.model import Desk
from shared.auth import Caller
from shared.envelope import Envelope
from shared.errors import RefusedError
from shared.facts import Fact, MatchExplained, RegisterFact, TaskOpened
from shared.turns import Command, Deadline, Decision, Input
from tests.examples import DISPATCHER, NOW, QINGSHAN, REGISTER, TASK, WUCHANG, XINXIANG, envelope, id_of

Work = Input | Command | Deadline


def fold(desk: Desk, fact: Fact | Envelope) -> Desk:
    """The desk after one more fact: the register is taken in, its own facts evolve it."""
    seen = fact if isinstance(fact, Envelope) else envelope(fact)
    return (model.take_in if isinstance(seen.fact, RegisterFact) else model.evolve)(desk, seen)


def given(*facts: Fact | Envelope, register: tuple[RegisterFact, ...] = REGISTER) -> Desk:
    """The desk of 武昌 that these facts lead to; what inputs and commands lead to is `after`."""
    return reduce(fold, (*register, *facts), model.initial(WUCHANG))


def seen(fact: Fact, *, at: datetime = NOW, sequence: int = 1, district: str = WUCHANG) -> Input:
    """A fact of somebody else, to be decided on. What happens in the enclave both districts may see."""
    shared = getattr(fact, "area", None) == XINXIANG
    return Input(
        sequence, envelope(fact, at=at, district=district, districts=f"{WUCHANG},{QINGSHAN}" if shared else None)
    )


def asked(what: Verb, *, by: Caller = DISPATCHER, id: str | None = None) -> Command:
    """A command; without an id it is always the same one."""
    return Command(id or id_of("command", type(what).__name__, what.model_dump_json()), what, by)


def due(at: datetime, task: str = TASK) -> Deadline:
    """A time that has come."""
    return Deadline(at, task)


def decision(desk: Desk, work: Work, now: datetime = NOW) -> Decision[Desk]:
    """What follows; the state that was decided on is the fold of the facts."""
    made = decide(desk, work, now)
    assert reduce(model.evolve, made.facts, desk) == made.state
    again = decide(desk, work, now)
    assert [fact.encode() for fact in again.facts] == [fact.encode() for fact in made.facts]
    assert len({fact.id for fact in made.facts}) == len(made.facts)
    return made


def when(desk: Desk, work: Work, now: datetime = NOW) -> list[Fact]:
    """The facts that follow, without the explanation of a match."""
    return [fact.fact for fact in decision(desk, work, now).facts if not isinstance(fact.fact, MatchExplained)]


def after(desk: Desk, *works: Work, now: datetime = NOW) -> Desk:
    """The desk after these, one after the other."""
    for work in works:
        desk = decision(desk, work, now).state
    return desk


def explanation(desk: Desk, work: Work, now: datetime = NOW) -> MatchExplained:
    """Why these and not others."""
    (found,) = (fact.fact for fact in decision(desk, work, now).facts if isinstance(fact.fact, MatchExplained))
    assert isinstance(found, MatchExplained)
    return found


def refusal(desk: Desk, work: Work, now: datetime = NOW) -> str:
    """The code of the problem that answers it."""
    with pytest.raises(RefusedError) as refused:
        decide(desk, work, now)
    return refused.value.code


def opened(desk: Desk, work: Work, now: datetime = NOW) -> TaskOpened:
    """The task that was opened."""
    (found,) = (fact for fact in when(desk, work, now) if isinstance(fact, TaskOpened))
    return found
