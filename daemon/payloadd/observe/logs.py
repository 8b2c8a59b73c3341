"""Logging: structlog for our own events, and the libraries' loggers through the same pipe.

An event is a short name in snake case with fields, never a sentence with values in it:
``listening``, ``store_unavailable``, ``drained``. Lines go to standard error, readable on
a terminal and as JSON elsewhere; to journald each with its priority in front (sd-daemon(3)).

Values may come from outside (headers, errors of servers): control and invisible characters in
them are escaped, see ``plain_text``. In JSON all characters outside ASCII are.
"""

from __future__ import annotations

import io
import logging
import sys
import textwrap
from typing import TYPE_CHECKING, Any, Final, TextIO, cast

import structlog

from payloadd.escaping import escape_controls, escape_controls_in_lines
from payloadd.redaction import hide_userinfo_in_sentence

if TYPE_CHECKING:
    from structlog.typing import EventDict, ExcInfo, WrappedLogger

    from payloadd.config.settings import Settings

# Libraries that say much at debug level, botocore credentials among it: never below warning.
_QUIET = ("botocore", "urllib3", "httpx", "httpcore", "h2", "hpack", "quart.serving")

# Their tracebacks hold what a credential_process wrote and what a server answered.
_WITHOUT_TRACEBACK: Final = ("botocore", "urllib3")

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
    handler.addFilter(_without_secrets)
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


def _without_secrets(record: logging.LogRecord) -> bool:
    """Take out of a library's record what may hold secrets; no record is dropped."""
    if record.name.partition(".")[0] in _WITHOUT_TRACEBACK:
        text = hide_userinfo_in_sentence(record.getMessage())
        if isinstance(record.exc_info, tuple) and record.exc_info[0] is not None:
            text += f" ({record.exc_info[0].__name__})"
        record.msg, record.args, record.exc_info, record.exc_text = text, (), None, None
    return True


def _renderers(*, text: bool, colors: bool) -> list[Any]:
    if text:
        return [
            _escape_values,
            structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=_write_traceback),
        ]
    # Without the locals of each frame: they hold payloads and headers, and some day tokens.
    tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [
        structlog.processors.ExceptionRenderer(tracebacks),
        structlog.processors.JSONRenderer(ensure_ascii=True),
    ]


def _escape_values(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Escape every text of a log line, the event's own included (a processor of structlog)."""
    return {name: _escaped(value) for name, value in event.items()}


def _escaped(value: object) -> object:
    """Return a value with its texts escaped; repr() escapes those of all other types."""
    match value:
        case str():
            return escape_controls(value)
        case dict():
            return {_escaped(name): _escaped(inner) for name, inner in value.items()}
        case list():
            return [_escaped(inner) for inner in value]
        case tuple():  # exc_info is one
            return tuple(map(_escaped, value))
        case _:
            return value


def _write_traceback(out: TextIO, exc_info: ExcInfo) -> None:
    """Write a traceback, indented: a line of an exception's text must not look like a log line."""
    lines = io.StringIO()
    structlog.dev.plain_traceback(lines, exc_info)
    out.write(textwrap.indent(escape_controls_in_lines(lines.getvalue()), "  "))
