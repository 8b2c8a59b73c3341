"""Simulate sectors that cannot be read: pread(2) fails with EIO, for SQLite and for Python.

SQLite calls the system through a table of functions that ``xSetSystemCall`` changes
(https://www.sqlite.org/c3ref/vfs.html), so SQLite's own code gets the error. Only reads of the bad
parts fail; writes and syncs succeed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sqlite3
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAMES: Final = (b"pread64", b"pread")
_OFFSET_OF_SET: Final = 18
"""Members of ``sqlite3_vfs``, in words of 8 bytes, before ``xSetSystemCall``."""
_Pread: Final = ctypes.CFUNCTYPE(
    ctypes.c_ssize_t,
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int64,
    use_errno=True,
)
_Set: Final = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


class BadSectors:
    """The parts of files that cannot be read, as ranges of bytes."""

    def __init__(self) -> None:
        self._bad: list[tuple[int, int, range]] = []
        self.errors = 0
        """The number of reads that have failed."""

    def add(self, path: Path, start: int, size: int) -> None:
        """Make every read of these bytes fail."""
        there = path.stat()
        self._bad.append((there.st_dev, there.st_ino, range(start, start + size)))

    def clear(self) -> None:
        """Make all bytes readable again."""
        self._bad.clear()

    def hit(self, file: int, size: int, offset: int) -> bool:
        """Return whether a read includes bytes of a bad part, and count it if so."""
        if not self._bad:
            return False
        there = os.fstat(file)
        for device, inode, bad in self._bad:
            same = (device, inode) == (there.st_dev, there.st_ino)
            if same and offset < bad.stop and bad.start < offset + size:
                self.errors += 1
                return True
        return False


@contextmanager
def bad_sectors() -> Iterator[BadSectors]:
    """Yield the bad parts, whose reads in this process fail while the body runs."""
    bad = BadSectors()
    plain = os.pread

    def pread(file: int, size: int, offset: int) -> bytes:
        if bad.hit(file, size, offset):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return plain(file, size, offset)

    libc = ctypes.CDLL(None, use_errno=True)
    libc.pread64.restype = ctypes.c_ssize_t
    libc.pread64.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64)

    @_Pread  # type: ignore[untyped-decorator]  # ctypes has no types for it
    def sqlite_pread(file: int, buffer: int, size: int, offset: int) -> int:
        if bad.hit(file, size, offset):
            ctypes.set_errno(errno.EIO)
            return -1
        return int(libc.pread64(file, buffer, size, offset))

    vfs, set_call = _vfs()
    address = ctypes.cast(sqlite_pread, ctypes.c_void_p)
    try:
        for name in _NAMES:
            set_call(vfs, name, address)
        with patch.object(os, "pread", pread):
            yield bad
    finally:
        for name in _NAMES:
            set_call(vfs, name, None)


def _vfs() -> tuple[int, Any]:
    """Return SQLite's default VFS, and its function that replaces a system call."""
    library = ctypes.CDLL(_library())
    library.sqlite3_vfs_find.restype = ctypes.c_void_p
    vfs = library.sqlite3_vfs_find(None)
    words = ctypes.cast(vfs, ctypes.POINTER(ctypes.c_void_p))
    function = words[_OFFSET_OF_SET]
    assert function is not None
    return vfs, _Set(function)


def _library() -> str:
    """Return the path of the library that Python's sqlite3 uses."""
    sqlite3.connect(":memory:").close()
    mapped = {
        line.split()[-1]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if "sqlite3" in line
    }
    return min(mapped, key=lambda path: ("libsqlite3" not in path, path))
