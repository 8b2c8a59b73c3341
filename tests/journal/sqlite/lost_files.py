"""Delete, move and replace the files of an open journal."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Final

import pytest

from payloadd.errors import RefusedError
from payloadd.journal.sqlite.journal import Tuning
from payloadd.journal.sqlite.schema import FILE
from payloadd.journal.sqlite.segments import FOLDER
from tests.support.journal import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.journal import JournalRig

QUICK: Final = Tuning(retry_interval=0.02, maintenance_interval=0.02)
NEVER: Final = 1e9
SQLITE: Final = (FILE, f"{FILE}-wal", f"{FILE}-shm")
FILES: Final = {
    "database": (FILE,),
    "log": (f"{FILE}-wal",),
    "index": (f"{FILE}-shm",),
    "sqlite": SQLITE,
    "segments": (FOLDER,),
    "mark": ("journal.high",),
    "all": (*SQLITE, FOLDER, "journal.high"),
}
each_file = pytest.mark.parametrize("names", FILES.values(), ids=FILES)


def move(names: tuple[str, ...], source: Path, target: Path) -> None:
    """Move some files from one folder into another."""
    target.mkdir(exist_ok=True)
    for name in names:
        (source / name).rename(target / name)


def rename(source: Path, target: Path) -> None:
    """Rename a file, in the place of another one."""
    source.replace(target)


def delete(names: tuple[str, ...], folder: Path) -> None:
    """Delete some files."""
    for name in names:
        shutil.rmtree(folder / name) if name == FOLDER else (folder / name).unlink()


def left_by_a_kill(folder: Path, target: Path) -> Path:
    """Return the database file of a copy of STATE_DIR, as a killed process leaves it."""
    shutil.copytree(folder, target)
    return target / FILE


async def refused(rig: JournalRig) -> str:
    """Return why a request is refused; AssertionError if it is accepted."""
    with pytest.raises(RefusedError) as caught:
        await rig.accept(900)
    assert caught.value.code == "DISK_ERROR"
    return caught.value.detail


async def written_again(rig: JournalRig) -> None:
    """Wait until the loss of a file has been noticed, and the files are complete again."""
    await until(lambda: "journal" in rig.health.troubles)
    await until(lambda: not rig.health.troubles)
