"""The lane for plain requests: what its one task must not get wrong for any of its connections."""

from __future__ import annotations

import os
import socket
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, cast

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from payloadd.errors import RefusedError
from payloadd.ingress.fastpath import connection
from payloadd.ingress.fastpath.lane import FastPath
from payloadd.ingress.server.socket_stream import NonBlockingStream
from tests.ingress.rig import COLLECTION, post, running

if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from typing import Any

    from hypercorn.trio.tcp_server import TCPServer

    from payloadd.ingress.fastpath.connection import FastPathConnection

TAKEN = [b"1", b'"two"']


async def test_connections_take_turns() -> None:
    """A request that waits, or trickles in, would hold up everybody else's."""
    async with running() as rig, rig.wire() as slow, rig.wire() as waiting, rig.wire() as quick:
        await slow.send(post()[:-5])
        rig.intake.open = trio.Event()
        await waiting.send(post())
        await rig.intake.asked.wait()
        gate, rig.intake.open = rig.intake.open, trio.Event()
        rig.intake.open.set()
        for _ in range(3):
            await quick.send(post())
            assert (await quick.answer()).status == 202
        await slow.send(post()[-5:])
        assert (await slow.answer()).status == 202
        gate.set()
        assert (await waiting.answer()).status == 202
        assert rig.intake.taken == [TAKEN] * 5


@pytest.mark.parametrize("size", [1000, 65_536, 300_000, 1_000_000])
async def test_a_body_in_pieces(size: int, handed_over: list[TCPServer]) -> None:
    """A body larger than one read would be cut, or go the slow way."""
    text = b'"%s"' % (b"x" * size)
    whole = post(b'{"payloads":[%s]}' % text)
    async with running() as rig, rig.wire() as wire:
        for start in range(0, len(whole), 99_991):
            await wire.send(whole[start : start + 99_991])
        assert (await wire.answer()).status == 202
        assert rig.intake.taken == [[text]]
        assert not handed_over


async def test_small_requests_go_before_larger_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 clients with bodies that take 5 ms each would make all others wait for 0.3 s."""
    # As much as comes in one piece.
    monkeypatch.setattr(connection, "_DECODED_AT_ONCE", 1000)
    text = b'"%s"' % (b"x" * 40_000)
    large, small = post(b'{"payloads":[%s]}' % text), post()
    async with running() as rig, AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(rig.wire()) for _ in range(6)]
        await wait_all_tasks_blocked()
        # In one turn of the event loop, the small request last.
        for wire in wires[:-1]:
            os.write(wire.stream.socket.fileno(), large)
        os.write(wires[-1].stream.socket.fileno(), small)
        for wire in wires:
            assert (await wire.answer()).status == 202
        assert rig.intake.taken == [TAKEN, *[[text]] * 5]


async def test_more_is_said_before_the_answer() -> None:
    """The next request would be lost, or the lane spin until the disk has answered."""
    async with running() as rig, rig.wire() as wire:
        gate = rig.intake.open = trio.Event()
        await wire.send(post())
        await rig.intake.asked.wait()
        await wire.send(post(), post()[:40])
        await wait_all_tasks_blocked()
        gate.set()
        assert (await wire.answer()).status == 202
        assert (await wire.answer()).status == 202
        await wire.send(post()[40:])
        assert (await wire.answer()).status == 202
        assert rig.intake.taken == [TAKEN] * 3


async def test_a_disk_that_says_no_in_the_end(handed_over: list[TCPServer]) -> None:
    """A request that was not written would be answered with 202, or not at all."""
    async with running() as rig, rig.wire() as wire:
        rig.intake.late = RefusedError("DISK_ERROR", "the disk is full", 7)
        await wire.send(post())
        answer = await wire.answer()
        assert (answer.status, answer.document["code"]) == (503, "DISK_ERROR")
        assert 7 <= int(answer.headers["retry-after"]) <= 11
        rig.intake.late = None
        await wire.send(post())
        assert (await wire.answer()).status == 202
        assert rig.counted(503) == rig.counted(202) == 1
        assert not handed_over


async def test_a_client_that_left_while_its_request_waited() -> None:
    """The commit that all wait for would fail with one client's broken connection."""
    async with running(max_connections=1) as rig:
        gate = rig.intake.open = trio.Event()
        async with rig.wire() as wire:
            await wire.send(post())
            await rig.intake.asked.wait()
            wire.stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1" + b"\0" * 7)
        await wait_all_tasks_blocked()
        gate.set()
        async with rig.client() as client:  # there is one slot: it was given back
            assert (await client.get("/healthz")).status_code == 200
        assert rig.intake.taken == [TAKEN]


async def test_an_answer_that_finds_no_room(
    handed_over: list[TCPServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that reads slowly would get half an answer, or hold up all others."""
    write, cuts = os.write, [9]

    def cut_short(descriptor: int, data: bytes) -> int:
        return write(descriptor, data[: cuts.pop()] if cuts else data)

    monkeypatch.setattr("payloadd.ingress.server.socket_stream.os.write", cut_short)
    async with running() as rig, rig.wire() as wire:
        await wire.send(post())
        assert (await wire.answer()).status == 202
        await wire.send(post())
        assert (await wire.answer()).status == 202
        assert len(handed_over) == 1
        cuts.append(9)
    async with running() as rig, rig.wire() as wire:
        rig.health.phase = "draining"
        await wire.send(post())
        answer = await wire.answer()
        assert (answer.status, answer.headers["connection"]) == (202, "close")
        assert await wire.rest() == b""


async def test_a_client_that_never_reads_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would hold its slot for ever."""
    monkeypatch.setattr(NonBlockingStream, "send_now", lambda *_: False)

    async def never(_: NonBlockingStream) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(NonBlockingStream, "flush", never)
    async with running(REQUEST_TIMEOUT="100ms", max_connections=1) as rig, rig.wire() as wire:
        await wire.send(post())
        with trio.fail_after(10):
            assert await wire.rest() == b""
        assert rig.intake.taken == [TAKEN]


async def test_a_commit_that_comes_too_late(
    log_lines: list[MutableMapping[str, Any]],
) -> None:
    """A disk that answers after the drain's patience would crash the journal's last commit."""
    options = {"drain_margin": 0.05}
    async with running(options=options, REQUEST_TIMEOUT="100ms") as rig, rig.wire() as wire:
        gate = rig.intake.open = trio.Event()
        await wire.send(post())
        await rig.intake.asked.wait()
        await rig.drain()
        gate.set()
        assert await wire.rest() == b""
        await wait_all_tasks_blocked()
        assert rig.intake.taken == [TAKEN]
    assert [line["event"] for line in log_lines] == ["connections_cut_off"]


async def test_a_connection_that_cannot_be_watched(
    handed_over: list[TCPServer],
    monkeypatch: pytest.MonkeyPatch,
    log_lines: list[MutableMapping[str, Any]],
) -> None:
    """The system's limit of watched sockets would end the whole server."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FastPath, "listen", full)
    async with running() as rig, rig.wire() as wire:
        await wire.send(post())
        assert (await wire.answer()).status == 202
        assert len(handed_over) == 1
    assert [line["event"] for line in log_lines] == ["connection_not_watched"]


async def test_requests_that_begin_go_before_large_bodies() -> None:
    """A small request would wait until a piece of each of a thousand large bodies was read."""

    class Listening:
        """A connection that notes when it is read."""

        def __init__(self, name: str) -> None:
            self.ours, self.theirs = socket.socketpair()
            self.name = name

        def readable(self) -> None:
            """Note it, and leave what came where it is."""
            order.append(self.name)

    order: list[str] = []
    async with running() as rig:
        assert rig.fast_path is not None
        listening = [Listening("body") for _ in range(20)] + [Listening("small")]
        for one in listening:
            rig.fast_path.listen(
                one.ours.fileno(), cast("FastPathConnection", one), bulk=one.name == "body"
            )
        for one in listening:
            one.theirs.send(b"x")
        with trio.fail_after(10):
            while order.count("small") < 3:
                await trio.lowlevel.checkpoint()
        for one in listening:
            rig.fast_path.ignore(one.ours.fileno(), bulk=one.name == "body")
            one.ours.close()
            one.theirs.close()
    assert order[0] == "small"
    assert order.index("small", 1) == 9


async def test_readable_and_yet_nothing_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A packet with a wrong checksum would end a connection of the lane."""
    read, fifo_gate = os.read, iter(range(1000))

    def every_other_time(descriptor: int, size: int) -> bytes:
        if next(fifo_gate) % 2 == 0:
            raise BlockingIOError
        return read(descriptor, size)

    monkeypatch.setattr(os, "read", every_other_time)
    async with running() as rig, rig.wire() as wire:
        await wire.send(post()[: -len(COLLECTION)])
        await wait_all_tasks_blocked()
        await wire.send(COLLECTION)
        assert (await wire.answer()).status == 202
        assert next(fifo_gate) > 3


async def test_a_bug_behind_the_door_ends_one_connection(
    monkeypatch: pytest.MonkeyPatch, log_lines: list[MutableMapping[str, Any]]
) -> None:
    """A bug that one request brings up would end the task that serves everybody."""

    def bug(*_: object) -> bytes:
        raise KeyError("bug")

    async with running() as rig, rig.wire() as bystander:
        async with rig.wire() as wire:
            with monkeypatch.context() as patch:
                patch.setattr("payloadd.ingress.fastpath.connection.document", bug)
                await wire.send(post())
                assert await wire.rest() == b""
        await bystander.send(post())
        assert (await bystander.answer()).status == 202
    assert [line["event"] for line in log_lines] == ["connection_failed"]
