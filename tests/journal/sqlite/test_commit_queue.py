"""Groups of operations that wait for a commit."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from payloadd.errors import RefusedError
from payloadd.journal.api import Append, Expire, Receipt, Stage
from payloadd.journal.sqlite.commit_queue import CommitGroup, CommitQueue, TimeSlice, answer
from payloadd.journal.sqlite.disk_reserve import LARGEST_COMMIT
from payloadd.model.job import Part
from tests.support.journal import append, id_of

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable

    from trio.testing import MockClock

KIB = 2**10
MIB = 2**20


def request(number: int, size: int, rows: int = 1) -> Append:
    """Return a request of ``size`` bytes and ``rows`` jobs."""
    some = [Part(id_of(number), b"", 1)] * rows
    return Append(Receipt(id_of(number), rows), some, size=size)


def numbers(taken: CommitGroup) -> list[int]:
    """Return the number of each request in a group."""
    return [one.receipt.id.int & 0xFFFF for one in taken.operations if isinstance(one, Append)]


def test_small_requests_of_the_same_time_share_a_commit() -> None:
    """One fsync a request would allow a few hundred requests a second."""
    groups = CommitQueue()
    for number in range(1000):
        groups.append(request(number, 100))
    taken = groups.take_group()
    assert numbers(taken) == list(range(1000))
    assert taken.bytes == 100_000
    assert not groups.requests_wait


def test_a_small_request_does_not_wait_behind_large_ones() -> None:
    """64 MiB that wait would make every other client wait for a second."""
    groups = CommitQueue()
    for number in range(64):
        groups.append(request(number, MIB))
    groups.take_group()
    groups.append(request(100, 100))
    assert numbers(groups.take_group()) == [100]


def test_large_requests_go_in_portions_and_never_starve() -> None:
    """A client with large requests would wait for as long as others post small ones."""
    groups = CommitQueue()
    for number in range(4):
        groups.append(request(number, 400 * KIB))
    taken = []
    for number in range(100, 105):
        groups.append(request(number, 100))
        taken.append(numbers(groups.take_group()))
    assert taken == [[0, 1, 100], [101], [2, 3, 102], [103], [104]]


def test_a_commit_has_no_more_than_the_reserve_is_made_for() -> None:
    """A full disk could not be emptied: the room that is held back would be too small."""
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


def test_large_requests_alone_wait_for_nothing() -> None:
    """Each second commit would be an fsync of nothing."""
    groups = CommitQueue()
    for number in range(3):
        groups.append(request(number, 5 * MIB))
    assert [numbers(groups.take_group()) for _ in range(3)] == [[0], [1], [2]]


def steps(groups: CommitQueue) -> list[list[tuple[int, int] | int]]:
    """Take all groups; return the number of each request, and the parts of each step."""
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


def test_a_request_of_many_jobs_is_written_in_steps() -> None:
    """10,000 payloads of two bytes are 60 ms of a commit, which all others would wait for."""
    groups = CommitQueue()
    groups.append(request(1, 3000 * 66, 3000))
    groups.append(request(2, 1024 * 66, 1024))
    groups.append(request(9, 100))
    assert steps(groups) == [[(0, 1024), 9], [(1024, 2048)], [1], [2]]


def test_a_large_request_is_written_in_steps_of_a_portion() -> None:
    """16 MiB of payloads are 0.3 s of a commit, which all others would wait for."""
    groups = CommitQueue()
    sizes = [400 * KIB, 400 * KIB, 400 * KIB, 5 * MIB, 100]
    some = [Part(id_of(1), bytes(size), 1) for size in sizes]
    groups.append(Append(Receipt(id_of(1), len(some)), some, size=sum(sizes)))
    groups.append(request(8, 64 * KIB))
    groups.append(request(9, 100))
    # A step that is larger than the portion has that of the medium ones too.
    assert steps(groups) == [[(0, 2), 8, 9], [(2, 3)], [(3, 4)], [1]]


def test_small_requests_are_committed_between_the_steps_of_a_large_one() -> None:
    """A small request would wait for two steps, or for all of them."""
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


def test_a_request_whose_key_turned_out_to_be_known_is_written_no_further() -> None:
    """A retry of 16 MiB would be written whole, to be thrown away."""
    groups = CommitQueue()
    one = request(1, 5000 * 66, 5000)
    groups.append(one)
    groups.take_group()
    one.earlier = one.receipt
    assert numbers(groups.take_group()) == [1]


def test_a_step_counts_no_bytes_before_the_request_does() -> None:
    """The room of the request would be given to another while it is being written."""
    groups = CommitQueue()
    groups.append(request(1, 2000 * 66, 2000))
    first = groups.take_group()
    assert isinstance(first.operations[0], Stage)
    first.operations[0].append.staged = 1024
    assert [first.bytes, groups.take_group().bytes] == [0, 2000 * 66]


async def test_no_further_large_request_is_made_ready_while_many_jobs_wait() -> None:
    """64 bytes of zstd become 10,000 jobs: 1,000 such requests would fill the memory."""
    groups = CommitQueue()
    groups.append(request(1, 10_000 * 66, 10_000))
    await groups.wait_for_room()
    groups.append(request(2, 66 * 100, 100))
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(groups.wait_for_room)
        await wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 2
        while groups.requests_wait:
            steps(groups)
    groups.append(request(1, 20_000 * 66, 20_000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(groups.wait_for_room)
        await wait_all_tasks_blocked()
        assert nursery.child_tasks
        groups.take_requests()


def test_requests_of_one_size_stay_in_their_order_within_bytes_and_rows() -> None:
    """The first of many would be passed over for as long as others come."""
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


def test_empty_requests_are_bounded_too() -> None:
    """An empty collection has no row and no byte; a million of them are answered in one turn."""
    groups = CommitQueue()
    for number in range(5000):
        groups.append(request(number, 0, 0))
    assert [len(groups.take_group().operations) for _ in range(3)] == [2048, 2048, 904]


def test_all_requests_can_be_taken_to_be_refused() -> None:
    """Those that wait while the disk fails would be refused one commit after the other."""
    groups = CommitQueue()
    for number, size in enumerate((1, 10 * KIB, MIB)):
        groups.append(request(number, size))
    groups.add(Expire())
    taken = groups.take_requests()
    assert (numbers(taken), taken.bytes) == ([0, 1, 2], 1 + 10 * KIB + MIB)
    assert [type(one) for one in groups.take_group().operations] == [Expire]


async def test_what_nobody_waits_for_waits_for_a_commit_to_ride_along_with(
    autojump_clock: MockClock,
) -> None:
    """Each stored object would cost an fsync of its own; or its row would stay for ever."""
    assert autojump_clock.autojump_threshold == 0
    groups = CommitQueue()
    groups.add(Expire())
    start = trio.current_time()
    await groups.wait_until_due()
    assert trio.current_time() - start == pytest.approx(0.05)
    groups.append(append(1))
    await groups.wait_until_due()
    assert trio.current_time() - start == pytest.approx(0.05)


class Turns(trio.abc.Instrument):
    """Counts how often a task has let the others run."""

    def __init__(self, task: trio.lowlevel.Task) -> None:
        self.count = 0
        self._task = task

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count the end of a step."""
        self.count += task is self._task


async def turns_of(function: Callable[[], object]) -> int:
    """Return how often the async ``function`` lets the others run."""
    turns = Turns(trio.lowlevel.current_task())
    trio.lowlevel.add_instrument(turns)
    await function()  # type: ignore[misc]
    trio.lowlevel.remove_instrument(turns)
    return turns.count


@pytest.mark.parametrize("before", [1, 2])
async def test_requests_that_are_about_to_come_have_a_turn_to_do_so(before: int) -> None:
    """Half of the clients that are answered together would come too late for the next commit."""
    groups = CommitQueue()
    for number in range(before):
        groups.append(append(number))
    groups.take_group()
    groups.append(append(9))
    assert await turns_of(groups.wait_until_due) == before


async def test_many_answers_let_the_others_run_and_are_all_given() -> None:
    """Answers to 4,000 clients would hold the event loop for 60 ms; one that is cut off hangs."""
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
