"""The end of the demo: what happened, for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from deploy.demo.enclave import Names, Shared, Told, local
from deploy.demo.figures import Figures
from deploy.demo.witnesses import Verified

HEADS = {
    "submitted": "诉求\nin",
    "offered": "已派单\noffered",
    "accepted": "已接单\naccepted",
    "done": "已办结\ndone",
    "rated": "已评单\nrated",
    "unplaced": "无人可派\nunplaced",
}
ASIDE = {
    "declined": ("有人婉拒", "declined by somebody"),
    "expired": ("有派单过时", "with an offer that ran out"),
    "reopened": ("重办", "reopened"),
    "withdrawn": ("撤回", "withdrawn"),
}
CHANNELS = {
    "wecom": "企业微信群机器人 / WeCom bot",
    "dingtalk": "钉钉 / DingTalk",
    "mail": "邮件 / mail",
    "webhook": "Webhook",
    "console": "仅记日志 / console (log only)",
}
REFUSALS = {
    "invalid": "空白内容",
    "outside": "坐标在服务范围外",
    "unknown_area": "没有这个地方",
    "unknown_item": "清单里没有的事项",
    "key_reused": "同键异文",
    "key_missing": "缺少提交键",
    "already_taken": "已由他人接单",
    "not_yourself": "冒充他人",
    "foreign_district": "越区操作",
    "unauthenticated": "假令牌",
}


@dataclass(frozen=True)
class Summary:
    """
    Everything the demo has to say at its end.

    Attributes:
        districts: codes in the order of the register.
        received: messages by channel, as the receivers counted them.
        stream_last: the last number of the stream when the ledger was read.
        latencies_ms: from submission to the offer on the live stream, `day` and `load`.
        load: `requests`, `seconds`.
        failures: what did not hold; empty when all did.
    """

    districts: Sequence[str]
    names: Names
    figures: Figures
    received: Mapping[str, int]
    notices: Mapping[str, int]
    refused: Mapping[str, int]
    stream_last: int
    latencies_ms: Mapping[str, Sequence[float]]
    load: Mapping[str, float]
    enclave: Told
    shared: Shared
    verified: Verified
    took_s: float
    failures: Sequence[str]

    def messages(self) -> dict[str, int]:
        """By channel: what the receivers counted; for the console, which is a log, what the ledger says."""
        channels = {**dict.fromkeys(CHANNELS, 0), **self.figures.messages}
        return {channel: self.received.get(channel, count) for channel, count in channels.items()}

    def document(self) -> dict[str, Any]:
        """For programs."""
        every = [*self.latencies_ms["day"], *self.latencies_ms["load"]]
        return {
            "ok": not self.failures,
            "failures": list(self.failures),
            "districts": self.figures.districts(self.districts),
            "messages": self.messages(),
            "notices": dict(self.notices),
            "refused": dict(self.refused),
            "ledger": {
                "facts": self.figures.facts,
                "leaves": self.figures.leaves,
                "gaps": self.figures.kinds["gap"],
                "last_sequence": self.figures.last_sequence,
                "stream_last_sequence": self.stream_last,
                "accounted": self.figures.accounted,
                "verified": self.verified.document(),
            },
            "latency_ms": {
                **percentiles(every),
                **{name: percentiles(found) for name, found in self.latencies_ms.items()},
            },
            "load": dict(self.load),
            "enclave": {
                "request": self.enclave.request,
                "area": self.enclave.area,
                "state": self.enclave.state,
                "heard": dict(self.enclave.heard),
                "steps": [
                    {"time": step.time, "fact": step.name, "zh": step.zh, "districts": list(step.districts)}
                    for step in self.enclave.steps
                ],
                "file": self.shared.document(),
            },
            "took_s": round(self.took_s, 1),
        }

    def show(self, console: Console) -> None:
        """For people."""
        console.print()
        console.print("[bold]派单演示小结 / Summary[/bold]", soft_wrap=True)
        console.print("以下数字全部由账本重放得出 / every figure is folded from the ledger's replay\n", soft_wrap=True)
        console.print(self._districts())
        self._show_aside(console)
        self._show_enclave(console)
        console.print(self._messages())
        self._show_rest(console)
        self._show_ledger(console)
        if self.failures:
            console.print(f"\n[bold red]有 {len(self.failures)} 处不符 / did not hold:[/bold red]")
            for line in self.failures[:50]:
                console.print(f"  ✗ {line}", style="red", soft_wrap=True, markup=False)
        else:
            console.print("\n[bold green]✓ 全部相符 / everything held[/bold green]", soft_wrap=True)

    def _districts(self) -> Table:
        title = "各区诉求，每件只计一次 / requests by district, each counted once"
        table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False, collapse_padding=True)
        table.add_column("区\ndistrict", no_wrap=True)
        for head in HEADS.values():
            table.add_column(head, justify="right", no_wrap=True)
        found = self.figures.districts(self.districts)
        for code, row in found.items():
            table.add_row(f"{code} {self.names.district(code)}", *(str(row[column]) for column in HEADS))
        table.add_section()
        table.add_row("合计 / all", *(str(sum(row[column] for row in found.values())) for column in HEADS))
        return table

    def _show_aside(self, console: Console) -> None:
        found = self.figures.districts(self.districts).values()
        many = {column: sum(row[column] for row in found) for column in ASIDE}
        zh = "、".join(f"{ASIDE[column][0]} {count} 件" for column, count in many.items())
        en = ", ".join(f"{count} {ASIDE[column][1]}" for column, count in many.items())
        console.print(f"其中{zh} / of these {en}", soft_wrap=True)
        console.print(
            "波士顿各区是压测：单单有人接，约三成办结，不评单 / "
            "the Boston districts are the load: all accepted, about three in ten done, none rated\n",
            soft_wrap=True,
        )

    def _show_enclave(self, console: Console) -> None:
        area, case = self.names.area(self.enclave.area), self.enclave
        console.print(f"[bold]插花地的一件事 / one case of the enclave[/bold]  {area}  {case.request}")
        console.print(
            "两区各自的应用在总线上听到的，并排 / as each office's own app heard it on the bus, side by side\n"
        )
        table = Table(box=box.SIMPLE, pad_edge=False, show_edge=False)
        table.add_column("时间 / time", no_wrap=True)
        for district, facts in case.heard.items():
            table.add_column(f"{self.names.district(district)}的应用 / its app ({facts})", ratio=1, overflow="fold")
        for step in case.steps:
            text = step.zh if step.name else f"[dim]仅本区 / its own: {step.zh}[/dim]"
            seen = [text if district in step.districts else "[dim]–[/dim]" for district in case.heard]
            table.add_row(local(step.time, "%H:%M:%S.%f")[:-3], *seen)
        console.print(table)
        console.print()

    def _show_ledger(self, console: Console) -> None:
        """What an auditor found, and what the two offices share of it."""
        report = self.verified.report
        if checkpoint := report.get("checkpoint"):
            names = " 与 ".join(map(self.names.district, self.verified.cosigned)) or "无人"
            upto = (report.get("witnessed") or {}).get("size", 0)
            console.print(
                f"[bold]检查点 / checkpoint[/bold]  {checkpoint['size']} 片叶子，根 / root {checkpoint['root']}\n"
                f"  账本已签名，{names}的见证方会签至 {upto}；paidan ledger verify 核对 {len(report['checked'])} 项，"
                f"发现 {sum(report['counts'].values())} 处问题 / signed by the log, cosigned by the witnesses of both offices, "
                f"verified with {sum(report['counts'].values())} findings",
                soft_wrap=True,
            )
        if file := self.shared.file:
            area = self.names.area(self.enclave.area)
            console.print(
                f"[bold]一档归索 / the shared file[/bold]  {area}：案件 {len(file['cases'])} 件，转办 {len(file['handovers'])} 次，"
                f"所据叶子 {len(file['leaves'])} 片；{' 与 '.join(map(self.names.district, file['parties']))}所得逐字节相同 / "
                f"the same bytes for both",
                soft_wrap=True,
            )
            console.print(f"  摘要 / digest {file['digest']}  账本规模 / at size {file['size']}", soft_wrap=True)

    def _messages(self) -> Table:
        table = Table(
            title="发给人员的消息 / messages to members", title_justify="left", box=box.SIMPLE, pad_edge=False
        )
        table.add_column("渠道 / channel")
        table.add_column("接收端收到\nreceived", justify="right")
        table.add_column("账本记发出\nsent, by the ledger", justify="right")
        for channel, count in self.messages().items():
            sent = self.figures.messages[channel]
            received = str(count) if channel in self.received else "–"
            table.add_row(CHANNELS.get(channel, channel), received, str(sent))
        return table

    def _show_rest(self, console: Console) -> None:
        figures, times = self.figures, self.latencies_ms
        held, overtaken = self.notices.get("held", 0), self.notices.get("given_up", 0)
        console.print(
            f"另有 {held} 条因免打扰时段暂缓，{overtaken} 条未发出时已无必要 / "
            f"{held} more held for quiet hours, {overtaken} no longer needed when their turn came\n",
            soft_wrap=True,
        )
        refused = "，".join(f"{REFUSALS.get(code, code)} {count}" for code, count in sorted(self.refused.items()))
        console.print(f"按规矩拒绝 / refused as they should be: {refused}\n", soft_wrap=True)
        gaps = f"，缺口叶 {figures.kinds['gap']}" if figures.kinds["gap"] else "，无缺口"
        sure = (
            f"总线序号 1…{figures.last_sequence} 逐一有据 / every sequence of the stream accounted for"
            if figures.accounted and figures.last_sequence == self.stream_last
            else f"总线到 {self.stream_last}，账本到 {figures.last_sequence}，对不上 / not all accounted for"
        )
        console.print(
            f"[bold]账本 / ledger[/bold]  事实 / facts {figures.facts}，叶 / leaves {figures.leaves}{gaps}；{sure}",
            soft_wrap=True,
        )
        console.print("[bold]从提交到派单可见 / from submission to the visible offer[/bold]", soft_wrap=True)
        labels = {
            "day": "平日，一条接一条 / the day, one after another",
            "load": f"压测，每秒 {self.load['per_second']:.0f} 条 / the load, as fast as it goes",
        }
        for name, label in labels.items():
            at = percentiles(times[name])
            console.print(
                f"  {label}  p50 {at['p50']:.0f} ms  p99 {at['p99']:.0f} ms  ({at['count']:.0f})", soft_wrap=True
            )


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50 and p99 by nearest rank, and of how many; 0 where there are none."""
    ordered = sorted(values)
    at = {name: ordered[ceil(share * len(ordered)) - 1] if ordered else 0.0 for name, share in _RANKS.items()}
    return {**{name: round(value, 1) for name, value in at.items()}, "count": len(ordered)}


_RANKS = {"p50": 0.5, "p99": 0.99}
