"""Connections of clients that are slow, leave, send too much or do not read."""

from __future__ import annotations

import socket
import tracemalloc
from contextlib import suppress

import pytest
import trio
import trio.testing

from payloadd.ingress.server.client_stream import ClientStream
from payloadd.ingress.server.fifo_gate import FifoGate
from payloadd.ingress.server.socket_stream import NonBlockingStream
from tests.ingress.rig import COLLECTION, ID, SOON, Wire, post, running

pytestmark = pytest.mark.usefixtures("each_way")

MIB = 2**20
HEAD = b"POST /v1/payloads HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


# --- one connection, several requests ------------------------------------------------------------


async def test_a_connection_is_used_again() -> None:
    """Every request would cost a handshake."""
    async with running() as rig, rig.wire() as wire:
        for _ in range(3):
            await wire.send(post())
            answer = await wire.answer()
            assert answer.document == {"id": str(ID), "accepted": 2}
            assert "connection" not in answer.headers
        await wire.send(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", post())
        assert [(await wire.answer()).status, (await wire.answer()).status] == [404, 202]


async def test_pipelined_requests_are_answered_in_order() -> None:
    """A client that does not wait for answers would lose some, or get another request's."""
    async with running() as rig, rig.wire() as wire:
        bodies = [b'{"payloads":[%s]}' % b",".join([b"0"] * n) for n in range(20)]
        await wire.send(*(post(body) for body in bodies))
        assert [(await wire.answer()).document["accepted"] for _ in bodies] == list(range(20))


async def test_a_request_in_single_bytes_is_accepted() -> None:
    """A request in many packets would be cut or misread."""
    async with running() as rig, rig.wire() as wire:
        for byte in post() + HEAD + b"Transfer-Encoding: chunked\r\n\r\n14\r\n":
            await wire.send(bytes([byte]))
        await wire.send(COLLECTION[:20], b"\r\n2\r\n", COLLECTION[20:], b"\r\n0\r\n\r\n")
        assert [(await wire.answer()).status, (await wire.answer()).status] == [202, 202]
        assert rig.intake.taken == [[b"1", b'"two"']] * 2


async def test_expect_100_continue_is_answered_before_the_body() -> None:
    """A client like curl would wait a second before each large body."""
    async with running() as rig, rig.wire() as wire:
        await wire.send(HEAD, b"Content-Length: 22\r\nExpect: 100-continue\r\n\r\n")
        assert (await wire.answer()).status == 100
        await wire.send(COLLECTION)
        assert (await wire.answer()).status == 202


@pytest.mark.parametrize("header", [b"Connection: close\r\n", b""])
async def test_a_connection_is_closed_at_the_wish_of_the_client(header: bytes) -> None:
    """A client that reads to the end of the connection would wait for ever."""
    version = b"HTTP/1.1" if header else b"HTTP/1.0"
    async with running() as rig, rig.wire() as wire:
        head = HEAD.replace(b"HTTP/1.1", version) + header
        await wire.send(head, b"Content-Length: 22\r\n\r\n", COLLECTION)
        assert b"connection: close" in (await wire.rest()).lower()


async def test_bytes_read_by_the_fast_path_are_received_first(nursery: trio.Nursery) -> None:
    """The fast path could not hand a connection over to Hypercorn."""
    ours, theirs = socket.socketpair()
    ours.settimeout(0)
    fifo_gate = FifoGate()
    nursery.start_soon(fifo_gate.run)
    stream = ClientStream(NonBlockingStream(ours), 5, 5, fifo_gate)
    stream.pass_to_hypercorn(b"POST")
    nursery.start_soon(trio.SocketStream(trio.socket.from_stdlib_socket(theirs)).send_all, b" /v1")
    assert [await stream.receive_some(100), await stream.receive_some(100)] == [b"POST", b" /v1"]
    theirs.close()
    await stream.finish()


# --- time limits ---------------------------------------------------------------------------------


async def test_a_slow_head_gets_408() -> None:
    """A client that sends a byte a minute would hold a slot for ever."""
    async with running(REQUEST_TIMEOUT="200ms") as rig, rig.wire() as wire:
        await wire.send(post())
        assert (await wire.answer()).status == 202
        await wire.send(b"POST /v1/pay")
        answer = await wire.answer()
        assert (answer.status, answer.document["code"]) == (408, "TIMEOUT")
        assert await wire.rest() == b""


async def test_a_head_in_small_pieces_gets_408() -> None:
    """Each piece would restart the time limit."""
    async with running(REQUEST_TIMEOUT="200ms") as rig, rig.wire() as wire:

        async def drip() -> None:
            while True:
                await wire.send(b"X: y\r\n")
                await trio.sleep(0.02)  # the pace of the client, not a wait for an event

        async with trio.open_nursery() as nursery:
            await wire.send(b"GET / HTTP/1.1\r\n")
            nursery.start_soon(drip)
            with trio.fail_after(SOON):
                assert (await wire.answer()).status == 408
            nursery.cancel_scope.cancel()


async def test_a_slow_body_gets_408() -> None:
    """A body that never ends would hold a slot and its memory for ever."""
    async with running(REQUEST_TIMEOUT="200ms") as rig, rig.wire() as wire:
        await wire.send(HEAD, b"Content-Length: 22\r\n\r\n", COLLECTION[:5])
        answer = await wire.answer()
        assert (answer.status, answer.document["code"]) == (408, "TIMEOUT")
        assert answer.headers["connection"] == "close"
        assert rig.counted(408) == 1
        assert rig.intake.taken == []


async def test_head_and_body_share_one_time_limit() -> None:
    """A request could take twice REQUEST_TIMEOUT."""
    order: list[str] = []

    async def read(wire: Wire, name: str) -> None:
        assert (await wire.answer()).status == 408
        order.append(name)

    async with running(REQUEST_TIMEOUT="1s") as rig, rig.wire() as first, rig.wire() as second:
        await first.send(HEAD)
        await trio.sleep(0.4)
        await second.send(HEAD)
        await trio.sleep(0.4)
        await first.send(b"Content-Length: 22\r\n\r\n")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, second, "second")
            nursery.start_soon(read, first, "first")
    # With a limit of its own, the body of the first request would have time until 1.8 s.
    assert order == ["first", "second"]


async def test_a_request_that_waits_for_the_pipeline_is_not_timed_out() -> None:
    """A slow disk would turn accepted requests into 408s, and clients would send them twice."""
    async with running(REQUEST_TIMEOUT="100ms", KEEPALIVE_TIMEOUT="100ms") as rig:
        rig.intake.open = trio.Event()
        async with rig.wire() as wire:
            await wire.send(post())
            await rig.intake.asked.wait()
            await trio.sleep(0.5)
            rig.intake.open.set()
            assert (await wire.answer()).status == 202


@pytest.mark.parametrize("sent", [b"", post()])
async def test_an_idle_connection_is_closed(sent: bytes) -> None:
    """Inactive clients would hold all slots."""
    async with running(KEEPALIVE_TIMEOUT="200ms") as rig, rig.wire() as wire:
        if sent:
            await wire.send(sent)
            await wire.answer()
        with trio.fail_after(SOON):
            assert await wire.rest() == b""


async def test_a_client_that_never_reads_loses_its_connection() -> None:
    """The client would hold a slot, and delay the drain, until it leaves."""
    async with running(REQUEST_TIMEOUT="300ms", max_connections=1) as rig:
        with trio.socket.socket() as sock:
            # Small buffers are soon full: the kernel's own take thousands of answers.
            sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
            (listener,) = rig.listeners
            listener.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_SNDBUF, 4096)
            await sock.connect(listener.socket.getsockname())
            with pytest.raises(OSError, match=r"reset|pipe"), trio.fail_after(SOON):
                await send_for_ever(sock)
            async with rig.client() as client:
                assert (await client.get("/healthz")).status_code == 200


async def send_for_ever(sock: trio.socket.SocketType) -> None:
    """Send requests and read no answer."""
    while True:
        await sock.send(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)


# --- the end of a connection ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        b"", b"POST", HEAD, HEAD + b"Content-Length: 22\r\n\r\n{", CHUNKED + b"5\r\n12",
        post(), post() + b"POST", b"PRI * HTTP/2.0\r\n\r\nSM",
    ],
)  # fmt: skip
@pytest.mark.parametrize("reset", [True, False])
async def test_a_client_that_leaves_frees_its_slot(sent: bytes, reset: bool) -> None:  # noqa: FBT001
    """The client would keep its slot, or fill the log."""
    async with running(max_connections=1) as rig:
        rig.intake.open = trio.Event()
        async with rig.wire() as wire:
            if sent:
                await wire.send(sent)
            if sent.startswith(post()):
                await rig.intake.asked.wait()
            if reset:
                linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
                wire.stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, linger)
        rig.intake.open.set()
        await rig.until_unconnected()
        async with rig.client() as client:
            assert (await client.get("/healthz")).status_code == 200


async def test_a_chunked_body_beyond_the_limit_is_not_kept_in_memory() -> None:
    """A body without a length would be held in memory, however long it is."""
    async with running(MAX_LENGTH="100kB") as rig, rig.wire() as wire:
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        tracemalloc.start()
        sent = 0
        try:
            await wire.send(CHUNKED)
            with trio.move_on_after(SOON):
                while sent < 64 * MIB:
                    await wire.send(chunk)
                    sent += len(chunk)
        except trio.BrokenResourceError:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 8 * MIB
        assert rig.counted(413) == 1


async def test_a_client_that_sends_too_much_receives_the_413() -> None:
    """A reset connection gives no reason: the client would send the same body for ever."""
    async with running(MAX_LENGTH="1kB") as rig, rig.wire() as wire:
        await wire.send(HEAD, b"Content-Length: 4000000\r\n\r\n", b" " * 4_000_000)
        answer = await wire.answer()
        assert (answer.status, answer.headers["connection"]) == (413, "close")
        assert await wire.rest() == b""


async def test_a_404_with_an_unread_body_closes_the_connection() -> None:
    """The rest of the body would be read as the next request."""
    async with running() as rig, rig.wire() as wire:
        await wire.send(b"POST /no HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nGET")
        answer = await wire.answer()
        assert (answer.status, answer.headers["connection"]) == (404, "close")


@pytest.mark.parametrize("first", [b" " * 1000, b" " * 100_000], ids=["little", "much"])
async def test_an_answer_without_reading_the_body_is_the_only_answer(first: bytes) -> None:
    """The rest of the body would get a 408 that the client takes for its next answer."""
    async with running() as rig, rig.wire() as wire:
        body = b" " * 200_000
        await wire.send(
            b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n", first
        )
        assert (await wire.answer()).status == 200
        with trio.fail_after(SOON):
            await wire.send(body[len(first) :])
            assert await wire.rest() == b""
        assert rig.counted(200) == 1
        assert rig.counted(408) == 0


@pytest.mark.parametrize("size", [1, 100_000, 200_000])
async def test_an_answer_arrives_although_the_body_was_not_read(size: int) -> None:
    """A reset connection would take the answer away from the client."""
    async with running() as rig, rig.wire() as wire:
        head = b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size
        await wire.send(head, b" " * size)
        with trio.fail_after(SOON):
            assert (await wire.answer()).status == 200
        assert rig.counted(408) == 0


@pytest.fixture
def short_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the end of a connection little time."""
    for module in ("client_connection", "lingering", "socket_stream"):
        monkeypatch.setattr(f"payloadd.ingress.server.{module}.CLOSE_SECONDS", 0.15)


@pytest.mark.usefixtures("short_ends")
async def test_a_client_that_sends_its_refused_body_slowly_receives_the_answer() -> None:
    """A reset connection gives no reason: the client would send the same body again and again."""
    async with running(KEEPALIVE_TIMEOUT="500ms") as rig, rig.wire() as wire:
        await wire.send(b"POST /no HTTP/1.1\r\nHost: x\r\nContent-Length: 400000\r\n\r\n")
        for _ in range(20):
            await wire.send(b" " * 20_000)
            await trio.sleep(0.03)  # the pace of the client, not a wait for an event
        answer = await wire.answer()
        assert (answer.status, answer.headers["connection"]) == (404, "close")
        assert await wire.rest() == b""


@pytest.mark.usefixtures("short_ends")
async def test_a_client_that_only_sends_is_closed_after_its_refusal() -> None:
    """A client could send for ever, and the connection would never end."""
    async with running(REQUEST_TIMEOUT="300ms") as rig, rig.wire() as wire:
        await wire.send(b"POST /no HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
        with trio.fail_after(SOON), suppress(trio.BrokenResourceError):
            while True:
                await wire.send(b" " * 1000)
                await trio.sleep(0.02)  # as above


async def test_a_request_after_an_answer_before_the_drain_is_served(nursery: trio.Nursery) -> None:
    """The client was allowed to continue, and its next request would be cut off."""
    ours, theirs = socket.socketpair()
    ours.settimeout(0)
    fifo_gate = FifoGate()
    nursery.start_soon(fifo_gate.run)
    stream = ClientStream(NonBlockingStream(ours), 5, 5, fifo_gate)
    client = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
    stream.request_begins()
    await stream.send_all(b"HTTP/1.1 202 \r\ncontent-length: 0\r\n\r\n")
    stream.drain()
    stream.request_ends()
    nursery.start_soon(client.send_all, b"POST")
    assert await stream.receive_some(100) == b"POST"
    stream.request_begins()
    await stream.send_all(b"HTTP/1.1 202 \r\nConnection: close\r\ncontent-length: 0\r\n\r\n")
    stream.request_ends()
    assert stream.scope.cancel_called
    theirs.close()
    await stream.finish()
