"""Answer times of honest clients while hostile clients send the worst allowed requests.

``python -m tests.bench --part hostile`` measures all kinds of hostile clients against the goals.
The bounds here are wide enough for a busy machine; a daemon in which a client can delay others
exceeds them by far.
"""

from __future__ import annotations

from typing import Final

import pytest

from tests.bench.hostile import part
from tests.bench.hostile.outcome import PEAK_RSS, RSS_AFTER, WATCHDOG, Outcome
from tests.support.tools import need_tools

pytestmark = [pytest.mark.large, pytest.mark.no_cover]

LONGEST_WAIT: Final = 2.0
"""Seconds."""
LONGEST_WAIT_FOR_A_SLOT: Final = 10.0
"""Seconds, if there are more connections than slots."""
SECONDS: Final = 1.5
TRIES: Final = 3
"""How often the times are measured: a daemon that lets clients delay others does so each time."""


@pytest.mark.parametrize(
    "kind",
    [
        *("zstd-lines-400", "half-bodies-16", "h2-settings", "pipelined-256", "most-lines"),
        *("tiny-chunks", "tls-hellos", "busy-posts"),
    ],
)
async def test_hostile_clients_delay_no_honest_client(kind: str) -> None:
    """Requests of a few kilobytes would stop the daemon for all clients."""
    need_tools("nginx")
    late: list[Outcome] = []
    while len(late) < TRIES:
        outcome = await _checked(kind)
        if _is_in_time(outcome):
            return
        late.append(outcome)
    pytest.fail(str(late))


def _is_in_time(outcome: Outcome) -> bool:
    """Return whether no client and no sign of life was late.

    The bound is longer where clients waited before the attack, too.
    """
    bound = LONGEST_WAIT_FOR_A_SLOT if outcome.more_than_slots else LONGEST_WAIT
    in_time = outcome.longest < bound + 10 * outcome.quiet_p99
    return in_time and outcome.watchdog_gap < WATCHDOG


async def _checked(kind: str) -> Outcome:
    """Measure one kind of hostile clients, and check all but times."""
    after = 10.0 if kind == "half-bodies-16" else 0.5
    outcome = await part.measure(kind, "one payload", SECONDS, 0.5, after)
    assert not outcome.ended
    assert outcome.tally, "there were no hostile clients"
    assert outcome.honest.get("202"), outcome
    # If all slots are in use, the connection closed for a new one may be an honest one.
    assert set(outcome.honest) <= {"202", *(["closed"] if outcome.more_than_slots else [])}, outcome
    assert not outcome.disk_errors, outcome
    assert outcome.peak_rss < PEAK_RSS, outcome
    if kind == "half-bodies-16":
        assert outcome.rss_after < RSS_AFTER, outcome
    return outcome
