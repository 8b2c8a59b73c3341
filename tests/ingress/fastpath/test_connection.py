"""The fast path: one task serves all connections, and no connection may harm another."""

from __future__ import annotations

import gzip
import os
import socket
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from payloadd.errors import RefusedError
from payloadd.ingress.fastpath.connection import FastPathConnection
from payloadd.ingress.fastpath.fast_path import FastPath
from payloadd.ingress.server.socket_stream import NonBlockingStream
from tests.ingress.rig import COLLECTION, SOON, Wire, post, running

if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from typing import Any

    from hypercorn.trio.tcp_server import TCPServer

TAKEN = [b"1", b'"two"']


async def test_waiting_and_slow_requests_delay_no_others() -> None:
    """Otherwise a request that waits, or arrives slowly, would delay all others."""
    async with running() as rig, rig.wire() as slow, rig.wire() as waiting, rig.wire() as fast:
        await slow.send(post()[:-5])
        rig.intake.open = trio.Event()
        await waiting.send(post())
        await rig.intake.asked.wait()
        gate, rig.intake.open = rig.intake.open, trio.Event()
        rig.intake.open.set()
        for _ in range(3):
            await fast.send(post())
            assert (await fast.answer()).status == 202
        await slow.send(post()[-5:])
        assert (await slow.answer()).status == 202
        gate.set()
        assert (await waiting.answer()).status == 202
        assert rig.intake.taken == [TAKEN] * 5


@pytest.mark.parametrize("size", [1000, 65_536, 300_000, 1_000_000])
async def test_a_body_may_arrive_in_pieces(size: int, handed_over: list[TCPServer]) -> None:
    """Otherwise a body larger than one read would be cut, or go to Hypercorn."""
    text = b'"%s"' % (b"x" * size)
    whole = post(b'{"payloads":[%s]}' % text)
    async with running() as rig, rig.wire() as wire:
        for start in range(0, len(whole), 99_991):
            await wire.send(whole[start : start + 99_991])
        assert (await wire.answer()).status == 202
        assert rig.intake.taken == [[text]]
        assert not handed_over


async def test_small_requests_are_decoded_before_larger_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise clients with bodies of some milliseconds each would delay all others."""
    # Less than the large bodies, which must arrive in one read.
    monkeypatch.setattr(FastPathConnection, "decoded_immediately", 1000)
    text = b'"%s"' % (b"x" * 40_000)
    large, small = post(b'{"payloads":[%s]}' % text), post()
    async with running() as rig, AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(rig.wire()) for _ in range(6)]
        await wait_all_tasks_blocked()
        # All in one pass of the event loop, the small request last.
        for wire in wires[:-1]:
            os.write(wire.stream.socket.fileno(), large)
        os.write(wires[-1].stream.socket.fileno(), small)
        for wire in wires:
            assert (await wire.answer()).status == 202
        assert rig.intake.taken == [TAKEN, *[[text]] * 5]


async def test_a_compressed_request_may_arrive_with_its_connection() -> None:
    """Otherwise the request would be decoded only when another client sends something."""
    headers = ("Content-Type: application/json", "Content-Encoding: gzip")
    async with running() as rig:
        await wait_all_tasks_blocked()
        address = rig.listeners[0].socket.getsockname()
        # Before the server can accept the connection.
        client = socket.create_connection(address)
        client.sendall(post(gzip.compress(COLLECTION), *headers))
        async with trio.SocketStream(trio.socket.from_stdlib_socket(client)) as stream:
            with trio.fail_after(SOON):
                assert (await Wire(stream).answer()).status == 202


async def test_the_next_request_may_arrive_before_the_answer() -> None:
    """Otherwise the next request would be lost, or the fast path spin until the commit."""
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


async def test_a_failed_commit_is_answered_with_503(handed_over: list[TCPServer]) -> None:
    """Otherwise a request that was not written would be answered with 202, or not at all."""
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


async def test_a_client_may_leave_while_its_request_waits() -> None:
    """Otherwise the commit of many requests would fail with the connection of one client."""
    async with running(max_connections=1) as rig:
        gate = rig.intake.open = trio.Event()
        async with rig.wire() as wire:
            await wire.send(post())
            await rig.intake.asked.wait()
            wire.stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1" + b"\0" * 7)
        await wait_all_tasks_blocked()
        gate.set()
        await rig.until_unconnected()
        async with rig.client() as client:
            assert (await client.get("/healthz")).status_code == 200
        assert rig.intake.taken == [TAKEN]


async def test_an_answer_that_does_not_fit_is_sent_in_parts(
    handed_over: list[TCPServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a client that reads slowly would get half an answer, or delay all others."""
    write, cuts = os.write, [9, 0, 5]

    def cut_short(descriptor: int, data: bytes) -> int:
        return write(descriptor, data[: cuts.pop()] if cuts else data)

    monkeypatch.setattr("payloadd.ingress.server.socket_stream.os.write", cut_short)
    async with running() as rig, rig.wire() as wire:
        await wire.send(post() * 2)
        assert (await wire.answer()).status == 202
        assert (await wire.answer()).status == 202
        assert not handed_over
        cuts.append(9)
    async with running() as rig, rig.wire() as wire:
        rig.health.phase = "draining"
        await wire.send(post())
        answer = await wire.answer()
        assert (answer.status, answer.headers["connection"]) == (202, "close")
        assert await wire.rest() == b""


async def test_a_client_that_never_reads_its_answer_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise it would hold its slot for ever."""
    monkeypatch.setattr(NonBlockingStream, "send_now", lambda *_: False)

    async def never(_: NonBlockingStream) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(NonBlockingStream, "flush", never)
    async with running(REQUEST_TIMEOUT="100ms", max_connections=1) as rig, rig.wire() as wire:
        await wire.send(post())
        with trio.fail_after(SOON):
            assert await wire.rest() == b""
        assert rig.intake.taken == [TAKEN]


async def test_a_commit_after_the_drain_deadline_is_harmless(
    log_lines: list[MutableMapping[str, Any]],
) -> None:
    """Otherwise a slow disk would crash the last commit of the journal."""
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


async def test_a_connection_that_cannot_be_polled_is_served_by_hypercorn(
    handed_over: list[TCPServer],
    monkeypatch: pytest.MonkeyPatch,
    log_lines: list[MutableMapping[str, Any]],
) -> None:
    """Otherwise the system's limit of polled sockets would end the whole server."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FastPath, "register", full)
    async with running() as rig, rig.wire() as wire:
        await wire.send(post())
        assert (await wire.answer()).status == 202
        assert len(handed_over) == 1
    assert [line["event"] for line in log_lines] == ["connection_not_watched"]


async def test_new_requests_are_read_before_large_bodies() -> None:
    """Otherwise a small request would wait for a piece of each of a thousand large bodies."""

    class RecordingConnection:
        """A connection that records when it is read."""

        def __init__(self, name: str) -> None:
            self.ours, self.theirs = socket.socketpair()
            self.name = name

        def on_readable(self) -> None:
            """Record the call, and leave the input in the socket."""
            order.append(self.name)

    order: list[str] = []
    async with running() as rig:
        assert rig.fast_path is not None
        recording = [RecordingConnection(name) for name in ["body"] * 20 + ["small"]]
        for each in recording:
            rig.fast_path.register(each.ours.fileno(), each, bulk=each.name == "body")
        for each in recording:
            each.theirs.send(b"x")
        with trio.fail_after(SOON):
            while order.count("small") < 3:
                await trio.lowlevel.checkpoint()
        for each in recording:
            rig.fast_path.unregister(each.ours.fileno(), bulk=each.name == "body")
            each.ours.close()
            each.theirs.close()
    assert order[0] == "small"
    assert order.index("small", 1) == 9


async def test_a_readable_socket_may_have_no_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a packet with a wrong checksum would end a connection on the fast path."""
    read, calls = os.read, iter(range(1000))

    def every_other_time(descriptor: int, size: int) -> bytes:
        if next(calls) % 2 == 0:
            raise BlockingIOError
        return read(descriptor, size)

    monkeypatch.setattr(os, "read", every_other_time)
    async with running() as rig, rig.wire() as wire:
        await wire.send(post()[: -len(COLLECTION)])
        await wait_all_tasks_blocked()
        await wire.send(COLLECTION)
        assert (await wire.answer()).status == 202
        assert next(calls) > 3


async def test_a_bug_in_one_request_ends_one_connection(
    monkeypatch: pytest.MonkeyPatch, log_lines: list[MutableMapping[str, Any]]
) -> None:
    """Otherwise a bug that one request triggers would end the task that serves all connections."""

    def bug(*_: object) -> bytes:
        raise KeyError("bug")

    async with running() as rig, rig.wire() as bystander:
        async with rig.wire() as wire:
            with monkeypatch.context() as patch:
                patch.setattr("payloadd.ingress.fastpath.connection.receipt_document", bug)
                await wire.send(post())
                assert await wire.rest() == b""
        await bystander.send(post())
        assert (await bystander.answer()).status == 202
    assert [line["event"] for line in log_lines] == ["connection_failed"]


# --- pipelined requests --------------------------------------------------------------------------

PAGE = b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"


async def test_requests_in_one_write_do_not_hold_the_event_loop() -> None:
    """A client could delay all others by tenths of a second with one packet."""
    async with running() as rig, rig.wire() as many, rig.wire() as one:
        count = 100_000 // len(PAGE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(many.send, PAGE * count)
            await many.answer()
            await one.send(post())
            assert (await one.answer()).status == 202
            assert rig.counted(404) < count / 2
            for _ in range(count - 1):
                assert (await many.answer()).status == 404


async def test_bytes_behind_a_request_count_as_memory_until_they_are_processed() -> None:
    """Clients that send many requests at once and do not read would use any amount of memory."""
    async with running() as rig, rig.wire() as wire:
        assert rig.submitter is not None
        memory = rig.submitter.memory
        rig.intake.open = trio.Event()
        await wire.send(post() + post())
        await rig.intake.asked.wait()
        assert memory.used == len(COLLECTION) + len(post())
        rig.intake.open.set()
        assert [(await wire.answer()).status for _ in range(2)] == [202, 202]
        assert memory.used == 0


async def test_without_memory_for_the_next_request_the_answer_is_the_last_one() -> None:
    """The request that has its memory would be refused, or the bound be exceeded."""
    small = 10_000
    async with running(MAX_REQUEST_BYTES="10kB", MAX_LENGTH="10kB") as rig, rig.wire() as wire:
        assert rig.submitter is not None
        assert rig.submitter.memory.try_acquire(small - len(COLLECTION) - 5)
        await wire.send(post() + post())
        answer = await wire.answer()
        assert (answer.status, answer.headers["connection"]) == (202, "close")
        assert await wire.rest() == b""
        assert rig.intake.taken == [TAKEN]
        rig.submitter.memory.release(small - len(COLLECTION) - 5)


async def test_a_client_that_leaves_behind_pipelined_requests_leaks_no_memory() -> None:
    """Memory would be lost with each such client."""
    async with running() as rig:
        assert rig.submitter is not None
        gate = rig.intake.open = trio.Event()
        async with rig.wire() as wire:
            await wire.send(post() * 3)
            await rig.intake.asked.wait()
            wire.stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1" + b"\0" * 7)
        await wait_all_tasks_blocked()
        gate.set()
        with trio.fail_after(SOON):
            while rig.submitter.memory.used:  # noqa: ASYNC110 - a plain number
                await trio.sleep(0.01)


# --- other clients -------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [b"POST /v1/payloads", b"POST http://x/v1/payloads?a=b"])
async def test_http_1_0_may_keep_its_connection(start: bytes, handed_over: list[TCPServer]) -> None:
    """A proxy with the defaults of nginx would need a connection for each request."""
    head = b" HTTP/1.0\r\nConnection: Keep-Alive\r\nContent-Type: application/json\r\n"
    sent = start + head + b"Content-Length: 22\r\n\r\n" + COLLECTION
    async with running() as rig, rig.wire() as wire:
        for _ in range(2):
            await wire.send(sent)
            answer = await wire.answer()
            assert (answer.status, answer.headers["connection"]) == (202, "keep-alive")
        for other, status in ((b"POST /nothing HTTP/1.0", 404), (b"GET /healthz HTTP/1.0", 200)):
            await wire.send(other, b"\r\nConnection: keep-alive\r\n\r\n")
            answer = await wire.answer()
            assert (answer.status, answer.headers["connection"]) == (status, "keep-alive")
        await wire.send(sent.replace(b"Connection: Keep-Alive\r\n", b""))
        assert (await wire.answer()).headers["connection"] == "close"
        assert await wire.rest() == b""
    assert not handed_over


async def test_a_100_is_sent_once_there_is_memory_and_not_for_a_body_that_is_there() -> None:
    """A client would send its body in vain, or wait in vain for permission."""
    kind = "Content-Type: application/json"
    async with running(MAX_REQUEST_BYTES="10kB", MAX_LENGTH="10kB") as rig, rig.wire() as wire:
        assert rig.submitter is not None
        await wire.send(post(COLLECTION, kind, "Expect: 100-continue"))
        assert (await wire.answer()).status == 202
        assert rig.submitter.memory.try_acquire(10_000)
        body = b"[" + b"1" * 5000 + b"]"
        whole = post(body, kind, "Expect: 100-continue")
        await wire.send(whole[: -len(body)])
        with trio.move_on_after(0.1) as waited:
            await wire.answer()
        assert waited.cancelled_caught
        rig.submitter.memory.release(10_000)
        assert (await wire.answer()).status == 100
        await wire.send(body[:10])
        await wait_all_tasks_blocked()
        await wire.send(body[10:])
        assert (await wire.answer()).status == 202
