"""The progress of an upload, as it is seen from outside."""

from __future__ import annotations

import httpx
import pytest
import trio

from payloadd.storage.http1.connection import Origin, connect
from payloadd.storage.http1.poller import InputPoller
from payloadd.storage.http1.progress import Progress, watched_progress
from payloadd.storage.http1.request import PieceBody
from payloadd.storage.http1.socket import TcpStream
from payloadd.storage.http1.transport import ProxyTransport, open_transport
from tests.storage.http1.test_transport import answer_once, ask, raw_server, transport

SIZE = 4 * 2**20


async def test_only_bytes_that_the_peer_has_acknowledged_are_progress() -> None:
    """The kernel takes megabytes at once: an upload over a slow line would seem to hang."""
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    listener.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 8192)
    port = listener.socket.getsockname()[1]
    poller = InputPoller()
    async with trio.open_nursery() as nursery, listener:
        stream = TcpStream(await trio.open_tcp_stream("127.0.0.1", port), poller)
        peer = await listener.accept()
        async with peer:
            progress = Progress()
            assert (progress.sent(), progress.has_moved()) == (0, False)
            progress.begin(stream)
            nursery.start_soon(stream.send_all, b"x" * SIZE)
            await trio.testing.wait_all_tasks_blocked(0.05)
            before = progress.sent()
            assert before < stream.sent < SIZE
            assert progress.has_moved()
            assert not progress.has_moved()
            received = 0
            while received < SIZE:
                received += len(await peer.receive_some(65536))
            with trio.fail_after(60):
                while progress.sent() < SIZE:  # noqa: ASYNC110 - the kernel reports no event
                    await trio.sleep(0.01)
            assert progress.has_moved()
            progress.begin(stream)
            assert (progress.sent(), progress.has_moved()) == (0, False)
            stream.close()
            assert not progress.has_moved()
    poller.close()


async def test_a_request_of_a_watched_task_has_progress() -> None:
    """Every upload that takes long would be cut at UPLOAD_TIMEOUT."""
    progress = Progress()
    watched_progress.set(progress)
    async with raw_server(answer_once) as url, transport() as made:
        await made.handle_async_request(ask(url))
        assert progress.sent() > 0


@pytest.mark.parametrize("pieces", [(b"x" * SIZE,), (b"x" * 65_536,) * 64], ids=["one", "many"])
async def test_a_request_through_a_proxy_has_progress(
    monkeypatch: pytest.MonkeyPatch, pieces: tuple[bytes, ...]
) -> None:
    """A large upload over a slow line would be cut at UPLOAD_TIMEOUT, and NoAnswer be reported."""
    progress = Progress()
    watched_progress.set(progress)
    half, rest = trio.Event(), trio.Event()
    received = bytearray()

    async def answer(stream: trio.SocketStream) -> None:
        async for data in stream:
            received.extend(data)
            if len(received) >= SIZE // 2 and not half.is_set():
                half.set()
                await rest.wait()
            if len(received) == received.index(b"\r\n\r\n") + 4 + SIZE:
                await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with raw_server(answer) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy)
        async with open_transport(1, 9.0, secure=False) as made, trio.open_nursery() as nursery:
            assert isinstance(made, ProxyTransport)
            request = httpx.Request(
                "PUT",
                "http://s3.test/k",
                headers={"Host": "s3.test", "Content-Length": str(SIZE)},
                stream=PieceBody(pieces),
            )
            nursery.start_soon(made.handle_async_request, request)
            await half.wait()
            assert SIZE // 3 < progress.sent() <= SIZE
            assert progress.has_moved()
            rest.set()
    assert progress.sent() == SIZE
    assert received.partition(b"\r\n\r\n")[2] == b"x" * SIZE


async def test_an_error_of_dns_names_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator would not know which of the endpoints has a typing error."""

    async def fail(host: str, port: int) -> trio.SocketStream:
        del host, port
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr(trio, "open_tcp_stream", fail)
    async with transport() as made:
        with pytest.raises(httpx.ConnectError, match=r"s3\.example:9.*Name or service not known"):
            await connect(Origin("s3.example", 9, secure=False), made._tls, 5.0, InputPoller())
