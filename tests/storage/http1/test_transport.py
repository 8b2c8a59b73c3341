"""The transport against servers that break the rules of HTTP/1.1."""

from __future__ import annotations

import errno
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import httpx
import pytest
import trio

from payloadd.storage.http1.transport import TrioTransport, open_transport
from tests.support.faults import Answer, Hang, Raw, fault_server, in_turn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.support.faults import Behaviour, Request

LARGE = bytes(range(256)) * 4096 * 4  # 4 MiB: more than both kernels' buffers take
OK = Answer(200)
TEST_SECONDS = 60.0


def ask(
    url: str,
    method: str = "PUT",
    content: bytes = b"{}\n",
    target: bytes | None = None,
    seconds: dict[str, float] | None = None,
) -> httpx.Request:
    """Return a request; ``seconds`` are httpx's four timeouts."""
    extensions: dict[str, object] = {
        "timeout": httpx.Timeout(TEST_SECONDS).as_dict() | (seconds or {})
    }
    if target is not None:
        extensions["target"] = target
    return httpx.Request(method, url, content=content, extensions=extensions)


@asynccontextmanager
async def transport(
    connections: int = 4, keepalive: float = TEST_SECONDS
) -> AsyncIterator[TrioTransport]:
    """Yield a transport, which is closed with the block; the block has 30 s."""
    made = open_transport(connections, keepalive, secure=False)
    assert isinstance(made, TrioTransport)
    with trio.fail_after(TEST_SECONDS):
        async with made:
            yield made


@asynccontextmanager
async def raw_server(
    *handlers: Callable[[trio.SocketStream], Awaitable[None]], host: str = "127.0.0.1"
) -> AsyncIterator[str]:
    """Run a server whose next connection runs the next handler, and yield its URL."""
    left = list(handlers)

    async def handle(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):  # the client may close at any time
            await left.pop(0)(stream)

    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, handle, 0, host=host)
        listeners: list[trio.SocketListener] = await nursery.start(serve)
        port = listeners[0].socket.getsockname()[1]
        yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def hanging_server(answer: bytes = b"") -> AsyncIterator[HangingServer]:
    """Run a server whose first connection hangs after ``answer``."""
    holding = HangingServer(answer)
    async with raw_server(holding.hang, holding.serve) as url:
        holding.url = url
        yield holding


class HangingServer:
    """A server whose first connection hangs; its second connection gets a response."""

    def __init__(self, answer: bytes) -> None:
        self.url = ""
        self.begun = trio.Event()
        self.resume = trio.Event()
        self.closed = trio.Event()
        self._answer = answer

    async def hang(self, stream: trio.SocketStream) -> None:
        """Read the beginning of a request; after ``resume``, wait for the client to close."""
        await stream.receive_some(10)
        await stream.send_all(self._answer)
        self.begun.set()
        await self.resume.wait()
        with suppress(trio.BrokenResourceError):
            while await stream.receive_some(65536):
                pass
        self.closed.set()

    async def serve(self, stream: trio.SocketStream) -> None:
        """Respond with a 200."""
        await stream.receive_some(65536)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await stream.receive_some(65536)


async def answer_once(stream: trio.SocketStream) -> None:
    """Respond to the first request and close."""
    await stream.receive_some(65536)
    await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


async def test_a_request_is_sent_and_its_response_returned() -> None:
    """No object could be stored."""
    answer = Answer(201, b"<x/>", {"etag": '"1"'})
    async with fault_server(in_turn(answer)) as server, transport() as made:
        response = await made.handle_async_request(
            ask(f"{server.url}/ignored", content=b"body", target=b"/a//b/../%C3%BC?x-id=Put")
        )
        body = await response.aread()

    assert (response.status_code, body, response.headers["ETag"]) == (201, b"<x/>", '"1"')
    request = server.requests[0]
    assert (request.method, request.body) == ("PUT", b"body")
    assert request.target == "/a//b/../%C3%BC?x-id=Put"
    assert request.headers["host"] == server.url.removeprefix("http://")


async def test_the_client_of_httpx_can_use_the_transport() -> None:
    """The interface of the transport would not be httpx's."""
    async with (
        fault_server(in_turn(Answer(200, b"hello"))) as server,
        httpx.AsyncClient(transport=open_transport(1, TEST_SECONDS, secure=False)) as client,
    ):
        response = await client.get(f"{server.url}/a b?c=d")

    assert response.text == "hello"
    assert server.requests[0].target == "/a%20b?c=d"


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, len(LARGE)])
async def test_bodies_of_any_size_arrive_whole(size: int) -> None:
    """Large objects would be cut or reordered."""
    async with fault_server(in_turn(OK)) as server, transport() as made:
        for _ in range(2):
            await made.handle_async_request(ask(server.url, content=LARGE[:size]))

    assert [one.body == LARGE[:size] for one in server.requests] == [True, True]
    assert server.connections == 1


async def test_a_response_may_arrive_byte_by_byte() -> None:
    """A response in small segments would be lost."""
    data = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"

    async def drip(stream: trio.SocketStream) -> None:
        for _ in range(2):
            await stream.receive_some(65536)
            for byte in data:
                await stream.send_all(bytes([byte]))

    async with raw_server(drip) as url, transport() as made:
        for _ in range(2):
            response = await made.handle_async_request(ask(url))
            assert await response.aread() == b"ab"


@pytest.mark.parametrize(
    ("answer", "connections"),
    [
        (OK, 1),
        (Answer(204), 1),
        (Answer(200, headers={"connection": "close"}), 3),
        (Answer(200, b"x" * 300_000), 3),
        (Raw(b"HTTP/1.0 200 OK\r\n\r\nuntil the end"), 3),
        (Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 500 No\r\n\r\n"), 3),
    ],
)
async def test_connections_are_kept_where_the_response_allows_it(
    answer: Behaviour, connections: int
) -> None:
    """Every object would need a handshake, or would get the response to another request."""
    async with fault_server(in_turn(answer)) as server, transport() as made:
        for _ in range(3):
            response = await made.handle_async_request(ask(server.url))
            assert response.is_success

    assert server.connections == connections


async def test_a_response_to_head_ends_with_its_head() -> None:
    """A request would wait for a body that is never sent."""
    head = Answer(200, headers={"content-length": "1000"})
    async with fault_server(in_turn(head)) as server, transport() as made:
        for _ in range(2):
            response = await made.handle_async_request(ask(server.url, "HEAD", b""))
            assert await response.aread() == b""

    assert server.connections == 1


async def test_old_connections_and_those_to_other_hosts_are_closed() -> None:
    """Connections that are never used again would stay open for ever."""
    async with fault_server(in_turn(OK)) as one, fault_server(in_turn(OK)) as other:
        async with transport(keepalive=0.0) as made:
            for _ in range(2):
                await made.handle_async_request(ask(one.url))
        assert one.connections == 2
        async with transport() as made:
            for url in (one.url, other.url, one.url):
                await made.handle_async_request(ask(url))
        assert (one.connections, other.connections) == (4, 1)


@pytest.mark.parametrize(
    ("name", "behaviour", "error"),
    [
        ("read", Hang(), httpx.ReadTimeout),
        ("read", Answer(200, b"", {"content-length": "9"}), httpx.ReadTimeout),
        ("write", Hang(after=1), httpx.WriteTimeout),
        ("pool", Hang(), httpx.PoolTimeout),
    ],
)
async def test_each_timeout_has_its_error(
    name: str, behaviour: Behaviour, error: type[Exception]
) -> None:
    """A server that hangs would occupy a worker for ever."""
    async with (
        fault_server(in_turn(behaviour)) as server,
        transport(connections=1) as made,
        trio.open_nursery() as nursery,
    ):
        if name == "pool":
            nursery.start_soon(made.handle_async_request, ask(server.url))
            await trio.testing.wait_all_tasks_blocked()
        body = LARGE * 4 if name == "write" else b""
        with pytest.raises(error):
            await made.handle_async_request(ask(server.url, content=body, seconds={name: 0.1}))
        nursery.cancel_scope.cancel()


async def test_a_tls_handshake_has_a_timeout() -> None:
    """A server that never ends the handshake would occupy a worker for ever."""
    async with hanging_server() as server, transport() as made:
        with pytest.raises(httpx.ConnectTimeout):
            await made.handle_async_request(
                ask(server.url.replace("http", "https"), seconds={"connect": 0.1})
            )
        server.resume.set()
        await server.closed.wait()


@pytest.mark.parametrize(
    ("scheme", "body", "answer"),
    [
        ("https", b"", b""),
        ("http", LARGE * 4, b""),
        ("http", b"", b""),
        ("http", b"", b"HTTP/1.1 200 OK\r\nContent-Le"),
    ],
    ids=["connecting", "writing", "waiting", "reading"],
)
async def test_a_cancelled_request_closes_its_connection(
    scheme: str, body: bytes, answer: bytes
) -> None:
    """A drain would leave connections open, or the transport unusable."""
    async with hanging_server(answer) as server, transport(connections=1) as made:
        async with trio.open_nursery() as nursery:
            url = server.url.replace("http", scheme)
            nursery.start_soon(made.handle_async_request, ask(url, content=body))
            await server.begun.wait()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        server.resume.set()
        await server.closed.wait()
        assert (await made.handle_async_request(ask(server.url))).is_success


async def test_cancelled_waiting_requests_lose_no_slot() -> None:
    """A slot would be lost with each cancellation, until no request could be sent."""
    async with hanging_server() as server, transport(connections=1) as made:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(made.handle_async_request, ask(server.url))
            await server.begun.wait()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert (await made.handle_async_request(ask(server.url))).is_success


@pytest.mark.parametrize(
    "request_",
    [
        ask("http://127.0.0.1:9", target=b"/a b"),
        ask("http://127.0.0.1:9", target=b"/a\r\nx:y"),
        httpx.Request("PUT", "http://127.0.0.1:9", headers={"a": "b\nc"}),
        httpx.Request("PUT", "http://127.0.0.1:9", headers={"transfer-encoding": "chunked"}),
    ],
)
async def test_a_head_with_a_line_break_in_it_is_refused(request_: httpx.Request) -> None:
    """A setting with a line break in it would add headers to every request."""
    async with transport() as made:
        with pytest.raises(httpx.LocalProtocolError):
            await made.handle_async_request(request_)


async def test_a_server_may_have_ipv6_only() -> None:
    """A store with an IPv6 address only could not be reached."""
    try:
        async with raw_server(answer_once, host="::1") as url, transport() as made:
            assert (await made.handle_async_request(ask(url))).is_success
    except OSError as error:
        if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            raise
        pytest.skip("no IPv6 on this machine's loopback")


async def test_the_error_names_the_reason_of_a_failed_connection() -> None:
    """An operator would see that a connection failed, without the reason, or it three times."""
    async with raw_server() as url:
        pass
    async with transport() as made:
        with pytest.raises(httpx.ConnectError, match=r"^127\.0\.0\.1:\d+: Connection refused$"):
            await made.handle_async_request(ask(url))


async def test_requests_at_the_same_time_get_their_own_responses() -> None:
    """Requests would get responses to other requests, or too many connections would be open."""

    def echo(request: Request) -> Behaviour:
        return Answer(200, request.target.encode())

    async with fault_server(echo) as server, transport(connections=8) as made:

        async def repeat(number: int) -> None:
            for turn in range(10):
                target = b"/%d/%d" % (number, turn)
                response = await made.handle_async_request(ask(server.url, target=target))
                assert await response.aread() == target

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(repeat, number)

    assert len(server.requests) == 200
    assert server.connections <= 8
