"""The environment of the ledger, read once."""

from __future__ import annotations

import secrets
from pathlib import Path

from pydantic import Field, SecretStr

from shared.settings import ServiceSettings


class LedgerSettings(ServiceSettings):
    """`MONGODB_URI`, `PAIDAN_ORIGIN`, `PAIDAN_DATABASE`, beside what every service reads."""

    mongodb_uri: SecretStr = Field(
        SecretStr("mongodb://127.0.0.1:27017/?replicaSet=rs0"), validation_alias="MONGODB_URI"
    )
    database: str = "paidan"
    origin: str = "paidan.local/main/1"
    """The log's name: it is in every leaf. A new city or year is a new origin, in a database of its own."""

    policy_file: Path | None = None
    """Whose cosignatures count (C2SP tlog-policy); None: the log's own signature will do."""

    def cursor_key(self) -> bytes:
        """What cursors are authenticated with; without secrets one that lives as long as this process."""
        if self.secrets_dir is None:
            return secrets.token_bytes(32)
        return self.secret("ledger_cursor_secret").get_secret_value().encode()

    def policy(self) -> str:
        """What is in that file; "" without one. Raises OSError."""
        return self.policy_file.read_text() if self.policy_file else ""

    @property
    def signing_key(self) -> Path | None:
        """The file of the key that checkpoints are signed with; without secrets none: a key that nobody keeps proves nothing."""
        return self.secret_file("ledger_signing_key") if self.secrets_dir else None
