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
    layout_rows,
    rows,
    segment_files,
    segments,
    small_tables,
    structure,
)
from daemon.pipeline.backlog import Backlog
from daemon.pipeline.carrying_out import carry_out
from daemon.pipeline.clearance import Clearance
from daemon.pipeline.damage import Finding, Findings, is_corrupt
from daemon.pipeline.hidden import Hidden
from daemon.pipeline.high_water import HighWater
from daemon.pipeline.oldest import Oldest
from daemon.pipeline.reserve import Reserve
from daemon.pipeline.schema import MIGRATIONS, connect
from daemon.pipeline.segments import Segments
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

T = TypeVar("T")

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
        self._hidden = Hidden(sound=bool(found))
        try:
            self.findings.add(*found)
            try:
                self._read(gaps)
            except sqlite3.Error as error:
                if not self._repair(error, starting=True):
                    raise
            self.high_water.begin(self.totals)
            self._hidden.begin(self._connection, self.totals, self._inventory.sealed)
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
            counting=small or self._hidden.sound,
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
            if self._inventory.findings or self._hidden.sound:
                self._bury_uncounted(self.high_water.held)
            self._segments = Segments(self._folder)
        elif self._inventory.identity is None:
            self.high_water.identify(self._connection, None)
        self._segments.check(self.totals.next)
        if not hasattr(self, "_apart"):
            self._apart = self._inventory.apart
        self._attach()

    def _bury_uncounted(self, held: int) -> None:
        """Make a dead letter of what is missing of the payloads that the journal held before."""
        missing = held - self.totals.payloads - self.totals.dead_payloads
        if missing > 0:
            self._take_over(inventory.bury_uncounted(self._connection, self.totals, missing))
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
        held = self.totals.payloads + self.totals.dead_payloads if hasattr(self, "_apart") else 0
        with self._transaction():
            self._hidden.made_sound(self._connection)
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
            changes = carry_out(self._connection, operations, self.totals.next)
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

    def _roll_back(self, before: tuple[Totals, tuple[Range, ...]]) -> None:
        self.totals, self.clearance.ranges = before
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _write(self, changes: Changes) -> Totals:
        """Write what was gathered, large jobs into a segment; returns the totals behind it."""
        if changes.large_bytes < segments.WORTH_A_SYNC:
            changes.place_in_rows()
        else:
            changes.place(*self._segments.write(changes.large_lines(), self.totals.next))
        rows.insert(self._connection, changes.rows)
        rows.insert_placed(self._connection, changes.placed)
        self.sweep.look_at(self.clearance.delete(changes.settled))
        # Where the file stays as it is these rows are found again, and stored twice.
        if self.clearance.missed:
            self._hidden.check(self._connection, self.clearance.missed)
        # Behind all seals of this commit: one of what is settled may be among them.
        rows.delete_each(self._connection, "batches", "first", changes.unsealed)
        answers.evict(self._connection, changes, self.totals.keys, self.most_keys)
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
        return page.jobs

    def _page(self, after: int, most_jobs: int, most_bytes: int) -> Page:
        page = self._safely(lambda: self._backlog.page(after, most_jobs, most_bytes))
        self._hidden.read(page)
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
            # The file may have been made sound: then there are more.
            batch, damaged, _ = self._safely(lambda: self._backlog.sealed(first))
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
            with self._transaction():
                return inventory.compare(self._connection, self.totals, (), is_sound=self._is_sound)

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
        return layout_rows.note(self._connection, checked.rows, self.totals.next, now)

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
