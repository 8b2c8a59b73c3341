"""Compaction: disk space of segments is freed by unlinking whole files, or is used again.

Jobs are stored in about the order in which they came, so most segments lose all their jobs by
themselves, the oldest first. A few jobs that stay (dead letters, or a batch that its store refuses
for the moment) would each keep a segment of many MiB: their bytes are moved into their rows.
"""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Final

from payloadd.journal.sqlite import segment_rows, segments
from payloadd.journal.sqlite.damage import Finding
from payloadd.journal.sqlite.segments import SegmentSpan

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from payloadd.journal.sqlite.damage import Findings
    from payloadd.journal.sqlite.job_rows import Range
    from payloadd.journal.sqlite.segments import Segments

_MOSTLY_DEAD: Final = 4
"""Jobs are moved out of a segment when at most one of so many of its bytes is alive, and none of
its jobs was stored since the last check."""
_UNKNOWN: Final = -1
_OLDEST: Final = 4
"""Segments that are looked at for one without jobs: dead letters may be in the very oldest."""

_ANY: Final = "SELECT 1 FROM jobs WHERE segment = ? LIMIT 1"
# Without the index, which may be damaged: a segment that was unlinked cannot be brought back.
_SURELY_ANY: Final = """
    SELECT 1 FROM jobs NOT INDEXED WHERE seq BETWEEN ? AND ? AND segment = ? LIMIT 1
"""
# Rows that wait for deletion (see deletion.py) count as alive. They are deleted between two checks.
_LIVE: Final = "SELECT coalesce(sum(size), 0) FROM jobs WHERE segment = ?"
_NEGATED: Final = (-(2**62), 0)
_RANGES_PER_QUERY: Final = 100
# CROSS JOIN: the ranges first, then the rows of each by number.
_IN_RANGES: Final = """
    WITH ranges(first, last) AS (VALUES %s)
    SELECT DISTINCT segment FROM ranges CROSS JOIN jobs NOT INDEXED
    WHERE seq BETWEEN first AND last AND segment IS NOT NULL
"""
_ROWS: Final = "SELECT seq, segment, start, size FROM jobs WHERE segment = ?"
_MOVE: Final = """
    UPDATE jobs SET lines = ?, segment = NULL, start = NULL, size = NULL WHERE seq = ?
"""


class Compaction:
    """The segments that have lost jobs and are to be checked. Methods raise sqlite3.Error.

    A segment that no job has left since its last check is not checked again: a large backlog costs
    nothing.
    """

    bytes_per_move = 2**20
    """Bytes that one commit moves into rows at most: other commits wait for it."""
    least_file_bytes = 2**20
    """Bytes from which the current segment is unlinked too once it is dead."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        state_dir: Path,
        files: Segments,
        findings: Findings,
    ) -> None:
        self._connection = connection
        self._findings = findings
        self._folder = state_dir
        self._segments = files
        self._live: dict[int, int] = {}
        """The segments to check, and how many bytes were alive in each at its last check."""
        self._todo: list[int] = []
        """The segments that are left of the current round, the next one last."""
        self._keeps_one = False
        """Whether this round leaves the next segment without jobs, for a new one."""
        self._writes = 0
        """``Segments.writes`` at the beginning of the last round."""

    def recheck_all(self) -> None:
        """Have every segment checked in the next round."""
        self._live = dict.fromkeys(self._segments.names, _UNKNOWN)

    def recheck(self, ranges: Iterable[Range]) -> None:
        """Have the segments that may have held these jobs checked in the next round."""
        if self._segments.names:
            for first, last in ranges:
                for name in self._segments.within(first, last):
                    self._live.setdefault(name, _UNKNOWN)

    def recheck_shared(self, ranges: Sequence[Range]) -> None:
        """Have the segments that hold these jobs checked in the next round.

        Asks the rows, because the names do not tell it where segments have jobs of several streams.
        """
        for start in range(0, len(ranges) if self._segments.names else 0, _RANGES_PER_QUERY):
            some = ranges[start : start + _RANGES_PER_QUERY]
            query = _IN_RANGES % ", ".join(["(?, ?)"] * len(some))
            for (name,) in self._connection.execute(query, list(chain.from_iterable(some))):
                if name in self._segments.names:
                    self._live.setdefault(name, _UNKNOWN)

    @property
    def has_work(self) -> bool:
        """Whether there are segments to check."""
        return bool(self._live)

    def begin(self) -> None:
        """Begin a round of steps, about a second after the last round."""
        # Steps take the last entry. A segment that failed is the last of ``_live``, so the others
        # come before it.
        self._todo = list(reversed(self._live))
        self._keeps_one = self._segments.writes != self._writes
        self._writes = self._segments.writes

    def step(self) -> bool:
        """Unlink one segment, or move some jobs out of one; returns whether there may be more."""
        # The bytes of a commit whose outcome is unknown may be alive: a crash may bring its rows
        # back.
        while self._todo and not self._segments.in_doubt:
            name = self._todo.pop()
            if name not in self._segments.names:  # its file is that of another segment by now
                self._live.pop(name, None)
            elif self._check(name):
                return True
        return False

    def find_replaceable(self) -> None:
        """Find a segment without rows for the next new segment to replace, once this one is full.

        Call it after a commit, outside of any transaction. Errors are left to the steps, which find
        them too.
        """
        files = self._segments
        if not files.is_full or files.replaceable is not None:
            return
        with suppress(sqlite3.Error):
            for name in files.names[:_OLDEST]:
                # Without a query for segments that no job has left: small jobs alone leave this one
                # full for many commits.
                if name in self._live and name != files.current and self._is_dead(name):
                    files.replaceable = name
                    return

    def unlink_dead(self) -> None:
        """Unlink all segments without a job."""
        for name in [] if self._segments.in_doubt else list(self._segments.names):
            if self._is_dead(name):
                self._segments.unlink(name)

    def _is_dead(self, name: int) -> bool:
        """Return whether no row refers to a segment, by the index and by the rows themselves."""
        row = self._connection.execute(_ANY, (name,)).fetchone()
        return row is None and self._is_surely_dead(name)

    def _unlink(self, name: int) -> None:
        """Unlink a segment, if no row refers to it by the rows themselves too."""
        if self._is_surely_dead(name):
            self._segments.unlink(name)

    def _is_surely_dead(self, name: int) -> bool:
        """Return whether no row refers to a segment that has none by the index.

        Where one does, the index is built anew.
        """
        for range_ in self._ranges_of(name):
            if self._connection.execute(_SURELY_ANY, (*range_, name)).fetchone() is not None:
                self._connection.execute("REINDEX jobs_segment")
                reason = f"the index missed rows of the segment {name} and was built anew"
                self._findings.add(Finding("jobs", reason))
                return False
        return True

    def _ranges_of(self, name: int) -> list[Range]:
        """Return the ranges of ``seq`` that rows of a segment can have."""
        # Rows with a negated number are dead letters of damage.
        if self._segments.are_shared:
            return [*segment_rows.ranges(self._connection, name), _NEGATED]
        first, last = self._segments.seq_range(name)
        return [(first, last), (-last, -first)]

    def _check(self, name: int) -> bool:
        before = self._live.pop(name, _UNKNOWN)
        try:
            return self._free(name, before)
        except BaseException:
            # Otherwise nothing would have it checked again before the next start.
            self._live.pop(name, None)
            self._live[name] = before
            raise

    def _free(self, name: int, before: int) -> bool:
        """Unlink a segment or move some of its jobs, if that is due; returns whether it was.

        ``before``: the bytes that were alive at the last check.
        """
        (live,) = self._connection.execute(_LIVE, (name,)).fetchone()
        current = name == self._segments.current
        if not live and not current and self._keeps_one:
            self._keeps_one = False
            self._live[name] = live
            return False
        if not live and not (current and self._segments.size(name) < self.least_file_bytes):
            self._unlink(name)
            return True
        if current:
            self._live[name] = live
            return False
        if live * _MOSTLY_DEAD > self._segments.size(name):
            return False
        # A segment that still loses jobs by itself is left alone.
        self._live[name] = live
        if live != before:
            return False
        moved = self._move_some(name)
        if moved:
            self._live[name] -= moved
            self._todo.append(name)
        else:
            # Only damaged jobs are left: they stay where they are, and are not checked again.
            self._live.pop(name)
        return bool(moved)

    def _move_some(self, name: int) -> int:
        """Move bytes of jobs from a segment into their rows, of one sound job at least.

        Returns how many bytes were moved.
        """
        spans: list[tuple[int, SegmentSpan]] = []
        moved = 0
        for seq, *numbers in self._connection.execute(_ROWS, (name,)):
            if not all(isinstance(number, int) and number >= 0 for number in numbers):
                continue
            span = SegmentSpan(*numbers)
            moved += span.size
            if spans and moved > self.bytes_per_move:
                break
            spans.append((seq, span))
        found = self._read(spans)
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(_MOVE, found)
        return sum(len(lines) for lines, _ in found)

    def _read(self, spans: Sequence[tuple[int, SegmentSpan]]) -> list[tuple[bytes, int]]:
        """Return the bytes of each span with its ``seq``, without spans that cannot be read."""
        try:
            found = segments.read(self._folder, [span for _, span in spans])
            return [(lines, seq) for lines, (seq, _) in zip(found, spans, strict=True)]
        except sqlite3.Error as error:
            # A bad sector is skipped too: to try it again each second would delay every commit.
            if not (segments.is_damage(error) or segments.is_unreadable(error)):
                raise
            if len(spans) == 1:
                return []
        half = len(spans) // 2
        return self._read(spans[:half]) + self._read(spans[half:])
