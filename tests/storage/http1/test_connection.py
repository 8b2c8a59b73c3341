"""One connection: what is repeated on a new one, and which errors a broken one has."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import httpx
import pytest
import trio

from payloadd.storage.http1.connection import Connection, Origin
from payloadd.storage.http1.request import WireRequest
from payloadd.storage.http1.socket import TcpStream
from tests.storage.http1.test_transport import LARGE, answer_once, ask, raw_server, transport

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence


async def answer_one_of_two(stream: trio.SocketStream) -> None:
    """Respond to the first request, read the second and close."""
    await answer_once(stream)
    await stream.receive_some(65536)


async def read_and_close(stream: trio.SocketStream) -> None:
    """Read a request and close without a response."""
    await stream.receive_some(65536)


@pytest.mark.parametrize("first", [answer_once, answer_one_of_two])
async def test_a_stale_connection_is_replaced(
    first: Callable[[trio.SocketStream], Awaitable[None]],
) -> None:
    """An attempt would fail after each pause longer than the server's idle timeout."""
    async with raw_server(first, answer_once) as url, transport() as made:
        for _ in range(2):
            assert (await made.handle_async_request(ask(url))).is_success


async def test_a_response_without_a_request_is_not_used() -> None:
    """An object would count as stored because of a response that precedes its request."""
    requested, sent = trio.Event(), trio.Event()

    async def send_second_response(stream: trio.SocketStream) -> None:
        await answer_once(stream)
        await requested.wait()
        await stream.send_all(b"HTTP/1.1 201 Unasked\r\nContent-Length: 0\r\n\r\n")
        sent.set()
        await stream.receive_some(65536)

    async with raw_server(send_second_response, answer_once) as url, transport() as made:
        await made.handle_async_request(ask(url))
        requested.set()
        await sent.wait()
        assert (await made.handle_async_request(ask(url))).status_code == 200


@pytest.mark.parametrize(
    ("handlers", "method"),
    [
        ([read_and_close], "PUT"),
        ([answer_one_of_two, read_and_close], "PUT"),
        ([answer_one_of_two], "POST"),
    ],
    ids=["a-new-connection", "twice", "not-idempotent"],
)
async def test_only_an_idempotent_request_on_a_used_connection_is_repeated_once(
    handlers: list[Callable[[trio.SocketStream], Awaitable[None]]], method: str
) -> None:
    """A server that closes connections would get a request for ever, or a POST twice.

    One connection more than there are handlers ends the server with an IndexError.
    """
    async with raw_server(*handlers) as url, transport() as made:
        if handlers[0] is answer_one_of_two:
            await made.handle_async_request(ask(url))
        with pytest.raises(httpx.RemoteProtocolError):
            await made.handle_async_request(ask(url, method))


async def test_a_request_is_not_repeated_after_a_part_of_its_response() -> None:
    """The server has received the request: the error must be reported, not hidden."""

    async def half(stream: trio.SocketStream) -> None:
        await answer_one_of_two(stream)
        await stream.send_all(b"HTTP/1.1 200")

    async with raw_server(half) as url, transport() as made:
        await made.handle_async_request(ask(url))
        with pytest.raises(httpx.RemoteProtocolError, match="middle"):
            await made.handle_async_request(ask(url))


async def test_a_refusal_before_the_end_of_the_body_is_returned() -> None:
    """The reason of the refusal would be lost; only the broken connection would be reported."""

    async def refuse(stream: trio.SocketStream) -> None:
        await stream.receive_some(1000)
        await stream.send_all(b"HTTP/1.1 403 No\r\nContent-Length: 3\r\n\r\nwhy")

    async with raw_server(refuse, answer_once) as url, transport() as made:
        response = await made.handle_async_request(ask(url, content=LARGE * 4))
        assert (response.status_code, await response.aread()) == (403, b"why")
        assert (await made.handle_async_request(ask(url))).is_success


async def test_a_connection_that_breaks_within_the_body_is_a_write_error() -> None:
    """A connection that breaks while an object is sent would end the daemon."""

    async def close_early(stream: trio.SocketStream) -> None:
        await stream.receive_some(1000)

    async with raw_server(close_early) as url, transport() as made:
        with pytest.raises(httpx.WriteError, match=r"reset|[Bb]roken"):
            await made.handle_async_request(ask(url, content=LARGE * 4))


class AcceptingStream(TcpStream):
    """A connection whose kernel accepts each write at once."""

    def __init__(self) -> None:
        self.writes: list[tuple[int, int]] = []
        """The turn of the event loop and the bytes of each write."""
        self.sent = 0
        self.turn = 0

    def _send(self, pieces: Sequence[bytes | bytearray | memoryview]) -> int:
        size = sum(map(len, pieces))
        self.writes.append((self.turn, size))
        return size

    async def receive_some(self, max_bytes: int | None = None) -> bytes:  # noqa: ARG002 - the interface
        """Return the response."""
        return b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

    async def let_others_run(self) -> None:
        """Count the turns in which other tasks may run."""
        self.turn += 1


async def test_other_tasks_run_after_each_mib_of_a_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """An object of 100 MiB would hold the event loop; and a turn after each write cost CPU time."""
    wire = AcceptingStream()
    monkeypatch.setattr(trio.lowlevel, "checkpoint", wire.let_others_run)
    connection = Connection(Origin("127.0.0.1", 80, secure=False), wire, wire)
    pieces = [bytes(2**16)] * 160
    request = WireRequest("PUT", b"PUT / HTTP/1.1\r\n\r\n", pieces, None, None)
    assert (await connection.exchange(request)).status == 200
    assert max(size for _, size in wire.writes) == 2**18
    by_turn = Counter[int]()
    for turn, size in wire.writes:
        by_turn[turn] += size
    assert [*by_turn.values()] == [*[2**20] * 10, len(request.head)]
