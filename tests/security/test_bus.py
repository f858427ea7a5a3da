"""
What is forbidden on the bus, tried on a real one: refused, and nothing arrives anywhere or is stored.

Beside each family stands what is permitted, so that a bus that refuses everything would fail as well.
"""

import asyncio
import hmac
import json
import time
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from nats.aio.client import RawCredentials
from nats.errors import Error as NatsError

from deploy import claims
from deploy.claims import Key
from deploy.identities import SERVICES
from deploy.offices import CONNECTIONS_MAX, PAYLOAD_MAX, SUBSCRIPTIONS_MAX, OfficeKeys
from shared.bus import Bus, Request
from shared.facts import App
from tests.examples import HONGSHAN, OUJING, QINGSHAN, RATED, WUCHANG, XINXIANG
from tests.security.bus_world import ELSEWHERE, NOT_LET_IN, ORIGIN, Seat, World, register_of, say, settle


@asynccontextmanager
async def nothing_happens(world: World) -> AsyncIterator[list[str]]:
    """Fails where anything is stored in a stream meanwhile, a consumer made, or a stream changed; yields what the hub hears."""
    heard: list[str] = []

    async def hear(request: Request) -> None:
        heard.append(request.subject)

    async with world.admin() as admin:
        before = await _streams(admin)
        for subject in ("cmd.>", "qry.>", "evt.>", "live.>", "$KV.>", "keys.>", "sealed.>"):
            await admin.serve(subject, hear)
        await settle(admin._nc)
        yield heard
        await asyncio.sleep(0.05)
        assert await _streams(admin) == before


async def _streams(admin: Bus) -> Any:
    answer = await admin._api("STREAM.LIST")
    return [
        (s["config"], s["state"]["last_seq"], s["state"]["messages"], s["state"]["consumer_count"])
        for s in sorted(answer["streams"], key=lambda s: s["config"]["name"])
    ]


async def _published_in_vain(world: World, seat: Seat, subject: str, data: bytes = b"{}", **more: Any) -> None:
    async with nothing_happens(world) as heard:
        await seat.nc.publish(subject, data, **more)
        await seat.settle()
    assert seat.refused(f'permissions violation for publish to "{subject}"')
    assert heard == []


# --- what an office may ------------------------------------------------------------------------------------------------


async def test_an_office_hears_its_own_facts_and_its_enclaves_once_each(world: World) -> None:
    async with world.app(WUCHANG) as mine, world.app(QINGSHAN) as theirs, world.service("intake") as intake:
        for seat in (mine, theirs):
            await seat.listen("live.evt.>")
        own = await say(intake, RATED, WUCHANG, OUJING)
        shared = await say(intake, RATED, WUCHANG, XINXIANG)
        back = await say(intake, RATED, QINGSHAN, XINXIANG)
        foreign = await say(intake, RATED, QINGSHAN, ELSEWHERE)
        await _until(lambda: len(mine.heard) >= 3 and len(theirs.heard) >= 3)
        await asyncio.sleep(0.1)
        assert mine.subjects == [own, shared, back]
        assert theirs.subjects == [shared, back, foreign]
        assert all(message.headers["Nats-Sequence"].isdigit() for message in mine.heard)


@pytest.mark.parametrize("subject", [f"cmd.{WUCHANG}.desk.accept", f"qry.{WUCHANG}.desk.events"])
async def test_an_office_asks_its_own_desk_and_is_answered(world: World, subject: str) -> None:
    async with _desk(world) as asked, world.app(WUCHANG) as seat:
        assert (await seat.nc.request(subject, b"{}", timeout=5)).data == b"yes"
        assert asked == [subject]
        assert seat.complaints == []


# --- reading what is not theirs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "subject", [f"live.evt.{QINGSHAN}.>", f"live.evt.*.*.{ELSEWHERE}.>", f"live.evt.{HONGSHAN}.>", "live.evt.000000.>"]
)
async def test_a_foreign_live_subscription_hears_nothing(world: World, subject: str) -> None:
    async with world.app(WUCHANG) as seat, world.service("intake") as intake, world.service("ledger") as ledger:
        await seat.listen(subject)
        await seat.listen(f"live.evt.{WUCHANG}.>")
        await say(intake, RATED, QINGSHAN, ELSEWHERE)
        await say(intake, RATED, HONGSHAN, "hongshan-1")
        await say(ledger, register_of().districts[WUCHANG], WUCHANG, "-")
        heard = await say(intake, RATED, WUCHANG, OUJING)  # behind the others: when this has come, they would have
        await _until(lambda: heard in seat.subjects)
        assert seat.subjects == [heard]


@pytest.mark.parametrize(
    "subject",
    [
        *(">", "*", "evt.>", "live.>", "*.evt.>", "cmd.>", "qry.>", f"cmd.{WUCHANG}.desk.>", "desk.>", "notify.>"),
        *("sealed.>", "keys.>", "$KV.>", "$O.>", "$JS.>", "$SYS.>", "$SYS.REQ.USER.AUTH", "_R_.>", "$SRV.>"),
        *("_INBOX.>", "_INBOX_wall.>", "_INBOX_dispatch.>"),
    ],
)
async def test_an_app_cannot_listen_to(world: World, subject: str) -> None:
    async with world.app(WUCHANG) as seat, world.app(WUCHANG, "wall") as other, world.service("intake") as intake:
        await seat.listen(subject)
        assert seat.refused(f'permissions violation for subscription to "{subject}"')
        async with _desk(world):
            await other.nc.request(f"cmd.{WUCHANG}.desk.accept", b"{}", timeout=5)
        await say(intake, RATED, WUCHANG, OUJING)
        await seat.settle()
        assert seat.heard == []


@pytest.mark.parametrize(
    "api",
    [
        *("INFO", "STREAM.NAMES", "STREAM.LIST", "STREAM.INFO.EVENTS", "STREAM.MSG.GET.EVENTS", "CONSUMER.LIST.EVENTS"),
        *("DIRECT.GET.KV_CONTACTS.$KV.CONTACTS.m-1", "STREAM.MSG.GET.SEALED", "STREAM.MSG.GET.KV_CONTACTS"),
        *("DIRECT.GET.OBJ_SNAPSHOTS", "STREAM.MSG.GET.OBJ_SNAPSHOTS", "CONSUMER.INFO.EVENTS.office"),
        *("CONSUMER.CREATE.EVENTS", f"CONSUMER.CREATE.EVENTS.mine.evt.{WUCHANG}.>", "CONSUMER.DURABLE.CREATE.EVENTS.c"),
        *("CONSUMER.MSG.NEXT.EVENTS.c", "CONSUMER.DELETE.EVENTS.c", "CONSUMER.PAUSE.EVENTS.c"),
        *("STREAM.CREATE.MINE", "STREAM.UPDATE.EVENTS", "STREAM.PURGE.EVENTS", "STREAM.DELETE.EVENTS"),
        *("STREAM.MSG.DELETE.EVENTS", "STREAM.SNAPSHOT.EVENTS", "STREAM.RESTORE.MINE", "ACCOUNT.PURGE.HUB"),
    ],
)
async def test_an_app_reaches_nothing_of_jetstream(world: World, api: str) -> None:
    async with world.app(WUCHANG) as seat:
        await _published_in_vain(world, seat, f"$JS.API.{api}", reply="_INBOX_board.1")


async def test_a_push_consumer_with_a_foreign_deliver_subject_is_not_made(world: World) -> None:
    config = {"deliver_subject": f"live.evt.{QINGSHAN}.forged", "ack_policy": "none", "deliver_policy": "all"}
    asked = json.dumps({"stream_name": "EVENTS", "config": config}).encode()
    async with world.app(WUCHANG) as seat, world.app(QINGSHAN) as victim:
        await victim.listen("live.evt.>")
        await _published_in_vain(world, seat, "$JS.API.CONSUMER.CREATE.EVENTS", asked, reply="_INBOX_board.1")
        await victim.settle()
        assert victim.heard == []


@pytest.mark.parametrize(
    "subject",
    [
        *("$KV.CONTACTS.m-1", "$KV.LEASES.desk", "$O.SNAPSHOTS.M.x", "$O.SNAPSHOTS.C.x", "sealed.420106.k.1"),
        *("keys.420106.k", "$JS.ACK.EVENTS.c.1.1.1.1.0", "$JS.FC.EVENTS.x"),
    ],
)
async def test_an_app_writes_to_no_store(world: World, subject: str) -> None:
    async with world.app(WUCHANG) as seat:
        await _published_in_vain(world, seat, subject)


# --- forging -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "subject",
    [
        f"evt.{WUCHANG}.dispatch.{OUJING}.task.accepted",
        f"evt.{WUCHANG}.dispatch.-.turn.committed",
        f"evt.{QINGSHAN}.intake.{XINXIANG}.request.rated",
        "evt.000000.ledger.-.register.office_set",
        f"live.evt.{WUCHANG}.dispatch.{OUJING}.task.accepted",
        f"live.evt.{QINGSHAN}.dispatch.{XINXIANG}.task.accepted",
    ],
)
async def test_an_app_forges_no_fact(world: World, subject: str) -> None:
    async with world.app(WUCHANG) as seat, world.app(QINGSHAN) as victim, world.app(WUCHANG, "wall") as beside:
        for other in (victim, beside):
            await other.listen("live.evt.>")
        await _published_in_vain(world, seat, subject)
        for other in (victim, beside):
            await other.settle()
            assert other.heard == []


@pytest.mark.parametrize("header", ["Nats-Rollup", "Nats-TTL", "Nats-Schedule", "Nats-Msg-Id", "Nats-Batch-Id"])
async def test_a_header_for_the_store_does_nothing_on_a_command(world: World, header: str) -> None:
    values = {"Nats-Rollup": "all", "Nats-TTL": "1s", "Nats-Schedule": "@at 2020-01-01T00:00:00Z"}
    headers = {
        header: values.get(header, "1"),
        "Nats-Schedule-Target": f"evt.{QINGSHAN}.intake.{XINXIANG}.request.rated",
        "Nats-Batch-Sequence": "1",
    }
    async with _desk(world) as asked, world.app(WUCHANG) as seat, nothing_happens(world):
        answer = await seat.nc.request(f"cmd.{WUCHANG}.desk.accept", b"{}", timeout=5, headers=headers)
        assert answer.data == b"yes"
    assert asked == [f"cmd.{WUCHANG}.desk.accept"]


@pytest.mark.parametrize(
    "subject",
    [
        *(f"cmd.{QINGSHAN}.desk.accept", f"qry.{QINGSHAN}.desk.events", f"qry.{QINGSHAN}.ledger.case"),
        *(f"qry.{WUCHANG}.ledger.case", "qry.000000.ledger.case", f"desk.{WUCHANG}.alive.1", f"cmd.{WUCHANG}.ledger.x"),
        *("cmd.*.desk.accept", "_INBOX_dispatch.1", "_INBOX_wall.1", "_R_.1", "_INBOX_admin.1"),
    ],
)
async def test_an_app_asks_nobody_but_its_own_desk(world: World, subject: str) -> None:
    async with _desk(world, WUCHANG, QINGSHAN) as asked, world.app(WUCHANG) as seat:
        await seat.nc.publish(subject, b"{}", reply="_INBOX_board.1")
        await seat.settle()
        await asyncio.sleep(0.02)
        assert seat.refused("permissions violation for publish")
        assert asked == []


@pytest.mark.parametrize(
    "reply",
    [
        f"live.evt.{QINGSHAN}.dispatch.{XINXIANG}.task.accepted",
        f"evt.{WUCHANG}.dispatch.{OUJING}.task.accepted",
        f"cmd.{QINGSHAN}.desk.accept",
        "$KV.CONTACTS.m-1",
        "_INBOX_dispatch.1",
        "$JS.API.STREAM.PURGE.EVENTS",
    ],
)
async def test_an_answer_goes_nowhere_but_to_the_office_that_asked(world: World, reply: str) -> None:
    async with (
        _desk(world, WUCHANG, QINGSHAN) as asked,
        world.app(WUCHANG) as seat,
        world.app(QINGSHAN) as victim,
    ):
        await victim.listen("live.evt.>")
        async with nothing_happens(world) as heard:
            await seat.nc.publish(f"cmd.{WUCHANG}.desk.accept", b"{}", reply=reply)
            await seat.settle()
            await _until(lambda: len(asked) > 0)
        assert asked == [f"cmd.{WUCHANG}.desk.accept"]
        assert heard == [f"cmd.{WUCHANG}.desk.accept"]
        await victim.settle()
        assert victim.heard == []


async def test_an_answer_that_is_sent_in_as_a_command_goes_round_once(world: World) -> None:
    subject = f"cmd.{WUCHANG}.desk.accept"
    async with _desk(world) as asked, world.app(WUCHANG) as seat:
        await seat.nc.publish(subject, b"{}", reply=subject)
        await asyncio.sleep(0.3)
        assert len(asked) <= 2


async def test_whose_request_it_is_cannot_be_claimed_in_a_header(world: World) -> None:
    claimed = {"Nats-Request-Info": json.dumps({"acc": "HUB", "user": "admin", "svc": "x"})}
    seen: list[dict[str, str]] = []

    async def answer(request: Request) -> None:
        seen.append(dict(request.headers))
        await request.answer(b"yes")

    async with world.service("dispatch") as desk, world.app(WUCHANG) as seat:
        await desk.serve(f"cmd.{WUCHANG}.desk.*", answer)
        await settle(desk._nc)
        await seat.nc.request(f"cmd.{WUCHANG}.desk.accept", b"{}", timeout=5, headers=claimed)
    assert all("admin" not in headers.get("Nats-Request-Info", "") for headers in seen)
    assert len(seen) == 1


@pytest.mark.parametrize(
    "subject",
    [
        *("$SYS.REQ.SERVER.PING", "$SYS.REQ.SERVER.PING.CONNZ", "$SYS.REQ.USER.INFO", "$SYS.REQ.CLAIMS.LIST"),
        *("$SYS.REQ.USER.AUTH", "$SYS.ACCOUNT.X.CONNECT", "$SYS.REQ.CLAIMS.UPDATE", "$SYS.REQ.CLAIMS.DELETE"),
    ],
)
async def test_an_app_cannot_ask_the_server_about_itself_or_change_it(world: World, subject: str) -> None:
    async with world.app(WUCHANG) as seat:
        await _published_in_vain(world, seat, subject, reply="_INBOX_board.1")


# --- credentials -------------------------------------------------------------------------------------------------------


async def _is_not_let_in(world: World, **identity: Any) -> None:
    with pytest.raises(NOT_LET_IN):
        async with world.seat(**identity):
            pass


async def test_nobody_comes_in_without_credentials(world: World) -> None:
    await _is_not_let_in(world)


async def test_nobody_comes_in_with_a_key_that_nobody_knows(world: World) -> None:
    await _is_not_let_in(world, nkeys_seed_str=Key.new("user").seed)


async def test_credentials_that_were_widened_are_refused(world: World) -> None:
    token = _token_in(world.apps[WUCHANG, "board"])
    head, _, signature = token.split(".")
    wider = claims.read(token)
    wider["nats"] |= {"pub": {"allow": [">"]}, "sub": {"allow": [">"]}}
    creds = claims.credentials(f"{head}.{_part(wider)}.{signature}", _seed_in(world.apps[WUCHANG, "board"]))
    await _is_not_let_in(world, user_credentials=RawCredentials(creds))


@pytest.mark.parametrize("account", ["another office", "the hub", "the system"])
async def test_an_office_cannot_make_users_of_another_account(world: World, account: str) -> None:
    keys, district = world.identities.office_keys, QINGSHAN
    target = {
        "another office": keys.account(district).public,
        "the hub": world.identities.hub.public,
        "the system": world.identities.sys.public,
    }[account]
    mine, user = Key.new("account"), Key.new("user")  # of its own making: it is given no key that signs
    token = claims.user(mine, target, user.public, "board", iat=int(time.time()))
    await _is_not_let_in(world, user_credentials=RawCredentials(claims.credentials(token, user.seed)))


async def test_the_token_without_its_seed_is_worth_nothing(world: World) -> None:
    creds = claims.credentials(_token_in(world.apps[WUCHANG, "board"]), Key.new("user").seed)
    await _is_not_let_in(world, user_credentials=RawCredentials(creds))


async def test_an_app_that_was_never_let_in_stays_out(world: World) -> None:
    key = Key.new("user")
    creds = world.identities.office_credentials(WUCHANG, App(app="board", key=key.public), key.seed)
    await _is_not_let_in(world, user_credentials=RawCredentials(creds))


async def test_a_connection_too_many_is_refused_and_the_neighbours_notice_nothing(world: World) -> None:
    async with world.app(QINGSHAN) as neighbour:
        seats = [world.app(HONGSHAN) for _ in range(CONNECTIONS_MAX)]
        for n in range(0, CONNECTIONS_MAX, 50):
            await asyncio.gather(*(seat.__aenter__() for seat in seats[n : n + 50]))
        try:
            with pytest.raises(NOT_LET_IN):
                async with world.app(HONGSHAN):
                    pass
            await neighbour.nc.flush()
            async with world.app(QINGSHAN):
                pass
        finally:
            await asyncio.gather(*(seat.__aexit__(None, None, None) for seat in seats))


async def test_a_message_too_large_is_refused(world: World) -> None:
    async with _desk(world) as asked, world.app(WUCHANG) as seat:
        seat.nc._max_payload = 1 << 24  # the client would refuse by itself
        await seat.nc.publish(f"cmd.{WUCHANG}.desk.accept", b"x" * (PAYLOAD_MAX + 1))
        await asyncio.wait_for(seat.closed.wait(), 5)
        assert asked == []


# --- people ------------------------------------------------------------------------------------------------------------


async def test_staff_hear_their_office_and_ask_its_desk(world: World) -> None:
    async with (
        _desk(world) as asked,
        world.person(world.token("dispatcher")) as seat,
        world.service("intake") as intake,
    ):
        await seat.listen("live.evt.>")
        await say(intake, RATED, QINGSHAN, ELSEWHERE)
        heard = await say(intake, RATED, WUCHANG, OUJING)
        await _until(lambda: heard in seat.subjects)
        assert seat.subjects == [heard]
        assert (await seat.nc.request(f"cmd.{WUCHANG}.desk.close", b"{}", timeout=5)).data == b"yes"
        assert asked == [f"cmd.{WUCHANG}.desk.close"]
        assert seat.complaints == []


async def test_a_member_answers_and_asks_for_what_is_theirs(world: World) -> None:
    async with _desk(world) as asked, world.person(world.token("member", sub="m-li"), "m-li") as seat:
        for subject in (f"cmd.{WUCHANG}.desk.accept", f"qry.{WUCHANG}.desk.mine"):
            assert (await seat.nc.request(subject, b"{}", timeout=5)).data == b"yes"
        assert len(asked) == 2


@pytest.mark.parametrize("subject", ["live.evt.>", f"live.evt.{WUCHANG}.>", "_INBOX_staff-1.>", "_INBOX.>", ">"])
async def test_a_member_listens_to_nothing_but_answers(world: World, subject: str) -> None:
    async with (
        world.person(world.token("member", sub="m-li"), "m-li") as seat,
        world.service("intake") as intake,
    ):
        await seat.listen(subject)
        await say(intake, RATED, WUCHANG, OUJING)
        await seat.settle()
        assert seat.refused("permissions violation for subscription")
        assert seat.heard == []


@pytest.mark.parametrize(
    "subject",
    [
        *(f"cmd.{WUCHANG}.desk.{verb}" for verb in ("offer", "close", "handover", "park")),
        *(f"qry.{WUCHANG}.desk.events", f"cmd.{QINGSHAN}.desk.accept", f"evt.{WUCHANG}.dispatch.-.task.accepted"),
    ],
)
async def test_a_member_does_nothing_that_is_a_dispatchers(world: World, subject: str) -> None:
    async with (
        _desk(world, WUCHANG, QINGSHAN) as asked,
        world.person(world.token("member", sub="m-li"), "m-li") as seat,
    ):
        await seat.nc.publish(subject, b"{}", reply="_INBOX_m-li.1")
        await seat.settle()
        await asyncio.sleep(0.02)
        assert seat.refused(f'permissions violation for publish to "{subject}"')
        assert asked == []


@pytest.mark.parametrize("subject", ["_INBOX_staff-2.>", "_INBOX_board.>", "_INBOX.>", "cmd.>", "evt.>"])
async def test_staff_do_not_listen_to_each_others_answers(world: World, subject: str) -> None:
    async with world.person(world.token("dispatcher")) as seat:
        await seat.listen(subject)
        assert seat.refused("permissions violation for subscription")


@pytest.mark.parametrize("who", ["an app", "a person"])
async def test_a_connection_with_too_many_subscriptions_is_closed(world: World, who: str) -> None:
    async with world.app(WUCHANG) if who == "an app" else world.person(world.token("dispatcher")) as seat:
        with suppress(NatsError):
            for n in range(SUBSCRIPTIONS_MAX + 1):
                await seat.nc.subscribe(f"live.evt.{WUCHANG}.intake.{n}.>")
                if n == SUBSCRIPTIONS_MAX - 2:
                    await seat.settle()
                    assert not seat.closed.is_set()
        await asyncio.wait_for(seat.closed.wait(), 5)


def _forged(world: World, how: str) -> str:
    now, key = int(time.time()), world.identities.signing_key
    kid = json.loads(world.identities.jwks_file.read_text())["keys"][0]["kid"]
    said: dict[str, Any] = {"iss": "paidan", "aud": "paidan", "sub": "staff-1", "district": WUCHANG}
    said |= {"roles": ["dispatcher"], "iat": now, "exp": now + 600}
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    match how:
        case "expired":
            return world.token("dispatcher", ttl=timedelta(seconds=-60))
        case "tampered":
            head, body, signature = world.token("member").split(".")
            return f"{head}.{_part(claims.read(f'{head}.{body}.') | {'roles': ['admin']})}.{signature}"
        case "for somebody else":
            return jwt.encode(said | {"aud": "another"}, key, "EdDSA", {"kid": kid})
        case "by another issuer":
            return jwt.encode(said | {"iss": "https://id.example"}, key, "EdDSA", {"kid": kid})
        case "by another key":
            return jwt.encode(said, Ed25519PrivateKey.generate(), "EdDSA", {"kid": kid})
        case "signed with the public key":
            unsigned = f"{_part({'alg': 'HS256', 'typ': 'JWT', 'kid': kid})}.{_part(said)}"
            return f"{unsigned}.{_base64url(hmac.digest(public, unsigned.encode(), 'sha256'))}"
        case "not signed":
            return f"{_part({'alg': 'none', 'typ': 'JWT', 'kid': kid})}.{_part(said)}."
        case "for short replies":
            return jwt.encode(said | {"iss": "paidan-replies", "roles": ["member"]}, key, "EdDSA", {"kid": kid})
        case "without an end":
            return jwt.encode({k: v for k, v in said.items() if k != "exp"}, key, "EdDSA", {"kid": kid})
        case "for every district":
            return world.token("admin", district="*")
        case "of a resident":
            return world.token("resident")
        case "without a role":
            return world.token()
        case "of an office that is not let in":
            return world.token("dispatcher", district="420199")
        case "of an office whose people are not":
            return world.token("dispatcher", district=HONGSHAN)
        case _:
            return how


@pytest.mark.parametrize(
    "how",
    [
        *("expired", "tampered", "for somebody else", "by another issuer", "by another key", "without an end"),
        *("signed with the public key", "not signed", "for short replies", "for every district", "of a resident"),
        *(
            "without a role",
            "of an office that is not let in",
            "of an office whose people are not",
            "nonsense",
            "a.b.c",
        ),
    ],
)
async def test_a_token_opens_nothing_that_is(world: World, how: str) -> None:
    await _is_not_let_in(world, token=_forged(world, how))
    async with world.person(world.token("dispatcher")):
        pass  # the gate goes on


async def test_a_person_cannot_choose_another_name_or_account(world: World) -> None:
    token = world.token("member", sub="m-li")
    async with world.person(token, "m-li", name="admin") as seat:
        await seat.listen("_INBOX_staff-1.>")
        assert seat.refused("permissions violation for subscription")


async def test_a_connection_ends_with_its_token(world: World) -> None:
    token = world.token("dispatcher", ttl=timedelta(seconds=2))
    ends = jwt.decode(token, options={"verify_signature": False})["exp"]
    async with world.person(token) as seat:
        await asyncio.wait_for(seat.closed.wait(), 5)
        assert 0 <= time.time() - ends < 1.5


async def test_a_revoked_token_opens_nothing(world: World, tmp_path: Path) -> None:
    token = world.token("dispatcher", sub="staff-9")
    async with world.person(token, "staff-9"):
        pass
    world.revoked_file.write_text(json.dumps({f"{WUCHANG} staff-9": int(time.time())}))
    await asyncio.sleep(1.2)  # the gate looks once a second
    await _is_not_let_in(world, token=token)
    async with world.person(world.token("dispatcher")):
        pass


# --- doors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "https://desk.example.org.evil.example", ORIGIN])
async def test_a_browser_comes_from_a_page_of_ours(world: World, origin: str) -> None:
    async with aiohttp.ClientSession() as session:
        if origin == ORIGIN:
            async with session.ws_connect(world.server.websocket_url, headers={"Origin": origin}) as socket:
                assert (await socket.receive(5)).data.startswith(b"INFO")
        else:
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await session.ws_connect(world.server.websocket_url, headers={"Origin": origin})


@pytest.mark.parametrize("name", [*SERVICES, "admin", "gate", "sys"])
async def test_nobody_of_ours_comes_by_websocket(world: World, name: str) -> None:
    with pytest.raises(NOT_LET_IN):
        async with world.named(name, url=world.server.websocket_url):
            pass


async def test_apps_and_people_come_by_websocket(world: World) -> None:
    async with (
        _desk(world) as asked,
        world.app(WUCHANG, url=world.server.websocket_url) as app,
        world.person(world.token("dispatcher"), url=world.server.websocket_url) as person,
    ):
        for seat in (app, person):
            assert (await seat.nc.request(f"cmd.{WUCHANG}.desk.accept", b"{}", timeout=5)).data == b"yes"
        assert len(asked) == 2


# --- those of ours -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("account", ["the hub", "the system", "an office whose people are not let in"])
@pytest.mark.parametrize("signer", ["staff", "member", "gate"])
async def test_the_gates_keys_open_no_account_that_does_not_list_them(world: World, signer: str, account: str) -> None:
    keys, user, gate = world.identities.office_keys, Key.new("user"), world.identities.gate_keys
    key = gate.gate() if signer == "gate" else gate.people(signer)
    target = {"the hub": world.identities.hub, "the system": world.identities.sys}.get(account, keys.account(HONGSHAN))
    token = claims.user(key, target.public, user.public, "admin", iat=int(time.time()))
    await _is_not_let_in(world, user_credentials=RawCredentials(claims.credentials(token, user.seed)))


def test_the_gate_holds_nothing_that_is_an_offices_or_the_operators(world: World) -> None:
    identities, folder = world.identities, world.identities.secrets_dir("gate")
    assert {file.name for file in folder.iterdir()} == {"people_secret", "offices.json"}
    people = identities.secret("gate", "people_secret")
    theirs = OfficeKeys(people)  # what follows from all that it has
    board = world.register.offices[WUCHANG].apps[0]
    assert theirs.account(WUCHANG) != identities.office_keys.account(WUCHANG)
    assert theirs.app(WUCHANG, board) != identities.office_keys.app(WUCHANG, board)
    assert Key.derive(people, "operator") != identities.operator
    known = json.loads((folder / "offices.json").read_text())
    assert known == {d: identities.office_keys.account(d).public for d in (WUCHANG, QINGSHAN, HONGSHAN)}


@pytest.mark.parametrize("subject", [">", "evt.>", "cmd.>", "_INBOX_sys.>", "$SYS.ACCOUNT.>"])
async def test_the_gate_hears_nothing_but_who_wants_in(world: World, subject: str) -> None:
    async with world.named("gate") as seat:
        await seat.listen(subject)
        assert seat.refused("permissions violation for subscription")


@pytest.mark.parametrize("subject", [f"cmd.{WUCHANG}.desk.accept", "evt.1.dispatch.-.a.b", "$SYS.REQ.CLAIMS.UPDATE"])
async def test_the_gate_says_nothing_but_answers(world: World, subject: str) -> None:
    async with world.named("gate") as seat:
        await _published_in_vain(world, seat, subject)


@pytest.mark.parametrize(
    "header", [{"Nats-Rollup": "all"}, {"Nats-TTL": "1s"}, {"Nats-Schedule": "@at 2020-01-01T00:00:00Z"}]
)
async def test_a_service_cannot_roll_up_expire_or_schedule_facts(world: World, header: dict[str, str]) -> None:
    headers = header | {"Nats-Schedule-Target": f"evt.{WUCHANG}.dispatch.-.task.accepted"}
    async with world.named("intake") as seat, world.admin() as admin:
        before = await admin.state()
        answer = await seat.nc.request(f"evt.{WUCHANG}.intake.-.request.rated", b"{}", timeout=5, headers=headers)
        assert "error" in json.loads(answer.data)
        assert await admin.state() == before


@pytest.mark.parametrize("service", SERVICES)
async def test_a_service_reaches_neither_the_server_nor_the_gate(world: World, service: str) -> None:
    async with world.named(service) as seat:
        for subject in ("$SYS.REQ.CLAIMS.UPDATE", "$SYS.REQ.USER.AUTH", "$SYS.REQ.SERVER.PING", "live.evt.x"):
            await _published_in_vain(world, seat, subject)


# --- small things ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _desk(world: World, *districts: str) -> AsyncIterator[list[str]]:
    """Somebody in the hub who says yes to every command and query of a desk; yields what was asked."""
    asked: list[str] = []

    async def answer(request: Request) -> None:
        asked.append(request.subject)
        await request.answer(b"yes")

    async with world.service("dispatch") as bus:
        for district in districts or (WUCHANG,):
            await bus.serve(f"cmd.{district}.desk.*", answer)
            await bus.serve(f"qry.{district}.desk.*", answer)
        await settle(bus._nc)
        yield asked


async def _until(done: Any, within_s: float = 5) -> None:
    async with asyncio.timeout(within_s):
        while not done():
            await asyncio.sleep(0.005)


def _part(document: Any) -> str:
    return _base64url(json.dumps(document).encode())


def _base64url(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def _token_in(creds: str) -> str:
    return creds.split("\n")[1]


def _seed_in(creds: str) -> str:
    return creds.split("BEGIN USER NKEY SEED-----\n")[1].split("\n", maxsplit=1)[0]
