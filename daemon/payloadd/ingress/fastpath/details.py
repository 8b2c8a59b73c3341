"""Sizes of the fast path, and the details of problems that only it reports."""

from __future__ import annotations

from typing import Final

FIRST_READ_BYTES: Final = 120 * 2**10
"""Bytes of the first read of a request: a POST of 64 KiB with its head fits. A larger buffer would
be above the threshold from which malloc(3) asks the system for memory."""
BODY_READ_BYTES: Final = 262_144
FASTEST: Final = 2**40
KEPT_HEAD_BYTES: Final = 1024
"""Bytes of each open request that are kept for the log line in case it is refused."""

NO_MEMORY: Final = "too many request bodies at once (MAX_REQUEST_BYTES); nothing was accepted"
TOO_SLOW: Final = (
    "the body came too slowly while other requests waited for memory (MAX_REQUEST_BYTES);"
    " nothing of it was accepted"
)
SHORT_BODY: Final = "the body is shorter than its Content-Length"
