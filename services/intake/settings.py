"""What intake reads from its environment, besides what every service does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr

from shared.settings import ServiceSettings

SECRET_CHARS_MIN = 32


class Settings(ServiceSettings):
    """Intake's environment: `PAIDAN_RATE_PER_S` and so on."""

    rate_per_s: Annotated[float, Field(gt=0)] = 10
    """Submissions that one district may take in for ever: on two cores others hardly feel it (`make bench`, flood)."""
    rate_burst: Annotated[int, Field(ge=1)] = 60
    """And so many at once."""
    misses_per_s: Annotated[float, Field(gt=0)] = 10
    """Wrong tracking codes that one address may try for ever: generous, many residents may share a proxy's."""
    misses_burst: Annotated[int, Field(ge=1)] = 300
    """And so many at once."""
    commit_within_s: Annotated[float, Field(gt=0)] = 10
    """How long a submission is tried again while the bus is down."""

    def keks(self) -> Callable[[], Sequence[str]]:
        """
        What wraps the keys of districts: `district_kek`, and while they are rotated `district_kek_old`, read again when changed.

        Raises:
            OSError, ValueError: as `strong`.
        """
        self.strong("district_kek")
        assert self.secrets_dir is not None
        current, old = self.secrets_dir / "district_kek", self.secrets_dir / "district_kek_old"
        known: tuple[tuple[int, int], list[str]] = ((-1, -1), [])

        def read() -> Sequence[str]:
            nonlocal known
            written = _written(current), _written(old)
            if written != known[0]:
                there = [file.name for file, at in zip((current, old), written, strict=True) if at]
                known = written, [self.strong(name).get_secret_value() for name in there]
            return known[1]

        return read

    def strong(self, name: str) -> SecretStr:
        """A secret of enough length. Raises OSError where it is missing, ValueError where it is short."""
        secret = self.secret(name)
        if len(secret.get_secret_value()) < SECRET_CHARS_MIN:
            raise ValueError(f"the secret {name} has fewer than {SECRET_CHARS_MIN} characters")
        return secret


def _written(file: Path) -> int:
    """When a file was last written, ns; 0 where there is none."""
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
