"""How residents are reached: through what they sealed, which intake opens for one message and which is forgotten with it."""

from __future__ import annotations

from typing import Protocol

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.notify.contacts import Phone
from shared.errors import UnavailableError
from shared.facts import Language
from shared.telemetry import logger

KINDS = ("phone", "email")
"""What residents leave, in the order in which it is tried; a channel of this name sends to it."""
WITHIN_S = 2.0


class Left(BaseModel):
    """What a resident left, as intake knows it; nothing prints it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    phone: Phone | None = Field(None, repr=False)
    email: str | None = Field(None, repr=False)


class Reached(BaseModel):
    """How one resident is reached, and in which language. For one message: whoever asked lets go of it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    contact: Left = Field(repr=False)
    language: Language = "zh-CN"


class Bus(Protocol):
    """What asking needs of the bus."""

    async def request(self, subject: str, data: bytes, *, timeout_s: float = 2) -> bytes:
        """One answer to one question. Raises UnavailableError."""


class Residents:
    """Asks intake. Nothing is remembered."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def reach(self, district: str, request: str, notice: str) -> Reached | None:
        """
        How to reach the resident of a request, for this notice; None where they cannot be: no contact, frozen, erased.

        Raises:
            UnavailableError: intake cannot say now; `code` 404: the ledger has not heard of the request, or not yet.
        """
        question = orjson.dumps({"request": request, "notice": notice})
        data = await self._bus.request(f"qry.{district}.intake.reach", question, timeout_s=WITHIN_S)
        try:
            answer = orjson.loads(data)
            if "problem" not in answer:
                return Reached.model_validate(answer)
            code, status = answer["problem"]["code"], answer["problem"]["status"]
        except (ValidationError, ValueError, TypeError, KeyError):  # their text would hold what was sent
            raise UnavailableError("intake answers in a way that is not understood") from None
        if status >= 500 or (status == 404 and code == "not_found"):
            raise UnavailableError(f"intake cannot say: {code}", code=status)
        logger().info("resident_unreachable", district=district, notice=notice, code=code)
        return None
