"""The file of the segment that is being written: a new one, or that of a segment without jobs.

To write over the blocks of a file costs much less than to have the file system find new blocks,
record them, and free those of a file that is unlinked. So a new segment takes the file of one that
no row refers to, if there is one, under the new name.

The bytes of the former segment stay behind those of the new one until they are written over. No row
refers to them. A NUL byte stands in front of them, which no JSON text contains (RFC 8259, section
7): it tells a reader of the whole file where the new bytes end.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final, Self

from payloadd.files import write_at

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_OPEN: Final = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
_PAGE: Final = 4096
_NULS: Final = bytes(_PAGE)
_PIECE: Final = 2**20
"""Bytes of a file that are read at a time."""


class SegmentFile:
    """An open file, to which bytes are appended. Methods raise OSError."""

    def __init__(self, descriptor: int, old_end: int = 0) -> None:
        """Use an open file; ``old_end`` is the end of its old bytes."""
        self.descriptor = descriptor
        self._old_end = old_end

    @classmethod
    def create(cls, path: Path) -> Self:
        """Create a file, or empty the one that is there."""
        return cls(os.open(path, _OPEN | os.O_CREAT | os.O_TRUNC, 0o600))

    @classmethod
    def take_over(cls, old: Path, path: Path, most_bytes: int) -> Self | None:
        """Rename the file at ``old`` to ``path``, to write over its bytes; None where it must stay.

        It must if it is larger than ``most_bytes``, which would take space that no job needs, or if
        it has a second name: another program may keep it by a hard link.
        """
        descriptor = os.open(old, _OPEN)
        try:
            found = os.fstat(descriptor)
            alone = stat.S_ISREG(found.st_mode) and found.st_nlink == 1
            if alone and found.st_size <= most_bytes:
                # The process may be killed before it writes anything else.
                os.pwrite(descriptor, _NULS, 0)
                old.rename(path)
                return cls(descriptor, max(found.st_size, _PAGE))
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def write(self, buffers: Sequence[bytes], start: int) -> int:
        """Write and sync buffers from byte ``start`` on; returns the bytes written: all."""
        size = sum(map(len, buffers))
        end = start + size
        if end < self._old_end:
            # Up to the end of a page: the kernel would have to read the rest of it otherwise.
            buffers = [*buffers, _NULS[end % _PAGE :]]
        write_at(self.descriptor, buffers, start)
        os.fdatasync(self.descriptor)
        return size

    def cut(self, end: int) -> None:
        """Cut off all bytes from ``end`` on."""
        os.ftruncate(self.descriptor, end)
        self._old_end = 0

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)


def cut_old_bytes(path: Path) -> None:
    """Cut off the bytes of a former segment. Raises OSError."""
    descriptor = os.open(path, _OPEN)
    try:
        start = 0
        while piece := os.pread(descriptor, _PIECE, start):
            if (found := piece.find(b"\0")) >= 0:
                os.ftruncate(descriptor, start + found)
                return
            start += len(piece)
    finally:
        os.close(descriptor)
