"""The files of segments: what they are called, how they are written and read.

Errors of the files are errors of the journal: OSError becomes sqlite3.OperationalError here.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import contextmanager, suppress
from itertools import groupby, islice
from typing import TYPE_CHECKING, Final, NamedTuple

from payloadd.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

FOLDER: Final = "segments"
"""Where they are in STATE_DIR."""
_SUFFIX: Final = ".ndjson"
_MOST_READ: Final = 256 * 2**10
"""Bytes of neighbours that are read at once: they are held twice, to be cut up."""
_MOST_BUFFERS: Final = os.sysconf("SC_IOV_MAX")
_DAMAGE: Final = {"ENOENT", "ENODATA", "ELOOP", "EISDIR", "ENOTDIR"}
"""Errors of reading that no second attempt mends: the file is missing, short, or no file."""


_UNREADABLE: Final = {"EIO", "EBADMSG", "EUCLEAN", "EILSEQ"}
"""Errors of reading that a second attempt may mend, or not: the disk does not give bytes back."""


class SegmentSpan(NamedTuple):
    """Where the bytes of a job are: ``size`` bytes from ``start`` on."""

    segment: int
    start: int
    size: int

    @property
    def end(self) -> int:
        """Behind the last byte."""
        return self.start + self.size


def read(state_dir: Path, places: Sequence[SegmentSpan]) -> list[bytes]:
    """Return what is in these places, in their order. Raises sqlite3.OperationalError."""
    found: list[bytes] = []
    for name, neighbours in groupby(places, lambda place: place.segment):
        path = path_of(state_dir / FOLDER, name)
        with errors_of_the_journal(path):
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                size = os.fstat(file).st_size
                for span in _spans(neighbours):
                    found += _read_span(file, span, size)
            finally:
                os.close(file)
    return found


def is_damage(error: sqlite3.Error) -> bool:
    """Return whether a read failed because a segment is missing or short."""
    return getattr(error, "sqlite_errorname", "") in _DAMAGE


def is_unreadable(error: sqlite3.Error) -> bool:
    """Return whether a read failed because the disk does not give the bytes back."""
    return getattr(error, "sqlite_errorname", "") in _UNREADABLE


def refuse_links(folder: Path) -> None:
    """Raise StartError where the folder of segments, or a segment, is a symbolic link."""
    for path in (folder, *(path_of(folder, name) for name in names(folder))):
        if path.is_symlink():
            raise StartError(f"{path} is a symbolic link; the journal follows none")


def space(state_dir: Path) -> int:
    """Return the bytes of all segments in a STATE_DIR. Raises sqlite3.OperationalError."""
    folder = state_dir / FOLDER
    with errors_of_the_journal(folder):
        sizes = 0
        for name in names(folder):
            with suppress(FileNotFoundError):  # a daemon that runs may be quicker
                sizes += path_of(folder, name).stat().st_size
        return sizes


def names(folder: Path) -> list[int]:
    """Return the names of the segments in ``folder``, in order. Raises OSError."""
    try:
        found = [path.stem for path in folder.iterdir() if path.suffix == _SUFFIX]
    except FileNotFoundError:
        return []
    return sorted(int(stem) for stem in found if stem.isdecimal())


def path_of(folder: Path, name: int) -> Path:
    """Return the path of a segment."""
    return folder / f"{name:020}{_SUFFIX}"


def write(file: int, buffers: Iterable[bytes], start: int) -> int:
    """Write all behind each other from ``start`` on; returns how many bytes. Raises OSError."""
    at = start
    left = iter(buffers)
    while some := list(islice(left, _MOST_BUFFERS)):
        at += _write_some(file, some, at)
    return at - start


def _write_some(file: int, buffers: Sequence[bytes], start: int) -> int:
    """Write as many buffers as the system takes, however often it stops short."""
    left: Sequence[bytes | memoryview] = buffers
    written = 0
    while left:
        count = os.pwritev(file, left, start + written)
        if not count:
            raise OSError(errno.EIO, "nothing was written")
        written += count
        left = _behind(left, count)
    return written


def _behind(buffers: Sequence[bytes | memoryview], count: int) -> Sequence[bytes | memoryview]:
    """Return what is left of ``buffers`` behind the first ``count`` bytes."""
    for index, buffer in enumerate(buffers):
        if count < len(buffer):
            return [memoryview(buffer)[count:], *buffers[index + 1 :]]
        count -= len(buffer)
    return []


def _spans(places: Iterable[SegmentSpan]) -> Iterator[list[SegmentSpan]]:
    """Yield places of one segment, those together that one read gets."""
    span: list[SegmentSpan] = []
    size = 0
    for place in places:
        if span and (span[-1].end != place.start or size + place.size > _MOST_READ):
            yield span
            span, size = [], 0
        span.append(place)
        size += place.size
    yield span


def _read_span(file: int, span: Sequence[SegmentSpan], there: int) -> list[bytes]:
    first = span[0].start
    size = span[-1].end - first
    # Before the read: a damaged place may ask for more bytes than there is memory.
    if span[-1].end > there:
        missing = f"{max(0, there - first)} bytes of {size} at {first}"
        raise OSError(errno.ENODATA, missing)
    found = os.pread(file, size, first)
    if len(found) != size:
        raise OSError(errno.EIO, f"{len(found)} bytes of {size} at {first}")
    return [found[place.start - first : place.end - first] for place in span]


@contextmanager
def errors_of_the_journal(path: Path) -> Iterator[None]:
    """Raise sqlite3.OperationalError, with the name and the reason, for OSError."""
    try:
        yield
    except OSError as error:
        converted = sqlite3.OperationalError(f"{error.filename or path}: {error.strerror}")
        converted.sqlite_errorname = errno.errorcode.get(error.errno or 0, "OSError")
        raise converted from error
