"""
Every name that intake gives is derived, so that a repeat at any later time, on any instance, comes out the same. Pure.

The secret makes the names unguessable: knowing somebody's Idempotency-Key or a request's id opens nothing.
"""

from __future__ import annotations

import hmac
import re
from typing import Any

import orjson

RESIDENT = "resident"
"""The caller of whoever shows no token."""
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Crockford's base32: no I, L, O, U, so that a code survives being read out on the phone."""
_READ_AS = str.maketrans({"O": "0", "I": "1", "L": "1", "-": None, " ": None})
_CODE = re.compile(f"[{ALPHABET}]{{12}}")


class Naming:
    """Derives ids, codes and hashes from one secret, shared by all instances."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()

    def _derive(self, what: str, *parts: str) -> bytes:
        return hmac.digest(self._secret, "\x1f".join((what, *parts)).encode(), "sha256")

    def request_id(self, caller: str, key: str) -> str:
        """The request that this caller's Idempotency-Key names."""
        return _uuid(self._derive("request", caller, key))

    def fact_id(self, request_id: str, what: str, caller: str = "", key: str = "") -> str:
        """The id of the fact that a caller's key leads to."""
        return _uuid(self._derive("fact", request_id, what, caller, key))

    def fingerprint(self, body: Any) -> str:
        """
        What tells one body from another, whatever its white space and the order of its fields.

        Taken of what was sent, not of what we understood: a field that a later version adds must not change it.
        """
        canonical = orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
        return hmac.digest(self._secret, b"fingerprint\x1f" + canonical, "sha256").hex()

    def tracking_code(self, request_id: str) -> str:
        """60 bits by which a resident finds a request again: `XXXX-XXXX-XXXX`."""
        bits = int.from_bytes(self._derive("tracking", request_id)[:8], "big") >> 4
        code = "".join(ALPHABET[bits >> shift & 31] for shift in range(55, -1, -5))
        return f"{code[:4]}-{code[4:8]}-{code[8:]}"

    def tracking_hash(self, code: str) -> str | None:
        """The only thing stored of a code; small letters, O, I and L are read as meant. None where it cannot be a code."""
        code = code.upper().translate(_READ_AS)
        return self._derive("tracking-hash", code).hex() if _CODE.fullmatch(code) else None


def _uuid(derived: bytes) -> str:
    """As a UUIDv8 (RFC 9562): 122 bits that mean something to nobody but us."""
    h = derived[:16].hex()
    return f"{h[:8]}-{h[8:12]}-8{h[13:16]}-{'89ab'[derived[8] >> 6]}{h[17:20]}-{h[20:]}"
