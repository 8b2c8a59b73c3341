"""Folders whose names survive a power cut: a name is on the disk once its parent is synced."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def make_folder(folder: Path, mode: int) -> None:
    """Make ``folder`` with those above it, if need be, all synced (fsync(2)). Raises OSError.

    ``mode``, less the umask, is that of every folder that is made.
    """
    folder = folder.absolute()
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    for one in reversed(made or [folder]):
        one.mkdir(mode, exist_ok=True)
    for one in made:
        sync_folder(one.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names in ``folder`` to the disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
