"""Bounds of what blocks cost: in memory, in a transaction, in a status."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest.mock import patch

from payloadd.journal.sqlite.block_format import read_head
from payloadd.journal.sqlite.offline import Inspection
from payloadd.journal.sqlite.operations import Bury
from tests.journal.sqlite.in_blocks import accepted, jobs_of, request, seqs
from tests.support.journal import batch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from payloadd.journal.sqlite.database import Database


def test_commits_that_are_larger_than_what_is_unpacked_at_a_time_keep_the_bound(
    database: Database,
) -> None:
    """A long backlog would be in blocks, which a start has to unpack, and in memory."""
    database.blocks.most_bytes, database.blocks.bytes_at_a_time = 20_000, 5000
    with patch("payloadd.journal.sqlite.blocks._BLOCK_BYTES", 50):
        for first in range(1, 2001, 200):
            database.commit([request(first, 200)])
            assert database.blocks._bytes < 20_000 + 200 * 80
    assert database.totals.jobs == len(seqs(database)) == 2000


def test_a_large_dead_letter_is_unpacked_in_several_transactions(database: Database) -> None:
    """All requests would wait for it, and a disk that is nearly full has no space for it."""
    jobs = jobs_of(accepted(database, *[50] * 20))
    database.blocks.jobs_at_a_time = 100
    sizes: list[int] = []

    def count(rows: Sequence[object]) -> None:
        sizes.append(len(rows))

    database.blocks.unpacked = count
    database.commit([Bury(batch(*jobs, sealed=False), "C", "r")])
    assert sizes == [100] * 10
    assert database.totals.jobs == 0
    assert database.totals.dead_payloads == 1000


def test_the_status_of_many_streams_reads_each_block_once(path: Path, database: Database) -> None:
    """With 64 streams it took many seconds, in which SQLite's log could not be checkpointed."""
    names = ("default", *[f"s{number}" for number in range(1, 9)])
    database.open_streams(names)
    for first in range(1, 400, 100):
        database.commit([request(first + 10 * stream, 2, stream) for stream in range(9)])
    with (
        Inspection.open(path.parent) as inspection,
        patch("payloadd.journal.sqlite.block_rows.read_head", wraps=read_head) as read,
    ):
        status = inspection.status()
    assert {name: one.jobs for name, one in status.streams.items()} == dict.fromkeys(names, 8)
    assert read.call_count == 4
