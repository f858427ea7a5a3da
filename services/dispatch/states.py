"""The states of a task as data: which fact leads from which state to which (docs/concepts.md shows this table)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

Status = Literal["opened", "offered", "accepted", "arrived", "done", "unplaced"]
"""Where an open task stands; one that is closed or handed over is no longer in the desk's state."""
End = Literal["closed", "handed_over"]

OPEN: tuple[Status, ...] = get_args(Status)
WITHOUT_HOLDER: tuple[Status, ...] = ("opened", "offered", "unplaced")
UNDONE: tuple[Status, ...] = ("opened", "offered", "accepted", "arrived", "unplaced")

STEPS: Mapping[str, tuple[tuple[Status, ...], Status | End | None]] = {
    "task.offered": (WITHOUT_HOLDER, "offered"),
    "task.accepted": (("offered",), "accepted"),
    "task.declined": (("offered",), None),
    "task.expired": (("offered",), None),
    "task.unplaced": (("opened", "offered"), "unplaced"),
    "task.arrived": (("accepted",), "arrived"),
    "task.done": (("accepted", "arrived"), "done"),
    "task.closed": (OPEN, "closed"),
    "task.handed_over": (UNDONE, "handed_over"),
    "handover.offered": (UNDONE, None),
    "handover.returned": (UNDONE, None),
    "handover.lapsed": (OPEN, None),
    "conferral.opened": (UNDONE, None),
    "conferral.ended": (OPEN, None),
    "help.asked": (UNDONE, None),
    "help.answered": (UNDONE, None),
    "help.lapsed": (OPEN, None),
    "help.released": (OPEN, None),
}
"""By fact: the states in which it may happen, and the state that follows; None where the task stays as it is."""


def table() -> str:
    """The same as Markdown: a row per fact, a column per state; `·` where the state stays, blank where it cannot happen."""
    head = ["", *OPEN]
    rows = [
        [f"`{fact}`", *(("**" + after + "**" if after else "·") if state in before else "" for state in OPEN)]
        for fact, (before, after) in STEPS.items()
    ]
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(line.replace("|  |", "| |").replace("|  |", "| |") for line in lines)
