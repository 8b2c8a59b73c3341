"""Read a copy of the journal of a daemon that has ended.

The files are copied first: SQLite recovers files when it opens them, which is left to the next
daemon.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import uuid
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from payloadd.journal.sqlite import block_rows
from payloadd.journal.sqlite.schema import MIGRATIONS, ROW_BYTES
from payloadd.model.streams import count_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_FILES: Final = ("journal.db", "journal.db-wal")
_WAITING: Final = """
    CREATE TEMP VIEW waiting AS SELECT * FROM jobs
    WHERE NOT EXISTS (SELECT 1 FROM stored WHERE seq BETWEEN first AND last)
"""
_ALONE: Final = """
    SELECT id FROM waiting
    WHERE (SELECT alone FROM layouts WHERE first <= seq ORDER BY first DESC LIMIT 1)
"""


@dataclass
class JournalContents:
    """The contents of a journal."""

    payloads: Counter[bytes] = field(default_factory=Counter)
    """The number of each payload that is not stored yet."""
    accepted: dict[bytes, int] = field(default_factory=dict)
    """When each of them was accepted, in milliseconds of Unix time."""
    alone: set[str] = field(default_factory=set)
    """The ids of unsealed jobs with an object of their own."""
    sealed: set[str] = field(default_factory=set)
    """The keys of the sealed batches."""
    dead: int = 0
    segments: int = 0
    """The number of segments with jobs that are not stored yet."""

    @property
    def empty(self) -> bool:
        """Return whether there are no jobs, sealed batches or dead letters."""
        return not (self.payloads or self.sealed or self.dead)

    def will_upload_to(self, key: str) -> bool:
        """Return whether the next start uploads the object at ``key`` to the same key."""
        sealed = any(key.endswith(f"/{one}") for one in self.sealed)
        return sealed or any(id_ in key for id_ in self.alone)


def read_journal(state: Path) -> JournalContents:
    """Return the contents of the journal in ``state``; AssertionError if it is damaged."""
    with tempfile.TemporaryDirectory(prefix="journal-copy-") as place:
        for name in _FILES:
            if (state / name).exists():
                shutil.copy(state / name, place)
        path = Path(place, _FILES[0])
        if not path.exists():
            return JournalContents()
        with closing(sqlite3.connect(path)) as journal:
            return _read(journal, state / "segments")


def _read(journal: sqlite3.Connection, segments: Path) -> JournalContents:
    assert journal.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    if journal.execute("PRAGMA user_version").fetchone() != (len(MIGRATIONS),):
        return JournalContents()  # killed before it created its tables
    _unpack_blocks(journal)
    journal.execute(_WAITING)
    _assert_consistent(journal)
    lines = [(line, at) for text, at in _lines(journal, segments) for line in text.splitlines()]
    return JournalContents(
        Counter(line for line, _ in lines),
        dict(lines),
        {str(uuid.UUID(bytes=id_)) for (id_,) in journal.execute(_ALONE)},
        {key for (key,) in journal.execute("SELECT key FROM batches WHERE first <= last")},
        *journal.execute("SELECT count(*) FROM dead").fetchone(),
        *journal.execute("SELECT count(DISTINCT segment) FROM waiting").fetchone(),
    )


def _unpack_blocks(journal: sqlite3.Connection) -> None:
    """Give all jobs in blocks a row; AssertionError if one has a row or a second block already."""
    assert all(head for _, head in block_rows.heads(journal)), "the head of a block is damaged"
    stored = journal.execute("SELECT first, last FROM stored").fetchall()
    found = Counter(
        seq for one in block_rows.waiting(journal, stored) for seq in range(one.first, one.last + 1)
    )
    found.update(seq for (seq,) in journal.execute("SELECT seq FROM jobs"))
    assert not [seq for seq, times in found.items() if times > 1], "jobs are there twice"
    with journal:
        journal.execute("BEGIN")
        assert not block_rows.unpack_in_transaction(journal)


def _lines(journal: sqlite3.Connection, segments: Path) -> Iterator[tuple[bytes, int]]:
    """Yield the lines and the time of each job, from its row or the segment that the row names."""
    jobs = "SELECT seq, id, payloads, lines, segment, start, size FROM waiting"
    for seq, id_, payloads, lines, segment, start, size in journal.execute(jobs):
        text = lines
        if segment is not None:
            content = (segments / f"{segment:020}.ndjson").read_bytes()
            text = content[start : start + size]
            assert len(text) == size, f"the segment of job {seq} is cut off"
        assert text.endswith(b"\n"), f"job {seq} is cut off"
        assert text.count(b"\n") == payloads, f"job {seq} is not as it was accepted"
        yield text, uuid.UUID(bytes=id_).int >> 80


def _assert_consistent(journal: sqlite3.Connection) -> None:
    """Check what SQLite cannot check: totals are right, sealed batches complete."""
    (counted,) = journal.execute(
        "SELECT count(*), coalesce(sum(payloads), 0),"
        " coalesce(sum(coalesce(size, length(lines))), 0) + ? * count(*) FROM waiting",
        (ROW_BYTES,),
    )
    (stated,) = journal.execute("SELECT jobs, payloads, bytes FROM totals")
    assert stated == counted, f"totals are {stated}, the tables have {counted}"
    (ahead,) = journal.execute(
        "SELECT next > coalesce((SELECT max(seq & ?) FROM jobs), 0) FROM totals", (count_of(-1),)
    )
    assert ahead == (1,), "the next job would get a number that is in use"
    before = 0
    for first, last, members in _ranges(journal):
        assert before < first <= last, "sealed batches overlap"
        assert members == last - first + 1, f"the batch {first}-{last} has {members} members"
        before = last


def _ranges(journal: sqlite3.Connection) -> Iterator[tuple[int, int, int]]:
    yield from journal.execute(
        "SELECT first, last, (SELECT count(*) FROM jobs WHERE seq BETWEEN first AND last)"
        " FROM batches WHERE first <= last ORDER BY first"
    )
