"""Full disks: a small tmpfs, if mounting is allowed, or a limit of file sizes."""

from __future__ import annotations

import os
import resource
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_BLOCK: Final = 65536


class Disk(Protocol):
    """A file system for a STATE_DIR."""

    path: Path

    def fill(self, pid: int) -> None:
        """Leave no free space for the process."""
        ...

    def free(self, pid: int) -> None:
        """Give the process free space again."""
        ...


class SmallDisk:
    """A tmpfs, which a file of the test fills."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self, pid: int) -> None:  # noqa: ARG002 - it is full for all processes
        """Write a file until not one more byte fits."""
        with self._ballast.open("ab", buffering=0) as file:
            size = _BLOCK
            while size:
                try:
                    file.write(bytes(size))
                except OSError:
                    size //= 2

    def free(self, pid: int) -> None:  # noqa: ARG002 - as above
        """Delete the file."""
        self._ballast.unlink()


class Quota:
    """A folder on any disk: the kernel refuses the process every write to a file.

    RLIMIT_FSIZE is 0 then, see setrlimit(2). Python ignores the signal SIGXFSZ.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self, pid: int) -> None:
        """Make every write to a file fail."""
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

    def free(self, pid: int) -> None:
        """Allow files of any size."""
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)


@contextmanager
def small_disk(path: Path, size: str = "2m") -> Iterator[SmallDisk]:
    """Mount a small tmpfs at ``path``; skips the test if that is not allowed."""
    path.mkdir()
    if os.geteuid() != 0 or not _mount("-t", "tmpfs", "-o", f"size={size}", "none", str(path)):
        pytest.skip("mounting a tmpfs needs root and CAP_SYS_ADMIN; see the tests with a quota")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def make_read_only(path: Path) -> None:
    """Remount the mount point ``path`` read-only."""
    assert _mount("-o", "remount,ro", str(path))


def _mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], check=False, capture_output=True).returncode == 0
