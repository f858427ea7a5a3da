"""The enclave case (插花地), told step by step as the app of either office heard it on the bus, and held against the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from deploy.demo.boards import Board
from deploy.demo.calls import Calls
from services.ledger import enclaves

SERVING, LOCATED = "420106", "420107"
MUST_HAPPEN = (
    *("request.submitted", "task.opened", "task.offered", "task.declined", "task.accepted", "task.arrived"),
    *("task.done", "request.rated", "task.closed"),
    *("handover.offered", "handover.received", "handover.refused", "handover.returned"),
)
GRADES = {1: "非常不满意", 2: "不满意", 3: "基本满意", 4: "满意", 5: "非常满意"}
REASONS = {"busy": "手头有事", "too_far": "路太远", "off_sick": "身体不适", "other": "其他原因"}
DOUBTS = {"ownership_unclear": "权属不清", "wrong_place": "属地不符"}
CLOSINGS = {"rated": "居民已评单", "quiet": "期满无异议", "withdrawn": "居民撤回", "reopened": "转入重办"}


OWN = {"match": "为何选这个人", "notice": "通知了谁"}
"""What stays with the office that did it."""


@dataclass(frozen=True, slots=True)
class Step:
    """
    One step: when, what, in Chinese, and the offices whose app heard it.

    `name` is empty for what the serving office keeps to itself: facts that follow each other are one step then.
    """

    time: str
    name: str
    zh: str
    districts: tuple[str, ...]


@dataclass(frozen=True)
class Told:
    """The case, how many facts each office's app heard of it, and what about it does not hold."""

    request: str
    steps: tuple[Step, ...]
    area: str
    state: str
    heard: Mapping[str, int]
    failures: tuple[str, ...]


@dataclass(frozen=True)
class Shared:
    """一档归索: the shared file as either office got it, and what about it does not hold."""

    file: Mapping[str, Any]
    failures: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """For programs."""
        many = {name: len(self.file[name]) for name in ("cases", "handovers", "leaves") if name in self.file}
        return {**{name: self.file.get(name) for name in ("digest", "size", "checkpoint")}, **many}


async def share(calls: Calls, area: str) -> Shared:
    """Get the enclave's shared file with a token of either office, as of the same size, and compare."""
    files: list[dict[str, Any]] = []
    for district in (SERVING, LOCATED):
        token = calls.token("dispatcher", district=district, sub=f"duty-{district}")
        as_of = {"as_of": int(files[0]["size"])} if files else {}
        answer = await calls.get("ledger", f"/v1/enclaves/{area}/file", token=token, **as_of)
        if not answer.ok:
            return Shared({}, (f"{district} 取不到一档归索 / cannot get the shared file: {answer}",))
        files.append(answer.document)
    mine, theirs = files
    failures = [f"一档归索两区不同 / the offices' files differ: {path}" for path in enclaves.differences(mine, theirs)]
    if enclaves.digest(mine) != mine["digest"]:
        failures.append("一档归索摘要不符 / the shared file is not what its digest says")
    return Shared(mine, tuple(failures))


async def tell(calls: Calls, request: str, register: dict[str, Any], boards: Mapping[str, Board]) -> Told:
    """Read the case twice, with a token of either office, and tell what either's app heard of it."""
    names = Names(register)
    read, failures = {}, []
    for district in (SERVING, LOCATED):
        token = calls.token("dispatcher", district=district, sub=f"duty-{district}")
        answer = await calls.get("ledger", f"/v1/cases/{request}", token=token)
        if not answer.ok:
            failures.append(f"{names.district(district)}读不到插花地案件 / cannot read the enclave case: {answer}")
            return Told(request, (), "", "", {}, tuple(failures))
        read[district] = answer.document["case"]
        heard, may_see = boards[district].ids(request), [entry["id"] for entry in read[district]["timeline"]]
        if heard != may_see:
            failures.append(
                f"{names.district(district)}的应用在总线上听到 {len(heard)} 条，账本上可见 {len(may_see)} 条，不一致 / its app heard "
                f"other facts than the ledger shows its office: {sorted({*heard} ^ {*may_see}) or 'another order'}"
            )
    mine, theirs = read[SERVING], read[LOCATED]
    steps: list[Step] = []
    for entry in mine["timeline"]:
        seen = tuple(district for district in (SERVING, LOCATED) if entry["id"] in boards[district].ids(request))
        if own := OWN.get(entry["name"].partition(".")[0]):
            if LOCATED in seen:
                failures.append(f"{names.district(LOCATED)}不应看到 / should not see {entry['name']} {entry['id']}")
            if steps and not steps[-1].name:
                kept = steps.pop().zh.split("、")
                own = "、".join(dict.fromkeys([*kept, own]))
            steps.append(Step(entry["time"], "", own, seen))
        elif text := told(entry, mine, names):
            steps.append(Step(entry["time"], entry["name"], text, seen))
            if seen != (SERVING, LOCATED):
                failures.append(f"{entry['name']} 只有 {seen} 看到 / was seen by these alone: {entry['id']}")
    failures += [
        f"两区所见不同 / the offices see different {key}: {mine[key]} {theirs[key]}"
        for key in ("id", "state", "area", "located_in", "district", "round")
        if mine[key] != theirs[key]
    ]
    happened = {step.name for step in steps}
    failures += [f"插花地案件缺少一步 / a step is missing: {name}" for name in MUST_HAPPEN if name not in happened]
    if (mine["located_in"], mine["district"]) != (LOCATED, SERVING):
        failures.append(f"插花地归属不对 / located in {mine['located_in']}, served by {mine['district']}")
    counts = {district: len(boards[district].ids(request)) for district in (SERVING, LOCATED)}
    return Told(request, tuple(steps), mine["area"], mine["state"], counts, tuple(failures))


class Names:
    """What people call districts, areas and items, from the register."""

    def __init__(self, register: dict[str, Any]) -> None:
        self._districts: dict[str, str] = {entry["district"]: entry["title"]["zh"] for entry in register["districts"]}
        self._areas: dict[str, str] = {entry["area"]: entry["title"]["zh"] for entry in register["areas"]}
        self._items: dict[str, str] = {entry["item"]: entry["title"]["zh"] for entry in register["items"]}

    def district(self, code: str) -> str:
        """`420106` → 武昌区."""
        return self._districts.get(code, code)

    def area(self, code: str) -> str:
        """`xinxiang` → 新湘小区."""
        return self._areas.get(code, code)

    def item(self, code: str) -> str:
        """`repair.leak` → 房屋漏水."""
        return self._items.get(code, code)


def told(entry: dict[str, Any], case: dict[str, Any], names: Names) -> str | None:
    """One entry of a timeline as a sentence; None for what is the office's own affair (matching, messages)."""
    serving, located = names.district(case["district"]), names.district(case["located_in"])
    area = names.area(case["area"])
    member = entry.get("member_id", "")
    match entry["name"]:
        case "request.submitted":
            by = local(case["due"]["handle"], "%m月%d日 %H:%M")
            return (
                f"居民报修“{names.item(entry['item'])}”：地点在{located}地界的{area}，按插花地协议由{serving}服务；"
                f"承诺 {by} 前办结"
            )
        case "task.opened":
            return f"{serving}受理，{located}同时看到"
        case "task.offered":
            return f"{serving}第 {entry['wave']} 次派单，派给 {'、'.join(entry['members'])}（能办的人里负荷最低）"
        case "task.declined":
            return f"{member} 婉拒：{REASONS.get(entry['reason'], entry['reason'])}"
        case "task.expired":
            return f"{'、'.join(entry['members'])} 未答复，派单过时"
        case "task.accepted":
            return f"{member} 接单"
        case "task.arrived":
            return f"{member} 到场：{located}的{area}"
        case "task.done":
            return f"{member} 办结"
        case "task.unplaced":
            return f"无人可派，请{serving}值班长安排"
        case "handover.offered":
            return (
                f"{serving}请{located}接办：{DOUBTS.get(entry['reason'], entry['reason'])}；签收以前仍由{serving}负责"
            )
        case "handover.received":
            return f"{located}收到转办"
        case "handover.refused":
            return f"{located}退单：{DOUBTS.get(entry['reason'], entry['reason'])}，依据 {entry['basis']}"
        case "handover.returned":
            return f"{serving}继续办理（首接负责）"
        case "request.rated":
            solved = "问题已解决" if entry["solved"] else "问题未解决"
            return f"居民评单：{GRADES[entry['grade']]}（{entry['grade']} 分），{solved}"
        case "request.reopened":
            return "居民要求重办"
        case "request.withdrawn":
            return "居民撤回"
        case "task.closed":
            return f"结案（{CLOSINGS[entry['reason']]}），{serving}与{located}存同一份档案"
    return None


def local(moment: str, form: str) -> str:
    """A moment as the clocks of the place show it."""
    return datetime.fromisoformat(moment).astimezone(ZoneInfo("Asia/Shanghai")).strftime(form)
