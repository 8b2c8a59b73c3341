"""One connection in the lane for plain requests: what has come of a request, and its answer.

Its methods are called from the event loop and never wait. A request goes from bytes to a head,
to a body, to the door; the answer comes by a call from the commit that made it durable.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final, TypeVarTuple

import trio

from daemon.errors import RefusedError
from daemon.ingress.blame import report
from daemon.ingress.door import closes, document
from daemon.ingress.head import may_become_plain, parse
from daemon.ingress.problem import Problem, refused
from daemon.ingress.stream import nothing

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemon.ingress.head import PlainRequest
    from daemon.ingress.plain import PlainLane
    from daemon.ingress.stream import ClientStream
    from daemon.pipeline.intake import Receipt

Ts = TypeVarTuple("Ts")

_HEAD_BYTES: Final = 120 * 2**10
"""What a read takes: a POST of 64 KiB with its head, and no more than malloc(3) has at hand."""
_BODY_BYTES: Final = 262_144


class PlainConnection:
    """A connection that has entered ``lane``; ``leave`` is called when it has to go elsewhere."""

    def __init__(
        self, lane: PlainLane, stream: ClientStream, leave: Callable[[ClientStream], object]
    ) -> None:
        self._lane = lane
        self._stream = stream
        self._leave = leave
        self._fd = stream.socket.fileno()
        self._head = b""
        """What came of a head, or the whole head of a request whose body is on its way."""
        self._body = bytearray()
        self._request: PlainRequest | None = None
        self._due = inf
        self._waits = False  # for the pipeline to take the request
        self._listens = True
        self._gone = False
        lane.listen(self._fd, self)
        stream.on_end = self._go

    def readable(self) -> None:
        """Take what came."""
        if self._waits:
            # It says more before it has its answer: that has time.
            self._ignore()
        else:
            self._guard(self._read)

    def done(self, outcome: Receipt | RefusedError) -> None:
        """Answer the request that waited; see ``Done``."""
        if self._stream.socket.fileno() < 0:
            return  # the drain's patience was over before the disk answered
        self._waits = False
        self._guard(self._conclude, outcome)
        self.read_pending()

    def read_pending(self) -> None:
        """Take what nobody announces: TLS may hold more, or the end, behind what was read."""
        if self._stream.pending and not (self._waits or self._gone):
            self._guard(self._read)

    def _guard(self, step: Callable[[*Ts], object], *arguments: *Ts) -> None:
        """Take a step; a client that is gone, or a bug, ends this connection and no other."""
        try:
            step(*arguments)
        except trio.BrokenResourceError:
            self._go()
        except Exception as error:  # noqa: BLE001 - it is logged
            report(ExceptionGroup("in the plain lane", [error]))
            self._go()

    # --- in ------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Take what came; with TLS there may be more that nobody announces."""
        while True:
            if self._request is None:
                self._read_head()
            else:
                self._read_body(self._request)
            if self._waits or self._gone or not self._stream.pending:
                return

    def _read_head(self) -> None:
        more = self._stream.receive_now(_HEAD_BYTES)
        if more is None:
            return
        data = self._head + more if self._head else more
        if not data:
            self._go()
            return
        if more and may_become_plain(data):
            self._stream.clock.heard(more)
            self._head = data
            return
        request = parse(data, self._lane.door.max_length)
        if request is None or len(data) > request.end:
            self._stream.clock.heard(more)
            self._hand_over(data)
            return
        self._begin(request, data)

    def _begin(self, request: PlainRequest, data: bytes) -> None:
        """Take a request whose head is complete."""
        self._stream.request_begins()
        self._request = request
        try:
            self._lane.door.check(request.headers)
        except Problem as problem:
            self._refuse(problem)
            return
        if len(data) == request.end:
            self._submit(request, data, request.start)
            return
        self._head = data[: request.start]
        # It grows with what comes: who only says a length spends none of our memory. No list:
        # a client that sends byte by byte would have a page of memory for each.
        self._body = bytearray(data[request.start :])
        self._due = self._stream.clock.due
        self._stream.body_is_due(self._due, self._too_slow, self._received)

    def _read_body(self, request: PlainRequest) -> None:
        # What comes behind it stays in the socket.
        missing = request.end - request.start - len(self._body)
        data = self._stream.receive_now(min(missing, _BODY_BYTES))
        if data is None:
            return
        self._body += data
        if not data:
            self._hand_over(self._head + self._body, self._due)
            return
        if len(data) == missing:
            body, self._body = self._body, bytearray()
            self._stream.body_is_there()
            self._submit(request, body, 0)

    def _submit(self, request: PlainRequest, data: bytes | bytearray, start: int) -> None:
        self._waits = True
        try:
            self._lane.door.submit(request.headers, data, start, self.done)
        except Problem as problem:
            self._waits = False
            self._refuse(problem)

    def _received(self) -> int:
        """Return how many bytes of a request have come whose body is not complete."""
        return len(self._head) + len(self._body)

    def _too_slow(self) -> None:
        self._stream.body_is_there()
        self._guard(self._refuse, self._lane.door.too_slow())

    # --- out -----------------------------------------------------------------------------------

    def _conclude(self, outcome: Receipt | RefusedError) -> None:
        if isinstance(outcome, RefusedError):
            self._refuse(refused(outcome))
        else:
            self._accept(document(outcome))

    def _accept(self, accepted: bytes) -> None:
        last = closes(self._lane.health, 202, has_body=True)
        answer = b"%s%scontent-length: %d\r\n\r\n%s" % (
            self._lane.head(),
            b"connection: close\r\n" if last else b"",
            len(accepted),
            accepted,
        )
        self._answer(202, answer, closes=last)

    def _refuse(self, problem: Problem) -> None:
        has_body = self._request is not None and self._request.end > self._request.start
        last = closes(self._lane.health, problem.status, has_body=has_body)
        self._answer(problem.status, problem.raw(closes=last), closes=last)

    def _answer(self, status: int, answer: bytes, *, closes: bool) -> None:
        self._lane.count(status)
        self._request = None
        self._head = b""
        sent = self._stream.send_now(answer, closes=closes)
        self._stream.request_ends()
        if self._gone:
            return
        if not sent:
            self._hand_over(b"")
        elif not self._listens:
            self._lane.listen(self._fd, self)
            self._listens = True

    # --- away ----------------------------------------------------------------------------------

    def _ignore(self) -> None:
        if self._listens:
            self._listens = False
            self._lane.ignore(self._fd)

    def _hand_over(self, data: bytes, due: float | None = None) -> None:
        """Let Hypercorn go on, with what was read in front of the stream."""
        self._stream.hand_over(data, due)
        self._go()

    def _go(self) -> None:
        """Leave the lane."""
        if not self._gone:
            self._gone = True
            self._ignore()
            self._stream.on_end = nothing
            self._leave(self._stream)
