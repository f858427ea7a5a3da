"""What the log signs, and when it refuses: against a real bus and a real database."""

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
import pymongo
import pytest

from services.ledger.log import heads, ingesting, notes, tree
from services.ledger.log.checkpoints import BUCKET, Keys, Signer
from services.ledger.log.cosigning import Cosigning
from services.ledger.log.leaves import recorded_ns
from services.ledger.log.notes import Checkpoint, Key, Note, Policy
from services.ledger.log.publishing import in_numbers, published
from services.ledger.log.tree import Tile
from services.ledger.store import Selection, Signed
from shared.bus import Bus
from tests.ledger.conftest import ORIGIN, Bench
from tests.ledger.examples import QINGSHAN, WUCHANG, message, submitted

BATCH = 500


@dataclass
class Ahead:
    """A witness that holds a checkpoint."""

    ahead: Checkpoint | None

    async def announce(self, note: Note) -> None:
        """Nobody hears it."""

    def served(self) -> Note | None:
        """Nothing."""


async def grow(bench: Bench, many: int, since: int = 0) -> None:
    """Publish so many facts; some list two districts."""
    for n in range(since, since + many, BATCH):
        of = range(n, min(n + BATCH, since + many))
        both = f"{WUCHANG},{QINGSHAN}"
        await bench.publish(*[message(submitted(each, districts=both if each % 3 == 0 else None)) for each in of])


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.01)


async def refused(signer: Signer, code: str | None) -> None:
    """It steps until it refuses by this code, or no more; on the way it may have to read the leaves again."""
    async with asyncio.timeout(20):
        while True:
            await signer.step()
            if (signer.refusal and signer.refusal.code) == code:
                return
            assert signer.refusal
            assert signer.refusal.code == "tile"
            await asyncio.sleep(0.05)


async def everything(bench: Bench) -> list[bytes]:
    return [leaf for _, leaf in await bench.store.read(Selection(), 0, 2**53, 100_000)]


def scopes_of(leaves: list[bytes]) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for leaf in map(orjson.loads, leaves):
        found |= {scope["d"]: (scope["n"], leaf["index"]) for scope in leaf.get("scopes", ())}
    return found


def database(bench: Bench) -> Any:
    return pymongo.MongoClient[dict[str, Any]](bench.mongo.admin_uri)[bench.database]


async def held(bench: Bench, signer: Signer) -> str:
    found = await bench.bus.last(signer.subject, stream=BUCKET)
    assert found is not None
    return found.data.decode()


async def test_the_tree_follows_the_log_and_is_taken_up_again_from_its_tiles(bench: Bench) -> None:
    grown = bench.tree()
    bench.ingest(tree=grown)
    await grow(bench, 1500)
    await until(lambda: grown.size == 1500)
    before = await grown.standing()
    await bench.stop()
    leaves = await everything(bench)
    root = tree.root_of(map(tree.leaf_hash, leaves))
    newest = max(recorded_ns(orjson.loads(leaf)["recorded"]) for leaf in leaves)
    assert before == (1500, root, heads.root(scopes_of(leaves)), newest)
    assert {each["_id"]: len(each["h"]) for each in database(bench)["tiles"].find()} == {
        f"0/{n}": 8192 for n in range(5)
    }
    again = bench.tree()
    await until(lambda: again.size == 1500)
    assert await again.standing() == before
    await bench.stop()
    database(bench)["tiles"].delete_one({"_id": "0/2"})
    healed = bench.tree()
    await until(lambda: healed.size == 1500)
    assert await healed.standing() == before
    assert await healed.tile(Tile(0, 2)) == b"".join(map(tree.leaf_hash, leaves[512:768]))
    assert database(bench)["tiles"].count_documents({}) == 5


async def test_a_growing_log_is_signed_and_each_checkpoint_begins_with_the_one_before(bench: Bench) -> None:
    grown = bench.tree()
    bench.ingest(tree=grown)
    signer = bench.signer(grown)
    [verifier] = signer.keys.verifiers
    signed: list[Checkpoint] = []
    for n in range(3):
        await grow(bench, 300, since=300 * n)
        await until(lambda n=n: grown.size == 300 * (n + 1))  # type: ignore[misc]
        await signer.step()
        await signer.step()  # nothing new: nothing is signed
        stored = await bench.store.checkpoint()
        assert stored is not None
        note = Note.parse(stored.note)
        assert set(note.verified([verifier])) == {verifier}
        assert await held(bench, signer) == stored.note
        signed.append(Checkpoint.parse(note.body))
        assert (stored.size, signed[-1].size, signed[-1].origin) == (300 * (n + 1), 300 * (n + 1), ORIGIN)
    for old, new in itertools.pairwise(signed):
        proof = await tree.consistency(grown.tile, old.size, new.size)
        tree.verify_consistency(old.size, new.size, old.root, new.root, proof)
    leaves = await everything(bench)
    assert signed[-1].heads == heads.root(scopes_of(leaves))
    assert database(bench)["checkpoints"].count_documents({}) == 3
    assert stored is not None
    assert stored.recorded_ns == recorded_ns(orjson.loads(leaves[-1])["recorded"])


async def test_what_came_to_the_bus_and_not_to_the_database_comes_there_at_the_next_start(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown = bench.tree()
    bench.ingest(tree=grown)
    await grow(bench, 10)
    await until(lambda: grown.size == 10)
    killed = bench.signer(grown)

    async def kill(signed: Signed) -> None:
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(bench.store, "put_checkpoint", kill)
        with pytest.raises(asyncio.CancelledError):
            await killed.step()
    assert await bench.store.checkpoint() is None
    signer = bench.signer(grown)
    await signer.step()
    stored = await bench.store.checkpoint()
    assert stored is not None
    assert (stored.note, stored.size) == (await held(bench, killed), 10)


async def test_two_signers_at_once_sign_one_history(bench: Bench) -> None:
    other = await Bus.connect(bench.nats.url, name="ledger", seed=bench.identities.seed("ledger"))
    trees = [bench.tree(), bench.tree()]
    bench.ingest(tree=trees[0])
    signers = [bench.signer(trees[0]), bench.signer(trees[1], other)]
    for n in range(12):
        await grow(bench, 40, since=40 * n)
        await asyncio.gather(*(signer.step() for signer in signers))
    await until(lambda: all(each.size == 480 for each in trees))
    await asyncio.gather(*(signer.step() for signer in signers))
    await asyncio.gather(*(signer.step() for signer in signers))
    assert [signer.refusal for signer in signers] == [None, None]
    assert [signer.size for signer in signers] == [480, 480]
    kept = [
        Checkpoint.parse(Note.parse(each["note"]).body) for each in database(bench)["checkpoints"].find().sort("_id")
    ]
    for checkpoint in kept:
        proof = await tree.consistency(trees[0].tile, checkpoint.size, 480)
        tree.verify_consistency(checkpoint.size, 480, checkpoint.root, kept[-1].root, proof)
    await other.drain()


@pytest.mark.parametrize("damage", ["truncate", "edit", "hole"])
async def test_a_log_that_is_not_the_signed_one_is_not_signed_until_it_is_again(bench: Bench, damage: str) -> None:
    grown = bench.tree()
    bench.ingest(tree=grown)
    await grow(bench, 600)
    await until(lambda: grown.size == 600)
    signer = bench.signer(grown)
    await signer.step()
    before = await held(bench, signer)
    await bench.stop()

    events = database(bench)["events"]
    match damage:
        case "truncate":
            events.delete_many({"_id": {"$gte": 550}})
        case "edit":
            leaf = events.find_one({"_id": 590})["b"].replace(b"repair.leak", b"repair.lamp")
            events.update_one({"_id": 590}, {"$set": {"b": leaf, "h": tree.leaf_hash(leaf)}})
        case _:
            events.delete_one({"_id": 590})
    grown = bench.tree()
    signer = bench.signer(grown)
    await until(lambda: grown.size == {"truncate": 550, "edit": 600, "hole": 590}[damage])
    await refused(signer, {"truncate": "truncated", "edit": "diverged", "hole": "hole"}[damage])
    assert await held(bench, signer) == before

    if damage != "truncate":  # leaves cannot be put into the middle: an operator begins with an empty database
        await bench.stop()
        client = pymongo.MongoClient[dict[str, Any]](bench.mongo.admin_uri)
        for name in ("events", "tiles", "checkpoints"):
            client[bench.database][name].drop()
        grown = bench.tree()
        signer = bench.signer(grown)
    bench.ingest(tree=grown)
    await grow(bench, 20, since=600)
    await until(lambda: grown.size == 620)
    await signer.step()
    assert signer.refusal is None
    assert signer.size == 620
    stored = await bench.store.checkpoint(600)
    assert stored is not None
    assert stored.note == before


async def test_a_spoiled_tile_is_no_other_history(bench: Bench) -> None:
    grown = bench.tree()
    bench.ingest(tree=grown)
    signer = bench.signer(grown)
    for since, size in ((0, 100), (100, 600)):
        await grow(bench, size - since, since=since)
        await until(lambda size=size: grown.size == size)  # type: ignore[misc]
        await signer.step()
    early = await bench.store.checkpoint(100)
    assert early is not None
    await bench.stop()

    tiles = database(bench)["tiles"]
    whole = tiles.find_one({"_id": "0/0"})["h"]
    spoiled = whole[:-32] + bytes(32)
    tiles.update_one({"_id": "0/0"}, {"$set": {"h": spoiled}})
    grown = bench.tree()
    bench.ingest(tree=grown)
    signer = bench.signer(grown)
    await until(lambda: grown.size == 600)
    await signer.step()
    assert signer.refusal is not None
    assert signer.refusal.code == "tile"
    await refused(signer, None)  # made again from the leaves, it is the one that was signed
    assert grown.differing == {Tile(0, 0): whole}
    await grow(bench, 20, since=600)
    await until(lambda: grown.size == 620)
    await signer.step()
    assert signer.size == 620

    # What begins with this one is proved by the spoiled tile.
    signer.witnesses = Ahead(Checkpoint.parse(Note.parse(early.note).body))
    await signer.step()
    assert signer.refusal is None  # its hashes are those of the leaves meanwhile
    await bench.stop()
    tiles.delete_one({"_id": "0/0"})
    tiles.insert_one({"_id": "0/0", "h": whole})
    grown = bench.tree()
    ahead, signer = signer.witnesses, bench.signer(grown)
    signer.witnesses = ahead
    await until(lambda: grown.size == 620)
    await signer.step()
    assert signer.refusal is None
    tiles.delete_one({"_id": "0/0"})
    await refused(signer, "tile")
    await refused(signer, None)
    assert tiles.find_one({"_id": "0/0"})["h"] == whole


async def test_what_is_indexed_otherwise_than_signed_is_not_counted_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody takes a district's last leaf out of its index: the next one would get the same ordinal again, for ever."""
    monkeypatch.setattr(ingesting, "UNCOUNTED_S", 0.1)
    grown = bench.tree()
    bench.ingest(tree=grown)
    await grow(bench, 300)
    await until(lambda: grown.size == 300)
    await bench.signer(grown).step()
    await grow(bench, 10, since=300)  # behind the checkpoint: what is indexed does not matter
    await until(lambda: grown.size == 310)
    await bench.stop()
    events = database(bench)["events"]
    for signed in (255, 297):
        assert QINGSHAN in events.find_one({"_id": signed})["ds"]
    events.update_one({"_id": 306}, {"$set": {"ds": [WUCHANG]}})
    events.update_one({"_id": 297}, {"$set": {"ds": [WUCHANG]}})

    grown = bench.tree()
    signer, ingest = bench.signer(grown), bench.ingest(tree=grown)
    await grow(bench, 10, since=310)
    await until(lambda: ingest.refusal is not None)
    await signer.step()
    assert "at 300" in str(ingest.refusal)
    assert (await bench.store.size(), signer.last) == (310, None)
    events.update_one({"_id": 297}, {"$set": {"ds": [WUCHANG, QINGSHAN]}})
    await until(lambda: grown.size == 320)
    await signer.step()
    leaves = await everything(bench)
    assert (ingest.refusal, signer.refusal, signer.size) == (None, None, 320)
    assert signer.last is not None
    assert signer.last.checkpoint.heads == heads.root(scopes_of(leaves))
    assert scopes_of(leaves) == {WUCHANG: (320, 319), QINGSHAN: (107, 318)}


async def test_what_is_taken_away_while_it_runs_is_noticed_at_the_next_signature(bench: Bench) -> None:
    grown = bench.tree()
    bench.ingest(tree=grown)
    signer = bench.signer(grown)
    await grow(bench, 100)
    await until(lambda: grown.size == 100)
    await signer.step()
    database(bench)["events"].delete_many({"_id": {"$gte": 90}})
    await grow(bench, 10, since=100)
    await until(lambda: grown.size == 110)
    await signer.step()
    assert signer.refusal is not None
    assert signer.refusal.code == "hole"


async def test_a_foreign_checkpoint_on_the_bus_stops_the_signer(bench: Bench) -> None:
    grown = bench.tree()
    bench.ingest(tree=grown)
    signer = bench.signer(grown)
    await grow(bench, 10)
    await until(lambda: grown.size == 10)
    checkpoint = notes.checkpoint(ORIGIN, 5, b"\0" * 32, b"\0" * 32)
    forged = Note(checkpoint.body).signed([notes.Key.make(ORIGIN).sign(checkpoint.body)])
    await bench.admin.put(signer.subject, forged.text.encode())
    await signer.step()
    assert signer.refusal is not None
    assert signer.refusal.code == "foreign"
    assert await bench.store.checkpoint() is None


async def test_without_a_key_nothing_is_signed(bench: Bench) -> None:
    grown = bench.tree()
    bench.ingest(tree=grown)
    await grow(bench, 10)
    await until(lambda: grown.size == 10)
    signer = Signer(bench.bus, bench.store, grown, Keys(ORIGIN, None))
    await signer.step()
    assert (signer.last, signer.refusal) == (None, None)
    assert in_numbers(signer) == {"size": 0, "signs": False, "refused": None}
    assert await bench.bus.last(signer.subject, stream=BUCKET) is None


async def test_what_enough_witnesses_have_seen_is_shown_and_what_one_holds_is_not_taken_back(bench: Bench) -> None:
    grown = bench.tree()
    bench.ingest(tree=grown)
    signer, witness = bench.signer(grown), Key.make("witness.example", notes.COSIGNATURE)
    policy = Policy.parse(f"witness w {witness.verifier.text}\nquorum w")
    cosigning = Cosigning(ORIGIN, lambda: signer.keys.verifiers, policy, bench.store, grown.prove)
    signer.witnesses = cosigning
    await grow(bench, 20)
    await until(lambda: grown.size == 20)
    await signer.step()
    asked = await cosigning.next("witness.example", 0, 1)
    assert asked is not None
    await cosigning.take(20, witness.sign(asked.note.body, 1).line)
    await grow(bench, 10, since=20)
    await until(lambda: grown.size == 30)
    await signer.step()
    stored, note = await published(bench.store, signer)
    assert (stored.size, signer.size) == (20, 30)
    assert set(note.verified([witness.verifier])) == {witness.verifier}

    [key] = signer.keys.signing(signer.now())
    seen = notes.checkpoint(ORIGIN, 40, tree.EMPTY, tree.EMPTY).body
    await cosigning.holds(Note(seen).signed([key.sign(seen)]).text)
    await signer.step()
    assert signer.refusal is not None
    assert signer.refusal.code == "truncated"
    await grow(bench, 10, since=30)
    await until(lambda: grown.size == 40)
    await refused(signer, "diverged")
