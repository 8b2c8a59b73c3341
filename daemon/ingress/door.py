"""What a POST of payloads comes to, whichever way it came in.

The Quart handler and the plain lane both end here, so what one of them takes the other
takes, and refuses for the same reason.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from daemon.errors import RefusedError, TooLargeError
from daemon.ingress import body
from daemon.ingress.problem import Problem, refused
from daemon.logs import get_logger

if TYPE_CHECKING:
    from daemon.config import Settings
    from daemon.health import Health
    from daemon.pipeline.intake import Buffer, Done, Intake, Receipt

log = get_logger(__name__)

# Errors that can be known before the body has been read. A connection on which the rest of a
# body may still come is of no use for another request.
_EARLY: Final = frozenset({404, 405, 408, 413, 415})
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")


class PostHeaders(NamedTuple):
    """The headers that a POST goes by, None where there is none; one that came twice is joined."""

    content_type: str | None
    content_encoding: str | None
    idempotency_key: str | None


class Door:
    """Takes bodies to the pipeline."""

    def __init__(self, intake: Intake, health: Health, settings: Settings) -> None:
        self._intake = intake
        self._health = health
        self._durable = settings.durability == "disk"
        self.max_length = settings.max_length
        self.timeout = settings.request_timeout

    def check(self, headers: PostHeaders) -> None:
        """Raise the Problem that is known before the body is read, if there is one."""
        # What is on disk outlives the drain: nobody has to be turned away for a restart.
        draining = self._health.phase == "draining" and not self._durable
        if draining and (refusal := self._intake.refusal()):
            raise refused(refusal)
        body.check_headers(headers.content_type, headers.content_encoding)

    async def take(self, headers: PostHeaders, data: bytes) -> bytes:
        """Take one request, whole or not at all, and return the body of the 202.

        Raises Problem. ``check`` comes before.
        """
        try:
            return document(await self._intake.accept(*self._decode(headers, data)))
        except Exception as error:
            raise _problem(error) from error

    def submit(self, headers: PostHeaders, data: bytes | bytearray, start: int, done: Done) -> None:
        """Do the same without waiting: ``done`` hears what comes of it.

        The body begins at ``start`` of ``data``.

        Raises Problem for what is known at once; ``done`` is not called then.
        """
        try:
            self._intake.submit(*self._decode(headers, data, start), done)
        except Exception as error:
            raise _problem(error) from error

    def _decode(
        self, headers: PostHeaders, data: bytes | bytearray, start: int = 0
    ) -> tuple[list[Buffer], str | None]:
        content_type, content_encoding, key = headers
        payloads = body.decode(data, content_type, content_encoding, self.max_length, start)
        return payloads, _checked(key)

    def too_slow(self) -> Problem:
        """Return the 408 for a request that was not there in time."""
        return Problem("TIMEOUT", f"the request took longer than {self.timeout:g} seconds")


def document(receipt: Receipt) -> bytes:
    """Return the body of a 202."""
    return b'{"id":"%s","accepted":%d}' % (str(receipt.id).encode("ascii"), receipt.payloads)


def _problem(error: Exception) -> Problem:
    """Return the answer for what kept a request from being taken."""
    match error:
        case Problem():
            return error
        case RefusedError():
            return refused(error)
        case TooLargeError():
            return Problem("TOO_LARGE", str(error))
        case _:
            return bug(error)


def _checked(key: str | None) -> str | None:
    """Return an Idempotency-Key as it is; raises Problem MALFORMED."""
    if key is not None and not _KEY.fullmatch(key):
        raise Problem("MALFORMED", "Idempotency-Key: allowed are 1 to 255 visible ASCII characters")
    return key


def closes(health: Health, status: int, *, has_body: bool) -> bool:
    """Return whether an answer is the last one of its connection."""
    return health.phase == "draining" or (has_body and status in _EARLY)


def bug(error: Exception) -> Problem:
    """Log an error that nobody foresaw, and return the 500."""
    log.error("request_failed", exc_info=error)
    return Problem("INTERNAL", "this is a bug; the log has more")
