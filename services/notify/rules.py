"""The rules of notify's turn: its subjects, its fold and its decisions, as the loop of `shared/turns.py` wants them."""

from services.notify import model
from services.notify.decide import decide
from shared import register
from shared.facts import NotifyInputRefused, NotifyTurnCommitted
from shared.turns import Rules


def remembered(district: str) -> tuple[str, ...]:
    """Inputs that change what notify knows by themselves."""
    own = f"evt.{district}.dispatch.*"
    return (
        register.SUBJECTS,
        f"evt.{district}.intake.*.request.submitted.*",
        f"{own}.member.enrolled",
        *(f"{own}.task.{what}" for what in ("opened", "accepted", "declined", "closed")),
        *(f"{own}.handover.{what}" for what in ("received", "refused", "settled")),
        f"{own}.help.received",
        f"{own}.help.settled",
        "evt.*.dispatch.*.task.handed_over",
    )


def inputs(district: str) -> tuple[str, ...]:
    """Everything notify decides on."""
    own = f"evt.{district}.dispatch.*"
    return (
        *remembered(district),
        *(f"{own}.task.{what}" for what in ("offered", "expired", "unplaced", "arrived", "done")),
        f"{own}.handover.returned",
        *(f"{own}.conferral.{what}" for what in ("opened", "received", "ended", "settled")),
        *(f"{own}.help.{what}" for what in ("seated", "answered", "lapsed")),
    )


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
