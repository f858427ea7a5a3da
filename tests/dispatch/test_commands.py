"""What may be asked of a desk, in which shape, and by whom."""

import pytest

from services.dispatch.commands import VERBS, Accept, Decline, Done, parse
from services.dispatch.words import OUTCOMES, REASONS, STATES, wrong_state
from shared.auth import ROLES, Caller
from shared.errors import RefusedError
from shared.facts import Name
from shared.problems import problem
from tests.examples import LI, QINGSHAN, TASK, WANG, WUCHANG, enrolled, id_of

HANDOVER = id_of("handover")
CONTENT: dict[str, dict[str, object]] = {
    "accept": {"task": TASK, "member": LI},
    "decline": {"task": TASK, "member": LI, "reason": "too_far"},
    "arrive": {"task": TASK, "member": LI},
    "done": {"task": TASK, "member": LI, "outcome": "repaired"},
    "offer": {"task": TASK, "member": LI},
    "enrol": {"members": [enrolled(LI).model_dump()]},
    "leave": {"member": LI},
    "erase": {"member": LI},
    "hand_over": {"task": TASK, "to": QINGSHAN, "reason": "wrong_place", "basis": "agreement:xinxiang-2026"},
    "take_back": {"handover": HANDOVER},
    "sign": {"handover": HANDOVER},
    "refuse": {"handover": HANDOVER, "reason": "beyond_ability", "basis": "law:fire-2021/28"},
    "rule": {"conferral": id_of("conferral"), "owner": QINGSHAN, "basis": "minutes:2026-11", "precedent": True},
    "ask_help": {"task": TASK, "to": QINGSHAN, "whistle": True},
    "take_back_help": {"help": id_of("help")},
    "lend": {"help": id_of("help"), "member": LI},
    "refuse_help": {"help": id_of("help"), "reason": "nobody_able"},
    "rate_help": {"help": id_of("help"), "grade": 4},
}
OF_MEMBERS = ("accept", "decline", "arrive", "done")


def code_of(verb: str, caller: Caller) -> str | None:
    """Why this caller may not, or None."""
    try:
        parse(verb, CONTENT[verb]).allow(caller, WUCHANG)
    except RefusedError as why:
        return why.code
    return None


def test_there_is_an_example_of_every_verb() -> None:
    assert CONTENT.keys() == VERBS.keys()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("role", ROLES)
def test_dispatchers_may_all_but_rule_and_erase_and_members_act_on_tasks(verb: str, role: str) -> None:
    may = role in ("supervisor", "admin") or (role == "dispatcher" and verb not in ("rule", "erase"))
    may = may or (role == "member" and verb in OF_MEMBERS)
    assert code_of(verb, Caller(LI, WUCHANG, frozenset({role}))) == (None if may else "forbidden")


@pytest.mark.parametrize("verb", VERBS)
def test_nobody_commands_in_a_foreign_district(verb: str) -> None:
    assert code_of(verb, Caller(LI, QINGSHAN, frozenset({"supervisor"}))) == "foreign_district"


@pytest.mark.parametrize("verb", VERBS)
def test_a_token_for_everywhere_holds_here(verb: str) -> None:
    assert code_of(verb, Caller("staff-9", "*", frozenset({"admin"}))) is None


@pytest.mark.parametrize("verb", VERBS)
def test_without_a_role_nobody_may_anything(verb: str) -> None:
    assert code_of(verb, Caller(LI, WUCHANG, frozenset())) == "forbidden"


@pytest.mark.parametrize("verb", OF_MEMBERS)
def test_a_member_acts_for_nobody_else(verb: str) -> None:
    assert code_of(verb, Caller(WANG, WUCHANG, frozenset({"member"}))) == "not_yourself"
    assert code_of(verb, Caller(WANG, WUCHANG, frozenset({"member", "dispatcher"}))) is None


@pytest.mark.parametrize("verb", VERBS)
def test_the_shape_is_the_commands(verb: str) -> None:
    assert type(parse(verb, CONTENT[verb])) is VERBS[verb]


@pytest.mark.parametrize(
    ("verb", "content", "field"),
    [
        ("accept", {"task": "42", "member": LI}, "task"),
        ("accept", {"task": TASK, "member": "Li Ming"}, "member"),
        ("accept", {"task": TASK}, "member"),
        ("accept", {"task": TASK, "member": LI, "phone": "1"}, "phone"),
        ("decline", {"task": TASK, "member": LI, "reason": "太远了"}, "reason"),
        ("enrol", {"members": []}, "members"),
        ("enrol", {"members": [{"member_id": LI}]}, "members.0.kind"),
        ("enrol", {"members": [enrolled(LI).model_dump() | {"capacity": 0}]}, "members.0.capacity"),
        ("enrol", {"members": [enrolled(LI).model_dump() | {"capacity": "40"}]}, "members.0.capacity"),
        ("leave", None, ""),
        ("leave", ["m-li"], ""),
        ("leave", "m-li", ""),
    ],
)
def test_another_shape_is_refused_by_its_field(verb: str, content: object, field: str) -> None:
    with pytest.raises(RefusedError) as refused:
        parse(verb, content)
    assert (refused.value.code, refused.value.field) == ("invalid", field)


def test_a_refusal_does_not_repeat_what_was_sent() -> None:
    with pytest.raises(RefusedError) as refused:
        parse("accept", {"task": TASK, "member": "13800000000"})
    assert "13800000000" not in str(refused.value.facts)


@pytest.mark.parametrize("verb", ["", "fly", "ACCEPT", "__class__"])
def test_an_unknown_command_is_refused(verb: str) -> None:
    with pytest.raises(RefusedError) as refused:
        parse(verb, {})
    assert refused.value.code == "unknown_command"


@pytest.mark.parametrize(("verb", "field", "codes"), [("decline", "reason", REASONS), ("done", "outcome", OUTCOMES)])
def test_a_code_that_is_not_listed_is_refused_with_the_list(verb: str, field: str, codes: dict[str, Name]) -> None:
    with pytest.raises(RefusedError) as refused:
        parse(verb, CONTENT[verb] | {field: "whatever"})
    said = problem(refused.value)
    assert (said["code"], said["field"]) == ("not_listed", field)
    for code, name in codes.items():
        assert f"{code}({name.zh})" in said["detail"]
        assert f"{code} ({name.en})" in said["detail_en"]
        assert parse(verb, CONTENT[verb] | {field: code})


def test_the_codes_are_published_with_their_names() -> None:
    said = VERBS["decline"].model_json_schema()["properties"]["reason"]
    assert said["enum"] == list(REASONS)
    assert "`off_sick` 身体不适 / unwell" in said["description"]


@pytest.mark.parametrize("state", STATES)
def test_a_state_is_called_by_its_name_in_both_languages(state: str) -> None:
    said = problem(wrong_state(TASK, state, "arrive"))
    assert said["title"] == f"任务状态为{STATES[state].zh},不能到场"
    assert said["title_en"] == f"A task that is {STATES[state].en} cannot be marked as arrived"


def test_a_reason_and_an_outcome_have_a_default() -> None:
    assert Decline(task=TASK, member=LI).reason == "other"
    assert Done(task=TASK, member=LI).outcome == "solved"
    assert Accept(task=TASK, member=LI).model_dump() == {"task": TASK, "member": LI}
