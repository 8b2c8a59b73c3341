"""What has to be done for the journal's files every second, off the hot path."""

from __future__ import annotations

import sqlite3
import time
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Final

import trio

from payloadd.journal.operations import Expire, Revive

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.journal.api import JournalAccounts
    from payloadd.journal.operations import Operation
    from payloadd.journal.sqlite.database import Database
    from payloadd.journal.sqlite.disk import Disk
    from payloadd.journal.sqlite.thread import JournalThread

_BETWEEN: Final = 1.0
_EXPIRE_EVERY: Final = 60
"""Rounds between two looks for keys that are forgotten after a day."""
_STEPS: Final = 64
"""Steps of giving space back that are taken at once: others want the thread too."""


class Maintenance:
    """Revives what an operator has marked, forgets old keys, gives space back, looks at ages."""

    def __init__(
        self,
        database: Database,
        thread: JournalThread,
        disk: Disk,
        accounting: JournalAccounts,
        add: Callable[[Operation], object],
    ) -> None:
        self._database = database
        self._thread = thread
        self._disk = disk
        self._accounting = accounting
        self._add = add
        self._seen = -1

    def look_again(self) -> None:
        """Take what another process has written for not seen yet."""
        self._seen = -1

    async def run(self) -> None:
        """Do the chores for ever."""
        for second in count():
            await trio.sleep(_BETWEEN)
            await self._note_oldest()
            if not self._disk.writable:
                continue
            with suppress(sqlite3.Error):
                await self._thread.write(self._database.high_water.sync)
            changes = await self._thread.read(self._database.foreign_changes)
            if changes != self._seen and not self._disk.in_trouble:
                self._seen = changes
                await self._thread.read(self._database.count_dead)
                await self._thread.read(self._database.compaction.recheck_all)
                self._add(Revive())
            if second % _EXPIRE_EVERY == 0:
                # Costs no fsync when none is due.
                self._add(Expire())
            # Whoever settles meanwhile is seen in a second.
            if self._database.compaction.has_work:
                # It only notes what to do, but behind a commit that hangs when the daemon ends.
                with suppress(sqlite3.Error):
                    await self._thread.write(self._database.compaction.begin)
                await self._give_space_back(self._database.compaction.step)
            await self._give_space_back(self._database.vacuum.step)

    async def _note_oldest(self) -> None:
        """Tell the ledger how old the backlog is.

        Where that cannot be read, what is known stays: the age goes on rising.
        """
        try:
            # A commit that waits for the thread comes between two looks.
            for _ in range(_STEPS):
                since = await self._thread.write(self._database.oldest)
                if not self._database.oldest_unfinished:
                    self._accounting.kept_since = since
                    break
        except sqlite3.Error:
            if self._accounting.kept_since is None and self._database.totals.jobs:
                self._accounting.kept_since = time.time()

    async def _give_space_back(self, step: Callable[[], bool]) -> None:
        # Under load too; a commit that waits for the thread comes between two steps.
        with suppress(sqlite3.Error):  # the next commit says what is wrong
            for _ in range(_STEPS):
                if not await self._thread.write(step):
                    break
