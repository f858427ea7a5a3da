"""
Where the demo's messages arrive: a local HTTP receiver and a local SMTP server, which count what they are given.

They stand in for a WeCom group bot, DingTalk, a webhook and a mail server. Nothing leaves this machine.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from deploy.errors import Said, SetupError
from deploy.servers import HOST

HTTP_CHANNELS = ("wecom", "dingtalk", "webhook")
MAIL = "mail"
BODY_BYTES_MAX = 256 * 1024
MAIL_FROM = "paidan@demo.test"
MAIL_TO = "{id}@demo.test"
CAP = (100_000, 60)
"""Messages per seconds: real bots allow twenty a minute, these receivers as many as come."""


class Receivers:
    """
    Both receivers, listening on free ports while the context lasts.

    Attributes:
        counts: messages by channel.
        last: the newest message of each channel.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.last: dict[str, str] = {}
        self._http: asyncio.Server | None = None
        self._smtp: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        try:
            from aiosmtpd.smtp import SMTP
        except ImportError as why:
            raise SetupError(
                Said("缺少 aiosmtpd", "aiosmtpd is missing"),
                Said(
                    "请运行 make demo，或 pip install 'paidan[demo]'", "run `make demo`, or pip install 'paidan[demo]'"
                ),
            ) from why
        loop = asyncio.get_running_loop()
        self._http = await asyncio.start_server(self._on_connection, HOST, 0)
        self._smtp = await loop.create_server(
            lambda: SMTP(self, hostname="demo.test", ident="Paidan demo", enable_SMTPUTF8=True), HOST, 0
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in (self._http, self._smtp):
            if server:
                server.close()

    def write_channels(self, file: Path) -> None:
        """The file that tells notify where each channel leads (Apprise URLs)."""
        http, smtp = _port(self._http), _port(self._smtp)
        urls = {channel: f"json://{HOST}:{http}/{channel}" for channel in HTTP_CHANNELS}
        urls[MAIL] = f"mailto://{HOST}:{smtp}/?from={MAIL_FROM}&to={MAIL_TO}&mode=insecure"
        file.touch(mode=0o600)
        file.write_text(json.dumps(urls, indent=2))

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """HTTP/1.1, as much of it as a webhook needs: POSTs one after another, each answered with 200."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                request, *lines = head.decode("latin-1").split("\r\n")
                headers = {name.strip().lower(): value.strip() for name, _, value in (h.partition(":") for h in lines)}
                length = int(headers.get("content-length", "0"))
                if not 0 <= length <= BODY_BYTES_MAX:
                    return
                body = await reader.readexactly(length)
                channel = request.split(" ")[1].strip("/")
                known = channel in HTTP_CHANNELS
                if known:
                    self._received(channel, body.decode(errors="replace"))
                status = "200 OK" if known else "404 Not Found"
                writer.write(f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok".encode())
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, ValueError, IndexError):
            pass  # whoever called has gone, or does not speak HTTP
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802  the name is aiosmtpd's
        """A mail, once per recipient."""
        for _ in envelope.rcpt_tos:
            self._received(MAIL, bytes(envelope.content or b"").decode(errors="replace"))
        return "250 OK"

    def _received(self, channel: str, message: str) -> None:
        self.counts[channel] += 1
        self.last[channel] = message


def _port(server: asyncio.Server | None) -> int:
    assert server, "not listening"
    port: int = server.sockets[0].getsockname()[1]
    return port
