"""Random HTTP/2 frames of one client beside honest clients: the honest clients get their answers.

The effect of the frames on their own connection is not tested.
"""

from __future__ import annotations

import socket
import struct
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import h2.config
import h2.connection
import h2.events
import pytest
import trio
from hpack import Encoder

from tests.bench.hostile import http2
from tests.bench.hostile.http2 import PREFACE, frame
from tests.ingress.rig import COLLECTION, post, running
from tests.support.fuzz import mutate, pieces_of

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, MutableMapping

    from tests.ingress.rig import Rig
    from tests.support.fuzz import Fuzz

ANSWER_WITHIN: Final = 60.0
_SECONDS_TO_READ: Final = 0.01
"""Seconds that a hostile client reads the answers of the server."""
_LEFT_OPEN: Final = 10
_RESET: Final = struct.pack("ii", 1, 0)

_POST: Final = [
    *((":method", "POST"), (":scheme", "http"), (":path", "/v1/payloads"), (":authority", "x")),
    ("content-type", "application/json"),
]
_GET: Final = [(":method", "GET"), (":scheme", "http"), (":path", "/healthz"), (":authority", "x")]
_HEADS: Final[tuple[list[tuple[str, str]], ...]] = (
    _POST,
    [*_POST, ("content-length", str(len(COLLECTION)))],
    [*_POST, ("content-length", "3")],
    [*_POST, ("content-encoding", "gzip")],
    [*_POST, ("idempotency-key", "k")],
    _GET,
    [*_GET, ("content-length", "5")],
    [*_GET, ("te", "gzip"), ("connection", "close")],
    [*_GET, ("X-Upper", "y")],
    [*_GET, ("expect", "100-continue")],
    [*_GET[1:], ("x", "y"), _GET[0]],
    [*_GET, *[("x" * 50, "y" * 50)] * 50],
    [(":method", "CONNECT"), (":authority", "x")],
    [*_GET[1:], (":method", "CONNECT"), (":protocol", "websocket")],
    [(":status", "200")],
    [],
)
_PRIORITY: Final = 2
_PUSH_PROMISE: Final = 5
_UNKNOWN: Final = 16
_HARMLESS: Final = (
    frame(http2.PING, 0, 0, bytes(8)),
    frame(http2.SETTINGS, 0, 0),
    frame(http2.SETTINGS, 0, 0, struct.pack(">HL", http2.INITIAL_WINDOW_SIZE, 0)),
    frame(http2.SETTINGS, 0, 0, struct.pack(">HL", http2.INITIAL_WINDOW_SIZE, 65_535)),
    frame(http2.SETTINGS, 0, 0, struct.pack(">HL", 1, 0)),
    frame(http2.WINDOW_UPDATE, 0, 0, struct.pack(">L", 100)),
    frame(_UNKNOWN, 0, 0, b"x"),
)
_STREAMS: Final = (1, 1, 3, 3, 5, 7, 9, 0, 2, 2**31 - 1)
_NUMBERS: Final = (0, 1, 2, 100, 16_384, 65_535, 2**24 - 1, 2**31 - 1, 2**31, 2**32 - 1)
_ODD: Final = (
    *(b"\0", b"\0\0\0", b"\xff", b"\x82", b"\x84", b"PRI", b"HTTP/2.0", b"\r\n\r\n"),
    *(frame(http2.PING, 0, 0, bytes(8)), frame(http2.SETTINGS, http2.ACK, 0)),
)


def make_bytes(chance: random.Random) -> bytes:
    """Return the bytes of a client: a dialogue with few faults, or frames in random order."""
    if chance.random() < 0.7:
        return PREFACE + b"".join(make_dialogue(chance))
    start = PREFACE if chance.random() < 0.9 else PREFACE[: chance.randrange(len(PREFACE))]
    data = start + b"".join(make_frame(chance) for _ in range(chance.choice((1, 3, 10))))
    return mutate(data, chance, _ODD) if chance.random() < 0.4 else data


def make_dialogue(chance: random.Random) -> list[bytes]:
    """Return the interleaved frames of several requests, with few faults.

    A fault ends the connection: frames after the first one have no effect.
    """
    streams = [make_request(2 * number + 1, chance) for number in range(chance.randrange(1, 8))]
    frames: list[bytes] = []
    begun = 0
    while streams:
        # A stream may begin after the streams with smaller numbers have begun.
        index = chance.randrange(min(len(streams), begun + 1))
        begun = max(begun, index + 1)
        frames.append(streams[index].pop(0))
        if not streams[index]:
            del streams[index]
            begun -= 1
        if chance.random() < 0.2:
            frames.append(chance.choice(_HARMLESS))
    for _ in range(chance.choice((0, 0, 1, 1, 2))):
        place = chance.randrange(len(frames) + 1)
        match chance.randrange(3):
            case 0:
                frames[place:place] = [make_frame(chance)]
            case 1:
                frames[place:place] = frames[place : place + 1]
            case _:
                del frames[place : place + 1]
    return frames


def make_request(stream: int, chance: random.Random) -> list[bytes]:
    """Return the frames of one request: valid HTTP/2, and not always valid HTTP."""
    block: bytes = Encoder().encode(chance.choice(_HEADS[:5] if chance.random() < 0.7 else _HEADS))
    has_body = chance.random() < 0.8
    flags = 0 if has_body else http2.END_STREAM
    cut = chance.randrange(len(block) + 1) if chance.random() < 0.2 else len(block)
    ends = http2.END_HEADERS if cut == len(block) else 0
    head = frame(http2.HEADERS, flags | ends, stream, block[:cut])
    if not ends:  # no frame may come between the two
        head += frame(http2.CONTINUATION, http2.END_HEADERS, stream, block[cut:])
    frames = [head]
    if has_body:
        body = chance.choice((COLLECTION, COLLECTION, b"", b"x" * 5000))
        pieces = [body[at : at + 500] for at in range(0, len(body), 500)] or [b""]
        frames += [frame(http2.DATA, 0, stream, piece) for piece in pieces[:-1]]
        frames.append(frame(http2.DATA, http2.END_STREAM, stream, pieces[-1]))
    for _ in range(chance.choice((0, 0, 0, 1, 2))):
        odd = chance.choice((http2.RST_STREAM, http2.WINDOW_UPDATE, _PRIORITY, _UNKNOWN))
        frames.insert(
            chance.randrange(1, len(frames) + 1),
            frame(odd, 0, stream, make_payload(odd, chance)),
        )
    return frames


def make_frame(chance: random.Random) -> bytes:
    """Return a frame that may be wrong in any part except its length."""
    kind = chance.choice(
        (*http2.NAMES, http2.HEADERS, http2.DATA, _PRIORITY, _PUSH_PROMISE, _UNKNOWN)
    )
    flags = chance.choice((0, 1, 4, 5, 5, 8, 0x20, chance.randrange(256)))
    stream = chance.choice(_STREAMS)
    if kind not in (http2.HEADERS, http2.DATA) and chance.random() < 0.5:
        stream = 0
    payload = make_payload(kind, chance) if chance.random() < 0.9 else chance.randbytes(9)
    return frame(kind, flags, stream, payload)


def make_payload(kind: int, chance: random.Random) -> bytes:
    """Return a payload that fits the type of the frame."""
    number = struct.pack(">L", chance.choice(_NUMBERS))
    block: bytes = Encoder().encode(chance.choice(_HEADS))
    identifiers = (chance.randrange(10) for _ in range(chance.randrange(4)))
    payloads = {
        http2.HEADERS: block,
        http2.CONTINUATION: block,
        http2.DATA: chance.choice((COLLECTION, b"", COLLECTION[:5], b"x" * 16_384)),
        http2.SETTINGS: b"".join(
            struct.pack(">HL", one, chance.choice(_NUMBERS)) for one in identifiers
        ),
        http2.RST_STREAM: number,
        http2.WINDOW_UPDATE: number,
        http2.PING: number * 2,
        http2.GOAWAY: number + struct.pack(">L", chance.randrange(16)),
        _PRIORITY: number + b"\x10",
        _PUSH_PROMISE: number + block,
    }
    return payloads.get(kind, chance.randbytes(chance.randrange(100)))


@pytest.mark.no_cover
async def test_honest_clients_are_answered_beside_random_frames(
    fuzz: Fuzz, log_lines: list[MutableMapping[str, Any]]
) -> None:
    """One client could end the daemon, or keep the answers of all others from them."""
    async with running(MAX_LENGTH="1000") as rig, Http2Client.connected(rig) as honest:
        left_open: list[trio.SocketStream] = []
        for chance in fuzz.cases():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(attack, rig, chance, left_open)
                nursery.start_soon(honest.post)
                nursery.start_soon(post_once, rig)
            assert [line for line in log_lines if line["log_level"] == "error"] == []
            log_lines.clear()
        for stream in left_open:
            await trio.aclose_forcefully(stream)


async def attack(rig: Rig, chance: random.Random, left_open: list[trio.SocketStream]) -> None:
    """Connect, send random bytes, and leave in one of several ways."""
    host, port = rig.listeners[0].socket.getsockname()[:2]
    stream = await trio.open_tcp_stream(host, port)
    with suppress(trio.BrokenResourceError):
        for piece in pieces_of(make_bytes(chance), chance):
            with trio.move_on_after(_SECONDS_TO_READ):
                await stream.send_all(piece)
        if chance.random() < 0.3:
            await stream.send_eof()
        if chance.random() < 0.7:
            with trio.move_on_after(_SECONDS_TO_READ):
                while await stream.receive_some():
                    pass
    if chance.random() < 0.3:
        left_open.append(stream)
        if len(left_open) <= _LEFT_OPEN:
            return
        stream = left_open.pop(0)
    if chance.random() < 0.3:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    await trio.aclose_forcefully(stream)


async def post_once(rig: Rig) -> None:
    """Post on a new connection with HTTP/1.1, and expect a 202."""
    with trio.fail_after(ANSWER_WITHIN):
        async with rig.wire() as wire:
            await wire.send(post())
            assert (await wire.answer()).status == 202


class Http2Client:
    """An honest client with one connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._http = h2.connection.H2Connection(h2.config.H2Configuration())
        self._http.initiate_connection()

    @classmethod
    @asynccontextmanager
    async def connected(cls, rig: Rig) -> AsyncIterator[Http2Client]:
        """Connect to the server."""
        host, port = rig.listeners[0].socket.getsockname()[:2]
        async with await trio.open_tcp_stream(host, port) as stream:
            yield cls(stream)

    async def post(self) -> None:
        """Post, and expect a 202."""
        stream = self._http.get_next_available_stream_id()
        self._http.send_headers(stream, _POST)
        self._http.send_data(stream, COLLECTION, end_stream=True)
        with trio.fail_after(ANSWER_WITHIN):
            await self._stream.send_all(self._http.data_to_send())
            assert await self._status(stream) == b"202"

    async def _status(self, stream: int) -> bytes:
        """Return the status of the answer after all of it has arrived."""
        status = b""
        while True:
            data = await self._stream.receive_some()
            assert data, "the server has closed the connection of an honest client"
            for event in self._http.receive_data(data):
                seen: Any = event
                match seen:
                    case h2.events.ResponseReceived():
                        status = dict(seen.headers)[b":status"]
                    case h2.events.DataReceived():
                        self._http.acknowledge_received_data(
                            seen.flow_controlled_length, seen.stream_id
                        )
                    case h2.events.StreamEnded(stream_id=ended):
                        assert ended == stream
                        await self._stream.send_all(self._http.data_to_send())
                        return status
