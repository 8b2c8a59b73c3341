"""The journal's SQLite file: every statement on jobs, and no async.

Synchronous on purpose: one connection, used by one thread at a time, a whole group of
operations in one transaction. In WAL mode with ``synchronous=FULL`` a commit is one fsync
(https://www.sqlite.org/wal.html), and after it a power cut loses nothing. The bytes of large
jobs are in segments, which are synced before it.
"""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from typing import TYPE_CHECKING

from payloadd.journal.sqlite import (
    dead_letters,
    idempotency,
    inventory,
    job_rows,
    layout_rows,
    small_tables,
)
from payloadd.journal.sqlite.damage import Finding
from payloadd.journal.sqlite.database_file import SoundFile
from payloadd.journal.sqlite.operation_writer import carry_out
from payloadd.journal.sqlite.restoration import restore_rows
from payloadd.journal.sqlite.schema import MIGRATIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from payloadd.journal.api import Operation
    from payloadd.journal.sqlite.backlog import Page
    from payloadd.journal.sqlite.damage import DamagedRow
    from payloadd.journal.sqlite.inventory import Inventory
    from payloadd.journal.sqlite.job_rows import Range
    from payloadd.journal.sqlite.transaction import CommitChanges, Totals
    from payloadd.model.job import Batch, Job
    from payloadd.model.layout import Layout

    _State = tuple[Totals, tuple[Range, ...], int, Range | None]


class Database(SoundFile):
    """One open journal file, with its segments. Methods raise sqlite3.Error."""

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
            self.deletion.finish()
        with suppress(sqlite3.Error):
            self.compaction.unlink_dead()

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
            changes = carry_out(self._connection, operations, self.totals.next, self.staging)
            # Before the sync: who is asked meanwhile whether there is room has to know.
            self.totals = self._write(changes)
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
        if changes.settled:
            self._hidden.delete(changes.settled)

    def _state(self) -> _State:
        """Return what is known in memory of what is committed."""
        return self.totals, self.deletion.ranges, self.deletion.absent, self.staging.range

    def _roll_back(self, before: _State) -> None:
        self.totals, self.deletion.ranges, self.deletion.absent, self.staging.range = before
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _write(self, changes: CommitChanges) -> Totals:
        """Write what was gathered, large jobs into a segment; returns the totals behind it."""
        if changes.large or changes.staged:
            self.staging.place(changes, self._segments, self.totals.next)
        job_rows.insert(self._connection, changes.rows)
        job_rows.insert_placed(self._connection, changes.placed)
        self.compaction.look_at(self.deletion.delete(changes.settled))
        # Where the file stays as it is these rows are found again, and stored twice.
        if self.deletion.missed:
            self._hidden.check(self._connection, self.deletion.missed)
        # Behind all seals of this commit: one of what is settled may be among them.
        job_rows.delete_each(self._connection, "batches", "first", changes.unsealed)
        idempotency.evict(self._connection, changes, self.totals.keys, self.most_keys)
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
            self._look_for_unread()
        self.handed["page"] = page.jobs
        return page.jobs

    def _page(self, after: int, most_jobs: int, most_bytes: int) -> Page:
        end = self.staging.first
        while True:
            page = self._safely(lambda: self._backlog.page(after, most_jobs, most_bytes, end))
            if not page.damaged or self._bury(page.damaged):
                self._hidden.read(page)
                return page

    def sealed(self, first: int) -> Batch | None:
        """Return a batch that is sealed, as it was; None if nothing of it can be read.

        Members that are damaged become dead letters. The others are sent under the same key:
        where the object is in the store already it is replaced, and nothing is there twice.
        """
        while True:
            batch, damaged, last = self._safely(lambda: self._backlog.sealed(first))
            if len(damaged) + (0 if batch is None else len(batch.jobs)) < last - first + 1:
                self._bury_absent(first, last)
                # The file may have been made sound: then there are more.
                batch, damaged, _ = self._safely(lambda: self._backlog.sealed(first))
            if not damaged or self._bury(damaged):
                break
        self.handed["sealed"] = () if batch is None else batch.jobs
        if batch is None:
            job_rows.delete_each(self._connection, "batches", "first", [first])
        elif batch.jobs[0].seq != first:
            with self._transaction():
                job_rows.delete_each(self._connection, "batches", "first", [first])
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
                    taken = inventory.bury(self._connection, damaged, self.totals, self._is_sound)
        except sqlite3.Error as error:
            if not self._repair(error):
                raise
            return False
        if taken is not None:
            self._adopt(taken)
        return taken is not None

    def _bury_absent(self, first: int, last: int) -> None:
        """Make a dead letter of members of a sealed batch that have no rows."""

        def bury() -> Inventory:
            with self._transaction():
                taken = inventory.bury_absent(self._connection, first, last, self.totals)
                self._hidden.check(self._connection, len(taken.findings))
                return taken

        self._adopt(self._safely(bury))

    def _look_for_unread(self) -> None:
        """Make the file sound where jobs of earlier runs were passed over."""
        try:
            self._hidden.check(self._connection, self._hidden.unread)
        except sqlite3.Error as error:
            reason = "were passed over; those that can be read are stored by the next start"
            self.findings.add(Finding("jobs", reason, jobs=self._hidden.unread))
            self._repair(error)

    def _is_sound(self) -> bool:
        return self._hidden.is_sound(self._connection)

    def _recount(self) -> None:
        """Compare the totals with what is there, once, when all of it has been read."""

        def compare() -> Inventory:
            jobs = self.jobs_in_memory()
            with self._transaction():
                restore_rows(self._connection, jobs)
                return inventory.compare(self._connection, self.totals, (), is_sound=self._is_sound)

        self._adopt(self._safely(compare))

    def oldest(self) -> float | None:
        """Return when the oldest job that is not stored was accepted, in Unix time."""
        return self._oldest.look(self.deletion.ranges)

    @property
    def oldest_unfinished(self) -> bool:
        """Whether ``oldest`` has passed over many dead letters and has to be called again."""
        return self._oldest.unfinished

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
