"""One connection on the fast path: it receives requests, one at a time.

The event loop calls the methods, and no method waits. A request is read as a head and a body and is
then submitted. The commit that makes it durable calls back, and the callback sends the answer.
What follows a request is kept until its answer is sent, and meanwhile nothing is read: a client
that does not wait for its answers (RFC 9112, section 9.3.2) is slowed down by its own requests.
"""

from __future__ import annotations

import select
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Final

import trio

from payloadd.ingress.fastpath.answering import (
    COMMIT,
    INPUT,
    ROOM,
    TURN,
    UPLOAD,
    AnsweringConnection,
)
from payloadd.ingress.fastpath.answers import CONTINUE
from payloadd.ingress.fastpath.framing import ChunkedBody, SizedBody
from payloadd.ingress.fastpath.head import Http2Error
from payloadd.ingress.fastpath.incoming_body import IncomingBody
from payloadd.ingress.problem import Problem, not_http, too_large
from payloadd.pipeline.intake import Receipt

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.ingress.fastpath.head import FastPathRequest
    from payloadd.ingress.fastpath.owner import Owner
    from payloadd.ingress.server.client_stream import ClientStream
    from payloadd.ingress.submission import SubmissionOutcome

_FIRST_READ_BYTES: Final = 120 * 2**10
"""Bytes of the first read of a request: a POST of 64 KiB with its head fits. A larger buffer would
be above the threshold from which malloc(3) asks the system for memory."""
_KEPT_HEAD_BYTES: Final = 1024
"""Bytes of each open request that are kept for the log line in case it is refused."""


class FastPathConnection(AnsweringConnection):
    """Receives the requests of one connection; ``on_leave`` is called when it leaves."""

    decoded_immediately: int = 80 * 2**10
    """Bytes of a body up to which it is decoded as soon as it is complete; larger bodies are
    deferred. The bound is above 64 KiB: deferred bodies are in memory together, and then the
    allocator gets the memory of each one from the system, which was measurable."""

    def __init__(
        self, fast_path: Owner, stream: ClientStream, on_leave: Callable[[ClientStream], object]
    ) -> None:
        super().__init__(fast_path, stream, on_leave)
        self._rest_charge = 0
        """Bytes of memory acquired for requests that follow the current one."""
        heads = fast_path.heads
        self._parse = heads.parse_with_secret if fast_path.submitter.needs_tokens else heads.parse
        self._name: str | None = None
        """The name of the request's client."""
        self._body: IncomingBody | None = None
        """The body, while it is received."""
        self._charge = 0
        """Bytes of memory of the request that is submitted (see ``request_memory.py``)."""
        self._first = True
        """Whether no request has begun: HTTP/2 may begin only then."""
        fast_path.register(self._fd, self)
        stream.on_end = self._leave

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
        request = self._request
        if request is not None and request.headers.wait and isinstance(outcome, Receipt):
            self._await_upload(outcome, request.headers.wait)
            return
        self._run_guarded(self._send_outcome, outcome)
        if self._buffers:
            self.read_pending()

    def read_pending(self) -> None:
        """Read input that the kernel does not report: TLS may have decrypted more than was read."""
        if self._stream.pending and self._awaits == INPUT and not self._left:
            self._run_guarded(self._read)

    # --- heads ---------------------------------------------------------------------------------

    def _read(self) -> None:
        """Read once, and read again soon if TLS holds more input."""
        if self._body is None:
            self._read_head()
        else:
            self._read_body(self._body)
        # In a pass of its own: a client that sends quickly must not keep the others waiting.
        if self._buffers and self._stream.pending:
            self._fast_path.call_soon(self.read_pending)

    def _read_head(self) -> None:
        more = self._stream.receive_now(_FIRST_READ_BYTES)
        if more:
            self._process(self._rest + more if self._rest else more, more)
        elif more is not None:
            # The client has ended its side between two requests, or within a head.
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
        self._began = perf_counter()
        self._request = request
        self._first = False
        self._head = data[:_KEPT_HEAD_BYTES]
        self._rest = b""
        special = request.special
        if special is not None:
            self._last = special.closes
            if special.reply is not None:
                if not special.timed:
                    self._began = None
                self._begin_reply(request, data)
                self._reply(special.reply, request)
                return
        submitter = self._fast_path.submitter
        try:
            self._name = submitter.check(
                request.headers, request.token, self._stream.certificate_name, self._client_address
            )
        except Problem as problem:
            self._refuse_unread(problem, request, data)
            return
        size = request.end - request.start
        chunked = False
        if special is not None:
            chunked = special.chunked
            if size > submitter.max_length:
                self._refuse_unread(too_large(submitter.max_length), request, data)
                return
        received = len(data)
        if not chunked and received >= request.end and submitter.memory.try_acquire(size):
            self._charge = size
            self._fast_path.requests.body_bytes += size
            if received == request.end:
                self._submit(request, data, request.start)
            else:
                self._keep_rest(data[request.end :])
                self._submit(request, data[request.start : request.end], 0)
            return
        framing = ChunkedBody(submitter.max_length) if chunked else SizedBody(size)
        self._body = IncomingBody(framing, submitter.memory, self)
        self._receive(self._body, data[request.start :])

    def _begin_reply(self, request: FastPathRequest, data: bytes) -> None:
        """Prepare an answer that does not depend on a body: what follows is the next request."""
        self._head = data[: request.start]
        if not request.has_body:
            self._note_last(request)
            if len(data) > request.start:
                self._keep_rest(data[request.start :])

    def _refuse_unread(self, problem: Problem, request: FastPathRequest, data: bytes) -> None:
        """Refuse a request before its body is read."""
        self._begin_reply(request, data)
        self._refuse(problem, unread_body=request.has_body)

    def _note_last(self, request: FastPathRequest) -> None:
        """Note whether the client sends nothing after this request, which is complete."""
        self._stream.client_closes = request.special is not None and request.special.closes

    # --- bytes behind the current request --------------------------------------------------------

    def _keep_rest(self, rest: bytes) -> None:
        """Keep the bytes behind the current request.

        They count as memory of requests. If there is none, the current answer is the last one: a
        client may repeat requests without an answer (RFC 9112, section 9.3.2).
        """
        if not self._last and self._fast_path.submitter.memory.try_acquire(len(rest)):
            self._rest, self._rest_charge = rest, len(rest)
        else:
            self._last = True

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
            # In a pass of its own, as other connections that have input.
            self._awaits = TURN
            self._fast_path.call_soon(self._resume)
        else:
            self._awaits = INPUT
            self._poll(select.EPOLLIN)

    # --- bodies --------------------------------------------------------------------------------

    def _read_body(self, body: IncomingBody) -> None:
        data = self._stream.receive_now(body.framing.read_bytes)
        if data:
            self._receive(body, data)
        elif data is not None:
            # The client closed within the body: the received part is dropped.
            self._send_problem(body.framing.ended_early())

    def _receive(self, body: IncomingBody, data: bytes) -> None:
        """Add received bytes to the body, and go on."""
        before = body.received
        try:
            used = body.framing.feed(data)
        except Problem as problem:
            self._send_problem(problem)
            return
        finally:
            self._fast_path.requests.body_bytes += body.received - before
        if used < len(data):
            if body.framing.complete:
                self._keep_rest(data[used:])
            else:
                self._rest = data[used:]
        self._advance(body)

    def _advance(self, body: IncomingBody) -> None:
        """Submit a complete body; else wait for memory, for a turn, or for more input."""
        acquired = body.acquire()
        if acquired and body.framing.complete:
            self._submit_body(body)
            return
        if not body.timed:
            body.timed = True
            due = self._stream.state.due
            self._stream.start_body_timeout(due, self._on_request_timeout, self._count_received)
        if not acquired:
            self._awaits = TURN
            self._poll(0)
        elif self._rest:
            self._awaits = TURN
            self._fast_path.call_soon(self._resume)
        else:
            self._awaits = INPUT
            self._invite(body)
            self._poll(select.EPOLLIN, bulk=body.framing.bulk)

    def _invite(self, body: IncomingBody) -> None:
        """Send the 100 for which the client may wait."""
        special = None if self._request is None else self._request.special
        if special is not None and special.expects and not body.invited:
            body.invited = True
            if not self._stream.transport.send_now(CONTINUE):
                raise trio.BrokenResourceError("the client reads no answers")

    def on_memory(self) -> None:
        """Continue soon: the body has acquired its memory."""
        # In a pass of its own: the memory of one large body is enough for hundreds of small ones.
        self._fast_path.call_soon(self._resume)

    def on_body_refused(self, problem: Problem) -> None:
        """Refuse the request: its body arrives slowly, or there is no memory for it."""
        self._run_guarded(self._send_problem, problem)

    def _resume(self) -> None:
        """Continue after a wait, unless the request has ended in the meantime."""
        if self._awaits == TURN and not self._left:
            self._awaits = INPUT
            self._run_guarded(self._process_rest)
            self.read_pending()

    def _process_rest(self) -> None:
        """Process received bytes: of the body, if there is one, else of the next request."""
        body = self._body
        if body is None:
            rest = self._release_rest()
            self._process(rest, rest)
        elif self._rest and not body.framing.complete:
            rest, self._rest = self._rest, b""
            self._receive(body, rest)
        else:
            self._advance(body)

    def _drop_body(self) -> None:
        """Drop the body of the request, and release its memory."""
        body, self._body = self._body, None
        if body is not None:
            if body.timed:
                self._stream.stop_body_timeout()
            body.release()
            self._release_rest()
        charge, self._charge = self._charge, 0
        if charge:
            self._fast_path.submitter.memory.release(charge)

    def _drop_input(self) -> None:
        """Drop all input; a submitted body is still in use."""
        if self._awaits != COMMIT:
            self._drop_body()
        self._release_rest()

    def _count_received(self) -> int:
        """Return the received bytes of a request with an incomplete body."""
        return len(self._head) + (0 if self._body is None else self._body.progress())

    def _on_request_timeout(self) -> None:
        self._run_guarded(self._send_problem, self._fast_path.submitter.timeout_problem())

    # --- submitting ----------------------------------------------------------------------------

    def _submit_body(self, body: IncomingBody) -> None:
        request = self._request
        data = body.finish()
        self._body = None
        self._charge = body.charge
        if body.timed:
            self._stream.stop_body_timeout()
        if request is not None:
            self._submit(request, data, 0)

    def _submit(self, request: FastPathRequest, data: bytes | bytearray, start: int) -> None:
        self._awaits = COMMIT
        if self._last:
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
        fast_path = self._fast_path
        fast_path.unanswered += 1
        try:
            fast_path.submitter.submit(
                request.headers, data, start, self.on_outcome, self._client_address, self._name
            )
        except Problem as problem:
            fast_path.unanswered -= 1
            self._refuse(problem)
            if self._buffers:
                # A deferred request has been refused: no event of the socket reports what TLS has.
                fast_path.call_soon(self.read_pending)
