"""The journal's SQLite file: commits of operations, and reading of the backlog; no async.

Synchronous on purpose: one connection, used by one thread at a time, with a whole group of
operations in one transaction. In WAL mode with ``synchronous=FULL`` a commit is one fsync
(https://www.sqlite.org/wal.html), after which a power cut loses nothing. The bytes of large jobs
are in segments, which are synced before the commit.
"""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from payloadd.journal.sqlite import (
    dead_letters,
    idempotency,
    inventory,
    job_rows,
    layout_rows,
    segment_rows,
    small_tables,
    stream_rows,
)
from payloadd.journal.sqlite.damage import Finding, is_corrupt
from payloadd.journal.sqlite.database_file import DatabaseFile
from payloadd.journal.sqlite.files_in_use import file_gone
from payloadd.journal.sqlite.operation_writer import carry_out
from payloadd.journal.sqlite.operations import Append, Bury, Stage
from payloadd.journal.sqlite.restoration import restore_rows
from payloadd.journal.sqlite.schema import MIGRATIONS
from payloadd.journal.sqlite.transaction import CommitChanges
from payloadd.model.job import id_text
from payloadd.model.streams import DEFAULT, stream_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from payloadd.journal.sqlite.backlog import Page
    from payloadd.journal.sqlite.damage import DamagedRow
    from payloadd.journal.sqlite.inventory import Inventory
    from payloadd.journal.sqlite.job_rows import Range
    from payloadd.journal.sqlite.oldest_row import OldestRow
    from payloadd.journal.sqlite.operations import Operation
    from payloadd.journal.sqlite.transaction import Totals
    from payloadd.model.job import Batch, Job
    from payloadd.model.layout import Layout

    _State = tuple[Totals, tuple[Range, ...], int, Range | None]

_NONE: Final[Mapping[int, Layout]] = MappingProxyType({})


class Database(DatabaseFile):
    """One open journal file, with its segments. Methods raise sqlite3.Error."""

    def close(self) -> None:
        """Close all files. SQLite checkpoints its log into the database file.

        The reserve file stays: the next start may need its space. Raises sqlite3.Error.
        """
        if self.restore_files(immediately=True):
            self.free_space()
            # So that other programs find all jobs in rows. Else the next start does it.
            with suppress(sqlite3.Error):
                self.blocks.unpack_all(self._connection)
        self._segments.close()
        try:
            self._connection.close()
            self.high_water.end(self.totals)
        finally:
            self.high_water.close()

    def free_space(self) -> None:
        """Delete all rows and segments of stored jobs now; errors of the disk are ignored."""
        with suppress(sqlite3.Error):
            self.deletion.finish()
        with suppress(sqlite3.Error):
            self.blocks.delete_done(self._connection)
        with suppress(sqlite3.Error):
            self.compaction.unlink_dead()

    def commit(self, operations: Sequence[Operation]) -> None:
        """Carry out all operations in one transaction and make them durable.

        Raises sqlite3.Error; no operation is carried out then, and ``in_doubt`` tells whether a
        crash may carry them out all the same. Where the file is damaged, it is repaired and the
        commit is tried again.
        """
        try:
            self._commit(operations)
        except sqlite3.Error as error:
            if not self._repair(error):
                raise
            self._commit(operations)

    def _commit(self, operations: Sequence[Operation]) -> None:
        if self._segments.in_doubt:
            self.probe()
        self._unpack_some(operations)
        before = self._state()
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            changes = CommitChanges(self.totals.next, self.following, self.in_rows)
            carry_out(self._connection, operations, changes, self.staging)
            # Set before the sync: the event loop asks for the totals meanwhile, to refuse requests
            # that do not fit.
            self.totals = self._write(changes)
            if not self.files.in_place():
                self._refuse_requests(changes)
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
        self.following = changes.following
        self.blocks.keep()
        self._segments.keep()
        self.compaction.find_replaceable()
        self.high_water.write(self.totals)
        if changes.settled:
            self._hidden.delete(changes.settled)

    def _unpack_some(self, operations: Sequence[Operation]) -> None:
        """Unpack the oldest blocks if there are too many, and those of new dead letters."""
        try:
            # In a loop: a commit may write more than is unpacked at a time.
            while self.blocks.is_full:
                self.blocks.unpack_oldest(self._connection)
        except sqlite3.Error as error:
            # A full disk must not keep stored jobs from being deleted.
            accepts = any(isinstance(one, Append | Stage) for one in operations)
            if accepts or is_corrupt(error):
                raise
        # Of this form, because nearly no commit has one.
        if Bury in map(type, operations):
            batches = [one.batch.jobs for one in operations if isinstance(one, Bury)]
            self.blocks.unpack(self._connection, [(jobs[0].seq, jobs[-1].seq) for jobs in batches])

    def _refuse_requests(self, changes: CommitChanges) -> None:
        """Raise an error for a commit that answers requests, into a file that is deleted."""
        if changes.requests:
            raise file_gone(self.files.problem())

    def _state(self) -> _State:
        """Return the values in memory that a commit changes."""
        return self.totals, self.deletion.ranges, self.deletion.absent, self.staging.range

    def _roll_back(self, before: _State) -> None:
        self.totals, self.deletion.ranges, self.deletion.absent, self.staging.range = before
        self.blocks.drop()
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _write(self, changes: CommitChanges) -> Totals:
        """Write the rows of a commit, large jobs into a segment; returns the new totals."""
        if changes.large or changes.staged:
            self.staging.place(changes, self._segments, self.totals.next)
            if self._segments.are_shared and self._segments.unrecorded is not None:
                self._record_segment(self._segments.unrecorded, changes)
        if changes.alone:
            changes.place_in_rows(changes.alone)
        if changes.small:
            self.blocks.write(self._connection, changes.small, self.totals.next)
        job_rows.insert(self._connection, changes.rows)
        job_rows.insert_placed(self._connection, changes.placed)
        in_rows = self.blocks.settle(self._connection, changes.settled)
        before = self.compaction.recheck_shared if self._segments.are_shared else None
        deleted = self.deletion.delete(in_rows, before)
        if before is None:
            self.compaction.recheck(deleted)
        # A deletion that misses rows, because pages are misplaced, would leave them to be found
        # again and stored twice.
        if missed := self.deletion.missed + self.blocks.missed:
            self._hidden.check(self._connection, missed)
        # After all seals of this commit: it may settle a batch that it has sealed itself.
        job_rows.delete_each(self._connection, "batches", "first", changes.unsealed)
        idempotency.evict(self._connection, changes, self.totals.keys, self.most_keys)
        self._oldest.reconsider(changes.revived)
        after = self.totals.after(changes)
        if after != self.totals:
            after.write(self._connection)
        return after

    def _record_segment(self, name: int, changes: CommitChanges) -> None:
        """Note from which job of each stream on a new segment has jobs."""
        firsts = dict(self.following)
        for job in changes.staged[:1]:
            firsts[stream_of(job.seq)] = min(firsts[stream_of(job.seq)], job.seq)
        segment_rows.note(self._connection, name, firsts.values(), self._segments.names[0])

    def page(self, after: int, most_jobs: int, most_bytes: int) -> list[Job]:
        """Return the next jobs after the number ``after``, in order of ``seq``.

        Leaves out jobs that were sealed, dead or stored at the start, and rows that are no jobs
        because their request was refused. Returns at most ``most_jobs`` jobs and ``most_bytes``
        bytes of lines, but at least one job if there is one. Damaged jobs become dead letters.
        Raises sqlite3.Error where the very first job cannot be read for another reason.
        """
        page = self._page(after, most_jobs, most_bytes)
        while page.damaged and not page.jobs:
            page = self._page(page.last, most_jobs, most_bytes)
        if not page.jobs and not self._counted:
            self._unread.discard(stream_of(after))
            if not self._unread:
                self._counted = True
                self._recount()
                self._check_for_unread()
        self.handed["page"] = page.jobs
        return page.jobs

    def _page(self, after: int, most_jobs: int, most_bytes: int) -> Page:
        def read() -> Page:
            # Rows that wait for deletion: those of a large request that was refused in the end.
            hidden = [range_ for range_ in self.deletion.ranges if range_[1] > after]
            end = self.staging.end_of_page(after)
            return self._backlog.page(after, most_jobs, most_bytes, end, hidden)

        while True:
            page = self._with_repair(read)
            if not page.damaged or self._bury(page.damaged):
                self._hidden.read(page)
                return page

    def sealed_after(self, after: Mapping[int, int]) -> list[int]:
        """Return the first ``seq`` of the next sealed batches; see ``Backlog.sealed_after``."""
        return self._with_repair(lambda: self._backlog.sealed_after(after))

    def sealed(self, first: int) -> Batch | None:
        """Return the sealed batch that begins with ``first``; None if no member can be read.

        Damaged members become dead letters. The other members are sent under the same key, and the
        batch is not ``whole``: an object that is in the store already has the damaged payloads too,
        and the store may keep it.
        """
        while True:
            batch, damaged, last = self._with_repair(lambda: self._backlog.sealed(first))
            if len(damaged) + (0 if batch is None else len(batch.jobs)) < last - first + 1:
                self._bury_absent(first, last)
                # The file may have been repaired by that: then more members can be read.
                batch, damaged, _ = self._with_repair(lambda: self._backlog.sealed(first))
            if not damaged or self._bury(damaged):
                break
        self.handed["sealed"] = () if batch is None else batch.jobs
        if batch is None:
            job_rows.delete_each(self._connection, "batches", "first", [first])
            return None
        if batch.jobs[0].seq != first:
            with self._transaction():
                job_rows.delete_each(self._connection, "batches", "first", [first])
                dead_letters.seal(self._connection, dead_letters.batch_row(batch))
        # If the first members were damaged in an earlier run, the key has the id of another job.
        complete = len(batch.jobs) == last - first + 1
        batch.whole = complete and id_text(batch.id.int) in batch.key
        return batch

    def _bury(self, damaged: Sequence[DamagedRow]) -> bool:
        """Make dead letters of damaged rows.

        Returns False where rows were restored from memory, or the file was repaired, instead: the
        rows have to be read again then.
        """
        if (missing := self.missing_file()) is not None:
            # The files may be moved back.
            raise file_gone(missing)
        result = None
        try:
            self.blocks.unpack(self._connection, [(row.seq, row.seq) for row in damaged])
            jobs = self._in_rows(self.jobs_in_memory())
            with self._transaction():
                if not restore_rows(self._connection, jobs):
                    result = inventory.bury(self._connection, damaged, self.totals, self._is_sound)
        except sqlite3.Error as error:
            if not self._repair(error):
                raise
            return False
        if result is not None:
            self._adopt(result)
        return result is not None

    def _bury_absent(self, first: int, last: int) -> None:
        """Make a dead letter of the members of a sealed batch that have no rows."""

        def bury() -> Inventory:
            self.blocks.unpack(self._connection, [(first, last)])
            with self._transaction():
                result = inventory.bury_absent(self._connection, first, last, self.totals)
                self._hidden.check(self._connection, len(result.findings))
                return result

        self._adopt(self._with_repair(bury))

    def _check_for_unread(self) -> None:
        """Repair the file where no page has returned some jobs of earlier runs."""
        try:
            self._hidden.check(self._connection, self._hidden.unread)
        except sqlite3.Error as error:
            reason = "were skipped; those that can be read are stored after the next start"
            self.findings.add(Finding("jobs", reason, jobs=self._hidden.unread))
            self._repair(error)

    def _in_rows(self, jobs: Iterable[Job]) -> list[Job]:
        """Return those of the jobs that are not in blocks."""
        return [job for job in jobs if not self.blocks.has(job.seq)]

    def _recount(self) -> None:
        """Compare the totals with the rows, once, when the whole backlog has been read."""

        def compare() -> Inventory:
            jobs = self._in_rows(self.jobs_in_memory())
            with self._transaction():
                restore_rows(self._connection, jobs)
                return inventory.compare(self._connection, self.totals, (), is_sound=self._is_sound)

        before = self.totals.jobs
        self._adopt(self._with_repair(compare))
        self.findings.add(*inventory.surplus(self.totals.jobs - before))

    def oldest(self) -> float | None:
        """Return when the oldest job that is not stored was accepted, in Unix time.

        None where there is none, or where ``oldest_row`` is unfinished. While all jobs are in
        blocks, nothing else reads the table ``jobs`` and so notices that it is damaged.
        """
        return self._with_repair(
            lambda: self._oldest.accepted_at(self.deletion.ranges, self.blocks.oldest_by_stream())
        )

    @property
    def deletion_waits(self) -> bool:
        """Whether rows or blocks of stored jobs wait for deletion."""
        return bool(self.deletion.ranges) or self.blocks.deletion_waits

    @property
    def oldest_row(self) -> OldestRow:
        """What ``oldest`` has found, and whether it has to be called again."""
        return self._oldest

    def open_streams(self, wanted: Sequence[str]) -> dict[int, str]:
        """Give each of the ``wanted`` streams a number; return the names of all by number.

        To be called once, before the first commit. Raises sqlite3.Error, and StartError where no
        number is left.
        """
        table = small_tables.STREAMS
        checked = self._with_repair(lambda: small_tables.check(self._connection, table))
        known = stream_rows.names_of(checked.rows)
        with self._transaction():
            findings = small_tables.repair(self._connection, table, checked)
            names, found = stream_rows.assign(self._connection, known, wanted)
            if len(known) == 1 and not checked.lost and not found:
                # Segments had jobs of the default stream alone so far.
                for name in self._segments.names if len(names) > 1 else ():
                    segment_rows.note(self._connection, name, [name], 0)
        self.findings.add(*findings, *found)
        self._know_streams(names)
        return names

    def newest(self) -> dict[int, int]:
        """Return the newest ``seq`` of each stream that may have jobs, by its number."""
        streams = {DEFAULT, *self._unread}
        return {one: self.following[one] - 1 for one in streams if one in self.following}

    def layouts(
        self, now: Layout, others: Mapping[int, Layout] = _NONE
    ) -> list[tuple[int, Layout]]:
        """Note that the layout ``now`` holds for the next job and those after it.

        ``others``: the layouts of other streams than the default one, by number. Returns all
        layouts, each with its first ``seq``. Raises sqlite3.Error.
        """
        checked = self._with_repair(
            lambda: small_tables.check(self._connection, small_tables.LAYOUTS)
        )
        self.findings.add(*small_tables.repair(self._connection, small_tables.LAYOUTS, checked))
        now_by_stream = {DEFAULT: now, **others}
        # Jobs that are stored one by one would be noted one by one until their block is deleted.
        self.in_rows = frozenset(one for one, layout in now_by_stream.items() if layout.alone)
        with self._transaction():
            return layout_rows.note(self._connection, checked.rows, self.following, now_by_stream)

    def probe(self) -> None:
        """Make a write durable, to find out whether the disk accepts writes.

        Ends the doubt about a commit that failed: a crash cannot bring it back afterwards.
        """
        self._roll_back(self._state())
        # An UPDATE that changes nothing would not do: SQLite does not write an unchanged page.
        self._connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        # A commit that failed may have left its rows in SQLite's log, for a crash to bring back.
        # That part of the log is overwritten now; until then the bytes of the rows had to stay.
        self._segments.cut()
        self.in_doubt = False
