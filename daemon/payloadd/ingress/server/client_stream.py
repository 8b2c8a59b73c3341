"""A client's connection as Hypercorn's TCPServer sees it, with what that does not bound.

Hypercorn sends without a deadline, times no head that trickles in, answers what it cannot
parse with an empty body, and closes so early that a client which is still sending never
sees the answer. Under Quart-Trio its idle timer does not start again after an answer, and a
client that leaves between two pipelined requests leaves a task behind. This stream stands
between the two and mends that. Of HTTP/1.1 it knows where an answer starts, no more.

What the server learns from its app is when a request's head is complete and when its answer
is out; in between the app keeps the time, and for the rest of the time ``request_clock`` does.

``aclose`` cancels all that Hypercorn does for the connection. The socket is closed by
``finish``, which the server awaits after that: a good end takes time.
"""

from __future__ import annotations

from contextlib import contextmanager
from fcntl import ioctl
from math import inf
from struct import unpack
from termios import FIONREAD
from typing import TYPE_CHECKING, Final

import trio

from payloadd.ingress.problem import Problem, explained
from payloadd.ingress.refusal_log import address_of_client
from payloadd.ingress.server.activity import ConnectionActivity
from payloadd.ingress.server.closing import close_gracefully
from payloadd.ingress.server.complete_request import may_be_whole
from payloadd.ingress.server.request_clock import RequestClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from payloadd.ingress.refusal_log import RefusalLog
    from payloadd.ingress.server.fifo_gate import FifoGate
    from payloadd.ingress.server.socket_stream import NonBlockingStream

_READ_BYTES: Final = 32_768


def nothing() -> None:
    """Do nothing."""


def count_nothing(_status: int) -> None:
    """Count no answer: the admin address has no metric of its own."""


class ClientStream:
    """One accepted connection. What Hypercorn does for it runs inside of ``scope``."""

    def __init__(
        self,
        transport: NonBlockingStream,
        request_timeout: float,
        keepalive_timeout: float,
        fifo_gate: FifoGate,
    ) -> None:
        self.socket = transport.socket
        self.scope = trio.CancelScope()
        self._transport = transport
        self.buffers = transport.buffers
        """Whether ``pending`` may be true."""
        self._fifo_gate = fifo_gate
        self.clock = RequestClock(request_timeout, keepalive_timeout)
        self._received = b""
        self._closed = False
        self._lingers = False
        self._last_word: Problem | None = None
        self.handed_over = False
        """Whether Hypercorn has to go on with it."""
        self.on_end: Callable[[], object] = nothing
        """Called when the connection ends, for who has it without a task in ``scope``."""
        self._on_deadline: Callable[[], object] | None = None
        """Called when time is up, instead of ``_end``: a reference to that would be a cycle."""
        self.client: str | None = None
        """The client's address, where connections are counted by it."""
        self.trust = 0
        """Which of the trusted sets of client certificates let the connection in."""
        self.evicted = False
        """Whether it was closed for another connection: there is nothing more to do for it."""
        self.activity = ConnectionActivity(self.clock)
        self._answered: trio.Event | None = None
        self._limits: dict[trio.CancelScope, float] = {}
        self.count: Callable[[int], object] = count_nothing
        """Called with the status of each answer that goes out over Hypercorn or from here."""
        self.refusals: RefusalLog | None = None

    # --- what Hypercorn calls ------------------------------------------------------------------

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return what came, b"" at the end; raises BrokenResourceError if the client left."""
        if self._received:
            await self._fifo_gate.next()
            data, self._received = self._received, b""
            return data
        data = await self._transport.receive_some(min(max_bytes or _READ_BYTES, _READ_BYTES))
        if data:
            self.clock.heard(data)
        return data

    async def send_all(self, data: bytes) -> None:
        """Send; raises BrokenResourceError if the client does not take it in REQUEST_TIMEOUT."""
        if self._closed:
            raise trio.ClosedResourceError("this side is done with the connection")
        try:
            await self._send(self._outgoing(data))
        except trio.BrokenResourceError:
            self._end()
            raise

    async def send_eof(self) -> None:
        """Do nothing: Hypercorn only ever closes right after, and ``finish`` says it then."""

    async def aclose(self) -> None:
        """End Hypercorn's part of the connection."""
        self._end()

    # --- how it begins -------------------------------------------------------------------------

    async def shake_hands(self) -> bool:
        """Agree on TLS, in time; returns False if it is over, or goes to Hypercorn for HTTP/2."""
        if self._closed:
            return False
        with trio.CancelScope() as handshake:
            self.on_end = handshake.cancel
            self.activity.handshaking = True
            self.activity.received = self._transport.handshake_bytes
            self.clock.expect_within(self.clock.request_timeout)
            try:
                protocol = await self._transport.handshake(self._fifo_gate)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return False
            finally:
                self.activity.handshaking = False
                self.activity.received = None
            self.on_end = nothing
            self.clock.wait_for_a_request()
            if protocol != "h2":
                return True
            self.clock.http2 = True
            self.hand_over(b"")
        return False

    # --- what the plain lane calls -------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether there is more to receive that the kernel does not know of."""
        return self._transport.pending

    def receive_now(self, max_bytes: int) -> bytes | None:
        """Return what is there, b"" at the end, None for nothing yet; raises as receive_some.

        What came of a head that is not complete, the clock has to hear.
        """
        return self._transport.receive_now(max_bytes)

    def send_now(self, answer: bytes, *, closes: bool) -> bool:
        """Send a whole answer; ``closes``: it says that it is the last one.

        Returns False if there was no room for all of it: the rest goes first when the
        connection is handed over. Raises BrokenResourceError if the client is gone.
        """
        self.clock.answering = True
        self._lingers = closes
        sent = self._transport.send_now(answer)
        if closes:
            self._end()
        return sent

    async def flush(self) -> bool:
        """Send what there was no room for; returns whether the client takes it."""
        try:
            await self._flush()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True

    def body_is_due(
        self, due: float, late: Callable[[], object], received: Callable[[], int]
    ) -> None:
        """Call ``late`` if ``body_is_there`` was not called by ``due``, on trio's clock.

        ``received`` returns the bytes of the request that have come so far.
        """
        self.clock.deadline = due
        self._on_deadline = late
        self.activity.received = received

    def body_is_there(self) -> None:
        """Stop the time."""
        self.clock.deadline = inf
        self._on_deadline = None
        self.activity.received = None

    def hand_over(self, data: bytes) -> None:
        """Put bytes that were read back in front of the stream, for Hypercorn."""
        self._received = data
        self.handed_over = True
        self._on_deadline = None
        self.activity.received = None
        self.activity.in_hand = may_be_whole(data)

    # --- what the server calls -----------------------------------------------------------------

    @property
    def http2(self) -> bool:
        """Whether the client has been seen to speak HTTP/2."""
        return self.clock.http2

    def request_begins(self) -> None:
        """Take note that there is a request whose head is complete."""
        self.clock.request_begins()

    def request_ends(self) -> None:
        """Take note that the app has answered, or given up."""
        if self._answered is not None:
            self._answered.set()
            self._answered = None
        if self.clock.request_ends(last=self._lingers):
            self._end()

    async def wait_until_answered(self, most: int = 0) -> None:
        """Return once no more than ``most`` requests are under way."""
        while self.clock.requests > most:
            if self._answered is None:
                self._answered = trio.Event()
            await self._answered.wait()

    @contextmanager
    def until(self, due: float, scope: trio.CancelScope) -> Iterator[trio.CancelScope]:
        """Run the body in ``scope``, and cancel it a little after ``due``, on trio's clock.

        trio's own deadlines know nothing of ``postpone``: behind a stall they would be over
        before what lies in the socket has been read.
        """
        self._limits[scope] = due
        try:
            with scope:
                yield scope
        finally:
            del self._limits[scope]

    def look_at_the_time(self, now: float) -> None:
        """End all that runs in ``scope`` if time is up; ``finish`` says so to the client."""
        if self._limits:
            for scope, due in self._limits.items():
                if now >= due:
                    scope.cancel()
        if self.clock.is_over(now):
            (self._on_deadline or self._end)()

    def postpone(self, seconds: float) -> None:
        """Move every deadline: for ``seconds`` the event loop did not look at the client."""
        self.clock.postpone(seconds)
        for scope in self._limits:
            self._limits[scope] += seconds

    def end_after_requests(self) -> None:
        """Answer the requests under way and close; no further request is taken."""
        ends = self.clock.end_after_requests()
        self._lingers = True
        if ends:
            self._end()

    def refuse_connection(self, problem: Problem) -> None:
        """End Hypercorn's part; ``finish`` answers with ``problem``, but not in HTTP/2."""
        self.clock.head_since = None
        self._last_word = None if self.http2 else problem
        self._end()

    def drain(self) -> None:
        """Close as soon as there is no request under way.

        One that is about to come has a moment to become complete: a client that uses its
        connection cannot know that it closes, and what is cut off is neither taken nor refused.
        In HTTP/2 the client is told which request was the last.
        """
        if self.clock.drain():
            self._end()

    def cut_off(self) -> None:
        """Close at once, without a word."""
        self.on_end = nothing
        self.socket.close()

    @property
    def keeps_up(self) -> bool:
        """Whether the client has sent more than was read of it: the event loop is behind, not it.

        A few bytes are enough of a connection that looks idle; of a request that is being
        received it has to be as much again, or a byte a second would do.
        """
        activity = self.activity
        if activity.ignores_client or self.socket.fileno() < 0:
            return False
        (unread,) = unpack("i", ioctl(self.socket.fileno(), FIONREAD, b"\0\0\0\0"))
        if activity.awaits_client:
            return bool(unread > activity.bytes_received)
        return bool(unread) or self._transport.pending

    def evict(self) -> None:
        """Close at once, for another connection. A client that is slow in HTTP/1.1 is told."""
        problem = None
        if self.activity.awaits_client and not (self.activity.handshaking or self.http2):
            problem = Problem("TIMEOUT", "slower than all others, and connections are short")
        quiet = self.activity.ignores_client
        self.evicted = True
        self._end()
        if not quiet:
            try:
                if problem is not None:
                    self._transport.send_now(self._own_answer(problem))
                self._transport.send_close()
            except trio.BrokenResourceError:
                pass  # the client is gone
        self.socket.close()

    async def finish(self) -> None:
        """Say what is left to say and close; see ``close_gracefully``."""
        if self.evicted:
            return
        self.activity.finishing_since = trio.current_time()
        words = b""
        if self.clock.head_since is not None:
            self._last_word = self._cut_off()
        if self._last_word is not None and not self._lingers:
            words = self._own_answer(self._last_word)
        await close_gracefully(self._transport, words, waits=self._lingers or self.http2)

    # -------------------------------------------------------------------------------------------

    def _cut_off(self) -> Problem:
        """Return what to tell a client whose request had begun and was not answered."""
        if self.clock.draining:
            return Problem("DRAINING", "the daemon is shutting down", {"Retry-After": "5"})
        return Problem("TIMEOUT", "the request's head was not complete in time")

    def _own_answer(self, problem: Problem) -> bytes:
        """Return an answer that neither the app nor the fast path gives, counted and logged."""
        self.count(problem.status)
        if self.refusals is not None:
            self.refusals.note(problem, address_of_client(self.socket))
        return problem.raw()

    def _end(self) -> None:
        self._closed = True
        self.scope.cancel()
        self.on_end()

    async def _send(self, data: bytes) -> None:
        if not self._transport.send_now(data):
            await self._flush()

    async def _flush(self) -> None:
        self.activity.blocked_since = trio.current_time()
        try:
            with trio.fail_after(self.clock.request_timeout):
                await self._transport.flush()
        except trio.TooSlowError as error:
            raise trio.BrokenResourceError("the client does not read") from error
        finally:
            self.activity.blocked_since = None

    def _outgoing(self, data: bytes) -> bytes:
        """Return what to send for ``data``, having looked whether an answer starts with it."""
        if self.http2 or not data.startswith(b"HTTP/1.1 "):
            return data
        status = int(data[9:12])
        if status < 200:  # noqa: PLR2004 - the answer comes later
            return data
        self.clock.answering = True
        head = data.lower()
        self._lingers = b"\r\nconnection: close\r\n" in head
        empty_error = status >= 400 and b"\r\ncontent-length: 0\r\n" in head  # noqa: PLR2004
        if empty_error:
            return self._own_answer(explained(status))
        self.count(status)
        return data
