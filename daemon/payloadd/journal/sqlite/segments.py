"""Segments: files with the bytes of large jobs; the row of such a job says where they are.

SQLite cuts a row of 64 KiB into pages of 4 KiB and writes each of them twice: into its write-ahead
log, and from there into its file. Where a commit has many large jobs, it is cheaper to append their
bytes to a file, a *segment*, and to keep only the place in the row.

* The bytes are written and synced before the commit of their rows. So a committed row always finds
  its bytes, and bytes behind the last committed one, left by a crash or an error, are never read.
* Nothing is appended to a segment of an earlier run, nor after an error: a new segment is begun.
* The name of a segment is the number of the next job when it was begun, counted over all streams
  (``Totals.next``). With the default stream alone this is the lowest ``seq`` of a job in it.
* A segment that no row refers to is unlinked as a whole (see ``compaction.py``), or its file
  becomes that of the next segment (see ``segment_file.py``).

Errors of these files are errors of the journal: OSError becomes sqlite3.OperationalError, with the
name of the errno in ``sqlite_errorname``.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from bisect import bisect_right
from contextlib import contextmanager, suppress
from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple

from payloadd.errors import StartError
from payloadd.files import identity_of, is_at, sync_folder
from payloadd.journal.sqlite.files_in_use import file_gone, put_aside
from payloadd.journal.sqlite.segment_file import SegmentFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

FOLDER: Final = "segments"
"""The folder of the segments in STATE_DIR."""
LARGE: Final = 4 * 2**10
"""Bytes of a job from which a segment is cheaper than a row, if many are committed together."""
WORTH_A_SYNC: Final = 256 * 2**10
"""Bytes of large jobs in one commit from which a segment is cheaper: it needs a sync of its own.

By CPU time alone half of it would do; but a lone request would wait for two syncs instead of one.
"""
SEGMENT_BYTES: Final = 16 * 2**20
"""Size from which a segment is followed by a new one: disk space is freed in steps of this size."""

_SUFFIX: Final = ".ndjson"
_MOST_READ: Final = 256 * 2**10
"""Bytes of neighbouring jobs that one read gets: they are in memory twice until they are cut up."""
_LAST: Final = 2**62
_DAMAGE: Final = {"ENOENT", "ENODATA", "ELOOP", "EISDIR", "ENOTDIR"}
"""Read errors that a second attempt does not change: the file is missing, short or not a file."""
_UNREADABLE: Final = {"EIO", "EBADMSG", "EUCLEAN", "EILSEQ"}
"""Read errors of the disk, which may be gone at the next attempt."""


class SegmentSpan(NamedTuple):
    """The place of a job's bytes: ``size`` bytes of a segment, from byte ``start`` on."""

    segment: int
    start: int
    size: int

    @property
    def end(self) -> int:
        """The position after the last byte."""
        return self.start + self.size


class Segments:
    """The segments in a STATE_DIR, and the write position in the current one."""

    def __init__(self, folder: Path) -> None:
        """List the segments in STATE_DIR ``folder``.

        Raises sqlite3.OperationalError, and StartError where a segment is a symbolic link.
        """
        self._folder = folder / FOLDER
        with _as_sqlite_error(self._folder):
            _refuse_links(self._folder)
            self.names = names(self._folder)
            """The names of all segments in ascending order."""
        self._folder_in_use = identity_of(self._folder)
        """The folder that has the segments; None while there is none."""
        self._is_folder_synced = False
        """Whether this run has synced the name of the folder."""
        self.are_shared = False
        """Whether segments have jobs of several streams."""
        self.unrecorded: int | None = None
        """The current segment, if no commit with jobs in it has ended; see ``segment_rows.py``."""
        self.replaceable: int | None = None
        """A segment that no row refers to: the next new segment may take its file."""
        self.writes = 0
        """How often bytes were written in this run."""
        self._file: SegmentFile | None = None
        self._committed = 0
        """The position after the last byte that a committed row refers to."""
        self._written = 0
        """The position after the last byte that was written."""

    def check(self, following: int) -> None:
        """Raise StartError for a segment that a journal whose next ``seq`` this is cannot have."""
        if self.names and self.names[-1] > following:
            path = path_of(self._folder, self.names[-1])
            raise StartError(f"{path} belongs to another journal than the one that is here")

    @property
    def current(self) -> int | None:
        """The name of the segment that is being written, None if there is none at the moment."""
        return None if self._file is None else self.names[-1]

    @property
    def in_doubt(self) -> bool:
        """Whether there are bytes of a commit whose outcome is unknown."""
        return self._written > self._committed

    @property
    def is_full(self) -> bool:
        """Whether the next write begins a new segment because of the size of this one."""
        return self._committed >= SEGMENT_BYTES

    def write(self, buffers: Sequence[bytes], following: int) -> tuple[int, int]:
        """Append buffers to the current segment and sync them.

        Returns the name of the segment and the position of the first byte. Call ``keep`` or ``cut``
        next. ``following``, the number of the next job before these, is the name of a new segment.
        Raises sqlite3.OperationalError; the next call begins a new segment then.
        """
        with _as_sqlite_error(self._folder):
            if self.is_full or self._is_current_gone():
                self._close_current()
            file = self._begin(following) if self._file is None else self._file
            self.writes += 1
            self._written = self._committed
            try:
                self._written += file.write(buffers, self._committed)
                if self._is_current_gone():
                    self._raise_gone(path_of(self._folder, self.names[-1]))
            except OSError:
                # A failed sync may have dropped dirty pages: this file is not appended to any more.
                self.cut()
                self._close_current()
                raise
        return self.names[-1], self._committed

    def _is_current_gone(self) -> bool:
        """Return whether the current segment was deleted or replaced."""
        return self._file is not None and not is_at(
            self._file.descriptor, path_of(self._folder, self.names[-1])
        )

    @staticmethod
    def _raise_gone(path: Path) -> None:
        """Raise the error of a file that was deleted or replaced."""
        raise OSError(errno.ENOENT, "was deleted or replaced while it is in use", str(path))

    def keep(self) -> None:
        """Keep the bytes of the last ``write``: their rows are committed."""
        if self._written > self._committed:
            self.unrecorded = None
        self._committed = self._written

    def cut(self) -> None:
        """Cut off the bytes of the last ``write``: their rows will never be committed."""
        if self._file is not None:
            with suppress(OSError):  # the next write overwrites them
                self._file.cut(self._committed)
        self._written = self._committed

    def unlink(self, name: int) -> None:
        """Unlink a segment that no row refers to. Raises sqlite3.OperationalError."""
        if identity_of(self._folder) != self._folder_in_use:
            # In a folder that was replaced, another journal may have a segment of this name.
            raise file_gone(self._folder)
        if name == self.current:
            self._close_current()
        with _as_sqlite_error(self._folder):
            path_of(self._folder, name).unlink(missing_ok=True)
        self.names.remove(name)
        if name == self.replaceable:
            self.replaceable = None

    def size(self, name: int) -> int:
        """Return the size of a segment in bytes. Raises sqlite3.OperationalError."""
        with _as_sqlite_error(self._folder):
            return path_of(self._folder, name).stat().st_size

    def within(self, first: int, last: int) -> list[int]:
        """Return the names of the segments that may hold the jobs ``first`` to ``last``."""
        return self.names[
            max(0, bisect_right(self.names, first) - 1) : bisect_right(self.names, last)
        ]

    def seq_range(self, name: int) -> tuple[int, int]:
        """Return the first and the last ``seq`` that a job of this segment can have."""
        following = bisect_right(self.names, name)
        last = self.names[following] - 1 if following < len(self.names) else _LAST
        return name, last

    def close(self) -> None:
        """Close the segment that is being written."""
        if self._file is not None:
            self._close_current()

    def missing(self) -> bool:
        """Return whether the folder was deleted or replaced.

        A single segment that is deleted is damage, which a read finds; see ``is_damage``.
        """
        found = identity_of(self._folder)
        # A folder without segments may be deleted; another folder may have other segments.
        return found != self._folder_in_use and (found is not None or bool(self.names))

    def forget_missing(self) -> set[int]:
        """Go on without the segments that are gone; returns their names.

        A folder in the place of the one that was used is renamed. Raises OSError.
        """
        self.close()
        if identity_of(self._folder) != self._folder_in_use:
            put_aside(self._folder)
            self._folder.mkdir(mode=0o700)
            sync_folder(self._folder.parent)
            self._folder_in_use = identity_of(self._folder)
        gone = set(self.names) - set(names(self._folder))
        self.names = [name for name in self.names if name not in gone]
        self.replaceable = None
        return gone

    def _begin(self, following: int) -> SegmentFile:
        """Begin a segment whose name survives a power cut; returns its file."""
        if self._folder_in_use is None or not (self.names or self._folder.exists()):
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._folder_in_use = identity_of(self._folder)
            self._is_folder_synced = False
        if identity_of(self._folder) != self._folder_in_use:
            self._raise_gone(self._folder)
        path = path_of(self._folder, following)
        # A file of this name is left of a commit that failed: no job has this number yet.
        self._file = self._file_of_replaceable(path) or SegmentFile.create(path)
        self._committed = self._written = 0
        self.unrecorded = following
        if following not in self.names[-1:]:
            self.names.append(following)
        try:
            sync_folder(self._folder)
            # The process that created the folder may have been killed before it synced its name.
            if not self._is_folder_synced:
                sync_folder(self._folder.parent)
                self._is_folder_synced = True
        except OSError:
            self._close_current()
            raise
        return self._file

    def _file_of_replaceable(self, path: Path) -> SegmentFile | None:
        """Return the file of the segment that can be replaced, renamed to ``path``."""
        name, self.replaceable = self.replaceable, None
        if name is None:
            return None
        old = path_of(self._folder, name)
        with suppress(OSError):  # a new file will do, unless the disk fails
            if (file := SegmentFile.take_over(old, path, 2 * SEGMENT_BYTES)) is not None:
                self.names.remove(name)
                return file
        return None

    def _close_current(self) -> None:
        file, self._file = self._file, None
        self._committed = self._written = 0
        if file is not None:
            file.close()


def names(folder: Path) -> list[int]:
    """Return the names of the segments in ``folder`` in ascending order. Raises OSError."""
    try:
        found = [path.stem for path in folder.iterdir() if path.suffix == _SUFFIX]
    except FileNotFoundError:
        return []
    return sorted(int(stem) for stem in found if stem.isdecimal())


def path_of(folder: Path, name: int) -> Path:
    """Return the path of the segment ``name`` in ``folder``."""
    return folder / f"{name:020}{_SUFFIX}"


def space(state_dir: Path) -> int:
    """Return the bytes of all segments in a STATE_DIR. Raises sqlite3.OperationalError."""
    folder = state_dir / FOLDER
    with _as_sqlite_error(folder):
        sizes = 0
        for name in names(folder):
            with suppress(FileNotFoundError):  # a running daemon may have unlinked it meanwhile
                sizes += path_of(folder, name).stat().st_size
        return sizes


def read(state_dir: Path, spans: Sequence[SegmentSpan], most_read: int = _MOST_READ) -> list[bytes]:
    """Return the bytes of each span, in the order of ``spans``.

    Spans that are neighbours are read together, up to ``most_read`` bytes at a time. Raises
    sqlite3.OperationalError; see ``is_damage`` and ``is_unreadable``.
    """
    found: list[bytes] = []
    for name, of_one in groupby(spans, lambda span: span.segment):
        path = path_of(state_dir / FOLDER, name)
        with _as_sqlite_error(path):
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                size = os.fstat(file).st_size
                for neighbours in _neighbours(of_one, most_read):
                    found += _read_neighbours(file, neighbours, size)
            finally:
                os.close(file)
    return found


def is_damage(error: sqlite3.Error) -> bool:
    """Return whether a read failed because a segment is missing or too short."""
    return getattr(error, "sqlite_errorname", "") in _DAMAGE


def is_unreadable(error: sqlite3.Error) -> bool:
    """Return whether a read failed because the disk cannot read a part of a segment."""
    return getattr(error, "sqlite_errorname", "") in _UNREADABLE


def _refuse_links(folder: Path) -> None:
    """Raise StartError where the folder of segments, or a segment, is a symbolic link."""
    for path in (folder, *(path_of(folder, name) for name in names(folder))):
        if path.is_symlink():
            raise StartError(f"{path} is a symbolic link; the journal follows none")


def _neighbours(spans: Iterable[SegmentSpan], most: int) -> Iterator[list[SegmentSpan]]:
    """Yield the spans of one segment in groups, each of which one read gets."""
    group: list[SegmentSpan] = []
    size = 0
    for span in spans:
        if group and (group[-1].end != span.start or size + span.size > most):
            yield group
            group, size = [], 0
        group.append(span)
        size += span.size
    yield group


def _read_neighbours(file: int, spans: Sequence[SegmentSpan], file_size: int) -> list[bytes]:
    first = spans[0].start
    size = spans[-1].end - first
    # Checked before the read: a damaged place may ask for more bytes than there is memory.
    if spans[-1].end > file_size:
        missing = f"{max(0, file_size - first)} bytes of {size} at {first}"
        raise OSError(errno.ENODATA, missing)
    found = os.pread(file, size, first)
    if len(found) != size:
        raise OSError(errno.EIO, f"{len(found)} bytes of {size} at {first}")
    return [found[span.start - first : span.end - first] for span in spans]


@contextmanager
def _as_sqlite_error(path: Path) -> Iterator[None]:
    """Raise sqlite3.OperationalError, with the file's name and the reason, in place of OSError."""
    try:
        yield
    except OSError as error:
        converted = sqlite3.OperationalError(f"{error.filename or path}: {error.strerror}")
        converted.sqlite_errorname = errno.errorcode.get(error.errno or 0, "OSError")
        raise converted from error
