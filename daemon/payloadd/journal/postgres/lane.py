"""One lane as its owner knows it: what it holds, which numbers are settled, which table is filled.

A process holds its own lane, into which its requests go, and lanes that it has taken over. The
pipeline knows streams only: it gets the streams of each lane under other numbers. The ``seq`` of a
job is the *slot* of the lane, the number of its stream in the database, and the number of the job
in lane and stream. A process gives each lane that it gets a new slot, also one that it had before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from payloadd.journal.postgres.rows import ROW_BYTES
from payloadd.journal.postgres.schema import PARTS, rows_table
from payloadd.journal.postgres.settled import SettledNumbers
from payloadd.journal.shared_lanes import NO_PROMISE
from payloadd.model.streams import MOST_NUMBERS, STREAM_BITS, count_of, stream_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from payloadd.journal.postgres.rows import NewRow
    from payloadd.journal.postgres.settled import Range
    from payloadd.model.job import Batch, Job

PART_BYTES: Final = 64 * 2**20
"""Bytes of rows after which the next table is filled."""
_MOST_RANGES: Final = 2000
_STREAM_MASK: Final = MOST_NUMBERS - 1
_ROW_OVERHEAD: Final = 100


def slot_of(seq: int) -> int:
    """Return the slot of the lane of a job."""
    return stream_of(seq) // MOST_NUMBERS


def number_of(seq: int) -> int:
    """Return the number of the stream of a job, as the database has it."""
    return stream_of(seq) & _STREAM_MASK


class UnreadableRow(NamedTuple):
    """A row that does not match its checksum."""

    stream: int
    last: int
    jobs: int
    payloads: int
    size: int
    body: bytes


class BuriedBatch(NamedTuple):
    """A dead letter that is not written yet."""

    batch: Batch
    code: str
    reason: str
    at: int
    """Unix time in seconds."""


class RevivedBatch(NamedTuple):
    """A dead letter that became a sealed batch again."""

    stream: int
    first: int
    jobs: int
    payloads: int
    size: int


class StreamOfLane:
    """What a lane knows of one stream."""

    __slots__ = ("following", "sealed", "settled")

    def __init__(self, following: int = 1, settled: SettledNumbers | None = None) -> None:
        self.following = following
        """The number of the next job."""
        self.settled = SettledNumbers() if settled is None else settled
        self.sealed: Sequence[Range] = ()
        """Ranges that were sealed before this process got the lane, in order."""

    @property
    def is_settled(self) -> bool:
        """Whether every job is settled."""
        return self.settled.low >= self.following - 1


class Lane:
    """A lane that this process holds."""

    def __init__(self, number: int, epoch: int, slot: int) -> None:
        self.number = number
        self.epoch = epoch
        self.slot = slot
        self.promise = NO_PROMISE
        self.found: Mapping[int, int] = {}
        """The newest ``seq`` of each stream when this process got the lane; see ``HeldLane``."""
        self.streams: dict[int, StreamOfLane] = {}
        self.jobs = self.payloads = self.bytes = 0
        """Jobs that are neither stored nor dead; ``bytes`` has ROW_BYTES for each."""
        self.dead_bytes = 0
        self.sealed = 0
        """Sealed batches of which the database has a row, about."""
        self.part = 0
        """The table that is filled."""
        self.part_bytes = 0
        self.ends: dict[int, dict[int, int]] = {}
        """By table that is not filled but has rows: the last number of each stream in it."""
        self.dirty = False
        """Whether there are changes that no checkpoint has."""
        self.ended: dict[tuple[int, int], None] = {}
        """Stream and first number of each sealed batch that is settled or dead, and has a row."""
        self.buried: list[BuriedBatch] = []
        self.reviving: list[RevivedBatch] = []
        """Revived dead letters of a transaction whose outcome is not known; not counted."""
        self.damaged: list[UnreadableRow] = []
        self.detached: list[Batch] = []
        """Sealed batches whose payloads are copied out of the rows."""

    @property
    def is_empty(self) -> bool:
        """Whether the lane has nothing to store and no change to write."""
        return not (self.jobs or self.sealed or self.dirty)

    def base(self, stream: int) -> int:
        """Return what is added to the number of a job of a stream to make its ``seq``."""
        return (self.slot * MOST_NUMBERS + stream) << STREAM_BITS

    def stream(self, number: int) -> StreamOfLane:
        """Return a stream of the lane, a new one if it had no jobs."""
        found = self.streams.get(number)
        if found is None:
            found = self.streams[number] = StreamOfLane()
        return found

    def append(self, row: NewRow, table: int) -> None:
        """Count a row that was written into ``table``."""
        self.stream(row.stream).following = row.last + 1
        self.jobs += row.jobs
        self.payloads += row.payloads
        self.bytes += row.size + row.jobs * ROW_BYTES
        if table == self.part:
            self.part_bytes += len(row.body) + _ROW_OVERHEAD
        self.dirty = True

    def settle(self, batch: Batch) -> None:
        """Note that a batch is stored."""
        self._end(batch)

    def bury(self, buried: BuriedBatch) -> None:
        """Note that a batch is dead; the next checkpoint writes the dead letter."""
        batch = buried.batch
        self._end(batch)
        self.buried.append(buried)
        self.dead_bytes += batch.bytes + len(batch.jobs) * ROW_BYTES

    def revive(self, jobs: int, payloads: int, size: int) -> None:
        """Count a dead letter as a sealed batch again; negative numbers take that back."""
        whole = size + jobs * ROW_BYTES
        self.jobs += jobs
        self.payloads += payloads
        self.bytes += whole
        self.dead_bytes -= whole
        self.sealed += 1 if jobs > 0 else -1
        self.dirty = True

    def bury_damaged(self, row: UnreadableRow) -> int:
        """Note that a row cannot be read; return how many payloads that are not stored it has."""
        stream, first = self.stream(row.stream), row.last - row.jobs + 1
        holes = [
            min(last, row.last) - max(start, first) + 1
            for start, last in stream.settled.holes(row.last)
            if last >= first
        ]
        jobs = sum([one for one in holes if one > 0])
        stream.settled.add(first, row.last)
        # What the jobs of the row have on average, where some of them are stored.
        payloads = row.payloads * jobs // row.jobs
        size = row.size * jobs // row.jobs
        self.jobs -= jobs
        self.payloads -= payloads
        self.bytes -= size + jobs * ROW_BYTES
        self.dead_bytes += size + jobs * ROW_BYTES
        self.damaged.append(row)
        self.dirty = True
        return payloads

    def detach(self, batch: Batch) -> None:
        """Have the payloads of a sealed batch copied, so that the rows are not needed for it."""
        stream, first, last = range_of(batch.jobs)
        self.stream(stream).settled.add(first, last)
        self.detached.append(batch)
        self.dirty = True

    def is_ended(self, first_seq: int) -> bool:
        """Return whether the sealed batch with this first ``seq`` is settled or dead."""
        return (number_of(first_seq), count_of(first_seq)) in self.ended

    def _end(self, batch: Batch) -> None:
        stream, first, last = range_of(batch.jobs)
        self.stream(stream).settled.add(first, last)
        if batch.sealed:
            self.ended[stream, first] = None
            self.sealed -= 1
        count = len(batch.jobs)
        self.jobs -= count
        self.payloads -= batch.payloads
        self.bytes -= batch.bytes + count * ROW_BYTES
        self.dirty = True

    def turn(self) -> bool:
        """Fill the next table if this one is full and the next one is empty."""
        if self.part_bytes < PART_BYTES or self.next_part in self.ends:
            return False
        self.ends[self.part] = {number: one.following - 1 for number, one in self.streams.items()}
        self.part, self.part_bytes = self.next_part, 0
        return True

    @property
    def is_stuck(self) -> bool:
        """Whether the present table is full, and the next one has unsettled jobs."""
        return self.part_bytes >= PART_BYTES and self.next_part in self.ends

    @property
    def next_part(self) -> int:
        """The table that is filled next; of those with rows it has the oldest."""
        return (self.part + 1) % PARTS

    @property
    def has_many_ranges(self) -> bool:
        """Whether the settled numbers take much memory: many old batches are not settled."""
        return sum([len(stream.settled) for stream in self.streams.values()]) > _MOST_RANGES

    def holes(self, part: int) -> list[tuple[int, int, int]]:
        """Return stream, first and last number of the unsettled jobs of a table and before it."""
        return [
            (number, first, last)
            for number, end in self.ends[part].items()
            for first, last in self.stream(number).settled.holes(end)
        ]

    def free_table(self) -> str | None:
        """Return the name of a table without rows, None if there is none."""
        free = [part for part in range(PARTS) if part != self.part and part not in self.ends]
        return rows_table(self.number, free[0]) if free else None

    def settled_parts(self) -> list[int]:
        """Return the tables all of whose rows are settled."""
        return [
            part
            for part, ends in self.ends.items()
            if all(self.stream(number).settled.low >= last for number, last in ends.items())
        ]

    def newest(self, *, settled: bool = False) -> dict[int, int]:
        """Return the newest ``seq`` of each stream that has unsettled jobs, by its number there.

        ``settled``: of all other streams, too.
        """
        return {
            self.base(number) >> STREAM_BITS: self.base(number) + one.following - 1
            for number, one in self.streams.items()
            if settled or not one.is_settled
        }

    def checkpoint(self) -> dict[str, Any]:
        """Return what the table ``checkpoints`` keeps."""
        return {
            "jobs": self.jobs,
            "payloads": self.payloads,
            "bytes": self.bytes,
            "part": self.part,
            "streams": {
                number: [one.following, one.settled.low, one.settled.ranges()]
                for number, one in self.streams.items()
            },
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Begin with a checkpoint; ``{}`` of a new lane."""
        self.jobs, self.payloads = state.get("jobs", 0), state.get("payloads", 0)
        self.bytes, self.part = state.get("bytes", 0), state.get("part", 0)
        for number, (following, low, ranges) in state.get("streams", {}).items():
            self.streams[int(number)] = StreamOfLane(following, SettledNumbers(low, ranges))


def range_of(jobs: Sequence[Job]) -> tuple[int, int, int]:
    """Return the stream of jobs in the database, and the numbers of the first and the last one."""
    first = jobs[0].seq
    return number_of(first), count_of(first), count_of(jobs[-1].seq)
