"""HTTP in: health, metrics, how many messages wait, and what members answer to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from time import monotonic
from typing import Annotated, Any, NamedTuple, Protocol
from urllib.parse import parse_qsl

from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from pydantic import BaseModel

from services.notify import pages
from services.notify.codes import OTHER, REASONS, understand
from services.notify.decide import VIA
from services.notify.inbound import Inbound, Seen, Signed, WeCom
from services.notify.model import VERBS, Post
from services.notify.replying import REFUSED, Answer, Found, Replies
from services.notify.wording import Wording
from shared import web
from shared.access import allowed
from shared.auth import Caller, Doorkeeper
from shared.errors import RefusedError
from shared.facts import Language
from shared.limiting import Limits, network
from shared.problems import problem

MISSES_PER_S, MISSES_BURST = 1, 200
"""Wrong codes that all together may try before anybody has to wait: where ten thousand of 40 bits are open, one is found in years."""
OWN_MISSES_PER_S, OWN_MISSES_BURST = 0.1, 1
"""Then whoever was wrong a moment ago, by address or by sender behind a webhook, waits, and whoever was not does not."""
# Only documented: what is no code at all is answered as a wrong one.
Code = Annotated[str, Path(description="one-time code", json_schema_extra={"maxLength": 64})]
Channel = Annotated[str, Path(description="a webhook's name", json_schema_extra={"pattern": f"^{VIA.pattern}$"})]
FORM, XML = "application/x-www-form-urlencoded", "application/xml"
ANSWER = {
    "type": "object",
    "required": ["verb"],
    "properties": {
        "verb": {"type": "string", "enum": list(VERBS)},
        "reason": {"type": "string", "enum": [*REASONS, OTHER]},
    },
}
PAGES: dict[int | str, dict[str, Any]] = {
    status: {"description": words, "content": {"text/html": {}}}
    for status, words in (
        (404, "`code_unknown`"),
        (409, "used, or not for this answer, or the desk refuses"),
        (410, "too late"),
        (413, "too large"),
        (422, "no such answer"),
        (429, "too many wrong codes"),
        (503, "the desk does not answer just now"),
    )
}

Reader = Annotated[Caller, allowed("clerk", "dispatcher", "supervisor", "auditor", of="district")]


class Counts(BaseModel):
    """
    The messages of one district.

    Attributes:
        queued: since the beginning.
        waiting: neither sent nor given up; of these `held` wait for the end of quiet hours and `retrying` for another try.
        sent: by channel.
        failed: given up, by code.
    """

    district: str
    queued: int
    waiting: int
    held: int
    retrying: int
    sent: dict[str, int]
    failed: dict[str, int]


class Served(Protocol):
    """What the API needs of the offices."""

    def state(self, district: str) -> Post | None:
        """The newest state of a district, or None where it is not served."""


def create_app(served: Served, answering: Answering, *, ready: web.Readiness, doorkeeper: Doorkeeper) -> FastAPI:
    """The app of one instance; every instance answers, also one that stands by."""
    app = web.create_app("派单 notify", ready=ready, doorkeeper=doorkeeper)

    @app.get(
        "/v1/notices",
        tags=["notices"],
        summary="消息统计 / how many messages were sent, failed, wait",
        responses=web.problems(
            "unauthenticated", "forbidden", "foreign_district", "unknown_district", "district_missing"
        ),
    )
    async def notices(
        caller: Reader,
        district: Annotated[str | None, Query(pattern=r"^[0-9]{6}$", description="default: the token's")] = None,
    ) -> Counts:
        of = caller.one(district)
        post = served.state(of)
        if post is None:
            raise RefusedError("unknown_district", district=of)
        return counts(post)

    add_replies(app, answering)
    return app


class Answering(NamedTuple):
    """What short replies are taken with. `replies`: None where they are off; `hooks`: webhooks by name."""

    replies: Replies | None
    wording: Wording
    hooks: Mapping[str, Signed | WeCom]
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    def by(self) -> Replies:
        """Who answers. Raises RefusedError `code_unknown` where nobody does."""
        if self.replies is None:
            raise RefusedError("code_unknown")
        return self.replies


def add_replies(app: FastAPI, answering: Answering) -> None:
    """The routes of short replies: the page behind a link, and webhooks for what members write."""
    misses, own, seen = Limits(MISSES_PER_S, MISSES_BURST), Limits(OWN_MISSES_PER_S, OWN_MISSES_BURST), Seen()

    def tried(whose: str, code: str) -> Found:
        """What a code stands for; where many try wrong ones, they wait. Raises RefusedError `code_unknown`, `too_many`."""
        now_s = monotonic()
        try:
            misses.look("", now_s)
        except RefusedError:
            own.look(whose, now_s)
        try:
            return answering.by().find(code)
        except RefusedError:
            for counted, of in ((misses, ""), (own, whose)):
                with suppress(RefusedError):
                    counted.take(of, now_s)
            raise

    def page(content: str, status: int = 200) -> HTMLResponse:
        return HTMLResponse(content, status, headers=pages.HEADERS)

    @app.get(
        "/r/{code}",
        tags=["replies"],
        summary="短信链接页面 / the page behind a message's link",
        response_class=HTMLResponse,
        responses=PAGES,
        dependencies=[allowed(of="reply")],
    )
    async def ask(request: Request, code: Code) -> HTMLResponse:
        language = pages.language_of(request.headers.get("accept-language", ""))
        try:
            found = tried(network(request.client), code)
        except RefusedError as why:
            return page(pages.refusal(why, language), problem(why)["status"])
        return page(pages.question(found, answering.wording, language, answering.clock()))

    @app.post(
        "/r/{code}",
        tags=["replies"],
        summary="在链接页面答复 / an answer on that page",
        response_class=HTMLResponse,
        responses=PAGES,
        openapi_extra={"requestBody": {"required": True, "content": {FORM: {"schema": ANSWER}}}},
        dependencies=[allowed(of="reply")],
    )
    async def answer(request: Request, code: Code) -> HTMLResponse:
        language = pages.language_of(request.headers.get("accept-language", ""))
        try:
            tried(network(request.client), code)
            fields = _form(await request.body())
            verb = next((verb for verb in VERBS if verb == fields.get("verb")), None)
            if verb is None:
                raise RefusedError("not_listed", field="verb", accepted=" ".join(VERBS))
            reason = fields.get("reason", "")
            answered = await answering.by().answer(code, verb, reason if reason in REASONS else OTHER, "link")
        except RefusedError as why:
            return page(pages.refusal(why, language), problem(why)["status"])
        return page(pages.result(answered, language), answered.status)

    async def reply(name: str, message: Inbound) -> tuple[Answer, Language]:
        """What becomes of a message that came in by a webhook."""
        said = understand(message.text)
        if said is None:
            return Answer("not_understood", REFUSED["not_understood"], 422), "zh-CN"
        try:
            tried(f"{name} {message.sender}", said.code)
            return await answering.by().answer(said.code, said.verb, said.reason, name), said.language
        except RefusedError as why:
            return Answer.of(problem(why)), said.language

    @app.get(
        "/v1/inbound/{channel}",
        tags=["replies"],
        summary="企业微信回调验证 / WeCom asks whether this is its callback",
        response_class=PlainTextResponse,
        responses=web.problems("bad_signature", "stale_signature", "not_found"),
        dependencies=[allowed(of="gateway")],
    )
    async def echo(request: Request, channel: Channel) -> PlainTextResponse:
        hook = answering.hooks.get(channel)
        if not isinstance(hook, WeCom):
            raise RefusedError("not_found", what=channel)
        return PlainTextResponse(hook.echo(request.query_params, answering.clock().timestamp()))

    @app.post(
        "/v1/inbound/{channel}",
        tags=["replies"],
        summary="短信网关与企业微信来信 / what members write, by SMS gateway or WeCom",
        responses={
            200: {"description": "taken in; `code` says why nothing was done", "content": {XML: {}}},
            **web.problems("bad_signature", "stale_signature", "not_found", "invalid", "invalid_json", "too_large"),
        },
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {}, FORM: {}, XML: {}}}},
        dependencies=[allowed(of="gateway")],
    )
    async def inbound(request: Request, channel: Channel) -> Response:
        hook, body, now_s = answering.hooks.get(channel), await request.body(), answering.clock().timestamp()
        if hook is None:
            raise RefusedError("not_found", what=channel)
        if isinstance(hook, WeCom):
            signature = request.query_params.get("msg_signature", "")
            message = hook.open(body, request.query_params, now_s)
        else:
            signature = request.headers.get("paidan-signature", "")
            message = hook.open(body, request.headers.get("content-type", ""), request.headers, now_s)
        seen.take(f"{channel} {signature}")
        answered, language = await reply(channel, message)
        if answered.status >= 500:
            seen.forget(f"{channel} {signature}")
        words = answered.words.said(language)
        if isinstance(hook, WeCom):
            return Response(hook.sealed(words, message.sender, now_s) if message.text else "", media_type=XML)
        return JSONResponse({"ok": not answered.code, "code": answered.code, "reply": words})


def _form(body: bytes) -> Mapping[str, str]:
    """A form's fields. Raises RefusedError `invalid`."""
    try:
        return dict(parse_qsl(body.decode(), max_num_fields=20))
    except ValueError:
        raise RefusedError("invalid", field="body", why="不是表单", why_en="not a form") from None


def counts(post: Post) -> Counts:
    """A state in figures."""
    waiting = post.notices.values()
    return Counts(
        district=post.district,
        queued=post.last,
        waiting=len(post.notices),
        held=sum(notice.held for notice in waiting),
        retrying=sum(notice.attempts > 0 for notice in waiting),
        sent=dict(post.sent),
        failed=dict(post.failed),
    )
