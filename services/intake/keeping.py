"""Finds a resident's key, or makes it: one per contact and district, whoever asks first, wherever."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

from services.intake.committing import GroupCommit
from services.intake.sealing import (
    KEY_BYTES,
    KID_BYTES,
    NONCE_BYTES,
    Keys,
    ResidentKey,
    UnreadableError,
    Whose,
    key_subject,
    lookup_subject,
)
from shared.bus import Message, Stored
from shared.errors import ConflictError, UnavailableError
from shared.telemetry import logger

STREAM = "KEYS"
REMEMBERED_MAX = 20_000
TRIES_MAX = 5


class Reading(Protocol):
    """What a keeper needs of the bus."""

    async def last(self, subject: str, *, stream: str) -> Stored | None:
        """The last message on a subject."""


class KeyKeeper:
    """
    Keys of residents. The names of the most recently used ones are in memory, never the keys: one that was destroyed is gone.

    In KEYS a contact's lookup leads to a `kid` and the `kid` to the wrapped key, each a message of its own that can be deleted by
    sequence; both are stored together, fenced on the lookup, so that racing instances end with one key. A request without a
    contact has a key of its own, whose `kid` is the lookup itself.

    Args:
        random: gives so many unpredictable bytes.
    """

    def __init__(
        self,
        bus: Reading,
        keys: Keys,
        commits: GroupCommit,
        *,
        random: Callable[[int], bytes],
        remembered_max: int = REMEMBERED_MAX,
    ) -> None:
        self._bus = bus
        self._keys = keys
        self._commits = commits
        self._random = random
        self._remembered_max = remembered_max
        self._remembered: OrderedDict[str, str] = OrderedDict()
        self._asked: dict[str, asyncio.Task[ResidentKey]] = {}

    async def key(self, district: str, contact: str | None, request_id: str) -> ResidentKey:
        """
        The key under which this resident's parts are sealed.

        Args:
            contact: normalised; None where the request has none.
        Raises:
            UnavailableError: try again; what was stored is found then.
        """
        whose = self._keys.whose(district, contact, request_id)
        if not whose.lasting:
            return await self._of_request(district, whose)
        if (kid := self._remembered.pop(whose.lookup, None)) and (key := await self._stored(district, kid)):
            self._remembered[whose.lookup] = kid
            return key
        task = self._asked.get(whose.lookup)
        if task is None:
            task = asyncio.create_task(self._of_contact(district, whose))
            self._asked[whose.lookup] = task
            task.add_done_callback(lambda _: self._asked.pop(whose.lookup, None))
        key = await asyncio.shield(task)
        self._remembered[whose.lookup] = key.kid
        if len(self._remembered) > self._remembered_max:
            self._remembered.popitem(last=False)
        return key

    async def holds(self, key: ResidentKey) -> bool:
        """
        Whether this key is still there, and no other has come in its place. Raises UnavailableError.

        One that was made for who asks is not looked for: keys are dropped that have sealed something, or are an hour old.
        """
        if key.new:
            return True
        stored = await self._stored(key.district, key.kid)
        return stored is not None and stored.same_as(key)

    def whose(self, district: str, contact: str | None, request_id: str) -> Whose:
        """As `Keys.whose`."""
        return self._keys.whose(district, contact, request_id)

    async def open(self, district: str, kid: str, request_id: str) -> dict[str, Any] | None:
        """
        What was sealed for a request; None where the key or the ciphertext no longer exists.

        Raises:
            UnreadableError: the ciphertext was not made here, or was changed since.
            UnavailableError: the key cannot be read here now.
        """
        key = await self._stored(district, kid)
        sealed = await self._bus.last(key.sealed_subject(request_id), stream="SEALED") if key else None
        return key.open(request_id, sealed.data) if key and sealed else None

    async def _of_contact(self, district: str, whose: Whose) -> ResidentKey:
        # Make it, and look only where that meets a conflict: one round trip for who comes for the first time.
        lookup, expect = lookup_subject(district, whose.lookup), 0
        for _ in range(TRIES_MAX):
            kid = self._random(KID_BYTES).hex()
            resident, wrapped = self._new(district, kid)
            try:
                await self._commits.store(
                    Message(lookup, kid.encode(), expect), Message(key_subject(district, kid), wrapped, 0)
                )
            except ConflictError:
                held = await self._bus.last(lookup, stream=STREAM)
                if held and (stored := await self._stored(district, held.data.decode())):
                    return stored
                expect = held.sequence if held else 0  # its key was destroyed: who comes back starts anew
            else:
                return resident
        raise UnavailableError("the key of a contact keeps changing")

    async def _of_request(self, district: str, whose: Whose) -> ResidentKey:
        kid = whose.lookup[: 2 * KID_BYTES]
        for _ in range(TRIES_MAX):
            resident, wrapped = self._new(district, kid)
            try:
                await self._commits.store(Message(key_subject(district, kid), wrapped, 0))
            except ConflictError:
                if stored := await self._stored(district, kid):
                    return stored
            else:
                return resident
        raise UnavailableError("the key of a request keeps changing")

    def _new(self, district: str, kid: str) -> tuple[ResidentKey, bytes]:
        key = self._random(KEY_BYTES)
        return ResidentKey(district, kid, key, new=True), self._keys.wrap(district, kid, key, self._random(NONCE_BYTES))

    async def _stored(self, district: str, kid: str) -> ResidentKey | None:
        held = await self._bus.last(key_subject(district, kid), stream=STREAM)
        try:
            return self._keys.unwrap(district, kid, held.data) if held else None
        except UnreadableError as why:  # wrapped by what we have not been given yet, or no longer have
            logger().error("key_unreadable", kid=kid, why=str(why))
            raise UnavailableError(str(why)) from None
