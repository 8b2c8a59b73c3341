"""The store's trouble: few changes of state, also where uploads fail and succeed in turn."""

from __future__ import annotations

import structlog.testing

from payloadd.observe.health import Health
from payloadd.pipeline.dead_letter_flood import DeadLetterFlood
from payloadd.pipeline.trouble import StoreTrouble


def test_a_trouble_ends_after_two_quiet_seconds_and_after_a_minute_when_it_comes_back() -> None:
    """At 90 % errors the log would have a hundred changes of state in half a minute."""
    health = Health()
    trouble = StoreTrouble(health)
    with structlog.testing.capture_logs() as lines:
        for tenth in range(300):
            now = tenth / 10
            trouble.report(now, "InternalError", "no", "key")
            trouble.end_if_quiet(now + 0.05)
        assert [line["event"] for line in lines] == ["store_unavailable"]
        trouble.end_if_quiet(31.5)
        assert health.troubles
        trouble.end_if_quiet(32.0)
        assert not health.troubles
        trouble.report(33.0, "InternalError", "no", "key")
        trouble.end_if_quiet(40.0)
        assert health.troubles
        trouble.end_if_quiet(93.0)
        trouble.report(200.0, "InternalError", "no", "key")
        trouble.end_if_quiet(202.0)
    events = [line["event"] for line in lines]
    assert events == ["store_unavailable", "store_available"] * 3


def test_a_hundred_dead_letters_a_minute_are_the_most() -> None:
    """A setting that is wrong would make dead letters of the whole backlog."""
    flood = DeadLetterFlood()
    assert [flood.refuse(0.1 * n, "A") for n in range(150)] == [True] * 100 + [False] * 50
    assert flood.refuse(15.0, "B")
    assert not flood.refuse(60.0, "A")
    assert flood.refuse(75.0, "A")
    for number in range(200):
        flood.refuse(80.0, f"code {number}")
    assert not flood.refuse(80.0, "another")
