"""One connection in the lane for plain requests: what has come of a request, and its answer.

Its methods are called from the event loop and never wait. A request goes from bytes to a head,
to a body, to the door; the answer comes by a call from the commit that made it durable.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, TypeVarTuple

import trio

from payloadd.ingress.fastpath.head import may_become_plain, parse
from payloadd.ingress.large_bodies import busy
from payloadd.ingress.problem import Problem, refused
from payloadd.ingress.refusal_log import address_of_client, describe
from payloadd.ingress.server.client_stream import nothing
from payloadd.ingress.server.connection_errors import log_broken_connection
from payloadd.ingress.submission import as_problem, closes, document
from payloadd.pipeline.intake import Receipt

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.ingress.fastpath.head import FastPathRequest
    from payloadd.ingress.fastpath.owner import Owner
    from payloadd.ingress.request_memory import Waiter
    from payloadd.ingress.server.client_stream import ClientStream
    from payloadd.ingress.submission import SubmissionOutcome

Ts = TypeVarTuple("Ts")

_HEAD_BYTES: Final = 120 * 2**10
"""What a read takes: a POST of 64 KiB with its head, and no more than malloc(3) has at hand."""
_BODY_BYTES: Final = 262_144
_FASTEST: Final = 2**40
_DECODED_AT_ONCE: Final = 80 * 2**10
"""Bytes of a body that takes 0.7 ms at most; larger ones are deferred. To hold several bodies of
64 KiB at a time costs each of them half as much again: their memory comes from the system."""
_KEPT_HEAD: Final = 1024
"""What is kept of each request under way, for the log line of one that is refused."""

_NO_MEMORY: Final = "too many request bodies at once (MAX_REQUEST_BYTES); nothing was taken"
_TOO_SLOW: Final = (
    "the body came too slowly while others waited for memory (MAX_REQUEST_BYTES);"
    " nothing of it was taken"
)
_SHORT_BODY: Final = "the body is shorter than its Content-Length"


class FastPathConnection:
    """A connection on the fast path; ``leave`` is called when it has to go elsewhere."""

    def __init__(
        self, fast_path: Owner, stream: ClientStream, leave: Callable[[ClientStream], object]
    ) -> None:
        self._fast_path = fast_path
        self._stream = stream
        self._leave = leave
        self._fd = stream.socket.fileno()
        self._buffers = stream.buffers
        self._head = b""
        """What came of a head that is not complete, or the first of the request under way."""
        self._body = bytearray()
        self._request: FastPathRequest | None = None
        self._charge = 0
        """Bytes of memory that the request has taken (see ``request_memory.py``)."""
        self._waiter: Waiter | None = None
        """Where the request waits for its memory."""
        self._watched = False
        self.since = 0.0
        """When the body was let in, on trio's clock."""
        self._waits = False  # for the pipeline to take the request
        self._listens = True
        self._bulk = False
        """Whether it reads a body that takes more than one read."""
        self._gone = False
        fast_path.listen(self._fd, self)
        stream.on_end = self._go

    def readable(self) -> None:
        """Take what came."""
        if self._waits:
            # It says more before it has its answer: that has time.
            self._ignore()
        elif not (self._gone or self._waiter):  # which may have come about in the same turn
            self._guard(self._read)

    def done(self, outcome: SubmissionOutcome) -> None:
        """Answer the request that waited; see ``Done``."""
        self._fast_path.waiting -= 1
        charge, self._charge = self._charge, 0
        self._fast_path.submitter.memory.release(charge)
        if self._stream.socket.fileno() < 0:
            return  # the drain's patience was over before the disk answered
        self._waits = False
        self._guard(self._conclude, outcome)
        if self._buffers:
            self.read_pending()

    def read_pending(self) -> None:
        """Take what nobody announces: TLS may hold more, or the end, behind what was read."""
        if self._stream.pending and not (self._waits or self._waiter or self._gone):
            self._guard(self._read)

    def _guard(self, step: Callable[[*Ts], object], *arguments: *Ts) -> None:
        """Take a step; a client that is gone, or a bug, ends this connection and no other."""
        try:
            step(*arguments)
        except trio.BrokenResourceError:
            self._go()
        except Exception as error:  # noqa: BLE001 - it is logged
            log_broken_connection(ExceptionGroup("in the plain lane", [error]))
            self._go()

    # --- in ------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Take what came; with TLS there may be more that nobody announces."""
        if self._request is None:
            self._read_head()
        else:
            self._read_body(self._request)
        # In a turn of its own: a client that sends quickly is not the only one.
        if self._buffers and self._stream.pending:
            self._fast_path.come_back(self.read_pending)

    def _read_head(self) -> None:
        more = self._stream.receive_now(_HEAD_BYTES)
        if more is None:
            return
        data = self._head + more if self._head else more
        if not data:
            self._go()
            return
        if more and may_become_plain(data):
            self._stream.state.note_received(more)
            self._head = data
            return
        request = parse(data, self._fast_path.submitter.max_length)
        if request is None or len(data) > request.end:
            self._stream.state.note_received(more)
            self._hand_over(data)
            return
        self._begin(request, data)

    def _begin(self, request: FastPathRequest, data: bytes) -> None:
        """Take a request whose head is complete."""
        self._stream.request_begins()
        self._request = request
        self._head = data[:_KEPT_HEAD]
        try:
            self._fast_path.submitter.check(request.headers)
        except Problem as problem:
            self._refuse(problem)
            return
        size = request.end - request.start
        granted = self._fast_path.submitter.memory.take(size)
        self._charge = size if granted else 0
        if granted and len(data) == request.end:
            self._submit(request, data, request.start)
            return
        # It grows with what comes: who only says a length spends none of our memory. No list:
        # a client that sends byte by byte would have a page of memory for each.
        self._body = bytearray(data[request.start :])
        self._stream.body_is_due(self._stream.state.due, self._too_slow, self._received)
        if granted:
            self._let_in()
            self._listen(bulk=True)
        else:
            # What is there already is no more than one read; the rest stays in the socket.
            self._ignore()
            memory = self._fast_path.submitter.memory
            self._waiter = memory.wait(size, self._granted, self._not_granted)

    def _granted(self) -> None:
        """Note that a request which waited for its memory has it now."""
        self._waiter = None
        if self._request is not None:
            self._charge = self._request.end - self._request.start
        self._let_in()
        # In a turn of its own: what one large body gives back is enough for hundreds of small ones.
        self._fast_path.come_back(self._go_on)

    def _go_on(self) -> None:
        """Go on with a request that has its memory, unless it has ended or gone on meanwhile."""
        if self._request is not None and not (self._waits or self._gone):
            self._guard(self._resume, self._request)
            self.read_pending()

    def _resume(self, request: FastPathRequest) -> None:
        self._listen(bulk=True)
        if len(self._body) == self._charge:
            self._body_is_complete(request)

    def _not_granted(self) -> None:
        """Refuse a request that waited for memory in vain."""
        self._waiter = None
        self._stream.body_is_there()
        self._guard(self._end_with, refused(busy(_NO_MEMORY)))

    def _let_in(self) -> None:
        self.since = trio.current_time()
        self._watched = True
        self._fast_path.submitter.memory.watch(self)

    @property
    def received(self) -> int:
        """Bytes of the body that have come."""
        return len(self._body)

    def end_slow(self) -> None:
        """Refuse the request: others wait for its memory, and its body comes slowly."""
        self._stream.body_is_there()
        self._guard(self._end_with, refused(busy(_TOO_SLOW)))

    def _give_memory_back(self) -> None:
        charge, self._charge = self._charge, 0
        if charge:
            self._fast_path.submitter.memory.release(charge)
        if self._waiter is not None:
            self._fast_path.submitter.memory.forget(self._waiter)
            self._waiter = None
        self._unwatch()

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._fast_path.submitter.memory.unwatch(self)

    def _read_body(self, request: FastPathRequest) -> None:
        # What comes behind it stays in the socket.
        missing = request.end - request.start - len(self._body)
        data = self._stream.receive_now(min(missing, _BODY_BYTES))
        if data is None:
            return
        if not data:
            # It broke off: nothing more comes, and what came is dropped.
            self._stream.body_is_there()
            self._end_with(Problem("MALFORMED", _SHORT_BODY))
            return
        self._body += data
        if len(data) == missing:
            self._body_is_complete(request)

    def _body_is_complete(self, request: FastPathRequest) -> None:
        body, self._body = self._body, bytearray()
        self._stream.body_is_there()
        self._unwatch()
        self._submit(request, body, 0)

    def _submit(self, request: FastPathRequest, data: bytes | bytearray, start: int) -> None:
        self._waits = True
        # What a few compressed bytes stand for is not known: up to 1 ms of work, then the process.
        if len(data) - start <= _DECODED_AT_ONCE and request.headers.content_encoding is None:
            self._submit_now(request, data, start)
        else:
            submit = partial(self._submit_now, request, data, start)
            self._fast_path.defer(partial(self._guard, submit))

    def _submit_now(self, request: FastPathRequest, data: bytes | bytearray, start: int) -> None:
        self._fast_path.waiting += 1
        try:
            self._fast_path.submitter.submit(request.headers, data, start, self.done, self._client)
        except Problem as problem:
            self._fast_path.waiting -= 1
            self._waits = False
            self._refuse(problem)

    def _received(self) -> int:
        """Return how many bytes of a request have come whose body is not complete.

        A request that waits for memory counts as faster than any other.
        """
        return len(self._head) + len(self._body) if self._waiter is None else _FASTEST

    def _client(self) -> str | None:
        return address_of_client(self._stream.socket)

    def _too_slow(self) -> None:
        self._stream.body_is_there()
        self._guard(self._refuse, self._fast_path.submitter.too_slow())

    # --- out -----------------------------------------------------------------------------------

    def _conclude(self, outcome: SubmissionOutcome) -> None:
        if isinstance(outcome, Receipt):
            self._accept(document(outcome))
        else:
            self._refuse(as_problem(outcome))

    def _accept(self, accepted: bytes) -> None:
        last = closes(self._fast_path.health, 202, has_body=True)
        answer = b"%s%scontent-length: %d\r\n\r\n%s" % (
            self._fast_path.head(),
            b"connection: close\r\n" if last else b"",
            len(accepted),
            accepted,
        )
        self._answer(202, answer, closes=last)

    def _refuse(self, problem: Problem) -> None:
        has_body = self._request is not None and self._request.end > self._request.start
        last = closes(self._fast_path.health, problem.status, has_body=has_body)
        self._answer_with(problem, last=last)

    def _end_with(self, problem: Problem) -> None:
        """Refuse a request of whose body more may come: the connection is of no use then."""
        self._answer_with(problem, last=True)

    def _answer_with(self, problem: Problem, *, last: bool) -> None:
        client = address_of_client(self._stream.socket)
        self._fast_path.refusals.note(problem, client, *describe(self._head))
        self._body = bytearray()
        self._give_memory_back()
        self._answer(problem.status, problem.raw(closes=last), closes=last)

    def _answer(self, status: int, answer: bytes, *, closes: bool) -> None:
        self._fast_path.count(status)
        self._request = None
        self._head = b""
        sent = self._stream.send_now(answer, closes=closes)
        self._stream.request_ends()
        if self._gone:
            return
        if not sent:
            self._hand_over(b"")
        elif self._bulk or not self._listens:
            self._listen()

    # --- away ----------------------------------------------------------------------------------

    def _listen(self, *, bulk: bool = False) -> None:
        if self._bulk is not bulk:
            self._ignore()
            self._bulk = bulk
        if not (self._listens or self._gone):
            self._fast_path.listen(self._fd, self, bulk=bulk)
            self._listens = True

    def _ignore(self) -> None:
        if self._listens:
            self._listens = False
            self._fast_path.ignore(self._fd, bulk=self._bulk)

    def _hand_over(self, data: bytes) -> None:
        """Let Hypercorn go on, with what was read in front of the stream."""
        self._stream.hand_over(data)
        self._go()

    def _go(self) -> None:
        """Leave the lane."""
        if not self._gone:
            self._gone = True
            self._body = bytearray()
            if not self._waits:
                self._give_memory_back()
            self._ignore()
            self._stream.on_end = nothing
            self._leave(self._stream)
