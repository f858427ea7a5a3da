"""Webhooks: nothing is read before it is known who sent it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from services.notify.inbound import FRESH_S, Seen, Signed, WeCom, elements, sign, webhooks
from shared.errors import RefusedError

SECRET = "a secret of some length"
NOW = 1_795_320_000
HOOK = Signed(kind="signed", secret=SecretStr(SECRET))
BODY = json.dumps({"from": "13900000001", "text": "接 7K3M9QX2"}).encode()
JSON, FORM = "application/json", "application/x-www-form-urlencoded"
WECOM = WeCom(
    kind="wecom",
    token=SecretStr("QDG6eK"),
    aes_key=SecretStr("jWmYm7qr5nMoAUwZRjGtBxmz3KA1tkAj3ykkR6q2B2C"),
    receiver="wx5823bf96d3bd56c7",
)
"""The keys of WeCom's own published example."""


def headers(body: bytes = BODY, at: int = NOW, secret: str = SECRET) -> dict[str, str]:
    """As a gateway signs."""
    return {"paidan-timestamp": str(at), "paidan-signature": sign(secret, str(at), body)}


def refusal(call: Any, *args: Any) -> str:
    """The code of what it raises."""
    with pytest.raises(RefusedError) as why:
        call(*args)
    return why.value.code


# --- signed -----------------------------------------------------------------------------------------------------------


def test_a_signed_message_is_read_as_json_or_as_a_form() -> None:
    assert HOOK.open(BODY, JSON, headers(), NOW) == ("接 7K3M9QX2", "13900000001")
    form = b"mobile=13900000001&content=%E6%8E%A5+7K3M9QX2"
    assert HOOK.open(form, FORM + "; charset=utf-8", headers(form), NOW) == ("接 7K3M9QX2", "13900000001")
    number = b'{"mobile": 13900000001, "text": "x"}'
    assert HOOK.open(number, JSON, headers(number), NOW).sender == "13900000001"


def test_a_gateway_may_name_its_senders_in_a_field_of_its_own_and_names_them_always() -> None:
    body = json.dumps({"msisdn": "13900000001", "from": "10690000", "text": "接 7K3M9QX2"}).encode()
    own = HOOK.model_copy(update={"sender": "msisdn"})
    assert own.open(body, JSON, headers(body), NOW).sender == "13900000001"
    assert refusal(own.open, BODY, JSON, headers(), NOW) == "invalid"
    nobody = b'{"msisdn": "13900000001", "text": "x"}'
    assert refusal(HOOK.open, nobody, JSON, headers(nobody), NOW) == "invalid"
    assert refusal(WECOM.open, *callback(TEXT.replace("FromUserName", "From")), NOW) == "invalid"


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({}, "bad_signature"),
        ({"paidan-timestamp": str(NOW)}, "bad_signature"),
        (headers(secret="another secret that is long"), "bad_signature"),
        (headers(BODY + b" "), "bad_signature"),
        ({**headers(), "paidan-timestamp": str(NOW + 1)}, "bad_signature"),
        ({**headers(), "paidan-signature": "sha256=接"}, "bad_signature"),
        ({**headers(), "paidan-signature": headers()["paidan-signature"] + " "}, "bad_signature"),
        (headers(at=NOW - FRESH_S - 1), "stale_signature"),
        (headers(at=NOW + FRESH_S + 1), "stale_signature"),
        (headers(at=-1), "stale_signature"),
    ],
)
def test_unsigned_forged_changed_and_old_messages_are_refused(given: dict[str, str], code: str) -> None:
    assert refusal(HOOK.open, BODY, JSON, given, NOW) == code


@pytest.mark.parametrize(
    ("body", "type", "code"),
    [
        (b"{", JSON, "invalid_json"),
        (b"[]", JSON, "invalid"),
        (b"{}", JSON, "invalid"),
        (b'{"text": 1}', JSON, "invalid"),
        (b"\xff", JSON, "invalid_json"),
        (b"\xff=1", FORM, "invalid_json"),
        (b"&".join(b"a=1" for _ in range(99)), FORM, "invalid_json"),
    ],
)
def test_what_a_gateway_should_not_send_is_refused_with_a_reason(body: bytes, type: str, code: str) -> None:
    assert refusal(HOOK.open, body, type, headers(body), NOW) == code


def test_a_signature_counts_once_for_as_long_as_it_is_fresh() -> None:
    now = 0.0
    seen = Seen(lambda: now)
    seen.take("one")
    assert refusal(seen.take, "one") == "stale_signature"
    seen.forget("one")  # what was not done may come again
    seen.take("one")
    now = 2 * FRESH_S + 1
    seen.take("one")


# --- WeCom ------------------------------------------------------------------------------------------------------------


def test_wecoms_own_example_is_read() -> None:
    echo = "P9nAzCzyDtyTWESHep1vC5X9xho/qYX3Zpb4yKa9SKld1DsH3Iyt3tP3zNdtp+4RPcs8TgAE7OaBO+FZXvnaqQ=="
    query = {
        "msg_signature": "5c45ff5e21c57e6ad56bac8758b79b1d9ac89fd3", "timestamp": "1409659589", "nonce": "263014780", "echostr": echo,
    }  # fmt: skip
    assert WECOM.echo(query, 1409659589) == "1616140317555161061"


def callback(inner: str, hook: WeCom = WECOM, at: int = NOW) -> tuple[bytes, dict[str, str]]:
    """A callback as WeCom posts it."""
    encrypted = hook.encrypt(inner)
    body = f"<xml><ToUserName><![CDATA[x]]></ToUserName><Encrypt><![CDATA[{encrypted}]]></Encrypt></xml>"
    query = {"msg_signature": hook.signature(str(at), "n1", encrypted), "timestamp": str(at), "nonce": "n1"}
    return body.encode(), query


TEXT = (
    "<xml><ToUserName>corp</ToUserName><FromUserName><![CDATA[li]]></FromUserName><CreateTime>1</CreateTime>"
    "<MsgType><![CDATA[text]]></MsgType><Content><![CDATA[接 7K3M9QX2]]></Content><MsgId>1</MsgId></xml>"
)


def test_a_message_is_decrypted_and_the_answer_can_be_read_by_wecom() -> None:
    body, query = callback(TEXT)
    assert WECOM.open(body, query, NOW) == ("接 7K3M9QX2", "li")
    sent = elements(WECOM.sealed("已接单]]>谢谢", "li", NOW).encode())
    WECOM.verify(sent["MsgSignature"], sent["TimeStamp"], sent["Nonce"], sent["Encrypt"])
    again = {"msg_signature": sent["MsgSignature"], "timestamp": sent["TimeStamp"], "nonce": sent["Nonce"]}
    inner = elements(WECOM.echo({**again, "echostr": sent["Encrypt"]}, NOW).encode())
    assert (inner["ToUserName"], inner["Content"]) == ("li", "已接单]]>谢谢")


def test_a_picture_says_nothing() -> None:
    body, query = callback(TEXT.replace("text", "image"))
    assert WECOM.open(body, query, NOW).text == ""


def test_forged_old_and_foreign_callbacks_are_refused() -> None:
    body, query = callback(TEXT)
    assert refusal(WECOM.open, body, {**query, "msg_signature": "0" * 40}, NOW) == "bad_signature"
    assert refusal(WECOM.open, body, {}, NOW) == "bad_signature"
    assert refusal(WECOM.open, body, query, NOW + FRESH_S + 1) == "stale_signature"
    other = WECOM.model_copy(update={"receiver": "another corporation"})
    assert refusal(WECOM.open, *callback(TEXT, other), NOW) == "bad_signature"
    key = SecretStr(base64.b64encode(bytes(32)).decode().rstrip("="))
    assert refusal(WECOM.open, *callback(TEXT, WECOM.model_copy(update={"aes_key": key})), NOW) == "bad_signature"


@pytest.mark.parametrize(
    "document",
    [
        '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><xml><Encrypt>&b;</Encrypt></xml>',
        '<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]><xml><Encrypt>&f;</Encrypt></xml>',
        '<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd"><xml/>',
        "<xml>" + "<a>" * 1000,
        "no xml",
        "",
        "<xml><Encrypt>",
        '<?xml version="1.0" encoding="foo"?><xml><Encrypt>x</Encrypt></xml>',
        '<?xml version="1.0" encoding="hex"?><xml><Encrypt>x</Encrypt></xml>',
    ],
)
def test_xml_with_entities_or_depth_or_none_at_all_is_refused(document: str) -> None:
    assert refusal(elements, document.encode()) == "invalid"


# --- configuration ----------------------------------------------------------------------------------------------------


def test_webhooks_are_configured_by_a_file(tmp_path: Path) -> None:
    file = tmp_path / "inbound.json"
    wecom = {"kind": "wecom", "token": "t", "aes_key": WECOM.aes_key.get_secret_value(), "receiver": "corp"}
    file.write_text(json.dumps({"sms": {"kind": "signed", "secret": SECRET}, "wecom": wecom}))
    assert {name: hook.kind for name, hook in webhooks(file).items()} == {"sms": "signed", "wecom": "wecom"}
    assert SECRET not in repr(webhooks(file))
    assert webhooks(None) == {}


@pytest.mark.parametrize(
    "content",
    [
        '{"sms": {"kind": "signed", "secret": "tooshort"}}',
        '{"sms": {"kind": "signed", "secret": "tooshort-tooshort", "sender": ""}}',
        '{"sms": {"kind": "fax", "secret": "tooshort-tooshort"}}',
        '{"SMS": {"kind": "signed", "secret": "tooshort-tooshort"}}',
        '{"link": {"kind": "signed", "secret": "tooshort-tooshort"}}',
        '{"w": {"kind": "wecom", "token": "t", "aes_key": "tooshort", "receiver": "r"}}',
        "{tooshort",
    ],
)
def test_a_wrong_configuration_is_named_without_showing_a_secret(tmp_path: Path, content: str) -> None:
    (tmp_path / "inbound.json").write_text(content)
    with pytest.raises(ValueError, match=r".") as why:
        webhooks(tmp_path / "inbound.json")
    assert "tooshort" not in str(why.value)
