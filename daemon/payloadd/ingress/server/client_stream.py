"""A client's connection as Hypercorn's ``TCPServer`` sees it, with the limits that it lacks.

``TCPServer`` sends without a deadline and sets no time limit for a request's head. It answers
input that it cannot parse with an empty body, and it closes so early that a client which is still
sending loses the answer. Under Quart-Trio its idle timer does not restart after an answer, and a
client that leaves between two pipelined requests leaves a task behind. ``ClientStream`` is the
stream that ``TCPServer`` reads and writes, and corrects all of this. Its only knowledge of
HTTP/1.1 is where an answer starts.

The app reports when the head of a request is complete and when its answer is sent. Between these
two events the app keeps the time; before and after them ``ConnectionState`` does.

``aclose`` cancels all that Hypercorn does for the connection. The server then awaits ``finish``,
which closes the socket: a client needs time to read its last answer.
"""

from __future__ import annotations

from contextlib import contextmanager
from fcntl import ioctl
from math import inf
from struct import unpack
from termios import FIONREAD
from typing import TYPE_CHECKING, Final

import trio

from payloadd.ingress.cors import origin_in
from payloadd.ingress.problem import Problem, problem_for_status
from payloadd.ingress.refusal_log import address_of_client
from payloadd.ingress.server.connection_state import ConnectionState, looks_complete
from payloadd.ingress.server.http2_input import PREFACE
from payloadd.observe.request_metrics import OTHER, CountAnswer, count_nothing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from payloadd.ingress.cors import Cors
    from payloadd.ingress.refusal_log import RefusalLog
    from payloadd.ingress.server.fifo_gate import FifoGate
    from payloadd.ingress.server.socket_stream import NonBlockingStream

_READ_BYTES: Final = 32_768
_KEPT_HEAD_BYTES: Final = 16 * 2**10
NOT_KNOWN: Final = (OTHER, None)
"""The route and the start of a request without a complete head."""


def do_nothing() -> None:
    """Do nothing."""


class ClientStream:
    """One accepted connection. All that Hypercorn does for it runs in ``scope``."""

    def __init__(
        self,
        transport: NonBlockingStream,
        request_timeout: float,
        keepalive_timeout: float,
        fifo_gate: FifoGate,
    ) -> None:
        """Wrap ``transport``; both timeouts are in seconds."""
        self.socket = transport.socket
        self.scope = trio.CancelScope()
        self.transport = transport
        self.buffers = transport.buffers
        """Whether ``pending`` may become true."""
        self._fifo_gate = fifo_gate
        self.state = ConnectionState(request_timeout, keepalive_timeout)
        self._received = b""
        """Bytes that the fast path has read and Hypercorn has not."""
        self.closed = False
        """Whether this side has ended the connection."""
        self._lingers = False
        """Whether the last answer was the last one of the connection: the client has to read it
        before the socket is closed."""
        self._final_problem: Problem | None = None
        self.passed_to_hypercorn = False
        """Whether Hypercorn has to serve the connection from now on."""
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
        self.evicted = False
        """Whether the connection was closed for another one; ``finish`` then does nothing."""
        self._answered: trio.Event | None = None
        self._limits: dict[trio.CancelScope, float] = {}
        """The scopes of ``until``, each with its time."""
        self.count: CountAnswer = count_nothing
        """Called for each answer that Hypercorn or this object sends."""
        self.counted_as: tuple[str, float | None] = NOT_KNOWN
        """The route and the start of the request that Hypercorn has in progress (HTTP/1.1)."""
        self.refusals: RefusalLog | None = None
        self.cors: Cors | None = None
        self.head = b""
        """With ``cors``, the beginning of the last request that the fast path has not served."""

    # --- called by Hypercorn ----------------------------------------------------------------------

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for data and return it, b"" at the end of the input.

        Raises ``trio.BrokenResourceError`` if the client has reset the connection.
        """
        if self._received:
            await self._fifo_gate.wait_turn()
            data, self._received = self._received, b""
            return data
        data = await self.transport.receive_some(min(max_bytes or _READ_BYTES, _READ_BYTES))
        if data:
            begun = self.state.head_since is not None
            self.state.note_received(data)
            if self.cors is not None and self.state.head_since is not None:
                self.head = ((self.head if begun else b"") + data)[:_KEPT_HEAD_BYTES]
        return data

    async def send_all(self, data: bytes) -> None:
        """Send ``data``.

        Raises ``trio.BrokenResourceError`` if the client does not read it within REQUEST_TIMEOUT,
        and ``trio.ClosedResourceError`` after ``aclose``.
        """
        if self.closed:
            raise trio.ClosedResourceError("this side has closed the connection")
        try:
            if not self.transport.send_now(self._prepare_answer(data)):
                await self._flush()
        except trio.BrokenResourceError:
            self._end()
            raise

    async def send_eof(self) -> None:
        """Do nothing: Hypercorn always closes right afterwards, and ``finish`` sends the end."""

    async def aclose(self) -> None:
        """End Hypercorn's part of the connection.

        Hypercorn ends a connection by itself after an answer to a request of which it has not
        read the body. Bytes that arrived after the answer are then the rest of that body and no
        new request, and the client still has to read the answer.
        """
        if self.state.answering and not self.closed:
            self.state.head_since = None
            self._lingers = True
        self._end()

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

    def pass_to_hypercorn(self, data: bytes) -> None:
        """Let Hypercorn serve the connection; ``data`` are bytes that it has to read first."""
        self._received = data
        self.head = data[:_KEPT_HEAD_BYTES] if self.cors is not None else b""
        self.passed_to_hypercorn = True
        self._on_deadline = None
        self.state.count_received = None
        self.state.awaits_turn = looks_complete(data)
        self.state.begins_http2 = data.startswith(PREFACE[:4])

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

    async def wait_until_answered(self, most: int = 0) -> None:
        """Wait until ``most`` requests or fewer have no answer."""
        while self.state.requests > most:
            if self._answered is None:
                self._answered = trio.Event()
            await self._answered.wait()

    @contextmanager
    def until(self, due: float, scope: trio.CancelScope) -> Iterator[trio.CancelScope]:
        """Run the ``with`` block in ``scope``; cancel it shortly after ``due`` (trio's clock).

        trio's own deadlines do not follow ``postpone``: after a stall of the event loop they
        would expire before the bytes in the socket are read.
        """
        self._limits[scope] = due
        try:
            with scope:
                yield scope
        finally:
            del self._limits[scope]

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
        for scope in self._limits:
            self._limits[scope] += seconds

    def end_after_requests(self) -> None:
        """Close after the answers to the current requests; accept no further request."""
        ends = self.state.end_after_requests()
        self._lingers = True
        if ends:
            self._end()

    def refuse_connection(self, problem: Problem) -> None:
        """End Hypercorn's part; ``finish`` answers with ``problem``, but not in HTTP/2."""
        self.state.head_since = None
        self._final_problem = None if self.state.http2 else problem
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
        self.socket.close()

    @property
    def has_unread_input(self) -> bool:
        """Whether more has arrived than the event loop has read: the client is not slow.

        For an idle connection a few bytes are enough. For a request that is being received, it
        has to be as much again as was read; otherwise one byte per second would be enough.
        """
        state = self.state
        if state.ignores_input or self.socket.fileno() < 0:
            return False
        (unread,) = unpack("i", ioctl(self.socket.fileno(), FIONREAD, b"\0\0\0\0"))
        if state.awaits_client:
            return bool(unread > state.bytes_received)
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
        self.socket.close()

    async def finish(self) -> None:
        """Send a last answer if one is due, and close (see ``close_gracefully``)."""
        if self.evicted:
            return
        self.state.closing_since = trio.current_time()
        last = b""
        if self.state.head_since is not None:
            self._final_problem = self._explain_incomplete_head()
        if self._final_problem is not None and not self._lingers:
            last = self._own_answer(self._final_problem)
        await self.transport.close_gracefully(last, linger=self._lingers or self.state.http2)

    # ----------------------------------------------------------------------------------------------

    def _explain_incomplete_head(self) -> Problem:
        if self.state.draining:
            return Problem("DRAINING", "the daemon is shutting down", {"Retry-After": "5"})
        return Problem("TIMEOUT", "the request's head was not complete in time")

    def _own_answer(self, problem: Problem) -> bytes:
        """Count and log an answer that comes neither from the app nor from the fast path."""
        self._count(problem.status)
        if self.refusals is not None:
            self.refusals.note(problem, self.client_address)
        if self.cors is not None:
            problem.headers.update(self.cors.headers(origin_in(self.head)))
        return problem.raw()

    def _end(self) -> None:
        self.closed = True
        self.scope.cancel()
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

    def _prepare_answer(self, data: bytes) -> bytes:
        """Return the bytes to send for ``data``; count the answer that starts with it, if any."""
        if self.state.http2 or not data.startswith(b"HTTP/1.1 "):
            return data
        status = int(data[9:12])
        if status < 200:  # noqa: PLR2004 - an interim answer; the final one follows
            return data
        self.state.answering = True
        head = data.lower()
        self._lingers = b"\r\nconnection: close\r\n" in head
        empty_error = status >= 400 and b"\r\ncontent-length: 0\r\n" in head  # noqa: PLR2004
        if empty_error:
            return self._own_answer(problem_for_status(status))
        self._count(status)
        return data

    def _count(self, status: int) -> None:
        self.count(status, *self.counted_as)
        self.counted_as = NOT_KNOWN
