"""The journal's file: checked, repaired and read at a start, and repaired while it is in use.

Damage at a start is repaired before anything else uses the file. A later repair also writes into
the new file the rows that are known from memory; see ``repair.py``.
"""

from __future__ import annotations

import sqlite3
import sys
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from payloadd.errors import StartError
from payloadd.files import make_folder
from payloadd.journal.sqlite import (
    block_rows,
    dead_letters,
    file_check,
    inventory,
    segments,
    stream_rows,
)
from payloadd.journal.sqlite.backlog import Backlog
from payloadd.journal.sqlite.blocks import Blocks
from payloadd.journal.sqlite.compaction import Compaction
from payloadd.journal.sqlite.damage import Finding, Findings, is_corrupt
from payloadd.journal.sqlite.deletion import RowDeletion, Vacuum
from payloadd.journal.sqlite.disk_probe import has_room, is_full
from payloadd.journal.sqlite.disk_reserve import DiskReserve
from payloadd.journal.sqlite.excluded import ExcludedRanges
from payloadd.journal.sqlite.file_check import make_sound, open_sound
from payloadd.journal.sqlite.files_in_use import FilesInUse
from payloadd.journal.sqlite.hidden_rows import HiddenRows
from payloadd.journal.sqlite.high_water import HighWater
from payloadd.journal.sqlite.oldest_row import OldestRow
from payloadd.journal.sqlite.read_errors import ReadErrors, read_error, retry_reads
from payloadd.journal.sqlite.repair import FileRepair, MemoryState, free_statements
from payloadd.journal.sqlite.restoration import restore_rows
from payloadd.journal.sqlite.salvage import recreate, remove_unfinished
from payloadd.journal.sqlite.schema import connect
from payloadd.journal.sqlite.segments import Segments
from payloadd.journal.sqlite.staging import Staging
from payloadd.journal.sqlite.table_scan import is_unreadable
from payloadd.model.streams import DEFAULT, DEFAULT_NAME, first_seq
from payloadd.observe.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from payloadd.journal.sqlite.inventory import Inventory
    from payloadd.journal.sqlite.job_rows import Range
    from payloadd.journal.sqlite.lock import StateDirLock
    from payloadd.model.job import Job

T = TypeVar("T")

log = get_logger(__name__)


class DatabaseFile:
    """One open journal file, with the objects that use it. Methods raise sqlite3.Error."""

    def __init__(
        self, path: Path, max_length: int = 0, read_uptime: Callable[[], int] | None = None
    ) -> None:
        """Open or create the journal at ``path``, and repair it if it is damaged.

        ``max_length``: bytes of the largest request, for the size of the disk reserve.
        ``read_uptime``: as for ``KeyClock``. Raises sqlite3.Error, OSError, and StartError where
        the journal cannot be used as it is.
        """
        self._path = path
        self._folder = path.parent
        self.reserve = DiskReserve(self._folder, max_length)
        # The last run has left the reserve file: on a full disk SQLite needs its space to open the
        # database file.
        self.reserve.release()
        remove_unfinished(self._folder)
        self.most_keys = sys.maxsize
        """Idempotency-Keys that are kept at most."""
        self.in_doubt = False
        """Whether SQLite's log may hold a commit that failed, which a crash would bring back."""
        self.high_water = HighWater(path, read_uptime)
        self.findings = Findings()
        """Damage that is to be reported."""
        self.damaged_payloads = 0
        """Payloads that were found to be damaged or missing since the start began."""
        self.jobs_in_memory: Callable[[], Sequence[Job]] = tuple
        """Returns the jobs in memory that are not settled: a repair writes their rows again."""
        self.handed: dict[str, Sequence[Job]] = {}
        """Jobs that ``page`` and ``sealed`` have returned, until the event loop has them."""
        self.lock: StateDirLock | None = None
        """The lock of STATE_DIR, None where the caller has none."""
        self.files = FilesInUse(path)
        self._read_errors = ReadErrors(self._folder)
        self._file_repair = FileRepair(path, self._read_errors)
        self._counted = False
        """Whether the totals were compared with the rows in this run."""
        self._dead_as_of = 0
        """The version of the data (PRAGMA data_version) when dead letters were counted."""
        self._connection, found, gaps = open_sound(path)
        self._hidden = HiddenRows(repaired=bool(found))
        self.blocks = Blocks()
        self.in_rows: frozenset[int] = frozenset()
        """The streams whose jobs get rows at once, not a place in a block."""
        try:
            self.findings.add(*found)
            try:
                retry_reads(lambda: self._read_at_start(gaps), self._folder)
            except sqlite3.Error as error:
                self._repair_at_start(error)
            self._unread = set(stream_rows.with_jobs(self._connection))
            self._know_streams({DEFAULT: DEFAULT_NAME})
            self.high_water.begin(self.totals)
            self._hidden.begin(self._connection, self.totals, self._inventory.sealed)
            self.files.note()
            del self._inventory  # it lists all sealed batches: there may be millions
        except BaseException:
            self._connection.close()
            self.high_water.close()
            raise

    def _know_streams(self, names: dict[int, str]) -> None:
        """Go on with these streams, by number."""
        self.streams = names
        self.following = {one: first_seq(one) + self.totals.next for one in names}
        self._segments.are_shared = len(names) > 1

    def _read_at_start(self, gaps: Sequence[Range]) -> None:
        try:
            self._read(gaps)
        except sqlite3.Error as error:
            raise read_error(self._path, error) from None

    def _read(self, gaps: Sequence[Range]) -> None:
        """Read all tables but ``jobs``, compare them with ``journal.high`` and the segments.

        ``gaps``: ranges of jobs whose pages cannot be read.
        """
        # A repair may have lost dead letters, whose jobs wait again.
        refusing = "dead" not in self.findings.tables
        self.findings.add(*block_rows.unpack_all(self._connection))
        small = self._path.stat().st_size <= file_check.MOST_CHECKED
        self._hidden.checked |= small
        self._inventory = inventory.read_and_repair(
            self._connection,
            segments.names(self._folder / segments.FOLDER),
            gaps,
            counting=self._hidden.checked,
            refusing=refusing,
            is_sound=lambda: self._hidden.checked or self._is_sound(),
        )
        self._counted |= small
        self._note_damage(self._inventory)
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
        if not hasattr(self, "_excluded"):
            self._excluded = ExcludedRanges(self._inventory.apart)
        self._segments.are_shared = stream_rows.are_several(self._connection)
        self._attach()
        self.compaction.unlink_dead()

    def _bury_uncounted(self, held: int) -> None:
        """Make a dead letter of payloads that the journal held before and does not hold now."""
        missing = held - self.totals.payloads - self.totals.dead_payloads
        if missing > 0:
            self._note_damage(inventory.bury_uncounted(self._connection, self.totals, missing))
            self._count_dead()

    def _attach(self) -> None:
        """Create the objects that use the connection which is open now."""
        self.vacuum = Vacuum(self._connection)
        self._backlog = Backlog(
            self._connection, self._folder, self._excluded, self._read_errors, self.blocks
        )
        in_blocks = frozenset(self.blocks.noted())
        self.deletion = RowDeletion(self._connection, in_blocks, checked=self._hidden.checked)
        self.staging = Staging(self._connection, self.deletion, self.high_water.key_clock)
        self._oldest = OldestRow(self._connection)
        self.blocks.unpacked = self._oldest.include
        self.compaction = Compaction(self._connection, self._folder, self._segments, self.findings)
        # A repair may have found rows that no query did before.
        self._segments.replaceable = None

    def _note_damage(self, result: Inventory) -> None:
        self.damaged_payloads += result.lost_payloads
        self.findings.add(*result.findings)

    def _repair_at_start(self, error: sqlite3.Error) -> None:
        """Repair a damaged file that nothing uses yet, and read it.

        Raises ``error`` where it is not an error of damage, and StartError where the file cannot be
        repaired.
        """
        unreadable = is_unreadable(error)
        damaged = is_corrupt(error) or (is_full(error) and has_room(self._folder))
        if not (unreadable or damaged):
            raise error
        self._connection.close()
        found, gaps = make_sound(self._path, tolerant=unreadable)
        self._connection = connect(self._path)
        self._hidden.repaired()
        held = self.totals.payloads + self.totals.dead_payloads if hasattr(self, "_excluded") else 0
        self.findings.add(Finding("file", str(error)), *found)
        self._read(gaps)
        self._bury_uncounted(held)

    def _repair(self, error: sqlite3.Error) -> bool:
        """Repair a damaged file that is in use; returns whether to try the statement again."""
        # Of a commit in doubt SQLite's log may have all pages: they would be copied as committed.
        if not self._file_repair.is_due(error) or self.in_doubt:
            return False
        state = self._memory_state()
        free_statements(error)
        self._connection.close()
        try:
            found, result = self._file_repair.run(state)
        except (OSError, sqlite3.Error, StartError) as failure:
            self.findings.add(Finding("file", f"{error}; it cannot be repaired: {failure}"))
            # The daemon goes on with the parts of the file that can still be read and written.
            self._connection = connect(self._path)
            self.files.note()
            with suppress(sqlite3.Error):
                self._attach()
            return False
        self._connection = connect(self._path)
        self.files.note()
        # The copy has their jobs in rows.
        self.blocks = Blocks()
        self._hidden.repaired()
        self._attach()
        self.compaction.recheck_all()
        self.findings.add(Finding("file", str(error)), *found)
        self._counted = True
        self._adopt(result)
        return True

    def _memory_state(self) -> MemoryState:
        # A request that is being staged is refused: some of its rows may be lost.
        self.staging.abandon()
        return MemoryState(
            self.totals,
            (*self.deletion.ranges, *self.blocks.noted()),
            self.jobs_in_memory(),
            self._hidden.deleted,
            self._held(),
            self.high_water.identity,
            self.streams,
        )

    def missing_file(self) -> str | None:
        """Return the path of a file that was deleted or replaced, None if all are in place."""
        if (path := self.files.problem()) is not None:
            return path
        if self.lock is not None and not self.lock.in_place():
            return str(self.lock.path)
        if not self.high_water.in_place():
            return str(self.high_water.path)
        return str(self._folder / segments.FOLDER) if self._segments.missing() else None

    def restore_files(self, *, immediately: bool = False) -> bool:
        """Write the journal again where files are missing; return whether all are in their places.

        Files may be moved back before: it is tried ``FilesInUse.grace`` seconds after they were
        missed first, or ``immediately``. ``files.failure`` is the reason why it could not be done.
        """
        missing = self.missing_file()
        if missing is not None:
            due = self.files.is_due() or immediately
            if not due or self.in_doubt or self._segments.in_doubt:
                return False
            try:
                self._recreate(missing)
            except (OSError, sqlite3.Error, StartError) as error:
                what = f"{missing} was deleted or replaced while it is in use"
                self.files.failure = f"{what}, and cannot be written again: {error}"
                return False
        self.files.found_in_place()
        return True

    def _recreate(self, missing: str) -> None:
        """Write those files again that are missing."""
        make_folder(self._folder, 0o700)
        if self.lock is not None and not self.lock.in_place():
            self.lock.renew()
        state = self._memory_state()
        replaced = None
        if not self.files.have_database():
            results: list[Inventory] = []
            replaced = recreate(
                self._path,
                self._connection,
                lambda copy, gaps: results.append(self._file_repair.complete(copy, gaps, state)),
            )
            self._reconnect()
            self.blocks = Blocks()
            self._hidden.repaired()
            self._adopt(results[0])
        elif self.files.problem() is not None:
            # The deleted log is still open. Its content goes into the database file.
            (busy, *_) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if busy:
                raise sqlite3.OperationalError("the log cannot be written into the database file")
            self._reconnect()
        if self._segments.missing():
            gone = self._segments.forget_missing()
            with self._transaction():
                in_rows = [job for job in state.jobs if not self.blocks.has(job.seq)]
                restore_rows(self._connection, in_rows, gone)
        self._attach()
        self.compaction.recheck_all()
        self.high_water.recreate(self.totals)
        jobs, payloads = self.totals.jobs, self.totals.payloads
        log.error("journal_recreated", missing=missing, kept=replaced, jobs=jobs, payloads=payloads)

    def _reconnect(self) -> None:
        """Close the connection, and open the file that is at the path now."""
        self._connection.close()
        self._connection = connect(self._path)
        self.files.note()

    def _held(self) -> int:
        """Return the payloads in the journal, of waiting jobs and of dead letters.

        0, for unknown, where another process may have dropped dead letters since they were counted.
        """
        with suppress(sqlite3.Error):
            if self._data_version() != self._dead_as_of:
                return 0
        return self.totals.payloads + self.totals.dead_payloads

    def _with_repair(self, function: Callable[[], T]) -> T:
        """Call a function, and once more if it found damage and the file could be repaired."""
        try:
            return function()
        except sqlite3.Error as error:
            if not self._repair(error):
                raise
            return function()

    def _adopt(self, result: Inventory) -> None:
        """Continue with the totals of an inventory, and note its damage."""
        self._note_damage(result)
        self.totals = replace(result.totals, evicted=self.totals.evicted)
        self._count_dead()

    def _is_sound(self) -> bool:
        return self._hidden.is_sound(self._connection)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            yield

    def count_dead(self) -> None:
        """Count the dead letters again: another process may have dropped some."""
        self._with_repair(self._count_dead)

    def _count_dead(self) -> None:
        # Noted before the read: a dead letter that is dropped meanwhile is seen the next time.
        self._dead_as_of = self._data_version()
        found = dead_letters.ranges(self._connection)
        dead, payloads = sum(one.journal_bytes for one in found), sum(one.payloads for one in found)
        self.totals = replace(self.totals, dead_bytes=dead, dead_payloads=payloads)

    def foreign_changes(self) -> int:
        """Return a number that changes when another process has written to the file."""
        return self._data_version()

    def _data_version(self) -> int:
        (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        return int(version)
