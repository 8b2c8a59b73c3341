"""Set up logging: structlog for our own events, and the same output for the libraries' loggers.

An event is a short name in snake case with fields, never a sentence with values in it:
``listening``, ``store_unavailable``, ``drained``. Under systemd each is an entry of its journal
with fields of its own, see ``payloadd.observe.journald``. Elsewhere lines go to standard error,
readable on a terminal and as JSON otherwise. A line for journald on standard error begins with its
priority (sd-daemon(3)).

Values may come from outside (headers, errors of servers), so control and invisible characters in
them are escaped, see ``payloadd.escaping``. In JSON all characters outside ASCII are escaped.
"""

from __future__ import annotations

import io
import logging
import sys
import textwrap
from typing import TYPE_CHECKING, Any, Final, TextIO, cast

import structlog

from payloadd.escaping import escape_controls, escape_controls_in_lines
from payloadd.observe import journald as native
from payloadd.observe import standard_streams
from payloadd.redaction import hide_userinfo_in_sentence

if TYPE_CHECKING:
    from structlog.typing import EventDict, ExcInfo, WrappedLogger

    from payloadd.config.settings import Settings

# Libraries that log much at debug level, botocore even credentials: always at level warning.
_QUIET = ("botocore", "urllib3", "httpx", "httpcore", "h2", "hpack", "quart.serving")

# Their tracebacks hold the output of a credential_process and the answers of servers.
_WITHOUT_TRACEBACK: Final = ("botocore", "urllib3")

_BYTES_AS_TEXT: Final = "latin-1"
"""An encoding that has a character for each byte: a formatter returns a text, an entry is bytes."""

_FIRST_FIELDS: Final = ("timestamp", "level", "event", "logger")

Logger = structlog.stdlib.BoundLogger


def get_logger(name: str) -> Logger:
    """Return the logger of one module; ``name`` is its ``__name__``."""
    return cast("Logger", structlog.get_logger(name))


def priority_prefix(level: str) -> str:
    """Return the prefix that gives journald the priority of a line (sd-daemon(3)).

    ``level`` is a level of ``logging`` in lower case; an unknown one counts as info.
    """
    return f"<{native.priority(level)}>"


def configure(settings: Settings, stream: TextIO | None = None, *, journald: bool = False) -> None:
    """Send every log line of the process to ``stream`` (standard error when None), or to journald.

    ``journald``: the stream leads to systemd-journald. It gets the entries by its own protocol if
    ``LOG_FORMAT`` is ``journald`` or ``auto``; an entry that it does not take goes to the stream.
    """
    stream = sys.stderr if stream is None else stream
    log_format = settings.log_format
    text = is_text(log_format, stream)
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
    handler: logging.Handler = (_JournaldHandler if journald else _StreamHandler)(stream)
    handler.setFormatter(_formatter(shared, *_renderers(text=text, colors=stream.isatty())))
    if log_format == "journald" or (log_format == "auto" and journald):
        handler = _NativeHandler(handler)
        handler.setFormatter(_formatter(shared, *_entry_renderers()))
    handler.addFilter(_without_secrets)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def is_text(log_format: str, stream: TextIO) -> bool:
    """Return whether lines on ``stream`` are for readers, and no JSON."""
    return log_format == "text" or (log_format != "json" and stream.isatty())


class _StreamHandler(logging.StreamHandler[TextIO]):
    """Write to a stream until its reader is gone; then drop all lines."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - a name of logging
        """Give up a stream without a reader; report other errors as logging does."""
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            standard_streams.give_up(self.stream)
        else:
            super().handleError(record)


class _JournaldHandler(_StreamHandler):
    """Write the priority in front of every line, those of a traceback included."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = priority_prefix(record.levelname.lower())
        return "\n".join(prefix + line for line in super().format(record).splitlines())


class _NativeHandler(logging.Handler):
    """Send entries to journald; what it does not take goes to ``fallback`` as a line."""

    def __init__(self, fallback: logging.Handler) -> None:
        super().__init__()
        self._fallback = fallback

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record; an error never reaches the code that logs, as in logging."""
        try:
            data = self.format(record).encode(_BYTES_AS_TEXT)
        except Exception:  # noqa: BLE001 - the handlers of logging do the same
            self.handleError(record)
            return
        if not native.send(data):
            self._fallback.emit(record)


def _formatter(shared: list[Any], *renderers: Any) -> logging.Formatter:  # noqa: ANN401
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
    )


def _without_secrets(record: logging.LogRecord) -> bool:
    """Remove the parts of a library's record that may hold secrets; return True: drop no record."""
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
    # Without the locals of each frame: they hold payloads and headers, and may hold tokens.
    tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [
        structlog.processors.ExceptionRenderer(tracebacks),
        _time_first,
        structlog.processors.JSONRenderer(ensure_ascii=True),
    ]


def _entry_renderers() -> list[Any]:
    return [structlog.processors.ExceptionRenderer(_traceback), _render_entry]


def _render_entry(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    """Return an entry for journald (a processor of structlog, which has to return a text)."""
    return native.entry(event).decode(_BYTES_AS_TEXT)


def _time_first(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Return the event with time, level and event at its beginning (a processor of structlog).

    A reader of raw lines, or of a log that cuts long ones, finds them at the same place in each.
    """
    first = {name: event.pop(name) for name in _FIRST_FIELDS if name in event}
    return {**first, **event}


def _escape_values(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Escape every text of a log line, the event name included (a processor of structlog)."""
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
    out.write(textwrap.indent(escape_controls_in_lines(_traceback(exc_info)), "  "))


def _traceback(exc_info: ExcInfo) -> str:
    lines = io.StringIO()
    structlog.dev.plain_traceback(lines, exc_info)
    return lines.getvalue()
