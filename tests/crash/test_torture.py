"""Kill the daemon again and again: every 202 is kept, and kept once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from tests.crash.plan import SHORT, SHORTEST, Life, long_plan
from tests.crash.stage import torture
from tests.support.clients import seeded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tests.support.s3 import S3Server

_ALONE: Final = {"BATCH_MAX_PAYLOADS": "1"}
_BATCHED: Final = {"BATCH_MAX_PAYLOADS": "20", "COMPRESSION": "zstd"}
_CHANGING: Final = (
    _BATCHED,
    {"BATCH_MAX_PAYLOADS": "3", "COMPRESSION": "gzip"},
    _ALONE,
    {"BATCH_MAX_PAYLOADS": "7", "KEY_TEMPLATE": "dt={date}/{shard}/{host}-{id}"},
    {"BATCH_MAX_PAYLOADS": "1", "COMPRESSION": "gzip", "KEY_TEMPLATE": "{id}.json"},
)


@pytest.mark.parametrize(
    ("name", "habits", "short"),
    [
        pytest.param("alone", [_ALONE], SHORTEST, id="alone"),
        pytest.param("batched", [_BATCHED], SHORTEST, id="batched"),
        pytest.param("changing", _CHANGING, SHORT, id="changing-settings"),
    ],
)
async def test_what_was_acknowledged_is_stored_once_whatever_dies(
    seaweed: S3Server,
    tmp_path: Path,
    seed: int,
    long_torture: bool,  # noqa: FBT001 - a fixture
    name: str,
    habits: Sequence[Mapping[str, str]],
    short: Sequence[Life],
) -> None:
    """A 202 would be worth nothing on the day of a crash, or the payload would count twice."""
    lives = long_plan(seeded(seed)) if long_torture else short
    tally = await torture(tmp_path, seaweed, f"torture-{name}", lives, habits, seed)
    print(dict(sorted(tally.items())))  # noqa: T201 - for who tunes the plans
    for death in {life.death for life in lives}:
        assert tally[death], f"never died {death!r}"
