"""Find out whether an error is one of the disk, or of a damaged file.

Two errors of SQLite do not tell:

* SQLITE_FULL: a page number in a damaged page that is larger than any file gives the same error as
  a full disk. Where another file can be written, the file is damaged.
* SQLITE_IOERR_READ that lasts: a bad sector, whose rows are lost, or a disk that reads nothing for
  a while. Where reads of many different places fail, it is the disk: its rows can be read later.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from payloadd.files import identity_of
from payloadd.journal.sqlite import segments
from payloadd.journal.sqlite.schema import FILE

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator
    from pathlib import Path

    from payloadd.files import FileIdentity

_SQLITE_FULL: Final = 13
_NO_SPACE: Final = {"ENOSPC", "EDQUOT"}
_ROOM: Final = 8 * 2**20
"""Free bytes from which a disk is not full: a commit, and the growth of the file."""
_PROBE: Final = "journal.probe"
_PROBE_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
_BLOCK: Final = 4096
_PLACES: Final = 8
"""Places of the database file, and segments, that are read at most."""
_LEAST_PLACES: Final = 4
"""Failed places from which it is the disk, if most of all places fail."""
_MOST_KEPT: Final = 4


def is_full(error: sqlite3.Error) -> bool:
    """Return whether SQLite reports a full disk."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF == _SQLITE_FULL


def lacks_space(error: sqlite3.Error) -> bool:
    """Return whether a write of SQLite, or of a segment, has found the disk full."""
    return is_full(error) or getattr(error, "sqlite_errorname", "") in _NO_SPACE


def has_room(folder: Path) -> bool:
    """Return whether a file of _ROOM bytes can be written in ``folder``."""
    path = folder / _PROBE
    try:
        file = os.open(path, _PROBE_FLAGS, 0o600)
        try:
            # Space that is shown as free may be refused, by a quota for example.
            os.posix_fallocate(file, 0, _ROOM)
            os.pwrite(file, bytes(_BLOCK), _ROOM - _BLOCK)
            os.fsync(file)
        finally:
            os.close(file)
            path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def fails_to_read(folder: Path) -> bool:
    """Return whether the disk fails to read most places of the journal's files."""
    failed = places = 0
    for file, start in _places(folder):
        places += 1
        failed += not _can_read(file, start)
    return failed >= _LEAST_PLACES and 2 * failed > places


def _places(folder: Path) -> Iterator[tuple[int, int]]:
    """Yield places of the database file and of segments, as descriptor and offset."""
    with suppress(OSError):
        file = read_descriptor(folder / FILE)
        size = os.fstat(file).st_size
        for index in range(min(_PLACES, max(1, size // _BLOCK))):
            yield file, size * index // _PLACES // _BLOCK * _BLOCK
    with suppress(OSError):
        names = segments.names(folder / segments.FOLDER)
        for name in names[:: max(1, len(names) // _PLACES)][:_PLACES]:
            with suppress(OSError):
                path = segments.path_of(folder / segments.FOLDER, name)
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    yield file, os.fstat(file).st_size // 2 // _BLOCK * _BLOCK
                finally:
                    os.close(file)


def _can_read(file: int, start: int) -> bool:
    try:
        # The page cache would answer for a disk that does not.
        os.posix_fadvise(file, start, _BLOCK, os.POSIX_FADV_DONTNEED)
        os.pread(file, _BLOCK, start)
    except OSError as error:
        return error.errno not in {errno.EIO, errno.EBADMSG, errno.EILSEQ, errno.EUCLEAN}
    return True


_kept: dict[FileIdentity, int] = {}


def read_descriptor(path: Path) -> int:
    """Return a descriptor for reads of a database file, which must not be closed. Raises OSError.

    To close a descriptor of a file releases all locks that the process has on it (fcntl(2)), those
    of SQLite included; another process that opens the journal would then delete the log.
    """
    identity = identity_of(path)
    file = None if identity is None else _kept.get(identity)
    if file is not None:
        return file
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    found = os.fstat(file)
    _kept[found.st_dev, found.st_ino] = file
    if len(_kept) > _MOST_KEPT:
        # Of a file that a repair has replaced, which has no connection any more.
        os.close(_kept.pop(next(iter(_kept))))
    return file
