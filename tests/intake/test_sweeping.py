"""What was sealed for a request that never became one goes after an hour; everything else stays."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import httpx2
import orjson
import pytest

from services.intake import running
from services.intake.door import SEALED, Door
from services.intake.sweeping import MARK, Sealing, Sweeper, fact_subject, is_left, sealing
from shared import streams
from shared.bus import Bus
from shared.errors import MalformedError, UnavailableError
from tests.intake.conftest import World, keyed
from tests.intake.examples import LEAK, WUCHANG
from tests.intake.ledger import Ledger

ID = "0199aaaa-0000-8000-8000-000000000001"
CLAIM = Sealing("claim", ID)
CIPHERTEXT = Sealing("ciphertext", ID, WUCHANG, "ab")


def fact(kid: str | None = "ab", district: str = WUCHANG) -> bytes:
    return orjson.dumps(
        {"data": {"sealed": {"kid": kid}} if kid else {}, "source": f"/paidan/{district}/intake"},
    )


def test_claims_and_ciphertexts_are_told_from_the_rest() -> None:
    assert sealing(f"sealed.claims.{ID}") == CLAIM
    assert sealing(f"sealed.{WUCHANG}.ab.{ID}") == CIPHERTEXT
    assert sealing(MARK) is None


def test_the_claim_says_where_the_fact_would_be() -> None:
    assert fact_subject(CIPHERTEXT, b'{"subject": "evt.a"}') == "evt.a"
    assert fact_subject(CIPHERTEXT, None) == f"evt.{WUCHANG}.intake.*.request.submitted.{ID}"
    for broken in (b"", b"{}", b"[]"):
        with pytest.raises(MalformedError):
            fact_subject(CLAIM, broken)


def test_only_what_no_fact_names_is_left() -> None:
    assert is_left(CLAIM, None)
    assert is_left(CIPHERTEXT, None)
    assert not is_left(CLAIM, fact())
    assert not is_left(CIPHERTEXT, fact())
    assert is_left(CIPHERTEXT, fact("cd"))
    assert is_left(CIPHERTEXT, fact(district="420107"))
    assert is_left(CIPHERTEXT, fact(None))
    with pytest.raises(MalformedError):
        is_left(CIPHERTEXT, b"no fact")


async def sweeper(world: World, later: timedelta = timedelta(hours=2)) -> Sweeper:
    """As one instance has it, with its rights, so much later."""
    bus = await Bus.connect(world.server.url, name="intake", seed=world.identities.seed("intake"))
    world.stack.push_async_callback(bus.drain)
    return Sweeper(bus, lambda: datetime.now(UTC) + later, nothing_to_finish, per_s=10_000)


async def nothing_to_finish(district: str, kid: str) -> None:
    raise AssertionError(f"the key {kid} of {district} is there")


async def crash_before_the_fact(intake: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """Leave claim and ciphertext without a fact."""

    def crash(*_: object) -> None:
        raise RuntimeError("struck by lightning")

    with monkeypatch.context() as patched:
        patched.setattr(Door, "_decide", crash)
        assert (await intake.post("/v1/requests", json=LEAK, headers=keyed(key))).status_code == 500


async def held(world: World) -> list[str]:
    return [subject for subject, _ in await world.messages(SEALED) if subject != MARK]


async def test_after_an_hour_only_what_has_a_fact_is_there(
    world: World, intake: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await intake.post("/v1/requests", json=LEAK, headers=keyed("k-1"))
    kept = await held(world)
    await crash_before_the_fact(intake, monkeypatch, "k-2")
    assert len(await held(world)) == 4

    assert await (await sweeper(world, timedelta(minutes=59))).sweep() == {"claim": 0, "ciphertext": 0}
    assert len(await world.messages(SEALED)) == 4  # nor has it left a mark
    one, other = await sweeper(world), await sweeper(world)
    assert await one.sweep() == {"claim": 1, "ciphertext": 1}
    assert await held(world) == kept
    assert await one.sweep() == await other.sweep() == {"claim": 0, "ciphertext": 0}
    assert other._after == one._after  # it went on from the mark

    repeat = await intake.post("/v1/requests", json=LEAK, headers=keyed("k-1"))
    assert repeat.content == first.content
    assert (await intake.post("/v1/requests", json=LEAK, headers=keyed("k-2"))).status_code == 201


@pytest.mark.parametrize("lost", ["EVENTS", "KEYS"])
async def test_nothing_is_swept_while_the_facts_or_the_keys_are_lost_or_younger(
    world: World, intake: httpx2.AsyncClient, ledger: Ledger, lost: str
) -> None:
    await intake.post("/v1/requests", json=LEAK, headers=keyed("k-1"))
    kept = await held(world)
    one = await sweeper(world)
    one.finish = world.instances[0].retention.erasing.finish
    await world.admin._api(f"STREAM.DELETE.{lost}")
    with pytest.raises(UnavailableError):
        await one.sweep()
    await streams.apply(world.admin)  # there again, and still to be filled
    assert await one.sweep() == {"claim": 0, "ciphertext": 0}
    assert await held(world) == kept


async def test_two_who_sweep_at_once_are_not_in_each_others_way(
    world: World, intake: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3):
        await crash_before_the_fact(intake, monkeypatch, f"k-{n}")
    sweepers = [await sweeper(world), await sweeper(world)]
    await asyncio.gather(*(one.sweep() for one in sweepers))
    assert await held(world) == []


async def test_the_mark_of_another_stream_is_none(
    world: World, intake: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await crash_before_the_fact(intake, monkeypatch, "k-1")
    await world.admin.put(MARK, b'{"created": "another stream", "sequence": 99}')
    await (await sweeper(world)).sweep()
    assert await held(world) == []


async def test_a_late_try_is_not_swept_from_under_its_fact(
    world: World, intake: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await crash_before_the_fact(intake, monkeypatch, "k-1")
    subjects = await held(world)
    old = [stored.sequence for subject in subjects if (stored := await world.admin.last(subject, stream=SEALED))]
    monkeypatch.setattr(running, "_now", lambda: datetime.now(UTC) + timedelta(minutes=45))
    late = await world.instance()
    assert (await late.post("/v1/requests", json=LEAK, headers=keyed("k-1"))).status_code == 201

    for sequence in old:  # the sweeper had looked before there was a fact
        await world.admin.delete(SEALED, sequence)
    assert await held(world) == subjects
    assert await (await sweeper(world)).sweep() == {"claim": 0, "ciphertext": 0}


@pytest.mark.parametrize("gone", [0, 1])
async def test_a_sweep_that_ended_half_way_keeps_nobody_from_trying_again(
    world: World, intake: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch, gone: int
) -> None:
    await crash_before_the_fact(intake, monkeypatch, "k-1")
    subjects = await held(world)
    stored = await world.admin.last(subjects[gone], stream=SEALED)
    assert stored is not None
    await world.admin.delete(SEALED, stored.sequence)

    first = await intake.post("/v1/requests", json=LEAK, headers=keyed("k-1"))
    assert first.status_code == 201
    assert set(await held(world)) == set(subjects)
    assert (await intake.post("/v1/requests", json=LEAK, headers=keyed("k-1"))).content == first.content


async def test_what_cannot_be_read_stays_and_holds_nothing_up(
    world: World, intake: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.admin.put(f"sealed.claims.{ID}", b"no claim")
    await crash_before_the_fact(intake, monkeypatch, "k-1")
    assert await (await sweeper(world)).sweep() == {"claim": 1, "ciphertext": 1}
    assert await held(world) == [f"sealed.claims.{ID}"]
