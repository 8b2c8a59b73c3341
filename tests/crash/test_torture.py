"""Kill the daemon again and again: every acknowledged payload is stored once."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import pytest

from payloadd.journal.sqlite.segments import FOLDER, names
from tests.crash.plan import (
    SHORT,
    SHORT_WITH_WATERMARKS,
    SHORTEST,
    SHORTEST_WITH_WATERMARKS,
    DaemonRun,
    long_plan,
    long_plan_with_watermarks,
)
from tests.crash.torture import torture
from tests.support.clients import seeded

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tests.support.s3 import S3Server

pytestmark = pytest.mark.no_cover

_ALONE: Final = {"BATCH_MAX_PAYLOADS": "1"}
_BATCHED: Final = {"BATCH_MAX_PAYLOADS": "20", "COMPRESSION": "zstd"}
_CHANGING: Final = (
    _BATCHED,
    {"BATCH_MAX_PAYLOADS": "3", "COMPRESSION": "gzip"},
    _ALONE,
    {"BATCH_MAX_PAYLOADS": "7", "KEY_TEMPLATE": "dt={date}/{shard}/{host}-{id}"},
    {"BATCH_MAX_PAYLOADS": "1", "COMPRESSION": "gzip", "KEY_TEMPLATE": "{id}.json"},
)
# No job of these tests is large by the normal bounds. With these bounds half of the jobs are, and
# segments become full, empty, or worth a compaction every second.
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
# Watermarks are written every minute, and wait for reports of the journal, one a second: no run is
# as long.
_WITH_WATERMARKS: Final = """
from payloadd.journal.sqlite import journal
from payloadd.pipeline import watermarks
watermarks.PERIOD = watermarks._POLL = 0.02
watermarks._REPORTS = 2
object.__setattr__(journal.DEFAULT_TUNING, "maintenance_interval", 0.05)
from payloadd.cli.main import main
main()
"""
_PARQUET: Final = {
    "OBJECT_FORMAT": "parquet",
    "PARQUET_SCHEMA": "columns",
    "BATCH_MAX_PAYLOADS": "20",
    "WATERMARK": "on",
}
_CHANGING_PARQUET: Final = (
    _PARQUET,
    {**_PARQUET, "PARQUET_SCHEMA": "fewer", "PARQUET_SORT_BY": "n"},
    {**_BATCHED, "WATERMARK": "on"},
    {**_PARQUET, "PARQUET_SCHEMA": "auto", "BATCH_MAX_PAYLOADS": "1"},
)
_COLUMNS: Final = "n int64\nx json\ntext string\n"


def command_of(folder: Path, script: str) -> tuple[str, str]:
    """Return the command of a daemon that this Python script starts."""
    path = folder / "daemon_script.py"
    path.write_text(script)
    return sys.executable, str(path)


def check_endings(tally: Counter[str], runs: Sequence[DaemonRun]) -> None:
    """Raise AssertionError if no run has ended in one of the planned ways."""
    print(dict(sorted(tally.items())))  # noqa: T201 - to tune the plans
    for ending in {run.ending for run in runs}:
        assert tally[ending], f"never ended {ending!r}"


# The test of segments has all these settings in turn, and half of its jobs in rows.
@pytest.mark.large
@pytest.mark.parametrize(
    ("name", "settings", "short"),
    [
        pytest.param("alone", [_ALONE], SHORTEST, id="alone"),
        pytest.param("batched", [_BATCHED], SHORTEST, id="batched"),
        pytest.param("changing", _CHANGING, SHORT, id="changing-settings"),
    ],
)
async def test_acknowledged_payloads_are_stored_once_after_every_crash(
    seaweed: S3Server,
    tmp_path: Path,
    seed: int,
    long_torture: bool,  # noqa: FBT001 - a fixture
    name: str,
    settings: Sequence[Mapping[str, str]],
    short: Sequence[DaemonRun],
) -> None:
    """A crash would lose acknowledged payloads, or store them twice."""
    runs = long_plan(seeded(seed)) if long_torture else short
    tally = await torture(tmp_path, seaweed, f"torture-{name}", runs, settings, seed)
    check_endings(tally, runs)


@pytest.mark.large
@pytest.mark.parametrize(
    ("name", "settings", "short"),
    [
        pytest.param("parquet", [_PARQUET], SHORTEST_WITH_WATERMARKS, id="parquet"),
        pytest.param("formats", _CHANGING_PARQUET, SHORT_WITH_WATERMARKS, id="changing-formats"),
        pytest.param(
            "watermarks",
            [{**one, "WATERMARK": "on"} for one in _CHANGING],
            SHORT_WITH_WATERMARKS,
            id="changing-settings",
        ),
    ],
)
async def test_no_watermark_is_ahead_and_no_object_changes_after_any_crash(
    seaweed: S3Server,
    tmp_path: Path,
    seed: int,
    long_torture: bool,  # noqa: FBT001 - a fixture
    name: str,
    settings: Sequence[Mapping[str, str]],
    short: Sequence[DaemonRun],
) -> None:
    """A reader would take an hour for complete that lacks payloads, or read an object half new."""
    (tmp_path / "columns").write_text(_COLUMNS)
    (tmp_path / "fewer").write_text("n int32\n")
    command = command_of(tmp_path, _WITH_WATERMARKS)
    runs = long_plan_with_watermarks(seeded(seed)) if long_torture else short
    tally = await torture(tmp_path, seaweed, f"torture-{name}", runs, settings, seed, command)
    check_endings(tally, runs)
    assert tally["(watermark raised)"] > 1, "the watermark was never raised"


async def test_acknowledged_payloads_in_segments_are_stored_once(
    seaweed: S3Server,
    tmp_path: Path,
    seed: int,
    long_torture: bool,  # noqa: FBT001 - a fixture
) -> None:
    """A crash would lose large payloads, or store them twice."""
    command = command_of(tmp_path, _IN_SEGMENTS)
    runs = long_plan(seeded(seed)) if long_torture else SHORT
    settings = [{**one, "JOURNAL_MAX_BYTES": "96KiB"} for one in _CHANGING]
    tally = await torture(tmp_path, seaweed, "torture-segments", runs, settings, seed, command)
    assert tally["(segments found)"], "no run left a segment"
    assert not names(tmp_path / "state" / FOLDER)
