"""
总线丢失之后: EVENTS is filled again from the ledger, number for number.

Every number of the lost stream has its leaf: an event's bytes are in it, a repeat's in the first one's, those of what was refused
beside it. So the new stream is the old one again, except for its headers and for when it took its messages, and a position of before
means what it meant: desks, notify and intake go on from there. While it is being filled it listens on `restore.evt.>` only, so that
nobody else can write in it, and republishes nothing; only when it is whole it becomes what `shared.streams` declares.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from deploy.errors import Said, SetupError
from services.ledger.log import leaves, mending
from services.ledger.log.checkpoints import Keys
from services.ledger.log.notes import NoteError
from services.ledger.store import Store
from shared import streams
from shared.bus import FORMERLY, STREAM, Bus, Delivery, Message
from shared.envelope import canonical
from shared.errors import BusError, UnavailableError

UNDER_WAY = "paidan.restoring"
"""The stream's own note, while it is being filled, of what with."""
DOOR = "restore."
LOST = "evt.000000.ledger.-.bus.lost"
"""Stands at a number that the old stream had lost as well, until the end."""
PORTION = 1000
COMMIT_S = 30.0


class Source(NamedTuple):
    """The numbers (after, until] of one source of the ledger."""

    epoch: int
    created: str
    after: int
    until: int


@dataclass(frozen=True, slots=True)
class Plan:
    """
    What the stream will hold.

    Attributes:
        log: the origin.
        sources: whose numbers, one behind the other: `1..last` in all.
    """

    log: str
    sources: tuple[Source, ...]

    @property
    def last(self) -> int:
        """The last number."""
        return self.sources[-1].until if self.sources else 0

    @property
    def formerly(self) -> str:
        """Whose positions hold, for the stream's note."""
        return " ".join(dict.fromkeys(source.created for source in self.sources))

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "sources": [source._asdict() for source in self.sources], "last": self.last}


class Numbered(NamedTuple):
    """What was stored under a number; `data` is None where it was lost."""

    sequence: int
    subject: str
    data: bytes | None

    @property
    def message(self) -> Message:
        """As it is published through the door."""
        return Message(DOOR + self.subject, self.data or b"")


def plan(
    resets: Sequence[Mapping[str, Any]], tail: Mapping[str, Any], own: Mapping[int, int], upto: int | None
) -> Plan:
    """
    Which numbers of which sources make the stream.

    A source that brought nothing of its own (an empty stream, or one that was only filled half) does not count. One that began
    empty and has facts of its own is another history: it is not mixed with the one before.

    Args:
        resets: the reset leaves, oldest first.
        tail: the last leaf.
        own: for each source but the first, how many events it brought under numbers that the one before had used.
        upto: the last source that counts; None for the last there is.
    Raises:
        SetupError: `upto` is needed.
    """
    log, ends = tail["log"], [(reset["reset"]["created"], reset["reset"]["seq"]) for reset in resets]
    ends.append((tail["src"]["created"], tail["gap"]["to"] if tail["kind"] == leaves.GAP else tail["src"]["seq"]))
    begins = [0, *(reset["src"]["seq"] for reset in resets)]
    last = len(ends) - 1 if upto is None else min(upto, len(ends) - 1)
    while upto is None and last > 0 and begins[last] == 0 and (own[last] or ends[last][1] < ends[last - 1][1]):
        if own[last]:
            raise SetupError(
                Said(
                    f"来源 {last} 从空流开始，已写入 {own[last]} 件事实，与来源 {last - 1} 是两段历史",
                    f"source {last} began empty and has {own[last]} facts of its own: another history than source {last - 1}",
                ),
                Said(
                    f"用 --source {last - 1} 恢复此前的历史（之后的事实只留在账本）",
                    f"restore the one before with --source {last - 1}; what came after stays in the ledger only",
                ),
                "two_histories",
            )
        last -= 1
    sources: list[Source] = []
    for epoch in range(last + 1):
        after, (created, until) = begins[epoch], ends[epoch]
        sources = [s._replace(until=min(s.until, after)) for s in sources if s.after < after]
        if until > after:
            sources.append(Source(epoch, created, after, until))
    return Plan(log, tuple(sources))


async def planned(store: Store, upto: int | None) -> Plan:
    """What the ledger gives. Raises SetupError where it is empty, or holds two histories; StoreUnavailableError."""
    tail, _ = await store.tail()
    if tail is None:
        raise SetupError(
            Said("账本是空的，没有可恢复的内容", "the ledger is empty: there is nothing to restore"),
            Said("运行 paidan bus apply 建立空流", "make an empty stream with `paidan bus apply`"),
        )
    resets = [orjson.loads(data) for kind, _, data in await store.rare() if kind == leaves.RESET and data]
    own = {n: await store.events_of_source(n, reset["reset"]["seq"]) for n, reset in enumerate(resets, 1)}
    return plan(resets, orjson.loads(tail), own, upto)


async def numbered(store: Store, sources: Sequence[Source], behind: int = 0) -> AsyncIterator[list[Numbered]]:
    """What was stored under every number behind this one, in order, in portions. Raises SetupError where bytes are missing."""
    for source in sources:
        at = max(source.after, behind)
        while at < source.until:
            found = [orjson.loads(leaf) for leaf in await store.of_source(source.epoch, at, source.until, PORTION)]
            firsts = dict(await store.at([leaf["first"] for leaf in found if leaf["kind"] == leaves.DUP]))
            raw = await store.set_aside([leaf["digest"] for leaf in found if "digest" in leaf])
            portion = [one for leaf in found for one in _numbered(leaf, firsts, raw, source.until)]
            if not portion or [one.sequence for one in portion] != list(range(at + 1, at + 1 + len(portion))):
                raise _hole(at + 1)
            yield portion
            at = portion[-1].sequence


def _numbered(
    leaf: Mapping[str, Any], firsts: Mapping[int, bytes], raw: Mapping[str, bytes], until: int
) -> Iterator[Numbered]:
    sequence: int = leaf["src"]["seq"]
    match leaf["kind"]:
        case leaves.EVENT:
            yield Numbered(sequence, leaf["subject"], canonical(leaf["event"]))
        case leaves.DUP if leaf["first"] in firsts:
            yield Numbered(sequence, leaf["subject"], leaves.first(firsts[leaf["first"]]).data)
        case leaves.CONFLICT | leaves.REJECT if sha256(raw.get(leaf["digest"], b"")).hexdigest() == leaf["digest"]:
            yield Numbered(sequence, leaf["subject"], raw[leaf["digest"]])
        case leaves.GAP:
            for lost in range(sequence, min(leaf["gap"]["to"], until) + 1):
                yield Numbered(lost, LOST, None)
        case _:
            raise _hole(sequence)


def _hole(sequence: int) -> SetupError:
    return SetupError(
        Said(f"账本缺少序号 {sequence} 的内容", f"the ledger does not hold what was stored under {sequence}"),
        Said("先运行 paidan ledger verify", "run `paidan ledger verify` first"),
        "hole",
    )


async def restore(
    bus: Bus,
    store: Store,
    upto: int | None,
    *,
    replace: bool = False,
    dry_run: bool,
    progress: Callable[[int, int], None],
    checking: Callable[[int, int], None] = lambda _done, _of: None,
    key_file: Path | None = None,
) -> dict[str, Any]:
    """
    Fill EVENTS from the ledger; what was begun before is gone on with.

    A stream that holds the beginning of it and no more (it lost its tail, or an old copy came back) is made anew: nothing in it
    is not in the ledger.

    Args:
        replace: make the stream anew whatever it holds.
        checking: told how many leaves were held against the last checkpoint, and of how many, before anything is written.
        key_file: what the log signs with (`Keys`): then the checkpoint must be signed by it.
    Returns: the plan, and how many numbers the stream has already (`held`).
    Raises:
        SetupError: the stream holds something else, or the ledger cannot say what it should hold: its leaves are not those
            that were signed, or bytes beside them are missing or changed.
        BusError, StoreUnavailableError: come again.
    """
    config = await bus.stream_config(STREAM)
    under_way = (config or {}).get("metadata", {}).get(UNDER_WAY)
    wanted = await planned(store, upto)
    mark = f"{wanted.log} {wanted.sources[-1].epoch} {wanted.last}"
    held = 0
    if config and not replace:
        state = await bus.state()
        held = state.last
        known = under_way == mark if under_way else wanted.sources[-1].created in (state.created, *state.formerly)
        differs = await _first_difference(bus, store, wanted, held) if known else 1
        if held and differs is not None:
            raise SetupError(
                Said(
                    f"EVENTS 中已有 {held} 条，第 {differs} 条起与账本不符",
                    f"EVENTS holds {held} messages, from {differs} on not the ledger's",
                ),
                Said("确认可以丢弃后加 --replace", "where they may go say --replace"),
                "other_facts",
            )
        if held >= wanted.last and not under_way:
            return {**wanted.document(), "held": held, "restored": 0}
        if not under_way:
            held = 0
    await _require_signed(store, checking, key_file)
    answer = {**wanted.document(), "held": held, "restored": 0 if dry_run else wanted.last - held}
    if dry_run:
        return answer
    declared = next(stream for stream in streams.declared() if stream["name"] == STREAM)
    if not held:
        await bus.remove_stream(STREAM)
        await bus.apply_stream(_filling(declared, {UNDER_WAY: mark, FORMERLY: wanted.formerly}), new=True)
    async for portion in numbered(store, wanted.sources, held):
        for n in range(0, len(portion), PORTION):
            await _store(bus, portion[n : n + PORTION])
        progress(portion[-1].sequence, wanted.last)
    await bus.purge(STREAM, LOST)
    have = await bus.stream_config(STREAM) or {}
    del have["subject_transform"], have["metadata"][UNDER_WAY]
    await bus.apply_stream({**have, **declared}, new=False)
    await streams.apply(bus)
    return answer


async def _require_signed(store: Store, checking: Callable[[int, int], None], key_file: Path | None) -> None:
    """Nothing becomes the office's history again that is not what was signed. Raises SetupError."""
    size = await store.size()
    try:
        await mending.be_signed(
            store, size, lambda done: checking(done, size), lambda origin: Keys(origin, key_file).verifiers
        )
    except (mending.UnsoundError, NoteError) as why:
        raise SetupError(
            Said(f"账本的叶子不是签过的：{why}", f"the ledger's leaves are not those that were signed ({why})"),
            Said("先运行 paidan ledger verify", "run `paidan ledger verify` first"),
            "unsound",
        ) from None


def _filling(declared: Mapping[str, Any], metadata: dict[str, str]) -> dict[str, Any]:
    """The stream while it is filled: closed to all others, heard by nobody, and able to lose what stands for lost numbers."""
    door = {"subjects": [DOOR + "evt.>"], "subject_transform": {"src": DOOR + "evt.>", "dest": "evt.>"}}
    able = {"deny_delete": False, "deny_purge": False}
    return (
        {name: value for name, value in declared.items() if name != "republish"} | door | able | {"metadata": metadata}
    )


async def _first_difference(bus: Bus, store: Store, wanted: Plan, held: int) -> int | None:
    """The first number that both have under which the stream does not hold what it should; None: it holds all of it."""
    reader = bus.reader(("evt.>",), after=0)
    read: deque[Delivery] = deque()
    try:
        async for portion in numbered(store, wanted.sources):
            for one in portion:
                if one.sequence > held:
                    return None
                if not read:
                    read.extend(await reader.wait(5.0, PORTION))
                if not _is_there(one, read):
                    return one.sequence
    finally:
        await reader.close()
    return None


def _is_there(one: Numbered, read: deque[Delivery]) -> bool:
    """Whether what the stream holds next is this; what stands for a lost number may have been taken out already."""
    if read and read[0].sequence == one.sequence:
        delivery = read.popleft()
        return (delivery.subject, delivery.data) == (one.subject, one.data or b"")
    return one.data is None


async def _store(bus: Bus, portion: Sequence[Numbered]) -> None:
    """Store these under their numbers; after an unanswered try look first. Raises BusError."""
    for attempt in range(5):
        try:
            last = await bus.commit([one.message for one in portion], timeout_s=COMMIT_S)
        except UnavailableError:
            await asyncio.sleep(0.5 * attempt)
            last = (await bus.state()).last
            if last == portion[0].sequence - 1:
                continue
        if last != portion[-1].sequence:
            raise BusError(f"EVENTS is at {last} and not at {portion[-1].sequence}: somebody else writes")
        return
    raise UnavailableError(f"{len(portion)} messages were not stored in five tries")


async def require_history(bus: Bus, store: Store) -> None:
    """
    Raises SetupError where the bus has lost what the ledger holds: whoever began now would begin another history.

    A MongoDB that does not answer says nothing.
    """
    try:
        tail, _ = await store.tail()
    except UnavailableError:
        return
    if tail is None:
        return
    config = await bus.stream_config(STREAM)
    state = await bus.state() if config else None
    source = orjson.loads(tail)["src"]
    if config and state and state.last and UNDER_WAY not in config.get("metadata", {}):
        known = source["created"] in (state.created, *state.formerly)
        if not known or state.last >= source["seq"]:
            return
    raise SetupError(
        Said(
            f"总线缺少账本已有的事实（账本到 {source['seq']}，总线到 {state.last if state else 0}）",
            f"the bus has lost facts that the ledger holds: it ends at {state.last if state else 0}, the ledger at {source['seq']}",
        ),
        Said("先运行 paidan bus restore", "run `paidan bus restore` first"),
        "bus_lost",
    )
