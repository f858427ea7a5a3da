"""
Short replies: a member's one-time code becomes a command to the desk, and what the desk says becomes words.

No instance has to lead for that. The command's id follows from the notice and the answer, so the desk does it once; its fact comes
back to whoever leads as an input that names this id as its cause, and there it becomes `notice.answered`: the code is used up
from the desk's commit on, whatever ends in between (ADR 24).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

import jwt
import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from prometheus_client import Counter

from services.notify.codes import OUTCOME, Codes, canonical
from services.notify.decide import answerable, reply_id
from services.notify.model import Post, Reply, Verb
from shared.auth import AUDIENCE, REPLIES
from shared.errors import RefusedError, UnavailableError
from shared.facts import Name
from shared.keys import public_jwk
from shared.problems import problem
from shared.telemetry import logger

TOKEN_S = 60
WITHIN_S = 4.5
"""How long the desk is asked: who sent us the message waits 5 s."""
TRY_S = 1.5
PAUSE_S = 0.2
ANSWERED = Counter("paidan_replies_total", "Short replies", ["via", "verb", "code"])

DONE: Mapping[Verb, Name] = {
    "accept": Name(
        zh="已接单,谢谢!下一步的回复码随后发给您。", en="Taken, thank you! The next code follows in a message."
    ),
    "decline": Name(zh="已拒单,谢谢告知。", en="Declined. Thank you for telling us."),
    "arrive": Name(
        zh="已记录到场。办结用的回复码随后发给您。", en="You are on the spot. The code for “done” follows in a message."
    ),
    "done": Name(zh="已办结,辛苦了!", en="Done. Thank you for your work!"),
}
REFUSED: Mapping[str, Name] = {
    "already_taken": Name(zh="该任务已由他人接单,您无需处理。谢谢!", en="Somebody else has taken it: there is nothing for you to do. Thank you!"),
    "not_offered": Name(zh="该任务已不再派给您,您无需处理。", en="This task is no longer offered to you: there is nothing for you to do."),
    "not_holder": Name(zh="该任务已不由您办理。", en="This task is no longer yours."),
    "unknown_task": Name(zh="该任务已结束,您无需处理。", en="This task has ended: there is nothing for you to do."),
    "wrong_state": Name(zh="该任务目前的状态不允许这样答复。", en="As the task stands it cannot be answered like this."),
    "over_capacity": Name(zh="您手中的任务已满,请先办结再接单。", en="You have as much as you can hold: please finish something first."),
    "no_leader": Name(zh="派单台暂时无人应答,请稍后用同一回复码重试。", en="The desk does not answer just now: please try again in a while with the same code."),
    "not_understood": Name(
        zh="未能识别。请回复“接 码”“拒 码 原因”“到 码”或“完 码”。",
        en="Not understood. Please answer “accept CODE”, “decline CODE reason”, “arrive CODE” or “done CODE”.",
    ),
}  # fmt: skip
"""What a member hears of a refusal, by its code; of others what the problem says."""


class Signer:
    """Signs the tokens behind short replies: for one member, one district, a minute."""

    def __init__(self, pem: bytes) -> None:
        key = load_pem_private_key(pem, password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError("the key for short replies is not Ed25519")
        self._key = key
        self._id = public_jwk(key)["kid"]

    def token(self, member: str, district: str, now: datetime) -> str:
        """A token as this member."""
        at = int(now.timestamp())
        claims = {"iss": REPLIES, "aud": AUDIENCE, "sub": member, "district": district, "roles": ["member"]}
        times = {"iat": at, "exp": at + TOKEN_S}
        return jwt.encode({**claims, **times}, self._key, algorithm="EdDSA", headers={"kid": self._id})


class Found(NamedTuple):
    """What a code stands for."""

    post: Post
    notice: str
    reply: Reply


class Answer(NamedTuple):
    """What became of a reply: the refusal's code and status, empty and 200 where it was done, and what the member hears."""

    code: str
    words: Name
    status: int = 200

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Answer:
        """Of a problem document."""
        return cls(str(document.get("code", "internal")), words(document), int(document.get("status", 500)))


class Bus(Protocol):
    """What replying needs of the bus."""

    async def request(self, subject: str, data: bytes, *, timeout_s: float = 2) -> bytes:
        """One answer to one question. Raises UnavailableError."""


class Replies:
    """
    Turns one-time codes into commands.

    Args:
        posts: the newest state of every district served here.
    """

    def __init__(
        self,
        bus: Bus,
        codes: Codes,
        signer: Signer,
        posts: Callable[[], Iterable[Post]],
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._bus = bus
        self._codes = codes
        self._signer = signer
        self._posts = posts
        self._clock = clock
        self._seen: list[Any] = []

    def find(self, code: str) -> Found:
        """
        What a code stands for.

        Raises:
            RefusedError: `code_unknown`, whatever is wrong with it.
        """
        wanted = canonical(code)
        posts = list(self._posts())
        if wanted is not None:
            for fresh in (False, True):
                if fresh and not self._refresh(posts):
                    break
                notice = self._codes.find(wanted)
                for post in posts if notice else ():
                    if notice and (reply := post.replies.get(notice)):
                        return Found(post, notice, reply)
        raise RefusedError("code_unknown")

    def _refresh(self, posts: list[Post]) -> bool:
        """Look at what can be answered by now; False where that is what was known."""
        now = [post.replies for post in posts]
        if len(now) == len(self._seen) and all(a is b for a, b in zip(now, self._seen, strict=True)):
            return False
        self._seen = now
        self._codes.keep(notice for replies in now for notice in replies)
        return True

    async def answer(self, code: str, verb: Verb, reason: str, via: str) -> Answer:
        """
        Do what a member says.

        Args:
            reason: of a no, a code.
            via: `link`, or the webhook's name.
        Raises:
            RefusedError: `code_unknown`: whoever tries codes is counted by who calls.
        """
        found = self.find(code)
        try:
            if answerable(found.post, found.reply, verb, self._clock()):
                await self._ask(found, verb, reason, via)
            answer = Answer("", DONE[verb])
        except RefusedError as why:
            answer = Answer.of(problem(why))
        except _DeskRefusedError as why:
            answer = Answer.of(why.problem)
        ANSWERED.labels(via, verb, answer.code).inc()
        logger().info("reply_answered", district=found.post.district, notice=found.notice, verb=verb, code=answer.code)
        return answer

    async def _ask(self, found: Found, verb: Verb, reason: str, via: str) -> None:
        """Raises _DeskRefusedError, RefusedError `no_leader`."""
        district, reply = found.post.district, found.reply
        data = {"task": reply.task, "member": reply.member}
        if verb == "decline":
            data["reason"] = reason
        elif verb == "done":
            data["outcome"] = OUTCOME
        token = self._signer.token(reply.member, district, self._clock())
        command = orjson.dumps({"id": reply_id(found.notice, verb, via), "token": token, "data": data})
        ends = time.monotonic() + WITHIN_S
        while (left_s := ends - time.monotonic()) > 0:
            try:
                answer = orjson.loads(
                    await self._bus.request(f"cmd.{district}.desk.{verb}", command, timeout_s=min(TRY_S, left_s))
                )
            except (UnavailableError, ValueError):
                await asyncio.sleep(min(PAUSE_S, left_s))
                continue
            if "problem" not in answer:
                return
            if int(answer["problem"].get("status", 500)) < 500:
                raise _DeskRefusedError(answer["problem"])
            await asyncio.sleep(min(PAUSE_S, left_s))
        raise RefusedError("no_leader", district=district)


class _DeskRefusedError(Exception):
    def __init__(self, document: Mapping[str, Any]) -> None:
        super().__init__(document.get("code"))
        self.problem = document


def words(document: Mapping[str, Any]) -> Name:
    """What a member hears of a problem."""
    if known := REFUSED.get(str(document.get("code"))):
        return known
    zh = (str(document.get(part, "")) for part in ("title", "detail"))
    en = (str(document.get(part, "")) for part in ("title_en", "detail_en"))
    return Name(zh="。".join(zh)[:200], en=". ".join(en)[:200])
