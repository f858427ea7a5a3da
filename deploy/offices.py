"""
Which office may do what on the bus: from the register and a moment to one account per office, as the server reads it. Pure.

What an office imports is all that it can ever see or reach: its own prefix of `live.evt.`, of every *other* district the
enclaves they share, and commands and queries of its own. Each import carries the hub's signed consent, which for an enclave ends
with the agreement, even if nobody is there to end it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta
from functools import lru_cache

from deploy.claims import ACCOUNT_NO_LIMITS, Claims, Key, scope
from shared.facts import App
from shared.register import Register

CONNECTIONS_MAX = 200
SUBSCRIPTIONS_MAX = 1000
"""Of one connection."""
PAYLOAD_MAX = 64 * 1024
STAFF = ("clerk", "dispatcher", "supervisor", "auditor", "admin")
MEMBER_VERBS = ("accept", "decline", "arrive", "done")
SHARED = ("dispatch", "intake")
"""Whose facts about an enclave its offices share. Whom an office told (`notify`) stays its own, as on every other way."""
NAME = re.compile(r"D(\d{6})", re.ASCII)


@dataclass(frozen=True)
class OfficeKeys:
    """The keys of all offices and their apps, under the operator's secret, which no process but the stack and its commands has."""

    secret: str = field(repr=False)

    def account(self, district: str) -> Key:
        """Whose account it is; its public half is how the server names it."""
        return _derived(self.secret, f"D{district}")

    def app(self, district: str, app: App) -> Key:
        """Signs for one key of one app, and for nothing else: without it among the account's, that app is out at once."""
        return _derived(self.secret, f"D{district}", app.app, app.key)


@dataclass(frozen=True)
class GateKeys:
    """What the gate signs with, under a secret of its own: whoever has it lets people in, and is no app and no office."""

    secret: str = field(repr=False)

    def gate(self) -> Key:
        """The account in which the gate answers."""
        return _derived(self.secret, "GATE")

    def people(self, role: str) -> Key:
        """Signs for `staff` or a `member` of any office that lets its people in."""
        return _derived(self.secret, "people", role)


@lru_cache(4096)
def _derived(secret: str, *names: str) -> Key:
    return Key.derive(secret, "account", *names)


@dataclass(frozen=True, slots=True)
class Office:
    """
    What one office may.

    Attributes:
        apps: the programs that are let in.
        people: whether its people are, with their own tokens.
        live: what it sees, and until when (seconds since 1970; None: without an end known today). No two overlap: the
            server would deliver twice.
    """

    district: str
    apps: tuple[App, ...]
    people: bool
    live: tuple[tuple[str, int | None], ...]

    @property
    def asks(self) -> tuple[str, ...]:
        """Where it may ask for something."""
        return (f"cmd.{self.district}.desk.>", f"qry.{self.district}.desk.>")

    @property
    def witnesses(self) -> str:
        """Where its witness of the ledger asks; an app, no person."""
        return f"qry.{self.district}.witness.>"


def offices(register: Register, now: datetime) -> dict[str, Office]:
    """Every office that is let in at this moment, by district; one with neither apps nor people is not."""
    return {
        district: Office(district, kept.apps, kept.people, tuple(_live(register, district, now)))
        for district, kept in sorted(register.offices.items())
        if kept.apps or kept.people
    }


def _live(register: Register, district: str, now: datetime) -> Iterable[tuple[str, int | None]]:
    yield f"live.evt.{district}.>", None
    today = register.today(district, now)
    for area in sorted({agreement.area for agreement in register.agreements.values()}):
        agreement, parties = register.agreement(area, today), register.parties(area, today)
        if agreement is None or district not in parties:
            continue
        ends = None
        if agreement.valid_to is not None:
            last = datetime.combine(agreement.valid_to, time.min, register.zone(district))
            ends = int((last + timedelta(days=1)).timestamp())
        for other in sorted(set(parties) - {district}):
            for service in SHARED:
                yield f"live.evt.{other}.{service}.{area}.>", ends


def account(office: Office, *, operator: Key, hub: Key, keys: OfficeKeys, gate: GateKeys, now: datetime) -> str:
    """An office's account as the server takes it: a JWT signed by the operator."""
    own = keys.account(office.district)
    imports = [
        *(_import(own.public, hub, subject, "stream", ends) for subject, ends in office.live),
        *(_import(own.public, hub, subject, "service", None) for subject in (*office.asks, office.witnesses)),
    ]
    scopes = [_app(office, app, keys) for app in office.apps]
    if office.people:
        scopes += [_staff(office, gate), _member(office, gate)]
    limits = {**ACCOUNT_NO_LIMITS, "conn": CONNECTIONS_MAX, "subs": SUBSCRIPTIONS_MAX, "payload": PAYLOAD_MAX}
    nats = {"type": "account", "limits": limits, "imports": imports, "signing_keys": scopes}
    return operator.sign(own.public, f"D{office.district}", nats, iat=int(now.timestamp()), unlike=now.isoformat())


def _import(account: str, hub: Key, subject: str, kind: str, ends: int | None) -> Claims:
    # The consent says when it ends, not when it was given: so that the same register gives the same account.
    consent = {"type": "activation", "subject": subject, "kind": kind}
    until: Claims = {"exp": ends} if ends else {}
    token = hub.sign(account, subject, consent, iat=1, **until)
    return {"name": subject, "subject": subject, "account": hub.public, "token": token, "type": kind}


def _app(office: Office, app: App, keys: OfficeKeys) -> Claims:
    return scope(
        keys.app(office.district, app),
        f"app {app.app}",
        publish=(*office.asks, office.witnesses),
        subscribe=("live.evt.>", f"_INBOX_{app.app}.>"),
        web=True,
        description=app.key,
    )


def _staff(office: Office, keys: GateKeys) -> Claims:
    return scope(
        keys.people("staff"),
        "staff",
        publish=office.asks,
        subscribe=("live.evt.>", "_INBOX_{{name()}}.>"),
        web=True,
    )


def _member(office: Office, keys: GateKeys) -> Claims:
    return scope(
        keys.people("member"),
        "member",
        publish=(*(f"cmd.{office.district}.desk.{verb}" for verb in MEMBER_VERBS), f"qry.{office.district}.desk.mine"),
        subscribe=("_INBOX_{{name()}}.>",),
        web=True,
    )


# --- comparing ---------------------------------------------------------------------------------------------------------


def diff(have: Mapping[str, Claims], want: Mapping[str, Claims]) -> list[str]:
    """
    What differs between the accounts of a server and those that it should have, as lines; by name, as claims.

    `+ D420106`, `- D420107`, `~ D420106 + live.evt.420107.dispatch.xinxiang-7k.>`; `~ D420106` alone where a detail has changed.
    """
    lines: list[str] = []
    for name in sorted(have.keys() | want.keys()):
        before, after = _says(have.get(name)), _says(want.get(name))
        if name not in want:
            lines.append(f"- {name}")
        elif name not in have:
            lines += [f"+ {name}", *(f"+ {name} + {line}" for line in after)]
        elif not same(have[name], want[name]):
            changes = [
                *(f"~ {name} - {line}" for line in before if line not in after),
                *(f"~ {name} + {line}" for line in after if line not in before),
            ]
            lines += changes or [f"~ {name}"]
    return lines


def same(one: Claims, other: Claims) -> bool:
    """Whether two accounts say the same, whenever they were signed."""
    return _timeless(one) == _timeless(other)


def _timeless(claims: Claims) -> Claims:
    return {name: value for name, value in claims.items() if name not in ("iat", "jti")}


def _says(claims: Claims | None) -> Sequence[str]:
    """An account in lines for people: whom it lets in and what it sees and asks."""
    if claims is None:
        return ()
    nats = claims["nats"]
    scopes = [f"{kept['role']} {kept.get('description', '')}".strip() for kept in nats.get("signing_keys", ())]
    return [*scopes, *(entry["subject"] for entry in nats.get("imports", ()))]
