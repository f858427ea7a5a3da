"""Messages leave by real Apprise to a real web server and a real mail server, not faster than a channel's cap."""

from __future__ import annotations

import asyncio
import time

import pytest

from services.notify import channels as under_test
from services.notify.channels import CAPS, Bucket, Cap, Channel, Channels
from services.notify.wording import Text
from tests.notify.conftest import MailReceiver, WebReceiver, until

TEXT = Text("派单：路灯不亮", "新湘小区有一项任务派给您 <b>&</b>\nhttps://paidan.example.org/t/1")


async def send(channels: Channels, name: str, recipient: str = "m-li") -> str | None:
    """By a configured channel."""
    channel = channels.find(name)
    assert channel is not None
    return await channels.send(channel, recipient, TEXT)


async def test_a_message_arrives_by_http(web: WebReceiver) -> None:
    assert await send(Channels({"wecom": web.url}), "wecom") is None
    ((path, body, _),) = web.taken
    assert path == "/m-li"
    assert (body["title"], body["message"]) == TEXT


async def test_a_message_arrives_by_mail(mail: MailReceiver) -> None:
    assert await send(Channels({"mail": mail.url}), "mail") is None
    ((recipients, message),) = mail.taken
    assert recipients == ["m-li@office.example"]
    assert message["Subject"] == TEXT.title
    body = message.get_body(("plain",))
    assert body is not None
    assert body.get_content().replace("\r\n", "\n").strip() == TEXT.body


async def test_an_error_of_the_receiver_is_a_failure(web: WebReceiver) -> None:
    web.statuses = [500]
    assert await send(Channels({"wecom": web.url}), "wecom") == "refused"


async def test_nobody_there_is_a_failure() -> None:
    assert await send(Channels({"wecom": "json://127.0.0.1:9/"}), "wecom") == "refused"


async def test_a_receiver_that_never_answers_is_a_failure(web: WebReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "SOCKET_S", 0.2)
    web.gate.clear()
    started = time.monotonic()
    assert await send(Channels({"wecom": web.url}), "wecom") == "refused"
    assert time.monotonic() - started < 3


async def test_a_thread_that_hangs_does_not_hold_up_its_message(
    web: WebReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "DEADLINE_S", 0.2)
    web.gate.clear()
    channels = Channels({"wecom": web.url}, senders=1)
    assert await send(channels, "wecom") == "timeout"
    web.gate.set()  # and the next gets its place
    monkeypatch.setattr(under_test, "DEADLINE_S", 5)
    assert await send(channels, "wecom") is None


async def test_a_url_that_apprise_does_not_know_is_named_without_showing_it() -> None:
    assert await send(Channels({"wecom": "nonsense://secret"}), "wecom") == "bad_url"
    with pytest.raises(ValueError, match="wecom") as why:
        Channels({"wecom": "secret"})
    assert "secret" not in str(why.value)
    assert "secret" not in repr(Channel("wecom", "json://secret", Bucket(CAPS["wecom"])))


async def test_a_failure_shows_no_url_in_the_log(web: WebReceiver, capfd: pytest.CaptureFixture[str]) -> None:
    web.statuses = [500]
    await send(Channels({"wecom": web.url + "/topsecret"}), "wecom")
    await send(Channels({"wecom": "json://127.0.0.1:9/topsecret"}), "wecom")
    out = capfd.readouterr()
    assert "topsecret" not in out.out + out.err


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "syslog://", "dbus://", "ssh://host", "windows://", "gotify://h/t"]
)
async def test_a_contact_may_name_no_channel_that_acts_on_this_machine(url: str) -> None:
    assert Channels({}).find(url) is None


async def test_a_contact_may_bring_a_url_of_its_own() -> None:
    channels = Channels({})
    found = channels.find("wecombot://abcdefgh")
    assert found is not None
    assert found.name == "wecom"
    assert channels.find("wecombot://abcdefgh") is found


async def test_names_of_channels_are_words() -> None:
    for name in ("WeCom", "console", "a b", ""):
        with pytest.raises(ValueError, match="cannot be a channel's name"):
            Channels({name: "json://x"})


@pytest.mark.parametrize("cap", [Cap(20, 60), Cap(60, 60), Cap(50, 1), Cap(1, 1), Cap(3, 10)])
def test_no_window_holds_more_than_the_cap(cap: Cap) -> None:
    now = 0.0
    bucket = Bucket(cap, lambda: now)
    left: list[float] = []
    while now < cap.seconds * 4:
        if wait_s := bucket.take():
            now += wait_s + 1e-9
        else:
            left.append(now)
    for start in left:
        assert sum(start <= at < start + cap.seconds for at in left) <= cap.messages
    assert len(left) >= cap.messages * 2  # and it does let them through


def test_a_cap_that_lets_nothing_through_is_refused() -> None:
    with pytest.raises(ValueError, match="lets nothing through"):
        Bucket(Cap(0, 60))


async def test_messages_leave_side_by_side(web: WebReceiver) -> None:
    web.gate.clear()
    channels = Channels({"wecom": web.url})
    sending = asyncio.gather(*(send(channels, "wecom", f"m-{n}") for n in range(4)))
    await until(lambda: len(web.taken) == 4)
    web.gate.set()
    assert await sending == [None] * 4
