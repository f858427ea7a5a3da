"""The demo as a client: everything it does to Paidan goes over HTTP, with the token of whoever does it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx2
import orjson

from deploy.certificates import trusting
from deploy.errors import Said, SetupError
from deploy.stack import Stack

CONNECTIONS_MAX = 64
ANSWER_WITHIN_S = 30.0
RETRY_WITHIN_S = 30.0
PASSING = frozenset({429, 502, 503, 504})
"""What is worth another try with the same key."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a service said; a problem's `code` where it refused."""

    status: int
    document: Any

    @property
    def ok(self) -> bool:
        """Whether it did what was asked."""
        return self.status < 400

    @property
    def problem(self) -> str | None:
        """The stable code of a refusal."""
        return None if self.ok else str(self.document.get("code", self.status))

    def __str__(self) -> str:
        return f"{self.status} {self.problem or 'ok'}"


class Calls:
    """HTTP to the four services of a stack. What does not answer for 30 s ends the demo: SetupError."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._tokens: dict[tuple[str, str, tuple[str, ...]], str] = {}
        limits = httpx2.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_MAX)
        self._client = httpx2.AsyncClient(
            limits=limits, timeout=ANSWER_WITHIN_S, trust_env=False, verify=trusting(stack.ca_file)
        )
        self.retries = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    def token(self, *roles: str, district: str = "*", sub: str = "operator") -> str:
        """A bearer token, signed once per person."""
        who = (sub, district, roles)
        if who not in self._tokens:
            self._tokens[who] = self._stack.token(*roles, district=district, sub=sub)
        return self._tokens[who]

    async def get(self, service: str, path: str, *, token: str | None = None, **params: str | int) -> Answer:
        """What is there."""
        return await self._call("GET", service, path, {}, None, token, params)

    async def post(
        self,
        service: str,
        path: str,
        document: Any,
        *,
        key: str | None = None,
        token: str | None = None,
        media_type: str = "application/json",
        **params: str | int,
    ) -> Answer:
        """Ask for something to be done; what passes (a full bucket, a desk between two leaders) is asked again."""
        content = document if isinstance(document, bytes) else orjson.dumps(document)
        headers = {"Content-Type": media_type}
        if key:
            headers["Idempotency-Key"] = key
        return await self._call("POST", service, path, headers, content, token, params)

    async def _call(
        self,
        method: str,
        service: str,
        path: str,
        headers: dict[str, str],
        content: bytes | None,
        token: str | None,
        params: dict[str, str | int],
    ) -> Answer:
        if token:
            headers["Authorization"] = f"Bearer {token}"
        url = f"{self._stack.urls[service]}{path}"
        ends = time.monotonic() + RETRY_WITHIN_S
        while True:
            try:
                response = await self._client.request(method, url, content=content, params=params, headers=headers)
            except httpx2.TransportError as why:
                if time.monotonic() > ends:
                    raise SetupError(
                        Said(f"{service} 没有应答", f"{service} does not answer ({type(why).__name__})"),
                        Said("请查看 logs 目录中的日志", "look at its log in the folder `logs`"),
                    ) from why
                wait_s = 0.2
            else:
                if response.status_code not in PASSING or time.monotonic() > ends:
                    return Answer(response.status_code, _document(response))
                wait_s = min(float(response.headers.get("Retry-After", "1")), 2.0)
            self.retries += 1
            await asyncio.sleep(wait_s)

    async def lines(self, path: str, *, token: str, **params: str | int) -> AsyncIterator[bytes]:
        """The lines of an NDJSON answer of the ledger. Raises RuntimeError where it refuses."""
        url = f"{self._stack.urls['ledger']}{path}"
        headers = {"Authorization": f"Bearer {token}"}
        async with self._client.stream("GET", url, params=params, headers=headers) as response:
            if response.is_error:
                await response.aread()
                raise RuntimeError(f"the ledger refused {path}: {response.text[:300]}")
            rest = b""
            async for chunk in response.aiter_bytes():
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    if line:
                        yield line
            if rest:
                yield rest

    async def listen(
        self, token: str, heard: Callable[[Event], None], connected: asyncio.Event, **params: str | int
    ) -> None:
        """
        Follow the live stream of dispatch until cancelled; a broken connection resumes where it ended.

        Args:
            heard: called with each event, in order.
            connected: set when the stream is open: what happens from then on is heard.
        """
        url = f"{self._stack.urls['dispatch']}/v1/stream"
        headers = {"Authorization": f"Bearer {token}", "Accept": "text/event-stream"}
        while True:
            try:
                async with self._client.stream("GET", url, params=params, headers=headers, timeout=None) as response:
                    response.raise_for_status()
                    rest = b""
                    async for chunk in response.aiter_bytes():
                        seen = time.perf_counter()
                        *whole, rest = (rest + chunk).split(b"\n\n")
                        for block in whole:
                            if event := Event.of(block, seen):
                                headers["Last-Event-ID"] = str(event.sequence)
                                heard(event)
                            else:
                                connected.set()
            except httpx2.TransportError:
                await asyncio.sleep(0.2)


@dataclass(frozen=True, slots=True)
class Event:
    """
    One fact as the live stream sends it.

    Attributes:
        seen: when it arrived here, on the steady clock of `time.perf_counter`.
    """

    sequence: int
    name: str
    fact: dict[str, Any]
    request: str
    district: str
    seen: float

    @classmethod
    def of(cls, block: bytes, seen: float) -> Event | None:
        """From a block of a server-sent stream; None for a comment."""
        fields = dict(line.partition(b": ")[::2] for line in block.split(b"\n"))
        if b"data" not in fields:
            return None
        envelope = orjson.loads(fields[b"data"])
        return cls(
            int(fields[b"id"]),
            fields[b"event"].decode(),
            envelope["data"],
            envelope.get("correlationid", ""),
            envelope["source"].split("/")[2],
            seen,
        )


def _document(response: httpx2.Response) -> Any:
    try:
        return orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return {"title": response.text[:300]}
