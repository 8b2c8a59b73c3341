"""Idempotency-Keys and what they were answered with, for a day.

Keys are kept as 16 bytes of hash. Functions raise sqlite3.Error.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Final

from daemon.pipeline.checksum import of_answer
from daemon.pipeline.operations import Receipt

if TYPE_CHECKING:
    import sqlite3

KEEP: Final = 24 * 3600
"""Seconds for which a key is known."""
_AT_ONCE: Final = 5000
"""Keys that are forgotten in one commit, which all others wait for."""

_EXPIRE: Final = """
    DELETE FROM answers WHERE key IN
    (SELECT key FROM answers WHERE expires <= ? ORDER BY expires LIMIT ?)
"""

_INSERT: Final = """
    INSERT OR REPLACE INTO answers (key, id, payloads, expires, fingerprint, crc)
    VALUES (?, ?, ?, ?, ?, ?)
"""


def answer(connection: sqlite3.Connection, key: bytes, receipt: Receipt) -> Receipt | None:
    """Return what ``key`` was answered with before; None, and note ``receipt``, if it is new."""
    now = int(time.time())
    found = connection.execute(
        "SELECT id, payloads FROM answers WHERE key = ? AND expires > ?", (key, now)
    ).fetchone()
    if found is not None:
        return _earlier(found[0], found[1], receipt)
    row = (key, receipt.id.bytes, receipt.payloads, now + KEEP, None)
    connection.execute(_INSERT, (*row, of_answer(row)))
    return None


def _earlier(id_: object, payloads: object, receipt: Receipt) -> Receipt:
    """Return the earlier receipt; what a damaged row no longer says is taken from the new one.

    That the key is known matters more than the id: its request must not be stored twice.
    """
    sound = isinstance(id_, bytes) and len(id_) == len(receipt.id.bytes)
    return Receipt(
        uuid.UUID(bytes=id_) if sound and isinstance(id_, bytes) else receipt.id,
        payloads if isinstance(payloads, int) else receipt.payloads,
    )


def expire(connection: sqlite3.Connection) -> bool:
    """Forget keys past their time; returns whether there may be more of them."""
    return connection.execute(_EXPIRE, (int(time.time()), _AT_ONCE)).rowcount == _AT_ONCE
