"""
What is accepted is part of the leaves' format (ADR 36): bytes that were judged once are judged alike for ever.

`verdicts.json`: verdict (`event`, or the reason of a reject), subject and bytes. `accepted.json`: for each type the digest of its
schema. Both only grow: a line that no longer holds is a log that cannot be read in again.
"""

from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
import pytest

from services.ledger.log import leaves
from shared.bus import Delivery
from shared.envelope import EVENT_BYTES_MAX
from shared.facts import CATALOGUE
from shared.schema import fact_schema

HERE = Path(__file__).parent
VERDICTS: list[tuple[str, str, str]] = orjson.loads((HERE / "verdicts.json").read_bytes())
ACCEPTED: dict[str, str] = orjson.loads((HERE / "accepted.json").read_bytes())


def verdict(subject: str, data: bytes) -> str:
    return leaves.read(Delivery(1, 1, subject, data)).reason or leaves.EVENT


def bare(schema: Any) -> Any:
    """Without what only people read."""
    if isinstance(schema, dict):
        return {name: bare(part) for name, part in schema.items() if name not in ("description", "title")}
    return [bare(part) for part in schema] if isinstance(schema, list) else schema


def digest(schema: Any) -> str:
    return sha256(orjson.dumps(bare(schema), option=orjson.OPT_SORT_KEYS)).hexdigest()


def test_what_was_judged_once_is_judged_alike() -> None:
    assert len(VERDICTS) > 200
    changed = [(was, subject, data) for was, subject, data in VERDICTS if verdict(subject, data.encode()) != was]
    assert changed == [], "what is accepted has changed: make a new version of the fact instead (ADR 36)"
    assert {was for was, _, _ in VERDICTS} >= {"event", "canonical", "json", "schema", "subject", "type"}
    assert verdict(VERDICTS[0][1], bytes(EVENT_BYTES_MAX + 1)) == "size"


@pytest.mark.parametrize("fact", CATALOGUE, ids=lambda fact: fact.type())
def test_a_version_of_a_fact_accepts_what_it_always_did(fact: Any) -> None:
    now = digest(fact_schema(fact))
    assert ACCEPTED.get(fact.type()) == now, (
        "a new type goes into tests/ledger/accepted.json; one that is there stays as it is, and what changes it is a new version "
        f"(ADR 36; before the first release the line may be replaced): {now}"
    )


def test_no_type_that_was_ever_accepted_is_gone() -> None:
    assert ACCEPTED.keys() <= {fact.type() for fact in CATALOGUE}
