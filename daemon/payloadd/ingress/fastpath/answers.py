"""The bytes of the answers of the fast path. No I/O."""

from __future__ import annotations

import time
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from payloadd.ingress.cors import Cors
    from payloadd.ingress.problem import Problem

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
"""The interim answer to a request with ``Expect: 100-continue`` (RFC 9110, section 10.1.1)."""
CLOSE: Final = b"connection: close\r\n"
KEEP: Final = b"connection: keep-alive\r\n"
"""The line without which an HTTP/1.0 client closes (RFC 9112, section 9.3)."""
_ACCEPTED_HEAD: Final = b"HTTP/1.1 202 Accepted\r\ncontent-type: application/json\r\ndate: %s\r\n"
_CREATED: Final = 201
_NO_CONTENT: Final = 204
_HEAD_END: Final = b"\r\n\r\n"


class FixedAnswer(NamedTuple):
    """A fixed answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    preflight: bool = False
    """Whether it answers a preflight of a browser, too (see ``Cors.preflight``)."""


class Answers:
    """Makes answers, with the headers of ``cors`` for browsers.

    ``origin`` is the header Origin of the request. ``connection`` is ``CLOSE``, ``KEEP`` or b"".
    """

    def __init__(self, cors: Cors | None) -> None:
        self._cors = cors
        self._second = -1
        self._date = ""
        self._accepted_head = self._created_head = b""

    def accepted(
        self,
        status: int,
        document: bytes,
        waited: int | None,
        origin: str | None,
        connection: bytes,
    ) -> bytes:
        """Return a 202, or a 201 after a wait of ``waited`` seconds (see ``Accepted``)."""
        second = int(time.time())
        if second != self._second:
            self._begin_second(second)
        head = self._created_head if status == _CREATED else self._accepted_head
        lines = connection
        if waited is not None:
            lines += b"preference-applied: wait=%d\r\n" % waited
        if self._cors is not None:
            lines += self._cors.lines(origin)
        return b"%s%scontent-length: %d\r\n\r\n%s" % (head, lines, len(document), document)

    def page(self, page: FixedAnswer, origin: str | None, connection: bytes) -> bytes:
        """Return a fixed answer."""
        self._begin_second(int(time.time()))
        status = HTTPStatus(page.status)
        headers = {**page.headers, "Date": self._date}
        if status != _NO_CONTENT:  # RFC 9110, section 8.6
            headers["Content-Length"] = str(len(page.body))
        if self._cors is not None:
            choose = self._cors.preflight if page.preflight else self._cors.headers
            headers.update(choose(origin))
        lines = "".join(f"{name}: {text}\r\n" for name, text in headers.items())
        head = f"HTTP/1.1 {page.status} {status.phrase}\r\n{lines}"
        return b"%b%b\r\n%b" % (head.encode("ascii"), connection, page.body)

    def problem(self, problem: Problem, origin: str | None, connection: bytes) -> bytes:
        """Return a refusal."""
        if self._cors is not None:
            problem.headers.update(self._cors.headers(origin))
        if connection == KEEP:
            problem.headers["Connection"] = "keep-alive"
        return problem.raw(closes=connection == CLOSE)

    def _begin_second(self, second: int) -> None:
        """Format what is the same in all answers of a second: the date was measurable."""
        self._second = second
        self._date = formatdate(second, usegmt=True)
        self._accepted_head = _ACCEPTED_HEAD % self._date.encode("ascii")
        self._created_head = self._accepted_head.replace(b"202 Accepted", b"201 Created", 1)


def without_body(answer: bytes) -> bytes:
    """Return the head of an answer: a HEAD gets no more (RFC 9110, section 9.3.2)."""
    return answer[: answer.find(_HEAD_END) + len(_HEAD_END)]
