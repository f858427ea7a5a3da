"""One caller floods an office's desk over the bus: the others of that office are served all the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from time import monotonic

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt import encode, get_unverified_header

from deploy.identities import Identities, issue_token
from services.dispatch.catching_up import CatchingUp
from services.dispatch.pacing import LetGoError, Pace
from shared.auth import Doorkeeper
from shared.bus import Bus
from shared.errors import RefusedError
from tests.conftest import Connect
from tests.dispatch.conftest import Service
from tests.examples import LI, TASK, WANG, WUCHANG

PER_S = 250


@asynccontextmanager
async def flood(bus: Bus, subject: str, token: str) -> AsyncIterator[None]:
    """So many a second, answered or not, until left; a moment of it has passed when inside."""

    async def run() -> None:
        began = monotonic()
        for n in count():
            body = {"id": f"flood-{n:08}", "token": token, "data": {"task": TASK, "member": WANG}}
            await bus._nc.publish(subject, orjson.dumps(body), reply="_INBOX.nobody")
            await asyncio.sleep(max(0.0, began + n / PER_S - monotonic()))

    flooding = asyncio.create_task(run())
    try:
        await asyncio.sleep(1.5)
        yield
    finally:
        flooding.cancel()


def forged(service: Service) -> str:
    """A token that costs the most to refuse: all of it is right but the signature."""
    claims = {"iss": "paidan", "aud": "paidan", "sub": WANG, "iat": 1, "exp": 2**40}
    key = get_unverified_header(service.token())["kid"]
    return encode(claims, Ed25519PrivateKey.generate(), algorithm="EdDSA", headers={"kid": key})


@pytest.mark.parametrize("flood", ["one name", "no name", "unknown key", "too long", "no token"])
async def test_colleagues_come_in_whose_tokens_were_not_seen_before(identities: Identities, flood: str) -> None:
    paced = Pace(Doorkeeper.from_file(identities.jwks_file), 0.001, 1.0, lambda _: True)
    kid = get_unverified_header(issue_token(identities, LI, WUCHANG, ["member"]))["kid"]
    key = Ed25519PrivateKey.generate()

    def flooded(n: int) -> str:
        claims = {"iss": "paidan", "aud": "paidan", "sub": WANG, "iat": 1, "exp": 2**40, "jti": str(n)}
        match flood:
            case "no name":
                del claims["sub"]
            case "too long":
                claims["jti"] = f"{n:010000}"
            case "no token":
                return f"token-{n}"
        headers = {"kid": "unknown" if flood == "unknown key" else kid}
        return encode(claims, key, algorithm="EdDSA", headers=headers)

    refused = [asyncio.create_task(paced.admit(WUCHANG, flooded(n))) for n in range(1000)]
    colleagues = [f"m-{n}" for n in range(50)]
    tokens = [issue_token(identities, sub, WUCHANG, ["member"]) for sub in colleagues]
    admitted = await asyncio.gather(*(paced.admit(WUCHANG, token) for token in tokens))
    assert [caller.id for caller in admitted] == colleagues
    whys = await asyncio.gather(*refused, return_exceptions=True)
    assert all(isinstance(why, RefusedError | LetGoError) for why in whys)


@pytest.mark.parametrize("whose", ["none", "forged", "valid"])
async def test_a_flood_of_commands_holds_up_whoever_sends_it(service: Service, connect: Connect, whose: str) -> None:
    await service.start()
    bus = await connect("admin")
    token = {"none": "none", "forged": forged(service), "valid": service.token(WANG, "member")}[whose]
    tokens = (service.token(), service.token(LI, "member"))
    async with flood(bus, f"cmd.{WUCHANG}.desk.accept", token):
        for n in range(8):  # each the first time it is asked
            body = {"id": f"honest-{n:08}", "token": tokens[n % 2], "data": {"task": TASK, "member": LI}}
            answer = orjson.loads(await bus.request(f"cmd.{WUCHANG}.desk.accept", orjson.dumps(body), timeout_s=1))
            assert answer["problem"]["code"] == "unknown_task"
            posted = await service.post(f"/v1/tasks/{TASK}/accept", {"member": LI}, token=tokens[n % 2], key=str(n))
            assert posted.status_code == 404


async def test_a_flood_of_a_member_s_questions_leaves_the_office_s_and_the_colleagues_alone(
    service: Service, connect: Connect
) -> None:
    catching_up = CatchingUp(
        service.bus, service.desks, service.tail, Doorkeeper.from_file(service.identities.jwks_file)
    )
    answering = asyncio.create_task(catching_up.run(service.until))
    await service.start()
    bus = await connect("admin")
    mine, body = f"qry.{WUCHANG}.desk.mine", {"token": service.token(LI, "member")}
    async with flood(bus, mine, "none"):
        for _ in range(5):
            assert "last" in orjson.loads(await bus.request(mine, orjson.dumps(body), timeout_s=1))
            assert "last" in orjson.loads(await bus.request(f"qry.{WUCHANG}.desk.events", b"{}", timeout_s=1))
    service.until.set()
    await answering
