"""
Every way to say no: RFC 9457 problems with stable codes, Chinese first, English second.

A text names what is wrong and what to do about it; `{…}` is filled from the error's facts, in English from `<name>_en` where there is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.errors import RefusedError


@dataclass(frozen=True, slots=True)
class Text:
    """A problem's status, its titles and its remedies."""

    status: int
    zh: str
    en: str
    remedy_zh: str
    remedy_en: str


PROBLEMS: dict[str, Text] = {
    # who is calling
    "unauthenticated": Text(401, "请先登录:{why}", "Not signed in: {why}", "请携带有效的令牌重试", "Send a valid bearer token"),
    "forbidden": Text(403, "无权操作,需要角色:{need}", "Not permitted: needs the role {need}", "请由有相应角色的人员办理", "Ask somebody who has the role"),
    "foreign_district": Text(403, "{district} 不属于您的辖区({yours})", "District {district} is not yours ({yours})", "请使用本辖区的令牌", "Use a token of that district"),
    "everywhere_only": Text(403, "此操作涉及所有辖区,而您的令牌只限 {yours}", "This concerns every district, and your token is for {yours} only", "请由辖区为 * 的管理员办理", "Ask an admin whose district is *"),
    # the request as such
    "invalid": Text(422, "内容有误:{why}", "Invalid: {why}", "请更正该字段后重试", "Correct the field and send it again"),
    "invalid_json": Text(400, "请求不是有效的 JSON", "The body is not valid JSON", "请检查 JSON 格式", "Check the JSON"),
    "too_large": Text(413, "内容过大,上限 {limit} 字节", "Too large: {limit} bytes at most", "请精简内容", "Send less"),
    "not_found": Text(404, "未找到:{what}", "Not found: {what}", "请核对编号", "Check the id"),
    "method_not_allowed": Text(405, "不支持此方法", "Method not allowed", "请查阅接口文档", "See the API documentation"),
    "key_missing": Text(400, "缺少 Idempotency-Key", "Idempotency-Key is missing", "请为每次提交生成唯一的键,重试时沿用", "Make one key per submission and repeat it on retries"),
    "key_reused": Text(422, "同一 Idempotency-Key 曾用于不同内容", "This Idempotency-Key was used with another body", "请为新内容换用新键", "Use a new key for a new body"),
    "too_many": Text(429, "请求过于频繁,请 {retry_after} 秒后再试", "Too many requests: try again in {retry_after} s", "请稍后重试", "Wait and retry"),
    "too_slow": Text(408, "{within} 秒内未收到完整请求", "The request did not come within {within} s", "请检查网络后重试", "Check the connection and send it again"),
    "head_too_large": Text(431, "请求头过大,上限 {limit} 字节", "The request's head is too large: {limit} bytes at most", "请精简请求头", "Send fewer or shorter headers"),
    "no_http": Text(400, "不是有效的 HTTP 请求", "Not a valid HTTP request", "请检查客户端", "Check the client"),
    "busy": Text(503, "连接或查询过多", "Too many connections or questions at a time", "请 {retry_after} 秒后重试", "Try again in {retry_after} s"),
    "unavailable": Text(503, "系统暂时不可用", "Temporarily unavailable", "请 {retry_after} 秒后用同一键重试;紧急情况请拨打 {phone}", "Retry with the same key in {retry_after} s; if it cannot wait, ring {phone}"),
    "internal": Text(500, "系统内部错误", "Internal error", "请稍后重试;如仍出现,请告知管理员编号 {id}", "Retry; if it stays, tell the administrator {id}"),
    # intake
    "no_location": Text(422, "缺少地点", "No location", "请填写坐标、地址或网格代码之一", "Give coordinates, an address or an area code"),
    "unknown_area": Text(422, "无法确定所在网格:{what}", "No area is known for {what}", "请核对地点,或改用网格代码", "Check the place, or give an area code"),
    "outside": Text(422, "该坐标不在任何服务范围内", "These coordinates lie outside every area served", "请核对坐标与坐标系(WGS84、GCJ02、BD09)", "Check the coordinates and their crs (WGS84, GCJ02, BD09)"),
    "unknown_item": Text(422, "服务清单中没有 {item}", "The catalogue has no item {item}", "请从 /v1/catalogue 选择,或留空由系统识别", "Choose one from /v1/catalogue, or leave it out"),
    "not_ready": Text(503, "系统正在准备,暂时不能受理", "Still being set up: no requests are taken yet", "请 {retry_after} 秒后用同一键重试;紧急情况请拨打 {phone}", "Retry with the same key in {retry_after} s; if it cannot wait, ring {phone}"),
    "already_over": Text(409, "该诉求已{state}", "This request is already {state}", "如需继续,请重新提交", "Submit a new request if needed"),
    "already_rated": Text(409, "该诉求已评价,每轮只评一次", "This request has already been rated, once in each round", "如未解决,可申请重办", "Reopen it if it is not solved"),
    # what a resident has sealed
    "nothing_sealed": Text(404, "该诉求没有保存这项内容", "Nothing of this kind is stored for this request", "请核对所需内容", "Check which parts you ask for"),
    "erased": Text(410, "个人信息已删除,无法恢复", "What was personal has been erased and cannot be brought back", "请按编号继续办理", "Go on by the request's id"),
    "not_handling": Text(403, "您未在办理该诉求,不能查看个人信息", "You are not handling this request: what is personal stays closed", "请由负责的单位或当前接单人查看", "Ask the office that is responsible, or whoever holds the task"),
    "only_review": Text(403, "该诉求已结案或已封存,仅督办可因复核或申诉查看", "This request is closed or frozen: only a supervisor may read it, for a review or an appeal", "请由督办说明事由(review 或 appeal)后查看", "Ask a supervisor, with the reason review or appeal"),
    # the desk
    "unknown_command": Text(404, "没有指令 {verb}", "There is no command {verb}", "请查阅接口文档", "See the API documentation"),
    "unknown_task": Text(404, "没有任务 {task}", "There is no task {task}", "请核对任务编号", "Check the task's id"),
    "unknown_member": Text(404, "没有人员 {member}", "There is no member {member}", "请先登记:paidan members import", "Enrol first: paidan members import"),
    "already_taken": Text(409, "任务已由他人接单", "The task is already held by somebody else", "请看其他任务", "Look at other tasks"),
    "not_offered": Text(409, "该任务未派给 {member}", "The task was not offered to {member}", "请等待派单", "Wait for an offer"),
    "not_holder": Text(409, "{member} 未持有该任务", "{member} does not hold this task", "请核对任务与人员", "Check task and member"),
    "wrong_state": Text(409, "任务状态为{state},不能{verb}", "A task that is {state} cannot be {verb}", "请刷新后重试", "Refresh and look again"),
    "over_capacity": Text(409, "{member} 已达承载上限", "{member} is at capacity", "请先办结手中任务", "Finish what is open first"),
    "not_yourself": Text(403, "只能以本人身份操作", "Members act for themselves only", "请使用本人令牌", "Use your own token"),
    "no_leader": Text(503, "{district} 派单台暂时无人值守", "No desk leads {district} right now", "请用同一指令编号重试", "Retry with the same command id"),
    "too_many_streams": Text(429, "同一用户的实时连接已达上限 {limit}", "One caller may have {limit} live streams at a time", "请断开不用的连接", "Close what is not used"),
    "too_many_watch": Text(503, "实时事件的连接已满(上限 {limit})", "The live stream has all the clients it takes ({limit})", "请 {retry_after} 秒后重试,或断开不用的连接", "Try again in {retry_after} s, or close what is not used"),
    "unknown_district": Text(404, "没有辖区 {district}", "There is no district {district}", "请核对代码或先导入台账", "Check the code, or apply a register"),
    "not_recovered": Text(503, "{district} 派单台正在恢复数据", "The desk of {district} is still recovering", "请 {retry_after} 秒后重试", "Try again in {retry_after} s"),
    "district_missing": Text(422, "该令牌适用于所有辖区,请指明其中一个", "This token is for every district: name one of them", "请加上参数 district=辖区代码", "Add the parameter district=<code>"),
    "own_office": Text(422, "{district} 就是本单位", "{district} is this office itself", "请选择其他单位", "Choose another office"),
    "already_asking": Text(409, "该任务已在转办、会商或借调之中", "The task is already offered to another office, conferred about, or helped with", "请等待答复,或先撤回", "Wait for the answer, or take it back first"),
    "already_signed": Text(409, "已签收或已派员,不能再拒绝", "It was signed for, or somebody was sent: it can no longer be refused", "请与对方单位协商", "Speak with the other office"),
    "over": Text(409, "该{what}已了结", "This {what} is over", "请刷新后重试", "Refresh and look again"),
    "not_lead": Text(403, "会商由 {lead} 牵头,只有牵头单位可以裁定", "Office {lead} leads this conferral: it alone may rule", "请联系牵头单位", "Ask the office that leads"),
    "nobody_free": Text(409, "没有可派人员", "Nobody is free who may", "请指定人员,或说明无人可派", "Name somebody, or refuse"),
    "not_released": Text(409, "支援尚未结束,不能评价", "The help is not over: it cannot be rated yet", "请在任务办结后评价", "Rate it when the task is done"),
    "not_listed": Text(422, "不在可选代码之内", "Not one of the codes that are accepted", "请选用:{accepted}", "Choose one of: {accepted}"),
    "not_utf8": Text(422, "文件不是 UTF-8 编码", "The file is not UTF-8", "请在 Excel 中另存为 CSV UTF-8 后重新上传", "Save it as CSV UTF-8 and upload it again"),
    "unknown_columns": Text(422, "表头有不认识的列:{columns}", "The header has unknown columns: {columns}", "可用的列:{known}", "Known columns: {known}"),
    # short replies
    "code_unknown": Text(404, "回复码无效", "This code is not valid", "请核对短信中的回复码", "Check the code in your message"),
    "code_used": Text(409, "该回复码已用于另一答复", "This code was used for another answer", "每个回复码只能用一次", "A code is good for one answer"),
    "code_expired": Text(410, "该任务的答复时限已过或任务已结束", "The offer or the task has ended", "您无需处理", "There is nothing for you to do"),
    "code_verb": Text(409, "此码不能用于这一答复", "This code is not for this answer", "请按短信中的提示回复", "Answer as your message says"),
    "bad_signature": Text(401, "签名缺失或不符", "The signature is missing or wrong", "请核对密钥与签名方法", "Check the secret and how it is signed"),
    "stale_signature": Text(403, "签名已失效:{why}", "The signature no longer counts: {why}", "请用当前时间重新签名", "Sign it again with the time as it is"),
    # the ledger
    "own_appeal": Text(403, "不能裁定自己提出的申诉", "Nobody rules on an appeal of their own", "请由另一位督办或管理员裁定", "Ask another supervisor, or an admin"),
    "already_ruled": Text(409, "该申诉已裁定", "This appeal has been ruled on", "如有新的事实,请另行申诉", "Appeal again if there is something new"),
    "bad_cursor": Text(400, "游标无效", "The cursor is not valid", "请重新开始查询", "Start the query again"),
    "no_checkpoint": Text(404, "账本在 {of} 没有检查点", "The ledger has no checkpoint at {of}", "请改用已签名的大小或较晚的时间,或留空取最新", "Give a size that was signed or a later time, or leave it out for the latest"),
    "no_parquet": Text(501, "此处未安装 Parquet 所需的 pyarrow", "Parquet needs pyarrow, which is not installed here", "请安装 paidan[parquet],或改用 csv", "Install paidan[parquet], or ask for csv"),
    "stale_register": Text(409, "台账已被他人更新", "Somebody else has changed the register", "请重新预览后再提交", "Preview again, then apply"),
}  # fmt: skip


def problem(why: RefusedError) -> dict[str, Any]:
    """The problem document: `type title status detail code` and, in English, `title_en detail_en`; `field` where one is to blame."""
    text = PROBLEMS[why.code]
    facts = {"why": "", "retry_after": 2, "phone": "110 / 119 / 120", **why.facts}
    english = facts | {name.removesuffix("_en"): fact for name, fact in facts.items() if name.endswith("_en")}
    document: dict[str, Any] = {
        "type": f"urn:paidan:problem:{why.code}",
        "title": text.zh.format_map(_Blank(facts)),
        "status": text.status,
        "detail": text.remedy_zh.format_map(_Blank(facts)),
        "code": why.code,
        "title_en": text.en.format_map(_Blank(english)),
        "detail_en": text.remedy_en.format_map(_Blank(english)),
    }
    if why.field:
        document["field"] = why.field
    return document | {key: value for key, value in why.facts.items() if key not in document}


# --- what is wrong with a field ---------------------------------------------------------------------------------------

WRONG: dict[str, tuple[str, str]] = {
    "missing": ("必填", "required"),
    "extra_forbidden": ("没有这个字段", "there is no such field"),
    "literal_error": ("须为 {expected} 之一", "must be one of {expected}"),
    "enum": ("须为 {expected} 之一", "must be one of {expected}"),
    "string_type": ("须为文字", "must be text"),
    "string_pattern_mismatch": ("格式不符", "not in the expected form"),
    "string_too_short": ("至少 {min_length} 个字符", "at least {min_length} characters"),
    "string_too_long": ("至多 {max_length} 个字符", "at most {max_length} characters"),
    "too_short": ("至少 {min_length} 项", "at least {min_length} entries"),
    "too_long": ("至多 {max_length} 项", "at most {max_length} entries"),
    "int": ("须为整数", "must be a whole number"),
    "float": ("须为数字", "must be a number"),
    "finite_number": ("须为数字", "must be a number"),
    "bool": ("须为 true 或 false", "must be true or false"),
    "greater_than": ("须大于 {gt}", "must be above {gt}"),
    "greater_than_equal": ("不得小于 {ge}", "must be {ge} or more"),
    "less_than": ("须小于 {lt}", "must be below {lt}"),
    "less_than_equal": ("不得大于 {le}", "must be {le} or less"),
    "datetime": ("须为日期与时间,如 2026-11-22T08:00:00+08:00", "must be a date and time such as 2026-11-22T08:00:00+08:00"),
    "timezone_aware": ("须注明时区,如 2026-11-22T08:00:00+08:00", "must name its time zone, as in 2026-11-22T08:00:00+08:00"),
    "date": ("须为日期,如 2026-11-22", "must be a date such as 2026-11-22"),
    "model": ("须为 JSON 对象", "must be a JSON object"),
    "dict": ("须为 JSON 对象", "must be a JSON object"),
    "list": ("须为 JSON 数组", "must be a JSON array"),
    "tuple": ("须为 JSON 数组", "must be a JSON array"),
    "json_invalid": ("不是有效的 JSON", "is not valid JSON"),
}  # fmt: skip
"""What pydantic finds wrong, by its type or the first word of it (`int_parsing`), filled from its context."""

OWN: dict[str, str] = {
    "a time within the years 1 to 9999": "时间须在公元 1 年至 9999 年之间",
    "a phone number has at least three digits": "电话号码至少有三位数字",
    "a pseudonym such as m-17, or another id: it is kept for ever": "须为代号(如 m-17)或其他编号:将永久保存",
    "a number of seven digits or more may be somebody's, and is kept for ever": "七位以上的数字可能是个人号码,且将永久保存",
    "lon and lat belong together": "经度与纬度须同时给出",
    "either request or contact": "请给出诉求编号或联系方式之一",
    "a contact needs a phone or an email": "联系方式须有电话或邮箱",
    "either text or service must say what it is about": "请填写诉求内容,或从服务清单中选择一项",
}
"""What our own validators say, in Chinese."""


def said(error: Mapping[str, Any]) -> tuple[str, str]:
    """
    One of pydantic's errors in Chinese and in English.

    Args:
        error: of `ValidationError.errors()`, with its context.
    """
    kind = str(error["type"])
    if kind in ("value_error", "assertion_error"):
        own = str(error["msg"]).partition(", ")[2]
        return OWN.get(own, f"填写有误({own})"), own
    texts = WRONG.get(kind) or WRONG.get(kind.partition("_")[0])
    if texts is None:
        return "格式不符", str(error["msg"])
    context = dict(error.get("ctx", {}))
    if "expected" in context:  # "'WGS84', 'GCJ02' or 'BD09'"
        words = str(context["expected"]).replace(" or ", ", ").replace("'", "").split(", ")
        return texts[0].format(expected="、".join(words)), texts[1].format(expected=", ".join(words))
    return texts[0].format_map(_Blank(context)), texts[1].format_map(_Blank(context))


def invalid(errors: Sequence[Mapping[str, Any]], *, whole: str = "body") -> RefusedError:
    """
    What pydantic found wrong first, as a refusal: `invalid` with the path of the field.

    Args:
        errors: of `ValidationError.errors()`, with their context.
        whole: the field's name where it is none in particular.
    """
    zh, en = said(errors[0])
    return RefusedError("invalid", field=".".join(map(str, errors[0]["loc"])) or whole, why=zh, why_en=en)


class _Blank(dict[str, Any]):
    def __missing__(self, key: str) -> str:
        return "—"
