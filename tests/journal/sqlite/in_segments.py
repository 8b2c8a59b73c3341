"""Helpers for tests of jobs in segments."""

from __future__ import annotations

from typing import TYPE_CHECKING

from payloadd.journal.sqlite import segments
from payloadd.journal.sqlite.operations import Settle
from payloadd.journal.sqlite.segments import FOLDER
from tests.support.journal import append, batch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from payloadd.journal.sqlite.database import Database
    from payloadd.journal.sqlite.operations import Append
    from payloadd.model.job import Job


def segments_of(path: Path) -> list[int]:
    """Return the names of all segments of the journal at ``path``."""
    return segments.names(path.parent / FOLDER)


def alone(jobs: Sequence[Job]) -> list[Settle]:
    """Return operations that settle each job by itself."""
    return [Settle(batch(one, sealed=False)) for one in jobs]


def commit_each(database: Database, numbers: Iterable[int]) -> list[Append]:
    """Commit a request of one job for each number, each in a commit of its own."""
    requests = [append(number) for number in numbers]
    for request in requests:
        database.commit([request])
    return requests
