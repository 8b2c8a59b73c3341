"""Room on the disk that is held back for what has to be written when there is none left.

A journal that has filled its disk cannot shrink without writing first: to forget a stored
batch takes pages of SQLite's log, and to fold the log into the file may take pages of the
file. So a file of nothing keeps some megabytes. A commit that fails gives them up; POSTs are
refused from then on, while the pipeline goes on in what was kept; and not before there is room
for the file and as much again is the disk called well, or the next POST would find it full.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from payloadd.errors import StartError

if TYPE_CHECKING:
    from pathlib import Path

FILE: Final = "journal.reserve"
LARGEST_COMMIT: Final = 4 * 2**20
"""Bytes of requests that are committed together; a larger one goes with small ones alone."""
_LOG: Final = 4 * 2**20
"""Bytes that SQLite's log grows to before it is folded in: 1,000 pages, and one commit more."""
_SHARE_OF_DISK: Final = 8
_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class DiskReserve:
    """The file in ``folder``; a small disk gives an eighth of it."""

    def __init__(self, folder: Path, max_length: int = 0) -> None:
        self._path = folder / FILE
        if self._path.is_symlink():
            raise StartError(f"{self._path} is a symbolic link; the journal follows none")
        disk = os.statvfs(folder)
        # Once for the log, once for what the file grows by when the log is folded in.
        needed = 2 * (_LOG + max(LARGEST_COMMIT, max_length))
        self.bytes = min(needed, disk.f_blocks * disk.f_frsize // _SHARE_OF_DISK)

    def take(self) -> bool:
        """Make the file, unless it is there; returns whether there was room for it."""
        return self._allocate(self.bytes)

    def take_back(self) -> bool:
        """Make the file again; returns whether there was room for it and as much again."""
        return self._allocate(2 * self.bytes)

    def _allocate(self, size: int) -> bool:
        try:
            file = os.open(self._path, _FLAGS, 0o600)
            try:
                # Space and not only a size: what is allocated nobody else can take.
                os.posix_fallocate(file, 0, max(1, size))
                os.ftruncate(file, self.bytes)
            finally:
                os.close(file)
        except OSError:
            self.give_up()
            return False
        return True

    def give_up(self) -> None:
        """Let what has to be written have the room."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
