"""Every service answers as its OpenAPI document says, whatever a fuzzer makes of it: no server error, no undocumented answer."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from deploy.identities import SERVICES
from tests.security.office import WUCHANG, Office

CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
EXAMPLES = 10
ENDLESS = ("/v1/stream",)
"""What does not end; `tests/dispatch/test_streaming.py` is about it."""
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_answers_as_its_document_says(office: Office, service: str) -> None:
    schema = schemathesis.openapi.from_url(office.stack.urls[service] + "/openapi.json")
    everything = office.token("staff-7", WUCHANG, "clerk", "member", "dispatcher", "supervisor", "auditor", "admin")
    tokens = st.sampled_from([everything, everything, everything, office.token("m-7", "*", "member"), "forged", None])
    failures = []
    every: list[Any] = list(schema.get_all_operations())
    for operation in (found.ok() for found in every):
        if operation.path in ENDLESS:
            continue
        bare = not (operation.body or operation.query or operation.headers or operation.path_parameters)
        for mode in (GenerationMode.POSITIVE,) if bare else GenerationMode:

            @settings(
                max_examples=3 if bare else EXAMPLES,
                database=None,
                deadline=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate],
            )
            @given(case=operation.as_strategy(generation_mode=mode), token=tokens)
            def check(case: Any, token: str | None) -> None:
                headers = {"Authorization": f"Bearer {token}"} if token else {}
                case.validate_response(case.call(headers=headers, timeout=20), checks=CHECKS)

            try:
                check()
            except Unsatisfiable:  # nothing is wrong for it
                continue
            except Exception as why:  # each operation has its say
                failures.append(f"{operation.label} ({mode.value}): {why}")
    assert not failures, "\n\n".join(failures)


@pytest.mark.parametrize("service", SERVICES)
def test_a_method_that_a_path_does_not_have_is_told_those_it_has(office: Office, service: str) -> None:
    document = office.get(service, "/openapi.json").json()
    for path, operations in document["paths"].items():
        there = {method.upper() for method in operations}
        for method in set(METHODS) - there:
            answer = office.call(method, service, path.replace("{", "").replace("}", ""))
            assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed"), (method, path)
            assert set(answer.headers["allow"].split(", ")) >= there
