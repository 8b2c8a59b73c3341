"""How far the journal had come, kept outside SQLite.

SQLite opens a journal whose write-ahead log is gone, cut off or damaged without a word: it takes
what checks out and forgets the rest. So each commit also writes down, in a file of its own, how
many jobs and payloads have ever been accepted. A start that finds less in SQLite's file than that
knows that payloads are missing, and how many.

* Two records of fixed size, each in a sector of its own and with a checksum, are written in turn:
  a record that a power cut has torn leaves the one before it.
* A record is written after its commit, so it is never ahead of what is durable, and before any
  request of that commit is answered. It is 2 µs, into the page cache: after a killed process the
  count is exact.
* The file is synced once a second. After a power cut (another boot id) the count is a lower bound.
* Payloads of the lost commits that were stored before they were lost are not missing. How many
  were not is the smaller of two numbers, because batches are stored in order: the payloads that
  were accepted and are not there, and the payloads that the journal held at the last record.
* The number of the next job goes on behind the record: no number names two jobs.
* A record has the identity of its journal. Where ``journal.db`` has another one, it or this file
  was replaced: all that the journal of the record held may be missing, and commits of the journal
  that is there may be too. Segments that no row refers to are kept under another name.
* The count stays, over crashes and failed starts too, until a daemon that has served was stopped
  in order: that is how an operator says that it was seen.
"""

from __future__ import annotations

import os
import struct
import uuid
import zlib
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from payloadd.errors import StartError
from payloadd.files import sync_folder
from payloadd.journal.sqlite import identity, segments
from payloadd.journal.sqlite.high_water_record import AT_LEAST, CLEAN, FOREIGN, Mark

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

    from payloadd.journal.sqlite.transaction import Totals

_SUFFIX: Final = ".high"
"""Of the file's name in STATE_DIR, ``journal.high``."""
_LOST: Final = ".lost"
"""Added to the name of a segment whose rows are gone, so that its payloads can still be had."""

_MAGIC: Final = b"payldhw1"
_BODY: Final = struct.Struct("<8sQ16s16sqqqqI")
"""Magic, number of the record, boot id, identity of the journal, next seq, payloads accepted, held,
missing, flags."""
_CHECK: Final = struct.Struct("<I")
_SECTOR: Final = 512
_REMEMBERED: Final = AT_LEAST | FOREIGN
_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_REFERRED_TO: Final = "SELECT DISTINCT segment FROM jobs WHERE segment IS NOT NULL"


@dataclass(frozen=True, slots=True)
class Damage:
    """What a start has found: commits are gone from SQLite's file."""

    payloads: int
    """Payloads that may be missing, of this start and of earlier ones."""
    at_least: bool
    """Whether the count is a lower bound."""
    again: int
    """Payloads that were stored and whose removal is gone: they are stored again."""
    files: tuple[str, ...]
    """Segments that no row refers to any more, under their new names."""
    foreign: bool = False
    """Whether the record was one of another journal."""

    def __str__(self) -> str:
        """Return the count in words."""
        return f"{'at least ' if self.at_least else ''}{self.payloads}"


class HighWater:
    """The file in one STATE_DIR. Errors of writing it are ignored: it promises nothing."""

    def __init__(self, journal: Path) -> None:
        """Read the file that belongs to ``journal``, before that is opened. Raises OSError."""
        self._path = journal.with_suffix(_SUFFIX)
        self._segments = journal.parent / segments.FOLDER
        self._existed = self._path.exists()
        self._found = read(journal)
        self.unreadable = False
        """Whether a journal with jobs has a file without a record that checks out."""
        self.acknowledged = False
        """Whether a clean end from here on says that the damage was seen."""
        self._file: int | None = None
        self._number = 0 if self._found is None else self._found.number
        self._boot = _boot_id()
        self._missing = self._flags = 0
        self._journal = b""
        self._dirty = False
        self.damage: Damage | None = None
        """What is wrong; until ``reconcile`` was called, nothing."""

    def identify(self, connection: sqlite3.Connection, known: bytes | None) -> None:
        """Note the identity of the journal, and write one into a journal that has none.

        Raises sqlite3.Error.
        """
        if known is None:
            found = b"" if self._found is None else self._found.journal
            known = self._journal or found or identity.create()
            identity.write(connection, known)
        self._journal = known

    @property
    def identity(self) -> bytes:
        """The identity of the journal, empty until ``identify`` was called."""
        return self._journal

    @property
    def held(self) -> int:
        """Payloads that the journal held at the last record, 0 where that is not known."""
        # Where commits are gone, what they cost is counted as missing already.
        known = self._found is not None and not self._is_foreign and self.damage is None
        return self._found.held if known and self._found is not None else 0

    @property
    def _is_foreign(self) -> bool:
        return self._found is not None and self._found.journal != self._journal

    def reconcile(self, connection: sqlite3.Connection, totals: Totals) -> Totals:
        """Compare ``totals`` with the last record; returns those to go on with.

        Raises sqlite3.Error, OSError, and StartError where journal.db is new and the rest is not.
        """
        found = self._found
        if found is None:
            self.unreadable = self._existed and totals.next > 1
            return totals
        if totals.next == 1 and found.held and segments.names(self._segments):
            # To go on would put payloads aside that an operator can have back with journal.db.
            raise StartError(
                f"{self._segments} belongs to another journal than the one that is here:"
                " put its journal.db back, or move the segments away"
            )
        if self._is_foreign and totals.next > 1:
            self._note_foreign(connection, found)
            return totals
        held = totals.payloads + totals.dead_payloads
        lost = found.accepted - totals.accepted
        # Of what was held then, and of what was lost since, this many left the journal since.
        gone = held + lost - found.held if lost >= 0 else 0
        again = max(0, min(gone, held))
        files: tuple[str, ...] = ()
        self._missing, self._flags = found.missing, found.flags & _REMEMBERED
        names = segments.names(self._segments)
        following = max(found.next, totals.next)
        # A segment is named by a number that was the next one: so many jobs came behind the record.
        unrecorded = max([0, *(name - following for name in names)])
        behind = found.next > totals.next or unrecorded > 0
        if behind:
            self._missing += max(0, min(lost, found.held)) + unrecorded
            is_exact = found.boot == self._boot and not unrecorded
            self._flags |= 0 if is_exact else AT_LEAST
            files = self._put_aside(name for name in names if name >= totals.next)
            following += unrecorded
            totals = replace(totals, next=following, accepted=max(found.accepted, totals.accepted))
            # First the count, then the totals from which it could not be told any more. Nothing
            # held: a start that comes between the two finds the same loss, and adds none to it.
            self._open()
            self.write(replace(totals, payloads=0, dead_payloads=0))
            self.sync()
            totals.write(connection)
        if self._flags & FOREIGN or self._missing or again or (behind and not found.clean):
            flags = self._flags
            at_least, foreign = bool(flags & AT_LEAST), bool(flags & FOREIGN)
            self.damage = Damage(self._missing, at_least, again, files, foreign)
        return totals

    def _note_foreign(self, connection: sqlite3.Connection, found: Mark) -> None:
        """Count what the journal of another journal's record held as missing."""
        self._missing = found.missing + max(0, found.held)
        self._flags = _REMEMBERED
        needed = {name for (name,) in connection.execute(_REFERRED_TO)}
        names = segments.names(self._segments)
        files = self._put_aside(name for name in names if name not in needed)
        self.damage = Damage(self._missing, at_least=True, again=0, files=files, foreign=True)

    def assume(self, connection: sqlite3.Connection, totals: Totals) -> Totals:
        """Return totals that were counted anew, with what only the last record still knows.

        Raises sqlite3.Error.
        """
        found = self._found
        if found is None or self._is_foreign:
            return totals
        totals = replace(totals, next=max(totals.next, found.next), accepted=found.accepted)
        totals.write(connection)
        return totals

    def _put_aside(self, names: Iterable[int]) -> tuple[str, ...]:
        """Rename segments of rows that are gone; returns their new names."""
        moved = []
        for name in names:
            path = segments.path_of(self._segments, name)
            with suppress(OSError):
                moved.append(path.rename(path.with_name(path.name + _LOST)).name)
        return tuple(moved)

    def begin(self, totals: Totals) -> None:
        """Note that a run begins: a record that says so, on the disk. Raises OSError."""
        self._open()
        self.write(totals)
        self.sync()

    def _open(self) -> None:
        if self._file is not None:
            return
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
        if self._found is None:
            # Once and for all: from here on no record needs room on the disk.
            with suppress(OSError):
                os.pwrite(self._file, bytes(2 * _SECTOR), 0)
                os.fsync(self._file)
                sync_folder(self._path.parent)

    def write(self, totals: Totals) -> None:
        """Write the record of a commit."""
        if self._file is None:
            return
        self._number += 1
        # Totals that damage has made wrong must not end the daemon.
        held = max(0, totals.payloads + totals.dead_payloads)
        body = _BODY.pack(
            _MAGIC,
            self._number,
            self._boot,
            self._journal,
            totals.next,
            totals.accepted,
            held,
            self._missing,
            self._flags,
        )
        try:
            record = body + _CHECK.pack(zlib.crc32(body))
            os.pwrite(self._file, record, _SECTOR * (self._number & 1))
            self._dirty = True
        except OSError:
            # Not ``suppress``, which takes a quarter of the time of all this.
            return

    def sync(self) -> None:
        """Have the last record on the disk."""
        if self._dirty and self._file is not None:
            self._dirty = False
            with suppress(OSError):
                os.fdatasync(self._file)

    def end(self, totals: Totals) -> None:
        """Note that the journal was closed in order."""
        if self.acknowledged:
            self._flags = self._missing = 0
        self._flags |= CLEAN
        self.write(totals)
        self.sync()
        self.close()

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


def read(journal: Path) -> Mark | None:
    """Return the last record for ``journal`` that checks out, None without one. Raises OSError."""
    try:
        file = os.open(journal.with_suffix(_SUFFIX), os.O_RDONLY | _FLAGS)
    except FileNotFoundError:
        return None
    try:
        records = os.pread(file, 2 * _SECTOR, 0)
    finally:
        os.close(file)
    marks = [_parse(records[slot * _SECTOR :]) for slot in (0, 1)]
    return max((one for one in marks if one is not None), key=lambda one: one.number, default=None)


def _parse(record: bytes) -> Mark | None:
    size = _BODY.size
    if len(record) < size + _CHECK.size:
        return None
    body = record[:size]
    magic, *values = _BODY.unpack(body)
    if magic != _MAGIC or _CHECK.unpack_from(record, size) != (zlib.crc32(body),):
        return None
    return Mark(*values)


def _boot_id() -> bytes:
    """Return what is another one after each start of the machine; random if that is not known."""
    try:
        return uuid.UUID(_BOOT_ID.read_text().strip()).bytes
    except (OSError, ValueError):
        return os.urandom(16)
