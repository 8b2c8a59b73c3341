"""Rows of ``jobs`` back from the disk, each checked before it is believed.

A row may hold anything: one flipped bit turns a number into text, a blob into NULL. Functions
raise sqlite3.Error where a read fails in a way that a second attempt may mend.
"""

from __future__ import annotations

import sqlite3
import uuid
from typing import TYPE_CHECKING, Final

from payloadd.journal.sqlite import job_rows, segment_files
from payloadd.journal.sqlite.checksum import of_job
from payloadd.journal.sqlite.damage import DamagedRow
from payloadd.model.job import Job

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from payloadd.journal.sqlite.job_rows import Row

_ID_BYTES: Final = 16
_MOST_BYTES: Final = 2**31
_UUID_VERSION: Final = 7
_YEAR_2200: Final = 7_258_118_400_000
"""In milliseconds since 1970."""

_ALTERED: Final = "does not match its checksum"
_NO_JOB: Final = "is not a job"


def read(
    found: Sequence[Row], state_dir: Path, *, tolerant: bool = False
) -> tuple[list[Job], list[DamagedRow]]:
    """Return the jobs of those rows that are what was written, and the others, both in order.

    ``tolerant``: a job whose bytes the disk does not give back is damaged.
    """
    jobs: list[Job] = []
    damaged: list[DamagedRow] = []
    shaped: list[Row] = []
    for row in found:
        if is_shaped(row):
            shaped.append(row)
        else:
            damaged.append(_damaged(row, _NO_JOB))
    for row, lines in zip(shaped, _lines(shaped, state_dir, tolerant=tolerant), strict=True):
        if isinstance(lines, str):
            damaged.append(_damaged(row, lines))
        elif is_sound(row, lines):
            jobs.append(Job(row[0], uuid.UUID(bytes=row[1]), lines, row[2]))
        else:
            damaged.append(_damaged(row, _ALTERED))
    return jobs, damaged


def is_shaped(row: Row) -> bool:
    """Return whether the columns of a row have the types and limits of a job's."""
    _, id_, payloads, lines, segment, start, size, stream, crc = row
    in_row = segment is None and start is None and size is None
    return (
        isinstance(id_, bytes)
        and len(id_) == _ID_BYTES
        and isinstance(payloads, int)
        and isinstance(lines, bytes)
        and (in_row or _is_place(segment, start, size))
        and stream == 0
        and (crc is None or isinstance(crc, int))
    )


def _is_place(segment: object, start: object, size: object) -> bool:
    return (
        isinstance(segment, int)
        and isinstance(start, int)
        and isinstance(size, int)
        and segment >= 0
        and start >= 0
        and 0 <= size < _MOST_BYTES
    )


def is_sound(row: Row, lines: bytes) -> bool:
    """Return whether a row, with its lines, is what was written."""
    seq, id_, payloads, *_, stream, crc = row
    if crc is None:
        return _is_plausible(id_, payloads, lines)
    return bool(crc == of_job(abs(seq), id_, payloads, lines, stream))


def _is_plausible(id_: bytes, payloads: int, lines: bytes) -> bool:
    """Return whether a row of version 3, which has no checksum, may be what was written."""
    job_id = uuid.UUID(bytes=id_)
    return (
        job_id.version == _UUID_VERSION
        and job_id.int >> 80 < _YEAR_2200
        and lines[-1:] in {b"", b"\n"}
        and lines.count(b"\n") == payloads
    )


def size(row: Row) -> int:
    """Return about how many bytes the lines of a row have, whatever the row is."""
    length = row[6]
    if isinstance(length, int) and 0 <= length < _MOST_BYTES:
        return length
    return len(row[3]) if isinstance(row[3], bytes | str) else 0


def _lines(found: Sequence[Row], state_dir: Path, *, tolerant: bool) -> list[bytes | str]:
    """Return the lines of each row, or why there are none."""
    try:
        return list(job_rows.lines(found, state_dir))
    except sqlite3.Error as error:
        _raise_unless_damage(error, tolerant=tolerant)
    return [_lines_of_one(row, state_dir, tolerant=tolerant) for row in found]


def _lines_of_one(row: Row, state_dir: Path, *, tolerant: bool) -> bytes | str:
    try:
        return job_rows.lines([row], state_dir)[0]
    except sqlite3.Error as error:
        _raise_unless_damage(error, tolerant=tolerant)
        if segment_files.is_unreadable(error):
            return f"is in the segment {row[4]}, where it cannot be read ({error.sqlite_errorname})"
        missing = getattr(error, "sqlite_errorname", "") == "ENOENT"
        return f"is in the segment {row[4]}, which is {'missing' if missing else 'too short'}"


def _raise_unless_damage(error: sqlite3.Error, *, tolerant: bool) -> None:
    if not (segment_files.is_damage(error) or (tolerant and segment_files.is_unreadable(error))):
        raise error


def _damaged(row: Row, reason: str) -> DamagedRow:
    return DamagedRow(row[0], row[1], row[2], size(row), reason)
