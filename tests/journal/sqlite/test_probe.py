"""A journal after a failed commit: the rows in SQLite's log must not come back."""

from __future__ import annotations

import shutil
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.schema import FILE
from payloadd.journal.sqlite.segments import FOLDER
from tests.support.journal import append, contents, job

if TYPE_CHECKING:
    from pathlib import Path

_LOG = f"{FILE}-wal"


def as_a_crash_leaves_it(folder: Path, name: str) -> Path:
    """Return a copy of a STATE_DIR, without SQLite's shared memory."""
    copy = folder.with_name(name)
    copy.mkdir()
    for file in (FILE, _LOG):
        shutil.copy(folder / file, copy)
    shutil.copytree(folder / FOLDER, copy / FOLDER)
    return copy


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a STATE_DIR that copies can be made beside."""
    made = tmp_path / "state"
    made.mkdir()
    return made


def test_a_probe_writes_to_the_disk(folder: Path) -> None:
    """Otherwise the trouble ends although the disk refuses every write."""
    with closing(Database(folder / FILE)) as database:
        database.commit([append(1)])
        for _ in range(3):
            before = (folder / _LOG).read_bytes()
            database.probe()
            assert (folder / _LOG).read_bytes() != before


@pytest.mark.usefixtures("all_large")
def test_a_failed_commit_does_not_come_back_after_a_probe(folder: Path) -> None:
    """Otherwise a crash brings back a job whose payload is gone, and no page can be read."""
    with closing(Database(folder / FILE)) as database:
        database.commit([append(1)])
        # A commit whose sync fails leaves its rows in the log, although SQLite has rolled it
        # back. Here the rows come from a copy whose commit succeeded.
        copy = as_a_crash_leaves_it(folder, "copy")
        with closing(Database(copy / FILE)) as other:
            other.commit([append(2)])
            shutil.copy(copy / _LOG, folder)
        database._segments.write([b"2\n"], 2)
        with closing(Database(as_a_crash_leaves_it(folder, "before") / FILE)) as crashed:
            assert crashed.totals.jobs == 2, "it would come back"

        database.probe()
        with closing(Database(as_a_crash_leaves_it(folder, "behind") / FILE)) as crashed:
            assert crashed.totals.jobs == 1
            assert contents(crashed.page(0, 9, 99)) == contents([job(1)])
