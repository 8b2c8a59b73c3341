"""One epoll for all connections: nothing that arrives is missed, and few tasks run in a pass."""

from __future__ import annotations

import select
import socket
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from unittest.mock import Mock

import httpx
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from payloadd.storage.http1.poller import _MOST_PER_PASS, InputPoller
from payloadd.storage.http1.socket import TcpStream
from payloadd.storage.http1.transport import TrioTransport, open_transport
from tests.storage.http1.test_transport import answer_once, ask, raw_server
from tests.support.turns import turns_of

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


async def test_a_connection_that_was_reset_is_an_error_and_then_the_end(
    poller: InputPoller,
) -> None:
    """A worker would keep a processor busy, or wait until UPLOAD_TIMEOUT."""
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    async with listener:
        port = listener.socket.getsockname()[1]
        stream = TcpStream(await trio.open_tcp_stream("127.0.0.1", port), poller)
        peer = await listener.accept()
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.socket.close()
        with trio.fail_after(SOON):
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
            assert await stream.receive_some() == b""
        stream.close()


@pytest.mark.parametrize("size", [65_536, 2 * 65_536])
async def test_input_of_exactly_some_reads_is_followed_by_a_wait(
    poller: InputPoller, size: int
) -> None:
    """A worker that waits for more would keep a processor busy."""
    async with connected(poller) as (stream, peer):
        peer.sendall(bytes(size))
        received = 0
        while received < size:
            received += len(await stream.receive_some())
        with trio.move_on_after(0.02):
            assert await turns_of(stream.receive_some) < 10
        assert not stream._may_have_more
        peer.sendall(b"x")
        assert await stream.receive_some() == b"x"


async def test_a_stream_that_is_closed_wakes_the_task_that_waits(
    poller: InputPoller, nursery: trio.Nursery
) -> None:
    """The task would wait for ever."""
    ended = trio.Event()
    async with connected(poller) as (stream, _):

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some()
            ended.set()

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        stream.close()
        await ended.wait()
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some()


async def test_a_socket_that_cannot_be_watched_is_closed(
    poller: InputPoller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt to reach the store would keep a descriptor."""
    monkeypatch.setattr(poller, "watch", Mock(side_effect=OSError))
    ours, peer = socket.socketpair()
    with peer:
        with pytest.raises(OSError):  # noqa: PT011 - the error of the system
            TcpStream(trio.SocketStream(trio.socket.from_stdlib_socket(ours)), poller)
        assert peer.recv(1) == b""


async def test_input_is_noticed_while_the_system_has_no_memory(
    poller: InputPoller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon would end with an internal error of trio."""
    wait = trio.lowlevel.wait_readable
    monkeypatch.setattr(trio.lowlevel, "wait_readable", Mock(side_effect=OSError))
    async with connected(poller) as (stream, peer):
        peer.sendall(b"x")
        assert await stream.receive_some() == b"x"
        monkeypatch.setattr(trio.lowlevel, "wait_readable", wait)
        peer.sendall(b"y")
        assert await stream.receive_some() == b"y"


async def test_a_transport_without_a_descriptor_has_an_error_of_httpx(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The daemon would end, where the upload has to be tried again; also after ``aclose``."""
    async with raw_server(answer_once, answer_once) as url:
        made = open_transport(1, 5, secure=False)
        assert isinstance(made, TrioTransport)
        for _ in range(2):
            with monkeypatch.context() as patch:
                patch.setattr(select, "epoll", Mock(side_effect=OSError(24, "Too many open files")))
                with pytest.raises(httpx.ConnectError, match="Too many open files"):
                    await made.handle_async_request(ask(url))
            assert (await made.handle_async_request(ask(url))).is_success
            await made.aclose()


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


class Steps(trio.abc.Instrument):
    """Counts the steps of some tasks in each pass of the event loop."""

    def __init__(self, tasks: trio.Nursery) -> None:
        self.in_passes = [0]
        self._tasks = tasks

    def before_io_wait(self, timeout: float) -> None:
        """Begin a pass."""
        del timeout
        self.in_passes.append(0)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count a step."""
        self.in_passes[-1] += task.parent_nursery is self._tasks


async def test_few_tasks_run_in_a_pass(poller: InputPoller) -> None:
    """With 64 workers each client of the daemon would wait until all have had their turn."""
    count = 3 * _MOST_PER_PASS

    async def read(stream: TcpStream) -> None:
        assert await stream.receive_some() == b"x"
        stream.close()

    with trio.fail_after(SOON):
        async with trio.open_nursery() as readers:
            peers = []
            for _ in range(count):
                ours, peer = socket.socketpair()
                wire = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
                readers.start_soon(read, TcpStream(wire, poller))
                peers.append(peer)
            await wait_all_tasks_blocked()
            steps = Steps(readers)
            trio.lowlevel.add_instrument(steps)
            for peer in peers:
                peer.sendall(b"x")
                peer.close()
    trio.lowlevel.remove_instrument(steps)
    assert sum(steps.in_passes) == count
    assert max(steps.in_passes) == _MOST_PER_PASS


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
