"""What other processes see of jobs in blocks."""

from __future__ import annotations

import threading
from contextlib import closing
from typing import TYPE_CHECKING

from payloadd.journal.sqlite.blocks import Blocks
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.offline import Inspection
from payloadd.journal.sqlite.operations import Seal, Settle
from tests.journal.sqlite.damaging import change, verified
from tests.journal.sqlite.in_blocks import accepted, request
from tests.support.journal import (
    batch,
)

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from payloadd.model.job import Job


def test_another_process_counts_jobs_in_blocks(path: Path, database: Database) -> None:
    """`payloadd journal status` would show an empty journal, `verify` missing jobs."""
    database.open_streams(("default", "a"))
    requests = accepted(database, 3)
    other = request(11, 4, stream=1)
    database.commit([other])
    members = batch(*other.jobs[1:3])
    database.commit([Seal(members), Settle(batch(requests[0].jobs[0], sealed=False))])
    with Inspection.open(path.parent) as looking:
        status = looking.status()
    assert (status.jobs, status.payloads) == (6, 6)
    assert {name: one.jobs for name, one in status.streams.items()} == {"default": 2, "a": 4}
    assert {name: one.bytes for name, one in status.streams.items()} == {
        "default": 2 * 66,
        "a": 4 * 67,
    }
    assert status.oldest_seconds > 0
    assert verified(path) == []
    change(path, "DELETE FROM blocks WHERE number = 4")
    assert {one.table for one in verified(path)} == {"batches", "totals"}


def test_other_processes_read_while_jobs_move(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator would see damage that is not there."""
    monkeypatch.setattr(Blocks, "most_blocks", 8)
    monkeypatch.setattr(Blocks, "deleted_per_commit", 1)
    problems: list[object] = []
    ended = threading.Event()
    looks = 0

    def look() -> None:
        nonlocal looks
        while not ended.is_set():
            with Inspection.open(path.parent) as other:
                problems.extend(other.verify())
                status = other.status()
                if status.jobs != sum(one.jobs for one in status.streams.values()):
                    problems.append(status)
            looks += 1

    with closing(Database(path)) as database:
        database._connection.execute("PRAGMA synchronous = OFF")
        database.open_streams(("default", "a"))
        thread = threading.Thread(target=look)
        thread.start()
        waiting: list[Job] = []
        number = 1
        while looks < 15 and not problems:
            three = request(number, 3, stream=number % 2)
            number += 3
            database.commit([three])
            waiting += three.jobs
            if len(waiting) > 60:
                ends = [Settle(batch(one, sealed=False)) for one in waiting[1:60:2]]
                del waiting[1:60:2]
                database.commit(list(ends))
        ended.set()
        thread.join()
    assert problems == []
