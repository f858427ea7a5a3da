"""
Messages that come in by webhook: who may have sent them is checked before anything is read.

Two shapes. *Signed*, for SMS gateways: JSON or a form, with `Paidan-Timestamp` (seconds since 1970) and `Paidan-Signature`
(`sha256=` and the hexadecimal HMAC-SHA256 of timestamp, full stop, body). *WeCom*: the callback of an application, its
signature over token, timestamp, nonce and ciphertext, and AES-256-CBC below it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple
from urllib.parse import parse_qsl
from xml.parsers import expat

import orjson
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from pydantic import BaseModel, ConfigDict, Field, SecretStr, TypeAdapter, ValidationError

from services.notify.decide import VIA
from shared.errors import RefusedError

FRESH_S = 300
"""How old a message may be, and how far ahead its sender's clock."""
SEEN_MAX = 100_000
XML_DEPTH_MAX = 8
TEXT_FIELDS = ("text", "content", "message", "body")
SENDER_FIELDS = ("from", "sender", "mobile", "phone")


class Inbound(NamedTuple):
    """One message: what it says, and who sent it, by which attempts are counted; never kept."""

    text: str
    sender: str


class Channel(BaseModel):
    """What both kinds share."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Signed(Channel):
    """A gateway that signs what it posts. `sender`: the field that it names them in, where it is none of the usual ones."""

    kind: Literal["signed"]
    secret: Annotated[SecretStr, Field(min_length=16)]
    sender: Annotated[str | None, Field(min_length=1)] = None

    def open(self, body: bytes, content_type: str, headers: Mapping[str, str], now_s: float) -> Inbound:
        """
        The message in a request.

        Raises:
            RefusedError: `bad_signature` (401), `stale_signature` (403), `invalid` where it says nothing or nobody has sent it.
        """
        timestamp, given = headers.get("paidan-timestamp", ""), headers.get("paidan-signature", "")
        made = sign(self.secret.get_secret_value(), timestamp, body)
        if not given or not hmac.compare_digest(made.encode(), given.encode()):
            raise RefusedError("bad_signature")
        fresh(timestamp, now_s)
        fields = _fields(body, content_type)
        text = next((fields[name] for name in TEXT_FIELDS if fields.get(name)), None)
        if text is None:
            raise RefusedError("invalid", field="text", why="必填", why_en="required")
        names = (self.sender,) if self.sender else SENDER_FIELDS
        return Inbound(text, _named(next((fields[name] for name in names if fields.get(name)), ""), names[0]))


class WeCom(Channel):
    """A WeCom application's callback. `receiver` is the corp id that every message must name."""

    kind: Literal["wecom"]
    token: SecretStr
    aes_key: SecretStr
    receiver: str

    def verify(self, signature: str, timestamp: str, nonce: str, encrypted: str) -> None:
        """Raises RefusedError `bad_signature`."""
        if not hmac.compare_digest(self.signature(timestamp, nonce, encrypted).encode(), signature.encode()):
            raise RefusedError("bad_signature")

    def signature(self, timestamp: str, nonce: str, encrypted: str) -> str:
        """As WeCom makes it: SHA-1 of the four, sorted and joined."""
        parts = sorted((self.token.get_secret_value(), timestamp, nonce, encrypted))
        return hashlib.sha1("".join(parts).encode()).hexdigest()  # noqa: S324 - their protocol

    def echo(self, query: Mapping[str, str], now_s: float) -> str:
        """The answer to WeCom's question whether this is us. Raises RefusedError as `open`."""
        return self._decrypted(query, query.get("echostr", ""), now_s)

    def open(self, body: bytes, query: Mapping[str, str], now_s: float) -> Inbound:
        """
        The message in a callback; one that is no text says nothing.

        Raises:
            RefusedError: `bad_signature` (401), `stale_signature` (403), `invalid`.
        """
        inner = elements(self._decrypted(query, elements(body).get("Encrypt", ""), now_s).encode())
        text = inner.get("Content", "") if inner.get("MsgType") == "text" else ""
        return Inbound(text, _named(inner.get("FromUserName", ""), "FromUserName"))

    def sealed(self, reply: str, to: str, now_s: float) -> str:
        """An answer in the callback's own response, encrypted and signed."""
        words = {"ToUserName": to, "FromUserName": self.receiver, "MsgType": "text", "Content": reply}
        inner = "".join(f"<{name}><![CDATA[{_cdata(value)}]]></{name}>" for name, value in words.items())
        timestamp, nonce = str(int(now_s)), os.urandom(8).hex()
        encrypted = self.encrypt(f"<xml>{inner}<CreateTime>{timestamp}</CreateTime></xml>")
        return (
            f"<xml><Encrypt><![CDATA[{encrypted}]]></Encrypt>"
            f"<MsgSignature><![CDATA[{self.signature(timestamp, nonce, encrypted)}]]></MsgSignature>"
            f"<TimeStamp>{timestamp}</TimeStamp><Nonce><![CDATA[{nonce}]]></Nonce></xml>"
        )

    def encrypt(self, message: str) -> str:
        """As WeCom does: 16 random bytes, length, message, receiver; padded to 32."""
        raw = message.encode()
        plain = os.urandom(16) + len(raw).to_bytes(4, "big") + raw + self.receiver.encode()
        pad = 32 - len(plain) % 32
        writing = self._cipher().encryptor()
        return base64.b64encode(writing.update(plain + bytes([pad]) * pad) + writing.finalize()).decode()

    def _decrypted(self, query: Mapping[str, str], encrypted: str, now_s: float) -> str:
        timestamp = query.get("timestamp", "")
        self.verify(query.get("msg_signature", ""), timestamp, query.get("nonce", ""), encrypted)
        fresh(timestamp, now_s)
        try:
            reading = self._cipher().decryptor()
            plain = reading.update(base64.b64decode(encrypted, validate=True)) + reading.finalize()
            pad = plain[-1]
            if not 1 <= pad <= 32 or plain[-pad:] != bytes([pad]) * pad:
                raise ValueError("padding")
            size = int.from_bytes(plain[16:20], "big")
            message, receiver = plain[20 : 20 + size], plain[20 + size : -pad]
            if len(message) != size or not hmac.compare_digest(receiver, self.receiver.encode()):
                raise ValueError("receiver")
            return message.decode()
        except (
            ValueError,
            IndexError,
        ):  # one answer for all of it: what is wrong with a ciphertext is nobody's business
            raise RefusedError("bad_signature") from None

    def _cipher(self) -> Cipher[modes.CBC]:
        key = base64.b64decode(self.aes_key.get_secret_value() + "=")
        return Cipher(algorithms.AES256(key), modes.CBC(key[:16]))


Webhook = Annotated[Signed | WeCom, Field(discriminator="kind")]
_WEBHOOKS: TypeAdapter[dict[str, Webhook]] = TypeAdapter(dict[str, Webhook])


def webhooks(file: Path | None) -> Mapping[str, Signed | WeCom]:
    """
    The webhooks that a file configures, by name.

    Raises:
        OSError, ValueError: it cannot be read; what it holds is not shown.
    """
    if file is None:
        return {}
    try:
        read = _WEBHOOKS.validate_python(json.loads(file.read_text()))
        for name, channel in read.items():
            if VIA.fullmatch(name) is None or name == "link":
                raise ValueError(f"{name!r} cannot be a webhook's name")
            if isinstance(channel, WeCom):
                channel.encrypt("")
    except json.JSONDecodeError as why:
        raise ValueError(f"{file} is not JSON (line {why.lineno})") from None
    except ValidationError as why:
        first = why.errors(include_input=False)[0]
        raise ValueError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return read


def sign(secret: str, timestamp: str, body: bytes) -> str:
    """The signature of a body as gateways make it."""
    return "sha256=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def fresh(timestamp: str, now_s: float) -> None:
    """Raises RefusedError `stale_signature` for what was signed more than five minutes ago, or ahead."""
    if re.fullmatch(r"[0-9]{1,12}", timestamp, re.ASCII) is None or abs(now_s - int(timestamp)) > FRESH_S:
        raise RefusedError("stale_signature", why="超过 5 分钟", why_en="older than five minutes")


class Seen:
    """What was taken in while it still counts as fresh: the same signature is not taken twice by one instance."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._taken: OrderedDict[str, float] = OrderedDict()

    def take(self, signature: str) -> None:
        """It is taken in. Raises RefusedError `stale_signature` where it was before."""
        now = self._clock()
        while self._taken and (len(self._taken) > SEEN_MAX or next(iter(self._taken.values())) < now):
            self._taken.popitem(last=False)
        if signature in self._taken:
            raise RefusedError("stale_signature", why="重复提交", why_en="it was taken in already")
        self._taken[signature] = now + 2 * FRESH_S

    def forget(self, signature: str) -> None:
        """Nothing could be done with it now: it may come again as it is."""
        self._taken.pop(signature, None)


def elements(document: bytes) -> dict[str, str]:
    """
    The text of an XML document's elements below its root, by name: no document type, so no entities; no depth.

    Raises:
        RefusedError: `invalid`.
    """
    found: dict[str, str] = {}
    path: list[str] = []

    def begins(name: str, _: object) -> None:
        path.append(name)
        if len(path) > XML_DEPTH_MAX:
            raise ValueError("too deep")

    def ends(_: str) -> None:
        path.pop()

    def says(text: str) -> None:
        if len(path) == 2:
            found[path[1]] = found.get(path[1], "") + text

    def refuses(*_: object) -> None:
        raise ValueError("a document type")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = begins, ends
    parser.CharacterDataHandler = says
    parser.StartDoctypeDeclHandler = refuses
    try:
        parser.Parse(document, True)
    except (expat.ExpatError, ValueError, LookupError):  # of an encoding that nobody knows
        raise RefusedError(
            "invalid", field="body", why="不是可接受的 XML", why_en="not XML as it is expected"
        ) from None
    return found


def _fields(body: bytes, content_type: str) -> Mapping[str, str]:
    """JSON or a form, as flat text. Raises RefusedError `invalid_json`."""
    try:
        if content_type.partition(";")[0].strip().lower() == "application/x-www-form-urlencoded":
            return dict(parse_qsl(body.decode(), max_num_fields=50))
        document = orjson.loads(body)
    except ValueError:
        raise RefusedError("invalid_json") from None
    if not isinstance(document, dict):
        raise RefusedError("invalid", field="body", why="须为 JSON 对象", why_en="must be a JSON object")
    return {name: str(value) for name, value in document.items() if isinstance(value, str | int)}


def _named(sender: str, field: str) -> str:
    """Raises RefusedError `invalid` where nobody is: by senders wrong codes are counted."""
    if not sender:
        raise RefusedError("invalid", field=field, why="缺少发送人", why_en="who sent it is missing")
    return sender


def _cdata(value: str) -> str:
    return value.replace("]]>", "]]]]><![CDATA[>")
