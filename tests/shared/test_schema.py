"""What other people's programs are told of the facts is true, valid, and does not break them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator, Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from shared import schema
from shared.envelope import Envelope
from shared.facts import (
    CATALOGUE,
    Candidate,
    Fact,
    InputRefused,
    MatchExplained,
    NoticeFailed,
    NotifyTurnCommitted,
    Position,
    RequestSubmitted,
    TaskOffered,
    TurnCommitted,
)
from shared.ids import derived_id
from shared.schema import ENVELOPE, asyncapi, breaking, fact_schema, versioned
from tests import examples

DOCS = Path(__file__).parents[2] / "docs"
PUBLISHED = sorted((DOCS / "schemas").glob("*.json"))
BY_FILE = {f"{versioned(fact)}.json": fact for fact in CATALOGUE}

Change = Callable[[dict[str, Any]], object]


def read(file: Path) -> Any:
    """A JSON document."""
    return json.loads(file.read_text(encoding="utf-8"))


def event(fact: Fact) -> dict[str, Any]:
    """A fact as it is on the bus."""
    envelope = Envelope(
        derived_id("event", fact.name),
        examples.WUCHANG,
        examples.OUJING,
        examples.NOW,
        fact,
        "420106,420107",
        examples.REQUEST,
    )
    decoded: dict[str, Any] = json.loads(envelope.encode())
    return decoded


def validator(fact: type[Fact]) -> Draft202012Validator:
    """For one fact's published schema, with the envelope's beside it."""
    envelope = DRAFT202012.create_resource(read(DOCS / "schemas" / ENVELOPE))
    registry: Registry[Any] = Registry().with_resource(ENVELOPE, envelope)
    return Draft202012Validator(read(DOCS / "schemas" / f"{versioned(fact)}.json"), registry=registry)


FACTS: tuple[Fact, ...] = (
    TaskOffered(
        task_id=examples.TASK,
        wave=1,
        members=("m-li",),
        item="repair.leak",
        urgency=2,
        until=examples.NOW,
        match_id=examples.TASK,
    ),
    MatchExplained(
        match_id=examples.TASK,
        task_id=examples.TASK,
        policy=1,
        considered=2,
        fell_out={"off_duty": 1},
        best=(Candidate(member_id="m-li", cost=-3, terms={"workload": -3}),),
        chosen=("m-li",),
    ),
    NoticeFailed(notice_id=examples.TASK, channel="wecom", attempt=1, code="refused", retry_at=examples.NOW),
    TurnCommitted(position=Position(created="2026-11-22T00:00:00Z", sequence=5), by="1", epoch=1, facts=2),
    NotifyTurnCommitted(position=Position(created="2026-11-22T00:00:00Z", sequence=5), by="1", epoch=1, facts=2),
    InputRefused(sequence=1, code="json"),
    examples.DISTRICT,
    examples.CALENDAR,
    examples.POLICY,
)


def test_what_lies_in_docs_is_what_the_catalogue_says() -> None:
    assert schema.write(DOCS, check=True) == [], "run `make schema`"


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.stem)
def test_no_change_breaks_a_reader_of_a_committed_schema(file: Path) -> None:
    if file.name == ENVELOPE:
        assert breaking(read(file), schema.envelope_schema()) == []
    else:
        assert file.name in BY_FILE, "a fact was removed: others may read it, and the ledger holds it"
        assert breaking(read(file), fact_schema(BY_FILE[file.name])) == [], "make it a new version of the fact"


def test_no_change_breaks_a_reader_of_the_last_release() -> None:
    """Committing the changed schema does not make it harmless. Needs git and a tag `v…`; before the first there is none."""

    def git(*words: str) -> str:
        found = subprocess.run(["git", "-C", str(DOCS), *words], capture_output=True, text=True, check=False)
        return found.stdout.strip() if found.returncode == 0 else ""

    tag = git("describe", "--tags", "--abbrev=0", "--match", "v*")
    if not tag:
        pytest.skip("nothing was released yet")
    for path in git("ls-tree", "--name-only", tag, "schemas/").splitlines():
        old = json.loads(git("show", f"{tag}:./{path}"))
        name = Path(path).name
        assert (DOCS / "schemas" / name).is_file(), f"{name} was published in {tag}"
        assert breaking(old, read(DOCS / "schemas" / name)) == [], f"{name} was published in {tag}"


def test_writing_twice_changes_nothing_and_a_change_is_named(tmp_path: Path) -> None:
    written = schema.write(tmp_path)
    assert set(written) == set(schema.documents())
    assert schema.write(tmp_path) == []
    (tmp_path / "facts.md").write_text("by hand")
    (tmp_path / "schemas" / "task.offered.v1.json").unlink()
    assert schema.write(tmp_path, check=True) == ["schemas/task.offered.v1.json", "facts.md"]
    assert (tmp_path / "facts.md").read_text() == "by hand"


# --- JSON Schemas -----------------------------------------------------------------------------------------------------


def test_every_fact_has_its_schema() -> None:
    assert {file.name for file in PUBLISHED} == {ENVELOPE, *BY_FILE}


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.stem)
def test_every_schema_is_valid(file: Path) -> None:
    document = read(file)
    Draft202012Validator.check_schema(document)
    for reference in references(document):
        assert reference == ENVELOPE or reference.removeprefix("#/$defs/") in document["$defs"]


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: f"{fact.service}.{fact.name}")
def test_a_fact_on_the_bus_fits_its_schema(fact: Fact) -> None:
    validator(type(fact)).validate(event(fact))


@pytest.mark.parametrize(
    "change",
    [
        lambda event: event["data"].pop("members"),
        lambda event: event["data"].update(urgency=4),
        lambda event: event["data"].update(until=17),
        lambda event: event["data"].update(members=["李小明"]),
        lambda event: event.pop("districts"),
        lambda event: event.update(type="cn.paidan.task.offered.v2"),
        lambda event: event.update(source="/paidan/420106/intake"),
    ],
)
def test_what_is_no_such_fact_does_not_fit(change: Change) -> None:
    wrong = event(FACTS[0])
    change(wrong)
    assert not validator(TaskOffered).is_valid(wrong)


def test_a_reader_of_this_version_takes_a_later_writers_field() -> None:
    later = event(FACTS[0])
    later["data"]["new"] = 1
    validator(TaskOffered).validate(later)


def test_an_optional_field_is_absent_and_never_null() -> None:
    retry = fact_schema(NoticeFailed)["properties"]["data"]["properties"]["retry_at"]
    assert retry == {"type": "string", "format": "date-time"}


def test_a_field_is_described_where_the_catalogue_says_something() -> None:
    same_as = fact_schema(RequestSubmitted)["properties"]["data"]["properties"]["same_as"]
    assert "never dropped" in same_as["description"]


# --- what breaks a reader ---------------------------------------------------------------------------------------------

OFFERED = fact_schema(TaskOffered)


def changed(change: Change) -> list[str]:
    """What breaks when the data of `task.offered` is changed."""
    new = deepcopy(OFFERED)
    change(new["properties"]["data"])
    return breaking(OFFERED, new)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data["properties"].pop("wave"), "data.wave: removed"),
        (lambda data: data["properties"]["wave"].update(type="string"), "data.wave: type integer → string"),
        (lambda data: data["properties"]["until"].pop("format"), "data.until: format date-time → None"),
        (lambda data: data["properties"]["members"]["items"].update(pattern="x"), "data.members[]: pattern"),
        (lambda data: data["properties"]["urgency"].update(maximum=2), "data.urgency: maximum 3 → 2"),
        (lambda data: data["properties"]["urgency"].update(minimum=1), "data.urgency: minimum 0 → 1"),
        (lambda data: data["properties"]["wave"].update(maximum=9), "data.wave: maximum None → 9"),
        (lambda data: data["properties"]["item"].update(enum=["a"]), "data.item: no longer anything"),
        (lambda data: data["required"].append("why"), "data.why: now required"),
        (lambda data: data["required"].remove("wave"), "data.wave: no longer always there"),
    ],
)
def test_what_breaks_a_reader_is_named(change: Change, says: str) -> None:
    (why,) = changed(change)
    assert why.startswith(says)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: None,
        lambda data: data["properties"].update(why={"type": "string"}),
        lambda data: data["properties"]["wave"].update(description="Which."),
        lambda data: data["properties"]["urgency"].update(maximum=4),
    ],
)
def test_what_breaks_nobody_is_permitted(change: Change) -> None:
    assert changed(change) == []


def test_narrowing_is_found_in_enums_tuples_and_definitions() -> None:
    new = deepcopy(fact_schema(RequestSubmitted))
    new["properties"]["data"]["properties"]["channel"]["enum"].remove("phone")
    new["$defs"]["Due"]["properties"].pop("life")
    new["$defs"]["Due"]["required"].remove("life")
    new["$defs"]["Sealed"]["properties"]["parts"]["items"]["enum"].remove("text")
    assert breaking(fact_schema(RequestSubmitted), new) == [
        "data.channel: no longer phone",
        "data.due.life: removed",
        "data.sealed.parts[]: no longer text",
    ]


# --- AsyncAPI ---------------------------------------------------------------------------------------------------------


def references(node: Any) -> Iterator[str]:
    """Every `$ref`."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def resolve(document: Any, reference: str) -> Any:
    """What a reference inside the document leads to. Raises KeyError."""
    assert reference.startswith("#/")
    for token in reference[2:].split("/"):
        document = document[token.replace("~1", "/").replace("~0", "~")]
    return document


def test_every_reference_of_the_document_leads_somewhere() -> None:
    document = asyncapi()
    for reference in references(document):
        resolve(document, reference)


def test_the_document_has_what_the_specification_asks_for() -> None:
    document = asyncapi()
    assert document["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= document["info"].keys()
    for operation in document["operations"].values():
        assert operation["action"] in ("send", "receive")
        channel = resolve(document, operation["channel"]["$ref"])
        for message in operation["messages"]:
            assert message["$ref"].startswith(operation["channel"]["$ref"] + "/messages/")
            assert resolve(document, message["$ref"]) in channel["messages"].values()
    for channel in document["channels"].values():
        address = channel["address"] or ""
        assert set(channel.get("parameters", ())) == {part[1:-1] for part in address.split(".") if part.startswith("{")}


def test_every_fact_has_a_channel_and_a_writer() -> None:
    document = asyncapi()
    sent = {name for name, operation in document["operations"].items() if operation["action"] == "send"}
    assert sent == {f"{fact.service}.commits.{fact.name}" for fact in CATALOGUE}
    addresses = [channel["address"] for channel in document["channels"].values() if channel["address"]]
    assert len(addresses) == len(set(addresses))
    assert "evt.{district}.intake.{area}.request.submitted.{request}" in addresses
    assert "evt.{district}.dispatch.-.turn.committed" in addresses
    assert {"cmd.{district}.desk.{verb}", "qry.{district}.ledger.case"} <= set(addresses)


def test_addresses_are_the_subjects_facts_are_published_under() -> None:
    document = asyncapi()
    for fact in FACTS:
        address = document["channels"][f"{fact.service}.{fact.name}"]["address"]
        area = "-" if ".-." in address else examples.OUJING
        assert fact.subject("420106", area) == address.replace("{district}", "420106").replace("{area}", area)


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: f"{fact.service}.{fact.name}")
def test_a_fact_on_the_bus_fits_its_message(fact: Fact) -> None:
    document = asyncapi()
    payload = document["components"]["messages"][versioned(fact=type(fact))]["payload"]
    Draft7Validator.check_schema(document["components"]["schemas"][versioned(type(fact))])
    Draft7Validator({**payload, "components": document["components"]}).validate(event(fact))
