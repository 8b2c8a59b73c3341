"""What a POST of payloads comes to, whichever way it came in.

The Quart handler and the plain lane both end here, so what one of them takes the other
takes, and refuses for the same reason.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from daemon.errors import RefusedError, TooLargeError
from daemon.ingress import body
from daemon.ingress.problem import Problem, refused

if TYPE_CHECKING:
    from daemon.config import Settings
    from daemon.health import Health
    from daemon.pipeline.intake import Intake
    from daemon.pipeline.operations import Receipt

_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")


@dataclass(frozen=True, slots=True)
class PostHeaders:
    """The headers that a POST goes by, None where there is none; one that came twice is joined."""

    content_type: str | None
    content_encoding: str | None
    idempotency_key: str | None


class Door:
    """Takes bodies to the pipeline."""

    def __init__(self, intake: Intake, health: Health, settings: Settings) -> None:
        self._intake = intake
        self._health = health
        self.max_length = settings.max_length
        self.timeout = settings.request_timeout

    @property
    def closing(self) -> bool:
        """Whether the daemon drains: answers end their connections."""
        return self._health.phase == "draining"

    def check(self, headers: PostHeaders) -> None:
        """Raise the Problem that is known before the body is read, if there is one."""
        if self.closing and (refusal := self._intake.refusal()):
            raise refused(refusal)
        body.check_headers(headers.content_type, headers.content_encoding)
        key = headers.idempotency_key
        if key is not None and not _KEY.fullmatch(key):
            raise Problem(
                "MALFORMED", "Idempotency-Key: allowed are 1 to 255 visible ASCII characters"
            )

    def too_slow(self) -> Problem:
        """Return the 408 for a request that was not there in time."""
        return Problem("TIMEOUT", f"the request took longer than {self.timeout:g} seconds")

    async def take(self, headers: PostHeaders, data: bytes) -> Receipt:
        """Take one request, whole or not at all; raises Problem. ``check`` comes before."""
        payloads = body.decode(
            data, headers.content_type, headers.content_encoding, self.max_length
        )
        try:
            return await self._intake.accept(payloads, headers.idempotency_key)
        except RefusedError as error:
            raise refused(error) from None
        except TooLargeError as error:
            raise Problem("TOO_LARGE", str(error)) from None


def accepted(receipt: Receipt) -> bytes:
    """Return the body of the 202."""
    return b'{"id":"%s","accepted":%d}' % (str(receipt.id).encode("ascii"), receipt.payloads)
