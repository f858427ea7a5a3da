"""
Letting offices in on the bus: what `paidan office` does.

An office is let in by a fact in the register, through the ledger, with who and why; the bus is then brought to the register.
What an app connects with is written to `<data>/secrets/offices/<district>/<app>.creds` and shown to nobody.
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deploy import keeping
from deploy.claims import Key
from deploy.errors import Said, SetupError
from deploy.identities import Identities, write_secret
from deploy.offices import offices
from deploy.running import Running
from shared.auth import EVERYWHERE
from shared.facts import App, OfficeSet, plain
from shared.keys import LOOK_S
from shared.register import evolve

TRIES = 5
"""Of a change, where others change the register at the same time."""


@dataclass(frozen=True)
class Admitted:
    """
    What was changed, or would be.

    Attributes:
        changes: lines as of `paidan bus apply`.
        file: what an app connects with, if it was written.
        late: why the bus is not brought to it yet, if so; the running stack brings it within a minute.
    """

    changes: list[str]
    file: Path | None = None
    late: str | None = None


async def add(
    stack: Running, district: str, app: str, *, people: bool | None, why: str, dry_run: bool = False
) -> Admitted:
    """
    Let in one more app of an office.

    Args:
        people: whether the office's people may connect as well; None: as before, at first yes.
    Raises:
        SetupError: it is let in already, or the ledger refused.
    """

    def alter(office: OfficeSet, key: str) -> OfficeSet:
        if any(kept.app == app for kept in office.apps):
            raise SetupError(
                Said(f"{district} 的应用 {app} 已存在", f"{district} has an app {app} already"),
                Said(
                    f"换密钥请用 paidan office rotate {district} --app {app}",
                    f"for another key: paidan office rotate {district} --app {app}",
                ),
            )
        let_in = office.people if people is None else people
        return office.model_copy(update={"apps": (*office.apps, App(app=app, key=key)), "people": let_in})

    return await _with_a_new_key(stack, district, app, alter, why=why, dry_run=dry_run)


async def rotate(stack: Running, district: str, app: str, *, why: str, dry_run: bool = False) -> Admitted:
    """Give an app another key; who connects with the old one is out at once. Raises SetupError as `add`, and without it."""

    def alter(office: OfficeSet, key: str) -> OfficeSet:
        _require(office, app)
        apps = tuple(App(app=app, key=key) if kept.app == app else kept for kept in office.apps)
        return office.model_copy(update={"apps": apps})

    return await _with_a_new_key(stack, district, app, alter, why=why, dry_run=dry_run)


async def remove(stack: Running, district: str, app: str | None, *, why: str, dry_run: bool = False) -> Admitted:
    """Let in an app no more; without its name nobody of the office, people neither. Raises SetupError as `rotate`."""

    def alter(office: OfficeSet) -> OfficeSet:
        if app is None:
            return office.model_copy(update={"apps": (), "people": False})
        _require(office, app)
        return office.model_copy(update={"apps": tuple(kept for kept in office.apps if kept.app != app)})

    def forget() -> None:
        identities = Identities.open(stack.data / "secrets")
        folder = identities.office_file(district, app or "").parent
        for file in [identities.office_file(district, app)] if app else [*folder.glob("*.creds")]:
            file.unlink(missing_ok=True)

    return await _change(stack, district, alter, forget, why=why, dry_run=dry_run)


async def revoke(stack: Running, sub: str, district: str, *, why: str, issuer: str | None = None) -> int:
    """
    End every token of a person that was issued until now, on HTTP and the bus, and close their connections; how many those were.

    Args:
        district: as their tokens say; `*` for somebody of all, who has no connections: the bus knows offices only.
        issuer: whose tokens; None: all that name them so.
    Raises:
        SetupError: the ledger did not record it; nothing is done then.
    """
    await asyncio.to_thread(stack.acted, "tokens_revoked", sub, why, district=district)
    identities = Identities.open(stack.data / "secrets")
    identities.revoke(" ".join([district, sub, *([issuer] if issuer else [])]), int(time.time()))
    if district == EVERYWHERE:
        return 0
    sys = await stack.connect("sys")
    try:
        account = identities.office_keys.account(district).public
        closed = await keeping.kick(sys, account, sub)
        await asyncio.sleep(LOOK_S + 0.5)  # by then the gate has looked at the file, and nobody comes back
        return closed + await keeping.kick(sys, account, sub)
    finally:
        await sys.drain()


async def listed(stack: Running) -> list[dict[str, Any]]:
    """The offices that are let in, with what each sees and where it may ask."""
    bus = await stack.connect()
    try:
        kept = await keeping.current(bus)
    finally:
        await bus.drain()
    return [
        {
            "district": office.district,
            "apps": [plain(app) for app in office.apps],
            "people": office.people,
            "sees": [subject for subject, _ in office.live],
            "asks": list(office.asks),
        }
        for office in offices(kept, datetime.now(UTC)).values()
    ]


async def _with_a_new_key(
    stack: Running,
    district: str,
    app: str,
    alter: Callable[[OfficeSet, str], OfficeSet],
    *,
    why: str,
    dry_run: bool,
) -> Admitted:
    identities = Identities.open(stack.data / "secrets")
    key = Key.new("user")
    _named(district, app, key.public)
    file = identities.office_file(district, app)
    coming = file.with_suffix(f".{key.public[-8:]}.new")  # of this try alone
    if not dry_run:
        for folder in (file.parent.parent, file.parent):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o700)
        write_secret(coming, identities.office_credentials(district, App(app=app, key=key.public), key.seed))
    try:
        done = await _change(
            stack,
            district,
            lambda office: alter(office, key.public),
            lambda: coming.replace(file),
            why=why,
            dry_run=dry_run,
        )
    finally:
        coming.unlink(missing_ok=True)  # refused: accepted, it has its name
    return done if dry_run else replace(done, file=file)


async def _change(
    stack: Running,
    district: str,
    alter: Callable[[OfficeSet], OfficeSet],
    accepted: Callable[[], object],
    *,
    why: str,
    dry_run: bool,
) -> Admitted:
    """Say it to the ledger, do what is to be done once it has `accepted`, then bring the bus to it."""
    identities = Identities.open(stack.data / "secrets")
    admin, sys = await keeping.both(stack.connect)
    try:
        for left in reversed(range(TRIES)):
            document, version = await asyncio.to_thread(stack.register)
            offices = {office.district: office for office in map(OfficeSet.model_validate, document["offices"])}
            fact = alter(offices.get(district) or OfficeSet(district=district))
            after = evolve(await keeping.current(admin), fact)
            changes = await keeping.bring(sys, identities, after, datetime.now(UTC), dry_run=True)
            try:
                await asyncio.to_thread(_apply, stack, fact, why, version=version, dry_run=dry_run)
                break
            except SetupError as refused:
                if refused.code != "stale_register" or not left:
                    raise  # else somebody was first: what they changed stays
        if dry_run:
            return Admitted(changes)
        accepted()
        try:
            await keeping.bring(sys, identities, await keeping.current(admin), datetime.now(UTC))
        except Exception as late:  # whatever it was: it is in the register, and the running stack keeps the bus to that
            return Admitted(changes, late=f"{type(late).__name__}: {late}")
        return Admitted(changes)
    finally:
        await admin.drain()
        await sys.drain()


def _named(district: str, app: str, key: str) -> None:
    """Raises SetupError where a name would not do in the register, before it becomes the name of a file."""
    try:
        OfficeSet(district=district, apps=(App(app=app, key=key),))
    except ValidationError:
        raise SetupError(
            Said(f"{district} / {app} 不能作为行政区与应用名", f"{district} and {app} will not do as district and app"),
            Said("区划代码为六位数字；应用名用小写字母、数字和 -", "six digits; lower-case letters, digits and -"),
        ) from None


def _apply(stack: Running, fact: OfficeSet, why: str, *, version: str, dry_run: bool) -> Mapping[str, Any]:
    document = {"offices": [{"district": fact.district, "apps": [plain(a) for a in fact.apps], "people": fact.people}]}
    body = json.dumps({"document": document, "why": why}).encode()
    params = {"dry_run": "true"} if dry_run else {}
    return stack.post("ledger", "/v1/register", body, roles=["admin"], params=params, headers={"If-Match": version})


def _require(office: OfficeSet, app: str) -> None:
    if all(kept.app != app for kept in office.apps):
        raise SetupError(
            Said(f"{office.district} 没有应用 {app}", f"{office.district} has no app {app}"),
            Said("请用 paidan office list 查看", "see `paidan office list`"),
        )
