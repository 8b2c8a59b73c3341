"""What is known of the disk that the journal lies on, and who is told.

Three states. It takes writes, with room to spare. It takes writes, but the reserve could not
be made again: POSTs are refused, and what was accepted goes on its way. It takes none: then
nothing is brought in from the journal either, because what is stored meanwhile would wait in
memory to be settled.

A write trouble ends with a commit that the disk took: a daemon in trouble takes no request, so
the probe that goes before is all that can show it. A read trouble ends when the same kind of read
succeeds, not with another: a page of the backlog that cannot be read says nothing about the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from payloadd.errors import RefusedError
from payloadd.observe.logs import get_logger

if TYPE_CHECKING:
    import sqlite3

    from payloadd.observe.health import Health

log = get_logger(__name__)

_PART: Final = "journal"
_READING: Final = "journal_read"
_RETRY_AFTER: Final = 5


class Disk:
    """The state, kept in the process's ``health`` for everybody to see."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._writable = trio.Event()
        self._writable.set()
        self.in_trouble = health.trouble(_PART) is not None
        """Whether POSTs are refused."""

    @property
    def writable(self) -> bool:
        """Whether the last commit went well."""
        return self._writable.is_set()

    async def wait_writable(self) -> None:
        """Return once it takes writes."""
        await self._writable.wait()

    def refusal(self) -> RefusedError | None:
        """Return what requests are refused with, None if they are not."""
        trouble = self._health.trouble(_PART)
        return None if trouble is None else disk_error(trouble.reason)

    def failed(self, error: sqlite3.Error) -> None:
        """Take note of a write that failed."""
        self.in_trouble = True
        self._say(_PART, "journal_unavailable", error)
        if self._writable.is_set():  # who waits already, waits for the end of all troubles
            self._writable = trio.Event()

    def wrote(self, *, room: bool) -> None:
        """Take note of a commit that went well; ``room``: and of a reserve that is there."""
        self._writable.set()
        if room and self.in_trouble:
            self.in_trouble = False
            self._health.clear(_PART)
            log.info("journal_available")

    def read_failed(self, what: str, error: sqlite3.Error) -> None:
        """Take note that ``what`` could not be read: the backlog waits, and POSTs need not."""
        self._say(_READING, "journal_unreadable", error, what)

    def was_read(self, what: str) -> None:
        """Take note that ``what`` was read."""
        if self._health.clear(_READING, what) is not None:
            log.info("journal_readable")

    def _say(self, part: str, event: str, error: sqlite3.Error, cause: str = "") -> None:
        code = getattr(error, "sqlite_errorname", type(error).__name__)
        if self._health.report(part, code, str(error), cause):
            log.error(event, code=code, reason=str(error))


def disk_error(reason: object) -> RefusedError:
    """Return what a request is refused with that could not be written."""
    detail = f"the journal cannot be written: {reason}; nothing of this request was taken"
    return RefusedError("DISK_ERROR", detail, _RETRY_AFTER)


def outcome_unknown(reason: object) -> RefusedError:
    """Return what a request is refused with that may be in the journal's log all the same."""
    detail = (
        f"the journal cannot be written: {reason}; this request is not accepted, but a crash"
        " before the disk works again may bring it back"
    )
    return RefusedError("DISK_ERROR", detail, _RETRY_AFTER)
