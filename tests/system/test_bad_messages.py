"""What is no fact, or cannot be decided on, is set aside by name: counted, kept, and in nobody's way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest

from shared.envelope import Envelope, canonical
from shared.errors import UnavailableError
from shared.facts import Due, RequestRated, RequestSubmitted, instant
from tests.system.test_points import finish
from tests.system.test_two_desks import number
from tests.system.world import DISTRICT, OTHER, System, fresh_key

pytestmark = pytest.mark.asyncio(loop_scope="session")

Poison = tuple[str, bytes]
"""A subject and what is published under it."""


def submitted(area: str = "north", district: str = DISTRICT) -> Envelope:
    """A submission as intake would write it."""
    now, id = instant(datetime.now(UTC)), fresh_key()
    due = Due(**{name: now + timedelta(hours=n) for n, name in enumerate(("sign", "contact", "handle", "life"), 1)})
    fact = RequestSubmitted(
        request_id=id,
        fingerprint="ab",
        tracking_hash="cd",
        channel="app",
        item="lamp",
        item_rule="given",
        urgency=0,
        urgency_rule="item",
        area="north",
        area_rule="code",
        located_in=DISTRICT,
        due=due,
    )
    return Envelope(fresh_key(), district, area, now, fact, district, case=id)


def rated() -> Envelope:
    """A rating, of a request that nobody made."""
    id = fresh_key()
    return Envelope(
        fresh_key(),
        DISTRICT,
        "north",
        instant(datetime.now(UTC)),
        RequestRated(request_id=id, grade=4, solved=True),
        DISTRICT,
        case=id,
    )


def edited(change: Callable[[dict[str, Any]], object]) -> Poison:
    """A submission, otherwise good, with something else in it."""
    envelope = submitted()
    event = orjson.loads(envelope.encode())
    change(event)
    return envelope.subject, canonical(event)


def written(change: Callable[[bytes], bytes], area: str = "north") -> Poison:
    """A submission, otherwise good, in other bytes."""
    envelope = submitted(area)
    return envelope.subject, change(envelope.encode())


def under(subject: str) -> Poison:
    """A good submission under another subject."""
    return subject, submitted().encode()


ID = "0199aaaa-0000-7000-8000-000000000000"
REJECTED: dict[str, tuple[str, Callable[[], Poison]]] = {
    "broken JSON": ("json", lambda: written(lambda data: data[:-20])),
    "no JSON at all": ("json", lambda: written(lambda _: b"\xff\xfe hello")),
    "nothing": ("json", lambda: written(lambda _: b"")),
    "no object": ("schema", lambda: written(lambda _: b"[1,2]")),
    "a type of another version": ("type", lambda: edited(lambda e: e.update(type="cn.paidan.request.submitted.v9"))),
    "a fact that there is not": ("type", lambda: (f"evt.{DISTRICT}.intake.north.request.vanished", submitted().encode())),
    "another fact's subject": ("type", lambda: (f"evt.{DISTRICT}.intake.north.request.withdrawn", rated().encode())),
    "another request's subject": ("subject", lambda: under(f"evt.{DISTRICT}.intake.north.request.submitted.{ID}")),
    "another district's fact": ("subject", lambda: edited(lambda e: e.update(source=f"/paidan/{OTHER}/intake"))),
    "another service's fact": ("subject", lambda: edited(lambda e: e.update(source=f"/paidan/{DISTRICT}/dispatch"))),
    "no area code": ("subject", lambda: written(lambda data: data, "NORTH")),
    "a field too many": ("schema", lambda: edited(lambda e: e["data"].update(phone="199"))),
    "a field too few": ("schema", lambda: edited(lambda e: e["data"].pop("item"))),
    "a float": ("schema", lambda: edited(lambda e: e["data"].update(urgency=1.0))),
    "an integer beyond 2^53": ("schema", lambda: edited(lambda e: e["data"].update(urgency=2**60))),
    "no time": ("schema", lambda: edited(lambda e: e.update(time="yesterday"))),
    "an attribute that is no string": ("schema", lambda: edited(lambda e: e.update(traceparent=7))),
    "an endless attribute": ("schema", lambda: edited(lambda e: e.update(traceparent="0" * 20_000))),
    "thousands of districts": (
        "schema",
        lambda: edited(lambda e: e.update(districts=",".join(str(n) for n in range(100_000, 103_000)))),
    ),
    "white space": ("canonical", lambda: written(lambda data: data.replace(b'","', b'", "'))),
    "line breaks": ("canonical", lambda: written(lambda data: data.replace(b',"id"', b',\n\n"id"'))),
    "other key order": ("canonical", lambda: written(_turned)),
    "a key twice": ("canonical", lambda: written(lambda data: data.replace(b'"specversion":"1.0",', b'"specversion":"1.0","specversion":"1.0",'))),
    "escapes without need": ("canonical", lambda: written(lambda data: data.replace(b"lamp", b"\\u006camp"))),
    "more than 24 KiB": ("size", lambda: edited(lambda e: e["data"].update(item_rule="x" * 30_000))),
    "half a megabyte": ("size", lambda: written(lambda data: data[:-1] + b" " * 500_000 + b"}")),
}  # fmt: skip


def _turned(data: bytes) -> bytes:
    return orjson.dumps(dict(reversed(orjson.loads(data).items())))


async def refusals(system: System) -> float:
    """How many inputs the desks of the district have set aside, in this life of theirs."""
    counts = [await number(system, instance, "paidan_turn_inputs_refused_total") for instance in (1, 2)]
    return sum(counts)


async def ledger(system: System) -> dict[str, Any]:
    """The ledger in numbers."""
    answer = await system.insist("GET", "ledger", "/v1/ledger", token=system.token("auditor"))
    assert answer is not None
    document: dict[str, Any] = answer.document
    return document


async def grown(count: Callable[[], Any], to: float, within_s: float = 20) -> None:
    """Until a count is as large as it should be."""
    ends = time.monotonic() + within_s
    while (now := await count()) < to:
        assert time.monotonic() < ends, f"{now} of {to}"
        await asyncio.sleep(0.05)
    assert now == to


async def leaf_of(system: System, sequence: int) -> dict[str, Any]:
    """The ledger's entry for a message."""
    _, leaves = await system.replay()
    return next(leaf for _, data in reversed(leaves) if (leaf := orjson.loads(data))["src"]["seq"] == sequence)


async def test_what_is_no_fact_is_rejected_by_the_ledger_and_set_aside_by_the_desk(system: System) -> None:
    await system.stack.wait_until_ready()
    bus = await system.stack.connect("intake")  # whoever has stolen intake's key could do this
    rejects, refused = (await ledger(system))["rejects"], await refusals(system)
    sequences: dict[str, int] = {}
    for name, (_, poison) in REJECTED.items():
        subject, data = poison()
        sequences[name] = await bus.put(subject, data)
        asked = await system.submit(fresh_key())  # good traffic goes on between them
        assert asked
        system.go(finish(system, asked["id"]))

    async def rejected() -> int:
        return int((await ledger(system))["rejects"])

    await grown(rejected, rejects + len(REJECTED))
    await grown(lambda: refusals(system), refused + len(REJECTED))
    _, leaves = await system.replay()
    found = {leaf["src"]["seq"]: leaf for _, data in leaves if (leaf := orjson.loads(data))["kind"] == "reject"}
    assert {name: found[n]["reason"] for name, n in sequences.items()} == {
        name: reason for name, (reason, _) in REJECTED.items()
    }
    set_aside = {
        leaf["event"]["data"]["sequence"]: leaf["event"]["data"]["code"]
        for _, data in leaves
        if b"dispatch.-.turn.input_refused" in data
        for leaf in [orjson.loads(data)]
    }
    assert {name: set_aside[n] for name, n in sequences.items()} == {
        name: reason for name, (reason, _) in REJECTED.items()
    }
    await system.stack.wait_until_ready(10)
    await bus.drain()


async def test_a_fact_that_no_decision_fits_is_set_aside_and_the_next_is_decided(system: System) -> None:
    """A submission under no area is a fact, and in the ledger; but no task can be opened nowhere."""
    bus = await system.stack.connect("intake")
    refused = await refusals(system)
    envelope = submitted(area="-")
    sequence = await bus.put(envelope.subject, envelope.encode())
    asked = await system.submit(fresh_key())
    assert asked
    await finish(system, asked["id"])
    await grown(lambda: refusals(system), refused + 1)
    assert (await leaf_of(system, sequence))["kind"] == "event"
    _, leaves = await system.replay()
    codes = [
        leaf["event"]["data"]["code"]
        for _, data in leaves
        if b"dispatch.-.turn.input_refused" in data
        for leaf in [orjson.loads(data)]
        if leaf["event"]["data"]["sequence"] == sequence
    ]
    assert codes == ["decide_raised"]
    await bus.drain()


async def test_a_message_under_the_register_that_is_no_fact_changes_nobodys_register(system: System) -> None:
    before = await system.insist("GET", "ledger", "/v1/register", token=system.token("admin"))
    bus = await system.stack.connect("admin")
    for what in ("district_set", "area_set", "applied"):
        await bus.put(f"evt.000000.ledger.-.register.{what}", b'{"data":')
        await bus.put(f"evt.000000.ledger.-.register.{what}", orjson.dumps({"data": {"district": "../../x"}}))
    asked = await system.submit(fresh_key())
    assert asked
    await finish(system, asked["id"])
    after = await system.insist("GET", "ledger", "/v1/register", token=system.token("admin"))
    assert before
    assert after
    assert (after.document, after.headers["etag"]) == (before.document, before.headers["etag"])
    await system.stack.wait_until_ready(10)
    for service, instance in (("dispatch", 1), ("notify", 1), ("ledger", 1), ("intake", 1), ("intake", 2)):
        await system.stack.kill(service, instance)  # nor is it in anybody's way after a new start
    system.crashes += 1
    await asyncio.sleep(0.5)
    await system.stack.wait_until_ready(30)
    again = await system.submit(fresh_key())
    assert again
    await finish(system, again["id"])
    await bus.drain()


async def test_no_service_can_write_what_belongs_to_another(system: System) -> None:
    """The server refuses it: a desk that could not read its own facts would have to stop for good."""
    for identity, subject in (
        ("intake", f"evt.{DISTRICT}.dispatch.north.task.opened"),
        ("notify", f"evt.{DISTRICT}.intake.north.request.withdrawn"),
        ("dispatch", f"evt.{DISTRICT}.ledger.-.register.area_set"),
        ("ledger", f"evt.{DISTRICT}.notify.-.turn.committed"),
        ("dispatch", f"live.evt.{DISTRICT}.dispatch.north.task.opened"),
    ):
        bus = await system.stack.connect(identity)
        last = (await bus.state()).last
        with pytest.raises(UnavailableError):
            await bus.put(subject, b"{}", timeout_s=0.5)
        stored = await bus.last(subject)
        assert stored is None or stored.sequence <= last
        await bus.drain()


async def test_and_the_whole_history_holds(system: System) -> None:
    assert await system.verify() == []
