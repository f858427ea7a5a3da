"""The facts of one decision while it is being made."""

from __future__ import annotations

from datetime import datetime

from services.dispatch.between import Matter, Question, seen_by
from services.dispatch.matching import Match
from services.dispatch.model import Desk, Task, evolve
from shared.envelope import Envelope
from shared.facts import NOWHERE, Fact, MatchExplained
from shared.ids import derived_id


class Draft:
    """
    The facts of one decision as they come, and the desk after each of them.

    Args:
        cause: the id of the input, command or fact that they follow from.
        seed: what their ids are derived from, where the cause alone is not unique: people choose their commands' ids.
    """

    def __init__(
        self,
        desk: Desk,
        cause: str,
        now: datetime,
        *,
        actor: str | None = None,
        trace: str | None = None,
        seed: str | None = None,
    ) -> None:
        self.desk = desk
        self.facts: list[Envelope] = []
        self._cause = cause
        self._seed = seed or cause
        self._now = now
        self._actor = actor
        self._trace = trace

    @property
    def seed(self) -> str:
        """What ids that this decision gives are derived from."""
        return self._seed

    @property
    def now(self) -> datetime:
        """The turn's time."""
        return self._now

    def add(self, fact: Fact, *, area: str = NOWHERE, case: str | None = None, districts: str | None = None) -> None:
        """One more fact."""
        entity = getattr(fact, fact.key)
        envelope = Envelope(
            derived_id(self.desk.district, self._seed, fact.name, entity, len(self.facts)),
            self.desk.district,
            area,
            self._now,
            fact,
            districts or self.desk.district,
            case,
            self._cause,
            self._actor,
            self._trace,
        )
        self.facts.append(envelope)
        self.desk = evolve(self.desk, envelope)

    def join(self, other: Draft) -> None:
        """What was drafted on top of this one, for another cause."""
        self.facts += other.facts
        self.desk = other.desk

    def explain(self, found: Match, of: str, wave: int, *, task: str, case: str) -> str:
        """One more fact: who was chosen, and why; its id, which is another one where another decision is about the same wave."""
        explained = MatchExplained(
            match_id=derived_id(self._seed, "match", of, wave),
            task_id=task,
            policy=self.desk.register.policy(self.desk.district).version,
            considered=found.considered,
            fell_out=found.fell_out,
            best=found.best,
            chosen=(found.chosen,) if found.chosen else (),
        )
        self.add(explained, case=case)
        return explained.match_id

    def of(self, task: Task, fact: Fact, *, to: str | None = None) -> None:
        """One more fact about a task, for all who may see it now, and for one more office."""
        districts = seen_by(self.desk, task.area, self._now, task=self.desk.tasks.get(task.id, task))
        if to and to not in districts.split(","):
            districts += f",{to}"
        self.add(fact, area=task.area, case=task.request, districts=districts)

    def received(self, envelope: Envelope, fact: Question) -> None:
        """A question of another office has arrived."""
        matter = Matter(fact, envelope.district, envelope.area, self._now)
        districts = seen_by(self.desk, envelope.area, self._now, matter=matter)
        self.add(fact, area=envelope.area, case=envelope.case, districts=districts)

    def on(self, matter: Matter, fact: Fact) -> None:
        """One more fact about a matter between offices, for all who may see it now."""
        task = self.desk.tasks.get(matter.fact.task_id) if matter.ours else None
        districts = seen_by(self.desk, matter.area, self._now, task=task, matter=matter)
        self.add(fact, area=matter.area, case=matter.fact.request_id, districts=districts)
