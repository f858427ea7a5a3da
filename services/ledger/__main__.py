"""Run the ledger until told to stop; or rebuild what follows from it: `python -m services.ledger rebuild`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import uvloop

from services.ledger import api
from services.ledger.api import Ledger
from services.ledger.log.checkpoints import Keys, Signer
from services.ledger.log.cosigning import QUERIES, Cosigning
from services.ledger.log.growing import Tree
from services.ledger.log.ingesting import Ingest
from services.ledger.log.leaves import ForeignLogError, Leaf
from services.ledger.log.mending import UnsoundError, mend_tiles
from services.ledger.log.notes import NoteError, Policy
from services.ledger.log.recounting import Recount
from services.ledger.projecting import Projector, RebuildLostError, rebuild
from services.ledger.register import precedents
from services.ledger.register.registering import Registry
from services.ledger.replay import Cursors
from services.ledger.settings import LedgerSettings
from services.ledger.store import Store
from shared.auth import Doorkeeper
from shared.bus import STREAM, Bus
from shared.errors import BusError, UnavailableError
from shared.serving import collect_seldom, serve, stop_on_signals
from shared.streams import declared
from shared.telemetry import configure, logger


async def run(settings: LedgerSettings, stop: asyncio.Event) -> None:
    """
    The service, from connecting to draining.

    Raises:
        UnavailableError: there is no bus. (MongoDB may come later: the service waits, and is not ready.)
        ForeignLogError, NoteError, OSError: the configuration is wrong.
    """
    bus = await Bus.connect(settings.nats_url, name="ledger", seed=settings.seed(), ca_file=settings.nats_ca_file)
    store = Store.connect(settings.mongodb_uri.get_secret_value(), settings.database)
    projector = Projector(store)
    keys, policy = Keys(settings.origin, settings.signing_key), settings.policy()
    recount = Recount(bus, store, keys)
    tree = Tree(store, scopes=recount.scopes)

    def stored(batch: Sequence[Leaf]) -> None:
        projector.hand(batch)
        tree.hand(batch)

    ingest = Ingest(bus, store, settings.origin, stored=stored, scopes=recount.scopes)
    registry = Registry(bus)
    witnesses = Cosigning(settings.origin, lambda: keys.verifiers, Policy.parse(policy), store, tree.prove)
    signer = Signer(bus, store, tree, keys, witnesses, policy)
    cursors = Cursors(settings.cursor_key())
    ledger = Ledger(settings.origin, bus, store, ingest, projector, registry, cursors, signer)
    stopping, settled, grown = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def ready() -> Mapping[str, str]:
        return {"stopping": "draining"} if stopping.is_set() else await missing(ledger)

    app = api.create_app(ledger, ready=ready, doorkeeper=Doorkeeper.of(settings))
    queries = await bus.serve(api.QUERY, partial(api.answer_query, ledger), alone=True, apart=True)
    # Every instance hears what witnesses hold: whichever signs next must know.
    witnessing = await bus.serve(QUERIES, witnesses.answer, apart=True)
    writing = asyncio.create_task(ingest.run(stopping), name="ingest")
    folding = asyncio.create_task(projector.run(settled), name="projector")
    growing = asyncio.create_task(tree.run(settled), name="tree")
    signing = asyncio.create_task(signer.run(grown), name="signer")
    following = asyncio.create_task(registry.run(settled), name="register")
    pressing = asyncio.create_task(witnesses.run(stopping), name="witnesses")
    ruling = asyncio.create_task(precedents.follow(bus, registry, stopping), name="precedents")
    serving = asyncio.create_task(serve(app, settings, until=stopping), name="http")
    told: set[asyncio.Task[Any]] = {asyncio.create_task(stop.wait()), asyncio.create_task(bus.closed.wait())}
    work: set[asyncio.Task[Any]] = {writing, folding, growing, signing, following, pressing, ruling, serving}
    logger().info("ledger_started", log=settings.origin, port=settings.http_port)
    try:
        await asyncio.wait(told | work, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.set()
        await witnesses.close()
        # Who waits for a position may still see it come.
        ending = {asyncio.create_task(served.end()) for served in (queries, witnessing)}
        await asyncio.wait({writing, serving})  # the batch at hand is finished, answers under way go out
        settled.set()
        await asyncio.wait({folding, growing, following, pressing, ruling, *ending}, timeout=10)
        grown.set()
        await asyncio.wait({signing}, timeout=5)
        for task in told:
            task.cancel()
        await bus.drain()
        store.close()
        logger().info("ledger_stopped")
    for task in work:
        if task.done():
            task.result()  # raises what ended it


async def missing(ledger: Ledger) -> dict[str, str]:
    """What the ledger lacks to do its work, by name."""
    lacks: dict[str, str] = {}
    if not ledger.ingest.alive:
        lacks["ingest"] = "the loop does not run"
    elif ledger.ingest.refusal is not None:
        lacks["ingest"] = str(ledger.ingest.refusal)
    elif ledger.ingest.prefix is None:
        lacks["ingest"] = "the tail is not known yet"
    if not ledger.registry.sharing.loaded:
        lacks["register"] = "not read yet"
    if ledger.signer.refusal is not None:
        lacks["checkpoints"] = f"{ledger.signer.refusal.code}: {ledger.signer.refusal}"
    if not ledger.bus.connected:
        lacks["nats"] = "not connected"
    elif ledger.bus.refused:
        lacks["permissions"] = ledger.bus.refused
    else:
        try:
            config = await ledger.bus.stream_config(STREAM)
            if config is None:
                lacks["streams"] = f"there is no stream {STREAM}"
            elif differs := unexpected(config):
                lacks["streams"] = f"{STREAM} is not as declared: {', '.join(differs)}"
        except BusError as why:
            lacks["nats"] = str(why)
    try:
        await ledger.store.ping()
    except UnavailableError as why:
        lacks["mongodb"] = str(why)
    return lacks


def unexpected(config: Mapping[str, object]) -> list[str]:
    """Settings of the stream that are not as declared; the number of replicas is the operator's choice."""
    want = next(stream for stream in declared() if stream["name"] == STREAM)
    return [
        name
        for name, value in want.items()
        if name not in ("num_replicas", "republish") and (config.get(name) or False) != (value or False)
    ]


USAGE = "usage: python -m services.ledger [rebuild [--only projections|tiles|indexes] [--json]]\n"
PARTS = ("projections", "tiles", "indexes")


async def rebuild_part(settings: LedgerSettings, part: str, *, as_json: bool) -> None:
    """Make `projections`, `tiles` or `indexes` again from the log, and print what came of it."""
    store = Store.connect(settings.mongodb_uri.get_secret_value(), settings.database)

    def progress(done: int, of: int) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{done} / {of} 叶 leaves" + "\n" * (done >= of))
            sys.stderr.flush()

    try:
        if part == "tiles":
            leaves, tiles, replaced = await mend_tiles(store, progress)
            document: dict[str, Any] = {"leaves": leaves, "tiles": tiles, "replaced": replaced}
            restart = ",请重启账本 / start the ledger again" if replaced else ""
            said = f"核对 {tiles} 块,替换 {len(replaced)} / {tiles} tiles, {len(replaced)} replaced {' '.join(replaced)}{restart}"
        elif part == "indexes":
            made = await store.mend_indexes()
            document = {"indexes": made}
            said = f"重建 {len(made)} 个索引 / {len(made)} indexes made again {' '.join(made)}"
        else:
            await store.prepare()
            count = await rebuild(store, progress)
            document = {"cases": count, "leaves": await store.size()}
            said = f"重建 {count} 件诉求 / {count} cases rebuilt from {document['leaves']} leaves"
    finally:
        store.close()
    sys.stdout.write(json.dumps(document) + "\n" if as_json else f"{said.strip()}\n")


def main(arguments: list[str]) -> int:
    """The exit code: 0 when stopped or rebuilt, 1 where something stood in the way, 2 for an unknown argument."""
    settings = LedgerSettings()
    if arguments[:1] == ["rebuild"]:
        part = arguments[arguments.index("--only") + 1] if "--only" in arguments[:-1] else PARTS[0]
        if part not in PARTS:
            sys.stderr.write(USAGE)
            return 2
        try:
            uvloop.run(rebuild_part(settings, part, as_json="--json" in arguments))
        except (UnavailableError, RebuildLostError, UnsoundError) as why:
            sys.stderr.write(f"{why}\n")
            return 1
        return 0
    if arguments:
        sys.stderr.write(USAGE)
        return 2
    collect_seldom()
    configure("ledger", settings.instance, format=settings.log_format, level=settings.log_level)

    async def until_stopped() -> None:
        await run(settings, stop_on_signals())

    try:
        uvloop.run(until_stopped())
    except (UnavailableError, ForeignLogError, NoteError, OSError) as why:
        logger().error("ledger_cannot_run", why=str(why))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
