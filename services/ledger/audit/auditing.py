"""
An audit of a log where it lies: reads MongoDB, what is held outside it, and the stream; writes nothing.

The pure part is `services.ledger.audit.verifying`. Here it is fed, and what does not follow from leaf to leaf is compared: signatures and
cosignatures, raw bytes, projections, the stream. What could not be looked at is said, never passed over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, NamedTuple, Protocol

import orjson

from services.ledger import cases, projecting
from services.ledger.audit.findings import Findings, plain
from services.ledger.audit.verifying import Audit
from services.ledger.log import leaves
from services.ledger.log.checkpoints import BUCKET, subject_of
from services.ledger.log.leaves import CONFLICT, DUP, EVENT, REJECT, read, recorded_ns, recorded_text
from services.ledger.log.notes import LOG, Checkpoint, Note, NoteError, Policy, Signature, Verifier
from services.ledger.log.tree import TILE_HEIGHT, TILE_WIDTH
from services.ledger.store import Selection, Store
from shared.bus import Bus, Delivery, StreamState
from shared.envelope import canonical, opened
from shared.errors import PaidanError
from shared.facts import CATALOGUE, HUB, LedgerKeyRotated

BATCH = 4096
"""Leaves at a time: a multiple of a tile."""
CASES_BATCH = 500
NO_KEY = "没有给出公钥 / no key of the log was given (--vkey, --policy)"
NO_ANCHOR = "只有数据库自己的；末尾连同其检查点被截去看不出来 / the database's own alone: an end that was cut off with its checkpoints is not seen (--witness)"
NO_POLICY = "没有给出 --policy / no --policy was given"
SAMPLES = 50
"""Events that are compared with the stream, evenly spread."""
REPEATS = 1000
"""Leaves of repeats, conflicts and rejects that are compared with the stream."""
RECORDED_WITHIN_NS = 100_000
"""The bus client gives such a time to the microsecond only."""
NO_EVENTS = (REJECT, CONFLICT, DUP)
CHUNK = 100
"""Rejects at a time: their bytes are read too."""
MOVING = tuple(f"cn.paidan.{fact.name}." for fact in CATALOGUE if fact in cases.MOVING)

Progress = Callable[[str, int, int], None]
"""Told what is being looked at, how far, and of how many."""


class NothingToAuditError(PaidanError):
    """There is no log here, or not the one that was asked for."""


class Anchor(NamedTuple):
    """A checkpoint held outside the database: `where` says by whom."""

    where: str
    note: str


class Stream(Protocol):
    """What is asked of the stream."""

    async def state(self) -> StreamState:
        """Which stream there is."""

    async def next(self, subjects: str, *, after: int) -> Delivery | None:
        """The first behind a sequence."""


class Link(NamedTuple):
    """A rotation on record (`ledger.key_rotated`), by the index of its leaf: the key `new` follows the key `old`."""

    leaf: int
    old: Verifier
    new: Verifier


class Witnessed(NamedTuple):
    """The newest checkpoint that satisfies the policy: its size, whose names are under it, and when (s since 1970) the last of them signed."""

    size: int
    by: list[str]
    at: int


@dataclass
class Report:
    """
    What was looked at, and what was found.

    Attributes:
        checkpoint: the newest one whose signature held; None without one.
        witnessed: the newest that satisfies the policy.
        chained: keys that were not given and follow, by rotations on record, from those that were.
        question: which leaves of the log a replay says to be, with the areas that an ended agreement closed; None of a whole log.
        checked, unchecked: by name; of what was not looked at, why.
    """

    log: str
    leaves: int = 0
    root: bytes | None = None
    kinds: dict[str, int] = field(default_factory=dict)
    scopes: dict[str, int] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None
    witnessed: Witnessed | None = None
    chained: list[str] = field(default_factory=list)
    question: dict[str, Any] | None = None
    checked: list[str] = field(default_factory=list)
    unchecked: dict[str, str] = field(default_factory=dict)
    findings: Findings = field(default_factory=Findings)

    @property
    def fine(self) -> bool:
        """Whether nothing was found."""
        return not self.findings.counts

    def document(self) -> dict[str, Any]:
        """As JSON has it; hashes in base64 as in a checkpoint."""
        found = self.findings
        return {
            "ok": self.fine,
            "log": self.log,
            "leaves": self.leaves,
            "root": plain(self.root),
            "kinds": self.kinds,
            "districts": self.scopes,
            "checkpoint": self.checkpoint and {"size": self.checkpoint.size, "root": plain(self.checkpoint.root)},
            "witnessed": self.witnessed and self.witnessed._asdict(),
            "chained": self.chained,
            "question": self.question,
            "checked": self.checked,
            "unchecked": self.unchecked,
            "counts": dict(found.counts),
            "findings": [finding.document() for finding in found.listed],
        }


def believed(text: str, log: str, trust: Policy, findings: Findings, *, size: int | None = None) -> Checkpoint | None:
    """
    The checkpoint in a note, if it is this log's, of this size, and signed by a key that is trusted (where any is).

    Args:
        size: what it is kept under.
    """
    try:
        note = Note.parse(text)
        checkpoint = Checkpoint.parse(note.body)
    except NoteError as why:
        findings.say("checkpoint_form", size, "note", "C2SP signed note", str(why))
        return None
    for name, want, found in (("origin", log, checkpoint.origin), ("size", size, checkpoint.size)):
        if want not in (None, found):
            findings.say("checkpoint_form", size, name, want, found)
            return None
    try:
        if trust.logs and not note.verified(trust.logs):
            raise NoteError("none of the trusted keys has signed it")
    except NoteError as why:
        findings.say("signature", checkpoint.size, "note", None, str(why))
        return None
    return checkpoint


def cosigned(size: int, text: str, lines: Iterable[str], trust: Policy, findings: Findings) -> Witnessed:
    """Who of the policy's witnesses has cosigned a checkpoint, by their names in it; wrong lines are findings."""
    at = dict[str, int]()
    try:
        body = Note.parse(text).body
    except NoteError:
        return Witnessed(size, [], 0)  # said of the checkpoint itself
    for line in lines:
        try:
            signature = Signature.parse(line)
            signed = Note(body, (signature,)).verified(trust.witnesses.values())
            at |= {name: signed[key] or 0 for name, key in trust.witnesses.items() if key in signed}
        except NoteError as why:
            findings.say("cosignature", size, line.split(" ")[1] if " " in line else line[:80], None, str(why))
    return Witnessed(size, sorted(at), max(at.values(), default=0))


async def links(store: Store, log: str) -> list[Link]:
    """Every rotation of a log's key on record, oldest first; what cannot be read is none."""
    found = []
    asked = Selection(district=HUB, types=(LedgerKeyRotated.type(),), kinds=(EVENT,))
    async for chunk in store.chunks(asked, 0, 2**53, None, CHUNK):
        for index, data in chunk:
            with suppress(orjson.JSONDecodeError, KeyError, TypeError, AttributeError, NoteError):
                said = orjson.loads(data)["event"]["data"]
                link = Link(index, Verifier.parse(said["old"]), Verifier.parse(said["new"]))
                if (link.old.name, link.old.type, link.new.name, link.new.type) == (log, LOG, log, LOG):
                    found.append(link)
    return found


class Chain:
    """
    The keys that follow, by rotations on record, from those that are trusted.

    A checkpoint of any of them is looked at; a key counts once a checkpoint signed by a key that counted before covers the leaf that
    names both. So who holds an old key accepts its successors, and who holds the present one those that it followed. A key that was
    followed says nothing about what is newer than all that its successors signed: it may be the one that was stolen.
    """

    def __init__(self, trusted: Sequence[Verifier], rotations: Sequence[Link]) -> None:
        self._trusted, self._links, self._covered = tuple(trusted), rotations, dict[Verifier, int]()
        keys = {*trusted}
        while more := {key for _, *pair in rotations if keys & {*pair} for key in pair} - keys:
            keys |= more
        self._others = tuple(key for key in keys if key not in trusted)

    def widened(self, trust: Policy) -> Policy:
        """The policy with all of these keys."""
        return replace(trust, logs=(*self._trusted, *self._others))

    def signed(self, note: str, checkpoint: Checkpoint) -> None:
        """A checkpoint that is believed for now: by whom."""
        for key in Note.parse(note).verified((*self._trusted, *self._others)) if self._others else ():
            self._covered[key] = max(self._covered.get(key, 0), checkpoint.size)

    def end(self, report: Report) -> None:
        """All checkpoints were seen: those keys that count are named, the others that signed are found."""
        counts = {*self._trusted}
        while more := {key for link in self._links if self._holds(link, counts) for key in link[1:]} - counts:
            counts |= more
        for key in sorted(self._others, key=lambda key: key.text):
            if key in counts:
                report.chained.append(key.text)
            elif key in self._covered:
                report.findings.say("key", None, key.text)
        followed = {link.old for link in self._links if link.new in counts and link.new in self._covered}
        present = [self._covered.get(key, 0) for key in counts - followed]
        for key in sorted(followed & counts, key=lambda key: key.text) if present else ():
            if (size := self._covered.get(key, 0)) > max(present):
                report.findings.say("signature", size, "note", None, f"by a key that was replaced: {key.text}")

    def _holds(self, link: Link, counts: set[Verifier]) -> bool:
        covered = max((self._covered.get(key, 0) for key in counts), default=0)
        return link.leaf < covered and not counts.isdisjoint(link[1:])


async def held(bus: Bus, log: str) -> Anchor | None:
    """The last checkpoint that the bus holds of a log. Raises BusError."""
    found = await bus.last(subject_of(log), stream=BUCKET)
    return Anchor("KV CHECKPOINTS", found.data.decode(errors="replace")) if found else None


async def audit_store(
    store: Store,
    trust: Policy,
    *,
    log: str | None = None,
    anchors: Sequence[Anchor] = (),
    form: bool = True,
    progress: Progress | None = None,
) -> tuple[Report, Audit]:
    """
    Everything that MongoDB says, from the first leaf to the last that there is now.

    Args:
        trust: the keys of the log, the witnesses and how many; without keys no signature can be checked.
        log: its origin; without one, as the first leaf says.
        form: look at the canonical form of every leaf too.
    Raises:
        NothingToAuditError: the database holds no log.
        StoreUnavailableError.
    """
    newest = await store.checkpoint()
    size = await store.size()
    log = log or (trust.logs[0].name if trust.logs else await _origin(store))
    audit = Audit(log, canonical=form, fields=store)
    report = Report(log, findings=audit.findings)
    chain = Chain(trust.logs, await links(store, log) if trust.logs else ())
    trust = chain.widened(trust)

    def believe(text: str, size: int | None = None) -> Checkpoint | None:
        if (checkpoint := believed(text, log, trust, report.findings, size=size)) is not None:
            chain.signed(text, checkpoint)
        return checkpoint

    for where, text in anchors:
        if (checkpoint := believe(text)) is not None:
            audit.anchor(where, checkpoint)
    if not size and newest is None and not anchors:
        raise NothingToAuditError(f"the database holds no leaf of {log}")
    due = newest.size if newest else 0
    at = 0
    reading = asyncio.create_task(_stretch(store, 0, min(size, BATCH)))
    try:
        while at < size:
            documents, notes, tiles = await reading
            at = min(size, at + BATCH)
            if at < size:
                reading = asyncio.create_task(_stretch(store, at, min(size, at + BATCH)))
            held = [believe(text, each) for each, text in notes]
            audit.expect(filter(None, held), tiles, due)
            report.checkpoint = next(filter(None, reversed(held)), report.checkpoint)
            audit.take(documents)
            if progress:
                progress("leaves", at, size)
            await asyncio.sleep(0)
    finally:
        reading.cancel()
    if newest and newest.size > size:
        audit.expect(filter(None, [believe(newest.note, newest.size)]))
    audit.end()
    chain.end(report)
    report.leaves, report.root = audit.size, audit.growth.root()
    report.kinds = {kind: many for kind, many in sorted(audit.kinds.items()) if many}
    report.scopes = {district: n for district, (n, _) in sorted(audit.scopes.items())}
    report.checked += ["leaves", "order", "ordinals", "indexes", "heads", "tiles", *(["form"] if form else [])]
    if newest is None:
        report.unchecked["checkpoints"] = "尚未签过 / none was signed"
        if trust.logs:
            report.findings.say("unsigned")
    else:
        report.checked.append("checkpoints")
        if (behind := size - newest.size) > 0:
            report.unchecked["tail"] = (
                f"最后的检查点之后的 {behind} 片叶子 / {behind} leaves behind the last checkpoint"
            )
    if not anchors:
        report.unchecked["others' checkpoints"] = NO_ANCHOR
    await _signatures(store, trust, report, newest is not None)
    await _raws(store, audit, report)
    return report, audit


async def _origin(store: Store) -> str:
    found = await store.audited(0, 1)
    try:
        return str(orjson.loads(found[0][1])["log"])
    except (IndexError, KeyError, ValueError):
        raise NothingToAuditError("the database holds no first leaf that says which log it is of") from None


Stretch = tuple[list[tuple[int, bytes, bytes]], list[tuple[int, str]], dict[tuple[int, int], bytes]]


async def _stretch(store: Store, since: int, below: int) -> Stretch:
    """Documents of a range, the checkpoints in it and the tiles that end in it."""
    notes, tiles = await store.signed(since, below), dict[tuple[int, int], bytes]()
    level = 0
    while (width := TILE_WIDTH << (TILE_HEIGHT * level)) <= below:
        numbers = range(since // width, below // width)
        if numbers:
            tiles |= {(level, number): data for number, data in (await store.tiles(level, numbers)).items()}
        level += 1
    return await store.audited(since, below), notes, tiles


async def _signatures(store: Store, trust: Policy, report: Report, signed: bool) -> None:
    if not trust.logs:
        report.unchecked["signatures"] = NO_KEY
    elif signed:
        report.checked.append("signatures")
    if not trust.witnesses:
        report.unchecked["witnesses"] = NO_POLICY
        return
    best: Witnessed | None = None
    seen = report.checkpoint.size if report.checkpoint else 0  # one that came since is of leaves that were not audited
    async for size, note, lines in store.cosigned():
        found = cosigned(size, note, [line for _, line in lines], trust, report.findings)
        if note and trust.satisfied(found.by) and (best.size if best else -1) < size <= seen:
            best = found
    report.witnessed = best
    report.checked.append("witnesses")
    if best is None and trust.quorum is not None:
        report.findings.say("unwitnessed", report.checkpoint.size if report.checkpoint else None, trust.quorum)


async def _raws(store: Store, audit: Audit, report: Report) -> None:
    """The raw bytes of what was no event."""
    wanted = dict(audit.rejected)
    async for digest, data in store.raws():
        if (found := _digest(data)) != digest:
            report.findings.say("reject_changed", wanted.get(digest), "rejects", digest, found)
        wanted.pop(digest, None)
    for digest, index in wanted.items():
        report.findings.say("reject_missing", index, "rejects", digest)
    await _judgements(store, audit, report)
    report.checked.append("rejects")


async def _judgements(store: Store, audit: Audit, report: Report) -> None:
    """Whether what was refused is refused by the rules (ADR 36), and why, and whether a conflict's bytes are an event of that id."""
    asked = Selection(kinds=(REJECT, CONFLICT))
    async for chunk in store.chunks(asked, 0, audit.size, None, CHUNK):
        some = [leaf for _, data in chunk if (leaf := _leaf(data, REJECT, CONFLICT))]
        raw = await store.set_aside({leaf["digest"] for leaf in some})
        for leaf in some:
            if (data := raw.get(leaf["digest"])) is None:
                continue  # said already
            found = leaf.get("reason", CONFLICT)
            judged = read(Delivery(0, 0, leaf["subject"], data))
            expected = judged.reason
            if judged.envelope is not None:
                expected = CONFLICT if judged.envelope.id == leaf.get("id") else EVENT
            if expected != found:
                report.findings.say("reject_untrue", leaf["index"], "reason", expected, found)
        await asyncio.sleep(0)


async def audit_projection(store: Store, audit: Audit, report: Report, progress: Progress | None = None) -> None:
    """Fold every case again and compare it with what is stored, a few hundred at a time; after `audit_store`."""
    position = (await store.projected(projecting.NAME)).position
    ids = sorted(audit.cases)
    for n in range(0, len(ids), CASES_BATCH):
        some = ids[n : n + CASES_BATCH]
        stored = {case["_id"]: case for case in await store.cases(some)}
        of_cases = await store.of_cases(some)
        for id in some:
            held = stored.get(id)
            until = max(position, held["pos"] + 1 if held else 0)
            try:
                folded = _folded(of_cases[id], until)
            except (PaidanError, KeyError, TypeError, ValueError):
                continue  # a leaf that cannot be read: it has been named
            if folded == held:
                continue
            if held is None:
                report.findings.say("projection_missing", folded["pos"] if folded else None, id)
                continue
            for name in sorted({*(folded or {}), *held}):
                expected, found = (folded or {}).get(name), held.get(name)
                if expected != found:
                    report.findings.say("projection", held["pos"], f"{id}.{name}", expected, found)
        if progress:
            progress("cases", min(n + CASES_BATCH, len(ids)), len(ids))
    async for id, first in store.case_ids():
        if id not in audit.cases and first < audit.size:
            report.findings.say("projection_unknown", first, id)
    report.checked.append("projections")


def _folded(of: Iterable[tuple[int, bytes]], until: int) -> cases.Case | None:
    case: cases.Case | None = None
    for index, data in of:
        if index >= until:
            break
        leaf = orjson.loads(data)
        if leaf["event"]["type"].startswith(MOVING):
            case = cases.evolve(case, index, opened(leaf["subject"], leaf["event"]))
    return case


async def audit_stream(stream: Stream, store: Store, audit: Audit, report: Report) -> None:
    """
    Whether the stream is the one the ledger says it read: gaps are really gone, and samples are the same.

    Raises:
        BusError: it cannot be asked.
    """
    say = report.findings.say
    state = await stream.state()
    if state.created != audit.created:
        say("stream", None, "created", audit.created, state.created)
        return
    if state.last < audit.sequence:
        say("stream", None, "last", f"≥ {audit.sequence}", state.last)
    for first, last, index in audit.gaps:
        found = await stream.next(">", after=first - 1)
        if found is not None and found.sequence <= last:
            say("gap_untrue", index, "gap", None, found.sequence)
    step = max(1, audit.sequence // SAMPLES)
    for sequence in range(audit.sequence, 0, -step):
        data = await store.at_or_before(audit.epoch, sequence)
        leaf = _leaf(data or b"", EVENT)
        if leaf and leaf["src"]["seq"] == sequence:
            await _compare(stream, leaf, _digest(canonical(leaf["event"])), report)
    await _repeats(stream, store, audit, report)
    report.checked.append("stream")


async def _repeats(stream: Stream, store: Store, audit: Audit, report: Report) -> None:
    """
    Whether what was no event to the ledger is what the stream holds under its number: a fact that is called a repeat hides in no digest.

    As many as `REPEATS`, evenly spread: after a bus was restored every event has a repeat.
    """
    asked, many = Selection(kinds=NO_EVENTS), sum(audit.kinds[kind] for kind in NO_EVENTS)
    step, seen, gone = max(1, -(-many // REPEATS)), 0, 0
    async for chunk in store.chunks(asked, 0, audit.size, None, CHUNK):
        picked = [_leaf(data, *NO_EVENTS) for at, (_, data) in enumerate(chunk, seen) if at % step == 0]
        some = list(filter(None, picked))
        seen += len(chunk)
        gone += len(some)
        some = [leaf for leaf in some if leaf["src"].get("epoch", 0) == audit.epoch]
        gone -= len(some)
        firsts = dict(await store.at([leaf["first"] for leaf in some if leaf["kind"] == DUP]))
        for leaf in some:
            if leaf["kind"] != DUP:
                await _compare(stream, leaf, leaf["digest"], report)
            elif leaf["first"] in firsts:
                earlier = leaves.first(firsts[leaf["first"]])
                if earlier.subject != leaf["subject"]:
                    report.findings.say("first", leaf["index"], "subject", leaf["subject"], leaf["first"])
                await _compare(stream, leaf, _digest(earlier.data), report)
    if step > 1 or gone:
        done = -(-many // step) - gone
        report.unchecked["repeats"] = (
            f"只核对 {done} / {many}，其余抽样之外或其流已不在 / {done} of {many}: sampled, or their stream is gone"
        )


def _leaf(data: bytes, *kinds: str) -> dict[str, Any]:
    """A leaf of these kinds; empty for another, and for what is none: that has been named."""
    with suppress(orjson.JSONDecodeError, KeyError, TypeError):
        leaf: dict[str, Any] = orjson.loads(data)
        names = ("digest",) if leaf["kind"] != DUP else ("first", "id")
        if leaf["kind"] == EVENT:
            names = ("event",)
        if leaf["kind"] in kinds and {"index", "recorded", "src", "subject", *names} <= leaf.keys():
            return leaf
    return {}


async def _compare(stream: Stream, leaf: Mapping[str, Any], digest: str, report: Report) -> None:
    """A leaf with what the stream holds under its number, if it still does: the digest of its bytes (hex), subject and time."""
    sequence, say = leaf["src"]["seq"], report.findings.say
    stored = await stream.next(">", after=sequence - 1)
    if stored is None or stored.sequence != sequence:
        return
    if digest != (found := _digest(stored.data)):
        say("stream", leaf["index"], str(sequence), digest, found)
    if stored.subject != leaf["subject"]:
        say("stream", leaf["index"], f"{sequence}.subject", stored.subject, leaf["subject"])
    with suppress(ValueError):  # no time at all: that has been named
        if abs(stored.recorded_ns - recorded_ns(leaf["recorded"])) > RECORDED_WITHIN_NS:
            say("stream", leaf["index"], f"{sequence}.recorded", recorded_text(stored.recorded_ns), leaf["recorded"])


def _digest(data: bytes) -> str:
    return sha256(data).hexdigest()


def entries(bundle: bytes) -> list[bytes]:
    """The leaves of an entry bundle (C2SP tlog-tiles): each behind its length in two bytes. Raises ValueError."""
    found, at = [], 0
    while at < len(bundle):
        end = at + 2 + int.from_bytes(bundle[at : at + 2], "big")
        if end > len(bundle):
            raise ValueError("an entry bundle ends in the middle of an entry")
        found.append(bundle[at + 2 : end])
        at = end
    return found
