"""Journals whose jobs are in blocks, and what they have."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from payloadd.journal.sqlite.schema import FILE
from payloadd.model.streams import first_seq
from tests.support.journal import append

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from payloadd.journal.sqlite.database import Database
    from payloadd.journal.sqlite.operations import Append
    from payloadd.model.job import Job


def request(first: int, count: int = 1, stream: int = 0) -> Append:
    """Return a request of a stream, with the ids ``first`` and those after it."""
    one = append(first, count=count)
    one.stream = stream
    return one


def counts(path: Path) -> tuple[int, int, int]:
    """Return how many rows ``jobs`` and ``blocks`` have, and how many ranges ``stored``."""
    with closing(sqlite3.connect(path)) as other:
        tables = ("jobs", "blocks", "stored WHERE last > 0 AND last < 1 << 61")
        queries = [f"SELECT count(*) FROM {table}" for table in tables]
        one, two, three = (other.execute(query).fetchone()[0] for query in queries)
        return one, two, three


def seqs(database: Database, stream: int = 0) -> list[int]:
    """Return the numbers of all jobs of a stream that a page returns."""
    return [one.seq for one in database.page(first_seq(stream), 10_000, 10**9)]


def killed(path: Path, name: str) -> Path:
    """Return the journal as a kill at this moment would leave it."""
    folder = path.parent.parent / f"{path.parent.name}-{name}"
    return shutil.copytree(path.parent, folder) / FILE


def accepted(database: Database, *counts_: int, first: int = 1) -> list[Append]:
    """Commit requests of so many jobs each, one after the other; return them."""
    requests = []
    for count in counts_:
        requests.append(append(first, count=count))
        database.commit([requests[-1]])
        first += count
    return requests


def jobs_of(requests: Sequence[Append]) -> list[Job]:
    """Return the jobs of all requests."""
    return [one for request in requests for one in request.jobs]
