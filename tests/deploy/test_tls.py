"""With `--tls` whoever does not know the stack's authority, or speaks in the clear, gets nowhere; and the rest gets everywhere."""

import asyncio
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import pymongo
import pytest
from cryptography import x509
from fastapi import FastAPI
from pymongo.errors import PyMongoError

from deploy.certificates import LIFE, RENEWED_BEFORE, SERVERS, Certificates, trusting
from deploy.errors import SetupError
from deploy.identities import Identities
from deploy.servers import DATABASE, HOST, MongoServer, NatsServer, address, free_port, require_loopback
from deploy.stack import Stack
from shared.bus import Bus
from shared.errors import UnavailableError
from shared.serving import serve
from shared.settings import ServiceSettings

PAGE = "https://desk.example.org"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.open(tmp_path_factory.mktemp("tls"), ["10.1.2.3", "paidan.example.org"])


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Of another authority, for the same names."""
    return Certificates.open(tmp_path_factory.mktemp("foreign"), ["10.1.2.3", "paidan.example.org"])


def _certificate(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


# --- certificates -----------------------------------------------------------------------------------------------------


def test_they_are_for_their_owner_s_eyes(certificates: Certificates) -> None:
    assert certificates.folder.stat().st_mode & 0o777 == 0o700
    assert {file.name for file in certificates.folder.iterdir()} == {"ca.key", "ca.pem", *(f"{s}.pem" for s in SERVERS)}
    assert {file.stat().st_mode & 0o777 for file in certificates.folder.iterdir()} == {0o600}


def test_they_name_loopback_this_machine_and_what_was_given(certificates: Certificates) -> None:
    named = _certificate(certificates.file("http")).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    names = {str(each.value) for each in named.value}
    assert names == {"127.0.0.1", "::1", "localhost", socket.gethostname(), "10.1.2.3", "paidan.example.org"}


def test_what_is_good_is_kept_and_what_ends_soon_is_renewed_under_the_same_authority(tmp_path: Path) -> None:
    def contents() -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    start = datetime.now(UTC)
    Certificates.open(tmp_path, now=start)
    made = contents()
    Certificates.open(tmp_path, now=start + LIFE - RENEWED_BEFORE - timedelta(days=2))
    assert contents() == made
    soon = start + LIFE - RENEWED_BEFORE
    certificates = Certificates.open(tmp_path, now=soon)
    renewed = contents()
    assert {name for name in made if made[name] != renewed[name]} == {f"{server}.pem" for server in SERVERS}
    for server in SERVERS:
        assert _certificate(certificates.file(server)).not_valid_after_utc > soon + timedelta(days=300)


def test_a_new_name_is_a_new_certificate(tmp_path: Path) -> None:
    before = Certificates.open(tmp_path).file("http").read_bytes()
    assert Certificates.open(tmp_path, ["paidan.example.org"]).file("http").read_bytes() != before


def test_an_authority_that_ends_is_renewed_and_those_who_trusted_it_trust_on(tmp_path: Path) -> None:
    certificates = Certificates.open(tmp_path)
    old = _certificate(certificates.ca_file)
    Certificates.open(tmp_path, now=old.not_valid_after_utc - timedelta(days=100))
    assert _certificate(certificates.ca_file) != old
    for server in SERVERS:
        _certificate(certificates.file(server)).verify_directly_issued_by(old)


def test_what_is_no_name_is_said(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="不是主机名或地址"):
        Certificates.open(tmp_path, ["a" * 70 + ".example.org"])


# --- the bus ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nats(
    tmp_path_factory: pytest.TempPathFactory, identities: Identities, certificates: Certificates
) -> Iterator[NatsServer]:
    data, origins = tmp_path_factory.mktemp("nats-tls"), [PAGE]
    with NatsServer(data, identities, certificates=certificates, websocket_port=free_port(), origins=origins) as server:
        yield server


async def test_who_knows_the_authority_is_on_the_bus_and_stays_over_a_restart(
    nats: NatsServer, identities: Identities, certificates: Certificates
) -> None:
    bus = await Bus.connect(nats.url, name="admin", seed=identities.seed("admin"), ca_file=certificates.ca_file)
    await asyncio.to_thread(nats.kill)
    await asyncio.to_thread(nats.start)
    async with asyncio.timeout(10):
        while not bus.connected:
            await asyncio.sleep(0.02)
    await bus.drain()


async def _not_on_the_bus(url: str, identities: Identities, ca_file: Path | None) -> str:
    with pytest.raises(UnavailableError) as caught:
        await Bus.connect(url, name="admin", seed=identities.seed("admin"), ca_file=ca_file, deadline_s=1)
    return str(caught.value)


async def test_a_client_of_another_authority_does_not_join_the_bus(
    nats: NatsServer, identities: Identities, foreign: Certificates
) -> None:
    assert "certificate verify failed" in await _not_on_the_bus(nats.url, identities, foreign.ca_file)


async def test_a_client_in_the_clear_does_not_join_the_bus(nats: NatsServer, identities: Identities) -> None:
    await _not_on_the_bus(nats.url.replace("tls:", "nats:"), identities, None)


async def test_a_greeting_in_the_clear_does_not_talk_a_client_out_of_tls(
    fresh_nats: NatsServer, identities: Identities, certificates: Certificates
) -> None:
    said = await _not_on_the_bus(fresh_nats.url, identities, certificates.ca_file)
    assert "SSL" in said


async def test_browsers_reach_the_bus_by_tls_and_by_nothing_else(
    nats: NatsServer, certificates: Certificates, foreign: Certificates
) -> None:
    async def greeting(url: str, ca_file: Path) -> bytes:
        trust = ssl.create_default_context(cafile=ca_file)
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(url, ssl=trust, headers={"Origin": PAGE}, timeout=aiohttp.ClientWSTimeout(5)) as socket,
        ):
            return await socket.receive_bytes(timeout=5)

    assert (await greeting(nats.websocket_url, certificates.ca_file)).startswith(b"INFO ")
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await greeting(nats.websocket_url, foreign.ca_file)
    with pytest.raises(aiohttp.ClientError):
        await greeting(nats.websocket_url.replace("wss:", "ws:"), certificates.ca_file)


def test_the_bus_takes_no_tls_below_1_3(nats: NatsServer, certificates: Certificates) -> None:
    older = ssl.create_default_context(cafile=certificates.ca_file)
    older.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection((HOST, nats.port)) as plain, pytest.raises(OSError, match="(?i)alert|eof|reset"):
        older.wrap_socket(plain, server_hostname=HOST)


# --- mongod -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mongo(
    tmp_path_factory: pytest.TempPathFactory, identities: Identities, certificates: Certificates
) -> Iterator[MongoServer]:
    with MongoServer(tmp_path_factory.mktemp("mongo-tls"), identities, certificates=certificates) as server:
        yield server


def _finds(uri: str) -> Any:
    with pymongo.MongoClient[dict[str, Any]](uri, serverSelectionTimeoutMS=1000) as client:
        return client[DATABASE]["events"].find_one()


def test_who_knows_the_authority_and_a_password_reads_mongod(mongo: MongoServer) -> None:
    assert _finds(mongo.uri) is None


def test_mongod_takes_nobody_in_the_clear(mongo: MongoServer) -> None:
    with pytest.raises(PyMongoError):
        _finds(mongo.uri.partition("&tls=")[0])


def test_mongod_is_not_believed_by_a_client_of_another_authority(mongo: MongoServer, foreign: Certificates) -> None:
    with pytest.raises(PyMongoError, match="certificate verify failed"):
        _finds(f"{mongo.uri.partition('&tlsCAFile=')[0]}&tlsCAFile={foreign.ca_file}")


def test_tls_does_not_stand_for_a_password(mongo: MongoServer) -> None:
    with pytest.raises(PyMongoError, match="requires authentication"):
        _finds(mongo.uri.replace(f"ledger:{mongo.identities.mongo_password('ledger')}@", ""))


# --- HTTP -------------------------------------------------------------------------------------------------------------


async def test_https_and_nothing_else_is_served(certificates: Certificates, foreign: Certificates) -> None:
    app, until, port = FastAPI(), asyncio.Event(), free_port()
    settings = ServiceSettings(http_host=HOST, http_port=port, tls_file=certificates.file("http"))

    @app.get("/")
    async def hello() -> str:
        return "hello"

    serving = asyncio.create_task(serve(app, settings, until=until))

    async def get(scheme: str, ca_file: Path | None) -> str:
        async with httpx2.AsyncClient(trust_env=False, verify=trusting(ca_file)) as client:
            return (await client.get(f"{scheme}://{HOST}:{port}/")).text

    async with asyncio.timeout(10):
        while True:
            with suppress(ConnectionRefusedError):
                (await asyncio.open_connection(HOST, port))[1].close()
                break
            await asyncio.sleep(0.02)
    assert await get("https", certificates.ca_file) == '"hello"'
    with pytest.raises(httpx2.ConnectError, match="certificate verify failed"):
        await get("https", foreign.ca_file)
    with pytest.raises(httpx2.ConnectError, match="certificate verify failed"):
        await get("https", None)
    with pytest.raises(httpx2.TransportError):
        await get("http", None)
    until.set()
    await serving


# --- where to listen --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "paidan.example.org"])
async def test_nothing_listens_beyond_loopback_without_tls(tmp_path: Path, host: str) -> None:
    with pytest.raises(SetupError, match="add --tls"):
        await Stack(tmp_path / "data", host=host).start()
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.53", "::1", "localhost"])
def test_loopback_needs_no_tls(host: str) -> None:
    require_loopback(host)


def test_what_listens_everywhere_is_reached_by_loopback() -> None:
    assert [address(host, 1) for host in ("0.0.0.0", "::", "::1", "10.1.2.3")] == [
        "127.0.0.1:1",
        "[::1]:1",
        "[::1]:1",
        "10.1.2.3:1",
    ]
