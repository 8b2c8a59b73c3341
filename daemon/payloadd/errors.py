"""The exceptions that payloadd raises itself.

Exceptions of libraries are converted into these at one boundary each: the body decoder for JSON, a
store for S3 and the file system.
"""

from __future__ import annotations

import random
from enum import Enum
from typing import Final

JITTER: Final = random.Random()  # noqa: S311 - spreads retries of clients, protects no secret
"""Source of the random part of Retry-After; a test may seed it."""


class PayloaddError(Exception):
    """Base class of the exceptions below."""


class SettingsError(PayloaddError):
    """Settings are wrong; ``problems`` has one line for each wrong setting."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class RefusedError(PayloaddError):
    """The pipeline cannot accept a request now; nothing of the request was accepted.

    ``code`` is one of the documented codes of a 503, ``least_wait`` the whole seconds after which
    another attempt may succeed, at least 1.
    """

    def __init__(self, code: str, detail: str, least_wait: int) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.least_wait = max(1, least_wait)

    @property
    def retry_after(self) -> int:
        """Return seconds for one client: ``least_wait`` plus a random part of up to half of it.

        Each call returns a new number. All requests of a failed commit share this exception, and
        without the random part all their clients would retry in the same second.
        """
        return JITTER.randint(self.least_wait, self.least_wait + (self.least_wait + 1) // 2)


class KeyReusedError(RefusedError):
    """A request has the Idempotency-Key of another request; another attempt is refused too."""

    def __init__(self) -> None:
        detail = "this Idempotency-Key was used for other payloads; a new request needs a new key"
        super().__init__("KEY_REUSED", detail, 1)


class StoreRefusedError(RefusedError):
    """The store has refused the payloads of a request for good; another attempt is refused too.

    ``reason_code`` is the store's own name of the error.
    """

    def __init__(self, reason_code: str) -> None:
        detail = (
            f"the store refuses the object with these payloads for good ({reason_code}); the"
            " daemon keeps none of them"
        )
        super().__init__("STORE_REFUSED", detail, 1)


class UploadOutcome(Enum):
    """The result of one upload attempt: the label of ``payloadd_uploads_total``."""

    STORED = "stored"
    TRANSIENT = "transient"
    THROTTLED = "throttled"
    OPERATOR = "operator"
    INVALID = "invalid"


class StoreError(PayloaddError):
    """A store did not confirm an object; the subclass decides what the worker does next.

    ``code`` is the store's own name of the error (``AccessDenied``, ``ENOSPC``, ``ConnectError``),
    the message is for operators.
    """

    outcome: UploadOutcome

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code


class TransientStoreError(StoreError):
    """An error that probably ends within seconds: the worker retries soon.

    ``throttled``: the store asks for fewer requests. ``retry_after``: the least delay in seconds
    that the store asked for, None without one.
    """

    def __init__(
        self, code: str, message: str, *, throttled: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(code, message)
        self.outcome = UploadOutcome.THROTTLED if throttled else UploadOutcome.TRANSIENT
        self.throttled = throttled
        self.retry_after = retry_after


class OperatorStoreError(StoreError):
    """An operator has to fix rights, bucket, credentials or disk: the worker retries for ever."""

    outcome = UploadOutcome.OPERATOR


class InvalidObjectError(StoreError):
    """The store will never accept this object: its batch becomes a dead letter."""

    outcome = UploadOutcome.INVALID


class TooLargeError(PayloaddError):
    """A request is too large even for an empty queue; the message names the limit."""


class StartError(PayloaddError):
    """The daemon cannot start for a reason other than its settings, such as an address in use."""


class StateDirError(StartError):
    """STATE_DIR is on a file system that can keep no journal: another attempt cannot succeed."""


class LaneLostError(PayloaddError):
    """Another process has taken over the jobs of a batch: this one must not upload it."""
