"""
The gate: lets people in on the bus, with the same bearer tokens as on HTTP.

Whoever connects with a token and no key of their own is held by the server, which asks here (NATS auth callout). The answer is
a user of their office's account that ends with the token; what that user may do is written in the account (`deploy/offices.py`),
so that the gate can say who somebody is and never what they may. An office that is not let in has no account, and one whose
people are not has no key of the gate among its own: the server refuses either by itself.

Services and apps come with credentials of their own and need no gate.

    python -m deploy.gate        # the same environment as a service; the stack starts it
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import uvloop
from prometheus_client import Counter, Histogram

from deploy import claims
from deploy.claims import Claims, Key
from deploy.identities import GATE
from deploy.offices import STAFF, GateKeys
from shared import serving, telemetry, web
from shared.auth import EVERYWHERE, Caller, Doorkeeper, UnknownKeyError
from shared.bus import Bus, Request
from shared.errors import PaidanError, RefusedError
from shared.keys import Source
from shared.settings import ServiceSettings
from shared.telemetry import logger

ASKS = "$SYS.REQ.USER.AUTH"
WAITING_MAX = 100
"""Logins that wait for an issuer's keys at a time."""
LOGINS = Counter("paidan_gate_logins_total", "People who asked to be let in on the bus", ["result"])
LOGIN_S = Histogram(
    "paidan_gate_login_seconds", "What the gate took to answer", buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2)
)


def role_of(caller: Caller) -> str:
    """
    As what somebody is let in: `staff` of an office, or a `member`.

    Raises:
        RefusedError: `forbidden`: for neither, or for no office in particular: the bus knows offices only.
    """
    if caller.district == EVERYWHERE:
        raise RefusedError("forbidden", need="district")
    if caller.roles & {*STAFF}:
        return "staff"
    if "member" in caller.roles:
        return "member"
    raise RefusedError("forbidden", need=" / ".join((*STAFF, "member")))


class Gate:
    """Answers the server's questions about people."""

    def __init__(self, doorkeeper: Doorkeeper, keys: GateKeys, offices: Callable[[str], str | None]) -> None:
        """With `offices`: by district, how the server names its account."""
        self._doorkeeper = doorkeeper
        self._keys = keys
        self._offices = offices
        self._waiting = asyncio.Semaphore(WAITING_MAX)

    async def take(self, request: Request) -> None:
        """
        One question: always answered, with a user or with a refusal.

        At once, where the keys that are known decide; a token by a key that its issuer may have made since waits for that issuer.
        """
        begun = time.perf_counter()
        asked = claims.read(request.data.decode())["nats"]
        try:
            said = self._said(asked)
        except UnknownKeyError as why:
            said = _refused(why) if self._waiting.locked() else await self._again(why.source, asked)
        await self._answer(request, asked, said, begun)

    async def _again(self, source: Source, asked: Claims) -> Mapping[str, Any]:
        async with self._waiting:
            await source.refresh()
        try:
            return self._said(asked)
        except UnknownKeyError as why:
            return _refused(why)

    def _said(self, asked: Claims) -> Mapping[str, Any]:
        """A user or a refusal, by the keys that are known now. Raises UnknownKeyError."""
        try:
            token = self._user(asked["user_nkey"], asked["connect_opts"].get("auth_token"))
        except UnknownKeyError:
            raise
        except RefusedError as why:
            return _refused(why)
        except Exception:  # what is wrong with one token is not to close the gate for others
            LOGINS.labels("failed").inc()
            logger().exception("login_failed")
            return {"error": "internal"}
        LOGINS.labels("in").inc()
        return {"jwt": token}

    def _user(self, subject: str, token: str | None) -> str:
        caller = self._doorkeeper.check(token)
        signer: Key = self._keys.people(role_of(caller))
        account = self._offices(caller.district)
        if account is None:
            raise RefusedError("forbidden", need="office")
        return claims.user(signer, account, subject, caller.id, iat=int(time.time()), exp=int(caller.expires))

    async def _answer(self, request: Request, asked: Claims, said: Mapping[str, Any], begun: float) -> None:
        response = {"type": "authorization_response", **said}
        server = asked["server_id"]["id"]
        token = self._keys.gate().sign(asked["user_nkey"], "gate", response, iat=int(time.time()), aud=server)
        await request.answer(token.encode())
        LOGIN_S.observe(time.perf_counter() - begun)


class Offices:
    """Which account is whose, in the file that the stack keeps; read again for a district that is not in it yet."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: Mapping[str, str] = {}

    def account(self, district: str) -> str | None:
        """How the server names a district's account, which never changes; None for no office. Raises OSError, ValueError."""
        if district not in self._known and self._file.exists():
            self._known = json.loads(self._file.read_bytes())
        return self._known.get(district)


def _refused(why: RefusedError) -> Mapping[str, Any]:
    LOGINS.labels("refused").inc()
    logger().info("login_refused", code=why.code)
    return {"error": why.code}


async def run(settings: ServiceSettings) -> None:
    """
    Answer until told to stop.

    Raises:
        UnavailableError: the bus cannot be reached.
        OSError: the HTTP port is taken, a secret is missing, or the connection is lost for good.
    """
    until = serving.stop_on_signals()
    doorkeeper = Doorkeeper.of(settings)
    keys = GateKeys(settings.secret("people_secret").get_secret_value())
    gate = Gate(doorkeeper, keys, Offices(settings.secret_file("offices.json")).account)
    bus = await Bus.connect(settings.nats_url, name=GATE, seed=settings.seed(), ca_file=settings.nats_ca_file)

    async def ready() -> Mapping[str, str]:
        missing = {} if bus.connected else {"nats": "not connected"}
        return {**missing, **({"permissions": bus.refused} if bus.refused else {})}

    app = web.create_app("派单门房 / Paidan gate", ready=ready, doorkeeper=doorkeeper)
    async with serving.connected(bus, until):
        await bus.serve(ASKS, gate.take, alone=True, apart=True)
        await serving.serve(app, settings, until=until)


def main() -> int:
    """Exit 0 when told to stop, 1 with one line where it cannot start."""
    settings = ServiceSettings()
    telemetry.configure(GATE, settings.instance, format=settings.log_format, level=settings.log_level)
    try:
        uvloop.run(run(settings))
    except (PaidanError, OSError) as why:
        print(f"gate: {why}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
