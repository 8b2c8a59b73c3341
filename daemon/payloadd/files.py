"""Files and folders: names that survive a power cut, and many buffers in one system call.

The name of a file or a folder is on the disk once the folder that holds it is synced (fsync(2)).
"""

from __future__ import annotations

import errno
import os
from itertools import islice
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    _Buffer = bytes | bytearray | memoryview

FileIdentity = tuple[int, int]
"""Device and inode: equal for two paths or descriptors of one file, while one of them is open."""

IOV_MAX: Final = os.sysconf("SC_IOV_MAX")
"""Buffers that one system call takes at most (writev(2)); 1024 on Linux."""


def identity_of(path: str | Path) -> FileIdentity | None:
    """Return the identity of the file at ``path``, which may be a symbolic link; None without one.

    Also None for a path that cannot be looked up.
    """
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def is_at(file: int, path: str | Path) -> bool:
    """Return whether the open file with the descriptor ``file`` is the one at ``path``."""
    found = os.fstat(file)
    return identity_of(path) == (found.st_dev, found.st_ino)


def make_folder(folder: Path, mode: int) -> None:
    """Create ``folder`` and its missing parents, and sync their names. Raises OSError.

    ``mode`` holds for every folder that is created; the umask is applied to it.
    """
    folder = folder.absolute()
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    for one in reversed(made or [folder]):
        one.mkdir(mode, exist_ok=True)
    for one in made:
        sync_folder(one.parent)


def sync_folder(folder: Path) -> None:
    """Sync the names in ``folder`` to the disk (fsync(2)). Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_at(file: int, buffers: Iterable[_Buffer], start: int) -> int:
    """Write buffers one behind the other, the first at byte ``start`` (pwritev(2)).

    Returns the bytes that were written: all. Raises OSError, with EIO where the system accepts
    nothing.
    """
    position = start
    left = iter(buffers)
    while some := list(islice(left, IOV_MAX)):
        while some:
            count = os.pwritev(file, some, position)
            if not count:
                raise OSError(errno.EIO, "nothing was written")
            position += count
            some = skip(some, count)
    return position - start


def skip(buffers: Sequence[_Buffer], count: int) -> list[_Buffer]:
    """Return ``buffers`` without their first ``count`` bytes; no byte is copied."""
    for index, buffer in enumerate(buffers):
        if count < len(buffer):
            return [memoryview(buffer)[count:], *buffers[index + 1 :]]
        count -= len(buffer)
    return []
