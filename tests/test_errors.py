"""The errors of payloadd."""

from __future__ import annotations

from payloadd.errors import JITTER, RefusedError


def test_clients_that_are_refused_together_get_different_waits() -> None:
    """A thousand clients that wait the same 5 s are a thousand requests in one second."""
    for least, most in ((0, 2), (1, 2), (5, 8), (60, 90)):
        error = RefusedError("DISK_ERROR", "", least)
        JITTER.seed(1)
        waits = [error.retry_after for _ in range(200)]
        assert (min(waits), max(waits)) == (max(1, least), most)
        JITTER.seed(1)
        assert [error.retry_after for _ in range(200)] == waits
