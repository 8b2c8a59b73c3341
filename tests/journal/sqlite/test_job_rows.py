"""Many rows in few statements: the same rows as with one statement each."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloadd.journal.sqlite import job_rows
from payloadd.journal.sqlite.schema import MIGRATIONS, migrate

if TYPE_CHECKING:
    import random

    from payloadd.journal.sqlite.job_rows import NewRow, PlacedRow, Range


def in_memory() -> sqlite3.Connection:
    """Return an empty journal without a file."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection, MIGRATIONS)
    return connection


def row(seq: int) -> NewRow:
    """Return a row that differs from those of other numbers."""
    return seq, bytearray(b"i%d" % seq), 1, bytearray(b"%d\n" % seq), seq * 3


def placed(seq: int) -> PlacedRow:
    """Return such a row whose lines are in a segment."""
    return seq, bytearray(b"i%d" % seq), 1, 7, seq * 10, 10, seq * 3


def seqs(connection: sqlite3.Connection) -> list[int]:
    """Return the numbers of all rows in order."""
    return [seq for (seq,) in connection.execute("SELECT seq FROM jobs ORDER BY seq")]


@pytest.mark.parametrize("count", [0, 1, 7, 64, 255, 1000])
def test_any_number_of_rows_is_inserted(count: int) -> None:
    """A request of an odd size would be accepted in part, or be refused for ever."""
    wanted = [row(seq) for seq in range(1, count + 1)]
    elsewhere = [placed(seq) for seq in range(1001, 1001 + count)]
    with closing(in_memory()) as connection:
        job_rows.insert(connection, wanted)
        job_rows.insert_placed(connection, elsewhere)
        assert connection.execute(job_rows.IN_RANGE, (0, 3000)).fetchall() == [
            *[(*one[:4], None, None, None, 0, one[4]) for one in wanted],
            *[(*one[:3], b"", *one[3:6], 0, one[6]) for one in elsewhere],
        ]


def test_a_commit_takes_few_statements() -> None:
    """Each statement may wait 5 ms for the busy main thread, and all requests with it."""
    statements: list[str] = []
    with closing(in_memory()) as connection:
        connection.set_trace_callback(statements.append)
        job_rows.insert(connection, [row(seq) for seq in range(1, 256)])
        job_rows.delete(connection, [(seq, seq) for seq in range(255, 0, -1) if seq % 50])
        assert len(statements) < 20
        assert seqs(connection) == [50, 100, 150, 200, 250]


@given(st.sets(st.integers(1, 60)), st.randoms(use_true_random=False))
def test_exactly_the_settled_rows_are_deleted(gone: set[int], rng: random.Random) -> None:
    """A waiting payload would be lost with its neighbours, or a stored one be stored twice."""
    ranges: list[Range] = []
    for seq in sorted(gone):
        # Some batches have several members, which are neighbours.
        if ranges and ranges[-1][1] == seq - 1 and rng.random() < 0.7:
            ranges[-1] = (ranges[-1][0], seq)
        else:
            ranges.append((seq, seq))
    rng.shuffle(ranges)
    with closing(in_memory()) as connection:
        job_rows.insert(connection, [row(seq) for seq in range(1, 61)])
        merged = job_rows.merge(ranges)
        job_rows.delete(connection, merged)
        assert seqs(connection) == sorted(set(range(1, 61)) - gone)
    assert [seq for first, last in merged for seq in range(first, last + 1)] == sorted(gone)
    assert all(one[1] + 1 < two[0] for one, two in pairwise(merged))
