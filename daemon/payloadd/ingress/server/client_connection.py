"""One accepted connection: its socket, its state, its deadlines, and its end.

The fast path reads and answers requests on it without a task. ``ClientStream`` adds what Hypercorn
needs. Where a connection ends, the client still has to read its last answer: ``finish_now`` does
that as far as possible without waiting, and ``finish`` waits.
"""

from __future__ import annotations

from enum import Enum, auto
from math import inf
from typing import TYPE_CHECKING, Final

import trio

from payloadd.ingress.cors import origin_in
from payloadd.ingress.problem import Problem
from payloadd.ingress.refusal_log import address_of_client
from payloadd.ingress.server.connection_state import ConnectionState, TickClock
from payloadd.ingress.server.socket_stream import CLOSE_SECONDS
from payloadd.observe.request_metrics import OTHER, CountAnswer, count_nothing

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.ingress.cors import Cors
    from payloadd.ingress.refusal_log import RefusalLog
    from payloadd.ingress.server.socket_stream import NonBlockingStream

NOT_KNOWN: Final = (OTHER, None)
"""The route and the start of a request without a complete head."""


def do_nothing() -> None:
    """Do nothing."""


class Ending(Enum):
    """How far ``ClientConnection.finish_now`` has come."""

    CLOSED = auto()
    """The socket is closed."""
    LINGERS = auto()
    """The client has to read its last answer; what it still sends has to be discarded."""
    UNSENT = auto()
    """Bytes have to be sent for which there is no room yet."""


class ClientConnection:
    """One accepted connection."""

    __slots__ = (
        "__weakref__", "_answered", "_final_problem", "_limits", "_lingers", "_on_deadline",
        "buffers", "certificate_name", "client", "client_closes", "closed", "cors", "count",
        "counted_as", "evicted", "head", "on_end", "refusals", "share", "socket", "state",
        "stated_address", "transport", "trust",
    )  # fmt: skip

    def __init__(
        self,
        transport: NonBlockingStream,
        request_timeout: float,
        keepalive_timeout: float,
        clock: TickClock | None = None,
    ) -> None:
        """Wrap ``transport``; both timeouts are in seconds."""
        self.socket = transport.socket
        self.transport = transport
        self.buffers = transport.buffers
        """Whether ``pending`` may become true."""
        self.state = ConnectionState(request_timeout, keepalive_timeout, clock or TickClock())
        self.closed = False
        """Whether this side has ended the connection."""
        self._lingers = False
        """Whether the last answer was the last one of the connection: the client has to read it
        before the socket is closed."""
        self.client_closes = False
        """Whether the client has announced that the current request is its last one, and the
        request is complete: the client sends nothing more (RFC 9112, section 9.6)."""
        self._final_problem: Problem | None = None
        self.on_end: Callable[[], object] = do_nothing
        """Called when the connection ends, for an owner that has no task in ``scope``."""
        self._on_deadline: Callable[[], object] | None = None
        """Called at the deadline instead of ``_end``. A reference to ``_end`` would be a cycle."""
        self.client: str | None = None
        """The client's address, if connections are counted per client."""
        self.stated_address: str | None = None
        """The client's address by the PROXY header of its connection; None: it is the peer's."""
        self.certificate_name: str | None = None
        self.trust = 0
        """The value of ``Certificates.trust`` when the client's certificate was checked."""
        self.share = 0
        """The share of ``DeadlineWheel`` to which the connection belongs."""
        self.evicted = False
        """Whether the connection was closed for another one; ``finish`` then does nothing."""
        self._answered: trio.Event | None = None
        self._limits: dict[trio.CancelScope, float] | None = None
        """The scopes of ``until``, each with its time."""
        self.count: CountAnswer = count_nothing
        """Called for each answer that Hypercorn or this object sends."""
        self.counted_as: tuple[str, float | None] = NOT_KNOWN
        """The route and the start of the request that Hypercorn has in progress (HTTP/1.1)."""
        self.refusals: RefusalLog | None = None
        self.cors: Cors | None = None
        self.head = b""
        """With ``cors``, the beginning of the last request that the fast path has not served."""

    # --- called by the fast path ------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether data is there that the kernel does not announce."""
        return self.transport.pending

    def receive_now(self, max_bytes: int) -> bytes | None:
        """Return received data, b"" at the end of the input, None if there is none yet.

        The caller passes the bytes of an incomplete head to ``state.note_received``. Raises
        ``trio.BrokenResourceError`` if the client has reset the connection.
        """
        return self.transport.receive_now(max_bytes)

    def send_now(self, answer: bytes, *, closes: bool) -> bool:
        """Send a whole answer; ``closes``: the answer announces the end of the connection.

        Returns False if there was no room for all of it; ``flush`` sends the rest. Raises
        ``trio.BrokenResourceError`` if the client has reset the connection.
        """
        self.state.answering = True
        self._lingers = closes
        sent = self.transport.send_now(answer)
        if closes:
            self._end()
        return sent

    async def flush(self) -> bool:
        """Send the rest of the answer; return False if the client does not read it in time."""
        try:
            await self._flush()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True

    def await_room(self) -> None:
        """Note that an answer has to wait for room; the client has REQUEST_TIMEOUT to read it."""
        now = trio.current_time()
        self.state.blocked_since = now
        self.state.deadline = now + self.state.request_timeout
        self._on_deadline = self._abandon

    def send_more(self) -> bool:
        """Send more of an answer that had no room; return whether that was the rest of it.

        Raises ``trio.BrokenResourceError`` if the client has reset the connection.
        """
        if not self.transport.send_more():
            return False
        self.state.blocked_since = None
        self.stop_body_timeout()
        return True

    def _abandon(self) -> None:
        """End the connection of a client that does not read its answer."""
        self.transport.drop_unsent()
        self.state.blocked_since = None
        self._on_deadline = None
        self._end()

    def start_body_timeout(
        self, due: float, late: Callable[[], object], received: Callable[[], int]
    ) -> None:
        """Call ``late`` after ``due`` (trio's clock) unless ``stop_body_timeout`` is called first.

        ``received`` returns how many bytes of the request have arrived.
        """
        self.state.deadline = due
        self._on_deadline = late
        self.state.count_received = received

    def stop_body_timeout(self) -> None:
        """Cancel the call of ``late`` that ``start_body_timeout`` has requested."""
        self.state.deadline = inf
        self._on_deadline = None
        self.state.count_received = None

    # --- called by the server ---------------------------------------------------------------------

    @property
    def client_address(self) -> str | None:
        """The address of the client, None if it is gone."""
        return self.stated_address or address_of_client(self.socket)

    def request_begins(self) -> None:
        """Note that the head of a request is complete."""
        self.state.request_begins()

    def request_ends(self) -> None:
        """Note that a request is answered, or that its handler has failed."""
        if self._answered is not None:
            self._answered.set()
            self._answered = None
        if self.state.request_ends(last=self._lingers):
            self._end()

    def check_deadlines(self, now: float) -> None:
        """End the connection if its deadline has passed; ``finish`` then answers the client."""
        if self._limits:
            for scope, due in self._limits.items():
                if now >= due:
                    scope.cancel()
        if self.state.is_overdue(now):
            (self._on_deadline or self._end)()

    def postpone(self, seconds: float) -> None:
        """Move every deadline by ``seconds`` in which the event loop did not read the socket."""
        self.state.postpone(seconds)
        if self._limits:
            for scope in self._limits:
                self._limits[scope] += seconds

    def end_after_requests(self) -> None:
        """Close after the answers to the current requests; accept no further request."""
        ends = self.state.end_after_requests()
        self._lingers = True
        if ends:
            self._end()

    def drain(self) -> None:
        """Close as soon as no request is in progress.

        The client has a second to complete a request that it has begun: it cannot know that the
        connection closes. HTTP/2 tells the client which request was the last one.
        """
        if self.state.drain():
            self._end()

    def close_now(self) -> None:
        """Close the socket at once, without an answer."""
        self.on_end = do_nothing
        self.transport.close()

    @property
    def has_unread_input(self) -> bool:
        """Whether more has arrived than the event loop has read: the client is not slow.

        For an idle connection a few bytes are enough. For a request that is being received, it
        has to be as much again as was read; otherwise one byte per second would be enough.
        """
        state = self.state
        if state.ignores_input or self.socket.fileno() < 0:
            return False
        unread = self.transport.unread
        if state.awaits_client:
            return unread > state.bytes_received
        return bool(unread) or self.transport.pending

    def evict(self) -> None:
        """Close at once for another connection; a slow HTTP/1.1 client gets a 408."""
        problem = None
        if self.state.awaits_client and not (self.state.handshaking or self.state.http2):
            problem = Problem("TIMEOUT", "slower than all others, and connections are short")
        quiet = self.state.ignores_input
        self.evicted = True
        self._end()
        if not quiet:
            try:
                if problem is not None:
                    self.transport.send_now(self._own_answer(problem))
                self.transport.send_close()
            except trio.BrokenResourceError:
                pass  # the client has left
        self.transport.close()

    def finish_now(self) -> Ending:
        """Send a last answer if one is due, and close, as far as that is possible without a wait.

        This is no checkpoint. If not all is sent, a task has to await ``finish``. If the client
        still has to read its answer, the caller discards input until the end or the deadline.
        """
        if self.evicted:
            return Ending.CLOSED
        self._begin_to_close()
        transport = self.transport
        try:
            if not transport.is_sent:
                return Ending.UNSENT
            last = self._last_answer()
            if last and not transport.send_now(last):
                return Ending.UNSENT
            transport.send_close()
            if self._lingers and not (self.client_closes and not transport.unread):
                # A task sends the rest of TLS's close_notify, if there is no room for it.
                return Ending.LINGERS if transport.shut_down() else Ending.UNSENT
        except trio.BrokenResourceError:
            pass  # the client has left
        transport.close()
        return Ending.CLOSED

    def waits_to_close(self) -> bool:
        """Return whether a client that goes on sending may still read its last answer.

        A client that sends a body which was refused reads the answer only when it has sent all of
        it. It has REQUEST_TIMEOUT for that, as for a body that is accepted.
        """
        state = self.state
        since = state.closing_since
        if since is None or state.draining:
            return False
        return trio.current_time() < since + state.request_timeout

    async def finish(self) -> None:
        """Send a last answer if one is due, and close (see ``close_gracefully``)."""
        if self.evicted:
            return
        self._begin_to_close()
        last = self._last_answer()
        linger = self._lingers or self.state.http2
        await self.transport.close_gracefully(last, linger=linger, waits=self.waits_to_close)

    # ----------------------------------------------------------------------------------------------

    def _begin_to_close(self) -> None:
        now = trio.current_time()
        self.state.closing_since = now
        self.state.deadline = now + CLOSE_SECONDS
        self._on_deadline = None

    def _last_answer(self) -> bytes:
        """Return the answer that ends the connection, b"" without one or after the first call."""
        if self.state.head_since is not None:
            self._final_problem = self._explain_incomplete_head()
            self.state.head_since = None
        problem, self._final_problem = self._final_problem, None
        if problem is None or self._lingers:
            return b""
        self._lingers = True
        return self._own_answer(problem)

    def _explain_incomplete_head(self) -> Problem:
        if self.state.draining:
            return Problem("DRAINING", "the daemon is shutting down", {"Retry-After": "5"})
        return Problem("TIMEOUT", "the request's head was not complete in time")

    def _own_answer(self, problem: Problem) -> bytes:
        """Return an answer that comes neither from the app nor from the fast path."""
        self.note_own_answer(problem)
        return problem.raw()

    def note_own_answer(self, problem: Problem) -> None:
        """Count and log such an answer, and add its headers for browsers to it."""
        self._count(problem.status)
        if self.refusals is not None:
            self.refusals.note(problem, self.client_address)
        if self.cors is not None:
            problem.headers.update(self.cors.headers(origin_in(self.head)))

    def _end(self) -> None:
        self.closed = True
        self.on_end()

    async def _flush(self) -> None:
        self.state.blocked_since = trio.current_time()
        try:
            with trio.fail_after(self.state.request_timeout):
                await self.transport.flush()
        except trio.TooSlowError as error:
            raise trio.BrokenResourceError("the client does not read") from error
        finally:
            self.state.blocked_since = None

    def _count(self, status: int) -> None:
        self.count(status, *self.counted_as)
        self.counted_as = NOT_KNOWN
