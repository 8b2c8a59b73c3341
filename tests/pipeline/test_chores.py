"""What is done every second, where the disk fails: it ends nothing, and is tried again."""

from __future__ import annotations

import errno
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
import trio

from daemon.pipeline import chores, group_commit, segment_files
from daemon.pipeline.database import Database
from daemon.pipeline.operations import Settle
from daemon.pipeline.schema import FILE
from daemon.pipeline.segment_files import FOLDER
from tests.pipeline.rig import (
    PATIENCE,
    a_round,
    append,
    batch,
    disk_full,
    make_desk,
    open_desk,
    until,
)

_unlink = Path.unlink


async def test_chores_behind_a_commit_that_hangs_do_not_spoil_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that is stopped while its disk hangs would end with a traceback and no drain."""
    monkeypatch.setattr(chores, "_BETWEEN", 0.02)
    monkeypatch.setattr(group_commit, "_LAST_COMMIT", 0.1)
    desk = make_desk(tmp_path / FILE)
    thread = desk.journal._thread
    looking, go_on = threading.Event(), threading.Event()

    def look() -> int:
        looking.set()
        assert go_on.wait(PATIENCE)
        return -1  # nobody else has written: the sweep is next

    monkeypatch.setattr(desk.database, "foreign_changes", look)
    with trio.fail_after(PATIENCE):
        async with desk.journal.at_work(), trio.open_nursery() as nursery:
            await until(looking.is_set)
            desk.database.sweep._live[1] = 0
            desk.database.hold()
            nursery.start_soon(desk.take, 1)
            await until(lambda: thread._writing)
            go_on.set()
            await desk.database.held()
            await until(lambda: len(thread._writing) == 2)
            nursery.cancel_scope.cancel()
        await desk.journal.aclose()
        desk.database.let_go()
        await until(lambda: bool(desk.database.commits))
    desk.database.close()


@pytest.mark.usefixtures("all_large")
def test_a_segment_that_cannot_be_removed_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bad moment of the disk would cost 16 MiB until the next start, or keep all others."""
    monkeypatch.setattr("daemon.pipeline.segments.SEGMENT_BYTES", 1)
    folder = tmp_path / FOLDER
    broken: set[Path] = set()

    def unlink(path: Path, *, missing_ok: bool = False) -> None:
        if path in broken:
            raise OSError(errno.EIO, "Input/output error", str(path))
        _unlink(path, missing_ok=missing_ok)

    with closing(Database(tmp_path / FILE)) as database:
        requests = [append(number) for number in range(1, 5)]
        for one in requests:
            database.commit([one])
        database.commit([Settle(batch(one.jobs[0], sealed=False)) for one in requests[:3]])
        with monkeypatch.context() as disk:
            disk.setattr(Path, "unlink", unlink)
            for name in (1, 3):
                broken.add(segment_files.path_of(folder, name))
            for _ in range(3):
                with pytest.raises(sqlite3.OperationalError, match="Input/output error"):
                    a_round(database)
        assert segment_files.names(folder) == [1, 3, 4]
        a_round(database)
        assert segment_files.names(folder) == [4]


@pytest.mark.usefixtures("all_large")
async def test_a_full_disk_that_is_well_again_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was stored meanwhile would fill it again at once: one outage would be two."""
    monkeypatch.setattr("daemon.pipeline.segments.SEGMENT_BYTES", 1)
    monkeypatch.setattr(chores, "_BETWEEN", PATIENCE)
    monkeypatch.setattr(group_commit, "_AFTER_TROUBLE", 0.02)
    async with open_desk(tmp_path / "j") as desk:
        for number in range(1, 5):
            await desk.take(number)
        jobs = [desk.channel.receive_nowait() for _ in range(4)]
        desk.database.write_error = disk_full
        for stored in jobs[:3]:
            desk.journal.settle(batch(stored, sealed=False))
        await until(lambda: desk.database.failures > 1)
        assert segment_files.names(tmp_path / FOLDER) == [1, 2, 3, 4]
        desk.database.write_error = None
        await until(lambda: not desk.health.troubles)
        assert segment_files.names(tmp_path / FOLDER) == [4]
