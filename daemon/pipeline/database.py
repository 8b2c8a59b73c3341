"""The journal's SQLite file: every statement on jobs, and no async.

Synchronous on purpose: one connection, used by one thread at a time, a whole group of
operations in one transaction. In WAL mode with ``synchronous=FULL`` a commit is one fsync
(https://www.sqlite.org/wal.html), and after it a power cut loses nothing. The bytes of large
jobs are in segments, which are synced before it.
"""

from __future__ import annotations

import sqlite3
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar

from daemon.errors import StartError
from daemon.pipeline import (
    answers,
    dead_letters,
    inventory,
    rows,
    segment_files,
    segments,
    small_tables,
    structure,
)
from daemon.pipeline.backlog import Backlog, Gone, Unread
from daemon.pipeline.changes import Changes
from daemon.pipeline.checksum import of_values
from daemon.pipeline.clearance import Clearance
from daemon.pipeline.damage import Finding, Findings, corrupt, is_corrupt, total
from daemon.pipeline.high_water import HighWater
from daemon.pipeline.inventory import Inventory
from daemon.pipeline.layout import Layout
from daemon.pipeline.oldest import Oldest
from daemon.pipeline.operations import Append, Bury, Expire, Revive, Seal, Settle
from daemon.pipeline.reserve import Reserve
from daemon.pipeline.schema import MIGRATIONS, connect
from daemon.pipeline.segments import Segments
from daemon.pipeline.structure import find_problem, make_sound, open_sound
from daemon.pipeline.sweep import Sweep
from daemon.pipeline.vacuum import Vacuum

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from daemon.pipeline.backlog import Page
    from daemon.pipeline.damage import DamagedRow
    from daemon.pipeline.job import Batch, Job
    from daemon.pipeline.operations import Operation
    from daemon.pipeline.rows import Range
    from daemon.pipeline.totals import Totals

T = TypeVar("T")

_FORGET_LAYOUTS: Final = """
    DELETE FROM layouts WHERE first <
    (SELECT max(first) FROM layouts WHERE first <=
    (SELECT coalesce((SELECT min(seq) FROM jobs), (SELECT next FROM totals))))
"""
_INSERT_LAYOUT: Final = """
    INSERT OR REPLACE INTO layouts (first, template, host, compression, alone, crc)
    VALUES (?, ?, ?, ?, ?, ?)
"""
_BETWEEN_REPAIRS: Final = 60.0
"""Seconds in which a file is made sound once at most: it is read as a whole."""


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
        self._repaired = float("-inf")
        self._counted = False
        self._connection, found, gaps = open_sound(path)
        self._sound = bool(found)
        """Whether the file was checked, or made sound, in this run."""
        self._gone = Gone()
        try:
            self.findings.add(*found)
            try:
                self._read(gaps)
            except sqlite3.Error as error:
                if not self._repair(error, starting=True):
                    raise
            self.high_water.begin(self.totals)
            self._unread = Unread(self.totals, self._inventory.sealed)
            self._gone.add(self._connection.execute("SELECT first, last FROM stored").fetchall())
            self.sealed_firsts = [first for first, _ in self._inventory.sealed]
            """The first ``seq`` of each batch that was sealed before a crash: replayed whole."""
        except BaseException:
            self._connection.close()
            self.high_water.close()
            raise

    def _read(self, gaps: Sequence[Range]) -> None:
        """Read what the file says of itself, and what goes with it."""
        small = self._path.stat().st_size <= structure.MOST_CHECKED
        self._inventory = inventory.take(
            self._connection,
            segment_files.names(self._folder / segment_files.FOLDER),
            gaps,
            counting=small or self._sound,
        )
        self._counted |= small
        self._take_over(self._inventory)
        self.totals = self._inventory.totals
        self.count_dead()
        if not hasattr(self, "_segments"):
            self.high_water.identify(self._connection, self._inventory.identity)
            if not self._inventory.known:
                self.totals = self.high_water.assume(self._connection, self.totals)
            self.totals = self.high_water.reconcile(self._connection, self.totals)
            if self._inventory.findings or self._sound:
                self._bury_uncounted(self.high_water.held)
            self._segments = Segments(self._folder)
        elif self._inventory.identity is None:
            self.high_water.identify(self._connection, None)
        self._segments.check(self.totals.next)
        if not hasattr(self, "_apart"):
            self._apart = self._inventory.apart
        self._attach()

    def _bury_uncounted(self, held: int) -> None:
        """Make a dead letter of what is missing of the payloads that the journal held before.

        Dead letters whose rows in ``dead`` are lost wait again, and hide as many that are missing.
        """
        missing = held - self.totals.payloads - self.totals.dead_payloads
        if missing > 0:
            self.findings.add(*inventory.bury_uncounted(self._connection, missing))
            self.damaged_payloads += missing
            self.count_dead()

    def _attach(self) -> None:
        """Have all parts use the connection that is open now."""
        self.vacuum = Vacuum(self._connection)
        self._backlog = Backlog(self._connection, self._folder, self._apart)
        self.clearance = Clearance(self._connection)
        self._oldest = Oldest(self._connection)
        self.sweep = Sweep(self._connection, self._folder, self._segments, self.findings)

    def _take_over(self, taken: Inventory) -> None:
        self.damaged_payloads += taken.lost_payloads
        self.findings.add(*taken.findings)

    def _repair(self, error: sqlite3.Error, *, starting: bool = False) -> bool:
        """Make a damaged file sound; returns whether a second attempt is worth it.

        At a start it raises StartError where it cannot be done.
        """
        now = time.monotonic()
        if not is_corrupt(error) or now - self._repaired < _BETWEEN_REPAIRS:
            return False
        self._repaired = now
        self._connection.close()
        try:
            found, gaps = make_sound(self._path)
            self._connection = connect(self._path)
        except (OSError, sqlite3.Error, StartError) as failure:
            if starting:
                raise
            self.findings.add(Finding("file", f"{error}; it cannot be made sound: {failure}"))
            # What can still be read and written is.
            self._connection = connect(self._path)
            with suppress(sqlite3.Error):
                self._attach()
            return False
        self._sound = True
        held = self.totals.payloads + self.totals.dead_payloads if hasattr(self, "_apart") else 0
        with self._transaction():
            rows.delete(self._connection, self._gone.take())
        self.findings.add(Finding("file", str(error)), *found)
        self._read(gaps)
        self._bury_uncounted(held)
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
        before = (self.totals, self.clearance.ranges)
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            changes = self._carry_out(operations)
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
        if not self._sound:
            self._gone.add(changes.settled)

    def _roll_back(self, before: tuple[Totals, tuple[Range, ...]]) -> None:
        self.totals, self.clearance.ranges = before
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _carry_out(self, operations: Iterable[Operation]) -> Changes:
        changes = Changes(self.totals.next)
        for operation in operations:
            match operation:
                case Append():
                    self._append(operation, changes)
                case Settle():
                    changes.settle(operation.batch)
                case Seal(batch):
                    dead_letters.seal(self._connection, dead_letters.batch_row(batch))
                case Bury(batch, code, reason):
                    changes.bury(batch)
                    dead_letters.bury(self._connection, batch, code, reason)
                case Revive():
                    self._revive(operation, changes)
                case Expire():
                    operation.more = answers.expire(self._connection, changes)
        return changes

    def _append(self, append: Append, changes: Changes) -> None:
        append.jobs = []
        append.earlier = None
        if append.key is not None:
            append.earlier = answers.answer(self._connection, append.key, append.receipt, changes)
        if append.earlier is None:
            append.jobs = changes.take_in(append.parts)

    def _write(self, changes: Changes) -> Totals:
        """Write what was gathered, large jobs into a segment; returns the totals behind it."""
        if changes.large_bytes < segments.WORTH_A_SYNC:
            changes.place_in_rows()
        else:
            changes.place(*self._segments.write(changes.large_lines(), self.totals.next))
        rows.insert(self._connection, changes.rows)
        rows.insert_placed(self._connection, changes.placed)
        self.sweep.look_at(self.clearance.delete(changes.settled))
        if self.clearance.missed > 0 and not self._is_sound():
            # Where the file stays as it is these rows are found again, and stored twice.
            raise corrupt(f"{self.clearance.missed} stored rows of jobs are not found")
        # Behind all seals of this commit: one of what is settled may be among them.
        rows.delete_each(self._connection, "batches", "first", changes.unsealed)
        answers.evict(self._connection, changes, self.totals.keys, self.most_keys)
        after = self.totals.after(changes)
        if after != self.totals:
            after.write(self._connection)
        return after

    def _revive(self, revive: Revive, changes: Changes) -> None:
        revived = dead_letters.revive(self._connection)
        for one in revived:
            changes.revive(one)
        revive.firsts = [one.first for one in revived]
        revive.payloads = sum(one.payloads for one in revived)
        revive.more = len(revived) == dead_letters.AT_ONCE

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
        return page.jobs

    def _page(self, after: int, most_jobs: int, most_bytes: int) -> Page:
        page = self._safely(lambda: self._backlog.page(after, most_jobs, most_bytes))
        self._unread.page(page)
        if page.damaged:
            self._bury(page.damaged)
        return page

    def sealed(self, first: int) -> Batch | None:
        """Return a batch that is sealed, as it was; None if nothing of it can be read.

        Members that are damaged become dead letters. The others are sent under the same key:
        where the object is in the store already it is replaced, and nothing is there twice.
        """
        batch, damaged, last = self._safely(lambda: self._backlog.sealed(first))
        found = len(damaged) + (0 if batch is None else len(batch.jobs))
        if found < last - first + 1:
            self._bury_absent(first, last)
        if damaged:
            self._bury(damaged)
        if batch is None:
            rows.delete_each(self._connection, "batches", "first", [first])
        elif batch.jobs[0].seq != first:
            with self._transaction():
                rows.delete_each(self._connection, "batches", "first", [first])
                dead_letters.seal(self._connection, dead_letters.batch_row(batch))
        return batch

    def _bury(self, damaged: Sequence[DamagedRow]) -> None:
        """Make dead letters of damaged rows."""

        def bury() -> Inventory:
            with self._transaction():
                return inventory.bury(self._connection, damaged, self.totals, self._is_sound)

        self._adopt(self._safely(bury))

    def _bury_absent(self, first: int, last: int) -> None:
        """Make a dead letter of members of a sealed batch that have no rows."""

        def bury() -> Inventory:
            with self._transaction():
                findings = inventory.bury_absent(self._connection, first, last)
                if findings and not self._is_sound():
                    raise corrupt(f"members of the sealed batch {first} are missing")
                totals = self.totals
                if findings:
                    totals = replace(
                        totals,
                        jobs=totals.jobs - sum(one.jobs for one in findings),
                        payloads=totals.payloads - total(findings),
                    )
                    totals.write(self._connection)
                return Inventory(totals, findings, total(findings))

        self._adopt(self._safely(bury))

    def _is_sound(self) -> bool:
        """Return whether the pages of the file are in order; reads all of it once."""
        self._sound = self._sound or find_problem(self._connection) is None
        return self._sound

    def _look_for_unread(self) -> None:
        """Make the file sound where jobs were there at the start that no page has shown."""
        if self._unread.jobs > 0 and not self._is_sound():
            reason = f"{self._unread.jobs} were passed over; the next start stores what is readable"
            self.findings.add(Finding("jobs", reason))
            self._repair(corrupt("the pages of jobs are not in order"))

    def _recount(self) -> None:
        """Compare the totals with what is there, once, when all of it has been read."""

        def compare() -> Inventory:
            with self._transaction():
                return inventory.compare(
                    self._connection, self.totals, (), is_sound=self._is_sound
                )

        self._adopt(self._safely(compare))

    def _adopt(self, taken: Inventory) -> None:
        self._take_over(taken)
        self.totals = taken.totals
        self.count_dead()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            yield

    def oldest(self) -> float | None:
        """Return when the oldest job that is not stored was accepted, in Unix time."""
        return self._oldest.look(self.clearance.ranges, self.totals.dead_payloads)

    def count_dead(self) -> None:
        """Count what dead letters take: another process may have dropped some."""
        found = dead_letters.ranges(self._connection)
        dead, payloads = sum(one.room for one in found), sum(one.payloads for one in found)
        self.totals = replace(self.totals, dead_bytes=dead, dead_payloads=payloads)

    def layouts(self, now: Layout) -> list[tuple[int, Layout]]:
        """Note that ``now`` holds from the next job on; return all, each with its first ``seq``."""
        checked = self._safely(lambda: small_tables.check(self._connection, small_tables.LAYOUTS))
        self.findings.add(*small_tables.repair(self._connection, small_tables.LAYOUTS, checked))
        known = [
            (first, Layout(template, host, compression, alone=bool(alone)))
            for first, template, host, compression, alone in checked.rows
        ]
        # The first that is known holds for all before: the others are gone.
        if known and known[-1][1] == now:
            return known
        entry = (self.totals.next, now)
        values = (*entry[:1], now.template, now.host, now.compression, int(now.alone))
        self._connection.execute(_INSERT_LAYOUT, (*values, of_values(values)))
        # Those that no job is left of are of no use any more.
        self._connection.execute(_FORGET_LAYOUTS)
        return [*(one for one in known if one[0] != self.totals.next), entry]

    def probe(self) -> None:
        """Write something durable, to see whether the disk takes it."""
        self._roll_back((self.totals, self.clearance.ranges))
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
