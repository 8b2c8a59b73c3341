"""Large payloads in files of their own, beside the rows that say where they are.

SQLite cuts a row of 64 KiB into pages of 4 KiB, each with a checksum, and writes all of them
twice: into its log, and from there into its file. With 16 such rows a commit that is 107 us of
CPU a row, here 34; with 128 rows of 20 kB 64 and 14. So where a commit has many large jobs
their bytes are appended to a file, a *segment*, and each row holds the place of its own.

* The bytes are written and synced before the commit of their rows. So a row always finds its
  bytes, and what a crash or an error leaves behind the last committed byte is never read.
* Nothing is appended to a segment of an earlier run, or behind an error: a new one is begun.
* A segment is named by the next ``seq`` at its beginning: it holds that job or later ones.
* A segment that no row refers to any more is unlinked as a whole; see ``compaction.py``.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from payloadd.errors import StartError
from payloadd.files import sync_folder
from payloadd.journal.sqlite import segment_files
from payloadd.journal.sqlite.segment_files import FOLDER, errors_of_the_journal, path_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LARGE: Final = 4 * 2**10
"""Bytes of a job from which a segment is cheaper than a row, if many go together."""
WORTH_A_SYNC: Final = 256 * 2**10
"""Bytes of large jobs in one commit from which a segment is cheaper: it is synced by itself.

Of CPU 128 KiB are enough; but a lone request would wait for two syncs where one does.
"""
_LAST: Final = 2**62
_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
SEGMENT_BYTES: Final = 16 * 2**20
"""A segment with as much in it is followed by a new one: the step in which space comes back."""


class Segments:
    """The segments in a STATE_DIR, and the end of the one that is written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER
        with errors_of_the_journal(self._folder):
            segment_files.refuse_links(self._folder)
            self.names = segment_files.names(self._folder)
            """The segments that there are, by the first ``seq`` that each may hold."""
        self._file: int | None = None
        self._end = 0
        """Behind the last byte that a committed row refers to."""
        self._tail = 0
        """Behind the last byte that is written."""

    def check(self, following: int) -> None:
        """Raise StartError for a segment that a journal with this next ``seq`` cannot have."""
        if self.names and self.names[-1] > following:
            path = path_of(self._folder, self.names[-1])
            raise StartError(f"{path} belongs to another journal than the one that is here")

    @property
    def current(self) -> int | None:
        """The segment that is written, None between two."""
        return None if self._file is None else self.names[-1]

    @property
    def in_doubt(self) -> bool:
        """Whether there are bytes that a commit refers to of which nobody knows."""
        return self._tail > self._end

    def write(self, buffers: Sequence[bytes], following: int) -> tuple[int, int]:
        """Write buffers behind each other and sync them; returns the segment and where they start.

        They are to be kept or cut off next; ``following`` is the next ``seq`` before them.
        """
        with errors_of_the_journal(self._folder):
            if self._file is not None and self._end >= SEGMENT_BYTES:
                self._leave()
            file = self._begin(following) if self._file is None else self._file
            self._tail = self._end
            try:
                self._tail += segment_files.write(file, buffers, self._end)
                os.fdatasync(file)
            except OSError:
                # Not to be gone on with: what a sync has failed to write may be given up.
                self.cut()
                self._leave()
                raise
        return self.names[-1], self._end

    def keep(self) -> None:
        """Keep what was written last: its rows are committed."""
        self._end = self._tail

    def cut(self) -> None:
        """Give up what was written last and free its room: its rows will never be."""
        if self._file is not None:
            with suppress(OSError):  # then it is written over
                os.ftruncate(self._file, self._end)
        self._tail = self._end

    def unlink(self, name: int) -> None:
        """Remove a segment, which no row refers to."""
        if name == self.current:
            self._leave()
        with errors_of_the_journal(self._folder):
            path_of(self._folder, name).unlink(missing_ok=True)
        self.names.remove(name)

    def size(self, name: int) -> int:
        """Return how many bytes a segment has."""
        with errors_of_the_journal(self._folder):
            return path_of(self._folder, name).stat().st_size

    def within(self, first: int, last: int) -> list[int]:
        """Return the segments in which the jobs ``first`` to ``last`` may be."""
        return self.names[
            max(0, bisect_right(self.names, first) - 1) : bisect_right(self.names, last)
        ]

    def numbers(self, name: int) -> tuple[int, int]:
        """Return the range of ``seq`` in which all jobs of a segment are."""
        following = bisect_right(self.names, name)
        last = self.names[following] - 1 if following < len(self.names) else _LAST
        return name, last

    def close(self) -> None:
        """Close the segment that is written."""
        if self._file is not None:
            self._leave()

    def _begin(self, following: int) -> int:
        """Begin a segment, whose name survives a power cut."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        path = path_of(self._folder, following)
        # One of this name is the rest of a commit that never was: no job has its number.
        self._file = os.open(path, _FLAGS, 0o600)
        self._end = self._tail = 0
        if following not in self.names[-1:]:
            self.names.append(following)
        try:
            # The folder's own name too: who made it may have been killed before it was synced.
            sync_folder(self._folder)
            sync_folder(self._folder.parent)
        except OSError:
            self._leave()
            raise
        return self._file

    def _leave(self) -> None:
        file, self._file = self._file, None
        self._end = self._tail = 0
        if file is not None:
            os.close(file)
