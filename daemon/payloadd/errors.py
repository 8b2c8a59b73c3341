"""Every error that payloadd raises on purpose.

A short tree. Errors of libraries are turned into one of these at exactly one
boundary each: the body decoder for JSON, a store for S3 and the file system.
"""

from __future__ import annotations

import random
from enum import Enum
from typing import Final

JITTER: Final = random.Random()  # noqa: S311 - it spreads clients, and nothing has to be kept secret
"""What spreads the clients that are refused together; a test may seed it."""


class PayloaddError(Exception):
    """Base of all errors below."""


class SettingsError(PayloaddError):
    """The settings are wrong; ``problems`` names every wrong one, a line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class RefusedError(PayloaddError):
    """The pipeline cannot take a request now; nothing of it was taken.

    ``code`` is one of the contract's 503 codes, ``least_wait`` the whole
    seconds after which another try is worth it.
    """

    def __init__(self, code: str, detail: str, least_wait: int) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.least_wait = max(1, least_wait)

    @property
    def retry_after(self) -> int:
        """Return what to tell one client: ``least_wait`` and at random up to half as much again.

        Each call returns another number. Requests of one failed commit share this error, and
        without the jitter all their clients would come back in the same second.
        """
        return JITTER.randint(self.least_wait, self.least_wait + (self.least_wait + 1) // 2)


class UploadOutcome(Enum):
    """How one attempt at an object ended: the label of ``payloadd_uploads_total``."""

    STORED = "stored"
    TRANSIENT = "transient"
    THROTTLED = "throttled"
    OPERATOR = "operator"
    INVALID = "invalid"


class StoreError(PayloaddError):
    """A store did not confirm an object. Its class says what to do about it.

    ``code`` is the store's own name for what happened (``AccessDenied``,
    ``ENOSPC``, ``ConnectError``), the message what an operator has to know.
    """

    outcome: UploadOutcome

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code


class TransientStoreError(StoreError):
    """Likely to pass by itself within seconds: try again soon.

    ``throttled``: the store asks for less. ``retry_after``: the least wait in
    seconds that the store asked for, if it did.
    """

    def __init__(
        self, code: str, message: str, *, throttled: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(code, message)
        self.outcome = UploadOutcome.THROTTLED if throttled else UploadOutcome.TRANSIENT
        self.throttled = throttled
        self.retry_after = retry_after


class OperatorStoreError(StoreError):
    """Somebody has to mend something (rights, bucket, credentials, disk): try for ever."""

    outcome = UploadOutcome.OPERATOR


class InvalidObjectError(StoreError):
    """The store will never take this object: it becomes a dead letter."""

    outcome = UploadOutcome.INVALID


class TooLargeError(PayloaddError):
    """A request that could never be taken, however empty the queue; the message names the limit."""


class StartError(PayloaddError):
    """Something outside the settings keeps the daemon from starting (an address in use)."""
