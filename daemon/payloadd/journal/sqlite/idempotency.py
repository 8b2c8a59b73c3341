"""Idempotency-Keys and what they were answered with, for a day.

Keys are kept as 16 bytes of hash. Functions raise sqlite3.Error.

Keys count into JOURNAL_MAX_BYTES and may take a quarter of it: without a bound one client that
makes up a key for each request fills the disk. Past it the oldest keys are forgotten before their
time, a few with each commit that brings new ones, and a metric counts them. An empty collection
leaves no key: there is nothing that a repetition could store twice.
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
_SHARE: Final = 4
"""Keys take one of so many bytes of JOURNAL_MAX_BYTES at most."""
_KEYS_PER_COMMIT: Final = 128
"""Keys that are forgotten in one commit, which all others wait for: 1 ms."""
_AHEAD: Final = 64
"""Keys that a commit may forget beyond those that it brings, where a bound was lowered."""

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
    """Return what ``key`` was answered with before; None, and note ``receipt``, if it is new."""
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
    """Return what ``key`` was answered with before; None if it is new, and note nothing."""
    row = connection.execute(_FIND, (key,)).fetchone()
    return _earlier(row[0], row[1], receipt) if _is_valid(row, int(time.time())) else None


def _is_valid(row: Sequence[object] | None, now: int) -> bool:
    """Return whether a key was found that is not past its time."""
    # A row whose expiry is damaged is known too: its request must not be stored twice.
    return row is not None and not (isinstance(row[2], int) and row[2] <= now)


def _earlier(id_: object, payloads: object, receipt: Receipt) -> Receipt:
    """Return the earlier receipt; what a damaged row no longer says is taken from the new one.

    That the key is known matters more than the id: its request must not be stored twice.
    """
    sound = isinstance(id_, bytes) and len(id_) == len(receipt.id.bytes)
    return Receipt(
        uuid.UUID(bytes=id_) if sound and isinstance(id_, bytes) else receipt.id,
        payloads if isinstance(payloads, int) else receipt.payloads,
    )


def expire(connection: sqlite3.Connection, changes: CommitChanges) -> bool:
    """Forget keys past their time; returns whether there may be more of them."""
    count = connection.execute(_EXPIRE, (int(time.time()), _KEYS_PER_COMMIT)).rowcount
    changes.keys -= count
    return count == _KEYS_PER_COMMIT


def evict(connection: sqlite3.Connection, changes: CommitChanges, known: int, most: int) -> None:
    """Forget the oldest keys where ``known`` and those of ``changes`` are more than ``most``."""
    over = known + changes.keys - most
    if over > 0:
        count = connection.execute(_EVICT, (min(over, max(0, changes.keys) + _AHEAD),)).rowcount
        changes.keys -= count
        changes.evicted += count
