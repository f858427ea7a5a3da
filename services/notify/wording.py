"""
What messages say: templates in Chinese and English, filled with the words of the register and a link, never with a person.

Templates are sandboxed and strict, because an office may bring its own; what is filled in is a value, never a template.
A folder of an office holds `<template>.<language>.txt`: the first line is the title, the rest the body.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import NamedTuple

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from services.notify.model import TEMPLATES, Notice, Post
from shared.facts import Language, Name

DIGEST = "digest"
LANGUAGES: tuple[Language, ...] = ("zh-CN", "en")
VALUE_CHARACTERS_MAX = 60
"""A word of the register may be longer; a message names it, it does not tell it."""
DIGEST_LINES_MAX = 20
ANY: Mapping[str, Name] = {"item": Name(zh="居民诉求", en="a request"), "area": Name(zh="本辖区", en="the district")}
"""What is said where the register has no word."""

TEXTS: Mapping[str, str] = {
    "offered.zh-CN": """
{% if urgent %}【紧急】{% endif %}派单：{{ item }}
{{ area }}有一项任务派给您：{{ item }}。{% if until %}请在 {{ until }} 前接单或拒单。{% endif %}
{{ link }}""",
    "offered.en": """
{% if urgent %}URGENT: {% endif %}New task: {{ item }}
A task in {{ area }} is offered to you: {{ item }}.{% if until %} Please accept or decline by {{ until }}.{% endif %}
{{ link }}""",
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

    @classmethod
    def open(cls, public_url: str, folder: Path | None = None) -> Wording:
        """
        Compile every template and try each.

        Args:
            public_url: of dispatch, or of what stands before it: links lead to `/v1/tasks/<id>` there.
            folder: an office's own templates; what it does not hold is as here.
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
        return cls(templates, public_url.rstrip("/"))

    def message(self, post: Post, notice: Notice, language: Language) -> Text:
        """One notice in words."""
        day = post.register.today(post.district, notice.queued)
        zone = post.register.zone(post.district)
        return self._text(
            notice.template if notice.template in TEMPLATES else "offered",
            language,
            item=_say(_item(post, notice.item), language),
            area=_say(_area(post, notice.area, day), language),
            urgent=notice.urgent,
            until=f"{notice.until.astimezone(zone):%m-%d %H:%M}" if notice.until else "",
            link=f"{self.public_url}/v1/tasks/{notice.task}",
        )

    def digest(self, post: Post, notices: Iterable[Notice], language: Language) -> Text:
        """What was held, in one message; a single one is itself."""
        held = list(notices)
        if len(held) == 1:
            return self.message(post, held[0], language)
        titles = [self.message(post, notice, language).title for notice in held[:DIGEST_LINES_MAX]]
        more = len(held) - len(titles)
        return self._text(
            DIGEST, language, count=len(held), titles=titles, more=more, link=f"{self.public_url}/v1/tasks"
        )

    def _text(self, template: str, language: Language, **values: object) -> Text:
        title, _, body = self.templates[f"{template}.{language}"].render(values).strip().partition("\n")
        return Text(" ".join(title.split()), body.strip())


_EXAMPLE = {
    "item": "路灯不亮",
    "area": "欧景苑",
    "urgent": True,
    "until": "11-22 09:00",
    "link": "https://example.org/v1/tasks/1",
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
    return plain_line(name.zh if language == "zh-CN" else name.en)


def _item(post: Post, code: str) -> Name:
    known = post.register.items.get(code)
    return known.title if known else ANY["item"]


def _area(post: Post, code: str, day: date) -> Name:
    known = post.register.area(code, day)
    return known.title if known else ANY["area"]
