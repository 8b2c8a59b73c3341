"""Groups of operations that wait for a commit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from daemon.pipeline.groups import Groups
from daemon.pipeline.operations import Expire
from tests.pipeline.rig import append

if TYPE_CHECKING:
    from trio.testing import MockClock

MOST = 100


def test_a_request_that_does_not_fit_has_the_next_group() -> None:
    """A commit would have no bound, and everybody in it would wait for all of it."""
    groups = Groups()
    for number, size in enumerate((60, 40, 1, 500, 1), start=1):
        groups.append(append(number), size, MOST)
    assert len(groups) == 4
    assert [len(groups.take().operations) for _ in range(4)] == [2, 1, 1, 1]
    assert len(groups) == 1


async def test_what_nobody_waits_for_waits_for_a_commit_to_ride_along_with(
    autojump_clock: MockClock,
) -> None:
    """Each stored object would cost an fsync of its own; or its row would stay for ever."""
    assert autojump_clock.autojump_threshold == 0
    groups = Groups()
    groups.add(Expire())
    start = trio.current_time()
    await groups.wait()
    assert trio.current_time() - start == pytest.approx(0.05)
    groups.append(append(1), 1, MOST)
    await groups.wait()
    assert trio.current_time() - start == pytest.approx(0.05)


class Turns(trio.abc.Instrument):
    """Counts how often a task has let the others run."""

    def __init__(self, task: trio.lowlevel.Task) -> None:
        self.count = 0
        self._task = task

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count the end of a step."""
        self.count += task is self._task


@pytest.mark.parametrize("before", [1, 2])
async def test_requests_that_are_about_to_come_have_a_turn_to_do_so(before: int) -> None:
    """Half of the clients that are answered together would come too late for the next commit."""
    groups = Groups()
    for number in range(before):
        groups.append(append(number), 1, MOST)
    groups.take()
    groups.append(append(9), 1, MOST)
    turns = Turns(trio.lowlevel.current_task())
    trio.lowlevel.add_instrument(turns)
    await groups.wait()
    trio.lowlevel.remove_instrument(turns)
    assert turns.count == before
