"""One HTTP/1.1 answer, parsed by llhttp and bounded.

llhttp is strict about what an answer is and bounds nothing; what is bounded here is all that
is read of an answer, framing included, so that no server can make the daemon read for ever.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import httptools
import httpx

MOST_READ: Final = 131_072
"""Bytes of one answer (interim ones, head, body and framing) after which no more are read."""

_FINAL: Final = 200
"""Status codes below are of interim answers, which another answer follows (RFC 9110, 15.2)."""


class ResponseParser:
    """Status, headers and the beginning of the body of what ``feed`` is given.

    ``method`` is the request's: an answer to HEAD has no body, whatever its head says.
    """

    __slots__ = (
        "_head_only",
        "_heard",
        "_in_body",
        "_parser",
        "begun",
        "body",
        "complete",
        "keep_alive",
        "status",
    )

    def __init__(self, method: str) -> None:
        self._head_only = method == "HEAD"
        self._parser = httptools.HttpResponseParser(self)
        self._heard = b""
        self._in_body = False
        self.begun = False
        """Whether any byte came."""
        self.status = 0
        self.body = b""
        self.complete = False
        self.keep_alive = False
        """Whether the connection may be used again; only once ``complete``."""

    def feed(self, data: bytes) -> None:
        """Parse what came, b"" for the end of the connection.

        Raises httpx.RemoteProtocolError for what is no answer, or breaks off.
        """
        if not data:
            self._end()
            return
        self.begun = True
        self._heard += data
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as error:
            raise httpx.RemoteProtocolError("another protocol than HTTP/1.1") from error
        except httptools.HttpParserError as error:
            # What comes behind a whole answer does not make that one wrong.
            if not self.complete:
                raise httpx.RemoteProtocolError(f"not an HTTP answer: {error}") from error
        if len(self._heard) >= MOST_READ and not self.complete:
            self._cut()

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The header lines, trailers not among them; once the head is complete.

        They are read again for it: nobody asks for those of a 200, and to take note of each was a
        call from C a line.
        """
        lines = _HeaderLines()
        # What is wrong behind the head has been dealt with.
        with suppress(httptools.HttpParserError):
            lines.parser.feed_data(self._heard)
        return lines.lines

    def _cut(self) -> None:
        """Take what is there of an answer that is longer than anything S3 has to say."""
        if not self._in_body:
            raise httpx.RemoteProtocolError(f"no end of the head within {MOST_READ} bytes")
        self.complete = True

    def _end(self) -> None:
        """Take the end of the connection: where no length was given it ends the body too."""
        names = {name.lower() for name, _ in self.headers}
        if not self._in_body or names & {b"content-length", b"transfer-encoding"}:
            raise httpx.RemoteProtocolError("the connection ended in the middle of an answer")
        self.complete = True

    def on_message_begin(self) -> None:
        """Note an answer that nobody asked for: it must not be taken for the next one's."""
        if self.complete:
            self.keep_alive = False

    def on_headers_complete(self) -> None:
        """Take the status."""
        if self.complete:
            return
        self.status = self._parser.get_status_code()
        self._in_body = self.status >= _FINAL
        if self._in_body and self._head_only:
            self.on_message_complete()

    def on_body(self, data: bytes) -> None:
        """Take a piece of the body: all of them together are bounded by ``feed``."""
        if self.complete:
            self.keep_alive = False
        else:
            self.body += data

    def on_message_complete(self) -> None:
        """Note the end, unless it is that of an interim answer."""
        if self._in_body and not self.complete:
            self.complete = True
            self.keep_alive = self._parser.should_keep_alive()


class _HeaderLines:
    """Those of the first answer that is not an interim one."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.lines: list[tuple[bytes, bytes]] = []
        self._complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a line, unless it is a trailer or of another answer."""
        if not self._complete:
            self.lines.append((name, value))

    def on_headers_complete(self) -> None:
        """Forget those of an interim answer."""
        if self._complete:
            return
        self._complete = self.parser.get_status_code() >= _FINAL
        if not self._complete:
            self.lines.clear()
