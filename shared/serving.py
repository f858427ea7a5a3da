"""
How an app is served: connections are counted, heads are bounded in size and time, and a stop finishes what is under way.

uvicorn bounds none of these by itself: a head may be endless or never come, and who comes too many is answered with no problem.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import signal
from asyncio import TimerHandle
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus

import uvicorn
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from shared.access import Admission
from shared.bus import Bus
from shared.errors import RefusedError
from shared.limiting import Limits, network
from shared.settings import ServiceSettings
from shared.telemetry import logger
from shared.web import HEALTH, answer

HEAD_BYTES_MAX = 32 * 1024
HEAD_WITHIN_S = 10.0
"""From the first connection, or the last answer, to the end of the next request's head."""
LINGER_S = 1.0
RESERVED = 64
"""Connections beyond the limit in which health is still answered, and everything else refused."""
FILES_BESIDES = 256


class Connections:
    """How many connections are open, and whether there may be more."""

    def __init__(self, at_most: int, of_one: int | None) -> None:
        self._at_most = at_most
        self._of_one = of_one
        self._open: Counter[str] = Counter()
        self._all = 0

    @property
    def full(self) -> bool:
        """Whether only health is answered."""
        return self._all > self._at_most

    def enter(self, address: str) -> bool:
        """Count one in; False where there are too many even to be refused by name."""
        if self._all >= self._at_most + RESERVED or (self._of_one and self._open[address] >= self._of_one):
            return False
        self._open[address] += 1
        self._all += 1
        return True

    def leave(self, address: str) -> None:
        """One that had entered is closed."""
        self._all -= 1
        self._open[address] -= 1
        if not self._open[address]:
            del self._open[address]


async def _busy(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(RefusedError("busy", retry_after=2))(scope, receive, send)


def bounded(connections: Connections) -> type[HttpToolsProtocol]:
    """The protocol of a connection that counts among these."""

    class Bounded(HttpToolsProtocol):
        """One connection."""

        _address: str | None = None
        _timer: TimerHandle | None = None
        _refused = False
        _in_body = False
        _ended = False
        """Whether a request ended in the bytes at hand."""
        _head = 0
        """Bytes since the last request ended."""
        _parsed = 0
        """Bytes of the path and the headers that were read of the next."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            address = network(self.client)
            if connections.enter(address):
                self._address = address
                self._wait()
            else:
                self._refuse(RefusedError("busy", retry_after=2))

        def connection_lost(self, exc: Exception | None) -> None:
            self._waited()
            if self._address is not None:
                connections.leave(self._address)
                self._address = None
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._refused:
                return
            self._ended = False
            super().data_received(data)
            if self._refused or self.parser is None or self.transport.is_closing():
                return
            if not self._in_body and not self._ended:
                self._head += len(data)
                if self._head > HEAD_BYTES_MAX:
                    self._refuse(RefusedError("head_too_large", limit=HEAD_BYTES_MAX))
                    return
            # Between requests; or the rest of a body that was answered before it had come.
            if self._timer is None and (self.cycle is None or self.cycle.response_complete):
                self._wait()

        def on_message_begin(self) -> None:
            self._parsed = 0
            super().on_message_begin()

        def on_url(self, url: bytes) -> None:
            self._count(len(url))
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self._count(len(name) + len(value))
            super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._waited()
            self._in_body = True
            path = self.url.partition(b"?")[0].decode("latin-1")
            self.app = _busy if connections.full and path not in HEALTH else self.config.loaded_app
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._in_body, self._ended, self._head = False, True, 0
            super().on_message_complete()

        def send_400_response(self, msg: str) -> None:  # noqa: ARG002  # it says nothing but that
            large = self._parsed > HEAD_BYTES_MAX
            self._refuse(RefusedError("head_too_large", limit=HEAD_BYTES_MAX) if large else RefusedError("no_http"))

        def _count(self, more: int) -> None:
            self._parsed += more
            if self._parsed > HEAD_BYTES_MAX:
                raise ValueError("head too large")  # the parser stops, and `send_400_response` says why

        def _wait(self) -> None:
            self._timer = self.loop.call_later(HEAD_WITHIN_S, self._close)

        def _waited(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _close(self) -> None:
            self._timer = None
            if not self.transport.is_closing():
                self.transport.close()

        def _refuse(self, why: RefusedError) -> None:
            self._waited()
            self._refused = True
            response = answer(why)
            head = [f"HTTP/1.1 {response.status_code} {HTTPStatus(response.status_code).phrase}".encode()]
            head += [name + b": " + value for name, value in response.raw_headers]
            self.transport.write(b"\r\n".join([*head, b"connection: close", b"", bytes(response.body)]))
            # Closed on what is still coming in, it would take the answer away from whoever sends.
            self._timer = self.loop.call_later(LINGER_S if self._address is not None else 0, self._close)

    return Bounded


async def serve(app: FastAPI, settings: ServiceSettings, *, until: asyncio.Event) -> None:
    """
    Serve until the event is set, then finish what is under way (5 s at most); HTTPS and nothing else where there is a `tls_file`.

    Raises:
        OSError: the port is taken, or the certificate cannot be read.
    """
    app.state.admission = Admission(
        addresses=Limits(settings.http_rate_per_s, settings.http_burst),
        callers=Limits(settings.caller_rate_per_s, settings.caller_burst),
        misses=Limits(settings.login_misses_per_s, settings.login_misses_burst),
    )
    proxies = settings.trusted_proxies.strip()
    _files_for(settings.http_connections_max)
    # Behind a proxy every connection is the proxy's.
    connections = Connections(settings.http_connections_max, None if proxies else settings.http_connections_of_one)
    config = uvicorn.Config(
        app,
        host=settings.http_host,
        port=settings.http_port,
        http=bounded(connections),
        ws="none",
        ssl_certfile=settings.tls_file,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=proxies,
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]  # `until` decides
    task = asyncio.create_task(server._serve())
    ended = asyncio.create_task(until.wait())
    await asyncio.wait({task, ended}, return_when=asyncio.FIRST_COMPLETED)
    ended.cancel()
    server.should_exit = True
    with suppress(SystemExit):
        await task
    if not until.is_set():
        raise OSError(f"cannot listen on {settings.http_host}:{settings.http_port}: is the port taken?")


def _files_for(connections: int) -> None:
    """Ask for as many open files as connections need; who may not have them is refused by the system instead."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + RESERVED + FILES_BESIDES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@asynccontextmanager
async def connected(bus: Bus, until: asyncio.Event) -> AsyncIterator[None]:
    """
    Serve on a connection: `until` is set where it is closed for good, and it is drained in the end.

    Raises:
        OSError: it was closed for good: whoever supervises us starts us anew.
    """

    async def stop_when_closed() -> None:
        await bus.closed.wait()
        logger().error("bus_closed")
        until.set()

    watching = asyncio.create_task(stop_when_closed())
    try:
        yield
    finally:
        lost = bus.closed.is_set()
        watching.cancel()
        await bus.drain()
    if lost:
        raise OSError("the connection to the bus is closed for good")


def collect_seldom() -> None:
    """
    Look for cycles once in 50,000 objects, and never in what was there at the start: requests and facts leave hardly any, and
    looking took a sixth of a service's time. Holds 10 MB back at most.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop
