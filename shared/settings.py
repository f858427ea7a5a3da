"""What every service reads from its environment, once, at its door."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.auth import OidcIssuer


class ServiceSettings(BaseSettings):
    """
    The environment common to the four services; each adds its own fields in its `settings.py`.

    Variables are prefixed `PAIDAN_`, but for `NATS_URL`, `NATS_CA_FILE` and `MONGODB_URI`. Secrets come from files.
    """

    model_config = SettingsConfigDict(env_prefix="PAIDAN_", frozen=True, extra="ignore")

    nats_url: str = Field("nats://127.0.0.1:4222", validation_alias="NATS_URL")
    nats_ca_file: Path | None = Field(None, validation_alias="NATS_CA_FILE")
    """Who has signed the bus's certificate; None for a bus in the clear, on loopback."""
    nats_seed_file: Path | None = None
    """What this service connects with, credentials (`.creds`) or an NKey seed; None for a bus that asks for none."""
    instance: str = "1"
    """Tells instances of one service apart: in leases, logs and metrics."""
    http_host: str = "127.0.0.1"
    http_port: int = 8080
    tls_file: Path | None = None
    """Certificate and key for HTTPS, in one PEM file; None for HTTP."""
    http_connections_max: int = Field(2000, ge=1)
    """At the same time, live streams included; beyond it health alone is answered."""
    http_connections_of_one: int = Field(1000, ge=1)
    """Of one address, where no proxy stands before us."""
    http_rate_per_s: float = Field(1000, ge=0)
    """Requests of one address; 0: no limit. An office or a proxy of many residents is one address."""
    http_burst: int = Field(3000, ge=1)
    caller_rate_per_s: float = Field(500, ge=0)
    """Requests of one holder of tokens, by whatever addresses; 0: no limit."""
    caller_burst: int = Field(2000, ge=1)
    login_misses_per_s: float = Field(5, ge=0)
    """Refused tokens of one address; whoever holds a token that was checked before does not wait."""
    login_misses_burst: int = Field(100, ge=1)
    trusted_proxies: str = ""
    """Addresses and networks, comma-separated, whose `X-Forwarded-For` and `-Proto` are believed; empty: nobody's."""
    jwks_file: Path | None = None
    """Public keys of the stack's own issuers; without it and `oidc` every route that needs a token answers 401."""
    oidc: tuple[OidcIssuer, ...] = ()
    """JSON: other issuers of tokens, `[{"issuer": "https://id.example", "districts": ["420106"]}]`."""
    revoked_file: Path | None = None
    """JSON: `<district> <sub>` → seconds since 1970: their tokens issued up to then no longer count. Read again when it changes."""
    secrets_dir: Path | None = None
    log_format: Literal["json", "console"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    def seed(self) -> str | None:
        """What is in that file, or None. Raises OSError where it cannot be read."""
        return self.nats_seed_file.read_text().strip() if self.nats_seed_file else None

    def secret(self, name: str) -> SecretStr:
        """The secret in `<secrets_dir>/<name>`. Raises OSError where it is missing."""
        return SecretStr(self.secret_file(name).read_text().strip())

    def secret_file(self, name: str) -> Path:
        """`<secrets_dir>/<name>`, which need not be there. Raises OSError where no folder is named."""
        if self.secrets_dir is None:
            raise FileNotFoundError(f"PAIDAN_SECRETS_DIR is not set, and it should hold {name}")
        return self.secrets_dir / name
