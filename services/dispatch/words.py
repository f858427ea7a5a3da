"""What the desk's states and verbs are called (docs/concepts.md), and the codes a member may choose from, in both languages."""

from __future__ import annotations

from shared.errors import RefusedError
from shared.facts import Name

STATES: dict[str, Name] = {
    "opened": Name(zh="已受理", en="opened"),
    "offered": Name(zh="已派单", en="offered"),
    "accepted": Name(zh="已接单", en="accepted"),
    "arrived": Name(zh="已到场", en="arrived"),
    "done": Name(zh="已办结", en="done"),
    "closed": Name(zh="已结案", en="closed"),
    "handed_over": Name(zh="已转办", en="handed over to another office"),
    "unplaced": Name(zh="无人可派", en="unplaced"),
}
VERBS: dict[str, Name] = {
    "arrive": Name(zh="到场", en="marked as arrived"),
    "change": Name(zh="变更", en="changed"),
    "hand_over": Name(zh="转办", en="handed over"),
    "ask_help": Name(zh="借调", en="helped with"),
}
MATTERS: dict[str, Name] = {
    "handover": Name(zh="转办", en="hand-over"),
    "conferral": Name(zh="会商", en="conferral"),
    "help": Name(zh="借调", en="call for help"),
}
"""What stands between offices, by the entity of its facts."""

REASONS: dict[str, Name] = {
    "busy": Name(zh="手头有事", en="busy with something else"),
    "too_far": Name(zh="路太远", en="too far away"),
    "off_sick": Name(zh="身体不适", en="unwell"),
    "off_duty": Name(zh="不当班", en="not on duty"),
    "cannot_do": Name(zh="不会处理或缺少工具", en="lacks the skill or the tools"),
    "not_ours": Name(zh="不属本人职责", en="not their responsibility"),
    "unsafe": Name(zh="现场有危险", en="not safe"),
    "other": Name(zh="其他原因", en="other"),
}
"""Why a member may say no, by code."""
OUTCOMES: dict[str, Name] = {
    "solved": Name(zh="已解决", en="solved"),
    "repaired": Name(zh="已修复", en="repaired"),
    "explained": Name(zh="已解释说明", en="explained to the resident"),
    "referred": Name(zh="已转有关单位", en="referred to whom it concerns"),
    "not_found": Name(zh="现场未发现问题", en="nothing found on the spot"),
    "not_needed": Name(zh="无需处置", en="nothing needed doing"),
    "partly_solved": Name(zh="部分解决", en="solved in part"),
    "other": Name(zh="其他", en="other"),
}
"""How a task may end, by code."""
UNWILLING: dict[str, Name] = {
    "nobody_free": Name(zh="暂无可派人员", en="nobody is free"),
    "nobody_able": Name(zh="无相应技能人员", en="nobody has the skill"),
    "not_ours": Name(zh="不属本单位职责", en="not this office's responsibility"),
    "other": Name(zh="其他原因", en="other"),
}
"""Why an office may lend nobody, by code."""


def wrong_state(task: str, state: str, verb: str) -> RefusedError:
    """That a task in this state does not allow this, in the words of both languages."""
    at, to = STATES[state], VERBS[verb]
    return RefusedError("wrong_state", task=task, state=at.zh, state_en=at.en, verb=to.zh, verb_en=to.en)


def not_found(matter: str, id: str) -> RefusedError:
    """That there is no such matter between offices."""
    name = MATTERS[matter]
    return RefusedError("not_found", what=f"{name.zh} {id}", what_en=f"{name.en} {id}")


def over(matter: str, id: str) -> RefusedError:
    """That it no longer stands open."""
    name = MATTERS[matter]
    return RefusedError("over", id=id, what=name.zh, what_en=name.en)
