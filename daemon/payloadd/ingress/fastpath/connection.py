"""One connection on the fast path, which serves one request at a time.

The event loop calls the methods, and no method waits. A request is read as a head and a body and is
then submitted. The commit that makes it durable calls back, and the callback sends the answer.
``BodyReceiver`` receives a body that is not complete with its head, ``Responder`` makes answers.

What follows a request is kept until its answer is sent, and meanwhile nothing is read: a client
that does not wait for its answers (RFC 9112, section 9.3.2) is slowed down by its own requests.
"""

from __future__ import annotations

import select
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, ClassVar, Final

from payloadd.errors import RefusedError
from payloadd.ingress.fastpath.body_receiver import BodyReceiver
from payloadd.ingress.fastpath.head import Http2Error
from payloadd.ingress.fastpath.polled_connection import (
    COMMIT,
    INPUT,
    ROOM,
    TURN,
    UPLOAD,
    PolledConnection,
)
from payloadd.ingress.fastpath.responder import Responder
from payloadd.ingress.preferences import accepted, receipt_document
from payloadd.ingress.problem import Problem, not_http, too_large
from payloadd.ingress.server.client_connection import do_nothing
from payloadd.ingress.submission import as_problem
from payloadd.pipeline.intake import Receipt

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.ingress.fastpath.head import FastPathRequest
    from payloadd.ingress.fastpath.owner import Owner
    from payloadd.ingress.preferences import WaitOutcome
    from payloadd.ingress.server.client_stream import ClientStream
    from payloadd.ingress.submission import SubmissionOutcome

_KEPT_HEAD_BYTES: Final = 1024
"""Bytes of each open request that are kept for the log line in case it is refused."""


class FastPathConnection(PolledConnection):
    """Takes the requests of one connection from their first byte to their answer."""

    __slots__ = (
        "_body", "_charge", "_end_wait", "_first", "_name", "_parse", "_responder",
        "_rest", "_rest_charge",
    )  # fmt: skip

    decoded_immediately: ClassVar = 80 * 2**10
    """Bytes of a body up to which it is decoded as soon as it is complete; larger bodies are
    deferred. The bound is above 64 KiB: deferred bodies are in memory together, and then the
    allocator gets the memory of each one from the system, which was measurable."""

    def __init__(
        self, fast_path: Owner, stream: ClientStream, on_leave: Callable[[ClientStream], object]
    ) -> None:
        super().__init__(fast_path, stream, on_leave)
        heads = fast_path.heads
        self._parse = heads.parse_with_secret if fast_path.submitter.needs_tokens else heads.parse
        self._responder = Responder(fast_path, stream)
        self._rest = b""
        """Received bytes of an incomplete head, or bytes that follow the current request."""
        self._rest_charge = 0
        """Bytes of memory acquired for requests that follow the current one."""
        self._name: str | None = None
        """The name of the request's client."""
        self._body: BodyReceiver | None = None
        """Receives the body, until it is complete."""
        self._charge = 0
        """Bytes of memory of the request that is submitted (see ``request_memory.py``)."""
        self._end_wait: Callable[[], object] = do_nothing
        """Ends the wait for an upload: the request is answered."""
        self._first = True
        """Whether no request has begun: HTTP/2 may begin only then."""

    def on_readable(self) -> None:
        """Handle an event of the socket."""
        awaits = self._awaits
        if awaits == INPUT:
            if not self._left:  # which may have changed in the same pass
                self._run_guarded(self._read)
        elif awaits == UPLOAD:
            # The client has ended its side, or is gone, and does not get its 201: it may still
            # read the 202. Otherwise it would keep its slot until the upload.
            self._poll(0)
            self._end_wait()
        elif awaits == ROOM:
            self._run_guarded(self._send_rest)
            self.read_pending()
        else:
            # The client sends the next request before it has the answer: read it afterwards.
            self._poll(0)

    def on_outcome(self, outcome: SubmissionOutcome) -> None:
        """Answer the submitted request; see ``OutcomeCallback``."""
        self._fast_path.unanswered -= 1
        charge, self._charge = self._charge, 0
        self._fast_path.submitter.memory.release(charge)
        if self._stream.socket.fileno() < 0:
            return  # the drain's deadline closed the connection before the disk answered
        request = self._responder.request
        if request is not None and request.headers.wait and isinstance(outcome, Receipt):
            self._await_upload(outcome, request.headers.wait)
            return
        self._run_guarded(self._send_outcome, outcome)
        if self._stream.buffers:
            self.read_pending()

    def read_pending(self) -> None:
        """Read input that the kernel does not report: TLS may have decrypted more than was read."""
        if self._stream.pending and self._awaits == INPUT and not self._left:
            self._run_guarded(self._read)

    # --- heads ---------------------------------------------------------------------------------

    def _read(self) -> None:
        """Read once, and read again soon if TLS holds more input."""
        body = self._body
        if body is not None:
            body.read()
        else:
            more = self._stream.receive_now(self._fast_path.submitter.memory.read_ahead)
            if more:
                self._process(self._rest + more if self._rest else more, more)
            elif more is not None:
                self._end_input()
        # In a pass of its own: a client that sends quickly must not keep the others waiting.
        if self._stream.buffers and self._stream.pending:
            self._fast_path.call_soon(self.read_pending)

    def _end_input(self) -> None:
        """Refuse an incomplete head, or leave: the client has ended its side."""
        if self._rest:
            self._refuse_head(not_http(), self._release_rest())
        else:
            self._leave()

    def _process(self, data: bytes, more: bytes) -> None:
        """Begin the request at the beginning of ``data``, which ends with ``more``, new bytes."""
        try:
            request = self._parse(data)
        except Problem as problem:
            self._rest = b""
            self._refuse_head(problem, data)
        except Http2Error:
            self._rest = b""
            if self._first:
                self._pass_to_hypercorn(data)
            else:
                self._refuse_head(not_http(), data)
        else:
            if request is not None:
                self._begin_request(request, data)
            else:
                self._stream.state.note_received(more)
                self._rest = self._stream.head = data
                self._poll(select.EPOLLIN)

    def _begin_request(self, request: FastPathRequest, data: bytes) -> None:
        """Check a request whose head is complete, and receive its body."""
        self._stream.request_begins()
        responder = self._responder
        responder.began = perf_counter()
        responder.request = request
        responder.head = data[:_KEPT_HEAD_BYTES]
        self._first = False
        self._rest = b""
        special = request.special
        if special is not None:
            responder.last = special.closes
            if special.reply is not None:
                if not special.timed:
                    responder.began = None
                self._prepare_early_answer(request, data)
                self._after_answer(sent=responder.reply(special.reply, request))
                return
        submitter = self._fast_path.submitter
        try:
            address, certificate = responder.client_address, self._stream.certificate_name
            self._name = submitter.check(request.headers, request.token, certificate, address)
        except Problem as problem:
            self._refuse_early(problem, request, data)
            return
        size = request.end - request.start
        if size > submitter.max_length:
            self._refuse_early(too_large(submitter.max_length), request, data)
            return
        sized = special is None or not special.chunked
        if sized and (received := len(data)) >= request.end and submitter.memory.try_acquire(size):
            self._charge = size
            self._fast_path.requests.body_bytes += size
            if received == request.end:
                self._submit(request, data, request.start)
            else:
                self.keep_rest(data[request.end :])
                self._submit(request, data[request.start : request.end], 0)
            return
        kept = len(responder.head)
        self._body = BodyReceiver(request, kept, self._fast_path, self._stream, self)
        self._body.receive(data[request.start :])

    def _prepare_early_answer(self, request: FastPathRequest, data: bytes) -> None:
        """Prepare an answer that does not depend on a body: what follows is the next request."""
        self._responder.head = data[: request.start]
        if not request.has_body:
            self._note_last(request)
            if len(data) > request.start:
                self.keep_rest(data[request.start :])

    def _refuse_early(self, problem: Problem, request: FastPathRequest, data: bytes) -> None:
        """Refuse a request before its body is read."""
        self._prepare_early_answer(request, data)
        self._refuse(problem, unread_body=request.has_body)

    def _note_last(self, request: FastPathRequest) -> None:
        """Note whether the client sends nothing after this request, which is complete."""
        self._stream.client_closes = request.special is not None and request.special.closes

    # --- bytes behind the current request --------------------------------------------------------

    def keep_rest(self, rest: bytes) -> None:
        """Keep the bytes behind the current request.

        They count as memory of requests. If there is none, the current answer is the last one: a
        client may repeat requests without an answer (RFC 9112, section 9.3.2).
        """
        if not self._responder.last and self._fast_path.submitter.memory.try_acquire(len(rest)):
            self._rest, self._rest_charge = rest, len(rest)
        else:
            self._responder.last = True

    def _release_rest(self) -> bytes:
        """Return the kept bytes, and release their memory."""
        rest, self._rest = self._rest, b""
        charge, self._rest_charge = self._rest_charge, 0
        if charge:
            self._fast_path.submitter.memory.release(charge)
        return rest

    def _continue(self) -> None:
        """Process the kept bytes, or read."""
        if self._rest and not self._left:
            self.await_turn()
        else:
            self.await_input()

    # --- bodies: called by BodyReceiver --------------------------------------------------------

    def await_turn(self) -> None:
        """Resume in a later pass of the event loop: other connections have input, too."""
        self._awaits = TURN
        self._fast_path.call_soon(self._resume)

    def on_body(self, data: bytearray, charge: int) -> None:
        """Submit a complete body."""
        self._body = None
        self._charge = charge
        request = self._responder.request
        if request is not None:
            self._submit(request, data, 0)

    def on_body_refused(self, problem: Problem) -> None:
        """Refuse a request whose body is incomplete: the connection cannot be used again."""
        self._run_guarded(partial(self._refuse, unread_body=True), problem)

    def _resume(self) -> None:
        """Continue after a wait, unless the request has ended in the meantime."""
        if self._awaits == TURN and not self._left:
            self._awaits = INPUT
            self._run_guarded(self._process_rest)
            self.read_pending()

    def _process_rest(self) -> None:
        """Process received bytes: of the body, if there is one, else of the next request."""
        if self._body is not None:
            self._body.resume()
        else:
            rest = self._release_rest()
            self._process(rest, rest)

    def _drop_body(self) -> None:
        """Drop the body of the request, and release its memory."""
        body, self._body = self._body, None
        if body is not None:
            body.release()
            self._release_rest()
        charge, self._charge = self._charge, 0
        if charge:
            self._fast_path.submitter.memory.release(charge)

    # --- submitting ----------------------------------------------------------------------------

    def _submit(self, request: FastPathRequest, data: bytes | bytearray, start: int) -> None:
        self._awaits = COMMIT
        if self._responder.last:
            self._note_last(request)
        # The decompressed size is unknown, so each compressed body is deferred: it may take up to
        # the event loop's budget for one body before the decoder process gets it.
        plain = request.headers.content_encoding is None
        if plain and len(data) - start <= self.decoded_immediately:
            self._submit_now(request, data, start)
        else:
            submit = partial(self._submit_now, request, data, start)
            self._fast_path.defer(partial(self._run_guarded, submit))

    def _submit_now(self, request: FastPathRequest, data: bytes | bytearray, start: int) -> None:
        fast_path, address = self._fast_path, self._responder.client_address
        fast_path.unanswered += 1
        try:
            fast_path.submitter.submit(
                request.headers, data, start, self.on_outcome, address, self._name, self._is_gone
            )
        except Problem as problem:
            fast_path.unanswered -= 1
            self._refuse(problem)
            if self._stream.buffers:
                # A deferred request has been refused: no event of the socket reports what TLS has.
                fast_path.call_soon(self.read_pending)

    # --- answers -------------------------------------------------------------------------------

    def _send_outcome(self, outcome: SubmissionOutcome) -> None:
        """Answer the request after its commit."""
        if isinstance(outcome, Receipt):
            self._after_answer(sent=self._responder.accept(202, receipt_document(outcome)))
        else:
            self._refuse(as_problem(outcome))

    def _accept(self, status: int, document: bytes, waited: int | None) -> None:
        self._after_answer(sent=self._responder.accept(status, document, waited))

    def _refuse(self, problem: Problem, *, unread_body: bool = False) -> None:
        self._drop_body()
        self._after_answer(sent=self._responder.refuse(problem, unread_body=unread_body))

    def _refuse_head(self, problem: Problem, data: bytes) -> None:
        """Refuse input that does not begin with a valid head."""
        self._stream.request_begins()
        self._after_answer(sent=self._responder.refuse_head(problem, data))

    def _after_answer(self, *, sent: bool) -> None:
        """Read on after an answer, or wait for room for the rest of it."""
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
        if self._stream.buffers:
            # In a pass of its own: the call may come from ``_await_upload``, and the next request
            # would change what that method looks at.
            self._fast_path.call_soon(self.read_pending)

    def _leave(self) -> None:
        """Leave the fast path, and drop all input; a submitted body is still in use."""
        if not self._left:
            if self._awaits != COMMIT:
                self._drop_body()
            self._release_rest()
            super()._leave()
