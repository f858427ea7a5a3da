"""Logs: ids are bound once, personal data never comes here."""

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from shared import telemetry
from shared.telemetry import FORBIDDEN, configure, logger

SECRET = "13800000000-李明"


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Other tests log as they did."""
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    logging.getLogger().handlers[:] = handlers
    logging.getLogger().setLevel(level)


def test_a_line_is_one_json_object_with_service_and_instance(capsys: pytest.CaptureFixture[str]) -> None:
    configure("dispatch", "2", format="json")
    logger(district="420106").info("leads", epoch=7)
    line = json.loads(capsys.readouterr().out)
    assert line["timestamp"].endswith("Z")
    assert {k: line[k] for k in ("event", "level", "service", "instance", "district", "epoch")} == {
        "event": "leads", "level": "info", "service": "dispatch", "instance": "2", "district": "420106", "epoch": 7,
    }  # fmt: skip


@pytest.mark.parametrize("format", ["json", "console"])
@pytest.mark.parametrize("key", sorted(FORBIDDEN))
def test_a_forbidden_key_is_never_printed(format: str, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure("intake", "1", format=format)
    logger(**{key: SECRET}).info("bound")
    logger().warning("passed", **{key: SECRET})
    structlog.contextvars.bind_contextvars(**{key: SECRET})
    logger().error("in_context")
    printed = capsys.readouterr().out
    assert all(event in printed for event in ("bound", "passed", "in_context"))
    assert SECRET not in printed
    assert "13800000000" not in printed


def test_what_libraries_log_is_printed_in_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    configure("ledger", "1", format="json")
    logging.getLogger("pymongo").warning("slow %s", "query")
    logging.getLogger("pymongo").info("not this")
    line = json.loads(capsys.readouterr().out)
    assert (line["event"], line["level"], line["service"]) == ("slow query", "warning", "ledger")


def test_below_the_level_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    configure("ledger", "1", format="json", level="error")
    logger().warning("quiet")
    assert capsys.readouterr().out == ""


def test_an_exception_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure("ledger", "1", format="json")
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        logger().exception("turn_failed")
    (line,) = capsys.readouterr().out.splitlines()
    assert "ZeroDivisionError" in json.loads(line)["exception"]


def test_the_keys_are_the_ones_that_hold_people() -> None:
    assert {"text", "contact", "phone", "address", "token", "authorization", "secret"} <= telemetry.FORBIDDEN
