"""Maintain the journal's files once a second, apart from commits."""

from __future__ import annotations

import sqlite3
import time
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Final

import trio

from payloadd.journal.sqlite.files_in_use import file_gone
from payloadd.journal.sqlite.operations import Clear, Expire, Revive

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from payloadd.journal.api import JournalListener
    from payloadd.journal.sqlite.database import Database
    from payloadd.journal.sqlite.disk import DiskState
    from payloadd.journal.sqlite.operations import Operation
    from payloadd.journal.sqlite.thread import JournalThread

_ROUNDS_PER_EXPIRY: Final = 60
"""Rounds between two searches for expired Idempotency-Keys."""
_MOST_STEPS: Final = 64
"""Calls of the thread per round for each kind of work. Commits run between two calls."""


class Maintenance:
    """Check the files, revive dead letters, delete expired keys, reclaim space, report ages."""

    def __init__(
        self,
        database: Database,
        thread: JournalThread,
        disk: DiskState,
        listener: JournalListener,
        add: Callable[[Operation], object],
        interval: float = 1.0,
    ) -> None:
        """Maintain ``database`` every ``interval`` seconds; ``add`` queues an operation."""
        self._database = database
        self._thread = thread
        self._disk = disk
        self._listener = listener
        self._add = add
        self._interval = interval
        self._seen = -1
        """The state of ``foreign_changes`` that was handled last."""
        self._oldest: float | None = None

    def check_other_processes(self) -> None:
        """Handle the changes of other processes, such as marked dead letters, in the next round."""
        self._seen = -1

    async def run(self) -> None:
        """Run the rounds until the task is cancelled."""
        for number in count():
            await trio.sleep(self._interval)
            await self._report_oldest()
            if not self._disk.writable:
                continue
            await self._check_files()
            with suppress(sqlite3.Error):
                await self._thread.write(self._database.high_water.sync)
            changes = await self._thread.read(self._database.foreign_changes)
            if changes != self._seen and not self._disk.in_trouble:
                self._seen = changes
                await self._thread.read(self._database.count_dead)
                await self._thread.read(self._database.compaction.recheck_all)
                self._add(Revive())
            if number % _ROUNDS_PER_EXPIRY == 0:
                # If no key has expired, this costs no fsync.
                self._add(Expire())
            # Segments of batches that are settled during this round wait for the next one.
            if self._database.compaction.has_work:
                # A write, although it only plans: it may wait behind a commit that hangs at the end
                # of the daemon, and must not outlast the deadline then.
                with suppress(sqlite3.Error):
                    await self._thread.write(self._database.compaction.begin)
                await self._reclaim_space(self._database.compaction.step)
            await self._reclaim_space(self._database.vacuum.step)

    async def _check_files(self) -> None:
        """Report a write that failed if a file of the journal was deleted or replaced."""
        missing = await self._thread.read(self._database.missing_file)
        if missing is not None and not self._disk.in_trouble:
            self._disk.write_failed(file_gone(missing))
            # A commit without requests, which tries to write the files again.
            self._add(Clear())

    async def _report_oldest(self) -> None:
        """Report when the oldest job was accepted.

        If that cannot be read, the last known time stays, so that the reported age rises.
        """
        try:
            for _ in range(_MOST_STEPS):
                report = await self._thread.write(self._look_for_oldest)
                if report is not None:
                    self._oldest, by_stream = report
                    self._listener.oldest_accepted(self._oldest, by_stream)
                    break
        except sqlite3.Error:
            if self._oldest is None and self._database.totals.jobs:
                self._oldest = time.time()
                self._listener.oldest_accepted(self._oldest)

    def _look_for_oldest(self) -> tuple[float | None, Mapping[int, tuple[int, int]]] | None:
        """Return what to report, None where the search goes on.

        All of it in the thread: the next commit there can change ``oldest_row``.
        """
        since = self._database.oldest()
        found = self._database.oldest_row
        return None if found.unfinished else (since, found.by_stream)

    async def _reclaim_space(self, step: Callable[[], bool]) -> None:
        """Call ``step`` in the thread while it returns True."""
        with suppress(sqlite3.Error):  # the next commit reports the error
            for _ in range(_MOST_STEPS):
                if not await self._thread.write(step):
                    break
