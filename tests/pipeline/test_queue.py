"""The channel: its bounds, its waits, and what ends them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from payloadd.pipeline.queue import JobChannel
from tests.support.journal import job

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.testing import MockClock


def send(count: int, payloads: int = 1, lines: bytes = b"12345\n") -> Callable[[JobChannel], None]:
    """Return a function that sends ``count`` jobs, each as a group of its own."""

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
        pytest.param(2000, 10_000, JobChannel.close, 1.0, id="closed"),
    ],
)
async def test_gathering_ends_when_enough_has_come(
    autojump_clock: MockClock,
    max_jobs: int,
    max_bytes: int,
    happens: Callable[[JobChannel], None],
    seconds: float,
) -> None:
    """A full batch would wait, a small queue become full, or a drain take longer than needed."""
    assert autojump_clock.autojump_threshold == 0
    channel = JobChannel(max_jobs, max_bytes)
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.queue_of(1).gather, 10, 200, 5.0)
        await trio.sleep(1)
        happens(channel)
    waited = trio.current_time() - start
    assert waited == pytest.approx(seconds)


async def test_gathering_on_a_closed_channel_returns_at_once(autojump_clock: MockClock) -> None:
    """Every partial batch of a drain would wait for jobs that cannot come."""
    assert autojump_clock.autojump_threshold == 0
    channel = JobChannel(2000, 10_000)
    channel.queue_of(1)
    channel.close()
    start = trio.current_time()
    await channel.queue_of(1).gather(10, 200, 5.0)
    assert trio.current_time() == start


async def test_a_channel_accepts_all_jobs_or_none() -> None:
    """Half of a request would be stored although the client was refused."""
    channel = JobChannel(2, 10)
    channel.send_nowait([job(1, b"12345")])
    with pytest.raises(trio.WouldBlock):
        channel.send_nowait([job(2, b"123"), job(3, b"123")])
    assert (channel.jobs, channel.bytes) == (1, 5)
    assert channel.receive_nowait().seq == 1


async def test_received_jobs_count_until_they_are_released() -> None:
    """While the store is down the workers would hold as much memory again as the channel."""
    channel = JobChannel(9, 10)
    channel.send_nowait([job(1, b"12345678")])
    assert channel.receive_nowait().seq == 1
    assert not channel.has_room(1, 3)
    with pytest.raises(trio.WouldBlock):
        channel.send_nowait([job(2, b"123456789012")])
    channel.release(8)
    channel.send_nowait([job(2, b"123456789012")])


async def test_put_back_jobs_count_towards_the_bound_on_jobs() -> None:
    """Small payloads that a store refuses would take all memory."""
    channel = JobChannel(3, 100)
    channel.send_nowait([job(1), job(2)])
    channel.receive_nowait()
    channel.receive_nowait()
    channel.put_back(2)
    assert channel.has_room(1, 1)
    assert not channel.has_room(2, 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.wait_for_room, 2, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert nursery.child_tasks
        channel.put_back(-2)
