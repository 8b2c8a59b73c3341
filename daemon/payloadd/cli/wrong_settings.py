"""Report wrong settings, and end the process with status 78."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

from payloadd.config import settings as config
from payloadd.escaping import escape_controls
from payloadd.exit_status import ExitStatus
from payloadd.observe import logs, standard_streams
from payloadd.observe.status import wrong_settings_line
from payloadd.systemd.notify import Notifier, is_journal

if TYPE_CHECKING:
    from payloadd.config.settings import Settings
    from payloadd.errors import SettingsError

log = logs.get_logger(__name__)


def end_as_logged(error: SettingsError, settings: Settings) -> NoReturn:
    """Report in the format of the daemon's log, and end the process."""
    journald = is_journal(sys.stderr)
    if settings.log_format == "text" or (
        not journald and logs.is_text(settings.log_format, sys.stderr)
    ):
        _write_lines(error)
    else:
        _log(error, settings, journald=journald)
    _end(error)


def end_for_reader(error: SettingsError) -> NoReturn:
    """Report as lines, with ``LOG_FORMAT=json`` as JSON, and end the process.

    For commands, whose output is read beside the messages. ``LOG_FORMAT=auto`` is no reason for
    JSON: the output of a command is often piped into a pager.
    """
    settings = config.for_log()
    if settings.log_format == "json":
        _log(error, settings, journald=is_journal(sys.stderr))
    else:
        _write_lines(error)
    _end(error)


def _log(error: SettingsError, settings: Settings, *, journald: bool) -> None:
    logs.configure(settings, journald=journald)
    for problem in error.problems:
        log.error("settings_wrong", setting=problem.partition(":")[0], problem=problem)


def _write_lines(error: SettingsError) -> None:
    mark = logs.priority_prefix("error") if is_journal(sys.stderr) else ""
    for problem in error.problems:
        standard_streams.write_line(f"{mark}payloadd: {escape_controls(problem)}", error=True)


def _end(error: SettingsError) -> NoReturn:
    Notifier().status(wrong_settings_line(error.problems))
    standard_streams.flush()
    sys.exit(ExitStatus.WRONG_SETTINGS)
