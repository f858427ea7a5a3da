"""The declared streams: applied once, told apart from what a server has, never half."""

from typing import Any

import pytest

from deploy.identities import Identities
from deploy.servers import NatsServer
from shared import streams
from shared.bus import Bus, Fence, Message
from shared.errors import BusError
from shared.streams import apply, declared

NAMES = [stream["name"] for stream in declared()]


@pytest.fixture
async def admin(fresh_nats: NatsServer, identities: Identities) -> Any:
    """The one who may."""
    bus = await Bus.connect(fresh_nats.url, name="admin", seed=identities.seed("admin"))
    yield bus
    await bus.drain()


async def test_applying_makes_them_all_and_applying_again_changes_nothing(admin: Bus) -> None:
    assert await apply(admin) == [f"+ {name}" for name in NAMES]
    assert await apply(admin) == []


async def test_a_dry_run_says_the_same_and_does_nothing(admin: Bus) -> None:
    assert await apply(admin, dry_run=True) == [f"+ {name}" for name in NAMES]
    assert [await admin.stream_config(name) for name in NAMES] == [None] * len(NAMES)


async def test_a_setting_that_differs_is_named_and_brought_back(admin: Bus) -> None:
    await apply(admin)
    keys = await admin.stream_config("KEYS")
    assert keys
    await admin.apply_stream({**keys, "max_msgs": 5, "discard": "old"}, new=False)
    assert await apply(admin, dry_run=True) == ["~ KEYS discard: old → new"]
    assert await apply(admin) == ["~ KEYS discard: old → new"]
    assert await apply(admin) == []


async def test_facts_survive_an_apply(admin: Bus) -> None:
    await apply(admin)
    await admin.put("evt.420106.intake.-.x.y", b"{}")
    events = await admin.stream_config("EVENTS")
    assert events
    await admin.apply_stream({**events, "duplicate_window": 5_000_000_000}, new=False)
    created = (await admin.state()).created
    assert await apply(admin) == ["~ EVENTS duplicate_window: 5000000000 → 1000000000"]
    assert ((await admin.state()).created, (await admin.state()).last) == (created, 1)


async def test_events_can_be_neither_deleted_nor_purged_nor_rolled_up(admin: Bus) -> None:
    await apply(admin)
    sequence = await admin.put("evt.420106.intake.-.x.y", b"{}")
    for call, body in (
        ("STREAM.MSG.DELETE.EVENTS", {"seq": sequence}),
        ("STREAM.PURGE.EVENTS", {}),
    ):
        with pytest.raises(BusError):
            await admin._api(call, body)
    with pytest.raises(BusError):
        await admin.put("evt.420106.intake.-.x.y", b"{}", ttl_s=1)
    assert (await admin.state()).first == sequence


async def test_what_is_refused_is_not_seen_live(admin: Bus) -> None:
    await apply(admin)
    seen: list[str] = []

    async def take(message: Any) -> None:
        seen.append(message.subject)

    await admin._nc.subscribe("live.evt.>", cb=take)
    await admin._nc.flush()
    fact, mark = Message("evt.420106.dispatch.a.t.x", b"1"), Message("evt.420106.dispatch.-.turn.committed", b"2")
    await admin.commit([fact, mark], fence=Fence(mark.subject, 0))
    with pytest.raises(BusError):
        await admin.commit([fact, mark], fence=Fence(mark.subject, 0))
    await admin.commit([fact, mark], fence=Fence(mark.subject, 2))
    while len(seen) < 4:
        await admin._nc.flush()
    assert seen == [f"live.{fact.subject}", f"live.{mark.subject}"] * 2


def test_every_stream_says_where_it_is_kept_and_what_it_throws_away() -> None:
    for stream in declared(replicas=3):
        assert (stream["storage"], stream["num_replicas"], stream["discard"]) == ("file", 3, "new")
    assert {s["name"] for s in streams.declared() if s.get("allow_atomic")} == {"EVENTS", "SEALED", "KEYS"}
