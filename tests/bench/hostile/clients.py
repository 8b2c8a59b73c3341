"""Hostile clients on one connection each, without sockets, which are in ``engine.py``."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING, Final

from hpack import Decoder, HPACKError

from tests.bench.hostile import http2
from tests.bench.hostile.answers import AnswerReader, name_of

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence

_ROUND_TIMEOUT: Final = 3.0
"""Seconds that a round waits for all its connections."""
_PAUSE: Final = 0.5
_FIRST_WINDOW: Final = 65_535


class Client:
    """One connection; this base class sends nothing."""

    leaves = False
    """Whether the engine has to close the connection."""

    def next_bytes(self) -> bytes:
        """Return the next bytes to send, b"" for none yet; called when all others are sent."""
        return b""

    def received(self, data: bytes) -> None:
        """Process received bytes."""

    def tick(self) -> None:
        """Act on the time; called twenty times a second."""


class Repeater(Client):
    """Send a block of requests, and the next block when all are answered."""

    def __init__(self, tally: Counter[str], blocks: Sequence[bytes], answers: int = 1) -> None:
        self._blocks = blocks
        self._answers = answers
        self._reader = AnswerReader(tally)
        self._missing = 0
        self._number = 0

    def next_bytes(self) -> bytes:
        """Return a block once the one before is answered."""
        if self._missing > 0:
            return b""
        self._missing = self._answers
        self._number += 1
        return self._blocks[self._number % len(self._blocks)]

    def received(self, data: bytes) -> None:
        """Count answers."""
        self._missing -= self._reader.feed(data)


class Trickler(Client):
    """Send a beginning, and then small pieces with pauses between."""

    def __init__(self, tally: Counter[str], first: bytes, piece: bytes, every: float) -> None:
        self._reader = AnswerReader(tally)
        self._waiting = first
        self._piece = piece
        self._every = every
        self._due = time.monotonic() + every

    def next_bytes(self) -> bytes:
        """Return the beginning, or a piece that is due."""
        data, self._waiting = self._waiting, b""
        return data

    def received(self, data: bytes) -> None:
        """Count answers."""
        self._reader.feed(data)

    def tick(self) -> None:
        """Make a piece due when its pause is over."""
        now = time.monotonic()
        if now >= self._due:
            self._due = now + self._every
            self._waiting = self._piece


class HelloSender(Client):
    """Begin a TLS handshake, and leave after the server's part of it."""

    def __init__(self, hello: bytes) -> None:
        self._waiting = hello

    def next_bytes(self) -> bytes:
        """Return the ClientHello, once."""
        data, self._waiting = self._waiting, b""
        return data

    def received(self, data: bytes) -> None:
        """Leave."""
        self.leaves = bool(data)


class Leaver(Client):
    """Leave as soon as the connection is made."""

    def next_bytes(self) -> bytes:
        """Return nothing, and leave."""
        self.leaves = True
        return b""


class Round:
    """Connections that leave together once all have sent their bytes."""

    def __init__(self, connections: int) -> None:
        self._connections = connections
        self._sent = 0
        self._ends = float("inf")
        self.number = 0

    def sent(self) -> None:
        """Count a connection that has sent all its bytes."""
        self._sent += 1
        patience = _PAUSE if self._sent == self._connections else _ROUND_TIMEOUT
        if self._sent in (1, self._connections):
            self._ends = time.monotonic() + patience

    def over(self, number: int) -> bool:
        """Return whether the round ``number`` is over."""
        if number == self.number and time.monotonic() >= self._ends:
            self.number += 1
            self._sent = 0
            self._ends = float("inf")
        return number < self.number


class HalfSender(Client):
    """Send most of a request, and leave together with the round."""

    def __init__(self, together: Round, data: bytes) -> None:
        self._round = together
        self._number = together.number
        self._data = data
        self._told = False

    def next_bytes(self) -> bytes:
        """Return the bytes, once."""
        data, self._data = self._data, b""
        if not data and not self._told:
            self._told = True
            self._round.sent()
        return data

    def tick(self) -> None:
        """Leave when the round is over."""
        self.leaves = self._round.over(self._number)


class Flooder(Client):
    """Send blocks of HTTP/2 frames without waiting for answers."""

    def __init__(self, tally: Counter[str], blocks: Sequence[bytes], *, endless: bool) -> None:
        self._blocks = blocks
        self._endless = endless
        self._next = -1
        self._tally = tally
        self._reader = http2.FrameReader()

    def next_bytes(self) -> bytes:
        """Return the preface, then the blocks, once or for ever."""
        self._next += 1
        if self._next == 0:
            return http2.PREFACE
        if self._next > len(self._blocks) and not self._endless:
            self.leaves = True
            return b""
        return self._blocks[(self._next - 1) % len(self._blocks)]

    def received(self, data: bytes) -> None:
        """Count frames by their type."""
        for kind, _, _, _ in self._reader.feed(data):
            self._tally[http2.NAMES.get(kind, "other")] += 1


class Http2Poster(Client):
    """Send ``streams`` HTTP/2 POSTs at the same time, and a new one for each answer."""

    def __init__(self, tally: Counter[str], body: bytes, streams: int) -> None:
        self._tally = tally
        self._body = body
        self._reader = http2.FrameReader()
        self._hpack = Decoder()
        self._block = http2.header_block(
            "POST",
            "/v1/payloads",
            ("content-type", "application/x-ndjson"),
            ("content-length", str(len(body))),
        )
        self._window = self._first_window = _FIRST_WINDOW
        self._sent: dict[int, int] = {}
        """The bytes of its body that each open stream has sent."""
        self._windows: dict[int, int] = {}
        self._status: dict[int, int] = {}
        self._next_stream = 1
        self._waiting = [http2.PREFACE]
        for _ in range(streams):
            self._open()

    def next_bytes(self) -> bytes:
        """Return waiting frames, and then as much of the bodies as the windows allow."""
        data = b"".join(self._waiting)
        self._waiting.clear()
        return data or self._piece()

    def received(self, data: bytes) -> None:
        """Update the windows, and count answers."""
        for kind, flags, stream, payload in self._reader.feed(data):
            self._frame(kind, flags, stream, payload)

    def _open(self) -> None:
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        self._sent[stream] = 0
        self._windows[stream] = self._first_window
        self._waiting.append(http2.frame(http2.HEADERS, http2.END_HEADERS, stream, self._block))

    def _piece(self) -> bytes:
        """Return the next DATA frame of the stream that has sent the least."""
        open_streams = [one for one in self._sent if self._windows[one] > 0]
        if self._window <= 0 or not open_streams:
            return b""
        stream = min(open_streams, key=self._sent.__getitem__)
        start = self._sent[stream]
        size = min(http2.LARGEST_FRAME, self._window, self._windows[stream])
        piece = self._body[start : start + size]
        self._window -= len(piece)
        self._windows[stream] -= len(piece)
        self._sent[stream] += len(piece)
        last = self._sent[stream] == len(self._body)
        if last:
            del self._sent[stream]
        return http2.frame(http2.DATA, http2.END_STREAM if last else 0, stream, piece)

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == http2.WINDOW_UPDATE:
            (more,) = struct.unpack(">L", payload)
            if stream == 0:
                self._window += more
            elif stream in self._windows:
                self._windows[stream] += more
        elif kind == http2.SETTINGS and not flags & http2.ACK:
            self._settings(payload)
        elif kind == http2.HEADERS:
            self._status[stream] = self._status_in(payload)
        elif kind == http2.DATA and payload:
            self._tally[name_of(self._status.pop(stream, 0), payload)] += 1
        elif kind == http2.GOAWAY:
            self._tally["GOAWAY"] += 1
        if kind == http2.RST_STREAM:
            self._tally["RST_STREAM"] += 1
            self._end(stream)
        elif kind in (http2.HEADERS, http2.DATA) and flags & http2.END_STREAM:
            self._end(stream)

    def _settings(self, payload: bytes) -> None:
        for start in range(0, len(payload), 6):
            name, value = struct.unpack_from(">HL", payload, start)
            if name == http2.INITIAL_WINDOW_SIZE:
                for stream in self._windows:
                    self._windows[stream] += value - self._first_window
                self._first_window = value
        self._waiting.append(http2.frame(http2.SETTINGS, http2.ACK, 0))

    def _status_in(self, payload: bytes) -> int:
        try:
            headers = dict(self._hpack.decode(payload, raw=True))
            return int(headers[b":status"])
        except (HPACKError, KeyError):
            self.leaves = True  # padding or continuation, which the daemon does not send
            return 0

    def _end(self, stream: int) -> None:
        self._sent.pop(stream, None)
        if self._windows.pop(stream, None) is not None:
            self._open()
