"""What intake reads from its environment, besides what every service does."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SecretStr

from shared.settings import ServiceSettings

SECRET_CHARS_MIN = 32


class Settings(ServiceSettings):
    """Intake's environment: `PAIDAN_RATE_PER_S` and so on."""

    rate_per_s: Annotated[float, Field(gt=0)] = 10
    """Submissions that one district may take in for ever: on two cores others do not feel it (`make bench`, flood)."""
    rate_burst: Annotated[int, Field(ge=1)] = 60
    """And so many at once."""
    misses_per_s: Annotated[float, Field(gt=0)] = 10
    """Wrong tracking codes that one address may try for ever: generous, many residents may share a proxy's."""
    misses_burst: Annotated[int, Field(ge=1)] = 300
    """And so many at once."""
    commit_within_s: Annotated[float, Field(gt=0)] = 10
    """How long a submission is tried again while the bus is down."""

    def strong(self, name: str) -> SecretStr:
        """A secret of enough length. Raises OSError where it is missing, ValueError where it is short."""
        secret = self.secret(name)
        if len(secret.get_secret_value()) < SECRET_CHARS_MIN:
            raise ValueError(f"the secret {name} has fewer than {SECRET_CHARS_MIN} characters")
        return secret
