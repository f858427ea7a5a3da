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
import sys
import time
from collections.abc import Mapping
from typing import Any

import uvloop
from prometheus_client import Counter, Histogram

from deploy import claims
from deploy.claims import Key
from deploy.identities import GATE
from deploy.offices import STAFF, OfficeKeys
from shared import serving, telemetry, web
from shared.auth import EVERYWHERE, Caller, Doorkeeper
from shared.bus import Bus, Request
from shared.errors import PaidanError, RefusedError
from shared.settings import ServiceSettings
from shared.telemetry import logger

ASKS = "$SYS.REQ.USER.AUTH"
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

    def __init__(self, doorkeeper: Doorkeeper, keys: OfficeKeys) -> None:
        self._doorkeeper = doorkeeper
        self._keys = keys

    async def answer(self, request: Request) -> None:
        """One question: always answered, with a user or with a refusal."""
        begun = time.perf_counter()
        asked = claims.read(request.data.decode())["nats"]
        subject, server = asked["user_nkey"], asked["server_id"]["id"]
        try:
            said: Mapping[str, Any] = {"jwt": await self._user(subject, asked["connect_opts"].get("auth_token"))}
            LOGINS.labels("in").inc()
        except RefusedError as why:
            said = {"error": why.code}
            LOGINS.labels("refused").inc()
            logger().info("login_refused", code=why.code)
        except Exception:  # what is wrong with one token is not to close the gate for others
            said = {"error": "internal"}
            LOGINS.labels("failed").inc()
            logger().exception("login_failed")
        response = {"type": "authorization_response", **said}
        token = self._keys.gate().sign(subject, "gate", response, iat=int(time.time()), aud=server)
        await request.answer(token.encode())
        LOGIN_S.observe(time.perf_counter() - begun)

    async def _user(self, subject: str, token: str | None) -> str:
        caller = await self._doorkeeper.admit(token)
        signer: Key = self._keys.people(role_of(caller))
        account = self._keys.account(caller.district).public
        return claims.user(signer, account, subject, caller.id, iat=int(time.time()), exp=int(caller.expires))


async def run(settings: ServiceSettings) -> None:
    """
    Answer until told to stop.

    Raises:
        UnavailableError: the bus cannot be reached.
        OSError: the HTTP port is taken, a secret is missing, or the connection is lost for good.
    """
    until = serving.stop_on_signals()
    doorkeeper = Doorkeeper.of(settings)
    gate = Gate(doorkeeper, OfficeKeys(settings.secret("offices_secret").get_secret_value()))
    bus = await Bus.connect(settings.nats_url, name=GATE, seed=settings.seed(), ca_file=settings.nats_ca_file)

    async def ready() -> Mapping[str, str]:
        missing = {} if bus.connected else {"nats": "not connected"}
        return {**missing, **({"permissions": bus.refused} if bus.refused else {})}

    async def stop_when_closed() -> None:
        await bus.closed.wait()
        until.set()

    app = web.create_app("派单门房 / Paidan gate", ready=ready, doorkeeper=doorkeeper)
    watching = asyncio.create_task(stop_when_closed())
    try:
        await bus.serve(ASKS, gate.answer, alone=True)
        await serving.serve(app, settings, until=until)
    finally:
        lost = bus.closed.is_set()
        watching.cancel()
        await bus.drain()
    if lost:
        raise OSError("the connection to the bus is closed for good")


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
