"""
Who is who in the stack: bus keys, token keys and secrets, made once and kept in one folder that only its owner reads.

The folder is `<data>/secrets` (0700, files 0600): `nats/<name>.seed`, `<service>/<secret>` (what that service is given,
and nothing else), `tokens.pem`, `jwks.json`, `mongo/<user>` and `mongo/keyfile`.
"""

import json
import os
import secrets
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import jwt
import nkeys
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

SERVICES = ("intake", "dispatch", "notify", "ledger")
NATS_NAMES = ("admin", *SERVICES, "sys")

# What each service is given in its secrets folder: 32 random bytes each, as hex.
SERVICE_SECRETS: Mapping[str, tuple[str, ...]] = {
    "intake": ("intake_secret", "contact_pepper", "district_kek"),
    "dispatch": (),
    "notify": (),
    "ledger": ("ledger_cursor_secret",),
}
MONGO_USERS = ("admin", "ledger", "auditor")

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
        The identities kept in `folder`, made on the first call; what exists is never replaced.

        Raises:
            OSError: the folder cannot be written.
        """
        identities = cls(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for place in (folder, *(folder / name for name in ("nats", "mongo", *SERVICES))):
            place.mkdir(exist_ok=True)
            place.chmod(0o700)
        for name in NATS_NAMES:
            _keep(identities.seed_file(name), _new_user_seed)
        for service, names in SERVICE_SECRETS.items():
            for name in names:
                _keep(folder / service / name, lambda: secrets.token_hex(32))
        for user in MONGO_USERS:
            _keep(folder / "mongo" / user, lambda: secrets.token_hex(32))
        _keep(identities.mongo_keyfile, lambda: b64encode(secrets.token_bytes(96)).decode())
        _keep(folder / "tokens.pem", _new_signing_key)
        _keep(identities.jwks_file, lambda: json.dumps({"keys": [_jwk(identities.signing_key)]}, indent=2))
        return identities

    def seed_file(self, name: str) -> Path:
        """The file with the NKey seed of `admin`, `intake`, `dispatch`, `notify`, `ledger` or `sys`."""
        return self.folder / "nats" / f"{name}.seed"

    def seed(self, name: str) -> str:
        """The NKey seed of one of `NATS_NAMES`: `bus.connect(url, seed=identities.seed("dispatch"))`."""
        return self.seed_file(name).read_text().strip()

    def public_key(self, name: str) -> str:
        """The public NKey (`U…`) that the server knows this name by."""
        public: bytes = nkeys.from_seed(self.seed(name).encode()).public_key
        return public.decode()

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
        """Whose tokens no longer count: `sub` → seconds since 1970, up to which they were issued. It need not be there."""
        return self.folder / "revoked.json"

    @property
    def signing_key(self) -> Ed25519PrivateKey:
        """The key that signs tokens."""
        key = load_pem_private_key((self.folder / "tokens.pem").read_bytes(), password=None)
        assert isinstance(key, Ed25519PrivateKey)
        return key


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
    return jwt.encode(claims, key, algorithm="EdDSA", headers={"kid": _jwk(key)["kid"]})


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
        (*_FOLDS, "cmd.*.desk.>", "desk.*.alive.>", "$KV.CONTACTS.>", *_reads("KV_CONTACTS")),
        ("cmd.*.desk.>", "desk.*.alive.>"),
        answers=True,
    ),
    "notify": _rights(
        "notify",
        (*_FOLDS, "notify.*.alive.>", *_reads("KV_CONTACTS"), "qry.*.intake.reach"),
        ("notify.*.alive.>",),
        answers=True,
    ),
    "ledger": _rights("ledger", (), ("qry.*.ledger.case",), answers=True),
}


_GROWS = ("find", "insert", "createIndex")
_FOLDED = (*_GROWS, "update", "dropCollection")  # a rebuilt collection takes the other's place

# The least the ledger needs in its database, by collection: the log can only grow, whoever has its password.
MONGO_RIGHTS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("events", "rejects", "tiles", "checkpoints", "cosigs"), _GROWS),
    **dict.fromkeys(("proj_cases", "proj_cases_rebuilt"), _FOLDED),
    "proj_state": ("find", "insert", "update"),
}


def nats_config(
    identities: Identities,
    *,
    port: int,
    store: Path,
    host: str = "127.0.0.1",
    monitor_port: int | None = None,
    tls_file: Path | None = None,
    server_name: str = "paidan",
) -> str:
    """
    nats-server's configuration: accounts SYS and HUB, an NKey per name, JetStream that syncs before it says yes.

    Args:
        store: JetStream's folder.
        monitor_port: plain HTTP for `/healthz` and `/jsz`, on loopback whatever the host; None for no such port.
        tls_file: certificate and key; clients then have to begin with the handshake, before a word in the clear.
    """
    users = ",\n".join(_user(identities.public_key(name), rights) for name, rights in RIGHTS.items())
    monitor = f'http: "127.0.0.1:{monitor_port}"\n' if monitor_port else ""
    # A client that waits for the server's greeting believes a plain one that says no TLS is needed, and sends its token.
    tls = _tls(tls_file, more="handshake_first: true") if tls_file else ""
    return f"""server_name: {json.dumps(server_name)}
listen: "{f"[{host}]" if ":" in host else host}:{port}"
{monitor}{tls}jetstream {{
  store_dir: {json.dumps(str(store))}
  # Without it JetStream says yes before the disk does: a power loss then takes up to two minutes of facts.
  sync_interval: always
}}
system_account: SYS
accounts {{
  SYS {{ users: [ {{ nkey: {identities.public_key("sys")} }} ] }}
  HUB {{
    jetstream: enabled
    users: [
{users}
    ]
  }}
}}
"""


def _tls(file: Path, *, more: str = "") -> str:
    name = json.dumps(str(file))
    return f'tls {{ cert_file: {name}, key_file: {name}, min_version: "1.3", timeout: 5, {more} }}\n'


def _user(public_key: str, rights: Rights) -> str:
    publish, subscribe = json.dumps(rights.publish), json.dumps(rights.subscribe)
    answers = ', allow_responses: { max: 1, expires: "30s" }' if rights.answers else ""
    return (
        f"      {{ nkey: {public_key}, permissions: {{\n"
        f"          publish: {{ allow: {publish} }}\n"
        f"          subscribe: {{ allow: {subscribe} }}{answers} }} }}"
    )


def _keep(file: Path, make: Callable[[], str]) -> None:
    """Write what `make` gives, unless the file is there."""
    if not file.exists():
        write_secret(file, make())


def write_secret(file: Path, text: str) -> None:
    """Write a file that only its owner reads, in place of what was there; a crash leaves the whole file or the old one."""
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as out:
        out.write(text)
        out.flush()
        os.fsync(descriptor)
    fresh.replace(file)


def _new_user_seed() -> str:
    seed: bytes = nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER)
    return seed.decode()


def _new_signing_key() -> str:
    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def _jwk(key: Ed25519PrivateKey) -> dict[str, str]:
    """The public key in the form of RFC 8037; `kid` is its thumbprint (RFC 7638)."""
    x = _base64url(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))
    thumbprint = sha256(f'{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}'.encode()).digest()
    return {"kty": "OKP", "crv": "Ed25519", "x": x, "kid": _base64url(thumbprint), "alg": "EdDSA", "use": "sig"}


def _base64url(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()
