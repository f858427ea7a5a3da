"""Who is calling: bearer tokens (JWT), who may issue them, their roles and their district."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import jwt
from pydantic import BaseModel, ConfigDict, Field, field_validator

from shared.errors import RefusedError
from shared.keys import REFRESH_S, Discovered, Held, Keys, Source, Watched, private, read_keys
from shared.telemetry import logger

AUDIENCE = "paidan"
ISSUER = "paidan"
"""Who issues the stack's own tokens."""
REPLIES = "paidan-replies"
"""Who issues the tokens behind a short reply: for a member, and for nothing but the answer to an offer."""
LEEWAY_S = 5
"""How much clocks may differ."""
TOKEN_CHARS_MAX = 8192
KNOWN_MAX = 10_000
EVERYWHERE = "*"
PSEUDONYM = re.compile(r"(?=.*[a-z])[a-z0-9][a-z0-9-]{0,63}")
DISTRICTS = re.compile(r"\*|(?!000000)\d{6}", re.ASCII)
REVOKED = re.compile(rf"{PSEUDONYM.pattern}|(?:{DISTRICTS.pattern}) (?:{PSEUDONYM.pattern})(?: \S+)?", re.ASCII)
"""Whose tokens: of a district, of somebody there, and, where it is said, by which issuer; of somebody in every district."""
EVERYBODY = " "
"""Whose tokens do not count where it cannot be read whose do not. No file can say so."""
Role = Literal["resident", "clerk", "member", "dispatcher", "supervisor", "auditor", "admin"]
ROLES: tuple[Role, ...] = ("resident", "clerk", "member", "dispatcher", "supervisor", "auditor", "admin")
"""In the order of their weight. A resident is anybody, with or without a token."""


@dataclass(frozen=True, slots=True)
class Caller:
    """
    Somebody with a valid token.

    Attributes:
        id: the token's subject, a pseudonym (`m-17`, `staff-4`): it goes into facts, so a name, a mail address or a phone number
            is not accepted.
        district: a code, or `*` for all.
        roles: some of `ROLES`.
        expires, issued: when the token ends and began, seconds since 1970.
        issuer: who issued it.
    """

    id: str
    district: str
    roles: frozenset[str]
    expires: float = field(default=float("inf"), compare=False)
    issued: float = field(default=float("inf"), compare=False)
    issuer: str = field(default=ISSUER, compare=False)

    def of(self, district: str) -> bool:
        """Whether this district is theirs."""
        return self.district in (district, EVERYWHERE)

    def need(self, *roles: str, district: str | None = None) -> Caller:
        """
        Themselves, if they have one of these roles, or are an admin, and the district is theirs. Everybody is a resident.

        Raises:
            RefusedError: `forbidden` (403), `foreign_district`.
        """
        if "resident" not in roles and not self.roles & {*roles, "admin"}:
            raise RefusedError("forbidden", need=" / ".join(roles))
        if district is not None and not self.of(district):
            raise RefusedError("foreign_district", district=district, yours=self.district)
        return self

    def one(self, asked: str | None) -> str:
        """
        The district that they mean: the one asked for, or their own.

        Raises:
            RefusedError: `foreign_district`; for somebody of every district `district_missing` where they name none, and
                `unknown_district` where it is none: it becomes part of a subject.
        """
        if (district := asked or self.district) == EVERYWHERE:
            raise RefusedError("district_missing", field="district")
        if not self.of(district):
            raise RefusedError("foreign_district", district=district, yours=self.district)
        if not DISTRICTS.fullmatch(district):
            raise RefusedError("unknown_district", district=district, field="district")
        return district

    @property
    def actor(self) -> str:
        """How facts name them: their weightiest role and their pseudonym."""
        role = next((r for r in reversed(ROLES) if r in self.roles), "caller")
        return f"{role}:{self.id}"


class Issuer(BaseModel):
    """
    Somebody whose tokens count, and how far.

    Attributes:
        issuer: its `iss`, exactly; of an OIDC issuer the URL before `/.well-known/openid-configuration`.
        audience: what its tokens must name as `aud`.
        sub, district, roles: the claims that hold them; `realm_access.roles` is the claim `roles` inside `realm_access`.
        names: its names of roles → ours; empty: the same names. What is neither is no role.
        may: the roles that it may give anybody.
        districts: the districts that it may speak for; `*` for all, and then also for `*`.
        leeway_s: how much its clock may differ from ours.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    issuer: str = Field(min_length=1, max_length=200)
    audience: str = Field(AUDIENCE, min_length=1)
    sub: str = "sub"
    district: str = "district"
    roles: str = "roles"
    names: dict[str, Role] = {}
    may: tuple[Role, ...] = ROLES
    districts: tuple[str, ...] = (EVERYWHERE,)
    leeway_s: int = Field(LEEWAY_S, ge=0, le=120)

    def caller(self, claims: Mapping[str, Any]) -> Caller:
        """
        Whom its claims, which have been checked, stand for.

        Raises:
            jwt.InvalidTokenError, TypeError, ValueError: they name nobody.
        """
        held = claim(claims, self.roles)
        theirs = held.split() if isinstance(held, str) else [str(name) for name in held or ()]
        roles = {self.names.get(name) for name in theirs} if self.names else set(theirs)
        caller = Caller(
            str(claim(claims, self.sub) or ""),
            str(claim(claims, self.district) or ""),
            frozenset(role for role in self.may if role in roles),
            float(claims["exp"]),
            float(claims["iat"]),
            self.issuer,
        )
        if not PSEUDONYM.fullmatch(caller.id):
            raise jwt.InvalidTokenError(f"{self.sub} is no pseudonym such as m-17")
        if not DISTRICTS.fullmatch(caller.district):
            raise jwt.InvalidTokenError(f"{self.district} is neither a code nor *")
        if caller.district not in self.districts and EVERYWHERE not in self.districts:
            raise jwt.InvalidTokenError(f"this issuer does not speak for {caller.district}")
        return caller


class OidcIssuer(Issuer):
    """
    An OIDC issuer, whose keys are fetched. It has to be said for whom it speaks; unless that is said as well, it makes nobody an
    admin, and nobody an auditor of all districts.
    """

    may: tuple[Role, ...] = tuple(role for role in ROLES if role != "admin")
    districts: tuple[Annotated[str, Field(pattern=r"^(\*|[0-9]{6})$")], ...] = Field(min_length=1)
    leeway_s: int = Field(30, ge=0, le=120)

    _reached_by_https = field_validator("issuer")(private)

    def caller(self, claims: Mapping[str, Any]) -> Caller:
        """As of any issuer."""
        caller = super().caller(claims)
        if caller.district == EVERYWHERE and "may" not in self.model_fields_set:
            return replace(caller, roles=caller.roles - {"auditor"})
        return caller


OWN = Issuer(issuer=ISSUER)
SHORT_REPLIES = Issuer(issuer=REPLIES, may=("member",))


def claim(claims: Mapping[str, Any], name: str) -> Any:
    """A claim by its name, or by a path of names with dots; None where there is none."""
    if name in claims:
        return claims[name]
    first, _, rest = name.partition(".")
    inner = claims.get(first)
    return claim(inner, rest) if rest and isinstance(inner, dict) else None


class Settings(Protocol):
    """What a doorkeeper reads of a service's settings."""

    @property
    def jwks_file(self) -> Path | None:
        """Public keys of the stack's own issuers."""

    @property
    def revoked_file(self) -> Path | None:
        """Tokens that no longer count."""

    @property
    def oidc(self) -> Sequence[OidcIssuer]:
        """Other issuers."""


class Doorkeeper:
    """
    Checks tokens against the keys of the issuers it knows; a valid token is remembered until it expires.

    The keys of the stack's own issuers are in one file, read again when it changes: those of `paidan`, and, marked by a member
    `"iss": "paidan-replies"` of the key, those for short replies. Those of OIDC issuers are fetched when a token by a key that is
    not known comes (`admit`), and while `follow` runs.

    Args:
        issuers: with where their keys come from.
        revoked: `<district> <sub>`, `<district> <sub> <issuer>`, or `<sub>`, of every district → seconds since 1970; what was
            issued up to then does not count.
    """

    def __init__(
        self, issuers: Sequence[tuple[Issuer, Source]], revoked: Watched[Mapping[str, float]] | None = None
    ) -> None:
        self._issuers = {issuer.issuer: (issuer, source) for issuer, source in issuers}
        if len(self._issuers) < len(issuers):
            raise ValueError("two issuers with one name")
        self._revoked = revoked
        self._known: dict[str, tuple[Caller, Keys]] = {}

    @classmethod
    def of(cls, settings: Settings) -> Doorkeeper:
        """
        By a service's settings. While the list of what is revoked cannot be read, nobody is let in.

        Raises:
            OSError, ValueError: the file of keys is missing or unfit.
        """
        issuers = _own(settings.jwks_file) if settings.jwks_file else []
        others = [(issuer, Discovered(issuer.issuer)) for issuer in settings.oidc]
        revoked: Watched[Mapping[str, float]] | None = None
        if file := settings.revoked_file:
            revoked = Watched(file, _Revocations(), missing={}, unfit={EVERYBODY: float("inf")})
        return cls([*issuers, *others], revoked)

    @classmethod
    def from_file(cls, path: Path | None) -> Doorkeeper:
        """From a JWKS file alone; from None a doorkeeper who lets nobody in."""
        return cls(_own(path) if path else [])

    def check(self, token: str | None, *, replies: bool = False) -> Caller:
        """
        The caller, by the keys that are known now.

        Args:
            replies: whether a short reply's token will do.
        Raises:
            RefusedError: `unauthenticated` (401): none, forged, expired, revoked, for somebody else, or by a key we do not know.
        """
        if not token:
            raise _no("no token")
        caller = self.known(token)
        if caller is None:
            caller, keys = self._decoded(token)
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            self._known[token] = caller, keys
        if not self.holds(caller):
            raise _no("it was revoked")
        if caller.issuer == REPLIES and not replies:
            raise _no("it answers an offer and opens nothing else")
        return caller

    async def admit(self, token: str | None, *, replies: bool = False) -> Caller:
        """As `check`, and where its issuer may have a new key, after a look. Raises as `check`."""
        try:
            return self.check(token, replies=replies)
        except UnknownKeyError as why:
            await why.source.refresh()
        return self.check(token, replies=replies)

    def known(self, token: str) -> Caller | None:
        """The caller of a token that was checked before and has not expired; it may have been revoked since."""
        found = self._known.get(token)
        if found is None:
            return None
        caller, keys = found
        # Other keys: perhaps the one that it was checked by is gone.
        if caller.expires > time.time() and self._issuers[caller.issuer][1].keys is keys:
            return caller
        del self._known[token]
        return None

    def claimed(self, token: str) -> str:
        """
        Who a token says it is for. That costs next to nothing and proves nothing: the signature is not looked at.

        Raises:
            RefusedError: `unauthenticated`: it needs no look at the signature; `UnknownKeyError` as for `admit`.
        """
        try:
            issuer, _, _, said = self._said(token)
            if not PSEUDONYM.fullmatch(sub := str(claim(said["payload"], issuer.sub))):
                raise jwt.InvalidTokenError(f"{issuer.sub} is no pseudonym such as m-17")
            return sub
        except (jwt.PyJWTError, TypeError, ValueError) as why:
            raise _no(str(why)) from None

    def holds(self, caller: Caller) -> bool:
        """
        Whether a token that was checked has not been revoked since. Its end is `Caller.expires`.

        As its issuer's clock may be ahead, what was issued shortly after does not count either.
        """
        if self._revoked is None:
            return True
        until, who = self._revoked.value, f"{caller.district} {caller.id}"
        theirs = (caller.id, who, f"{who} {caller.issuer}", EVERYBODY)
        at = max(until.get(named, float("-inf")) for named in theirs)
        return caller.issued > at + self._issuers[caller.issuer][0].leeway_s

    async def follow(self) -> None:
        """Keep what is fetched fresh, until cancelled."""
        fetched = [source for _, source in self._issuers.values() if isinstance(source, Discovered)]
        while fetched:
            await asyncio.gather(*(source.refresh() for source in fetched))
            await asyncio.sleep(REFRESH_S)

    def _said(self, token: str) -> tuple[Issuer, Keys, jwt.PyJWK, Mapping[str, Any]]:
        """The issuer that it names, the keys of that, the one that it names, and what it says: all unchecked."""
        if len(token) > TOKEN_CHARS_MAX:
            raise _no("it is too long")
        said = jwt.decode_complete(token, options={"verify_signature": False})
        issuer, source = self._issuers.get(said["payload"].get("iss", ""), (None, None))
        if issuer is None or source is None:
            raise jwt.InvalidTokenError("its issuer is not known")
        keys = source.keys
        key = keys.get(said["header"].get("kid", ""))
        if key is None:
            raise UnknownKeyError(source)
        if "crit" in said["header"]:
            raise jwt.InvalidTokenError("it asks for what nobody here knows")
        return issuer, keys, key, said

    def _decoded(self, token: str) -> tuple[Caller, Keys]:
        try:
            # Unchecked, to choose the issuer by; the issuer's keys then decide, and `iss` is asked for again.
            issuer, keys, key, _ = self._said(token)
            claims = jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                audience=issuer.audience,
                issuer=issuer.issuer,
                leeway=issuer.leeway_s,
                options={"require": ["exp", "iat", "sub", "aud", "iss"]},
            )
            return issuer.caller(claims), keys
        except (jwt.PyJWTError, TypeError, ValueError) as why:
            raise _no(str(why)) from None


class UnknownKeyError(RefusedError):
    """Its issuer is known and the key is not, or not yet."""

    def __init__(self, source: Source) -> None:
        super().__init__("unauthenticated", why="unknown key")
        self.source = source


def _no(why: str) -> RefusedError:
    return RefusedError("unauthenticated", why=why)


def _own(path: Path) -> list[tuple[Issuer, Source]]:
    file = Watched(path, _by_issuer)
    return [(issuer, Held(file, issuer.issuer)) for issuer in (OWN, SHORT_REPLIES)]


def _by_issuer(document: Any) -> Mapping[str, Keys]:
    read_keys(document)  # raises where it is none
    entries: dict[str, list[Any]] = {}
    for entry in document["keys"]:
        if isinstance(entry, dict):
            entries.setdefault(str(entry.get("iss", ISSUER)), []).append(entry)
    return {issuer: read_keys({"keys": theirs}) for issuer, theirs in entries.items()}


class _Revocations:
    """
    Reads whose tokens no longer count. An entry that cannot be read opens nothing and spoils no other: where the time is unfit it
    counts for ever, and as long as any is unfit, what counted before counts.
    """

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def __call__(self, document: Any) -> Mapping[str, float]:
        if not isinstance(document, dict):
            raise ValueError("an object is expected: `<district> <sub>` → seconds since 1970")
        timed = {who: at if type(at) in (int, float) else float("inf") for who, at in document.items()}
        read: dict[str, float] = {who: at for who, at in timed.items() if REVOKED.fullmatch(who)}
        if unfit := sum(who not in read or timed[who] != at for who, at in document.items()):
            logger().error("revocations_not_read", entries=unfit, read=len(read))
            read |= {who: max(at, read.get(who, at)) for who, at in self._last.items()}
        self._last = read
        return read


def bearer(header: str | None) -> str | None:
    """The token in an `Authorization` header."""
    scheme, _, token = (header or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token else None
