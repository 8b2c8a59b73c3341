"""A journal that cannot be used: the daemon logs the reason and ends with status 1."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tests.crash.disk import make_read_only, small_disk
from tests.support.clients import post
from tests.support.daemon import END_WITHIN, running_daemon, started
from tests.support.store import fake_s3

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.no_cover


async def _refusal(folder: Path, state: Path) -> str:
    """Return the reason why a daemon does not start; AssertionError if it starts."""
    async with started(folder, {"STATE_DIR": str(state)}) as daemon:
        assert await daemon.wait(END_WITHIN) == 1, daemon.output.decode()
        assert [line["event"] for line in daemon.log] == ["cannot_start"], daemon.output.decode()
        assert "Traceback" not in daemon.output.decode()
        reason = str(daemon.event("cannot_start")["reason"])
        assert str(state) in reason
        return reason


async def test_a_read_only_disk_refuses_the_start(tmp_path: Path) -> None:
    """An operator would have to find the reason in a traceback."""
    with small_disk(tmp_path / "disk") as disk:
        async with running_daemon(tmp_path, {"STATE_DIR": str(disk.path)}):
            pass
        make_read_only(disk.path)
        for state in (disk.path, disk.path / "below"):
            assert "Read-only file system" in await _refusal(tmp_path, state)


async def test_a_file_as_state_dir_refuses_the_start(tmp_path: Path) -> None:
    """A typing error in STATE_DIR would end in a traceback."""
    (tmp_path / "file").touch()
    assert "STATE_DIR" in await _refusal(tmp_path, tmp_path / "file")


async def test_a_full_disk_refuses_the_start(tmp_path: Path) -> None:
    """An operator would have to find in a traceback that the disk is full."""
    with small_disk(tmp_path / "disk") as disk:
        disk.fill(0)
        assert "full" in (await _refusal(tmp_path, disk.path)).lower().replace("no space", "full")


async def test_a_second_daemon_names_the_process_of_the_first(tmp_path: Path) -> None:
    """Two daemons with one journal would store every payload twice."""
    async with running_daemon(tmp_path, {"STATE_DIR": str(tmp_path / "state")}) as first:
        await post(first.url, [b"1"])
        reason = await _refusal(tmp_path, tmp_path / "state")
        assert f"process {first.pid})" in reason
        await post(first.url, [b"2"])


async def test_a_killed_daemon_leaves_no_lock(tmp_path: Path) -> None:
    """After a crash an operator would have to delete a file."""
    async with running_daemon(tmp_path) as daemon:
        daemon.process.kill()
        await daemon.wait()
    async with running_daemon(tmp_path) as daemon:
        assert daemon.url


async def test_a_journal_of_a_newer_version_refuses_the_start(tmp_path: Path) -> None:
    """An older version would misread the journal."""
    state = tmp_path / "state"
    async with fake_s3("hang") as store:
        env = {**store.environ, "STATE_DIR": str(state)}
        async with running_daemon(tmp_path, env) as daemon:
            await post(daemon.url, [b"1"])
        with closing(sqlite3.connect(state / "journal.db")) as journal:
            journal.execute("PRAGMA user_version = 99")
            assert journal.execute("SELECT payloads FROM totals").fetchall() == [(1,)]
    reason = await _refusal(tmp_path, state)
    assert "99" in reason
    assert "newer" in reason


@pytest.mark.parametrize("content", [b"\0" * 5000, b"not a database, but long enough " * 40])
async def test_a_file_that_is_no_journal_refuses_the_start(tmp_path: Path, content: bytes) -> None:
    """A file of another program would be overwritten, or the daemon would end in a traceback."""
    state = tmp_path / "state"
    state.mkdir()
    (state / "journal.db").write_bytes(content)
    assert "journal.db" in await _refusal(tmp_path, state)
    assert (state / "journal.db").read_bytes() == content
