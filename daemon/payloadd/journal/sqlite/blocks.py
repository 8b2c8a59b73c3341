"""The blocks of a running daemon: which jobs are in them, and when each block is deleted.

Nearly all jobs are stored within seconds. Such a job is written once, in its block, and never gets
a row in ``jobs``: when all jobs of a block are settled, the block is deleted. In between, the
settled ranges of a block with other jobs are in the table ``stored``, as those of rows that wait
for deletion are (see ``deletion.py``).

The number of blocks is bounded, and so are their bytes and what is kept of them in memory. Beyond
that the oldest ones are unpacked into rows of ``jobs`` (see ``block_rows.py``): a long backlog is
in rows. Whatever needs a row of a job, such as a dead letter, has its block unpacked first.

What is in memory changes only after a commit, with ``keep``. Methods raise sqlite3.Error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from payloadd.journal.sqlite import block_rows, job_rows
from payloadd.journal.sqlite.block_format import lost_rows, pack, read_head, rows_of
from payloadd.journal.sqlite.checksum import of_values
from payloadd.journal.sqlite.live_blocks import LiveBlock, NotedRange, StreamRuns
from payloadd.model.streams import stream_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from payloadd.journal.sqlite.block_format import NewBlock
    from payloadd.journal.sqlite.job_rows import Range, Row
    from payloadd.model.job import Job

_BLOCK_BYTES: Final = 64 * 2**10
"""Bytes of lines from which a block is followed by another one of the same commit."""
_SHARE: Final = 16
"""Each commit deletes at least one in so many of the waiting blocks; see ``deletion.py``."""

_NOTE: Final = "INSERT INTO stored (first, last, crc) VALUES (?, ?, ?)"


class _Commit:
    """What a commit has written, and memory does not show so far."""

    def __init__(self) -> None:
        self.written: list[LiveBlock] = []
        self.settled: list[Range] = []
        self.less: dict[LiveBlock, int] = {}
        """How many jobs of each block are settled."""
        self.noted: list[NotedRange] = []
        self.deleted: list[LiveBlock] = []
        self.done: list[LiveBlock] | None = None
        """The blocks that wait for deletion from now on; None: unchanged."""
        self.forgotten: list[NotedRange] = []


class Blocks:
    """The blocks of one journal."""

    most_blocks = 4096
    """Blocks from which the oldest ones are unpacked."""
    most_runs = 2**16
    """The same for the ranges of jobs that are kept in memory."""
    most_bytes = 64 * 2**20
    """The same for the bytes of their jobs."""
    jobs_at_a_time = 1024
    """Jobs that are unpacked in one transaction, about: commits wait for it."""
    bytes_at_a_time = 2**20
    """The same in bytes."""
    deleted_per_commit = 32
    """Blocks that a commit deletes at least, if so many wait."""

    def __init__(self) -> None:
        self._blocks: dict[int, LiveBlock] = {}
        """By number, in ascending order."""
        self._streams: dict[int, StreamRuns] = {}
        self._done: list[LiveBlock] = []
        """The blocks all of whose jobs are settled; they wait for deletion."""
        self._bytes = 0
        self._runs = 0
        self._noted: dict[int, NotedRange] = {}
        """By last ``seq``."""
        self._commit = _Commit()
        self.missed = 0
        """Blocks that the last call of ``settle`` should have deleted and did not find."""
        self.unpacked: Callable[[Sequence[Row]], object] = len
        """Called with the rows of unpacked jobs, in order of ``seq``, once they are committed."""

    @property
    def is_full(self) -> bool:
        """Whether the oldest blocks have to be unpacked."""
        return (
            len(self._blocks) >= self.most_blocks
            or self._runs >= self.most_runs
            or self._bytes >= self.most_bytes
        )

    @property
    def deletion_waits(self) -> bool:
        """Whether there are blocks that can be deleted."""
        return bool(self._done)

    def oldest_by_stream(self) -> dict[int, tuple[int, int]]:
        """Return, for each stream with jobs in blocks, the lowest ``seq``, and its time in Unix ms.

        To the time between two jobs of one stream in one commit.
        """
        streams = self._streams.items()
        return {one: (runs.firsts[0], runs.entries[0][3]) for one, runs in streams if runs.entries}

    def noted(self) -> list[Range]:
        """Return the ranges in ``stored`` whose jobs are in blocks."""
        return [(one.first, one.last) for one in self._noted.values()]

    def has(self, seq: int) -> bool:
        """Return whether a job is in a block and not settled."""
        return self.has_any(seq, seq)

    def has_any(self, first: int, last: int) -> bool:
        """Return whether a job of a range of one stream is in a block and not settled."""
        runs = self._streams.get(stream_of(first))
        if runs is None:
            return False
        where = runs.within(first, last)
        return bool(runs.entries[where])

    def write(self, connection: sqlite3.Connection, jobs: list[Job], number: int) -> None:
        """Write jobs as blocks; ``number`` is above those of all blocks so far."""
        jobs.sort()
        block = pack(number, jobs)
        if len(block.lines) <= _BLOCK_BYTES:
            self._write(connection, block, jobs)
            return
        start = size = 0
        for end, job in enumerate(jobs, 1):
            size += len(job.lines)
            if size >= _BLOCK_BYTES or end == len(jobs):
                some = jobs[start:end]
                self._write(connection, pack(number + start, some), some)
                start, size = end, 0

    def _write(self, connection: sqlite3.Connection, block: NewBlock, jobs: Sequence[Job]) -> None:
        block_rows.insert(connection, block)
        since = []
        index = 0
        for first, last in block.runs:
            since.append(jobs[index].id.int >> 80)
            index += last - first + 1
        self._commit.written.append(LiveBlock(block, since, index))

    def settle(self, connection: sqlite3.Connection, settled: Sequence[Range]) -> list[Range]:
        """Remove settled jobs from their blocks, and delete some blocks that have no others.

        Returns the ranges whose jobs are not in blocks.
        """
        self.missed = 0
        if not self._blocks or not (settled or self._done):
            return [*settled]
        commit = self._commit
        rows: list[Range] = []
        for first, last in job_rows.merge(settled):
            self._split(first, last, rows)
        candidates = [*self._done, *[one for one, less in commit.less.items() if less == one.left]]
        due = max(self.deleted_per_commit, len(candidates) // _SHARE)
        commit.deleted, commit.done = candidates[:due], candidates[due:]
        self._delete(connection)
        if commit.noted:
            connection.executemany(
                _NOTE,
                [(one.first, one.last, of_values((one.last, one.first))) for one in commit.noted],
            )
        return rows

    def _split(self, first: int, last: int, rows: list[Range]) -> None:
        """Divide a settled range into those parts that are in blocks and those that are not."""
        commit = self._commit
        runs = self._streams.get(stream_of(first))
        found = [] if runs is None else runs.entries[runs.within(first, last)]
        if found:
            commit.settled.append((first, last))
        noted = None
        after = first
        for low, high, block, _ in found:
            start, end = max(low, first), min(high, last)
            if after < start:
                rows.append((after, start - 1))
                noted = None
            if noted is None:
                noted = NotedRange(start, end)
                commit.noted.append(noted)
            noted.last = end
            noted.blocks.append(block)
            commit.less[block] = commit.less.get(block, 0) + end - start + 1
            after = end + 1
        if after <= last:
            rows.append((after, last))

    def _delete(self, connection: sqlite3.Connection) -> None:
        """Delete blocks, and the ranges in ``stored`` that have no blocks any more."""
        commit = self._commit
        if not commit.deleted:
            return
        deleted = set(commit.deleted)
        for one in commit.noted:
            one.blocks = [block for block in one.blocks if block not in deleted]
        commit.noted = [one for one in commit.noted if one.blocks]
        commit.forgotten = _without_blocks(commit.deleted)
        numbers = [block.number for block in commit.deleted]
        self.missed = len(numbers) - block_rows.delete(connection, numbers)
        job_rows.delete_each(connection, "stored", "last", [one.last for one in commit.forgotten])

    def delete_done(self, connection: sqlite3.Connection) -> None:
        """Delete all blocks without jobs that are not settled, in a transaction."""
        if self._done:
            self._unpack(connection, self._done)

    def keep(self) -> None:
        """Note what was written: it is committed."""
        commit, self._commit = self._commit, _Commit()
        for first, last in commit.settled:
            self._cut(first, last)
        for block, less in commit.less.items():
            block.left -= less
        for one in commit.noted:
            self._noted[one.last] = one
            one.left = len(one.blocks)
            for block in one.blocks:
                block.noted.append(one)
            one.blocks = []
        self._forget(commit.deleted, commit.forgotten)
        if commit.done is not None:
            self._done = commit.done
        for block in commit.written:
            self._add(block)

    def drop(self) -> None:
        """Forget what was written: it is rolled back."""
        self._commit = _Commit()

    def _cut(self, first: int, last: int) -> None:
        runs = self._streams[stream_of(first)]
        before = len(runs.entries)
        runs.cut(first, last)
        self._runs += len(runs.entries) - before

    def _add(self, block: LiveBlock) -> None:
        self._blocks[block.number] = block
        self._bytes += block.size
        self._runs += len(block.runs)
        streams = self._streams
        for (first, last), since in zip(block.runs, block.since, strict=True):
            stream = stream_of(first)
            runs = streams.get(stream)
            if runs is None:
                runs = streams[stream] = StreamRuns()
            runs.firsts.append(first)
            runs.entries.append((first, last, block, since))

    def _forget(self, blocks: Sequence[LiveBlock], noted: Sequence[NotedRange]) -> None:
        """Forget deleted blocks and ranges that are not in ``stored`` any more."""
        for block in blocks:
            del self._blocks[block.number]
            self._bytes -= block.size
            for one in block.noted:
                one.left -= 1
        for one in noted:
            del self._noted[one.last]

    def rows(self, connection: sqlite3.Connection, first: int, last: int) -> Iterator[Row]:
        """Yield the jobs of a range of one stream that are in blocks, as rows of ``jobs``."""
        runs = self._streams.get(stream_of(first))
        if runs is None:
            return
        for low, high, block, _ in runs.entries[runs.within(first, last)]:
            yield from self._read(connection, block, max(low, first), min(high, last))

    def _read(
        self, connection: sqlite3.Connection, block: LiveBlock, first: int, last: int
    ) -> Iterator[Row]:
        """Return the jobs of a block as rows, damaged ones where its head is damaged."""
        number, crc, head, lines = block_rows.read(connection, block.number)
        known = read_head(number, crc, head)
        if known is None or known.runs != block.runs:
            return (row for row in lost_rows(block.runs) if first <= row[0] <= last)
        return rows_of(known, lines, first, last)

    def unpack_oldest(self, connection: sqlite3.Connection) -> None:
        """Unpack some of the oldest blocks, in a transaction."""
        self._unpack(connection, self._some(self._blocks.values()))

    def _some(self, blocks: Iterable[LiveBlock]) -> list[LiveBlock]:
        """Return the first ones, as many as are unpacked in one transaction."""
        jobs = size = 0
        some: list[LiveBlock] = []
        for block in blocks:
            jobs += block.left
            size += block.size if block.left else 0
            some.append(block)
            if jobs >= self.jobs_at_a_time or size >= self.bytes_at_a_time:
                break
        return some

    def unpack_all(self, connection: sqlite3.Connection) -> None:
        """Unpack all blocks, some of them in each transaction."""
        while self._blocks:
            self.unpack_oldest(connection)

    def unpack(self, connection: sqlite3.Connection, ranges: Iterable[Range]) -> None:
        """Unpack the blocks that have jobs of these ranges, some of them in each transaction."""
        blocks: dict[int, LiveBlock] = {}
        for first, last in ranges:
            runs = self._streams.get(stream_of(first))
            if runs is not None:
                for _, _, block, _ in runs.entries[runs.within(first, last)]:
                    blocks[block.number] = block
        left = iter(blocks.values())
        while some := self._some(left):
            self._unpack(connection, some)

    def _unpack(self, connection: sqlite3.Connection, blocks: Sequence[LiveBlock]) -> None:
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            rows = [row for block in blocks if block.left for row in self._left(connection, block)]
            rows.sort(key=lambda row: row[0])
            block_rows.insert_jobs(connection, rows)
            forgotten = _without_blocks(blocks)
            block_rows.delete(connection, [block.number for block in blocks])
            lasts = [one.last for one in forgotten]
            job_rows.delete_each(connection, "stored", "last", lasts)
        self._forget(blocks, forgotten)
        self.unpacked(rows)
        gone = set(blocks)
        self._done = [block for block in self._done if block not in gone]
        for block in blocks:
            for first, last in block.runs:
                self._cut(first, last)

    def _left(self, connection: sqlite3.Connection, block: LiveBlock) -> list[Row]:
        """Return those jobs of a block that are not settled, as rows."""
        rows = list(self._read(connection, block, block.runs[0][0], block.runs[-1][1]))
        return rows if len(rows) == block.left else [row for row in rows if self.has(row[0])]


def _without_blocks(deleted: Iterable[LiveBlock]) -> list[NotedRange]:
    """Return the ranges in ``stored`` of which these are the last blocks."""
    less: dict[NotedRange, int] = {}
    for block in deleted:
        for one in block.noted:
            less[one] = less.get(one, 0) + 1
    return [one for one, count in less.items() if count == one.left]
