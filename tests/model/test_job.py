"""Ids that rise, and jobs that know when they came."""

from __future__ import annotations

import pickle
import time
import uuid
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from payloadd.model.job import Batch, IdSource, Job, accepted_at, split, uuid_of


def test_ids_are_uuid7_of_now() -> None:
    """Users sort objects by id and read the time off it."""
    before = time.time_ns() // 1_000_000
    (id_,) = IdSource().take(1)
    after = time.time_ns() // 1_000_000
    assert id_.version == 7
    assert id_.variant == uuid.RFC_4122
    assert before <= id_.int >> 80 <= after


def take_at(source: IdSource, milliseconds: int, count: int = 1) -> list[uuid.UUID]:
    """Take ids while the clock shows ``milliseconds``."""
    with patch("payloadd.model.job.time.time_ns", return_value=milliseconds * 1_000_000):
        return source.take(count)


@given(
    steps=st.lists(
        st.tuples(st.integers(-20_000, 20_000), st.integers(1, 5)), min_size=1, max_size=20
    )
)
def test_ids_are_unique_and_near_the_clock_whatever_it_does(steps: list[tuple[int, int]]) -> None:
    """A clock that jumps back must not give an id twice: one object would replace another."""
    source, clock, last = IdSource(), 2**40, uuid.UUID(int=0)
    given_out: list[uuid.UUID] = []
    for step, count in steps:
        clock += step
        ids = take_at(source, clock, count)
        assert ids == sorted(ids)
        assert all(0 <= (id_.int >> 80) - clock <= 10_000 for id_ in ids)
        assert ids[0] > last or (last.int >> 80) - clock > 10_000
        last = ids[-1]
        given_out += ids
    assert len(set(given_out)) == len(given_out)
    assert all(id_.version == 7 and id_.variant == uuid.RFC_4122 for id_ in given_out)


def test_ids_follow_a_clock_that_was_an_hour_ahead() -> None:
    """Objects would be stored under tomorrow's date until tomorrow."""
    source, now = IdSource(), 2**40
    (ahead,) = take_at(source, now + 3_600_000)
    (back,) = take_at(source, now)
    assert ahead.int >> 80 == now + 3_600_000
    assert back.int >> 80 == now


@given(st.integers(0, 2**128 - 1))
def test_a_uuid_made_without_checks_is_the_same_uuid(number: int) -> None:
    """A receipt compares, hashes, prints and pickles as any other UUID."""
    fast, usual = uuid_of(number), uuid.UUID(int=number)
    assert (fast, hash(fast), str(fast), fast.is_safe, pickle.loads(pickle.dumps(fast))) == (  # noqa: S301
        usual,
        hash(usual),
        str(usual),
        usual.is_safe,
        usual,
    )


def test_one_request_takes_consecutive_ids() -> None:
    """The id of the answer names the other payloads of the request too."""
    ids = IdSource().take(100)
    assert [id_.int - ids[0].int for id_ in ids] == list(range(100))


def test_a_job_knows_when_it_was_accepted() -> None:
    """The age of the oldest payload and the folder of its object come from here."""
    (id_,) = IdSource().take(1)
    job = Job(1, id_, b"1\n22\n", 2)
    assert abs(accepted_at(job.id) - time.time()) < 5
    batch = Batch((job, job), "key", "none", sealed=True)
    assert (batch.id, batch.pieces, batch.payloads) == (id_, [b"1\n22\n1\n22\n"], 4)
    assert batch.bytes == 10


@given(st.lists(st.sampled_from([b"", b"1\n", b"x" * 70_000, b"y" * 300_000]), min_size=1))
def test_a_batch_in_pieces(lines: list[bytes]) -> None:
    """A large batch would take its size in memory twice, or arrive in another order."""
    batch = Batch([Job(1, uuid.UUID(int=0), one, 1) for one in lines], "key", "none", sealed=True)
    assert b"".join(batch.pieces) == b"".join(lines)
    if min(map(len, lines)) > 65_536:
        assert all(piece is line for piece, line in zip(batch.pieces, lines, strict=True))
    else:
        assert len(batch.pieces) <= 1 + 2 * batch.bytes // 65_536


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
