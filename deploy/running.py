"""A running stack as other commands find it: by the file that `paidan up` leaves in its data folder."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2

from deploy.certificates import Certificates, trusting
from deploy.errors import Said, SetupError
from deploy.identities import Identities, issue_token
from deploy.servers import MongoServer
from shared.bus import Bus

CALL_WITHIN_S = 120.0


@dataclass(frozen=True)
class Running:
    """
    Where a running stack listens, and the keys to it.

    Attributes:
        data: its folder.
        urls: the HTTP side of each service.
        nats_url: its bus.
        pid: the `paidan up` that runs it.
        mongo_port: of its mongod; None where it uses one of your own.
        ca_file: the authority of its certificates; None where it serves in the clear.
    """

    data: Path
    urls: Mapping[str, str]
    nats_url: str
    own_nats: bool
    pid: int
    mongo_port: int | None
    ca_file: Path | None

    @classmethod
    def find(cls, data: Path) -> "Running":
        """
        The stack that runs in this folder.

        Raises:
            SetupError: none does.
        """
        try:
            document = json.loads((data / "stack.json").read_text())
            os.kill(document["pid"], 0)
        except (OSError, ValueError, KeyError):
            raise SetupError(
                Said(f"目录 {data} 中没有正在运行的派单", f"no stack runs in {data}"),
                Said(
                    "请先运行 paidan up，或用 --data 指定目录", "run `paidan up` first or name its folder with --data"
                ),
            ) from None
        return cls(
            data,
            document["urls"],
            document["nats_url"],
            document["own_nats"],
            document["pid"],
            document["ports"].get(MongoServer.name),
            Path(document["ca_file"]) if document["ca_file"] else None,
        )

    def token(self, *roles: str, district: str = "*", sub: str = "operator") -> str:
        """A bearer token for a few minutes."""
        return issue_token(Identities.open(self.data / "secrets"), sub, district, roles, timedelta(minutes=10))

    def seed(self, name: str) -> str | None:
        """What this name connects to its bus with; None where your own bus was given without one."""
        return Identities.open(self.data / "secrets").seed(name) if self.own_nats else given_seed(name)

    async def connect(self, name: str = "admin") -> Bus:
        """A connection to its bus; the caller drains it."""
        ca_file = self.ca_file if self.own_nats else given_ca_file()
        return await Bus.connect(self.nats_url, name=name, seed=self.seed(name), ca_file=ca_file)

    @property
    def mongodb_uri(self) -> str:
        """MongoDB as its ledger reaches it. Raises SetupError where it is your own and `MONGODB_URI` is not set here."""
        if (mongo := self._mongo()) is not None:
            return mongo.uri
        if given := os.environ.get("MONGODB_URI"):
            return given
        raise SetupError(
            Said("这套系统使用您自己的 MongoDB", "this stack uses a MongoDB of your own"),
            Said("请设置 MONGODB_URI", "set MONGODB_URI as for `paidan up`"),
        )

    @property
    def auditor_uri(self) -> str:
        """The same for reading alone."""
        mongo = self._mongo()
        return mongo.auditor_uri if mongo is not None else self.mongodb_uri

    def _mongo(self) -> MongoServer | None:
        if self.mongo_port is None:
            return None
        identities = Identities.open(self.data / "secrets")
        certificates = Certificates(self.ca_file.parent) if self.ca_file else None
        return MongoServer(self.data / "mongo", identities, self.mongo_port, certificates=certificates)

    def vkeys(self) -> list[str]:
        """The keys that its ledger says it signs with. Raises SetupError as `post`."""
        keys: list[str] = self._call("GET", "ledger", "/v1/log", roles=["auditor"]).json()["vkeys"]
        return keys

    @property
    def repair_uri(self) -> str:
        """MongoDB for repairs: user `repair`; your own by `MONGODB_REPAIR_URI`, else as its ledger reaches it. Raises SetupError."""
        mongo = self._mongo()
        return mongo.repair_uri if mongo is not None else os.environ.get("MONGODB_REPAIR_URI") or self.mongodb_uri

    def acted(self, act: str, of: str, why: str, *, district: str = "*") -> None:
        """
        Record in the ledger what is about to be done and is no fact by itself; what cannot be recorded should not be done.

        Args:
            act: a code, `contact_set`.
            of: on what: a pseudonym or another id, never a name or a number.
            district: whom it concerns.
        Raises:
            SetupError: as `post`.
        """
        body = json.dumps({"act": act, "of": of, "why": why}).encode()
        params = {} if district == "*" else {"district": district}
        self.post("ledger", "/v1/acts", body, roles=["admin"], params=params, key=uuid4().hex)

    def register(self) -> tuple[dict[str, Any], str]:
        """The register as the ledger has it, and its version, for `If-Match`. Raises SetupError as `post`."""
        response = self._call("GET", "ledger", "/v1/register", roles=["admin"])
        document: dict[str, Any] = response.json()
        return document, response.headers["ETag"]

    def get(self, service: str, path: str, params: Mapping[str, str], *, roles: Sequence[str]) -> dict[str, Any]:
        """GET from one of the services as somebody with these roles; what it answers. Raises SetupError as `post`."""
        answer: dict[str, Any] = self._call("GET", service, path, roles=roles, params=params).json()
        return answer

    def content(
        self, service: str, path: str, params: Mapping[str, str], *, roles: Sequence[str], district: str
    ) -> bytes:
        """The same as bytes, as somebody of a district. Raises SetupError as `post`."""
        return self._call("GET", service, path, roles=roles, district=district, params=params).content

    def post(
        self,
        service: str,
        path: str,
        content: bytes,
        *,
        roles: Sequence[str],
        params: Mapping[str, str] | None = None,
        media_type: str = "application/json",
        key: str | None = None,
        district: str = "*",
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """
        POST to one of the services as somebody with these roles; what it answers.

        Args:
            district: where they have them.
            key: the Idempotency-Key.
        Raises:
            SetupError: it refused, with its words and `code`, or did not answer.
        """
        more = {"Content-Type": media_type, **({"Idempotency-Key": key} if key else {}), **(headers or {})}
        called = self._call(
            "POST", service, path, roles=roles, district=district, content=content, params=params, headers=more
        )
        answer: dict[str, Any] = called.json()
        return answer

    @contextmanager
    def stream(
        self,
        service: str,
        path: str,
        params: Mapping[str, str] | None = None,
        *,
        roles: Sequence[str],
        district: str = "*",
    ) -> Iterator[httpx2.Response]:
        """
        What a service streams. Raises httpx2.TransportError where it breaks off.

        Raises:
            SetupError: it refused.
        """
        headers = {"Authorization": f"Bearer {self.token(*roles, district=district)}"}
        client = httpx2.Client(timeout=CALL_WITHIN_S, trust_env=False, verify=trusting(self.ca_file))
        url = f"{self.urls[service]}{path}"
        with client, client.stream("GET", url, params=params, headers=headers) as response:
            if response.is_error:
                response.read()
                raise refused(service, response)
            yield response

    def lines(
        self, service: str, path: str, *, roles: Sequence[str], params: Mapping[str, str] | None = None
    ) -> Iterator[bytes]:
        """
        What a service streams, line by line; what breaks off just ends.

        Raises:
            SetupError: as `post`.
        """
        try:
            with self.stream(service, path, params, roles=roles) as response:
                rest = b""
                for chunk in response.iter_bytes():
                    *whole, rest = (rest + chunk).split(b"\n")
                    yield from whole
        except httpx2.RemoteProtocolError:
            return  # the reader misses its last line
        except httpx2.HTTPError as error:
            raise silent(service, f"{self.urls[service]}{path}", error) from error

    def _call(
        self,
        method: str,
        service: str,
        path: str,
        *,
        roles: Sequence[str],
        district: str = "*",
        content: bytes | None = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx2.Response:
        url = f"{self.urls[service]}{path}"
        try:
            response = httpx2.request(
                method,
                url,
                content=content,
                params=params,
                headers={"Authorization": f"Bearer {self.token(*roles, district=district)}", **(headers or {})},
                timeout=CALL_WITHIN_S,
                trust_env=False,
                verify=trusting(self.ca_file),
            )
        except httpx2.HTTPError as error:
            raise silent(service, url, error) from error
        if response.is_error:
            raise refused(service, response)
        return response


def given_seed(name: str) -> str | None:
    """The credentials in the file that `PAIDAN_<NAME>_SEED_FILE` names, for a bus of your own; None where it is not set."""
    file = os.environ.get(f"PAIDAN_{name.upper()}_SEED_FILE")
    return Path(file).read_text().strip() if file else None


def given_ca_file() -> Path | None:
    """The authority of a bus of your own, which `NATS_CA_FILE` names; None where it is not set."""
    file = os.environ.get("NATS_CA_FILE")
    return Path(file) if file else None


def silent(service: str, url: str, error: httpx2.HTTPError) -> SetupError:
    """A service that does not answer."""
    return SetupError(
        Said(f"{service} 没有应答（{url}）", f"{service} did not answer at {url} ({type(error).__name__})"),
        Said("请查看 logs 目录中的日志", "look at its log in the folder `logs`"),
    )


def refused(service: str, response: httpx2.Response) -> SetupError:
    """A service's refusal (RFC 9457, or anything else) in the words of the command line."""
    code = ""
    try:
        problem = response.json()
        code = str(problem["code"])
        title, remedy = str(problem["title"]), str(problem.get("detail", ""))
        title_en, remedy_en = str(problem.get("title_en", title)), str(problem.get("detail_en", remedy))
        if (field := str(problem.get("field", ""))) and field not in title:
            title, title_en = f"{field}：{title}", f"{field}: {title_en}"
    except (ValueError, KeyError, TypeError):
        title = title_en = response.text.strip()[:300] or response.reason_phrase
        remedy, remedy_en = "请查看其日志", "look at its log"
    return SetupError(
        Said(
            f"{service} 拒绝（{response.status_code}）：{title}",
            f"{service} refused ({response.status_code}): {title_en}",
        ),
        Said(remedy, remedy_en),
        code,
    )
