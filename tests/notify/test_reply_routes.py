"""The routes of short replies by themselves: who tries codes waits, WeCom is answered in its own way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, cast

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import SecretStr

from deploy.identities import Identities
from services.notify.api import MISSES_BURST, Answering, create_app
from services.notify.codes import Codes
from services.notify.inbound import Signed, WeCom, elements, sign
from services.notify.replying import Bus, Replies, Signer
from services.notify.wording import Wording
from shared.auth import REPLIES, Doorkeeper
from shared.errors import RefusedError, UnavailableError
from tests.notify.examples import LI, NOON, WANG, WUCHANG, given, offered
from tests.notify.test_inbound import NOW, SECRET, TEXT, WECOM, callback

PEM = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


class NoDesk:
    """A bus on which nobody answers: what gets this far would have been asked."""

    asked = 0

    async def request(self, subject: str, data: bytes, *, timeout_s: float = 2) -> bytes:
        """Nobody."""
        self.asked += 1
        raise UnavailableError(f"nobody answers {subject}")


async def nothing_missing() -> dict[str, str]:
    """Ready."""
    return {}


class Door:
    """The app of an instance that serves one district with two open offers."""

    def __init__(self) -> None:
        self.bus = NoDesk()
        post = given(offered(LI, WANG))
        codes = Codes("secret")
        self.codes = [codes.of(notice) for notice in post.replies]
        replies = Replies(cast(Bus, self.bus), codes, Signer(PEM), lambda: [post], clock=lambda: NOON)
        hooks: dict[str, Signed | WeCom] = {"sms": Signed(kind="signed", secret=SecretStr(SECRET)), "wecom": WECOM}
        from datetime import UTC, datetime

        answering = Answering(replies, Wording.open("https://x"), hooks, lambda: datetime.fromtimestamp(NOW, UTC))
        served: Any = None
        self.app = create_app(served, answering, ready=nothing_missing, doorkeeper=Doorkeeper.from_file(None))
        self.http = self.at("127.0.0.1")

    def at(self, address: str) -> httpx2.AsyncClient:
        """Somebody at an address."""
        return httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=self.app, client=(address, 1)), base_url="http://notify"
        )

    async def sms(self, text: str, sender: str, n: int = 0) -> dict[str, Any]:
        """A signed message; `n` makes it another one."""
        body = httpx2.Request("POST", "http://x", json={"from": sender, "text": text, "n": n}).content
        headers = {"Paidan-Timestamp": str(NOW), "Paidan-Signature": sign(SECRET, str(NOW), body)}
        answer = await self.http.post(
            "/v1/inbound/sms", content=body, headers=headers | {"Content-Type": "application/json"}
        )
        assert answer.status_code == 200, answer.text
        said: dict[str, Any] = answer.json()
        return said


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    """One of this test's own."""
    made = Door()
    yield made
    await made.http.aclose()


@contextmanager
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody waits for a desk that is not there."""
    from services.notify import replying

    monkeypatch.setattr(replying, "WITHIN_S", 0.05)
    yield


async def test_wrong_codes_are_all_the_same_and_a_right_one_is_let_through(door: Door) -> None:
    answers = [await door.http.get(f"/r/{n:08}") for n in range(50)]
    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.text for answer in answers}) == 1
    assert (await door.http.get(f"/r/{door.codes[0]}")).status_code == 200


async def test_where_many_are_wrong_who_was_waits_even_with_a_right_one_and_who_was_not_does_not(door: Door) -> None:
    from_many = [door.at(f"192.0.2.{n}") for n in range(MISSES_BURST)]
    assert {(await one.get("/r/00000000")).status_code for one in from_many} == {404}
    for call in (from_many[-1].get, from_many[-1].post):
        assert (await call(f"/r/{door.codes[0]}")).status_code == 429
    assert door.bus.asked == 0
    assert (await door.at("198.51.100.1").get(f"/r/{door.codes[0]}")).status_code == 200


async def test_each_sender_behind_a_webhook_waits_alone(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    with impatient(monkeypatch):
        for n in range(MISSES_BURST):
            assert (await door.sms(f"接 {n:08}", f"139{n % 10:08}"))["code"] in ("code_unknown", "too_many")
        assert (await door.sms("接 00000000", "13800000001"))["code"] == "code_unknown"
        assert (await door.sms(f"接 {door.codes[0]}", "13800000001"))["code"] == "too_many"
        assert (await door.sms(f"接 {door.codes[0]}", "13800000002"))["code"] == "no_leader"  # the desk was asked


async def test_what_is_not_understood_costs_nothing_and_is_answered_with_how_to_write_it(door: Door) -> None:
    for n in range(3):
        answer = await door.sms(f"{door.codes[0]} 到不了", "13900000001", n)
        assert answer["code"] == "not_understood"
        assert "接 码" in answer["reply"]
    assert door.bus.asked == 0


async def test_what_could_not_be_done_now_may_be_sent_again_as_it_was(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    with impatient(monkeypatch):
        for _ in range(2):
            assert (await door.sms(f"接 {door.codes[0]}", "13900000001"))["code"] == "no_leader"


async def test_looking_at_a_page_asks_nobody_and_a_code_is_for_its_own_question(door: Door) -> None:
    assert (await door.http.head(f"/r/{door.codes[0]}")).status_code == 405
    page = await door.http.get(f"/r/{door.codes[0]}")
    assert page.status_code == 200
    refused = await door.http.post(f"/r/{door.codes[0]}", data={"verb": "done"})
    assert (refused.status_code, door.bus.asked) == (409, 0)
    assert (await door.http.post(f"/r/{door.codes[0]}", content=b"\xff=\xff")).status_code == 422


async def test_wecom_is_told_that_this_is_its_callback_and_members_are_answered_in_the_chat(door: Door) -> None:
    echo = WECOM.encrypt("1616140317555161061")
    query = {
        "timestamp": str(NOW),
        "nonce": "n",
        "echostr": echo,
        "msg_signature": WECOM.signature(str(NOW), "n", echo),
    }
    assert (await door.http.get("/v1/inbound/wecom", params=query)).text == "1616140317555161061"
    body, signed = callback(TEXT)
    answer = await door.http.post("/v1/inbound/wecom", content=body, params=signed)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/xml")
    sent = elements(answer.content)
    again = {"timestamp": sent["TimeStamp"], "nonce": sent["Nonce"], "echostr": sent["Encrypt"]}
    inner = elements(WECOM.echo({**again, "msg_signature": sent["MsgSignature"]}, NOW).encode())
    assert inner["Content"].startswith("回复码无效")
    replayed = await door.http.post("/v1/inbound/wecom", content=body, params=signed)
    assert replayed.status_code == 403


@pytest.mark.parametrize(
    ("method", "channel", "status"),
    [("GET", "wecom", 401), ("GET", "sms", 404), ("POST", "wecom", 422), ("POST", "fax", 404)],
)
async def test_strangers_learn_nothing(door: Door, method: str, channel: str, status: int) -> None:
    answer = await door.http.request(method, f"/v1/inbound/{channel}")
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


async def test_without_short_replies_no_code_is_valid(identities: Identities) -> None:
    served: Any = None
    off = Answering(None, Wording.open("https://x"), {})
    app = create_app(served, off, ready=nothing_missing, doorkeeper=Doorkeeper.from_file(None))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://notify") as http:
        assert (await http.get("/r/7K3M9QX2")).status_code == 404
        assert (await http.post("/v1/inbound/sms")).status_code == 404


def test_a_short_replys_token_is_a_members_for_a_minute_and_opens_nothing_but_replies(identities: Identities) -> None:
    from datetime import UTC, datetime

    signer = Signer((identities.secrets_dir("notify") / "replies.pem").read_bytes())
    doorkeeper = Doorkeeper.from_file(identities.jwks_file)
    token = signer.token(LI, WUCHANG, datetime.now(UTC))
    caller = doorkeeper.check(token, replies=True)
    assert (caller.id, caller.district, set(caller.roles), caller.issuer) == (LI, WUCHANG, {"member"}, REPLIES)
    assert 50 < caller.expires - datetime.now(UTC).timestamp() <= 60
    with pytest.raises(RefusedError, match="unauthenticated"):
        doorkeeper.check(token)
