"""The answers to the requests of one connection: made, counted and sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from payloadd.ingress.cors import origin_in
from payloadd.ingress.fastpath.answers import CLOSE, KEEP, FixedAnswer, without_body
from payloadd.ingress.refusal_log import describe
from payloadd.ingress.submission import closes_connection
from payloadd.observe.request_metrics import OTHER

if TYPE_CHECKING:
    from payloadd.ingress.fastpath.head import FastPathRequest
    from payloadd.ingress.fastpath.owner import Owner
    from payloadd.ingress.fastpath.targets import Reply
    from payloadd.ingress.problem import Problem
    from payloadd.ingress.server.client_stream import ClientStream


class Responder:
    """Answers the current request of a connection, which the connection sets.

    The methods that send an answer return False if there was no room for all of it. They raise
    ``trio.BrokenResourceError`` if the client has reset the connection.
    """

    __slots__ = ("_fast_path", "_stream", "began", "head", "last", "request")

    def __init__(self, fast_path: Owner, stream: ClientStream) -> None:
        self._fast_path = fast_path
        self._stream = stream
        self.request: FastPathRequest | None = None
        """The current request; None before its head is complete, and after its answer."""
        self.head = b""
        """The beginning of the request, for its log line."""
        self.began: float | None = None
        """When the head of a request with payloads was complete, by ``perf_counter``."""
        self.last = False
        """Whether the connection ends after the current answer."""

    def client_address(self) -> str | None:
        """Return the address of the client; None if the client is gone."""
        peer = self._stream.client_address
        request = self.request
        if request is None:
            return peer
        return self._fast_path.submitter.client_address(peer, request.headers)

    def accept(self, status: int, document: bytes, waited: int | None = None) -> bool:
        """Send a 202, or a 201 after a wait of ``waited`` seconds (see ``Accepted``)."""
        request = self.request
        origin = None if request is None else request.headers.origin
        closes = self.last or closes_connection(self._fast_path.health)
        connection = b""
        if closes or (request is not None and request.special is not None):
            connection = self._connection_line(closes=closes)
        answer = self._fast_path.answers.accepted(status, document, waited, origin, connection)
        return self._send(status, answer, closes=closes)

    def reply(self, reply: Reply, request: FastPathRequest) -> bool:
        """Answer a request whose body is not read."""
        if not isinstance(reply, FixedAnswer):
            return self.refuse(reply(), unread_body=request.has_body)
        closes = self._closes(unread_body=request.has_body)
        connection = self._connection_line(closes=closes)
        answer = self._fast_path.answers.page(reply, request.headers.origin, connection)
        return self._send(reply.status, self._shortened(answer), closes=closes)

    def refuse(self, problem: Problem, *, unread_body: bool) -> bool:
        """Refuse the request; ``unread_body``: see ``closes_connection``."""
        request = self.request
        self._fast_path.refusals.note(problem, self.client_address(), *describe(self.head))
        closes = self._closes(unread_body=unread_body)
        origin = None if request is None else request.headers.origin
        connection = self._connection_line(closes=closes)
        answer = self._fast_path.answers.problem(problem, origin, connection)
        return self._send(problem.status, self._shortened(answer), closes=closes)

    def refuse_head(self, problem: Problem, data: bytes) -> bool:
        """Refuse ``data``, which do not begin with a valid head; what follows cannot be read."""
        self.began = None
        self._fast_path.refusals.note(problem, self._stream.client_address)
        answer = self._fast_path.answers.problem(problem, origin_in(data), CLOSE)
        return self._send(problem.status, answer, closes=True)

    def _closes(self, *, unread_body: bool) -> bool:
        """Return whether the connection ends after the current answer."""
        return self.last or closes_connection(self._fast_path.health, unread_body=unread_body)

    def _connection_line(self, *, closes: bool) -> bytes:
        """Return the header Connection of the current answer as a line, b"" for none."""
        special = None if self.request is None else self.request.special
        if closes:
            return CLOSE
        return KEEP if special is not None and special.keeps else b""

    def _shortened(self, answer: bytes) -> bytes:
        """Return an answer without its body if the request must not get one."""
        special = None if self.request is None else self.request.special
        return without_body(answer) if special is not None and special.without_body else answer

    def _send(self, status: int, answer: bytes, *, closes: bool) -> bool:
        """Count and send an answer."""
        route = OTHER if self.request is None else self.request.route
        self._fast_path.requests.count(status, route, self.began)
        self.request = None
        self.head = b""
        return self._stream.send_now(answer, closes=closes)
