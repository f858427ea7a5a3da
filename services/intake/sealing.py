"""
What nobody may read without a key that can be destroyed: contact, address detail and free text. Pure.

One AES-256-GCM key per resident, wrapped by the district's key. Sealing the same thing twice gives the same bytes (the nonce is
a MAC over the content, in the manner of a synthetic IV): a repeat, or a second instance, can then see that what is
stored is its own, and a commitment made from either fits both.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
NONCE_BYTES = 12
KID_BYTES = 16
KEK_ID_BYTES = 8
VERSION = b"\x01"
UNNAMED_BYTES = NONCE_BYTES + KEY_BYTES + 16
"""A wrapped key that does not name what wraps it."""


class UnreadableError(Exception):
    """A key or a ciphertext that was not made here, or was changed since."""


class ResidentKey:
    """A resident's key, under its public name `kid`; everything that is done with it uses a key derived for that purpose."""

    __slots__ = ("_aead", "_committing", "_nonces", "district", "kid", "new")

    def __init__(self, district: str, kid: str, key: bytes, *, new: bool = False) -> None:
        self.district = district
        self.kid = kid
        self.new = new
        self._aead = AESGCM(hmac.digest(key, b"paidan/seal/1", "sha256"))
        self._nonces = hmac.digest(key, b"paidan/nonce/1", "sha256")
        self._committing = hmac.digest(key, b"paidan/commit/1", "sha256")

    def seal(self, request_id: str, fingerprint: str, parts: Mapping[str, Any]) -> bytes:
        """The ciphertext of a request's personal parts; another body (by its fingerprint) always gives another one."""
        plain = orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)
        nonce = hmac.digest(self._nonces, b"\x1f".join((request_id.encode(), fingerprint.encode(), plain)), "sha256")
        nonce = nonce[:NONCE_BYTES]
        return nonce + self._aead.encrypt(nonce, plain, self._bound(request_id))

    def open(self, request_id: str, sealed: bytes) -> dict[str, Any]:
        """The parts again. Raises UnreadableError."""
        try:
            plain = self._aead.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], self._bound(request_id))
        except (InvalidTag, ValueError):
            raise UnreadableError(f"the ciphertext of {request_id} under {self.kid}") from None
        parts: dict[str, Any] = orjson.loads(plain)
        return parts

    def commitment(self, request_id: str, sealed: bytes) -> str:
        """
        What the fact says of the ciphertext: a salted HMAC, checkable with the key, meaningless once the key is destroyed.

        The salt is derived from the key, so that it goes when the key goes.
        """
        salt = hmac.digest(self._committing, request_id.encode(), "sha256")
        return hmac.digest(salt, sealed, "sha256").hex()

    def same_as(self, other: ResidentKey) -> bool:
        """Whether both are one key, and not two under one name."""
        return hmac.compare_digest(self._committing, other._committing)

    def _bound(self, request_id: str) -> bytes:
        return f"{self.district}/{self.kid}/{request_id}".encode()

    @property
    def subject(self) -> str:
        """Where the wrapped key lies, in stream KEYS."""
        return key_subject(self.district, self.kid)

    def sealed_subject(self, request_id: str) -> str:
        """Where the ciphertext of a request lies, in stream SEALED."""
        return f"sealed.{self.district}.{self.kid}.{request_id}"


class Whose(NamedTuple):
    """Who a key belongs to: a known contact, which may come back, or a single request without one."""

    lookup: str
    lasting: bool


def key_subject(district: str, kid: str) -> str:
    """Where a wrapped key lies, in stream KEYS."""
    return f"keys.{district}.{kid}"


def lookup_subject(district: str, lookup: str) -> str:
    """Where the `kid` of a contact is found, in stream KEYS."""
    return f"keys.{district}.by.{lookup}"


def kek_id(kek: str) -> bytes:
    """By which a wrapped key names what wraps it: tells nothing of it."""
    return hmac.digest(kek.encode(), b"paidan/kek-id/1", "sha256")[:KEK_ID_BYTES]


class Keys:
    """
    Finds and wraps keys with the secrets that stay outside the bus.

    A wrapped key is a byte 1, the id of what wraps it (8), a nonce (12), and the key sealed for its district and name; one
    without the first two is from before there were ids.

    Args:
        keks: what wraps: the first of them wraps anew, the others (while keys are rotated) only open. Asked each time.
    """

    def __init__(self, *, pepper: str, keks: Callable[[], Sequence[str]]) -> None:
        self._pepper = pepper.encode()
        self._keks = keks
        self._of_district: dict[tuple[str, str], AESGCM] = {}

    def whose(self, district: str, contact: str | None, request_id: str) -> Whose:
        """The name under which the resident's key is found; it does not tell who it is, nor match in another district."""
        what = ("contact", contact) if contact is not None else ("request", request_id)
        lookup = hmac.digest(self._pepper, "\x1f".join((district, *what)).encode(), "sha256").hex()
        return Whose(lookup, contact is not None)

    @property
    def current(self) -> bytes:
        """The id of what wraps now."""
        return kek_id(self._keks()[0])

    def is_current(self, wrapped: bytes) -> bool:
        """Whether a stored key is wrapped as it would be now."""
        return wrapped.startswith(VERSION + self.current)

    def wrap(self, district: str, kid: str, key: bytes, nonce: bytes) -> bytes:
        """A resident's key as it is stored."""
        kek = self._keks()[0]
        sealed = self._wrapping(district, kek).encrypt(nonce, key, f"{district}/{kid}".encode())
        return VERSION + kek_id(kek) + nonce + sealed

    def unwrap(self, district: str, kid: str, wrapped: bytes) -> ResidentKey:
        """A stored key, ready for use. Raises UnreadableError."""
        return ResidentKey(district, kid, self._unwrapped(district, kid, wrapped))

    def rewrap(self, district: str, kid: str, wrapped: bytes, nonce: bytes) -> bytes:
        """The same key, wrapped as it would be now. Raises UnreadableError."""
        return self.wrap(district, kid, self._unwrapped(district, kid, wrapped), nonce)

    def _unwrapped(self, district: str, kid: str, wrapped: bytes) -> bytes:
        keks = self._keks()
        if len(wrapped) > UNNAMED_BYTES:
            keks = [kek for kek in keks if wrapped.startswith(VERSION + kek_id(kek))]
            wrapped = wrapped[1 + KEK_ID_BYTES :]
        for kek in keks:
            try:
                return self._wrapping(district, kek).decrypt(
                    wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], f"{district}/{kid}".encode()
                )
            except (InvalidTag, ValueError):
                continue
        raise UnreadableError(f"the key {kid} of {district}")

    def _wrapping(self, district: str, kek: str) -> AESGCM:
        aead = self._of_district.get((district, kek))
        if aead is None:
            keks = self._keks()
            for known in [known for known in self._of_district if known[1] not in keks]:
                del self._of_district[known]
            info = f"paidan/district/{district}".encode()
            aead = AESGCM(HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(kek.encode()))
            self._of_district[district, kek] = aead
        return aead
