"""`paidan ledger verify` of a replay: as it is served, in a file, and what it says of it."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from deploy.cli import app
from deploy.errors import SetupError
from services.ledger.audit.receiving import LINE_MAX
from services.ledger.store import Selection
from shared.facts import HUB
from tests.ledger.examples import QINGSHAN, WUCHANG, life
from tests.ledger.memory import Memory
from tests.ledger.test_copies import KEY, asked, header
from tests.ledger.test_replay import signed

Served = dict[str, bytes]
OF_ONE = f"/v1/events?district={QINGSHAN}&proof=tiles"
WHOLE = "/v1/events?kinds=all"


@pytest.fixture(scope="module")
def honest() -> Served:
    """By path: what an honest ledger answers."""
    log = Memory()
    for n in range(4):
        log.add(*life(n, f"{WUCHANG},{QINGSHAN}" if n % 2 else None))
    signed(log, KEY)
    [(note, _)] = log.notes.values()
    of_one = Selection(scopes=(QINGSHAN, HUB), district=QINGSHAN, kinds=("event",))
    return {
        OF_ONE: b"".join(asked(log, note, of_one, "tiles")),
        WHOLE: b"".join(asked(log, note, Selection())),
    }


@pytest.fixture
def served() -> Iterator[tuple[str, Served]]:
    """An address, and what it answers."""
    answers: Served = {}

    class Answering(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answers[self.path])

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", answers
        server.shutdown()
        thread.join()


def verify(*words: str) -> Result:
    return CliRunner().invoke(
        app, ["ledger", "verify", "--vkey", KEY.verifier.text, *words], env={"AUDITOR": "a token"}
    )


@pytest.mark.parametrize(("path", "of"), [(OF_ONE, ["--district", QINGSHAN]), (WHOLE, [])])
def test_what_an_honest_ledger_serves_is_fine(
    served: tuple[str, Served], honest: Served, path: str, of: list[str]
) -> None:
    url, answers = served
    answers.update(honest)
    done = verify("--url", url, *of)
    assert done.exit_code == 0, done.output
    assert ("✓ 无扣留 / nothing withheld" in done.stdout) == bool(of)
    assert (f"部分 / part of it    from 0，district {QINGSHAN}，kinds event" in done.stdout) == bool(of)


def test_an_answer_to_another_question_is_not_taken_for_one(served: tuple[str, Served], honest: Served) -> None:
    url, answers = served
    answers[WHOLE], answers[OF_ONE] = honest[OF_ONE], honest[WHOLE]
    for of in ([], ["--district", QINGSHAN]):
        done = verify("--url", url, *of)
        assert (done.exit_code, "filter" in done.stdout) == (1, True), done.output


def test_a_district_that_is_said_to_have_nothing_is_not_said_to_be_whole(tmp_path: Path, honest: Served) -> None:
    first, *_ = header(heads={QINGSHAN: None})(honest[OF_ONE].splitlines(keepends=True))
    (tmp_path / "emptied").write_bytes(first + b'{"count":0,"end":true,"next":null}\n')
    done = verify("--file", str(tmp_path / "emptied"))
    assert "– 无扣留 / nothing withheld：未核对 / not looked at" in done.stdout
    assert "✓ 无扣留" not in done.stdout


def test_a_line_without_end_is_not_read_to_its_end(served: tuple[str, Served], tmp_path: Path) -> None:
    url, answers = served
    answers[WHOLE] = b"x" * (LINE_MAX + 70_000)
    (tmp_path / "long").write_bytes(answers[WHOLE])
    for of in (["--url", url], ["--file", str(tmp_path / "long")]):
        assert isinstance(verify(*of).exception, SetupError)
