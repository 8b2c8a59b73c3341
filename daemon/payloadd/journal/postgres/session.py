"""The connection of one process and the lanes that it holds. Used in the journal's thread only.

Methods raise psycopg.Error. After any error but ``is_fenced`` the connection is of no use, and
``recover`` makes another one.
"""

from __future__ import annotations

import time
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

import psycopg

from payloadd.config.settings import reread_credentials
from payloadd.journal.postgres import connection as connecting
from payloadd.journal.postgres import dead_letters, layouts, leases, reading, schema, tables
from payloadd.journal.postgres.keys import SharedKeys
from payloadd.journal.postgres.lane import slot_of
from payloadd.journal.postgres.transaction import (
    Commit,
    fence,
    write_probe,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from psycopg import Connection

    from payloadd.journal.postgres.keys import SharedClock
    from payloadd.journal.postgres.lane import Lane
    from payloadd.journal.postgres.leases import SeenLane
    from payloadd.journal.shared_lanes import LanePromise
    from payloadd.model.layout import Layout

CHECKPOINT_INTERVAL: Final = 0.2
"""Seconds between two checkpoints of a lane: what is settled meanwhile is stored again by a new
owner, under the same key."""
_PROBE_BYTES: Final = 2**20


class CommitOutcome(Enum):
    """What became of a commit whose answer was lost."""

    COMMITTED = "committed"
    ABSENT = "absent"
    UNKNOWN = "unknown"
    """Another process has the lane, and may have stored the jobs."""


class Session:
    """One process at the database."""

    def __init__(self, url: str, clock: SharedClock, *, watermarks: bool = False) -> None:
        """Do nothing yet; ``watermarks``: whether the own lane gets watermarks."""
        self._url = url
        self._watermarks = watermarks
        self._clock = clock
        self.keys = SharedKeys(clock)
        self._owner = leases.new_owner()
        self._connection: Connection[Any] | None = None
        self.lanes: dict[int, Lane] = {}
        """The held lanes by slot."""
        self._own: Lane | None = None
        self._slots = 0
        self.journal_name = ""
        """What tells this journal from all others, once it is open."""
        self.names: dict[int, str] = {}
        """The names of all streams by their number in the database."""
        self._layouts: Mapping[str, Layout] = {}
        self._checkpointed = 0.0
        self._revived = 0
        """Payloads of dead letters whose revival was found committed after an error."""
        self.left = 0
        """Payloads of the lanes that were given back at the end."""
        self.cut_off = False
        """Whether a commit since the last check ended before its standby had it."""

    @property
    def own(self) -> Lane:
        """The lane that requests go into."""
        if self._own is None:
            raise psycopg.OperationalError("this process holds no lane of its own")
        return self._own

    @property
    def own_or_none(self) -> Lane | None:
        """The own lane, None while there is none. For the event loop: the thread may change it."""
        return self._own

    @property
    def connection(self) -> Connection[Any]:
        """The open connection. Raises psycopg.Error without one."""
        if self._connection is None:
            raise psycopg.OperationalError("there is no connection to the database")
        return self._connection

    def _note_cut_off(self) -> None:
        self.cut_off = True

    def connect(self) -> None:
        """Make a new connection in place of the present one. Raises StartError, too.

        A file of systemd's credentials is read again: it may have a new password.
        """
        self.disconnect()
        (url,) = reread_credentials("journal_url")
        connection = connecting.connect(url or self._url)
        # Known before the first statement, so that one that hangs can be ended.
        self._connection = connection
        try:
            connecting.prepare(connection, self._note_cut_off)
            self._clock.read(connection)
        except BaseException:
            self.disconnect()
            raise

    def disconnect(self) -> None:
        """Close the connection; what it was doing has no effect, or is committed."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error):
                connection.close()

    def shut(self) -> None:
        """End a call that hangs: it raises an error. The one method for another thread."""
        if self._connection is not None:
            connecting.shut(self._connection)

    def open(self, of_streams: Mapping[str, Layout]) -> None:
        """Connect, make the tables where they are missing, and get a lane of its own.

        ``of_streams``: the layouts of new jobs by the name of their stream.
        """
        self.connect()
        schema.make(self.connection)
        self.journal_name = schema.name_of(self.connection)
        self._layouts = of_streams
        self.names = layouts.number_streams(self.connection, [*of_streams])
        self.get_own()

    def get_own(self) -> Lane:
        """Get a lane for requests; return it."""
        with self.connection.transaction():
            number, epoch = leases.get_free(
                self.connection, self._owner, watermarks=self._watermarks
            )
            self._own = self._load(number, epoch)
        return self._own

    def _load(self, number: int, epoch: int) -> Lane:
        lane = leases.load(self.connection, number, epoch, self._slots)
        if not set(lane.promise.until) <= set(self.names.values()):
            self.names = layouts.read_streams(self.connection)
        self.lanes[self._slots] = lane
        self._slots += 1
        return lane

    def layouts_of(self, lane: Lane) -> list[tuple[int, Layout]]:
        """Return the layouts of a lane with the first ``seq`` of each.

        Of the own lane those of new jobs are noted before.
        """
        known = layouts.read(self.connection, lane)
        if lane is self._own:
            new = {number: self._layouts.get(name) for number, name in self.names.items()}
            known |= layouts.note_new(self.connection, lane, known, new)
        return [(lane.base(stream) + first, one) for (stream, first), one in known.items()]

    def stream_names(self, lane: Lane) -> dict[int, str]:
        """Return the names of all streams by their numbers, also of those of a lane."""
        if not set(lane.streams) <= self.names.keys():
            self.names = layouts.read_streams(self.connection)
        unknown = {number: f"stream-{number}" for number in lane.streams}
        return {**unknown, **self.names}

    def commit(self, commit: Commit, *, now: bool = False) -> None:
        """Write a commit, with the checkpoints that are due; ``now``: due are all changes."""
        wanted = now or time.monotonic() - self._checkpointed > CHECKPOINT_INTERVAL
        due = [lane for lane in self.lanes.values() if lane.dirty] if wanted else []
        if commit.appends or commit.seals or due:
            commit.write(self.connection, self.own, self.lanes, self.keys, due)
            if self.cut_off:
                self._confirm()
            commit.applied(self.lanes)
        if due:
            self._checkpointed = time.monotonic()

    def checkpoint(self) -> None:
        """Write all changes of the lanes."""
        self.commit(Commit((), ()), now=True)

    def _confirm(self) -> None:
        """Commit once more and wait for the standby, as the last commit did not.

        When this returns, what was committed before is as durable as the server makes a commit.
        """
        self.cut_off = False
        leases.beat(self.connection, self.lanes.values())
        if self.cut_off:
            raise psycopg.OperationalError(
                "the standby does not confirm: the wait for synchronous replication was cut off"
            )

    def recover(self, in_doubt: Commit | None) -> tuple[list[Lane], CommitOutcome]:
        """Connect again, and keep the lanes; return those that are lost.

        Also returns what became of ``in_doubt``, a commit whose outcome was not known. It is as
        durable as the server makes a commit, because to keep the lanes was a later commit.
        """
        self.connect()
        self.cut_off = False
        lost: list[Lane] = []
        for lane in [*self.lanes.values()]:
            epoch = leases.keep(self.connection, lane.number, self._owner)
            if epoch is None:
                lost.append(lane)
            else:
                lane.epoch = epoch
        if self.cut_off:
            self._confirm()
        kept = [lane for lane in self.lanes.values() if lane not in lost]
        self._revived += dead_letters.find_revived(self.connection, kept)
        outcome = CommitOutcome.ABSENT if in_doubt is None else self._outcome(in_doubt, lost)
        self.drop(lost)
        return lost, outcome

    def _outcome(self, in_doubt: Commit, lost: Sequence[Lane]) -> CommitOutcome:
        if in_doubt.is_there(self.connection):
            in_doubt.applied(self.lanes)
            return CommitOutcome.COMMITTED
        if in_doubt.own not in lost or not in_doubt.rows:
            return CommitOutcome.ABSENT
        # Another process may have stored the jobs and emptied the table already.
        keyed = [one for one in in_doubt.appends if one.key and not one.earlier and one.jobs]
        if not keyed:
            return CommitOutcome.UNKNOWN
        known = any(self.keys.holds(self.connection, one) for one in keyed)
        return CommitOutcome.COMMITTED if known else CommitOutcome.ABSENT

    def probe(self) -> None:
        """Write a row and take it back: fails where the server has no space for rows."""
        table = self.own.free_table()
        if table is not None:
            with (
                suppress(psycopg.errors.LockNotAvailable),
                self.connection.transaction(force_rollback=True),
                self.connection.cursor() as cursor,
            ):
                fence(cursor, [self.own])
                write_probe(cursor, table, bytes(_PROBE_BYTES))

    def find_lost(self) -> list[Lane]:
        """Return the lanes that another process has, after a transaction failed at its fence."""
        if not self.connection.autocommit or self.connection.info.transaction_status:
            self.connection.rollback()
        return self.beat()

    def drop(self, lanes: Iterable[Lane]) -> None:
        """Forget lanes."""
        for lane in lanes:
            self.lanes.pop(lane.slot, None)
            if lane is self._own:
                self._own = None

    @property
    def has_own(self) -> bool:
        """Whether there is a lane for requests."""
        return self._own is not None

    def beat(self) -> list[Lane]:
        """Show a sign of life; return the lanes that are lost."""
        held = leases.beat(self.connection, self.lanes.values())
        lost = [lane for lane in self.lanes.values() if lane.number not in held]
        self.drop(lost)
        return lost

    def others(self) -> list[SeenLane]:
        """Return the lanes that this process does not hold."""
        return leases.others(self.connection, [lane.number for lane in self.lanes.values()])

    def take(self, seen: SeenLane) -> Lane | None:
        """Take a lane over; None where another process was faster."""
        epoch = leases.take(self.connection, seen, self._owner)
        return None if epoch is None else self._load(seen.lane, epoch)

    def finish(self) -> None:
        """Write all changes, and give all lanes back."""
        self.checkpoint()
        self.left = sum([lane.payloads for lane in self.lanes.values()])
        for lane in [*self.lanes.values()]:
            self.release(lane)

    def release(self, lane: Lane) -> None:
        """Give a lane back, with what it holds."""
        leases.release(self.connection, lane)
        self.drop([lane])

    def revive(self) -> int:
        """Turn dead letters that are marked into sealed batches, a few; return the payloads."""
        payloads = dead_letters.revive(self.connection, list(self.lanes.values()))
        payloads, self._revived = payloads + self._revived, 0
        return payloads

    def count_dead(self) -> None:
        """Count the bytes of dead letters again: an operator may have dropped some."""
        dead_letters.count(self.connection, list(self.lanes.values()))

    def maintain_keys(self, most_bytes: int) -> int:
        """Count the keys, and keep them within ``most_bytes`` for each lane.

        Returns the keys that were forgotten early.
        """
        row = self.connection.execute("SELECT count(*) FROM payloadd.lanes").fetchone()
        return self.keys.maintain(self.connection, most_bytes * (row[0] if row else 1))

    def free_parts(self) -> None:
        """Empty the tables whose rows are all settled, and fill the next ones."""
        for lane in self.lanes.values():
            turned = lane.turn()
            if turned or lane.settled_parts():
                tables.empty(self.connection, lane, lane.settled_parts())
            elif lane.is_stuck:
                tables.move_rest(self.connection, lane)
            if lane.has_many_ranges:
                tables.detach(self.connection, lane)

    def page(self, after: int, most_jobs: int, most_bytes: int) -> reading.StreamPage:
        """Return the next jobs of a stream of a lane; none where the lane is lost."""
        lane = self.lanes.get(slot_of(after))
        if lane is None:
            return reading.StreamPage([], [])
        return reading.page(self.connection, lane, after, most_jobs, most_bytes)

    def sealed_after(self, after: Mapping[int, int]) -> list[int]:
        """Return the first ``seq`` of the next sealed batches; see ``reading``."""
        return reading.sealed_after(self.connection, self.lanes.values(), after)

    def sealed(self, first: int) -> reading.SealedRow:
        """Return a sealed batch."""
        lane = self.lanes.get(slot_of(first))
        if lane is None:
            return reading.SealedRow(None, None, [])
        return reading.sealed(self.connection, lane, first)

    def oldest_by_stream(self) -> dict[int, tuple[int, int]]:
        """Return the lowest open ``seq`` of each stream of the own lane, and its time.

        The time is in milliseconds; keys are the numbers that the pipeline has for the streams.
        """
        return reading.oldest_by_stream(self.connection, self.own)

    def promise(self, lane: Lane, promise: LanePromise) -> bool:
        """Make durable what the watermarks of a lane say; return False if the lane is lost."""
        if self.lanes.get(lane.slot) is not lane:
            return False
        if not leases.promise(self.connection, lane, promise):
            return False
        if self.cut_off:
            self._confirm()
        lane.promise = promise
        return True

    def oldest(self) -> int | None:
        """Return when the oldest job of the held lanes was accepted, in milliseconds."""
        times = [reading.oldest(self.connection, lane) for lane in self.lanes.values()]
        return min([one for one in times if one is not None], default=None)
