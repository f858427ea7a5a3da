"""
Figures (指标): the rates that offices live by, from leaves alone, pure.

What counts is a *round* of a case (`services/ledger/rounds.py`). A formula, which is a fact, says which conditions make a figure, and at
which moment a round counts: for the office that was responsible then, in the month of that moment where that office is, by the formulas
in force on the first day of that month, and not before the moment has come. An office's figures rest on leaves that list it.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args
from zoneinfo import ZoneInfo

from services.ledger.cases import moment
from services.ledger.exporting.as_csv import BOM, guarded
from services.ledger.rounds import Fold, Round, ms
from shared.facts import HUB, Condition, Counted, Formula, FormulaSet, Name, plain

VERSION = "paidan/figures/1"
By = Literal["district", "area", "item", "month", "person"]
BYS: tuple[By, ...] = get_args(By)
FLAGS = 3
"""How many buildings hold the 流动小红旗 in a month."""


def _formula(
    figure: str,
    zh: str,
    en: str,
    counted: Counted,
    numerator: tuple[Condition, ...],
    denominator: tuple[Condition, ...],
    **more: Any,
) -> Formula:
    title = Name(zh=zh, en=en)
    return Formula(figure=figure, title=title, counted=counted, numerator=numerator, denominator=denominator, **more)


_WITHDRAWN: Any = {"without": ("withdrawn",)}
DEFAULT = FormulaSet(
    district=HUB,
    version=0,
    valid_from=date(1970, 1, 1),
    formulas=(
        _formula("response", "响应率", "response", "contact", ("contacted_in_time",), ("contactable",), **_WITHDRAWN),
        _formula("signing", "签收率", "signed in time", "sign", ("signed_in_time",), ("offered",), **_WITHDRAWN),
        _formula("solved", "解决率", "solved", "rated", ("solved",), ("rated",)),
        _formula("satisfied", "满意率", "satisfied", "rated", ("satisfied",), ("rated",)),
        _formula("closing", "结案率", "closed", "life", ("closed",), ("due",), **_WITHDRAWN),
        _formula(
            "closing_in_time", "按期结案率", "closed in time", "life", ("closed_in_time",), ("due",), **_WITHDRAWN
        ),
        _formula("rework", "返工率", "rework", "done", ("reworked",), ("done",)),
        _formula("return", "退单率", "returned", "passed_on", ("returned",), ("passed_on",)),
        _formula("moves", "流转次数", "offices per case", "begun", (), ("filed",), adds="owners"),
        _formula("found", "未诉先办率", "found unasked", "begun", ("found",), ("filed",)),
    ),
    weights={"response": 30, "solved": 35, "satisfied": 35},
)
"""Where neither an office nor everybody has formulas of their own. Source: the definitions that published accounts agree on."""


# --- counting ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Cell:
    """One figure of one row: what was counted, and what was left out and why."""

    formula: Formula
    sets: set[tuple[str, int, str]] = field(default_factory=set)
    numerator: int = 0
    denominator: int = 0
    excluded: Counter[str] = field(default_factory=Counter)
    appeals: set[str] = field(default_factory=set)

    @property
    def rate(self) -> int | None:
        """Per 10,000, rounded half up; None of nothing."""
        return per_10000(self.numerator, self.denominator)

    def told(self) -> dict[str, Any]:
        """As callers see it."""
        return {
            "figure": self.formula.figure,
            "title": plain(self.formula.title),
            "numerator": self.numerator,
            "denominator": self.denominator,
            "rate": self.rate,
            "text": said(self.rate, self.formula),
            "excluded": dict(sorted(self.excluded.items())),
            "appeals": sorted(self.appeals),
            "formulas": [{"district": d, "version": v, "valid_from": since} for d, v, since in sorted(self.sets)],
        }


@dataclass(frozen=True, slots=True)
class Question:
    """
    What is asked for. None: all.

    Attributes:
        month: `2026-11`.
        by: what each row is of, within each office.
    """

    district: str | None = None
    area: str | None = None
    item: str | None = None
    month: str | None = None
    by: By = "district"


Rows = dict[tuple[str, str], dict[str, Cell]]
"""By office and what the row is of: its figures by name, in the order of their formulas."""


def count(fold: Fold, asked: Question, at: int, formulas: FormulaSet | None = None) -> Rows:
    """
    The figures of every office, or of one.

    Args:
        at: as of when (ms): what has not come about by then does not count yet.
        formulas: instead of those in force (假设).
    """
    rows: Rows = {}
    for district in [asked.district] if asked.district else fold.districts:
        zone = str(fold.register.zone(district))
        granted: dict[tuple[str, str], list[str]] = {}
        for appeal in fold.appeals(district):
            if appeal.granted:
                granted.setdefault((appeal.request, appeal.figure), []).append(appeal.id)
        sets: dict[str, _Ready] = {}
        for round_ in fold.rounds(district, at):
            if asked.area not in (None, round_.area) or asked.item not in (None, round_.item):
                continue
            for counted, when in round_.moments.items():
                if when > at or asked.month not in (None, month := _month(when // 900_000, zone)):
                    continue
                if (chosen := sets.get(month)) is None:
                    chosen = sets[month] = _Ready.of(formulas or in_force(fold, district, month))
                if (here := chosen.counted.get(counted)) is None or round_.office(when) != district:
                    continue
                for row, conditions in _rows_of(round_, asked.by, district, month):
                    cells = rows.setdefault((district, row), {})
                    for formula in here:
                        _count(cells, chosen.named, formula, round_, conditions, granted)
        if asked.by == "district":
            rows.setdefault((district, district), {})
    order = {figure: n for n, figure in enumerate(_figures(fold, formulas))}
    return {
        key: dict(sorted(cells.items(), key=lambda cell: order.get(cell[0], len(order))))
        for key, cells in sorted(rows.items())
        if cells or asked.by == "district"
    }


def in_force(fold: Fold, district: str, month: str) -> FormulaSet:
    """By which formulas an office's month counts."""
    return fold.register.formula_set(district, date.fromisoformat(f"{month}-01")) or DEFAULT


def _figures(fold: Fold, formulas: FormulaSet | None) -> Iterable[str]:
    """Figures in the order in which formulas list them."""
    sets = (
        [formulas] if formulas else [*(s for _, each in sorted(fold.register.formulas.items()) for s in each), DEFAULT]
    )
    return dict.fromkeys(formula.figure for each in sets for formula in each.formulas)


class _Weighed(NamedTuple):
    """A formula made ready for many rounds."""

    formula: Formula
    denominator: frozenset[Condition]
    numerator: frozenset[Condition]
    graded: bool


class _Ready(NamedTuple):
    """A set of formulas by the moment at which they count, and what names it."""

    named: tuple[str, int, str]
    counted: Mapping[Counted, Sequence[_Weighed]]

    @classmethod
    def of(cls, formulas: FormulaSet) -> _Ready:
        counted: dict[Counted, list[_Weighed]] = {}
        for formula in formulas.formulas:
            denominator, numerator = frozenset(formula.denominator), frozenset(formula.numerator)
            graded = "satisfied" in {*denominator, *numerator, *formula.without}
            counted.setdefault(formula.counted, []).append(_Weighed(formula, denominator, numerator, graded))
        return cls((formulas.district, formulas.version, formulas.valid_from.isoformat()), counted)


def _rows_of(round_: Round, by: By, district: str, month: str) -> Iterable[tuple[str, frozenset[Condition]]]:
    """The rows that a round counts in, with what holds for it there."""
    if by == "person":
        return round_.people()
    return [({"district": district, "area": round_.area, "item": round_.item, "month": month}[by], round_.conditions)]


def _count(
    cells: dict[str, Cell],
    named: tuple[str, int, str],
    weighed: _Weighed,
    round_: Round,
    holds: frozenset[Condition],
    granted: Mapping[tuple[str, str], list[str]],
) -> None:
    formula = weighed.formula
    if weighed.graded and "rated" in holds and (round_.grade or 0) >= formula.grade:
        holds |= {"satisfied"}
    if not weighed.denominator <= holds:
        return
    cell = cells.get(formula.figure)
    if cell is None:
        cell = cells[formula.figure] = Cell(formula)
    cell.sets.add(named)
    if left_out := next((one for one in formula.without if one in holds), None):
        cell.excluded[left_out] += 1
    elif appeals := granted.get((round_.request, formula.figure)):
        cell.excluded["appeal"] += 1
        cell.appeals.update(appeals)
    else:
        cell.denominator += 1
        if weighed.numerator <= holds:
            cell.numerator += round_.owners if formula.adds == "owners" else 1


def score(cells: Mapping[str, Cell], formulas: FormulaSet) -> int | None:
    """The composite (综合得分), per 10,000, by a set's weights; None where it has none, or a figure it needs is of nothing."""
    rates = [(cells[figure].rate if figure in cells else None, weight) for figure, weight in formulas.weights.items()]
    if not rates or any(rate is None for rate, _ in rates):
        return None
    total, weight = sum((rate or 0) * weight for rate, weight in rates), sum(weight for _, weight in rates)
    return (2 * total + weight) // (2 * weight)


def per_10000(numerator: int, denominator: int) -> int | None:
    """A share per 10,000, rounded half up; None of nothing."""
    return (2 * numerator * 10_000 + denominator) // (2 * denominator) if denominator else None


def said(rate: int | None, formula: Formula | None = None) -> str:
    """A rate as people read it: `93.72 %`, of owners `1.0325`, `–` of nothing."""
    if rate is None:
        return "–"
    if formula is not None and formula.adds == "owners":
        return f"{rate // 10_000}.{rate % 10_000:04d}"
    return f"{rate // 100}.{rate % 100:02d} %"


# --- answers -------------------------------------------------------------------------------------------------------------


class Pin(NamedTuple):
    """What an answer is of: the log, how many leaves of it, the newest `recorded` among them, the checkpoint's text if there is one."""

    log: str
    size: int
    at: datetime
    checkpoint: str | None = None


def answer(fold: Fold, asked: Question, pin: Pin, formulas: FormulaSet | None = None) -> dict[str, Any]:
    """
    Figures as callers get them: what they are of, each row, and every formula set that they were computed by, whole.

    Args:
        formulas: also what would come out by these, beside each figure, and whether it differs.
    """
    at = ms(pin.at)
    rows = count(fold, asked, at)
    changed = count(fold, asked, at, formulas) if formulas else {}
    used: dict[tuple[str, int, str], FormulaSet] = {}
    shown = []
    for key in sorted({*rows, *changed}):
        cells, others = rows.get(key, {}), changed.get(key, {})
        sets = {each for cell in cells.values() for each in cell.sets}
        used |= {each: _find(fold, each) for each in sets}
        one = used[next(iter(sets))] if len(sets) == 1 else None
        row: dict[str, Any] = {
            "district": key[0],
            asked.by: key[1],
            "figures": [cell.told() for cell in cells.values()],
            "score": _scored(cells, one) if one and one.weights else None,
        }
        if formulas:
            row["what_if"] = {
                "figures": [
                    {**cell.told(), "differs": figure not in cells or _sum(cells[figure]) != _sum(cell)}
                    for figure, cell in others.items()
                ],
                "score": _scored(others, formulas) if formulas.weights else None,
            }
        shown.append(row)
    return {
        "figures": VERSION,
        "log": pin.log,
        "size": pin.size,
        "at": moment(pin.at),
        "checkpoint": pin.checkpoint,
        "asked": {name: getattr(asked, name) for name in ("district", "area", "item", "month", "by")},
        "formulas": [plain(each) for _, each in sorted(used.items())],
        "what_if": plain(formulas) if formulas else None,
        "rows": shown,
    }


def _sum(cell: Cell) -> tuple[Any, ...]:
    return cell.numerator, cell.denominator, cell.excluded


def _scored(cells: Mapping[str, Cell], formulas: FormulaSet) -> dict[str, Any]:
    total = score(cells, formulas)
    return {"rate": total, "text": said(total), "weights": dict(formulas.weights)}


def _find(fold: Fold, named: tuple[str, int, str]) -> FormulaSet:
    district, _, since = named
    sets = fold.register.formulas.get(district, ())
    return next((each for each in sets if each.valid_from.isoformat() == since), DEFAULT)


def buildings(fold: Fold, pin: Pin, *, district: str, month: str) -> dict[str, Any]:
    """
    楼栋积分: each building's mean of what others gave it in a month, in 1/100 points, best first; the first three hold the flag.

    Equal scores are ordered by the building's code, and `tied` says so.
    """
    given: dict[str, list[int]] = {}
    for of, building, _, points in fold.scores(district):
        if of == month:
            given.setdefault(building, []).append(points)
    scores = {building: (200 * sum(points) + len(points)) // (2 * len(points)) for building, points in given.items()}
    many = Counter(scores.values())
    return {
        "figures": VERSION,
        "log": pin.log,
        "size": pin.size,
        "at": moment(pin.at),
        "checkpoint": pin.checkpoint,
        "district": district,
        "month": month,
        "buildings": [
            {
                "building": building,
                "points": sum(given[building]),
                "raters": len(given[building]),
                "score": scores[building],
                "text": f"{scores[building] // 100}.{scores[building] % 100:02d}",
                "rank": n + 1,
                "flag": n < FLAGS,
                "tied": many[scores[building]] > 1,
            }
            for n, building in enumerate(sorted(scores, key=lambda code: (-scores[code], code)))
        ],
    }


def as_csv(answered: Mapping[str, Any]) -> bytes:
    """
    An answer, or a month's buildings, as a table: UTF-8 with a byte order mark; what a spreadsheet would take for a formula is quoted.

    What the answer is of stands in every line.
    """
    lines = _csv_buildings(answered) if "buildings" in answered else _csv_rows(answered)
    text = io.StringIO(BOM)
    text.seek(0, io.SEEK_END)
    csv.writer(text).writerows([_cell(value) for value in line] for line in lines)
    return text.getvalue().encode()


def _csv_rows(answered: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
    by = answered["asked"]["by"]
    what_if = answered["what_if"] is not None
    own = () if by == "district" else (by,)
    head = (
        *("figure", "指标", "numerator", "denominator", "rate", "text"),
        *("excluded", "appeals", "formulas", "size", "at"),
    )
    compared = ("what_if_numerator", "what_if_denominator", "what_if_rate", "what_if_text", "differs")
    yield ("district", *own, *head, *(compared if what_if else ()))
    for row in answered["rows"]:
        others = {each["figure"]: each for each in row["what_if"]["figures"]} if what_if else {}
        cells = {each["figure"]: each for each in row["figures"]}
        for figure in {**cells, **others}:
            cell, other = cells.get(figure, {}), others.get(figure, {})
            beside = [other.get(name) for name in ("numerator", "denominator", "rate", "text", "differs")]
            title = (cell or other)["title"]["zh"]
            excluded = "; ".join(f"{why} {many}" for why, many in cell.get("excluded", {}).items())
            sets = "; ".join(f"{one['district']} v{one['version']}" for one in cell.get("formulas", ()))
            shown = (*(cell.get(name) for name in ("numerator", "denominator", "rate", "text")), excluded)
            named = (row["district"], *([row[by]] if own else []), figure, title)
            of = ("; ".join(cell.get("appeals", ())), sets, answered["size"], answered["at"])
            yield (*named, *shown, *of, *(beside if what_if else ()))


def _csv_buildings(answered: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
    head = ("building", "rank", "points", "raters", "score", "text", "flag", "tied")
    yield ("district", "month", *head, "size", "at")
    for one in answered["buildings"]:
        of = answered["size"], answered["at"]
        yield (answered["district"], answered["month"], *(one[name] for name in head), *of)


def _cell(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else guarded(value)


@lru_cache(maxsize=65_536)
def _month(quarter: int, zone: str) -> str:
    """The local month of a quarter of an hour since 1970: no zone's midnight lies within one."""
    return datetime.fromtimestamp(quarter * 900, UTC).astimezone(ZoneInfo(zone)).strftime("%Y-%m")
