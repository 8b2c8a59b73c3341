"""Read errors of the disk: which of them last, and which are gone at the next attempt.

SQLite reports a page that the disk cannot read as damaged (EIO becomes SQLITE_CORRUPT). So where it
reports damage, the file is read once more, byte by byte, to tell one from the other.

A sector that cannot be read is tried again for ten seconds before its jobs are given up: an error
of a cable or of a network is gone after some time. Jobs after it must not wait for longer. Jobs are
given up only while the disk still accepts writes: a dead letter is a commit.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from payloadd.errors import StartError
from payloadd.journal.sqlite.damage import is_corrupt
from payloadd.journal.sqlite.disk_probe import fails_to_read, read_descriptor
from payloadd.journal.sqlite.schema import FILE
from payloadd.journal.sqlite.table_scan import is_unreadable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

T = TypeVar("T")

_TRIES: Final = 5
"""Attempts before errors count as lasting, however slow each of them is."""
_FORGET: Final = 60.0
"""Seconds without an error after which the next one counts as the first."""
_MOST: Final = 64
"""Places that are remembered."""
_PIECE: Final = 2**20


@dataclass(slots=True)
class _Errors:
    first: float
    last: float
    tries: int = 0


class ReadErrors:
    """Counts the read errors of each place: a segment, or the database file.

    Once the errors of a place last, every further error of it counts as lasting: a damaged area of
    many jobs delays the backlog once, and not once per job.
    """

    seconds = 10.0
    """Seconds from the first error of a place on after which its errors last."""
    pause = 0.5
    """Seconds between two attempts of ``retry_reads``."""

    def __init__(self, folder: Path | None = None) -> None:
        """Count no error yet.

        ``folder``: STATE_DIR; its errors do not last while the disk fails to read most of it.
        """
        self._folder = folder
        self._errors: dict[str, _Errors] = {}

    def note(self, place: str) -> bool:
        """Count a read error of ``place``; returns whether its errors last."""
        now = time.monotonic()
        known = self._errors.pop(place, None)
        if known is None or now - known.last > _FORGET:
            known = _Errors(now, now)
        known.last = now
        known.tries += 1
        # In order of the last error, so that the first entry is the one to forget.
        self._errors[place] = known
        if len(self._errors) > _MOST:
            del self._errors[next(iter(self._errors))]
        lasts = known.tries >= _TRIES and now - known.first >= self.seconds
        return lasts and (self._folder is None or not fails_to_read(self._folder))


def read_error(path: Path, error: sqlite3.Error) -> sqlite3.Error:
    """Return a read error (SQLITE_IOERR_READ) in place of ``error`` if the disk cannot read a file.

    Returns ``error`` itself where it does not report damage, or where the whole file at ``path``
    can be read.
    """
    if is_unreadable(error) or not is_corrupt(error) or _can_be_read(path):
        return error
    found = sqlite3.OperationalError(f"{path.name}: {os.strerror(errno.EIO)}")
    found.sqlite_errorcode, found.sqlite_errorname = sqlite3.SQLITE_IOERR_READ, "SQLITE_IOERR_READ"
    return found


def _can_be_read(path: Path) -> bool:
    try:
        file = read_descriptor(path)
        for start in range(0, os.fstat(file).st_size, _PIECE):
            os.pread(file, _PIECE, start)
    except OSError:
        return False
    return True


def retry_reads(function: Callable[[], T], folder: Path) -> T:
    """Call a function again while the disk cannot read the database file, until errors last.

    ``folder``: STATE_DIR. Returns the result of ``function``. It blocks for seconds: for a start,
    when no client waits. Raises sqlite3.Error, and StartError where the disk fails to read most of
    the journal: what cannot be read now is not lost.
    """
    read_errors = ReadErrors()
    while True:
        try:
            return function()
        except sqlite3.Error as error:
            if not is_unreadable(error):
                raise
            if read_errors.note(FILE):
                if fails_to_read(folder):
                    raise StartError(f"the disk of {folder} cannot be read: {error}") from None
                raise
        time.sleep(read_errors.pause)
