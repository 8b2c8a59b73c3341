"""The journal's SQLite file: every statement on jobs, and no async.

Synchronous on purpose: one connection, used by one thread at a time, a whole group of
operations in one transaction. In WAL mode with ``synchronous=FULL`` a commit is one fsync
(https://www.sqlite.org/wal.html), and after it a power cut loses nothing. The bytes of large
jobs are in segments, which are synced before it.
"""

from __future__ import annotations

import sqlite3
import sys
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Final

from daemon.pipeline import answers, dead_letters, rows, segments
from daemon.pipeline.changes import Changes
from daemon.pipeline.clearance import Clearance
from daemon.pipeline.high_water import HighWater
from daemon.pipeline.job import Batch
from daemon.pipeline.layout import Layout
from daemon.pipeline.oldest import Oldest
from daemon.pipeline.operations import Append, Bury, Expire, Revive, Seal, Settle
from daemon.pipeline.reserve import Reserve
from daemon.pipeline.rows import IN_RANGE
from daemon.pipeline.schema import MIGRATIONS, connect
from daemon.pipeline.segments import Segments
from daemon.pipeline.sweep import Sweep
from daemon.pipeline.totals import Totals
from daemon.pipeline.vacuum import Vacuum

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from daemon.pipeline.job import Job
    from daemon.pipeline.operations import Operation
    from daemon.pipeline.rows import Range, Row

_FORGET_LAYOUTS: Final = """
    DELETE FROM layouts WHERE first <
    (SELECT max(first) FROM layouts WHERE first <=
    (SELECT coalesce((SELECT min(seq) FROM jobs), (SELECT next FROM totals))))
"""
_UPDATE_TOTALS: Final = (
    "UPDATE totals SET next = ?, jobs = ?, payloads = ?, bytes = ?, keys = ?, accepted = ?"
)
_BEYOND: Final = 2**62
"""A ``seq`` that no job reaches."""


class Database:
    """One open journal file, with its segments. Methods raise sqlite3.Error."""

    def __init__(self, path: Path, max_length: int = 0) -> None:
        self._folder = path.parent
        self.reserve = Reserve(self._folder, max_length)
        # The last run has left it: on a disk that is full SQLite needs room to open a file.
        self.reserve.give_up()
        self.most_keys = sys.maxsize
        """Idempotency-Keys that are kept at most."""
        self.in_doubt = False
        """Whether SQLite's log may hold a commit that failed."""
        self.high_water = HighWater(path)
        self._connection = connect(path)
        try:
            self._read()
            self.high_water.begin(self.totals)
        except BaseException:
            self._connection.close()
            raise

    def _read(self) -> None:
        totals = self._connection.execute(
            "SELECT next, jobs, payloads, bytes, keys, accepted FROM totals"
        )
        self.totals = Totals(*totals.fetchone())
        self.count_dead()
        self.totals = self.high_water.reconcile(self._connection, self.totals)
        self._segments = Segments(self._folder)
        self._segments.check(self.totals.next)
        self.vacuum = Vacuum(self._connection)
        self.sweep = Sweep(self._connection, self._folder, self._segments)
        sealed = self._connection.execute(
            "SELECT first, last FROM batches ORDER BY first"
        ).fetchall()
        self.sealed_firsts = [first for first, _ in sealed]
        """The first ``seq`` of each batch that was sealed before a crash: it is replayed whole."""
        dead = [(one.first, one.last) for one in dead_letters.ranges(self._connection)]
        self.clearance = Clearance(self._connection)
        self._oldest = Oldest(self._connection)
        # Their members do not come up again when the rest of the journal is read.
        self._apart = sorted([*sealed, *dead, *self.clearance.ranges])

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
        if self._segments.in_doubt:
            self.probe()
        before = (self.totals, self.clearance.ranges)
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            # Before the sync: who is asked meanwhile whether there is room has to know.
            self.totals = self._write(self._carry_out(operations))
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
                    self._connection.execute(
                        "INSERT OR REPLACE INTO batches VALUES (?, ?, ?, ?)",
                        (batch.jobs[0].seq, batch.jobs[-1].seq, batch.key, batch.compression),
                    )
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
        # Behind all seals of this commit: one of what is settled may be among them.
        rows.delete_each(self._connection, "batches", "first", changes.unsealed)
        answers.evict(self._connection, changes, self.totals.keys, self.most_keys)
        after = self.totals.after(changes)
        if after != self.totals:
            now = (after.next, after.jobs, after.payloads, after.bytes, after.keys, after.accepted)
            self._connection.execute(_UPDATE_TOTALS, now)
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
        Raises sqlite3.Error where the very first cannot be read.
        """
        page: list[Row] = []
        size = 0
        for row in islice(self._unsealed(after), most_jobs):
            size += rows.size(row)
            if page and size > most_bytes:
                break
            page.append(row)
        while True:
            try:
                return rows.jobs(page, self._folder)
            except sqlite3.Error:
                # What lies in front of a place that cannot be read need not wait for it.
                if len(page) <= 1:
                    raise
                del page[len(page) // 2 :]

    def _unsealed(self, after: int) -> Iterator[Row]:
        """Yield the rows between and behind the ranges that were sealed or dead at the start."""
        for first, last in [*self._apart, (_BEYOND, _BEYOND)]:
            if after < first - 1:
                yield from self._connection.execute(IN_RANGE, (after + 1, first - 1))
            after = max(after, last)

    def sealed(self, first: int) -> Batch:
        """Return a batch that is sealed, as it was."""
        _, last, key, compression = self._connection.execute(
            "SELECT * FROM batches WHERE first = ?", (first,)
        ).fetchone()
        members = self._connection.execute(IN_RANGE, (first, last)).fetchall()
        return Batch(tuple(rows.jobs(members, self._folder)), key, compression, sealed=True)

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
        rows = self._connection.execute("SELECT * FROM layouts ORDER BY first").fetchall()
        known = [(row[0], Layout(row[1], row[2], row[3], alone=bool(row[4]))) for row in rows]
        if known and known[-1][1] == now:
            return known
        entry = (self.totals.next, now)
        self._connection.execute(
            "INSERT OR REPLACE INTO layouts VALUES (?, ?, ?, ?, ?)",
            (self.totals.next, now.template, now.host, now.compression, now.alone),
        )
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
