"""The limit of requests per client."""

from __future__ import annotations

import pytest

from payloadd.config.parsers import rate
from payloadd.ingress.problem import Problem
from payloadd.ingress.rate_limit import RateLimiter


class Clock:
    """A clock that the test sets."""

    now = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def accepted(limiter: RateLimiter, client: str, most: int = 1000) -> int:
    """Return how many requests in a row are allowed."""
    for count in range(most):
        try:
            limiter.count(client)
        except Problem:
            return count
    return most


def test_a_burst_then_the_rate() -> None:
    """A client would be refused below its limit, or allowed more."""
    clock = Clock()
    limiter = RateLimiter(rate("10/s burst 50"), clock)
    assert accepted(limiter, "a") == 50
    clock.now += 1
    assert accepted(limiter, "a") == 10
    clock.now += 100
    assert accepted(limiter, "a") == 50
    assert accepted(limiter, "b") == 50


def test_the_wait_is_long_enough() -> None:
    """A client that obeys Retry-After would be refused again."""
    clock = Clock()
    limiter = RateLimiter(rate("6/m burst 1"), clock)
    limiter.count("a")
    with pytest.raises(Problem) as caught:
        limiter.count("a")
    assert (caught.value.status, caught.value.code) == (429, "RATE_LIMITED")
    assert "6/m burst 1" in caught.value.detail
    clock.now += int(caught.value.headers["Retry-After"])
    limiter.count("a")
    # Refused requests do not move the end of the wait.
    for _ in range(100):
        with pytest.raises(Problem):
            limiter.count("a")
    clock.now += 10
    limiter.count("a")


def test_the_number_of_remembered_clients_is_bounded() -> None:
    """A client with many addresses would fill the memory."""
    limiter = RateLimiter(rate("1/s"), Clock(), most_clients=10)
    for number in range(100):
        limiter.count(str(number))
    assert len(limiter) == 10
    with pytest.raises(Problem):
        limiter.count("99")
    limiter.count("0")  # forgotten
