"""
Who is who in the stack: bus keys, token keys and secrets, made once and kept in one folder that only its owner reads.

The folder is `<data>/secrets` (0700, files 0600): `nats/operator` (the bus's root), `nats/<name>.creds` (what each connects
with), `<service>/<secret>` (what that service is given, and nothing else), `offices/<district>/<app>.creds`, `notify/replies.pem` (the key of
short replies), `tokens.pem`, `jwks.json`, `mongo/<user>` and `mongo/keyfile`.
"""

import fcntl
import json
import os
import secrets
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from deploy import claims
from deploy.claims import ACCOUNT_NO_LIMITS, NO_LIMITS, Claims, Key, credentials, scope
from deploy.offices import GateKeys, OfficeKeys
from shared.auth import REPLIES
from shared.facts import App
from shared.keys import public_jwk

SERVICES = ("intake", "dispatch", "notify", "ledger")
GATE = "gate"
NATS_NAMES = ("admin", *SERVICES, GATE, "sys")

# What each service is given in its secrets folder: 32 random bytes each, as hex.
SERVICE_SECRETS: Mapping[str, tuple[str, ...]] = {
    "intake": ("intake_secret", "contact_pepper", "district_kek"),
    "dispatch": (),
    "notify": ("reply_secret",),
    "ledger": ("ledger_cursor_secret", "ledger_signing_key"),
}
MONGO_USERS = ("admin", "ledger", "auditor", "repair")

TOKEN_ISSUER = "paidan"
TOKEN_AUDIENCE = "paidan"
TOKEN_TTL = timedelta(hours=12)


@dataclass(frozen=True)
class Identities:
    """The secrets of one stack; `Identities.open(folder)` makes those that are missing."""

    folder: Path

    @classmethod
    def open(cls, folder: Path) -> "Identities":
        """
        The identities kept in `folder`, made on the first call. A secret that exists is never replaced; what follows from secrets,
        as the credentials of services do, is written anew where it says something else.

        Raises:
            OSError: the folder cannot be written.
        """
        identities = cls(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for place in (folder, *(folder / name for name in ("nats", "mongo", "offices", *SERVICES, GATE))):
            place.mkdir(exist_ok=True)
            place.chmod(0o700)
        for file in (folder / "nats" / "operator", folder / GATE / "people_secret"):
            _keep(file, lambda: secrets.token_hex(32))
        for name in NATS_NAMES:
            _follow(identities.seed_file(name), identities._credentials(name))
        for service, names in SERVICE_SECRETS.items():
            for name in names:
                _keep(folder / service / name, lambda: secrets.token_hex(32))
        for user in MONGO_USERS:
            _keep(folder / "mongo" / user, lambda: secrets.token_hex(32))
        _keep(identities.mongo_keyfile, lambda: b64encode(secrets.token_bytes(96)).decode())
        _keep(folder / "tokens.pem", _new_signing_key)
        _keep(folder / "notify" / "replies.pem", _new_signing_key)
        _keep(identities.jwks_file, lambda: json.dumps({"keys": [public_jwk(identities.signing_key)]}, indent=2))
        identities._publish_replies()
        return identities

    def seed_file(self, name: str) -> Path:
        """The file that `admin`, a service, `gate` or `sys` connects to the bus with."""
        return self.folder / "nats" / f"{name}.creds"

    def seed(self, name: str) -> str:
        """The credentials of one of `NATS_NAMES`: `bus.connect(url, seed=identities.seed("dispatch"))`."""
        return self.seed_file(name).read_text()

    @property
    def operator(self) -> Key:
        """Signs accounts: the root of all rights on the bus."""
        return Key.derive(self._operator_secret, "operator")

    @property
    def hub(self) -> Key:
        """The account of the services, which owns every stream."""
        return Key.derive(self._operator_secret, "account", "HUB")

    @property
    def sys(self) -> Key:
        """The account in which the server is asked about itself."""
        return Key.derive(self._operator_secret, "account", "SYS")

    @property
    def office_keys(self) -> OfficeKeys:
        """The keys of the offices."""
        return OfficeKeys(self._operator_secret)

    @property
    def gate_keys(self) -> GateKeys:
        """What the gate signs with."""
        return GateKeys(self.secret(GATE, "people_secret"))

    def publish_offices(self, districts: Iterable[str]) -> None:
        """Tell the gate which accounts these offices have: their public ids are all that it knows of them."""
        file = self.folder / GATE / "offices.json"
        said = json.dumps({district: self.office_keys.account(district).public for district in sorted(districts)})
        _follow(file, said)

    def office_file(self, district: str, app: str) -> Path:
        """The file that an app of an office connects with; it need not be there."""
        return self.folder / "offices" / district / f"{app}.creds"

    def office_credentials(self, district: str, app: App, seed: str) -> str:
        """What an app of an office connects with. Whether it is let in, the register decides."""
        signer, account = self.office_keys.app(district, app), self.office_keys.account(district).public
        return credentials(claims.user(signer, account, app.key, app.app, iat=1), seed)

    def signer(self, name: str) -> Key:
        """Signs for one of `NATS_NAMES`, who may do what this key's scope says."""
        return Key.derive(self._operator_secret, "account", "signer", name)

    def user(self, name: str) -> Key:
        """The key by which the server knows one of `NATS_NAMES`, or `nobody`."""
        return Key.derive(self._operator_secret, "user", name)

    def _credentials(self, name: str) -> str:
        account = {"sys": self.sys, GATE: self.gate_keys.gate()}.get(name, self.hub).public
        return credentials(
            claims.user(self.signer(name), account, self.user(name).public, name, iat=1), self.user(name).seed
        )

    @property
    def _operator_secret(self) -> str:
        return (self.folder / "nats" / "operator").read_text().strip()

    def secrets_dir(self, service: str) -> Path:
        """The folder that holds this service's secrets, one file each, and nobody else's."""
        return self.folder / service

    def secret(self, service: str, name: str) -> str:
        """One secret of a service, as the hex text in its file."""
        return (self.folder / service / name).read_text().strip()

    def mongo_password(self, user: str) -> str:
        """The password of one of `MONGO_USERS`."""
        return (self.folder / "mongo" / user).read_text().strip()

    @property
    def mongo_keyfile(self) -> Path:
        """What the members of a replica set know each other by."""
        return self.folder / "mongo" / "keyfile"

    @property
    def jwks_file(self) -> Path:
        """The public half of the key that signs tokens, as every service reads it."""
        return self.folder / "jwks.json"

    @property
    def revoked_file(self) -> Path:
        """
        Whose tokens no longer count: `<district> <sub>`, and for those of one issuer ` <issuer>` → seconds since 1970, up to which
        they were issued. It need not be there.
        """
        return self.folder / "revoked.json"

    def revoke(self, whose: str, at: int) -> None:
        """Write one more into `revoked_file`; whoever does so at the same time waits."""
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            before = json.loads(self.revoked_file.read_text()) if self.revoked_file.exists() else {}
            write_secret(self.revoked_file, json.dumps({**before, whose: at}, indent=2))
        finally:
            os.close(folder)

    @property
    def signing_key(self) -> Ed25519PrivateKey:
        """The key that signs tokens."""
        return _signing_key(self.folder / "tokens.pem")

    def _publish_replies(self) -> None:
        """See that the public half of notify's own key is in the JWKS file, as that of the issuer of short replies."""
        own = {**public_jwk(_signing_key(self.folder / "notify" / "replies.pem")), "iss": REPLIES}
        document = json.loads(self.jwks_file.read_text())
        if own not in document["keys"]:
            others = [key for key in document["keys"] if key.get("iss") != REPLIES]
            write_secret(self.jwks_file, json.dumps({**document, "keys": [*others, own]}, indent=2))


def issue_token(
    identities: Identities,
    sub: str,
    district: str,
    roles: Sequence[str],
    ttl: timedelta = TOKEN_TTL,
    *,
    now: datetime | None = None,
) -> str:
    """
    A bearer token (EdDSA) for one person or program.

    Args:
        sub: who it is, a pseudonymous id such as `m-17`.
        district: an adcode, or `*` for every district.
        roles: what they may do, such as `dispatcher`, `auditor`, `admin`, `member`.
        ttl: from now; negative for a token that has already expired, in tests.
    """
    at = now or datetime.now(UTC)
    key = identities.signing_key
    claims = {
        "iss": TOKEN_ISSUER,
        "aud": TOKEN_AUDIENCE,
        "sub": sub,
        "district": district,
        "roles": list(roles),
        "iat": int(at.timestamp()),
        "exp": int((at + ttl).timestamp()),
        "jti": secrets.token_hex(8),
    }
    return jwt.encode(claims, key, algorithm="EdDSA", headers={"kid": public_jwk(key)["kid"]})


class Rights(NamedTuple):
    """What one user may say and hear on the bus; `answers` permits a reply to whoever asked, once, for 30 s."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    answers: bool = False


def _consumers(stream: str) -> tuple[str, ...]:
    """What `shared.bus.Reader` asks for: the server itself forgets a consumer that nobody pulls from."""
    api = "$JS.API.CONSUMER"
    return (f"{api}.CREATE.{stream}", f"{api}.CREATE.{stream}.>", f"{api}.MSG.NEXT.{stream}.>")


def _reads(stream: str) -> tuple[str, ...]:
    return (f"$JS.API.STREAM.INFO.{stream}", f"$JS.API.STREAM.MSG.GET.{stream}")


_EVERYBODY = (*_reads("EVENTS"), *_consumers("EVENTS"))

# A desk and notify fold facts under a lease, and leave snapshots. The chunks of a snapshot that was replaced are purged
# by their writer; a snapshot that is gone costs a fold from zero and nothing else.
_FOLDS = (
    "$KV.LEASES.>",
    *_reads("KV_LEASES"),
    "$O.SNAPSHOTS.>",
    *_reads("OBJ_SNAPSHOTS"),
    "$JS.API.DIRECT.GET.OBJ_SNAPSHOTS.>",
    *_consumers("OBJ_SNAPSHOTS"),
    "$JS.API.CONSUMER.INFO.OBJ_SNAPSHOTS.>",
    "$JS.API.CONSUMER.DELETE.OBJ_SNAPSHOTS.>",
    "$JS.API.STREAM.PURGE.OBJ_SNAPSHOTS",
    "$JS.API.STREAM.NAMES",  # the library looks up a snapshot's stream by its subject
    "$JS.FC.OBJ_SNAPSHOTS.>",
    "$JS.ACK.OBJ_SNAPSHOTS.>",
)


_REPLIES = tuple(f"cmd.*.desk.{verb}" for verb in ("accept", "decline", "arrive", "done"))
"""What notify asks a desk for a member who answers without an app."""


def _rights(service: str, publish: Sequence[str], subscribe: Sequence[str] = (), *, answers: bool = False) -> Rights:
    return Rights(
        publish=(*_EVERYBODY, f"evt.*.{service}.>", *publish),
        subscribe=(f"_INBOX_{service}.>", *subscribe),
        answers=answers,
    )


# The least each service needs. Only `admin` may create, update, delete or purge a stream of facts.
RIGHTS: Mapping[str, Rights] = {
    "admin": Rights(publish=(">",), subscribe=(">",)),
    "intake": _rights(
        "intake",
        (
            "sealed.>",
            "keys.>",
            *_reads("SEALED"),
            *_reads("KEYS"),
            "$JS.API.STREAM.MSG.DELETE.SEALED",
            "$JS.API.STREAM.MSG.DELETE.KEYS",
            "qry.*.ledger.case",
        ),
        ("qry.*.intake.reach",),
        answers=True,
    ),
    "dispatch": _rights(
        "dispatch",
        (
            *_FOLDS,
            "cmd.*.desk.>",
            "desk.*.alive.>",
            "$KV.CONTACTS.>",
            *_reads("KV_CONTACTS"),
            "$JS.API.STREAM.MSG.DELETE.KV_CONTACTS",
        ),
        ("cmd.*.desk.>", "qry.*.desk.>", "desk.*.alive.>"),
        answers=True,
    ),
    "notify": _rights(
        "notify",
        (*_FOLDS, "notify.*.alive.>", *_reads("KV_CONTACTS"), "qry.*.intake.reach", *_REPLIES),
        ("notify.*.alive.>",),
        answers=True,
    ),
    "ledger": _rights(
        "ledger",
        ("$KV.CHECKPOINTS.>", *_reads("KV_CHECKPOINTS")),
        ("qry.*.ledger.case", "qry.*.witness.*"),
        answers=True,
    ),
}


GATE_RIGHTS = Rights((), ("$SYS.REQ.USER.AUTH", "_INBOX_gate.>"), answers=True)
"""Of the gate, in an account of its own: it hears who wants in, with their tokens, and answers."""

_GROWS = ("find", "insert", "createIndex")
_FOLDED = (*_GROWS, "update", "dropCollection")  # a rebuilt collection takes the other's place

# The least the ledger needs in its database, by collection: the log can only grow, whoever has its password.
MONGO_RIGHTS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("events", "rejects", "tiles", "checkpoints", "cosigs"), _GROWS),
    **dict.fromkeys(("proj_cases", "proj_cases_rebuilt"), _FOLDED),
    "proj_state": ("find", "insert", "update"),
}

_INDEXED = ("find", "listIndexes", "createIndex", "dropIndex", "validate")
# What `paidan ledger rebuild` needs beyond that: tiles that were spoiled, indexes that are wrong. No leaf is in its reach.
MONGO_REPAIR_RIGHTS: Mapping[str, tuple[str, ...]] = {
    "events": _INDEXED,
    "proj_cases": _INDEXED,
    "checkpoints": ("find",),
    "tiles": ("find", "insert", "update"),
}


def accounts(identities: Identities, now: datetime) -> dict[str, str]:
    """
    The accounts that no office has anything to do with, by public key, as the server takes them: SYS, HUB and GATE.

    What HUB exports, an office may import only with HUB's signed consent (`deploy/offices.py`).
    """
    iat = int(now.timestamp())
    unlimited: Claims = {"type": "account", "limits": dict(ACCOUNT_NO_LIMITS)}
    stored = {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}
    hub: Claims = {
        "type": "account",
        "limits": {**ACCOUNT_NO_LIMITS, **stored},
        "exports": [
            {"name": "live", "subject": "live.evt.*.>", "type": "stream", "token_req": True},
            {"name": "commands", "subject": "cmd.*.desk.>", "type": "service", "token_req": True},
            {"name": "queries", "subject": "qry.*.desk.>", "type": "service", "token_req": True},
            {"name": "witnesses", "subject": "qry.*.witness.>", "type": "service", "token_req": True},
        ],
        "signing_keys": [_scope(identities, name, rights) for name, rights in RIGHTS.items()],
    }
    gate: Claims = {
        **unlimited,
        "signing_keys": [_scope(identities, GATE, GATE_RIGHTS)],
        "authorization": {"auth_users": [identities.user(GATE).public], "allowed_accounts": ["*"]},
    }
    sys: Claims = {**unlimited, "signing_keys": [_scope(identities, "sys", Rights((">",), (">",)))]}
    own = {"SYS": (identities.sys, sys), "HUB": (identities.hub, hub), "GATE": (identities.gate_keys.gate(), gate)}
    operator = identities.operator
    return {key.public: operator.sign(key.public, name, nats, iat=iat) for name, (key, nats) in own.items()}


def bus_config(identities: Identities, *, accounts_dir: Path, now: datetime) -> str:
    """
    The part of nats-server's configuration that says whom it trusts: its operator, where it keeps the accounts of offices, and
    SYS, HUB and GATE to begin with. Who brings no credentials is `nobody`, until the gate has looked at the token.

    Args:
        accounts_dir: the server's folder for accounts; empty at first.
    """
    iat = int(now.timestamp())
    operator, gate = identities.operator, identities.gate_keys.gate()
    declared = operator.sign(operator.public, "paidan", {"type": "operator"}, iat=iat)
    nothing = {"deny": [">"]}
    nobody = {"type": "user", "bearer_token": True, **NO_LIMITS, "pub": nothing, "sub": nothing}
    first = "\n".join(f"  {public}: {token}" for public, token in accounts(identities, now).items())
    return f"""operator: {declared}
system_account: {identities.sys.public}
default_sentinel: {gate.sign(identities.user("nobody").public, "nobody", nobody, iat=iat)}
resolver {{ type: full, dir: {json.dumps(str(accounts_dir))}, allow_delete: true, interval: "2m", limit: 10000 }}
resolver_preload {{
{first}
}}
"""


def nats_config(
    identities: Identities,
    *,
    port: int,
    store: Path,
    host: str = "127.0.0.1",
    monitor_port: int | None = None,
    websocket_port: int | None = None,
    origins: Sequence[str] = (),
    tls_file: Path | None = None,
    server_name: str = "paidan",
    now: datetime | None = None,
) -> str:
    """
    nats-server's configuration: whom it trusts (`bus_config`), and JetStream that syncs before it says yes.

    Args:
        store: JetStream's folder; the accounts are kept beside it.
        monitor_port: plain HTTP for `/healthz` and `/jsz`, on loopback whatever the host; None for no such port.
        websocket_port: for browsers, whose page must come from one of `origins`; None for no such port.
        tls_file: certificate and key; clients then have to begin with the handshake, before a word in the clear.
    """
    where = f"[{host}]" if ":" in host else host
    monitor = f'http: "127.0.0.1:{monitor_port}"\n' if monitor_port else ""
    # A client that waits for the server's greeting believes a plain one that says no TLS is needed, and sends its token.
    tls = _tls(tls_file, more="handshake_first: true") if tls_file else ""
    websocket = ""
    if websocket_port:
        privacy = _tls(tls_file) if tls_file else "no_tls: true, "
        pages = json.dumps([*origins])
        websocket = f'websocket {{ listen: "{where}:{websocket_port}", {privacy}allowed_origins: {pages} }}\n'
    trusted = bus_config(identities, accounts_dir=store.parent / "accounts", now=now or datetime.now(UTC))
    return f"""server_name: {json.dumps(server_name)}
listen: "{where}:{port}"
{monitor}{tls}{websocket}jetstream {{
  store_dir: {json.dumps(str(store))}
  # Without it JetStream says yes before the disk does: a power loss then takes up to two minutes of facts.
  sync_interval: always
}}
{trusted}"""


def _tls(file: Path, *, more: str = "") -> str:
    name = json.dumps(str(file))
    return f'tls {{ cert_file: {name}, key_file: {name}, min_version: "1.3", timeout: 5, {more} }}\n'


def _scope(identities: Identities, name: str, rights: Rights) -> Claims:
    signer = identities.signer(name)
    return scope(signer, name, publish=rights.publish, subscribe=rights.subscribe, answers=rights.answers)


def _keep(file: Path, make: Callable[[], str]) -> None:
    """Write what `make` gives, unless the file is there."""
    if not file.exists():
        write_secret(file, make())


def _follow(file: Path, text: str) -> None:
    """Write a text that follows from what is kept, unless the file says so already."""
    if not file.exists() or file.read_text() != text:
        write_secret(file, text)


def write_secret(file: Path, text: str) -> None:
    """Write a file that only its owner reads, in place of what was there: on the disk when this returns, and whole or not at all."""
    fresh = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as out:
        out.write(text)
        out.flush()
        os.fsync(descriptor)
    fresh.replace(file)
    folder = os.open(file.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def _signing_key(file: Path) -> Ed25519PrivateKey:
    key = load_pem_private_key(file.read_bytes(), password=None)
    assert isinstance(key, Ed25519PrivateKey)
    return key


def _new_signing_key() -> str:
    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
