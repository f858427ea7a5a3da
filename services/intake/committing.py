"""Group commit: what arrives while one batch is on its way to the disk goes together in the next."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from services.intake.metrics import GROUP
from shared.bus import BATCH_MAX, Message
from shared.errors import ConflictError, PaidanError


class Committing(Protocol):
    """What a group commit needs of the bus."""

    async def commit(self, messages: Sequence[Message], *, timeout_s: float = 2) -> int:
        """Store all or none; the sequence of the last."""


@dataclass(slots=True)
class _Entry:
    messages: tuple[Message, ...]
    stored: asyncio.Future[int]


class GroupCommit:
    """
    Stores messages of one stream, one batch at a time.

    A batch that meets a conflict is halved until the one with the conflict is alone: the others are stored all the same. An
    unknown outcome is everybody's: each tries again with the same bytes and the same fence, which tells it what happened.
    """

    def __init__(self, bus: Committing, stream: str, *, at_most: int = BATCH_MAX) -> None:
        self._bus = bus
        self._at_most = at_most
        self._size = GROUP.labels(stream)
        self._waiting: list[_Entry] = []
        self._task: asyncio.Task[None] | None = None

    async def store(self, *messages: Message) -> int:
        """
        Store these together, in company. Returns the sequence of the last of them.

        Raises:
            ConflictError, UnavailableError: as `Bus.commit`.
        """
        entry = _Entry(messages, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._commit_all())
        return await entry.stored

    async def _commit_all(self) -> None:
        while self._waiting:
            group: list[_Entry] = []
            size = 0
            for entry in self._waiting:
                size += len(entry.messages)
                if size > self._at_most and group:
                    break
                group.append(entry)
            del self._waiting[: len(group)]
            self._size.observe(len(group))
            await self._commit(group)

    async def _commit(self, group: list[_Entry]) -> None:
        try:
            sequence = await self._bus.commit([message for entry in group for message in entry.messages])
        except ConflictError as why:
            if len(group) == 1:
                _fail(group, why)
                return
            await self._commit(group[: len(group) // 2])
            await self._commit(group[len(group) // 2 :])
        except PaidanError as why:
            _fail(group, why)
        except BaseException as why:
            _fail(group, why)
            raise
        else:
            for entry in reversed(group):  # the messages of a batch lie next to each other
                if not entry.stored.done():
                    entry.stored.set_result(sequence)
                sequence -= len(entry.messages)


def _fail(group: list[_Entry], why: BaseException) -> None:
    for entry in group:
        if not entry.stored.done():
            entry.stored.set_exception(why)
