"""Disk space that is kept free for the writes of a journal whose disk is full.

A journal that has filled its disk cannot shrink without writing first. To remove a stored batch,
SQLite writes pages to its log; to move the log into the database file (a checkpoint), it may have
to extend that file. So a file of a few MiB reserves space. A commit that fails deletes this file.
From then on POSTs are refused, and batches are settled in the released space. POSTs are accepted
again when the disk has space for the file and as much again; otherwise the next POST would find it
full.
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
"""Bytes of requests in one commit. A larger request shares its commit with small ones only."""
_LOG: Final = 4 * 2**20
"""Bytes of SQLite's log before a checkpoint: 1,000 pages, and one commit more."""
_SHARE_OF_DISK: Final = 8
"""The reserve takes at most one of so many bytes of the disk."""
_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class DiskReserve:
    """The file in ``folder`` that reserves disk space.

    Raises StartError if the path of the file is a symbolic link.
    """

    def __init__(self, folder: Path, max_length: int = 0) -> None:
        """Plan the reserve; ``max_length`` are the bytes of the largest request body."""
        self._path = folder / FILE
        if self._path.is_symlink():
            raise StartError(f"{self._path} is a symbolic link; the journal follows none")
        disk = os.statvfs(folder)
        # Once for the log, once for the growth of the database file in a checkpoint.
        needed = 2 * (_LOG + max(LARGEST_COMMIT, max_length))
        self.bytes = min(needed, disk.f_blocks * disk.f_frsize // _SHARE_OF_DISK)

    def create(self) -> bool:
        """Create the file unless it exists; return whether the disk has space for it."""
        return self._allocate(self.bytes)

    def recreate(self) -> bool:
        """Create the file again; return whether the disk has space for it and as much again."""
        return self._allocate(2 * self.bytes)

    def _allocate(self, size: int) -> bool:
        try:
            file = os.open(self._path, _FLAGS, 0o600)
            try:
                # Allocated and not only extended: another program could use the space of a hole.
                os.posix_fallocate(file, 0, max(1, size))
                os.ftruncate(file, self.bytes)
            finally:
                os.close(file)
        except OSError:
            self.release()
            return False
        return True

    def release(self) -> None:
        """Delete the file, so that the journal can use its space."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
