"""Tells a read error that lasts from one that passes.

SQLite calls a page that the disk does not give back damaged (EIO becomes SQLITE_CORRUPT), so where
it says so the file is read once more, byte by byte.

A sector that cannot be read is tried again for ten seconds before its jobs are given up: an error
of a cable or a network passes. What is behind it must not wait for longer than that. Only a disk
that still takes writes has anything given up: a dead letter is a commit.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from payloadd.journal.sqlite.damage import is_corrupt
from payloadd.journal.sqlite.schema import FILE
from payloadd.journal.sqlite.table_scan import is_unreadable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

T = TypeVar("T")

_TRIES: Final = 5
_SECONDS: Final = 10.0
_FORGET: Final = 60.0
"""Seconds without an error after which the next one is the first."""
_MOST: Final = 64
"""Places that are remembered."""
_BETWEEN_TRIES: Final = 0.5
_PIECE: Final = 2**20


@dataclass(slots=True)
class _Errors:
    first: float
    last: float
    tries: int = 0


class Patience:
    """Counts the read errors of each place: a segment, or the database file.

    Once a place has failed for long enough, every further error of it counts as one that lasts: a
    damaged area of many records is not waited for once a record.
    """

    def __init__(self) -> None:
        self._errors: dict[str, _Errors] = {}

    def ran_out(self, place: str) -> bool:
        """Note a read error of ``place``; returns whether its errors last."""
        now = time.monotonic()
        known = self._errors.pop(place, None)
        if known is None or now - known.last > _FORGET:
            known = _Errors(now, now)
        known.last = now
        known.tries += 1
        # The place that failed last is the last.
        self._errors[place] = known
        if len(self._errors) > _MOST:
            del self._errors[next(iter(self._errors))]
        return known.tries >= _TRIES and now - known.first >= _SECONDS


def read_error(path: Path, error: sqlite3.Error) -> sqlite3.Error:
    """Return a read error in place of ``error`` if the disk does not give all of a file back."""
    if is_unreadable(error) or not is_corrupt(error) or _can_be_read(path):
        return error
    found = sqlite3.OperationalError(f"{path.name}: {os.strerror(errno.EIO)}")
    found.sqlite_errorcode, found.sqlite_errorname = sqlite3.SQLITE_IOERR_READ, "SQLITE_IOERR_READ"
    return found


def _can_be_read(path: Path) -> bool:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(file).st_size
            for start in range(0, size, _PIECE):
                os.pread(file, _PIECE, start)
        finally:
            os.close(file)
    except OSError:
        return False
    return True


def patiently(function: Callable[[], T]) -> T:
    """Run a function, again and again for some seconds while the database file cannot be read.

    Raises sqlite3.Error. For a start, when nothing else waits.
    """
    patience = Patience()
    while True:
        try:
            return function()
        except sqlite3.Error as error:
            if not is_unreadable(error) or patience.ran_out(FILE):
                raise
        time.sleep(_BETWEEN_TRIES)
