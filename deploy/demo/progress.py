"""What the demo says while it works: bars on a terminal, plain lines elsewhere, nothing where only JSON is wanted."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

STEPS_SHOWN = 4
"""In how many lines a long piece of work is shown where there is no terminal."""


class Step:
    """One piece of work with a known end, as the viewer sees it."""

    def __init__(self, teller: Teller, zh: str, en: str, total: int) -> None:
        self._teller = teller
        self._label = f"{zh} / {en}"
        self._total = total
        self._count = 0
        bars = teller.bars
        self._task = bars.add_task(self._label, total=total) if bars else None

    def advance(self, count: int = 1) -> None:
        """So many more are done."""
        before, self._count = self._count, self._count + count
        if self._teller.bars and self._task is not None:
            self._teller.bars.update(self._task, completed=self._count)
        elif self._count * STEPS_SHOWN // self._total > before * STEPS_SHOWN // self._total:
            self._teller.say(f"{self._label}  {self._count}/{self._total}")


class Teller:
    """
    Tells the viewer how far the demo is.

    Args:
        silent: say nothing: the output is for a program.
    """

    def __init__(self, *, silent: bool) -> None:
        self.console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
        self.bars: Progress | None = None
        self._silent = silent
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        if self.console.is_terminal and not self._silent:
            self.bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=28),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=self.console,
            )
            self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bars:
            self.bars.stop()
            self.bars = None

    def say(self, line: str) -> None:
        """One line, with the seconds since the start."""
        if not self._silent:
            elapsed = time.monotonic() - self._began
            self.console.print(f"[dim]{elapsed:5.1f} s[/dim]  {line}", soft_wrap=True)

    def step(self, zh: str, en: str, total: int) -> Step:
        """A piece of work of so many parts begins."""
        return Step(self, zh, en, max(total, 1))
