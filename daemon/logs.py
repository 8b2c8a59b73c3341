"""Logging: structlog for our own events, and the libraries' loggers through the same pipe.

An event is a short name in snake case with fields, never a sentence with values in it:
``listening``, ``store_unavailable``, ``drained``. Lines go to standard error, readable on
a terminal and as JSON elsewhere; to journald each with its priority in front (sd-daemon(3)).
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, Final, TextIO, cast

import structlog

if TYPE_CHECKING:
    from daemon.config import Settings

# Libraries that say much at debug level, botocore credentials among it: never below warning.
_QUIET = ("botocore", "urllib3", "httpx", "httpcore", "h2", "hpack", "quart.serving")

_PRIORITIES: Final = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}
"""Levels of syslog(3)."""

Logger = structlog.stdlib.BoundLogger


def get_logger(room: str) -> Logger:
    """Return the logger of one room of the house."""
    return cast("Logger", structlog.get_logger(room))


def mark(level: str) -> str:
    """Return what a line for journald begins with, so that it knows how severe it is."""
    return f"<{_PRIORITIES.get(level, 6)}>"


def configure(settings: Settings, stream: TextIO | None = None, *, journald: bool = False) -> None:
    """Send every log line of the process to ``stream`` (standard error when None).

    ``journald``: it is read by systemd's journal.
    """
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
    handler = (_JournaldHandler if journald else logging.StreamHandler)(stream)
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


class _JournaldHandler(logging.StreamHandler[TextIO]):
    """Writes lines that journald takes for what they are: a traceback's are severe too."""

    def format(self, record: logging.LogRecord) -> str:
        start = mark(record.levelname.lower())
        return "\n".join(start + line for line in super().format(record).splitlines())


def _renderers(*, text: bool, colors: bool) -> list[Any]:
    if text:
        return [
            structlog.dev.ConsoleRenderer(
                colors=colors, exception_formatter=structlog.dev.plain_traceback
            )
        ]
    # Without the locals of each frame: they hold payloads and headers, and some day tokens.
    tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [structlog.processors.ExceptionRenderer(tracebacks), structlog.processors.JSONRenderer()]
