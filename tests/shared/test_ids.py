"""Ids: random at the doors, derived wherever a repeat must give the same."""

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from shared.facts import Id
from shared.ids import derived_id, new_id

VALID = TypeAdapter(Id)
parts = st.lists(st.one_of(st.text(alphabet=st.characters(exclude_characters="\x1f", codec="utf-8")), st.integers()))


@given(parts)
def test_the_same_parts_give_the_same_id(given: list[object]) -> None:
    assert derived_id(*given) == derived_id(*given)


@given(parts)
def test_a_derived_id_is_a_uuid_of_version_8_that_facts_take(given: list[object]) -> None:
    id = derived_id(*given)
    assert (UUID(id).version, UUID(id).variant) == (8, "specified in RFC 4122")
    assert VALID.validate_python(id) == id == str(UUID(id))


@given(parts, parts)
def test_other_parts_give_another_id(one: list[object], two: list[object]) -> None:
    assert (derived_id(*one) == derived_id(*two)) == ("\x1f".join(map(str, one)) == "\x1f".join(map(str, two)))


def test_where_one_part_ends_matters() -> None:
    assert derived_id("ab", "c") != derived_id("a", "bc")


def test_a_derived_id_stays_the_same_for_ever() -> None:
    assert derived_id("request", "task", 1) == "1cc9c103-1b2f-8d9b-bcb7-87a4369528d8"


def test_new_ids_are_different_uuids_of_version_7_in_order() -> None:
    ids = [new_id() for _ in range(100)]
    assert {UUID(id).version for id in ids} == {7}
    assert ids == sorted(set(ids))
    assert all(VALID.validate_python(id) == id for id in ids)
