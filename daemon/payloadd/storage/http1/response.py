"""One HTTP/1.1 response, parsed by llhttp, with a bound on the bytes that are read of it.

llhttp is strict about the syntax and has no bounds. The bound here covers everything that is read
of a response, framing included: no server can make the daemon read without end.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import httptools
import httpx

MOST_READ: Final = 131_072
"""Bytes of one response (interim responses, head, body, framing) after which reading stops."""

_FINAL: Final = 200
"""Lower status codes are those of interim responses (RFC 9110, section 15.2)."""


class ResponseParser:
    """The status, the headers and the beginning of the body of one response.

    ``method`` is the request's: a response to HEAD has no body, even if its head announces one.
    """

    __slots__ = (
        "_head_only",
        "_in_body",
        "_parser",
        "begun",
        "body",
        "complete",
        "keep_alive",
        "received",
        "repeated",
        "status",
    )

    def __init__(self, method: str) -> None:
        self._head_only = method == "HEAD"
        self._parser = httptools.HttpResponseParser(self)
        self.received = b""
        """All bytes received: interim responses, the head, the body with its framing."""
        self._in_body = False
        self.begun = False
        """Whether any byte has been received."""
        self.status = 0
        self.body = b""
        self.complete = False
        self.keep_alive = False
        """Whether the connection may be used again; valid once ``complete``."""
        self.repeated = False
        """Whether the request was sent before, on a connection that was closed meanwhile."""

    def feed(self, data: bytes) -> None:
        """Parse received bytes; b"" is the end of the connection.

        Raises httpx.RemoteProtocolError for bytes that are no response, and for the end of the
        connection within a response.
        """
        if not data:
            self._end()
            return
        self.begun = True
        self.received += data
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as error:
            raise httpx.RemoteProtocolError("another protocol than HTTP/1.1") from error
        except httptools.HttpParserError as error:
            # An error in the bytes behind a complete response does not concern that response.
            if not self.complete:
                raise httpx.RemoteProtocolError(f"not an HTTP response: {error}") from error
        if len(self.received) >= MOST_READ and not self.complete:
            self._stop_reading()

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The header lines without trailers; valid once the head is complete.

        Each access parses the head again: the store reads no headers of a 200, and a callback for
        each line was measurable.
        """
        lines = _HeaderLines()
        # `feed` has already handled errors behind the head.
        with suppress(httptools.HttpParserError):
            lines.parser.feed_data(self.received)
        return lines.lines

    def _stop_reading(self) -> None:
        """Use the received part of a response that is longer than any response of S3."""
        if not self._in_body:
            raise httpx.RemoteProtocolError(f"no end of the head within {MOST_READ} bytes")
        self.complete = True

    def _end(self) -> None:
        """Handle the end of the connection: it ends a body for which no length was given."""
        names = {name.lower() for name, _ in self.headers}
        if not self._in_body or names & {b"content-length", b"transfer-encoding"}:
            raise httpx.RemoteProtocolError("the connection ended in the middle of a response")
        self.complete = True

    def on_message_begin(self) -> None:
        """Mark the connection as unusable if another response follows (called by llhttp)."""
        if self.complete:
            self.keep_alive = False

    def on_headers_complete(self) -> None:
        """Store the status (called by llhttp)."""
        if self.complete:
            return
        self.status = self._parser.get_status_code()
        self._in_body = self.status >= _FINAL
        if self._in_body and self._head_only:
            self.on_message_complete()

    def on_body(self, data: bytes) -> None:
        """Store a part of the body (called by llhttp); ``feed`` bounds their sum."""
        if self.complete:
            self.keep_alive = False
        else:
            self.body += data

    def on_message_complete(self) -> None:
        """Complete the response unless it is an interim one (called by llhttp)."""
        if self._in_body and not self.complete:
            self.complete = True
            self.keep_alive = self._parser.should_keep_alive()


class _HeaderLines:
    """The header lines of the first response that is not an interim one."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.lines: list[tuple[bytes, bytes]] = []
        self._complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Store a line unless it is a trailer, or belongs to a later response."""
        if not self._complete:
            self.lines.append((name, value))

    def on_headers_complete(self) -> None:
        """Drop the lines of an interim response."""
        if self._complete:
            return
        self._complete = self.parser.get_status_code() >= _FINAL
        if not self._complete:
            self.lines.clear()
