"""The stack keeps the bus to the register and the gate alive, and offices do not notice either."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.errors import Error as NatsError

from deploy import claims, keeping, stack
from deploy.claims import Key
from deploy.gate import ASKS, WAITING_MAX, Gate, Offices
from deploy.identities import Identities, bus_config, issue_token, write_secret
from deploy.servers import NatsServer
from deploy.stack import Stack
from shared import streams
from shared.auth import Doorkeeper, OidcIssuer
from shared.bus import Bus, Message, Request
from shared.facts import App, Fact, OfficeSet, RegisterApplied
from shared.settings import ServiceSettings
from tests.examples import DISTRICT, HONGSHAN, NEIGHBOUR, QINGSHAN, WUCHANG, envelope
from tests.shared.oidc import oidc_server

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bare(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """A bus and a gate, for all of these: no service and no mongod."""
    async with Stack(tmp_path_factory.mktemp("bare") / "data", None, None, services=("gate",)) as running:
        yield running


async def apply(stack: Stack, *facts: Fact, more: bool = False) -> None:
    """Publish a register document as the ledger would."""
    marker = RegisterApplied(by="admin:x", why="a test", digest="ab", facts=len(facts), more=more)
    bus = await stack.connect("ledger")
    said = [envelope(fact) for fact in (*facts, marker)]
    await bus.commit([Message(s.subject, s.encode()) for s in said])
    await bus.drain()


def let_in(stack: Stack, district: str, app: str) -> OfficeSet:
    """An office with an app, whose credentials lie where `connect_office` looks."""
    key = Key.new("user")
    fact = OfficeSet(district=district, apps=(App(app=app, key=key.public),))
    file = stack.identities.office_file(district, app)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_secret(file, stack.identities.office_credentials(district, fact.apps[0], key.seed))
    return fact


async def comes_in(stack: Stack, district: str = WUCHANG) -> bool:
    """Whether somebody with a token gets in, and out again."""
    connection = Client()
    try:
        await connection.connect(
            stack.bus_url,
            token=stack.token("clerk", district=district, sub="s-1"),
            allow_reconnect=False,
            connect_timeout=1,
        )
    except (NatsError, OSError, TimeoutError):
        return False
    await connection.close()
    return True


async def within(limit_s: float, done: Callable[[], object]) -> None:
    """Fails where something does not come true in time; `done` may be async."""
    async with asyncio.timeout(limit_s):
        while True:
            found = done()
            if await found if asyncio.iscoroutine(found) else found:
                return
            await asyncio.sleep(0.05)


async def test_who_is_in_the_register_is_let_in_at_once_and_who_is_not_is_out(bare: Stack) -> None:
    assert bare.nats
    assert f'"{bare.urls["gate"]}"' in bare.nats.config_file.read_text()  # its own pages may use the bus
    assert json.loads(bare.addresses_file.read_text())["websocket_url"] == bare.websocket_url
    await apply(bare, DISTRICT, let_in(bare, WUCHANG, "board"), more=True)
    await asyncio.sleep(0.3)
    assert not await comes_in(bare)  # half a document is no register
    await apply(bare, NEIGHBOUR)
    await within(3, lambda: comes_in(bare))
    app = await bare.connect_office(WUCHANG, "board")
    await apply(bare, let_in(bare, QINGSHAN, "board"))
    await within(3, lambda: comes_in(bare, QINGSHAN))
    assert (app.connected, app.generation) == (True, 0)
    await apply(bare, OfficeSet(district=WUCHANG, people=False))
    await within(3, lambda: not app.connected)
    assert not await comes_in(bare)
    await app.drain()


async def test_a_gate_that_dies_or_hangs_comes_back_and_apps_do_not_notice(
    bare: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    await apply(bare, DISTRICT, let_in(bare, WUCHANG, "board"))
    await within(3, lambda: comes_in(bare))
    app = await bare.connect_office(WUCHANG, "board")
    await bare.kill("gate")
    await within(20, lambda: comes_in(bare))
    before, [gate] = bare.pids["gate"], bare.children
    await within(10, lambda: gate.answered == before)
    with monkeypatch.context() as impatient:
        impatient.setattr(stack, "SILENCE_MAX_S", 1.0)
        bare.stop_process("gate")
        await within(20, lambda: bare.pids["gate"] not in (None, before))
    await within(20, lambda: comes_in(bare))
    assert (app.connected, app.generation) == (True, 0)
    await app.drain()


async def test_what_goes_wrong_once_does_not_end_the_keeping(bare: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: list[str] = []

    def fails(*_: object, **__: object) -> list[str]:
        wrong.append("once")
        monkeypatch.undo()
        raise KeyError("a claim that nobody expected")

    monkeypatch.setattr(keeping, "diff", fails)
    await apply(bare, let_in(bare, HONGSHAN, "board"))
    await within(5, lambda: comes_in(bare, HONGSHAN))
    assert wrong == ["once"]
    assert "a claim that nobody expected" in (bare.data / "logs" / "stack.log").read_text()


# --- by itself ---------------------------------------------------------------------------------------------------------


class Asked:
    """A question of the server about somebody with this token, and what the gate says to it."""

    def __init__(self, token: str) -> None:
        self.said: asyncio.Future[claims.Claims] = asyncio.get_running_loop().create_future()
        about = {
            "user_nkey": Key.new("user").public,
            "server_id": {"id": "N"},
            "connect_opts": {"auth_token": token},
        }
        question = Key.new("account").sign("x", "server", about, iat=1)
        self.request = Request(ASKS, question.encode(), {}, self._answer)

    async def _answer(self, data: bytes) -> None:
        self.said.set_result(claims.read(data.decode())["nats"])


async def test_who_is_known_never_waits_for_an_issuer_that_says_nothing(
    identities: Identities, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with oidc_server() as silent:
        silent.broken = "silence"
        monkeypatch.setattr("shared.keys.FETCH_WITHIN_S", 1.0)
        oidc = OidcIssuer(issuer=silent.url, districts=(WUCHANG,))
        door = Doorkeeper.of(ServiceSettings(jwks_file=identities.jwks_file, oidc=(oidc,)))
        gate = Gate(door, identities.gate_keys, {WUCHANG: identities.office_keys.account(WUCHANG).public}.get)
        begun = time.monotonic()
        made_up = [Asked(silent.token(sub=f"m-{n}")) for n in range(WAITING_MAX + 20)]
        known = Asked(issue_token(identities, "staff-1", WUCHANG, ["clerk"]))
        taken = [asyncio.create_task(gate.take(asked.request)) for asked in (*made_up, known)]
        await taken[-1]
        assert "jwt" in known.said.result()
        assert sum(asked.said.done() for asked in made_up) == 20  # more than may wait
        assert time.monotonic() - begun < 0.9
        assert {(await asked.said)["error"] for asked in made_up} == {"unauthenticated"}
        assert time.monotonic() - begun < 3


async def test_a_new_office_is_known_by_its_public_id_at_once(tmp_path: Path) -> None:
    identities = Identities.open(tmp_path / "secrets")
    known = Offices(identities.secrets_dir("gate") / "offices.json")
    assert known.account(WUCHANG) is None
    identities.publish_offices([WUCHANG])
    assert known.account(WUCHANG) == identities.office_keys.account(WUCHANG).public
    identities.publish_offices([WUCHANG, QINGSHAN])
    assert known.account(QINGSHAN) == identities.office_keys.account(QINGSHAN).public


# --- a server of your own ----------------------------------------------------------------------------------------------


async def test_a_server_of_your_own_is_kept_to_the_register_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identities = Identities.open(tmp_path / "data" / "secrets")
    with NatsServer(tmp_path / "nats", identities) as server:
        printed = bus_config(identities, accounts_dir=tmp_path / "nats" / "accounts", now=datetime.now(UTC))
        assert printed.splitlines()[1] in server.config_file.read_text()  # the same accounts
        for name in ("admin", "ledger", "gate", "sys"):
            monkeypatch.setenv(f"PAIDAN_{name.upper()}_SEED_FILE", str(identities.seed_file(name)))
        async with Stack(tmp_path / "data", server.url, None, services=("gate",)) as yours:
            assert yours.websocket_url is None
            await apply(yours, DISTRICT, let_in(yours, WUCHANG, "board"))
            await within(3, lambda: comes_in(yours))


async def test_what_was_stored_before_offices_had_accounts_is_there_still(
    tmp_path: Path, identities: Identities
) -> None:
    with NatsServer(tmp_path, identities) as server:
        bus = await Bus.connect(server.url, name="admin", seed=identities.seed("admin"))
        await streams.apply(bus)
        await bus.drain()
    kept = tmp_path / "jetstream" / "jetstream"
    (kept / identities.hub.public).rename(kept / "HUB")
    with NatsServer(tmp_path, identities) as server:
        bus = await Bus.connect(server.url, name="admin", seed=identities.seed("admin"))
        assert await streams.apply(bus) == []
        await bus.drain()
