"""The log against real servers: dense, ordered, complete, whatever happens."""

import asyncio
from hashlib import sha256

import orjson

from services.ledger.store import Selection
from shared import streams
from tests.ledger.conftest import Bench, ORIGIN
from tests.ledger.examples import QINGSHAN, WUCHANG, life, message, request_id, submitted


async def test_every_message_becomes_one_leaf_in_the_streams_order(bench: Bench) -> None:
    messages = [message(envelope) for n in range(300) for envelope in life(n, f"{WUCHANG},{QINGSHAN}")]
    for n in range(0, len(messages), 900):
        await bench.publish(*messages[n : n + 900])
    bench.ingest()
    leaves = [orjson.loads(leaf) for leaf in await bench.leaves(len(messages))]
    assert [leaf["index"] for leaf in leaves] == list(range(len(messages)))
    assert [leaf["src"]["seq"] for leaf in leaves] == list(range(1, len(messages) + 1))
    assert [leaf["scopes"] for leaf in leaves] == [
        [{"d": WUCHANG, "n": n}, {"d": QINGSHAN, "n": n}] for n in range(1, len(messages) + 1)
    ]
    assert [leaf["case"]["n"] for leaf in leaves] == [*range(1, 10)] * 300
