"""Who is calling: bearer tokens (JWT), their roles and their district."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt

from shared.errors import RefusedError

AUDIENCE = "paidan"
ALGORITHMS = ["EdDSA", "ES256", "RS256"]
"""Asymmetric only: nobody who can check a token can make one."""
EVERYWHERE = "*"
PSEUDONYM = re.compile(r"(?=.*[a-z])[a-z0-9][a-z0-9-]{0,63}")
DISTRICTS = re.compile(r"\*|(?!000000)\d{6}", re.ASCII)
ROLES = ("clerk", "member", "dispatcher", "supervisor", "auditor", "admin")


@dataclass(frozen=True, slots=True)
class Caller:
    """
    Somebody with a valid token.

    Attributes:
        id: the token's subject, a pseudonym (`m-17`, `staff-4`): it goes into facts, so a name, a mail address or a phone number
            is not accepted.
        district: a code, or `*` for all.
        roles: some of `ROLES`.
        expires: when the token ends, seconds since 1970.
    """

    id: str
    district: str
    roles: frozenset[str]
    expires: float = field(default=float("inf"), compare=False)

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
        self._known: dict[str, Caller] = {}

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
        if (known := self._known.get(token)) and known.expires > time.time():
            return known
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
                str(claims["sub"]),
                str(claims.get("district", "")),
                frozenset(map(str, claims.get("roles", ()))),
                float(claims["exp"]),
            )
            if not PSEUDONYM.fullmatch(caller.id):
                raise jwt.InvalidTokenError("sub is no pseudonym such as m-17")
            if not DISTRICTS.fullmatch(caller.district):
                raise jwt.InvalidTokenError("district is neither a code nor *")
        except (jwt.PyJWTError, TypeError, ValueError) as why:
            raise RefusedError("unauthenticated", why=str(why)) from None
        if len(self._known) > 10_000:
            self._known.clear()
        self._known[token] = caller
        return caller


def bearer(header: str | None) -> str | None:
    """The token in an `Authorization` header."""
    scheme, _, token = (header or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token else None
