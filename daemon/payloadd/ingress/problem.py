"""Render errors as problem+json (RFC 9457).

A code is the stable name of a kind of problem; status, title and type follow from it. The type is a
URN of this project and not ``about:blank``: by the RFC, generic clients distinguish problems by
their type, and several problems have the status 503.
"""

from __future__ import annotations

from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from payloadd.escaping import escape_controls_in_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from payloadd.errors import RefusedError

CONTENT_TYPE: Final = "application/problem+json"


class Kind(NamedTuple):
    """The parts of a problem that follow from its code."""

    status: int
    title: str
    headers: tuple[str, ...] = ()
    """The headers that each answer with this code has."""


_RETRY: Final = ("Retry-After",)

# STARTING is used on the admin address only; INTERNAL is a bug of the daemon. The answers of each
# operation are in operations.py.
KINDS: Final[Mapping[str, Kind]] = {
    "MALFORMED": Kind(400, "The request cannot be parsed"),
    "UNAUTHENTICATED": Kind(401, "The request is not authenticated", ("WWW-Authenticate",)),
    "FORBIDDEN": Kind(403, "The token does not allow this"),
    "NOT_FOUND": Kind(404, "There is nothing at this path"),
    "UNKNOWN_STREAM": Kind(404, "There is no such stream"),
    "METHOD_NOT_ALLOWED": Kind(405, "The method is not allowed here", ("Allow",)),
    "TIMEOUT": Kind(408, "The request did not arrive in time"),
    "TOO_LARGE": Kind(413, "The request is too large"),
    "UNSUPPORTED_TYPE": Kind(415, "The content type is not supported", ("Accept-Post",)),
    "UNSUPPORTED_ENCODING": Kind(
        415, "The content encoding is not supported", ("Accept-Encoding",)
    ),
    "NOT_A_COLLECTION": Kind(422, "The document is not a collection of payloads"),
    "KEY_REUSED": Kind(422, "The Idempotency-Key was used for another request"),
    "RATE_LIMITED": Kind(429, "The client sends too many requests", _RETRY),
    "INTERNAL": Kind(500, "The daemon failed"),
    "STORE_REFUSED": Kind(502, "The store refuses the payloads"),
    "QUEUE_FULL": Kind(503, "The queue is full", _RETRY),
    "JOURNAL_FULL": Kind(503, "The journal is full", _RETRY),
    "DISK_ERROR": Kind(503, "The disk failed", _RETRY),
    "STORE_UNAVAILABLE": Kind(503, "The store does not work", _RETRY),
    "BUSY": Kind(503, "The daemon is busy", _RETRY),
    "DRAINING": Kind(503, "The daemon is shutting down", _RETRY),
    "STARTING": Kind(503, "The daemon is starting", _RETRY),
}


class Problem(Exception):  # noqa: N818 - the term of RFC 9457
    """An error that is the answer to a request.

    ``headers`` are sent with the answer; ``members`` are additional members of the document.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.status, self.title, _ = KINDS[code]
        self.headers: dict[str, str] = dict(headers or {})
        self.members: dict[str, object] = dict(members or {})

    def document(self) -> bytes:
        """Return the body of the answer, invisible characters escaped."""
        document = msgspec.json.encode(
            {
                "type": problem_type(self.code),
                "title": self.title,
                "status": self.status,
                "detail": self.detail,
                "code": self.code,
                **self.members,
            }
        )
        return escape_controls_in_json(document)

    def raw(self, *, closes: bool = True) -> bytes:
        """Return a whole HTTP/1.1 answer; ``closes``: the connection closes after it."""
        body = self.document()
        headers = {
            **self.headers,
            "Content-Type": CONTENT_TYPE,
            "Content-Length": str(len(body)),
            "Date": formatdate(usegmt=True),
        }
        if closes:
            headers["Connection"] = "close"
        head = f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return head.encode("ascii") + b"\r\n" + body


def problem_type(code: str) -> str:
    """Return the member ``type`` of the problems with a code."""
    return "urn:payloadd:problem:" + code.lower().replace("_", "-")


def refusal_problem(error: RefusedError, members: Mapping[str, object] | None = None) -> Problem:
    """Return the 503 for a request that the pipeline refused, with Retry-After in whole seconds."""
    headers = {"Retry-After": str(error.retry_after)}
    return Problem(error.code, error.detail, headers, members)


def too_large(max_length: int, when: str = "") -> Problem:
    """Return the 413 for a body of more than ``max_length`` bytes."""
    return Problem("TOO_LARGE", f"the body is larger than {max_length} bytes{when} (MAX_LENGTH)")


def too_many(max_payloads: int) -> Problem:
    """Return the 413 for a request of more than ``max_payloads`` payloads."""
    detail = f"the request has more than {max_payloads} payloads (MAX_PAYLOADS)"
    return Problem("TOO_LARGE", detail)


def not_found(paths: Iterable[str]) -> Problem:
    """Return the 404 for an unknown path; ``paths`` are the known ones."""
    return Problem("NOT_FOUND", f"unknown path; known are {', '.join(paths)}")


def method_not_allowed(allowed: str) -> Problem:
    """Return the 405 for a path that has only the methods ``allowed``, separated by commas."""
    return Problem("METHOD_NOT_ALLOWED", f"allowed methods: {allowed}", {"Allow": allowed})


def not_http() -> Problem:
    """Return the 400 for input that is not HTTP, or that two parsers might read differently."""
    return Problem("MALFORMED", "the request is not HTTP")


def head_too_large() -> Problem:
    """Return the 400 for a head of more bytes than are read."""
    return Problem("MALFORMED", "the request's head is too large")


def problem_for_status(status: int) -> Problem:
    """Return an answer with a body instead of an empty one of Hypercorn.

    Hypercorn answers without a body to input that it cannot parse.
    """
    if status == 500:  # noqa: PLR2004 - an app that ended without an answer
        return Problem("INTERNAL", "the request was not answered")
    if status == 431:  # noqa: PLR2004 - Request Header Fields Too Large
        return head_too_large()
    return not_http()
