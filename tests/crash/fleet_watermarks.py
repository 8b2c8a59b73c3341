"""Whether the watermarks of a fleet are true, at any moment: the journal has what is not stored."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

import psycopg

from payloadd.journal.postgres import leases, rows
from payloadd.journal.postgres.schema import PARTS, rows_table
from tests.crash.bucket import WATERMARKS, milliseconds, read_bucket

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from psycopg import Connection

    from payloadd.journal.postgres.settled import SettledNumbers
    from payloadd.model.job import Job
    from tests.support.s3 import S3Server

DAEMON: Final = """
from payloadd.pipeline import lane_watermarks, watermarks
watermarks.PERIOD = watermarks._POLL = 0.1
watermarks._REPORTS = 2
lane_watermarks._LOOK = 0.2
from payloadd.cli.main import main
main()
"""
"""A daemon whose watermarks do not wait for a minute."""


_COPIED: Final = """
    SELECT stream, last, first, crc, body FROM payloadd.batches
    WHERE lane = %s AND body IS NOT NULL
"""


class FleetWatermarks:
    """The watermarks of a fleet in a bucket, compared with its journal."""

    def __init__(self, server: S3Server, bucket: str) -> None:
        self._server = server
        self._bucket = bucket
        self.looks = 0
        """How often they were compared."""
        self.raised = 0
        """How often a watermark was higher than at the look before."""
        self._until: dict[int, int] = {}

    def documents(self) -> dict[int, dict[str, Any]]:
        """Return the watermarks by lane."""
        found = self._server.objects(self._bucket, f"fleet/{WATERMARKS}")
        documents = [json.loads(body) for body in found.values()]
        return {int(one["process"].partition("-lane")[2]): one for one in documents}

    def look(self, url: str) -> list[str]:
        """Return a line for each payload that a watermark is wrong about. Blocks.

        Raises psycopg.Error while there is no database at ``url``.
        """
        # The watermarks first: what is in the journal then, and was accepted before, is not stored,
        # or only just.
        before = self.documents()
        waiting = unsettled(url)
        after = self.documents()
        passed: list[tuple[bytes, str]] = []
        wrong: list[str] = []
        for lane, one in before.items():
            until = milliseconds(one["complete_until"])
            self.raised += until > self._until.get(lane, until)
            self._until[lane] = until
            for payload, at in waiting.get(lane, {}).items():
                text = f"lane {lane}: {payload.decode()} of {at}, watermark {one}"
                if at < until:
                    passed.append((payload, text))
                elif one["closed"] and one == after.get(lane):
                    wrong.append(f"behind a closed watermark: {text}")
        self.looks += 1
        if passed:
            stored = read_bucket(self._server.objects(self._bucket, "fleet/"))
            wrong += [f"not stored: {text}" for payload, text in passed if not stored[payload]]
        return wrong


def unsettled(url: str) -> dict[int, dict[bytes, int]]:
    """Return the payloads of each lane that are not settled, and when they were accepted.

    The times are in milliseconds of Unix time.
    """
    found: dict[int, dict[bytes, int]] = {}
    with closing(psycopg.connect(url, connect_timeout=5)) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with connection.transaction():
            for (lane,) in connection.execute("SELECT lane FROM payloadd.lanes").fetchall():
                found[lane] = {
                    line: job.id.int >> 80
                    for job in _jobs(connection, lane)
                    for line in job.lines.splitlines()
                }
    return found


def _jobs(connection: Connection[Any], number: int) -> Iterator[Job]:
    lane = leases.load(connection, number, 0, 0)
    for part in range(PARTS):
        table = rows_table(number, part)
        query = f"SELECT stream, last, jobs, crc, body FROM {table}"
        for stream, last, count, crc, body in connection.execute(query.encode()):
            for job in rows.decode(stream, last, count, crc, body, 0):
                if not _is_settled(lane.stream(stream).settled, job.seq):
                    yield job
    for stream, last, first, crc, body in connection.execute(_COPIED, (number,)):
        yield from rows.decode(stream, last, last - first + 1, crc, body, 0)


def _is_settled(settled: SettledNumbers, number: int) -> bool:
    return number <= settled.low or any(a <= number <= b for a, b in settled.ranges())


def all_closed(documents: Mapping[int, Mapping[str, Any]]) -> bool:
    """Return whether no reader waits for a lane."""
    return all(one["closed"] for one in documents.values())
