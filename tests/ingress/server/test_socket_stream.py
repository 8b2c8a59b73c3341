"""Reading and writing a socket with few system calls."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest
import trio

from payloadd.ingress.server.socket_stream import NonBlockingStream

if TYPE_CHECKING:
    from collections.abc import Iterator

Pair = tuple[NonBlockingStream, trio.SocketStream]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Connect two sockets."""
    ours, theirs = socket.socketpair()
    ours.settimeout(0)
    with ours, theirs:
        yield (
            NonBlockingStream(ours),
            trio.SocketStream(trio.socket.from_stdlib_socket(theirs)),
        )


async def test_data_and_the_end_of_the_input_are_received(pair: Pair) -> None:
    """Bytes or the end would be lost."""
    ours, theirs = pair
    await theirs.send_all(b"one")
    assert await ours.receive_some(2) == b"on"
    assert await ours.receive_some(2) == b"e"
    await theirs.send_eof()
    assert await ours.receive_some(2) == b""


async def test_a_readable_socket_without_data_is_read_again(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A packet with a wrong checksum would end the connection."""
    ours, theirs = pair
    read, misses = os.read, [BlockingIOError()]

    def sometimes(descriptor: int, size: int) -> bytes:
        if misses:
            raise misses.pop()
        return read(descriptor, size)

    monkeypatch.setattr(os, "read", sometimes)
    await theirs.send_all(b"one")
    assert await ours.receive_some(9) == b"one"
    assert not misses


async def test_data_beyond_the_send_buffer_is_sent_by_flush(pair: Pair) -> None:
    """The end of a long answer would be lost, or a slow client would block all others."""
    ours, theirs = pair
    data = os.urandom(16 * 2**20)
    got = b""
    assert not ours.send_now(data)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.flush)
        while len(got) < len(data):
            got += await theirs.receive_some()
    assert got == data
    # A socket whose send buffer is full.
    while ours.send_now(data):
        pass
    assert not ours.send_now(b"x")
    assert not ours.pending


async def test_a_reset_by_the_peer_is_a_broken_resource_error(pair: Pair) -> None:
    """A client's reset would be logged as a bug."""
    ours, theirs = pair
    ours.send_now(b"unread")
    await theirs.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await ours.receive_some(1)
    with pytest.raises(trio.BrokenResourceError):
        ours.send_now(b"x")
