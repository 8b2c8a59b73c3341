"""Notice that files of an open journal were deleted or replaced.

A file that is deleted or replaced stays usable for the process that has it open, so neither SQLite
nor a write to a segment fails. But what is written then is gone with the process. So each commit of
requests compares the files at the paths of the database and its log with those that are open, and
the other files are compared once a second.

A commit that finds another file refuses its requests. Commits without requests go on, into the open
file: where that was only moved, it has the seals and the settled batches when it is moved back, and
nothing is stored twice. So what is in memory and in the open file is still uploaded.

* Files that are moved back within GRACE seconds are used again.
* After that the daemon writes the journal again, from the open file and from memory (see
  ``Database.restore_files``). Files that are in the place of its own are renamed, with
  ``.replaced-1`` behind their names, and nothing else is done with them.
"""

from __future__ import annotations

import os
import sqlite3
import time
from typing import TYPE_CHECKING, Final

from payloadd.files import identity_of

if TYPE_CHECKING:
    from pathlib import Path

    from payloadd.files import FileIdentity

GRACE: Final = 2.0
"""Seconds for which files may be moved back before the journal is written again."""
_TICK: Final = 10**9
"""Nanoseconds after which the system's clock has moved on for sure."""
LOG_ENDS: Final = ("-wal", "-shm")
"""Ends of the names of the files that SQLite has beside a database."""


class FilesInUse:
    """The database file and its log, as they are open; noted again after each repair."""

    grace = GRACE

    def __init__(self, path: Path) -> None:
        """Note nothing yet; ``path`` is the database file."""
        self._path = str(path)
        self._log = f"{path}-wal"
        self._index = f"{path}-shm"
        self._database_file: FileIdentity | None = None
        self._log_file: FileIdentity | None = None
        self._index_file: FileIdentity | None = None
        self._folder = str(path.parent)
        self._unchanged = (0, 0, 0)
        """Inode, time of change and device of STATE_DIR when the files were in their places."""
        self._since: float | None = None
        self.failure: str | None = None
        """The reason why the journal could not be written again, None if it was not tried."""

    def note(self) -> None:
        """Note the files at the paths as those that are open."""
        self._database_file = identity_of(self._path)
        self._log_file = identity_of(self._log)
        self._index_file = identity_of(self._index)
        self._unchanged = (0, 0, 0)

    def have_database(self) -> bool:
        """Return whether the database file is in its place."""
        return identity_of(self._path) == self._database_file

    def in_place(self) -> bool:
        """Return whether the database file and its log are in their places."""
        # Asked for each commit. A folder whose time of change is the same has the same names, so
        # one system call does.
        try:
            folder = os.stat(self._folder)  # noqa: PTH116 - of a text, which is faster
        except OSError:
            return False
        if (folder.st_ino, folder.st_mtime_ns, folder.st_dev) == self._unchanged:
            return True
        if (
            identity_of(self._path) != self._database_file
            or identity_of(self._log) != self._log_file
        ):
            return False
        # Two changes within a tick of the system's clock give the same time.
        if time.time_ns() - folder.st_mtime_ns > _TICK:
            self._unchanged = (folder.st_ino, folder.st_mtime_ns, folder.st_dev)
        return True

    def problem(self) -> str | None:
        """Return the name of a file of SQLite that is not in its place, None if all are."""
        for path, noted in (
            (self._path, self._database_file),
            (self._log, self._log_file),
            (self._index, self._index_file),
        ):
            if identity_of(path) != noted:
                return path
        return None

    def is_due(self) -> bool:
        """Return whether files are missing for so long that the journal is to be written again."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
        return now - self._since >= self.grace

    def found_in_place(self) -> None:
        """Note that all files are in their places."""
        self._since = self.failure = None


def file_gone(path: object) -> sqlite3.OperationalError:
    """Return the error of a file that was deleted or replaced while the journal uses it."""
    error = sqlite3.OperationalError(f"{path} was deleted or replaced while it is in use")
    error.sqlite_errorname = "FILE_GONE"
    return error


def put_aside(path: Path) -> str | None:
    """Rename what is at ``path``, and return its new name; None if nothing is there.

    The log of a database file goes with it. Raises OSError.
    """
    if not os.path.lexists(path):
        return None
    number = 1
    while (new := path.with_name(f"{path.name}.replaced-{number}")).exists():
        number += 1
    path.rename(new)
    for end in LOG_ENDS:
        beside = path.with_name(path.name + end)
        if beside.exists():
            beside.rename(new.with_name(new.name + end))
    return new.name
