"""Idempotency-Keys and the answers that they got, for a day. Functions raise sqlite3.Error.

Keys are kept as 16 bytes of hash. They count into JOURNAL_MAX_BYTES and may take a quarter of it:
without a bound a client that makes up a key for each request would fill the disk. Above that the
oldest keys are evicted early, a few with each commit that brings new ones, and a metric counts
them. An empty collection leaves no key: a repetition could store nothing twice.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Final

from payloadd.journal.api import Receipt
from payloadd.journal.sqlite.checksum import of_answer
from payloadd.journal.sqlite.schema import KEY_BYTES

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from payloadd.journal.sqlite.transaction import CommitChanges

KEEP: Final = 24 * 3600
"""Seconds for which a key is known."""
KEYS_PER_COMMIT: Final = 128
"""Expired keys that one commit deletes at most: the requests of that commit wait for it."""
_SHARE: Final = 4
"""Keys take at most one in so many bytes of JOURNAL_MAX_BYTES."""
_AHEAD: Final = 64
"""Keys that a commit may evict beyond the number that it brings, where the bound was lowered."""

_FIND: Final = "SELECT id, payloads, expires FROM answers WHERE key = ?"
_EXPIRE: Final = """
    DELETE FROM answers WHERE key IN
    (SELECT key FROM answers WHERE expires <= ? ORDER BY expires LIMIT ?)
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
    connection: sqlite3.Connection, key: bytes, receipt: Receipt, changes: CommitChanges
) -> Receipt | None:
    """Return the receipt that ``key`` got before, or None after noting ``receipt`` for it.

    Counts a new key in ``changes``.
    """
    now = int(time.time())
    row = connection.execute(_FIND, (key,)).fetchone()
    if _is_valid(row, now):
        return _earlier(row[0], row[1], receipt)
    if receipt.payloads:
        values = (key, receipt.id.bytes, receipt.payloads, now + KEEP, None)
        connection.execute(_INSERT, (*values, of_answer(values)))
        changes.keys += row is None
    return None


def find(connection: sqlite3.Connection, key: bytes, receipt: Receipt) -> Receipt | None:
    """Return the receipt that ``key`` got before, None if the key is new; notes nothing."""
    row = connection.execute(_FIND, (key,)).fetchone()
    return _earlier(row[0], row[1], receipt) if _is_valid(row, int(time.time())) else None


def _is_valid(row: Sequence[object] | None, now: int) -> bool:
    """Return whether a key was found that has not expired."""
    # A key whose expiry is damaged is valid: its request must not be stored twice.
    return row is not None and not (isinstance(row[2], int) and row[2] <= now)


def _earlier(id_: object, payloads: object, receipt: Receipt) -> Receipt:
    """Return the earlier receipt; damaged parts of it are taken from the new one.

    A known key with another id is better than an unknown one: its request would be stored twice.
    """
    sound = isinstance(id_, bytes) and len(id_) == len(receipt.id.bytes)
    return Receipt(
        uuid.UUID(bytes=id_) if sound and isinstance(id_, bytes) else receipt.id,
        payloads if isinstance(payloads, int) else receipt.payloads,
    )


def expire(connection: sqlite3.Connection, changes: CommitChanges) -> bool:
    """Delete expired keys, KEYS_PER_COMMIT at most; returns whether there may be more."""
    count = connection.execute(_EXPIRE, (int(time.time()), KEYS_PER_COMMIT)).rowcount
    changes.keys -= count
    return count == KEYS_PER_COMMIT


def evict(connection: sqlite3.Connection, changes: CommitChanges, known: int, most: int) -> None:
    """Delete the oldest keys where ``known`` and those of ``changes`` are more than ``most``."""
    over = known + changes.keys - most
    if over > 0:
        count = connection.execute(_EVICT, (min(over, max(0, changes.keys) + _AHEAD),)).rowcount
        changes.keys -= count
        changes.evicted += count
