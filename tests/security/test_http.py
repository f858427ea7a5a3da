"""
What nobody may do over HTTP, each with a name: another office's objects, another member's acts, tokens that are none.

Who may not call a route at all is `tests/shared/test_access.py`; here the role is right and the object is not.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from deploy.identities import SERVICES, issue_token
from services.ledger.figures import DEFAULT
from shared.ids import new_id
from tests.security.office import ENCLAVE, HONGSHAN, NEIGHBOUR, OWN, QINGSHAN, WUCHANG, Office, eventually

OTHER = f"m-{WUCHANG}-39"
"""A member of 武昌 who is asked nothing here."""


@dataclass
class Offices:
    """The stack with a request in 武昌, one in its enclave, and one of 青山; each offered to somebody."""

    office: Office
    own: dict[str, Any]
    enclave: dict[str, Any]
    foreign: dict[str, Any]

    def get(self, service: str, path: str, who: str, /, **params: Any) -> tuple[int, str]:
        """Status and code of what `<sub> <district> <role> …` is told."""
        return told(self.office.get(service, path, self.token(who), **params))

    def post(self, service: str, path: str, who: str, body: Any, /, **params: Any) -> tuple[int, str]:
        """As `get`, for a POST."""
        return told(self.office.post(service, path, self.token(who), body, **params))

    def json(self, service: str, path: str, who: str, /, **params: Any) -> Any:
        """What they are answered."""
        answer = self.office.get(service, path, self.token(who), **params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def token(self, who: str) -> str:
        """Of `<sub> <district> <role> …`."""
        sub, district, *roles = who.split()
        return self.office.token(sub, district, *roles)


def told(answer: httpx2.Response) -> tuple[int, str]:
    """Status and code."""
    return answer.status_code, answer.json().get("code", "") if answer.content else ""


@pytest.fixture(scope="module")
def at(office: Office) -> Offices:
    """Three requests, offered."""
    return Offices(office, office.submitted(OWN), office.submitted(ENCLAVE), office.submitted(NEIGHBOUR))


DISPATCHER, NEIGHBOURS, THIRD = (
    f"staff-1 {WUCHANG} dispatcher",
    f"staff-2 {QINGSHAN} dispatcher",
    f"staff-3 {HONGSHAN} dispatcher",
)
FOREIGN = (403, "foreign_district")


# --- another district -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("service", "path", "role"),
    [
        ("dispatch", "/v1/tasks", "dispatcher"),
        ("dispatch", "/v1/tasks", "member"),
        ("dispatch", "/v1/members", "dispatcher"),
        ("dispatch", "/v1/stream", "dispatcher"),
        ("dispatch", "/v1/stream", "member"),
        ("notify", "/v1/notices", "clerk"),
        ("ledger", "/v1/cases", "clerk"),
        ("ledger", "/v1/events", "auditor"),
        ("ledger", "/v1/acts", "auditor"),
        ("dispatch", "/v1/tasks", "admin"),
        ("ledger", "/v1/events", "admin"),
    ],
)
def test_another_district_is_not_read(at: Offices, service: str, path: str, role: str) -> None:
    assert at.get(service, path, f"staff-1 {WUCHANG} {role}", district=QINGSHAN) == FOREIGN


BODIES = {
    "/v1/people/find": {"request": new_id()},
    "/v1/people/erase": {"request": new_id()},
    "/v1/tasks/{task}/offer": {"member": OTHER},
    "/v1/figures/what-if": {"formulas": [DEFAULT.formulas[0].model_dump(mode="json")]},
    "/v1/figures/appeals": {"request": new_id(), "figure": "closing", "reason": "duplicate"},
    "/v1/figures/buildings": {"building": "b-1", "by": "b-2", "month": "2026-03", "points": 5},
}
QUERY = {"month": "2026-03"}
"""What a schema alone does not give."""


def test_no_route_takes_another_district_for_ones_own(at: Offices) -> None:
    """Every route that can be told a district, of every service, called by each role that it permits."""
    example = {"string": "x1234567", "integer": 1, "boolean": True, "array": [], "object": {}}
    tried, wrong = 0, []
    for service in SERVICES:
        document = at.office.get(service, "/openapi.json").json()

        def sample(schema: Any, whole: Any = document) -> Any:
            """Something that fits it, more or less."""
            if "$ref" in schema:
                return sample(whole["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]])
            if "enum" in schema:
                return schema["enum"][0]
            if schema.get("pattern", "").startswith("^\\d{6}"):
                return QINGSHAN
            if schema.get("type") == "object":
                return {name: sample(schema["properties"][name]) for name in schema.get("required", ())}
            return example.get(schema.get("type", ""))

        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                named = {parameter["name"] for parameter in operation.get("parameters", ())}
                if "district" not in named or operation.get("security") != [{"token": []}]:
                    continue
                needed = {
                    parameter["name"]: QUERY.get(parameter["name"]) or sample(parameter["schema"])
                    for parameter in operation.get("parameters", ())
                    if parameter["in"] == "query" and parameter["required"]
                }
                content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
                body = {"json": BODIES.get(path) or sample(content["schema"])} if content else {}
                for role in operation["x-roles"]:
                    token = at.token(f"m-{WUCHANG}-1 {WUCHANG} {role}")
                    where = {"params": {**needed, "district": QINGSHAN}}
                    answer = at.office.call(method.upper(), service, re.sub(r"[{}]", "", path), token, **where, **body)
                    tried += 1
                    if told(answer) not in (FOREIGN, (403, "everywhere_only")):
                        wrong.append((method, path, role, told(answer), answer.json().get("field")))
    assert not wrong, "\n".join(map(str, wrong))
    assert tried > 60


@pytest.mark.parametrize("what", ["accept", "decline", "arrive", "done", "offer"])
def test_another_districts_task_is_not_acted_on(at: Offices, what: str) -> None:
    body = {"member": at.own["offered"][0]}
    path = f"/v1/tasks/{at.own['task']}/{what}"
    assert at.post("dispatch", path, NEIGHBOURS, body, district=WUCHANG) == FOREIGN
    assert at.post("dispatch", path, NEIGHBOURS, body)[1] in ("unknown_task", "unknown_member")


def test_another_districts_task_is_not_shown_by_its_id(at: Offices) -> None:
    path = f"/v1/tasks/{at.own['task']}"
    assert at.get("dispatch", path, NEIGHBOURS) == (404, "unknown_task")
    assert at.get("dispatch", path, NEIGHBOURS, district=WUCHANG) == FOREIGN


@pytest.mark.parametrize("verb", ["leave", "erase"])
def test_another_districts_members_are_left_alone(at: Offices, verb: str) -> None:
    supervisor = f"staff-2 {QINGSHAN} supervisor"
    assert at.post("dispatch", f"/v1/members/{OTHER}/{verb}", supervisor, {}, district=WUCHANG) == FOREIGN
    assert at.post("dispatch", f"/v1/members/{OTHER}/{verb}", supervisor, {})[0] != 403  # nobody of this name is theirs
    assert OTHER in {
        member["id"] for member in at.json("dispatch", "/v1/members", DISPATCHER)["members"] if not member["left"]
    }


def test_members_are_not_enrolled_into_another_district(at: Offices) -> None:
    row = {"id": "m-x", "kind": "grid_member", "areas": [NEIGHBOUR], "capacity": 9, "district": QINGSHAN}
    assert at.post("dispatch", "/v1/members/import", DISPATCHER, [row], district=QINGSHAN) == FOREIGN
    answer = at.office.post("dispatch", "/v1/members/import", at.token(DISPATCHER), [row]).json()
    assert (answer["enrolled"], answer["changed"], answer["rows"][0]["field"]) == (0, 0, "district"), answer
    assert "m-x" not in {member["id"] for member in at.json("dispatch", "/v1/members", NEIGHBOURS)["members"]}


def test_a_token_for_every_district_names_the_one_it_means(at: Offices) -> None:
    everywhere = "staff-9 * dispatcher supervisor"
    for service, path in (("dispatch", "/v1/tasks"), ("dispatch", "/v1/members"), ("notify", "/v1/notices")):
        assert at.get(service, path, everywhere) == (422, "district_missing")
        assert at.get(service, path, everywhere, district=QINGSHAN)[0] == 200


@pytest.mark.parametrize("district", ["420106.desk", "*", ">", "420106,420107", "000000", "４２０１０６"])
def test_a_district_is_a_code_and_no_part_of_a_subject(at: Offices, district: str) -> None:
    path = f"/v1/tasks/{at.own['task']}/accept"
    answer = at.post("dispatch", path, "staff-9 * dispatcher", {"member": OTHER}, district=district)
    assert answer in ((422, "invalid"), (422, "district_missing"), (404, "unknown_district"))


# --- another member ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["accept", "decline", "arrive", "done"])
def test_a_member_does_not_act_for_another(at: Offices, what: str) -> None:
    asked = at.own["offered"][0]
    answer = at.post("dispatch", f"/v1/tasks/{at.own['task']}/{what}", f"{OTHER} {WUCHANG} member", {"member": asked})
    assert answer == (403, "not_yourself")


def test_a_member_does_not_take_what_they_were_not_offered(at: Offices) -> None:
    assert OTHER not in at.own["offered"]
    path = f"/v1/tasks/{at.own['task']}"
    assert at.post("dispatch", f"{path}/accept", f"{OTHER} {WUCHANG} member", {}) == (409, "not_offered")
    assert at.post("dispatch", f"{path}/done", f"{OTHER} {WUCHANG} member", {})[0] == 409


def test_a_member_does_not_see_what_others_are_asked(at: Offices) -> None:
    member = f"{OTHER} {WUCHANG} member"
    assert at.json("dispatch", "/v1/tasks", member) == {"tasks": [], "total": 0, "next": None}
    assert at.json("dispatch", "/v1/tasks", member, member=at.own["offered"][0])["total"] == 0
    assert at.get("dispatch", f"/v1/tasks/{at.own['task']}", member) == (404, "unknown_task")


def test_a_member_sees_themselves_among_those_asked_and_nobody_else(at: Offices) -> None:
    asked = at.own["offered"][0]
    shown = at.json("dispatch", f"/v1/tasks/{at.own['task']}", f"{asked} {WUCHANG} member")
    assert (shown["offered"], shown["tried"]) == ([asked], [asked])


def test_a_member_of_the_same_name_in_another_district_is_somebody_else(at: Offices) -> None:
    asked = at.own["offered"][0]
    path = f"/v1/tasks/{at.own['task']}/accept"
    assert at.post("dispatch", path, f"{asked} {QINGSHAN} member", {}, district=WUCHANG) == FOREIGN
    assert at.post("dispatch", path, f"{asked} {QINGSHAN} member", {}) == (404, "unknown_task")


def test_a_members_stream_shows_nothing_of_others(at: Offices) -> None:
    assert streamed(at, f"{OTHER} {WUCHANG} member") == []
    own = streamed(at, f"{at.own['offered'][0]} {WUCHANG} member")
    assert {event["type"] for event in own} <= {"cn.paidan.task.offered.v1", "cn.paidan.task.opened.v1"}
    assert all(event["data"]["members"] == [at.own["offered"][0]] for event in own if "members" in event["data"])


# --- an enclave, and what is none of theirs ---------------------------------------------------------------------------


def test_a_foreign_case_is_not_read(at: Offices) -> None:
    for who in (NEIGHBOURS, f"staff-2 {QINGSHAN} auditor", f"staff-2 {QINGSHAN} admin"):
        assert at.get("ledger", f"/v1/cases/{at.own['id']}", who) == FOREIGN
        assert at.own["id"] not in {case["id"] for case in at.json("ledger", "/v1/cases", who)["cases"]}
        assert at.json("ledger", "/v1/cases", who, area=OWN)["cases"] == []
    assert at.get("ledger", f"/v1/cases/{at.foreign['id']}", DISPATCHER) == FOREIGN


def test_an_enclaves_case_is_its_parties_and_nobody_elses(at: Offices) -> None:
    path = f"/v1/cases/{at.enclave['id']}"
    whole = at.json("ledger", path, f"staff-1 {WUCHANG} auditor")["case"]
    part = at.json("ledger", path, f"staff-2 {QINGSHAN} auditor")["case"]
    assert at.get("ledger", path, THIRD) == FOREIGN
    names = {entry["name"] for entry in part["timeline"]}
    assert {"request.submitted", "task.offered"} <= names
    assert not any(name.startswith(("match.", "notice.", "member.")) for name in names)
    assert "match.explained" in {entry["name"] for entry in whole["timeline"]}
    assert at.enclave["id"] not in {case["id"] for case in at.json("ledger", "/v1/cases", THIRD)["cases"]}


def test_a_party_to_an_enclave_does_not_act_there(at: Offices) -> None:
    path = f"/v1/tasks/{at.enclave['task']}"
    assert at.get("dispatch", path, NEIGHBOURS, district=WUCHANG) == FOREIGN
    body = {"member": at.enclave["offered"][0]}
    assert at.post("dispatch", f"{path}/accept", NEIGHBOURS, body, district=WUCHANG) == FOREIGN


def replayed(at: Offices, who: str, **params: Any) -> list[dict[str, Any]]:
    """The leaves of a replay."""
    answer = at.office.get("ledger", "/v1/events", at.token(who), **params)
    assert answer.status_code == 200, answer.text
    _, *lines, trailer = [json.loads(line) for line in answer.text.splitlines()]
    assert trailer["end"]
    return [line["leaf"] for line in lines]


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"kinds": "all"},
        {"kinds": "event,reject,gap"},
        {"district": QINGSHAN},
        {"district": "000000"},
        {"from": 0, "limit": 5000},
    ],
    ids=str,
)
def test_a_replay_holds_what_names_the_readers_district_and_nothing_else(
    at: Offices, params: Mapping[str, Any]
) -> None:
    leaves = replayed(at, f"staff-2 {QINGSHAN} auditor", **params)
    assert leaves
    for leaf in leaves:
        assert {scope["d"] for scope in leaf["scopes"]} & {QINGSHAN, "000000"}
        assert leaf.get("case", {}).get("id") != at.own["id"]


def test_a_replay_of_a_foreign_request_or_area_is_empty(at: Offices) -> None:
    auditor = f"staff-2 {QINGSHAN} auditor"
    assert replayed(at, auditor, request=at.own["id"], kinds="all") == []
    leaves = replayed(at, auditor, area=OWN, kinds="all")  # that the area exists concerns everybody
    assert {leaf["subject"].split(".", 2)[1] for leaf in leaves} <= {"000000"}
    assert replayed(at, auditor, type="match.explained", area="-", request=at.enclave["id"]) == []


def test_a_cursor_is_for_who_was_given_it(at: Offices) -> None:
    answer = at.office.get("ledger", "/v1/events", at.token(f"staff-1 {WUCHANG} auditor"), limit=1)
    cursor = json.loads(answer.text.splitlines()[-1])["next"]
    assert at.get("ledger", "/v1/events", f"staff-2 {QINGSHAN} auditor", limit=1, cursor=cursor) == (400, "bad_cursor")
    page = at.json("ledger", "/v1/cases", "staff-9 * auditor", limit=1)
    assert at.get("ledger", "/v1/cases", NEIGHBOURS, limit=1, cursor=page["next"]) == (400, "bad_cursor")


def streamed(at: Offices, who: str, **params: Any) -> list[dict[str, Any]]:
    """What a live stream gives from the beginning, until it says nothing for a moment."""
    url = at.office.stack.urls["dispatch"] + "/v1/stream"
    headers = {"Authorization": f"Bearer {at.token(who)}"}
    events: list[dict[str, Any]] = []
    with httpx2.stream(
        "GET", url, params={"after": 0, **params}, headers=headers, timeout=1.0, trust_env=False
    ) as answer:
        assert answer.status_code == 200
        with suppress(httpx2.ReadTimeout):
            events.extend(json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: "))
    return events


def test_a_stream_holds_what_names_the_office_and_nothing_of_how_another_works(at: Offices) -> None:
    events = streamed(at, NEIGHBOURS)
    assert {event["correlationid"] for event in events if "correlationid" in event} == {
        at.enclave["id"],
        at.foreign["id"],
    }
    for event in events:
        assert {QINGSHAN, "000000"} & set(event["districts"].split(","))
        if event["source"].split("/")[2] != QINGSHAN:
            assert not event["type"].removeprefix("cn.paidan.").startswith(("match.", "member.", "notice.", "ledger."))


# --- residents and their data -----------------------------------------------------------------------------------------


def test_a_clerk_does_not_submit_for_another_district(at: Offices) -> None:
    body = {"text": "路灯不亮", "location": {"area": NEIGHBOUR}}
    assert at.post("intake", "/v1/requests", f"staff-1 {WUCHANG} clerk", body) == FOREIGN


@pytest.mark.parametrize(("what", "body"), [("withdraw", {}), ("rate", {"grade": 5, "solved": True}), ("reopen", {})])
def test_a_tracking_code_does_not_help_a_token_of_another_district(at: Offices, what: str, body: Any) -> None:
    path = f"/v1/requests/{at.own['tracking_code']}/{what}"
    assert at.post("intake", path, f"staff-2 {QINGSHAN} clerk", body) == FOREIGN


def test_a_wrong_code_and_what_is_no_code_are_told_the_same(at: Offices) -> None:
    code = at.own["tracking_code"]
    guess = code[:-1] + ("2" if code[-1] != "2" else "3")
    answers = [at.office.get("intake", f"/v1/requests/{one}").json() for one in (guess, "x", at.own["id"])]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0]["code"] == "not_found"


@pytest.mark.parametrize("path", ["", "/data"])
def test_a_forged_token_does_not_read_what_no_token_would(at: Offices, path: str) -> None:
    path = f"/v1/requests/{at.own['tracking_code']}{path}"
    assert told(at.office.get("intake", path)) == (200, "")
    assert told(at.office.get("intake", path, "forged")) == (401, "unauthenticated")


@pytest.mark.parametrize(
    ("who", "code"),
    [
        (NEIGHBOURS, "foreign_district"),
        (f"staff-2 {QINGSHAN} clerk", "foreign_district"),
        (THIRD, "foreign_district"),
        ("staff-9 * dispatcher", "foreign_district"),
        (f"staff-1 {WUCHANG} auditor", "forbidden"),
        (f"staff-1 {WUCHANG} admin", "forbidden"),
        (f"{OTHER} {WUCHANG} member", "not_handling"),
    ],
)
def test_what_is_personal_is_not_opened_for_who_does_not_handle_it(at: Offices, who: str, code: str) -> None:
    body = {"parts": ["contact"], "why": "contact"}
    for request in (at.own, at.enclave):
        answer = at.office.post("intake", f"/v1/requests/{request['id']}/disclosures", at.token(who), body)
        assert (answer.status_code, answer.json()["code"]) in ((403, code), (409, code)), answer.text
        assert "19900000000" not in answer.text


def test_a_person_is_not_sought_in_another_district(at: Offices) -> None:
    supervisor = f"staff-2 {QINGSHAN} supervisor"
    for verb in ("find", "erase"):
        answer = at.post("intake", f"/v1/people/{verb}", supervisor, {"request": at.own["id"]}, district=WUCHANG)
        assert answer == FOREIGN
        answer = at.post("intake", f"/v1/people/{verb}", supervisor, {"request": at.own["id"]})
        assert answer[0] in (200, 403, 404), answer
    stored = at.office.get("intake", f"/v1/requests/{at.own['tracking_code']}/data").json()
    assert stored["state"] == "kept", stored


# --- what concerns all ------------------------------------------------------------------------------------------------


def test_the_register_is_not_changed_by_a_districts_admin(at: Offices) -> None:
    before = at.json("ledger", "/v1/register", "staff-9 * admin")
    document = {"districts": [{**before["districts"][0], "title": {"zh": "他区", "en": "Elsewhere"}}]}
    for dry_run in ("true", "false"):
        answer = at.post("ledger", "/v1/register", f"staff-1 {WUCHANG} admin", document, dry_run=dry_run)
        assert answer == (403, "everywhere_only")
    assert at.json("ledger", "/v1/register", "staff-9 * admin") == before


def test_keys_are_not_wrapped_anew_by_a_districts_admin(at: Offices) -> None:
    assert at.post("intake", "/v1/keys/rewrap", f"staff-1 {WUCHANG} admin", {}) == (403, "everywhere_only")


def test_another_offices_apps_and_people_are_not_listed(at: Offices) -> None:
    assert set(at.json("ledger", "/v1/register", DISPATCHER)) == set(
        at.json("ledger", "/v1/register", "staff-9 * admin")
    )
    listed = {office["district"] for office in at.json("ledger", "/v1/register", DISPATCHER)["offices"]}
    assert listed <= {WUCHANG}


def test_an_act_is_not_recorded_in_another_districts_name(at: Offices) -> None:
    act = {"act": "token_issued", "of": "m-17"}
    assert at.post("ledger", "/v1/acts", f"staff-1 {WUCHANG} admin", act, district=QINGSHAN) == FOREIGN


def test_an_act_of_one_district_is_not_read_by_another(at: Offices) -> None:
    act = {"act": "token_issued", "of": new_id()}
    assert at.post("ledger", "/v1/acts", f"staff-1 {WUCHANG} admin", act) == (201, "")

    def read() -> bool | None:
        return (
            True if act["of"] in str(at.json("ledger", "/v1/acts", f"staff-1 {WUCHANG} auditor", limit=500)) else None
        )

    eventually(read)
    assert act["of"] not in str(at.json("ledger", "/v1/acts", f"staff-2 {QINGSHAN} auditor", limit=500))


# --- tokens that are none ---------------------------------------------------------------------------------------------

ROUTES = (
    ("GET", "dispatch", "/v1/tasks"),
    ("POST", "dispatch", "/v1/members/m-1/leave"),
    ("GET", "dispatch", "/v1/stream"),
    ("GET", "ledger", "/v1/events"),
    ("POST", "ledger", "/v1/register"),
    ("GET", "notify", "/v1/notices"),
    ("POST", "intake", "/v1/requests"),
    ("POST", "intake", "/v1/people/find"),
)


def everywhere(office: Office, token: str) -> set[tuple[int, str]]:
    """What it is told on a route of each kind."""
    return {
        told(office.call(method, service, path, token, **({"json": {}} if method == "POST" else {})))
        for method, service, path in ROUTES
    }


def signed(office: Office, *, key: Any = None, algorithm: str = "EdDSA", head: Any = None, **claims: Any) -> str:
    """A token with these claims instead of good ones."""
    now = int(time.time())
    good = {"iss": "paidan", "aud": "paidan", "sub": "staff-1", "district": WUCHANG, "roles": ["dispatcher", "supervisor", "auditor"], "iat": now, "exp": now + 600}  # fmt: skip
    own = json.loads(office.stack.identities.jwks_file.read_text())["keys"][0]["kid"]
    key = key if key is not None else office.stack.identities.signing_key
    return jwt.encode({**good, **claims}, key, algorithm=algorithm, headers={"kid": own, **(head or {})})


REFUSED = {(401, "unauthenticated")}


def test_a_good_token_is_no_stranger(office: Office) -> None:
    assert told(office.get("dispatch", "/v1/tasks", signed(office))) == (200, "")


def test_an_expired_token_opens_nothing(office: Office) -> None:
    assert everywhere(office, signed(office, exp=int(time.time()) - 60)) == REFUSED


def test_a_token_of_tomorrow_opens_nothing(office: Office) -> None:
    assert everywhere(office, signed(office, nbf=int(time.time()) + 3600)) == REFUSED
    assert everywhere(office, signed(office, iat=int(time.time()) + 3600)) == REFUSED


def test_a_tampered_token_opens_nothing(office: Office) -> None:
    head, body, signature = signed(office).split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    forged = base64.urlsafe_b64encode(json.dumps({**claims, "district": "*"}).encode()).rstrip(b"=").decode()
    assert everywhere(office, f"{head}.{forged}.{signature}") == REFUSED
    assert everywhere(office, f"{head}.{body}.{signature[::-1]}") == REFUSED


def test_a_token_for_another_audience_opens_nothing(office: Office) -> None:
    assert everywhere(office, signed(office, aud="mail")) == REFUSED


def test_a_token_of_another_issuer_opens_nothing(office: Office) -> None:
    assert everywhere(office, signed(office, iss="https://id.example")) == REFUSED


def test_a_token_by_an_unknown_key_opens_nothing(office: Office) -> None:
    other = Ed25519PrivateKey.generate()
    assert everywhere(office, signed(office, key=other)) == REFUSED
    assert everywhere(office, signed(office, key=other, head={"kid": "another"})) == REFUSED


def test_a_token_that_brings_its_own_key_opens_nothing(office: Office) -> None:
    other = Ed25519PrivateKey.generate()
    public = json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(other.public_key()))
    assert everywhere(office, signed(office, key=other, head={"jwk": public})) == REFUSED
    assert everywhere(office, signed(office, key=other, head={"jku": "https://id.example/keys"})) == REFUSED


def test_a_token_without_a_signature_opens_nothing(office: Office) -> None:
    assert everywhere(office, signed(office, key="", algorithm="none")) == REFUSED


@pytest.mark.filterwarnings("ignore:.*HMAC key.*")
def test_a_token_signed_by_the_public_key_as_a_secret_opens_nothing(office: Office) -> None:
    raw = office.stack.identities.signing_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    for secret in (raw, base64.urlsafe_b64encode(raw).rstrip(b"=")):
        assert everywhere(office, signed(office, key=secret, algorithm="HS256")) == REFUSED


def test_a_token_that_is_endless_or_in_pieces_opens_nothing(office: Office) -> None:
    assert everywhere(office, signed(office, more="x" * 9000)) == REFUSED
    for token in ("x", "..", "a.b.c", "é"):
        headers = {b"Authorization": f"Bearer {token}".encode()}
        answer = office.http.get(office.stack.urls["dispatch"] + "/v1/tasks", headers=headers)
        assert told(answer) == (401, "unauthenticated")


def test_another_scheme_than_bearer_opens_nothing(office: Office) -> None:
    token = signed(office)
    for header in (token, f"Basic {token}", f"Token {token}"):
        answer = office.http.get(office.stack.urls["dispatch"] + "/v1/tasks", headers={"Authorization": header})
        assert told(answer) == (401, "unauthenticated")


def test_a_token_in_the_address_opens_nothing(office: Office) -> None:
    token = signed(office)
    for name in ("token", "access_token", "authorization"):
        assert told(office.get("dispatch", "/v1/tasks", None, **{name: token})) == (401, "unauthenticated")


def test_a_token_that_names_a_person_opens_nothing(office: Office) -> None:
    for sub in ("李四", "13800000000", "li.si@example.com"):
        assert everywhere(office, signed(office, sub=sub)) == REFUSED


def test_a_residents_token_opens_no_office(office: Office) -> None:
    told_there = everywhere(office, signed(office, sub="r-1", roles=["resident"]))
    assert (403, "forbidden") in told_there
    assert not any(status == 200 for status, _ in told_there)


def test_a_revoked_token_opens_nothing_and_one_issued_later_does(office: Office) -> None:
    file = office.stack.identities.revoked_file
    before = file.read_bytes() if file.exists() else b"{}"
    now = int(time.time())
    old, stranger = signed(office, sub="staff-left", iat=now - 60), signed(office, sub="staff-stays")
    assert told(office.get("dispatch", "/v1/tasks", old)) == (200, "")
    try:
        file.write_text(json.dumps({**json.loads(before), f"{WUCHANG} staff-left": now - 30}))

        def refused() -> bool | None:
            return True if told(office.get("dispatch", "/v1/tasks", old))[0] == 401 else None

        eventually(refused)
        time.sleep(1.1)  # each service looks for itself, once a second
        assert everywhere(office, old) == REFUSED
        assert told(office.get("dispatch", "/v1/tasks", stranger)) == (200, "")
        assert told(office.get("dispatch", "/v1/tasks", signed(office, sub="staff-left"))) == (200, "")
    finally:
        file.write_bytes(before)


def test_a_short_replys_token_opens_no_route(office: Office) -> None:
    file = office.stack.identities.jwks_file
    before = json.loads(file.read_text())
    key = Ed25519PrivateKey.generate()
    public = json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(key.public_key()))
    entry = {**public, "kid": "replies-test", "alg": "EdDSA", "use": "sig", "iss": "paidan-replies"}
    file.write_text(json.dumps({"keys": [*before["keys"], entry]}))
    try:
        token = signed(office, key=key, head={"kid": "replies-test"}, iss="paidan-replies", roles=["member", "admin"])

        def known() -> bool | None:
            answer = office.get("dispatch", "/v1/tasks", token).json()
            return True if "answers an offer" in answer["title"] else None

        eventually(known)
        time.sleep(1.1)  # each service looks for itself, once a second
        assert everywhere(office, token) == REFUSED
        assert everywhere(office, signed(office, key=key, head={"kid": "replies-test"})) == REFUSED
    finally:
        file.write_text(json.dumps(before))


def test_a_token_is_not_outlived_by_its_stream(office: Office) -> None:
    token = issue_token(
        office.stack.identities, "staff-1", WUCHANG, ["dispatcher"], timedelta(seconds=-3)
    )  # the leeway is 5 s
    began = time.monotonic()
    url = office.stack.urls["dispatch"] + "/v1/stream"
    with httpx2.stream("GET", url, headers={"Authorization": f"Bearer {token}"}, timeout=15, trust_env=False) as answer:
        assert answer.status_code == 200
        answer.read()
    assert time.monotonic() - began < 8
