"""AWS's schedule and quota, and the patience around them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloadd.pipeline.retry import RetryBudget, backoff, pause


@pytest.mark.parametrize(
    ("attempt", "throttled", "most"),
    [(1, False, 0.05), (2, False, 0.1), (3, False, 0.2), (1, True, 1.0), (2, True, 2.0)],
)
def test_backoff_doubles_from_awss_bases(attempt: int, throttled: bool, most: float) -> None:  # noqa: FBT001 - a parameter of the test
    """Retries faster than AWS's own clients get an account throttled."""
    assert backoff(attempt, 1.0, throttled=throttled) == pytest.approx(most)
    assert backoff(attempt, 0.5, throttled=throttled) == pytest.approx(most / 2)
    assert backoff(attempt, 0.0, throttled=throttled) == 0.0


@given(st.integers(1, 10**9), st.floats(0, 1, exclude_max=True), st.booleans())
def test_no_wait_is_longer_than_its_cap(times: int, fraction: float, throttled: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """A batch that has waited for a week still comes back within seconds of the mending."""
    assert 0 <= backoff(times, fraction, throttled=throttled) <= 20
    assert 0.5 <= pause(times, fraction) <= 15


def test_the_stores_own_wish_is_honoured() -> None:
    """A store that names a wait gets it."""
    assert backoff(1, 0.0, throttled=True, at_least=7.0) == 7.0


def test_the_budget_runs_dry_and_fills_up_again() -> None:
    """Without it 64 workers triple the load on a store that is already failing."""
    budget = RetryBudget()
    spent = 0
    while budget.spend(throttled=False) == 14:
        spent += 1
    assert spent == 500 // 14
    assert [budget.spend(throttled=True) for _ in range(3)] == [5, 5, None]
    budget.refund(14)
    assert budget.spend(throttled=False) == 14
    for _ in range(1000):
        budget.refund(None)
    assert budget.tokens == 500
