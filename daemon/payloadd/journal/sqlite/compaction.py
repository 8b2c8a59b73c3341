"""Gives the space of segments back: what is stored goes in whole files.

Jobs are stored about in the order in which they came, so most segments empty by themselves,
the oldest first. A few jobs that stay, dead letters or a batch that its store does not take,
would keep a segment for themselves: they are moved into their rows.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final

from payloadd.journal.sqlite import segment_files
from payloadd.journal.sqlite.damage import Finding
from payloadd.journal.sqlite.segment_files import SegmentSpan

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from payloadd.journal.sqlite.damage import Findings
    from payloadd.journal.sqlite.job_rows import Range
    from payloadd.journal.sqlite.segments import Segments

_MOSTLY_DEAD: Final = 4
"""A segment is given up when no more than one byte in so many is alive, and none leaves it."""
_MOVED_AT_ONCE: Final = 2**20
"""Bytes that are moved in one commit: about 5 ms, for which others wait."""
_WORTH_A_FILE: Final = 2**20
"""Bytes from which the segment that is written makes way for a new one when it is dead."""

_UNKNOWN: Final = -1
_ANY: Final = "SELECT 1 FROM jobs WHERE segment = ? LIMIT 1"
# Not by the index, which may be damaged: a segment that is gone is gone.
_SURELY_ANY: Final = """
    SELECT 1 FROM jobs NOT INDEXED WHERE seq BETWEEN ? AND ? AND segment = ? LIMIT 1
"""
# Rows that wait to be deleted (see deletion.py) count as alive. Between two looks they are gone.
_LIVE: Final = "SELECT coalesce(sum(size), 0) FROM jobs WHERE segment = ?"
_ROWS: Final = "SELECT seq, segment, start, size FROM jobs WHERE segment = ?"
_MOVE: Final = """
    UPDATE jobs SET lines = ?, segment = NULL, start = NULL, size = NULL WHERE seq = ?
"""


class Compaction:
    """Knows which segments have lost jobs. Methods raise sqlite3.Error."""

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
        """The segments to look at, and how many bytes were alive in each at the last look.

        Not those that nothing has left since: a large backlog costs nothing.
        """
        self._todo: list[int] = []

    def look_at_all(self) -> None:
        """Look at every segment next time."""
        self._live = dict.fromkeys(self._segments.names, _UNKNOWN)

    def look_at(self, ranges: Iterable[Range]) -> None:
        """Look next time at the segments that may have held these jobs."""
        if self._segments.names:
            for first, last in ranges:
                for name in self._segments.within(first, last):
                    self._live.setdefault(name, _UNKNOWN)

    @property
    def waits(self) -> bool:
        """Whether there are segments to look at."""
        return bool(self._live)

    def begin(self) -> None:
        """Begin a round of steps, a second or so behind the last."""
        # Steps take from its end. What failed last is the last of `_live`: others come first.
        self._todo = list(reversed(self._live))

    def step(self) -> bool:
        """Unlink one segment, or move some of the jobs that keep one; returns if there is more."""
        # What nobody knows of may be alive: its rows may come back with a crash.
        while self._todo and not self._segments.in_doubt:
            if self._do(self._todo.pop()):
                return True
        return False

    def unlink_dead(self) -> None:
        """Unlink all segments without a job, to leave none behind."""
        for name in [] if self._segments.in_doubt else list(self._segments.names):
            if self._connection.execute(_ANY, (name,)).fetchone() is None:
                self._unlink(name)

    def _unlink(self, name: int) -> None:
        """Unlink a segment that no row refers to, by the index and by the rows themselves."""
        first, last = self._segments.numbers(name)
        for range_ in ((first, last), (-last, -first)):
            if self._connection.execute(_SURELY_ANY, (*range_, name)).fetchone() is not None:
                self._connection.execute("REINDEX jobs_segment")
                reason = f"the index missed rows of the segment {name} and was made again"
                self._findings.add(Finding("jobs", reason))
                return
        self._segments.unlink(name)

    def _do(self, name: int) -> bool:
        before = self._live.pop(name, _UNKNOWN)
        try:
            return self._free(name, before)
        except BaseException:
            # Nothing else would have it looked at again before the next start.
            self._live.pop(name, None)
            self._live[name] = before
            raise

    def _free(self, name: int, before: int) -> bool:
        (live,) = self._connection.execute(_LIVE, (name,)).fetchone()
        current = name == self._segments.current
        if not live and not (current and self._segments.size(name) < _WORTH_A_FILE):
            self._unlink(name)
            return True
        if current:
            self._live[name] = live
            return False
        if live * _MOSTLY_DEAD > self._segments.size(name):
            return False
        # What still empties by itself is left alone.
        self._live[name] = live
        if live != before:
            return False
        moved = self._move_some(name)
        if moved:
            self._live[name] -= moved
            self._todo.append(name)
        else:
            # Only what is damaged is left: it stays where it is, and nothing looks for it again.
            self._live.pop(name)
        return bool(moved)

    def _move_some(self, name: int) -> int:
        """Move jobs of a segment into their rows, at least one that is not damaged.

        Returns their bytes.
        """
        places: list[tuple[int, SegmentSpan]] = []
        moved = 0
        for seq, *place in self._connection.execute(_ROWS, (name,)):
            if not all(isinstance(number, int) and number >= 0 for number in place):
                continue
            moved += SegmentSpan(*place).size
            if places and moved > _MOVED_AT_ONCE:
                break
            places.append((seq, SegmentSpan(*place)))
        found = self._read(places)
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(_MOVE, found)
        return sum(len(lines) for lines, _ in found)

    def _read(self, places: Sequence[tuple[int, SegmentSpan]]) -> list[tuple[bytes, int]]:
        """Return the lines of each place, with its ``seq``; not of those that are damaged."""
        try:
            found = segment_files.read(self._folder, [place for _, place in places])
            return [(lines, seq) for lines, (seq, _) in zip(found, places, strict=True)]
        except sqlite3.Error as error:
            # To try what the disk does not give back each second would hold up every commit.
            if not (segment_files.is_damage(error) or segment_files.is_unreadable(error)):
                raise
            if len(places) == 1:
                return []
        half = len(places) // 2
        return self._read(places[:half]) + self._read(places[half:])
