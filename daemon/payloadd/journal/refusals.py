"""The refusals of requests that every durable journal has, and their texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from payloadd.errors import RefusedError, TooLargeError

if TYPE_CHECKING:
    from payloadd.journal.api import JournalListener

RETRY_AFTER: Final = 5
"""Seconds for Retry-After while a journal cannot be written."""


def too_large(size: int) -> TooLargeError:
    """Return the error of a request of ``size`` bytes that does not fit into an empty journal."""
    return TooLargeError(f"the request takes {size} bytes, more than JOURNAL_MAX_BYTES")


def journal_full(
    listener: JournalListener, max_bytes: int, used: int, dead_bytes: int, payloads: int
) -> RefusedError:
    """Return the refusal of a request that does not fit beside the ``used`` bytes.

    ``dead_bytes`` of them are of dead letters; ``payloads`` wait to be stored.
    """
    # The time for a tenth of the payloads: then the client is not refused again at once.
    wait = listener.seconds_for(payloads // 10)
    room = f"{used} of {max_bytes} bytes (JOURNAL_MAX_BYTES) are in use"
    dead = f", {dead_bytes} of them by dead letters" if dead_bytes else ""
    return RefusedError("JOURNAL_FULL", f"the request does not fit: {room}{dead}", wait)


def not_written(reason: object) -> RefusedError:
    """Return the refusal of a request that is not in the journal."""
    return _write_refused(f"{reason}; nothing of this request was accepted")


def in_doubt(reason: object, outcome: str) -> RefusedError:
    """Return the refusal of a request that may be in the journal; ``outcome`` says what follows."""
    return _write_refused(f"{reason}; {outcome}")


def _write_refused(detail: str) -> RefusedError:
    return RefusedError("DISK_ERROR", f"the journal cannot be written: {detail}", RETRY_AFTER)
