"""What becomes of what residents ask: pure and synchronous; times, ids and what others know come in as values."""

from __future__ import annotations

from datetime import datetime

from services.intake.classifying import Classified
from services.intake.model import Case, Rating, Submission
from services.intake.places import Place
from shared.clocks import Calendar, dues
from shared.errors import RefusedError
from shared.facts import (
    ItemSet,
    RequestRated,
    RequestReopened,
    RequestSubmitted,
    RequestWithdrawn,
    Sealed,
)
from shared.register import Register

STATES: dict[str, tuple[str, str]] = {
    "submitted": ("已提交", "received"),
    "opened": ("已受理", "taken in"),
    "offered": ("正在派单", "being assigned"),
    "accepted": ("已接单", "accepted by somebody"),
    "arrived": ("人员已到场", "being handled on the spot"),
    "done": ("已办结", "done"),
    "closed": ("已结案", "closed"),
    "unplaced": ("等待人工安排", "waiting for the office to arrange it"),
    "withdrawn": ("已撤回", "withdrawn"),
    "handed_over": ("已转由其他单位办理", "passed on to another office"),
}
"""What a resident is told, in Chinese and English."""
OVER = frozenset({"done", "closed", "withdrawn"})


def submit(
    asked: Submission,
    register: Register,
    place: Place,
    classified: Classified,
    *,
    request_id: str,
    fingerprint: str,
    tracking_hash: str,
    same_as: str | None,
    sealed: Sealed | None,
    now: datetime,
) -> RequestSubmitted:
    """The request as a fact. Its clocks start now; what the client says about time is evidence only."""
    item = classified.item
    return RequestSubmitted(
        request_id=request_id,
        fingerprint=fingerprint,
        tracking_hash=tracking_hash,
        channel=asked.channel,
        on_behalf=asked.on_behalf,
        item=item.item,
        item_rule=classified.item_rule,
        urgency=classified.urgency,
        urgency_rule=classified.urgency_rule,
        area=place.area.area,
        area_rule=place.rule,
        located_in=place.area.located_in,
        point=place.point,
        reported_at=asked.reported_at,
        due=dues(now, item.limits, register.calendar(place.area.served_by, classified.urgency)),
        same_as=same_as,
        language=asked.language,
        sealed=sealed,
    )


def withdraw(case: Case, reason: str) -> RequestWithdrawn:
    """The resident no longer wants it. Raises RefusedError `already_over` where there is nothing left to stop."""
    if case.state in OVER:
        raise _already(case)
    return RequestWithdrawn(request_id=case.id, reason=reason)


def rate(case: Case, rating: Rating) -> RequestRated:
    """The resident's judgement, once per round. Raises RefusedError `already_rated`, `already_over` or `wrong_state`."""
    if case.state == "withdrawn":
        raise _already(case)
    if _rated_this_round(case):
        raise RefusedError("already_rated")
    if case.state not in OVER:
        raise _not_yet(case, "评价", "rated")
    return RequestRated(request_id=case.id, grade=rating.grade, solved=rating.solved)


def reopen(case: Case, reason: str, item: ItemSet | None, calendar: Calendar, now: datetime) -> RequestReopened:
    """The resident says it is not done: new clocks from now. Raises RefusedError `already_over`, `wrong_state`, `unknown_item`."""
    if case.state == "withdrawn":
        raise _already(case)
    if case.state not in OVER:
        raise _not_yet(case, "重办", "reopened")
    if item is None:
        raise RefusedError("unknown_item", item=case.item)
    return RequestReopened(
        request_id=case.id,
        reason=reason,
        round=case.round + 1,
        item=item.item,
        urgency=case.urgency,
        language=case.language,
        due=dues(now, item.limits, calendar),
    )


def _rated_this_round(case: Case) -> bool:
    rated = False
    for step in case.timeline:
        if step.name == "request.rated":
            rated = True
        elif step.name == "request.reopened":
            rated = False
    return rated


def _already(case: Case) -> RefusedError:
    zh, en = STATES.get(case.state, (case.state, case.state))
    return RefusedError("already_over", state=zh.removeprefix("已"), state_en=en)


def _not_yet(case: Case, verb: str, verb_en: str) -> RefusedError:
    zh, en = STATES.get(case.state, (case.state, case.state))
    return RefusedError("wrong_state", state=zh, state_en=en, verb=verb, verb_en=verb_en)
