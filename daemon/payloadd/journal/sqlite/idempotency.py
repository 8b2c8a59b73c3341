"""Idempotency-Keys and the answers that they got, for a day. Functions raise sqlite3.Error.

Keys are kept as 16 bytes of hash. They count into JOURNAL_MAX_BYTES and may take a quarter of it:
without a bound a client that makes up a key for each request would fill the disk. Above that the
oldest keys are evicted early, a few with each commit that brings new ones, and a metric counts
them. They expire by a clock of their own (``key_clock.py``), to the millisecond: keys that expire
together are evicted in no order, and the newest of a second may be repeated within that second. An
empty collection leaves no key: a repetition could store nothing twice.

A key is kept with the fingerprint of its request. The same key with other payloads is an error of
the client: the receipt of the first request would make the client drop payloads that are not here.
Keys that format version 3 has written have no fingerprint; they match every request.
"""

from __future__ import annotations

import uuid
from struct import error as StructError  # noqa: N812 - a class with a lower-case name
from typing import TYPE_CHECKING, Any, Final

from payloadd.errors import KeyReusedError
from payloadd.journal.api import Receipt
from payloadd.journal.fingerprint import fingerprint
from payloadd.journal.key_clock import EARLIEST, KEEP
from payloadd.journal.sqlite.checksum import of_answer
from payloadd.journal.sqlite.schema import KEY_BYTES

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from payloadd.errors import RefusedError
    from payloadd.journal.sqlite.operations import Append
    from payloadd.journal.sqlite.transaction import CommitChanges

KEYS_PER_COMMIT: Final = 128
"""Expired keys that one commit deletes at most: the requests of that commit wait for it."""
_SHARE: Final = 4
"""Keys take at most one in so many bytes of JOURNAL_MAX_BYTES."""
_AHEAD: Final = 64
"""Keys that a commit may evict beyond the number that it brings, where the bound was lowered."""

_FIND: Final = "SELECT key, id, payloads, expires, fingerprint, crc FROM answers WHERE key = ?"
_EXPIRE: Final = """
    DELETE FROM answers WHERE key IN
    (SELECT key FROM answers WHERE expires BETWEEN ? AND ? ORDER BY expires LIMIT ?)
"""
_EVICT: Final = """
    DELETE FROM answers WHERE key IN (SELECT key FROM answers ORDER BY expires LIMIT ?)
"""

_INSERT: Final = """
    INSERT OR REPLACE INTO answers (key, id, payloads, expires, fingerprint, crc)
    VALUES (?, ?, ?, ?, ?, ?)
"""


def most_keys(max_bytes: int) -> int:
    """Return how many keys a journal of ``max_bytes`` keeps."""
    return max_bytes // _SHARE // KEY_BYTES


def answer(
    connection: sqlite3.Connection, append: Append, changes: CommitChanges, now: int
) -> Receipt | RefusedError | None:
    """Return the outcome for a request whose key is known, or None after noting its key.

    Counts a new key in ``changes``. ``now``: the time of the ``KeyClock``,
    in milliseconds.
    """
    row = connection.execute(_FIND, (append.key,)).fetchone()
    marks = append.marks or fingerprint(append.parts)
    if _is_valid(row, now):
        return _earlier(row, append.receipt, marks)
    receipt = append.receipt
    if receipt.payloads:
        values = (append.key, receipt.id.bytes, receipt.payloads, now + KEEP * 1000, marks)
        connection.execute(_INSERT, (*values, of_answer(values)))
        changes.keys += row is None
    return None


def find(connection: sqlite3.Connection, append: Append, now: int) -> Receipt | RefusedError | None:
    """Return the outcome for a request whose key is known, else None; notes nothing."""
    row = connection.execute(_FIND, (append.key,)).fetchone()
    if not _is_valid(row, now):
        return None
    return _earlier(row, append.receipt, append.marks or fingerprint(append.parts))


def _is_valid(row: Sequence[object] | None, now: int) -> bool:
    """Return whether a key was found that has not expired."""
    if row is None:
        return False
    expires = row[3]
    if not isinstance(expires, int):
        # A key whose expiry is damaged is valid: its request must not be stored twice.
        return True
    # As of rows of version 3: see EARLIEST.
    return expires > (now if expires >= EARLIEST else now // 1000)


def _earlier(row: Sequence[object], receipt: Receipt, marks: bytes) -> Receipt | RefusedError:
    """Return the earlier receipt, or the error of a request with other payloads.

    Damaged parts of the receipt are taken from the new one: a known key with another id is better
    than an unknown one, whose request would be stored twice.
    """
    _, id_, payloads, _, known, _ = row
    if known is not None and known != marks and _is_sound(row):
        return KeyReusedError()
    sound = isinstance(id_, bytes) and len(id_) == len(receipt.id.bytes)
    return Receipt(
        uuid.UUID(bytes=id_) if sound and isinstance(id_, bytes) else receipt.id,
        payloads if isinstance(payloads, int) else receipt.payloads,
    )


def _is_sound(row: Sequence[Any]) -> bool:
    """Return whether a row matches its checksum; a damaged fingerprint must not refuse a retry."""
    try:
        return bool(of_answer(row[:5]) == row[5])
    except (TypeError, StructError):
        return False


def expire(connection: sqlite3.Connection, changes: CommitChanges, now: int) -> bool:
    """Delete expired keys, KEYS_PER_COMMIT at most; returns whether there may be more."""
    count = 0
    for first, last in ((0, now // 1000), (EARLIEST, now)):
        count += connection.execute(_EXPIRE, (first, last, KEYS_PER_COMMIT - count)).rowcount
    changes.keys -= count
    return count == KEYS_PER_COMMIT


def evict(connection: sqlite3.Connection, changes: CommitChanges, known: int, most: int) -> None:
    """Delete the oldest keys where ``known`` and those of ``changes`` are more than ``most``."""
    over = known + changes.keys - most
    if over > 0:
        count = connection.execute(_EVICT, (min(over, max(0, changes.keys) + _AHEAD),)).rowcount
        changes.keys -= count
        changes.evicted += count
