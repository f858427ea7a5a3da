"""Who is calling, and who only says so."""

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
import time_machine
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from deploy.identities import Identities, issue_token
from shared.auth import Caller, Doorkeeper, bearer
from shared.errors import RefusedError

NOW = datetime(2026, 11, 23, 2, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    """Keys of one stack."""
    return Identities.open(tmp_path_factory.mktemp("auth") / "secrets")


@pytest.fixture
def door(mine: Identities) -> Doorkeeper:
    """Checks by that stack's public key."""
    return Doorkeeper.from_file(mine.jwks_file)


def why_not(door: Doorkeeper, token: str | None) -> str:
    """Why it is refused."""
    with pytest.raises(RefusedError) as refused:
        door.check(token)
    assert refused.value.code == "unauthenticated"
    return str(refused.value.facts["why"])


def signed(
    mine: Identities, *, key: Any = None, kid: str | None = None, algorithm: str = "EdDSA", **claims: Any
) -> str:
    """A token with these claims instead of good ones."""
    good: Mapping[str, Any] = {
        "iss": "paidan", "aud": "paidan", "sub": "m-li", "district": "420106", "roles": ["member"],
        "exp": int(datetime.now(UTC).timestamp()) + 600,
    }  # fmt: skip
    kid = kid or json.loads(mine.jwks_file.read_text())["keys"][0]["kid"]
    held = {name: value for name, value in {**good, **claims}.items() if value is not None}
    return jwt.encode(held, key or mine.signing_key, algorithm=algorithm, headers={"kid": kid})


def test_a_valid_token_names_its_caller(mine: Identities, door: Doorkeeper) -> None:
    caller = door.check(issue_token(mine, "m-li", "420106", ["member"]))
    assert caller == Caller("m-li", "420106", frozenset({"member"}))
    assert door.check(signed(mine)) == caller


@pytest.mark.parametrize("token", [None, "", "x", "a.b.c", "é.é.é", "." * 5000])
def test_what_is_no_token_is_refused(door: Doorkeeper, token: str | None) -> None:
    why_not(door, token)


def test_an_expired_token_is_refused_also_when_it_was_known(mine: Identities, door: Doorkeeper) -> None:
    with time_machine.travel(NOW, tick=False) as clock:
        token = issue_token(mine, "m-li", "420106", ["member"], timedelta(minutes=10), now=NOW)
        assert door.check(token).id == "m-li"
        clock.shift(timedelta(minutes=10, seconds=6))
        assert "expired" in why_not(door, token)


def test_a_token_that_was_changed_is_refused(mine: Identities, door: Doorkeeper) -> None:
    head, body, signature = signed(mine).split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    forged = base64.urlsafe_b64encode(json.dumps({**claims, "roles": ["admin"]}).encode()).rstrip(b"=").decode()
    why_not(door, f"{head}.{forged}.{signature}")
    why_not(door, f"{head}.{body}.{signature[:-4]}AAAA")
    why_not(door, f"{head}.{body}.")


@pytest.mark.parametrize(
    "claims",
    [{"aud": "somebody"}, {"aud": None}, {"iss": "somebody"}, {"iss": None}, {"exp": None}, {"exp": 1}, {"sub": None},
     {"nbf": 2**33}, {"roles": 7}, {"exp": "soon"}],
    ids=str,
)  # fmt: skip
def test_a_token_for_or_by_somebody_else_is_refused(mine: Identities, door: Doorkeeper, claims: dict[str, Any]) -> None:
    why_not(door, signed(mine, **claims))


def test_a_token_without_a_signature_is_refused(mine: Identities, door: Doorkeeper) -> None:
    kid = json.loads(mine.jwks_file.read_text())["keys"][0]["kid"]
    claims = {"sub": "x", "iss": "paidan", "aud": "paidan", "exp": 2**33}
    token = jwt.encode(claims, "", algorithm="none", headers={"kid": kid})
    why_not(door, token)


def test_a_token_signed_with_the_public_key_as_a_secret_is_refused(mine: Identities, door: Doorkeeper) -> None:
    raw = mine.signing_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    for secret in (raw, base64.urlsafe_b64encode(raw).rstrip(b"=")):
        why_not(door, signed(mine, key=secret.ljust(32), algorithm="HS256"))


def test_a_token_by_another_key_is_refused_under_any_name(mine: Identities, door: Doorkeeper) -> None:
    other = Ed25519PrivateKey.generate()
    why_not(door, signed(mine, key=other))
    assert why_not(door, signed(mine, key=other, kid="another")) == "unknown key"
    assert why_not(door, signed(mine, kid="another")) == "unknown key"


def test_a_doorkeeper_without_keys_lets_nobody_in(mine: Identities) -> None:
    why_not(Doorkeeper.from_file(None), signed(mine))


def test_a_list_of_keys_is_read_from_its_file(mine: Identities, tmp_path: Path) -> None:
    other = Identities.open(tmp_path / "other")
    both = {"keys": [json.loads(i.jwks_file.read_text())["keys"][0] for i in (mine, other)]}
    door = Doorkeeper(both)
    assert door.check(signed(mine)).id == door.check(signed(other)).id == "m-li"


def test_a_role_is_asked_for_and_an_admin_has_every_one() -> None:
    clerk = Caller("staff-1", "420106", frozenset({"clerk"}))
    assert clerk.need("clerk", "auditor") is clerk
    with pytest.raises(RefusedError, match="forbidden"):
        clerk.need("dispatcher")
    assert Caller("root", "420106", frozenset({"admin"})).need("dispatcher")


def test_a_district_is_asked_for_and_an_admin_has_only_their_own() -> None:
    admin = Caller("root", "420106", frozenset({"admin"}))
    with pytest.raises(RefusedError, match="foreign_district"):
        admin.need("dispatcher", district="420107")
    assert Caller("root", "*", frozenset({"admin"})).need("dispatcher", district="420107")
    with pytest.raises(RefusedError, match="foreign_district"):
        Caller("m-li", "", frozenset({"member"})).need("member", district="420107")


def test_facts_name_the_weightiest_role() -> None:
    assert Caller("x", "420106", frozenset({"member", "supervisor"})).actor == "supervisor:x"
    assert Caller("x", "420106", frozenset({"poet"})).actor == "caller:x"


@pytest.mark.parametrize(
    ("header", "token"),
    [(None, None), ("", None), ("Bearer abc", "abc"), ("bearer  abc ", "abc"), ("Basic abc", None), ("Bearer", None)],
)
def test_the_token_in_a_header(header: str | None, token: str | None) -> None:
    assert bearer(header) == token


@pytest.mark.parametrize("sub", ["li.si@example.com", "13800000000", "李四", "+86-138", "", "m" * 65, "A"])
def test_who_is_named_by_more_than_a_pseudonym_is_refused(mine: Identities, door: Doorkeeper, sub: str) -> None:
    """A token's subject goes into every fact it leads to, and from there into the ledger, for ever."""
    with pytest.raises(RefusedError, match="unauthenticated"):
        door.check(issue_token(mine, sub, "420106", ["dispatcher"]))


@pytest.mark.parametrize("district", ["", "000000", "武昌", "42010", "4201066", "420106,420107"])
def test_a_token_is_for_one_district_or_for_all(mine: Identities, door: Doorkeeper, district: str) -> None:
    with pytest.raises(RefusedError, match="unauthenticated"):
        door.check(issue_token(mine, "staff-4", district, ["dispatcher"]))
