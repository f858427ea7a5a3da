"""What follows from the leaves is made again: tiles that were spoiled, indexes that are gone; and never another history."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pymongo
import pytest

from services.ledger.log.mending import UnsoundError, mend_tiles
from services.ledger.store import Store
from tests.ledger.conftest import Bench
from tests.ledger.test_checkpoints import database, grow, until


@pytest.fixture
async def repair(bench: Bench) -> AsyncIterator[Store]:
    """The store under the identity that may repair."""
    store = Store.connect(bench.mongo.repair_uri, bench.database)
    yield store
    store.close()


def tiles(bench: Bench) -> dict[str, bytes]:
    return {each["_id"]: bytes(each["h"]) for each in database(bench)["tiles"].find()}


async def grown(bench: Bench, many: int) -> dict[str, bytes]:
    """A signed log of so many leaves; its tiles."""
    tree = bench.tree()
    signer = bench.signer(tree)
    bench.ingest(tree=tree)
    await grow(bench, many)
    await until(lambda: tree.size == many)
    await signer.step()
    assert signer.size == many
    await bench.stop()
    return tiles(bench)


async def test_spoiled_and_missing_tiles_are_put_right_and_no_others_touched(bench: Bench, repair: Store) -> None:
    before = await grown(bench, 1500)
    assert (await mend_tiles(repair, lambda done, of: None)) == (1500, 5, [])
    database(bench)["tiles"].update_one({"_id": "0/2"}, {"$set": {"h": bytes(8192)}})
    database(bench)["tiles"].delete_one({"_id": "0/4"})
    seen: list[tuple[int, int]] = []
    mended = await mend_tiles(repair, lambda done, of: seen.append((done, of)))
    assert mended.replaced == ["tile/0/002", "tile/0/004"]
    assert tiles(bench) == before
    assert seen[-1] == (3000, 3000)


async def test_tiles_of_leaves_that_are_not_those_that_were_signed_are_not_made(bench: Bench, repair: Store) -> None:
    await grown(bench, 600)
    events = database(bench)["events"]
    leaf = events.find_one({"_id": 300})
    assert leaf
    events.update_one({"_id": 300}, {"$set": {"b": leaf["b"].replace(b'"n":', b'"n": ')}})
    database(bench)["tiles"].delete_one({"_id": "0/1"})
    with pytest.raises(UnsoundError, match="signed at 600"):
        await mend_tiles(repair, lambda done, of: None)
    events.delete_one({"_id": 300})
    with pytest.raises(UnsoundError, match="missing"):
        await mend_tiles(repair, lambda done, of: None)
    events.delete_many({"_id": {"$gte": 300}})
    with pytest.raises(UnsoundError, match="has 300 leaves, and 600"):
        await mend_tiles(repair, lambda done, of: None)
    assert set(tiles(bench)) == {"0/0"}


async def test_indexes_that_are_missing_or_others_are_made_again(bench: Bench, repair: Store) -> None:
    await grown(bench, 300)
    events = database(bench)["events"]
    before: dict[str, Any] = events.index_information()
    assert await repair.mend_indexes() == []
    events.drop_index("event_id")
    events.drop_index("case")
    events.create_index([("case", pymongo.ASCENDING)], name="case")
    assert await repair.mend_indexes() == ["events.event_id", "events.case"]
    assert {name: index["key"] for name, index in events.index_information().items()} == {
        name: index["key"] for name, index in before.items()
    }
    assert events.index_information()["event_id"]["unique"]
