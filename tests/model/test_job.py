"""Ids, jobs and batches."""

from __future__ import annotations

import pickle
import time
import uuid
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from payloadd.model.job import (
    AscendingIds,
    Batch,
    IdSource,
    Job,
    Members,
    accepted_at,
    split,
    uuid_of,
)


def milliseconds(id_: uuid.UUID) -> int:
    """Return the time in an id."""
    return round(accepted_at(id_) * 1000)


def test_ids_are_uuid7s_of_the_present_time() -> None:
    """Users could not sort objects by id, nor read the time from an id."""
    before = time.time_ns() // 1_000_000
    (id_,) = IdSource().new_ids(1)
    after = time.time_ns() // 1_000_000
    assert id_.version == 7
    assert id_.variant == uuid.RFC_4122
    assert before <= milliseconds(id_) <= after


def new_ids_at(source: IdSource, milliseconds: int, count: int = 1) -> list[uuid.UUID]:
    """Return new ids while the clock shows ``milliseconds``."""
    with patch("payloadd.model.job.time.time_ns", return_value=milliseconds * 1_000_000):
        return source.new_ids(count)


@given(
    steps=st.lists(
        st.tuples(st.integers(-20_000, 20_000), st.integers(1, 5)), min_size=1, max_size=20
    )
)
def test_ids_are_unique_and_near_a_clock_that_jumps(steps: list[tuple[int, int]]) -> None:
    """After a clock jumps back, an id would be used twice: one object would replace another."""
    source, clock, last = IdSource(), 2**40, uuid.UUID(int=0)
    made: list[uuid.UUID] = []
    for step, count in steps:
        clock += step
        ids = new_ids_at(source, clock, count)
        assert ids == sorted(ids)
        assert all(0 <= milliseconds(id_) - clock <= 10_000 for id_ in ids)
        assert ids[0] > last or milliseconds(last) - clock > 10_000
        last = ids[-1]
        made += ids
    assert len(set(made)) == len(made)
    assert all(id_.version == 7 and id_.variant == uuid.RFC_4122 for id_ in made)


def test_ids_follow_a_clock_that_goes_back_an_hour() -> None:
    """Keys would have a wrong date until the clock catches up."""
    source, now = IdSource(), 2**40
    (ahead,) = new_ids_at(source, now + 3_600_000)
    (back,) = new_ids_at(source, now)
    assert milliseconds(ahead) == now + 3_600_000
    assert milliseconds(back) == now


@given(st.integers(0, 2**128 - 1))
def test_a_uuid_made_without_checks_equals_a_usual_one(number: int) -> None:
    """Ids would not compare, hash, print or pickle as other UUIDs do."""
    fast, usual = uuid_of(number), uuid.UUID(int=number)
    assert (fast, hash(fast), str(fast), fast.is_safe, pickle.loads(pickle.dumps(fast))) == (  # noqa: S301
        usual,
        hash(usual),
        str(usual),
        usual.is_safe,
        usual,
    )


def test_ids_of_one_call_are_consecutive() -> None:
    """The id in a response would not name the other jobs of the request."""
    ids = IdSource().new_ids(100)
    assert [id_.int - ids[0].int for id_ in ids] == list(range(100))


def test_a_batch_counts_its_payloads_and_bytes() -> None:
    """Metrics and the bounds of batches would be wrong."""
    (id_,) = IdSource().new_ids(1)
    job = Job(1, id_, b"1\n22\n", 2)
    batch = Batch((job, job), "key", "none", sealed=True)
    assert (batch.id, batch.bytes, batch.payloads) == (id_, 10, 4)


@given(st.lists(st.binary(max_size=9), max_size=30), st.integers(1, 5), st.integers(1, 20))
def test_split_keeps_the_order_and_the_bounds(
    payloads: list[bytes], most_payloads: int, most_bytes: int
) -> None:
    """A payload would be lost, or an object would be larger than the settings allow."""
    parts = split(payloads, most_payloads, most_bytes)
    assert [payload for part in parts for payload in part] == payloads
    for part in parts:
        assert 1 <= len(part) <= most_payloads
        assert len(part) == 1 or sum(len(payload) + 1 for payload in part) <= most_bytes


def test_the_members_of_a_batch_are_its_payloads_and_its_outermost_ids() -> None:
    """A store could not tell the object of one batch from the object of another."""
    ids = IdSource().new_ids(3)
    jobs = [Job(seq, id_, b"1\n2\n", 2) for seq, id_ in enumerate(ids, start=1)]
    assert Batch(jobs, "key", "none", sealed=True).members == Members(6, str(ids[0]), str(ids[2]))
    alone = Batch(jobs[:1], "key", "none", sealed=False)
    assert alone.members == Members(2, str(ids[0]), str(ids[0]))


def test_ascending_ids_do_not_follow_a_clock_that_goes_back() -> None:
    """A payload would get a time that a watermark has passed."""
    with patch("time.time_ns", return_value=5_000_000_000):
        ids = AscendingIds(floor=7_000)
        first = ids.reserve(2)
        mark = ids.mark()
    with patch("time.time_ns", return_value=1_000_000_000):
        second = ids.reserve(1)
        third = ids.reserve(1)
    with patch("time.time_ns", return_value=9_000_000_000):
        fourth = ids.reserve(1)
        ids.mark()
        assert ids.mark() == 9002
    assert [number >> 80 for number in (first, second, third, fourth)] == [7000, 7001, 7001, 9000]
    assert mark == 7001
    assert first + 1 < second < third < fourth
    assert third == second + 1
    assert {uuid_of(number).version for number in (first, second, third, fourth)} == {7}


@given(st.lists(st.tuples(st.integers(0, 10**6), st.booleans())))
def test_a_mark_divides_earlier_ids_from_later_ones(steps: list[tuple[int, bool]]) -> None:
    """A watermark would pass a payload that is accepted after it."""
    ids = AscendingIds()
    newest, mark = -1, 0
    for milliseconds, marks in steps:
        with patch("time.time_ns", return_value=milliseconds * 1_000_000):
            if marks:
                mark = ids.mark()
                assert mark > newest >> 80
            else:
                number = ids.reserve(1)
                assert number > newest
                assert number >> 80 >= mark
                newest = number
