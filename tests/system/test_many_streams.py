"""Memory of a daemon with HTTP/2 clients that open many requests and send no body."""

from __future__ import annotations

import socket
import struct
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
import trio
from hpack import Encoder

from tests.support import proc
from tests.support.daemon import running_daemon

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.daemon import Daemon

pytestmark = pytest.mark.no_cover

MIB = 2**20
LARGEST = (256 + 64 + 150) * MIB
"""MAX_REQUEST_BYTES, MAX_QUEUE_BYTES and the memory of the process itself, in bytes."""
AFTERWARDS = 150 * MIB
RST_STREAM = 3
_REQUEST = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/v1/payloads"),
    (":authority", "here"),
    ("content-type", "application/json"),
    ("content-length", "1000"),
]


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    """Return an HTTP/2 frame."""
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + body


def requests(count: int) -> bytes:
    """Return the bytes that open ``count`` requests without a body on a new connection."""
    head = Encoder().encode(_REQUEST)
    frames = [frame(1, 4, stream, head) for stream in range(1, 2 * count, 2)]
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0) + b"".join(frames)


async def open_requests(daemon: Daemon, stack: ExitStack, connections: int, streams: int) -> int:
    """Open requests and wait until the daemon has processed them; returns how many it refused."""
    port = int(daemon.url.rpartition(":")[2])
    data = requests(streams) + frame(6, 0, 0, b"the last")
    sockets = []
    for _ in range(connections):
        sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
        sock.sendall(data)
        sock.settimeout(0)
        sockets.append(sock)
    refused = 0
    for sock in sockets:
        refused += await _refused(sock)
    return refused


async def _refused(sock: socket.socket) -> int:
    """Wait for the answer to the last frame; returns how many streams were refused."""
    received = b""
    count = 0
    while True:
        while len(received) < 9 or len(received) < 9 + int.from_bytes(received[:3], "big"):
            await trio.lowlevel.wait_readable(sock)
            data = sock.recv(65_536)
            assert data, "the connection has ended"
            received += data
        end = 9 + int.from_bytes(received[:3], "big")
        if received[9:end] == b"the last":
            return count
        count += received[3] == RST_STREAM
        received = received[end:]


async def test_open_requests_take_little_memory(tmp_path: Path) -> None:
    """A few hundred clients could make the daemon take hundreds of MiB and keep them."""
    async with running_daemon(tmp_path) as daemon:
        before = proc.rss(daemon.pid)
        with ExitStack() as stack, trio.fail_after(120):
            refused = await open_requests(daemon, stack, 200, 16)
            # All connections share about 512 open requests beyond the first one of each.
            assert refused > 200 * 15 - 700
        # Less than all 3,200 requests would take.
        assert daemon.peak_rss() - before < 60 * MIB


@pytest.mark.large
@pytest.mark.parametrize(("connections", "streams"), [(900, 16), (1000, 100)])
async def test_a_thousand_clients_with_many_requests_take_bounded_memory(
    tmp_path: Path, connections: int, streams: int
) -> None:
    """The daemon would exceed the memory limit of its unit, and systemd would kill it."""
    # On a busy machine it takes longer than 30 s to open all requests.
    async with running_daemon(tmp_path, {"REQUEST_TIMEOUT": "5m"}) as daemon:
        with ExitStack() as stack, trio.fail_after(300):
            await open_requests(daemon, stack, connections, streams)
        assert daemon.peak_rss() < LARGEST
        with trio.fail_after(60):
            while proc.rss(daemon.pid) >= AFTERWARDS:  # noqa: ASYNC110 - memory can only be polled
                await trio.sleep(0.5)
