"""A full disk: POSTs are refused with a clear error, uploads continue."""

from __future__ import annotations

import signal
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import pytest
import trio

from tests.crash.disk import Disk, Quota, small_disk
from tests.crash.journal_copy import read_journal
from tests.support.clients import Posts
from tests.support.daemon import Daemon, running_daemon
from tests.support.loopback import http_client
from tests.support.store import FakeS3, fake_s3

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.no_cover

_SOON: Final = 60.0
_SETTINGS: Final = {"BATCH_MAX_PAYLOADS": "5", "BATCH_LINGER": "0s", "UPLOAD_TIMEOUT": "500ms"}
DISKS: Final = pytest.mark.parametrize("kind", ["tmpfs", "quota"])


@contextmanager
def _disk(kind: str, folder: Path) -> Iterator[Disk]:
    if kind == "tmpfs":
        with small_disk(folder / "disk") as disk:
            yield disk
    else:
        (folder / "disk").mkdir()
        yield Quota(folder / "disk")


def _environ(store: FakeS3, disk: Disk) -> dict[str, str]:
    return {**store.environ, **_SETTINGS, "STATE_DIR": str(disk.path)}


def _payloads(first: int, count: int, size: int = 100) -> list[list[bytes]]:
    return [[b'"%d %s"' % (number, b"x" * size)] for number in range(first, first + count)]


async def _until_ready(daemon: Daemon, status: int) -> str:
    """Wait until ``/readyz`` answers with ``status``; returns the body."""
    with trio.fail_after(_SOON):
        # It can only be polled.
        while (answer := await daemon.ready()).status_code != status:  # noqa: ASYNC110
            await trio.sleep(0.05)
    return answer.text


async def _be_refused(daemon: Daemon, posts: Posts, first: int) -> None:
    """Post to a daemon with a full disk until POSTs are refused with 503 DISK_ERROR."""
    await posts.run(_payloads(first, 20))
    assert posts.answers["503 DISK_ERROR"] >= 10
    assert set(posts.answers) == {"202", "503 DISK_ERROR"}, posts.summary()
    for answer in posts.refusals:
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert int(answer.headers["Retry-After"]) >= 1
    assert "DISK_ERROR" in await _until_ready(daemon, 503)
    async with http_client() as client:
        assert (await client.get(f"{daemon.url}/healthz")).status_code == 200


async def _leave(daemon: Daemon) -> None:
    """Wait until the journal is empty, and check that a drain leaves nothing."""
    with trio.fail_after(_SOON):
        # Metrics can only be polled.
        while (await daemon.metrics())["payloadd_journal_jobs"]:  # noqa: ASYNC110
            await trio.sleep(0.05)
    daemon.signal(signal.SIGTERM)
    line = await daemon.drained()
    assert (daemon.process.returncode, line["journaled"], line["lost"]) == (0, 0, 0)


@DISKS
async def test_a_full_disk_refuses_and_recovers(tmp_path: Path, kind: str) -> None:
    """A full disk would lose payloads, end the daemon, or need a restart."""
    with _disk(kind, tmp_path) as disk:
        async with (
            fake_s3("hang") as store,
            running_daemon(tmp_path, _environ(store, disk)) as daemon,
        ):
            posts = Posts(daemon.url)
            await posts.run(_payloads(0, 20))
            disk.fill(daemon.pid)
            await _be_refused(daemon, posts, 20)
            disk.free(daemon.pid)
            await _until_ready(daemon, 200)
            assert daemon.events("journal_available")
            before = posts.answers["202"]
            await posts.run(_payloads(40, 20))
            assert posts.answers["202"] == before + 20, posts.summary()
            await store.end()
            await _leave(daemon)
        assert (await trio.to_thread.run_sync(read_journal, disk.path)).empty
    assert store.payloads() == sorted(posts.acknowledged)


@DISKS
async def test_batches_stored_while_the_disk_is_full_are_settled_later(
    tmp_path: Path, kind: str
) -> None:
    """A full disk would stop uploads too, or leave stored payloads in the journal."""
    with _disk(kind, tmp_path) as disk:
        async with (
            fake_s3("hang") as store,
            running_daemon(
                tmp_path, {**_environ(store, disk), "BATCH_MAX_PAYLOADS": "1"}
            ) as daemon,
        ):
            posts = Posts(daemon.url)
            await posts.run(_payloads(0, 20))
            disk.fill(daemon.pid)
            await _be_refused(daemon, posts, 20)
            await store.end()
            await daemon.wait_until_stored(20)
            disk.free(daemon.pid)
            await _until_ready(daemon, 200)
            await _leave(daemon)
        assert (await trio.to_thread.run_sync(read_journal, disk.path)).empty
    assert store.payloads() == sorted(posts.acknowledged)


async def test_a_crash_on_a_full_disk_loses_and_repeats_nothing(tmp_path: Path) -> None:
    """Stored payloads that could not be settled would be stored again under another key."""
    with small_disk(tmp_path / "disk") as disk:
        async with fake_s3("hang") as store:
            env = _environ(store, disk)
            async with running_daemon(tmp_path, env) as daemon:
                posts = Posts(daemon.url)
                await posts.run(_payloads(0, 20))
                await store.wait_until_asked(1)
                disk.fill(daemon.pid)
                await _be_refused(daemon, posts, 20)
                await store.end()
                await daemon.wait_until_stored(1)
                daemon.process.kill()
                await daemon.wait()
            disk.free(daemon.pid)
            await trio.to_thread.run_sync(read_journal, disk.path)
            async with running_daemon(tmp_path, env) as daemon:
                await _leave(daemon)
            assert Counter(store.payloads()) == Counter(posts.acknowledged)


async def test_a_disk_that_fails_in_two_ways_recovers(tmp_path: Path) -> None:
    """Payloads would stay in the journal until an operator restarts the daemon."""
    with small_disk(tmp_path / "disk") as disk:
        quota = Quota(disk.path)
        async with fake_s3("hang") as store:
            env = {**_environ(store, disk), "MAX_QUEUE": "2", "MAX_WORKERS": "1"}
            async with running_daemon(tmp_path, env) as daemon:
                posts = Posts(daemon.url)
                await posts.run(_payloads(0, 20))
                disk.fill(daemon.pid)
                await _be_refused(daemon, posts, 20)
                # The queue is refilled with rows that the failing disk cannot read.
                await store.end()
                await daemon.wait_until_stored(1)
                quota.fill(daemon.pid)
                await _wait_for_codes(daemon, 2)
                disk.free(daemon.pid)
                quota.free(daemon.pid)
                await _until_ready(daemon, 200)
                await _leave(daemon)
            assert Counter(store.payloads()) == Counter(posts.acknowledged)


async def _wait_for_codes(daemon: Daemon, count: int) -> None:
    with trio.fail_after(_SOON):
        # Another task reads the log.
        while len({line["code"] for line in daemon.events("journal_unavailable")}) < count:  # noqa: ASYNC110
            await trio.sleep(0.05)


async def test_a_disk_that_the_journal_itself_has_filled(tmp_path: Path) -> None:
    """After an outage of S3 a disk smaller than JOURNAL_MAX_BYTES would stay full for ever."""
    with small_disk(tmp_path / "disk", "64m") as disk:
        async with fake_s3("hang") as store:
            # Large objects take longer on a busy machine.
            large = {"BATCH_MAX_PAYLOADS": "1", "MAX_WORKERS": "8", "UPLOAD_TIMEOUT": "5s"}
            env = {**_environ(store, disk), **large}
            async with running_daemon(tmp_path, env) as daemon:
                posts = Posts(daemon.url)
                await posts.run(_payloads(0, 80, size=900_000), 2)
                assert posts.answers["503 DISK_ERROR"], posts.summary()
                await _until_ready(daemon, 503)
                await store.end()
                await daemon.wait_until_stored(len(posts.acknowledged))
                await _until_ready(daemon, 200)
                await posts.run(_payloads(80, 20, size=900_000))
                await _leave(daemon)
                assert len(daemon.events("journal_unavailable")) == 1, "it flaps"
            assert Counter(store.payloads()) == Counter(posts.acknowledged)
