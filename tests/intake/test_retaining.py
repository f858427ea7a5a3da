"""What was sealed is frozen, and later erased, as the office's policy says: given these cases, on that day."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import httpx2
import pytest

from services.intake import running
from services.intake.door import SEALED
from services.intake.model import Case
from services.intake.retaining import Erase, Freeze, Retention, due, youngest
from shared.errors import UnavailableError
from shared.facts import PolicySet, TaskClosed
from shared.register import DEFAULT_POLICY
from tests.intake.conftest import World, keyed
from tests.intake.examples import FACTS, LEAK, WUCHANG, opened, register, task_of
from tests.intake.ledger import Ledger

ZONE = ZoneInfo("Asia/Shanghai")
POLICY = DEFAULT_POLICY.model_copy(update={"freeze_after": 10, "erase_after": 100})
CLOSED = datetime(2026, 1, 31, 17, 0, tzinfo=UTC)
"""One in the morning of 1 February in Wuhan."""
CASE = Case(
    id="r", district=WUCHANG, area="oujing", item="tree", state="closed", home=WUCHANG, sealed="kept", closed=CLOSED
)
UNTIL = date(2026, 2, 1) + timedelta(days=100)


def on(day: date) -> datetime:
    """Noon of a local day."""
    return datetime(day.year, day.month, day.day, 12, tzinfo=ZONE)


def test_days_are_local_and_counted_from_the_one_on_which_it_was_closed() -> None:
    assert due(CASE, POLICY, ZONE, on(date(2026, 2, 10))) is None
    assert due(CASE, POLICY, ZONE, on(date(2026, 2, 11))) == Freeze(UNTIL)
    frozen = CASE.model_copy(update={"sealed": "frozen", "frozen_until": UNTIL})
    assert due(frozen, POLICY, ZONE, on(date(2026, 2, 11))) is None
    assert due(frozen, POLICY, ZONE, on(UNTIL - timedelta(days=1))) is None
    assert due(frozen, POLICY, ZONE, on(UNTIL)) == Erase()


def test_once_frozen_the_day_that_was_said_holds() -> None:
    frozen = CASE.model_copy(update={"sealed": "frozen", "frozen_until": UNTIL})
    for longer in (10, 1_000):
        policy = POLICY.model_copy(update={"erase_after": longer})
        assert due(frozen, policy, ZONE, on(UNTIL - timedelta(days=1))) is None
        assert due(frozen, policy, ZONE, on(UNTIL)) == Erase()


def test_what_was_never_frozen_in_time_is_erased_at_once() -> None:
    assert due(CASE, POLICY, ZONE, on(UNTIL)) == Erase()
    assert due(CASE, POLICY.model_copy(update={"erase_after": 5}), ZONE, on(date(2026, 2, 6))) == Erase()


@pytest.mark.parametrize("change", [{"closed": None}, {"sealed": None}, {"sealed": "erased"}])
def test_what_is_open_empty_or_gone_is_left_alone(change: dict[str, Any]) -> None:
    assert due(CASE.model_copy(update=change), POLICY, ZONE, on(date(2040, 1, 1))) is None


def test_nothing_younger_than_the_shortest_policy_is_looked_at() -> None:
    held = register(policy(freeze_after=30, erase_after=20))
    now = datetime(2026, 6, 30, tzinfo=UTC)
    assert youngest(held, now) == now - timedelta(days=19)  # a local day may have begun before


# --- on the bus -------------------------------------------------------------------------------------------------------


def policy(**days: int) -> PolicySet:
    [first] = [fact for fact in FACTS if isinstance(fact, PolicySet)]
    return first.model_copy(update={"version": 2, **days})


async def at(world: World, monkeypatch: pytest.MonkeyPatch, day: int) -> Retention:
    """An instance's own, so many days from now."""
    monkeypatch.setattr(running, "_now", lambda: datetime.now(UTC) + timedelta(days=day))
    await world.instance()
    retention = world.instances[-1].retention
    retention.per_s = 10_000
    return retention


@pytest.fixture
async def closed(world: World, intake: httpx2.AsyncClient, ledger: Ledger, submitted: dict[str, Any]) -> dict[str, Any]:
    """A request that was closed today, beside one that is open; frozen after 10 days, erased after 30."""
    await world.apply(policy(freeze_after=10, erase_after=30))
    await intake.post("/v1/requests", json={**LEAK, "text": "又漏水了"}, headers=keyed("k-2"))
    id, now = submitted["id"], datetime.now(UTC)
    await world.tell(opened(id), id, at=now)
    await world.tell(TaskClosed(task_id=task_of(id), reason="quiet"), id, at=now)
    return submitted


async def test_it_is_frozen_then_erased_once_whoever_looks_and_the_open_one_stays(
    world: World, closed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = {"resumed": 0, "frozen": 0, "erased": 0, "key": 0}
    assert await (await at(world, monkeypatch, 8)).look() == nothing
    one, other = await at(world, monkeypatch, 12), await at(world, monkeypatch, 12)
    assert await one.look() == {**nothing, "frozen": 1}
    assert await other.look() == nothing  # a round was completed a moment ago
    [frozen] = await world.facts("request.frozen")
    assert frozen["data"]["request_id"] == closed["id"]
    assert await (await at(world, monkeypatch, 25)).look() == nothing
    assert await (await at(world, monkeypatch, 32)).look() == {**nothing, "erased": 1}
    [erased] = await world.facts("request.erased")
    assert (erased["data"]["request_id"], erased["data"]["reason"]) == (closed["id"], "retention")
    left = [subject for subject, _ in await world.messages(SEALED) if len(subject.split(".")) == 4]
    assert len(left) == 1
    assert closed["id"] not in left[0]
    assert len(await world.messages("KEYS")) == 2  # the open one of the same resident needs it
    assert await (await at(world, monkeypatch, 40)).look() == nothing


async def test_without_the_ledger_it_is_put_off_and_nothing_is_lost(
    world: World, closed: dict[str, Any], ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    retention = await at(world, monkeypatch, 32)
    ledger.mute = True
    with pytest.raises(UnavailableError):
        await retention.keep(WUCHANG, closed["id"], register())
    ledger.mute = False
    assert (await retention.look())["erased"] == 1


async def test_keys_that_seal_nothing_are_dropped_after_an_hour(
    world: World, intake: httpx2.AsyncClient, ledger: Ledger, submitted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    await intake.post("/v1/requests", json={**LEAK, "contact": None}, headers=keyed("k-2"))
    kept = [subject for subject, _ in await world.messages("KEYS")]
    await world.admin.put(f"keys.{WUCHANG}.by.{'ab' * 32}", b"cd" * 16)  # a crash between the key and its ciphertext
    await world.admin.put(f"keys.{WUCHANG}.{'cd' * 16}", b"wrapped")
    await world.admin.put(f"keys.{WUCHANG}.{'ef' * 16}", b"of a request without contact")
    await world.admin.put(f"keys.{WUCHANG}.by.{'12' * 32}", b"34" * 16)  # a look-up that leads nowhere
    assert (await (await at(world, monkeypatch, 0)).look())["key"] == 0
    monkeypatch.setattr("services.intake.retaining.EVERY", timedelta(0))
    assert (await (await at(world, monkeypatch, 1)).look())["key"] == 3
    assert [subject for subject, _ in await world.messages("KEYS")] == kept
