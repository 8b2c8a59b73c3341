"""Kill the daemon again and again: every 202 is kept, and kept once."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import pytest

from payloadd.journal.sqlite.segments import FOLDER, names
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
# The limits of the tests are too small for what is large otherwise. Here half of the jobs are,
# and no second passes without a segment that is full, or empty, or kept by a few jobs.
_IN_SEGMENTS: Final = """
from payloadd.journal.sqlite import journal
from payloadd.journal.sqlite import segments
from payloadd.journal.sqlite.compaction import Compaction
segments.LARGE = 200
segments.WORTH_A_SYNC = 300
segments.SEGMENT_BYTES = 4096
Compaction.least_file_bytes = 1
object.__setattr__(journal.DEFAULT_TUNING, "maintenance_interval", 0.05)
from payloadd.cli.main import main
main()
"""


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


async def test_it_is_the_same_with_payloads_in_segments(
    seaweed: S3Server,
    tmp_path: Path,
    seed: int,
    long_torture: bool,  # noqa: FBT001 - a fixture
) -> None:
    """A 202 for large payloads would be worth nothing on the day of a crash."""
    script = tmp_path / "daemon_script.py"
    script.write_text(_IN_SEGMENTS)
    command = (sys.executable, str(script))
    lives = long_plan(seeded(seed)) if long_torture else SHORT
    habits = [{**one, "JOURNAL_MAX_BYTES": "96KiB"} for one in _CHANGING]
    tally = await torture(tmp_path, seaweed, "torture-segments", lives, habits, seed, command)
    assert tally["(segments found)"], "no life had a segment in it"
    assert not names(tmp_path / "state" / FOLDER)
