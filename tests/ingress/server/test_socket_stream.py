"""A socket without trio's detours."""

from __future__ import annotations

import os
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
    ours, theirs = trio.socket.socketpair()
    with ours, theirs:
        yield NonBlockingStream(trio.SocketStream(ours)), trio.SocketStream(theirs)


async def test_what_comes_is_received(pair: Pair) -> None:
    """Bytes or the end would be lost."""
    ours, theirs = pair
    await theirs.send_all(b"one")
    assert await ours.receive_some(2) == b"on"
    assert await ours.receive_some(2) == b"e"
    await theirs.send_eof()
    assert await ours.receive_some(2) == b""


async def test_readable_and_yet_nothing_there(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
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


async def test_more_than_there_is_room_for(pair: Pair) -> None:
    """The end of a long answer would be cut off, or a slow client block everybody."""
    ours, theirs = pair
    data = os.urandom(16 * 2**20)
    got = b""
    assert not ours.send_now(data)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.flush)
        while len(got) < len(data):
            got += await theirs.receive_some()
    assert got == data
    # A socket that takes nothing at all.
    while ours.send_now(data):
        pass
    assert not ours.send_now(b"x")
    assert not ours.pending


async def test_a_peer_that_is_gone(pair: Pair) -> None:
    """A client's reset would be taken for a bug of ours."""
    ours, theirs = pair
    ours.send_now(b"unread")
    await theirs.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await ours.receive_some(1)
    with pytest.raises(trio.BrokenResourceError):
        ours.send_now(b"x")
