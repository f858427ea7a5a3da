"""Derived names, keys and ciphertexts: repeatable by us, meaningless to others."""

from __future__ import annotations

import re

import pytest

from services.intake.model import Contact
from services.intake.naming import Naming
from services.intake.sealing import Keys, ResidentKey, UnreadableError

NAMING = Naming("s" * 64)
KEYS = Keys(pepper="p" * 64, keks=lambda: ["k" * 64])
REQUEST = NAMING.request_id("resident", "k-1")
PARTS = {"contact": {"phone": "13800138000"}, "text": "水管漏水"}


def resident(kid: str = "ab" * 16, key: bytes = b"k" * 32) -> ResidentKey:
    return KEYS.unwrap("420106", kid, KEYS.wrap("420106", kid, key, b"n" * 12))


def test_ids_repeat_and_look_like_uuids() -> None:
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", REQUEST)
    assert NAMING.request_id("resident", "k-1") == REQUEST
    others = {
        NAMING.request_id("token:resident", "k-1"),
        NAMING.request_id("resident", "k-2"),
        Naming("t" * 64).request_id("resident", "k-1"),
    }
    assert len(others | {REQUEST}) == 4


def test_a_tracking_code_survives_being_read_out() -> None:
    code = NAMING.tracking_code(REQUEST)
    assert re.fullmatch(r"([0-9A-HJKMNP-TV-Z]{4}-){2}[0-9A-HJKMNP-TV-Z]{4}", code)
    sloppy = code.lower().replace("-", " ").replace("0", "o").replace("1", "l")
    assert NAMING.tracking_hash(sloppy) == NAMING.tracking_hash(code)
    assert code.replace("-", "").lower() not in str(NAMING.tracking_hash(code))
    assert NAMING.tracking_hash("no code") is None
    assert NAMING.tracking_hash(code + "0") is None


def test_a_fingerprint_ignores_order_and_sees_every_value() -> None:
    assert NAMING.fingerprint({"a": 1, "b": {"c": 2, "d": 3}}) == NAMING.fingerprint({"b": {"d": 3, "c": 2}, "a": 1})
    assert NAMING.fingerprint({"a": 1}) != NAMING.fingerprint({"a": 2})


def test_sealing_twice_gives_the_same_and_another_body_another() -> None:
    sealed = resident().seal(REQUEST, "f1", PARTS)
    assert resident().seal(REQUEST, "f1", PARTS) == sealed
    assert resident().seal(REQUEST, "f2", PARTS)[:12] != sealed[:12]
    assert resident().open(REQUEST, sealed) == PARTS
    assert b"13800138000" not in sealed


def test_a_ciphertext_opens_only_where_it_belongs() -> None:
    sealed = resident().seal(REQUEST, "f1", PARTS)
    for key, request_id in ((resident("cd" * 16), REQUEST), (resident(), "other")):
        with pytest.raises(UnreadableError):
            key.open(request_id, sealed)
    with pytest.raises(UnreadableError):
        resident().open(REQUEST, sealed[:-1] + bytes([sealed[-1] ^ 1]))
    with pytest.raises(UnreadableError):
        KEYS.unwrap("420107", "ab" * 16, KEYS.wrap("420106", "ab" * 16, b"k" * 32, b"n" * 12))


def test_a_commitment_is_bound_to_key_request_and_ciphertext() -> None:
    sealed = resident().seal(REQUEST, "f1", PARTS)
    commitments = {
        resident().commitment(REQUEST, sealed),
        resident().commitment("other", sealed),
        resident().commitment(REQUEST, sealed + b"x"),
        resident(key=b"j" * 32).commitment(REQUEST, sealed),
    }
    assert len(commitments) == 4


def test_the_same_person_writes_a_number_in_many_ways() -> None:
    ways = ("13800138000", "+86 138-0013-8000", "0086 13800138000", "１３８００１３８０００")
    assert {Contact(phone=way).normalised() for way in ways} == {"phone:13800138000"}
    assert Contact(email="Zhang@Example.CN").normalised() == "email:zhang@example.cn"
    assert Contact(name="张三").normalised() is None


def test_a_contact_is_looked_up_differently_in_each_district() -> None:
    here, there = (KEYS.whose(district, "phone:1", REQUEST).lookup for district in ("420106", "420107"))
    assert here != there
    assert not KEYS.whose("420106", None, REQUEST).lasting
