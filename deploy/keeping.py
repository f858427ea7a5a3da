"""
Keeps the bus to the register: whoever the register lets in has an account, with what it may and nothing more, within seconds.

Everything is asked of and told to the server itself, as `sys`: it takes accounts while it runs, keeps them, and closes the
connections of those who are out. Nobody else notices.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from structlog.typing import FilteringBoundLogger

from deploy import claims
from deploy.claims import Claims
from deploy.identities import Identities, accounts
from deploy.offices import NAME, account, diff, offices, same
from shared import register
from shared.bus import Bus
from shared.envelope import decode
from shared.errors import BusError, MalformedError, UnavailableError
from shared.facts import RegisterApplied
from shared.register import SUBJECTS, Register

EVERY_S = 20.0
"""How often to look although nothing was applied: agreements begin and end by themselves."""
AGAIN_S = 1.0
ANSWER_WITHIN_S = 5.0
CONNECTIONS_MAX = 100_000


async def bring(sys: Bus, identities: Identities, kept: Register, now: datetime, *, dry_run: bool = False) -> list[str]:
    """
    Bring the server's accounts to the register; doing it twice changes nothing, and nobody who stays is disconnected.

    Args:
        sys: a connection as `sys`.
    Returns: the changes as lines (`deploy.offices.diff`).
    Raises:
        UnavailableError, BusError: the server does not answer, or says no.
    """
    let_in = offices(kept, now)
    tokens = {
        f"D{district}": account(
            office,
            operator=identities.operator,
            hub=identities.hub,
            keys=identities.office_keys,
            gate=identities.gate_keys,
            now=now,
        )
        for district, office in let_in.items()
    }
    tokens |= {claims.read(token)["name"]: token for token in accounts(identities, now).values()}
    want = {name: claims.read(token) for name, token in tokens.items()}
    have = await _accounts(sys, identities.operator.public)
    changes = diff(have, want)
    if dry_run:
        return changes
    identities.publish_offices(let_in)
    for name, token in tokens.items():
        if name not in have or not same(have[name], want[name]):
            await _claims(sys, "UPDATE", token.encode())
    if gone := [have[name]["sub"] for name in have.keys() - want.keys()]:
        operator = identities.operator
        asked = operator.sign(operator.public, "gone", {"type": "generic", "accounts": gone}, iat=int(now.timestamp()))
        await _claims(sys, "DELETE", asked.encode())
    return changes


async def _accounts(sys: Bus, operator: str) -> dict[str, Claims]:
    """Those accounts of the server that we have made, by name; others are not ours to touch."""
    found: dict[str, Claims] = {}
    for public in await _claims(sys, "LIST", b""):
        token = await sys.request(f"$SYS.REQ.ACCOUNT.{public}.CLAIMS.LOOKUP", b"", timeout_s=ANSWER_WITHIN_S)
        if not token:
            continue  # it went while we looked
        kept = claims.read(token.decode())
        if kept["iss"] == operator and (kept["name"] in ("SYS", "HUB", "GATE") or NAME.fullmatch(kept["name"])):
            found[kept["name"]] = kept
    return found


async def _claims(sys: Bus, verb: str, data: bytes) -> Any:
    answer = json.loads(await sys.request(f"$SYS.REQ.CLAIMS.{verb}", data, timeout_s=ANSWER_WITHIN_S))
    if "error" in answer:
        raise BusError(f"{verb}: {answer['error'].get('description')}", int(answer["error"].get("code", 0)))
    return answer["data"]


async def kick(sys: Bus, account: str, person: str) -> int:
    """
    Close every connection of a person of an office, by the name in their token, on every server that answers; how many there were.

    Args:
        account: the office's, by its public id.
    """
    asked = json.dumps({"auth": True, "acc": account, "limit": CONNECTIONS_MAX}).encode()
    closed = 0
    for answer in map(json.loads, await sys.answers("$SYS.REQ.SERVER.PING.CONNZ", asked, timeout_s=ANSWER_WITHIN_S)):
        theirs = [c["cid"] for c in answer["data"]["connections"] or () if c.get("authorized_user") == person]
        for cid in theirs:
            await sys.request(f"$SYS.REQ.SERVER.{answer['server']['id']}.KICK", json.dumps({"cid": cid}).encode())
        closed += len(theirs)
    return closed


class Follower:
    """The register as it stands on the bus. Half an applied document is not taken for the register."""

    def __init__(self, bus: Bus) -> None:
        self._reader = bus.reader([SUBJECTS], after=0)
        self._coming = Register()
        self._sequence = 0
        self._bus = bus
        self.register = Register()

    async def moved(self, timeout_s: float) -> bool:
        """Take in what has come, waiting for the first of it; whether the register is another one now."""
        before = self.register
        for delivery in await self._reader.wait(timeout_s):
            self._sequence = delivery.sequence
            try:
                fact = decode(delivery.subject, delivery.data).fact
            except MalformedError:
                continue  # the ledger has said so in its log
            self._coming = register.evolve(self._coming, fact)
            if isinstance(fact, RegisterApplied) and not fact.more:
                self.register = self._coming
        return self.register is not before

    async def current(self) -> Register:
        """The register now. Raises UnavailableError."""
        last = await self._bus.last(SUBJECTS)
        while last and self._sequence < last.sequence:
            await self.moved(1)
        return self.register

    async def close(self) -> None:
        """Follow no more."""
        await self._reader.close()


async def current(bus: Bus) -> Register:
    """The register as it stands on the bus. Raises UnavailableError."""
    follower = Follower(bus)
    try:
        return await follower.current()
    finally:
        await follower.close()


async def both(connect: Callable[[str], Awaitable[Bus]]) -> tuple[Bus, Bus]:
    """Connections as `admin` and `sys`, or none: raises what `connect` raises."""
    admin = await connect("admin")
    try:
        return admin, await connect("sys")
    except BaseException:
        await admin.drain()
        raise


async def keep(
    connect: Callable[[str], Awaitable[Bus]],
    identities: Identities,
    log: FilteringBoundLogger,
    *,
    every_s: float = EVERY_S,
) -> None:
    """
    Keep the bus to the register until cancelled: at once when it has changed, and every 20 s.

    Args:
        connect: a connection by name (`admin`, `sys`).
    """
    while True:
        try:
            bus, sys = await both(connect)
            break
        except (UnavailableError, OSError) as why:
            log.warning("bus_not_kept_to_register", why=str(why))
            await asyncio.sleep(5)
    follower = Follower(bus)
    try:
        while True:
            try:
                kept = await follower.current()
                for line in await bring(sys, identities, kept, datetime.now(UTC)):
                    log.info("bus_kept_to_register", change=line)
                await follower.moved(every_s)
            except BusError as why:
                log.warning("bus_not_kept_to_register", why=str(why))
                await asyncio.sleep(AGAIN_S)
            except Exception as why:  # whatever it was, an agreement that ends has to be seen to
                log.error("bus_not_kept_to_register", why=f"{type(why).__name__}: {why}")
                await asyncio.sleep(AGAIN_S)
    finally:
        await follower.close()
        await bus.drain()
        await sys.drain()
