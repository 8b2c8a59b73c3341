"""The age of the oldest payload against a plain model, after operations in any order."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path
from unittest.mock import patch

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

from payloadd.journal.sqlite import dead_letters
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.deletion import RowDeletion
from payloadd.journal.sqlite.operations import Bury, Revive, Settle
from payloadd.model.job import Batch, Job, accepted_at
from tests.journal.sqlite.test_oldest_row import request

_SIZES = st.integers(1, 4)


class OldestPayload(RuleBasedStateMachine):
    """Requests, workers that end in any order, an operator that retries and drops dead letters."""

    @initialize()
    def start(self) -> None:
        """Begin with a new file."""
        self.folder = Path(tempfile.mkdtemp(prefix="payloadd-test-"))
        self.patches = ExitStack()
        self.patches.enter_context(patch.object(RowDeletion, "small_range", 1))
        self.patches.enter_context(patch.object(RowDeletion, "rows_per_commit", 1))
        # Other tests cut the power; thousands of syncs take their time.
        self.patches.enter_context(patch("os.fsync"))
        self.patches.enter_context(patch("os.fdatasync"))
        self.begin()
        self.second = 0
        self.open: dict[int, Job] = {}
        self.dead: dict[int, list[Job]] = {}

    def begin(self) -> None:
        """Open the file."""
        self.database = Database(self.path)
        self.database._connection.execute("PRAGMA synchronous = OFF")

    def teardown(self) -> None:
        """Leave nothing behind."""
        if hasattr(self, "database"):
            self.database.close()
            self.patches.close()
            shutil.rmtree(self.folder)

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / "j"

    @rule(count=_SIZES)
    def accept(self, count: int) -> None:
        """Accept a request, one second after the last."""
        self.second += 1
        wanted = request(self.second, count)
        self.database.commit([wanted])
        self.open |= {job.seq: job for job in wanted.jobs}

    def take(self, data: st.DataObject, count: int) -> Batch:
        """Take neighbours out of the open jobs."""
        first = data.draw(st.sampled_from(sorted(self.open)))
        jobs = [self.open.pop(first)]
        while len(jobs) < count and jobs[-1].seq + 1 in self.open:
            jobs.append(self.open.pop(jobs[-1].seq + 1))
        return Batch(jobs, f"k{first}", "none", sealed=True)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), count=_SIZES)
    def settle(self, data: st.DataObject, count: int) -> None:
        """Have a batch stored, in any order."""
        self.database.commit([Settle(self.take(data, count))])

    @precondition(lambda self: self.open)
    @rule(data=st.data(), count=_SIZES)
    def bury(self, data: st.DataObject, count: int) -> None:
        """Have a batch refused for good."""
        self.database.commit([self.buried(data, count)])

    def buried(self, data: st.DataObject, count: int) -> Bury:
        """Make a dead letter of a batch."""
        batch = self.take(data, count)
        self.dead[batch.jobs[0].seq] = list(batch.jobs)
        return Bury(batch, "C", "r")

    @precondition(lambda self: self.dead)
    @rule(data=st.data(), count=_SIZES, again=st.booleans())
    def revive(self, data: st.DataObject, count: int, again: bool) -> None:  # noqa: FBT001 - drawn by Hypothesis
        """Try a dead letter again; in the same second another batch may be refused."""
        first = data.draw(st.sampled_from(sorted(self.dead)))
        with closing(sqlite3.connect(self.path)) as other, other:
            dead_letters.mark(other, [str(self.dead[first][0].id)])
        revived = self.dead.pop(first)
        operations: list[Bury | Revive] = [Revive()]
        if again and self.open:
            operations.append(self.buried(data, count))
        self.database.commit(operations)
        self.open |= {job.seq: job for job in revived}

    @precondition(lambda self: self.dead)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        """Remove a dead letter from another process."""
        first = data.draw(st.sampled_from(sorted(self.dead)))
        with closing(sqlite3.connect(self.path)) as other, other:
            dead_letters.drop(other, [str(self.dead.pop(first)[0].id)])
        self.database.count_dead()

    @rule()
    def restart(self) -> None:
        """Stop and start."""
        self.database.close()
        self.begin()

    @rule()
    def repair(self) -> None:
        """Repair the file."""
        self.database._file_repair._last = float("-inf")
        corrupt = sqlite3.DatabaseError("database disk image is malformed")
        corrupt.sqlite_errorcode = 11
        assert self.database._repair(corrupt)
        self.database._connection.execute("PRAGMA synchronous = OFF")

    @invariant()
    def age(self) -> None:
        """Compare with the open job of the lowest number."""
        if hasattr(self, "database"):
            oldest = accepted_at(self.open[min(self.open)].id) if self.open else None
            assert self.database.oldest() == oldest
            first = min(self.open, default=0)
            wanted = {} if oldest is None else {0: (first, round(oldest * 1000))}
            assert self.database.oldest_row.by_stream == wanted


@pytest.mark.no_cover
def test_the_oldest_payload_is_the_one_of_a_model(examples: int) -> None:
    """An operator would see no age, or an old one, while payloads wait."""
    run_state_machine_as_test(
        OldestPayload, settings=settings(max_examples=examples, stateful_step_count=20)
    )
