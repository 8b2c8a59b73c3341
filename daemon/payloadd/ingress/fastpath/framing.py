"""The two framings of a request's body (RFC 9112, sections 6 and 7). No I/O.

A body has a Content-Length, or comes in chunks. llhttp parses the chunks; it bounds nothing, and
does not say where a body ends. The end follows from this: the last bytes of a chunked body are an
empty line, so the input is passed to llhttp in parts that end with an empty line, until llhttp
reports the end of the message.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import httptools

from payloadd.ingress.problem import Problem, not_http, too_large

if TYPE_CHECKING:
    from collections.abc import Callable

_READ_BYTES: Final = 256 * 2**10
"""Bytes of one read of a body with a Content-Length."""
_CHUNKED_READ_BYTES: Final = 64 * 2**10
"""Bytes of one read of a chunked body: it may consist of chunks of one byte each."""
_SMALL_BYTES: Final = 64 * 2**10
"""Bytes of a body, or of its rest, that count as one read."""
_PARTS_PER_STEP: Final = 256
"""Parts of a chunked body that are parsed at a time."""
_EMPTY_LINE: Final = b"\r\n\r\n"
_HEAD: Final = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
_OVERHEAD_BYTES: Final = 16 * 2**10
_OVERHEAD_PER_BYTE: Final = 16
"""Bytes of chunk sizes, extensions and trailers that a body may have: ``_OVERHEAD_BYTES``, and this
many for each byte of the body. A chunk of one byte has an overhead of five bytes."""

_SHORT: Final = "the body is shorter than its Content-Length"
_INCOMPLETE: Final = "the connection ended before the last chunk of the body"
_TOO_MUCH_OVERHEAD: Final = "the chunk extensions or trailers of the body are too long"


class Framing(Protocol):
    """A body that arrives in pieces."""

    data: bytearray
    """The received bytes of the body. It grows with the input: a client that only announces a
    length uses no memory. It is no list of pieces: a client that sends single bytes would use a
    page for each."""

    @property
    def complete(self) -> bool:
        """Whether the whole body has been received."""
        ...

    @property
    def needed(self) -> int:
        """Bytes of memory that the body needs before more of it is read."""
        ...

    @property
    def read_bytes(self) -> int:
        """Bytes to read from the connection next, at most."""
        ...

    @property
    def bulk(self) -> bool:
        """Whether more than one read is missing, as far as that is known."""
        ...

    def feed(self, data: bytes) -> int:
        """Add received bytes; return how many of them were used.

        The others are for the next call if the body is not complete, and belong to the next request
        if it is. Raises Problem MALFORMED or TOO_LARGE.
        """
        ...

    def ended_early(self) -> Problem:
        """Return the answer for a client that has closed its side within the body."""
        ...


class SizedBody:
    """A body with a Content-Length; it needs its memory before it is read."""

    def __init__(self, length: int) -> None:
        """Expect ``length`` bytes."""
        self.data = bytearray()
        self.needed = length

    @property
    def complete(self) -> bool:
        """Whether the whole body has been received."""
        return len(self.data) == self.needed

    @property
    def read_bytes(self) -> int:
        """The missing bytes at most: what follows the body stays in the socket."""
        return min(self.needed - len(self.data), _READ_BYTES)

    @property
    def bulk(self) -> bool:
        """Whether more than one read is missing."""
        return self.needed - len(self.data) > _SMALL_BYTES

    def feed(self, data: bytes) -> int:
        """Add received bytes; return how many of them belong to the body."""
        missing = self.needed - len(self.data)
        self.data += data if len(data) <= missing else data[:missing]
        return min(len(data), missing)

    def ended_early(self) -> Problem:
        """Return the answer for a client that has closed its side within the body."""
        return Problem("MALFORMED", _SHORT)


class _Events:
    """Receives the events of llhttp by methods of other objects, without Python code."""

    on_body: Callable[[bytes], object]
    on_message_complete: Callable[[], object]


class ChunkedBody:
    """A body in chunks; no length is announced, so it needs its memory piece by piece.

    Extensions and trailers are checked and ignored (RFC 9112, sections 7.1.1 and 7.1.2).
    """

    read_bytes = _CHUNKED_READ_BYTES

    def __init__(self, max_length: int) -> None:
        """Allow a body of ``max_length`` bytes."""
        self.data = bytearray()
        self._max_length = max_length
        self._received = 0
        """Bytes of the chunks, their sizes included."""
        self._last = b""
        """The last bytes that llhttp has seen: an empty line may begin with them."""
        self._ends: list[None] = []
        events = _Events()
        events.on_body = self.data.__iadd__
        events.on_message_complete = partial(self._ends.append, None)
        self._parser = httptools.HttpRequestParser(events)
        self._parser.feed_data(_HEAD)

    @property
    def complete(self) -> bool:
        """Whether the last chunk and the trailers have been received."""
        return bool(self._ends)

    @property
    def needed(self) -> int:
        """The bytes received so far."""
        return len(self.data)

    @property
    def bulk(self) -> bool:
        """Whether the body is large: nothing is known of the rest."""
        return len(self.data) > _SMALL_BYTES

    def feed(self, data: bytes) -> int:
        """Add received bytes; return how many of them were used."""
        try:
            used = self._parse(data)
        except httptools.HttpParserError:
            raise not_http() from None
        self._received += used
        size = len(self.data)
        if size > self._max_length:
            raise too_large(self._max_length)
        if self._received - size > _OVERHEAD_BYTES + _OVERHEAD_PER_BYTE * size:
            raise Problem("MALFORMED", _TOO_MUCH_OVERHEAD)
        return used

    def ended_early(self) -> Problem:
        """Return the answer for a client that has closed its side within the body."""
        return Problem("MALFORMED", _INCOMPLETE)

    def _parse(self, data: bytes) -> int:
        used = 0
        for _ in range(_PARTS_PER_STEP):
            end = self._end_of_part(data, used)
            part = data[used:end]
            self._parser.feed_data(part)
            self._last = (self._last + part[-3:])[-3:]
            used = end
            if self._ends or used == len(data):
                break
        return used

    def _end_of_part(self, data: bytes, start: int) -> int:
        """Return where the next empty line in ``data`` ends, or the end of ``data``."""
        if start == 0:
            # The line may have begun in the data before this.
            found = (self._last + data[:3]).find(_EMPTY_LINE)
            if found >= 0:
                return found + len(_EMPTY_LINE) - len(self._last)
        found = data.find(_EMPTY_LINE, start)
        return len(data) if found < 0 else found + len(_EMPTY_LINE)
