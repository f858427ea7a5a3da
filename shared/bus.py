"""
The bus, and the one module that imports nats: connect, commit a batch, read from a position, ask, answer, keep a value.

Every call has a deadline and raises only what `shared.errors` names. A connection buffers nothing while it is down
(`pending_size=0`): a batch "sent" during an outage would otherwise be stored after the reconnect, behind everybody's back.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import ssl
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Self
from uuid import uuid4

import nats.errors
import nats.js.errors
import orjson
from nats.aio.client import Client, RawCredentials
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.protocol import parser

from shared.envelope import CONTENT_TYPE
from shared.errors import BusError, ConflictError, TooManyFactsError, UnavailableError

STREAM = "EVENTS"
FORMERLY = "paidan.formerly"
"""The stream's own note (its metadata) of what it was filled again from, by `paidan bus restore`."""
BATCH_MAX = 1000
"""The server's own bound on an atomic batch (error 10199 beyond it)."""
EXPECT = "Nats-Expected-Last-Subject-Sequence"
DOWN = (TimeoutError, OSError, RuntimeError, nats.errors.Error)
"""What a call raises while the connection is away; RuntimeError is uvloop's word for a transport that has just closed."""
CONFLICTS = frozenset({10071, 10164})
ANSWERS = ("_inbox_", "_r_.")
"""Where answers go: to who asked here, and, through the server, to who asked from another account."""
PLAIN_HEADERS = b"NATS/1.0\r\n"
"""How headers begin that are not a status of the server's."""
SPLIT_BEHIND = 1000
"""From so many waiting messages on a reader of several subjects reads each by itself."""


# The server lets white space into a subject that is none to it (vertical tab, form feed), and parts its lines by blanks only, by two
# where an answer of the system account has no reply.
parser.MSG_RE = re.compile(rb"\AMSG ([^ \r\n]+) +([^ \r\n]+) +(([^ \r\n]+) +)?(\d+)\r\n")
parser.HMSG_RE = re.compile(rb"\AHMSG ([^ \r\n]+) +([^ \r\n]+) +(([^ \r\n]+) +)?(\d+) (\d+)\r\n")


class Message(NamedTuple):
    """What is published: an encoded fact under its subject. `expect` fences on this very subject's last sequence."""

    subject: str
    data: bytes
    expect: int | None = None


class Fence(NamedTuple):
    """The batch is stored only if the last message on this literal subject has this sequence (0: there is none)."""

    subject: str
    sequence: int


class Delivery(NamedTuple):
    """One stored message: its sequence in the stream, when the stream took it (ns since 1970), subject and bytes."""

    sequence: int
    recorded_ns: int
    subject: str
    data: bytes

    @property
    def recorded(self) -> datetime:
        """When the stream took it, to the microsecond."""
        return datetime.fromtimestamp(self.recorded_ns / 1e9, UTC)


class Stored(NamedTuple):
    """The last message on a subject. `batch` is the atomic batch that brought it, if one did."""

    sequence: int
    data: bytes
    batch: str | None
    recorded: datetime


@dataclass(frozen=True, slots=True)
class StreamState:
    """
    Which stream this is (`created`, as the server writes it) and what it holds.

    Attributes:
        formerly: the streams whose messages it holds number for number, by their `created`: it was filled again after a loss.
    """

    created: str
    first: int
    last: int
    formerly: frozenset[str] = frozenset()

    def is_younger_than(self, recorded: datetime) -> bool:
        """Whether it was made anew since: then what it does not hold may be missing rather than never have been."""
        return datetime.fromisoformat(self.created) > recorded


class Request(NamedTuple):
    """A request from the bus, to be answered once with `answer(bytes)`."""

    subject: str
    data: bytes
    headers: Mapping[str, str]
    answer: Callable[[bytes], Awaitable[None]]


class _Client(Client):
    """
    The library's client, which whoever may publish cannot end: it stops reading for good at a subject that is not UTF-8, and at
    headers that it cannot make out. Such a subject comes with `\\xff` for each byte that is wrong, such headers as none.
    """

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg:
        return Msg(
            self, subject.decode(errors="backslashreplace"), reply.decode(errors="replace"), data, headers, _sid=sid
        )

    async def _process_headers(self, headers: bytes | None) -> dict[str, str] | None:
        if not headers:
            return None
        if headers.startswith(PLAIN_HEADERS):
            return plain_headers(headers[len(PLAIN_HEADERS) :])
        try:
            return await super()._process_headers(headers)
        except Exception:
            return None


class Bus:
    """One connection to the bus. Make it with `Bus.connect`, end it with `drain`."""

    def __init__(self) -> None:
        self._nc = _Client()
        self._rang = asyncio.Event()
        self.refused: str | None = None
        self.closed = asyncio.Event()

    @classmethod
    async def connect(
        cls, url: str, *, name: str, seed: str | None = None, ca_file: Path | None = None, deadline_s: float = 10
    ) -> Self:
        """
        Connect, and stay connected until drained.

        Args:
            name: the service; replies come to `_INBOX_<name>.>`.
            seed: its credentials (a token and a seed, the text of a `.creds` file) or its NKey seed; None where the server asks
                for none.
            ca_file: the authority of the server's certificate. The connection then begins with the handshake (the server
                needs `handshake_first`): a greeting in the clear could talk the client out of TLS.
        Raises:
            UnavailableError: not within the deadline, or the server does not know this key.
            OSError: the authority's file cannot be read.
        """
        bus = cls()
        tls = ssl.create_default_context(cafile=ca_file) if ca_file else None
        wrong: list[Exception] = []

        async def on_error(why: Exception) -> None:
            # A permission violation arrives only here: the configuration is wrong and readiness says so. Not so for an
            # answer: the right to give it ends with the connection that brought the question.
            wrong[:] = [why]
            said = str(why).lower()
            if "permissions violation" in said and not any(f'publish to "{answer}' in said for answer in ANSWERS):
                bus.refused = str(why)

        async def on_closed() -> None:
            bus.closed.set()

        async def on_reconnected() -> None:
            bus._rang.set()
            bus._rang = asyncio.Event()

        try:
            await asyncio.wait_for(
                bus._nc.connect(
                    url,
                    name=f"paidan-{name}",
                    **_identity(seed),
                    inbox_prefix=f"_INBOX_{name}",
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=0.1,  # type: ignore[arg-type]  # seconds; the library annotates int
                    connect_timeout=2,
                    ping_interval=5,
                    max_outstanding_pings=2,
                    pending_size=0,
                    error_cb=on_error,
                    closed_cb=on_closed,
                    reconnected_cb=on_reconnected,
                    tls=tls,
                    tls_handshake_first=tls is not None,
                ),
                deadline_s,
            )
        except DOWN as why:
            with suppress(Exception):
                await bus._nc.close()
            said = str(why) or ", ".join([type(why).__name__, *map(str, wrong)])
            raise UnavailableError(f"cannot connect to NATS at {url}: {said}") from None
        return bus

    @property
    def connected(self) -> bool:
        """Whether a server is listening right now."""
        return self._nc.is_connected

    @property
    def generation(self) -> int:
        """How often the connection was made again: what was asked before is not coming."""
        return int(self._nc.stats["reconnects"])

    async def drain(self) -> None:
        """Stop taking, let what is under way end, close: 10 s at most."""
        with suppress(Exception):
            await asyncio.wait_for(self._nc.drain(), 10)
        with suppress(Exception):
            await self._nc.close()

    # --- asking ---------------------------------------------------------------------------------------------------

    async def request(
        self, subject: str, data: bytes, *, timeout_s: float = 2, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """
        One answer to one question.

        Raises:
            UnavailableError: nobody listens, not connected, or no answer in time; it may have been acted on all the same.
        """
        try:
            answer = await self._nc.request(
                subject, data, timeout=timeout_s, headers=dict(headers) if headers else None
            )
        except nats.errors.NoRespondersError:
            raise UnavailableError(f"nobody answers {subject}", code=503) from None
        except DOWN as why:
            raise UnavailableError(f"no answer on {subject}: {type(why).__name__}") from None
        return answer.data

    async def answers(self, subject: str, data: bytes, *, timeout_s: float = 2, quiet_s: float = 0.3) -> list[bytes]:
        """
        All answers to one question: those that come before nobody has said anything more for a while.

        Args:
            timeout_s: for the first; `quiet_s` for each further one.
        Raises:
            UnavailableError: nobody answers.
        """
        inbox = self._nc.new_inbox()
        found: list[bytes] = []
        try:
            subscription = await self._nc.subscribe(inbox)
            try:
                await self._nc.publish(subject, data, reply=inbox)
                while True:
                    message = await subscription.next_msg(timeout=quiet_s if found else timeout_s)
                    if (message.headers or {}).get("Status") == "503":
                        raise UnavailableError(f"nobody answers {subject}", code=503)
                    found.append(message.data)
            finally:
                with suppress(*DOWN):
                    await subscription.unsubscribe()
        except DOWN as why:
            if not found:
                raise UnavailableError(f"no answer on {subject}: {type(why).__name__}") from None
        return found

    async def _api(self, what: str, body: Mapping[str, Any] | None = None, *, timeout_s: float = 2) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(
            await self.request(f"$JS.API.{what}", json.dumps(body).encode() if body else b"", timeout_s=timeout_s)
        )
        if "error" in answer:
            raise _bus_error(answer["error"])
        return answer

    async def serve(
        self,
        subject: str,
        take: Callable[[Request], Coroutine[Any, Any, None]],
        *,
        alone: bool = False,
        apart: bool = False,
    ) -> Subscription:
        """
        Take requests on a subject. What `take` raises is dropped with the request: the asker tries again.

        Args:
            alone: the instances share the requests out; otherwise every instance takes every request.
            apart: each is taken in a task of its own, so that one that waits holds up no other. How many at a time is for
                `take` to bound.
        """
        under_way: set[asyncio.Task[None]] = set()

        async def on_message(message: Msg) -> None:
            async def answer(data: bytes) -> None:
                with suppress(*DOWN):  # the asker asks again
                    await message.respond(data)

            taken = take(Request(message.subject, message.data, message.headers or {}, answer))
            if not apart:
                await taken
                return
            task = asyncio.create_task(taken)
            under_way.add(task)
            task.add_done_callback(under_way.discard)

        queue = subject.replace("*", "_").replace(">", "_") if alone else ""
        return Subscription(await self._nc.subscribe(subject, queue=queue, cb=on_message), under_way)

    # --- committing -----------------------------------------------------------------------------------------------

    async def commit(
        self, messages: Sequence[Message], *, fence: Fence | None = None, batch: str | None = None, timeout_s: float = 2
    ) -> int:
        """
        Store all of these, next to each other, or none; one round trip. Returns the sequence of the last.

        Args:
            messages: at most 1,000.
            fence: goes on the first message: later ones may not expect a subject that this batch has written.
            batch: the batch's id, by which the writer can recognise it afterwards; new for every try.
        Raises:
            ConflictError: a fence did not hold; nothing is stored.
            TooManyFactsError: more than 1,000.
            UnavailableError: outcome unknown: look before trying again.
        """
        if len(messages) > BATCH_MAX:
            raise TooManyFactsError(f"{len(messages)} messages in one batch")
        batch = batch or uuid4().hex
        last = len(messages)
        publish = self._nc.publish
        try:
            for n, (subject, data, expect) in enumerate(messages, 1):
                headers = {"Content-Type": CONTENT_TYPE, "Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(n)}
                if expect is not None:
                    headers[EXPECT] = str(expect)
                elif n == 1 and fence is not None:
                    headers[EXPECT] = str(fence.sequence)
                    headers[EXPECT + "-Subject"] = fence.subject
                if n < last:
                    await publish(subject, data, headers=headers)
                else:
                    headers["Nats-Batch-Commit"] = "1"
                    answer = await self._nc.request(subject, data, timeout=timeout_s, headers=headers)
        except DOWN as why:
            raise UnavailableError(f"commit of {last}: {type(why).__name__}") from None
        ack = orjson.loads(answer.data)
        if "error" in ack:
            raise _bus_error(ack["error"])
        return int(ack["seq"])

    async def put(
        self,
        subject: str,
        data: bytes,
        *,
        expect: int | None = None,
        ttl_s: int | None = None,
        timeout_s: float = 2,
    ) -> int:
        """
        Store one message and return its sequence.

        Args:
            expect: the last sequence on this subject; 0 for none.
            ttl_s: how long it lives, where the stream allows that.
        Raises:
            ConflictError, UnavailableError: as `commit`.
        """
        headers = {}
        if expect is not None:
            headers[EXPECT] = str(expect)
        if ttl_s is not None:
            headers["Nats-TTL"] = f"{ttl_s}s"
        ack = orjson.loads(await self.request(subject, data, timeout_s=timeout_s, headers=headers))
        if "error" in ack:
            raise _bus_error(ack["error"])
        return int(ack["seq"])

    async def delete(self, stream: str, sequence: int) -> None:
        """Delete one message and overwrite its bytes on disk; already gone is fine."""
        with suppress(_NotThereError):
            await self._api(f"STREAM.MSG.DELETE.{stream}", {"seq": sequence, "no_erase": False})

    async def erase(self, stream: str, subjects: str, *, below: int | None = None) -> int:
        """Delete every message under these subjects, before a sequence, and overwrite its bytes on disk; how many there were."""
        after, erased = 0, 0
        while (message := await self.next(subjects, after=after, stream=stream)) is not None:
            if below is not None and message.sequence >= below:
                break
            await self.delete(stream, message.sequence)
            after, erased = message.sequence, erased + 1
        return erased

    async def replace(self, stream: str, subject: str, data: bytes, *, expect: int | None = None) -> int:
        """
        Store one message in the place of all before it on its subject, whose bytes are overwritten; its sequence.

        Raises:
            ConflictError, UnavailableError: as `put`; what was there may still be.
        """
        sequence = await self.put(subject, data, expect=expect)
        await self.erase(stream, subject, below=sequence)
        return sequence

    # --- reading --------------------------------------------------------------------------------------------------

    async def last(self, subject: str, *, stream: str = STREAM, timeout_s: float = 2) -> Stored | None:
        """The last message stored on a subject, or None. It never shows half a batch, so it is the read barrier."""
        return await self._stored(stream, {"last_by_subj": subject}, timeout_s)

    async def end(self, subject: str) -> int | None:
        """The last sequence stored on a subject, 0 where there is none; None while the bus does not say."""
        try:
            last = await self.last(subject)
        except BusError:
            return None
        return last.sequence if last else 0

    async def at(self, sequence: int, *, stream: str = STREAM, timeout_s: float = 2) -> Stored | None:
        """The message with this sequence, or None where it was deleted."""
        return await self._stored(stream, {"seq": sequence}, timeout_s)

    async def next(self, subjects: str, *, after: int, stream: str = STREAM) -> Delivery | None:
        """The first message under these subjects behind a sequence, or None; one question each, for who is in no hurry."""
        which = {"seq": after + 1, "next_by_subj": subjects}
        try:
            message = (await self._api(f"STREAM.MSG.GET.{stream}", which))["message"]
        except _NotThereError:
            return None
        recorded = datetime.fromisoformat(message["time"]).timestamp()
        return Delivery(message["seq"], int(recorded * 1e9), message["subject"], _unbase64(message.get("data")))

    async def _stored(self, stream: str, which: Mapping[str, Any], timeout_s: float) -> Stored | None:
        try:
            answer = await self._api(f"STREAM.MSG.GET.{stream}", which, timeout_s=timeout_s)
        except _NotThereError:
            return None
        message = answer["message"]
        return Stored(
            sequence=message["seq"],
            data=_unbase64(message.get("data")),
            batch=_header(_unbase64(message.get("hdrs")), b"Nats-Batch-Id"),
            recorded=datetime.fromisoformat(message["time"]).astimezone(UTC),
        )

    async def state(self, stream: str = STREAM) -> StreamState:
        """Which stream there is and how far it goes. Raises UnavailableError where there is none."""
        answer = await self._api(f"STREAM.INFO.{stream}")
        formerly = answer["config"].get("metadata", {}).get(FORMERLY, "")
        return StreamState(
            answer["created"],
            answer["state"]["first_seq"],
            answer["state"]["last_seq"],
            frozenset(formerly.split()),
        )

    def reader(
        self,
        subjects: Iterable[str],
        *,
        after: int,
        credit: int = 1000,
        wake: asyncio.Event | None = None,
        idle_s: int = 30,
    ) -> Reader:
        """
        Everything stored under these subjects after a sequence, in order, without a hole and without an end.

        Args:
            credit: about how many messages it holds that nobody has taken yet.
            idle_s: after this long without a reader the server forgets its consumer.
        """
        return Reader(self, tuple(subjects), after, credit, wake or asyncio.Event(), idle_s)

    # --- objects --------------------------------------------------------------------------------------------------

    async def put_object(self, bucket: str, name: str, data: bytes, *, timeout_s: float = 60) -> None:
        """Store a large value whole. Raises UnavailableError."""
        try:
            store = await self._nc.jetstream(timeout=5).object_store(bucket)
            await asyncio.wait_for(store.put(name, data), timeout_s)
        except (*DOWN, nats.js.errors.Error) as why:
            raise UnavailableError(f"object {bucket}/{name} was not stored: {type(why).__name__}") from None

    async def get_object(self, bucket: str, name: str, *, timeout_s: float = 60) -> bytes | None:
        """A large value, or None where there is none. Raises UnavailableError, also where its digest is wrong."""
        try:
            store = await self._nc.jetstream(timeout=5).object_store(bucket)
            into = io.BytesIO()
            await asyncio.wait_for(store.get(name, writeinto=into), timeout_s)
        except nats.js.errors.NotFoundError:
            return None
        except (*DOWN, nats.js.errors.Error) as why:
            raise UnavailableError(f"object {bucket}/{name} cannot be read: {type(why).__name__}") from None
        return into.getvalue()

    # --- administration (identity `admin` only) -------------------------------------------------------------------

    async def stream_config(self, name: str) -> dict[str, Any] | None:
        """The configuration of a stream as the server has it, or None."""
        try:
            config: dict[str, Any] = (await self._api(f"STREAM.INFO.{name}"))["config"]
        except _NoStreamError:
            return None
        return config

    async def apply_stream(self, config: Mapping[str, Any], *, new: bool) -> None:
        """Create or update a stream. Raises BusError with the server's reason."""
        await self._api(f"STREAM.{'CREATE' if new else 'UPDATE'}.{config['name']}", config, timeout_s=10)

    async def remove_stream(self, name: str) -> None:
        """Delete a stream and all that it holds; already gone is fine. Raises BusError."""
        with suppress(_NoStreamError):
            await self._api(f"STREAM.DELETE.{name}", timeout_s=10)

    async def purge(self, name: str, subject: str) -> None:
        """Delete what a stream holds on a subject; the numbers stay used. Raises BusError."""
        await self._api(f"STREAM.PURGE.{name}", {"filter": subject}, timeout_s=60)


class Subscription:
    """A subject being served; `end` stops it."""

    def __init__(self, subscription: Any, under_way: Set[asyncio.Task[None]]) -> None:
        self._subscription = subscription
        self._under_way = under_way

    async def end(self) -> None:
        """Take nothing more, and wait for those that are taken `apart`."""
        with suppress(*DOWN):
            await self._subscription.unsubscribe()
        await asyncio.gather(*self._under_way, return_exceptions=True)


class Reader:
    """
    Reads a stream in order through an ephemeral consumer of its own, without acknowledging: nothing is redelivered, skipped
    or dead-lettered. Whenever something looks odd (reconnect, a hole in the consumer's count, no heartbeat) it opens a new
    consumer at the next sequence. A durable with ack-all would lose: what a killed reader had fetched comes back behind what
    its successor acknowledged.

    Far behind and with several subjects it reads each subject by itself and merges by sequence, until it has caught up: a consumer
    with several filters costs the server a walk over the subjects of a block for every message (250 µs with a subject per
    request, where one filter costs 20).

    Attributes:
        after: the sequence of the last message taken in; what comes next is behind it.
        opened: how many consumers it has had: when this moves, ask whether the stream is still the same one.
    """

    def __init__(
        self, bus: Bus, subjects: tuple[str, ...], after: int, credit: int, wake: asyncio.Event, idle_s: int
    ) -> None:
        self._bus = bus
        self._subjects = subjects
        self._credit = credit
        self._wake = wake
        self._idle_s = idle_s
        self._subscription: Any = None
        self._queue: deque[Delivery] = deque()
        self._asked = 0
        self._fine = False
        self._heard = 0.0
        self.after = after
        self.opened = 0
        self.pending = 0
        """How many more the server knew of when it sent the last one."""
        self._parts: list[Reader] = []
        self._parts_until = 0

    async def take(self, at_most: int = 1000) -> list[Delivery]:
        """What has arrived, oldest first; empty where nothing has, or while the bus is away. Never waits for a message."""
        try:
            await self._keep_open()
        except (*DOWN, BusError, nats.js.errors.Error):
            await asyncio.sleep(0.1)
        if self._parts:
            return await self._merge(at_most)
        if not self._queue:
            await asyncio.sleep(0)  # never spin: let what is on the wire come in
        queue = self._queue
        return [queue.popleft() for _ in range(min(at_most, len(queue)))]

    async def wait(self, timeout_s: float, at_most: int = 1000) -> list[Delivery]:
        """As `take`, but waits up to the timeout for the first."""
        ends = time.monotonic() + timeout_s
        while True:
            self._wake.clear()
            if taken := await self.take(at_most):
                return taken
            left = ends - time.monotonic()
            if left <= 0:
                return []
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left, 0.5)):  # not wait_for: before 3.12 it may swallow a cancellation
                    await self._wake.wait()

    async def close(self) -> None:
        """Give the consumer up; the server forgets it after 30 s."""
        parts, self._parts = self._parts, []
        for part in parts:
            await part.close()
        if self._subscription is not None:
            subscription, self._subscription = self._subscription, None
            with suppress(*DOWN):
                await subscription.unsubscribe()

    async def _merge(self, at_most: int) -> list[Delivery]:
        """
        What the parts have brought, in order, as far as all of them have come.

        A part that has delivered all that the server knew of when it was opened, or last delivered, has nothing more up to
        `_parts_until`, which was the end of the stream before any of them was opened.
        """
        taken = [self._queue.popleft() for _ in range(min(at_most, len(self._queue)))]  # from before it was split
        self.pending = 1
        while len(taken) < at_most:
            first: Reader | None = None
            for part in self._parts:
                if part._queue:
                    if first is None or part._queue[0].sequence < first._queue[0].sequence:
                        first = part
                elif not part.complete:
                    await asyncio.sleep(0)
                    return taken
            if first is None or first._queue[0].sequence > self._parts_until:
                self.after = self._parts_until
                await self._go_on()
                return taken
            delivery = first._queue.popleft()
            if delivery.sequence > self.after:  # subjects may overlap
                taken.append(delivery)
                self.after = delivery.sequence
        return taken

    async def _go_on(self) -> None:
        """Behind the end that was aimed at: aim at the new one while much is left, else let one consumer have it all again."""
        if sum(part.pending + len(part._queue) for part in self._parts) <= SPLIT_BEHIND // 2:
            await self.close()
            self.pending = 0
            return
        try:
            self._parts_until = (await self._bus.state()).last
        except BusError:
            return  # asked again, with the same aim
        for part in self._parts:
            if not part._queue:  # what it said was true of the old end: ask anew
                await part.close()
                part.after = max(part.after, self.after)

    @property
    def complete(self) -> bool:
        """Whether everything has been taken that the server knew of when it sent the last message, or when the consumer was made."""
        return self._fine and self._subscription is not None and not self.pending and not self._queue

    async def _keep_open(self) -> None:
        if self._parts:
            before = sum(part.opened for part in self._parts)
            await asyncio.gather(*(part._keep_open() for part in self._parts))
            self.opened += sum(part.opened for part in self._parts) - before
            return
        silent = time.monotonic() - self._heard > 2.5
        behind = len(self._subjects) > 1 and self.pending > SPLIT_BEHIND
        if self._subscription is None or not self._fine or silent or behind or self._link != self._bus.generation:
            await self._open()
        if self._parts:
            return
        if self._asked <= self._credit // 2 and len(self._queue) < self._credit:
            self._asked += self._credit
            ask = b'{"batch":%d,"expires":20000000000,"idle_heartbeat":1000000000}' % self._credit
            await self._bus._nc.publish(self._next, ask, reply=self._inbox)

    async def _open(self) -> None:
        await self.close()
        self.opened += 1
        nc = self._bus._nc
        self._link, self._count, self._asked, self._heard, self._fine = (
            self._bus.generation,
            0,
            0,
            time.monotonic(),
            True,
        )
        many = len(self._subjects) > 1
        consumer = ConsumerConfig(
            filter_subject=None if many else self._subjects[0],
            filter_subjects=list(self._subjects) if many else None,
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=self.after + 1,
            ack_policy=AckPolicy.NONE,
            mem_storage=True,
            num_replicas=1,
            inactive_threshold=self._idle_s,
        )
        info = await nc.jetstream(timeout=2).add_consumer(STREAM, consumer)
        self.pending = info.num_pending or 0
        if many and self.pending > SPLIT_BEHIND:
            self._parts_until = (await self._bus.state()).last
            self._parts = [
                Reader(self._bus, (s,), self.after, self._credit, self._wake, self._idle_s) for s in self._subjects
            ]
            await asyncio.gather(*(part._keep_open() for part in self._parts))
            return
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{info.name}"
        self._inbox = nc.new_inbox()
        self._subscription = await nc.subscribe(
            self._inbox, cb=self._on_message, pending_msgs_limit=-1, pending_bytes_limit=-1
        )

    async def _on_message(self, message: Msg) -> None:
        self._heard = time.monotonic()
        if message.subject != self._inbox and message.reply.startswith("$JS.ACK"):
            # $JS.ACK.<stream>.<consumer>.<delivered>.<stream sequence>.<consumer sequence>.<time ns>.<pending>
            tokens = message.reply.split(".")
            self._asked -= 1
            self._count += 1
            if self._fine and int(tokens[6]) == self._count:
                self.after = int(tokens[5])
                self.pending = int(tokens[8])
                self._queue.append(Delivery(self.after, int(tokens[7]), message.subject, message.data))
            else:
                self._fine = False
        else:
            headers = message.headers or {}
            status = headers.get("Status")
            if status == "408":  # one pull expired: ask again for what it did not bring
                self._asked -= int(headers.get("Nats-Pending-Messages", self._credit))
            elif status != "100":
                self._asked, self._fine = 0, False
        self._wake.set()


def _identity(seed: str | None) -> dict[str, Any]:
    if seed and "BEGIN NATS USER JWT" in seed:
        return {"user_credentials": RawCredentials(seed)}
    return {"nkeys_seed_str": seed.strip() if seed else None}


class _NotThereError(BusError):
    """No such message."""


class _NoStreamError(UnavailableError):
    """No such stream, or not yet again: nothing is known of what it held."""


def _bus_error(error: Mapping[str, Any]) -> BusError:
    code = int(error.get("err_code", 0))
    detail = f"{error.get('description')} ({code})"
    if code in CONFLICTS:
        return ConflictError(detail, code)
    if code == 10199:
        return TooManyFactsError(detail, code)
    if code in (10037, 10043, 10057):
        return _NotThereError(detail, code)
    if code == 10059:
        return _NoStreamError(detail, code)
    if code in (10008, 10009, 10077):
        return UnavailableError(detail, code)
    return BusError(detail, code)


def _unbase64(value: str | None) -> bytes:
    return base64.b64decode(value) if value else b""


def plain_headers(block: bytes) -> dict[str, str] | None:
    """As the library reads them, names of printable ASCII only, in less than half the time: every fact that is read has three."""
    found: dict[str, str] = {}
    for line in block.decode(errors="replace").split("\r\n"):
        name, colon, value = line.partition(":")
        name = name.strip()
        if colon and name.isascii() and name.isprintable() and " " not in name:
            found[name] = value.strip()
    return found or None


def _header(block: bytes, name: bytes) -> str | None:
    for line in block.split(b"\r\n"):
        if line.startswith(name + b": "):
            return line[len(name) + 2 :].decode()
    return None
