"""The figures of the last 15 minutes."""

from __future__ import annotations

import itertools

import trio
import trio.testing

from payloadd.observe.history import History, Sample, Timings
from payloadd.observe.status import JournalFigures, PayloadFigures, QueueFigures, Status


class Process:
    """A process whose clocks a test sets."""

    def __init__(self) -> None:
        self.monotonic = 50.0
        self.wall = 1_000_000.0
        self.status = Status()
        self.history = History(
            lambda: self.status,
            lambda: Timings(1, 0.5, 2, 1.5, 99),
            lambda: self.monotonic,
            lambda: self.wall,
        )

    def run(self, seconds: int) -> None:
        """Take a sample each second."""
        for _ in range(seconds):
            self.monotonic += 1
            self.history.take()


def test_a_sample_has_the_figures_of_its_moment() -> None:
    """The plots would show the figures of other fields."""
    process = Process()
    process.status = Status(
        payloads=PayloadFigures(accepted=1, stored=2, dead=3, oldest_seconds=4.04),
        queue=QueueFigures(jobs=5, bytes=6, put_back=7),
        journal=JournalFigures(bytes=8),
        busy_workers=9,
    )
    process.run(1)
    (sample,) = process.history.since(0)
    assert sample == Sample(1_000_001.0, 1, 2, 3, 12, 6, 8, 4.0, 9, 1, 0.5, 2, 1.5, 99)


def test_two_minutes_are_kept_by_the_second_and_fifteen_by_ten_seconds() -> None:
    """The plots would have gaps, or show less than 15 minutes."""
    process = Process()
    process.run(3600)
    times = [sample.at - process.history.started for sample in process.history.since(0)]
    steps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert times[-1] == 3600
    assert times[-1] - times[0] >= 900
    assert steps[-119:] == [1] * 119
    assert set(steps[:-120]) == {10}
    assert all(0 < step <= 10 for step in steps)


def test_the_memory_is_bounded() -> None:
    """A daemon that runs for months would need more memory each day."""
    process = Process()
    sizes = set()
    for _ in range(30):
        process.run(1000)
        sizes.add(len(process.history.since(0)))
    assert max(sizes) == 210


def test_samples_after_a_moment_are_returned() -> None:
    """Each poll would send the whole history."""
    process = Process()
    process.run(1000)
    newest = process.history.since(0)[-1].at
    assert process.history.since(newest) == []
    assert [sample.at for sample in process.history.since(newest - 2)] == [newest - 1, newest]
    everything = process.history.since(0)
    for at in (newest - 119, newest - 121, newest - 500, newest - 5000):
        found = process.history.since(at)
        assert found == [sample for sample in everything if sample.at > at]


def test_a_clock_that_is_set_moves_no_sample() -> None:
    """Rates would be negative, and a page would wait for samples in the future."""
    process = Process()
    process.run(10)
    process.wall -= 86_400
    process.run(10)
    process.wall += 500_000
    process.run(10)
    times = [sample.at for sample in process.history.since(0)]
    assert times == [1_000_000 + second for second in range(1, 31)]
    assert process.history.now() == times[-1]


async def test_a_sample_is_taken_each_second(autojump_clock: trio.testing.MockClock) -> None:
    """The plots would stay empty."""
    history = History(Status, Timings, trio.current_time)
    with trio.move_on_after(5.5):
        await history.run()
    assert len(history.since(0)) == 6
