"""Idempotency-Keys and what they were answered with, for a day.

Keys are kept as 16 bytes of hash. Functions raise sqlite3.Error.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Final

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


def answer(connection: sqlite3.Connection, key: bytes, receipt: Receipt) -> Receipt | None:
    """Return what ``key`` was answered with before; None, and note ``receipt``, if it is new."""
    now = int(time.time())
    row = connection.execute(
        "SELECT id, payloads FROM answers WHERE key = ? AND expires > ?", (key, now)
    ).fetchone()
    if row is not None:
        return Receipt(uuid.UUID(bytes=row[0]), row[1])
    connection.execute(
        "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)",
        (key, receipt.id.bytes, receipt.payloads, now + KEEP),
    )
    return None


def expire(connection: sqlite3.Connection) -> bool:
    """Forget keys past their time; returns whether there may be more of them."""
    return connection.execute(_EXPIRE, (int(time.time()), _AT_ONCE)).rowcount == _AT_ONCE
