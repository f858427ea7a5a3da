"""Every route says who may call it, and what it says is what happens."""

from typing import get_args

import httpx2
import pytest

from deploy import access
from deploy.identities import SERVICES, Identities, issue_token
from shared.access import OF, Of
from shared.auth import ROLES, Doorkeeper, Role

EVERY = list(access.declared())


def test_every_route_of_every_service_says_who_may_call_it() -> None:
    assert len(EVERY) > 40
    assert [f"{service}: {name}" for service, name, found in EVERY if found is None] == []


def test_only_health_and_what_is_public_anyway_asks_nobody() -> None:
    assert {name for _, name, found in EVERY if found and not found.roles} == {
        "GET /docs", "GET /healthz", "GET /readyz", "GET /metrics",
        "GET /v1/catalogue", "GET /v1/areas", "GET /v1/reasons", "GET /v1/verbs",
        "GET /v1/log", "GET /checkpoint", "GET /tile/{level}/{number}", "GET /proof/{index}.tlog-proof", "GET /consistency",
        "GET /r/{code}", "POST /r/{code}", "GET /v1/inbound/{channel}", "POST /v1/inbound/{channel}",  # a code, a signature
    }  # fmt: skip


def test_each_kind_of_object_has_its_words() -> None:
    assert set(OF) == set(get_args(Of))


@pytest.mark.parametrize("service", SERVICES)
def test_the_document_says_so_too(service: str) -> None:
    document = access.app_of(service).openapi()
    for of, name, found in EVERY:
        method, path = name.split(" ")
        if of == service and path != "/docs":
            assert found
            operation = document["paths"][path][method.lower()]
            assert operation["x-roles"] == [role for role in ROLES if found.may(role)]
            assert ("security" in operation) == bool(found.roles)


@pytest.mark.parametrize("service", SERVICES)
async def test_who_may_not_is_refused_before_anything_is_looked_at(service: str, identities: Identities) -> None:
    """Each role that is not declared, on each route, with nothing behind the app: the refusal is the declaration's alone."""
    app = access.app_of(service)
    app.state.doorkeeper = Doorkeeper.from_file(identities.jwks_file)
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
    tried = 0
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as http:

        async def code(name: str, token: str | None) -> tuple[int, str]:
            method, path = name.split(" ")
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            answer = await http.request(method, path, headers=headers)
            return answer.status_code, answer.json().get("code", "")

        for of, name, found in EVERY:
            if of != service or not found or not found.roles:
                continue
            assert await code(name, "forged") == (401, "unauthenticated")
            if "resident" in found.roles:
                continue
            assert await code(name, None) == (401, "unauthenticated")
            for role in ROLES:
                if not found.may(role):
                    assert await code(name, token(identities, role)) == (403, "forbidden"), (name, role)
                    tried += 1
            if found.of == "everywhere":
                assert await code(name, token(identities, "admin")) == (403, "everywhere_only")
    assert tried > 1


def token(identities: Identities, role: Role) -> str:
    """Of somebody of one district with this role alone."""
    return issue_token(identities, "m-17", "420106", [role])
