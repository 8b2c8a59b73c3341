"""Tokens for uploads that may fail."""

from __future__ import annotations

import pytest

from payloadd.pipeline.allowance import UploadAllowance


def test_without_a_success_only_time_gives_tokens() -> None:
    """The attempts at failing batches would grow with their number."""
    allowance = UploadAllowance(4, 2.0, 4)
    assert [allowance.take(0.0) for _ in range(5)] == [True] * 4 + [False]
    assert allowance.next_token(0.0) == pytest.approx(0.5)
    assert not allowance.take(0.4)
    assert allowance.take(0.5)
    assert [allowance.take(100.0) for _ in range(5)] == [True] * 4 + [False]


def test_a_success_gives_several_tokens() -> None:
    """After an outage the backlog would be uploaded at a few batches a second."""
    allowance = UploadAllowance(100, 1.0, 4)
    for _ in range(100):
        allowance.spend(0.0)
    allowance.spend(0.0)
    assert not allowance.has_token(0.0)
    allowance.succeed()
    assert [allowance.take(0.0) for _ in range(5)] == [True] * 4 + [False]
    assert allowance.next_token(0.0) == pytest.approx(1.0)
    for _ in range(100):
        allowance.succeed()
    assert allowance.is_full(0.0)
    assert allowance.next_token(0.0) == 0.0
