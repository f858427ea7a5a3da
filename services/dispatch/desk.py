"""
The desk: one turn loop per district, and the commands that reach it over the bus.

Every instance gets every command; only the leader acts, and answers only after the commit. The standby stays silent: the asker
repeats the same command id until somebody leads.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import orjson

from services.dispatch import commands, model
from services.dispatch.decide import decide
from services.dispatch.model import Desk
from services.dispatch.pacing import NOBODY, LetGoError, Pace
from services.dispatch.showing import Event
from shared.auth import EVERYWHERE, Doorkeeper
from shared.bus import Bus, Request
from shared.envelope import decode
from shared.errors import FencedError, MalformedError, RefusedError, UnavailableError
from shared.facts import DistrictSet, InputRefused, TurnCommitted
from shared.problems import problem
from shared.register import SUBJECTS as REGISTER
from shared.register import Register, Sharing
from shared.telemetry import logger
from shared.turns import Command, Rules, Turns

APART_S = 0.01
HELD_MOST_S = 1.0
"""Commands of one district begin so far apart, its callers in turn; those that would wait longer are not answered: one office's flood
is not the others', nor one caller's their colleagues'."""


def inputs(district: str) -> tuple[str, ...]:
    """What a desk decides on; it never changes with configuration."""
    return (
        f"evt.{district}.intake.>",
        "evt.*.intake.*.request.withdrawn",
        "evt.*.intake.*.request.rated",
        "evt.*.intake.*.request.reopened",
        "evt.*.dispatch.*.handover.*",
        "evt.*.dispatch.*.task.handed_over",
        "evt.*.dispatch.*.conferral.*",
        "evt.*.dispatch.*.help.*",
        REGISTER,
    )


RULES: Rules[Desk] = Rules(
    service="dispatch",
    scope="desk",
    version=5,
    marker=TurnCommitted,
    refused=InputRefused,
    inputs=inputs,
    remembered=lambda _: (REGISTER,),
    initial=model.initial,
    take_in=model.take_in,
    evolve=model.evolve,
    decide=decide,
    deadline=model.deadline,
    deadlines=model.deadlines,
    dump=model.dump,
    load=model.load,
)


class Desks:
    """
    The desks of this instance: those named, or one for each district that the register names.

    Args:
        districts: codes, or `*`; `named` is None for that.
        snapshot: called with a district when its leader thinks it is time for a new snapshot.
    """

    def __init__(
        self, bus: Bus, doorkeeper: Doorkeeper, *, districts: str, instance: str, until: asyncio.Event, **turns: Any
    ) -> None:
        self._bus = bus
        self.named = None if districts.strip() == "*" else frozenset(districts.replace(" ", "").split(","))
        self._instance = instance
        self._until = until
        self._turns = turns
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._pace = Pace(doorkeeper, APART_S, HELD_MOST_S, self.limited)
        self.desks: dict[str, Turns[Desk]] = {}
        self.sharing = Sharing()

    def __getitem__(self, district: str) -> Turns[Desk]:
        """The desk of a district. Raises RefusedError `unknown_district`."""
        if district not in self.desks:
            raise RefusedError("unknown_district", district=district)
        return self.desks[district]

    @property
    def register(self) -> Register:
        """As the bus has it, whoever leads: what a desk that stands by has not folded yet is in it."""
        return self.sharing.register

    def shares(self, district: str, event: Event) -> bool:
        """Whether an office is still shown another's fact: it shares the area, or has to do with the case."""
        if not self.sharing.lost(district, event.area, datetime.now(UTC)):
            return True
        desk = self.desks[district].state if district in self.desks else model.initial(district)
        return event.case in desk.by_request or any(m.fact.request_id == event.case for m in desk.matters.values())

    def need_register(self) -> None:
        """Raises RefusedError `unavailable` until the register has been read: what is closed would look open."""
        if not self.sharing.loaded:
            raise RefusedError("unavailable", retry_after=2)

    def asked(self, member: str, district: str) -> set[str]:
        """The open tasks that a member was ever asked about, in a district or (`*`) anywhere."""
        desks = (turns for code, turns in self.desks.items() if district in (code, EVERYWHERE))
        return {task.id for turns in desks for task in turns.state.tasks.values() if member in task.tried}

    def limited(self, district: str) -> bool:
        """Whether what a district asks over the bus waits for its turn; trusted districts do not."""
        served = self.register.districts.get(district)
        return served is None or served.rate_limited

    @property
    def failed(self) -> dict[str, str]:
        """Desks that stopped for good, with why."""
        return {f"desk {code}": str(turns.failed) for code, turns in self.desks.items() if turns.failed}

    def known(self, district: str) -> Desk:
        """
        What a desk knows, once it has folded something: before that it would look ready, and empty.

        Raises:
            RefusedError: `unknown_district`, `not_recovered`.
        """
        state = self[district].state
        if state.answers_since is None:
            raise RefusedError("not_recovered", district=district, retry_after=2)
        return state

    @property
    def recovering(self) -> dict[str, str]:
        """Desks that do not know yet what they should."""
        return {
            f"desk {code}": "not recovered"
            for code, turns in self.desks.items()
            if turns.state.answers_since is None and not turns.failed
        }

    async def run(self) -> None:
        """Open desks as the register names them, take commands; ends when told to, after every desk has."""
        taking = await self._bus.serve("cmd.*.desk.*", self._take, apart=True)
        for district in sorted(self.named or ()):
            self._open(district)
        reader = self._bus.reader((REGISTER,), after=0)
        end: int | None = None
        at = 0
        try:
            while not self._until.is_set():
                end = await self._bus.end(REGISTER) if end is None else end
                for delivery in await reader.wait(0.5 if self.sharing.loaded else 0.05):
                    at = delivery.sequence
                    try:
                        fact = decode(delivery.subject, delivery.data).fact
                    except MalformedError as why:
                        logger().error("register_malformed", sequence=delivery.sequence, why=str(why))
                        continue
                    self.sharing.take(fact)
                    if isinstance(fact, DistrictSet) and (self.named is None or fact.district in self.named):
                        self._open(fact.district)
                if end is not None and at >= end:
                    self.sharing.loaded = True
        finally:
            await reader.close()
            await taking.end()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _open(self, district: str) -> None:
        if district not in self.desks:
            self.desks[district] = Turns(RULES, self._bus, district, self._instance, **self._turns)
            self._tasks[district] = asyncio.create_task(self.desks[district].run(self._until))

    async def _take(self, request: Request) -> None:
        """A command; the next one does not wait for its commit."""
        _, district, _, verb = request.subject.split(".")
        turns = self.desks.get(district)
        if turns is None or not turns.leading:
            return
        try:
            command = await self._command(district, verb, request)
            if isinstance(command.what, commands.Erase) and not turns.state.answered(
                id=command.id, actor=command.caller.actor
            ):
                await self._bus.erase("KV_CONTACTS", f"$KV.CONTACTS.{district}.{command.what.member}")  # then the fact
            answer = await turns.ask(command)
        except RefusedError as why:
            answer = {"problem": problem(why)}
        except (FencedError, UnavailableError, LetGoError):
            return  # whoever leads by then answers the repeat
        logger().info(
            "command_answered",
            district=district,
            verb=verb,
            fact=answer.get("id"),
            problem=answer.get("problem", {}).get("code"),
        )
        await request.answer(orjson.dumps(answer))

    async def _command(self, district: str, verb: str, request: Request) -> Command:
        """`{"id", "token", "data"}` as a command that its caller may give, when it is their turn. Raises RefusedError, LetGoError."""
        try:
            content = orjson.loads(request.data)
            id, token, data = str(content["id"]), content.get("token"), content.get("data", {})
        except (ValueError, TypeError, KeyError, AttributeError):
            await self._pace.turn(district, NOBODY)
            raise RefusedError("invalid_json") from None
        caller = await self._pace.admit(
            district, token if isinstance(token, str) else None, replies=verb in commands.REPLIES
        )
        if not 8 <= len(id) <= 100 or not id.isascii():
            raise RefusedError("invalid", field="id", why="8 to 100 ASCII characters")
        what = commands.parse(verb, data)
        what.allow(caller, district)
        return Command(id, what, caller)
