"""The journal's file against a plain model: operations in any order, and crashes."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections import deque
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Final
from unittest.mock import Mock, patch

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from payloadd.errors import KeyReusedError
from payloadd.journal.api import Receipt
from payloadd.journal.key_clock import KEEP
from payloadd.journal.sqlite import dead_letters
from payloadd.journal.sqlite.blocks import Blocks
from payloadd.journal.sqlite.compaction import Compaction
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.deletion import RowDeletion
from payloadd.journal.sqlite.operations import (
    Abandon,
    Append,
    Bury,
    Expire,
    Revive,
    Seal,
    Settle,
    Stage,
)
from payloadd.journal.sqlite.segments import FOLDER
from payloadd.journal.sqlite.transaction import count
from payloadd.model.job import Batch, Job, Part
from payloadd.model.streams import first_seq, stream_of
from tests.journal.sqlite.model import Model, lines_of
from tests.support.journal import FaultyConnection, contents, id_of, sealed

if TYPE_CHECKING:
    import uuid

    from payloadd.journal.sqlite.operations import Operation

_PAYLOADS: Final = st.lists(st.integers(1, 3), max_size=6)
_STATEMENTS: Final = (
    *("COMMIT", "UPDATE totals", "INSERT INTO jobs", "DELETE FROM jobs", "DELETE FROM batches"),
    *("INSERT INTO stored", "DELETE FROM stored", "INSERT OR REPLACE INTO batches"),
    *(
        "INSERT INTO dead",
        "INSERT INTO blocks",
        "DELETE FROM blocks",
        "INSERT OR REPLACE INTO jobs",
    ),
)
_STREAMS: Final = (0, 1, 2)
_NAMES: Final = ("default", "clicks", "errors")
_STREAM: Final = st.sampled_from(_STREAMS)
_KEYS: Final = st.none() | st.sampled_from([b"a", b"b"])


class JournalFile(RuleBasedStateMachine):
    """Requests, workers, an operator, full disks and crashes."""

    @initialize()
    def start(self) -> None:
        """Begin with a new file."""
        self.folder = Path(tempfile.mkdtemp(prefix="payloadd-test-"))
        self.now = 1_700_000_000.0
        clock = SimpleNamespace(
            time=lambda: self.now,
            clock_gettime_ns=lambda _: int(self.now * 10**9),
            CLOCK_BOOTTIME=0,
        )
        self.patches = ExitStack()
        for one in (
            patch("payloadd.journal.key_clock.time", clock),
            # Some jobs are large, some commits have enough of them, segments are soon full.
            patch("payloadd.journal.sqlite.segments.LARGE", 10),
            patch("payloadd.journal.sqlite.segments.WORTH_A_SYNC", 30),
            patch("payloadd.journal.sqlite.segments.SEGMENT_BYTES", 100),
            patch.object(Compaction, "least_file_bytes", 1),
            patch.object(Compaction, "bytes_per_move", 30),
            # Rows of some batches are deleted by one commit, others by several.
            patch.object(RowDeletion, "small_range", 1),
            patch.object(RowDeletion, "rows_per_commit", 1),
            # Some jobs are stored while they are in blocks, others get rows before.
            patch.object(Blocks, "most_blocks", 5),
            patch.object(Blocks, "jobs_at_a_time", 4),
            patch.object(Blocks, "deleted_per_commit", 1),
            patch("payloadd.journal.sqlite.blocks._BLOCK_BYTES", 60),
        ):
            self.patches.enter_context(one)
        self.number = 0
        self.runs = 0
        self.model = Model(1, dict.fromkeys(_STREAMS, 1), {}, {}, {}, {}, set())
        self.open()

    def teardown(self) -> None:
        """Close the file and remove the folder."""
        if hasattr(self, "database"):
            self.database.close()
            self.patches.close()
            shutil.rmtree(self.folder)

    @property
    def path(self) -> Path:
        """The file of this run: a crash leaves the old one as it was."""
        return self.folder / f"{self.runs}.db"

    def open(self) -> None:
        """Open the file and read it as the pipeline does: sealed batches, then page by page."""
        self.database = Database(self.path)
        assert self.segments() == self.wanted_segments()
        assert self.database.open_streams(_NAMES) == dict(enumerate(_NAMES))
        self.model.restart()
        # Other tests cut the power; thousands of synced commits take their time.
        self.database._connection.execute("PRAGMA synchronous = OFF")
        self.staged: list[Operation] = []
        self.large: Append | None = None
        """A request that is written in several commits."""
        self.workers = [sealed(self.database, first) for first in self.sealed_firsts()]
        assert self.database.totals.dead_bytes == self.model.dead_bytes
        wanted = [self.model.sealed[first] for first in sorted(self.model.sealed)]
        assert [(one.key, contents(one.jobs)) for one in self.workers] == [
            (one.key, contents(one.jobs)) for one in wanted
        ]
        in_seals = {job.seq for one in wanted for job in one.jobs}
        paged = {stream: self.pages(stream, 3, 20) for stream in _STREAMS}
        expected = [job for seq, job in sorted(self.model.jobs.items()) if seq not in in_seals]
        assert contents([job for jobs in paged.values() for job in jobs]) == contents(expected)
        self.free = {stream: deque(jobs) for stream, jobs in paged.items()}

    def sealed_firsts(self) -> list[int]:
        """Return the first numbers of all sealed batches, which come by turns of the streams."""
        found: list[int] = []
        after: dict[int, int] = {}
        while firsts := self.database.sealed_after(after):
            found += firsts
            after |= {stream_of(first): first for first in firsts}
        return sorted(found)

    def segments(self) -> set[int]:
        """Return the names of all segments."""
        return {int(path.stem) for path in (self.folder / FOLDER).glob("*")}

    def wanted_segments(self) -> set[int]:
        """Return the names of segments that a row refers to."""
        with closing(sqlite3.connect(self.path)) as other:
            found = other.execute("SELECT DISTINCT segment FROM jobs WHERE segment IS NOT NULL")
            return {name for (name,) in found}

    @rule()
    def compaction(self) -> None:
        """Free the disk space of segments."""
        self.database.compaction.begin()
        while self.database.compaction.step():
            pass
        assert self.segments() >= self.wanted_segments()

    def pages(self, stream: int, most_jobs: int, most_bytes: int) -> list[Job]:
        """Return the jobs of all pages of a stream."""
        jobs: list[Job] = []
        while page := self.database.page(
            jobs[-1].seq if jobs else first_seq(stream), most_jobs, most_bytes
        ):
            assert len(page) <= most_jobs
            assert len(page) == 1 or sum(len(job.lines) for job in page) <= most_bytes
            jobs += page
        return jobs

    @rule(requests=st.lists(st.tuples(_PAYLOADS, _KEYS, _STREAM), min_size=1, max_size=4))
    def ask(self, requests: list[tuple[list[int], bytes | None, int]]) -> None:
        """Commit the staged operations, with some requests: the most frequent step."""
        for payloads, key, stream in requests:
            parts = [Part(self.new_id(), b"1234567\n" * count, count) for count in payloads]
            receipt = Receipt(parts[0].id if parts else self.new_id(), sum(payloads))
            self.staged.append(Append(receipt, parts, key, stream=stream))
        self.commit()

    @precondition(lambda self: self.large is None)
    @rule(payloads=st.lists(st.integers(1, 6), min_size=2, max_size=6), key=_KEYS, stream=_STREAM)
    def begin_large(self, payloads: list[int], key: bytes | None, stream: int) -> None:
        """Begin a request that is written in several commits."""
        parts = [Part(self.new_id(), b"123456789\n" * count, count) for count in payloads]
        self.large = Append(Receipt(parts[0].id, sum(payloads)), parts, key, stream=stream)

    @precondition(lambda self: self.large is not None)
    @rule(count=st.integers(1, 3), requests=st.lists(_STREAM, max_size=2))
    def continue_large(self, count: int, requests: list[int]) -> None:
        """Commit the staged operations, some parts of the large request, and small requests."""
        self.stage(count)
        self.ask([([1], None, stream) for stream in requests])

    def stage(self, count: int) -> None:
        """Stage some parts of the large request."""
        large = self.large
        assert large is not None
        end = large.staged + count
        if large.earlier is None and end < len(large.parts):
            self.staged.append(Stage(large, large.staged, end))
        else:
            self.staged.append(large)
            self.large = None

    def new_id(self) -> uuid.UUID:
        """Return an id that is higher than all before."""
        self.number += 1
        return id_of(self.number)

    @rule(sizes=st.lists(st.integers(0, 4), min_size=1, max_size=3), stream=_STREAM)
    def fill(self, sizes: list[int], stream: int) -> None:
        """Give workers batches of neighbours; 0 is one job that goes alone."""
        free = self.free[stream]
        for most in sizes:
            if not free:
                return
            jobs = [free.popleft()]
            while len(jobs) < most and free and free[0].seq == jobs[-1].seq + 1:
                jobs.append(free.popleft())
            batch = Batch(tuple(jobs), f"key-of-{jobs[0].seq}", "none", sealed=most > 0)
            self.workers.append(batch)
            if batch.sealed:
                self.staged.append(Seal(batch))

    @rule(most=st.integers(2, 4), stream=_STREAM)
    def store(self, most: int, stream: int) -> None:
        """Store a batch without an error in between: seldom drawn step by step."""
        if len(self.free[stream]) > 1:
            self.fill([most], stream)
            self.commit()
            self.staged.append(Settle(self.workers.pop()))

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), stored=st.booleans())
    def end(self, data: st.DataObject, stored: bool) -> None:  # noqa: FBT001 - drawn by Hypothesis
        """Settle or bury some batches."""
        for _ in range(data.draw(st.integers(1, len(self.workers)))):
            batch = self.workers.pop(data.draw(st.integers(0, len(self.workers) - 1)))
            self.staged.append(Settle(batch) if stored else Bury(batch, "KeyTooLong", "too long"))

    @precondition(lambda self: self.model.dead.keys() > self.model.wanted)
    @rule(data=st.data(), maintenance=st.booleans())
    def want_again(self, data: st.DataObject, maintenance: bool) -> None:  # noqa: FBT001 - drawn by Hypothesis
        """Mark dead letters as another process does."""
        letters = sorted(self.model.dead.keys() - self.model.wanted)
        wanted = data.draw(st.lists(st.sampled_from(letters), min_size=1, unique=True))
        before = self.database.foreign_changes()
        with closing(sqlite3.connect(self.path)) as other, other:
            dead_letters.mark(other, [str(self.model.dead[first].id) for first in wanted])
        assert self.database.foreign_changes() != before
        self.model.wanted.update(wanted)
        if maintenance:
            self.do_maintenance(1.0)

    @rule(seconds=st.sampled_from([1.0, KEEP / 2, float(KEEP)]))
    def do_maintenance(self, seconds: float) -> None:
        """Let time pass, then stage the operations that maintenance adds."""
        self.now += seconds
        self.staged += [Revive(), Expire(), Revive()]

    def commit(self) -> None:
        """Commit the staged operations in the file and in the model."""
        operations, self.staged = self.staged, []
        self.database.commit(operations)
        self.follow(operations)

    def follow(self, operations: list[Operation]) -> None:
        """Apply operations to the model, and compare their results."""
        for operation in operations:
            key = operation.key if isinstance(operation, Append) else None
            known = None if key is None else self.model.answers.get(key)
            jobs = self.model.carry_out(operation, self.now)
            if isinstance(operation, Stage) and operation.append.earlier is None:
                operation.append.staged = operation.end
            if isinstance(operation, Append):
                earlier = known if known is not None and known.expires > self.now else None
                if earlier is not None and earlier.lines != lines_of(operation):
                    assert isinstance(operation.earlier, KeyReusedError)
                else:
                    assert operation.earlier == (earlier and earlier.receipt)
            if isinstance(operation, Append):
                assert contents(operation.jobs) == contents(jobs)
                self.free[operation.stream] += operation.jobs
            if isinstance(operation, Revive):
                revived = [sealed(self.database, first) for first in operation.firsts]
                assert contents([job for one in revived for job in one.jobs]) == contents(jobs)
                assert operation.payloads == sum(one.payloads for one in revived)
                self.workers += revived

    @rule(fails=st.sampled_from(_STATEMENTS), count=st.integers(0, 3))
    def commit_on_a_full_disk(self, fails: str, count: int) -> None:
        """Fail in a commit, at any statement: nothing of it may stay."""
        if self.large is not None and count:
            self.stage(count)
        before = self.database._state()
        faulty = FaultyConnection(self.database._connection)
        faulty.fails = fails
        with (
            patch.object(self.database, "_connection", faulty),
            patch.object(self.database.deletion, "_connection", faulty),
            patch.object(self.database.staging, "_connection", faulty),
        ):
            try:
                self.database.commit(self.staged)
            except sqlite3.OperationalError:
                assert self.database._state() == before
                self.database.probe()  # as the journal does before it writes again
                self.large = None
                self.staged.append(Abandon())
            else:
                self.follow(self.staged)
                self.staged = []
        self.staged = [one for one in self.staged if not isinstance(one, Append | Stage)]

    @rule()
    def restart(self) -> None:
        """End cleanly and start again."""
        self.commit()
        self.database.close()
        self.open()

    @rule(before=st.booleans())
    def crash(self, before: bool) -> None:  # noqa: FBT001 - drawn by Hypothesis
        """Open a copy of the files as a killed process leaves them."""
        if not before:
            self.commit()
        old = self.path
        self.runs += 1
        for end in ("", "-wal"):
            shutil.copy(f"{old}{end}", f"{self.path}{end}")
        # A killed process deletes nothing.
        with patch.multiple(self.database, deletion=Mock(), compaction=Mock(), blocks=Mock()):
            self.database.close()
        self.open()

    @invariant()
    def totals_match_the_rows_and_the_model(self) -> None:
        """Compare the totals, the tables and the model."""
        if not hasattr(self, "database"):
            return
        totals = self.database.totals
        with closing(sqlite3.connect(self.path)) as other:
            apart = "SELECT first, last FROM dead UNION ALL SELECT first, last FROM stored"
            counted = count(other, other.execute(apart).fetchall())
            rows = {seq for (seq,) in other.execute("SELECT seq FROM jobs")}
            blocks = other.execute("SELECT count(*) FROM blocks").fetchone()
            written = other.execute("SELECT next, jobs, payloads, bytes FROM totals").fetchone()
            dead = {
                letter.id: (letter.payloads, dead_letters.lines(other, self.folder, letter.id))
                for letter in dead_letters.letters(other)
            }
            stored = other.execute("SELECT last FROM stored WHERE first <= last").fetchall()
            keys = other.execute("SELECT key FROM answers ORDER BY key").fetchall()
        jobs, payloads, size = counted
        assert (totals.jobs, totals.payloads) == (jobs, payloads)
        in_blocks = {seq for seq in self.model.jobs if self.database.blocks.has(seq)}
        assert self.model.jobs.keys() - in_blocks == self.model.jobs.keys() & rows
        assert in_blocks or not blocks[0] or self.database.blocks.deletion_waits
        assert totals.bytes == size
        assert written == (totals.next, totals.jobs, totals.payloads, totals.bytes)
        assert (totals.next, jobs) == (self.model.next, len(self.model.jobs))
        assert self.database.following == self.model.following
        hidden = self.database.staging.range
        ranges = [
            *self.database.deletion.ranges,
            *self.database.blocks.noted(),
            *([] if hidden is None else [hidden]),
        ]
        assert stored == sorted((last,) for _, last in ranges)
        assert keys == [(key,) for key in sorted(self.model.answers)]
        assert dead == {
            str(one.id): (one.payloads, b"".join(job.lines for job in one.jobs))
            for one in self.model.dead.values()
        }
        assert totals.dead_bytes == self.model.dead_bytes


@pytest.mark.no_cover
def test_the_file_is_as_a_model_says_after_any_operations(examples: int) -> None:
    """Jobs would be lost, doubled or sent under another key after a crash."""
    run_state_machine_as_test(
        JournalFile, settings=settings(max_examples=2 * examples, stateful_step_count=40)
    )
