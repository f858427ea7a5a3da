"""HTTP in: health, metrics, and how many messages wait."""

from __future__ import annotations

from typing import Annotated, Protocol

from fastapi import FastAPI, Query
from pydantic import BaseModel

from services.notify.model import Post
from shared import web
from shared.access import allowed
from shared.auth import Caller, Doorkeeper
from shared.errors import RefusedError

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


def create_app(served: Served, *, ready: web.Readiness, doorkeeper: Doorkeeper) -> FastAPI:
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

    return app


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
