"""From a register document to facts: only what differs, and only what holds together."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.ledger.registering import as_document, batches, diff, digest, read
from shared.envelope import canonical
from shared.errors import RefusedError
from shared.register import Register, evolve

DOCUMENT = json.loads((Path(__file__).parents[2] / "deploy" / "demo" / "register.json").read_text())


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
        ("calendars.0.zone", first("calendars", zone="Mars/Olympus")),
        ("calendars.0.hours", first("calendars", hours=[[540, 720], [700, 800]])),
        ("calendars.0.workdays", first("calendars", workdays=[8])),
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


@pytest.mark.parametrize("document", [None, [], "register", {"areas": {}}, {"areas": [None]}])
def test_what_is_no_document_is_refused(document: Any) -> None:
    with pytest.raises(RefusedError):
        read(document)
