"""Disks that fill up: a small tmpfs, where mounting is allowed; and a quota, which always works."""

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
        """Leave no room for the process, which is the only one that matters."""
        ...

    def free(self, pid: int) -> None:
        """Give it room again."""
        ...


class SmallDisk:
    """A tmpfs of its own; it is filled by somebody else's file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self, pid: int) -> None:  # noqa: ARG002 - it is full for everybody
        """Write a file until nothing more fits, to the last byte."""
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

    RLIMIT_FSIZE is 0 meanwhile, see setrlimit(2). Python ignores the signal that goes with it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self, pid: int) -> None:
        """Let no file be written."""
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

    def free(self, pid: int) -> None:
        """Let files be as large as they like."""
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)


@contextmanager
def small_disk(path: Path, size: str = "2m") -> Iterator[SmallDisk]:
    """Mount one at ``path``; the test is skipped where that is not allowed."""
    path.mkdir()
    if os.geteuid() != 0 or not _mount("-t", "tmpfs", "-o", f"size={size}", "none", str(path)):
        pytest.skip("mounting a tmpfs takes root and CAP_SYS_ADMIN; see the tests with a quota")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def make_read_only(path: Path) -> None:
    """Mount ``path``, which is a mount point, again, for reading only."""
    assert _mount("-o", "remount,ro", str(path))


def _mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], check=False, capture_output=True).returncode == 0
