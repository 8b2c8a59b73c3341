"""Groups of operations that are committed together."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import trio

from payloadd.errors import RefusedError
from payloadd.journal.api import Receipt
from payloadd.journal.sqlite.commit_queue import CommitGroup, CommitQueue, TimeSlice, answer
from payloadd.journal.sqlite.disk_reserve import LARGEST_COMMIT
from payloadd.journal.sqlite.operations import Append, Expire, Stage
from payloadd.model.job import Part
from tests.support.journal import id_of
from tests.support.turns import turns_of

if TYPE_CHECKING:
    import uuid


KIB = 2**10
MIB = 2**20


def request(number: int, size: int, rows: int = 1) -> Append:
    """Return a request of ``size`` bytes and ``rows`` jobs."""
    some = [Part(id_of(number), b"", 1)] * rows
    return Append(Receipt(id_of(number), rows), some, size=size)


def numbers(taken: CommitGroup) -> list[int]:
    """Return the number of each request in a group."""
    return [one.receipt.id.int & 0xFFFF for one in taken.operations if isinstance(one, Append)]


def test_small_requests_at_the_same_time_share_a_commit() -> None:
    """Otherwise the disk allows a few hundred requests a second."""
    groups = CommitQueue()
    for number in range(1000):
        groups.append(request(number, 100))
    taken = groups.take_group()
    assert numbers(taken) == list(range(1000))
    assert taken.bytes == 100_000
    assert not groups.requests_wait


def test_a_small_request_does_not_wait_behind_large_ones() -> None:
    """Otherwise 64 MiB of waiting requests delay every other client by a second."""
    groups = CommitQueue()
    for number in range(64):
        groups.append(request(number, MIB))
    groups.take_group()
    groups.append(request(100, 100))
    assert numbers(groups.take_group()) == [100]


def test_large_requests_are_committed_in_portions_and_never_starve() -> None:
    """Otherwise a client with large requests waits for as long as others post small ones."""
    groups = CommitQueue()
    for number in range(4):
        groups.append(request(number, 400 * KIB))
    taken = []
    for number in range(100, 105):
        groups.append(request(number, 100))
        taken.append(numbers(groups.take_group()))
    assert taken == [[0, 1, 100], [101], [2, 3, 102], [103], [104]]


def test_a_commit_is_not_larger_than_the_disk_reserve_allows() -> None:
    """Otherwise the disk reserve is too small, and a journal on a full disk cannot shrink."""
    groups = CommitQueue()
    for number in range(400):
        groups.append(request(number, 4 * KIB))
        groups.append(request(number, 64 * KIB))
        groups.append(request(number, 300 * KIB))
    assert groups.take_group().bytes <= LARGEST_COMMIT
    groups = CommitQueue()
    groups.append(request(0, 16 * MIB))
    groups.append(request(1, 64 * KIB))
    groups.append(request(2, 100))
    assert [numbers(groups.take_group()) for _ in range(2)] == [[0, 2], [1]]


def test_large_requests_without_small_ones_are_in_every_commit() -> None:
    """Otherwise every second commit is an fsync without operations."""
    groups = CommitQueue()
    for number in range(3):
        groups.append(request(number, 5 * MIB))
    assert [numbers(groups.take_group()) for _ in range(3)] == [[0], [1], [2]]


def steps(groups: CommitQueue) -> list[list[tuple[int, int] | int]]:
    """Take all groups; return the number of each request and the parts of each step."""
    found: list[list[tuple[int, int] | int]] = []
    while groups.requests_wait:
        taken = groups.take_group()
        found.append([])
        for one in taken.operations:
            if isinstance(one, Stage):
                one.append.staged = one.end
                found[-1].append((one.start, one.end))
            elif isinstance(one, Append):
                found[-1].append(one.receipt.id.int & 0xFFFF)
    return found


def test_a_request_of_many_jobs_is_written_in_several_commits() -> None:
    """Otherwise all other requests wait while 10,000 small jobs are committed."""
    groups = CommitQueue()
    groups.append(request(1, 3000 * 66, 3000))
    groups.append(request(2, 1024 * 66, 1024))
    groups.append(request(9, 100))
    assert steps(groups) == [[(0, 1024), 9], [(1024, 2048)], [1], [2]]


def test_a_request_of_many_bytes_is_written_in_several_commits() -> None:
    """Otherwise all other requests wait while 16 MiB are committed."""
    groups = CommitQueue()
    sizes = [400 * KIB, 400 * KIB, 400 * KIB, 5 * MIB, 100]
    some = [Part(id_of(1), bytes(size), 1) for size in sizes]
    groups.append(Append(Receipt(id_of(1), len(some)), some, size=sum(sizes)))
    groups.append(request(8, 64 * KIB))
    groups.append(request(9, 100))
    # A step that is larger than its portion uses the portion of medium requests, too.
    assert steps(groups) == [[(0, 2), 8, 9], [(2, 3)], [(3, 4)], [1]]


def test_small_requests_are_committed_between_the_steps_of_a_large_one() -> None:
    """Otherwise a small request waits for two steps, or for all of them."""
    groups = CommitQueue()
    groups.append(request(1, 5000 * 66, 5000))
    commits = []
    for number in range(100, 110):
        groups.append(request(number, 100))
        taken = groups.take_group()
        stages = [one for one in taken.operations if isinstance(one, Stage)]
        for one in stages:
            one.append.staged = one.end
        commits.append((len(stages), numbers(taken)))
    assert commits[:4] == [(1, [100]), (0, [101]), (1, [102]), (0, [103])]
    assert commits[8] == (0, [1, 108])


def test_a_request_whose_key_is_known_is_not_written() -> None:
    """Otherwise a retry of 16 MiB is written and then deleted."""
    groups = CommitQueue()
    one = request(1, 5000 * 66, 5000)
    groups.append(one)
    groups.take_group()
    one.earlier = one.receipt
    assert numbers(groups.take_group()) == [1]


def test_a_step_does_not_release_the_bytes_of_its_request() -> None:
    """Otherwise JOURNAL_MAX_BYTES is exceeded while the request is being written."""
    groups = CommitQueue()
    groups.append(request(1, 2000 * 66, 2000))
    first = groups.take_group()
    assert isinstance(first.operations[0], Stage)
    first.operations[0].append.staged = 1024
    assert [first.bytes, groups.take_group().bytes] == [0, 2000 * 66]


def test_requests_of_one_size_class_keep_their_order_and_its_bounds() -> None:
    """Otherwise the first of many requests waits for as long as others arrive."""
    groups = CommitQueue()
    for number in range(200):
        groups.append(request(number, 60 * KIB, 1 if number < 100 else 64))
    taken = []
    while groups.requests_wait:
        taken.append(groups.take_group())
    assert list(chain.from_iterable(map(numbers, taken))) == list(range(200))
    assert max(one.bytes for one in taken) <= 5 * MIB // 2
    assert (
        max(sum(len(a.parts) for a in one.operations if isinstance(a, Append)) for one in taken)
        <= 2048
    )


def test_empty_requests_count_as_rows() -> None:
    """Otherwise a million empty collections are answered together, and hold up the event loop."""
    groups = CommitQueue()
    for number in range(5000):
        groups.append(request(number, 0, 0))
    assert [len(groups.take_group().operations) for _ in range(3)] == [2048, 2048, 904]


def test_all_waiting_requests_can_be_removed_at_once() -> None:
    """Otherwise requests that wait while the disk fails are refused one commit after the other."""
    groups = CommitQueue()
    for number, size in enumerate((1, 10 * KIB, MIB)):
        groups.append(request(number, size))
    groups.add(Expire())
    taken = groups.take_requests()
    assert (numbers(taken), taken.bytes) == ([0, 1, 2], 1 + 10 * KIB + MIB)
    assert [type(one) for one in groups.take_group().operations] == [Expire]


async def test_many_responses_let_other_tasks_run_and_are_all_sent() -> None:
    """Otherwise 4,000 responses hold up the event loop; or a client never gets its response."""
    heard: list[uuid.UUID | RefusedError] = []

    def done(outcome: Receipt | RefusedError) -> None:
        heard.append(outcome if isinstance(outcome, RefusedError) else outcome.id)

    operations = [Append(Receipt(id_of(n), 1), [], None, done) for n in range(50)]
    with trio.CancelScope() as scope:
        scope.cancel()
        assert await turns_of(lambda: answer(operations, TimeSlice(-1.0), clock_mask=0)) == 50
    assert heard == [id_of(n) for n in range(50)]
    refusal = RefusedError("DISK_ERROR", "", 5)
    await answer(operations, TimeSlice(), refusal)
    assert heard[50:] == [refusal] * 50
