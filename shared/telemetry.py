"""Logs and metrics: ids are bound once, at the door; personal data never comes here."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

FORBIDDEN = frozenset(
    {"text", "contact", "phone", "address", "token", "authorization", "seed", "password", "secret", "body"}
)
"""Keys that never reach a log line, whoever passes them."""


def configure(service: str, instance: str, *, format: str = "json", level: str = "info") -> None:
    """Log to standard output, one JSON object or one readable line per event; also what libraries log."""

    def strip(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        for key in FORBIDDEN & event.keys():
            event[key] = "…"
        return event

    def name(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event.setdefault("service", service)
        event.setdefault("instance", instance)
        return event

    steps: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        name,
        strip,
    ]
    render: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if format == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stdout.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    if format == "json":
        steps.append(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[*steps, render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=steps, processor=render))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


def logger(**bound: object) -> FilteringBoundLogger:
    """A logger with these ids bound."""
    log: FilteringBoundLogger = structlog.get_logger(**bound)
    return log
