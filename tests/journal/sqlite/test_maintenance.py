"""Maintenance while the disk fails: it ends nothing, and is tried again."""

from __future__ import annotations

import errno
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
import trio

from payloadd.journal.sqlite import segments
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.journal import Tuning
from payloadd.journal.sqlite.operations import Settle
from payloadd.journal.sqlite.schema import FILE
from payloadd.journal.sqlite.segments import FOLDER
from tests.support.journal import (
    TEST_TIMEOUT,
    append,
    batch,
    compact_segments,
    disk_full,
    make_rig,
    open_rig,
    until,
)

_unlink = Path.unlink


async def test_maintenance_behind_a_hanging_commit_does_not_delay_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a daemon that is stopped while its disk hangs ends with a traceback."""
    tuning = Tuning(maintenance_interval=0.02, last_commit_timeout=0.1)
    rig = make_rig(tmp_path / FILE, tuning=tuning)
    thread = rig.journal._thread
    looking, go_on = threading.Event(), threading.Event()

    def look() -> int:
        looking.set()
        assert go_on.wait(TEST_TIMEOUT)
        return -1  # no other process has written: compaction is next

    monkeypatch.setattr(rig.database, "foreign_changes", look)
    with trio.fail_after(TEST_TIMEOUT):
        async with rig.journal.running(), trio.open_nursery() as nursery:
            await until(looking.is_set)
            rig.database.compaction._live[1] = 0
            rig.database.hold()
            nursery.start_soon(rig.accept, 1)
            await until(lambda: thread._writing)
            go_on.set()
            await rig.database.held()
            await until(lambda: len(thread._writing) == 2)
            nursery.cancel_scope.cancel()
        await rig.journal.aclose()
        rig.database.release_gate()
        await until(lambda: bool(rig.database.commits))
    rig.database.close()


@pytest.mark.usefixtures("all_large")
def test_removing_a_segment_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise one disk error costs 16 MiB until the next start, or keeps all segments."""
    monkeypatch.setattr("payloadd.journal.sqlite.segments.SEGMENT_BYTES", 1)
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
                broken.add(segments.path_of(folder, name))
            for _ in range(3):
                with pytest.raises(sqlite3.OperationalError, match="Input/output error"):
                    compact_segments(database)
        assert segments.names(folder) == [1, 3, 4]
        compact_segments(database)
        assert segments.names(folder) == [4]


@pytest.mark.usefixtures("all_large")
async def test_stored_rows_are_deleted_before_a_full_disk_accepts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the disk is full again at once: one outage becomes two."""
    monkeypatch.setattr("payloadd.journal.sqlite.segments.SEGMENT_BYTES", 1)
    tuning = Tuning(maintenance_interval=TEST_TIMEOUT, retry_interval=0.02)
    async with open_rig(tmp_path / "j", tuning=tuning) as rig:
        for number in range(1, 5):
            await rig.accept(number)
        jobs = [rig.channel.receive_nowait() for _ in range(4)]
        rig.database.write_error = disk_full
        for stored in jobs[:3]:
            rig.journal.settle(batch(stored, sealed=False))
        await until(lambda: rig.database.failures > 1)
        assert segments.names(tmp_path / FOLDER) == [1, 2, 3, 4]
        rig.database.write_error = None
        await until(lambda: not rig.health.troubles)
        assert segments.names(tmp_path / FOLDER) == [4]
