"""One HTTP/1.1 answer, parsed by llhttp and bounded."""

from __future__ import annotations

from typing import Final

import httptools
import httpx

_LONGEST_HEAD: Final = 65_536


class Answer:
    """Status, headers and the beginning of the body of what ``feed`` is given."""

    def __init__(self, limit: int) -> None:
        """Keep ``limit`` bytes of the body."""
        self._limit = limit
        self._parser = httptools.HttpResponseParser(self)
        self._head_left = _LONGEST_HEAD
        self._in_body = False
        self.begun = False
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = bytearray()
        self.complete = False
        self.keep_alive = False

    def feed(self, data: bytes) -> None:
        """Parse what came, b"" for the end of the connection; raises httpx.TransportError."""
        if not data:
            self._end()
            return
        self.begun = True
        if not self._in_body:
            self._head_left -= len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            raise httpx.RemoteProtocolError(f"not an HTTP answer: {error}") from error
        if self._head_left < 0 and not self._in_body:
            raise httpx.RemoteProtocolError(f"the answer's head is over {_LONGEST_HEAD} bytes")

    def _end(self) -> None:
        """Take the end of the connection: where no length was given it ends the body too."""
        names = {name.lower() for name, _ in self.headers}
        if not self._in_body or names & {b"content-length", b"transfer-encoding"}:
            raise httpx.RemoteProtocolError("the connection ended in the middle of an answer")
        self.complete = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header line."""
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Take the status."""
        self.status = self._parser.get_status_code()
        self._in_body = self.status >= 200  # noqa: PLR2004 - after a 1xx there is another head

    def on_body(self, data: bytes) -> None:
        """Take what fits of the body, drop the rest."""
        self.body += data[: max(0, self._limit - len(self.body))]

    def on_message_complete(self) -> None:
        """Note the end; a 1xx is not the answer yet (RFC 9110, section 15.2)."""
        if not self._in_body:
            self.headers.clear()
            return
        self.complete = True
        self.keep_alive = self._parser.should_keep_alive()
