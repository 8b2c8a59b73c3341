"""Ids that rise, and jobs that know when they came."""

from __future__ import annotations

import time
import uuid
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from daemon.pipeline.job import Batch, IdSource, Job, split


def test_ids_are_uuid7_of_now() -> None:
    """Users sort objects by id and read the time off it."""
    before = time.time_ns() // 1_000_000
    (id_,) = IdSource().take(1)
    after = time.time_ns() // 1_000_000
    assert id_.version == 7
    assert id_.variant == uuid.RFC_4122
    assert before <= id_.int >> 80 <= after


@given(
    clock=st.lists(st.integers(0, 2**47), min_size=1, max_size=20),
    counts=st.lists(st.integers(1, 5), min_size=20, max_size=20),
)
def test_ids_rise_whatever_the_clock_does(clock: list[int], counts: list[int]) -> None:
    """A clock that jumps back must not give an id twice: one object would replace another."""
    source = IdSource()
    given_out: list[uuid.UUID] = []
    for milliseconds, count in zip(clock, counts, strict=False):
        with patch("daemon.pipeline.job.time.time_ns", return_value=milliseconds * 1_000_000):
            given_out += source.take(count)
    assert given_out == sorted(set(given_out))
    assert all(id_.version == 7 and id_.variant == uuid.RFC_4122 for id_ in given_out)


def test_one_request_takes_consecutive_ids() -> None:
    """The id of the answer names the other payloads of the request too."""
    ids = IdSource().take(100)
    assert [id_.int - ids[0].int for id_ in ids] == list(range(100))


def test_a_job_knows_when_it_was_accepted() -> None:
    """The age of the oldest payload and the folder of its object come from here."""
    (id_,) = IdSource().take(1)
    job = Job(1, id_, b"1\n22\n", 2)
    assert abs(job.accepted_at - time.time()) < 5
    batch = Batch((job, job), "key", "none", sealed=True)
    assert (batch.id, batch.lines, batch.payloads) == (id_, b"1\n22\n1\n22\n", 4)


@given(st.lists(st.binary(max_size=9), max_size=30), st.integers(1, 5), st.integers(1, 20))
def test_cutting_keeps_all_in_order_and_within_bounds(
    payloads: list[bytes], most_payloads: int, most_bytes: int
) -> None:
    """A payload would be lost, or an object outgrow its settings."""
    parts = split(payloads, most_payloads, most_bytes)
    assert [payload for part in parts for payload in part] == payloads
    for part in parts:
        assert 1 <= len(part) <= most_payloads
        assert len(part) == 1 or sum(len(payload) + 1 for payload in part) <= most_bytes
