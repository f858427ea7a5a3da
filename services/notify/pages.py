"""The page behind a message's link: what is asked, until when, and a button for each answer. No script, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import jinja2

from services.notify.codes import REASONS
from services.notify.model import ANSWERS, Verb
from services.notify.replying import Answer, Found, words
from services.notify.wording import Wording
from shared.errors import RefusedError
from shared.facts import Language, Name
from shared.problems import problem

HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex",
}
BUTTONS: Mapping[Verb, Name] = {
    "accept": Name(zh="接单", en="Accept"),
    "decline": Name(zh="拒单", en="Decline"),
    "arrive": Name(zh="到场", en="I am there"),
    "done": Name(zh="办结", en="Done"),
}
WHY: Mapping[str, Name] = {
    "other": Name(zh="其他原因", en="other"),
    "busy": Name(zh="手头有事", en="busy"),
    "too_far": Name(zh="路太远", en="too far away"),
    "off_sick": Name(zh="身体不适", en="unwell"),
    "off_duty": Name(zh="不当班", en="not on duty"),
    "cannot_do": Name(zh="不会处理或缺少工具", en="lacks the skill or the tools"),
    "not_ours": Name(zh="不属本人职责", en="not my responsibility"),
    "unsafe": Name(zh="现场有危险", en="not safe"),
}
assert set(WHY) == {*REASONS, "other"}

_PAGE = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
    """<!doctype html>
<html lang="{{ language }}"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title><style>
body{font:18px/1.6 sans-serif;margin:0 auto;padding:16px;max-width:30em;color:#222}
button,select{font:inherit;width:100%;padding:12px;margin:6px 0;border:1px solid #888;border-radius:6px;background:#fff}
button.first{background:#06c;border-color:#06c;color:#fff}fieldset{border:0;padding:0;margin:12px 0}small{color:#666}
</style></head><body><h1>{{ title }}</h1>
{% for line in lines %}<p>{{ line }}</p>
{% endfor %}{% for button in buttons %}<form method="post"><fieldset><input type="hidden" name="verb" value="{{ button.verb }}">
{% if button.reasons %}<select name="reason" aria-label="{{ button.why }}">{% for code, words in button.reasons %}
<option value="{{ code }}">{{ words }}</option>{% endfor %}</select>
{% endif %}<button{% if loop.first %} class="first"{% endif %}>{{ button.words }}</button></fieldset></form>
{% endfor %}<small>派单 Paidan</small></body></html>
"""
)


def language_of(accepts: str) -> Language:
    """What a browser would rather read: Chinese, unless it begins with English."""
    return "en" if accepts.strip().lower().startswith("en") else "zh-CN"


def question(found: Found, wording: Wording, language: Language, now: datetime) -> str:
    """What a code is for; a code that is used or over says so."""
    reply, task = found.reply, found.post.task(found.reply.task)
    item, area, until = wording.about(found.post, reply.item, reply.area, reply.until, now, language)
    zh = language == "zh-CN"
    lines = [f"地点：{area}" if zh else f"Where: {area}"]
    over = task.closed or (reply.until is not None and reply.until <= now)
    buttons = []
    if reply.used:
        said = BUTTONS[reply.used].said(language)
        lines.append(f"您已答复：{said}" if zh else f"You have answered: {said}")
    elif over:
        lines.append(words(problem(RefusedError("code_expired"))).said(language))
    else:
        if until:
            lines.append(f"请在 {until} 前答复" if zh else f"Please answer by {until}")
        buttons = [
            {
                "verb": verb,
                "words": BUTTONS[verb].said(language),
                "why": "原因" if zh else "Why",
                "reasons": [(code, name.said(language)) for code, name in WHY.items()] if verb == "decline" else [],
            }
            for verb in ANSWERS[reply.template]
        ]
    return _PAGE.render(language=language, title=item, lines=lines, buttons=buttons)


def result(answer: Answer, language: Language) -> str:
    """What became of it."""
    title = {"zh-CN": "收到" if not answer.code else "未能办理", "en": "Received" if not answer.code else "Not done"}[
        language
    ]
    return _PAGE.render(language=language, title=title, lines=[answer.words.said(language)], buttons=[])


def refusal(why: RefusedError, language: Language) -> str:
    """A page instead of a problem document: whoever opens a link is a person."""
    return _PAGE.render(language=language, title="派单 Paidan", lines=[words(problem(why)).said(language)], buttons=[])
