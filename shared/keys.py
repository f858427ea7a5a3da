"""Public keys by which tokens are checked: a JWKS file that may change, or an OIDC issuer's that are fetched and rotate."""

from __future__ import annotations

import asyncio
import ssl
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from time import monotonic
from typing import Any, Generic, Protocol, TypeVar
from urllib.parse import urlsplit

import httpx2
import jwt
import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shared.telemetry import logger

ALGORITHMS = ("EdDSA", "ES256", "RS256")
"""Asymmetric only: nobody who can check a token can make one."""
RSA_BITS_MIN = 2048
DOCUMENT_BYTES_MAX = 256 * 1024
LOOK_S = 1.0
"""How often a file is looked at."""
FETCH_WITHIN_S = 5.0
REFRESH_S = 300.0
"""How long a key that its issuer has withdrawn is still believed, where the issuer answers."""
PAUSE_S = 10.0
"""Between two fetches, whatever is asked: tokens with made-up keys cost an issuer no more than this."""

T = TypeVar("T")
Keys = Mapping[str, jwt.PyJWK]
"""By `kid`."""


class Source(Protocol):
    """Where an issuer's keys come from."""

    @property
    def keys(self) -> Keys:
        """Those that are known now; another object once they have changed."""

    async def refresh(self) -> None:
        """Look again, where that may help. Never raises: what is known stays."""


def read_keys(document: Any) -> dict[str, jwt.PyJWK]:
    """
    The keys of a JWKS document that may check a signature of ours. Others are left out, and do not spoil the rest.

    Raises:
        ValueError: it is no JWKS document.
    """
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise ValueError("this is no JWKS document: an object with a list `keys` is expected")
    found = {}
    for entry in document["keys"]:
        if not isinstance(entry, dict) or not isinstance(entry.get("kid"), str) or entry.get("use", "sig") != "sig":
            continue
        with suppress(jwt.PyJWTError, ValueError, TypeError, KeyError):
            key = jwt.PyJWK.from_dict(entry)
            small = isinstance(key.key, RSAPublicKey) and key.key.key_size < RSA_BITS_MIN
            if key.algorithm_name in ALGORITHMS and not small and "d" not in entry:
                found[entry["kid"]] = key
    return found


def public_jwk(key: Ed25519PrivateKey) -> dict[str, str]:
    """The public half in the form of RFC 8037; `kid` is its thumbprint (RFC 7638)."""
    x = _base64url(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))
    thumbprint = sha256(f'{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}'.encode()).digest()
    return {"kty": "OKP", "crv": "Ed25519", "x": x, "kid": _base64url(thumbprint), "alg": "EdDSA", "use": "sig"}


def _base64url(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


class Watched(Generic[T]):
    """
    A file as `read` understands it, read again within a second of its change.

    A change that cannot be read leaves what there was, and says so in the log; so does a file that has gone.

    Args:
        read: raises ValueError for what it does not understand.
        missing: what holds where the file is not there at first; left out, that is an error.
        unfit: what holds where it is there and cannot be read at first, until it can; left out, that is an error.
    Raises:
        OSError, ValueError: it cannot be read the first time.
    """

    def __init__(
        self, path: Path, read: Callable[[Any], T], *, missing: T | None = None, unfit: T | None = None
    ) -> None:
        self._path = path
        self._read = read
        self._looked = monotonic()
        self._seen = self._stamp()
        if self._seen is None and missing is not None:
            self._value = missing
            return
        try:
            self._value = read(orjson.loads(path.read_bytes()))
        except (OSError, ValueError) as why:
            if unfit is None:
                raise
            logger().error("file_not_read", file=path.name, why=str(why))
            self._value = unfit

    @property
    def value(self) -> T:
        """As the file is now."""
        if (now := monotonic()) - self._looked > LOOK_S:
            self._looked = now
            stamp = self._stamp()
            if stamp is not None and stamp != self._seen:
                self._seen = stamp
                try:
                    self._value = self._read(orjson.loads(self._path.read_bytes()))
                except (OSError, ValueError) as why:
                    logger().error("file_not_read", file=self._path.name, why=str(why))
        return self._value

    def _stamp(self) -> tuple[int, ...] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


class Held:
    """The keys of one issuer in a file that several may share: `pick` takes those that are its own."""

    def __init__(self, file: Watched[Mapping[str, Keys]], issuer: str) -> None:
        self._file = file
        self._issuer = issuer

    @property
    def keys(self) -> Keys:
        """As in the file."""
        return self._file.value.get(self._issuer, NONE)

    async def refresh(self) -> None:
        """The file is looked at anyway."""


NONE: Keys = {}


class Discovered:
    """
    The keys of an OIDC issuer: its discovery document names where they are.

    Nothing is fetched before somebody asks. Keys that are known stay while the issuer cannot be reached; what it no longer lists goes
    at the next fetch that succeeds.
    """

    def __init__(self, issuer: str, *, pause_s: float = PAUSE_S) -> None:
        self.issuer = issuer
        self._pause_s = pause_s
        self._keys: Keys = NONE
        self._document: Any = None
        self._asked = float("-inf")
        self._fetching: asyncio.Task[None] | None = None

    @property
    def keys(self) -> Keys:
        """As of the last fetch that succeeded."""
        return self._keys

    async def refresh(self) -> None:
        """Fetch, unless that was done a moment ago; whoever asks meanwhile waits for the same answer."""
        if self._fetching is None:
            if monotonic() - self._asked < self._pause_s:
                return
            self._asked = monotonic()
            self._fetching = asyncio.create_task(self._fetch())
            self._fetching.add_done_callback(self._fetched)
        await asyncio.shield(self._fetching)

    def _fetched(self, _: asyncio.Task[None]) -> None:
        self._fetching = None

    async def _fetch(self) -> None:
        try:
            # A deadline for all of it: an issuer that trickles its answer is one that does not answer.
            async with (
                asyncio.timeout(FETCH_WITHIN_S),
                httpx2.AsyncClient(
                    timeout=FETCH_WITHIN_S, follow_redirects=False, trust_env=False, verify=ssl.create_default_context()
                ) as http,
            ):
                found = await _document(http, f"{self.issuer.rstrip('/')}/.well-known/openid-configuration")
                if not isinstance(found, dict) or found.get("issuer") != self.issuer:
                    raise ValueError("the discovery document is another issuer's")
                document = await _document(http, private(str(found.get("jwks_uri"))))
            keys = read_keys(document)
        except Exception as why:  # whatever it answers, or does not: those who are known are not to feel it
            logger().warning("issuer_not_reached", issuer=self.issuer, why=f"{type(why).__name__}: {why}"[:200])
            return
        if document != self._document:
            self._keys, self._document = keys, document
            logger().info("issuer_keys", issuer=self.issuer, keys=len(keys))


def private(url: str) -> str:
    """The URL, if nobody on the way can change what it answers. Raises ValueError where it is not https, nor on this machine."""
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return url
    if parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost"):
        return url
    raise ValueError("an issuer is reached by https")


async def _document(http: httpx2.AsyncClient, url: str) -> Any:
    body = b""
    async with http.stream("GET", url, headers={"Accept": "application/json"}) as response:
        if response.status_code != 200:
            raise ValueError(f"answer {response.status_code}")
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > DOCUMENT_BYTES_MAX:
                raise ValueError("the document is too large")
    return orjson.loads(body)
