"""A client's connection as Hypercorn's TCPServer sees it, with what that does not bound.

Hypercorn sends without a deadline, times no head that trickles in, answers what it cannot
parse with an empty body, and closes so early that a client which is still sending never
sees the answer. Under Quart-Trio its idle timer does not start again after an answer, and a
client that leaves between two pipelined requests leaves a task behind. This stream stands
between the two and mends that. Of HTTP/1.1 it knows where an answer starts, no more.

What the server learns from its app is when a request's head is complete and when its answer
is out; in between the app keeps the time, and for the rest of the time this stream does.

``aclose`` cancels all that Hypercorn does for the connection. The socket is closed by
``finish``, which the server awaits after that: a good end takes time.
"""

from __future__ import annotations

from math import inf
from typing import Final

import trio

from daemon.ingress.problem import Problem

_DRAIN_GRACE: Final = 1.0
_LINGER_SECONDS: Final = 2.0
_LINGER_BYTES: Final = 16 * 2**20

_HTTP2_PREFACE: Final = b"PRI * HTTP/2.0"


class ClientStream:
    """One accepted connection; ``received`` are bytes that were read from it before.

    Hypercorn has to run inside of ``scope``.
    """

    def __init__(
        self,
        transport: trio.SocketStream,
        request_timeout: float,
        keepalive_timeout: float,
        received: bytes = b"",
    ) -> None:
        self.socket = transport.socket
        self.scope = trio.CancelScope()
        self._transport = transport
        self._request_timeout = request_timeout
        self._keepalive_timeout = keepalive_timeout
        self._received = received
        self._closed = False
        self._draining = False
        self._http2 = False
        self._requests = 0  # that the app has; more than one with HTTP/2 or for a moment
        self._answering = False
        self._head_since: float | None = None  # first byte of a head that is not complete
        self._lingers = False
        self._last_word: Problem | None = None
        self._reading = trio.CancelScope()
        self._deadline = trio.current_time() + keepalive_timeout

    # --- what Hypercorn calls ------------------------------------------------------------------

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return what came, b"" at the end; raises ClosedResourceError when time is up."""
        data = b""
        if self._received:
            data, self._received = self._received, b""
        else:
            with trio.CancelScope(deadline=self._deadline) as self._reading:
                data = await self._transport.receive_some(max_bytes)
            if self._reading.cancelled_caught:
                raise trio.ClosedResourceError("the client took too long")
        if data:
            self._heard(data)
        return data

    async def send_all(self, data: bytes) -> None:
        """Send; raises BrokenResourceError if the client does not take it in REQUEST_TIMEOUT."""
        if self._closed:
            raise trio.ClosedResourceError("this side is done with the connection")
        try:
            with trio.fail_after(self._request_timeout):
                await self._transport.send_all(self._outgoing(data))
        except (trio.BrokenResourceError, trio.TooSlowError) as error:
            self._end()
            raise trio.BrokenResourceError("the client has left or does not read") from error

    async def send_eof(self) -> None:
        """Do nothing: Hypercorn only ever closes right after, and ``finish`` says it then."""

    async def aclose(self) -> None:
        """End Hypercorn's part of the connection."""
        self._end()

    @property
    def http2(self) -> bool:
        """Whether the client has been seen to speak HTTP/2."""
        return self._http2

    # --- what the server calls -----------------------------------------------------------------

    def request_begins(self) -> float:
        """Take note that the app has a request; return the time by which all of it is due."""
        since = trio.current_time() if self._head_since is None else self._head_since
        self._head_since = None
        self._answering = False
        self._requests += 1
        self._wait_until(inf)
        return since + self._request_timeout

    def request_ends(self) -> None:
        """Take note that the app has answered, or given up."""
        self._requests -= 1
        if self._requests > 0:
            return
        if self._draining and (self._lingers or self._http2):
            self._end()
        elif self._draining:
            # The answer went out before the drain began, and did not say that it was the last.
            self._wait_until(trio.current_time() + _DRAIN_GRACE)
        elif self._head_since is not None:
            self._wait_until(self._head_since + self._request_timeout)
        else:
            self._wait_until(trio.current_time() + self._keepalive_timeout)

    def turn_away(self, problem: Problem) -> None:
        """End Hypercorn's part; ``finish`` answers with ``problem``, but not in HTTP/2."""
        self._head_since = None
        self._last_word = None if self._http2 else problem
        self._end()

    def drain(self) -> None:
        """Close as soon as there is no request under way.

        One that is about to come has a moment to become complete: a client that uses its
        connection cannot know that it closes, and what is cut off is neither taken nor refused.
        In HTTP/2 the client is told which request was the last.
        """
        self._draining = True
        if self._requests > 0:
            return
        if self._http2:
            self._end()
        else:
            self._wait_until(min(self._deadline, trio.current_time() + _DRAIN_GRACE))

    async def finish(self) -> None:
        """Say what is left to say, let the client read it, close. Takes 2 s at most.

        A socket that is closed with unread bytes in it resets the connection, and the answer
        is lost with it (RFC 9112, section 9.6): so what still comes is read and dropped first.
        """
        try:
            with trio.move_on_after(_LINGER_SECONDS):
                if self._head_since is not None:
                    self._last_word = self._cut_off()
                if self._last_word is not None and not self._lingers:
                    await self._transport.send_all(self._last_word.raw())
                    self._lingers = True
                if self._lingers or self._http2:
                    await self._linger()
        except trio.BrokenResourceError:
            pass  # the client is gone
        self.socket.close()

    # -------------------------------------------------------------------------------------------

    def _cut_off(self) -> Problem:
        """Return what to tell a client whose request had begun and was not answered."""
        if self._draining:
            return Problem("DRAINING", "the daemon is shutting down", {"Retry-After": "5"})
        return Problem("TIMEOUT", "the request's head was not complete in time")

    def _end(self) -> None:
        self._closed = True
        self.scope.cancel()

    def _heard(self, data: bytes) -> None:
        """Take note of the first byte after an answer."""
        if self._head_since is not None or self._http2:
            return
        if self._requests == 0:
            self._http2 = data.startswith(_HTTP2_PREFACE)
            if not self._http2:
                self._head_since = trio.current_time()
                patience = _DRAIN_GRACE if self._draining else self._request_timeout
                self._wait_until(self._head_since + patience)
        elif self._answering:
            self._head_since = trio.current_time()

    def _wait_until(self, deadline: float) -> None:
        self._deadline = self._reading.deadline = deadline

    def _outgoing(self, data: bytes) -> bytes:
        """Return what to send for ``data``, having looked whether an answer starts with it."""
        if self._http2 or not data.startswith(b"HTTP/1.1 "):
            return data
        status = int(data[9:12])
        if status == 101:  # noqa: PLR2004 - Switching Protocols: HTTP/2 by Upgrade
            self._http2 = True
        if status < 200:  # noqa: PLR2004 - the answer comes later
            return data
        self._answering = True
        head = data.lower()
        self._lingers = b"\r\nconnection: close\r\n" in head
        empty_error = status >= 400 and b"\r\ncontent-length: 0\r\n" in head  # noqa: PLR2004
        return _explained(status) if empty_error else data

    async def _linger(self) -> None:
        await self._transport.send_eof()
        left = _LINGER_BYTES
        while left > 0 and (data := await self._transport.receive_some(65536)):
            left -= len(data)


def _explained(status: int) -> bytes:
    """Return our answer for an empty one, which only Hypercorn gives: to what it cannot parse."""
    if status == 500:  # noqa: PLR2004 - an app that ended without an answer
        return Problem("INTERNAL", "the request was not answered").raw()
    if status == 431:  # noqa: PLR2004 - Request Header Fields Too Large
        return Problem("MALFORMED", "the request's head is too large").raw()
    return Problem("MALFORMED", "the request is not HTTP").raw()
