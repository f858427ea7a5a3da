"""
The bus's own tokens: NATS keys and the JWTs they sign (operator, account, user), as `nats-server` reads them.

Keys follow from a secret and a name, so that what is signed today can be signed again tomorrow from the same few files.
"""

import json
import secrets
from base64 import b32encode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from hmac import digest
from typing import Any, Literal

import nkeys

Kind = Literal["operator", "account", "user"]
_PREFIXES: Mapping[Kind, int] = {
    "operator": nkeys.PREFIX_BYTE_OPERATOR,
    "account": nkeys.PREFIX_BYTE_ACCOUNT,
    "user": nkeys.PREFIX_BYTE_USER,
}
Claims = dict[str, Any]

NO_LIMITS: Mapping[str, Any] = {"subs": -1, "data": -1, "payload": -1}
ACCOUNT_NO_LIMITS: Mapping[str, Any] = {
    **NO_LIMITS,
    "conn": -1,
    "leaf": 0,
    "imports": -1,
    "exports": -1,
    "wildcards": True,
}
"""Without JetStream: an account has none that is not given it."""


@dataclass(frozen=True)
class Key:
    """A key pair; `seed` is its secret half, `public` what others know it by."""

    seed: str
    public: str

    @classmethod
    def of(cls, seed: str) -> "Key":
        """From its seed. Raises ValueError where it is none."""
        try:
            public: bytes = nkeys.from_seed(seed.strip().encode()).public_key
        except Exception as why:
            raise ValueError("no NKey seed") from why
        return cls(seed.strip(), public.decode())

    @classmethod
    def derive(cls, secret: str, kind: Kind, *names: str) -> "Key":
        """The key of this name under a secret: always the same, and nobody without the secret can tell it."""
        return cls._made(kind, digest(secret.encode(), "/".join(("paidan", kind, *names)).encode(), "sha256"))

    @classmethod
    def new(cls, kind: Kind) -> "Key":
        """A key that nobody has seen before."""
        return cls._made(kind, secrets.token_bytes(32))

    @classmethod
    def _made(cls, kind: Kind, raw: bytes) -> "Key":
        seed: bytes = nkeys.encode_seed(raw, _PREFIXES[kind])
        return cls.of(seed.decode())

    def sign(self, subject: str, name: str, nats: Mapping[str, Any], *, iat: int, unlike: str = "", **more: Any) -> str:
        """
        A JWT about `subject`. The same claims give the same token.

        Args:
            unlike: what tells it from others with the same claims: to a server the very account that it has deleted is old news.
        """
        claims: Claims = {"iat": iat, "iss": self.public, "sub": subject, "name": name, **more}
        claims["nats"] = {**nats, "version": 2}
        claims["jti"] = b32encode(sha256((json.dumps(claims) + unlike).encode()).digest()).decode().rstrip("=")
        text = f"{_encode({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_encode(claims)}"
        signature: bytes = nkeys.from_seed(self.seed.encode()).sign(text.encode())
        return f"{text}.{_base64url(signature)}"


def read(token: str) -> Claims:
    """What a JWT says, unchecked: for those that came from the server itself. Raises ValueError."""
    try:
        body = token.split(".")[1]
        claims: Claims = json.loads(urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (IndexError, ValueError) as why:
        raise ValueError("no JWT") from why
    return claims


def scope(
    key: Key,
    role: str,
    *,
    publish: Sequence[str],
    subscribe: Sequence[str],
    answers: bool = False,
    web: bool = False,
    description: str = "",
) -> Claims:
    """
    A signing key of an account, and all that the users may do for whom it signs: the server takes it from here, not from them.

    Args:
        answers: a reply to whoever asked, once, for 30 s.
        web: over WebSocket too.
    """
    template: Claims = {
        # An empty list would permit everything.
        "pub": {"allow": [*publish]} if publish else {"deny": [">"]},
        "sub": {"allow": [*subscribe]} if subscribe else {"deny": [">"]},
        **NO_LIMITS,
        "allowed_connection_types": ["STANDARD", "WEBSOCKET"] if web else ["STANDARD"],
    }
    if answers:
        template["resp"] = {"max": 1, "ttl": 30_000_000_000}
    return {"kind": "user_scope", "key": key.public, "role": role, "description": description, "template": template}


def user(signer: Key, account: str, subject: str, name: str, *, iat: int, **more: Any) -> str:
    """A user of an account, who may do what the signer's scope says."""
    return signer.sign(subject, name, {"type": "user", "issuer_account": account}, iat=iat, **more)


def credentials(token: str, seed: str) -> str:
    """A user's token and seed in one file, as every NATS client reads it (`.creds`)."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )


def _encode(document: Mapping[str, Any]) -> str:
    return _base64url(json.dumps(document).encode())


def _base64url(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()
