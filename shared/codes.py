"""Codes that people choose from: what each is called, and a refusal that lists them for what is none of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema
from pydantic_core.core_schema import no_info_after_validator_function as after

from shared.errors import RefusedError
from shared.facts import Name


class OneOf:
    """
    The annotation of a field that holds one of these codes, here and in the OpenAPI document.

        reason: Annotated[str, OneOf(REASONS, "reason")] = "other"

    Args:
        field: how the refusal names it.
    """

    def __init__(self, codes: Mapping[str, Name], field: str) -> None:
        self._codes = codes
        self._field = field

    def check(self, code: str) -> str:
        """The code. Raises RefusedError `not_listed`, with those there are."""
        if code not in self._codes:
            zh = "、".join(f"{code}({name.zh})" for code, name in self._codes.items())
            en = ", ".join(f"{code} ({name.en})" for code, name in self._codes.items())
            raise RefusedError("not_listed", field=self._field, accepted=zh, accepted_en=en)
        return code

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Checked once it has the shape of a code."""
        return after(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """As programs and people read it."""
        words = " · ".join(f"`{code}` {name.zh} / {name.en}" for code, name in self._codes.items())
        return {**handler(schema), "enum": list(self._codes), "description": words}
