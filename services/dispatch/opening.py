"""受理: a task begins, for a request that was submitted or reopened here, or because another office has handed it over."""

from __future__ import annotations

from services.dispatch.between import seen_by
from services.dispatch.drafting import Draft
from services.dispatch.ending import close
from services.dispatch.handing_over import offer_to
from services.dispatch.model import Task
from services.dispatch.offering import offer
from shared.envelope import Envelope
from shared.facts import Fact, RequestReopened, RequestSubmitted, TaskHandedOver, TaskOpened
from shared.ids import derived_id


def submitted(draft: Draft, envelope: Envelope, fact: RequestSubmitted) -> None:
    """A request for this office: whoever receives it first opens it (首接负责), and offers it on where another serves its area now."""
    task = _begin(draft, envelope, fact, derived_id(fact.request_id, "task", 1))
    if task is None:
        return
    server = _server(draft, task)
    if task.attempt == 0 and server not in (None, draft.desk.district):
        offer_to(draft, task, str(server), "wrong_place", basis="register:served-by")
    offer(draft, draft.desk.tasks[task.id])


def reopened(draft: Draft, envelope: Envelope, fact: RequestReopened) -> None:
    """重办: a new round, at the office whose the request was last."""
    if task := _begin(draft, envelope, fact, derived_id(fact.request_id, "task", fact.round)):
        offer(draft, task)


def taken_over(draft: Draft, envelope: Envelope, fact: TaskHandedOver) -> None:
    """The task has become this office's; of a request that was withdrawn before the giver knew it ends as it begins."""
    task = _begin(draft, envelope, fact, fact.new_task_id)
    if task is None:
        return
    if draft.desk.ended(fact.by) == "withdrawn":
        close(draft, task, "withdrawn")
    else:
        offer(draft, task)


def _begin(
    draft: Draft, envelope: Envelope, fact: RequestSubmitted | RequestReopened | TaskHandedOver, id: str
) -> Task | None:
    """
    The task, opened now, or by a batch of which only the beginning survived a power loss; None where nothing is to be done.

    A round that is open, or was over a short while ago, is not opened again. A later one ends the one before it: a request
    has one open task.
    """
    round = getattr(fact, "round", 1)
    known = draft.desk.task_of(fact.request_id)
    if known and known.id == id and known.status == "opened":
        return known
    if draft.desk.ended(id) or (known and known.round >= round):
        return None
    if known:
        close(draft, known, "reopened")
    line = draft.desk.register.items.get(fact.item)
    opened = TaskOpened(
        task_id=id,
        request_id=fact.request_id,
        round=round,
        area=envelope.area,
        item=fact.item,
        urgency=fact.urgency,
        effort=line.effort if line else 1,
        kinds=line.kinds if line else (),
        skills=line.skills if line else (),
        due=fact.due,
        same_as=getattr(fact, "same_as", None),
        located_in=getattr(fact, "located_in", None),
        point=getattr(fact, "point", None),
        language=fact.language,
        by=fact.by if isinstance(fact, TaskHandedOver) else None,
    )
    draft.add(opened, area=envelope.area, case=fact.request_id, districts=_seen_by(draft, envelope, fact))
    return draft.desk.tasks[id]


def _seen_by(draft: Draft, envelope: Envelope, fact: Fact) -> str:
    """Who sees it begin: the parties of today, and of a task that had begun elsewhere whom more than an agreement names."""
    desk = draft.desk
    today = seen_by(desk, envelope.area, draft.now).split(",")
    if isinstance(fact, RequestSubmitted):
        return ",".join(today)
    agreed = desk.register.parties(envelope.area, desk.register.today(desk.district, envelope.time))
    named = (office for office in envelope.districts.split(",") if office not in agreed)
    giver = (envelope.district,)
    return ",".join(dict.fromkeys((*today, *giver, *named)))


def _server(draft: Draft, task: Task) -> str | None:
    """The office that a request of this kind here goes to now; None where that is nobody with a desk."""
    register, district = draft.desk.register, draft.desk.district
    today = register.today(district, draft.now)
    area = register.area(task.area, today)
    server = register.served_by(area, task.item, today) if area else None
    return server if server in register.districts else None
