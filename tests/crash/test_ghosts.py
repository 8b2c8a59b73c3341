"""A request refused after a disk error is not stored after a crash."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Final

import pytest

from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.schema import FILE
from tests.support.daemon import ROOT, environment

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.no_cover


_UNKNOWN: Final = "this request is not accepted, but a crash before the disk works again"
"""The disk did not sync the bytes written over it, so a power cut may leave either."""


@pytest.mark.usefixtures("failing_syncs")
@pytest.mark.parametrize(
    ("before", "refused", "error"),
    [
        (1, 3, _UNKNOWN),
        (1, 1000, _UNKNOWN),
        (3000, 5, _UNKNOWN),
        # A request written in steps, of which the first failed: one step is no request.
        (1, 4000, "nothing of this request was accepted"),
    ],
)
def test_a_commit_whose_sync_failed_is_not_there_after_a_kill(
    tmp_path: Path, before: int, refused: int, error: str
) -> None:
    """A client that gets 503 posts again, and both requests are stored."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.crash.ghost",
            str(tmp_path / FILE),
            str(before),
            str(refused),
        ],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert "DISK_ERROR the journal cannot be written: disk I/O error" in done.stdout
    assert error in done.stdout
    with closing(Database(tmp_path / FILE)) as database:
        assert database.high_water.damage is None
        assert database.totals.jobs == before
        assert database.totals.keys == 0
        assert len(database.page(0, 10_000, 10**9)) == before
