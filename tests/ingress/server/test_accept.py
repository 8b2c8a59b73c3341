"""Accepting connections: blocking sockets, lack of descriptors, broken listeners."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest
import trio

from payloadd.config.parsers import TcpAddress
from payloadd.ingress.server.accept import Acceptor
from payloadd.ingress.server.http2_input import PREFACE
from payloadd.ingress.server.listen import close_listener
from payloadd.ingress.server.server import open_listeners
from tests.ingress.rig import SOON, post, running

if TYPE_CHECKING:
    from collections.abc import MutableMapping


pytestmark = pytest.mark.usefixtures("each_way")


async def test_a_listening_socket_made_blocking_by_systemd_does_not_block() -> None:
    """Each start by systemd clears O_NONBLOCK of a shared socket; the event loop would stop."""
    async with running() as rig:
        (listener,) = rig.listeners
        for _ in range(3):
            os.set_blocking(listener.socket.fileno(), True)
            async with rig.wire() as wire:
                await wire.send(post())
                with trio.fail_after(SOON):
                    assert (await wire.answer()).status == 202


async def test_accepting_from_a_blocking_socket_ends_soon() -> None:
    """Another process may clear O_NONBLOCK, and accept the connection, between two system calls."""
    (listener,) = await open_listeners([TcpAddress("127.0.0.1", 0)])
    with Acceptor(listener) as acceptor:
        acceptor.set_nonblocking()
        os.set_blocking(listener.socket.fileno(), True)
        assert acceptor.accept_now() is None
    close_listener(listener)


async def test_a_lack_of_descriptors_is_survived(
    monkeypatch: pytest.MonkeyPatch, log_lines: list[MutableMapping[str, Any]]
) -> None:
    """A moment without free descriptors would end the daemon, or its accepting."""
    async with running(max_connections=1) as rig:
        accept = socket.socket.accept
        faults = [OSError(errno.EMFILE, "Too many open files")] * 3

        def sometimes(listener: socket.socket) -> tuple[socket.socket, Any]:
            if faults:
                raise faults.pop()
            return accept(listener)

        monkeypatch.setattr(socket.socket, "accept", sometimes)
        async with rig.client() as client:
            assert (await client.get("/healthz")).status_code == 200
    assert [line["event"] for line in log_lines] == ["accept_failed"]


async def test_a_broken_listener_ends_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon would run on without accepting any connection."""

    def broken(_listener: socket.socket) -> tuple[socket.socket, Any]:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(socket.socket, "accept", broken)

    async def visit() -> None:
        async with running() as rig, rig.wire() as wire:
            await wire.rest()
            await trio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        await visit()
    assert caught.group_contains(OSError, match="Invalid argument")


async def test_a_client_that_leaves_before_the_accept_costs_no_slot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client that left before it was accepted would keep the last slot."""
    async with running(max_connections=1) as rig:
        accept = socket.socket.accept
        absent = [BlockingIOError(), OSError(errno.ECONNABORTED, "Connection aborted")]

        def sometimes(listener: socket.socket) -> tuple[socket.socket, Any]:
            if absent:
                raise absent.pop()
            return accept(listener)

        monkeypatch.setattr(socket.socket, "accept", sometimes)
        async with rig.client() as client:
            assert (await client.get("/healthz")).status_code == 200


async def _accept_one(sent: bytes, *, reset: bool = False, strict: bool = False) -> bool:
    """Return whether a connection is accepted whose client sent ``sent`` and has left."""
    (listener,) = await open_listeners([TcpAddress("127.0.0.1", 0)])
    with socket.create_connection(listener.socket.getsockname()) as client:
        client.sendall(sent)
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await trio.lowlevel.wait_readable(listener.socket)
    with Acceptor(listener) as acceptor:
        acceptor.set_nonblocking()
        found = acceptor.accept_now(strict=strict)
    close_listener(listener)
    if found is not None:
        found[0].close()
    return found is not None


@pytest.mark.parametrize("reset", [True, False])
async def test_a_client_that_has_left_gets_no_slot_while_slots_are_short(reset: bool) -> None:  # noqa: FBT001
    """Thousands of them would take the slots of clients that are connected."""
    assert not await _accept_one(b"", reset=reset, strict=True)


async def test_a_client_that_has_sent_a_request_and_its_end_is_served() -> None:
    """It would get no answer, and repeat a request that might have been stored."""
    assert await _accept_one(post(), strict=True)
    assert await _accept_one(PREFACE)


async def test_an_http2_client_that_has_left_is_not_served_while_slots_are_short() -> None:
    """It cannot read an answer, and would wait for its turn in a slot."""
    assert not await _accept_one(PREFACE, strict=True)
