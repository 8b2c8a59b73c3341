"""Accepting connections: blocking sockets, lack of descriptors, broken listeners."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest
import trio

from payloadd.config.parsers import TcpAddress
from payloadd.ingress.server.accept import Acceptor
from payloadd.ingress.server.listen import close_listener
from payloadd.ingress.server.server import open_listeners
from tests.ingress.rig import post, running

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
                with trio.fail_after(10):
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
