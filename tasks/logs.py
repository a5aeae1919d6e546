"""Structured logs: one event a line, bound to its run, step and attempt, without secrets.

The law: a line is an event name plus facts; JSON where a machine reads, colours where a person does.
Every value passes `redact`, so a password in an address or a field named like one never reaches a log.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, cast

import structlog

from .redaction import redact
from .settings import Settings


def _redact_event(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in event.items():
        event[name] = redact(value, name)
    return event


def configure(settings: Settings, *, stream: Any = None) -> None:
    """Send structlog's and the standard library's lines through one formatter to `stream` (stderr)."""
    out = stream or sys.stderr
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not out.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        # A traceback becomes text here, before secrets are taken out; one with colours would show the locals as well.
        structlog.processors.format_exc_info,
        _redact_event,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(default=str)
        if as_json
        else structlog.dev.ConsoleRenderer(
            colors=out.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    handler.addFilter(_NoTicks())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


class _NoTicks(logging.Filter):
    """Celery tells of every task that it received and finished; of a tick each second that is noise."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno > logging.INFO or "trellis.tick" not in record.getMessage()


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger; its lines carry what `bound` has bound."""
    return cast("structlog.stdlib.BoundLogger", structlog.get_logger(name))


bound = structlog.contextvars.bound_contextvars
