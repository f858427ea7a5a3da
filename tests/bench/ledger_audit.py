"""
How fast an auditor looks at everything, from MongoDB and offline, and how much memory that takes.

The limit of the first is the driver's cursor over the same whole documents, decoded and dropped; of the second a plain loop of
SHA-256 over the same lines of a replay, whole lines as a file gives them. Memory is that of `paidan ledger verify` in a process of its own (`--facts 1000000` for a million).
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import suppress
from hashlib import sha256

from services.ledger.audit.auditing import BATCH, Report, audit_store
from services.ledger.audit.copies import audit_replay
from services.ledger.log.notes import Policy
from services.ledger.replay import Cursors, Replay, lines
from services.ledger.store import Selection
from tests.bench.harness import ROOT, Row, Workshop, resident_mib
from tests.bench.ledger_ground import Kept, kept
from tests.bench.ledger_replay import count, documents

MEMORY_MIB = 512


async def run(workshop: Workshop) -> list[Row]:
    """From MongoDB, offline, and the command's memory."""
    log, rounds = await kept(workshop), workshop.size(3, 1)
    trust = Policy(logs=(log.verifier,))
    rates: dict[str, list[float]] = {"cursor": [], "audit": [], "audit with form": [], "sha": [], "offline": []}
    async with log.store() as store:
        newest = await store.checkpoint()
        assert newest
        replay = Replay(log.origin, Selection(), newest.size, note=newest.note)
        copy = b"".join([chunk async for chunk in lines(store, replay, Cursors(bytes(32)))]).splitlines(keepends=True)
        for n in range(rounds):
            for name, found in rates.items():
                began = time.perf_counter()
                if name == "cursor":
                    await count(documents(log, BATCH))
                elif name == "sha":
                    for line in copy:
                        sha256(b"\x00" + line).digest()
                elif name == "offline":
                    _require_fine(audit_replay(copy, trust))
                else:
                    _require_fine((await audit_store(store, trust, form=name == "audit with form"))[0])
                found.append(newest.size / (time.perf_counter() - began))
            said = ", ".join(f"{name} {found[-1]:.0f}" for name, found in rates.items())
            workshop.say(f"ledger audit {n + 1}/{rounds}: {said} leaves/s")
    peak, seconds = await _command(workshop, log)
    workshop.say(f"ledger audit: the command took {seconds:.1f} s for {log.leaves} leaves and {peak:.0f} MiB at most")
    form = Row.of("", rates["audit with form"], rates["cursor"], "")
    return [
        Row.of(
            *("ledger audit", rates["audit"], rates["cursor"], "leaves/s"),
            target="≥ 0.65",
            leaves=log.leaves,
            with_form={"value": round(form.value), "ratio": round(form.ratio, 2)},
        ),
        Row.of("ledger audit offline", rates["offline"], rates["sha"], "leaves/s", target="≥ 0.15"),
        Row(
            *("ledger audit memory", peak, MEMORY_MIB, "MiB", 1, peak, peak, "≤ 1.00"),
            {"leaves": log.leaves, "seconds": round(seconds, 1)},
        ),
    ]


def _require_fine(report: Report) -> None:
    if not report.fine:
        raise RuntimeError(str(report.findings.listed[:3]))


async def _command(workshop: Workshop, log: Kept) -> tuple[float, float]:
    """The peak memory (MiB) of `paidan ledger verify` on the database, and how long it took."""
    began, peak = time.perf_counter(), 0.0
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "deploy.cli", "ledger", "verify", "--vkey", log.verifier.text),
        cwd=ROOT,
        env={**os.environ, "PAIDAN_AUDIT_URI": log.mongod.auditor_uri},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout
    said = asyncio.create_task(process.stdout.read())
    while not said.done():
        with suppress(OSError, KeyError):  # it has just ended
            peak = max(peak, resident_mib(process.pid)[1])
        await asyncio.wait({said}, timeout=0.1)
    if await process.wait():
        raise RuntimeError((await said).decode()[-2000:])
    return peak, time.perf_counter() - began
