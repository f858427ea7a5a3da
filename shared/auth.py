"""Who is calling: bearer tokens (JWT), their roles and their district."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt

from shared.errors import RefusedError

AUDIENCE = "paidan"
ALGORITHMS = ["EdDSA", "ES256", "RS256"]
"""Asymmetric only: nobody who can check a token can make one."""
EVERYWHERE = "*"
ROLES = ("clerk", "member", "dispatcher", "supervisor", "auditor", "admin")


@dataclass(frozen=True, slots=True)
class Caller:
    """
    Somebody with a valid token.

    Attributes:
        id: the token's subject, a pseudonym (`m-17`, `staff-4`).
        district: a code, or `*` for all.
        roles: some of `ROLES`.
    """

    id: str
    district: str
    roles: frozenset[str]

    def of(self, district: str) -> bool:
        """Whether this district is theirs."""
        return self.district in (district, EVERYWHERE)

    def need(self, *roles: str, district: str | None = None) -> Caller:
        """
        Themselves, if they have one of these roles and the district is theirs.

        Raises:
            RefusedError: `forbidden` (403).
        """
        if not self.roles & {*roles, "admin"}:
            raise RefusedError("forbidden", need=" / ".join(roles))
        if district is not None and not self.of(district):
            raise RefusedError("foreign_district", district=district, yours=self.district)
        return self

    @property
    def actor(self) -> str:
        """How facts name them: their weightiest role and their pseudonym."""
        role = next((r for r in reversed(ROLES) if r in self.roles), "caller")
        return f"{role}:{self.id}"


class Doorkeeper:
    """Checks tokens against the public keys of a JWKS file; a valid token is remembered until it expires."""

    def __init__(self, jwks: dict[str, Any], *, issuer: str | None = "paidan") -> None:
        self._keys = {key.key_id: key for key in jwt.PyJWKSet.from_dict(jwks).keys} if jwks.get("keys") else {}
        self._issuer = issuer
        self._known: dict[str, tuple[float, Caller]] = {}

    @classmethod
    def from_file(cls, path: Path | None) -> Doorkeeper:
        """From a JWKS file; from None a doorkeeper who lets nobody in."""
        return cls(json.loads(path.read_text()) if path else {})

    def check(self, token: str | None) -> Caller:
        """
        The caller.

        Raises:
            RefusedError: `unauthenticated` (401): none, forged, expired, for somebody else, or by a key we do not know.
        """
        if not token:
            raise RefusedError("unauthenticated", why="no token")
        if (known := self._known.get(token)) and known[0] > time.time():
            return known[1]
        try:
            key = self._keys.get(jwt.get_unverified_header(token).get("kid", ""))
            if key is None:
                raise jwt.InvalidTokenError("unknown key")
            claims = jwt.decode(
                token,
                key,
                algorithms=ALGORITHMS,
                audience=AUDIENCE,
                issuer=self._issuer,
                leeway=5,
                options={"require": ["exp", "sub", "aud", "iss"]},
            )
            caller = Caller(
                str(claims["sub"]), str(claims.get("district", "")), frozenset(map(str, claims.get("roles", ())))
            )
        except (jwt.PyJWTError, TypeError, ValueError) as why:
            raise RefusedError("unauthenticated", why=str(why)) from None
        if len(self._known) > 10_000:
            self._known.clear()
        self._known[token] = (float(claims["exp"]), caller)
        return caller


def bearer(header: str | None) -> str | None:
    """The token in an `Authorization` header."""
    scheme, _, token = (header or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token else None
