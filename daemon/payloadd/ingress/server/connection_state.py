"""The state of one client connection: its deadline, and what it waits for. No I/O.

The state knows when bytes arrive, when the head of a request is complete and when its answer is
sent. Between head and answer, the handler of the request keeps the time. The server compares
``deadline`` with the clock a few times per second. Rejected alternative: a cancel scope around
each read and each write; it was a large part of the CPU time of a request on the fast path.

The state also ranks connections for eviction: when all slots are taken, the connection with the
lowest ``eviction_rank`` is closed for a new one (see ``slots``).
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIN_AGE: Final = 0.25
"""Seconds before a connection is judged by the bytes that it has received: a request can take
this long to arrive from the other side of the world."""
_DRAIN_GRACE: Final = 1.0
"""Seconds that a client has, during a drain, to complete a request."""
_UNREAD_SECONDS: Final = 1.0
"""Seconds after which a client that does not read its answer counts as slow."""
_HEAD_END: Final = b"\r\n\r\n"
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,12})[ \t]*\r\n")


class TickClock:
    """A time that all connections share, and that costs no call to read."""

    __slots__ = ("next_tick",)

    def __init__(self) -> None:
        self.next_tick = trio.current_time()
        """The time of the next tick, in seconds on trio's clock."""


class EvictionRank(NamedTuple):
    """The rank of a connection for eviction: the lowest rank is closed first."""

    order: int
    """0: the connection is being closed. 1: it is idle. 2: its client is slow."""
    value: float
    """For 0 and 1: the start of that state, in seconds on trio's clock. For 2: bytes per second."""


def never() -> bool:
    """Return False."""
    return False


def looks_complete(data: bytes) -> bool:
    """Return whether ``data`` looks like an HTTP/1.1 request up to its end.

    This is a guess. Only the order of eviction depends on it: a client that has sent a complete
    request waits for the server.
    """
    head, end, body = data.partition(_HEAD_END)
    if not end:
        return False
    head = head.lower() + b"\r\n"
    if b"\r\ntransfer-encoding:" in head:
        return body.endswith(b"0" + _HEAD_END)
    length = _LENGTH.search(head)
    return length is None or len(body) >= int(length[1])


class ConnectionState:
    """The deadline and the activity of one connection; times are seconds on trio's clock.

    A request that arrives in one piece, and whose answer is sent in one piece, changes only the
    attributes that belong to the deadline.
    """

    __slots__ = (
        "_clock", "_created", "_keepalive_timeout", "_request_since", "_sending", "answering",
        "awaits_body", "awaits_turn", "begins_http2", "blocked_since", "closing_since",
        "count_received", "deadline", "draining", "ends_after_requests", "handshaking",
        "head_since", "http2", "received", "request_timeout", "requests", "waits_for_memory",
    )  # fmt: skip

    def __init__(self, request_timeout: float, keepalive_timeout: float, clock: TickClock) -> None:
        """Start with an idle connection; both timeouts are in seconds."""
        self._clock = clock
        self.request_timeout = request_timeout
        self._keepalive_timeout = keepalive_timeout
        self.requests = 0
        """Requests with a complete head and without a complete answer. More than one occurs with
        HTTP/2, and briefly with pipelined requests."""
        self.head_since: float | None = None
        """When the first byte of an incomplete head arrived."""
        self._request_since: float | None = None
        """The same time for the last complete head; None until ``due`` is read."""
        self.answering = False
        """Whether the answer has begun: bytes that arrive now belong to the next request."""
        self.http2 = False
        """Whether the client speaks HTTP/2."""
        self.received = 0
        """Bytes of the request that is being received, unless it arrived in one piece. With
        HTTP/2: bytes of the whole connection."""
        self.draining = False
        self.ends_after_requests = False
        """Whether the connection ends after the answers to the current requests."""
        self._created = trio.current_time()
        self.deadline = self._created + keepalive_timeout
        self.handshaking = False
        """Whether a TLS handshake is in progress."""
        self.awaits_turn = False
        """Whether bytes from the client wait for their turn to be parsed."""
        self.begins_http2 = False
        """Whether those bytes are the beginning of HTTP/2."""
        self.waits_for_memory = 0
        """Requests that wait for memory (``MAX_REQUEST_BYTES``); their bodies are not read."""
        self.count_received: Callable[[], int] | None = None
        """Returns how many bytes of the current request or handshake have arrived. None while
        ``received`` has the count, and while nothing is being received."""
        self.awaits_body: Callable[[], bool] = never
        """Returns whether Hypercorn waits for more of a request's body."""
        self.blocked_since: float | None = None
        """When the client stopped reading the bytes that are being sent."""
        self.closing_since: float | None = None
        """When the connection began to close."""
        self._sending: list[float] | None = None
        """Start times of all sends of the app that are not finished."""

    # --- the deadline -----------------------------------------------------------------------------

    def note_received(self, data: bytes) -> None:
        """Count ``data``; the first bytes after an answer start the time of a new request."""
        if self.head_since is None and not self.http2:
            if self.requests == 0:
                self.received = 0
                self._begin_head(trio.current_time())
            elif self.answering:
                self.received = 0
                self.head_since = trio.current_time()
        self.received += len(data)

    def request_begins(self) -> None:
        """Note that the head of a request is complete."""
        self._request_since = self.head_since
        self.head_since = None
        self.answering = False
        self.requests += 1
        self.deadline = inf

    @property
    def due(self) -> float:
        """The time by which the last request with a complete head has to be received."""
        if self._request_since is None:
            self._request_since = trio.current_time()
        return self._request_since + self.request_timeout

    def is_overdue(self, now: float) -> bool:
        """Return whether the deadline has passed."""
        return now >= self.deadline

    def request_ends(self, *, last: bool) -> bool:
        """Note that a request is answered; return whether the connection ends now.

        ``last``: the answer announced the end of the connection.
        """
        self.requests -= 1
        if self.requests > 0 or self.closing_since is not None:
            return False
        if self.draining:
            # An answer that was sent before the drain did not announce the end.
            self.deadline = trio.current_time() + _DRAIN_GRACE
            return last or self.ends_after_requests or self.http2
        if self.head_since is not None:
            self._begin_head(self.head_since)
        else:
            # The idle time begins a little late, at the next tick: reading the clock after each
            # answer costs three calls per request.
            self.deadline = self._clock.next_tick + self._keepalive_timeout
        return False

    def switch_to_http2(self) -> None:
        """Note the connection preface of HTTP/2: the time for an HTTP/1.1 head is over."""
        self.http2 = True
        self.head_since = None
        if self.requests == 0:
            self.wait_for_request()

    def drain(self) -> bool:
        """Leave the client a second for a request; return whether the connection ends now."""
        self.draining = True
        if self.requests > 0:
            return False
        if not self.http2:
            self.deadline = min(self.deadline, trio.current_time() + _DRAIN_GRACE)
        return self.http2

    def end_after_requests(self) -> bool:
        """Accept no further request; return whether the connection ends now."""
        self.draining = self.ends_after_requests = True
        return self.requests == 0

    def postpone(self, seconds: float) -> None:
        """Move every deadline by ``seconds`` in which the event loop did not read the sockets."""
        self.deadline += seconds
        if self.head_since is not None:
            self.head_since += seconds
        if self._request_since is not None:
            self._request_since += seconds

    def wait_for_request(self) -> None:
        """Set the deadline to the end of the idle time."""
        self.expect_within(self._keepalive_timeout)

    def expect_within(self, seconds: float) -> None:
        """Set the deadline ``seconds`` from now; during a drain, to a second at most."""
        self.deadline = trio.current_time() + min(seconds, _DRAIN_GRACE if self.draining else inf)

    def _begin_head(self, since: float) -> None:
        self.head_since = since
        self.deadline = since + (_DRAIN_GRACE if self.draining else self.request_timeout)

    # --- the rank for eviction --------------------------------------------------------------------

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Note that the ``with`` block sends a part of an answer, which the client has to read."""
        began = trio.current_time()
        sending = self._sending = [] if self._sending is None else self._sending
        sending.append(began)
        try:
            yield
        finally:
            sending.remove(began)

    @property
    def awaits_client(self) -> bool:
        """Whether a part of a request, or of a handshake, has arrived and the rest is missing."""
        if self.handshaking or self.count_received is not None or self.awaits_body():
            return True
        return self.head_since is not None and not self.requests

    @property
    def bytes_received(self) -> int:
        """Bytes of the request, or of the handshake, that is being received."""
        return self.received if self.count_received is None else self.count_received()

    @property
    def ignores_input(self) -> bool:
        """Whether the server waits for the client to read or to leave, and reads no request."""
        return self.closing_since is not None or self.blocked_since is not None

    def is_blocked(self, now: float) -> bool:
        """Return whether all current requests have waited a second for the client to read."""
        since = self._all_blocked_since
        return since is not None and now - since >= _UNREAD_SECONDS

    @property
    def _all_blocked_since(self) -> float | None:
        sending = self._sending
        return max(sending) if sending and self.requests == len(sending) else self.blocked_since

    def eviction_rank(self, now: float, *, brief: bool = False) -> EvictionRank | None:
        """Return the rank for eviction; None if the connection must stay open.

        It stays open while its client waits for an answer, and while it is so new that its
        request may still be on its way. With ``brief``, every idle connection has a rank.
        """
        if self.closing_since is not None:
            old = now - self.closing_since >= MIN_AGE
            return EvictionRank(0, self.closing_since) if old else None
        if self.awaits_turn or self.waits_for_memory:
            return None
        if self._all_blocked_since is not None:
            return EvictionRank(2, 0.0) if self.is_blocked(now) else None
        idle_since = None if self.handshaking else self._idle_since
        if idle_since is not None:
            if brief:
                idle_since = min(idle_since, now)
            old = brief or now - idle_since >= MIN_AGE
            return EvictionRank(1, idle_since) if old else None
        rate = self._bytes_per_second(now) if self.awaits_client else None
        return None if rate is None else EvictionRank(2, rate)

    @property
    def _idle_since(self) -> float | None:
        """When the connection became idle, late by one tick at most; None if it is not idle.

        The time of an answer may be in the future, see ``request_ends``.
        """
        if self.requests > 0 or self.head_since is not None:
            return None
        return self.deadline - self._keepalive_timeout

    def _bytes_per_second(self, now: float) -> float | None:
        """Return the rate of the request that is being received; None if it is too new.

        With HTTP/2, and in a TLS handshake, this is the rate of the connection since its start.
        """
        since = self.head_since if self.head_since is not None else self._request_since
        if since is None or self.http2:
            since = self._created
        age = now - since
        return self.bytes_received / age if age >= MIN_AGE else None
