"""The end of a connection without a task: the last answer arrives, and the slot becomes free."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from payloadd.ingress.server.client_connection import Ending
from payloadd.ingress.server.client_stream import ClientStream
from payloadd.ingress.server.fifo_gate import FifoGate
from payloadd.ingress.server.lingering import Lingering
from payloadd.ingress.server.poller import Poller
from payloadd.ingress.server.socket_stream import NonBlockingStream
from tests.ingress.rig import COLLECTION, SOON, post, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Pair = tuple[ClientStream, socket.socket]
CLOSE = b"HTTP/1.1 202 \r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
HEADERS = ("Content-Type: application/json", "Connection: close")


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """Connect two sockets; the first is that of the server."""
    listening = socket.create_server(("127.0.0.1", 0))
    with listening, socket.create_connection(listening.getsockname(), timeout=10) as theirs:
        ours, _ = listening.accept()
        ours.settimeout(0)
        stream = ClientStream(NonBlockingStream(ours), 5, 5, FifoGate())
        stream.request_begins()
        yield stream, theirs
        stream.transport.close()


def is_reset(client: socket.socket) -> bool:
    """Return whether the connection was reset, after its rest was read."""
    try:
        while client.recv(100):
            pass
    except ConnectionResetError:
        return True
    return False


async def test_a_connection_that_its_client_closes_is_closed_at_once(pair: Pair) -> None:
    """A connection for each request would be watched until its client has closed it, too."""
    stream, client = pair
    stream.client_closes = True
    stream.send_now(CLOSE, closes=True)
    assert stream.finish_now() is Ending.CLOSED
    assert stream.socket.fileno() < 0
    assert client.recv(100) == CLOSE
    assert not is_reset(client)


@pytest.mark.parametrize("client_closes", [True, False])
async def test_a_client_that_still_sends_can_read_its_answer(
    pair: Pair,
    client_closes: bool,  # noqa: FBT001
) -> None:
    """A socket that is closed with unread bytes is reset, and the client loses its answer."""
    stream, client = pair
    client.sendall(b"more")
    stream.client_closes = client_closes
    stream.send_now(CLOSE, closes=True)
    assert stream.finish_now() is Ending.LINGERS
    client.sendall(b"more")
    assert client.recv(100) == CLOSE
    assert not is_reset(client)


@pytest.mark.parametrize("end", ["close", "reset", "deadline", "too much", "evict"])
async def test_a_lingering_connection_ends(pair: Pair, end: str, nursery: trio.Nursery) -> None:
    """A connection that is over would keep its slot."""
    stream, client = pair
    poller = Poller()
    nursery.start_soon(poller.run)
    stream.send_now(CLOSE, closes=True)
    assert stream.finish_now() is Ending.LINGERS
    ended: list[Any] = []
    Lingering(poller, stream, ended.append).start()
    client.sendall(b"more")
    await wait_all_tasks_blocked(0.01)
    assert not ended
    if end == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if end in ("close", "reset"):
        client.close()
    elif end == "deadline":
        stream.check_deadlines(trio.current_time() + 2.1)
    elif end == "evict":
        stream.evict()
    else:
        client.settimeout(0)
        with trio.move_on_after(10):
            while not ended:
                try:
                    client.send(bytes(65_536))
                except BlockingIOError:
                    await trio.lowlevel.checkpoint()
                except OSError:
                    break
    with trio.fail_after(SOON):
        while not ended:
            await trio.lowlevel.checkpoint()
    stream.check_deadlines(trio.current_time() + 1000)
    assert ended == [stream]
    assert stream.socket.fileno() < 0


async def test_connections_of_one_request_leave_no_task_and_no_slot() -> None:
    """Clients without kept-alive connections would cost twenty times the CPU time."""
    async with running(max_connections=1) as rig:
        await wait_all_tasks_blocked()
        before = trio.lowlevel.current_statistics().tasks_living
        for _ in range(5):
            async with rig.wire() as wire:
                await wire.send(post(COLLECTION, *HEADERS))
                assert b"connection: close" in await wire.rest()
        await wait_all_tasks_blocked(0.01)
        assert trio.lowlevel.current_statistics().tasks_living == before
        assert len(rig.intake.taken) == 5


async def test_idle_connections_take_no_task() -> None:
    """Ten thousand connections would take hundreds of MiB."""
    async with running(max_connections=300) as rig:
        await wait_all_tasks_blocked()
        before = trio.lowlevel.current_statistics().tasks_living
        address = rig.listeners[0].socket.getsockname()
        open_ones = [socket.create_connection(address) for _ in range(200)]
        await wait_all_tasks_blocked(0.05)
        assert trio.lowlevel.current_statistics().tasks_living == before
        for one in open_ones:
            one.close()
