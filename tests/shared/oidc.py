"""A small OIDC issuer for tests: real HTTP on loopback, keys that rotate, and every way to answer badly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import jwt
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from fastapi import FastAPI, Response

from deploy.servers import free_port


class OidcServer:
    """
    An issuer.

    Attributes:
        broken: what it answers to every request instead: `500`, `silence`, `huge`, `garbage`, `redirect`,
            `impostor`, `no address`; None where it works.
        asked: how many times for its keys.
        listed: the JWKS it shows.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.broken: str | None = None
        self.asked = 0
        self.listed: list[dict[str, Any]] = []
        self.rotate()

    def rotate(self) -> None:
        """A new key, and the old one is gone."""
        self.key = generate_private_key(SECP256R1())
        self.kid = uuid4().hex
        public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self.key.public_key()))
        self.listed = [{**public, "kid": self.kid, "use": "sig", "alg": "ES256"}]

    def token(self, **claims: Any) -> str:
        """A token of somebody, with these claims instead of good ones."""
        now = int(datetime.now(UTC).timestamp())
        good = {
            "iss": self.url, "aud": "paidan", "sub": "staff-9", "district": "420106", "roles": ["dispatcher"],
            "iat": now, "exp": now + 600,
        }  # fmt: skip
        held = {name: value for name, value in {**good, **claims}.items() if value is not None}
        return jwt.encode(held, self.key, algorithm="ES256", headers={"kid": self.kid})

    def app(self) -> FastAPI:
        """Its two documents."""
        app = FastAPI()

        @app.get("/.well-known/openid-configuration")
        async def discovery() -> Response:
            match self.broken:
                case "500":
                    return Response("away", 500)
                case "silence":
                    await asyncio.sleep(30)
                case "huge":
                    return Response(b" " * 1_000_000)
                case "garbage":
                    return Response(b"<html>")
                case "redirect":
                    return Response(status_code=302, headers={"Location": f"{self.url}/elsewhere"})
            issuer = "https://impostor.example" if self.broken == "impostor" else self.url
            keys = "https://id.example:x/\x00" if self.broken == "no address" else f"{self.url}/keys"
            return Response(json.dumps({"issuer": issuer, "jwks_uri": keys}))

        @app.get("/elsewhere")
        async def elsewhere() -> dict[str, str]:
            return {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}

        @app.get("/keys")
        async def keys() -> dict[str, Any]:
            self.asked += 1
            return {"keys": self.listed}

        return app


@asynccontextmanager
async def oidc_server() -> AsyncIterator[OidcServer]:
    """One that runs."""
    port = free_port()
    issuer = OidcServer(f"http://127.0.0.1:{port}")
    config = uvicorn.Config(
        issuer.app(), host="127.0.0.1", port=port, log_config=None, access_log=False, timeout_graceful_shutdown=0
    )
    server = uvicorn.Server(config)
    running = asyncio.create_task(server._serve())
    async with asyncio.timeout(10):
        while not server.started:
            await asyncio.sleep(0.01)
    try:
        yield issuer
    finally:
        server.should_exit = True
        await running
