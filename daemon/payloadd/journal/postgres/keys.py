"""Idempotency-Keys of all lanes, with the answers that they got, for a day.

A new key goes into the table of the present period of eight hours, and a table is emptied as a
whole once all of its keys have expired. A process inserts the keys of a commit in their order, so
that two processes with the same keys wait for each other and do not block each other.

Two processes may get the same key at the same moment, and the table decides which of them accepts
the request: the second insert waits for the first. Therefore both have to use the same table. In
the first minute of a period a key goes into the tables of both periods, the older one first, so
that processes whose clocks differ by less than a minute have one table in common.

The clock is that of the server, so that all processes have the same.
"""

from __future__ import annotations

import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import psycopg

from payloadd.errors import KeyReusedError
from payloadd.journal.api import Receipt
from payloadd.journal.fingerprint import fingerprint
from payloadd.journal.key_clock import KEEP, uptime
from payloadd.journal.postgres.schema import KEY_TABLES, statement, truncate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from psycopg import Connection, Cursor

    from payloadd.errors import RefusedError
    from payloadd.journal.postgres.operations import PendingRequest

KEY_BYTES: Final = 150
"""Bytes that a key takes in its table and its index, about."""
SHARE: Final = 4
"""Keys take at most one in so many bytes of JOURNAL_MAX_BYTES of all lanes together."""

_PERIOD: Final = 8 * 3600 * 1000
"""Milliseconds."""
_BOTH: Final = 60_000
"""Milliseconds at the start of a period in which keys go into the table before it, too."""

_ALL: Final = " UNION ALL ".join(
    f"SELECT key, id, payloads, marks, expires FROM payloadd.keys_{number}"
    for number in range(KEY_TABLES)
)
_KNOWN: Final = statement(
    f"SELECT key, id, payloads, marks FROM ({_ALL}) k WHERE key = ANY(%b) AND expires > %b"
)
_GIVEN: Final = """
    INSERT INTO payloadd.keys_{number} AS k (key, id, payloads, marks, expires)
    SELECT key, id, payloads, marks, %b::bigint
    FROM unnest(%b::bytea[], %b::uuid[], %b::bigint[], %b::bytea[]) g(key, id, payloads, marks)
    {where}
    ORDER BY key
    ON CONFLICT (key) DO UPDATE SET id = excluded.id, payloads = excluded.payloads,
    marks = excluded.marks, expires = excluded.expires WHERE k.expires <= %b::bigint
    RETURNING key
"""
_UNKNOWN: Final = (
    f"WHERE NOT EXISTS (SELECT FROM ({_ALL}) k WHERE k.key = g.key AND k.expires > %b::bigint)"
)
_INSERT_UNKNOWN: Final = [
    statement(_GIVEN.format(number=number, where=_UNKNOWN)) for number in range(KEY_TABLES)
]
_INSERT_AGAIN: Final = [
    statement(_GIVEN.format(number=number, where="")) for number in range(KEY_TABLES)
]
_SIZES: Final = """
    SELECT k.number, k.period, pg_total_relation_size(c.oid), greatest(c.reltuples, 0)
    FROM payloadd.key_tables k
    JOIN pg_class c ON c.oid = ('payloadd.keys_' || k.number)::regclass ORDER BY k.period
"""


class SharedClock:
    """The server's time in milliseconds, between two readings counted by the machine's clock."""

    def __init__(self, read_uptime: Callable[[], int] | None = None) -> None:
        """``read_uptime`` returns the milliseconds since boot; tests let time pass with it."""
        self._uptime = read_uptime or uptime
        self._ahead = 0

    def read(self, connection: Connection[Any]) -> None:
        """Read the server's clock. Raises psycopg.Error."""
        row = connection.execute(
            "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint"
        ).fetchone()
        if row is not None:
            self._ahead = row[0] - uptime()

    def now(self) -> int:
        """Return the time in milliseconds."""
        return self._ahead + self._uptime()


class SharedKeys:
    """The keys as one process uses them, in the journal's thread."""

    def __init__(self, clock: SharedClock) -> None:
        self._clock = clock
        self._prepared: set[int] = set()
        """Periods whose table was emptied, or could not be."""
        self.count = 0
        """Keys that are known, about."""

    def prepare(self, connection: Connection[Any]) -> list[int]:
        """Return the periods for a commit now; their tables are emptied before, if that is due.

        A table with keys of an earlier period works, too: they have expired, and are replaced.
        """
        now = self._clock.now()
        period = now // _PERIOD
        periods = [period - 1, period] if now % _PERIOD < _BOTH else [period]
        for one in periods:
            if one not in self._prepared:
                empty_table(connection, one)
                self._prepared = {one, *[known for known in self._prepared if known > one - 2]}
        return periods

    def insert(
        self, cursor: Cursor[Any], appends: Sequence[PendingRequest], periods: Sequence[int]
    ) -> None:
        """Set ``earlier`` of requests whose key is known; note the keys of the others.

        Runs in the transaction of the commit; the keys of other processes that are under way are
        waited for.
        """
        now = self._clock.now()
        first: dict[bytes, PendingRequest] = {}
        for append in appends:
            append.earlier = None
            if append.key is not None:
                first.setdefault(append.key, append)
        # An empty collection leaves no key: a repetition could store nothing twice.
        fresh = {key: one for key, one in first.items() if one.receipt.payloads}
        for index, period in enumerate(periods):
            if not fresh:
                break
            values = [
                now + KEEP * 1000,
                [*fresh],
                [one.receipt.id for one in fresh.values()],
                [one.receipt.payloads for one in fresh.values()],
                [_marks(one) for one in fresh.values()],
            ]
            if index:
                query = _INSERT_AGAIN[period % KEY_TABLES]
            else:
                query = _INSERT_UNKNOWN[period % KEY_TABLES]
                values.append(now)
            values.append(now)
            cursor.execute(query, values)
            fresh = {key: fresh[key] for (key,) in cursor.fetchall()}
        known = self._find(cursor, [key for key in first if key not in fresh], now)
        for append in appends:
            key = append.key
            if key is None:
                continue
            if key in known:
                append.earlier = _earlier(*known[key], append)
            elif key in fresh and fresh[key] is not append:
                one = fresh[key]  # the same key twice in one commit
                append.earlier = _earlier(one.receipt, _marks(one), append)
        self.count += len(fresh)

    def _find(
        self, cursor: Cursor[Any], keys: Sequence[bytes], now: int
    ) -> dict[bytes, tuple[Receipt, bytes]]:
        if not keys:
            return {}
        cursor.execute(_KNOWN, (list(keys), now))
        return {
            key: (Receipt(uuid.UUID(int=id_.int), payloads), marks)
            for key, id_, payloads, marks in cursor.fetchall()
        }

    def holds(self, connection: Connection[Any], append: PendingRequest) -> bool:
        """Return whether the key of a request is known with the receipt of this request."""
        found = self._find(
            connection.cursor(), [append.key] if append.key else [], self._clock.now()
        )
        return any(receipt == append.receipt for receipt, _ in found.values())

    def maintain(self, connection: Connection[Any], most_bytes: int) -> int:
        """Count the keys; empty the oldest table early if all take more than ``most_bytes``.

        Returns the keys that were forgotten before a day was over.
        """
        self._clock.read(connection)
        sizes = connection.execute(_SIZES).fetchall()
        self.count = int(sum(count for *_, count in sizes))
        if sum(size for _, _, size, _ in sizes) <= most_bytes:
            return 0
        period = self._clock.now() // _PERIOD
        old = [(known, count) for _, known, _, count in sizes if 0 <= known < period - 1 and count]
        if not old or not empty_table(connection, old[0][0], again=True):
            return 0
        known, count = old[0]
        return int(count) if (period - known) * _PERIOD <= KEEP * 1000 else 0


def empty_table(connection: Connection[Any], period: int, *, again: bool = False) -> bool:
    """Empty the table of a period, unless another process has; return whether it was emptied.

    ``again``: it has keys of this period. Does nothing while another session reads the table.
    """
    number = period % KEY_TABLES
    emptied = False
    with (
        suppress(psycopg.errors.LockNotAvailable),
        connection.transaction(),
        connection.cursor() as cursor,
    ):
        row = cursor.execute(
            "SELECT period FROM payloadd.key_tables WHERE number = %s FOR UPDATE", (number,)
        ).fetchone()
        if row is not None and (row[0] < period or (again and row[0] == period)):
            truncate(cursor, f"payloadd.keys_{number}")
            cursor.execute(
                "UPDATE payloadd.key_tables SET period = %s WHERE number = %s", (period, number)
            )
            emptied = True
    return emptied


def _marks(append: PendingRequest) -> bytes:
    return append.marks or fingerprint(append.parts)


def _earlier(receipt: Receipt, marks: bytes, append: PendingRequest) -> Receipt | RefusedError:
    return receipt if marks == _marks(append) else KeyReusedError()
