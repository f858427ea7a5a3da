"""`paidan ledger replay`: tells a case in words, follows it, and writes a file that can be taken up where it was cut."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.errors import SetupError
from deploy.replaying import STATES, WORDS, Teller, summed_up, told, written
from services.ledger.audit.receiving import IncompleteError
from services.ledger.cases import State
from services.ledger.pinning import pin
from services.ledger.replay import Cursors, Replay, lines
from services.ledger.store import Selection
from shared.facts import CATALOGUE
from tests.ledger.examples import QINGSHAN, WUCHANG, life, request_id
from tests.ledger.memory import ORIGIN, Memory
from tests.ledger.test_replay import signed

CURSORS = Cursors(b"a key")


class Ledger:
    """Replays of a log in memory, as the route gives them; `cut`: so many lines, then the connection is gone."""

    def __init__(self, cases: int = 3) -> None:
        self.log = Memory()
        for n in range(cases):
            self.log.add(*life(n, f"{WUCHANG},{QINGSHAN}" if n % 2 else None))
        signed(self.log)
        self.cut: int | None = None

    def lines(
        self, service: str, path: str, *, roles: Sequence[str], params: Mapping[str, str] | None = None
    ) -> Iterator[bytes]:
        found = asyncio.run(self._lines(dict(params or {})))
        yield from found if self.cut is None else found[: self.cut]

    async def _lines(self, params: dict[str, str]) -> list[bytes]:
        kinds = None if params.get("kinds") == "all" else ("event",)
        selection = Selection(district=params.get("district"), request=params.get("request"), kinds=kinds)
        asked = Replay(ORIGIN, selection, 0, since=int(params.get("from", 0)))
        if "cursor" in params:
            asked = asked.resumed(CURSORS, params["cursor"])
        else:
            asked = replace(asked, size=(await pin(self.log, None)).size)
        asked = replace(asked, note=(await pin(self.log, str(asked.size))).note)
        return b"".join([chunk async for chunk in lines(self.log, asked, CURSORS)]).splitlines()


def silent(done: int, of: int) -> None:
    pass


def test_every_fact_and_every_state_has_its_word() -> None:
    assert {fact.name for fact in CATALOGUE} == WORDS.keys()
    assert set(State.__args__) == STATES.keys()  # type: ignore[attr-defined]


def test_a_case_is_told_in_words_with_its_state_after_each_step(capsys: pytest.CaptureFixture[str]) -> None:
    told(Ledger(), {"request": request_id(1)}, Teller(None, raw=False), follow=False)
    said = capsys.readouterr().out
    steps = [line for line in said.splitlines() if line.startswith("#")]
    assert [step.split("  ")[2] for step in steps][:3] == [
        "居民下单 / request.submitted",
        "受理 / task.opened",
        "派单 / task.offered",
    ]
    assert len(steps) == 9
    assert "派给 m-li" in said
    assert "→ 已接单 / accepted，责任单位 420106，承办 m-li，第 1 轮" in said
    assert "时限 / due：签收" in said
    assert steps[3].endswith("dispatcher:staff-4")


def test_who_steps_through_sees_one_at_a_time_and_may_end_it(capsys: pytest.CaptureFixture[str]) -> None:
    answers = iter([True, True, False])
    told(Ledger(), {"request": request_id(1)}, Teller(lambda: next(answers), raw=False), follow=False)
    assert capsys.readouterr().out.count("#") == 3


def test_nothing_is_said_to_be_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    told(Ledger(), {"request": request_id(99)}, Teller(None, raw=False), follow=False)
    assert capsys.readouterr().out == "没有事实 / no facts\n"


def test_following_goes_on_with_what_happens_then(capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger(1)

    def later(_: float) -> None:
        if len(ledger.log.leaves) > 20:
            raise KeyboardInterrupt
        ledger.log.add(*life(len(ledger.log.leaves)))
        signed(ledger.log)

    with pytest.raises(KeyboardInterrupt):
        told(ledger, {}, Teller(None, raw=False), follow=True, wait=later)
    steps = [line for line in capsys.readouterr().out.splitlines() if line.startswith("#")]
    assert [step.split("  ")[0] for step in steps] == [f"#{n}" for n in range(27)]


@pytest.mark.parametrize("params", [{"kinds": "all"}, {"district": QINGSHAN}])
@pytest.mark.parametrize("torn", [b"", b'{"s":11,"le'])
def test_a_file_that_was_cut_short_goes_on_to_the_same_bytes(
    tmp_path: Path, params: dict[str, str], torn: bytes
) -> None:
    ledger = Ledger()
    whole, file = tmp_path / "whole", tmp_path / "file"
    written(ledger, params, whole, resume=False, progress=silent)
    ledger.cut = 5
    with pytest.raises(IncompleteError, match="no last line"):
        written(ledger, params, file, resume=False, progress=silent)
    file.write_bytes(file.read_bytes() + torn)
    ledger.log.add(*life(9))  # a week passes
    signed(ledger.log)
    with pytest.raises(IncompleteError, match="no last line"):
        written(ledger, params, file, resume=True, progress=silent)
    ledger.cut = None
    found = written(ledger, params, file, resume=True, progress=silent)
    assert file.read_bytes() == whole.read_bytes()
    assert found.rooted == ("kinds" in params)
    assert "27" in summed_up(found)
    assert found.rooted or "not proved that nothing is withheld" in summed_up(found)
    assert written(ledger, params, file, resume=True, progress=silent).lines == found.lines  # nothing left to do


def test_a_file_that_is_there_is_not_overwritten_and_one_that_is_no_replay_not_gone_on_with(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("notes of mine\n")
    for resume in (False, True):
        with pytest.raises(SetupError):
            written(Ledger(), {}, file, resume=resume, progress=silent)
    assert file.read_text() == "notes of mine\n"
