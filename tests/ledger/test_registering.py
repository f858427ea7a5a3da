"""From a register document to facts: only what differs, and only what holds together."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from deploy.identities import Identities
from deploy.servers import NatsServer
from services.ledger.figures import DEFAULT
from services.ledger.register.registering import Registry, as_document, batches, diff, digest, read
from shared import streams
from shared.bus import Bus, Message
from shared.envelope import Envelope, canonical
from shared.errors import RefusedError
from shared.facts import HUB, NOWHERE, RegisterApplied
from shared.problems import problem
from shared.register import Register, evolve

DOCUMENT = json.loads((Path(__file__).parents[2] / "deploy" / "demo" / "register.json").read_text())
FORMULAS = json.loads(canonical(DEFAULT))
DOCUMENT["formulas"] = [FORMULAS, {**FORMULAS, "district": "420106", "version": 2, "valid_from": "2026-07-01"}]
SQUARE = [[0, 0], [9, 0], [9, 9], [0, 9]]


def applied(*documents: Any) -> Register:
    register = Register()
    for document in documents:
        for change in diff(register, read(document)):
            register = evolve(register, change.fact)
    return register


def test_the_register_written_out_and_read_again_is_the_same() -> None:
    register = applied(DOCUMENT)
    document = json.loads(canonical(as_document(register)))
    assert all(change.change == "=" for change in diff(register, read(document)))
    assert digest(applied(document)) == digest(register)


def test_entries_that_a_document_does_not_name_are_left_alone() -> None:
    assert diff(applied(DOCUMENT), read({})) == []


def test_an_area_with_a_new_date_is_a_new_version_beside_the_old_one() -> None:
    later = {**DOCUMENT["areas"][0], "valid_from": "2027-01-01"}
    register = applied(DOCUMENT)
    [change] = diff(register, read({"areas": [later]}))
    assert (change.change, change.what) == ("+", f"area {later['area']} from 2027-01-01")
    assert len(evolve(register, change.fact).areas[later["area"]]) == 2


def test_a_batch_has_room_for_its_end() -> None:
    area = DOCUMENT["areas"][0]
    many = [{**area, "area": f"a{n}"} for n in range(2000)]
    sizes = [len(batch) for batch in batches(diff(Register(), read({**DOCUMENT, "areas": many, "agreements": []})))]
    assert max(sizes) <= 999
    assert len(sizes) == 3


def test_a_document_that_was_broken_off_is_ended_even_where_nothing_is_left_to_say() -> None:
    assert batches([], unfinished=True) == [[]]
    assert batches([]) == []
    changes = diff(Register(), read(DOCUMENT))
    assert batches(changes, unfinished=True) == batches(changes)


async def applied_markers(bus: Bus) -> list[tuple[int, bool]]:
    """What the ends of batches say: how many facts, and whether there is more."""
    markers = []
    for sequence in range(1, (await bus.state()).last + 1):
        stored = await bus.at(sequence)
        assert stored is not None
        fact = json.loads(stored.data)
        if fact["type"] == RegisterApplied.type():
            markers.append((fact["data"]["facts"], fact["data"]["more"]))
    return markers


async def test_whom_an_office_lets_in_is_told_to_that_office_alone(
    fresh_nats: NatsServer, identities: Identities
) -> None:
    bus = await Bus.connect(fresh_nats.url, name="admin", seed=identities.seed("admin"))
    await streams.apply(bus)
    registry, stop = Registry(bus), asyncio.Event()
    following = asyncio.create_task(registry.run(stop))
    offices = {"offices": [{"district": "420106", "apps": [{"app": "board", "key": f"U{'A' * 55}"}], "people": True}]}
    sequence = (await registry.apply({**DOCUMENT, **offices}, why="a test", by="admin:a"))["sequence"]
    told = [json.loads(stored.data) for n in range(1, sequence + 1) if (stored := await bus.at(n))]
    assert {e["districts"] for e in told if "office_set" in e["type"]} == {"420106"}
    assert {e["districts"] for e in told if "office_set" not in e["type"]} == {HUB}
    stop.set()
    await following
    await bus.drain()


async def test_only_the_last_batch_of_a_document_ends_it(fresh_nats: NatsServer, identities: Identities) -> None:
    bus = await Bus.connect(fresh_nats.url, name="admin", seed=identities.seed("admin"))
    await streams.apply(bus)
    registry, stop = Registry(bus), asyncio.Event()
    following = asyncio.create_task(registry.run(stop))
    item = DOCUMENT["items"][0]
    items = [{**item, "item": f"i{n}"} for n in range(1500)]
    await registry.apply({"items": items}, why="many", by="admin:a")
    assert await applied_markers(bus) == [(999, True), (501, False)]

    broken_off = RegisterApplied(by="admin:a", why="cut", digest="ab", facts=0, more=True)
    envelope = Envelope("cut", HUB, NOWHERE, datetime(2026, 1, 1, tzinfo=UTC), broken_off, HUB)
    await bus.commit([Message(envelope.subject, envelope.encode())])
    answer = await registry.apply({"items": items}, why="again", by="admin:a")
    assert (answer["applied"], answer["facts"]) == (True, 0)
    assert not (await registry.apply({"items": items}, why="again", by="admin:a"))["applied"]
    assert (await applied_markers(bus))[2:] == [(0, True), (0, False)]
    stop.set()
    await following
    await bus.drain()


def first(section: str, **changes: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        document[section][0].update(changes)

    return change


@pytest.mark.parametrize(
    ("field", "spoil"),
    [
        ("areas.0.served_by", first("areas", served_by="999999")),
        ("areas.0.located_in", first("areas", located_in="wuhan")),
        ("areas.0.parent", first("areas", parent="nowhere")),
        ("areas.0.parent", first("areas", parent=DOCUMENT["areas"][0]["area"])),
        ("areas.0.polygon.0", first("areas", polygon=[[[1, 2], [3, 4]]])),
        ("areas.0.polygon.0", first("areas", polygon=[[[1, 2], [3, 4], [1, 2]]])),
        ("areas.0.polygon.0", first("areas", polygon=[[[0, 0], [9, 9], [9, 0], [0, 9]]])),
        ("areas.0.polygon.0", first("areas", polygon=[[[0, 0], [1_800_000_001, 0], [0, 9]]])),
        ("areas.0.polygon.1", first("areas", polygon=[SQUARE, [[2, 2], [3, 3]]])),
        ("areas.0.polygon", first("areas", polygon=[SQUARE, [[20, 20], [30, 20], [30, 30]]])),
        ("agreements.0.parties", first("agreements", parties=[f"{420100 + n}" for n in range(21)])),
        ("areas.0.valid_from", first("areas", valid_from="yesterday")),
        ("areas.0.colour", first("areas", colour="red")),
        ("areas.1", lambda document: document["areas"].insert(1, document["areas"][0])),
        ("policies.0.calendar", first("policies", calendar="lunar")),
        ("policies.0.district", first("policies", district="999999")),
        ("policies.0.waves", first("policies", waves=1.5)),
        (
            "items.0.limits.sign.amount",
            first("items", limits={**DOCUMENT["items"][0]["limits"], "sign": {"amount": 0, "unit": "hours"}}),
        ),
        ("items.0.effort", first("items", effort=-1)),
        ("formulas.0.district", first("formulas", district="999999")),
        ("formulas.0.formulas", first("formulas", formulas=FORMULAS["formulas"][:1] * 2)),
        ("formulas.0.weights.luck", first("formulas", weights={"luck": 1})),
        ("formulas.0.weights.solved", first("formulas", weights={"solved": 0})),
        (
            "formulas.0.formulas.0.numerator.0",
            first("formulas", formulas=[{**FORMULAS["formulas"][0], "numerator": ["luck"]}]),
        ),
        ("calendars.0.zone", first("calendars", zone="Mars/Olympus")),
        ("calendars.0.hours", first("calendars", hours=[[540, 720], [700, 800]])),
        ("calendars.0.workdays", first("calendars", workdays=[8])),
        ("agreements.0.parties", first("agreements", parties=["420106"])),
        ("agreements.0.parties", first("agreements", parties=["420106", "420107", "420106"])),
        ("agreements.0.items.1", first("agreements", items=["repair", "repai"])),
        ("agreements.0.valid_from", lambda d: d["agreements"].insert(1, {**d["agreements"][0], "agreement": "a-2"})),
        ("agreements.0.lead", first("agreements", lead="420111")),
        ("agreements.0.area", first("agreements", area="nowhere")),
        ("agreements.0.valid_to", first("agreements", valid_to="2000-01-01")),
        ("districts.0.zone", first("districts", zone="Nowhere/City")),
        ("colours", lambda document: document.update(colours=[])),
    ],
)
def test_what_does_not_hold_together_is_refused_by_entry_and_field(
    field: str, spoil: Callable[[dict[str, Any]], None]
) -> None:
    document = json.loads(json.dumps(DOCUMENT))
    spoil(document)
    with pytest.raises(RefusedError) as refused:
        diff(Register(), read(document))
    assert (refused.value.code, refused.value.field) == ("invalid", field)


def test_a_ring_that_crosses_itself_is_refused_with_what_to_do_in_both_languages() -> None:
    crossed = {**DOCUMENT["areas"][0], "polygon": [[[0, 0], [9, 9], [9, 0], [0, 9]]]}
    with pytest.raises(RefusedError) as refused:
        diff(applied(DOCUMENT), read({"areas": [crossed]}))
    document = problem(refused.value)
    assert "依次列出各点" in document["title"]
    assert "list its points once" in document["title_en"]


@pytest.mark.parametrize("polygon", [[SQUARE], [[*SQUARE, SQUARE[0]]], [SQUARE, [[2, 2], [3, 2], [3, 3]]], []])
def test_sound_rings_closed_or_not_are_taken(polygon: list[Any]) -> None:
    assert diff(applied(DOCUMENT), read({"areas": [{**DOCUMENT["areas"][0], "polygon": polygon}]}))


@pytest.mark.parametrize("document", [None, [], "register", {"areas": {}}, {"areas": [None]}])
def test_what_is_no_document_is_refused(document: Any) -> None:
    with pytest.raises(RefusedError):
        read(document)
