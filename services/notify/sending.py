"""
The sender of one district: works from the fold, outside the turn, and reports what became of each message.

It looks at the committed state after every turn and takes what is due. Every waiting notice is in exactly one of its hands:
`due` by time, `ready` for a channel's cap, under way, or in an outcome that is not yet committed. A crash between sending and
the commit of the report sends that message once more.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from prometheus_client import Counter, Gauge, Histogram

from services.notify.channels import Bucket, Cap, Channel, Channels
from services.notify.contacts import CONSOLE, NOBODY, SEALED, Contact, Contacts, quiet_until
from services.notify.decide import LATE, NO_CHANNEL, OVERTAKEN, Outcome, Report, overtaken
from services.notify.model import OVER, RESIDENT, UNREACHABLE, Notice, Post
from services.notify.residents import KINDS, Residents
from services.notify.wording import Wording
from shared.auth import EVERYWHERE, Caller
from shared.errors import BusError, FencedError, UnavailableError
from shared.facts import Language
from shared.ids import new_id
from shared.telemetry import logger
from shared.turns import Command

REPORT_MAX = 250
REPORTS_MAX = 2
"""Two reports of 250 and the 498 inputs beside them fit one batch of 999 facts: a turn never has to be taken twice."""
ROUND_MAX = 1000
"""How many notices are looked at before the loop lets others work."""
UNDER_WAY_MAX = 64
ASKED = Cap(200, 1)
"""How often intake is asked for a resident's contact."""
WAIT_S = 0.5
AGAIN_S = 5.0
DRAIN_S = 15.0
KNOWN_WITHIN = timedelta(minutes=10)
"""The ledger has heard of a request by then, or never will."""
SENDER = Caller("notify", EVERYWHERE, frozenset())

QUEUED = Counter("paidan_notices_queued_total", "Notices that a sender took up", ["district"])
OUTCOMES = Counter("paidan_notices_total", "Outcomes committed", ["district", "channel", "result", "code"])
WAITING = Gauge("paidan_notices_waiting", "Notices neither sent nor given up", ["district"])
UNDER_WAY = Gauge("paidan_notices_under_way", "Messages being handed over", ["channel"])
LAG_S = Histogram(
    "paidan_notice_lag_seconds",
    "From queued to sent",
    ["channel"],
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 30, 300, 3600, 36000),
)


class Loop(Protocol):
    """What a sender needs of the district's turns."""

    leading: bool
    turned: list[Callable[[Post], None]]

    @property
    def state(self) -> Post:
        """As of the last committed turn."""

    async def ask(self, command: Command) -> Any:
        """The answer to a command, once committed. Raises FencedError."""


class Sender:
    """Sends while its instance leads the district."""

    def __init__(
        self,
        district: str,
        turns: Loop,
        contacts: Contacts,
        residents: Residents,
        channels: Channels,
        wording: Wording,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._district = district
        self._turns = turns
        self._contacts = contacts
        self._residents = residents
        self._intake = Channel("intake", "", Bucket(ASKED))
        self._channels = channels
        self._wording = wording
        self._clock = clock
        self._log = logger(district=district)
        self._wake = asyncio.Event()
        self._seen = 0
        self._due: list[tuple[datetime, str, int, str]] = []  # when, recipient, number, id
        self._ready: dict[Channel, list[tuple[bool, int, tuple[str, ...]]]] = {}  # urgent first, then oldest
        self._under_way: set[asyncio.Task[None]] = set()
        self._outcomes: deque[Outcome] = deque()
        self._reports: set[asyncio.Task[None]] = set()
        turns.turned.append(lambda _: self._wake.set())

    async def run(self, until: asyncio.Event) -> None:
        """Send until told to stop; then let what is under way end (15 s at most) and report it."""
        while not until.is_set():
            self._wake.clear()
            self._contacts.forget_old()
            wait_s = WAIT_S
            if self._turns.leading:
                try:
                    wait_s = await self._round()
                except BusError as why:
                    self._log.warning("contacts_unavailable", why=str(why))
                except Exception:  # a bug: let go of everything, and look at the state anew
                    self._log.exception("sender_failed")
                    await self._drain()
                    self._seen = 0
                    self._due.clear()
                    self._ready.clear()
                    wait_s = AGAIN_S
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
        await self._drain()

    async def _round(self) -> float:
        """Take up what is new, send what may go, report what is known. Returns how long nothing will be due, seconds."""
        post, now = self._turns.state, self._clock()
        self._take_up(post)
        more = await self._sort(post, now)
        next_s = self._send_ready(now)
        self._report()
        if more:
            await asyncio.sleep(0)
            return 0.0
        if self._due:
            next_s = min(next_s, (self._due[0][0] - now).total_seconds())
        return max(0.001, next_s)

    def _take_up(self, post: Post) -> None:
        """Notices queued since the last look. On taking over from another instance that may be all there are."""
        since, self._seen = min(self._seen, post.last), post.last
        if post.last - since > len(post.notices):
            new = [notice for notice in post.notices.values() if notice.number > since]
        else:
            ids = (post.numbers.get(number) for number in range(since + 1, post.last + 1))
            new = [post.notices[id] for id in ids if id is not None]
        for notice in new:
            heapq.heappush(self._due, (notice.due, notice.recipient, notice.number, notice.id))
        if new:
            QUEUED.labels(self._district).inc(len(new))
        WAITING.labels(self._district).set(len(post.notices))

    async def _sort(self, post: Post, now: datetime) -> bool:
        """Give everything due its channel or its outcome. Returns whether there is more. Raises BusError."""
        due = self._due
        parcels: list[list[Notice]] = []
        last: tuple[datetime, str] | None = None
        taken = 0
        while due and due[0][0] <= now and (taken < ROUND_MAX or due[0][:2] == last):
            at, recipient, number, id = heapq.heappop(due)
            notice = post.notices.get(id)
            if notice is None:
                continue  # sent by another leader, or overtaken
            if notice.due > now:
                heapq.heappush(due, (notice.due, recipient, number, id))
                continue
            taken += 1
            if notice.held and last == (at, recipient) and parcels and parcels[-1][0].held:
                parcels[-1].append(notice)  # one digest
            else:
                parcels.append([notice])
            last = (at, recipient)
        try:
            await self._contacts.look_up(self._district, [parcel[0].recipient for parcel in parcels])
        except BusError:
            later = now + timedelta(seconds=WAIT_S)
            for parcel in parcels:
                self._again(parcel, later)
            raise
        post = self._turns.state  # a turn may have passed meanwhile
        for parcel in parcels:
            self._place(post, [notice for notice in parcel if notice.id in post.notices], now)
        return bool(due) and due[0][0] <= now

    def _place(self, post: Post, parcel: Sequence[Notice], now: datetime) -> None:
        """Into the log, into a channel's hands, or straight to an outcome."""
        if not parcel:
            return
        contact = self._contact(parcel[0].recipient)
        if contact is None:
            self._again(parcel, now)
            return
        parcel = self._may_go(post, parcel, contact, now)
        if not parcel:
            return
        word = contact.channel(parcel[0].attempts + 1)
        if contact is SEALED:
            self._make_ready(self._intake, parcel)
        elif word == CONSOLE or ("://" not in word and not self._channels.configured):
            self._log_message(parcel)
            self._done(parcel, CONSOLE, None)
        elif channel := self._channels.find(word):
            self._make_ready(channel, parcel)
        else:
            self._done(parcel, NO_CHANNEL, "no_channel")

    def _contact(self, recipient: str) -> Contact | None:
        """
        What is known of a recipient before their message goes out; None where it has to be looked up. Without a channel to residents
        the log hears of them.
        """
        if recipient.startswith(RESIDENT):
            return SEALED if any(map(self._channels.find, KINDS)) else NOBODY
        return self._contacts.known(self._district, recipient)

    def _again(self, parcel: Iterable[Notice], at: datetime) -> None:
        """Sort these anew, then."""
        for notice in parcel:
            heapq.heappush(self._due, (at, notice.recipient, notice.number, notice.id))

    def _make_ready(self, channel: Channel, parcel: Sequence[Notice]) -> None:
        first = parcel[0]
        entry = (not first.urgent, first.number, tuple(notice.id for notice in parcel))
        heapq.heappush(self._ready.setdefault(channel, []), entry)

    def _may_go(self, post: Post, parcel: Sequence[Notice], contact: Contact, now: datetime) -> list[Notice]:
        """Those that need not wait for the end of quiet hours and are not too late; the others get their outcome."""
        go = []
        for notice in parcel:
            if ended := overtaken(post, notice, now):
                why = LATE if ended == OVER else OVERTAKEN
                self._outcomes.append(Outcome(notice.id, notice.attempts + 1, "dropped", code=why))
                continue
            quiet = None if notice.urgent else contact.quiet or post.register.policy(self._district).quiet
            ends = quiet_until(quiet, post.register.zone(self._district), now) if quiet else None
            if ends is None:
                go.append(notice)
            else:
                self._outcomes.append(Outcome(notice.id, notice.attempts + 1, "held", until=ends))
        return go

    def _log_message(self, parcel: Sequence[Notice]) -> None:
        first = parcel[0]
        if len(parcel) == 1:
            self._log.info("message", notice=first.id, template=first.template, recipient=first.recipient)
        else:
            self._log.info(
                "message", notice=first.id, template="digest", recipient=first.recipient, notices=len(parcel)
            )

    def _send_ready(self, now: datetime) -> float:
        """Start what the caps permit. Returns the seconds until they permit more."""
        post, next_s = self._turns.state, WAIT_S
        for channel, ready in list(self._ready.items()):
            while ready and len(self._under_way) < UNDER_WAY_MAX:
                waiting = (post.notices.get(id) for id in ready[0][2])
                contact = None
                parcel = [notice for notice in waiting if notice is not None]
                if parcel and (contact := self._contact(parcel[0].recipient)):  # it may have waited for long
                    parcel = self._may_go(post, parcel, contact, now)
                elif parcel:
                    self._again(parcel, now)
                    next_s = 0.0
                if not parcel or contact is None:
                    heapq.heappop(ready)
                    continue
                wait_s = channel.bucket.take()
                if wait_s:
                    entry = heapq.heappop(ready)  # without those that got an outcome just now
                    heapq.heappush(ready, (*entry[:2], tuple(notice.id for notice in parcel)))
                    next_s = min(next_s, wait_s)
                    break
                heapq.heappop(ready)
                if contact is SEALED:
                    self._start(self._under_way, self._deliver_to_resident(post, channel, parcel))
                else:
                    delivery = self._deliver(post, channel, parcel, contact.language, contact.phone)
                    self._start(self._under_way, delivery)
            if not ready:
                del self._ready[channel]
        return next_s

    async def _deliver(
        self, post: Post, channel: Channel, parcel: Sequence[Notice], language: Language, to: str
    ) -> None:
        with UNDER_WAY.labels(channel.name).track_inprogress():
            try:
                text = self._wording.digest(post, parcel, language)
            except Exception as why:  # an office's own template
                self._log.error("wording_failed", template=parcel[0].template, why=str(why)[:200])
                self._done(parcel, channel.name, "wording")
            else:
                self._done(parcel, channel.name, await self._channels.send(channel, parcel[0].recipient, text, to))
        self._wake.set()

    async def _deliver_to_resident(self, post: Post, channel: Channel, parcel: Sequence[Notice]) -> None:
        """
        Ask for the contact, use it, and let go of it: where its channel is full, it is asked for again when there is room.

        Args:
            channel: intake; or the one that was full, and now has room for this.
        """
        first, reached = parcel[0], None
        try:
            reached = await self._residents.reach(self._district, first.recipient.removeprefix(RESIDENT), first.id)
        except UnavailableError as why:
            self._log.warning("intake_unavailable", why=str(why))
            now, unknown = self._clock(), why.code == 404
            if not unknown or now - first.queued <= KNOWN_WITHIN:
                self._again(parcel, now + timedelta(seconds=WAIT_S if unknown else AGAIN_S))
                return
        left = {kind: to for kind in KINDS if reached and (to := getattr(reached.contact, kind))}
        usable = [(found, to) for kind, to in left.items() if (found := self._channels.find(kind))]
        if reached is None or not usable:
            self._outcomes.extend(Outcome(one.id, one.attempts + 1, "dropped", code=UNREACHABLE) for one in parcel)
            self._wake.set()
            return
        own, to = usable[first.attempts % len(usable)]
        if own is not channel and own.bucket.take():
            self._make_ready(own, parcel)
        else:
            await self._deliver(post, own, parcel, reached.language, to)

    def _done(self, parcel: Sequence[Notice], channel: str, code: str | None) -> None:
        """One outcome each."""
        for notice in parcel:
            if code is None:
                self._outcomes.append(Outcome(notice.id, notice.attempts + 1, "sent", channel))
                LAG_S.labels(channel).observe(max(0.0, (self._clock() - notice.queued).total_seconds()))
            else:
                self._outcomes.append(Outcome(notice.id, notice.attempts + 1, "failed", channel, code))

    def _report(self) -> None:
        while self._outcomes and len(self._reports) < REPORTS_MAX:
            some = tuple(self._outcomes.popleft() for _ in range(min(REPORT_MAX, len(self._outcomes))))
            self._start(self._reports, self._ask(some))

    async def _ask(self, outcomes: tuple[Outcome, ...]) -> None:
        """Have outcomes committed. What could not be is reported again, not sent again."""
        try:
            answer = await self._turns.ask(Command(new_id(), Report(outcomes), SENDER))
        except FencedError:
            self._outcomes.extend(outcomes)
            return
        if isinstance(answer, dict):
            self._log.error("report_refused", problem=answer.get("problem"))
            await asyncio.sleep(AGAIN_S)
            self._outcomes.extend(outcomes)
            return
        post = self._turns.state
        for labels, n in Tally((one.channel, one.result, one.code) for one in outcomes).items():
            OUTCOMES.labels(self._district, *labels).inc(n)
        for outcome in outcomes:
            if notice := post.notices.get(outcome.notice_id):  # it will be tried again
                heapq.heappush(self._due, (notice.due, notice.recipient, notice.number, notice.id))
        self._wake.set()

    def _start(self, among: set[asyncio.Task[None]], work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        among.add(task)
        task.add_done_callback(among.discard)

    async def _drain(self) -> None:
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=DRAIN_S)
        ends = time.monotonic() + DRAIN_S
        while self._turns.leading and (self._outcomes or self._reports) and time.monotonic() < ends:
            self._report()
            await asyncio.wait(self._reports, timeout=WAIT_S)
