"""The journal's SQLite file: every statement on jobs, and no async.

Synchronous on purpose: one connection, used by one thread at a time, a whole group of
operations in one transaction. In WAL mode with ``synchronous=FULL`` a commit is one fsync
(https://www.sqlite.org/wal.html), and after it a power cut loses nothing. The bytes of large
jobs are in segments, which are synced before it.
"""

from __future__ import annotations

import sqlite3
import sys
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from daemon.errors import StartError
from daemon.pipeline import (
    answers,
    dead_letters,
    inventory,
    layout_rows,
    rows,
    segment_files,
    small_tables,
    structure,
)
from daemon.pipeline.backlog import Backlog
from daemon.pipeline.carrying_out import carry_out
from daemon.pipeline.clearance import Clearance
from daemon.pipeline.damage import Finding, Findings, is_corrupt
from daemon.pipeline.high_water import HighWater
from daemon.pipeline.oldest import Oldest
from daemon.pipeline.patience import Patience, patiently, read_error
from daemon.pipeline.repair import FileRepair, Known
from daemon.pipeline.reserve import Reserve
from daemon.pipeline.restoration import restore_rows
from daemon.pipeline.scan import is_unreadable
from daemon.pipeline.schema import MIGRATIONS, connect
from daemon.pipeline.segments import Segments
from daemon.pipeline.staging import Staging
from daemon.pipeline.structure import make_sound, open_sound
from daemon.pipeline.sweep import Sweep
from daemon.pipeline.vacuum import Vacuum

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from daemon.pipeline.backlog import Page
    from daemon.pipeline.changes import Changes
    from daemon.pipeline.damage import DamagedRow
    from daemon.pipeline.inventory import Inventory
    from daemon.pipeline.job import Batch, Job
    from daemon.pipeline.layout import Layout
    from daemon.pipeline.operations import Operation
    from daemon.pipeline.rows import Range
    from daemon.pipeline.totals import Totals

    _State = tuple[Totals, tuple[Range, ...], Range | None]

T = TypeVar("T")


class Database:
    """One open journal file, with its segments. Methods raise sqlite3.Error."""

    def __init__(self, path: Path, max_length: int = 0) -> None:
        """Open the journal at ``path``, and put right what is damaged; raises StartError too."""
        self._path = path
        self._folder = path.parent
        self.reserve = Reserve(self._folder, max_length)
        # The last run has left it: on a disk that is full SQLite needs room to open a file.
        self.reserve.give_up()
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
        self._connection, found, gaps = open_sound(path)
        try:
            self.findings.add(*found)
            try:
                patiently(lambda: self._read_at_start(gaps))
            except sqlite3.Error as error:
                self._repair_at_start(error)
            self.high_water.begin(self.totals)
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
        small = self._path.stat().st_size <= structure.MOST_CHECKED
        self._inventory = inventory.take(
            self._connection,
            segment_files.names(self._folder / segment_files.FOLDER),
            gaps,
            counting=small or bool(gaps),
        )
        self._counted |= small
        self._take_over(self._inventory)
        self.totals = self._inventory.totals
        self._count_dead()
        if not hasattr(self, "_segments"):
            if not self._inventory.known:
                self.totals = self.high_water.assume(self._connection, self.totals)
            self.totals = self.high_water.reconcile(self._connection, self.totals)
            self._segments = Segments(self._folder)
        self._segments.check(self.totals.next)
        if not hasattr(self, "_apart"):
            self._apart = self._inventory.apart
        self._attach()
        self.sweep.unlink_dead()

    def _attach(self) -> None:
        """Have all parts use the connection that is open now."""
        self.vacuum = Vacuum(self._connection)
        self._backlog = Backlog(self._connection, self._folder, self._apart, self._patience)
        self.clearance = Clearance(self._connection)
        self.staging = Staging(self._connection, self.clearance)
        self._oldest = Oldest(self._connection)
        self.sweep = Sweep(self._connection, self._folder, self._segments, self.findings)

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
        self.findings.add(Finding("file", str(error)), *found)
        self._read(gaps)

    def _repair(self, error: sqlite3.Error) -> bool:
        """Make a damaged file sound that is in use; returns whether to try again."""
        # SQLite would take a commit that is in doubt for one that was made.
        if not self._file_repair.is_due(error) or self.in_doubt:
            return False
        # A request that is being staged is refused: its rows may not all be there any more.
        self.staging.abandon()
        known = Known(self.totals, self.clearance.ranges, self.jobs_in_memory())
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
        self.sweep.look_at_all()
        self.findings.add(Finding("file", str(error)), *found)
        self._counted = True
        self._adopt(taken)
        return True

    def _safely(self, function: Callable[[], T]) -> T:
        """Run a function, and again if the file was damaged and could be made sound."""
        try:
            return function()
        except sqlite3.Error as error:
            if not self._repair(error):
                raise
            return function()

    def close(self) -> None:
        """Close the file; SQLite folds its log into it. The reserve stays, for the next start."""
        self.make_room()
        self._segments.close()
        try:
            self._connection.close()
            self.high_water.end(self.totals)
        finally:
            self.high_water.close()

    def make_room(self) -> None:
        """Delete all that is left of what is stored, as far as the disk lets us."""
        with suppress(sqlite3.Error):
            self.clearance.finish()
        with suppress(sqlite3.Error):
            self.sweep.unlink_dead()

    def commit(self, operations: Iterable[Operation]) -> None:
        """Carry out all operations and make them durable together; on an error none."""
        try:
            self._commit(operations)
        except sqlite3.Error as error:
            if not self._repair(error):
                raise
            self._commit(operations)

    def _commit(self, operations: Iterable[Operation]) -> None:
        if self._segments.in_doubt:
            self.probe()
        before = self._state()
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            # Before the sync: who is asked meanwhile whether there is room has to know.
            self.totals = self._write(
                carry_out(self._connection, operations, self.totals.next, self.staging)
            )
        except BaseException:
            self._segments.cut()
            self._roll_back(before)
            raise
        self.in_doubt = True
        try:
            self._connection.execute("COMMIT")
        except BaseException:
            self._roll_back(before)
            raise
        self.in_doubt = False
        self._segments.keep()
        self.high_water.write(self.totals)

    def _state(self) -> _State:
        """Return what is known in memory of what is committed."""
        return self.totals, self.clearance.ranges, self.staging.range

    def _roll_back(self, before: _State) -> None:
        self.totals, self.clearance.ranges, self.staging.range = before
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _write(self, changes: Changes) -> Totals:
        """Write what was gathered, large jobs into a segment; returns the totals behind it."""
        if changes.large or changes.staged:
            self.staging.place(changes, self._segments, self.totals.next)
        rows.insert(self._connection, changes.rows)
        rows.insert_placed(self._connection, changes.placed)
        self.sweep.look_at(self.clearance.delete(changes.settled))
        # Behind all seals of this commit: one of what is settled may be among them.
        rows.delete_each(self._connection, "batches", "first", changes.unsealed)
        answers.evict(self._connection, changes, self.totals.keys, self.most_keys)
        self._oldest.look_from(changes.revived)
        after = self.totals.after(changes)
        if after != self.totals:
            after.write(self._connection)
        return after

    def page(self, after: int, most_jobs: int, most_bytes: int) -> list[Job]:
        """Return the next jobs after ``seq`` in order, without those sealed or dead at the start.

        At most ``most_jobs`` and ``most_bytes`` of payloads, but at least one job if there is one.
        What is damaged becomes a dead letter. Raises sqlite3.Error where the very first cannot be
        read for another reason.
        """
        page = self._page(after, most_jobs, most_bytes)
        while page.damaged and not page.jobs:
            page = self._page(page.last, most_jobs, most_bytes)
        if not page.jobs and not self._counted:
            self._counted = True
            self._recount()
        self.handed["page"] = page.jobs
        return page.jobs

    def _page(self, after: int, most_jobs: int, most_bytes: int) -> Page:
        end = self.staging.first
        while True:
            page = self._safely(lambda: self._backlog.page(after, most_jobs, most_bytes, end))
            if not page.damaged or self._bury(page.damaged):
                return page

    def sealed(self, first: int) -> Batch | None:
        """Return a batch that is sealed, as it was; None if nothing of it can be read.

        Members that are damaged become dead letters. The others are sent under the same key:
        where the object is in the store already it is replaced, and nothing is there twice.
        """
        while True:
            batch, damaged = self._safely(lambda: self._backlog.sealed(first))
            if not damaged or self._bury(damaged):
                break
        self.handed["sealed"] = () if batch is None else batch.jobs
        if batch is None:
            rows.delete_each(self._connection, "batches", "first", [first])
        elif batch.jobs[0].seq != first:
            with self._transaction():
                rows.delete_each(self._connection, "batches", "first", [first])
                dead_letters.seal(self._connection, dead_letters.batch_row(batch))
        return batch

    def _bury(self, damaged: Sequence[DamagedRow]) -> bool:
        """Make dead letters of damaged rows.

        Returns False where rows were written back or the file was repaired instead: they are to
        be read again then.
        """
        jobs = self.jobs_in_memory()
        taken = None
        try:
            with self._transaction():
                if not restore_rows(self._connection, jobs):
                    taken = inventory.bury(self._connection, damaged, self.totals)
        except sqlite3.Error as error:
            if not self._repair(error):
                raise
            return False
        if taken is not None:
            self._adopt(taken)
        return taken is not None

    def _recount(self) -> None:
        """Compare the totals with what is there, once, when all of it has been read."""

        def compare() -> Inventory:
            jobs = self.jobs_in_memory()
            with self._transaction():
                restore_rows(self._connection, jobs)
                return inventory.compare(self._connection, self.totals, ())

        self._adopt(self._safely(compare))

    def _adopt(self, taken: Inventory) -> None:
        self._take_over(taken)
        self.totals = replace(taken.totals, evicted=self.totals.evicted)
        self._count_dead()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            yield

    def oldest(self) -> float | None:
        """Return when the oldest job that is not stored was accepted, in Unix time."""
        return self._oldest.look(self.clearance.ranges)

    @property
    def oldest_unfinished(self) -> bool:
        """Whether ``oldest`` has passed over many dead letters and has to be called again."""
        return self._oldest.unfinished

    def count_dead(self) -> None:
        """Count what dead letters take: another process may have dropped some."""
        self._safely(self._count_dead)

    def _count_dead(self) -> None:
        found = dead_letters.ranges(self._connection)
        dead, payloads = sum(one.room for one in found), sum(one.payloads for one in found)
        self.totals = replace(self.totals, dead_bytes=dead, dead_payloads=payloads)

    def layouts(self, now: Layout) -> list[tuple[int, Layout]]:
        """Note that ``now`` holds from the next job on; return all, each with its first ``seq``."""
        checked = self._safely(lambda: small_tables.check(self._connection, small_tables.LAYOUTS))
        self.findings.add(*small_tables.repair(self._connection, small_tables.LAYOUTS, checked))
        return layout_rows.note(self._connection, checked.rows, self.totals.next, now)

    def probe(self) -> None:
        """Write something durable, to see whether the disk takes it."""
        self._roll_back(self._state())
        # Not an UPDATE that changes nothing: SQLite leaves a page that stays the same unwritten.
        self._connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        # A commit that failed may have left its rows in SQLite's log, for a crash to bring back.
        # They are written over now; before that their bytes must not be.
        self._segments.cut()
        self.in_doubt = False

    def foreign_changes(self) -> int:
        """Return a number that is another one once another process has written."""
        (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        return int(version)
