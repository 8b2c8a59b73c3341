"""Counts of the journal outside SQLite, so that a start notices lost commits.

SQLite opens a journal whose write-ahead log is missing, cut off or damaged without an error: it
keeps the commits that match their checksums and drops the others. So after each commit the counts
of jobs and payloads that were ever accepted are also written to ``journal.high``. A start that
finds smaller counts in SQLite's file knows that payloads are missing, and how many.

* Two records of fixed size are written in turn, each in its own sector and with a checksum: if a
  power cut tears one record, the other record is still valid.
* A record is written after its commit, so it never counts more than what is durable, and before
  any request of the commit is answered. It goes to the page cache: after a killed process the
  count is exact.
* The file is synced once a second. After a power cut (a different boot id) the count is a lower
  bound.
* Payloads of lost commits that were stored before are not missing. The number of missing payloads
  is the smaller of two numbers, because batches are stored in order: the payloads that were
  accepted and are not in the file, and the payloads that the journal held at the last record.
* Numbers of jobs continue after the record: no ``seq`` is used twice.
* A record contains the identity of its journal. If ``journal.db`` has a different identity, one of
  the two files was replaced. Then all payloads that the record's journal held may be missing, and
  commits of the other journal may be missing too. Segments that no row refers to are kept under
  another name.
* The number of missing payloads is kept over crashes and failed starts, until a daemon that was
  ready is stopped in order: this is how an operator acknowledges it.
"""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from payloadd.errors import StartError
from payloadd.files import is_at, sync_folder
from payloadd.journal.key_clock import ClockReading, KeyClock
from payloadd.journal.sqlite import identity, segments
from payloadd.journal.sqlite.files_in_use import put_aside
from payloadd.journal.sqlite.high_water_record import (
    FLAG_AT_LEAST,
    FLAG_CLEAN,
    FLAG_FOREIGN,
    OPEN_FLAGS,
    SECTOR_BYTES,
    SUFFIX,
    HighWaterRecord,
    pack,
    read,
)
from payloadd.journal.sqlite.segment_file import cut_old_bytes

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable

    from payloadd.journal.sqlite.transaction import Totals

BOOT_ID_FILE: Final = Path("/proc/sys/kernel/random/boot_id")
"""A random UUID that changes with each boot of the machine; see random(4)."""

_LOST_SUFFIX: Final = ".lost"
"""Added to the name of a segment whose rows are lost, so that an operator can read its payloads."""

_KEPT_FLAGS: Final = FLAG_AT_LEAST | FLAG_FOREIGN
_SEGMENTS_IN_USE: Final = "SELECT DISTINCT segment FROM jobs WHERE segment IS NOT NULL"


@dataclass(frozen=True, slots=True)
class LostCommits:
    """Commits that a start found to be missing from SQLite's file."""

    payloads: int
    """Payloads that may be missing, found by this start and by earlier ones."""
    at_least: bool
    """Whether ``payloads`` is a lower bound."""
    again: int
    """Payloads that are stored but whose removal from the journal is lost: stored again."""
    files: tuple[str, ...]
    """New names of the segments that no row refers to any more."""
    foreign: bool = False
    """Whether the record belonged to another journal."""

    def __str__(self) -> str:
        """Return the number of payloads as text, with "at least" where it is a lower bound."""
        return f"{'at least ' if self.at_least else ''}{self.payloads}"


class HighWater:
    """The file ``journal.high`` of one STATE_DIR.

    Errors while writing are ignored: the file only detects damage, and a commit must not fail
    because of it.
    """

    def __init__(self, journal: Path, read_uptime: Callable[[], int] | None = None) -> None:
        """Read the file that belongs to ``journal``, before that is opened. Raises OSError.

        ``read_uptime``: as for ``KeyClock``.
        """
        self._path = journal.with_suffix(SUFFIX)
        self._segments = journal.parent / segments.FOLDER
        self._existed = self._path.exists()
        self._found = read(journal)
        self.unreadable = False
        """Whether the file has no valid record although the journal has jobs."""
        self.acknowledged = False
        """Whether a clean stop from now on acknowledges the missing payloads."""
        self._file: int | None = None
        self._number = 0 if self._found is None else self._found.number
        self._boot = _boot_id()
        self.key_clock = _key_clock(self._found, self._boot, read_uptime)
        self._missing = self._flags = 0
        self._journal = b""
        self._dirty = False
        self.damage: LostCommits | None = None
        """Commits that are missing, None if none are, and until ``reconcile`` was called."""

    def identify(self, connection: sqlite3.Connection, known: bytes | None) -> None:
        """Remember ``known``, the identity of the journal; where that is None, write one.

        The identity of the last record is preferred to a new one. Raises sqlite3.Error.
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
        # Where commits are lost, their payloads are counted as missing already.
        known = self._found is not None and not self._is_foreign and self.damage is None
        return self._found.held if known and self._found is not None else 0

    @property
    def _is_foreign(self) -> bool:
        return self._found is not None and self._found.journal != self._journal

    def reconcile(self, connection: sqlite3.Connection, totals: Totals) -> Totals:
        """Compare ``totals`` with the last record; return the totals to continue with.

        Sets ``damage`` where commits are lost, and renames segments whose rows are lost.

        Raises sqlite3.Error, OSError, and StartError where journal.db is new but there are segments
        with payloads of the last record.
        """
        found = self._found
        if found is None:
            self.unreadable = self._existed and totals.next > 1
            return totals
        if totals.next == 1 and found.held and segments.names(self._segments):
            # A start would rename segments that an operator can still use with their journal.db.
            raise StartError(
                f"{self._segments} belongs to another journal than journal.db: restore the"
                " journal.db of these segments, or move the segments away"
            )
        if self._is_foreign and totals.next > 1:
            self._note_foreign(connection, found)
            return totals
        held = totals.payloads + totals.dead_payloads
        lost = found.accepted - totals.accepted
        # Of the payloads held at the record, and of those lost since, this many left the journal.
        gone = held + lost - found.held if lost >= 0 else 0
        again = max(0, min(gone, held))
        files: tuple[str, ...] = ()
        self._missing, self._flags = found.missing, found.flags & _KEPT_FLAGS
        names = segments.names(self._segments)
        following = max(found.next, totals.next)
        # A segment is named by the next number at its creation: so many jobs are not in the record.
        unrecorded = max([0, *(name - following for name in names)])
        behind = found.next > totals.next or unrecorded > 0
        if behind:
            self._missing += max(0, min(lost, found.held)) + unrecorded
            is_exact = found.boot == self._boot and not unrecorded
            self._flags |= 0 if is_exact else FLAG_AT_LEAST
            files = self._put_aside(name for name in names if name >= totals.next)
            following += unrecorded
            totals = replace(totals, next=following, accepted=max(found.accepted, totals.accepted))
            # The record comes before the totals, because the new totals hide the loss. It counts
            # no held payloads: a start that is killed between the two writes finds the same loss
            # again and adds nothing to it.
            self._open()
            self.write(replace(totals, payloads=0, dead_payloads=0))
            self.sync()
            totals.write(connection)
        if self._flags & FLAG_FOREIGN or self._missing or again or (behind and not found.clean):
            flags = self._flags
            at_least, foreign = bool(flags & FLAG_AT_LEAST), bool(flags & FLAG_FOREIGN)
            self.damage = LostCommits(self._missing, at_least, again, files, foreign)
        return totals

    def _note_foreign(self, connection: sqlite3.Connection, found: HighWaterRecord) -> None:
        """Count all payloads that the journal of a foreign record held as missing."""
        self._missing = found.missing + max(0, found.held)
        self._flags = _KEPT_FLAGS
        needed = {name for (name,) in connection.execute(_SEGMENTS_IN_USE)}
        names = segments.names(self._segments)
        files = self._put_aside(name for name in names if name not in needed)
        self.damage = LostCommits(self._missing, at_least=True, again=0, files=files, foreign=True)

    def assume(self, connection: sqlite3.Connection, totals: Totals) -> Totals:
        """Return recounted totals with the two counts that only the last record still has.

        Raises sqlite3.Error.
        """
        found = self._found
        if found is None or self._is_foreign:
            return totals
        totals = replace(totals, next=max(totals.next, found.next), accepted=found.accepted)
        totals.write(connection)
        return totals

    def _put_aside(self, names: Iterable[int]) -> tuple[str, ...]:
        """Rename segments whose rows are lost; return their new names."""
        moved = []
        for name in names:
            path = segments.path_of(self._segments, name)
            with suppress(OSError):
                cut_old_bytes(path)
            with suppress(OSError):
                moved.append(path.rename(path.with_name(path.name + _LOST_SUFFIX)).name)
        return tuple(moved)

    def begin(self, totals: Totals) -> None:
        """Write and sync a first record, which marks the run as not ended. Raises OSError."""
        self._open()
        self.write(totals)
        self.sync()

    @property
    def path(self) -> Path:
        """The path of the file."""
        return self._path

    def in_place(self) -> bool:
        """Return whether the file is still at its path."""
        return self._file is None or is_at(self._file, self._path)

    def recreate(self, totals: Totals) -> None:
        """Write the last record into a new file, where the file is not in its place.

        Raises OSError.
        """
        if self.in_place():
            return
        put_aside(self._path)
        self.close()
        self._found = None
        self.begin(totals)

    def _open(self) -> None:
        if self._file is not None:
            return
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | OPEN_FLAGS, 0o600)
        if self._found is None:
            # Allocates the space once, so that no later record fails on a full disk.
            with suppress(OSError):
                os.pwrite(self._file, bytes(2 * SECTOR_BYTES), 0)
                os.fsync(self._file)
                sync_folder(self._path.parent)

    def write(self, totals: Totals) -> None:
        """Write the record of a commit into the page cache."""
        if self._file is None:
            return
        self._number += 1
        # Totals that damage has made negative must not end the daemon.
        held = max(0, totals.payloads + totals.dead_payloads)
        record = pack(
            self._number,
            self._boot,
            self._journal,
            totals.next,
            totals.accepted,
            held,
            self._missing,
            self._flags,
            *self.key_clock.reading(),
        )
        try:
            os.pwrite(self._file, record, SECTOR_BYTES * (self._number & 1))
            self._dirty = True
        except OSError:
            # ``suppress`` would be a measurable part of the time of this method.
            return

    def sync(self) -> None:
        """Sync the last record to the disk."""
        if self._dirty and self._file is not None:
            self._dirty = False
            with suppress(OSError):
                os.fdatasync(self._file)

    def end(self, totals: Totals) -> None:
        """Write the record of a clean stop, and close the file.

        Resets the missing payloads if ``acknowledged``.
        """
        if self.acknowledged:
            self._flags = self._missing = 0
        self._flags |= FLAG_CLEAN
        self.write(totals)
        self.sync()
        self.close()

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


def _key_clock(
    found: HighWaterRecord | None, boot: bytes, read_uptime: Callable[[], int] | None
) -> KeyClock:
    """Return the clock of the keys, which goes on from the last record."""
    if found is None or not found.time:
        return KeyClock(None, rebooted=False, read_uptime=read_uptime)
    last = ClockReading(found.time, found.uptime)
    return KeyClock(last, rebooted=found.boot != boot, read_uptime=read_uptime)


def _boot_id() -> bytes:
    """Return the boot id of the machine; random bytes where it cannot be read."""
    try:
        return uuid.UUID(BOOT_ID_FILE.read_text().strip()).bytes
    except (OSError, ValueError):
        return os.urandom(16)
