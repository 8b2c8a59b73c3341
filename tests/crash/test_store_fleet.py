"""Kill daemons of a fleet with DURABILITY=store again and again: what was promised is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from tests.crash.store_fleet import torture_fleet
from tests.support.clients import seeded

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.s3 import S3Server

pytestmark = [pytest.mark.large, pytest.mark.no_cover]

_SHORT: Final = ("stores and fails", "kill", "kill", "works", "kill")
_STATES: Final = ("works", "works", "stores and fails", "hangs", "stopped")


async def test_a_fleet_without_disks_keeps_every_promise(
    seaweed: S3Server,
    tmp_path: Path,
    seed: int,
    long_torture: bool,  # noqa: FBT001 - a fixture
) -> None:
    """A machine that dies would take acknowledged payloads along, or store them twice."""
    events: tuple[str, ...] = _SHORT
    if long_torture:
        rng = seeded(seed)
        events = tuple("kill" if rng.random() < 0.7 else rng.choice(_STATES) for _ in range(100))
    answers = await torture_fleet(tmp_path, seaweed, "store-fleet", events, seed)
    print(dict(sorted(answers.items())))  # noqa: T201 - to tune the events
    assert answers["(acknowledged)"]
    assert answers["(failed after storing)"]
