"""
What sealing costs: to seal a request's parts with their commitment, and to open them again, beside AES-GCM over the same bytes.

Ours derives the nonce, writes and reads the JSON and makes the commitment; with `key` it also unwraps the resident's key each time, as
it does for every request, because no key is kept in memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import orjson
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from services.intake.sealing import KEY_BYTES, NONCE_BYTES, Keys, ResidentKey
from tests.bench.ground import DISTRICT
from tests.bench.harness import Row, Workshop

PARTS = {
    "contact": {"name": "居民", "phone": "13800138000"},
    "text": "厨房水管漏水,已经流到走廊,麻烦尽快来看看,家里有老人。" * 4,
    "address": "欧景苑 17 栋 2 单元 804",
}
KID, FINGERPRINT = "ab" * 16, "cd" * 32
RUNS = 5


async def run(workshop: Workshop) -> list[Row]:
    """Per second, one thread."""
    rounds = 500 if workshop.quick else 20_000
    plain = orjson.dumps(PARTS, option=orjson.OPT_SORT_KEYS)
    aead, nonce = AESGCM(b"k" * KEY_BYTES), b"n" * NONCE_BYTES
    keys = Keys(pepper="p" * 64, keks=lambda: ["k" * 64])
    resident = ResidentKey(DISTRICT, KID, b"k" * KEY_BYTES)
    wrapped = keys.wrap(DISTRICT, KID, b"k" * KEY_BYTES, nonce)

    def bare(request: str) -> None:
        bound = request.encode()
        aead.decrypt(nonce, aead.encrypt(nonce, plain, bound), bound)

    def ours(request: str, key: ResidentKey = resident) -> None:
        sealed = key.seal(request, FINGERPRINT, PARTS)
        key.commitment(request, sealed)
        key.open(request, sealed)

    def with_key(request: str) -> None:
        ours(request, keys.unwrap(DISTRICT, KID, wrapped))

    figures: dict[str, list[float]] = {"bare": [], "ours": [], "key": []}
    for _ in range(RUNS):
        for name, call in (("bare", bare), ("ours", ours), ("key", with_key)):
            figures[name].append(_per_s(call, rounds))
    rows = [
        Row.of("seal and open", figures["ours"], figures["bare"], "requests/s", bytes=len(plain)),
        Row.of("seal and open, with key", figures["key"], figures["bare"], "requests/s", bytes=len(plain)),
    ]
    for row in rows:
        workshop.say(f"{row.name}: {row.value:,.0f}/s, AES-GCM alone {row.limit:,.0f}/s")
    return rows


def _per_s(call: Callable[[str], None], rounds: int) -> float:
    requests = [f"0199aaaa-0000-8000-8000-{n:012}" for n in range(rounds)]
    began = time.perf_counter()
    for request in requests:
        call(request)
    return rounds / (time.perf_counter() - began)
