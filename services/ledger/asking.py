"""Who asks the ledger, and for whom: what its routes declare alike."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header, Query
from fastapi.responses import StreamingResponse

from shared.access import allowed
from shared.auth import EVERYWHERE, Caller
from shared.errors import RefusedError

Reader = Annotated[Caller, allowed("dispatcher", "supervisor", "auditor", of="cases")]
Office = Annotated[Caller, allowed("clerk", "dispatcher", "supervisor", "auditor", of="cases")]
Staff = Annotated[Caller, allowed("clerk", "member", "dispatcher", "supervisor", "auditor", of="register")]
Anyone = Annotated[Caller, allowed("clerk", "member", "dispatcher", "supervisor", "auditor", of="nothing")]
Registrar = Annotated[Caller, allowed("admin", of="everywhere")]
Admin = Annotated[Caller, allowed("admin", of="district")]
Auditor = Annotated[Caller, allowed("auditor", of="district")]
Everything = Annotated[Caller, allowed("auditor", of="everywhere")]

District = Annotated[str | None, Query(pattern=r"^[0-9]{6}$", description="六位区划代码 / six-digit code")]
Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200)]
AreaGiven = Annotated[str | None, Query(max_length=40)]


class Ndjson(StreamingResponse):
    """A JSON document per line."""

    media_type = "application/x-ndjson"


def district_of(caller: Caller, asked: str | None) -> str | None:
    """
    Whose cases a caller gets: those of the district asked for, or all of their own; None for everybody's.

    Raises:
        RefusedError: `foreign_district`.
    """
    if asked is None:
        return None if caller.district == EVERYWHERE else caller.district
    if not caller.of(asked):
        raise RefusedError("foreign_district", district=asked, yours=caller.district)
    return asked
