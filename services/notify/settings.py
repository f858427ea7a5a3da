"""What notify reads from its environment, once, at its door."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from services.notify.channels import CAPS, Cap
from services.notify.codes import Codes
from services.notify.replying import Signer
from shared.settings import ServiceSettings


class Settings(ServiceSettings):
    """
    Variables are prefixed `PAIDAN_`.

    Attributes:
        districts: six-digit codes, separated by commas; `*` follows the register.
        public_url: of dispatch, or of what stands before it: links in messages lead to `/v1/tasks/<id>` there.
        reply_url: of this service, or of what stands before it: members' links for short replies lead to `/r/<code>` there. With
            it and `secrets_dir` messages hold one-time codes.
        inbound_file: JSON, name → webhook by which replies come in (`services/notify/inbound.py`); a secret.
        resident_url: where residents follow their requests: the link in messages to them.
        channels_file: JSON, channel → Apprise URL with `{id}` for the recipient and `{to}` for their number or address; a secret.
            The channels `phone` and `email` reach residents.
        caps: JSON, channel → [messages, seconds], over the built-in ones: `{"mail": [600, 60]}`.
        templates_dir: an office's own texts.
        senders: how many messages go out at the same time.
    """

    districts: str = "*"
    public_url: str = "http://127.0.0.1:8080"
    reply_url: str = ""
    inbound_file: Path | None = None
    resident_url: str = ""
    channels_file: Path | None = None
    caps: dict[str, tuple[int, float]] = Field(default_factory=dict)
    templates_dir: Path | None = None
    senders: int = Field(8, ge=1, le=64)

    def fixed_districts(self) -> tuple[str, ...] | None:
        """The districts to serve, or None where the register says."""
        if self.districts.strip() == "*":
            return None
        return tuple(code.strip() for code in self.districts.split(",") if code.strip())

    def replies(self) -> tuple[Codes, Signer] | None:
        """
        What short replies need; None where nobody has said where their links lead.

        Raises:
            OSError, ValueError: a secret is missing or is none.
        """
        if not self.reply_url:
            return None
        signer = Signer(self.secret("replies.pem").get_secret_value().encode())
        return Codes(self.secret("reply_secret").get_secret_value()), signer

    def channel_urls(self) -> Mapping[str, str]:
        """Apprise URLs by channel. Raises OSError or ValueError, which does not show what the file holds."""
        if self.channels_file is None:
            return {}
        try:
            urls = json.loads(self.channels_file.read_text())
        except json.JSONDecodeError as why:
            raise ValueError(f"{self.channels_file} is not JSON (line {why.lineno})") from None
        if not isinstance(urls, dict) or not all(isinstance(url, str) for url in urls.values()):
            raise ValueError(f"{self.channels_file} should map channels to URLs")
        return urls

    def channel_caps(self) -> Mapping[str, Cap]:
        """How much each channel may be given."""
        return {**CAPS, **{channel: Cap(*cap) for channel, cap in self.caps.items()}}
