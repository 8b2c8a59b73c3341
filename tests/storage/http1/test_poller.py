"""One epoll for all connections: nothing that arrives is missed, and few tasks run in a pass."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from payloadd.storage.http1.poller import _MOST_PER_PASS, InputPoller
from payloadd.storage.http1.socket import TcpStream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SOON = 60.0


@asynccontextmanager
async def connected(poller: InputPoller) -> AsyncIterator[tuple[TcpStream, socket.socket]]:
    """Yield a watched stream and the socket of its peer."""
    ours, peer = socket.socketpair()
    stream = TcpStream(trio.SocketStream(trio.socket.from_stdlib_socket(ours)), poller)
    try:
        with peer, trio.fail_after(SOON):
            yield stream, peer
    finally:
        stream.close()


@pytest.fixture
async def poller() -> AsyncIterator[InputPoller]:
    """Return a poller that ends with the test."""
    one = InputPoller()
    yield one
    one.close()


async def test_input_is_returned_whether_it_arrives_before_or_after_the_call(
    poller: InputPoller, nursery: trio.Nursery
) -> None:
    """A worker would wait until UPLOAD_TIMEOUT for a response that is there."""
    async with connected(poller) as (stream, peer):
        peer.sendall(b"before")
        await wait_all_tasks_blocked()  # the poller has seen it, and no task waits
        assert await stream.receive_some() == b"before"

        async def send() -> None:
            await wait_all_tasks_blocked()
            peer.sendall(b"after")

        nursery.start_soon(send)
        assert await stream.receive_some() == b"after"


async def test_input_that_takes_several_reads_is_reported_once(poller: InputPoller) -> None:
    """The rest of a long response would be waited for in vain."""
    async with connected(poller) as (stream, peer):
        peer.sendall(bytes(100_000))
        received = 0
        while received < 100_000:
            received += len(await stream.receive_some())
        with trio.move_on_after(0.05) as waiting:
            await stream.receive_some()
        assert waiting.cancelled_caught
        peer.sendall(b"more")
        assert await stream.receive_some(2) == b"mo"
        assert await stream.receive_some(2) == b"re"


async def test_the_end_that_arrives_with_the_last_bytes_is_returned(poller: InputPoller) -> None:
    """A response that ends with its connection would never be complete."""
    async with connected(poller) as (stream, peer):
        peer.sendall(b"last")
        peer.close()
        await wait_all_tasks_blocked()
        assert [await stream.receive_some() for _ in range(3)] == [b"last", b"", b""]


async def test_a_call_that_is_cancelled_leaves_the_input_to_the_next_one(
    poller: InputPoller,
) -> None:
    """Input would wake a task that waits for something else."""
    async with connected(poller) as (stream, peer):
        with trio.move_on_after(0.01):
            await stream.receive_some()
        peer.sendall(b"x")
        await trio.sleep(0.01)
        assert await stream.receive_some() == b"x"


async def test_few_tasks_run_in_a_pass(poller: InputPoller, nursery: trio.Nursery) -> None:
    """With 64 workers each client of the daemon would wait until all have had their turn."""
    count = 3 * _MOST_PER_PASS
    ran: list[int] = []
    passes = 0

    async def read(stream: TcpStream, peer: socket.socket) -> None:
        with peer:
            await stream.receive_some()
        ran.append(passes)
        stream.close()

    peers = []
    for _ in range(count):
        ours, peer = socket.socketpair()
        stream = TcpStream(trio.SocketStream(trio.socket.from_stdlib_socket(ours)), poller)
        nursery.start_soon(read, stream, peer)
        peers.append(peer)
    await wait_all_tasks_blocked()
    for peer in peers:
        peer.sendall(b"x")
    with trio.fail_after(SOON):
        while len(ran) < count:
            passes += 1
            await trio.lowlevel.checkpoint()
    # Whether this task or another one is the first in a pass is random.
    assert max(ran.count(one) for one in ran) <= 2 * _MOST_PER_PASS
    assert passes >= count / _MOST_PER_PASS


async def test_a_descriptor_that_is_used_again_is_another_connection(poller: InputPoller) -> None:
    """A response would count for the request of another connection."""
    async with connected(poller) as (first, peer):
        descriptor = first.fileno()
        peer.sendall(b"unread")
        await wait_all_tasks_blocked()
        first.close()
        async with connected(poller) as (second, other):
            assert second.fileno() == descriptor
            with trio.move_on_after(0.05) as waiting:
                await second.receive_some()
            assert waiting.cancelled_caught
            other.sendall(b"own")
            assert await second.receive_some() == b"own"


async def test_a_poller_that_is_closed_has_no_task() -> None:
    """Each check of a store would leave one."""
    before = trio.lowlevel.current_statistics().tasks_living
    poller = InputPoller()
    await wait_all_tasks_blocked()
    assert trio.lowlevel.current_statistics().tasks_living == before + 1
    poller.close()
    await wait_all_tasks_blocked()
    assert trio.lowlevel.current_statistics().tasks_living == before
    assert poller._epoll.closed
