"""What people and programs send that they should not: refused by name, on the running stack, and nothing else suffers."""

from __future__ import annotations

import asyncio
import json
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import jwt
import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from deploy.identities import issue_token
from tests.system.test_points import finish, task_of
from tests.system.world import DISTRICT, OTHER, Answer, System, fresh_key, members

pytestmark = pytest.mark.asyncio(loop_scope="session")

GOOD = {"service": "lamp", "location": {"area": "north"}}
REQUESTS = "/v1/requests"
TEN_MB = 10 * 1024 * 1024


async def post(system: System, body: Any, *, key: str | None = None, **more: Any) -> Answer:
    """One submission, right or wrong."""
    return await system.call("POST", "intake", REQUESTS, body, key=key or fresh_key(), **more)


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        ({"service": "lamp", "location": {"area": "nowhere"}}, 422, "unknown_area", "location.area"),
        ({"service": "lamp", "location": {"address": "天涯海角"}}, 422, "unknown_area", "location.address"),
        ({"service": "spaceship", "location": {"area": "north"}}, 422, "unknown_item", "service"),
        ({"service": "lamp", "location": {"lon": 123.0, "lat": 29.0}}, 422, "outside", "location"),
        ({"service": "lamp", "location": {"lon": 0, "lat": 0}}, 422, "outside", "location"),
        ({"service": "lamp", "location": {"lon": 181, "lat": 0}}, 422, "invalid", "location.lon"),
        ({"service": "lamp", "location": {"lon": 114.0}}, 422, "invalid", "location"),
        ({"service": "lamp"}, 422, "no_location", "location"),
        ({"location": {"area": "north"}}, 422, "invalid", "body"),
        ({**GOOD, "tekst": "a field that there is not"}, 422, "invalid", "tekst"),
        ({**GOOD, "text": "长" * 2001}, 422, "invalid", "text"),
        ({**GOOD, "contact": {"phone": "none"}}, 422, "invalid", "contact.phone"),
        ({**GOOD, "reported_at": "yesterday"}, 422, "invalid", "reported_at"),
        ([], 422, "invalid", "body"),
        (b"{", 400, "invalid_json", None),
        (b"", 400, "invalid_json", None),
        (b'{"text": "\\ud800"}', 400, "invalid_json", None),
        (b"\xff\xfe", 400, "invalid_json", None),
        (b"[" * 100_000, 413, "too_large", None),
        (b"[" * 60_000, 400, "invalid_json", None),
        (b'{"service": NaN}', 400, "invalid_json", None),
    ],
)
async def test_what_cannot_be_taken_in_is_refused_by_name(
    system: System, body: Any, status: int, code: str, field: str | None
) -> None:
    answer = await post(system, body)
    assert (answer.status, answer.code) == (status, code), answer.document
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.document["title"]
    assert answer.document["title_en"]
    if field is not None:
        assert answer.document["field"] == field


@pytest.mark.parametrize("service", ["intake", "dispatch", "notify", "ledger"])
async def test_ten_megabytes_are_refused_without_being_read(system: System, service: str) -> None:
    paths = {
        "intake": REQUESTS,
        "dispatch": "/v1/members/import",
        "notify": "/v1/notices",
        "ledger": "/v1/register",
    }
    size = TEN_MB if service != "ledger" else 2 * TEN_MB  # a register may be large
    method = "GET" if service == "notify" else "POST"
    headers = {
        "Authorization": f"Bearer {system.token('admin', district='*')}",
        "Idempotency-Key": fresh_key(),
        "Content-Type": "application/json",
    }
    url, params = system.stack.urls[service] + paths[service], {"district": DISTRICT}

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(size // 65536):
            yield b" " * 65536

    async with httpx2.AsyncClient(trust_env=False, timeout=20) as client:
        said = await client.request(method, url, content=b" " * size, headers=headers, params=params)
        assert (said.status_code, said.json()["code"]) == (413, "too_large")
        if service != "notify":  # which reads no bodies, announced or not
            said = await client.request(method, url, content=chunks(), headers=headers, params=params)  # not announced
            assert (said.status_code, said.json()["code"]) == (413, "too_large")


async def test_a_key_is_needed_and_belongs_to_one_body(system: System) -> None:
    missing = await system.call("POST", "intake", REQUESTS, GOOD)
    assert (missing.status, missing.code) == (400, "key_missing")
    long = await post(system, GOOD, key="k" * 201)
    assert (long.status, long.document["field"]) == (422, "Idempotency-Key")
    key = fresh_key()
    first = await post(system, GOOD, key=key)
    assert first.status == 201
    system.submitted[key] = [first.document]
    for instance in (1, 2):
        other = await post(system, {**GOOD, "text": "另一件事"}, key=key, instance=instance)
        assert (other.status, other.code) == (422, "key_reused")
    again = await post(system, dict(reversed(GOOD.items())), key=key)  # the same body, written otherwise
    assert (again.status, again.document) == (201, first.document)
    await finish(system, first.document["id"])


async def test_fifty_copies_at_once_and_one_much_later_on_another_instance_are_one_request(system: System) -> None:
    """
    "Eleven minutes later" is 2.5 s here: the bus forgets a message id after its duplicates window, which is 1 s, so
    whatever comes later finds the stored fact or is a second request.
    """
    key = fresh_key()
    body = {**GOOD, "text": "路灯坏了", "contact": {"phone": "199 0000 0000"}}
    answers = await asyncio.gather(*(post(system, body, key=key, instance=n % 2 + 1) for n in range(50)))
    assert {answer.status for answer in answers} == {201}
    await asyncio.sleep(2.5)
    answers += [await post(system, body, key=key, instance=n) for n in (2, 1)]
    assert all(answer.document == answers[0].document for answer in answers)
    system.submitted[key] = [answer.document for answer in answers]  # and in the ledger once: the last test looks
    await finish(system, answers[0].document["id"])


# --- tokens -----------------------------------------------------------------------------------------------------------


async def staff_routes(system: System) -> list[tuple[str, str, str]]:
    """Service, method and path of every route that is for staff, as it declares (`tests/shared/test_access.py` names the others)."""
    routes = []
    for service in ("intake", "dispatch", "notify", "ledger"):
        document = (await system.call("GET", service, "/openapi.json")).document
        routes += [
            (service, method.upper(), path.replace("{", "").replace("}", ""))
            for path, operations in document["paths"].items()
            for method, operation in operations.items()
            if operation.get("security") == [{"token": []}]
        ]
    assert len(routes) >= 30, routes
    return routes


def bad_tokens(system: System) -> dict[str, str | None]:
    """Everything that is not a valid token of this stack."""
    identities = system.stack.identities
    good = issue_token(identities, "operator", "*", ["admin"])
    head, claims, signature = good.split(".")
    kid = jwt.get_unverified_header(good)["kid"]
    of = jwt.decode(good, options={"verify_signature": False})
    public = identities.signing_key.public_key().public_bytes_raw()

    def signed(**changes: Any) -> str:
        return jwt.encode({**of, **changes}, identities.signing_key, algorithm="EdDSA", headers={"kid": kid})

    def part(value: Any) -> str:
        return urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return {
        "none": None,
        "no token": "hello",
        "another signer": jwt.encode(of, Ed25519PrivateKey.generate(), algorithm="EdDSA", headers={"kid": kid}),
        "an unknown key": jwt.encode(of, Ed25519PrivateKey.generate(), algorithm="EdDSA", headers={"kid": "k"}),
        "a secret that is public": jwt.encode(of, public, algorithm="HS256", headers={"kid": kid}),
        "no signature": f"{part({'alg': 'none', 'typ': 'JWT', 'kid': kid})}.{claims}.",
        "other claims": f"{head}.{part({**of, 'sub': 'somebody-else'})}.{signature}",
        "expired": issue_token(identities, "operator", "*", ["admin"], timedelta(minutes=-1)),
        "not yet": signed(nbf=int((datetime.now(UTC) + timedelta(hours=1)).timestamp())),
        "another audience": signed(aud="somebody"),
        "another issuer": signed(iss="somebody"),
        "for ever": jwt.encode(
            {name: value for name, value in of.items() if name != "exp"},
            identities.signing_key,
            algorithm="EdDSA",
            headers={"kid": kid},
        ),
    }


async def test_no_staff_route_opens_without_a_valid_token(system: System) -> None:
    tokens = bad_tokens(system)
    open_routes = []
    for service, method, path in await staff_routes(system):
        for name, token in tokens.items():
            body = b"{}" if method == "POST" else None
            answer = await system.call(method, service, path, body, token=token, key=fresh_key(), district=DISTRICT)
            if (answer.status, answer.code) != (401, "unauthenticated") or "www-authenticate" not in answer.headers:
                open_routes.append((name, service, method, path, answer.status, answer.document))
    assert open_routes == []


async def test_residents_need_no_token_but_a_bad_one_is_refused(system: System) -> None:
    for name, token in bad_tokens(system).items():
        if token is not None:
            answer = await post(system, GOOD, token=token)
            assert (answer.status, answer.code) == (401, "unauthenticated"), name


async def test_a_token_of_another_district_opens_nothing_here(system: System) -> None:
    asked = await system.submit(fresh_key())
    assert asked
    task = await task_of(system, asked["id"])
    token = system.token("admin", district=OTHER, sub="staff-of-another-office")
    member = {"member": task["offered"][0]}
    calls: list[tuple[str, str, str, Any]] = [
        *(
            ("dispatch", "POST", f"/v1/tasks/{task['id']}/{verb}", member)
            for verb in ("accept", "decline", "arrive", "done")
        ),
        ("dispatch", "POST", f"/v1/tasks/{task['id']}/offer", member),
        ("dispatch", "GET", "/v1/tasks", None),
        ("dispatch", "GET", f"/v1/tasks/{task['id']}", None),
        ("dispatch", "GET", "/v1/members", None),
        ("dispatch", "POST", "/v1/members/import", members()),
        ("dispatch", "POST", f"/v1/members/{task['offered'][0]}/leave", None),
        ("dispatch", "GET", "/v1/stream", None),
        ("notify", "GET", "/v1/notices", None),
        ("ledger", "GET", "/v1/cases", None),
        ("ledger", "GET", f"/v1/cases/{asked['id']}", None),
        ("ledger", "GET", "/v1/events", None),
    ]
    opened = []
    for service, method, path, body in calls:
        answer = await system.call(method, service, path, body, token=token, key=fresh_key(), district=DISTRICT)
        if (answer.status, answer.code) != (403, "foreign_district"):
            opened.append((service, method, path, answer.status, answer.document))
    clerk = await post(system, GOOD, token=system.token("clerk", district=OTHER))
    if (clerk.status, clerk.code) != (403, "foreign_district"):
        opened.append(("intake", "POST", REQUESTS, clerk.status, clerk.document))
    assert opened == []
    await finish(system, asked["id"])


async def test_what_another_office_reads_of_its_own_shows_nothing_of_ours(system: System) -> None:
    token = system.token("auditor", district=OTHER, sub="auditor-of-another-office")
    cases = await system.call("GET", "ledger", "/v1/cases", token=token)
    assert cases.document["cases"] == []
    url = system.stack.urls["ledger"] + "/v1/events"
    replay = await system.http.request("GET", url, {"Authorization": f"Bearer {token}"}, None, {"kinds": "all"}, 20)
    leaves = [orjson.loads(line)["leaf"] for line in replay.body.splitlines()[1:-1]]
    assert leaves
    assert all({scope["d"] for scope in leaf["scopes"]} & {OTHER, "000000"} for leaf in leaves)


async def test_roles_are_held_apart(system: System) -> None:
    asked = await system.submit(fresh_key())
    assert asked
    task = await task_of(system, asked["id"])
    member, other = task["offered"][0], "m-24" if task["offered"][0] != "m-24" else "m-23"
    accept = f"/v1/tasks/{task['id']}/accept"

    async def refused(code: str, method: str, service: str, path: str, body: Any, *roles: str, sub: str = "x") -> None:
        token = system.token(*roles, sub=sub)
        answer = await system.call(method, service, path, body, token=token, key=fresh_key(), district=DISTRICT)
        assert (answer.status, answer.code) == (403, code), (path, roles, answer.document)

    await refused("not_yourself", "POST", "dispatch", accept, {"member": member}, "member", sub=other)
    await refused("forbidden", "POST", "dispatch", accept, {"member": member}, "auditor")
    await refused("forbidden", "POST", "dispatch", accept, {"member": member}, "clerk")
    await refused("forbidden", "POST", "dispatch", "/v1/members/import", members(), "auditor")
    await refused("forbidden", "POST", "dispatch", f"/v1/members/{member}/leave", None, "member", sub=member)
    await refused("forbidden", "GET", "ledger", "/v1/events", None, "member", sub=member)
    await refused("forbidden", "POST", "ledger", "/v1/register", {"document": {}}, "supervisor")
    await finish(system, asked["id"])


async def test_a_command_on_the_bus_needs_the_callers_own_token_too(system: System) -> None:
    asked = await system.submit(fresh_key())
    assert asked
    task = await task_of(system, asked["id"])
    bus = await system.stack.connect("dispatch")
    tokens = bad_tokens(system) | {"another district": system.token("dispatcher", district=OTHER)}
    for name, token in tokens.items():
        command = {"id": fresh_key(), "token": token, "data": {"task": task["id"], "member": task["offered"][0]}}
        answer = orjson.loads(await bus.request(f"cmd.{DISTRICT}.desk.accept", orjson.dumps(command), timeout_s=5))
        assert answer["problem"]["status"] == (403 if name == "another district" else 401), name
    for nonsense in (b"", b"{", b"[]", b"null", b'{"id":1}', b'{"id":"12345678","data":7}'):
        answer = orjson.loads(await bus.request(f"cmd.{DISTRICT}.desk.accept", nonsense, timeout_s=5))
        assert answer["problem"]["status"] in (400, 401, 422), nonsense
    await bus.drain()
    await finish(system, asked["id"])


async def test_a_member_with_more_areas_than_a_fact_can_hold_does_not_stop_the_desk(system: System) -> None:
    row = {**members()[0], "id": "m-everywhere", "areas": [f"area-number-{n:010}" for n in range(2000)]}
    answer = await system.call(
        "POST",
        "dispatch",
        "/v1/members/import",
        [row],
        token=system.token("dispatcher"),
        key=fresh_key(),
        district=DISTRICT,
    )
    assert answer.document["enrolled"] == 0
    assert answer.document["rows"][0]["field"] == "areas", answer.document
    asked = await system.submit(fresh_key())
    assert asked
    await finish(system, asked["id"])


async def test_and_the_whole_history_holds(system: System) -> None:
    assert await system.verify() == []
