"""One connection on the fast path: its requests and their answers.

The event loop calls the methods, and no method waits. A request is read as a head and a body and is
then submitted. The commit that makes it durable calls back, and the callback sends the answer.
"""

from __future__ import annotations

from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, TypeVarTuple

import trio

from payloadd.ingress.fastpath import details
from payloadd.ingress.large_bodies import busy_error
from payloadd.ingress.preferences import receipt_document
from payloadd.ingress.problem import Problem, refusal_problem
from payloadd.ingress.refusal_log import describe
from payloadd.ingress.server.client_stream import do_nothing
from payloadd.ingress.server.connection_errors import log_broken_connection
from payloadd.ingress.submission import as_problem, closes_connection
from payloadd.observe.request_metrics import PAYLOAD, PAYLOADS
from payloadd.pipeline.intake import Receipt

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.ingress.fastpath.head import FastPathRequest
    from payloadd.ingress.fastpath.owner import Owner
    from payloadd.ingress.preferences import Accepted
    from payloadd.ingress.request_memory import Waiter
    from payloadd.ingress.server.client_stream import ClientStream
    from payloadd.ingress.submission import SubmissionOutcome

Ts = TypeVarTuple("Ts")


class FastPathConnection:
    """One connection on the fast path; ``on_leave`` is called when it leaves the fast path."""

    decoded_immediately: int = 80 * 2**10
    """Bytes of a body up to which it is decoded as soon as it is complete; larger bodies are
    deferred. The bound is above 64 KiB: deferred bodies are in memory together, and then the
    allocator gets the memory of each one from the system, which was measurable."""

    def __init__(
        self, fast_path: Owner, stream: ClientStream, on_leave: Callable[[ClientStream], object]
    ) -> None:
        self._fast_path = fast_path
        self._stream = stream
        self._on_leave = on_leave
        self._fd = stream.socket.fileno()
        self._buffers = stream.buffers
        self._head = b""
        """The received part of an incomplete head, or the beginning of the current request."""
        self._body = bytearray()
        self._request: FastPathRequest | None = None
        self._began = 0.0
        """When the head of the request was complete, by ``perf_counter``."""
        heads = fast_path.heads
        self._may_become_plain = heads.may_become_plain
        self._parse = heads.parse_with_secret if fast_path.submitter.needs_tokens else heads.parse
        self._name: str | None = None
        """The name of the request's client."""
        self._charge = 0
        """Bytes of memory that the request has acquired (see ``request_memory.py``)."""
        self._waiter: Waiter | None = None
        """The request's entry in the queue for memory."""
        self._watched = False
        """Whether the request memory watches how fast the body arrives."""
        self.since = 0.0
        """Time at which the body got its memory, on trio's clock."""
        self._submitted = False
        """Whether the request is submitted and not answered yet."""
        self._registered = True
        self._bulk = False
        """Whether a body is being received that takes more than one read."""
        self._left = False
        fast_path.register(self._fd, self)
        stream.on_end = self._leave

    def on_readable(self) -> None:
        """Read the input of the socket."""
        if self._submitted:
            # The client sends the next request before it has the answer: read it afterwards.
            self._unregister()
        elif not (self._left or self._waiter):  # either may have changed in the same pass
            self._run_guarded(self._read)

    def on_outcome(self, outcome: SubmissionOutcome) -> None:
        """Answer the submitted request; see ``OutcomeCallback``."""
        self._fast_path.unanswered -= 1
        charge, self._charge = self._charge, 0
        self._fast_path.submitter.memory.release(charge)
        if self._stream.socket.fileno() < 0:
            return  # the drain's deadline closed the connection before the disk answered
        request = self._request
        if request is not None and request.headers.wait and isinstance(outcome, Receipt):
            # The connection stays submitted: its next request is read after this answer.
            self._fast_path.submitter.waits.begin(outcome, request.headers.wait, self._on_upload)
            return
        self._submitted = False
        self._run_guarded(self._send_outcome, outcome)
        if self._buffers:
            self.read_pending()

    def _on_upload(self, answer: Accepted) -> None:
        """Answer the request that has waited for its upload."""
        if self._stream.socket.fileno() < 0:
            return  # closed meanwhile, as above
        self._submitted = False
        self._run_guarded(self._accept, *answer)
        if self._buffers:
            self.read_pending()

    def read_pending(self) -> None:
        """Read input that the kernel does not report: TLS may have decrypted more than was read."""
        if self._stream.pending and not (self._submitted or self._waiter or self._left):
            self._run_guarded(self._read)

    def _run_guarded(self, step: Callable[[*Ts], object], *arguments: *Ts) -> None:
        """Call ``step``; a lost client, or a bug, ends this connection and no other."""
        try:
            step(*arguments)
        except trio.BrokenResourceError:
            self._leave()
        except Exception as error:  # noqa: BLE001 - it is logged
            log_broken_connection(ExceptionGroup("on the fast path", [error]))
            self._leave()

    # --- receiving -----------------------------------------------------------------------------

    def _read(self) -> None:
        """Read once, and read again soon if TLS holds more input."""
        if self._request is None:
            self._read_head()
        else:
            self._read_body(self._request)
        # In a pass of its own: a client that sends quickly must not keep the others waiting.
        if self._buffers and self._stream.pending:
            self._fast_path.call_soon(self.read_pending)

    def _read_head(self) -> None:
        more = self._stream.receive_now(details.FIRST_READ_BYTES)
        if more is None:
            return
        data = self._head + more if self._head else more
        if not data:
            self._leave()
            return
        if more and self._may_become_plain(data):
            self._stream.state.note_received(more)
            self._head = self._stream.head = data
            return
        request = self._parse(data)
        if request is None or len(data) > request.end:
            self._stream.state.note_received(more)
            self._pass_to_hypercorn(data)
            return
        self._begin_request(request, data)

    def _begin_request(self, request: FastPathRequest, data: bytes) -> None:
        """Check a request whose head is complete, and receive its body."""
        self._stream.request_begins()
        self._began = perf_counter()
        self._request = request
        self._head = data[: details.KEPT_HEAD_BYTES]
        submitter = self._fast_path.submitter
        try:
            self._name = submitter.check(
                request.headers, request.token, self._stream.certificate_name, self._client_address
            )
        except Problem as problem:
            self._refuse(problem, unread_body=request.end > request.start)
            return
        size = request.end - request.start
        granted = submitter.memory.try_acquire(size)
        self._charge = size if granted else 0
        if granted and len(data) == request.end:
            self._fast_path.requests.body_bytes += size
            self._submit(request, data, request.start)
            return
        # The buffer grows with the input: a client that only announces a length uses no memory. It
        # is no list of pieces: a client that sends single bytes would use a page for each.
        self._body = bytearray(data[request.start :])
        self._fast_path.requests.body_bytes += len(self._body)
        self._stream.start_body_timeout(
            self._stream.state.due, self._on_request_timeout, self._count_received
        )
        if granted:
            self._start_receiving()
            self._register(bulk=True)
        else:
            # The received part is no more than one read; the rest stays in the socket.
            self._unregister()
            granted_later, refused_later = self._on_memory_granted, self._on_memory_refused
            self._waiter = submitter.memory.enqueue(size, granted_later, refused_later)

    def _on_memory_granted(self) -> None:
        """Record that the request has acquired its memory, and continue it soon."""
        self._waiter = None
        if self._request is not None:
            self._charge = self._request.end - self._request.start
        self._start_receiving()
        # In a pass of its own: the memory of one large body is enough for hundreds of small ones.
        self._fast_path.call_soon(self._continue_with_memory)

    def _continue_with_memory(self) -> None:
        """Receive the body, unless the request has ended or was submitted in the meantime."""
        if self._request is not None and not (self._submitted or self._left):
            self._run_guarded(self._resume, self._request)
            self.read_pending()

    def _resume(self, request: FastPathRequest) -> None:
        self._register(bulk=True)
        if len(self._body) == self._charge:
            self._submit_body(request)

    def _on_memory_refused(self) -> None:
        """Refuse a request that has waited too long for memory."""
        self._waiter = None
        self._stream.stop_body_timeout()
        self._run_guarded(self._send_problem, refusal_problem(busy_error(details.NO_MEMORY)))

    def _start_receiving(self) -> None:
        self.since = trio.current_time()
        self._watched = True
        self._fast_path.submitter.memory.watch(self)

    @property
    def received(self) -> int:
        """Bytes of the body received so far."""
        return len(self._body)

    def end_slow(self) -> None:
        """Refuse the request: its body arrives slowly, and other requests wait for memory."""
        self._stream.stop_body_timeout()
        self._run_guarded(self._send_problem, refusal_problem(busy_error(details.TOO_SLOW)))

    def _release_memory(self) -> None:
        charge, self._charge = self._charge, 0
        if charge:
            self._fast_path.submitter.memory.release(charge)
        if self._waiter is not None:
            self._fast_path.submitter.memory.cancel_wait(self._waiter)
            self._waiter = None
        self._unwatch()

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._fast_path.submitter.memory.unwatch(self)

    def _read_body(self, request: FastPathRequest) -> None:
        # The bytes behind the body stay in the socket.
        missing = request.end - request.start - len(self._body)
        data = self._stream.receive_now(min(missing, details.BODY_READ_BYTES))
        if data is None:
            return
        if not data:
            # The client closed within the body: the received part is dropped.
            self._stream.stop_body_timeout()
            self._send_problem(Problem("MALFORMED", details.SHORT_BODY))
            return
        self._body += data
        self._fast_path.requests.body_bytes += len(data)
        if len(data) == missing:
            self._submit_body(request)

    def _submit_body(self, request: FastPathRequest) -> None:
        body, self._body = self._body, bytearray()
        self._stream.stop_body_timeout()
        self._unwatch()
        self._submit(request, body, 0)

    def _submit(self, request: FastPathRequest, data: bytes | bytearray, start: int) -> None:
        self._submitted = True
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
            self._submitted = False
            self._refuse(problem)

    def _count_received(self) -> int:
        """Return the received bytes of a request with an incomplete body.

        A request that waits for memory counts as faster than any other.
        """
        return len(self._head) + len(self._body) if self._waiter is None else details.FASTEST

    def _client_address(self) -> str | None:
        peer = self._stream.client_address
        request = self._request
        if request is None:
            return peer
        return self._fast_path.submitter.client_address(peer, request.headers)

    def _on_request_timeout(self) -> None:
        self._stream.stop_body_timeout()
        self._run_guarded(self._send_problem, self._fast_path.submitter.timeout_problem())

    # --- answering -----------------------------------------------------------------------------

    def _send_outcome(self, outcome: SubmissionOutcome) -> None:
        if isinstance(outcome, Receipt):
            self._accept(202, receipt_document(outcome))
        else:
            self._refuse(as_problem(outcome))

    def _accept(self, status: int, document: bytes, waited: int | None = None) -> None:
        last = closes_connection(self._fast_path.health)
        lines = b"connection: close\r\n" if last else b""
        if waited is not None:
            lines += b"preference-applied: wait=%d\r\n" % waited
        cors = self._fast_path.submitter.cors
        if cors is not None:
            lines += cors.lines(self._origin)
        head = self._fast_path.accepted_head(status)
        answer = b"%s%scontent-length: %d\r\n\r\n%s" % (head, lines, len(document), document)
        self._send_answer(status, answer, closes=last)

    @property
    def _origin(self) -> str | None:
        return None if self._request is None else self._request.headers.origin

    def _refuse(self, problem: Problem, *, unread_body: bool = False) -> None:
        last = closes_connection(self._fast_path.health, unread_body=unread_body)
        self._send_problem(problem, last)

    def _send_problem(self, problem: Problem, last: bool = True) -> None:  # noqa: FBT001, FBT002
        """Refuse a request; after an incomplete body the connection cannot be used again."""
        self._fast_path.refusals.note(problem, self._client_address(), *describe(self._head))
        self._body = bytearray()
        self._release_memory()
        cors = self._fast_path.submitter.cors
        if cors is not None:
            problem.headers.update(cors.headers(self._origin))
        self._send_answer(problem.status, problem.raw(closes=last), closes=last)

    def _send_answer(self, status: int, answer: bytes, *, closes: bool) -> None:
        route = PAYLOAD if self._request and self._request.headers.document else PAYLOADS
        self._fast_path.requests.count(status, route, self._began)
        self._request = None
        self._head = b""
        sent = self._stream.send_now(answer, closes=closes)
        self._stream.request_ends()
        if self._left:
            return
        if not sent:
            self._pass_to_hypercorn(b"")
        elif self._bulk or not self._registered:
            self._register()

    # --- polling and leaving -------------------------------------------------------------------

    def _register(self, *, bulk: bool = False) -> None:
        if self._bulk is not bulk:
            self._unregister()
            self._bulk = bulk
        if not (self._registered or self._left):
            self._fast_path.register(self._fd, self, bulk=bulk)
            self._registered = True

    def _unregister(self) -> None:
        if self._registered:
            self._registered = False
            self._fast_path.unregister(self._fd, bulk=self._bulk)

    def _pass_to_hypercorn(self, data: bytes) -> None:
        """Leave the connection to Hypercorn, which reads ``data`` before the socket."""
        self._stream.pass_to_hypercorn(data)
        self._leave()

    def _leave(self) -> None:
        """Leave the fast path."""
        if not self._left:
            self._left = True
            self._body = bytearray()
            if not self._submitted:
                self._release_memory()
            self._unregister()
            self._stream.on_end = do_nothing
            self._on_leave(self._stream)
