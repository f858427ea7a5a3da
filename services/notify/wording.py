"""
What messages say: templates in Chinese and English, filled with the words of the register and a link, never with a person.

Templates are sandboxed and strict, because an office may bring its own; what is filled in is a value, never a template.
A folder of an office holds `<template>.<language>.txt`: the first line is the title, the rest the body.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import NamedTuple

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from services.notify.codes import Codes
from services.notify.model import ANSWERS, RESIDENT, TEMPLATES, Notice, Post, Verb
from shared.facts import Language, Name

DIGEST = "digest"
LANGUAGES: tuple[Language, ...] = ("zh-CN", "en")
VALUE_CHARACTERS_MAX = 60
"""A word of the register may be longer; a message names it, it does not tell it."""
DIGEST_LINES_MAX = 20
ANY: Mapping[str, Name] = {
    "item": Name(zh="居民诉求", en="a request"),
    "area": Name(zh="本辖区", en="the district"),
    "office": Name(zh="本辖区网格办", en="the district's office"),
    "role": Name(zh="工作人员", en="a member of staff"),
}
"""What is said where the register has no word."""
ROLES: Mapping[str, Name] = {
    "grid_member": Name(zh="网格员", en="a grid member"),
    "volunteer": Name(zh="志愿者", en="a volunteer"),
    "provider": Name(zh="服务单位", en="a service provider"),
    "responder": Name(zh="应急队员", en="a responder"),
}
"""What residents hear of who does it."""
SAID: Mapping[Verb, str] = {"accept": "接", "decline": "拒", "arrive": "到", "done": "完"}
"""What a member writes in Chinese; in English the verb itself."""

TEXTS: Mapping[str, str] = {
    "offered.zh-CN": """
{% if urgent %}【紧急】{% endif %}派单：{{ item }}
{{ area }}有一项任务派给您：{{ item }}。{% if until %}请在 {{ until }} 前接单或拒单。{% endif %}
{% if code %}回复“接 {{ code }}”接单，“拒 {{ code }} 原因”拒单，或点开链接：
{{ answer }}{% else %}{{ link }}{% endif %}""",
    "offered.en": """
{% if urgent %}URGENT: {% endif %}New task: {{ item }}
A task in {{ area }} is offered to you: {{ item }}.{% if until %} Please accept or decline by {{ until }}.{% endif %}
{% if code %}Reply “accept {{ code }}” or “decline {{ code }} reason”, or open:
{{ answer }}{% else %}{{ link }}{% endif %}""",
    "taken.zh-CN": """
已有人接单：{{ item }}
{{ area }}的任务“{{ item }}”已由他人接单，您无需处理。谢谢！
{{ link }}""",
    "taken.en": """
Taken: {{ item }}
Somebody else has taken “{{ item }}” in {{ area }}: there is nothing for you to do. Thank you!
{{ link }}""",
    "over.zh-CN": """
派单已过期：{{ item }}
{{ area }}的任务“{{ item }}”未在时限内答复，已改派他人，您无需处理。
{{ link }}""",
    "over.en": """
Offer expired: {{ item }}
“{{ item }}” in {{ area }} was not answered in time and goes to somebody else: there is nothing for you to do.
{{ link }}""",
    "withdrawn.zh-CN": """
诉求已撤回：{{ item }}
居民已撤回{{ area }}的诉求“{{ item }}”，您无需再处理。
{{ link }}""",
    "withdrawn.en": """
Withdrawn: {{ item }}
The request “{{ item }}” in {{ area }} was withdrawn: there is nothing more to do.
{{ link }}""",
    "unplaced.zh-CN": """
{% if urgent %}【紧急】{% endif %}无人可派：{{ item }}
{{ area }}的任务“{{ item }}”无人可派，请尽快指定人员。
{{ link }}""",
    "unplaced.en": """
{% if urgent %}URGENT: {% endif %}Nobody to ask: {{ item }}
Nobody is left to ask for “{{ item }}” in {{ area }}: please assign somebody.
{{ link }}""",
    "given_away.zh-CN": """
已转办：{{ item }}
{{ area }}的任务“{{ item }}”已转由其他单位办理，您无需处理。谢谢！
{{ link }}""",
    "given_away.en": """
Handed over: {{ item }}
“{{ item }}” in {{ area }} is now another office's: there is nothing more for you to do. Thank you!
{{ link }}""",
    "accepted.zh-CN": """
您已接单：{{ item }}
{{ area }}的任务“{{ item }}”由您办理。
{% if code %}到场后回复“到 {{ code }}”，直接办结回复“完 {{ code }}”，或点开链接：
{{ answer }}{% else %}{{ link }}{% endif %}""",
    "accepted.en": """
Yours: {{ item }}
You have taken “{{ item }}” in {{ area }}.
{% if code %}Reply “arrive {{ code }}” when you are there, “done {{ code }}” when it is done, or open:
{{ answer }}{% else %}{{ link }}{% endif %}""",
    "arrived.zh-CN": """
您已到场：{{ item }}
{{ area }}的任务“{{ item }}”正由您办理。
{% if code %}办结后回复“完 {{ code }}”，或点开链接：
{{ answer }}{% else %}{{ link }}{% endif %}""",
    "arrived.en": """
On the spot: {{ item }}
You are at work on “{{ item }}” in {{ area }}.
{% if code %}Reply “done {{ code }}” when it is done, or open:
{{ answer }}{% else %}{{ link }}{% endif %}""",
    "handover_refused.zh-CN": """
对方未接收：{{ item }}
{{ area }}的任务“{{ item }}”，对方单位未接收，仍由本单位负责，请尽快处理。
{{ link }}""",
    "handover_refused.en": """
Refused by the other office: {{ item }}
The other office does not take “{{ item }}” in {{ area }}: it stays ours. Please see to it.
{{ link }}""",
    "conferral_opened.zh-CN": """
需要会商：{{ item }}
{{ area }}的任务“{{ item }}”两次被退回，已转入会商，期间仍由本单位负责。
{{ link }}""",
    "conferral_opened.en": """
To be conferred on: {{ item }}
“{{ item }}” in {{ area }} was refused twice and goes to a conferral; meanwhile it stays ours.
{{ link }}""",
    "help_lapsed.zh-CN": """
无人报到：{{ item }}
{{ area }}的任务“{{ item }}”请求的支援到时无人报到，请另行安排。
{{ link }}""",
    "help_lapsed.en": """
Nobody reported in: {{ item }}
The help that was asked for “{{ item }}” in {{ area }} did not come in time. Please arrange it otherwise.
{{ link }}""",
    "handover_asked.zh-CN": """
待签收：{{ item }}
其他单位请求转办{{ area }}的事项“{{ item }}”，请尽快签收或退回并说明依据。
{{ link }}""",
    "handover_asked.en": """
To sign for: {{ item }}
Another office asks you to take over “{{ item }}” in {{ area }}. Please sign for it, or refuse and say on what basis.
{{ link }}""",
    "handover_over.zh-CN": """
转办请求已失效：{{ item }}
其他单位就{{ area }}的事项“{{ item }}”的转办请求已失效，已签收的也不再有效，本单位无需再处理。
{{ link }}""",
    "handover_over.en": """
No longer to sign for: {{ item }}
“{{ item }}” in {{ area }} is not handed over to us after all, also where we have signed for it: there is nothing to do.
{{ link }}""",
    "conferral_asked.zh-CN": """
请参加会商：{{ item }}
{{ area }}的事项“{{ item }}”归属有争议，请参加会商。
{{ link }}""",
    "conferral_asked.en": """
To confer on: {{ item }}
It is disputed whose “{{ item }}” in {{ area }} is. Please take part in the conferral.
{{ link }}""",
    "conferral_overdue.zh-CN": """
会商逾期：{{ item }}
{{ area }}的事项“{{ item }}”会商已到期而无裁定，仍由首接单位负责，请督办。
{{ link }}""",
    "conferral_overdue.en": """
Conferral overdue: {{ item }}
The conferral on “{{ item }}” in {{ area }} has passed its deadline without a ruling: whoever received it first keeps it. Please see to it.
{{ link }}""",
    "help_asked.zh-CN": """
请求支援：{{ item }}
其他单位就{{ area }}的“{{ item }}”请求派人支援，请按时报到或答复。
{{ link }}""",
    "help_asked.en": """
Help asked for: {{ item }}
Another office asks for somebody's help with “{{ item }}” in {{ area }}. Please report in, or answer, in time.
{{ link }}""",
    "lent.zh-CN": """
请前往支援：{{ item }}
您被派往支援其他单位在{{ area }}的任务“{{ item }}”，请尽快前往。
{{ link }}""",
    "lent.en": """
Please help with: {{ item }}
You are sent to help another office with “{{ item }}” in {{ area }}. Please go there soon.
{{ link }}""",
    "help_over.zh-CN": """
支援已结束：{{ item }}
其他单位在{{ area }}的任务“{{ item }}”不再需要支援，无需再前往。谢谢！
{{ link }}""",
    "help_over.en": """
Help is over: {{ item }}
No more help is needed with “{{ item }}” in {{ area }}: there is nothing more for you to do. Thank you!
{{ link }}""",
    "received.zh-CN": """
已受理：{{ item }}
您在{{ area }}的诉求“{{ item }}”已由{{ office }}受理。凭查询码可随时查询进展。
{{ link }}""",
    "received.en": """
Received: {{ item }}
Your request “{{ item }}” in {{ area }} was taken in by {{ office }}. Your tracking code shows how it goes.
{{ link }}""",
    "underway.zh-CN": """
已接单：{{ item }}
您在{{ area }}的诉求“{{ item }}”已由{{ role }}接单，将尽快处理。凭查询码可随时查询进展。
{{ link }}""",
    "underway.en": """
Under way: {{ item }}
Your request “{{ item }}” in {{ area }} has been taken by {{ role }}. Your tracking code shows how it goes.
{{ link }}""",
    "finished.zh-CN": """
已办结：{{ item }}
您在{{ area }}的诉求“{{ item }}”已办结。请凭查询码评价；如未解决，可申请重办。
{{ link }}""",
    "finished.en": """
Done: {{ item }}
Your request “{{ item }}” in {{ area }} is done. Please rate it with your tracking code, or reopen it if it is not solved.
{{ link }}""",
    "moved.zh-CN": """
已转办：{{ item }}
您在{{ area }}的诉求“{{ item }}”现由{{ office }}负责办理，查询码不变。
{{ link }}""",
    "moved.en": """
Handed over: {{ item }}
{{ office }} is now responsible for your request “{{ item }}” in {{ area }}. Your tracking code stays the same.
{{ link }}""",
    "cancelled.zh-CN": """
已撤回：{{ item }}
您在{{ area }}的诉求“{{ item }}”已按您的要求撤回。如仍需要，请重新提交。
{{ link }}""",
    "cancelled.en": """
Withdrawn: {{ item }}
Your request “{{ item }}” in {{ area }} was withdrawn as you asked. Submit it again if you need it after all.
{{ link }}""",
    "ended.zh-CN": """
已结案：{{ item }}
您在{{ area }}的诉求“{{ item }}”已结案。如问题仍在，可凭查询码申请重办。
{{ link }}""",
    "ended.en": """
Closed: {{ item }}
Your request “{{ item }}” in {{ area }} is closed. If the matter is still there, reopen it with your tracking code.
{{ link }}""",
    "digest.zh-CN": """
免打扰期间的 {{ count }} 条消息
{% for title in titles %}· {{ title }}
{% endfor %}{% if more %}· 另有 {{ more }} 条
{% endif %}{{ link }}""",
    "digest.en": """
{{ count }} messages from your quiet hours
{% for title in titles %}· {{ title }}
{% endfor %}{% if more %}· and {{ more }} more
{% endif %}{{ link }}""",
}


class Text(NamedTuple):
    """One message: a title of one line, and what follows."""

    title: str
    body: str


@dataclass(frozen=True)
class Wording:
    """Words messages. Made once: it compiles every template and fails where one does not fit."""

    templates: Mapping[str, jinja2.Template]
    public_url: str
    resident_url: str
    reply_url: str
    codes: Codes | None

    @classmethod
    def open(
        cls,
        public_url: str,
        folder: Path | None = None,
        *,
        resident_url: str = "",
        reply_url: str = "",
        codes: Codes | None = None,
    ) -> Wording:
        """
        Compile every template and try each.

        Args:
            public_url: of dispatch, or of what stands before it: links lead to `/v1/tasks/<id>` there.
            folder: an office's own templates; what it does not hold is as here.
            resident_url: where residents follow their requests; messages never hold a tracking code.
            reply_url: of notify, or of what stands before it: links to `/r/<code>` there.
            codes: one-time codes for answers; None: messages hold none.
        Raises:
            ValueError: a template is wrong; names it.
        """
        environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False)
        templates: dict[str, jinja2.Template] = {}
        for name, text in TEXTS.items():
            own = folder / f"{name}.txt" if folder else None
            source = own.read_text() if own and own.is_file() else text
            try:
                templates[name] = environment.from_string(source.strip())
                templates[name].render(_EXAMPLE)
            except Exception as why:  # a template can raise anything
                raise ValueError(f"template {name}: {why}") from None
        return cls(templates, public_url.rstrip("/"), resident_url, reply_url.rstrip("/"), codes)

    def message(self, post: Post, notice: Notice, language: Language) -> Text:
        """One notice in words."""
        item, area, until = self.about(post, notice.item, notice.area, notice.until, notice.queued, language)
        code = self._code(notice)
        return self._text(
            notice.template if notice.template in TEMPLATES else "offered",
            language,
            item=item,
            area=area,
            urgent=notice.urgent,
            until=until,
            code=code,
            answer=f"{self.reply_url}/r/{code}",
            link=self._link(notice, f"/{notice.task}"),
            office=_say(_office(post), language),
            role=_say(_role(post, notice.task), language),
        )

    def about(
        self, post: Post, item: str, area: str, until: datetime | None, at: datetime, language: Language
    ) -> tuple[str, str, str]:
        """What something is about: the item, the area as of a time, and until when, in the district's own time."""
        day, zone = post.register.today(post.district, at), post.register.zone(post.district)
        ends = f"{until.astimezone(zone):%m-%d %H:%M}" if until else ""
        return _say(_item(post, item), language), _say(_area(post, area, day), language), ends

    def _code(self, notice: Notice) -> str:
        return self.codes.of(notice.id) if self.codes and notice.template in ANSWERS else ""

    def digest(self, post: Post, notices: Iterable[Notice], language: Language) -> Text:
        """What was held, in one message; a single one is itself."""
        held = list(notices)
        if len(held) == 1:
            return self.message(post, held[0], language)
        titles = [self._line(post, notice, language) for notice in held[:DIGEST_LINES_MAX]]
        more = len(held) - len(titles)
        return self._text(DIGEST, language, count=len(held), titles=titles, more=more, link=self._link(held[0]))

    def _line(self, post: Post, notice: Notice, language: Language) -> str:
        """A message's title, and how to answer it."""
        title, code = self.message(post, notice, language).title, self._code(notice)
        if not code:
            return title
        link, verbs = f"{self.reply_url}/r/{code}", ANSWERS[notice.template]
        if language == "zh-CN":
            return f"{title}（回复{''.join(f'“{SAID[verb]} {code}”' for verb in verbs)}，或 {link}）"
        return f"{title} (reply {' or '.join(f'“{verb} {code}”' for verb in verbs)}, or {link})"

    def _link(self, notice: Notice, task: str = "") -> str:
        return self.resident_url if notice.recipient.startswith(RESIDENT) else f"{self.public_url}/v1/tasks{task}"

    def _text(self, template: str, language: Language, **values: object) -> Text:
        title, _, body = self.templates[f"{template}.{language}"].render(values).strip().partition("\n")
        return Text(" ".join(title.split()), body.strip())


_EXAMPLE = {
    "item": "路灯不亮",
    "area": "欧景苑",
    "urgent": True,
    "until": "11-22 09:00",
    "link": "https://example.org/v1/tasks/1",
    "code": "7K3M9QX2",
    "answer": "https://example.org/r/7K3M9QX2",
    "office": "武昌区网格办",
    "role": "网格员",
    "count": 2,
    "titles": ["甲", "乙"],
    "more": 1,
}


def plain_line(value: str) -> str:
    """A value as one printable line: no control or invisible characters, no line breaks, at most 60 characters."""
    line = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in value)
    line = " ".join(line.split())
    return line if len(line) <= VALUE_CHARACTERS_MAX else line[: VALUE_CHARACTERS_MAX - 1] + "…"


def _say(name: Name, language: Language) -> str:
    return plain_line(name.said(language))


def _item(post: Post, code: str) -> Name:
    known = post.register.items.get(code)
    return known.title if known else ANY["item"]


def _area(post: Post, code: str, day: date) -> Name:
    known = post.register.area(code, day)
    return known.title if known else ANY["area"]


def _office(post: Post) -> Name:
    known = post.register.districts.get(post.district)
    return known.office if known else ANY["office"]


def _role(post: Post, task: str) -> Name:
    """What kind of member does it."""
    return ROLES.get(post.kinds.get(post.task(task).holder or "", ""), ANY["role"])
