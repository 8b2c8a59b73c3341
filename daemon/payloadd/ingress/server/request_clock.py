"""By when a client has to send something, on one connection.

What is known is when bytes come, when a request's head is complete, and when its answer is
out; in between, the time is that of whoever has the request. The server looks at ``deadline``
a few times a second: a cancel scope around each read and each write cost 40 µs of 115 a
request (the lane alone).
"""

from __future__ import annotations

from math import inf
from typing import Final

import trio

NEW: Final = 0.25
"""Seconds in which a connection is too new to be judged by what came: a request takes as long
to arrive from the other side of the world."""
_DRAIN_GRACE: Final = 1.0


class RequestClock:
    """The times of one connection, in seconds on trio's clock."""

    def __init__(self, request_timeout: float, keepalive_timeout: float) -> None:
        self.request_timeout = request_timeout
        self._keepalive_timeout = keepalive_timeout
        self._requests = 0  # under way; more than one with HTTP/2 or for a moment
        self.head_since: float | None = None
        """When the first byte came of a head that is not complete."""
        self._since: float | None = None
        """The same of the last one that is; None where nobody has asked."""
        self.answering = False
        """Whether the answer has begun: what comes now is of the next request."""
        self.http2 = False
        """Whether the client has been seen to speak HTTP/2."""
        self.received = 0
        """Bytes of the request that is being received, where they did not come all at once; with
        HTTP/2 those of the whole connection."""
        self.draining = False
        self.last = False
        """Whether the connection ends with the answers to the requests under way."""
        self._idles = False
        """Whether an answer went out, and nobody has looked at the time since."""
        self._created = trio.current_time()
        self.deadline = self._created + keepalive_timeout

    def heard(self, data: bytes) -> None:
        """Take note of what came; it matters if it is the first after an answer."""
        if self.head_since is None and not self.http2:
            if self._requests == 0:
                self.received = 0
                self._head_begins(trio.current_time())
            elif self.answering:
                self.received = 0
                self.head_since = trio.current_time()
        self.received += len(data)

    def request_begins(self) -> None:
        """Take note of a complete head."""
        self._since = self.head_since
        self.head_since = None
        self.answering = False
        self._requests += 1
        self._idles = False
        self.deadline = inf

    @property
    def due(self) -> float:
        """By when all of the request whose head was the last to be complete is due."""
        if self._since is None:
            self._since = trio.current_time()
        return self._since + self.request_timeout

    def is_over(self, now: float) -> bool:
        """Return whether time is up."""
        if self._idles:
            # The time after an answer begins with the first look at it, a moment late: to ask
            # for it at once was three calls a request.
            self._idles = False
            self.deadline = now + self._keepalive_timeout
        return now >= self.deadline

    def request_ends(self, *, last: bool) -> bool:
        """Take note of an answer, ``last`` if it said so; returns whether the connection ends."""
        self._requests -= 1
        if self._requests > 0:
            return False
        if self.draining:
            # An answer that went out before the drain began did not say that it was the last.
            self.deadline = trio.current_time() + _DRAIN_GRACE
            return last or self.last or self.http2
        if self.head_since is not None:
            self._head_begins(self.head_since)
        else:
            self._idles = True
        return False

    def becomes_http2(self) -> None:
        """Take note of HTTP/2's connection preface: what the head was timed for is over."""
        self.http2 = True
        self.head_since = None
        if self._requests == 0:
            self.wait_for_a_request()

    def drain(self) -> bool:
        """Give what is about to come a moment; returns whether the connection ends at once."""
        self.draining = True
        if self._requests > 0:
            return False
        if not self.http2:
            self._idles = False
            self.deadline = min(self.deadline, trio.current_time() + _DRAIN_GRACE)
        return self.http2

    def end_after_requests(self) -> bool:
        """Take no further request; returns whether the connection ends at once."""
        self.draining = self.last = True
        return self._requests == 0

    def postpone(self, seconds: float) -> None:
        """Move every deadline: for ``seconds`` the event loop did not look at the client."""
        self.deadline += seconds
        if self.head_since is not None:
            self.head_since += seconds
        if self._since is not None:
            self._since += seconds

    # --- which connection is closed, where slots are short ---------------------------------------

    @property
    def requests(self) -> int:
        """Requests whose head is complete and whose answer is not out."""
        return self._requests

    @property
    def idle_since(self) -> float | None:
        """When the connection became idle, to a quarter of a second; None if it is not."""
        if self._requests > 0 or self.head_since is not None or self._idles:
            return None
        return self.deadline - self._keepalive_timeout

    @property
    def has_just_answered(self) -> bool:
        """Whether the connection is idle, and the server has not looked at it since its answer."""
        return self._idles

    def bytes_a_second(self, now: float, received: int) -> float | None:
        """Return the rate of a request of which ``received`` bytes came, None if it is too new.

        With HTTP/2, and in a TLS handshake, it is the rate of the connection so far. Call this
        only for a connection from which a part of a request is awaited.
        """
        since = self.head_since if self.head_since is not None else self._since
        if since is None or self.http2:
            since = self._created
        age = now - since
        return received / age if age >= NEW else None

    def wait_for_a_request(self) -> None:
        """Give the client as long as a connection may be idle."""
        self.expect_within(self._keepalive_timeout)

    def expect_within(self, seconds: float) -> None:
        """Give the client so long from now, or what a drain leaves it."""
        self._idles = False
        self.deadline = trio.current_time() + min(seconds, _DRAIN_GRACE if self.draining else inf)

    def _head_begins(self, since: float) -> None:
        self._idles = False
        self.head_since = since
        self.deadline = since + (_DRAIN_GRACE if self.draining else self.request_timeout)
