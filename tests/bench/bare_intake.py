"""
The bare limit of intake: a FastAPI route that validates the same body and makes the same writes, and no logic.

`python -m tests.bench.bare_intake PORT` (NATS_URL, PAIDAN_NATS_SEED_FILE): key and look-up, ciphertext, fact, in this order, each
acknowledged, of the sizes that intake's have, by the same calls: the same group commit, the same fences, the same look for
a known contact before a key is made. No sealing, no places, no catalogue, no clocks, no answer to make up.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from fastapi import FastAPI, Response

from services.intake.committing import GroupCommit
from services.intake.model import Submission
from shared.bus import STREAM, Bus, Message
from shared.ids import new_id
from tests.bench.ground import DISTRICT

KEY = b"k" * 60
"""A wrapped key: nonce, 32 bytes, tag."""
KID_CHARS = 32
CIPHERTEXT_OVERHEAD = 28
ANSWER = b'{"id":"%s","padding":"' + b"x" * 700 + b'"}'


def create_app(bus: Bus, fact: bytes) -> FastAPI:
    """The app; `fact` is what every request becomes."""
    app = FastAPI()
    keys, ciphertexts, facts = GroupCommit(bus, "KEYS"), GroupCommit(bus, "SEALED"), GroupCommit(bus, STREAM)

    @app.post("/v1/requests", status_code=201)
    async def submit(asked: Submission) -> Response:
        id, kid, lookup = new_id(), secrets.token_hex(16), secrets.token_hex(32)
        personal = asked.text.encode() + b"c" * 50
        await bus.last(f"keys.{DISTRICT}.by.{lookup}", stream="KEYS")
        await keys.store(
            Message(f"keys.{DISTRICT}.by.{lookup}", kid.encode(), 0), Message(f"keys.{DISTRICT}.{kid}", KEY, 0)
        )
        await ciphertexts.store(Message(f"sealed.{DISTRICT}.{kid}.{id}", personal + b"o" * CIPHERTEXT_OVERHEAD, 0))
        await facts.store(Message(f"evt.{DISTRICT}.intake.bench-1a.request.submitted.{id}", fact, 0))
        return Response(ANSWER % id.encode(), 201, media_type="application/json")

    return app


async def serve(port: int, fact: bytes) -> None:
    """Until SIGTERM."""
    seed = Path(os.environ["PAIDAN_NATS_SEED_FILE"]).read_text().strip()
    bus = await Bus.connect(os.environ["NATS_URL"], name="intake", seed=seed)
    options: dict[str, Any] = {"log_config": None, "access_log": False}
    await uvicorn.Server(uvicorn.Config(create_app(bus, fact), host="127.0.0.1", port=port, **options)).serve()
    await asyncio.wait_for(bus.drain(), 5)


def main() -> None:
    """PORT and how many bytes a fact has."""
    port, fact_bytes = map(int, sys.argv[1:3])
    uvloop.run(serve(port, b"f" * fact_bytes))


if __name__ == "__main__":
    main()
