"""Logging: structlog for our own events, and the libraries' loggers through the same pipe.

An event is a short name in snake case with fields, never a sentence with values in it:
``listening``, ``store_unavailable``, ``drained``. Lines go to standard error, readable on
a terminal and as JSON elsewhere.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, TextIO, cast

import structlog

if TYPE_CHECKING:
    from daemon.config import Settings

# Libraries that say much at debug level, botocore credentials among it: never below warning.
_QUIET = ("botocore", "urllib3", "httpx", "httpcore", "h2", "hpack", "quart.serving")

Logger = structlog.stdlib.BoundLogger


def get_logger(room: str) -> Logger:
    """Return the logger of one room of the house."""
    return cast("Logger", structlog.get_logger(room))


def configure(settings: Settings, stream: TextIO | None = None) -> None:
    """Send every log line of the process to ``stream`` (standard error when None)."""
    stream = sys.stderr if stream is None else stream
    text = settings.log_format == "text" or (settings.log_format == "auto" and stream.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(text=text, colors=stream.isatty()),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _renderers(*, text: bool, colors: bool) -> list[Any]:
    if text:
        return [structlog.dev.ConsoleRenderer(colors=colors)]
    return [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
