"""What every benchmark shares: rows, a workshop with servers and folders, and figures read from the system."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Self

import nats
from nats.aio.client import Client, RawCredentials

from deploy import leash
from deploy.identities import Identities
from deploy.servers import NatsServer
from shared import streams
from shared.bus import Bus

ROOT = Path(__file__).parents[2]
REPORT = ROOT / "build" / "bench.json"


@dataclass(frozen=True)
class Row:
    """
    One figure.

    Attributes:
        value: the median of ours; `minimum` and `maximum` over the runs.
        limit: the median of the bare limit in the same run; where a bound was agreed instead, that.
        target: what the ratio should be, `≥ 0.40` or `≤ 1.50`; empty where none was set.
        notes: more keys for the report.
    """

    name: str
    value: float
    limit: float
    unit: str
    runs: int
    minimum: float
    maximum: float
    target: str = ""
    notes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, name: str, ours: Sequence[float], limits: Sequence[float], unit: str, *, target: str = "", **notes: Any
    ) -> Self:
        """From what the runs gave."""
        return cls(name, median(ours), median(limits), unit, len(ours), min(ours), max(ours), target, notes)

    @property
    def ratio(self) -> float:
        """Ours over the limit."""
        return self.value / self.limit if self.limit else 0.0

    @property
    def met(self) -> bool | None:
        """Whether the target was met; None where there is none."""
        if not self.target:
            return None
        sign, bound = self.target.split()
        return self.ratio >= float(bound) if sign == "≥" else self.ratio <= float(bound)

    def document(self) -> dict[str, Any]:
        """As `build/bench.json` has it."""
        document: dict[str, Any] = {
            "name": self.name,
            "value": _short(self.value),
            "limit": _short(self.limit),
            "ratio": _short(self.ratio),
            "unit": self.unit,
            "runs": self.runs,
            "min": _short(self.minimum),
            "max": _short(self.maximum),
        }
        if self.target:
            document |= {"target": self.target, "met": self.met}
        return document | self.notes


def _short(figure: float) -> float:
    return float(f"{figure:.4g}") if abs(figure) < 10_000 else round(figure)


@dataclass
class Workshop:
    """
    Where one run of the benchmarks works: a folder that goes when it ends, sizes, and servers that benchmarks share.

    Args:
        quick: small sizes, to see that everything works; the figures mean little.
        facts: how many the ledger's benchmarks work on.
        say: told what is being done, in a line.
    """

    quick: bool
    say: Callable[[str], None]
    facts: int = 150_000
    folder: Path = field(init=False)
    identities: Identities = field(init=False)
    closing: AsyncExitStack = field(init=False)
    shared: dict[str, Any] = field(init=False, default_factory=dict)

    async def __aenter__(self) -> Self:
        self.closing = AsyncExitStack()
        self.folder = Path(self.closing.enter_context(tempfile.TemporaryDirectory(prefix="paidan-bench-")))
        self.identities = Identities.open(self.folder / "secrets")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.closing.aclose()

    def size(self, full: int, quick: int) -> int:
        """How many: the real size, or a small one for `--quick`."""
        return quick if self.quick else full

    @asynccontextmanager
    async def bus_server(self, name: str) -> AsyncIterator[tuple[NatsServer, Bus]]:
        """A nats-server with all streams, and the admin's connection to it."""
        with NatsServer(self.folder / name, self.identities, monitor=True) as server:
            bus = await Bus.connect(server.url, name="admin", seed=self.identities.seed("admin"))
            try:
                await streams.apply(bus)
                yield server, bus
            finally:
                await bus.drain()

    async def once(self, name: str, make: Callable[[], Awaitable[Any]]) -> Any:
        """What several benchmarks need and the first of them makes."""
        if name not in self.shared:
            self.shared[name] = await make()
        return self.shared[name]


Benchmark = Callable[[Workshop], Awaitable[list[Row]]]


async def bare_connection(url: str, seed: str, name: str) -> Client:
    """A plain nats-py connection as one of the services (`name`), with the options that `shared.bus` has found to be right."""
    return await nats.connect(
        url,
        name=f"bare-{name}",
        user_credentials=RawCredentials(seed),
        inbox_prefix=f"_INBOX_{name}".encode(),
        pending_size=0,
        ping_interval=5,
        max_outstanding_pings=2,
    )


def start_python(*arguments: str, log: Path, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """A Python process of this project; its output goes to `log`."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    leash.hold(process.pid)  # it goes when we go, however we go
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and after 10 s SIGKILL."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    leash.free(process.pid)


def resident_mib(pid: int) -> tuple[float, float]:
    """What a process holds in memory now, and the most it ever held (the same where the system does not tell)."""
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return tuple(int(lines[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))  # type: ignore[return-value]
    told = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True).stdout
    return int(told) / 1024, int(told) / 1024


def cpu_s(pid: int | None) -> float:
    """How much processor time a process has used so far; 0 where the system does not tell."""
    stat = Path(f"/proc/{pid}/stat")
    if not stat.exists():
        return 0.0
    fields = stat.read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def until(what: str, done: Callable[[], Awaitable[bool]], within_s: float, every_s: float = 0.02) -> None:
    """Wait for it. Raises TimeoutError naming it."""
    import asyncio

    ends = time.monotonic() + within_s
    while not await done():
        if time.monotonic() > ends:
            raise TimeoutError(f"not within {within_s:.0f} s: {what}")
        await asyncio.sleep(every_s)


def percentile(samples: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of samples; share 0.5 is the median."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]


def write_report(rows: Sequence[Row], file: Path) -> None:
    """Write the rows of this run."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps([row.document() for row in rows], indent=2, ensure_ascii=False) + "\n")
