"""What the ledger says happened: every figure of the summary, folded from its replay and from nothing else."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson

from deploy.demo.calls import Calls
from deploy.demo.diary import COUNTED, DONE_BY_US, Diary

COLUMNS = tuple(COUNTED.values())


@dataclass
class Figures:
    """
    A fold of the ledger's leaves.

    Attributes:
        counted: by district and column, the requests to which it happened.
        messages: sent, by channel.
        types: facts by name; `kinds`: leaves by kind.
        given_up: messages that will not be sent.
        numbered: leaves that stand for one number of the stream; `covered`: numbers that gap leaves cover.
        last_sequence: the highest number a leaf accounts for.
    """

    counted: defaultdict[str, defaultdict[str, set[str]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(set))
    )
    messages: Counter[str] = field(default_factory=Counter)
    types: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    given_up: int = 0
    numbered: set[int] = field(default_factory=set)
    covered: int = 0
    last_sequence: int = 0

    def take(self, leaf: dict[str, Any]) -> None:
        """One more leaf."""
        kind = leaf["kind"]
        self.kinds[kind] += 1
        if kind == "gap":
            self.covered += leaf["gap"]["to"] - leaf["gap"]["from"] + 1
            self.last_sequence = leaf["gap"]["to"]
            return
        if kind in ("reset", "heads"):
            return
        self.last_sequence = leaf["src"]["seq"]
        self.numbered.add(self.last_sequence)
        if kind != "event":
            return
        _, district, _, _, entity, fact, *_ = leaf["subject"].split(".")
        name = f"{entity}.{fact}"
        self.types[name] += 1
        if column := COUNTED.get(name):
            self.counted[district][column].add(leaf["case"]["id"])
        elif name == "notice.sent":
            self.messages[leaf["event"]["data"]["channel"]] += 1
        elif name == "notice.failed":
            failed = leaf["event"]["data"]
            self.given_up += "retry_at" not in failed

    def notices(self) -> dict[str, int]:
        """Messages by what became of them: `queued sent held given_up`."""
        sent, held = self.types["notice.sent"], self.types["notice.held"]
        return {"queued": self.types["notice.queued"], "sent": sent, "held": held, "given_up": self.given_up}

    @property
    def leaves(self) -> int:
        """All of them."""
        return self.kinds.total()

    @property
    def facts(self) -> int:
        """Leaves that hold a fact."""
        return self.kinds["event"]

    @property
    def accounted(self) -> bool:
        """Whether every number from 1 to the last has a leaf of its own or lies in a gap leaf."""
        return len(self.numbered) + self.covered == self.last_sequence

    def districts(self, codes: Iterable[str]) -> dict[str, dict[str, int]]:
        """The figures of each district, as numbers."""
        return {code: {column: len(self.counted[code][column]) for column in COLUMNS} for code in codes}


async def replay(calls: Calls, token: str, leaves: int) -> Figures:
    """
    Fold the first so many leaves.

    Raises:
        RuntimeError: the replay ended without its last line, or with another number of leaves than it says.
    """
    figures, said = Figures(), None
    async for line in calls.lines("/v1/events", token=token, kinds="all", to=leaves):
        document = orjson.loads(line)
        if "leaf" in document:
            figures.take(document["leaf"])
        elif document.get("end"):
            said = document["count"]
    if said != figures.leaves or said != leaves:
        raise RuntimeError(f"the replay is cut short: {figures.leaves} leaves, its last line says {said} of {leaves}")
    return figures


def compare(figures: Figures, diary: Diary, received: Counter[str]) -> list[str]:
    """Where the ledger, the demo's own memory and the receivers differ, in a line each."""
    differing = []
    for code in sorted(figures.counted.keys() | diary.counted.keys()):
        for column in COLUMNS:
            ledger, own = figures.counted[code][column], diary.counted[code][column]
            if ledger != own:
                who = "做过 / did" if column in DONE_BY_US else "看到 / saw"
                differing.append(
                    f"{code} {column}：账本 / ledger {len(ledger)}，演示{who} {len(own)}；"
                    f"相差 / differing {len(ledger ^ own)}：{sorted(ledger ^ own)[:3]}"
                )
    differing += [
        f"{channel}：账本记发出 / sent by the ledger {sent}，接收端收到 / received {received[channel]}"
        for channel in sorted(received)
        if (sent := figures.messages[channel]) != received[channel]
    ]
    return differing
