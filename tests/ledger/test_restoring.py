"""`paidan bus restore`: a stream that was lost is filled again from the ledger, number for number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from deploy.errors import SetupError
from deploy.restoring import plan, require_history, restore
from shared import streams
from shared.bus import STREAM, Message
from tests.ledger.conftest import Bench
from tests.ledger.examples import life, message, submitted
from tests.ledger.test_checkpoints import database, until

NONSENSE = ("evt.420106.intake.a.request.nothing", b"nonsense")


async def held(bench: Bench) -> list[tuple[int, str, bytes]]:
    """All that the stream holds."""
    last, reader = (await bench.admin.state()).last, bench.admin.reader(["evt.>"], after=0)
    found: list[tuple[int, str, bytes]] = []
    while reader.after < last and (some := await reader.wait(2.0)):
        found += [(one.sequence, one.subject, one.data) for one in some]
    await reader.close()
    return found


async def kinds(bench: Bench, many: int) -> list[str]:
    return [orjson.loads(leaf)["kind"] for leaf in await bench.leaves(many)]


async def again(
    bench: Bench,
    upto: int | None = None,
    *,
    replace: bool = False,
    dry_run: bool = False,
    broken_off: int | None = None,
    key_file: Path | None = None,
) -> Any:
    def progress(done: int, of: int) -> None:
        assert 0 < done <= of
        if broken_off is not None and done >= broken_off:
            raise KeyboardInterrupt

    return await restore(
        *(bench.admin, bench.store, upto), replace=replace, dry_run=dry_run, progress=progress, key_file=key_file
    )


async def filled(bench: Bench) -> list[tuple[int, str, bytes]]:
    """A stream of which two numbers were lost, with repeats, nonsense and 2,160 facts, all of it in the ledger."""
    config = next(stream for stream in streams.declared() if stream["name"] == STREAM)
    await bench.admin.remove_stream(STREAM)
    await bench.admin.apply_stream({**config, "deny_delete": False, "deny_purge": False}, new=True)
    await bench.publish(message(submitted(1)), message(submitted(2)), message(submitted(3)), message(submitted(4)))
    for lost in (2, 3):
        await bench.admin.delete(STREAM, lost)
    await bench.publish(message(submitted(1)), message(submitted(1, at_s=5)), NONSENSE)
    lives = [message(fact) for n in range(10, 250) for fact in life(n)]
    for n in range(0, len(lives), 900):
        await bench.publish(*lives[n : n + 900])
    bench.ingest()
    leaves = await kinds(bench, 6 + len(lives))
    assert leaves[:7] == ["event", "gap", "event", "dup", "conflict", "reject", "event"]
    await bench.stop()
    return await held(bench)


async def test_a_lost_stream_comes_back_number_for_number(bench: Bench) -> None:
    before = await filled(bench)
    leaves = await bench.store.size()
    created = (await bench.admin.state()).created
    await bench.admin.remove_stream(STREAM)
    with pytest.raises(SetupError, match="bus restore"):
        await require_history(bench.admin, bench.store)
    would = await again(bench, dry_run=True)
    assert (would["last"], would["held"], would["restored"]) == (before[-1][0], 0, 0)
    assert await bench.admin.stream_config(STREAM) is None
    assert (await again(bench))["restored"] == before[-1][0]
    assert await held(bench) == before
    assert (await bench.admin.state()).formerly == {created}
    assert await streams.apply(bench.admin) == [], "as declared: nothing can be deleted, and it is heard again"
    await require_history(bench.admin, bench.store)
    assert (await again(bench))["restored"] == 0
    bench.ingest()
    await bench.publish(message(submitted(500)))
    after = (await kinds(bench, 2 * leaves + 2))[leaves:]
    repeated = ["dup" if kind == "event" else kind for kind in (await kinds(bench, leaves))[:leaves]]
    assert after == ["reset", *repeated, "event"]


async def test_what_was_broken_off_is_gone_on_with(bench: Bench) -> None:
    before = await filled(bench)
    await bench.admin.remove_stream(STREAM)
    await streams.apply(bench.admin)  # an empty stream in its place is none that must stay
    for broken_off in (1001, 2001):  # a thousand leaves each, one of them for two numbers
        with pytest.raises(KeyboardInterrupt):
            await again(bench, broken_off=broken_off)
        assert (await bench.admin.state()).last == broken_off
        with pytest.raises(SetupError, match="bus restore"):
            await require_history(bench.admin, bench.store)
    answer = await again(bench)
    assert (answer["held"], answer["restored"]) == (2001, before[-1][0] - 2001)
    assert await held(bench) == before


async def test_nobody_writes_or_hears_while_it_is_filled(bench: Bench) -> None:
    await filled(bench)
    await bench.admin.remove_stream(STREAM)
    live = await bench.admin._nc.subscribe("live.evt.>")
    with pytest.raises(KeyboardInterrupt):
        await again(bench, broken_off=1)
    with pytest.raises(Exception, match="NoResponders"):
        await bench.publish(message(submitted(500)))
    await again(bench)
    assert live.pending_msgs == 0
    await live.unsubscribe()
    await bench.publish(message(submitted(500)))


async def test_a_stream_with_other_facts_is_refused(bench: Bench) -> None:
    before = await filled(bench)
    await bench.admin.remove_stream(STREAM)
    await streams.apply(bench.admin)
    await bench.publish(message(submitted(500)))
    with pytest.raises(SetupError, match="holds 1 messages.*--replace"):
        await again(bench)
    assert len(await held(bench)) == 1
    await again(bench, replace=True)
    assert await held(bench) == before


async def test_one_that_lost_its_tail_is_made_whole(bench: Bench) -> None:
    before = await filled(bench)
    config = await bench.admin.stream_config(STREAM)
    assert config
    await bench.admin.apply_stream({**config, "discard": "old", "max_msgs": 4}, new=False)
    assert [number for number, _, _ in await held(bench)] == [number for number, _, _ in before[-4:]]
    with pytest.raises(SetupError, match="from 1 on not"):
        await again(bench)  # it lost its beginning: what is left is behind
    await bench.admin.remove_stream(STREAM)
    with pytest.raises(KeyboardInterrupt):
        await again(bench, broken_off=1)
    config = await bench.admin.stream_config(STREAM)
    assert config
    del config["metadata"]["paidan.restoring"]
    await bench.admin.apply_stream(config, new=False)  # as one that was whole, of the same name
    with pytest.raises(SetupError, match="it ends at 1001"):
        await require_history(bench.admin, bench.store)
    assert (await again(bench))["restored"] == before[-1][0]
    assert await held(bench) == before


async def test_one_that_was_filled_with_something_else_is_refused(bench: Bench) -> None:
    await filled(bench)
    await bench.admin.remove_stream(STREAM)
    with pytest.raises(KeyboardInterrupt):
        await again(bench, broken_off=1)
    await bench.admin.commit([Message("restore." + NONSENSE[0], b"not the ledger's")])
    with pytest.raises(SetupError, match="from 1002 on not"):
        await again(bench)


async def test_a_history_that_began_anew_is_not_mixed_with_the_one_before(bench: Bench) -> None:
    before = await filled(bench)
    leaves = await bench.store.size()
    await bench.admin.remove_stream(STREAM)
    await streams.apply(bench.admin)
    await bench.publish(message(submitted(500)))
    bench.ingest()
    await bench.leaves(leaves + 2)
    await bench.stop()
    await bench.admin.remove_stream(STREAM)
    with pytest.raises(SetupError, match="--source 0"):
        await again(bench)
    await again(bench, 0)
    assert await held(bench) == before


async def test_what_is_not_what_was_signed_is_not_brought_back(bench: Bench, tmp_path: Path) -> None:
    grown = bench.tree()
    signer = bench.signer(grown)
    before = await filled(bench)
    await until(lambda: grown.size == before[-1][0] - 1)
    await signer.step()
    assert signer.size == grown.size
    await bench.admin.remove_stream(STREAM)
    events, rejects = database(bench)["events"], database(bench)["rejects"]
    leaf = events.find_one({"_id": 300})
    nonsense = rejects.find_one({"b": NONSENSE[1]})
    assert leaf
    assert nonsense
    events.update_one({"_id": 300}, {"$set": {"b": leaf["b"].replace(b"m-li", b"m-wu").replace(b"420106", b"420107")}})
    with pytest.raises(SetupError, match="not those that were signed"):
        await again(bench)
    assert await bench.admin.stream_config(STREAM) is None
    events.replace_one({"_id": 300}, leaf)
    for spoilt in (b"innocent", None):
        rejects.delete_one({"_id": nonsense["_id"]})
        if spoilt:
            rejects.insert_one({"_id": nonsense["_id"], "b": spoilt})
        with pytest.raises(SetupError, match="does not hold what was stored under 7"):
            await again(bench, replace=True)
    rejects.insert_one(nonsense)
    (strange := tmp_path / "key").write_text("55" * 32)
    with pytest.raises(SetupError, match="not signed by this log's key"):
        await again(bench, replace=True, key_file=strange)
    await again(bench, replace=True, key_file=signer.keys.file)
    assert await held(bench) == before


def leaf(kind: str, epoch: int, sequence: int, **more: Any) -> dict[str, Any]:
    return {"log": "l", "kind": kind, "src": {"created": f"c{epoch}", "epoch": epoch, "seq": sequence}, **more}


def reset(epoch: int, after: int, before: int) -> dict[str, Any]:
    return leaf("reset", epoch, after, reset={"created": f"c{epoch - 1}", "seq": before})


def spans(*asked: Any) -> list[tuple[int, int, int]]:
    return [(source.epoch, source.after, source.until) for source in plan(*asked).sources]


def test_the_sources_of_a_stream() -> None:
    assert spans([], leaf("event", 0, 9), {}, None) == [(0, 0, 9)]
    assert spans([], leaf("gap", 0, 9, gap={"from": 9, "to": 12}), {}, None) == [(0, 0, 12)]
    restored = [reset(1, 0, 9)]
    assert spans(restored, leaf("event", 1, 11), {1: 0}, None) == [(1, 0, 11)]
    assert spans(restored, leaf("dup", 1, 5), {1: 0}, None) == [(0, 0, 9)], "only half of it came back"
    assert spans(restored, restored[0], {1: 0}, None) == [(0, 0, 9)], "an empty stream"
    assert spans([reset(1, 6, 9)], leaf("event", 1, 8), {1: 2}, None) == [(0, 0, 6), (1, 6, 8)], "it had lost its tail"
    assert spans(restored, leaf("event", 1, 3), {1: 3}, 0) == [(0, 0, 9)]
    assert spans(restored, leaf("event", 1, 3), {1: 3}, 1) == [(1, 0, 3)]
    with pytest.raises(SetupError, match="--source 0"):
        plan(restored, leaf("event", 1, 30), {1: 9}, None)
