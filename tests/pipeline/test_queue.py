"""The channel: what ends the wait of who fills a batch. Its bounds are in ``test_refill.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from payloadd.pipeline.queue import JobChannel
from tests.support.journal import job

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.testing import MockClock


def send(count: int, payloads: int = 1, lines: bytes = b"12345\n") -> Callable[[JobChannel], None]:
    """Return what puts so many jobs in, each as a group of its own."""

    def send_to(channel: JobChannel) -> None:
        for seq in range(1, count + 1):
            channel.send_nowait([job(seq, lines, payloads)])

    return send_to


@pytest.mark.parametrize(
    ("max_jobs", "max_bytes", "happens", "seconds"),
    [
        pytest.param(2000, 10_000, send(9), 5.0, id="not-enough"),
        pytest.param(2000, 10_000, send(10), 1.0, id="enough"),
        pytest.param(2000, 10_000, send(3, payloads=3), 5.0, id="not-enough-payloads"),
        pytest.param(2000, 10_000, send(2, payloads=5), 1.0, id="enough-payloads"),
        pytest.param(2000, 10_000, send(1, lines=b"x" * 199), 5.0, id="not-enough-bytes"),
        pytest.param(2000, 10_000, send(1, lines=b"x" * 200), 1.0, id="enough-bytes"),
        pytest.param(1000, 10_000, send(500, 0, b""), 5.0, id="half-of-the-jobs"),
        pytest.param(1000, 10_000, send(501, 0, b""), 1.0, id="more-than-half-of-the-jobs"),
        pytest.param(2000, 100, send(9), 1.0, id="more-than-half-of-the-bytes"),
        pytest.param(999, 10_000, send(1), 1.0, id="few-jobs-in-all"),
        pytest.param(2000, 10_000, JobChannel.close, 1.0, id="closed"),
        pytest.param(2000, 10_000, JobChannel.nudge, 1.0, id="nudged"),
    ],
)
async def test_how_long_jobs_are_gathered(
    autojump_clock: MockClock,
    max_jobs: int,
    max_bytes: int,
    happens: Callable[[JobChannel], None],
    seconds: float,
) -> None:
    """A full batch would wait, a small queue run full, or a drain take longer than it has to."""
    assert autojump_clock.autojump_threshold == 0
    channel = JobChannel(max_jobs, max_bytes)
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.gather, 10, 200, 5.0)
        await trio.sleep(1)
        happens(channel)
    waited = trio.current_time() - start
    assert waited == pytest.approx(seconds)


async def test_nothing_more_comes_through_a_closed_channel(autojump_clock: MockClock) -> None:
    """Every partial batch of a drain would wait for what cannot come."""
    assert autojump_clock.autojump_threshold == 0
    channel = JobChannel(2000, 10_000)
    channel.close()
    start = trio.current_time()
    await channel.gather(10, 200, 5.0)
    assert trio.current_time() == start
