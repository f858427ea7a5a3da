"""Identities are made once, for their owner's eyes, and give each service the least it needs."""

import asyncio
import json
import stat
from datetime import timedelta
from pathlib import Path

import jwt
import nats
import pytest
from nats.aio.client import Client, RawCredentials
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NatsTimeoutError

from deploy.identities import NATS_NAMES, SERVICE_SECRETS, SERVICES, Identities, issue_token
from deploy.servers import NatsServer


def test_they_are_made_once(tmp_path: Path) -> None:
    first = Identities.open(tmp_path / "secrets")
    before = {file: file.read_bytes() for file in first.folder.rglob("*") if file.is_file()}
    Identities.open(tmp_path / "secrets")
    assert before == {file: file.read_bytes() for file in first.folder.rglob("*") if file.is_file()}


def test_what_follows_from_secrets_follows_them(tmp_path: Path) -> None:
    made = Identities.open(tmp_path / "secrets")
    before = {name: made.seed(name) for name in NATS_NAMES}
    earlier = Identities.open(tmp_path / "earlier")  # as of an account of the gate that is no more
    for name in NATS_NAMES:
        made.seed_file(name).write_text(earlier.seed(name))
    Identities.open(made.folder)
    assert {name: made.seed(name) for name in NATS_NAMES} == before
    assert stat.S_IMODE(made.seed_file("gate").stat().st_mode) == 0o600


def test_only_their_owner_can_read_them(identities: Identities) -> None:
    for path in (identities.folder, *identities.folder.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_service_is_given_its_own_secrets_and_no_other(identities: Identities) -> None:
    for service in SERVICES:
        names = {file.name for file in identities.secrets_dir(service).iterdir()}
        assert names == {*SERVICE_SECRETS[service], *(("replies.pem",) if service == "notify" else ())}
    secrets = [identities.secret(service, name) for service, names in SERVICE_SECRETS.items() for name in names]
    assert all(len(bytes.fromhex(secret)) == 32 for secret in secrets)
    assert len(set(secrets)) == len(secrets)


def _verify(identities: Identities, token: str) -> dict[str, object]:
    keys = jwt.PyJWKSet.from_json(identities.jwks_file.read_text())
    key = keys[jwt.get_unverified_header(token)["kid"]]
    return jwt.decode(token, key, algorithms=["EdDSA"], audience="paidan", issuer="paidan")


def test_a_token_says_who_where_and_what(identities: Identities) -> None:
    claims = _verify(identities, issue_token(identities, "m-17", "420106", ["dispatcher"]))
    assert (claims["sub"], claims["district"], claims["roles"]) == ("m-17", "420106", ["dispatcher"])


def test_a_token_ends(identities: Identities) -> None:
    with pytest.raises(jwt.ExpiredSignatureError):
        _verify(identities, issue_token(identities, "m-17", "420106", [], timedelta(seconds=-1)))


async def _connect(server: NatsServer, identities: Identities, name: str) -> tuple[Client, "asyncio.Queue[str]"]:
    """A connection, and what the server complains about on it."""
    complaints: asyncio.Queue[str] = asyncio.Queue()

    async def keep(error: Exception) -> None:
        complaints.put_nowait(str(error).lower())

    connection = await nats.connect(
        server.url,
        user_credentials=RawCredentials(identities.seed(name)),
        inbox_prefix=f"_INBOX_{name}".encode(),
        allow_reconnect=False,
        error_cb=keep,
    )
    return connection, complaints


@pytest.mark.parametrize("name", NATS_NAMES)
async def test_everybody_connects_with_a_key_of_their_own(
    nats_server: NatsServer, identities: Identities, name: str
) -> None:
    connection, _ = await _connect(nats_server, identities, name)
    await connection.flush()
    await connection.close()


async def test_nobody_connects_without_a_key(nats_server: NatsServer) -> None:
    with pytest.raises((NatsError, OSError)):
        await nats.connect(nats_server.url, allow_reconnect=False, connect_timeout=1)


FORBIDDEN = [
    ("intake", "evt.420106.dispatch.-.task.opened"),
    ("intake", "live.evt.420106.intake.-.request.rated"),
    ("intake", "cmd.420106.desk.accept"),
    ("dispatch", "evt.420106.intake.-.request.submitted.1"),
    ("dispatch", "evt.420106.ledger.-.ledger.exported"),
    ("dispatch", "keys.420106.k"),
    ("notify", "$KV.CONTACTS.m-1"),
    ("notify", "evt.420106.dispatch.-.turn.committed"),
    ("notify", "sealed.420106.k.1"),
    ("ledger", "$KV.LEASES.420106"),
    ("ledger", "evt.420106.notify.-.notice.sent"),
    *(
        (service, f"$JS.API.STREAM.{verb}.EVENTS")
        for service in SERVICES
        for verb in ("CREATE", "UPDATE", "DELETE", "PURGE", "MSG.DELETE")
    ),
    *((service, f"$JS.API.CONSUMER.{verb}.EVENTS.c") for service in SERVICES for verb in ("INFO", "DELETE")),
    *((service, "$JS.API.STREAM.INFO.KV_CONTACTS") for service in ("intake", "ledger")),
    ("dispatch", "$JS.API.STREAM.MSG.GET.SEALED"),
    ("notify", "$JS.API.CONSUMER.CREATE.KV_CONTACTS"),
]


@pytest.mark.parametrize(("service", "subject"), FORBIDDEN)
async def test_nobody_says_what_is_not_theirs(
    nats_server: NatsServer, identities: Identities, service: str, subject: str
) -> None:
    connection, complaints = await _connect(nats_server, identities, service)
    await connection.publish(subject, b"{}")
    assert "permissions violation for publish" in await asyncio.wait_for(complaints.get(), 5)
    await connection.close()


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("subject", [">", "evt.>", "live.evt.>", "_INBOX_admin.>", "sealed.>", "$KV.CONTACTS.>"])
async def test_a_service_hears_what_it_asked_for_and_what_it_is_asked(
    nats_server: NatsServer, identities: Identities, service: str, subject: str
) -> None:
    connection, complaints = await _connect(nats_server, identities, service)
    await connection.subscribe(subject)
    assert "permissions violation for subscription" in await asyncio.wait_for(complaints.get(), 5)
    await connection.close()


async def test_the_ledger_answers_who_asked(nats_server: NatsServer, identities: Identities) -> None:
    ledger, _ = await _connect(nats_server, identities, "ledger")
    intake, _ = await _connect(nats_server, identities, "intake")

    async def answer(message: Msg) -> None:
        await message.respond(b"the case")

    await ledger.subscribe("qry.*.ledger.case", cb=answer)
    for _ in range(2):  # the first ping may overtake what waits to be written
        await ledger.flush()
    assert (await intake.request("qry.420106.ledger.case", b"", timeout=5)).data == b"the case"
    await ledger.close()
    with pytest.raises((NatsError, NatsTimeoutError)):
        await intake.request("qry.420106.ledger.case", b"", timeout=1)
    await intake.close()


def test_a_folder_from_before_short_replies_gets_their_key_and_keeps_the_others(tmp_path: Path) -> None:
    before = Identities.open(tmp_path / "secrets")
    (own, replies) = json.loads(before.jwks_file.read_text())["keys"]
    assert ("iss" in own, replies["iss"]) == (False, "paidan-replies")
    before.jwks_file.write_text(json.dumps({"keys": [own]}))
    assert json.loads(Identities.open(tmp_path / "secrets").jwks_file.read_text())["keys"] == [own, replies]
    stamp = before.jwks_file.stat().st_mtime_ns
    Identities.open(tmp_path / "secrets")
    assert before.jwks_file.stat().st_mtime_ns == stamp
