"""The rules of notify's turn: its subjects, its fold and its decisions, as the loop of `shared/turns.py` wants them."""

from services.notify import model
from services.notify.decide import decide
from shared import register
from shared.facts import NotifyInputRefused, NotifyTurnCommitted
from shared.turns import Rules


def remembered(district: str) -> tuple[str, ...]:
    """Inputs that change what notify knows by themselves."""
    task = f"evt.{district}.dispatch.*.task"
    return (register.SUBJECTS, f"{task}.accepted", f"{task}.declined", f"{task}.closed")


def inputs(district: str) -> tuple[str, ...]:
    """Everything notify decides on."""
    task = f"evt.{district}.dispatch.*.task"
    return (*remembered(district), f"{task}.offered", f"{task}.expired", f"{task}.unplaced")


RULES = Rules(
    service="notify",
    scope="notify",
    version=model.VERSION,
    marker=NotifyTurnCommitted,
    refused=NotifyInputRefused,
    inputs=inputs,
    remembered=remembered,
    initial=model.initial,
    take_in=model.take_in,
    evolve=model.evolve,
    decide=decide,
    deadline=lambda _post, _fact: None,
    deadlines=lambda _post: (),
    dump=model.dump,
    load=model.load,
)
"""No deadlines: retries and quiet hours end in the sender, which then reports."""
