"""The state of the disk that the journal is on.

The disk is in one of three states:

* It takes writes and has space for the disk reserve.
* It takes writes, but the reserve could not be created again, or a file of the journal was deleted
  or replaced (``files_in_use.py``). POSTs are refused; accepted jobs are
  uploaded and settled.
* It takes no writes. POSTs are refused, and no jobs are read from the journal either: batches that
  are stored meanwhile would wait in memory to be settled.

A write trouble ends with a commit that succeeds, preceded by a probe: a journal in trouble accepts
no requests whose commit could show that the disk works. A read trouble ends when the same kind of
read succeeds: another kind may work while the backlog cannot be read.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final

import trio

from payloadd.journal.refusals import in_doubt, not_written
from payloadd.observe.logs import get_logger

if TYPE_CHECKING:
    from payloadd.errors import RefusedError
    from payloadd.observe.health import Health

log = get_logger(__name__)

_PART: Final = "journal"
_READ_PART: Final = "journal_read"


class DiskState:
    """Record successes and failures of the disk, log them, and report troubles to ``health``."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._writable = trio.Event()
        self._writable.set()
        self.in_trouble = health.trouble(_PART) is not None
        """Whether POSTs are refused."""

    @property
    def writable(self) -> bool:
        """Whether the last commit succeeded."""
        return self._writable.is_set()

    async def wait_writable(self) -> None:
        """Return once the last commit succeeded."""
        await self._writable.wait()

    def refusal(self) -> RefusedError | None:
        """Return the error that requests are refused with, or None if they are accepted."""
        trouble = self._health.trouble(_PART)
        return None if trouble is None else not_written(trouble.reason)

    def write_failed(self, error: sqlite3.Error) -> None:
        """Record a write that failed."""
        self.in_trouble = True
        self._report(_PART, "journal_unavailable", error)
        if self._writable.is_set():  # tasks that wait already keep their event
            self._writable = trio.Event()

    def write_succeeded(self, *, has_space: bool, failure: str | None = None) -> None:
        """Record a commit that succeeded.

        ``has_space``: the files of the journal and the disk reserve exist. ``failure``: the reason
        why missing files could not be written again, None without one.
        """
        self._writable.set()
        if failure is not None:
            error = sqlite3.OperationalError(failure)
            error.sqlite_errorname = "FILE_NOT_WRITTEN"
            self._report(_PART, "journal_unavailable", error)
        if has_space and self.in_trouble:
            self.in_trouble = False
            self._health.clear(_PART)
            log.info("journal_available")

    def read_failed(self, kind: str, error: sqlite3.Error) -> None:
        """Record a read of this kind that failed. POSTs are still accepted."""
        self._report(_READ_PART, "journal_unreadable", error, kind)

    def read_succeeded(self, kind: str) -> None:
        """Record a read of this kind that succeeded."""
        if self._health.clear(_READ_PART, kind) is not None:
            log.info("journal_readable")

    def _report(self, part: str, event: str, error: sqlite3.Error, cause: str = "") -> None:
        code = getattr(error, "sqlite_errorname", type(error).__name__)
        if self._health.report(part, code, str(error), cause):
            log.error(event, code=code, reason=str(error))


def outcome_unknown(reason: object) -> RefusedError:
    """Return the refusal of a request that may be in SQLite's log all the same."""
    return in_doubt(
        reason,
        "this request is not accepted, but a crash before the disk works again may bring it back",
    )
