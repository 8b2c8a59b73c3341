"""A daemon whose write-ahead log is missing after a crash reports the loss and continues."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

import pytest

from tests.support.clients import post
from tests.support.daemon import running_daemon

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.no_cover

# No server listens at this address, so all accepted payloads wait in the journal.
_NO_STORE: Final = {
    "STORE_URL": "s3://bucket",
    "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
    "AWS_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "id",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "DRAIN_TIMEOUT": "1s",
    "BATCH_MAX_PAYLOADS": "1",
}


async def _kill_after(folder: Path, posts: int) -> None:
    async with running_daemon(folder, _NO_STORE) as daemon:
        for number in range(posts):
            await post(daemon.url, [b"%d" % number] * 3)
        daemon.signal(signal.SIGKILL)
        await daemon.wait()


async def test_a_missing_log_is_a_trouble_until_the_daemon_is_stopped_in_order(
    tmp_path: Path,
) -> None:
    """Accepted payloads would be lost without a message."""
    state = tmp_path / "payloadd-data"
    await _kill_after(tmp_path, 1)
    async with running_daemon(tmp_path, _NO_STORE) as daemon:
        assert not daemon.events("journal_damaged")
        daemon.signal(signal.SIGTERM)
        assert (await daemon.drained())["journaled"] == 3
    await _kill_after(tmp_path, 5)
    (state / "journal.db-wal").unlink()
    for crash in (True, False):
        async with running_daemon(tmp_path, _NO_STORE) as daemon:
            assert daemon.event("journal_damaged")["missing"] == 15
            assert not daemon.event("journal_damaged")["at_least"]
            ready = await daemon.ready()
            assert ready.status_code == 200
            (trouble,) = [one for one in ready.json()["troubles"] if one["part"] != "store"]
            assert (trouble["part"], trouble["code"]) == ("journal_data", "PAYLOADS_MISSING")
            assert (await daemon.metrics())["payloadd_payloads_missing"] == 15
            await post(daemon.url, [b"1"])
            daemon.signal(signal.SIGKILL if crash else signal.SIGTERM)
            await daemon.wait()
    async with running_daemon(tmp_path, _NO_STORE) as daemon:
        assert not daemon.events("journal_damaged")
        assert (await daemon.metrics())["payloadd_journal_jobs"] == 3 + 2


async def test_the_database_of_another_journal_is_a_trouble(tmp_path: Path) -> None:
    """A restored backup of another machine would hide the loss of this machine's payloads."""
    for name, posts in (("one", 2), ("two", 4)):
        (tmp_path / name).mkdir()
        await _kill_after(tmp_path / name, posts)
    state, other = (tmp_path / name / "payloadd-data" for name in ("one", "two"))
    for end in ("", "-wal", "-shm"):
        (other / f"journal.db{end}").replace(state / f"journal.db{end}")
    async with running_daemon(tmp_path / "one", _NO_STORE) as daemon:
        assert daemon.event("journal_damaged")["missing"] == 6
        assert daemon.event("journal_damaged")["at_least"]
        ready = await daemon.ready()
        (trouble,) = [one for one in ready.json()["troubles"] if one["part"] != "store"]
        assert (trouble["part"], trouble["code"]) == ("journal_data", "PAYLOADS_MISSING")
        metrics = await daemon.metrics()
        assert metrics["payloadd_payloads_missing"] == 6
        assert metrics["payloadd_journal_jobs"] == 4 * 3
