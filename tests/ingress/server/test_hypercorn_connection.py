"""Connections that Hypercorn serves: chunked bodies, the end of the input, floods of frames."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from itertools import cycle
from time import thread_time
from typing import TYPE_CHECKING

import h2.config
import h2.connection
import h2.errors
import h2.events
import pytest
import trio
from hypercorn.protocol.events import Body
from hypercorn.protocol.http_stream import HTTPStream
from priority.priority import PriorityTree

from tests.ingress.rig import COLLECTION, SOON, post, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hypercorn.protocol.events import Event

    from tests.ingress.rig import Rig, Wire
    from tests.ingress.tls_files import Files

CHUNKED = (
    b"POST /v1/payloads HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
IN_CHUNKS = CHUNKED + b"16\r\n" + COLLECTION + b"\r\n0\r\n\r\n"
GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
TAKEN = [b"1", b'"two"']
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
REQUEST = [
    (":method", "POST"),
    (":path", "/v1/payloads"),
    (":scheme", "http"),
    (":authority", "here"),
    ("content-type", "application/json"),
]


# --- chunked bodies -----------------------------------------------------------------------------


@pytest.mark.usefixtures("by_hypercorn")
@pytest.mark.parametrize("size", [1, 3, 60_000])
async def test_chunks_that_arrive_together_are_passed_on_together(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body in chunks of one byte would delay all commits by seconds."""
    seen: list[int] = []
    handle = HTTPStream.handle

    async def count(stream: HTTPStream, event: Event) -> None:
        if isinstance(event, Body):
            seen.append(len(event.data))
        await handle(stream, event)

    monkeypatch.setattr(HTTPStream, "handle", count)
    body = json.dumps({"payloads": [*range(8_000)]}).encode()
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    chunks = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces]
    async with running() as rig, rig.wire() as wire:
        for _ in range(2):
            await wire.send(CHUNKED, *chunks, b"0\r\n\r\n")
            assert (await wire.answer()).status == 202
    assert rig.intake.taken == [[b"%d" % number for number in range(8_000)]] * 2
    assert sum(seen) == 2 * len(body)
    # If a read ends within a chunk, the parts of the chunk are passed on separately.
    assert len(seen) < 2 * len(pieces) / 50 + 40
    # Each call of h11 gets a limited number of chunks.
    assert max(seen) < 2000 or size > 3


# --- clients that close their sending side -----------------------------------------------------


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("sent", [IN_CHUNKS, post(), GET], ids=["chunked", "length", "get"])
async def test_a_request_is_answered_after_the_end_of_the_input(sent: bytes) -> None:
    """The payloads would be stored, and the client would get no answer and send them again."""
    async with running(max_connections=100) as rig:

        async def visit(*, late: bool) -> None:
            async with rig.wire() as wire:
                await wire.send(sent)
                if late:
                    await trio.testing.wait_all_tasks_blocked()
                await wire.stream.send_eof()
                with trio.fail_after(30):
                    assert (await wire.answer()).status in {200, 202}
                    assert await wire.rest() == b""

        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(lambda late: visit(late=late), number % 2 == 0)
        assert len(rig.intake.taken) == (0 if sent == GET else 60)


@pytest.mark.usefixtures("each_way")
async def test_a_late_answer_is_sent_after_the_end_of_the_input() -> None:
    """With a slow disk, the client would send all payloads again."""
    async with running() as rig, rig.wire() as wire:
        rig.intake.open = trio.Event()
        await wire.send(IN_CHUNKS, IN_CHUNKS)
        await wire.stream.send_eof()
        await rig.intake.asked.wait()
        await trio.testing.wait_all_tasks_blocked()
        rig.intake.open.set()
        with trio.fail_after(SOON):
            assert [(await wire.answer()).status for _ in range(2)] == [202, 202]
            assert await wire.rest() == b""


@pytest.mark.usefixtures("each_way")
async def test_an_incomplete_request_before_the_end_of_the_input_is_refused() -> None:
    """Half of a collection would be accepted, or hold its slot until REQUEST_TIMEOUT."""
    async with running() as rig, rig.wire() as wire:
        await wire.send(IN_CHUNKS[:-20])
        await wire.stream.send_eof()
        with trio.fail_after(SOON):
            assert (await wire.answer()).status == 400
            assert await wire.rest() == b""
        assert rig.intake.taken == []


async def test_a_request_is_answered_after_the_end_of_tls(files: Files) -> None:
    """A client that ends its input would get its answer only without TLS."""
    async with files.running() as rig, files.records(rig) as client:
        await client.handshake()
        client.write(IN_CHUNKS)
        client.close_notify()
        await client.send()
        with trio.fail_after(SOON):
            assert b" 202 " in await client.rest()
        assert rig.intake.taken == [TAKEN]


async def test_http2_answers_complete_requests_before_the_end_of_the_input() -> None:
    """Several requests on a connection would all be stored, and none be answered."""
    async with running() as rig, rig.wire() as wire:
        rig.intake.open = trio.Event()
        client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        client.initiate_connection()
        client.send_headers(1, REQUEST)
        client.send_data(1, COLLECTION, end_stream=True)
        client.send_headers(3, REQUEST)
        client.send_data(3, COLLECTION[:7])
        await wire.send(client.data_to_send())
        await wire.stream.send_eof()
        await rig.intake.asked.wait()
        await trio.testing.wait_all_tasks_blocked()
        rig.intake.open.set()
        with trio.fail_after(SOON):
            events = client.receive_data(await wire.rest())
        statuses = [
            (event.stream_id, dict(event.headers)[b":status"])
            for event in events
            if isinstance(event, h2.events.ResponseReceived)
        ]
        assert statuses == [(1, b"202")]
        assert rig.intake.taken == [TAKEN]


# --- floods ------------------------------------------------------------------------------------


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    """Return an HTTP/2 frame."""
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + body


def pings() -> Iterator[bytes]:
    """Yield PING frames, which have to be answered."""
    while True:
        yield frame(6, 0, 0, b"12345678")


def settings() -> Iterator[bytes]:
    """Yield SETTINGS frames, which have to be acknowledged."""
    while True:
        yield frame(4, 0, 0, struct.pack(">HI", 4, 65_535))


def window_updates() -> Iterator[bytes]:
    """Yield WINDOW_UPDATE frames for one byte."""
    while True:
        yield frame(8, 0, 0, struct.pack(">I", 1))


def priorities() -> Iterator[bytes]:
    """Yield PRIORITY frames, each of which moves a thousand streams below another one."""
    streams = range(1, 1800, 2)
    for stream in streams:
        yield frame(2, 0, stream, struct.pack(">IB", 0, 1))
    for stream in cycle(streams):
        yield frame(2, 0, stream, struct.pack(">IB", 2**31, 1))


def rapid_resets() -> Iterator[bytes]:
    """Yield requests that are reset at once."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    client.data_to_send()
    for stream in range(1, 2**31, 2):
        client.send_headers(stream, REQUEST)
        client.reset_stream(stream)
        yield client.data_to_send()
        client.streams.clear()


def empty_data() -> Iterator[bytes]:
    """Yield empty DATA frames."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    client.data_to_send()
    client.send_headers(1, REQUEST)
    yield client.data_to_send()
    while True:
        yield frame(0, 0, 1)


@pytest.mark.no_cover
@pytest.mark.usefixtures("frozen_heap")
@pytest.mark.parametrize(
    "flood", [pings, settings, window_updates, priorities, rapid_resets, empty_data]
)
async def test_a_flood_of_frames_does_not_delay_other_clients(flood: object) -> None:
    """A few connections with small frames would make all other clients wait for seconds.

    CPU time is measured: other processes of the machine do not delay it.
    """
    assert callable(flood)
    made = first_bytes(flood())  # before the measurement: the clients run in the same event loop
    async with running() as rig, trio.open_nursery() as nursery:
        longest, refused = [0.0], [0]
        nursery.start_soon(watch_the_loop, longest)
        for _ in range(4):
            nursery.start_soon(send_flood, rig, made, refused)
        waits = []
        end = thread_time() + 0.6
        with trio.fail_after(300):
            async with rig.wire() as wire:
                while (started := thread_time()) < end or refused[0] < 12:
                    await wire.send(post())
                    assert (await wire.answer()).status == 202
                    waits.append(thread_time() - started)
        nursery.cancel_scope.cancel()
    assert len(waits) > 10
    assert sorted(waits)[len(waits) // 2] < 0.1
    assert max(waits) < 1
    assert longest[0] < 0.1


async def test_priorities_of_http2_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame of 14 bytes would make Hypercorn move a thousand streams that do not exist."""
    moved: list[object] = []
    for name in ("reprioritize", "insert_stream"):
        monkeypatch.setattr(PriorityTree, name, lambda *arguments: moved.append(arguments))
    made = priorities()
    async with running() as rig, rig.wire() as wire:
        await wire.send(PREFACE, frame(4, 0, 0), *(next(made) for _ in range(100)))
        await wire.send(frame(6, 0, 0, b"12345678"))
        while frame(6, 1, 0, b"12345678") not in wire._buffer:
            await wire._more()
    assert moved == []


async def watch_the_loop(longest: list[float]) -> None:
    """Measure the longest CPU time of a pass of the event loop, the clients included."""
    while True:
        started = thread_time()
        await trio.lowlevel.checkpoint()
        longest[0] = max(longest[0], thread_time() - started)


def first_bytes(frames: Iterator[bytes]) -> bytes:
    """Return the first 128 KiB of these frames."""
    found = bytearray()
    while len(found) < 131_072:
        found += next(frames)
    return bytes(found)


async def send_flood(rig: Rig, flood: bytes, refused: list[int]) -> None:
    """Send the flood on one connection after the other; count those that the server ends."""
    while True:
        async with rig.wire() as wire, trio.open_nursery() as nursery:
            nursery.start_soon(send_all, wire, flood)
            answer = await wire.rest()
            assert goaways(answer) == [h2.errors.ErrorCodes.ENHANCE_YOUR_CALM]
            refused[0] += 1
            nursery.cancel_scope.cancel()


async def send_all(wire: Wire, flood: bytes) -> None:
    """Send the flood; the server ends the connection before it has read all."""
    with suppress(trio.BrokenResourceError):
        await wire.send(PREFACE, frame(4, 0, 0), flood)


@pytest.mark.parametrize(
    "sent",
    [
        b"\xff\xff\xff" + b"\0\0\0\0\0\1" + b"x" * 1000,
        frame(4, 0, 0, b"".join(struct.pack(">HI", number, 1) for number in range(900))),
        frame(1, 0, 1, b"x" * 16_000) + frame(9, 0, 1, b"x" * 16_000) * 3,
    ],
    ids=["frame", "settings", "headers"],
)
async def test_a_frame_that_is_too_long_ends_the_connection(sent: bytes) -> None:
    """16 MiB of one frame, or any number of unknown settings, would be kept in memory."""
    async with running() as rig, rig.wire() as wire:
        await wire.send(PREFACE, frame(4, 0, 0), sent)
        with trio.fail_after(SOON):
            answer = await wire.rest()
        assert goaways(answer) == [h2.errors.ErrorCodes.ENHANCE_YOUR_CALM]


async def test_headers_beyond_the_limit_end_the_connection() -> None:
    """A few bytes of compressed headers would expand to megabytes."""
    async with running() as rig, rig.wire() as wire:
        client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        client.initiate_connection()
        client.send_headers(1, [*REQUEST, ("x", "y" * 3000)])
        client.send_headers(3, [*REQUEST, *[("x", "y" * 3000)] * 10])
        await wire.send(client.data_to_send())
        with trio.fail_after(SOON):
            events = client.receive_data(await wire.rest())
        assert any(isinstance(event, h2.events.ConnectionTerminated) for event in events)


@pytest.mark.parametrize("flood", [pings, settings, window_updates, rapid_resets, empty_data])
async def test_a_flood_of_frames_ends_its_connection(flood: object) -> None:
    """A client could use a part of the event loop for ever, without a request."""
    assert callable(flood)
    frames = flood()
    sent = b"".join(next(frames) for _ in range(400))
    async with running() as rig, rig.wire() as wire:
        await wire.send(PREFACE, frame(4, 0, 0), sent)
        with trio.fail_after(30):
            answer = await wire.rest()
        assert goaways(answer) == [h2.errors.ErrorCodes.ENHANCE_YOUR_CALM]


def frames_in(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield type, stream and body of each frame."""
    while data:
        end = 9 + int.from_bytes(data[:3], "big")
        yield data[3], int.from_bytes(data[5:9], "big"), data[9:end]
        data = data[end:]


def goaways(data: bytes) -> list[int]:
    """Return the error codes of the GOAWAY frames."""
    return [int.from_bytes(body[4:8], "big") for kind, _, body in frames_in(data) if kind == 7]
