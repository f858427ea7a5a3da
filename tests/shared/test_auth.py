"""Who is calling, and who only says so."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
import time_machine
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from deploy.identities import Identities, issue_token
from shared.auth import OWN, Caller, Doorkeeper, OidcIssuer, bearer
from shared.errors import RefusedError
from shared.keys import Discovered, Watched, read_keys
from shared.settings import ServiceSettings
from tests.shared.oidc import OidcServer, oidc_server

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
        "iat": int(datetime.now(UTC).timestamp()), "exp": int(datetime.now(UTC).timestamp()) + 600,
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
     {"nbf": 2**33}, {"iat": 2**33}, {"iat": None}, {"roles": 7}, {"exp": "soon"}, {"sub": 17}],
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
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": [json.loads(i.jwks_file.read_text())["keys"][0] for i in (mine, other)]}))
    door = Doorkeeper.from_file(file)
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


# --- keys that change -------------------------------------------------------------------------------------------------


@pytest.fixture
def looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at each time."""
    monkeypatch.setattr("shared.keys.LOOK_S", 0)


@pytest.mark.usefixtures("looking")
def test_a_key_that_is_taken_from_the_file_opens_nothing_more(mine: Identities, tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(mine.jwks_file.read_text())
    door, token = Doorkeeper.from_file(file), signed(mine)
    assert door.check(token).id == "m-li"
    other = Identities.open(tmp_path / "other")
    file.write_text(other.jwks_file.read_text())
    assert why_not(door, token) == "unknown key"
    assert door.check(signed(other)).id == "m-li"
    file.write_text("{broken")
    assert door.check(signed(other)).id == "m-li"


def test_keys_that_are_none_of_ours_are_left_out(mine: Identities) -> None:
    good = json.loads(mine.jwks_file.read_text())["keys"][0]
    secret = {"kty": "oct", "kid": "s", "k": base64.urlsafe_b64encode(b"x" * 32).decode(), "alg": "HS256"}
    others = [secret, {**good, "kid": "e", "use": "enc"}, {"kty": "RSA", "kid": "r"}, "junk", {**good, "kid": 7}]
    assert list(read_keys({"keys": [*others, good]})) == [good["kid"]]
    documents: list[Any] = [{}, [], {"keys": {}}]
    for document in documents:
        with pytest.raises(ValueError, match="JWKS"):
            read_keys(document)


# --- short replies ----------------------------------------------------------------------------------------------------


def test_a_replys_token_is_a_members_and_opens_what_takes_replies(mine: Identities, tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    public = json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(key.public_key()))
    own = json.loads(mine.jwks_file.read_text())["keys"]
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps({"keys": [*own, {**public, "kid": "replies", "alg": "EdDSA", "iss": "paidan-replies"}]}))
    door = Doorkeeper.from_file(file)
    token = signed(mine, key=key, kid="replies", iss="paidan-replies", roles=["member", "admin", "dispatcher"])
    assert door.check(token, replies=True).roles == {"member"}
    for _ in range(2):  # also when it is known
        assert "answers an offer" in why_not(door, token)
    # Neither issuer's key signs for the other.
    assert why_not(door, signed(mine, key=key, kid="replies")) == "unknown key"
    assert why_not(door, signed(mine, iss="paidan-replies")) == "unknown key"


# --- revoked ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("looking")
def test_what_was_issued_before_its_holder_was_revoked_counts_no_more(mine: Identities, tmp_path: Path) -> None:
    file = tmp_path / "revoked.json"
    door = Doorkeeper.of(settings(mine, revoked_file=file))
    token, other = signed(mine), signed(mine, sub="m-wang")
    caller = door.check(token)
    assert door.holds(caller)
    now = int(time.time())
    file.write_text(json.dumps({"420106 m-li": now}))
    assert why_not(door, token) == "it was revoked"
    assert not door.holds(caller)
    assert why_not(door, signed(mine, iat=now + 3)) == "it was revoked"  # by a clock that is ahead
    assert door.check(other).id == "m-wang"
    assert door.check(signed(mine, district="420107")).id == "m-li"  # somebody else
    file.write_text(json.dumps({"420106 m-li": now - 7}))
    assert why_not(door, signed(mine, iat=now - 3)) == "it was revoked"
    assert door.check(signed(mine)).id == "m-li"
    for unfit in ("[]", "{", '{"m-Li": 1}', '{"420106 m-li": "now"}', '{"m-li": true}'):
        file.write_text(unfit)
        assert why_not(door, signed(mine, iat=now - 3)) == "it was revoked"


@pytest.mark.usefixtures("looking")
def test_who_was_revoked_without_a_district_is_so_in_every_one(mine: Identities, tmp_path: Path) -> None:
    now, file = int(time.time()), tmp_path / "revoked.json"
    file.write_text(json.dumps({"m-li": now, "420106 m-wang": now}))  # as it was written before, and as it is
    door = Doorkeeper.of(settings(mine, revoked_file=file))
    for district in ("420106", "420107", "*"):
        assert why_not(door, signed(mine, district=district, iat=now - 3)) == "it was revoked"
    assert why_not(door, signed(mine, sub="m-wang", iat=now - 3)) == "it was revoked"
    assert door.check(signed(mine, sub="m-wang", district="420107", iat=now - 3)).id == "m-wang"


@pytest.mark.usefixtures("looking")
def test_an_entry_that_cannot_be_read_opens_nothing_and_spoils_no_other(mine: Identities, tmp_path: Path) -> None:
    now, file = int(time.time()), tmp_path / "revoked.json"
    file.write_text(json.dumps({"420106 m-li": now, "Li Lei": now, "420106 m-wang": "now"}))
    door = Doorkeeper.of(settings(mine, revoked_file=file))
    assert why_not(door, signed(mine, iat=now - 3)) == "it was revoked"
    assert why_not(door, signed(mine, sub="m-wang", iat=now + 3)) == "it was revoked"  # up to we know not when
    assert door.check(signed(mine, sub="m-zhao", iat=now - 3)).id == "m-zhao"
    # As long as one is unfit, new ones count and none is forgotten.
    file.write_text(json.dumps({"420106 m-zhao": now, "Li Lei": now}))
    assert why_not(door, signed(mine, sub="m-zhao", iat=now - 3)) == "it was revoked"
    assert why_not(door, signed(mine, iat=now - 3)) == "it was revoked"
    file.write_text(json.dumps({"420106 m-zhao": now}))
    assert door.check(signed(mine, iat=now - 3)).id == "m-li"


@pytest.mark.usefixtures("looking")
@pytest.mark.parametrize("text", ["{", "[]"])
def test_nobody_comes_in_while_it_cannot_be_read_who_may_not(mine: Identities, tmp_path: Path, text: str) -> None:
    file = tmp_path / "revoked.json"
    file.write_text(text)
    door = Doorkeeper.of(settings(mine, revoked_file=file))
    assert why_not(door, signed(mine)) == "it was revoked"
    file.write_text("{ }")
    assert door.check(signed(mine)).id == "m-li"


@pytest.mark.usefixtures("looking")
async def test_of_one_issuer_whose_clock_may_be_ahead_further(
    mine: Identities, issuer: OidcServer, tmp_path: Path
) -> None:
    now, file = int(time.time()), tmp_path / "revoked.json"
    file.write_text(json.dumps({f"420106 m-li {issuer.url}": now}))
    oidc = OidcIssuer(issuer=issuer.url, districts=("420106",))
    door = Doorkeeper.of(settings(mine, revoked_file=file, oidc=(oidc,)))
    assert await refused(door, issuer.token(sub="m-li", iat=now + 25)) == "it was revoked"
    assert (await door.admit(issuer.token(sub="m-wang"))).id == "m-wang"
    assert door.check(signed(mine)).id == "m-li"


# --- other issuers ----------------------------------------------------------------------------------------------------


def settings(mine: Identities, **given: Any) -> ServiceSettings:
    """Of a service that trusts the stack's own issuer."""
    return ServiceSettings(jwks_file=mine.jwks_file, **given)


@pytest.fixture
async def issuer() -> AsyncIterator[OidcServer]:
    """An OIDC issuer that runs."""
    async with oidc_server() as running:
        yield running


def opened(issuer: OidcServer, *, pause_s: float = 0, **trusted: Any) -> Doorkeeper:
    """A doorkeeper who knows this issuer and nobody else."""
    return Doorkeeper(
        [
            (
                OidcIssuer(issuer=issuer.url, **{"districts": ("420106",), **trusted}),
                Discovered(issuer.url, pause_s=pause_s),
            )
        ]
    )


async def refused(door: Doorkeeper, token: str) -> str:
    """Why it is refused, after a look at the issuer."""
    with pytest.raises(RefusedError, match="unauthenticated") as why:
        await door.admit(token)
    return str(why.value.facts["why"])


async def test_an_issuers_keys_are_found_by_its_discovery_document(mine: Identities, issuer: OidcServer) -> None:
    door = Doorkeeper.of(settings(mine, oidc=(OidcIssuer(issuer=issuer.url, districts=("420106",)),)))
    assert why_not(door, issuer.token()) == "unknown key"  # nothing is fetched before somebody waits for it
    caller = await door.admit(issuer.token())
    assert (caller, caller.issuer) == (Caller("staff-9", "420106", frozenset({"dispatcher"})), issuer.url)
    assert door.check(issuer.token(sub="staff-8")).id == "staff-8"
    assert (await door.admit(signed(mine))).id == "m-li"
    assert issuer.asked == 1


async def test_issuers_are_named_in_the_environment(
    mine: Identities, issuer: OidcServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAIDAN_JWKS_FILE", str(mine.jwks_file))
    monkeypatch.setenv("PAIDAN_OIDC", json.dumps([{"issuer": issuer.url, "districts": ["420106"], "may": ["member"]}]))
    door = Doorkeeper.of(ServiceSettings())
    assert (await door.admit(issuer.token(roles=["member", "admin"]))).roles == {"member"}
    assert (await door.admit(signed(mine))).id == "m-li"
    await refused(door, issuer.token(district="420107"))


async def test_keys_rotate_and_the_old_one_opens_nothing_more(issuer: OidcServer) -> None:
    door, old = opened(issuer), issuer.token()
    assert (await door.admit(old)).id == "staff-9"
    issuer.rotate()
    assert (await door.admit(issuer.token(sub="staff-8"))).id == "staff-8"
    assert await refused(door, old) == "unknown key"


async def test_made_up_keys_cost_the_issuer_one_question_in_a_while(issuer: OidcServer) -> None:
    door = opened(issuer, pause_s=60)
    await door.admit(issuer.token())
    issuer.rotate()
    for _ in range(20):
        assert await refused(door, issuer.token()) == "unknown key"
        issuer.kid += "x"
    assert issuer.asked == 1
    await asyncio.gather(*(refused(opened(issuer), issuer.token()) for _ in range(3)))


async def test_those_who_wait_for_the_same_key_ask_once(issuer: OidcServer) -> None:
    door = opened(issuer)
    callers = await asyncio.gather(*(door.admit(issuer.token(sub=f"m-{n}")) for n in range(20)))
    assert len({caller.id for caller in callers}) == 20
    assert issuer.asked == 1


@pytest.mark.parametrize("how", ["500", "huge", "garbage", "impostor", "redirect", "no address"])
async def test_an_issuer_that_answers_badly_lets_nobody_in_and_locks_nobody_out(issuer: OidcServer, how: str) -> None:
    issuer.broken = how
    door = opened(issuer)
    assert await refused(door, issuer.token()) == "unknown key"
    issuer.broken = None
    known = issuer.token()
    assert (await door.admit(known)).id == "staff-9"
    issuer.broken = how
    issuer.kid = "another"
    assert await refused(door, issuer.token()) == "unknown key"
    assert (await door.admit(known)).id == "staff-9"


async def test_an_issuer_that_says_nothing_is_waited_for_no_longer_than_that(
    issuer: OidcServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.keys.FETCH_WITHIN_S", 0.3)
    issuer.broken = "silence"
    began = time.monotonic()
    assert await refused(opened(issuer), issuer.token()) == "unknown key"
    assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    "claims",
    [{"aud": "another-app"}, {"exp": 1}, {"iat": None}, {"district": "420107"}, {"district": "*"}, {"district": None},
     {"sub": "li.si@example.com"}, {"iss": "https://impostor.example"}],
    ids=str,
)  # fmt: skip
async def test_an_issuer_speaks_for_its_own_people_only(issuer: OidcServer, claims: dict[str, Any]) -> None:
    door = opened(issuer, districts=("420106",))
    assert (await door.admit(issuer.token())).id == "staff-9"
    await refused(door, issuer.token(**claims))


async def test_claims_and_roles_have_other_names_elsewhere(issuer: OidcServer) -> None:
    door = opened(
        issuer,
        audience="grid",
        sub="employee",
        district="https://id.example/area",
        roles="realm_access.roles",
        names={"网格长": "dispatcher", "chief": "admin", "grid": "member"},
        may=("member", "dispatcher"),
    )
    token = issuer.token(
        sub="8f14e45f", aud=["grid", "mail"], employee="m-17", roles=["admin"], district="420107",
        **{"https://id.example/area": "420106", "realm_access": {"roles": ["网格长", "chief", "admin"]}},
    )  # fmt: skip
    assert await door.admit(token) == Caller("m-17", "420106", frozenset({"dispatcher"}))
    assert await refused(door, issuer.token(aud="grid", employee=None)) == "employee is no pseudonym such as m-17"


async def test_an_issuer_makes_no_admin_unless_that_is_said(issuer: OidcServer) -> None:
    with pytest.raises(ValueError, match="districts"):
        OidcIssuer.model_validate({"issuer": issuer.url})
    with pytest.raises(ValueError, match="districts"):
        OidcIssuer(issuer=issuer.url, districts=())
    everything = issuer.token(district="*", roles=["admin", "auditor", "dispatcher"])
    assert (await opened(issuer, districts=("*",)).admit(everything)).roles == {"dispatcher"}
    there = issuer.token(roles=["admin", "auditor"])
    assert (await opened(issuer).admit(there)).roles == {"auditor"}
    assert (await opened(issuer, districts=("*",), may=("auditor",)).admit(everything)).roles == {"auditor"}


async def test_a_clock_that_differs_a_little_is_forgiven(issuer: OidcServer) -> None:
    door, now = opened(issuer), int(time.time())
    assert await door.admit(issuer.token(iat=now + 20, nbf=now + 20, exp=now - 20))
    await refused(door, issuer.token(iat=now + 40))
    await refused(door, issuer.token(exp=now - 40))


async def test_keys_are_kept_fresh_while_they_are_followed(issuer: OidcServer) -> None:
    door = opened(issuer)
    following = asyncio.create_task(door.follow())
    async with asyncio.timeout(5):
        while not issuer.asked:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert door.check(issuer.token()).id == "staff-9"
    following.cancel()


def test_an_issuer_is_reached_by_https_and_named_once(mine: Identities) -> None:
    for url in ("http://id.example", "ftp://id.example", "id.example", "https://"):
        with pytest.raises(ValueError, match="https"):
            OidcIssuer(issuer=url, districts=("*",))
    twice = (OidcIssuer(issuer="https://id.example", districts=("*",)),) * 2
    with pytest.raises(ValueError, match="two issuers"):
        Doorkeeper.of(settings(mine, oidc=twice))


def test_a_token_that_asks_for_what_nobody_knows_or_is_endless_is_refused(mine: Identities, door: Doorkeeper) -> None:
    kid = json.loads(mine.jwks_file.read_text())["keys"][0]["kid"]
    now = int(time.time())
    claims = {"iss": "paidan", "aud": "paidan", "sub": "m-li", "district": "420106", "iat": now, "exp": now + 60}
    why_not(door, jwt.encode(claims, mine.signing_key, algorithm="EdDSA", headers={"kid": kid, "crit": ["x"], "x": 1}))
    assert why_not(door, signed(mine, more="x" * 9000)) == "it is too long"


def test_a_role_that_nobody_knows_is_none(mine: Identities, door: Doorkeeper) -> None:
    assert door.check(signed(mine, roles="member poet")).roles == {"member"}
    assert OWN.may[0] == "resident"


def test_a_file_that_must_be_there_is_missed_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none"):
        Doorkeeper.from_file(tmp_path / "none.json")
    assert Watched(tmp_path / "none.json", dict, missing={}).value == {}
