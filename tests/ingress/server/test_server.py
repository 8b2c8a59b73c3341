"""Connections that stall, leave, pile up or outlive the server."""

from __future__ import annotations

import errno
import random
import socket
import tracemalloc
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
import trio
import trio.testing
from quart_trio import QuartTrio

from payloadd.ingress.server.client_stream import ClientStream
from payloadd.ingress.server.connection_state import ConnectionState
from payloadd.ingress.server.fifo_gate import FifoGate
from payloadd.ingress.server.socket_stream import NonBlockingStream
from tests.ingress.mangled import mangled
from tests.ingress.rig import COLLECTION, ID, Wire, post, running

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from tests.ingress.rig import Rig

pytestmark = pytest.mark.usefixtures("each_way")

MIB = 2**20
HEAD = b"POST /v1/payloads HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


# --- one connection, several requests ----------------------------------------------------------


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
    """A client that does not wait would lose answers, or get another request's."""
    async with running() as rig, rig.wire() as wire:
        bodies = [b'{"payloads":[%s]}' % b",".join([b"0"] * n) for n in range(20)]
        await wire.send(*(post(body) for body in bodies))
        assert [(await wire.answer()).document["accepted"] for _ in bodies] == list(range(20))


async def test_a_request_in_single_bytes() -> None:
    """A request in many packets would be cut or misread."""
    async with running() as rig, rig.wire() as wire:
        for byte in post() + HEAD + b"Transfer-Encoding: chunked\r\n\r\n14\r\n":
            await wire.send(bytes([byte]))
        await wire.send(COLLECTION[:20], b"\r\n2\r\n", COLLECTION[20:], b"\r\n0\r\n\r\n")
        assert [(await wire.answer()).status, (await wire.answer()).status] == [202, 202]
        assert rig.intake.taken == [[b"1", b'"two"']] * 2


async def test_expect_100_continue() -> None:
    """A client like curl would wait a second before each large body."""
    async with running() as rig, rig.wire() as wire:
        await wire.send(HEAD, b"Content-Length: 22\r\nExpect: 100-continue\r\n\r\n")
        assert (await wire.answer()).status == 100
        await wire.send(COLLECTION)
        assert (await wire.answer()).status == 202


@pytest.mark.parametrize("header", [b"Connection: close\r\n", b""])
async def test_a_client_that_wants_one_answer(header: bytes) -> None:
    """A client that reads to the end would wait for ever."""
    version = b"HTTP/1.1" if header else b"HTTP/1.0"
    async with running() as rig, rig.wire() as wire:
        head = HEAD.replace(b"HTTP/1.1", version) + header
        await wire.send(head, b"Content-Length: 22\r\n\r\n", COLLECTION)
        assert b"connection: close" in (await wire.rest()).lower()


# --- time --------------------------------------------------------------------------------------


async def test_a_slow_head_gets_408() -> None:
    """A client that sends a byte a minute would hold a slot for ever."""
    async with running(REQUEST_TIMEOUT="200ms") as rig, rig.wire() as wire:
        await wire.send(post())
        assert (await wire.answer()).status == 202
        await wire.send(b"POST /v1/pay")
        answer = await wire.answer()
        assert (answer.status, answer.document["code"]) == (408, "TIMEOUT")
        assert await wire.rest() == b""


async def test_a_head_in_drops_gets_408() -> None:
    """Each drop would start the time anew."""
    async with running(REQUEST_TIMEOUT="200ms") as rig, rig.wire() as wire:

        async def drip() -> None:
            while True:
                await wire.send(b"X: y\r\n")
                await trio.sleep(0.02)  # a client's pace, not a wait for something

        async with trio.open_nursery() as nursery:
            await wire.send(b"GET / HTTP/1.1\r\n")
            nursery.start_soon(drip)
            with trio.fail_after(5):
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


async def test_the_time_of_head_and_body_is_one() -> None:
    """REQUEST_TIMEOUT would be twice what is written."""
    async with running(REQUEST_TIMEOUT="1s") as rig, rig.wire() as wire:
        started = trio.current_time()
        await wire.send(HEAD)
        await trio.sleep(0.7)
        await wire.send(b"Content-Length: 22\r\n\r\n")
        assert (await wire.answer()).status == 408
        assert trio.current_time() - started < 1.5


async def test_a_request_that_waits_for_the_pipeline_is_not_timed_out() -> None:
    """A slow disk would turn accepted requests into 408s, and clients send them twice."""
    async with running(REQUEST_TIMEOUT="100ms", KEEPALIVE_TIMEOUT="100ms") as rig:
        rig.intake.open = trio.Event()
        async with rig.wire() as wire:
            await wire.send(post())
            await rig.intake.asked.wait()
            await trio.sleep(0.5)
            rig.intake.open.set()
            assert (await wire.answer()).status == 202


@pytest.mark.parametrize("said", [b"", post()])
async def test_an_idle_connection_is_closed(said: bytes) -> None:
    """Clients that went to sleep would hold all slots."""
    async with running(KEEPALIVE_TIMEOUT="200ms") as rig, rig.wire() as wire:
        if said:
            await wire.send(said)
            await wire.answer()
        with trio.fail_after(5):
            assert await wire.rest() == b""


async def test_a_client_that_never_reads() -> None:
    """It would hold a slot, and the drain, until it goes."""
    async with running(REQUEST_TIMEOUT="300ms", max_connections=1) as rig:
        with trio.socket.socket() as sock:
            # A small window fills soon.
            sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
            await sock.connect(rig.listeners[0].socket.getsockname())
            with pytest.raises(OSError, match=r"reset|pipe"), trio.fail_after(10):
                await send_for_ever(sock)
            async with rig.client() as client:
                assert (await client.get("/healthz")).status_code == 200


async def send_for_ever(sock: trio.socket.SocketType) -> None:
    """Send requests and read no answer."""
    while True:
        await sock.send(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)


# --- clients that leave ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        b"", b"POST", HEAD, HEAD + b"Content-Length: 22\r\n\r\n{", CHUNKED + b"5\r\n12",
        post(), post() + b"POST", b"PRI * HTTP/2.0\r\n\r\nSM",
    ],
)  # fmt: skip
@pytest.mark.parametrize("reset", [True, False])
async def test_a_client_that_leaves(said: bytes, reset: bool) -> None:  # noqa: FBT001
    """It would keep its slot, or fill the log."""
    async with running(max_connections=1) as rig:
        rig.intake.open = trio.Event()
        async with rig.wire() as wire:
            if said:
                await wire.send(said)
            if said.startswith(post()):
                await rig.intake.asked.wait()
            if reset:
                linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
                wire.stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, linger)
        rig.intake.open.set()
        with trio.fail_after(5):
            async with rig.client() as client:
                assert (await client.get("/healthz")).status_code == 200


# --- size --------------------------------------------------------------------------------------


async def test_a_chunked_body_beyond_the_limit() -> None:
    """A body without a length would be held in memory, however long it is."""
    async with running(MAX_LENGTH="100kB") as rig, rig.wire() as wire:
        chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
        tracemalloc.start()
        sent = 0
        try:
            await wire.send(CHUNKED)
            with trio.move_on_after(10):
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


async def test_who_sends_too_much_sees_the_413() -> None:
    """A reset connection says nothing: the client would try the same body for ever."""
    async with running(MAX_LENGTH="1kB") as rig, rig.wire() as wire:
        await wire.send(HEAD, b"Content-Length: 4000000\r\n\r\n", b" " * 4_000_000)
        answer = await wire.answer()
        assert (answer.status, answer.headers["connection"]) == (413, "close")
        assert await wire.rest() == b""


async def test_a_404_with_a_body_on_its_way_closes() -> None:
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
        with trio.fail_after(10):
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
        with trio.fail_after(10):
            assert (await wire.answer()).status == 200
        assert rig.counted(408) == 0


# --- the cap -----------------------------------------------------------------------------------


async def test_connections_beyond_the_cap_wait() -> None:
    """A flood of connections would take all memory; or be refused instead of served later."""
    async with running(max_connections=2) as rig, rig.wire() as first, rig.wire() as second:
        gate = rig.intake.open = trio.Event()
        for wire in (first, second):
            rig.intake.asked = trio.Event()
            await wire.send(post())
            await rig.intake.asked.wait()
        async with rig.wire() as third:
            await third.send(post())
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert rig.intake.taken == []
            gate.set()
            with trio.fail_after(10):
                for wire in (first, second, third):
                    assert (await wire.answer()).status == 202
                    await wire.stream.aclose()


async def test_no_listener_holds_the_last_slot() -> None:
    """With two addresses and one slot, the quiet address would lock out the busy one."""
    async with running(max_connections=1, BIND="127.0.0.1:0,127.0.0.1:0") as rig:
        for listener in rig.listeners * 2:
            port = listener.socket.getsockname()[1]
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(post())
                with trio.fail_after(5):
                    assert (await Wire(stream).answer()).status == 202


# --- the drain ---------------------------------------------------------------------------------


async def drained_while_busy(rig: Rig, wire: Wire, rest: bytes) -> None:
    """Drain while one request is under way; it has to be answered and then closed."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.drain)
        await trio.testing.wait_all_tasks_blocked()
        assert not rig.ended.is_set()
        rig.intake.open.set()
        if rest:
            await wire.send(rest)
        answer = await wire.answer()
        assert (answer.status, answer.headers["connection"]) == (202, "close")
        assert await wire.rest() == b""
        await wire.stream.aclose()


async def test_draining() -> None:
    """A restart would break requests, or wait for connections that nobody uses."""
    async with running() as rig, rig.wire() as idle, rig.wire() as busy, rig.wire() as half:
        await idle.send(post())
        await idle.answer()
        rig.intake.open = trio.Event()
        rig.intake.asked = trio.Event()
        await busy.send(post())
        await rig.intake.asked.wait()
        await half.send(b"POST /v1")
        await trio.testing.wait_all_tasks_blocked()
        port = rig.listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drained_while_busy, rig, busy, b"")
            assert await idle.rest() == b""
            answer = await half.answer()
            assert (answer.status, answer.headers["connection"]) == (503, "close")
            assert answer.document["code"] == "DRAINING"
            await half.stream.aclose()
        with pytest.raises(OSError, match="all attempts to connect"):
            await trio.open_tcp_stream("127.0.0.1", port)


async def test_a_request_that_meets_the_drain() -> None:
    """Every restart would break the requests of clients that keep their connections busy."""
    async with running() as rig, rig.wire() as kept, rig.wire() as fresh:
        await kept.send(post())
        await kept.answer()
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.drain)
            await trio.testing.wait_all_tasks_blocked()
            for wire in (kept, fresh):
                await wire.send(post())
                answer = await wire.answer()
                assert (answer.status, answer.headers["connection"]) == (202, "close")
                assert await wire.rest() == b""
                await wire.stream.aclose()


async def test_a_head_that_trickles_into_the_drain() -> None:
    """One slow client would hold up a restart for REQUEST_TIMEOUT."""
    async with running(REQUEST_TIMEOUT="1h") as rig, rig.wire() as wire:
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.drain)
            await trio.testing.wait_all_tasks_blocked()
            await wire.send(b"POST /v1")
            assert (await wire.answer()).document["code"] == "DRAINING"
            await wire.stream.aclose()


async def test_a_body_that_arrives_while_draining() -> None:
    """A request whose head came before SIGTERM would be dropped."""
    async with running() as rig, rig.wire() as wire:
        await wire.send(HEAD, b"Content-Length: 22\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()
        await drained_while_busy(rig, wire, COLLECTION)


async def test_a_drain_ends() -> None:
    """One client with an endless body would keep the daemon from ending."""
    async with running(REQUEST_TIMEOUT="300ms") as rig, rig.wire() as wire:
        await wire.send(HEAD, b"Content-Length: 22\r\n\r\n{")
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.drain)
            assert (await wire.answer()).status == 408
            await wire.stream.aclose()


# --- HTTP/2 ------------------------------------------------------------------------------------


class Http2:
    """A client that speaks HTTP/2 from the first byte."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.connection.initiate_connection()

    async def request(self, body: bytes) -> tuple[dict[bytes, bytes], bytes]:
        """Post, return the answer's headers and body."""
        stream = self.connection.get_next_available_stream_id()
        head = [(":method", "POST"), (":path", "/v1/payloads"), (":scheme", "http")]
        head += [(":authority", "here"), ("content-type", "application/json")]
        self.connection.send_headers(stream, head)
        for start in range(0, len(body), 16384):
            self.connection.send_data(stream, body[start : start + 16384])
        self.connection.end_stream(stream)
        headers: dict[bytes, bytes] = {}
        out = b""
        while True:
            await self.wire.send(self.connection.data_to_send())
            data = await self.wire.stream.receive_some()
            if not data:
                raise trio.EndOfChannel
            for event in self.connection.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    headers = dict(event.headers)
                elif isinstance(event, h2.events.DataReceived):
                    out += event.data
                elif isinstance(event, h2.events.StreamEnded):
                    return headers, out


async def test_http2_with_prior_knowledge() -> None:
    """A client that knows HTTP/2 would be cut off by what is there for HTTP/1.1."""
    async with (
        running(REQUEST_TIMEOUT="300ms", KEEPALIVE_TIMEOUT="5s") as rig,
        rig.wire() as wire,
    ):
        client = Http2(wire)
        headers, body = await client.request(COLLECTION)
        assert headers[b":status"] == b"202"
        assert str(ID).encode() in body
        await trio.sleep(0.5)  # longer than a request may take, shorter than idleness
        rig.health.phase = "draining"
        headers, body = await client.request(b"[1]")
        assert headers[b":status"] == b"422"
        assert b"NOT_A_COLLECTION" in body


async def test_answers_over_http2_are_counted_and_logged(
    log_lines: list[MutableMapping[str, Any]],
) -> None:
    """The metric would show no request of an HTTP/2 client, and the log no refused one."""
    async with running() as rig, rig.wire() as wire:
        client = Http2(wire)
        for body in (COLLECTION, b"[1]", b"[2]"):
            await client.request(body)
        assert (rig.counted(202), rig.counted(422)) == (1, 2)
    assert [line["status"] for line in log_lines] == [422, 422]
    assert {line["client"] for line in log_lines} == {"127.0.0.1"}


@pytest.mark.parametrize("http2", [True, False])
async def test_an_answer_that_stands_in_for_the_app_is_counted(
    log_lines: list[MutableMapping[str, Any]],
    http2: bool,  # noqa: FBT001
) -> None:
    """A bug would show in no metric."""

    class Broken(QuartTrio):
        async def __call__(self, *_: object) -> None:
            raise ValueError("a bug")

    async with running(Broken("broken")) as rig, rig.wire() as wire:
        if http2:
            headers, _ = await Http2(wire).request(COLLECTION)
            assert headers[b":status"] == b"500"
        else:
            await wire.send(post())
            assert (await wire.answer()).status == 500
        assert rig.counted(500) == 1
    assert "connection_failed" in [line["event"] for line in log_lines]


async def test_an_idle_http2_connection_is_closed() -> None:
    """Clients of HTTP/2 that went to sleep would hold all slots."""
    async with running(KEEPALIVE_TIMEOUT="200ms") as rig, rig.wire() as wire:
        await Http2(wire).request(COLLECTION)
        with trio.fail_after(5):
            await wire.rest()


async def test_a_drain_does_not_wait_for_idle_http2() -> None:
    """One connection of a proxy would hold up every restart."""
    async with running() as rig, rig.wire() as wire:
        await Http2(wire).request(COLLECTION)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.drain)
            await wire.rest()
            await wire.stream.aclose()


@pytest.mark.parametrize("settings", [b"", b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n"])
@pytest.mark.parametrize("start", [b"GET /healthz HTTP/1.1\r\nHost: x\r\n", HEAD])
async def test_an_upgrade_to_http2_is_ignored(start: bytes, settings: bytes) -> None:
    """A proxy that checks each request would see the first one only."""
    async with running() as rig, rig.wire() as wire:
        await wire.send(start, b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n", settings)
        await wire.send(b"Content-Length: 22\r\n\r\n" + COLLECTION if start == HEAD else b"\r\n")
        with trio.fail_after(10):
            assert (await wire.answer()).status in {200, 202}
            await wire.send(post())
            assert (await wire.answer()).status == 202


async def test_http2_begins_with_the_connection_alone() -> None:
    """A request in front of it would hide HTTP/2 from what bounds it."""
    async with running() as rig, rig.wire() as wire:
        await wire.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await wire.answer()).status == 200
        await wire.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        with trio.fail_after(10):
            assert (await wire.answer()).status in {400, 404, 405}


async def test_a_preface_in_single_bytes() -> None:
    """A client whose first packet is small would be timed as if it spoke HTTP/1.1."""
    async with running(REQUEST_TIMEOUT="2s") as rig, rig.wire() as wire:
        client = Http2(wire)
        for byte in client.connection.data_to_send():
            await wire.send(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(10):
            headers, _ = await client.request(COLLECTION)
        assert headers[b":status"] == b"202"


async def test_http2_with_too_large_a_body() -> None:
    """Hypercorn fails on data for a stream that is answered; the client has to see the 413."""
    async with running(MAX_LENGTH="1kB") as rig, rig.wire() as wire:
        headers, body = await Http2(wire).request(b" " * 60_000)
        assert headers[b":status"] == b"413"
        assert b"TOO_LARGE" in body


async def test_http2_with_a_window_that_stays_closed() -> None:
    """A hundred bytes and silence would hold a slot for ever, and each drain as long as it may."""
    async with running(REQUEST_TIMEOUT="200ms") as rig, rig.wire() as wire:
        client = Http2(wire)
        codes = h2.settings.SettingCodes
        client.connection.update_settings({codes.INITIAL_WINDOW_SIZE: 0})
        with trio.fail_after(10), pytest.raises(trio.EndOfChannel):
            await client.request(COLLECTION)
        assert rig.intake.taken == [[b"1", b'"two"']]


# --- whatever comes ----------------------------------------------------------------------------


async def test_mangled_requests() -> None:
    """Bytes that no test thought of would fill the log or leave something behind for ever."""
    patience = "200ms"
    async with running(
        max_connections=200, REQUEST_TIMEOUT=patience, KEEPALIVE_TIMEOUT=patience
    ) as rig:

        async def visit(seed: int) -> None:
            chance = random.Random(seed)  # noqa: S311 - not for secrets
            with suppress(trio.BrokenResourceError):
                async with rig.wire() as wire:
                    await wire.send(mangled(chance))
                    with trio.move_on_after(chance.choice([0, 0.02, 5])):
                        await wire.rest()

        async with trio.open_nursery() as nursery:
            for seed in range(200):
                nursery.start_soon(visit, seed)
        await rig.drain()
        assert rig.counted(500) == 0


# --- troubles of the server's own --------------------------------------------------------------


async def test_a_lack_of_descriptors_passes(
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
    """The daemon would run on without hearing anybody."""

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


async def test_nobody_there_after_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that left before it was accepted would take the last slot with it."""
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


@pytest.mark.parametrize("fault", [KeyError("bug"), ExceptionGroup("", [KeyError("bug")])])
async def test_a_bug_ends_one_connection(
    fault: Exception, monkeypatch: pytest.MonkeyPatch, log_lines: list[MutableMapping[str, Any]]
) -> None:
    """One connection's crash would end all, or nobody would hear of it."""
    async with running() as rig:
        with monkeypatch.context() as patch:

            def crash(*_: object) -> None:
                raise fault

            patch.setattr(ConnectionState, "note_received", crash)
            async with rig.wire() as wire:
                await wire.send(b"GET")
                with suppress(trio.BrokenResourceError):
                    assert await wire.rest() == b""
        async with rig.client() as client:
            assert (await client.get("/healthz")).status_code == 200
    assert [line["event"] for line in log_lines] == ["connection_failed"]


async def test_an_app_that_fails(log_lines: list[MutableMapping[str, Any]]) -> None:
    """A bug between Quart and the handlers would leave the client without an answer."""
    app = QuartTrio("broken")

    async def crash(*_: object) -> None:
        raise KeyError("bug")

    app.asgi_app = crash  # type: ignore[method-assign, assignment]
    async with running(app) as rig, rig.wire() as wire:
        await wire.send(post())
        answer = await wire.answer()
        assert (answer.status, answer.document["code"]) == (500, "INTERNAL")
    assert [line["event"] for line in log_lines] == ["connection_failed", "request_refused"]


async def test_what_does_not_end_is_cut_off(
    log_lines: list[MutableMapping[str, Any]],
) -> None:
    """A handler that hangs would keep the daemon from ending."""
    options = {"drain_margin": 0.1}
    async with running(options=options, REQUEST_TIMEOUT="100ms") as rig, rig.wire() as wire:
        rig.intake.open = trio.Event()
        await wire.send(post())
        await rig.intake.asked.wait()
        await rig.drain()
        assert await wire.rest() == b""
    assert [line["event"] for line in log_lines] == ["connections_cut_off"]


async def test_bytes_that_were_read_before(nursery: trio.Nursery) -> None:
    """A lane in front of this one could not hand a connection over."""
    ours, theirs = trio.socket.socketpair()
    fifo_gate = FifoGate()
    nursery.start_soon(fifo_gate.run)
    stream = ClientStream(NonBlockingStream(trio.SocketStream(ours)), 5, 5, fifo_gate)
    stream.hand_over(b"POST")
    nursery.start_soon(trio.SocketStream(theirs).send_all, b" /v1")
    assert [await stream.receive_some(100), await stream.receive_some(100)] == [b"POST", b" /v1"]
    theirs.close()
    await stream.finish()


async def test_an_answer_that_went_out_before_the_drain(nursery: trio.Nursery) -> None:
    """The client was told that it may go on, and its next request would be cut off."""
    ours, theirs = trio.socket.socketpair()
    fifo_gate = FifoGate()
    nursery.start_soon(fifo_gate.run)
    stream = ClientStream(NonBlockingStream(trio.SocketStream(ours)), 5, 5, fifo_gate)
    client = trio.SocketStream(theirs)
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
