"""Snapshots are written by children of the service."""

import pytest

from deploy.identities import Identities
from deploy.servers import NatsServer
from services.dispatch.desk import RULES as DISPATCH
from services.notify.rules import RULES as NOTIFY
from shared.bus import Bus
from shared.snapshots import Snapshots, asked
from shared.turns import Rules, snapshot_name

DISTRICT = "420106"


@pytest.mark.parametrize("rules", [DISPATCH, NOTIFY], ids=lambda rules: str(rules.service))
async def test_a_child_writes_one_and_ends(
    rules: Rules[object],
    bus: Bus,
    fresh_nats: NatsServer,
    identities: Identities,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NATS_URL", fresh_nats.url)
    monkeypatch.setenv("PAIDAN_NATS_SEED_FILE", str(identities.seed_file(rules.service)))
    snapshots = Snapshots(rules.service)
    snapshots.begin(DISTRICT)
    child = snapshots._children[DISTRICT]
    snapshots.begin(DISTRICT)
    assert snapshots._children[DISTRICT] is child  # one at a time
    await snapshots.end()
    assert child.returncode == 0
    assert await bus.get_object("SNAPSHOTS", snapshot_name(rules, DISTRICT, 0))


async def test_one_that_does_not_end_does_not_hold_up_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.snapshots.ENDS_WITHIN_S", 0.1)
    snapshots = Snapshots("dispatch")
    snapshots._program = ("sleep",)  # type: ignore[assignment]
    snapshots.begin("60")
    child = snapshots._children["60"]
    await snapshots.end()
    assert child.returncode == -9


def test_the_command_line_asks_for_the_service_or_for_one_snapshot() -> None:
    assert asked([]) is None
    assert asked(["snapshot", DISTRICT]) == DISTRICT
    for wrong in (["snapshot"], ["serve"], ["snapshot", DISTRICT, "more"]):
        with pytest.raises(SystemExit):
            asked(wrong)
