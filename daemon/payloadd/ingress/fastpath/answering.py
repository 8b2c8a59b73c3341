"""The answers of one connection on the fast path, and the end of the connection."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Final, TypeVarTuple

import trio

from payloadd.errors import RefusedError
from payloadd.ingress.cors import origin_in
from payloadd.ingress.fastpath.answers import CLOSE, KEEP, FixedAnswer, without_body
from payloadd.ingress.preferences import accepted, receipt_document
from payloadd.ingress.refusal_log import describe
from payloadd.ingress.server.client_connection import do_nothing
from payloadd.ingress.server.connection_errors import log_broken_connection
from payloadd.ingress.submission import as_problem, closes_connection
from payloadd.observe.request_metrics import OTHER
from payloadd.pipeline.intake import Receipt

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.ingress.fastpath.head import FastPathRequest
    from payloadd.ingress.fastpath.owner import Owner
    from payloadd.ingress.fastpath.targets import Reply
    from payloadd.ingress.preferences import WaitOutcome
    from payloadd.ingress.problem import Problem
    from payloadd.ingress.server.client_stream import ClientStream
    from payloadd.ingress.submission import SubmissionOutcome

Ts = TypeVarTuple("Ts")


# What a connection waits for.
INPUT: Final = 0
COMMIT: Final = 1
"""The request is submitted and has no outcome yet, or has to be stored before its answer."""
UPLOAD: Final = 2
"""The request is accepted, and is answered after its upload (``Prefer: wait``)."""
TURN: Final = 3
"""Memory for a body, or a later pass of the event loop."""
ROOM: Final = 4
"""Room in the socket's buffer for the rest of an answer."""


class AnsweringConnection:
    """Answers the current request; the subclass receives requests.

    ``on_leave`` is called when the connection leaves the fast path.
    """

    def __init__(
        self, fast_path: Owner, stream: ClientStream, on_leave: Callable[[ClientStream], object]
    ) -> None:
        self._fast_path = fast_path
        self._stream = stream
        self._on_leave = on_leave
        self._fd = stream.socket.fileno()
        self._head = b""
        """The beginning of the current request, for its log line."""
        self._request: FastPathRequest | None = None
        self._began: float | None = None
        """When the head of a request with payloads was complete, by ``perf_counter``."""
        self._buffers = stream.buffers
        self._awaits = INPUT
        self._rest = b""
        """Received bytes of an incomplete head, or bytes that follow the current request."""
        self._end_wait: Callable[[], object] = do_nothing
        """Ends the wait for an upload: the request is answered."""
        self._last = False
        """Whether the connection ends after the current answer."""
        self._events = select.EPOLLIN
        """The events for which the socket is polled, 0 for none."""
        self._bulk = False
        """Whether a body is being received that takes more than one read."""
        self._left = False

    def on_readable(self) -> None:
        """Handle an event of the socket."""
        raise NotImplementedError

    def read_pending(self) -> None:
        """Read input that the kernel does not report."""
        raise NotImplementedError

    def _continue(self) -> None:
        """Read the next request, unless the connection has left: the answer is sent."""
        raise NotImplementedError

    def _drop_body(self) -> None:
        """Drop the body of the request, and release its memory."""
        raise NotImplementedError

    def _drop_input(self) -> None:
        """Drop all input: the connection leaves the fast path."""
        raise NotImplementedError

    def _run_guarded(self, step: Callable[[*Ts], object], *arguments: *Ts) -> None:
        """Call ``step``; a lost client, or a bug, ends this connection and no other."""
        try:
            step(*arguments)
        except trio.BrokenResourceError:
            self._leave()
        except Exception as error:  # noqa: BLE001 - it is logged
            log_broken_connection(ExceptionGroup("on the fast path", [error]))
            self._leave()

    def _client_address(self) -> str | None:
        peer = self._stream.client_address
        request = self._request
        if request is None:
            return peer
        return self._fast_path.submitter.client_address(peer, request.headers)

    # --- answering -----------------------------------------------------------------------------

    def _send_outcome(self, outcome: SubmissionOutcome) -> None:
        """Answer the request after its commit."""
        if isinstance(outcome, Receipt):
            self._accept(202, receipt_document(outcome))
        else:
            self._refuse(as_problem(outcome))

    def _accept(self, status: int, document: bytes, waited: int | None = None) -> None:
        """Send a 202 or a 201."""
        request = self._request
        origin = None if request is None else request.headers.origin
        closes = self._last or closes_connection(self._fast_path.health)
        connection = b""
        if closes or (request is not None and request.special is not None):
            connection = self._connection_line(closes=closes)
        answer = self._fast_path.answers.accepted(status, document, waited, origin, connection)
        self._send_answer(status, answer, closes=closes)

    def _await_upload(self, receipt: Receipt, seconds: int) -> None:
        """Answer once the payloads are stored, or their upload has taken too long."""
        end_wait = self._fast_path.submitter.waits.begin(receipt, seconds, self._on_upload)
        if end_wait is not None and self._awaits == COMMIT:  # else it is answered already
            self._awaits = UPLOAD
            self._end_wait = end_wait
            self._run_guarded(self._poll, select.EPOLLRDHUP)

    def _on_upload(self, receipt: Receipt, outcome: WaitOutcome, waited: int | None = None) -> None:
        """Answer the request that has waited for its upload."""
        self._end_wait = do_nothing
        if self._left or self._stream.socket.fileno() < 0:
            return  # the connection was closed in the meantime
        if isinstance(outcome, RefusedError):
            self._run_guarded(self._send_outcome, outcome)
        else:
            self._run_guarded(self._accept, *accepted(receipt, outcome, waited))
        if self._buffers:
            # In a pass of its own: the call may come from ``_await_upload``, and the next request
            # would change what that method looks at.
            self._fast_path.call_soon(self.read_pending)

    def _reply(self, reply: Reply, request: FastPathRequest) -> None:
        """Answer a request whose body is not read."""
        if not isinstance(reply, FixedAnswer):
            self._refuse(reply(), unread_body=request.has_body)
            return
        closes = self._closes(unread_body=request.has_body)
        connection = self._connection_line(closes=closes)
        answer = self._fast_path.answers.page(reply, request.headers.origin, connection)
        self._send_answer(reply.status, self._shortened(answer), closes=closes)

    def _refuse(self, problem: Problem, *, unread_body: bool = False) -> None:
        self._send_problem(problem, self._closes(unread_body=unread_body))

    def _send_problem(self, problem: Problem, closes: bool = True) -> None:  # noqa: FBT001, FBT002
        """Refuse a request; after an incomplete body the connection cannot be used again."""
        request = self._request
        self._fast_path.refusals.note(problem, self._client_address(), *describe(self._head))
        self._drop_body()
        origin = None if request is None else request.headers.origin
        connection = self._connection_line(closes=closes)
        answer = self._fast_path.answers.problem(problem, origin, connection)
        self._send_answer(problem.status, self._shortened(answer), closes=closes)

    def _refuse_head(self, problem: Problem, data: bytes) -> None:
        """Refuse input that does not begin with a valid head; what follows cannot be read."""
        self._stream.request_begins()
        self._began = None
        self._fast_path.refusals.note(problem, self._stream.client_address)
        answer = self._fast_path.answers.problem(problem, origin_in(data), CLOSE)
        self._send_answer(problem.status, answer, closes=True)

    def _closes(self, *, unread_body: bool) -> bool:
        """Return whether the connection ends after the current answer."""
        return self._last or closes_connection(self._fast_path.health, unread_body=unread_body)

    def _connection_line(self, *, closes: bool) -> bytes:
        """Return the header Connection of the current answer as a line, b"" for none."""
        special = None if self._request is None else self._request.special
        if closes:
            return CLOSE
        return KEEP if special is not None and special.keeps else b""

    def _shortened(self, answer: bytes) -> bytes:
        """Return an answer without its body if the request must not get one."""
        special = None if self._request is None else self._request.special
        return without_body(answer) if special is not None and special.without_body else answer

    def _send_answer(self, status: int, answer: bytes, *, closes: bool) -> None:
        """Count and send an answer; then read on, or wait for room."""
        route = OTHER if self._request is None else self._request.route
        self._fast_path.requests.count(status, route, self._began)
        self._request = None
        self._head = b""
        sent = self._stream.send_now(answer, closes=closes)
        if sent or self._left:
            self._stream.request_ends()
            # Without the call for a usual request, which was measurable.
            if self._rest or self._bulk or self._events != select.EPOLLIN:
                self._continue()
            else:
                self._awaits = INPUT
        else:
            self._awaits = ROOM
            self._stream.await_room()
            self._poll(select.EPOLLOUT)

    def _send_rest(self) -> None:
        """Send more of an answer for which the socket had no room."""
        if self._stream.send_more():
            self._stream.request_ends()
            self._continue()

    # --- polling and leaving -------------------------------------------------------------------

    def _poll(self, events: int, *, bulk: bool = False) -> None:
        """Poll the socket for other events; 0: for none. Raises OSError."""
        if self._left or (events == self._events and bulk is self._bulk):
            return
        if self._events:
            self._events = 0
            self._fast_path.unregister(self._fd, bulk=self._bulk)
        if events:
            self._fast_path.register(self._fd, self, events, bulk=bulk)
        self._events, self._bulk = events, bulk

    def _pass_to_hypercorn(self, data: bytes) -> None:
        """Leave the connection to Hypercorn, which reads ``data`` before the socket."""
        self._stream.state.note_received(data)
        self._stream.pass_to_hypercorn(data)
        self._leave()

    def _leave(self) -> None:
        """Leave the fast path."""
        if not self._left:
            self._left = True
            self._drop_input()
            if self._events:
                self._fast_path.unregister(self._fd, bulk=self._bulk)
            self._stream.on_end = do_nothing
            self._on_leave(self._stream)
