"""Standard output and standard error: what reads them may go away, or may never have been there.

A daemon whose log is piped into another program outlives that program, and a shell can start a
daemon without standard streams (``2>&-``). Neither may change the exit status or the drain:

* Python flushes both streams at its end, and exits with 120 where that fails.
* A descriptor below 3 that is closed is given to the next file that is opened, such as a segment of
  the journal. Everything that writes to standard error would write into that file.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Final, TextIO

_INPUT: Final = 0
_OUTPUT: Final = 1
_ERROR: Final = 2


def open_missing() -> None:
    """Open /dev/null in the place of each standard stream that is closed. Call it first."""
    for descriptor in (_INPUT, _OUTPUT, _ERROR):
        try:
            os.fstat(descriptor)
        except OSError:
            # The system uses the lowest free number, which is this one.
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = _writer(_OUTPUT)
    if sys.stderr is None:
        sys.stderr = _writer(_ERROR)


def _writer(descriptor: int) -> TextIO:
    return open(descriptor, "w", encoding="utf-8", errors="backslashreplace", closefd=False)


def give_up(stream: TextIO) -> None:
    """Send what ``stream`` still holds, and everything after it, to /dev/null.

    For a stream of which a write has failed because its reader is gone: it would fail for ever.
    Does nothing for a stream without a descriptor.
    """
    with suppress(OSError, ValueError):
        target = stream.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, target)
        finally:
            os.close(null)
        stream.flush()


def flush() -> None:
    """Write what both streams still hold; text that cannot be written is dropped.

    Without it Python would exit with 120 in place of the exit status of the command.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            give_up(stream)


def write_line(text: str, *, error: bool = False) -> None:
    """Write one line to standard output or standard error; drop it if its reader is gone."""
    stream = sys.stderr if error else sys.stdout
    try:
        stream.write(text + "\n")
        stream.flush()
    except (OSError, ValueError):
        give_up(stream)
