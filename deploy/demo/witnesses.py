"""Two offices witness the demo's ledger, each with a key and a memory of its own; in the end an auditor verifies it all."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.ledger.log.checkpoints import Keys
from services.ledger.log.notes import COSIGNATURE, Key
from services.ledger.log.witness import Memory, Witness, follow
from shared.bus import Bus

ORIGIN = "paidan.local/main/1"
VERIFIED_WITHIN_S = 120.0


@dataclass(frozen=True)
class Verified:
    """What `paidan ledger verify --json` said, who cosigned, and what about it does not hold."""

    report: Mapping[str, Any]
    failures: tuple[str, ...]

    @property
    def cosigned(self) -> Sequence[str]:
        """The districts whose witnesses cosigned the last checkpoint."""
        by: Sequence[str] = (self.report.get("witnessed") or {}).get("by", ())
        return by

    def document(self) -> dict[str, Any]:
        """For programs."""
        return {
            name: self.report.get(name) for name in ("ok", "checkpoint", "leaves", "witnessed", "checked", "counts")
        }


@dataclass
class Witnesses:
    """A witness for each of these offices, and the policy that asks for all of them."""

    folder: Path
    districts: Sequence[str]
    _keys: dict[str, Key] = field(init=False)
    _following: list[asyncio.Task[None]] = field(default_factory=list)
    _memories: list[Memory] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self._keys = {district: Key.make(f"witness.{district}.example", COSIGNATURE) for district in self.districts}
        witnesses = [f"witness {district} {key.verifier.text}\n" for district, key in self._keys.items()]
        self.policy.write_text("".join([*witnesses, f"group offices all {' '.join(self._keys)}\n", "quorum offices\n"]))

    @property
    def policy(self) -> Path:
        """For the ledger and for whoever verifies it (C2SP tlog-policy)."""
        return self.folder / "policy"

    def follow(self, buses: Mapping[str, Bus], signing_key: Path) -> None:
        """Each over its own office's connection; they know the log by its public key."""
        logs = Keys(ORIGIN, signing_key).verifiers
        for district, key in self._keys.items():
            self._memories.append(memory := Memory(self.folder / district))
            following = follow(buses[district], district, Witness(key, logs, memory), ORIGIN, asyncio.Event())
            self._following.append(asyncio.create_task(following))

    async def verify(self, data: Path, signing_key: Path, size: int) -> Verified:
        """What an auditor's `paidan ledger verify` finds, with key and policy that did not come from the ledger; cosigned up to `size`."""
        vkeys = [option for verifier in Keys(ORIGIN, signing_key).verifiers for option in ("--vkey", verifier.text)]
        command = ["ledger", "verify", "--data", str(data), "--policy", str(self.policy), *vkeys, "--json"]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "deploy.cli", *command),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            said, wrong = await asyncio.wait_for(process.communicate(), VERIFIED_WITHIN_S)
            report = json.loads(said)
        except (TimeoutError, ValueError):
            if process.returncode is None:
                process.kill()
            why = "超时 / timeout" if process.returncode is None else wrong.decode(errors="replace").strip()
            return Verified({}, (f"账本核对没有完成 / the ledger could not be verified: {why}",))
        failures = [f"账本核对 / verify: {found['code']} {found.get('zh', '')}" for found in report["findings"]]
        witnessed = report["witnessed"] or {"size": 0, "by": []}
        if sorted(witnessed["by"]) != sorted(self.districts) or witnessed["size"] < size:
            failures.append(f"未经两区会签 / not cosigned by both: {witnessed}, {size}")
        return Verified(report, tuple(failures))

    async def end(self) -> None:
        """Stop witnessing."""
        for task in self._following:
            task.cancel()
        await asyncio.gather(*self._following, return_exceptions=True)
        for memory in self._memories:
            memory.close()
