"""A small HTTP/1.1 client: thousands of calls from one process beside the services, on the same two cores."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import NamedTuple
from urllib.parse import urlencode, urlsplit


class Response(NamedTuple):
    """Status, headers in small letters, body."""

    status: int
    headers: dict[str, str]
    body: bytes


class BrokenError(Exception):
    """No answer: refused, reset, cut short, or too late. It may have been acted on."""


class Http:
    """Connections that are kept open, as many as there are calls at a time."""

    def __init__(self) -> None:
        self._idle: dict[str, list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]] = defaultdict(list)

    async def request(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        body: bytes | None,
        params: dict[str, object],
        timeout_s: float,
    ) -> Response:
        """One call. Raises BrokenError."""
        parts = urlsplit(url)
        target = parts.path + (f"?{urlencode(params)}" if params else "")
        lines = [f"{method} {target} HTTP/1.1", f"Host: {parts.netloc}", f"Content-Length: {len(body or b'')}"]
        head = "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "\r\n"])
        message = head.encode() + (body or b"")
        try:
            async with asyncio.timeout(timeout_s):
                try:
                    return await self._call(parts.netloc, message)
                except asyncio.IncompleteReadError as why:
                    if method != "GET" or why.partial:
                        raise
                    return await self._call(parts.netloc, message)  # a kept connection, closed just then for being idle
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError) as why:
            raise BrokenError(f"{method} {url}: {type(why).__name__}") from None

    async def _call(self, place: str, message: bytes) -> Response:
        while self._idle[place]:
            reader, writer = self._idle[place].pop()
            if not reader.at_eof() and not writer.is_closing():
                break
            writer.close()
        else:
            host, _, port = place.partition(":")
            reader, writer = await asyncio.open_connection(host, int(port), limit=2**24)
        try:
            writer.write(message)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
            if headers.get("transfer-encoding") == "chunked":
                body = await _chunks(reader)
            else:
                body = await reader.readexactly(int(headers.get("content-length", "0")))
        except BaseException:
            writer.close()
            raise
        if headers.get("connection") == "close":
            writer.close()
        else:
            self._idle[place].append((reader, writer))
        return Response(int(head[0].split(" ")[1]), headers, body)

    def close(self) -> None:
        """Let go of every connection."""
        for kept in self._idle.values():
            for _, writer in kept:
                writer.close()


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)
    return body
