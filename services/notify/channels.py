"""
The channels messages leave by: Apprise, one fresh object per message, in a few threads, under a cap per channel.

URLs are secrets: they are neither logged nor named in an error, and Apprise's own log, which might, is silenced.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote
from weakref import WeakValueDictionary

from services.notify.contacts import CONSOLE
from services.notify.wording import Text

DEADLINE_S = 10.0
"""After this a message counts as failed; its thread ends when the receiver's socket does."""
SOCKET_S = 4.0
SCHEMES: Mapping[str, str] = {
    "bark": "bark", "barks": "bark", "dingtalk": "dingtalk", "feishu": "feishu", "json": "webhook", "jsons": "webhook",
    "mailto": "mail", "mailtos": "mail", "schan": "serverchan", "wecombot": "wecom",
}  # fmt: skip
"""What a whole URL in a contact may be, and the channel it counts as: nothing that acts on the machine notify runs on."""


class Cap(NamedTuple):
    """At most so many messages in any window of so many seconds."""

    messages: int
    seconds: float


CAPS: Mapping[str, Cap] = {"wecom": Cap(20, 60), "dingtalk": Cap(20, 60), "mail": Cap(60, 60), "webhook": Cap(50, 1)}
"""WeCom's and DingTalk's group bots refuse more than 20 a minute; the others are manners."""
OTHER = Cap(20, 60)


class Bucket:
    """
    A token bucket that keeps a cap in every window: a quarter may leave at once, the rest comes back evenly.

    It counts what this process sends: several instances that lead different districts share a bot's cap by configuration.
    """

    def __init__(self, cap: Cap, clock: Callable[[], float] = time.monotonic) -> None:
        if cap.messages < 1 or cap.seconds <= 0:
            raise ValueError(f"a cap of {cap.messages} in {cap.seconds} s lets nothing through")
        self._clock = clock
        self._burst = max(1, cap.messages // 4)
        self._per_s = max(1, cap.messages - self._burst) / cap.seconds
        self._tokens = float(self._burst)
        self._at = clock()

    def take(self) -> float:
        """0 where one message may leave now, which is then counted; otherwise how many seconds to wait before asking."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_s)
        self._at = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._per_s


@dataclass(frozen=True, eq=False)
class Channel:
    """One place messages go to. `name` is what facts call it."""

    name: str
    url: str
    bucket: Bucket

    def __repr__(self) -> str:
        return f"Channel({self.name})"


class Channels:
    """
    Every channel of this process.

    Args:
        urls: Apprise URLs by channel; `{id}` becomes the recipient's id, `{to}` their number or address.
        senders: how many messages leave at the same time.
    Raises:
        ValueError: a channel's name or URL is not usable; the URL is not shown.
    """

    def __init__(self, urls: Mapping[str, str], *, caps: Mapping[str, Cap] = CAPS, senders: int = 8) -> None:
        for name, url in urls.items():
            if not re.fullmatch(r"[a-z][a-z0-9_]{0,47}", name) or name == CONSOLE:
                raise ValueError(f"{name!r} cannot be a channel's name")
            if "://" not in url:
                raise ValueError(f"the URL of channel {name} is not one")
        self._caps = caps
        self._configured = {name: Channel(name, url, self._bucket(name)) for name, url in urls.items()}
        self._salt = os.urandom(16)
        self._buckets: dict[bytes, Bucket] = {}
        self._given: WeakValueDictionary[bytes, Channel] = WeakValueDictionary()
        self._pool = ThreadPoolExecutor(senders, thread_name_prefix="send")
        self._free = asyncio.Semaphore(senders)
        logging.getLogger("apprise").disabled = True

    @property
    def configured(self) -> bool:
        """Whether any channel is. Where none is, the console stands in for them all: a first start has no bots."""
        return bool(self._configured)

    def find(self, word: str) -> Channel | None:
        """The channel that a contact means, or None where there is no such or a URL's kind is not permitted."""
        scheme, is_url, _ = word.partition("://")
        if not is_url:
            return self._configured.get(word)
        name = SCHEMES.get(scheme.lower())
        if name is None:
            return None
        # A contact's URL is remembered while a message is on its way to it; how much it was given, without it.
        key = hmac.digest(self._salt, word.encode(), "sha256")
        channel = self._given.get(key)
        if channel is None:
            if len(self._buckets) > 10_000:
                self._buckets.clear()
            bucket = self._buckets.setdefault(key, self._bucket(name))
            channel = self._given[key] = Channel(name, word, bucket)
        return channel

    def _bucket(self, name: str) -> Bucket:
        return Bucket(self._caps.get(name, OTHER))

    async def send(self, channel: Channel, recipient: str, text: Text, to: str = "") -> str | None:
        """
        Hand one message over, within 10 s once a thread is free.

        Returns: None where the channel took it, else why not: `refused`, `timeout`, `bad_url`, `no_address`.
        """
        if "{to}" in channel.url and not to:
            return "no_address"
        await self._free.acquire()
        url = channel.url.replace("{id}", quote(recipient, safe="")).replace("{to}", quote(to, safe=""))
        sending = asyncio.get_running_loop().run_in_executor(self._pool, _send, url, text)
        sending.add_done_callback(lambda _: self._free.release())  # a thread that hangs keeps its place
        try:
            return await asyncio.wait_for(asyncio.shield(sending), DEADLINE_S)
        except TimeoutError:
            return "timeout"

    def close(self) -> None:
        """Send nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _send(url: str, text: Text) -> str | None:
    """In a thread. Apprise is imported here: it is large, and an office with the console alone does not need it."""
    try:
        from apprise import Apprise, NotifyFormat

        sender = Apprise()
        if not sender.add(url):
            return "bad_url"
        for plugin in sender:
            plugin.socket_connect_timeout = min(SOCKET_S, plugin.socket_connect_timeout)
            plugin.socket_read_timeout = min(SOCKET_S, plugin.socket_read_timeout)
        return None if sender.notify(title=text.title, body=text.body, body_format=NotifyFormat.TEXT) else "refused"
    except Exception:  # a plugin's bug must not end a sender, and its text may hold the URL
        return "refused"
