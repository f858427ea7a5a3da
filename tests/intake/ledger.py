"""A stand-in for the ledger that folds the real stream with the real fold, and can be told to lag."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from services.ledger.cases import DETAILS, Case, evolve, shown
from shared.bus import Request
from shared.envelope import decode

if TYPE_CHECKING:
    from tests.intake.conftest import World


class Ledger:
    """Answers `qry.*.ledger.case` as the real one does, as of its last fact."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.lag = 0
        """So many of the last messages it has not seen yet, unless a position asks for them."""
        self.stuck: int | None = None
        """It comes no further than this sequence, whatever it is asked for."""
        self.mute = False
        """It answers nobody."""
        self.silent_on: str | None = None
        """The one request about which it says nothing."""
        self.tells = 1000
        """So much of a timeline."""
        self.asked: list[int] = []
        """The positions it was to have come to."""

    async def answer(self, request: Request) -> None:
        """One case, by id or by the hash of its tracking code."""
        if self.mute:
            return
        asked = orjson.loads(request.data)
        if self.silent_on is not None and asked.get("id") == self.silent_on:
            return
        wanted = asked["position"] or 0
        self.asked.append(wanted)
        messages = await self.world.messages("EVENTS")
        as_of = max(len(messages) - self.lag, wanted)
        if self.stuck is not None:
            as_of = min(as_of, self.stuck)
        cases: dict[str, Case] = {}
        timelines: dict[str, list[dict[str, Any]]] = {}
        for sequence, (subject, data) in enumerate(messages[:as_of], 1):
            envelope = decode(subject, data)
            if envelope.case is None:
                continue
            if (case := evolve(cases.get(envelope.case), sequence, envelope)) is not None:
                cases[envelope.case] = case
            event = orjson.loads(data)
            step = {"type": event["type"], "time": event["time"], "sequence": sequence, "id": event["id"]}
            step |= {"district": envelope.district, "area": envelope.area, "actor": envelope.actor}
            step |= {name: event["data"][name] for name in DETAILS if name in event["data"]}
            timelines.setdefault(envelope.case, []).append(step)
        answer: dict[str, Any] = {"problem": {"code": "not_found", "status": 404}}
        if as_of < wanted:
            answer = {"problem": {"code": "unavailable", "status": 503}}
        for case in cases.values():
            if case["_id"] == asked.get("id") or case.get("tracking_hash") == asked.get("tracking_hash"):
                steps = timelines[case["_id"]]
                wanted_one = asked.get("fact")
                steps = [step for step in steps if step["id"] == wanted_one] if wanted_one else steps[: self.tells]
                told = {**shown(case), "timeline": steps}
                answer = {"case": told, "as_of": as_of, "stale": as_of < wanted}
        await request.answer(orjson.dumps(answer))
