"""The journal's file, open: made sound and read at the start, and repaired while it is in use.

What is damaged at the start is put right before anything else uses the file. Later a repair puts
what memory knows into the new file; see ``repair.py``.
"""

from __future__ import annotations

import sqlite3
import sys
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from payloadd.errors import StartError
from payloadd.journal.sqlite import dead_letters, file_check, inventory, segment_files
from payloadd.journal.sqlite.backlog import Backlog
from payloadd.journal.sqlite.compaction import Compaction
from payloadd.journal.sqlite.damage import Finding, Findings, is_corrupt
from payloadd.journal.sqlite.deletion import RowDeletion
from payloadd.journal.sqlite.disk_reserve import DiskReserve
from payloadd.journal.sqlite.file_check import make_sound, open_sound
from payloadd.journal.sqlite.hidden_rows import Hidden
from payloadd.journal.sqlite.high_water import HighWater
from payloadd.journal.sqlite.oldest_row import OldestRow
from payloadd.journal.sqlite.read_errors import Patience, patiently, read_error
from payloadd.journal.sqlite.repair import FileRepair, Known
from payloadd.journal.sqlite.schema import connect
from payloadd.journal.sqlite.segments import Segments
from payloadd.journal.sqlite.staging import Staging
from payloadd.journal.sqlite.table_scan import is_unreadable
from payloadd.journal.sqlite.vacuum import Vacuum

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from payloadd.journal.sqlite.inventory import Inventory
    from payloadd.journal.sqlite.job_rows import Range
    from payloadd.model.job import Job

T = TypeVar("T")


class SoundFile:
    """One open journal file, with what reads and writes it. Methods raise sqlite3.Error."""

    def __init__(self, path: Path, max_length: int = 0) -> None:
        """Open the journal at ``path``, and put right what is damaged; raises StartError too."""
        self._path = path
        self._folder = path.parent
        self.reserve = DiskReserve(self._folder, max_length)
        # The last run has left it: on a disk that is full SQLite needs room to open a file.
        self.reserve.release()
        self.most_keys = sys.maxsize
        """Idempotency-Keys that are kept at most."""
        self.in_doubt = False
        """Whether SQLite's log may hold a commit that failed."""
        self.high_water = HighWater(path)
        self.findings = Findings()
        """What is damaged, to be told."""
        self.damaged_payloads = 0
        """Payloads that were counted as waiting and cannot be stored, since the start."""
        self.jobs_in_memory: Callable[[], Sequence[Job]] = tuple
        """Returns the jobs in memory that are not settled: their rows are kept in any repair."""
        self.handed: dict[str, Sequence[Job]] = {}
        """Jobs that ``page`` and ``sealed`` have returned, until the event loop has them."""
        self._patience = Patience()
        self._file_repair = FileRepair(path, self._patience)
        self._counted = False
        self._dead_as_of = 0
        self._connection, found, gaps = open_sound(path)
        self._hidden = Hidden(sound=bool(found))
        try:
            self.findings.add(*found)
            try:
                patiently(lambda: self._read_at_start(gaps))
            except sqlite3.Error as error:
                self._repair_at_start(error)
            self.high_water.begin(self.totals)
            self._hidden.begin(self._connection, self.totals, self._inventory.sealed)
            self.sealed_firsts = [first for first, _ in self._inventory.sealed]
            """The first ``seq`` of each batch that was sealed before a crash: replayed whole."""
        except BaseException:
            self._connection.close()
            self.high_water.close()
            raise

    def _read_at_start(self, gaps: Sequence[Range]) -> None:
        try:
            self._read(gaps)
        except sqlite3.Error as error:
            raise read_error(self._path, error) from None

    def _read(self, gaps: Sequence[Range]) -> None:
        """Read what the file says of itself, and what goes with it."""
        small = self._path.stat().st_size <= file_check.MOST_CHECKED
        self._inventory = inventory.take(
            self._connection,
            segment_files.names(self._folder / segment_files.FOLDER),
            gaps,
            counting=small or self._hidden.sound,
        )
        self._counted |= small
        self._take_over(self._inventory)
        self.totals = self._inventory.totals
        self._count_dead()
        if not hasattr(self, "_segments"):
            self.high_water.identify(self._connection, self._inventory.identity)
            if not self._inventory.known:
                self.totals = self.high_water.assume(self._connection, self.totals)
            self.totals = self.high_water.reconcile(self._connection, self.totals)
            if self._inventory.findings or self._hidden.sound:
                self._bury_uncounted(self.high_water.held)
            self._segments = Segments(self._folder)
        elif self._inventory.identity is None:
            self.high_water.identify(self._connection, None)
        self._segments.check(self.totals.next)
        if not hasattr(self, "_apart"):
            self._apart = self._inventory.apart
        self._attach()
        self.compaction.unlink_dead()

    def _bury_uncounted(self, held: int) -> None:
        """Make a dead letter of what is missing of the payloads that the journal held before."""
        missing = held - self.totals.payloads - self.totals.dead_payloads
        if missing > 0:
            self._take_over(inventory.bury_uncounted(self._connection, self.totals, missing))
            self._count_dead()

    def _attach(self) -> None:
        """Have all parts use the connection that is open now."""
        self.vacuum = Vacuum(self._connection)
        self._backlog = Backlog(self._connection, self._folder, self._apart, self._patience)
        self.deletion = RowDeletion(self._connection)
        self.staging = Staging(self._connection, self.deletion)
        self._oldest = OldestRow(self._connection)
        self.compaction = Compaction(self._connection, self._folder, self._segments, self.findings)

    def _take_over(self, taken: Inventory) -> None:
        self.damaged_payloads += taken.lost_payloads
        self.findings.add(*taken.findings)

    def _repair_at_start(self, error: sqlite3.Error) -> None:
        """Make a damaged file sound that nothing uses yet, and read it.

        Raises ``error``, or StartError, where that is not possible.
        """
        unreadable = is_unreadable(error)
        if not (unreadable or is_corrupt(error)):
            raise error
        self._connection.close()
        found, gaps = make_sound(self._path, tolerant=unreadable)
        self._connection = connect(self._path)
        self._hidden.made_sound()
        held = self.totals.payloads + self.totals.dead_payloads if hasattr(self, "_apart") else 0
        self.findings.add(Finding("file", str(error)), *found)
        self._read(gaps)
        self._bury_uncounted(held)

    def _repair(self, error: sqlite3.Error) -> bool:
        """Make a damaged file sound that is in use; returns whether to try again."""
        # SQLite would take a commit that is in doubt for one that was made.
        if not self._file_repair.is_due(error) or self.in_doubt:
            return False
        # A request that is being staged is refused: its rows may not all be there any more.
        self.staging.abandon()
        known = Known(
            self.totals,
            self.deletion.ranges,
            self.jobs_in_memory(),
            self._hidden.gone,
            self._held(),
            self.high_water.identity,
        )
        self._connection.close()
        try:
            found, taken = self._file_repair.run(known)
        except (OSError, sqlite3.Error, StartError) as failure:
            self.findings.add(Finding("file", f"{error}; it cannot be made sound: {failure}"))
            # What can still be read and written is.
            self._connection = connect(self._path)
            with suppress(sqlite3.Error):
                self._attach()
            return False
        self._connection = connect(self._path)
        self._attach()
        self._hidden.made_sound()
        self.compaction.look_at_all()
        self.findings.add(Finding("file", str(error)), *found)
        self._counted = True
        self._adopt(taken)
        return True

    def _held(self) -> int:
        """Return the payloads that the journal holds, waiting or dead letters.

        0 where another process may have dropped dead letters since they were counted.
        """
        with suppress(sqlite3.Error):
            if self._data_version() != self._dead_as_of:
                return 0
        return self.totals.payloads + self.totals.dead_payloads

    def _safely(self, function: Callable[[], T]) -> T:
        """Run a function, and again if the file was damaged and could be made sound."""
        try:
            return function()
        except sqlite3.Error as error:
            if not self._repair(error):
                raise
            return function()

    def _adopt(self, taken: Inventory) -> None:
        self._take_over(taken)
        self.totals = replace(taken.totals, evicted=self.totals.evicted)
        self._count_dead()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            yield

    def count_dead(self) -> None:
        """Count what dead letters take: another process may have dropped some."""
        self._safely(self._count_dead)

    def _count_dead(self) -> None:
        # Before the reading: what is dropped meanwhile is counted the next time.
        self._dead_as_of = self._data_version()
        found = dead_letters.ranges(self._connection)
        dead, payloads = sum(one.room for one in found), sum(one.payloads for one in found)
        self.totals = replace(self.totals, dead_bytes=dead, dead_payloads=payloads)

    def foreign_changes(self) -> int:
        """Return a number that is another one once another process has written."""
        return self._data_version()

    def _data_version(self) -> int:
        (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        return int(version)
