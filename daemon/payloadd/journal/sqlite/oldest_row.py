"""The age of the backlog: when the oldest job that is not stored was accepted.

The journal's thread is asked for it once a second, so the answer must not cost more with a larger
backlog: dead letters and stored rows are skipped by their ranges, and each call continues where
the last one ended. It looks at the first job of each stream.
"""

from __future__ import annotations

from bisect import bisect_left
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from payloadd.journal.sqlite import job_rows
from payloadd.journal.sqlite.damage import corrupt
from payloadd.model.streams import DEFAULT, last_seq, stream_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping, Sequence

    from payloadd.journal.sqlite.job_rows import Range, Row

    OldestJob = tuple[int, int]
    """The ``seq`` of a job, and when it was accepted in Unix ms."""

_ID_BYTES: Final = 16
_NONE: Final[Mapping[int, OldestJob]] = MappingProxyType({})

_NEXT: Final = "SELECT seq, id FROM jobs WHERE seq > ? ORDER BY seq LIMIT 1"
_DEAD: Final = "SELECT last FROM dead WHERE first <= ? ORDER BY first DESC LIMIT 1"


class OldestRow:
    """Finds the oldest job of one journal. Methods raise sqlite3.Error."""

    most_ranges = 1000
    """Ranges that one call skips at most: other work waits for the thread."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._after: dict[int, int] = {}
        """By stream: all its jobs up to this ``seq`` are stored or dead."""
        self._position = 0
        """Where the next call continues, if the last one was ``unfinished``."""
        self._found: dict[int, OldestJob] = {}
        """By stream: the oldest job in front of ``_position`` that has a row."""
        self.by_stream: Mapping[int, OldestJob] = {}
        """By stream: its oldest job when the last call that was not ``unfinished`` looked."""
        self.unfinished = False
        """Whether the last call skipped so many ranges that it has to be called again."""

    def reconsider(self, firsts: Sequence[int]) -> None:
        """Include the jobs from each of ``firsts`` on again: revived dead letters."""
        for first in firsts:
            stream = stream_of(first)
            # No entry stays none: older jobs of the stream may not be stored either.
            if first <= self._after.get(stream, 0):
                self._after[stream] = first - 1
            self.unfinished = False

    def include(self, rows: Sequence[Row]) -> None:
        """Include jobs that were in blocks and have rows from now on, in order of ``seq``."""
        firsts: dict[int, OldestJob] = {}
        for seq, id_, *_ in rows:
            if len(id_) == _ID_BYTES:  # as ``_search`` leaves out damaged rows
                firsts.setdefault(stream_of(seq), (seq, int.from_bytes(id_[:6])))
        for stream, job in firsts.items():
            # A dead letter or stored rows behind them were skipped while no row was before those.
            if job[0] <= self._after.get(stream, 0):
                self._after[stream] = job[0] - 1
            # To begin anew would let no search end while each commit unpacks blocks.
            if self.unfinished and job[0] <= self._position:
                self._found[stream] = min(job, self._found.get(stream, job))

    def accepted_at(
        self, stored: Sequence[Range], in_blocks: Mapping[int, OldestJob] = _NONE
    ) -> float | None:
        """Return when the oldest job of all streams was accepted, in Unix time.

        None where there is no job, and where ``unfinished`` is True then. ``stored``: the ranges
        whose rows wait for deletion. ``in_blocks``: the oldest job of each stream that is in a
        block.
        """
        if not self._search(stored):
            return None
        both = dict(in_blocks)
        for stream, job in self._found.items():
            both[stream] = min(job, both.get(stream, job))
        self.by_stream = both
        times = [time for _, time in (*self._found.values(), *in_blocks.values())]
        return min(times) / 1000 if times else None

    def _search(self, stored: Sequence[Range]) -> bool:
        """Find the oldest job of each stream that has a row; return False if ``unfinished``."""
        ranges = job_rows.merge(stored)
        lasts = [last for _, last in ranges]
        if not self.unfinished:
            self._position, self._found = self._after.get(DEFAULT, 0), {}
        self.unfinished = False
        for _ in range(self.most_ranges):
            after = self._position
            found = self._connection.execute(_NEXT, (after,)).fetchone()
            if found is None:
                return True
            seq, id_ = found
            if seq <= after:
                raise corrupt(f"the rows of jobs are out of order after number {after}")
            stream = stream_of(seq)
            index = bisect_left(lasts, seq)
            if seq <= self._after.get(stream, 0):
                self._position = self._after[stream]
            elif index < len(ranges) and ranges[index][0] <= seq:
                self._skip(stream, lasts[index])
            elif (last := self._end_of_dead_letter(seq)) >= seq:
                self._skip(stream, last)
            elif isinstance(id_, bytes) and len(id_) == _ID_BYTES:
                self._found.setdefault(stream, (seq, int.from_bytes(id_[:6])))
                self._position = last_seq(stream)
            else:
                # A damaged row that no page has read so far: the next job is nearly as old.
                self._position = seq
        self.unfinished = True
        return False

    def _skip(self, stream: int, last: int) -> None:
        """Go on behind a range without jobs that wait."""
        self._position = last
        if stream not in self._found:  # by ``include``, in front of this range
            self._after[stream] = last

    def _end_of_dead_letter(self, seq: int) -> int:
        """Return the last ``seq`` of the dead letter that begins at ``seq`` or before it, or 0."""
        found = self._connection.execute(_DEAD, (seq,)).fetchone()
        return int(found[0]) if found else 0
