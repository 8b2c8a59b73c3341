"""Look into the journal, and handle dead letters, for ``payloadd journal``: of all lanes or of one.

Nothing here needs a lease: the owners of the lanes see within a second what was changed.
"""

from __future__ import annotations

import socket
import time
import uuid
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import psycopg

from payloadd.errors import PayloaddError, StartError
from payloadd.journal.inspection import DeadLetter
from payloadd.journal.postgres import connection as connecting
from payloadd.journal.postgres import leases, reading, rows, schema
from payloadd.journal.postgres.transaction import DAMAGED
from payloadd.observe.status import DeadLetterGroup, JournalStatus, StreamStatus

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from psycopg import Connection

    from payloadd.journal.postgres.lane import Lane

_LETTERS: Final = """
    SELECT d.id, d.at, d.code, d.reason, d.key, d.payloads, d.size, d.retry::int,
    coalesce(s.name, 'stream-' || d.stream)
    FROM payloadd.dead d LEFT JOIN payloadd.streams s ON s.number = d.stream
    WHERE %(lane)s::int IS NULL OR d.lane = %(lane)s ORDER BY d.at, d.lane, d.stream, d.first
"""
_GROUPS: Final = """
    SELECT coalesce(s.name, 'stream-' || d.stream), d.code, count(*)::bigint,
    sum(d.payloads)::bigint
    FROM payloadd.dead d LEFT JOIN payloadd.streams s ON s.number = d.stream
    WHERE %(lane)s::int IS NULL OR d.lane = %(lane)s
    GROUP BY 1, d.stream, d.code ORDER BY d.stream, d.code
"""
_NO_RETRY: Final = (
    "a dead letter with the code DAMAGED cannot be tried again: it does not hold the payloads that"
    " were accepted. `dead show` prints the bytes that can be read, `dead drop` removes it; post"
    " the right payloads again. Nothing was changed"
)


@dataclass(frozen=True, slots=True)
class WrongChecksum:
    """A row that does not match its checksum."""

    table: str
    stream: int
    """The number of the stream."""
    first: int
    """The number of the first job of the row in its lane and stream."""
    last: int

    def __str__(self) -> str:
        return (
            f"{self.table}  stream {self.stream}, jobs {self.first} to {self.last}"
            "  the row does not match its checksum"
        )


class PostgresInspection:
    """The journal as another process than its owners sees it; made by :meth:`open`."""

    def __init__(self, connection: Connection[Any], lane: int | None) -> None:
        self._connection = connection
        self._lane = lane

    @classmethod
    @contextmanager
    def open(cls, url: str, lane: int | None = None) -> Iterator[Self]:
        """Open the journal; ``lane``: only this lane. Raises PayloaddError."""
        where = connecting.address(url)
        try:
            with closing(connecting.connect(url)) as connection:
                connecting.prepare(connection)
                version = schema.version_of(connection)
                if version is None:
                    raise PayloaddError(f"no journal in {where}; is JOURNAL_URL the daemon's?")
                schema.check_version(version)
                inspection = cls(connection, lane)
                if lane is not None and lane not in inspection.lanes():
                    raise PayloaddError(f"the journal {where} has no lane {lane}")
                yield inspection
        except (psycopg.Error, StartError) as error:
            raise PayloaddError(
                f"cannot read the journal {where}: {connecting.reason(error)}"
            ) from None

    def lanes(self) -> list[int]:
        """Return the numbers of the lanes."""
        found = self._connection.execute("SELECT lane FROM payloadd.lanes ORDER BY lane")
        return [lane for (lane,) in found if self._lane in (None, lane)]

    def owners(self) -> dict[int, str | None]:
        """Return the owner of each lane, by its number; None for one without."""
        found = self._connection.execute("SELECT lane, owner FROM payloadd.lanes ORDER BY lane")
        return {lane: owner for lane, owner in found if self._lane in (None, lane)}

    def status(self) -> JournalStatus:
        """Return the current counts, bytes and ages of the lanes."""
        lanes = [leases.load(self._connection, lane, 0, 0) for lane in self.lanes()]
        dead = self.dead()
        row = self._connection.execute(
            "SELECT (SELECT count(*) FROM payloadd.batches), coalesce(sum("
            "pg_total_relation_size(oid)), 0)::bigint FROM pg_class"
            " WHERE relnamespace = 'payloadd'::regnamespace AND relkind = 'r'"
        ).fetchone()
        sealed, size = row if row is not None else (0, 0)
        owners = [owner for owner in self.owners().values() if owner is not None]
        streams = self._streams(lanes, dead)
        return JournalStatus(
            process=_process(owners),
            jobs=sum(lane.jobs for lane in lanes),
            payloads=sum(lane.payloads for lane in lanes),
            bytes=sum(lane.bytes for lane in lanes),
            oldest_seconds=self._age(lanes),
            sealed_batches=sealed,
            dead_letters=len(dead),
            dead_payloads=sum(one.payloads for one in dead),
            dead_bytes=sum(one.bytes for one in dead),
            damaged=sum(one.code == DAMAGED for one in dead),
            idempotency_keys=self._keys(),
            file_bytes=size,
            streams=streams,
        )

    def _keys(self) -> int:
        count = 0
        for number in range(schema.KEY_TABLES):
            query = schema.statement(f"SELECT count(*) FROM payloadd.keys_{number}")
            row = self._connection.execute(query).fetchone()
            count += row[0] if row else 0
        return count

    def _age(self, lanes: Sequence[Lane]) -> float:
        times = [reading.oldest(self._connection, lane) for lane in lanes]
        return _age(min([one for one in times if one is not None], default=None))

    def _streams(
        self, lanes: Sequence[Lane], dead: Sequence[DeadLetter]
    ) -> dict[str, StreamStatus]:
        """Return the figures of the default stream and of each other one that has jobs."""
        names = dict(
            self._connection.execute("SELECT number, name FROM payloadd.streams").fetchall()
        )
        with_jobs = {
            number
            for lane in lanes
            for number, stream in lane.streams.items()
            if not stream.is_settled
        }
        buried = {one.stream for one in dead}
        wanted = {0, *with_jobs, *[number for number, name in names.items() if name in buried]}
        found = {}
        for number in sorted(wanted):
            name = names.get(number, f"stream-{number}")
            counts = [reading.count(self._connection, lane, number) for lane in lanes]
            jobs, payloads, size = (
                (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0, 0)
            )
            oldest = [reading.oldest_of(self._connection, lane, number) for lane in lanes]
            age = _age(min([one for one in oldest if one is not None], default=None))
            letters = sum(one.stream == name for one in dead)
            found[name] = StreamStatus(jobs, payloads, size, age, letters)
        return found

    def dead(self) -> list[DeadLetter]:
        """Return the dead letters, the oldest first."""
        found = self._connection.execute(_LETTERS, {"lane": self._lane}).fetchall()
        return [DeadLetter(str(row[0]), *row[1:]) for row in found]

    def dead_groups(self) -> list[DeadLetterGroup]:
        """Return the numbers of dead letters by stream and code."""
        return [
            DeadLetterGroup(*row) for row in self._connection.execute(_GROUPS, {"lane": self._lane})
        ]

    def lines(self, id_: str) -> bytes:
        """Return the payloads of a dead letter as NDJSON.

        Raises PayloaddError for an unknown id.
        """
        self._find([id_])
        row = self._connection.execute(
            "SELECT stream, last, last - first + 1, crc, body, jobs, code FROM payloadd.dead"
            " WHERE id = %s",
            (id_,),
            binary=True,
        ).fetchone()
        if row is None:
            return b""
        stream, last, width, crc, body, jobs, code = row
        if code == DAMAGED:
            return bytes(body[jobs * rows.ENTRY_BYTES :])
        try:
            return b"".join(job.lines for job in rows.decode(stream, last, width, crc, body, 0))
        except rows.WrongChecksumError:
            return bytes(body[width * rows.ENTRY_BYTES :])

    def retry(self, ids: Sequence[str]) -> int:
        """Mark dead letters (all, if ``ids`` is empty) for a retry; return their number."""
        if not ids:
            return self._connection.execute(
                "UPDATE payloadd.dead SET retry = true WHERE code <> %(damaged)s"
                " AND (%(lane)s::int IS NULL OR lane = %(lane)s)",
                {"lane": self._lane, "damaged": DAMAGED},
            ).rowcount
        found = self._find(ids)
        with self._connection.transaction():
            damaged = self._connection.execute(
                "SELECT FROM payloadd.dead WHERE id = ANY(%s) AND code = %s", (found, DAMAGED)
            ).fetchone()
            if damaged is not None:
                raise PayloaddError(_NO_RETRY)
            return self._connection.execute(
                "UPDATE payloadd.dead SET retry = true WHERE id = ANY(%s)", (found,)
            ).rowcount

    def drop(self, ids: Sequence[str]) -> int:
        """Delete dead letters with their payloads; return their number."""
        return self._connection.execute(
            "DELETE FROM payloadd.dead WHERE id = ANY(%s)", (self._find(ids),)
        ).rowcount

    def _find(self, ids: Sequence[str]) -> list[uuid.UUID]:
        """Return the ids of dead letters. Raises PayloaddError for an unknown one."""
        known = {letter.id for letter in self.dead()}
        unknown = [one for one in dict.fromkeys(ids) if one not in known]
        if unknown:
            raise PayloaddError(f"no dead letter {', '.join(unknown)}; nothing was changed")
        return [uuid.UUID(one) for one in dict.fromkeys(ids)]

    def verify(self) -> list[WrongChecksum]:
        """Read and check every row; return those that are damaged."""
        found: list[WrongChecksum] = []
        for lane in self.lanes():
            for part in range(schema.PARTS):
                table = schema.rows_table(lane, part)
                found += self._verify(table, f"SELECT stream, last, jobs, crc, body FROM {table}")
        where = "" if self._lane is None else f" AND lane = {self._lane}"
        for table, also in (("payloadd.batches", " AND body IS NOT NULL"), ("payloadd.dead", "")):
            found += self._verify(
                table,
                f"SELECT stream, last, (last - first + 1)::int, crc, body FROM {table}"
                f" WHERE true{also}{where}",
            )
        return found

    def _verify(self, table: str, query: str) -> list[WrongChecksum]:
        found: list[WrongChecksum] = []
        with (
            self._connection.transaction(),
            self._connection.cursor("verify", binary=True) as cursor,
        ):
            cursor.itersize = 100
            for stream, last, jobs, crc, body in cursor.execute(schema.statement(query)):
                if rows.checksum(stream, last, jobs, body) != crc:
                    found.append(WrongChecksum(table, stream, last - jobs + 1, last))
        return found


def _age(milliseconds: int | None) -> float:
    if milliseconds is None:
        return 0.0
    return round(max(0.0, time.time() - milliseconds / 1000), 3)


def _process(owners: Sequence[str]) -> int | None:
    """Return the id of the process that holds lanes, if it is one of this machine."""
    here = socket.gethostname()
    ids = [int(pid) for host, pid, _ in (one.rsplit(":", 2) for one in owners) if host == here]
    return ids[0] if ids else None
